"""The LSTM cell in C: one pass over memory where operations of torch take ten.

Where it cannot be compiled, `lstm_ops.py` does the same with operations of torch.
"""

import ctypes
import functools

import torch
from torch import Tensor

from .c_library import c_library

# Numbers are stored as REAL, float or bfloat16, and computed as float, as many at a time as a register holds. Rows lie
# one behind the other; the second direction begins `*_stride` numbers behind the first.
ARITHMETIC = r"""
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#define LANES 16                /* numbers in a register */
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef struct { uint16_t bits; } bfloat16;
typedef float vector __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint32_t uints __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

static inline vector everywhere(float x) { return x - (vector){0}; }

/* a where `mask` has all bits, b where it has none. */
static inline vector either(ints mask, vector a, vector b) { return (vector)((mask & (ints)a) | (~mask & (ints)b)); }

/* a < b ? a : b and a > b ? a : b: what is not a number stays, if it is b. */
#if defined(__AVX512F__)
static inline vector least(vector a, vector b) { return (vector)_mm512_min_ps((__m512)a, (__m512)b); }
static inline vector greatest(vector a, vector b) { return (vector)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__) && LANES == 8
static inline vector least(vector a, vector b) { return (vector)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vector greatest(vector a, vector b) { return (vector)_mm256_max_ps((__m256)a, (__m256)b); }
#else
static inline vector least(vector a, vector b) { return either(a < b, a, b); }
static inline vector greatest(vector a, vector b) { return either(a > b, a, b); }
#endif
static inline vector clip(vector x, float bound) { return greatest(everywhere(-bound), least(everywhere(bound), x)); }
static inline ints is_within(vector x, float bound) { return (x < everywhere(bound)) & (x > everywhere(-bound)); }

#if defined(__clang__) || __GNUC__ >= 9
static inline uints widen(halves x) { return __builtin_convertvector(x, uints); }
static inline halves narrow(uints x) { return __builtin_convertvector(x, halves); }
#else
static inline uints widen(halves x) { uints y; for (int k = 0; k < LANES; k++) y[k] = x[k]; return y; }
static inline halves narrow(uints x) { halves y; for (int k = 0; k < LANES; k++) y[k] = x[k]; return y; }
#endif

/* The first n numbers of a vector, at most LANES; those behind them are read as zero and not written. */
static inline vector load_float(const float *p, int64_t n) {
    if (n >= LANES) return *(const vector *)p;
    vector x = {0};
    memcpy(&x, p, n * sizeof(float));
    return x;
}
static inline void store_float(float *p, int64_t n, vector x) {
    if (n >= LANES) *(vector *)p = x;
    else memcpy(p, &x, n * sizeof(float));
}
static inline vector load_bfloat16(const bfloat16 *p, int64_t n) {
    if (n >= LANES) return (vector)(widen(*(const halves *)p) << 16);
    halves x = {0};
    memcpy(&x, p, n * sizeof(bfloat16));
    return (vector)(widen(x) << 16);
}
static inline void store_bfloat16(bfloat16 *p, int64_t n, vector x) {  /* rounds to nearest, ties to even */
    uints bits = (uints)x;
    bits += 0x7fff + ((bits >> 16) & 1);
    halves rounded = narrow((uints)either(x == x, (vector)(bits >> 16), (vector)(0x7fc0 | (uints){0})));
    if (n >= LANES) *(halves *)p = rounded;
    else memcpy(p, &rounded, n * sizeof(bfloat16));
}

/* exp(x) - one, for a `one` of 0 or 1: exp(x) = 2^n exp(r) with |r| <= ln(2) / 2. exp(r) - 1 is r + r^2 q(r) with the q
   of degree 4 whose largest relative error is least, 1.3e-8. A sum of that size is rounded to whole numbers, so its
   last bits are n + 127, the exponent of 2^n as floats have it. Beyond 87 only what is next to nothing would change. */
static inline vector exp_less(vector x, float one) {
    x = clip(x, 87.0f);
    vector t = x * 1.44269504f + 12583039.0f;   /* 1.5 * 2^23 + 127 */
    vector n = t - 12583039.0f;
    vector r = n * -0.693359375f + x;
    r = n * 2.12194440e-4f + r;
    vector q = r * 1.38825227e-3f + 8.36651408e-3f;
    q = q * r + 4.16671997e-2f;
    q = q * r + 1.66665437e-1f;
    q = q * r + 4.99999982e-1f;
    q = q * r * r + r;
    vector power = (vector)((uints)t << 23);    /* 2^n */
    return q * power + (power - one);
}

/* Both to 3 ulp. */
static inline vector sigmoid(vector x) { return 1.0f / (1.0f + exp_less(-x, 0.0f)); }

static inline vector tanh_(vector x) {
    vector e = exp_less(x + x, 1.0f);
    return e / (e + 2.0f);
}
"""

