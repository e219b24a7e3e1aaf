"""The recurrence of an LSTM layer in Triton: a step of both directions in three phases (`gpu_recurrence.py` runs them).

A step forward:

    1  gates = from_inputs + h W_hh^T + b, the cell, o * tanh(c')     a tile has all four gates of its cells
    2  parts of (o * tanh(c')) W_hr^T, each over a share of the cells   there are too few tiles otherwise
    3  their sum, clipped: h'

and backward:

    1  d_h W_hr, the cell's gradient, d_gates
    2  parts of d_gates W_hh, each over a share of the gates
    3  their sum, into the gradient of the output before it

Sums, the cell and its gradient are float32. Parts are added in a fixed order, so that the same call has the same bits.
`lstm_ops._forward_steps` and `_backward_steps` are the references; persistent kernels for plain LSTMs are described in
FlashRNN (Poeppel et al. 2024, arXiv 2412.07752).

What the arguments hold, with S = sides (directions), W = words of all steps, R = rows (texts of the first state):

    starts (steps + 2,)     where the rows of the state before a step, behind it, and behind the next one begin
    gates (S, W, 4 DIM)     input products, afterwards activated gates; in chunks without KEEP, `hoisted` words each
    hiddens (S, R + W, WIDTH), cells (S, R + W, DIM)     the first state, then that of each step; without KEEP the
                            cells are (S, R, DIM) and change in place
    mixed (S, W, DIM)       o * tanh(c'); without KEEP (S, R, DIM)
    parts (SPLITS, S, R, WIDTH)

A tile is BM rows times BC cells or BN columns; BK numbers are multiplied at a time, in a pipeline of STAGES. Whole
tiles of cells and columns are assumed, rows are masked.
"""

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:
    triton, tl, constexpr = None, None, int


def jit_of(*varying: str) -> Callable:
    """Triton's decorator, for arguments that vary too much to be compiled for; nothing without Triton."""
    return triton.jit(do_not_specialize=varying) if triton is not None else lambda function: function


jit = jit_of()
# Compute capabilities: the oldest that have all of our dtypes, and the generation that layers were tried on, Hopper.
OLDEST, GENERATION = (8, 0), 9


@jit
def _write_one(place):
    tl.store(place, 1)


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device: it needs a C compiler, too, when one is first launched."""
    if triton is None or device.type != "cuda" or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device) < OLDEST:
        return False
    try:
        with torch.cuda.device(device):
            place = torch.zeros(1, dtype=torch.int32, device=device)
            _write_one[(1,)](place)
            return place.item() == 1
    except Exception as error:  # of the compiler, the driver or Triton itself
        warnings.warn(f"Triton does not run here, so slower operations of torch take its place: {error}", stacklevel=2)
        return False


@functools.cache
def runs_layers(device: torch.device) -> bool:
    """Whether the kernels of a whole layer were tried on such a device."""
    return has_triton(device) and torch.cuda.get_device_capability(device)[0] == GENERATION


def on_device(device: torch.device) -> AbstractContextManager:
    """Where Triton launches: on a GPU, or in the interpreter."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# Which phase a launch runs: one of a single step, or all of all steps. Kernels have the numbers, since they may read no
# global names.
ALL, PHASES = 0, (1, 2, 3)


@jit
def tanh(x):
    """By exp, which the interpreter has, too. Its absolute error is that of float32 near 1."""
    return 1 - 2 / (tl.exp(2 * x) + 1)


@jit
def clip(x, bound):
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))  # lets NaN through


@jit
def activated(i, f, g, o):
    """The gates from their sums."""
    return tl.sigmoid(i), tl.sigmoid(f), tanh(g), tl.sigmoid(o)


@jit
def value_gradient(d_cell, d_output, o, squashed, cell, bound):
    """The gradient of f * c + i * g, from those of the clipped cell and of o * tanh(cell); none at the bound."""
    d_value = d_cell + d_output * o * (1 - squashed * squashed)
    return tl.where(tl.abs(cell) < bound, d_value, 0.0)


@jit
def _wait_for_all(counter, arrivals):
    """Go on when all programs have arrived here, and see what they wrote; `arrivals` before, and returned behind it."""
    target = arrivals + tl.num_programs(0)
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")
    while tl.atomic_add(counter, 0, sem="acquire") < target:  # becomes a load
        pass
    tl.debug_barrier()
    return target


@jit
def _places(starts, step):
    """Where the rows of the state before a step begin, and of that behind it; how many run at this step."""
    now = tl.load(starts + step + 1).to(tl.int64)
    return tl.load(starts + step).to(tl.int64), now, (tl.load(starts + step + 2) - now).to(tl.int32)


