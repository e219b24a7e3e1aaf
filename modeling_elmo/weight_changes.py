"""Whether weights are what they were: what is computed from frozen weights may be kept until they change."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Sums of a weight's bits, each of the numbers at places that leave the same rest. A prime that no width is a multiple
# of: moved rows, columns or gates get other rests.
NUM_SUMS = 1021
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint_of(weights: Iterable[Tensor]) -> Hashable:
    """Differs when any weight differs: its counter of changes, and sums of its bits for changes past it.

    `weight.data` and NumPy's views change weights past the counter. The sums take one pass; a change is missed if it
    leaves all of them as they were.

    Args:
        weights: on the CPU.
    """
    parts = []
    for weight in weights:
        version = -1 if weight.is_inference() else weight._version
        parts.append((weight.data_ptr(), weight.dtype, weight.shape, version, _sums(weight.detach())))
    return tuple(parts)


def _sums(weight: Tensor) -> bytes:
    bits = weight.flatten()
    # As few and large integers as lie on the boundaries that torch wants for them.
    bits = bits.view(WORDS[math.gcd(8, bits.nbytes, bits.storage_offset() * bits.itemsize)])
    whole = len(bits) // NUM_SUMS * NUM_SUMS
    sums = bits[:whole].view(len(bits) // NUM_SUMS, NUM_SUMS).sum(0)
    sums[: len(bits) - whole] += bits[whole:]
    return sums.numpy().tobytes()


class LaidOutWeights:
    """The weights of a frozen layer in a form that is faster to multiply with, for as long as they stay what they are.

    They take as much memory as the weights. A copy of this starts empty.
    """

    def __init__(self):
        self.clear()

    def __reduce__(self):
        return type(self), ()

    def clear(self):
        """Give the memory back."""
        self._kept: tuple[Hashable, Any] = (None, None)  # one attribute: threads may share it

    def look_up(self, weights: Sequence[Tensor], lay_out: Callable[[Sequence[Tensor]], Any]) -> Any:
        """`lay_out(weights)`, or what it was before.

        Args:
            weights: on the CPU.
            lay_out: always the same function for the same form.

        Returns:
            `None` for weights that are quantised or were cast for this call.
        """
        if not all(type(weight) is nn.Parameter for weight in weights):
            return None
        now = (lay_out, fingerprint_of(weights))
        of, laid_out = self._kept
        if of != now:
            self.clear()
            del laid_out  # the old ones, whose memory the new ones may need
            with torch.inference_mode(False), torch.no_grad():
                laid_out = lay_out(weights)
            self._kept = (now, laid_out)
        return laid_out
