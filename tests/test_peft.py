"""Low-rank adapters of PEFT on the biLM, as docs/finetune.md has them, under each head."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_elmo import (
    ElmoForMultipleChoice,
    ElmoForQuestionAnswering,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
    ElmoTokenizer,
    lstm,
)

peft = pytest.importorskip("peft")

LSTM_WEIGHTS = ["weight_ih", "weight_hh", "weight_hr"]
WORD_WEIGHTS = ["convolutions.0", "transform", "carry", "projection"]
TEXTS = ["a good day", "such a bad day", "good", "bad , bad"]
LABELS = torch.tensor([1, 0, 1, 0])
# Model, task type of PEFT, modules of the head, labels.
HEADS: dict[str, tuple[Any, str | None, list[str], dict[str, Tensor]]] = {
    "texts": (ElmoForSequenceClassification, "SEQ_CLS", ["features", "classifier"], {"labels": LABELS}),
    "tags": (
        ElmoForTokenClassification,
        "TOKEN_CLS",
        ["features", "reader", "classifier", "crf"],
        {"labels": (torch.arange(24) % 2).view(4, 6)},
    ),
    "answers": (
        ElmoForQuestionAnswering,
        None,  # with QUESTION_ANS PEFT 0.21 drops token_type_ids
        ["features", "spans"],
        {"start_positions": torch.tensor([4, 5, 4, 5]), "end_positions": torch.tensor([4, 5, 4, 5])},
    ),
    "choices": (ElmoForMultipleChoice, None, ["features", "classifier"], {"labels": torch.tensor([1, 0])}),
}


def make(head: str, config, **options: Any) -> tuple[Any, dict[str, Tensor], Any]:
    """A model with adapters and its head to be trained, a batch with labels, and the function that makes the model."""
    model_class, task_type, modules, labels = HEADS[head]
    config.head_dim, config.feature_dropout, config.head_dropout = 8, 0.0, 0.0

    def base():
        torch.manual_seed(0)
        return model_class(config)

    texts = [["why ?"] * 4, TEXTS] if head == "answers" else [TEXTS]
    batch = dict(ElmoTokenizer()(*texts, padding=True, return_tensors="pt"))
    if head == "choices":
        batch = {name: tensor.unflatten(0, (2, 2)) for name, tensor in batch.items()}
    options = {"target_modules": [], "target_parameters": LSTM_WEIGHTS, **options}
    adapted = peft.get_peft_model(
        base(), peft.LoraConfig(r=4, lora_alpha=8, task_type=task_type, modules_to_save=modules, **options)
    )
    return adapted, batch | labels, base


def scores(model, batch: dict[str, Tensor]) -> Tensor:
    """The logits in evaluation mode."""
    with torch.no_grad():
        output = model.eval()(**{name: value for name, value in batch.items() if "label" not in name})
    return output.start_logits if "start_logits" in output else output.logits


def train(model, batch: dict[str, Tensor], steps: int = 40) -> list[float]:
    """The losses of some steps."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("targets", [[], WORD_WEIGHTS], ids=["LSTMs", "all"])
@pytest.mark.parametrize("head", HEADS)
def test_from_training_to_a_merged_folder(tiny_config, tmp_path, head, targets):
    model, batch, base = make(head, tiny_config, target_modules=targets)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = train(model, batch)
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {name for name in before if ".lora_" in name}
    head_parameters = {name for name in before if ".modules_to_save." in name}
    assert moved == adapters | head_parameters
    assert len(adapters) == 2 * (2 * len(LSTM_WEIGHTS) + len(targets)) and head_parameters
    assert not [name for name in head_parameters if ".elmo." in name]

    expected = scores(model, batch)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter")
    torch.testing.assert_close(scores(again, batch), expected, rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(scores(model, batch), scores(base(), batch), rtol=0, atol=1e-6)
    merged = model.merge_and_unload()
    assert type(merged) is HEADS[head][0] and not [name for name, _ in merged.named_parameters() if "lora" in name]
    torch.testing.assert_close(scores(merged, batch), expected, rtol=1e-6, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = HEADS[head][0].from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(scores(loaded, batch), expected, rtol=1e-6, atol=1e-5)


def test_adapted_weights_reach_the_fast_path(tiny_config, monkeypatch):
    """The fused recurrence with its kernel is used, and its gradients of the adapters are those of the plain path."""
    fused, calls, gradients = lstm.fused_lstm, [], []

    def watched(*args, **kwargs):
        calls.append(args[1])  # weight_ih
        return fused(*args, **kwargs)

    model, batch, _ = make("texts", tiny_config)
    train(model, batch, steps=3)  # the first matrices of adapters are zero at first
    monkeypatch.setattr(lstm, "fused_lstm", watched)
    for is_plain in (False, True):
        monkeypatch.setattr(lstm, "is_traced", lambda is_plain=is_plain: is_plain)
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    stored = model.get_base_model().elmo.lstm.layers[0].get_base_layer().weight_ih
    assert len(calls) == 2 and (calls[0] - stored).abs().max() > 1e-4
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 12
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_remembered_words_are_never_stale(tiny_config):
    """Words are remembered while their encoder is frozen, and computed where an adapter changes them."""
    model, batch, _ = make("texts", tiny_config)
    cache = model.get_base_model().elmo.word_encoder.cache
    train(model, batch, steps=1)
    assert len(cache) == len({"<S>", "</S>", *" ".join(TEXTS).split()})

    elmo = ElmoModel(tiny_config).eval()
    inputs = ElmoTokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = elmo(**inputs).scalar_mix
        assert len(elmo.word_encoder.cache) > 0
        adapted = peft.get_peft_model(elmo, peft.LoraConfig(target_modules=WORD_WEIGHTS, init_lora_weights=False))
        outputs = [adapted(**inputs).scalar_mix]
        adapted.get_base_model().word_encoder.projection.lora_B["default"].weight.mul_(2)
        outputs.append(adapted(**inputs).scalar_mix)
        merged = adapted.merge_and_unload()
        outputs.append(merged(**inputs).scalar_mix)
        assert len(merged.word_encoder.cache) > 0
    assert (plain - outputs[0]).abs().max() > 1e-3 and (outputs[0] - outputs[1]).abs().max() > 1e-3
    torch.testing.assert_close(outputs[2], outputs[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_is_refused(tiny_config, use_reentrant):
    model, batch, _ = make("texts", tiny_config)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with pytest.raises(ValueError, match="switch one off"):
        model.train()(**batch)
    assert scores(model, batch).shape == (4, 2)


def test_adapters_reach_weights_that_are_read_and_not_called(tiny_config):
    """The trilinear attention of questions uses a layer's weights as a scale; words' characters are looked up."""
    _, batch, base = make("answers", tiny_config)
    batch.pop("start_positions"), batch.pop("end_positions")
    config = peft.LoraConfig(r=2, target_modules=["product"], init_lora_weights=False)
    with torch.no_grad():
        plain = base().eval()(**batch).start_logits
        adapted = peft.get_peft_model(base(), config).eval()
        for name, weight in adapted.named_parameters():
            weight.mul_(100 if "lora_B" in name else 1)
        outputs = adapted(**batch).start_logits
        assert (plain - outputs).abs().max() > 1e-7
        torch.testing.assert_close(adapted.merge_and_unload()(**batch).start_logits, outputs, rtol=0, atol=1e-5)
        words = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["char_embedding"])).eval()
        torch.testing.assert_close(words(**batch).start_logits, plain, rtol=0, atol=1e-5)
