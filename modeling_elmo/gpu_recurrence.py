"""The recurrence of a whole LSTM layer on a GPU: all steps, both directions and both products in one Triton kernel.

The kernel is persistent: as many programs as the GPU has multiprocessors share out each step's tiles, and wait for each
other between the phases of a step, so that the host launches one kernel for all words. The weights of the recurrence
stay in the GPU's cache from step to step. Sums and the cell are float32.

A step forward:

    1  gates = from_inputs + h W_hh^T + b, the cell, o * tanh(c')      a tile has all four gates of its cells
    2  parts of (o * tanh(c')) W_hr^T, each over a share of the cells   there are too few tiles otherwise
    3  their sum, clipped: h'

and backward:

    1  d_h W_hr, the cell's gradient, d_gates
    2  parts of d_gates W_hh, each over a share of the gates
    3  their sum, into the gradient of the output before it

Persistent kernels for plain LSTMs: FlashRNN (Poeppel et al. 2024, arXiv 2412.07752). `lstm_ops._forward_steps` and
`_backward_steps` are the references. Triton's interpreter, which runs one program behind the other, is given the
phases one by one.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .recurrence_kernel import LayerResults, step_chunks

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:
    triton, constexpr = None, int


def jit_of(*varying: str) -> Callable:
    """Triton's decorator, for arguments that vary too much to be compiled for; nothing without Triton."""
    return triton.jit(do_not_specialize=varying) if triton is not None else lambda function: function


jit = jit_of()
ALL, PHASES = 0, (1, 2, 3)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALLEST_TILE = 64
BLOCK = 1024  # numbers that a program sums the parts of at a time
# Input products that are in memory at a time without gradients.
HOISTED_BYTES = 2**30


@jit
def _tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


@jit
def _clip(x, bound):
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))  # lets NaN through


