"""Whether weights are what they were: what is computed from frozen weights may be kept until they change."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Numbers of a weight whose bits are summed together. A prime: parts begin anywhere in rows, so that moved columns
# change sums as moved rows and gates do.
PART = 1021
EXACT_BYTES = 2**16  # a weight no larger than this is remembered as it is: rows of characters are short
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint_of(weights: Iterable[Tensor]) -> Hashable:
    """Differs when any weight differs: its counter of changes, and sums of its bits for changes past it.

    `weight.data` and NumPy's views change weights past the counter. The sums take one pass, as fast as memory is read;
    of a large weight a change is missed if it leaves each of them as it was.

    Args:
        weights: on the CPU.
    """
    parts = []
    for weight in weights:
        version = -1 if weight.is_inference() else weight._version
        parts.append((weight.data_ptr(), weight.dtype, weight.shape, version, *_sums(weight.detach())))
    return tuple(parts)


def _sums(weight: Tensor) -> tuple[bytes, bytes]:
    """The sums of all whole parts, and the numbers behind them."""
    bits = weight.flatten()
    # As few and large integers as lie on the boundaries that torch wants for them.
    bits = bits.view(WORDS[math.gcd(8, bits.nbytes, bits.storage_offset() * bits.itemsize)])
    parts = len(bits) // PART if bits.nbytes > EXACT_BYTES else 0
    end = parts * PART
    rest = bits[end:].clone()  # NumPy pins the memory that it looks at, and sharded weights give theirs back
    sums = bits[:end].view(parts, PART).sum(1).numpy().tobytes() if parts else b""
    return sums, rest.numpy().tobytes()


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
