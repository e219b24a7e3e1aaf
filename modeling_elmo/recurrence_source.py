"""The C of one LSTM layer, products and all, and of its gradient.

A library's product writes the gates to memory and the cell reads them back, step by step and each step by several
calls from Python. Here a thread multiplies for some cells, in registers, and goes on with their gates while these are
still in its cache. One call runs all steps of both directions.

The weights are packed first, so that what one step of the inner loop multiplies lies side by side: the four gates of
as many cells as a register holds. The product is the blocked one of Goto and van de Geijn (2008, "Anatomy of
high-performance matrix multiplication").

REAL stands for the type of numbers in memory, float or bfloat16; sums are floats.
"""

SIZES = r"""
/* Rows whose sums are in registers, in four of them each. */
#define TILE (LANES == 16 ? 6 : LANES == 8 ? 3 : 2)
#define COLUMNS (4 * LANES)     /* of a block: four gates of LANES cells, or as many outputs */
#define GROUP (64 / LANES)      /* blocks of a task: 64 cells, whole lines of the cache */
#define ROWS 72                 /* texts of a task */
enum { DEPTH_float = 64, DEPTH_bfloat16 = 128 };  /* inputs whose weights stay in the first cache meanwhile */
enum { NEXT_TO_float = 2, NEXT_TO_bfloat16 = 3 };  /* where those behind them go: 3 is the first cache, 2 the second */

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

/* Keeps weights in a register while they are multiplied: else the compiler reads them from memory for each row anew. */
#if defined(__AVX512F__) || (defined(__x86_64__) && LANES < 16)
#define IN_REGISTER(weights) __asm__("" : "+v"(weights))
#else
#define IN_REGISTER(weights)
#endif

static inline float widened(bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

/* sum + x w for LANES columns: one input of float, two of bfloat16, whose weights lie in pairs. */
enum { STEP_float = 1, STEP_bfloat16 = 2 };
static inline vector first_of(vector w) { return (vector)((uints)w << 16); }
static inline vector second_of(vector w) { return (vector)((uints)w & 0xffff0000); }
static inline vector times_float(vector sum, const float *x, vector w) { return sum + x[0] * w; }
static inline vector times_bfloat16(vector sum, const bfloat16 *x, vector w) {
#if defined(__AVX512BF16__)
    int32_t pair;
    memcpy(&pair, x, 4);
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
#else
    return sum + widened(x[0]) * first_of(w) + widened(x[1]) * second_of(w);
#endif
}

/* From how many rows on numbers of bfloat16 become floats first, to be multiplied as such in the same order: where
   there are no products of bfloat16. Else never.
   And from how many on it pays to ask for the weights that come next: with fewer the processor does it by itself
   (measured on Zen 4, with AVX2 and with AVX-512 BF16). */
enum { NEVER = 1 << 30, WIDENED_float = NEVER, FETCHED_float = TILE };
#if defined(__AVX512BF16__)
enum { WIDENED_bfloat16 = NEVER, FETCHED_bfloat16 = 48 };
#else
enum { WIDENED_bfloat16 = 8, FETCHED_bfloat16 = TILE };
#endif
static void widen_weights(int64_t depth, const void *w, float *floats) {
    for (int64_t k = 0; k < depth * COLUMNS; k += 2 * COLUMNS)
        for (int64_t column = 0; column < COLUMNS; column += LANES) {
            vector both = *(const vector *)((const bfloat16 *)w + k + 2 * column);
            *(vector *)(floats + k + column) = first_of(both);
            *(vector *)(floats + k + COLUMNS + column) = second_of(both);
        }
}
static void widen_row(int64_t depth, const void *x, float *floats) {
    for (int64_t k = 0; k < depth; k++) floats[k] = widened(((const bfloat16 *)x)[k]);
}
"""