@jit
def _wait_for_all(counter, target):
    """Go on when all programs have arrived here, and see what they wrote."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")
    while tl.atomic_add(counter, 0, sem="acquire") < target:  # becomes a load
        pass
    tl.debug_barrier()


@jit
def _product(
    left, right, left_rows, right_columns, row_is, first, size,
    LEFT_STRIDE: constexpr, K_STRIDE: constexpr, N_STRIDE: constexpr, BM: constexpr,
    BN: constexpr, BK: constexpr, STAGES: constexpr,
):  # fmt: skip
    """A tile of left (rows, k) times right (k, columns) over `size` k from `first`: (BM, BN) float32."""
    steps = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    left_places = left + left_rows[:, None] * LEFT_STRIDE + (first + steps)[None, :]
    right_places = right + (first + steps)[:, None] * K_STRIDE + right_columns[None, :] * N_STRIDE
    for _ in tl.range(0, size, BK, num_stages=STAGES):
        a = tl.load(left_places, mask=row_is[:, None], other=0.0)
        b = tl.load(right_places)
        total = tl.dot(a, b, total, input_precision="ieee")
        left_places += BK
        right_places += BK * K_STRIDE
    return total


@jit
def _cells_forward(
    step, starts, gates, hiddens, cells, mixed, weight_hh, bias, packed, rows, hoisted, hoisted_from, cell_bound,
    SIDES: constexpr, DIM: constexpr, WIDTH: constexpr, KEEP: constexpr,
    BM: constexpr, BC: constexpr, BK: constexpr, STAGES: constexpr,
):  # fmt: skip
    before = tl.load(starts + step).to(tl.int64)
    now = tl.load(starts + step + 1).to(tl.int64)
    running = (tl.load(starts + step + 2) - now).to(tl.int32)
    blocks = tl.cdiv(running, BM)
    for tile in range(tl.program_id(0), SIDES * (DIM // BC) * blocks, tl.num_programs(0)):
        block, rest = tile % blocks, tile // blocks
        side = (rest // (DIM // BC)).to(tl.int64)
        columns = rest % (DIM // BC) * BC + tl.arange(0, BC)
        row = block * BM + tl.arange(0, BM)
        row_is = row < running
        steps = tl.arange(0, BK)
        left = hiddens + (side * (rows + packed) + before) * WIDTH + row[:, None] * WIDTH + steps[None, :]
        right = weight_hh + side * 4 * DIM * WIDTH + steps[:, None] + columns[None, :] * WIDTH
        i = tl.zeros((BM, BC), dtype=tl.float32)
        f = tl.zeros((BM, BC), dtype=tl.float32)
        g = tl.zeros((BM, BC), dtype=tl.float32)
        o = tl.zeros((BM, BC), dtype=tl.float32)
        for k in tl.range(0, WIDTH, BK, num_stages=STAGES):
            a = tl.load(left + k, mask=row_is[:, None], other=0.0)
            i = tl.dot(a, tl.load(right + k), i, input_precision="ieee")
            f = tl.dot(a, tl.load(right + k + DIM * WIDTH), f, input_precision="ieee")
            g = tl.dot(a, tl.load(right + k + 2 * DIM * WIDTH), g, input_precision="ieee")
            o = tl.dot(a, tl.load(right + k + 3 * DIM * WIDTH), o, input_precision="ieee")
        mask = row_is[:, None]
        at = gates + (side * hoisted + now - rows - hoisted_from) * (4 * DIM) + row[:, None] * (4 * DIM) + columns
        offset = bias + side * 4 * DIM + columns
        i = tl.sigmoid(i + tl.load(at, mask=mask, other=0.0) + tl.load(offset)[None, :])
        f = tl.sigmoid(f + tl.load(at + DIM, mask=mask, other=0.0) + tl.load(offset + DIM)[None, :])
        g = _tanh(g + tl.load(at + 2 * DIM, mask=mask, other=0.0) + tl.load(offset + 2 * DIM)[None, :])
        o = tl.sigmoid(o + tl.load(at + 3 * DIM, mask=mask, other=0.0) + tl.load(offset + 3 * DIM)[None, :])
        if KEEP:
            tl.store(at, i, mask=mask)
            tl.store(at + DIM, f, mask=mask)
            tl.store(at + 2 * DIM, g, mask=mask)
            tl.store(at + 3 * DIM, o, mask=mask)
            old = cells + (side * (rows + packed) + before) * DIM + row[:, None] * DIM + columns
            new = cells + (side * (rows + packed) + now) * DIM + row[:, None] * DIM + columns
            out = mixed + (side * packed + now - rows) * DIM + row[:, None] * DIM + columns
        else:
            old = cells + side * rows * DIM + row[:, None] * DIM + columns
            new = old
            out = mixed + side * rows * DIM + row[:, None] * DIM + columns
        c = _clip(f * tl.load(old, mask=mask, other=0.0) + i * g, cell_bound)
        tl.store(new, c, mask=mask)
        tl.store(out, o * _tanh(c), mask=mask)


@jit
def _project(
    step, starts, hiddens, mixed, weight_hr, parts, packed, rows, proj_bound,
    SIDES: constexpr, DIM: constexpr, WIDTH: constexpr, KEEP: constexpr, SPLITS: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr, STAGES: constexpr,
):  # fmt: skip
    now = tl.load(starts + step + 1).to(tl.int64)
    running = (tl.load(starts + step + 2) - now).to(tl.int32)
    blocks = tl.cdiv(running, BM)
    for tile in range(tl.program_id(0), SIDES * SPLITS * (WIDTH // BN) * blocks, tl.num_programs(0)):
        block, rest = tile % blocks, tile // blocks
        columns = rest % (WIDTH // BN) * BN + tl.arange(0, BN)
        rest = rest // (WIDTH // BN)
        split, side = rest % SPLITS, (rest // SPLITS).to(tl.int64)
        row = block * BM + tl.arange(0, BM)
        left = mixed + side * rows * DIM
        if KEEP:
            left = mixed + (side * packed + now - rows) * DIM
        total = _product(
            left, weight_hr + side * WIDTH * DIM, row, columns, row < running, split * (DIM // SPLITS), DIM // SPLITS,
            DIM, 1, DIM, BM, BN, BK, STAGES,
        )  # fmt: skip
        mask = (row < running)[:, None]
        if SPLITS == 1:
            at = hiddens + (side * (rows + packed) + now) * WIDTH + row[:, None] * WIDTH + columns
            tl.store(at, _clip(total, proj_bound), mask=mask)
        else:
            at = parts + ((split * SIDES + side) * rows + row[:, None]) * WIDTH + columns
            tl.store(at, total, mask=mask)


@jit
def _sum_parts(
    index, running, parts, rows,
    SIDES: constexpr, WIDTH: constexpr, SPLITS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """The sum of a block's parts, always in the same order; its rows' places in (rows, WIDTH), its side, what is real."""
    element = index * BLOCK + tl.arange(0, BLOCK)
    side = (element // (running * WIDTH)).to(tl.int64)
    place = element % (running * WIDTH)
    real = element < SIDES * running * WIDTH
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + (split * SIDES + side) * rows * WIDTH + place, mask=real, other=0.0)
    return total, side, place, real


@jit
def _finish_projection(
    step, starts, hiddens, parts, packed, rows, proj_bound,
    SIDES: constexpr, WIDTH: constexpr, SPLITS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    now = tl.load(starts + step + 1).to(tl.int64)
    running = (tl.load(starts + step + 2) - now).to(tl.int32)
    for index in range(tl.program_id(0), tl.cdiv(SIDES * running * WIDTH, BLOCK), tl.num_programs(0)):
        total, side, place, real = _sum_parts(index, running, parts, rows, SIDES, WIDTH, SPLITS, BLOCK)
        tl.store(hiddens + (side * (rows + packed) + now) * WIDTH + place, _clip(total, proj_bound), mask=real)


@jit_of("first", "last", "packed", "rows", "hoisted", "hoisted_from")
def _forward(
    first, last, starts, gates, hiddens, cells, mixed, weight_hh, bias, weight_hr, parts, counter, packed, rows,
    hoisted, hoisted_from, cell_bound, proj_bound, PHASE: constexpr, SIDES: constexpr, DIM: constexpr,
    WIDTH: constexpr, KEEP: constexpr, SPLITS: constexpr, BM: constexpr, BC: constexpr,
    BN: constexpr, BK: constexpr, STAGES: constexpr, BLOCK: constexpr,
):  # fmt: skip
    arrivals = 0
    for step in range(first, last):
        if PHASE == 0 or PHASE == 1:
            _cells_forward(
                step, starts, gates, hiddens, cells, mixed, weight_hh, bias, packed, rows, hoisted, hoisted_from,
                cell_bound,
                SIDES, DIM, WIDTH, KEEP, BM, BC, BK, STAGES,
            )  # fmt: skip
        if PHASE == 0:
            arrivals += tl.num_programs(0)
            _wait_for_all(counter, arrivals)
        if PHASE == 0 or PHASE == 2:
            _project(
                step, starts, hiddens, mixed, weight_hr, parts, packed, rows, proj_bound,
                SIDES, DIM, WIDTH, KEEP, SPLITS, BM, BN, BK, STAGES,
            )  # fmt: skip
        if PHASE == 0:
            arrivals += tl.num_programs(0)
            _wait_for_all(counter, arrivals)
        if SPLITS > 1:
            if PHASE == 0 or PHASE == 3:
                _finish_projection(step, starts, hiddens, parts, packed, rows, proj_bound, SIDES, WIDTH, SPLITS, BLOCK)
            if PHASE == 0:
                arrivals += tl.num_programs(0)
                _wait_for_all(counter, arrivals)


@jit
def _cells_backward(
    step, starts, gates, cells, d_outputs, d_cell, d_gates, weight_hr, packed, rows, cell_bound,
    SIDES: constexpr, DIM: constexpr, WIDTH: constexpr,
    BM: constexpr, BC: constexpr, BK: constexpr, STAGES: constexpr,
):  # fmt: skip
    before = tl.load(starts + step).to(tl.int64)
    now = tl.load(starts + step + 1).to(tl.int64)
    running = (tl.load(starts + step + 2) - now).to(tl.int32)
    blocks = tl.cdiv(running, BM)
    for tile in range(tl.program_id(0), SIDES * (DIM // BC) * blocks, tl.num_programs(0)):
        block, rest = tile % blocks, tile // blocks
        side = (rest // (DIM // BC)).to(tl.int64)
        columns = rest % (DIM // BC) * BC + tl.arange(0, BC)
        row = block * BM + tl.arange(0, BM)
        mask = (row < running)[:, None]
        d_mixed = _product(
            d_outputs + (side * packed + now - rows) * WIDTH, weight_hr + side * WIDTH * DIM, row, columns,
            row < running, 0, WIDTH, WIDTH, DIM, 1, BM, BC, BK, STAGES,
        )  # fmt: skip
        place = row[:, None] * DIM + columns
        at = (side * packed + now - rows) * (4 * DIM) + row[:, None] * (4 * DIM) + columns
        squashed = _tanh(tl.load(cells + (side * (rows + packed) + now) * DIM + place, mask=mask, other=0.0))
        new = tl.load(cells + (side * (rows + packed) + now) * DIM + place, mask=mask, other=0.0)
        o = tl.load(gates + at + 3 * DIM, mask=mask, other=0.0).to(tl.float32)
        tl.store(d_gates + at + 3 * DIM, d_mixed * squashed * o * (1 - o), mask=mask)
        d_place = d_cell + side * rows * DIM + place
        d_value = tl.load(d_place, mask=mask, other=0.0) + d_mixed * o * (1 - squashed * squashed)
        d_value = tl.where(tl.abs(new) < cell_bound, d_value, 0.0)
        f = tl.load(gates + at + DIM, mask=mask, other=0.0).to(tl.float32)
        tl.store(d_place, d_value * f, mask=mask)
        old = tl.load(cells + (side * (rows + packed) + before) * DIM + place, mask=mask, other=0.0)
        tl.store(d_gates + at + DIM, d_value * old * f * (1 - f), mask=mask)
        i = tl.load(gates + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(gates + at + 2 * DIM, mask=mask, other=0.0).to(tl.float32)
        tl.store(d_gates + at, d_value * g * i * (1 - i), mask=mask)
        tl.store(d_gates + at + 2 * DIM, d_value * i * (1 - g * g), mask=mask)


@jit
def _to_hidden(
    step, starts, d_gates, weight_hh, parts, packed, rows,
    SIDES: constexpr, DIM: constexpr, WIDTH: constexpr, SPLITS: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr, STAGES: constexpr,
):  # fmt: skip
    now = tl.load(starts + step + 1).to(tl.int64)
    running = (tl.load(starts + step + 2) - now).to(tl.int32)
    blocks = tl.cdiv(running, BM)
    for tile in range(tl.program_id(0), SIDES * SPLITS * (WIDTH // BN) * blocks, tl.num_programs(0)):
        block, rest = tile % blocks, tile // blocks
        columns = rest % (WIDTH // BN) * BN + tl.arange(0, BN)
        rest = rest // (WIDTH // BN)
        split, side = rest % SPLITS, (rest // SPLITS).to(tl.int64)
        row = block * BM + tl.arange(0, BM)
        total = _product(
            d_gates + (side * packed + now - rows) * (4 * DIM), weight_hh + side * 4 * DIM * WIDTH, row, columns,
            row < running, split * (4 * DIM // SPLITS), 4 * DIM // SPLITS, 4 * DIM, WIDTH, 1, BM, BN, BK, STAGES,
        )  # fmt: skip
        at = parts + ((split * SIDES + side) * rows + row[:, None]) * WIDTH + columns
        tl.store(at, total, mask=(row < running)[:, None])


@jit
def _finish_hidden(
    step, starts, is_open, d_outputs, d_hidden, parts, packed, rows,
    SIDES: constexpr, WIDTH: constexpr, SPLITS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    before = tl.load(starts + step).to(tl.int64)
    running = (tl.load(starts + step + 2) - tl.load(starts + step + 1)).to(tl.int32)
    for index in range(tl.program_id(0), tl.cdiv(SIDES * running * WIDTH, BLOCK), tl.num_programs(0)):
        total, side, place, real = _sum_parts(index, running, parts, rows, SIDES, WIDTH, SPLITS, BLOCK)
        if step == 0:
            tl.store(d_hidden + side * rows * WIDTH + place, total, mask=real)
        else:
            at = (side * packed + before - rows) * WIDTH + place
            passes = tl.load(is_open + at, mask=real, other=0) != 0
            total = tl.where(passes, total, 0.0) + tl.load(d_outputs + at, mask=real, other=0.0)
            tl.store(d_outputs + at, total, mask=real)


@jit_of("first", "last", "packed", "rows")
def _backward(
    first, last, starts, gates, is_open, cells, d_outputs, d_cell, d_gates, d_hidden, weight_hh, weight_hr, parts,
    counter, packed, rows, cell_bound, PHASE: constexpr, SIDES: constexpr, DIM: constexpr,
    WIDTH: constexpr, SPLITS: constexpr, BM: constexpr, BC: constexpr, BN: constexpr,
    BK: constexpr, STAGES: constexpr, BLOCK: constexpr,
):  # fmt: skip
    arrivals = 0
    for back in range(first, last):
        step = first + last - 1 - back
        if PHASE == 0 or PHASE == 1:
            _cells_backward(
                step, starts, gates, cells, d_outputs, d_cell, d_gates, weight_hr, packed, rows, cell_bound,
                SIDES, DIM, WIDTH, BM, BC, BK, STAGES,
            )  # fmt: skip
        if PHASE == 0:
            arrivals += tl.num_programs(0)
            _wait_for_all(counter, arrivals)
        if PHASE == 0 or PHASE == 2:
            _to_hidden(
                step, starts, d_gates, weight_hh, parts, packed, rows, SIDES, DIM, WIDTH, SPLITS, BM, BN, BK, STAGES
            )
        if PHASE == 0:
            arrivals += tl.num_programs(0)
            _wait_for_all(counter, arrivals)
        if PHASE == 0 or PHASE == 3:
            _finish_hidden(step, starts, is_open, d_outputs, d_hidden, parts, packed, rows, SIDES, WIDTH, SPLITS, BLOCK)
        if PHASE == 0:
            arrivals += tl.num_programs(0)
            _wait_for_all(counter, arrivals)


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


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return triton is not None and triton.knobs.runtime.interpret


@functools.lru_cache(maxsize=64)
def _starts(batch_sizes: tuple[int, ...], rows: int, device: torch.device) -> Tensor:
    """Where each step's rows begin in a table that has the first state in front: (steps + 2,) int32."""
    sizes = torch.tensor([0, rows, *batch_sizes])
    return sizes.cumsum(0).to(device, torch.int32)


