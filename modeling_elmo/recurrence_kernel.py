"""One LSTM layer and its gradient in C, called with tensors; for x86 processors. `recurrence_source.py` has the C."""

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .c_library import c_library
from .cpu_kernels import ARITHMETIC, FLOAT, INT, INT64, NAMES, PLACE, POINTER, for_each_dtype
from .recurrence_source import GRADIENT, LAYER, SIZES


class _Layer(ctypes.Structure):
    """`layer_REAL`."""

    _fields_ = [
        *((name, INT64) for name in ("threads", "sides", "steps", "rows", "words", "width", "dim")),
        *((name, INT64) for name in ("projection", "out_width")),
        *((name, FLOAT) for name in ("cell_bound", "projection_bound")),
        *((name, POINTER) for name in ("sizes", "weight_ih", "weight_hh", "weight_hr", "bias", "inputs", "hidden")),
        *((name, POINTER) for name in ("hoisted", "cell", "mixed", "outputs", "cells", "gates")),
    ]


class _Gradient(ctypes.Structure):
    """`gradient_REAL`."""

    _fields_ = [
        *((name, INT64) for name in ("threads", "sides", "steps", "rows", "words", "dim")),
        *((name, INT64) for name in ("projection", "out_width")),
        *((name, FLOAT) for name in ("cell_bound", "projection_bound")),
        *((name, POINTER) for name in ("sizes", "weight_hh", "weight_hr", "gates", "outputs", "cell", "cells")),
        *((name, POINTER) for name in ("d_cell", "d_outputs", "d_gates", "d_hidden")),
    ]


class LayerResults(NamedTuple):
    """What a layer computes.

    Attributes:
        outputs: (directions, packed, projection_dim or lstm_dim).
        cell: (directions, rows, lstm_dim), each row's last one; where `cells` are kept, the first one.
        mixed: what was projected, (directions, packed, lstm_dim); `outputs` of a plain LSTM. This and what follows is
            for the gradient, and meaningless where nothing was kept for it.
        cells: (directions, packed, lstm_dim).
        gates: activated, (directions, packed, 4 * lstm_dim).
    """

    outputs: Tensor
    cell: Tensor
    mixed: Tensor
    cells: Tensor
    gates: Tensor


