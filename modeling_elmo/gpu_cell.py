"""One step of the LSTM cell in Triton, for GPUs and dtypes that the kernels of a whole layer do not serve.

The products around it are torch's. `lstm_ops.cell_forward` and `cell_backward` are the references, and say what the
arguments are.
"""

import torch
from torch import Tensor

from .gpu_kernels import activated, clip, constexpr, has_triton, jit_of, on_device, tanh, tl, value_gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 1024


@jit_of("rows")
def _forward(
    gates, recurrent, bias, cell, new_cell, output, gates_side, recurrent_side, cell_side, new_cell_side, output_side,
    rows, bound, DIM: constexpr, KEEP: constexpr, BLOCK: constexpr,
):  # fmt: skip
    side = tl.program_id(1).to(tl.int64)
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = number < rows * DIM
    row, column = number // DIM, number % DIM
    place = row * (4 * DIM) + column  # of i; f, g and o follow
    at, more = gates + side * gates_side + place, recurrent + side * recurrent_side + place
    offset = bias + side * 4 * DIM + column
    i = tl.load(at, real).to(tl.float32) + tl.load(more, real) + tl.load(offset, real)
    f = tl.load(at + DIM, real).to(tl.float32) + tl.load(more + DIM, real) + tl.load(offset + DIM, real)
    g = tl.load(at + 2 * DIM, real).to(tl.float32) + tl.load(more + 2 * DIM, real) + tl.load(offset + 2 * DIM, real)
    o = tl.load(at + 3 * DIM, real).to(tl.float32) + tl.load(more + 3 * DIM, real) + tl.load(offset + 3 * DIM, real)
    i, f, g, o = activated(i, f, g, o)
    c = clip(f * tl.load(cell + side * cell_side + number, real) + i * g, bound)
    tl.store(new_cell + side * new_cell_side + number, c, real)
    tl.store(output + side * output_side + number, o * tanh(c), real)
    if KEEP:
        tl.store(at, i, real)
        tl.store(at + DIM, f, real)
        tl.store(at + 2 * DIM, g, real)
        tl.store(at + 3 * DIM, o, real)


@jit_of("rows")
def _backward(
    gates, cell, new_cell, d_output, d_cell, d_gates, gates_side, cell_side, new_cell_side, d_output_side, d_cell_side,
    d_gates_side, rows, bound, DIM: constexpr, BLOCK: constexpr,
):  # fmt: skip
    side = tl.program_id(1).to(tl.int64)
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = number < rows * DIM
    place = number // DIM * (4 * DIM) + number % DIM
    at = gates + side * gates_side + place
    i, f = tl.load(at, real).to(tl.float32), tl.load(at + DIM, real).to(tl.float32)
    g, o = tl.load(at + 2 * DIM, real).to(tl.float32), tl.load(at + 3 * DIM, real).to(tl.float32)
    new = tl.load(new_cell + side * new_cell_side + number, real)
    squashed = tanh(new)
    d_out = tl.load(d_output + side * d_output_side + number, real).to(tl.float32)
    d_at = d_cell + side * d_cell_side + number
    d_value = value_gradient(tl.load(d_at, real), d_out, o, squashed, new, bound)
    to = d_gates + side * d_gates_side + place
    tl.store(to, d_value * g * i * (1 - i), real)
    tl.store(to + DIM, d_value * tl.load(cell + side * cell_side + number, real) * f * (1 - f), real)
    tl.store(to + 2 * DIM, d_value * i * (1 - g * g), real)
    tl.store(to + 3 * DIM, d_out * squashed * o * (1 - o), real)
    tl.store(d_at, d_value * f, real)


def takes_cell(gates: Tensor, cell: Tensor) -> bool:
    """Whether the kernels serve gates (directions, rows, 4 * lstm_dim) and cells (directions, rows, lstm_dim)."""
    fits = gates.dtype in DTYPES and cell.dtype == torch.float32 and cell.numel() > 0
    return fits and has_triton(gates.device)


def gpu_cell_forward(
    gates: Tensor, recurrent: Tensor, bias: Tensor, cell: Tensor, new_cell: Tensor, output: Tensor, bound: float,
    keep: bool,
):  # fmt: skip
    """As `lstm_ops.cell_forward`."""
    tensors = (gates, recurrent, bias, cell, new_cell, output)
    _launch(_forward, tensors, (0, 1, 3, 4, 5), cell, bound, KEEP=keep)


def gpu_cell_backward(
    gates: Tensor, cell: Tensor, new_cell: Tensor, d_output: Tensor, d_cell: Tensor, d_gates: Tensor, bound: float
):
    """As `lstm_ops.cell_backward`."""
    _launch(_backward, (gates, cell, new_cell, d_output, d_cell, d_gates), range(6), cell, bound)


def _launch(kernel, tensors, with_gaps, cell: Tensor, bound: float, **constants: bool):
    """Run a kernel over all cells; between the directions of the tensors `with_gaps` there may be gaps."""
    sides, rows, dim = cell.shape
    gaps = [tensors[place].stride(0) for place in with_gaps]
    with on_device(cell.device):
        kernel[(-(-rows * dim // BLOCK), sides)](*tensors, *gaps, rows, bound, DIM=dim, BLOCK=BLOCK, **constants)
