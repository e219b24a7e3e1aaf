"""What `Trainer` offers works on task models: each option does what it says, with a frozen biLM and with a free one."""

import copy
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_modeling import make_model
from torch.nn import functional as F
from training_runs import load_script
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

from modeling_elmo import (
    ElmoForMultipleChoice,
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoTokenizer,
)
from modeling_elmo.elmo_trainer import ElmoTrainer
from modeling_elmo.finetuning_arguments import FinetuningArguments
from modeling_elmo.lstm import ElmoLstmLayer

TOKENIZER = ElmoTokenizer()
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "it", "did", "not", "say", "why"]
freezing = pytest.mark.parametrize("freeze_bilm", [True, False], ids=["frozen", "free"])


def make_classifier(**changes) -> ElmoForSequenceClassification:
    """The same weights at every call; without dropout, in training mode."""
    torch.manual_seed(0)
    options = {"num_labels": 2, "head_dim": 4, "feature_dropout": 0.0, "head_dropout": 0.0, **changes}
    return make_model(cls=ElmoForSequenceClassification, **options).train()


def make_data(number: int = 16) -> Dataset:
    """Texts of very different lengths, not padded."""
    lengths = [1 + 7 * row % 16 for row in range(number)]
    texts = [
        " ".join(WORDS[word % len(WORDS)] for word in range(row, row + length)) for row, length in enumerate(lengths)
    ]
    return Dataset.from_dict({**TOKENIZER(texts), "label": [row % 3 % 2 for row in range(number)]})


def make_trainer(model, folder: Path, *, compute_metrics=None, data_collator=None, **options) -> Trainer:
    arguments = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.05, "save_strategy": "no"}
    arguments["train_sampling_strategy"] = "sequential"
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), **{**arguments, **quiet, **options}),
        train_dataset=make_data(),
        eval_dataset=make_data(5),
        processing_class=TOKENIZER,
        data_collator=data_collator,
        compute_metrics=compute_metrics,
    )


def trained(folder: Path, *, freeze_bilm: bool = True, **options) -> dict[str, torch.Tensor]:
    """The weights after the last step."""
    model = make_classifier(freeze_bilm=freeze_bilm)
    make_trainer(model, folder, **options).train()
    return copy.deepcopy(model.state_dict())


def test_rates_of_their_own_leave_weight_decay_alone(tmp_path):
    options = {"model_name_or_path": "elmo", "learning_rate": 0.01, "weight_decay": 0.3, "report_to": "none"}
    options |= {"bilm_learning_rate": 0.001, "scalar_mix_learning_rate": 0.1, "do_eval": False}
    model = make_classifier(freeze_bilm=False)
    trainer = ElmoTrainer(model=model, args=FinetuningArguments(output_dir=str(tmp_path), **options))
    for _ in range(2):  # at the second call nothing is moved again
        groups = trainer.create_optimizer().param_groups
        assert len(groups) == 5 and all(group["params"] for group in groups)
    found = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        rate = 0.001 if name.startswith("elmo.") else 0.1 if name.endswith("scalar_mix.weights") else 0.01
        assert found[id(weight)] == (rate, 0.0 if "bias" in name or "scalar_mix" in name else 0.3), name


def first_batch() -> dict[str, torch.Tensor]:
    """What the first step of a training sees."""
    return dict(DataCollatorWithPadding(TOKENIZER)(make_data().to_list()[:4]))


def largest_change(before: dict, after: dict) -> float:
    assert before.keys() == after.keys()
    return max((after[name] - value).abs().max().item() for name, value in before.items())


# ---- what is trained


@freezing
def test_a_frozen_bilm_stays_and_a_free_one_is_trained(tmp_path, freeze_bilm):
    before = copy.deepcopy(make_classifier().state_dict())
    after = trained(tmp_path, freeze_bilm=freeze_bilm)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    bilm = {name for name in before if name.startswith("elmo.")}
    assert changed & bilm == (set() if freeze_bilm else bilm)
    assert {"features.scalar_mix.weights", "classifier.output.weight"} <= changed


