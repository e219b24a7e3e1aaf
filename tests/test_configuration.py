"""ElmoConfig: what it accepts, what it refuses and how, and the ready configurations."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel
from modeling_elmo.configuration_elmo import AUTO_MAP

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "configs").glob("*.json"))}


def without_version(values: dict) -> dict:
    return {key: value for key, value in values.items() if key not in ("transformers_version", "_name_or_path")}


def test_defaults_are_the_original():
    config = ElmoConfig()
    assert (config.lstm_dim, config.projection_dim, config.hidden_size) == (4096, 512, 1024)
    assert config.cnn_filters == [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]]
    assert config.num_filters == 2048
    assert (config.cell_clip, config.proj_clip, config.forget_bias, config.dropout) == (3.0, 3.0, 1.0, 0.1)
    assert (config.num_hidden_layers, config.num_highway_layers, config.max_word_length) == (2, 2, 50)
    assert (config.vocab_size, config.pad_token_id, config.model_type) == (262, 0, "elmo")
    assert config.use_skip_connections and config.use_cnn_projection and config.lm_vocab_size is None


# ---- impossible values

NAN = float("nan")
IMPOSSIBLE = [
    *[(name, value) for name in ("vocab_size", "char_embedding_dim", "lstm_dim") for value in (0, -1, 2.5, "8", None)],
    *[(name, value) for name in ("num_hidden_layers", "projection_dim", "num_negative_samples") for value in (0, -3)],
    *[(name, value) for name in ("lm_vocab_size", "chunk_size") for value in (0, -1, 1.5, "8")],
    *[(name, value) for name in ("cell_clip", "proj_clip") for value in (0, 0.0, -3.0, NAN, "3", 10**400)],
    *[(name, 10**9) for name in ("num_hidden_layers", "num_highway_layers")],
    *[("forget_bias", value) for value in (10**400, 1e300)],
    *[("dropout", value) for value in (1.0, 1, -0.1, NAN, "0.1", None)],
    *[("max_word_length", value) for value in (2, 0, -50, None, 2**16 + 1)],
    *[("num_highway_layers", value) for value in (-1, 0.5, None)],
    *[("cnn_activation", value) for value in ("gelu", "ReLU", "", None)],
    *[("cnn_filters", value) for value in (7, "1,32", [32], [[1]], [[1, 2, 3]], [["1", 2]], [[1.0, 2]])],
    *[("cnn_filters", value) for value in ([[0, 4]], [[2, 0]], [[-1, 4]], [[51, 4]], [[True, 4]], {"1": 32})],
    *[(name, value) for name in ("use_cnn_projection", "use_skip_connections") for value in (None, "yes", 1)],
    ("scalar_mix_layer_norm", 0),
    ("forget_bias", "1"),
    ("forget_bias", None),
    *[("char_padding_id", value) for value in (0, -1, 99_999)],
    ("word_vocab_size", 100),  # beside characters
    ("hidden_size", 13),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE, ids=lambda item: repr(item))
def test_impossible_values_are_refused_by_name(name, value):
    with pytest.raises((ValueError, StrictDataclassError), match=name):
        ElmoConfig(**{**TINY, name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cnn_filters": []}, "needs word_vocab_size"),
        ({"cnn_filters": [], "word_vocab_size": 0}, "word_vocab_size must be greater than 0"),
        ({"word_vocab_size": 9}, "word_vocab_size is for models without characters"),
        ({"use_cnn_projection": False}, "as many filters as projection_dim=6, but cnn_filters has 20"),
        ({"max_word_length": 5, "cnn_filters": [[6, 1]]}, "width 6 is greater than max_word_length=5"),
        ({"hidden_size": 6}, r"hidden_size=6 contradicts projection_dim=6.* = 12"),
    ],
)
def test_contradictions_are_explained(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        ElmoConfig(**{**TINY, **changes})


def test_impossible_values_set_later_are_refused_before_saving(tmp_path):
    config = ElmoConfig(**TINY)
    with pytest.raises(StrictDataclassError, match="lstm_dim"):
        config.lstm_dim = "many"
    config.dropout = 2.0
    with pytest.raises(StrictDataclassError, match="dropout must be in"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell_clip": None, "proj_clip": None, "chunk_size": None},
        {"cell_clip": 3, "forget_bias": 0, "dropout": 0},
        {"cnn_filters": [], "word_vocab_size": 9},
        {"cnn_filters": [], "word_vocab_size": 9, "use_cnn_projection": False},
        {"cnn_filters": ([1, 2], [3, 4]), "use_cnn_projection": False},
        {"cnn_filters": [[50, 3]], "num_highway_layers": 0},
        {"lm_vocab_size": 5, "num_negative_samples": 8192},
        {"hidden_size": 12},
    ],
    ids=str,
)
def test_unusual_values_make_a_model(changes):
    config = ElmoConfig(**{**TINY, **changes})
    assert ElmoForPreTraining(config).config.hidden_size == 12


# ---- saving and loading


@pytest.mark.parametrize("changes", [{}, {"cnn_filters": [], "word_vocab_size": 9}, {"cell_clip": None}], ids=str)
def test_round_trip(tmp_path, changes):
    config = ElmoConfig(**{**TINY, **changes}, id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    for loaded in (ElmoConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ElmoConfig
        assert without_version(loaded.to_dict()) == without_version(config.to_dict())
    assert "hidden_size" not in json.loads((tmp_path / "config.json").read_text())
    changed = ElmoConfig.from_pretrained(tmp_path, dropout=0.25)
    assert changed.dropout == 0.25 and changed.lstm_dim == config.lstm_dim


def test_unknown_keys_are_kept_as_in_transformers(tmp_path):
    config = ElmoConfig(**TINY, my_own_key={"a": 1})
    assert config.my_own_key == {"a": 1}
    config.save_pretrained(tmp_path)
    assert ElmoConfig.from_pretrained(tmp_path).my_own_key == {"a": 1}
    loaded, unused = ElmoConfig.from_pretrained(tmp_path, no_such_key=1, return_unused_kwargs=True)
    assert unused == {"no_such_key": 1} and not hasattr(loaded, "no_such_key")


def test_common_attributes_of_transformers():
    config = ElmoConfig(**TINY, num_labels=3, output_hidden_states=True)
    assert config.num_labels == 3 and len(config.id2label) == 3
    assert config.output_hidden_states
    assert config.get_text_config() is config


def test_auto_map_names_classes_that_exist():
    for auto_class, reference in AUTO_MAP.items():
        file, name = reference.split(".")
        cls = getattr(importlib.import_module(f"modeling_elmo.{file}"), name)
        assert cls._auto_class == auto_class


def test_auto_map_is_complete_and_keeps_what_is_given():
    assert ElmoConfig(**TINY).auto_map == AUTO_MAP
    given = {"AutoModelForSomething": "mine.Something", "AutoModel": "me/elsewhere--mine.Elmo"}
    config = ElmoConfig(**TINY, auto_map=given)
    assert config.auto_map == {**AUTO_MAP, **given}
    assert len(given) == 2, "the caller's own dictionary stays as it is"


# ---- the ready configurations

SIZES = {
    "small": {"lstm_dim": 1024, "projection_dim": 128, "num_highway_layers": 1},
    "medium": {"lstm_dim": 2048, "projection_dim": 256, "num_highway_layers": 1},
    "original": {"lstm_dim": 4096, "projection_dim": 512, "num_highway_layers": 2},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_ready_configurations_are_config_json_files(name, tmp_path):
    ready = json.loads(CONFIGS[name].read_text())
    config = ElmoConfig.from_json_file(CONFIGS[name])
    config.save_pretrained(tmp_path)
    assert without_version(json.loads((tmp_path / "config.json").read_text())) == without_version(ready)
    with torch.device("meta"):
        ElmoModel(config)


@pytest.mark.parametrize("name", SIZES)
def test_ready_configurations_have_the_published_sizes(name):
    config, published = ElmoConfig.from_json_file(CONFIGS[name]).to_dict(), ElmoConfig(**SIZES[name]).to_dict()
    differences = {key for key, value in published.items() if config[key] != value}
    assert differences <= {"lm_vocab_size", "num_negative_samples", "transformers_version"}


def test_all_ready_configurations_are_there():
    assert {"tiny", *SIZES} <= set(CONFIGS)
