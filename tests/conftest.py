"""Shared by all tests: a tiny configuration, and where the reference data lies."""

import os
import sys
import tempfile
from pathlib import Path

# Where this process keeps remote code and data sets. The libraries read it once, so it stands before their imports.
CACHES = tempfile.TemporaryDirectory(prefix="caches_of_tests_")
os.environ |= {"HF_MODULES_CACHE": f"{CACHES.name}/modules", "HF_DATASETS_CACHE": f"{CACHES.name}/datasets"}

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where Triton is imported

import pytest
from accelerate.state import AcceleratorState
from transformers.utils import logging

from modeling_elmo import ElmoConfig, ElmoModel

SHARED = Path(__file__).parents[2] / "shared"

TINY = {
    "char_embedding_dim": 4,
    "cnn_filters": [[1, 4], [2, 8], [3, 8]],
    "num_highway_layers": 1,
    "lstm_dim": 12,
    "projection_dim": 6,
    "dropout": 0.0,
    "lm_vocab_size": 40,
    "num_negative_samples": 8,
}


@pytest.fixture
def tiny_config() -> ElmoConfig:
    return ElmoConfig(**TINY)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loudness():
    """Commands and examples, run in this process, quieten transformers: tests of what it tells would find nothing."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture
def full_precision():
    """float32 on a GPU as on a processor, also in torch's products and convolutions."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data; tests that ask for it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared")
    return SHARED


@pytest.fixture(scope="module")
def train_script():
    """train.py as a module."""
    from training_runs import load_script

    return load_script("train")


@pytest.fixture
def run(train_script, monkeypatch):
    """Calls train.py with arguments, in this process; gives its exit code."""

    def run_with(*argv: object) -> int:
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
        return train_script.main()

    return run_with


def save_random_model(folder: Path) -> Path:
    """A model of random weights, large enough for the layers to differ, with its tokenizer."""
    from finetuning_runs import save_pretrained

    torch.manual_seed(0)
    model = ElmoModel(ElmoConfig(**TINY))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return save_pretrained(model, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text that a tiny model learns, and its config."""
    from training_runs import write_text

    folder = tmp_path_factory.mktemp("text")
    write_text(folder)
    return folder


@pytest.fixture
def legacy(tmp_path) -> Path:
    """The folder of a tiny model in the format of AllenNLP; needs h5py."""
    from legacy_files import write_legacy

    return write_legacy(tmp_path / "legacy")


@pytest.fixture
def dst(tmp_path) -> Path:
    """Where a conversion may write; nothing is there yet."""
    return tmp_path / "converted"
