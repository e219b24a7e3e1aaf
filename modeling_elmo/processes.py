"""Agreement between the processes of a run: an error of one is an error of all, so that none waits for ever."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_main(state: Accelerator | PartialState, action: Callable[[], T]) -> T:
    """Call `action` in the main process; its result, or the exception that it raised, reaches all processes."""
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = action()
        except Exception as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def on_all(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Call `action` in every process; the first exception that one of them raised is raised in all."""
    trouble = None
    try:
        action()
    except Exception as error:
        trouble = error
    troubles: list[Any] = [trouble]
    if accelerator.num_processes > 1:
        troubles = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(troubles, trouble)
    for first in filter(None, troubles):
        raise first


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)