LAYER = r"""
typedef struct {
    int64_t threads;
    int64_t sides, steps, rows, words, width, dim, projection, out_width;  /* projection: 0 for a plain LSTM */
    float cell_bound, projection_bound;             /* infinite where nothing is clipped */
    const int64_t *sizes;                           /* (steps,) rows that still run */
    const REAL *weight_ih, *weight_hh, *weight_hr;  /* packed */
    const float *bias;                              /* (sides, blocks, COLUMNS) */
    const REAL *inputs, *hidden;                    /* (sides, words, width), (sides, rows, out_width) */
    float *hoisted;                                 /* (sides, blocks, ROWS, COLUMNS) */
    float *cell;                                    /* (sides, rows, dim), changed in place if `cells` is NULL */
    REAL *mixed, *outputs;                          /* sigmoid(o) * tanh(c), (sides, rows or words, dim); (sides, words,
                                                       out_width) */
    float *cells;                                   /* kept for the gradient: (sides, words, dim) */
    REAL *gates;                                    /* activated, (sides, words, 4 * dim) */
} layer_REAL;

/* weight (sides, out, in) -> packed (sides, blocks, in, COLUMNS), zero past the last output. Of gates, the 4 * LANES
   outputs of a block are the four gates of LANES cells, else outputs that follow each other. */
void pack_REAL(int64_t threads, int64_t sides, int64_t out, int64_t in, const int64_t *strides, int is_gates,
               const REAL *weight, REAL *packed) {
    int64_t cells = is_gates ? out / 4 : out, per_block = is_gates ? LANES : COLUMNS;
    int64_t blocks = (cells + per_block - 1) / per_block;
    #pragma omp parallel for collapse(2) schedule(static) num_threads((int)threads)
    for (int64_t side = 0; side < sides; side++)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t column = 0; column < COLUMNS; column++) {
                int64_t gate = is_gates ? column / LANES : 0;
                int64_t cell = block * per_block + (is_gates ? column % LANES : column);
                const REAL *from = weight + side * strides[0] + (gate * cells + cell) * strides[1];
                REAL *to = packed + (side * blocks + block) * in * COLUMNS + column * STEP_REAL;
                for (int64_t k = 0; k < in; k++)
                    to[k / STEP_REAL * STEP_REAL * COLUMNS + k % STEP_REAL] =
                        cell < cells ? from[k * strides[2]] : (REAL){0};
            }
}

/* sums (rows, COLUMNS) += x (rows, depth) w (depth, COLUMNS), with all sums in registers. */
__attribute__((always_inline)) static inline void tile_REAL(
    const int rows, int64_t depth, const REAL *x, int64_t x_stride, const REAL *w, float *sums) {
    vector s[TILE][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) s[r][g] = *(vector *)(sums + r * COLUMNS + g * LANES);
    for (int64_t k = 0; k < depth; k += STEP_REAL) {
        const REAL *w_k = w + k * COLUMNS;
#if defined(__AVX512BF16__)  /* or the compiler moves sums about */
        vector weights[4];
        for (int g = 0; g < 4; g++) weights[g] = *(const vector *)(w_k + g * LANES * STEP_REAL);
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < 4; g++) s[r][g] = times_REAL(s[r][g], x + r * x_stride + k, weights[g]);
#else
        for (int g = 0; g < 4; g++) {
            vector weights = *(const vector *)(w_k + g * LANES * STEP_REAL);
            if (rows > 1 && STEP_REAL == 1) IN_REGISTER(weights);
            for (int r = 0; r < rows; r++) s[r][g] = times_REAL(s[r][g], x + r * x_stride + k, weights);
        }
#endif
    }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) *(vector *)(sums + r * COLUMNS + g * LANES) = s[r][g];
}

/* The same for any number of rows. */
static void accumulate_REAL(int64_t rows, int64_t depth, const REAL *x, const REAL *w, float *sums) {
    const int is_widened = rows >= WIDENED_REAL;
    float w_floats[DEPTH_REAL * COLUMNS] __attribute__((aligned(64)));
    float x_floats[TILE * DEPTH_REAL] __attribute__((aligned(64)));
    for (int64_t first = 0; first < depth; first += DEPTH_REAL) {
        int64_t part = depth - first < DEPTH_REAL ? depth - first : DEPTH_REAL, r = 0;
        const REAL *w_part = w + first * COLUMNS;
        if (is_widened) widen_weights(part, w_part, w_floats);
        /* The weights of the next part, which lie behind these, are on their way meanwhile. */
        const char *next = (const char *)(w_part + part * COLUMNS);
        int64_t ahead = part * COLUMNS * (int64_t)sizeof(REAL), per_row = rows < FETCHED_REAL ? 0 : ahead / rows;
        #define RUN(n) do { \
            for (int64_t at = r * per_row; at < (r + n) * per_row; at += 64) \
                __builtin_prefetch(next + at, 0, NEXT_TO_REAL); \
            const REAL *x_part = x + r * depth + first; \
            if (is_widened) { \
                for (int row = 0; row < n; row++) widen_row(part, x_part + row * depth, x_floats + row * DEPTH_REAL); \
                tile_float(n, part, x_floats, DEPTH_REAL, w_floats, sums + r * COLUMNS); \
            } else tile_REAL(n, part, x_part, depth, w_part, sums + r * COLUMNS); \
            r += n; \
        } while (0)
        while (rows - r >= TILE) RUN(TILE);
        if (TILE > 4 && rows - r >= 4) RUN((TILE > 4 ? 4 : 1));
        if (TILE > 2 && rows - r >= 2) RUN((TILE > 2 ? 2 : 1));
        while (rows > r) RUN(1);
        #undef RUN
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

/* Where a step stands: its number, and how many packed words lie before it, before the one before it, and before those
   whose input's part was computed together with this one's (-1: it is not there yet). */
typedef struct { int64_t t, place, before, hoisted_from; } step_REAL;

/* One step of some texts and the cells of one group of blocks. */
static void cells_REAL(const layer_REAL *l, step_REAL s, int64_t side, int64_t group, int64_t row, int64_t rows) {
    int64_t blocks = (l->dim + LANES - 1) / LANES, number = blocks - group < GROUP ? blocks - group : GROUP;
    int64_t here = side * l->words + s.place + row, earlier = side * l->words + s.before + row;
    int64_t state = side * l->rows + row;
    const REAL *hidden = s.t ? l->outputs + earlier * l->out_width : l->hidden + state * l->out_width;
    const float *c = s.t && l->cells ? l->cells + earlier * l->dim : l->cell + state * l->dim;
    float *new_c = l->cells ? l->cells + here * l->dim : l->cell + state * l->dim;
    REAL *out = l->projection ? l->mixed + (l->cells ? here : state) * l->dim : l->outputs + here * l->dim;
    float sums[GROUP][ROWS * COLUMNS] __attribute__((aligned(64)));
    for (int64_t b = 0; b < number; b++) {
        int64_t at = side * blocks + group + b;
        if (s.hoisted_from < 0) input_part_REAL(l, side, group + b, s.place + row, rows, sums[b]);
        else memcpy(sums[b], l->hoisted + (at * ROWS + s.place - s.hoisted_from + row) * COLUMNS,
                    sizeof(float) * rows * COLUMNS);
        accumulate_REAL(rows, l->out_width, hidden, l->weight_hh + at * l->out_width * COLUMNS, sums[b]);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < number; b++) {
            const int64_t first = (group + b) * LANES, at = r * l->dim + first;
            const vector *gates = (const vector *)(sums[b] + r * COLUMNS);
            REAL *kept = l->cells ? l->gates + (here + r) * 4 * l->dim + first : NULL;
            forward_places_REAL(l->dim - first, gates[0], gates[1], gates[2], gates[3], c + at, l->cell_bound, l->dim,
                                new_c + at, out + at, kept);
        }
}

/* outputs (rows, projection) = clip(mixed W_hr^T), for one block of outputs. */
static void project_REAL(const layer_REAL *l, step_REAL s, int64_t side, int64_t block, int64_t row, int64_t rows) {
    int64_t at = side * ((l->projection + COLUMNS - 1) / COLUMNS) + block, first = block * COLUMNS;
    int64_t width = l->projection - first < COLUMNS ? l->projection - first : COLUMNS;
    int64_t here = side * l->words + s.place + row;
    float sums[ROWS * COLUMNS] __attribute__((aligned(64)));
    memset(sums, 0, sizeof(float) * rows * COLUMNS);
    const REAL *mixed = l->mixed + (l->cells ? here : side * l->rows + row) * l->dim;
    accumulate_REAL(rows, l->dim, mixed, l->weight_hr + at * l->dim * COLUMNS, sums);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < width; k += LANES)
            store_REAL(l->outputs + (here + r) * l->projection + first + k, width - k,
                       clip(*(vector *)(sums + r * COLUMNS + k), l->projection_bound));
}

/* A call for all sides, by as many threads as are worth it. With one for each side, each runs through all steps alone:
   who waits for another at each step waits long where others want the processor, too. */
#define BY_SIDE(l, run) do { \
    int threads = l->sizes[0] * l->dim * l->out_width < 1 << 15 ? 1 : (int)l->threads; \
    if (threads == l->sides) { \
        _Pragma("omp parallel for schedule(static) num_threads(threads)") \
        for (int64_t side = 0; side < l->sides; side++) run(l, side, side + 1, 1); \
    } else run(l, 0, l->sides, threads); \
} while (0)

/* The tasks of one step and the sides from `first` to `end`. */
#define EACH_TASK(blocks, per_task, number) \
    for (int64_t side = first; side < end; side++) \
        for (int64_t block = 0; block < blocks; block += per_task) \
            for (int64_t row = 0; row < number; row += ROWS)
#define ROWS_OF_TASK(number) (number - row < ROWS ? number - row : ROWS)

/* All steps. With few texts, the input's part of several steps is one product. */
static void steps_REAL(const layer_REAL *l, int64_t first, int64_t end, int threads) {
    int64_t blocks = (l->dim + LANES - 1) / LANES, out_blocks = (l->projection + COLUMNS - 1) / COLUMNS;
    #pragma omp parallel num_threads(threads)
    for (step_REAL s = {0, 0, 0, -1}; s.t < l->steps;) {
        int64_t next = s.t + 1, words = l->sizes[s.t];
        while (next < l->steps && words + l->sizes[next] <= ROWS) words += l->sizes[next++];
        s.hoisted_from = next > s.t + 1 ? s.place : -1;
        if (s.hoisted_from >= 0) {
            #pragma omp for collapse(3) schedule(static)
            EACH_TASK(blocks, 1, words)
                input_part_REAL(l, side, block, s.place, words, l->hoisted + (side * blocks + block) * ROWS * COLUMNS);
        }
        for (; s.t < next; s.t++) {
            int64_t size = l->sizes[s.t];
            #pragma omp for collapse(3) schedule(static)
            EACH_TASK(blocks, GROUP, size) cells_REAL(l, s, side, block, row, ROWS_OF_TASK(size));
            #pragma omp for collapse(3) schedule(static)
            EACH_TASK(out_blocks, 1, size) project_REAL(l, s, side, block, row, ROWS_OF_TASK(size));
            s.before = s.place;
            s.place += size;
        }
    }
}

void forward_REAL(const layer_REAL *l) { BY_SIDE(l, steps_REAL); }
"""

