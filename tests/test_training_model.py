"""Which model is trained: new ones, those of other runs, converted ones; their optimizer; the frozen biLM."""

from pathlib import Path

import numpy as np
import pytest
import torch
from finetuning_runs import save_pretrained
from safetensors.torch import load_file

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel, ElmoTokenizer
from modeling_elmo.arguments import ArgumentsError, PretrainingArguments
from modeling_elmo.training_model import (
    check_spelling,
    make_model,
    make_optimizer,
    make_schedule,
    read_config,
    start_from_frequencies,
)

LINES = ["red green blue red green red"] * 60


def arguments(**values) -> PretrainingArguments:
    return PretrainingArguments(**{"output_dir": "out", "train_file": ["text"], **values})


@pytest.fixture
def published(tmp_path, tiny_config) -> Path:
    """A folder with a whole language model of 40 words."""
    tokenizer = ElmoTokenizer().train_new_from_counts({f"word{i}": 100 - i for i in range(37)})
    return save_pretrained(ElmoForPreTraining(tiny_config), tmp_path / "published", tokenizer)


@pytest.fixture
def encoder_only(tmp_path, tiny_config) -> Path:
    """A folder as conversion leaves it where the softmax was not published."""
    tiny_config.lm_vocab_size = None
    return save_pretrained(ElmoModel(tiny_config), tmp_path / "encoder")


def equal(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in second)


def test_a_whole_language_model_goes_on_with_its_softmax(published):
    model, is_new = make_model(arguments(model_name_or_path=str(published)), 40)
    assert not is_new and equal(dict(model.named_parameters()), load_file(published / "model.safetensors"))


def test_a_new_vocabulary_has_a_fresh_softmax_and_the_old_bilm(published):
    model, is_new = make_model(arguments(model_name_or_path=str(published), new_vocabulary=True), 40)
    saved = load_file(published / "model.safetensors")
    assert is_new and not torch.equal(model.lm_head.weight, saved["lm_head.weight"])
    assert equal(model.elmo.state_dict(), {k[5:]: v for k, v in saved.items() if k.startswith("elmo.")})


@pytest.mark.parametrize("source", ["vocab_file", "tokenizer_name"])
def test_a_vocabulary_of_the_users_has_a_fresh_softmax_though_it_is_as_large(published, source):
    # As many words, but others: the rows of the old softmax belong to other words.
    model, is_new = make_model(arguments(model_name_or_path=str(published), **{source: "elsewhere"}), 40)
    saved = load_file(published / "model.safetensors")
    assert is_new and not torch.equal(model.lm_head.weight, saved["lm_head.weight"])


def test_an_encoder_gets_a_fresh_softmax_of_any_size(encoder_only):
    model, is_new = make_model(arguments(model_name_or_path=str(encoder_only)), 77)
    saved = ElmoModel.from_pretrained(encoder_only).state_dict()
    assert is_new and model.lm_head.weight.shape[0] == model.config.lm_vocab_size == 77
    assert equal(model.elmo.state_dict(), {k: v for k, v in saved.items() if "scalar_mix" not in k})


def test_an_encoder_that_knows_the_size_of_its_vocabulary_gets_a_fresh_softmax_too(tmp_path, tiny_config):
    save_pretrained(ElmoModel(tiny_config), tmp_path)
    model, is_new = make_model(arguments(model_name_or_path=str(tmp_path)), 40)
    assert is_new and len(model.lm_head.weight) == 40


def test_a_model_in_half_precision_is_trained_in_float32(published):
    ElmoForPreTraining.from_pretrained(published, dtype=torch.bfloat16).save_pretrained(published)
    model, _ = make_model(arguments(model_name_or_path=str(published)), 40)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_cannot_be_started_from_is_named(published, tmp_path):
    with pytest.raises(ArgumentsError, match=r"cannot start from .*nowhere"):
        make_model(arguments(model_name_or_path=str(tmp_path / "nowhere")), 40)
    with pytest.raises(ArgumentsError, match="--new_vocabulary"):
        make_model(arguments(model_name_or_path=str(published)), 41)
    with pytest.raises(ArgumentsError, match="config_overrides"):
        arguments(model_name_or_path=str(published), config_overrides="dropout=0.5")


