"""Checkpoints of pretraining: written whole or not at all, found again, and checked before they are used.

A checkpoint is a folder `checkpoint-<step>`: the model as `save_pretrained` writes it, `optimizer.pt`,
`lanes-<process>.safetensors` with the LSTM state of each process's lanes, and `trainer_state.json`. Orders, dropout
and negatives are functions of the seed and the step, so there is no random state to keep.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from .lstm import ElmoState

STATE_FILE = "trainer_state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and the way out."""


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, model, optimizer, scheduler, lanes: ElmoState | None,
    facts: dict[str, Any], keep: int,
) -> Path:  # fmt: skip
    """Write `checkpoint-<step>` in `folder` and delete all but the last `keep`. Called by every process.

    The files go into a folder of another name, which is renamed when the last one is written.
    """
    target = folder / f"checkpoint-{step}"
    unfinished = folder / f"unfinished-checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    if lanes is not None:
        tensors = {name: tensor.contiguous() for name, tensor in lanes._asdict().items()}
        save_file(tensors, unfinished / f"lanes-{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(unfinished)
        state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        torch.save(state, unfinished / "optimizer.pt")
        (unfinished / STATE_FILE).write_text(json.dumps({"step": step, **facts}, indent=2) + "\n")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        for old in checkpoints_of(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def find_checkpoint(wanted: str, output_dir: Path) -> Path:
    """The folder that `--resume_from_checkpoint` means.

    Raises:
        `CheckpointError`: there is none.
    """
    if wanted.lower() in ("last", "true"):
        found = checkpoints_of(output_dir)
        if not found:
            raise CheckpointError(f"{output_dir} has no checkpoint to resume from: leave --resume_from_checkpoint out")
        return found[-1]
    if not (Path(wanted) / STATE_FILE).is_file():
        raise CheckpointError(f"{wanted} is not a checkpoint: it has no {STATE_FILE}")
    return Path(wanted)


def read_facts(checkpoint: Path, must_equal: dict[str, Any]) -> dict[str, Any]:
    """The `trainer_state.json` of a checkpoint, whose values under the keys of `must_equal` have to be those.

    Raises:
        `CheckpointError`: the run that wrote it differed in one of them.
    """
    try:
        facts = json.loads((checkpoint / STATE_FILE).read_text())
    except ValueError as error:
        raise CheckpointError(f"{checkpoint / STATE_FILE} is damaged: resume from an earlier checkpoint") from error
    for name, value in must_equal.items():
        if facts.get(name) != value:
            raise CheckpointError(
                f"{checkpoint} was written with {name} = {facts.get(name)}, but now it is {value}: resume with the "
                "same data, batch and number of processes, or start a new run"
            )
    return facts


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, model, optimizer, scheduler) -> ElmoState | None:
    """Put a checkpoint's values into the (prepared) model, optimizer and schedule; return this process's lanes.

    Raises:
        `CheckpointError`: a file is missing or damaged.
    """
    try:
        weights = load_file(checkpoint / "model.safetensors")
        state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        lanes_file = checkpoint / f"lanes-{accelerator.process_index}.safetensors"
        lanes = ElmoState(**load_file(lanes_file)) if lanes_file.is_file() else None
    except Exception as error:  # safetensors, zip and pickle errors have no common class
        raise CheckpointError(f"{checkpoint} is damaged ({error}): resume from an earlier checkpoint") from error
    accelerator.unwrap_model(model).load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    return lanes
