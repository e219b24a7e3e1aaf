"""One LSTM layer in C, products and all, for inference on x86 processors.

A library's product writes the gates to memory and the cell reads them back, step by step and each step by several
calls from Python. Here a thread multiplies for some cells, in registers, and goes on with their gates while these are
still in its cache. One call runs all steps of both directions.

The weights are packed first, so that what one step of the inner loop multiplies lies side by side: the four gates of
as many cells as a register holds. The product is the blocked one of Goto and van de Geijn (2008, "Anatomy of
high-performance matrix multiplication").
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .c_library import c_library
from .cpu_kernels import ARITHMETIC, FLOAT, INT, INT64, NAMES, POINTER

SIZES = r"""
#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16                /* numbers in a register */
#define TILE 6                  /* rows whose sums are in registers, in four of them each */
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define TILE 3
#else
#define LANES 4
#define TILE 2
#endif
#define COLUMNS (4 * LANES)     /* of a block: four gates of LANES cells, or as many outputs */
#define GROUP (64 / LANES)      /* blocks of a task: 64 cells, whole lines of the cache */
#define ROWS 72                 /* texts of a task */
#define DEPTH 64                /* inputs whose weights stay in the first cache meanwhile */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t pairs __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

int lanes(void) { return LANES; }
int rows_of_a_task(void) { return ROWS; }

/* Whether this is faster than what torch has. Other processors were not measured, and AMX multiplies bfloat16 by far
   faster than vectors do. */
int serves_float(void) { return LANES > 4; }
#if defined(__AMX_BF16__)
int serves_bfloat16(void) { return 0; }
#else
int serves_bfloat16(void) { return LANES > 4; }
#endif

/* sum + x w for LANES columns: one input of float, two of bfloat16, whose weights lie in pairs. */
enum { STEP_float = 1, STEP_bfloat16 = 2 };
static inline vector times_float(vector sum, const float *x, const float *w) { return sum + x[0] * *(const vector *)w; }
static inline vector times_bfloat16(vector sum, const bfloat16 *x, const bfloat16 *w) {
#if defined(__AVX512BF16__)
    int32_t pair;
    memcpy(&pair, x, 4);
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_set1_epi32(pair));
#else
    pairs both = *(const pairs *)w;
    vector first = (vector)(both << 16), second = (vector)(both & (int32_t)0xffff0000);
    return sum + load_bfloat16(x) * first + load_bfloat16(x + 1) * second;
#endif
}
"""

LAYER = r"""
typedef struct {
    int64_t sides, steps, rows, words, width, dim, projection, out_width;  /* projection: 0 for a plain LSTM */
    float cell_bound, projection_bound;                       /* infinite where nothing is clipped */
    const int64_t *sizes;                                     /* (steps,) rows that still run */
    const REAL *weight_ih, *weight_hh, *weight_hr;            /* packed */
    const float *bias;                                        /* (sides, blocks, COLUMNS) */
    const REAL *inputs, *hidden;                              /* (sides, words, width), (sides, rows, out_width) */
    float *cell;                                              /* (sides, rows, dim), changed in place */
    REAL *mixed, *outputs;                                    /* (sides, rows, dim), (sides, words, out_width) */
    float *hoisted;                                           /* (sides, blocks, ROWS, COLUMNS) */
} layer_REAL;

/* weight (sides, out, in) -> packed (sides, blocks, in, COLUMNS), zero past the last output. Of gates, the 4 * LANES
   outputs of a block are the four gates of LANES cells, else outputs that follow each other. */
void pack_REAL(int64_t sides, int64_t out, int64_t in, int is_gates, const REAL *weight, REAL *packed) {
    int64_t cells = is_gates ? out / 4 : out, per_block = is_gates ? LANES : COLUMNS;
    int64_t blocks = (cells + per_block - 1) / per_block;
    #pragma omp parallel for collapse(2) schedule(static)
    for (int64_t side = 0; side < sides; side++)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t column = 0; column < COLUMNS; column++) {
                int64_t gate = is_gates ? column / LANES : 0;
                int64_t cell = block * per_block + (is_gates ? column % LANES : column);
                const REAL *from = weight + (side * out + gate * cells + cell) * in;
                REAL *to = packed + (side * blocks + block) * in * COLUMNS + column * STEP_REAL;
                for (int64_t k = 0; k < in; k++)
                    to[k / STEP_REAL * STEP_REAL * COLUMNS + k % STEP_REAL] = cell < cells ? from[k] : (REAL){0};
            }
}