class GpuRecurrence:
    """The kernels called with tensors; results are those of `lstm_ops._forward_steps` and `_backward_steps`."""

    def __init__(self, at_once: bool):
        self.at_once = at_once

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
        plan = sizes_for(rows, dim, width, sides, _programs(inputs.device), inputs.dtype)
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
            self._run(_forward, (first, first + len(sizes)), tensors, numbers, plan, plan.splits[0], KEEP=keep,
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
        plan = sizes_for(rows, dim, width, sides, _programs(d_outputs.device), d_outputs.dtype)
        is_open = results.outputs.abs() < bounds[1]  # (sides, words, projection_dim)
        d_outputs.mul_(is_open)
        d_gates = torch.empty_like(results.gates)
        d_hidden = d_outputs.new_empty(sides, rows, width)
        parts = d_cell.new_empty(plan.splits[1], sides, rows, width)
        tensors = (
            _starts(tuple(batch_sizes), rows, d_outputs.device), results.gates, is_open,
            _one_table(results.cell, results.cells), d_outputs, d_cell, d_gates, d_hidden, weight_hh.contiguous(), weight_hr.contiguous(), parts,
        )  # fmt: skip
        self._run(_backward, (0, len(batch_sizes)), tensors, (words, rows, bounds[0]), plan, plan.splits[1],
                  SIDES=sides, DIM=dim, WIDTH=width)  # fmt: skip
        return d_gates, d_hidden[:, : batch_sizes[0]]

    def _run(
        self, kernel: Any, steps: tuple[int, int], tensors: Sequence[Tensor], numbers: Sequence[float], plan: Sizes,
        splits: int, **constants: int,
    ):  # fmt: skip
        device = tensors[0].device
        programs = plan.programs * _programs(device)
        counter = torch.zeros(1, dtype=torch.int32, device=device)
        constants |= {
            "SPLITS": splits, "BM": plan.rows, "BC": plan.cells, "BN": plan.columns, "BK": plan.depth,
            "STAGES": plan.stages, "BLOCK": BLOCK,
        }  # fmt: skip
        options: dict[str, Any] = {"num_warps": plan.warps}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if self.at_once:
                options["launch_cooperative_grid"] = True
                kernel[(programs,)](*steps, *tensors, counter, *numbers, PHASE=ALL, **constants, **options)
                return
            order = range(*steps) if kernel is _forward else reversed(range(*steps))
            for step in order:
                for phase in PHASES:
                    kernel[(programs,)](
                        step, step + 1, *tensors, counter, *numbers, PHASE=phase, **constants, **options
                    )


def _one_table(first: Tensor, rest: Tensor) -> Tensor:
    """(sides, rows, dim) and (sides, words, dim) behind each other: as `forward` left them, unless someone copied."""
    rows, dim = first.shape[1:]
    fits = rest.stride() == first.stride() and first.stride(0) == (rows + rest.shape[1]) * dim
    if fits and rest.data_ptr() == first.data_ptr() + rows * dim * first.itemsize:
        return first
    return torch.cat([first, rest], dim=1)


def _programs(device: torch.device) -> int:
    """As many as run at the same time: one on each multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@functools.cache
def gpu_recurrence(dtype: torch.dtype, device: torch.device) -> GpuRecurrence | None:
    """The kernels for a dtype on a device; `None` without Triton, or where they do not serve."""
    if triton is None or device.type != "cuda" or torch.version.hip is not None:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0) or dtype not in DTYPES:
        return None
    return GpuRecurrence(at_once=True)
