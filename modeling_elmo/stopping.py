"""Signals that stop a run: all processes stop behind the same step, so that a checkpoint can be saved."""

import signal
import time
from contextlib import ExitStack
from typing import Any

from accelerate import Accelerator

from .processes import any_process

# Several processes ask each other after so many steps whether one was told to stop, or after each where steps are slow:
# torchrun kills what is not done 30 seconds after its signal.
STEPS_BETWEEN_QUESTIONS = 5
SLOW_STEP_SECONDS = 1.0


class Stopped(Exception):
    """The run was told to stop by a signal, and has saved a checkpoint."""

    def __init__(self, signal_number: int, step: int):
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} at step {step}; --resume_from_checkpoint last goes on")


class StopSignals:
    """SIGTERM and SIGINT as requests; the second one stops the process at once.

    Args:
        accelerator: whose processes are to agree.
        step: which was done before.
        last: the last step, behind which they always ask each other.
    """

    def __init__(self, accelerator: Accelerator, step: int, last: int):
        self.accelerator = accelerator
        self.received: int | None = None
        self.asked_at, self.asked, self.last = step, time.monotonic(), last
        self.steps_between = 1

    def __enter__(self):
        self.handlers = ExitStack()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.handlers.callback(signal.signal, number, signal.signal(number, self._on_signal))
        return self

    def __exit__(self, *_):
        self.handlers.close()

    def _on_signal(self, number: int, _frame: Any):
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def came_by(self, step: int) -> int | None:
        """The signal that one of the processes got, behind a step. Called by every process."""
        steps = step - self.asked_at
        if self.accelerator.num_processes > 1 and steps < self.steps_between and step != self.last:
            return None
        is_slow = time.monotonic() - self.asked > SLOW_STEP_SECONDS * steps
        must_stop, is_slow = any_process(self.accelerator, self.received is not None, is_slow)
        self.asked_at, self.asked = step, time.monotonic()
        self.steps_between = 1 if is_slow else STEPS_BETWEEN_QUESTIONS
        return (self.received or signal.SIGTERM) if must_stop else None
