"""Checkpoints of pretraining: written whole or not at all, found again, and checked before they are used.

A checkpoint is a folder `checkpoint-<step>`: the model as `save_pretrained` writes it, `optimizer.pt` (optimizer,
schedule, loss scale), `lanes-<process>.safetensors` (what each process keeps of its lanes), `stream.safetensors` (the
position in the text) and `trainer_state.json` with the hash of each file and of all else in it. Orders, dropout and
negatives are functions of the seed and the step, so there is no other random state to keep.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from .lanes import Position
from .processes import on_all, on_main
from .text_files import file_digest

STATE_FILE = "trainer_state.json"
UNFINISHED = "unfinished-"
# What weights and the optimizer's state belong to: these cannot differ between a checkpoint and the run that goes on.
SHAPES = (
    "vocab_size", "char_embedding_dim", "cnn_filters", "num_highway_layers", "use_cnn_projection", "word_vocab_size",
    "word_embedding_dim", "num_hidden_layers", "lstm_dim", "projection_dim", "initial_state", "lm_vocab_size",
)  # fmt: skip
NEVER_OTHER = ("optim", "vocabulary", *(f"config.{name}" for name in SHAPES))


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or used; the message says why and the way out."""


def checkpoints_of(folder: Path, first_step: int = 0) -> list[Path]:
    """The checkpoints in an output folder from a step on, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if _step_of(path) >= first_step), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    write_model: Callable[[Path], None],
    optimizer_state: dict[str, Any],
    lanes: dict[str, Tensor],
    position: Position,
    facts: dict[str, Any],
    keep: int,
):
    """Write `checkpoint-<step>` in `folder`, and keep the last `keep` and the best one. Called by every process.

    The files go into a folder of another name, which is renamed when the last one lies safely on disk. Neither is
    there yet: what a killed run left was cleared, and checkpoints behind the one that is taken up were given up.

    Args:
        write_model: writes the model into a folder; called by the main process.
        optimizer_state: what `torch.save` is to keep; that of the main process is written.
        lanes: tensors whose dimension 2 is this process's lanes: LSTM states, losses that are not in the log yet.
        facts: go into `trainer_state.json`; `eval_loss` among them decides which checkpoint is the best.

    Raises:
        CheckpointError: it could not be written, for instance because the disk is full; older ones are untouched.
    """
    target = folder / f"checkpoint-{step}"
    unfinished = folder / f"{UNFINISHED}{target.name}"

    def write_mine():
        tensors = {name: tensor.contiguous() for name, tensor in lanes.items()}
        save_file(tensors, unfinished / f"lanes-{accelerator.process_index}.safetensors")

    def write_shared():
        write_model(unfinished)
        torch.save(optimizer_state, unfinished / "optimizer.pt")
        tensors = {name: torch.from_numpy(values) for name, values in position._asdict().items()}
        save_file(tensors, unfinished / "stream.safetensors")
        files = {file.name: file_digest(file).hex() for file in sorted(unfinished.iterdir())}
        state = {"step": step, **facts, "files": files}
        (unfinished / STATE_FILE).write_text(json.dumps({**state, "hash": _hash_of(state)}, indent=2) + "\n")
        for path in (*unfinished.iterdir(), unfinished):
            _sync(path)
        unfinished.rename(target)
        _sync(folder)

    try:
        on_main(unfinished.mkdir)
        on_all(write_mine)
        on_main(write_shared)
    except Exception as error:  # a full disk is an OSError here, a RuntimeError in torch, a SafetensorError there
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"{target} could not be written ({error}): make room and go on with --resume_from_checkpoint auto; older "
            "checkpoints are untouched"
        ) from error
    if accelerator.is_main_process:
        try:
            delete_old(folder, keep)
        except OSError as error:  # the run can go on, and all processes do
            print(f"an older checkpoint could not be deleted: {error}")


def _hash_of(facts: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _delete(checkpoint: Path):
    """Delete a checkpoint; whenever this is interrupted, there is a whole one or none of its name."""
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{UNFINISHED}old-{checkpoint.name}")))


def _sync(path: Path):
    """Wait until a file or the names in a folder are on disk; Windows does so for files that may be written to."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_up_behind(folder: Path, step: int):
    """Delete the checkpoints behind `step`, which would pass for the last ones of a run that is taken up again there.

    Raises:
        CheckpointError: one cannot be deleted.
    """
    try:
        for path in checkpoints_of(folder, step + 1):
            _delete(path)
    except OSError as error:
        raise CheckpointError(f"checkpoints behind step {step} cannot be given up: {error}") from error