/* sums (rows, COLUMNS) += x (rows, depth) w (depth, COLUMNS), with all sums in registers. */
__attribute__((always_inline)) static inline void tile_REAL(
    const int rows, int64_t depth, const REAL *x, int64_t x_stride, const REAL *w, float *sums) {
    vector s[TILE][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) s[r][g] = *(vector *)(sums + r * COLUMNS + g * LANES);
    for (int64_t k = 0; k < depth; k += STEP_REAL)
        for (int g = 0; g < 4; g++)
            for (int r = 0; r < rows; r++)
                s[r][g] = times_REAL(s[r][g], x + r * x_stride + k, w + k * COLUMNS + g * LANES * STEP_REAL);
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) *(vector *)(sums + r * COLUMNS + g * LANES) = s[r][g];
}

/* The same for any number of rows. */
static void accumulate_REAL(int64_t rows, int64_t depth, const REAL *x, const REAL *w, float *sums) {
    for (int64_t first = 0; first < depth; first += DEPTH) {
        int64_t part = depth - first < DEPTH ? depth - first : DEPTH, r = 0;
        const REAL *w_part = w + first * COLUMNS;
        /* The weights of the next part, which lie behind these, are on their way meanwhile. */
        const char *next = (const char *)(w_part + part * COLUMNS);
        int64_t ahead = part * COLUMNS * (int64_t)sizeof(REAL), per_row = rows < TILE ? 0 : ahead / rows;
        #define RUN(n) \
            for (int64_t line = r * per_row; line < (r + n) * per_row; line += 64) __builtin_prefetch(next + line, 0, 2); \
            tile_REAL(n, part, x + r * depth + first, depth, w_part, sums + r * COLUMNS), r += n
        while (rows - r >= TILE) { RUN(TILE); }
        if (TILE > 4 && rows - r >= 4) { RUN((TILE > 4 ? 4 : 1)); }
        if (TILE > 2 && rows - r >= 2) { RUN((TILE > 2 ? 2 : 1)); }
        while (rows > r) { RUN(1); }
        #undef RUN
    }
}

/* The cell of `width` places: sums holds the gates before activation, LANES apart. */
static inline void cell_REAL(int64_t width, float bound, const float *restrict sums, float *restrict c,
                             REAL *restrict out) {
    #pragma omp simd
    for (int64_t k = 0; k < width; k++) {
        float in = sigmoid(sums[k]), forget = sigmoid(sums[LANES + k]);
        float candidate = tanh_(sums[2 * LANES + k]), out_gate = sigmoid(sums[3 * LANES + k]);
        c[k] = clip(fmaf(forget, c[k], in * candidate), bound);
        store_REAL(out + k, out_gate * tanh_(c[k]));
    }
}

/* sums (rows, COLUMNS): the bias and the input's part of the gates of one block. */
static void input_part_REAL(const layer_REAL *l, int64_t side, int64_t block, int64_t place, int64_t rows,
                            float *sums) {
    int64_t at = side * ((l->dim + LANES - 1) / LANES) + block;
    for (int64_t r = 0; r < rows; r++) memcpy(sums + r * COLUMNS, l->bias + at * COLUMNS, sizeof(float) * COLUMNS);
    const REAL *x = l->inputs + (side * l->words + place) * l->width;
    accumulate_REAL(rows, l->width, x, l->weight_ih + at * l->width * COLUMNS, sums);
}

/* One step of some texts and the cells of one group of blocks. `place` counts packed words; `hidden` is the state
   before; `hoisted` the input's part of the first text and block, or NULL. */
static void cells_REAL(const layer_REAL *l, int64_t side, int64_t group, int64_t row, int64_t rows, int64_t place,
                       const REAL *hidden, const float *hoisted, REAL *out) {
    int64_t blocks = (l->dim + LANES - 1) / LANES, number = blocks - group < GROUP ? blocks - group : GROUP;
    float sums[GROUP][ROWS * COLUMNS] __attribute__((aligned(64)));
    for (int64_t b = 0; b < number; b++) {
        if (hoisted) memcpy(sums[b], hoisted + b * ROWS * COLUMNS, sizeof(float) * rows * COLUMNS);
        else input_part_REAL(l, side, group + b, place + row, rows, sums[b]);
        const REAL *w = l->weight_hh + (side * blocks + group + b) * l->out_width * COLUMNS;
        accumulate_REAL(rows, l->out_width, hidden + row * l->out_width, w, sums[b]);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < number; b++) {
            int64_t first = (group + b) * LANES, width = l->dim - first < LANES ? l->dim - first : LANES;
            float *c = l->cell + (side * l->rows + row + r) * l->dim + first;
            cell_REAL(width, l->cell_bound, sums[b] + r * COLUMNS, c, out + (row + r) * l->dim + first);
        }
}