def test_a_configuration_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 768}')
    with pytest.raises(ArgumentsError, match="that of another model, of type 'bert'"):
        make_model(arguments(config_name=str(tmp_path / "config.json")), 6)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    assert read_config(arguments(config_name=str(tmp_path / "config.json")), 6).num_hidden_layers == 3


def test_a_named_configuration_comes_before_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_text("{}")
    assert read_config(arguments(config_name="small"), 6).lstm_dim < ElmoConfig().lstm_dim


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"char_padding_id": 1}, "spells by bytes only"),
        ({"word_embedding_dim": 4, "word_vocab_size": 20}, "spells by bytes only"),
        ({"cnn_filters": [], "word_vocab_size": 20}, "spells by bytes only"),
        ({"max_word_length": 49}, "max_word_length=49 and the tokenizer 50"),
        ({"max_word_length": 51}, "max_word_length=51 and the tokenizer 50"),
    ],
)
def test_a_model_must_read_words_as_the_tokenizer_spells_them(tiny_config, changes, message):
    check_spelling(tiny_config, ElmoTokenizer())
    with pytest.raises(ArgumentsError, match=message):
        check_spelling(ElmoConfig.from_dict({**tiny_config.to_dict(), **changes}), ElmoTokenizer())


@pytest.mark.parametrize(("optim", "kind"), [("adagrad", torch.optim.Adagrad), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_has_what_the_arguments_say(tiny_config, optim, kind):
    model = ElmoForPreTraining(tiny_config)
    values = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-5, "weight_decay": 0.03}
    values |= {"initial_accumulator_value": 0.7}
    optimizer = make_optimizer(arguments(optim=optim, learning_rate=0.01, **values), model)
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind and group["lr"] == 0.01
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    if optim == "adamw":
        assert group["betas"] == (0.8, 0.95) and group["eps"] == 1e-5 and group["weight_decay"] == 0.03
        assert group["fused"]
    else:
        assert group["eps"] == 0 and float(optimizer.state[group["params"][0]]["sum"].max()) == pytest.approx(0.7)


def test_muon_moves_the_matrices_of_lstms_and_word_encoder(tiny_config):
    model = ElmoForPreTraining(tiny_config)
    values = {"learning_rate": 0.01, "muon_learning_rate": 0.03, "weight_decay": 0.1}
    optimizer = make_optimizer(arguments(optim="muon", **values), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    lstm = {f"elmo.lstm.layers.{i}.weight_{kind}" for i in range(2) for kind in ("ih", "hh", "hr")}
    encoder = {name for name in rates if ("highways" in name or "projection" in name) and name.endswith("weight")}
    assert len(encoder) == 2 * tiny_config.num_highway_layers + 1
    assert {name for name, rate in rates.items() if rate == 0.03} == lstm | encoder
    assert [group.get("gate_dim") for group in optimizer.param_groups] == [None, tiny_config.lstm_dim]
    words_only = ElmoConfig.from_dict({**tiny_config.to_dict(), "cnn_filters": [], "word_vocab_size": 9})
    _, muon = make_optimizer(arguments(optim="muon"), ElmoForPreTraining(words_only)).param_groups
    assert len(muon["params"]) == 6
    unprojected = ElmoConfig.from_dict({**tiny_config.to_dict(), "use_cnn_projection": False, "projection_dim": 20})
    _, muon = make_optimizer(arguments(optim="muon"), ElmoForPreTraining(unprojected)).param_groups
    assert len(muon["params"]) == 6 + 2
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        assert make_optimizer(arguments(optim="muon", mixed_precision=precision), model).muon_dtype is dtype
    with pytest.raises(ArgumentsError, match="fp16"):
        arguments(optim="muon", mixed_precision="fp16")


def test_a_softmax_that_starts_from_frequencies_predicts_them(tiny_config):
    model = ElmoForPreTraining(tiny_config)
    frequencies = np.arange(tiny_config.lm_vocab_size, dtype=float)
    start_from_frequencies(model, frequencies)
    predicted = torch.softmax(model.lm_head(torch.zeros(tiny_config.projection_dim)), 0).detach()
    torch.testing.assert_close(
        predicted[1:].double(), torch.from_numpy(frequencies[1:] / frequencies.sum()), rtol=0, atol=1e-3
    )
    assert float(predicted[0] / predicted[1]) == pytest.approx(0.5), "a word that never comes counts half a time"


def test_a_schedule_warms_up_and_falls(tiny_config):
    optimizer = make_optimizer(arguments(optim="adamw", learning_rate=1.0), ElmoForPreTraining(tiny_config))
    schedule = make_schedule(arguments(warmup_steps=0.1, lr_scheduler_type="linear"), optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0 and rates[10] == max(rates) == 1.0 and rates[99] < 0.02


@pytest.mark.parametrize(("warmup_steps", "highest"), [(0.5, 5), (0.25, 3), (1, 1), (3, 3)])
def test_a_warm_up_below_one_is_a_share_of_all_steps_and_else_their_number(tiny_config, warmup_steps, highest):
    optimizer = make_optimizer(arguments(optim="adamw", learning_rate=1.0), ElmoForPreTraining(tiny_config))
    schedule = make_schedule(arguments(warmup_steps=warmup_steps), optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates.index(1.0) == highest


def run_on(folder: Path, output: Path, run, **more) -> dict[str, torch.Tensor]:
    (output.parent / "text.txt").write_text("\n".join(LINES))
    values = {"train_file": output.parent / "text.txt", "output_dir": output, "model_name_or_path": folder,
              "per_device_train_batch_size": 4, "unroll_steps": 5, "max_steps": 3, "pre_tokenized": True,
              "data_cache_dir": output.parent / "cache", **more}  # fmt: skip
    assert run(*[text for name, value in values.items() for text in (f"--{name}", str(value))]) == 0
    return load_file(output / "model.safetensors")


def test_the_softmax_is_trained_alone_while_the_bilm_is_frozen(published, tmp_path, run, capsys):
    before = load_file(published / "model.safetensors")
    frozen = run_on(published, tmp_path / "frozen", run, new_vocabulary=True, freeze_bilm_steps=3)
    assert "softmax: new, trained alone for the first 3 steps" in capsys.readouterr().out
    assert frozen["lm_head.weight"].shape[0] == 6  # <S>, </S>, <UNK>, red, green, blue
    assert all(torch.equal(frozen[name], before[name]) for name in before if name.startswith("elmo."))
    thawed = run_on(published, tmp_path / "thawed", run, new_vocabulary=True, freeze_bilm_steps=2)
    assert not torch.equal(thawed["elmo.lstm.layers.0.weight_ih"], before["elmo.lstm.layers.0.weight_ih"])


def test_training_goes_on_on_another_text_with_the_same_words(published, tmp_path, run):
    words = (published / "vocab.txt").read_text()
    trained = run_on(published, tmp_path / "out", run)
    assert (tmp_path / "out/vocab.txt").read_text() == words
    assert trained["lm_head.weight"].shape[0] == 40


def test_frequencies_take_no_place_of_a_softmax_that_was_trained(published, tmp_path, run):
    before = load_file(published / "model.safetensors")["lm_head.bias"]
    options = {"unigram_bias": True, "max_steps": 1, "learning_rate": 1e-9}
    after = run_on(published, tmp_path / "out", run, **options)["lm_head.bias"]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    new = run_on(published, tmp_path / "new", run, new_vocabulary=True, **options)["lm_head.bias"]
    assert new.exp().sum() == pytest.approx(1, abs=0.05) and new.std() > 0.1