@freezing
def test_bf16(tmp_path, freeze_bilm):
    model, dtypes = make_classifier(freeze_bilm=freeze_bilm), []
    model.classifier.output.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    trainer = make_trainer(model, tmp_path, bf16=True, max_steps=2)
    trainer.train()
    assert dtypes == 2 * [torch.bfloat16] and {value.dtype for value in model.parameters()} == {torch.float32}
    loss = make_classifier()(**first_batch()).loss.item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=0.02)
    assert largest_change(make_classifier().state_dict(), model.state_dict()) > 1e-3


# ---- which batches


def lengths_of_batches(folder: Path, strategy: str) -> list[list[int]]:
    """The number of words of each text of each batch of an epoch, in their order."""
    seen = []

    def collate(rows: list[dict]) -> dict:
        seen.append([len(row["input_ids"]) for row in rows])
        batch = DataCollatorWithPadding(TOKENIZER)(rows)
        assert batch["input_ids"].shape == (len(rows), max(seen[-1]), 50)
        return batch

    trainer = make_trainer(make_classifier(), folder, data_collator=collate, train_sampling_strategy=strategy)
    trainer.train_dataset = make_data(64)
    list(trainer.get_train_dataloader())
    return seen


def test_texts_of_like_length_go_together(tmp_path):
    by_length, at_random = (lengths_of_batches(tmp_path, strategy) for strategy in ("group_by_length", "random"))
    lengths = sorted(map(len, make_data(64)["input_ids"]))
    assert sorted(chain(*by_length)) == sorted(chain(*at_random)) == lengths
    assert by_length[0][0] == lengths[-1], "the longest comes first"
    out_of_order = [batch for batch in by_length if batch != sorted(batch, reverse=True)]
    assert len(out_of_order) <= 1, "that which gave the longest away"

    def padding(batches: list[list[int]]) -> int:
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(by_length) < 0.6 * padding(at_random)


def rows_of(texts: list[list[str]]) -> list[dict]:
    """As a data set gives them: a dict for each text."""
    encoded = TOKENIZER(texts, is_split_into_words=True)
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def test_collators():
    texts = [["a", "cat"], ["it", "did", "not", "say", "why"], ["mat"]]
    expected = TOKENIZER(texts, is_split_into_words=True, padding=True, return_tensors="pt")
    tags = [[-100, *range(len(text)), -100] for text in texts]
    for options in ({}, {"pad_to_multiple_of": 4}):
        labelled = [{**row, "label": label} for row, label in zip(rows_of(texts), [1, 0, 1], strict=True)]
        batch = DataCollatorWithPadding(TOKENIZER, **options)(labelled)
        tagged = [{**row, "labels": label} for row, label in zip(rows_of(texts), tags, strict=True)]
        tag_batch = DataCollatorForTokenClassification(TOKENIZER, **options)(tagged)
        for collated in (batch, tag_batch):
            assert collated["input_ids"].shape == (3, 8 if options else 7, 50)
            for key, value in expected.items():
                assert torch.equal(collated[key][:, :7], value) and not collated[key][:, 7:].any()
        assert batch["labels"].tolist() == [1, 0, 1]
        assert tag_batch["labels"].tolist() == [row + (len(tag_batch["labels"][0]) - len(row)) * [-100] for row in tags]

    choices = [{key: [value, value] for key, value in row.items()} | {"label": 1} for row in rows_of(texts)]
    batch = DataCollatorForMultipleChoice(TOKENIZER)(choices)
    model = make_model(cls=ElmoForMultipleChoice, head_dim=4)
    logits = model(**batch).logits
    torch.testing.assert_close(logits[:, 0], logits[:, 1])
    whole = {key: value[:, None].expand(-1, 2, *value.shape[1:]) for key, value in expected.items()}
    torch.testing.assert_close(model(**whole).logits, logits, rtol=0, atol=1e-5)

    padded = [{key: value[row] for key, value in expected.items()} for row in range(3)]
    for rows in (padded, [{key: value.tolist() for key, value in row.items()} for row in padded]):
        batch = default_data_collator([{**row, "label": 1} for row in rows])
        assert batch["labels"].tolist() == [1, 1, 1]
        assert all(torch.equal(batch[key], value) for key, value in expected.items())