/* out (rows, projection): clip(mixed W_hr^T), for one block of outputs. */
static void project_REAL(const layer_REAL *l, int64_t side, int64_t block, int64_t row, int64_t rows, REAL *out) {
    int64_t at = side * ((l->projection + COLUMNS - 1) / COLUMNS) + block, first = block * COLUMNS;
    int64_t width = l->projection - first < COLUMNS ? l->projection - first : COLUMNS;
    float sums[ROWS * COLUMNS] __attribute__((aligned(64)));
    memset(sums, 0, sizeof(float) * rows * COLUMNS);
    const REAL *mixed = l->mixed + (side * l->rows + row) * l->dim;
    accumulate_REAL(rows, l->dim, mixed, l->weight_hr + at * l->dim * COLUMNS, sums);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < width; k++)
            store_REAL(out + (row + r) * l->projection + first + k, clip(sums[r * COLUMNS + k], l->projection_bound));
}

/* All steps. With few texts, the input's part of several steps is one product. */
void run_REAL(const layer_REAL *l) {
    int64_t blocks = (l->dim + LANES - 1) / LANES, out_blocks = (l->projection + COLUMNS - 1) / COLUMNS;
    #pragma omp parallel if (l->sizes[0] * l->dim * l->out_width >= 1 << 15)
    for (int64_t t = 0, before = 0, place = 0; t < l->steps;) {
        int64_t end = t + 1, words = l->sizes[t], start = place;
        while (end < l->steps && words + l->sizes[end] <= ROWS) words += l->sizes[end++];
        const int is_hoisted = end > t + 1;
        if (is_hoisted) {
            #pragma omp for collapse(2) schedule(static)
            for (int64_t side = 0; side < l->sides; side++)
                for (int64_t block = 0; block < blocks; block++) {
                    float *sums = l->hoisted + (side * blocks + block) * ROWS * COLUMNS;
                    input_part_REAL(l, side, block, start, words, sums);
                }
        }
        for (; t < end; t++) {
            #pragma omp for collapse(3) schedule(static)
            for (int64_t side = 0; side < l->sides; side++)
                for (int64_t group = 0; group < blocks; group += GROUP)
                    for (int64_t row = 0; row < l->sizes[t]; row += ROWS) {
                        int64_t rows = l->sizes[t] - row < ROWS ? l->sizes[t] - row : ROWS;
                        const REAL *hidden = t ? l->outputs + (side * l->words + before) * l->out_width
                                               : l->hidden + side * l->rows * l->out_width;
                        const float *hoisted =
                            l->hoisted + ((side * blocks + group) * ROWS + place - start + row) * COLUMNS;
                        REAL *out = l->projection ? l->mixed + side * l->rows * l->dim
                                                  : l->outputs + (side * l->words + place) * l->dim;
                        cells_REAL(l, side, group, row, rows, place, hidden, is_hoisted ? hoisted : NULL, out);
                    }
            #pragma omp for collapse(3) schedule(static)
            for (int64_t side = 0; side < l->sides; side++)
                for (int64_t block = 0; block < out_blocks; block++)
                    for (int64_t row = 0; row < l->sizes[t]; row += ROWS) {
                        int64_t rows = l->sizes[t] - row < ROWS ? l->sizes[t] - row : ROWS;
                        REAL *out = l->outputs + (side * l->words + place) * l->projection;
                        project_REAL(l, side, block, row, rows, out);
                    }
            before = place;
            place += l->sizes[t];
        }
    }
}
"""


class _Layer(ctypes.Structure):
    """`layer_REAL`."""

    _fields_ = [
        *((name, INT64) for name in ("sides", "steps", "rows", "words", "width", "dim", "projection", "out_width")),
        *((name, FLOAT) for name in ("cell_bound", "projection_bound")),
        *((name, POINTER) for name in ("sizes", "weight_ih", "weight_hh", "weight_hr", "bias", "inputs", "hidden")),
        *((name, POINTER) for name in ("cell", "mixed", "outputs", "hoisted")),
    ]


class RecurrenceKernel:
    """The compiled layer for one dtype."""

    def __init__(self, library: ctypes.CDLL, name: str):
        self.lanes, self.rows = library.lanes(), library.rows_of_a_task()
        self._step = 2 if name == "bfloat16" else 1
        self._pack, self._run = getattr(library, f"pack_{name}"), getattr(library, f"run_{name}")
        self._pack.argtypes, self._pack.restype = [INT64, INT64, INT64, INT, POINTER, POINTER], None
        self._run.argtypes, self._run.restype = [ctypes.POINTER(_Layer)], None

    def takes(self, *widths: int) -> bool:
        """Whether it multiplies inputs and states of these widths: numbers of bfloat16 go in pairs."""
        return all(width % self._step == 0 for width in widths)

    def pack(self, weight: Tensor, is_gates: bool) -> Tensor:
        """A weight as the kernel reads it.

        Args:
            weight: (directions, out, in).
            is_gates: whether the outputs are i, f, g, o, to be interleaved.

        Returns:
            (directions, blocks, in, 4 * lanes), zero past the last output; in bfloat16 two inputs side by side.
        """
        weight = weight.contiguous()
        sides, out, width = weight.shape
        blocks = -(-out // (4 * self.lanes))  # of gates, too: a block has four of each of its cells
        packed = weight.new_empty(sides, blocks, width, 4 * self.lanes)
        self._pack(sides, out, width, is_gates, weight.data_ptr(), packed.data_ptr())
        return packed

    def pack_layer(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """W_ih, W_hh and, if there is one, W_hr, packed."""
        return [self.pack(weight, is_gates=index < 2) for index, weight in enumerate(weights)]

    def __call__(
        self, inputs: Tensor, packed: Sequence[Tensor], bias: Tensor, hidden: Tensor, cell: Tensor,
        batch_sizes: list[int], bounds: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """All steps of one layer, without gradients.

        Args:
            inputs: (directions, packed, width).
            packed: from `pack_layer`.
            bias: (directions, 4 * lstm_dim), as it is.
            hidden: (directions, rows, projection_dim or lstm_dim).
            cell: (directions, rows, lstm_dim), float32.
            batch_sizes: texts still running at each step, at least one step.
            bounds: of the cell and of the projected output.

        Returns:
            (directions, packed, projection_dim or lstm_dim) outputs, and each row's last cell.
        """
        (sides, words, width), (_, rows, dim), out_width = inputs.shape, cell.shape, hidden.shape[2]
        weight_ih, weight_hh, weight_hr = packed if len(packed) == 3 else (*packed, None)
        inputs, hidden = inputs.contiguous(), hidden.contiguous()
        cell = cell.clone(memory_format=torch.contiguous_format)
        bias = self.pack_bias(bias)
        outputs = inputs.new_empty(sides, words, out_width)
        mixed = inputs.new_empty(0 if weight_hr is None else sides * rows * dim)
        hoisted = bias.new_empty(bias.numel() * self.rows)
        sizes = torch.tensor(batch_sizes)
        pointers = (sizes, weight_ih, weight_hh, weight_hr, bias, inputs, hidden, cell, mixed, outputs, hoisted)
        projection = 0 if weight_hr is None else out_width
        sizes_of = (sides, len(batch_sizes), rows, words, width, dim, projection, out_width)
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in pointers)
        self._run(_Layer(*sizes_of, *bounds, *addresses))
        return outputs, cell

    def pack_bias(self, bias: Tensor) -> Tensor:
        """(directions, 4 * lstm_dim) -> (directions, blocks, 4 * lanes), float32."""
        gates = bias.float().unflatten(1, (4, -1))  # (directions, 4, lstm_dim)
        gates = F.pad(gates, (0, -gates.shape[2] % self.lanes)).unflatten(2, (-1, self.lanes))
        return gates.transpose(1, 2).flatten(2).contiguous()


@functools.cache
def recurrence_kernel(dtype: torch.dtype) -> RecurrenceKernel | None:
    """The kernel for `dtype`, compiled at the first call; `None` where there is none or it is not the fastest."""
    if dtype not in NAMES:
        return None
    source = ARITHMETIC + SIZES + "".join(LAYER.replace("REAL", name) for name in NAMES.values())
    library = c_library("recurrence", source)
    if library is None or not getattr(library, f"serves_{NAMES[dtype]}")():
        return None
    return RecurrenceKernel(library, NAMES[dtype])
