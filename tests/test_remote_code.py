"""Saved folders: loaded by the Auto classes of this process, of other processes, and as remote code without us."""

import copy
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from elsewhere import run_elsewhere
from test_modeling import make_model, make_texts, pad
from training_runs import fork_server
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel, ElmoTokenizer
from modeling_elmo import configuration_elmo as configuration_module
from modeling_elmo.configuration_elmo import AUTO_MAP

CLASSES = {"AutoModel": ElmoModel, "AutoModelForPreTraining": ElmoForPreTraining}
AUTO_MODELS = sorted(name for name in AUTO_MAP if name.startswith("AutoModel"))
CODE = Path(configuration_module.__file__)
REMOTE_FILES = {CODE.name, *(Path(file).name for file in get_relative_import_files(CODE))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with `AutoModel` and `AutoModelForPreTraining`, both saved, and what they make of `inputs.pt`."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    ids, mask = pad(make_texts(make_model(), [4, 7, 1]))
    torch.save({"input_ids": ids, "attention_mask": mask}, folder / "inputs.pt")
    layers = {}
    for name, cls in CLASSES.items():
        model = make_model(cls=cls)
        model.save_pretrained(folder / name)
        layers[name] = model(ids, mask, output_hidden_states=True).hidden_states
    torch.save(layers, folder / "layers.pt")
    ElmoTokenizer().save_pretrained(folder / "tokenizer")
    ElmoConfig(**TINY).save_pretrained(folder / "config_only")
    return folder


def assert_same_layers(folder: Path, model, name: str):
    output = model(**torch.load(folder / "inputs.pt"), output_hidden_states=True)
    for actual, expected in zip(output.hidden_states, torch.load(folder / "layers.pt")[name], strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


# ---- registered classes


def test_auto_classes_are_ours():
    config = AutoConfig.for_model("elmo", **TINY)
    assert type(config) is ElmoConfig
    assert type(AutoModel.from_config(config)) is ElmoModel
    assert type(AutoModelForPreTraining.from_config(config)) is ElmoForPreTraining


@pytest.mark.parametrize("stored", CLASSES)
@pytest.mark.parametrize("loaded", CLASSES)
def test_checkpoints_of_each_class_load_into_each(saved, stored, loaded):
    auto_class = getattr(sys.modules[__name__], loaded)
    with CaptureLogger(logging.get_logger("transformers")) as captured:
        model, info = auto_class.from_pretrained(saved / stored, output_loading_info=True)
    assert type(model) is CLASSES[loaded] and not model.training
    assert_same_layers(saved, model, stored)
    head = {"lm_head.weight", "lm_head.bias"}
    missing = head if loaded == "AutoModelForPreTraining" and stored == "AutoModel" else set()
    assert set(info["missing_keys"]) == missing and not info["unexpected_keys"]
    assert not info["mismatched_keys"] and "scalar_mix" not in captured.out
    if not missing:
        assert captured.out == "", "nothing to warn of: the softmax is for pretraining only"
    if missing:
        assert model.lm_head.bias.eq(0).all() and 0.2 < model.lm_head.weight.std() < 0.6  # sqrt(1 / 6) = 0.41
    if loaded == "AutoModel" and stored == "AutoModelForPreTraining":
        assert model.scalar_mix.weights.eq(0).all() and model.scalar_mix.gamma == 1


@pytest.mark.parametrize("cls", CLASSES.values())
def test_weights_are_saved_bit_by_bit(tmp_path, cls):
    model = make_model(cls=cls, scalar_mix_layer_norm=True)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in loaded.state_dict().items())
    assert loaded.config.scalar_mix_layer_norm and loaded.config.architectures == [cls.__name__]
    half = cls.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", CLASSES)
def test_copies_and_pickles(saved, duplicate, name):
    model = CLASSES[name].from_pretrained(saved / name)
    twin = duplicate(model)
    assert_same_layers(saved, twin, name)
    with torch.no_grad():
        twin.get_input_embeddings().weight.add_(1)
    assert_same_layers(saved, model, name)


# ---- other processes


def layers_in_this_process(folder: Path) -> list:
    model = ElmoModel.from_pretrained(folder / "AutoModel")
    return [
        layer.tolist() for layer in model(**torch.load(folder / "inputs.pt"), output_hidden_states=True).hidden_states
    ]


@pytest.mark.slow
def test_two_processes_agree(saved):
    with fork_server().Pool(1) as pool:
        there = pool.apply(layers_in_this_process, [saved])
    for actual, expected in zip(there, torch.load(saved / "layers.pt")["AutoModel"], strict=True):
        torch.testing.assert_close(torch.tensor(actual), expected, rtol=0, atol=1e-6)


# ---- remote code

CHILD = """
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig

source, target, data = map(Path, sys.argv[1:])
tokenizer = transformers.AutoTokenizer.from_pretrained(data / "tokenizer", trust_remote_code=True)
inputs, layers = torch.load(data / "inputs.pt"), torch.load(data / "layers.pt")
loaded = []
for folder in sorted(source.iterdir()):
    if not (folder / "config.json").exists():
        continue
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ == "ElmoConfig" and type(config).__module__.startswith("transformers_modules.")
    config.save_pretrained(target / "config_only")
    for name, reference in config.auto_map.items():
        stored, _, own = folder.name.partition("-")
        if not name.startswith("AutoModel") or own not in ("", name):
            continue
        auto_class = getattr(transformers, name)
        if folder.name.startswith("config_only"):
            model = auto_class.from_config(config, trust_remote_code=True)
        else:
            model = auto_class.from_pretrained(folder, trust_remote_code=True)
            choices = (1,) if name == "AutoModelForMultipleChoice" else ()
            given = {key: value.view(len(value), *choices, *value.shape[1:]) for key, value in inputs.items()}
            output = model(**given, output_hidden_states=True)
            for actual, expected in zip(output.hidden_states, layers[stored], strict=True):
                torch.testing.assert_close(actual.view_as(expected), expected, rtol=0, atol=1e-6)
            model.save_pretrained(target / f"{folder.name}-{name}")
            if name == "AutoModel":
                extract = transformers.pipeline(
                    "feature-extraction", str(folder), tokenizer=tokenizer, trust_remote_code=True, batch_size=3
                )
                assert type(extract).__module__.startswith("transformers_modules.")
                assert [len(vectors) for (vectors,) in extract(["a b", "", "a", "a b c"])] == [4, 2, 3, 5]
        assert type(model).__module__.startswith("transformers_modules.")
        assert type(model).__name__ == reference.split(".")[1]
        loaded.append((folder.name, name))
assert "modeling_elmo" not in sys.modules
print(json.dumps(loaded))
"""


def run_without_the_package(source: Path, target: Path, data: Path, cwd: Path) -> list[list[str]]:
    """What a process that has never heard of `modeling_elmo` loads from all folders in `source`."""
    told = run_elsewhere(CHILD, cwd, source, target, data, PYTHONWARNINGS="error::ResourceWarning")
    return json.loads(told.splitlines()[-1])


def test_every_folder_carries_all_code(saved):
    for folder in ("AutoModel", "AutoModelForPreTraining", "config_only"):
        assert {path.name for path in (saved / folder).glob("*.py")} == REMOTE_FILES
        config = json.loads((saved / folder / "config.json").read_text())
        assert config["auto_map"] == AUTO_MAP


def test_the_code_covers_auto_map_and_no_more():
    """A file that AUTO_MAP names but that nothing imports would be left out of the folders."""
    named = {f"{reference.split('.')[0]}.py" for name, reference in AUTO_MAP.items() if name != "AutoTokenizer"}
    assert {*named, "lstm.py", "word_encoder.py"} <= REMOTE_FILES
    assert not {"__init__.py", "convert.py", "corpus.py", "pretraining.py"} & REMOTE_FILES


@pytest.mark.slow
def test_remote_code_of_two_generations(saved, tmp_path):
    """Loaded, saved and loaded again by processes without the package; each class from each folder with weights."""
    second, third = tmp_path / "second", tmp_path / "third"
    first = shutil.copytree(saved, tmp_path / "first")
    (tmp_path / "one").mkdir()
    loaded = run_without_the_package(first, second, saved, tmp_path / "one")
    folders = ["AutoModel", "AutoModelForPreTraining", "config_only"]
    assert sorted(loaded) == sorted([folder, name] for folder in folders for name in AUTO_MODELS)

    shutil.rmtree(first)
    (tmp_path / "two").mkdir()
    loaded = run_without_the_package(second, third, saved, tmp_path / "two")
    expected = [[f"{stored}-{name}", name] for stored in CLASSES for name in AUTO_MODELS]
    assert sorted(loaded) == sorted([*expected, *(["config_only", name] for name in AUTO_MODELS)])
    for folder in second.iterdir():
        assert {path.name for path in folder.glob("*.py")} == REMOTE_FILES
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