class RecurrenceKernel:
    """The compiled layer for one dtype."""

    def __init__(self, library: ctypes.CDLL, name: str):
        self.lanes, self.rows = library.lanes(), library.rows_of_a_task()
        self._step = 2 if name == "bfloat16" else 1
        self._pack, self._forward, self._backward = (
            getattr(library, f"{function}_{name}") for function in ("pack", "forward", "backward")
        )
        self._pack.argtypes = [*[INT64] * 4, INT64 * 3, INT, POINTER, POINTER]
        self._forward.argtypes, self._backward.argtypes = [ctypes.POINTER(_Layer)], [ctypes.POINTER(_Gradient)]
        self._pack.restype = self._forward.restype = self._backward.restype = None

    def takes(self, *widths: int) -> bool:
        """Whether it multiplies inputs and states of these widths: numbers of bfloat16 go in pairs."""
        return all(width % self._step == 0 for width in widths)

    def pack(self, weight: Tensor, is_gates: bool = False) -> Tensor:
        """A weight as the kernel reads it.

        Args:
            weight: (directions, out, in), of any strides.
            is_gates: whether the outputs are i, f, g, o, to be interleaved.

        Returns:
            (directions, blocks, in, 4 * lanes), zero past the last output; in bfloat16 two inputs side by side.
        """
        sides, out, width = weight.shape
        blocks = -(-out // (4 * self.lanes))  # of gates, too: a block has four of each of its cells
        packed = weight.new_empty(sides, blocks, width, 4 * self.lanes)
        strides = (INT64 * 3)(*weight.stride())
        self._pack(_threads(), *weight.shape, strides, is_gates, weight.data_ptr(), packed.data_ptr())
        return packed

    def pack_layer(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """W_ih, W_hh and, if there is one, W_hr, packed."""
        return [self.pack(weight, is_gates=index < 2) for index, weight in enumerate(weights)]

    def forward(
        self, inputs: Tensor, packed: Sequence[Tensor], bias: Tensor, hidden: Tensor, cell: Tensor,
        batch_sizes: list[int], bounds: tuple[float, float], keep: bool = False,
    ) -> LayerResults:  # fmt: skip
        """All steps of one layer.

        Args:
            inputs: (directions, packed, width).
            packed: from `pack_layer`.
            bias: (directions, 4 * lstm_dim), as it is.
            hidden: (directions, rows, projection_dim or lstm_dim).
            cell: (directions, rows, lstm_dim), float32.
            batch_sizes: texts still running at each step, at least one step.
            bounds: of the cell and of the projected output.
            keep: whether a gradient will be asked for.

        Raises:
            ValueError: shapes that do not go together, or tensors that are not on the CPU.
        """
        (sides, words, width), (_, rows, dim), out_width = inputs.shape, cell.shape, hidden.shape[2]
        is_plain = len(packed) == 2
        _check(inputs, packed, bias, hidden, cell, batch_sizes)
        cell = cell.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        bias = self._pack_bias(bias)
        outputs = inputs.new_empty(sides, words, out_width)
        mixed = outputs if is_plain else inputs.new_empty(sides, words if keep else rows, dim)
        cells = cell.new_empty(sides, words if keep else 0, dim)
        gates = inputs.new_empty(sides, words if keep else 0, 4 * dim)
        hoisted = bias.new_empty(bias.numel() * self.rows)
        weights = (*packed, None) if is_plain else packed
        kept = (cells, gates) if keep else (None, None)
        tensors = (
            torch.tensor(batch_sizes), *weights, bias, inputs.contiguous(), hidden.contiguous(), hoisted, cell, mixed,
            outputs, *kept,
        )  # fmt: skip
        sizes = (_threads(), sides, len(batch_sizes), rows, words, width, dim, 0 if is_plain else out_width, out_width)
        self._forward(_Layer(*sizes, bounds[0], _as_stored(bounds[1], outputs), *map(_address, tensors)))
        return LayerResults(outputs, cell, mixed, cells, gates)

    def backward(
        self, results: LayerResults, weight_hh: Tensor, weight_hr: Tensor | None, d_outputs: Tensor, d_cell: Tensor,
        batch_sizes: list[int], bounds: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The gradient, back through all steps.

        Args:
            results: of `forward` with `keep`.
            weight_hh: (directions, 4 * lstm_dim, projection_dim or lstm_dim), not packed.
            weight_hr: (directions, projection_dim, lstm_dim), not packed; `None` for a plain LSTM.
            d_outputs: (directions, packed, projection_dim or lstm_dim); afterwards what came back from the next step
                is in it, and nothing where an output is at its bound.
            d_cell: (directions, rows, lstm_dim) of the last cells; afterwards that of the first ones.

        Returns:
            The gradient of the gates before activation (directions, packed, 4 * lstm_dim), and that of the first
            hidden state of those texts that have words, (directions, running, projection_dim or lstm_dim).
        """
        outputs, cell, _, cells, gates = results
        (sides, words, out_width), (_, rows, dim) = outputs.shape, cell.shape
        d_gates, d_hidden = torch.empty_like(gates), outputs.new_empty(sides, rows, out_width)
        if weight_hr is not None:
            d_outputs.mul_(outputs.abs() < bounds[1])
        tensors = (
            torch.tensor(batch_sizes), self.pack(weight_hh.transpose(1, 2)),
            None if weight_hr is None else self.pack(weight_hr.transpose(1, 2)),
            gates, outputs, cell, cells, d_cell, d_outputs, d_gates, d_hidden,
        )  # fmt: skip
        projection = 0 if weight_hr is None else out_width
        projection_bound = math.inf if weight_hr is None else _as_stored(bounds[1], outputs)
        sizes = (_threads(), sides, len(batch_sizes), rows, words, dim, projection, out_width)
        self._backward(_Gradient(*sizes, bounds[0], projection_bound, *map(_address, tensors)))
        return d_gates, d_hidden[:, : batch_sizes[0]]

    def _pack_bias(self, bias: Tensor) -> Tensor:
        """(directions, 4 * lstm_dim) -> (directions, blocks, 4 * lanes), float32."""
        gates = bias.float().unflatten(1, (4, -1))  # (directions, 4, lstm_dim)
        gates = F.pad(gates, (0, -gates.shape[2] % self.lanes)).unflatten(2, (-1, self.lanes))
        return gates.transpose(1, 2).flatten(2).contiguous()


def _threads() -> int:
    """As many as torch uses, whose OpenMP may be another one than the compiler's."""
    return torch.get_num_threads()


def _as_stored(bound: float, tensor: Tensor) -> float:
    """What lies at the bound, in the dtype of `tensor`."""
    return torch.tensor(bound, dtype=tensor.dtype).item()


def _check(
    inputs: Tensor, packed: Sequence[Tensor], bias: Tensor, hidden: Tensor, cell: Tensor, batch_sizes: list[int]
):
    """C would read what is not there.

    Raises:
        ValueError: shapes that do not go together, or tensors that are not on the CPU.
    """
    tensors, sides, (rows, dim) = (inputs, hidden, bias), len(cell), cell.shape[1:]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    expected = [(sides, sum(batch_sizes), packed[0].shape[2]), (sides, rows, packed[1].shape[2]), (sides, 4 * dim)]
    if shapes != expected:
        raise ValueError(f"inputs, hidden state and bias of {shapes} do not go together with the rest: {expected}")
    if batch_sizes != sorted(batch_sizes, reverse=True) or batch_sizes[0] > rows or batch_sizes[-1] < 0:
        raise ValueError(f"texts running at each step, {batch_sizes}, must fall, from at most {rows} of the state")
    devices = sorted({str(tensor.device) for tensor in (*tensors, cell)})
    if devices != ["cpu"]:
        raise ValueError(f"weights are on the CPU, other tensors on {devices}")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def recurrence_kernel(dtype: torch.dtype) -> RecurrenceKernel | None:
    """The kernel for `dtype`, compiled at the first call; `None` where there is none or it is not the fastest."""
    if dtype not in NAMES:
        return None
    library = c_library("recurrence", ARITHMETIC + SIZES + for_each_dtype(PLACE + LAYER + GRADIENT))
    if library is None or not getattr(library, f"serves_{NAMES[dtype]}")():
        return None
    return RecurrenceKernel(library, NAMES[dtype])
