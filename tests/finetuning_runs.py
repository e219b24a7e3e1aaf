"""Runs of the fine-tuning scripts for tests, in this process."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedModel

from modeling_elmo import ElmoTokenizer

ROOT = Path(__file__).parents[1]


def load_script(name: str) -> ModuleType:
    """finetune_*.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where `dataclasses` looks types up
    spec.loader.exec_module(module)
    return module


def run_script(script: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: dict[str, object]) -> int:
    """Calls a script with flags, those that are `None` left out; gives its exit code."""
    argv = [f"{script.__name__}.py"]
    for name, value in {"use_cpu": True, "disable_tqdm": True, **flags}.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    monkeypatch.setattr(sys, "argv", argv)
    return script.main()


def save_pretrained(model: PreTrainedModel, folder: Path) -> Path:
    """A pretrained model as train.py leaves it, with its tokenizer."""
    model.save_pretrained(folder)
    ElmoTokenizer().save_pretrained(folder)
    return folder
