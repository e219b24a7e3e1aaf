"""Gradients of a large table of which each step touches few rows, shared between processes without the other rows.

As in the original (bilm-tf sums TensorFlow's IndexedSlices per row): a step of the published models touches some 20,000
of the softmax's 800,000 rows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed

# Its new name in torch 2.13; the old one warns there.
all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


def share_row_gradients(parameters: Sequence[Tensor]) -> int:
    """Replace the sparse gradients of a table's parameters by their mean over all processes, sparse and coalesced.

    Called by every process of the default process group, or in a single one without a group.

    Args:
        parameters: such as weight (rows, dim) and bias (rows,): tensors whose gradients have the same rows.

    Returns:
        Bytes that this process gives to the others: ids of rows, and rows. The gradient of the whole table would be
        `sum(4 * parameter.numel())`.
    """
    gradients = [parameter.grad.coalesce() for parameter in parameters]  # type: ignore[union-attr]
    ids = gradients[0].indices()[0]  # (rows,) rising
    values = torch.cat([gradient.values().flatten(1) if gradient.dense_dim() else gradient.values()[:, None]
                        for gradient in gradients], dim=1)  # (rows, columns of all parameters)  # fmt: skip
    sent = 0
    if distributed.is_initialized() and (processes := distributed.get_world_size()) > 1:
        longest = torch.tensor(len(ids), device=ids.device)
        distributed.all_reduce(longest, distributed.ReduceOp.MAX)
        # Filled up with its own first id: it counts once in the union all the same.
        mine = torch.cat([ids, ids[:1].expand(int(longest) - len(ids))])
        theirs = ids.new_empty(processes * len(mine))
        all_gather(theirs, mine)
        union = theirs.unique()  # (rows of all processes,) rising
        shared = values.new_zeros(len(union), values.shape[1])
        shared[torch.searchsorted(union, ids)] = values
        distributed.all_reduce(shared)
        ids, values = union, shared.div_(processes)
        sent = mine.nbytes + shared.nbytes
    widths = [gradient.values()[0].numel() for gradient in gradients]
    for parameter, part in zip(parameters, values.split(widths, dim=1), strict=True):
        rows = part.reshape(len(ids), *parameter.shape[1:])
        parameter.grad = torch.sparse_coo_tensor(
            ids[None], rows, parameter.shape, is_coalesced=True, check_invariants=False
        )
    return sent


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, where some gradients are sparse and coalesced; returns the norm, ()."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(values)
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def to_dense(gradient: Tensor) -> Tensor:
    """A coalesced sparse gradient as a whole table: torch's own `to_dense` adds its rows one by one."""
    return torch.zeros(gradient.shape, dtype=gradient.dtype, device=gradient.device).index_copy_(
        0, gradient._indices()[0], gradient._values()
    )