GRADIENT = r"""
typedef struct {
    int64_t threads, sides, steps, rows, words, dim, projection, out_width;
    float cell_bound, projection_bound;
    const int64_t *sizes;
    const REAL *weight_hh, *weight_hr;  /* packed with inputs and outputs exchanged */
    const REAL *gates, *outputs;        /* as the layer left them */
    const float *cell, *cells;          /* (sides, rows, dim) before the first step; (sides, words, dim) */
    float *d_cell;                      /* (sides, rows, dim): the gradient of the last cells, then of `cell` */
    REAL *d_outputs;                    /* (sides, words, out_width), zero where the output is at its bound */
    REAL *d_gates, *d_hidden;           /* before activation, (sides, words, 4 * dim); (sides, rows, out_width) */
} gradient_REAL;

/* One step of some texts and one block of cells, from d_outputs to d_gates. */
static void d_cells_REAL(const gradient_REAL *l, step_REAL s, int64_t side, int64_t block, int64_t row, int64_t rows) {
    int64_t at = side * ((l->dim + COLUMNS - 1) / COLUMNS) + block, first = block * COLUMNS;
    int64_t width = l->dim - first < COLUMNS ? l->dim - first : COLUMNS;
    int64_t here = side * l->words + s.place + row, state = side * l->rows + row;
    const float *c = s.t ? l->cells + (side * l->words + s.before + row) * l->dim : l->cell + state * l->dim;
    const REAL *d_outputs = l->d_outputs + here * l->out_width;
    float sums[ROWS * COLUMNS] __attribute__((aligned(64)));
    if (l->projection) {
        memset(sums, 0, sizeof(float) * rows * COLUMNS);
        accumulate_REAL(rows, l->projection, d_outputs, l->weight_hr + at * l->projection * COLUMNS, sums);
    } else
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < width; k += LANES)
                *(vector *)(sums + r * COLUMNS + k) = load_REAL(d_outputs + r * l->dim + first + k, width - k);
    for (int64_t r = 0; r < rows; r++) {
        const REAL *gates = l->gates + (here + r) * 4 * l->dim + first;
        const float *before = c + r * l->dim + first, *after = l->cells + (here + r) * l->dim + first;
        float *d_c = l->d_cell + (state + r) * l->dim + first;
        REAL *d_gates = l->d_gates + (here + r) * 4 * l->dim + first;
        for (int64_t k = 0; k < width; k += LANES)
            backward_places_REAL(width - k, gates + k, before + k, after + k, *(vector *)(sums + r * COLUMNS + k),
                                 l->cell_bound, l->dim, d_c + k, d_gates + k);
    }
}

/* From d_gates to d_outputs of the step before, or d_hidden, for one block of outputs. */
static void d_hidden_REAL(const gradient_REAL *l, step_REAL s, int64_t side, int64_t block, int64_t row, int64_t rows) {
    int64_t at = side * ((l->out_width + COLUMNS - 1) / COLUMNS) + block, first = block * COLUMNS;
    int64_t width = l->out_width - first < COLUMNS ? l->out_width - first : COLUMNS;
    const REAL *d_gates = l->d_gates + (side * l->words + s.place + row) * 4 * l->dim;
    float sums[ROWS * COLUMNS] __attribute__((aligned(64)));
    memset(sums, 0, sizeof(float) * rows * COLUMNS);
    accumulate_REAL(rows, 4 * l->dim, d_gates, l->weight_hh + at * 4 * l->dim * COLUMNS, sums);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < width; k += LANES) {
            int64_t n = width - k, to = (side * l->words + s.before + row + r) * l->out_width + first + k;
            vector d = *(vector *)(sums + r * COLUMNS + k);
            if (s.t) {
                d = either(is_within(load_REAL(l->outputs + to, n), l->projection_bound), d, everywhere(0));
                store_REAL(l->d_outputs + to, n, load_REAL(l->d_outputs + to, n) + d);
            } else store_REAL(l->d_hidden + (side * l->rows + row + r) * l->out_width + first + k, n, d);
        }
}

/* All steps, from the last one on. */
static void steps_back_REAL(const gradient_REAL *l, int64_t first, int64_t end, int threads) {
    int64_t blocks = (l->dim + COLUMNS - 1) / COLUMNS, out_blocks = (l->out_width + COLUMNS - 1) / COLUMNS;
    #pragma omp parallel num_threads(threads)
    for (step_REAL s = {l->steps - 1, l->words, 0, -1}; s.t >= 0; s.t--) {
        int64_t size = l->sizes[s.t];
        s.place -= size;
        s.before = s.t ? s.place - l->sizes[s.t - 1] : 0;
        #pragma omp for collapse(3) schedule(static)
        EACH_TASK(blocks, 1, size) d_cells_REAL(l, s, side, block, row, ROWS_OF_TASK(size));
        #pragma omp for collapse(3) schedule(static)
        EACH_TASK(out_blocks, 1, size) d_hidden_REAL(l, s, side, block, row, ROWS_OF_TASK(size));
    }
}

void backward_REAL(const gradient_REAL *l) { BY_SIDE(l, steps_back_REAL); }
"""