# ---- how gradients are computed


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing:FutureWarning")  # a name that 5.17 lacks
@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_kwargs:FutureWarning")
@pytest.mark.parametrize(("freeze_bilm", "use_reentrant"), [(True, True), (False, True), (False, False)])
def test_gradient_checkpointing(tmp_path, freeze_bilm, use_reentrant, monkeypatch):
    runs, original = [], ElmoLstmLayer._weights
    monkeypatch.setattr(ElmoLstmLayer, "_weights", lambda *args: (runs.append(1), original(*args))[1])
    expected = trained(tmp_path, freeze_bilm=freeze_bilm, max_steps=2)
    num_runs = len(runs)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    actual = trained(tmp_path, freeze_bilm=freeze_bilm, max_steps=2, **options)
    assert len(runs) - num_runs == (1 if freeze_bilm else 2) * num_runs, (
        "layers of a free biLM run once more, backwards"
    )
    assert largest_change(expected, actual) < 1e-6


@freezing
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, freeze_bilm):
    options = {"freeze_bilm": freeze_bilm, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 2}
    whole = trained(tmp_path, per_device_train_batch_size=8, **options)
    parts = trained(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert largest_change(make_classifier().state_dict(), whole) > 1e-3
    assert largest_change(whole, parts) < 1e-6


def test_the_language_model_is_trained_and_evaluated_by_trainer(tmp_path):
    """Its loss counts once however a batch is cut, and evaluation finds it by `labels` alone."""
    tokenizer = ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", *WORDS])
    texts = Dataset.from_dict({**tokenizer([" ".join(WORDS[row:]) for row in range(8)], return_lm_labels=True)})
    logs = []
    for size, steps in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = make_model(cls=ElmoForPreTraining, dropout=0.0, lm_vocab_size=tokenizer.lm_vocab_size)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        trainer = make_trainer(model, tmp_path, data_collator=partial(tokenizer.pad, return_tensors="pt"), **options)
        trainer.train_dataset = texts.select([0] * 8)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-4)
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-3)
    assert trainer.evaluate(texts)["eval_loss"] > 0


@pytest.mark.parametrize(
    ("num_labels", "label", "expected"),
    [(1, 0.5, "regression"), (2, 1, "single_label_classification"), (3, [1.0, 0.0, 1.0], "multi_label_classification")],
)
def test_a_saved_model_tells_what_its_scores_are(tmp_path, num_labels, label, expected):
    """The pipeline of text classification squashes them by that."""
    model = make_classifier(num_labels=num_labels)
    batch = TOKENIZER(["a cat"] * 2, padding=True, return_tensors="pt")
    assert model.config.problem_type is None
    model(**batch, labels=torch.tensor([label] * 2))
    model.save_pretrained(tmp_path)
    saved = ElmoForSequenceClassification.from_pretrained(tmp_path)
    assert saved.config.problem_type == expected
    classify = pipeline("text-classification", model=saved, tokenizer=TOKENIZER, top_k=None)
    scores = {item["label"]: item["score"] for item in classify("a cat")[0]}
    logits = saved(**TOKENIZER("a cat", return_tensors="pt")).logits[0]
    squash = {1: lambda x: x, 2: lambda x: x.softmax(0), 3: torch.sigmoid}[num_labels]
    torch.testing.assert_close(torch.tensor([scores[f"LABEL_{n}"] for n in range(num_labels)]), squash(logits).detach())