def delete_old(folder: Path, keep: int):
    """Delete all checkpoints but the last `keep` and the one with the lowest `eval_loss`."""
    best = best_checkpoint(folder)
    for old in checkpoints_of(folder)[:-keep]:
        if old != best:
            _delete(old)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest `eval_loss`; `None` where none has one."""
    losses = {}
    for path in checkpoints_of(folder):
        with suppress(OSError, ValueError):  # a damaged one is never the best
            losses[path] = read_facts(path).get("eval_loss")
    judged = {path: loss for path, loss in losses.items() if loss is not None}
    return min(judged, key=lambda path: judged[path], default=None)


def find_checkpoint(wanted: str, output_dir: Path) -> Path | None:
    """The whole checkpoint that `--resume_from_checkpoint` means.

    "last" is the last one that is undamaged, "auto" that one, or `None` if there is none at all; anything else is a
    folder.

    Raises:
        CheckpointError: there is none, all are damaged, or the folder is not an undamaged checkpoint.
    """
    if wanted not in ("last", "auto"):
        if not (Path(wanted) / STATE_FILE).is_file():
            raise CheckpointError(f"{wanted} is not a checkpoint: it has no {STATE_FILE}")
        check(Path(wanted))
        return Path(wanted)
    found = checkpoints_of(output_dir)
    for checkpoint in reversed(found):
        try:
            check(checkpoint)
        except CheckpointError as error:
            print(f"{error}; trying the one before")
        else:
            return checkpoint
    if found:
        raise CheckpointError(f"none of the checkpoints in {output_dir} is whole: delete {found[-1].name} and so on")
    if wanted == "auto":
        return None
    raise CheckpointError(f"{output_dir} has no whole checkpoint to resume from: leave --resume_from_checkpoint out")


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """What `trainer_state.json` says, its files unchecked."""
    return json.loads((checkpoint / STATE_FILE).read_text())


def check(checkpoint: Path) -> dict[str, Any]:
    """The facts of a checkpoint whose files all are what was written.

    Raises:
        CheckpointError: one is missing or differs.
    """
    try:
        facts = read_facts(checkpoint)
        if facts.pop("hash", None) not in (None, _hash_of(facts)):  # older ones have none
            raise ValueError(f"{STATE_FILE} is not what was written")
        for name, digest in facts["files"].items():
            if file_digest(checkpoint / Path(name).name).hex() != digest:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint} is damaged ({error})") from error
    return facts


def compare_facts(checkpoint: Path, facts: dict[str, Any], now: dict[str, Any], may_differ: bool) -> set[str]:
    """Names of the facts that differ between the run that wrote a checkpoint and this one.

    Args:
        checkpoint: its folder, for the message.
        facts: of the checkpoint.
        now: of this run; what one of both does not know is not compared.
        may_differ: the user asked for it. What is in `NEVER_OTHER` must be the same even so.

    Raises:
        CheckpointError: they differ and must not.
    """
    different = {name for name, value in now.items() if name in facts and facts[name] != value}
    for name in sorted(different, key=lambda name: (name not in NEVER_OTHER, name)):
        change = f"{checkpoint} was written with {name} = {facts.get(name)}, but now it is {now[name]}"
        if name in NEVER_OTHER:
            raise CheckpointError(f"{change}: its values do not fit; start a new run with --model_name_or_path instead")
        if not may_differ:
            raise CheckpointError(
                f"{change}: resume with what it was written with, say --resume_with_changes to go on as well as can "
                "be, or start a new run"
            )
    return different


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor], Position]:
    """Weights, optimizer state, what was kept of the lanes of all processes, and the position in the text."""
    weights = load_file(checkpoint / "model.safetensors")
    optimizer_state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    files = sorted(checkpoint.glob("lanes-*.safetensors"), key=lambda file: int(file.stem.split("-")[1]))
    parts = [load_file(file) for file in files]
    lanes = {name: torch.cat([part[name] for part in parts], dim=2) for name in parts[0]}
    stream = load_file(checkpoint / "stream.safetensors")
    return weights, optimizer_state, lanes, Position(**{name: stream[name].numpy() for name in Position._fields})
