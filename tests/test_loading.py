"""Folders that are no whole ELMo: each is refused with its reason, by the commands too, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from finetuning_runs import change_weights, save_pretrained
from transformers.utils import logging

from modeling_elmo import (
    ElmoConfig,
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoModel,
    ElmoTokenizer,
    embed,
    export,
    warm_state,
)
from modeling_elmo.arguments import ArgumentsError, PretrainingArguments
from modeling_elmo.loading import LoadingError, MismatchError, load_encoder, load_model, load_tokenizer
from modeling_elmo.training_model import make_model

WEIGHT = "word_encoder.projection.weight"


@pytest.fixture
def folder(tmp_path, tiny_config) -> Path:
    return save_pretrained(ElmoModel(tiny_config), tmp_path / "model")


def change_config(folder: Path, **values: object):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def half_of_the_file(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def make_word_table(folder: Path):
    """An ELMo that looks words up, instead of the one that is there."""
    config = {**json.loads((folder / "config.json").read_text()), "cnn_filters": [], "word_vocab_size": 5}
    ElmoModel(ElmoConfig.from_dict(config)).save_pretrained(folder)
    ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", "the"], word_inputs=True).save_pretrained(folder)
    load_encoder(str(folder))


DAMAGES = {
    "absent": (shutil.rmtree, "has no ELMo model"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "model_type None, not 'elmo'"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
    "another model": (lambda folder: change_config(folder, model_type="bert"), "model_type 'bert', not 'elmo'"),
    "no number": (lambda folder: change_config(folder, projection_dim="x"), "projection_dim"),
    "no type": (lambda folder: change_config(folder, dtype="abc"), "has no attribute 'abc'"),
    "no labels": (lambda folder: change_config(folder, id2label=5), "has no attribute 'items'"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "half a file": (half_of_the_file, "has no ELMo model: .*header"),
    "a weight less": (lambda folder: change_weights(folder, {WEIGHT: None}), rf"lacks weights \({WEIGHT}\)"),
    "a smaller weight": (
        lambda folder: change_weights(folder, {WEIGHT: torch.ones(3, 5)}),
        r"has the shape \(3, 5\)",
    ),
    "another spelling": (lambda folder: change_config(folder, char_padding_id=7), r"is char_vocab\.json there\?"),
    "shorter words": (lambda folder: change_config(folder, max_word_length=20), "reads 20 ids a word.* gives 50"),
    "words as ids": (
        lambda folder: ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>"], word_inputs=True).save_pretrained(folder),
        "reads 50 ids a word.* gives 1",
    ),
    "no words of a table": (
        lambda folder: (make_word_table(folder), (folder / "vocab.txt").unlink()),
        r"a table of 4 words, and the tokenizer knows 0: put the vocab\.txt that belongs to it beside",
    ),
    "words behind a table": (
        lambda folder: (make_word_table(folder), (folder / "vocab.txt").write_text("<S>\n</S>\n<UNK>\na\nb\n")),
        "a table of 4 words, and the tokenizer knows 5",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_whole_elmo_is_refused(folder, tmp_path, capsys, damage, message):
    assert load_encoder(str(folder))[0].training is False
    damage(folder)
    with pytest.raises(LoadingError, match=message):
        load_encoder(str(folder))
    text = tmp_path / "text.txt"
    text.write_text("a b c\n")
    capsys.readouterr()
    assert embed.main([str(folder), str(text), str(tmp_path / "vectors")]) == 2
    assert export.main([str(folder), str(tmp_path / "elmo.onnx")]) == 2
    assert warm_state.main([str(folder), str(text), str(tmp_path / "warm")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("Loading weights", "\r"))]
    assert len(errors) == 3 and all(line.startswith(f"error: {folder}") for line in errors), errors
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "text.txt"}


def test_a_scalar_mix_may_be_absent(folder):
    change_weights(folder, {"scalar_mix.weights": None, "scalar_mix.gamma": None})
    assert load_encoder(str(folder))[0].scalar_mix.gamma.item() == 1.0


def test_pretraining_goes_on_from_whole_models_only(tmp_path, tiny_config):
    for model_class, prefix in ((ElmoModel, ""), (ElmoForPreTraining, "elmo.")):
        folder = save_pretrained(model_class(tiny_config), tmp_path / model_class.__name__)
        change_weights(folder, {prefix + WEIGHT: None})
        args = PretrainingArguments(
            output_dir="out", train_file=["text.txt"], model_name_or_path=str(folder), new_vocabulary=not prefix
        )
        with pytest.raises(ArgumentsError, match=rf"cannot start from .*lacks weights \({prefix}{WEIGHT}\)"):
            make_model(args, tiny_config.lm_vocab_size)


def test_a_head_may_be_new_and_a_bilm_never(tmp_path, tiny_config, caplog):
    folder = save_pretrained(ElmoForSequenceClassification(tiny_config), tmp_path / "two")
    name, config = str(folder), ElmoConfig.from_pretrained(folder, num_labels=3)
    with pytest.raises(MismatchError, match=r"classifier\.output\.\w+ has the shape"):
        load_model(ElmoForSequenceClassification, name, "elmo.", config=config)
    model, new = load_model(ElmoForSequenceClassification, name, "elmo.", True, config=config)
    assert model.classifier.output.weight.shape[0] == 3
    assert new == ["classifier.output.bias", "classifier.output.weight"]
    model, new = load_model(ElmoForPreTraining, name, "elmo.")
    assert all(weight.startswith("lm_head.") for weight in new) and new
    with pytest.raises(LoadingError, match=r"lacks weights \(lm_head"):
        load_model(ElmoForPreTraining, name)
    assert not caplog.records


def test_what_transformers_tells_is_as_loud_as_before(folder, tmp_path):
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        load_encoder(str(folder))
        load_tokenizer(str(folder))
        assert logging.get_verbosity() == logging.INFO
        for load in (load_encoder, load_tokenizer):
            with pytest.raises(LoadingError):
                load(str(tmp_path / "nowhere"))
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)