def test_label_smoothing(tmp_path):
    trainer = make_trainer(make_classifier(), tmp_path, max_steps=1, label_smoothing_factor=0.3)
    trainer.train()
    batch = first_batch()
    logits = make_classifier()(**batch).logits
    loss, smoothed = (F.cross_entropy(logits, batch["labels"], label_smoothing=factor).item() for factor in (0, 0.3))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(smoothed, abs=1e-4)
    assert abs(smoothed - loss) > 0.01


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("cls", [ElmoForSequenceClassification, ElmoForTokenClassification], ids=["texts", "words"])
def test_the_mix_is_pulled_where_labels_are_smoothed(tmp_path, cls, parts):
    """By the scripts' trainer, and once for a batch, however many parts it has."""
    label = [-100, 1, 0, -100] if cls is ElmoForTokenClassification else 1
    data = Dataset.from_list([{**TOKENIZER("a cat"), "labels": label}] * 8)
    losses = []
    for pull in (0.0, 10.0):
        torch.manual_seed(0)
        options = {"use_crf": False, "scalar_mix_l2": pull, "feature_dropout": 0.0, "head_dropout": 0.0}
        model = make_model(cls=cls, num_labels=2, head_dim=4, **options)
        with torch.no_grad():
            model.features.scalar_mix.weights.copy_(torch.tensor([1.0, 0.0, -1.0]))
        arguments = FinetuningArguments(
            output_dir=str(tmp_path), model_name_or_path="elmo", use_cpu=True, report_to="none", disable_tqdm=True,
            do_eval=False, save_strategy="no", max_steps=1, logging_steps=1, label_smoothing_factor=0.3,
            per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts,
        )  # fmt: skip
        trainer = ElmoTrainer(model=model, args=arguments, train_dataset=data, data_collator=default_data_collator)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] - losses[0] == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize(
    ("script", "options", "first", "second"),
    [
        ("finetune_glue", [9], {"texts": ["the cat"]}, {"texts": ["no"]}),
        ("finetune_ner", [], {"tokens": ["the", "cat"], "labels": [1, 0]}, {"tokens": ["no"], "labels": [2]}),
        ("finetune_squad", [], {"question": ["why"], "words": ["the", "cat"]}, {"question": ["why"], "words": ["no"]}),
    ],
)
def test_the_scripts_pad_on_the_right(script, options, first, second):
    """Also with a tokenizer that pads on the left: layers from disk would be those of other words."""
    answer = {"start_positions": 4, "end_positions": 4, "place": [0, 0]} if script == "finetune_squad" else {}
    expected, left = (
        load_script(script).collate(tokenizer, *options, [{**first, **answer}, {**second, **answer}])
        for tokenizer in (TOKENIZER, ElmoTokenizer(padding_side="left"))
    )
    assert expected["attention_mask"][1, -1] == 0
    for name, tensor in expected.items():
        torch.testing.assert_close(left[name], tensor)


# ---- checkpoints


def test_the_best_checkpoint_is_loaded(tmp_path):
    scores = iter([0.1, 0.9, 0.3])
    model = make_classifier()
    trainer = make_trainer(
        model,
        tmp_path,
        compute_metrics=lambda _: {"score": next(scores)},
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    saved = {step: load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3)}
    assert largest_change(saved[2], model.state_dict()) == 0
    assert largest_change(saved[1], saved[2]) > 0 and largest_change(saved[3], saved[2]) > 0
    assert model.bilm_is_frozen


@freezing
def test_a_resumed_training_ends_as_one_that_was_not_interrupted(tmp_path, freeze_bilm):
    """With dropout, so that random numbers go on too, and over the end of an epoch."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "train_sampling_strategy": "random"}

    def make(folder: str) -> Trainer:
        model = make_classifier(freeze_bilm=freeze_bilm, feature_dropout=0.5, head_dropout=0.2, dropout=0.1)
        return make_trainer(model, tmp_path / folder, **options)

    whole = make("whole")
    whole.train()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 6 and (tmp_path / "resumed" / "checkpoint-6").is_dir()
    assert not (tmp_path / "resumed" / "checkpoint-3").exists()
    half = load_file(tmp_path / "whole" / "checkpoint-3" / "model.safetensors")
    assert largest_change(half, whole.model.state_dict()) > 1e-3
    assert largest_change(whole.model.state_dict(), resumed.model.state_dict()) == 0
