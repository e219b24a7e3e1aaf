"""What people watch while a model trains: a line of numbers now and then, on disk, on the bar and in any tracker."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from .checkpoints import UNFINISHED, CheckpointError
from .output_folder import LOG_FILE
from .processes import on_main

# exp() of more is no float64 any more: such a loss is as lost as NaN.
HIGHEST_LOSS = 700


def lane_perplexities(losses: Tensor, prefix: str = "") -> dict[str, float]:
    """Perplexity of the median and of the worst lane of each direction; `losses`: (2, lanes), nats per word.

    A lane whose cells latch at the clip is lost while the others are fine: the mean alone would not tell which it is.
    """
    values = {}
    for name, lanes in zip(("forward", "backward"), losses, strict=True):
        values[f"{prefix}{name}_median_lane"] = math.exp(min(float(lanes.median()), HIGHEST_LOSS))
        values[f"{prefix}{name}_worst_lane"] = math.exp(min(float(lanes.max()), HIGHEST_LOSS))
    return values


class TrainingLog:
    """The log of one run: `log.jsonl`, the progress bar, and the trackers of Accelerate.

    Args:
        accelerator: of the run; its trackers are started by the caller.
        folder: where `log.jsonl` lies.
        step: steps done before, by the run that is resumed: what was logged behind them is forgotten.
        losses: of the batches of the last of these steps, for which there is no line yet, (batches, 2, lanes).
        max_steps: where the bar ends.
        words_per_step: words that each direction predicts in a step, over all processes.
        words_per_epoch: words of the text.
        words_beyond: by how many words the steps done before had more, or fewer, than `words_per_step` each.

    Raises:
        CheckpointError: the log cannot be written, as from any method that writes a line.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, step: int, losses: Tensor | None, max_steps: int,
        words_per_step: int, words_per_epoch: int, words_beyond: int = 0,
    ):  # fmt: skip
        self.accelerator = accelerator
        self.file = folder / LOG_FILE
        self.words_per_step, self.words_per_epoch, self.words_beyond = words_per_step, words_per_epoch, words_beyond
        self.losses = [] if losses is None else list(losses)  # of each batch since the last line, (2, lanes)
        self.first, self.started = step, time.monotonic()  # since when the speed is measured
        self.shown: dict[str, str] = {}
        self._on_disk(lambda: self._forget_behind(step, max_steps))
        self.bar = tqdm(
            total=max_steps, initial=step, desc="training", disable=not accelerator.is_main_process, mininterval=1
        )

    def _on_disk(self, action: Callable[[], None]):
        """Call `action` in the main process; if the disk is full, the run ends in all."""
        try:
            on_main(action)
        except OSError as error:
            raise CheckpointError(
                f"{self.file} cannot be written ({error}): make room and go on with --resume_from_checkpoint auto"
            ) from error

    def _forget_behind(self, step: int, max_steps: int):
        """Take out the lines behind a step, any that was cut off, and the last evaluation, which comes again."""
        if self.file.is_file():
            text = self.file.read_text(errors="replace")
            lines = [line for line in text.splitlines(keepends=True) if _step_of(line) <= step]
            lines = [line for line in lines if _step_of(line) < max_steps or "eval_loss" not in json.loads(line)]
            unfinished = self.file.with_name(f"{UNFINISHED}{LOG_FILE}")
            unfinished.write_text("".join(lines))
            unfinished.replace(self.file)  # the old one or the new one, whenever the run is killed

    def add(self, lane_losses: Tensor):
        """Remember the mean losses of a batch, (2, lanes of this process), without waiting for the device."""
        self.losses.append(lane_losses)

    def check(self, step: int, batches_per_step: int = 1):
        """Look at what was remembered, up to the end of `step`. Called by every process.

        Raises:
            FloatingPointError: a loss is not a number, or beyond all bounds; says in which batch that began.
        """
        if not self.losses:
            return
        means = torch.stack([losses.mean(1) for losses in self.losses])  # (batches, 2)
        means = self.accelerator.reduce(means, "mean").cpu()
        lost = (~(means.abs() < HIGHEST_LOSS)).any(1).nonzero()  # a comparison with NaN is false
        if len(lost):
            batch = int(lost[0])
            forward, backward = means[batch].tolist()
            raise FloatingPointError(
                f"the loss became {forward:g} forward and {backward:g} backward in batch "
                f"{batch % batches_per_step + 1} of step {step - (len(means) - 1 - batch) // batches_per_step}: lower "
                "the learning rate, or look at that batch; nothing was saved since the last checkpoint, from which "
                "--resume_from_checkpoint last --resume_with_changes goes on"
            )

    def training_line(self, step: int, **values: float):
        """Write a line on the steps since the last one: means over their words. Called by every process."""
        losses = torch.stack(self.losses).mean(0).T.contiguous()  # (lanes of this process, 2)
        lanes = self.accelerator.gather(losses).float().cpu().T  # (2, lanes)
        forward, backward = lanes.mean(1).tolist()
        seconds = max(time.monotonic() - self.started, 1e-9)
        speed = (step - self.first) * self.words_per_step / seconds
        self.write(
            step,
            loss=(forward + backward) / 2,
            forward_perplexity=math.exp(forward),
            backward_perplexity=math.exp(backward),
            **lane_perplexities(lanes),
            **values,
            words_per_second=speed,
        )
        self.show(words=f"{speed:,.0f}/s", fw=math.exp(forward), bw=math.exp(backward))
        self.losses, self.first, self.started = [], step, time.monotonic()

    def pause(self, since: float):
        """Leave the time since `since` (`time.monotonic()`) out of the speed."""
        self.started += time.monotonic() - since

    def show(self, **values: float | str):
        """Set values of the progress bar's end; the others stay."""
        self.shown |= {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in values.items()}
        self.bar.set_postfix(self.shown)

    def write(self, step: int, **values: float):
        """Append a line, and tell the trackers. Called by every process."""
        words = step * self.words_per_step + self.words_beyond
        line: dict[str, Any] = {"step": step, "epoch": round(words / self.words_per_epoch, 4), "words": words, **values}

        def append():
            with open(self.file, "a") as log:
                log.write(json.dumps(line) + "\n")

        self._on_disk(append)
        self.accelerator.log({name: value for name, value in line.items() if name != "step"}, step=step)


def _step_of(line: str) -> float:
    """The step of a line of the log; infinity for a line that was cut off or damaged."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
