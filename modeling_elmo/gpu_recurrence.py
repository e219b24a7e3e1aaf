"""The recurrence of a whole LSTM layer on a GPU, by the Triton kernels of `gpu_kernels.py`.

Two ways of running them. Phase by phase, each phase of each step is a launch. At once, one launch runs all steps: as
many programs as the GPU can hold share out each phase's tiles and wait for each other behind it, so that the host has
nothing to do. Triton's interpreter, which runs one program behind the other, can do the first only.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .gpu_kernels import ALL, PHASES, backward, forward, on_device, runs_layers
from .packing import step_chunks
from .recurrence_kernel import LayerResults

DTYPES = (torch.bfloat16, torch.float16)
SMALLEST_TILE = 64
BLOCK = 1024  # numbers that a program sums the parts of at a time
# Input products that are in memory at a time without gradients.
HOISTED_BYTES = 2**30


class Sizes(NamedTuple):
    """How a step is shared out.

    Attributes:
        rows: texts of a tile.
        cells: cells of a tile in the first phase.
        columns: outputs of a tile in the second.
        depth: numbers that are multiplied at a time.
        stages: of the pipeline that fetches them.
        warps: of a program.
        programs: on each multiprocessor, so that one multiplies while the other reads and writes.
        splits: parts of a sum, forward and backward.
    """

    rows: int
    cells: int
    columns: int
    depth: int
    stages: int
    warps: int
    programs: int
    splits: tuple[int, int]

    def constants(self, is_backward: bool) -> dict[str, int]:
        """As the kernels name them."""
        return {
            "SPLITS": self.splits[is_backward], "BM": self.rows, "BC": self.cells, "BN": self.columns,
            "BK": self.depth, "STAGES": self.stages, "BLOCK": BLOCK,
        }  # fmt: skip


def sizes_for(rows: int, dim: int, width: int, sides: int, programs: int, dtype: torch.dtype) -> Sizes:
    """What fits a layer of `dim` cells and `width` outputs with `rows` texts on so many multiprocessors."""
    block = 128 if rows > 64 else 64
    depth, stages, warps, cells = 64, 3, block // 16, 64
    if dtype == torch.float32:  # without tensor cores, for exact sums
        block, depth, stages, warps, cells = 64, 32, 2, 8, 32
    columns = 128 if width % 128 == 0 else 64
    tiles = sides * -(-rows // block) * (width // columns)
    splits = []
    for inner in (dim, 4 * dim):
        split = 1
        while tiles * split * 2 <= programs and inner % (2 * split * depth) == 0:
            split *= 2
        splits.append(split)
    return Sizes(block, cells, columns, depth, stages, warps, 1, (splits[0], splits[1]))


@functools.lru_cache(maxsize=64)
def _starts(batch_sizes: tuple[int, ...], rows: int, device: torch.device) -> Tensor:
    """Where each step's rows begin in a table that has the first state in front: (steps + 2,) int32."""
    sizes = torch.tensor([0, rows, *batch_sizes])
    return sizes.cumsum(0).to(device, torch.int32, non_blocking=True)


