"""Whether weights are what they were: what is computed from frozen weights may be kept until they change."""

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor


def fingerprint_of(weights: Iterable[Tensor]) -> Hashable:
    """Differs when any weight differs: its counter of changes, and a sum of its bits for changes past it.

    Args:
        weights: on the CPU.
    """
    parts = []
    for weight in weights:
        bits = weight.detach().flatten()
        bits = bits.view(torch.int64) if bits.nbytes % 8 == 0 else bits.view(torch.uint8)
        version = -1 if weight.is_inference() else weight._version
        parts.append((weight.data_ptr(), weight.dtype, version, int(bits.sum())))
    return tuple(parts)
