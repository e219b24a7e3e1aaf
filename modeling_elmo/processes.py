"""Agreement between the processes of a run: an error of one is an error of all, so that none waits for ever."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object

from .arguments import ArgumentsError

T = TypeVar("T")


def check_launch(accelerator: Accelerator):
    """Raise an `ArgumentsError` if several processes were wanted on the CPU and only this one was started.

    Without MPI, `accelerate launch --cpu` starts one process whatever it is told.
    """
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise ArgumentsError(
            "accelerate launch --cpu starts one process only: start several with torchrun --nproc_per_node N train.py, "
            "or with accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml train.py"
        )


def on_main(action: Callable[[], T]) -> T:
    """Call `action` in the main process; its result, or the exception that it raised, reaches all processes."""
    answer: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = action()
        except Exception as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def on_all(action: Callable[[], T]) -> T:
    """Call `action` in every process, which must not wait for others in it; its result. The first exception that one of
    them raised is raised in all."""
    answer, trouble = None, None
    try:
        answer = action()
    except Exception as error:
        trouble = error
    for first in filter(None, gather_object([trouble])):
        raise first
    return answer  # type: ignore[return-value]


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether each of `flags` is true in any process."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=accelerator.device), "sum")
    return (counts > 0).tolist()
