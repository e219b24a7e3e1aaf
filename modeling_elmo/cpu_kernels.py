"""The LSTM cell in C: one pass over memory where operations of torch take ten.

Where it cannot be compiled, `lstm_ops.py` does the same with operations of torch.
"""

import ctypes
import functools

import torch
from torch import Tensor

from .c_library import c_library

# Numbers are stored as REAL, float or bfloat16, and computed as float. Rows lie one behind the other; the second
# direction begins `*_stride` numbers behind the first.
ARITHMETIC = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct { uint16_t bits; } bfloat16;

static inline float load_float(const float *p) { return *p; }
static inline void store_float(float *p, float x) { *p = x; }
static inline float load_bfloat16(const bfloat16 *p) {
    uint32_t bits = (uint32_t)p->bits << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline void store_bfloat16(bfloat16 *p, float x) {  /* rounds to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits += 0x7fff + ((bits >> 16) & 1);
    p->bits = x != x ? 0x7fc0 : bits >> 16;
}

/* exp(x) - 1 for x <= 0, exact to 2 ulp: exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, and a Taylor sum for exp(r) - 1. */
static inline float expm1_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9841270e-4f;
    p = fmaf(p, r, 1.3888889e-3f);
    p = fmaf(p, r, 8.3333333e-3f);
    p = fmaf(p, r, 4.1666667e-2f);
    p = fmaf(p, r, 1.6666667e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p * r, r, r);
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return fmaf(p, scale, scale - 1.0f);
}

static inline float sigmoid(float x) {
    float e = expm1_negative(-fabsf(x)) + 1.0f;
    return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

static inline float tanh_(float x) {
    float e = expm1_negative(-2.0f * fabsf(x));
    return copysignf(e / (2.0f + e), x);
}

static inline float clip(float x, float bound) { return x > bound ? bound : x < -bound ? -bound : x; }
"""

# One place of the cell. Gates and their gradients are i, f, g, o, `dim` apart. The bound may be infinite.
PLACE = r"""
/* i, f, g, o: before activation. out = sigmoid(o) * tanh(new_c). With `keep`, gates takes the activated ones. */
static inline void forward_place_REAL(float i, float f, float g, float o, float c, float bound, int64_t dim,
                                      float *new_c, REAL *out, const int keep, REAL *gates) {
    float in = sigmoid(i), forget = sigmoid(f), candidate = tanh_(g), out_gate = sigmoid(o);
    float value = clip(fmaf(forget, c, in * candidate), bound);
    *new_c = value;
    store_REAL(out, out_gate * tanh_(value));
    if (keep) {
        store_REAL(gates, in);
        store_REAL(gates + dim, forget);
        store_REAL(gates + 2 * dim, candidate);
        store_REAL(gates + 3 * dim, out_gate);
    }
}

/* gates: activated. d: the gradient of out; d_c: that of new_c, afterwards that of c. d_gates: for the gradient of the
   gates before activation. A cell at its bound passes no gradient on. */
static inline void backward_place_REAL(const REAL *gates, float c, float new_c, float d, float bound, int64_t dim,
                                       float *d_c, REAL *d_gates) {
    float in = load_REAL(gates), forget = load_REAL(gates + dim), candidate = load_REAL(gates + 2 * dim);
    float out_gate = load_REAL(gates + 3 * dim), squashed = tanh_(new_c);
    float d_value = fmaf(d * out_gate, 1.0f - squashed * squashed, *d_c);
    d_value = fabsf(new_c) < bound ? d_value : 0.0f;
    store_REAL(d_gates, d_value * candidate * in * (1.0f - in));
    store_REAL(d_gates + dim, d_value * c * forget * (1.0f - forget));
    store_REAL(d_gates + 2 * dim, d_value * in * (1.0f - candidate * candidate));
    store_REAL(d_gates + 3 * dim, d * squashed * out_gate * (1.0f - out_gate));
    *d_c = d_value * forget;
}
"""

CELL = r"""
/* The cell of both directions or one: `sides` is 2 or 1. gates, recurrent (sides, rows, 4 * dim) and bias (sides,
   4 * dim) together are i, f, g, o; with `keep`, gates holds the activated ones afterwards. cell (sides, rows, dim) ->
   new_cell, which may be the same. */
static inline void forward_row_REAL(int64_t dim, float bound, const int keep, REAL *restrict g, const REAL *restrict r,
                                    const REAL *restrict b, const float *c, float *new_c, REAL *restrict out) {
    #pragma omp simd
    for (int64_t k = 0; k < dim; k++) {
        #define GATE(at) load_REAL(g + at * dim + k) + load_REAL(r + at * dim + k) + load_REAL(b + at * dim + k)
        forward_place_REAL(GATE(0), GATE(1), GATE(2), GATE(3), c[k], bound, dim, new_c + k, out + k, keep, g + k);
        #undef GATE
    }
}

void cell_forward_REAL(int64_t sides, int64_t rows, int64_t dim, float bound, int keep,
                       REAL *gates, int64_t gates_stride, const REAL *recurrent, int64_t recurrent_stride,
                       const REAL *bias, int64_t bias_stride, const float *cell, int64_t cell_stride,
                       float *new_cell, int64_t new_cell_stride, REAL *output, int64_t output_stride) {
    #pragma omp parallel for schedule(static) if (sides * rows * dim >= 4096)
    for (int64_t row = 0; row < sides * rows; row++) {
        int64_t side = row / rows, place = row % rows;
        REAL *g = gates + side * gates_stride + place * 4 * dim;
        const REAL *r = recurrent + side * recurrent_stride + place * 4 * dim;
        const float *c = cell + side * cell_stride + place * dim;
        float *new_c = new_cell + side * new_cell_stride + place * dim;
        REAL *out = output + side * output_stride + place * dim;
        const REAL *b = bias + side * bias_stride;
        if (keep) forward_row_REAL(dim, bound, 1, g, r, b, c, new_c, out);
        else forward_row_REAL(dim, bound, 0, g, r, b, c, new_c, out);
    }
}

/* gates: activated. d_cell (sides, rows, dim): the gradient of new_cell; afterwards that of cell. d_output: that of
   output. d_gates: for the gradient of the gates before activation. */
void cell_backward_REAL(int64_t sides, int64_t rows, int64_t dim, float bound,
                        const REAL *gates, int64_t gates_stride, const float *cell, int64_t cell_stride,
                        const float *new_cell, int64_t new_cell_stride,
                        const REAL *d_output, int64_t d_output_stride, float *d_cell, int64_t d_cell_stride,
                        REAL *d_gates, int64_t d_gates_stride) {
    #pragma omp parallel for schedule(static) if (sides * rows * dim >= 4096)
    for (int64_t row = 0; row < sides * rows; row++) {
        int64_t side = row / rows, place = row % rows;
        const REAL *restrict g = gates + side * gates_stride + place * 4 * dim;
        const float *restrict c = cell + side * cell_stride + place * dim;
        const float *restrict new_c = new_cell + side * new_cell_stride + place * dim;
        const REAL *restrict d_out = d_output + side * d_output_stride + place * dim;
        REAL *restrict d_g = d_gates + side * d_gates_stride + place * 4 * dim;
        float *restrict d_c = d_cell + side * d_cell_stride + place * dim;
        #pragma omp simd
        for (int64_t k = 0; k < dim; k++)
            backward_place_REAL(g + k, c[k], new_c[k], load_REAL(d_out + k), bound, dim, d_c + k, d_g + k);
    }
}
"""

NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
INT64, FLOAT, INT, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_int, ctypes.c_void_p


def for_each_dtype(source: str) -> str:
    """The C in which REAL stands for a type and names carry it, once for each type."""
    return "".join(source.replace("REAL", name) for name in NAMES.values())


class CellKernels:
    """The compiled functions for one dtype. Tensors are (directions, rows, width), a direction's rows without gaps."""

    def __init__(self, library: ctypes.CDLL, name: str):
        self._forward = getattr(library, f"cell_forward_{name}")
        self._forward.argtypes = [INT64, INT64, INT64, FLOAT, INT, *([POINTER, INT64] * 6)]
        self._backward = getattr(library, f"cell_backward_{name}")
        self._backward.argtypes = [INT64, INT64, INT64, FLOAT, *([POINTER, INT64] * 6)]
        self._forward.restype = self._backward.restype = None

    def forward(
        self, gates: Tensor, recurrent: Tensor, bias: Tensor, cell: Tensor, new_cell: Tensor, output: Tensor,
        bound: float, keep: bool,
    ):  # fmt: skip
        """As `cell_forward` in lstm_ops.py."""
        tensors = (gates, recurrent, bias, cell, new_cell, output)
        self._forward(*output.shape, bound, keep, *_places(tensors))

    def backward(
        self, gates: Tensor, cell: Tensor, new_cell: Tensor, d_output: Tensor, d_cell: Tensor, d_gates: Tensor,
        bound: float,
    ):  # fmt: skip
        """As `cell_backward` in lstm_ops.py."""
        tensors = (gates, cell, new_cell, d_output, d_cell, d_gates)
        self._backward(*d_output.shape, bound, *_places(tensors))


def _places(tensors: tuple[Tensor, ...]) -> list[int]:
    """The address of each tensor, and how far its second direction lies behind the first."""
    return [number for tensor in tensors for number in (tensor.data_ptr(), tensor.stride(0))]


def cell_kernels(dtype: torch.dtype) -> CellKernels | None:
    """The kernels for `dtype`, compiled at the first call; `None` if there are none or no compiler."""
    return _kernels(NAMES[dtype]) if dtype in NAMES else None


@functools.cache
def _kernels(name: str) -> CellKernels | None:
    library = c_library("cell", ARITHMETIC + for_each_dtype(PLACE + CELL))
    return None if library is None else CellKernels(library, name)
