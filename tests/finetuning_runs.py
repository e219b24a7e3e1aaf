"""Runs of the fine-tuning scripts for tests, in this process."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from modeling_elmo import ElmoTokenizer


def run_script(script: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: dict[str, object]) -> int:
    """Calls a script with flags, those that are `None` left out; gives its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *command_line(flags)])
    with patch.dict(os.environ):  # where transformers keeps what flags say of FSDP
        return script.main()


def command_line(flags: dict[str, object]) -> list[str]:
    """Flags as a shell would hand them over."""
    argv = []
    for name, value in {"use_cpu": True, "disable_tqdm": True, **flags}.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def assert_told(run: Callable[..., int], capsys: pytest.CaptureFixture, flags: dict[str, object], message: str):
    """A run with these flags ends with code 2 and this message, and without a traceback."""
    try:
        code = run(**flags)
    except SystemExit as error:  # by argparse
        code = error.code
    told = capsys.readouterr().err
    assert code == 2 and message in told and "Traceback" not in told, told


def change_weights(folder: Path, tensors: dict[str, torch.Tensor | None]):
    """Replace some tensors of a model's folder, or with `None` leave them out."""
    file = folder / "model.safetensors"
    weights = {**load_file(file), **tensors}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, file, {"format": "pt"})


def save_pretrained(model: PreTrainedModel, folder: Path, tokenizer: ElmoTokenizer | None = None) -> Path:
    """A model as train.py leaves it, with its tokenizer."""
    model.save_pretrained(folder)
    (tokenizer or ElmoTokenizer()).save_pretrained(folder)
    return folder
