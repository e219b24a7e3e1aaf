"""The exponentials of a softmax over logits that all words share, in one pass over them in Triton.

In operations of torch (`language_model._shared_exps`, the reference) each of a dozen passes reads and writes the
largest matrix of a training step.
"""

import torch
from torch import Tensor

from .gpu_kernels import constexpr, has_triton, jit, on_device, tl

MOST_SAMPLES = 2**15  # a program holds a word's logits in its registers


@jit
def _exponentials(logits, bias, own, own_logits, top, total, SAMPLES: constexpr, BLOCK: constexpr):
    """One word: its logits become exp(logit + bias - top), that of its own target 0."""
    word = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < SAMPLES
    at = logits + word * SAMPLES + column
    x = tl.load(at, mask=real, other=0.0).to(tl.float32) + tl.load(bias + column, mask=real, other=0.0)
    x = tl.where(real & (column != tl.load(own + word)), x, float("-inf"))
    own_logit = tl.load(own_logits + word)
    highest = tl.maximum(tl.max(x, axis=0), own_logit)
    exps = tl.exp(x - highest)
    tl.store(top + word, highest)
    tl.store(total + word, tl.sum(exps, axis=0) + tl.exp(own_logit - highest))
    tl.store(at, exps, mask=real)


def takes_softmax(hidden: Tensor, samples: int) -> bool:
    """Whether the kernel serves logits of these words (words, projection_dim) and so many samples."""
    fits = hidden.dtype != torch.float32 and len(hidden) > 0 and 0 < samples <= MOST_SAMPLES
    return fits and has_triton(hidden.device)


def exponentials(logits: Tensor, bias: Tensor, own: Tensor, own_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into exponentials, in place.

    Args:
        logits: (words, samples), contiguous; afterwards exp(logits + bias - top).
        bias: (samples,) float32.
        own: (words,) int64, the sample that is a word's own target and gets 0; -1: none.
        own_logits: (words,) float32, a logit more for each word.

    Returns:
        `top` (words,) float32, the highest logit of each word, its own included, and the sum of all exponentials,
        `total` (words,) float32.
    """
    words, samples = logits.shape
    top, total = torch.empty_like(own_logits), torch.empty_like(own_logits)
    block = 1 << (samples - 1).bit_length()
    with on_device(logits.device):
        _exponentials[(words,)](
            logits, bias.contiguous(), own, own_logits, top, total, SAMPLES=samples, BLOCK=block,
            num_warps=8 if block >= 4096 else 4,
        )  # fmt: skip
    return top, total
