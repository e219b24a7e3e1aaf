"""Models in evaluation mode for a while."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_users: dict[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = {}  # how many, and the mode of each part before


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode inside the block, and each of its parts as it was behind it.

    Threads may share the model: it is put back behind the last of their blocks.
    """
    with _lock:
        count, modes = _users.get(model) or (0, [(module, module.training) for module in model.modules()])
        _users[model] = count + 1, modes
        if count == 0:
            model.eval()
    try:
        yield
    finally:
        with _lock:
            count, modes = _users.pop(model)
            if count > 1:
                _users[model] = count - 1, modes
            else:
                for module, mode in modes:
                    module.training = mode