# LANES places of the cell, or the first n of them. Gates and their gradients are i, f, g, o, `dim` apart. The bound may
# be infinite.
PLACE = r"""
/* i, f, g, o: before activation. out = sigmoid(o) * tanh(new_c). gates takes the activated ones, unless it is NULL. */
static inline void forward_places_REAL(int64_t n, vector i, vector f, vector g, vector o, const float *c, float bound,
                                       int64_t dim, float *new_c, REAL *out, REAL *gates) {
    vector in = sigmoid(i), forget = sigmoid(f), candidate = tanh_(g), out_gate = sigmoid(o);
    vector value = clip(forget * load_float(c, n) + in * candidate, bound);
    store_float(new_c, n, value);
    store_REAL(out, n, out_gate * tanh_(value));
    if (gates) {
        store_REAL(gates, n, in);
        store_REAL(gates + dim, n, forget);
        store_REAL(gates + 2 * dim, n, candidate);
        store_REAL(gates + 3 * dim, n, out_gate);
    }
}

/* gates: activated. d: the gradient of out; d_c: that of new_c, afterwards that of c. d_gates: for the gradient of the
   gates before activation. A cell at its bound passes no gradient on. */
static inline void backward_places_REAL(int64_t n, const REAL *gates, const float *c, const float *new_c, vector d,
                                        float bound, int64_t dim, float *d_c, REAL *d_gates) {
    vector in = load_REAL(gates, n), forget = load_REAL(gates + dim, n), candidate = load_REAL(gates + 2 * dim, n);
    vector out_gate = load_REAL(gates + 3 * dim, n), value = load_float(new_c, n), squashed = tanh_(value);
    vector d_value = d * out_gate * (1.0f - squashed * squashed) + load_float(d_c, n);
    d_value = either(is_within(value, bound), d_value, everywhere(0));
    store_REAL(d_gates, n, d_value * candidate * in * (1.0f - in));
    store_REAL(d_gates + dim, n, d_value * load_float(c, n) * forget * (1.0f - forget));
    store_REAL(d_gates + 2 * dim, n, d_value * in * (1.0f - candidate * candidate));
    store_REAL(d_gates + 3 * dim, n, d * squashed * out_gate * (1.0f - out_gate));
    store_float(d_c, n, d_value * forget);
}
"""

CELL = r"""
/* The cell of both directions or one: `sides` is 2 or 1. gates, recurrent (sides, rows, 4 * dim) and bias (sides,
   4 * dim) together are i, f, g, o; with `keep`, gates holds the activated ones afterwards. cell (sides, rows, dim) ->
   new_cell, which may be the same. */
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
        for (int64_t k = 0; k < dim; k += LANES) {
            int64_t n = dim - k;
            vector sums[4];
            for (int gate = 0; gate < 4; gate++) {
                int64_t at = gate * dim + k;
                sums[gate] = load_REAL(g + at, n) + load_REAL(r + at, n) + load_REAL(b + at, n);
            }
            forward_places_REAL(n, sums[0], sums[1], sums[2], sums[3], c + k, bound, dim, new_c + k, out + k,
                                keep ? g + k : NULL);
        }
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
        const REAL *g = gates + side * gates_stride + place * 4 * dim;
        const float *c = cell + side * cell_stride + place * dim;
        const float *new_c = new_cell + side * new_cell_stride + place * dim;
        const REAL *d_out = d_output + side * d_output_stride + place * dim;
        REAL *d_g = d_gates + side * d_gates_stride + place * 4 * dim;
        float *d_c = d_cell + side * d_cell_stride + place * dim;
        for (int64_t k = 0; k < dim; k += LANES)
            backward_places_REAL(dim - k, g + k, c + k, new_c + k, load_REAL(d_out + k, dim - k), bound, dim, d_c + k,
                                 d_g + k);
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


@functools.cache
def cell_kernels(dtype: torch.dtype) -> CellKernels | None:
    """The kernels for `dtype`, compiled at the first call; `None` if there are none or no compiler."""
    if dtype not in NAMES:
        return None
    library = c_library("cell", ARITHMETIC + for_each_dtype(PLACE + CELL))
    return None if library is None else CellKernels(library, NAMES[dtype])
