"""Layout of legacy weights: each variation against a plain NumPy model and back, and each contradiction refused."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from legacy_files import (
    ABSENT,
    OPTIONS,
    VOCABULARY,
    assert_bit_equal,
    assert_refused,
    changed,
    layers_of,
    random_datasets,
    read_hdf5,
    write_hdf5,
    write_legacy,
    write_options,
)
from numpy_reference import character_rows, elmo_layers

from modeling_elmo import ElmoConfig, ElmoModel
from modeling_elmo.allennlp_format import ConversionWarning, to_datasets
from modeling_elmo.convert import convert_from_allennlp, convert_to_allennlp
from modeling_elmo.tokenization_elmo import ElmoTokenizer

SENTENCES = [
    ["The", "naïve", "cat", "sat", "."],
    ["incomprehensibilities" * 3],
    ["日本", "<S>", "—", "x", "y", "z", "a"],
]
CELL = "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/"


VARIATIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "training_file": {"char_cnn__n_characters": 261},
    "one_highway": {"char_cnn__n_highway": 1},
    "no_highway": {"char_cnn__n_highway": 0},
    "null_highway": {"char_cnn__n_highway": None},
    "absent_highway": {"char_cnn__n_highway": ABSENT},
    "tanh": {"char_cnn__activation": "tanh"},
    "one_filter_width": {"char_cnn__filters": [[3, 6]]},
    "many_filter_widths": {"char_cnn__filters": [[width, 2] for width in range(1, 13)]},
    "short_words": {"char_cnn__max_characters_per_token": 12},
    "null_clips": {"lstm__cell_clip": None, "lstm__proj_clip": None},
    "absent_clips": {"lstm__cell_clip": ABSENT, "lstm__proj_clip": ABSENT},
    "no_skip": {"lstm__use_skip_connections": False},
    "absent_skip": {"lstm__use_skip_connections": ABSENT},
    "one_layer": {"lstm__n_layers": 1},
    "absent_layers": {"lstm__n_layers": ABSENT},
    "three_layers": {"lstm__n_layers": 3},
    "narrow_lstm": {"lstm__dim": 4},
    "few_options": {"dropout": ABSENT, "n_tokens_vocab": ABSENT, "bidirectional": ABSENT},
    "no_cnn_projection": {"char_cnn__filters": [[1, 2], [3, 3]]},
    "projection_to_same_width": {"char_cnn__filters": [[1, 2], [3, 3]]},
    "words": {"char_cnn": ABSENT},
    "words_null": {"char_cnn": None},
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_variation(name, tmp_path, dst):
    """Every form of the format: equal outputs to the plain NumPy reference, and a round trip to equal bits."""
    options = changed(**VARIATIONS[name])
    datasets = random_datasets(options, projection=name != "no_cnn_projection")
    source = write_legacy(tmp_path / "legacy", options, datasets)
    convert_from_allennlp(source, dst)

    has_characters = options.get("char_cnn") is not None
    model, exact = ElmoModel.from_pretrained(dst).eval(), ElmoModel.from_pretrained(dst).eval().double()
    reference = options if has_characters else {key: options[key] for key in ("lstm",)}
    for sentence in SENTENCES:
        if has_characters:
            rows = character_rows(sentence, options["char_cnn"]["max_characters_per_token"])
        else:
            known = [VOCABULARY.index(word if word in VOCABULARY[3:] else "<UNK>") for word in sentence]
            rows = np.array([0, *known, 1])
        expected = elmo_layers(datasets, reference, rows)
        assert expected.shape == (options["lstm"].get("n_layers", 1) + 1, len(sentence) + 2, 10)
        np.testing.assert_allclose(layers_of(exact, rows), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(layers_of(model, rows), expected, rtol=0, atol=1e-5)
        encoded = ElmoTokenizer.from_pretrained(dst)(sentence, is_split_into_words=True)
        np.testing.assert_array_equal(np.array(encoded["input_ids"]), rows + 1)

    back = tmp_path / "back"
    convert_to_allennlp(dst, back)
    assert_bit_equal(read_hdf5(back / "weights.hdf5"), datasets)
    assert (back / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    assert meaning(json.loads((back / "options.json").read_text())) == meaning(options)


def meaning(options: dict[str, Any]) -> dict[str, Any]:
    """Options with what absent keys mean filled in."""
    options = {"bidirectional": True, "dropout": 0.1, "n_tokens_vocab": len(VOCABULARY), "char_cnn": None} | options
    options.pop("n_negative_samples_batch", None)
    clips = {"cell_clip": None, "proj_clip": None}
    options["lstm"] = clips | {"n_layers": 1, "use_skip_connections": False} | options["lstm"]
    if options["char_cnn"]:
        cnn = {"n_highway": None} | options["char_cnn"]
        options["char_cnn"] = cnn | {"n_highway": cnn["n_highway"] or 0, "n_characters": 262}
    return options


def test_the_variations_matter():
    """Guards the test above: clips are reached, and every option that no tensor shows changes the result."""
    datasets, rows = random_datasets(OPTIONS), character_rows(SENTENCES[0], 50)
    expected = elmo_layers(datasets, OPTIONS, rows)
    for change in ({"lstm__cell_clip": None}, {"lstm__proj_clip": None}, {"lstm__use_skip_connections": False}):
        assert np.abs(elmo_layers(datasets, changed(**change), rows) - expected).max() > 0.1
    assert np.abs(elmo_layers(datasets, changed(char_cnn__activation="tanh"), rows) - expected).max() > 0.1


def test_another_forget_bias_is_folded_in(tmp_path, tiny_config):
    """The format always adds 1.0, so a model without forget bias stores one that takes it away again."""
    tiny_config.forget_bias = 0.0
    model = ElmoModel(tiny_config).eval()
    model.save_pretrained(tmp_path / "hf")
    convert_to_allennlp(tmp_path / "hf", tmp_path / "legacy")
    options = json.loads((tmp_path / "legacy" / "options.json").read_text())
    rows = character_rows(SENTENCES[0], 50)
    expected = elmo_layers(read_hdf5(tmp_path / "legacy" / "weights.hdf5"), options, rows)
    np.testing.assert_allclose(layers_of(model, rows), expected, rtol=0, atol=1e-5)


def test_weights_that_are_written_stay_as_they_are(tiny_config):
    tiny_config.forget_bias = 0.0
    state_dict = ElmoModel(tiny_config, add_scalar_mix=False).state_dict()
    before = {name: tensor.clone() for name, tensor in state_dict.items()}
    to_datasets(state_dict, tiny_config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_dict.items())


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "dim": ({"lstm__dim": 8}, r"lstm\.dim is 8, but the tensors say 7"),
    "projection_dim": ({"lstm__projection_dim": 6}, r"lstm\.projection_dim is 6, but the tensors say 5"),
    "n_layers": ({"lstm__n_layers": 3}, r"lstm\.n_layers is 3, but the tensors say 2"),
    "absent_n_layers": ({"lstm__n_layers": ABSENT}, r"lstm\.n_layers is absent, which means 1, but the tensors say 2"),
    "n_highway": ({"char_cnn__n_highway": 1}, r"char_cnn\.n_highway is 1, but the tensors say 2"),
    "absent_n_highway": ({"char_cnn__n_highway": ABSENT}, r"n_highway is absent, which means 0, but the tensors say 2"),
    "filters": (
        {"char_cnn__filters": [[1, 4], [2, 3], [5, 6]]},
        r"filters is .*\[5, 6\]\], but the tensors say .*\[4, 6",
    ),
    "embedding": ({"char_cnn__embedding": {"dim": 16}}, r"char_cnn\.embedding\.dim is 16, but the tensors say 3"),
    "characters": ({"char_cnn__n_characters": 60}, r"n_characters is 60, but the tensors say 261"),
    "activation": ({"char_cnn__activation": "gelu"}, r"char_cnn\.activation is 'gelu', but must be 'relu' or 'tanh'"),
    "no_activation": ({"char_cnn__activation": ABSENT}, r"char_cnn\.activation is None"),
    "no_word_length": ({"char_cnn__max_characters_per_token": ABSENT}, r"max_characters_per_token is None"),
    "true_word_length": (
        {"char_cnn__max_characters_per_token": True},
        r"max_characters_per_token is True, but must be",
    ),
    "short_words": ({"char_cnn__max_characters_per_token": 3}, r"width 4 is greater than max_word_length=3"),
    "clip": ({"lstm__cell_clip": 0}, r"cell_clip must be greater than 0"),
    "clip_type": ({"lstm__proj_clip": "3"}, r"proj_clip"),
    "skip_type": ({"lstm__use_skip_connections": "yes"}, r"use_skip_connections"),
    "dropout": ({"dropout": 1.5}, r"dropout must be in"),
    "one_direction": ({"bidirectional": False}, r"bidirectional is False.*unidirectional"),
    "no_char_cnn": ({"char_cnn": ABSENT}, r"weights\.hdf5 has no dataset 'embedding'.*--token_embeddings"),
    "section": ({"lstm": 7}, r"lstm\.\w+ is looked up in 7"),
    "no_lstm_but_cnn": ({"lstm": ABSENT}, r"lstm\.n_layers is absent"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_options_that_contradict_the_tensors(name, legacy, dst):
    changes, message = CONTRADICTIONS[name]
    write_options(legacy, **changes)
    assert_refused(legacy, dst, message)


BACKWARD = {
    "W_0": np.zeros((10, 28), np.float32),
    "B": np.zeros(28, np.float32),
    "W_P_0": np.zeros((7, 5), np.float32),
}
DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"CNN/W_cnn_1": None}, r"no dataset 'CNN/W_cnn_1'"),
    "missing_bias": ({CELL + "B": None}, r"no dataset '.*/B'"),
    "no_characters": ({"char_embed": None}, r"weights\.hdf5 has no dataset 'char_embed' for char_cnn"),
    "no_lstm_projection": ({CELL + "W_P_0": None}, r"W_P_0.*without projection"),
    "no_cnn_projection": ({"CNN_proj/W_proj": None, "CNN_proj/b_proj": None}, r"needs as many filters"),
    "characters": ({"char_embed": np.zeros((262, 3), np.float32)}, r"char_embed' has 262 rows"),
    "shape": ({CELL + "W_0": np.zeros((10, 24), np.float32)}, r"W_0' has shape \(10, 24\), but .* \(10, 28\)"),
    "dimensions": ({"CNN/W_cnn_0": np.zeros((1, 3, 4), np.float32)}, r"W_cnn_0' has shape .* 4 dimensions"),
    "backward_layer": (
        {f"RNN_1/RNN/MultiRNNCell/Cell2/LSTMCell/{name}": data for name, data in BACKWARD.items()},
        r"no dataset 'RNN_0/RNN/MultiRNNCell/Cell2/LSTMCell/W_0'",
    ),
    "number": ({"CNN/W_cnn_1001": np.zeros((1, 1, 3, 2), np.float32)}, r"have 1001 in the place of a small number"),
    "nan": ({"CNN_proj/b_proj": np.full(5, np.nan, np.float32)}, r"'CNN_proj/b_proj' has NaN"),
    "infinite": ({CELL + "B": np.full(28, np.inf, np.float32)}, r"infinite"),
    "integers": ({"CNN_proj/b_proj": np.zeros(5, np.int64)}, r"holds int64"),
    "one_direction": (
        {name: None for name in random_datasets(OPTIONS) if name.startswith("RNN_1")},
        r"one direction only",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tensors(name, legacy, dst):
    changes, message = DAMAGES[name]
    datasets = random_datasets(OPTIONS) | changes
    write_hdf5(legacy / "weights.hdf5", {name: data for name, data in datasets.items() if data is not None})
    assert_refused(legacy, dst, message)


def test_options_that_are_null_or_need_others_that_are_absent(legacy, dst):
    write_options(legacy, dropout=None, n_tokens_vocab=None, n_negative_samples_batch=None, sample_softmax=False)
    (legacy / "vocab.txt").unlink()
    config, default = convert_from_allennlp(legacy, dst).config, ElmoConfig()
    assert (config.dropout, config.num_negative_samples) == (default.dropout, default.num_negative_samples)
    assert config.lm_vocab_size is None
    write_options(legacy, n_negative_samples_batch=3)
    assert convert_from_allennlp(legacy, dst, overwrite=True).config.num_negative_samples == 3


def test_warnings(legacy, dst):
    """What is left out, rounded or overruled is said, and the rest is converted."""
    datasets = random_datasets(OPTIONS)
    write_hdf5(legacy / "weights.hdf5", datasets | {"softmax/W": np.zeros((7, 5), np.float32)})
    with pytest.warns(ConversionWarning, match=r"left out: softmax/W"):
        convert_from_allennlp(legacy, dst)
    write_hdf5(legacy / "weights.hdf5", datasets | {"char_embed": datasets["char_embed"].astype(np.float64)})
    with pytest.warns(ConversionWarning, match=r"'char_embed' holds float64"):
        convert_from_allennlp(legacy, dst, overwrite=True)
    write_hdf5(legacy / "weights.hdf5", datasets)
    write_options(legacy, n_tokens_vocab=800_000)
    with pytest.warns(ConversionWarning, match=r"n_tokens_vocab is 800000, but the vocabulary has 7 lines"):
        assert convert_from_allennlp(legacy, dst, overwrite=True).config.lm_vocab_size == 7
