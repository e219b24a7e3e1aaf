"""Muon for the matrices of the LSTMs, AdamW for all else: fewer words to the same perplexity.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) steps along the momentum with all its singular
values set to about 1, so that directions which gradients rarely show move as far as the others. `torch.optim.Muon`
takes single matrices; ours are stacks, of two directions and, in gates, of four matrices side by side, each of which
is made orthogonal by itself here, all in one product.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .products import is_emulated

# Jordan's polynomial a x + b x^3 + c x^5, five times: singular values end between 0.7 and 1.2.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
GATES = 4


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrix of each, roughly: U V^T of its singular value decomposition U S V^T.

    Newton-Schulz iteration.

    Args:
        matrices: (number, rows, columns).
        dtype: in which it is computed.

    Returns:
        The same shape and dtype as `matrices`.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # (number, short, long); no singular value above 1
    first, third, fifth = POLYNOMIAL
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)  # (number, short, short)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return (x.transpose(1, 2) if is_tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `muon=True` hold stacks of matrices that Muon moves.

    A matrix of m x n moves by `lr * 0.2 * sqrt(max(m, n))` times its orthogonal momentum, whose root mean square is
    then `0.2 * lr`, about that of AdamW's steps (Liu et al. 2025, arXiv 2502.16982, equation 4).

    Args:
        params: parameter groups; in those with `muon=True`, matrices and stacks of them, (stack, rows, columns). A
            stack with 4 * `gate_dim` rows, an entry of the group, has four gates one below the other.
        momentum: of Muon, with Nesterov's look ahead.
        muon_dtype: in which matrices are made orthogonal. bfloat16, which `torch.optim.Muon` always takes, is faster;
            its rounding lets runs on other numbers of processes drift apart.
        others: as in `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        momentum: float = 0.95,
        muon_dtype: torch.dtype = torch.float32,
        **others: Any,
    ):
        super().__init__(params, **others)
        self.muon_dtype = muon_dtype
        for group in self.param_groups:
            group.setdefault("muon", False)
            group.setdefault("momentum", momentum)

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        """One step of both. Muon's gradients are gone behind it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group)
                        parameter.grad = None  # so that AdamW passes it over
        super().step()
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]):
        state = self.state[parameter]
        if not state:  # named as AdamW's, whose loader of saved states looks for a step
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(gradient, 1 - group["momentum"])
        ahead = torch.lerp(gradient, momentum, group["momentum"])
        # An LSTM's (2, 4 * lstm_dim, projection_dim) is 8 matrices, its W_hr (2, projection_dim, lstm_dim) is 2.
        matrices = ahead if ahead.ndim == 3 else ahead[None]
        if ahead.ndim == 3 and ahead.shape[1] == GATES * group["gate_dim"]:
            matrices = ahead.unflatten(1, (GATES, -1)).flatten(0, 1)
        size = group["lr"] * 0.2 * max(matrices.shape[1:]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        dtype = torch.float32 if is_emulated(self.muon_dtype, parameter.device) else self.muon_dtype
        parameter.sub_(orthogonalize(matrices, dtype).reshape(parameter.shape), alpha=size)