@jit
def _tile(tile, running, WIDTH: constexpr, BM: constexpr, BN: constexpr):
    """A tile's rows (BM,) and its columns (BN,) of WIDTH, and what the tile's number has beside them: tiles of the same
    columns follow each other, since they share a weight."""
    blocks = tl.cdiv(running, BM)
    rest = tile // blocks
    columns = rest % (WIDTH // BN) * BN + tl.arange(0, BN)
    return tile % blocks * BM + tl.arange(0, BM), columns, (rest // (WIDTH // BN)).to(tl.int64)


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
    """Phase 1 forward: four products for each tile of cells, and the cell behind them."""
    before, now, running = _places(starts, step)
    for tile in range(tl.program_id(0), SIDES * (DIM // BC) * tl.cdiv(running, BM), tl.num_programs(0)):
        row, columns, side = _tile(tile, running, DIM, BM, BC)
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
        i = i + tl.load(at, mask=mask, other=0.0) + tl.load(offset)[None, :]
        f = f + tl.load(at + DIM, mask=mask, other=0.0) + tl.load(offset + DIM)[None, :]
        g = g + tl.load(at + 2 * DIM, mask=mask, other=0.0) + tl.load(offset + 2 * DIM)[None, :]
        o = o + tl.load(at + 3 * DIM, mask=mask, other=0.0) + tl.load(offset + 3 * DIM)[None, :]
        i, f, g, o = activated(i, f, g, o)
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
        c = clip(f * tl.load(old, mask=mask, other=0.0) + i * g, cell_bound)
        tl.store(new, c, mask=mask)
        tl.store(out, o * tanh(c), mask=mask)


@jit
def _project(
    step, starts, hiddens, mixed, weight_hr, parts, packed, rows, proj_bound,
    SIDES: constexpr, DIM: constexpr, WIDTH: constexpr, KEEP: constexpr, SPLITS: constexpr,
    BM: constexpr, BN: constexpr, BK: constexpr, STAGES: constexpr,
):  # fmt: skip
    """Phase 2 forward: a tile of the output over a share of the cells, into `parts`, or the output itself."""
    _, now, running = _places(starts, step)
    for tile in range(tl.program_id(0), SIDES * SPLITS * (WIDTH // BN) * tl.cdiv(running, BM), tl.num_programs(0)):
        row, columns, rest = _tile(tile, running, WIDTH, BM, BN)
        split, side = rest % SPLITS, rest // SPLITS
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
            tl.store(at, clip(total, proj_bound), mask=mask)
        else:
            at = parts + ((split * SIDES + side) * rows + row[:, None]) * WIDTH + columns
            tl.store(at, total, mask=mask)


@jit
def _sum_parts(
    index, running, parts, rows,
    SIDES: constexpr, WIDTH: constexpr, SPLITS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """The sum of a block's parts, always in the same order; its side, its places in (running, WIDTH), what is real."""
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
    """Phase 3 forward: sum the parts and clip."""
    _, now, running = _places(starts, step)
    for index in range(tl.program_id(0), tl.cdiv(SIDES * running * WIDTH, BLOCK), tl.num_programs(0)):
        total, side, place, real = _sum_parts(index, running, parts, rows, SIDES, WIDTH, SPLITS, BLOCK)
        tl.store(hiddens + (side * (rows + packed) + now) * WIDTH + place, clip(total, proj_bound), mask=real)


@jit_of("first", "last", "packed", "rows", "hoisted", "hoisted_from")
def forward(
    first, last, starts, gates, hiddens, cells, mixed, weight_hh, bias, weight_hr, parts, counter, packed, rows,
    hoisted, hoisted_from, cell_bound, proj_bound, PHASE: constexpr, SIDES: constexpr, DIM: constexpr,
    WIDTH: constexpr, KEEP: constexpr, SPLITS: constexpr, BM: constexpr, BC: constexpr,
    BN: constexpr, BK: constexpr, STAGES: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Steps `first` to `last` (excluded) forward: one phase, or all of them with every program waiting in between."""
    arrivals = 0
    for step in range(first, last):
        if PHASE == 0 or PHASE == 1:
            _cells_forward(
                step, starts, gates, hiddens, cells, mixed, weight_hh, bias, packed, rows, hoisted, hoisted_from,
                cell_bound,
                SIDES, DIM, WIDTH, KEEP, BM, BC, BK, STAGES,
            )  # fmt: skip
        if PHASE == 0:
            arrivals = _wait_for_all(counter, arrivals)
        if PHASE == 0 or PHASE == 2:
            _project(
                step, starts, hiddens, mixed, weight_hr, parts, packed, rows, proj_bound,
                SIDES, DIM, WIDTH, KEEP, SPLITS, BM, BN, BK, STAGES,
            )  # fmt: skip
        if PHASE == 0:
            arrivals = _wait_for_all(counter, arrivals)
        if SPLITS > 1:
            if PHASE == 0 or PHASE == 3:
                _finish_projection(step, starts, hiddens, parts, packed, rows, proj_bound, SIDES, WIDTH, SPLITS, BLOCK)
            if PHASE == 0:
                arrivals = _wait_for_all(counter, arrivals)


@jit
def _cells_backward(
    step, starts, gates, cells, d_outputs, d_cell, d_gates, weight_hr, packed, rows, cell_bound,
    SIDES: constexpr, DIM: constexpr, WIDTH: constexpr,
    BM: constexpr, BC: constexpr, BK: constexpr, STAGES: constexpr,
):  # fmt: skip
    """Phase 1 backward: what the cells get from the output, and the gradient of their gates."""
    before, now, running = _places(starts, step)
    for tile in range(tl.program_id(0), SIDES * (DIM // BC) * tl.cdiv(running, BM), tl.num_programs(0)):
        row, columns, side = _tile(tile, running, DIM, BM, BC)
        mask = (row < running)[:, None]
        d_mixed = _product(
            d_outputs + (side * packed + now - rows) * WIDTH, weight_hr + side * WIDTH * DIM, row, columns,
            row < running, 0, WIDTH, WIDTH, DIM, 1, BM, BC, BK, STAGES,
        )  # fmt: skip
        place = row[:, None] * DIM + columns
        at = (side * packed + now - rows) * (4 * DIM) + row[:, None] * (4 * DIM) + columns
        new = tl.load(cells + (side * (rows + packed) + now) * DIM + place, mask=mask, other=0.0)
        squashed = tanh(new)
        o = tl.load(gates + at + 3 * DIM, mask=mask, other=0.0).to(tl.float32)
        tl.store(d_gates + at + 3 * DIM, d_mixed * squashed * o * (1 - o), mask=mask)
        d_place = d_cell + side * rows * DIM + place
        d_value = value_gradient(tl.load(d_place, mask=mask, other=0.0), d_mixed, o, squashed, new, cell_bound)
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
    """Phase 2 backward: a tile of the gradient of the recurrent input over a share of the gates."""
    _, now, running = _places(starts, step)
    for tile in range(tl.program_id(0), SIDES * SPLITS * (WIDTH // BN) * tl.cdiv(running, BM), tl.num_programs(0)):
        row, columns, rest = _tile(tile, running, WIDTH, BM, BN)
        split, side = rest % SPLITS, rest // SPLITS
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
    """Phase 3 backward: sum the parts into the gradient of the output before, where it was not clipped."""
    before, _, running = _places(starts, step)
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
def backward(
    first, last, starts, gates, is_open, cells, d_outputs, d_cell, d_gates, d_hidden, weight_hh, weight_hr, parts,
    counter, packed, rows, cell_bound, PHASE: constexpr, SIDES: constexpr, DIM: constexpr,
    WIDTH: constexpr, SPLITS: constexpr, BM: constexpr, BC: constexpr, BN: constexpr,
    BK: constexpr, STAGES: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """The same backward, from step `last - 1` to `first`."""
    arrivals = 0
    for back in range(first, last):
        step = first + last - 1 - back
        if PHASE == 0 or PHASE == 1:
            _cells_backward(
                step, starts, gates, cells, d_outputs, d_cell, d_gates, weight_hr, packed, rows, cell_bound,
                SIDES, DIM, WIDTH, BM, BC, BK, STAGES,
            )  # fmt: skip
        if PHASE == 0:
            arrivals = _wait_for_all(counter, arrivals)
        if PHASE == 0 or PHASE == 2:
            _to_hidden(
                step, starts, d_gates, weight_hh, parts, packed, rows, SIDES, DIM, WIDTH, SPLITS, BM, BN, BK, STAGES
            )
        if PHASE == 0:
            arrivals = _wait_for_all(counter, arrivals)
        if PHASE == 0 or PHASE == 3:
            _finish_hidden(step, starts, is_open, d_outputs, d_hidden, parts, packed, rows, SIDES, WIDTH, SPLITS, BLOCK)
        if PHASE == 0:
            arrivals = _wait_for_all(counter, arrivals)