class GpuRecurrence:
    """The kernels called with tensors; results are those of `lstm_ops._forward_steps` and `_backward_steps`.

    Args:
        at_once: whether one launch runs all steps; else each phase of each step is a launch.
        sizes: fields of `Sizes` that are to be other than `sizes_for` has them.
    """

    def __init__(self, at_once: bool, sizes: dict[str, Any] | None = None):
        self.at_once = at_once
        self.sizes = sizes or {}

    def takes(self, *widths: int) -> bool:
        """Whether it serves a layer of inputs, states and cells of these widths; a plain LSTM has no third one."""
        return len(widths) == 3 and widths[1] % SMALLEST_TILE == 0 and widths[2] % SMALLEST_TILE == 0

    def pack_layer(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights as they are."""
        return [weight.contiguous() for weight in weights]

    def forward(
        self, inputs: Tensor, packed: Sequence[Tensor], bias: Tensor, hidden: Tensor, cell: Tensor,
        batch_sizes: list[int], bounds: tuple[float, float], keep: bool = False,
    ) -> LayerResults:  # fmt: skip
        """As `RecurrenceKernel.forward`."""
        weight_ih, weight_hh, weight_hr = packed
        (sides, words, _), (_, rows, dim), width = inputs.shape, cell.shape, hidden.shape[2]
        plan = self._plan(rows, dim, width, sides, inputs)
        hiddens = inputs.new_empty(sides, rows + words, width)  # the first state, then those of all steps
        hiddens[:, :rows] = hidden
        if keep:
            cells = cell.new_empty(sides, rows + words, dim)
            cells[:, :rows] = cell
        else:
            cells = cell.clone(memory_format=torch.contiguous_format)
        mixed = inputs.new_empty(sides, words if keep else rows, dim)
        parts = cell.new_empty(plan.splits[0], sides, rows, width)
        starts = _starts(tuple(batch_sizes), rows, inputs.device)
        first = place = 0
        chunk_words = HOISTED_BYTES // (4 * dim * sides * inputs.itemsize)
        for sizes in [batch_sizes] if keep else step_chunks(batch_sizes, None, chunk_words):
            part = slice(place, place + sum(sizes))
            gates = torch.bmm(inputs[:, part], weight_ih.transpose(1, 2))  # (sides, words of the chunk, 4 * lstm_dim)
            tensors = (starts, gates, hiddens, cells, mixed, weight_hh, bias.contiguous(), weight_hr, parts)
            numbers = (words, rows, gates.shape[1], place, *bounds)
            self._run(forward, (first, first + len(sizes)), tensors, numbers, plan, KEEP=keep,
                      SIDES=sides, DIM=dim, WIDTH=width)  # fmt: skip
            first, place = first + len(sizes), part.stop
        kept = (cells[:, :rows], mixed, cells[:, rows:]) if keep else (cells, mixed, cells)
        return LayerResults(hiddens[:, rows:], *kept, gates)

    def backward(
        self, results: LayerResults, weight_hh: Tensor, weight_hr: Tensor, d_outputs: Tensor, d_cell: Tensor,
        batch_sizes: list[int], bounds: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `RecurrenceKernel.backward`."""
        (sides, words, width), (_, rows, dim) = results.outputs.shape, results.cell.shape
        plan = self._plan(rows, dim, width, sides, d_outputs)
        is_open = results.outputs.abs() < bounds[1]  # (sides, words, projection_dim)
        d_outputs.mul_(is_open)
        d_gates = torch.empty_like(results.gates)
        d_hidden = d_outputs.new_empty(sides, rows, width)
        parts = d_cell.new_empty(plan.splits[1], sides, rows, width)
        tensors = (
            _starts(tuple(batch_sizes), rows, d_outputs.device), results.gates, is_open,
            _one_table(results.cell, results.cells), d_outputs, d_cell, d_gates, d_hidden,
            weight_hh.contiguous(), weight_hr.contiguous(), parts,
        )  # fmt: skip
        self._run(backward, (0, len(batch_sizes)), tensors, (words, rows, bounds[0]), plan,
                  SIDES=sides, DIM=dim, WIDTH=width)  # fmt: skip
        return d_gates, d_hidden[:, : batch_sizes[0]]

    def _plan(self, rows: int, dim: int, width: int, sides: int, like: Tensor) -> Sizes:
        return sizes_for(rows, dim, width, sides, _processors(like.device), like.dtype)._replace(**self.sizes)

    def _run(
        self, kernel: Any, steps: tuple[int, int], tensors: Sequence[Tensor], numbers: Sequence[float], plan: Sizes,
        **constants: int,
    ):  # fmt: skip
        device = tensors[0].device
        programs = plan.programs * _processors(device)
        constants |= plan.constants(kernel is backward)
        options: dict[str, Any] = {"num_warps": plan.warps}
        with on_device(device):
            if self.at_once:
                options["launch_cooperative_grid"] = True  # all programs are there, or none
                counter = torch.zeros(1, dtype=torch.int32, device=device)
                kernel[(programs,)](*steps, *tensors, counter, *numbers, PHASE=ALL, **constants, **options)
                return
            has_parts = constants["SPLITS"] > 1 or kernel is backward
            for step in range(*steps) if kernel is forward else reversed(range(*steps)):
                for phase in PHASES if has_parts else PHASES[:2]:
                    unused = tensors[0]  # no program waits for another
                    kernel[(programs,)](step, step + 1, *tensors, unused, *numbers, PHASE=phase, **constants, **options)


def _one_table(first: Tensor, rest: Tensor) -> Tensor:
    """(sides, rows, dim) and (sides, words, dim) behind each other: as `forward` left them, unless someone copied."""
    rows, dim = first.shape[1:]
    fits = rest.stride() == first.stride() and first.stride(0) == (rows + rest.shape[1]) * dim
    if fits and rest.data_ptr() == first.data_ptr() + rows * dim * first.itemsize:
        return first
    return torch.cat([first, rest], dim=1)


def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter plays three."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@functools.cache
def gpu_recurrence(dtype: torch.dtype, device: torch.device) -> GpuRecurrence | None:
    """The kernels for a dtype on a device; `None` without Triton, or where they were not tried."""
    if dtype not in DTYPES or not runs_layers(device):
        return None
    # At once is faster, but since its way of waiting was mended it has not run on a GPU (benchmarks/README.md).
    return GpuRecurrence(at_once=False)
