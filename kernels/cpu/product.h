/* Matrix products with weights that were packed once.
 *
 * An element of y = x @ w is a sum of K products. It is cut into blocks of LONGEST_SUM products; the last one may be
 * shorter. Each block is one chain of fused multiply-adds in the order of k. The blocks of a group are added pairwise:
 * two neighbours, then two of these sums, and so on. The sums of the groups are added in their order. Tiles, threads
 * and registers only split the other two dimensions, so they cannot change a bit. Short chains also have small rounding
 * errors.
 *
 * Packed weights lie in the order of their use:
 *
 *     group of blocks of k  >  panel of NR columns  >  row k  >  NR numbers
 *
 * A group has at most BLOCKS_AT_ONCE blocks. Its part of ROWS_AT_ONCE rows of x (library.c) stays in the L2 cache while
 * all panels pass by. Groups have equal sizes, so the weights that are fetched ahead are exactly those that come next.
 */
#ifndef MB_PRODUCT_H
#define MB_PRODUCT_H

#include "activations.h"
#include "kernels.h"
#include "vec.h"

enum { LONGEST_SUM = 64, BLOCKS_AT_ONCE = 16 };
/* Partial sums of a tile, of 1, 2, 4, ... blocks. They are on the stack, so there are not more than texts need. */
enum { LEVELS = 12 };
_Static_assert(MOST_KEYS <= LONGEST_SUM << LEVELS, "the sum over the keys of a text has a level for each size");

INLINE size_t blocks_of(size_t inputs) { return (inputs + LONGEST_SUM - 1) / LONGEST_SUM; }
INLINE size_t groups_of(size_t inputs) { return (blocks_of(inputs) + BLOCKS_AT_ONCE - 1) / BLOCKS_AT_ONCE; }
INLINE size_t group_start(size_t inputs, size_t group) {
    return smaller(blocks_of(inputs) * group / groups_of(inputs) * LONGEST_SUM, inputs);
}

/* Put columns of a matrix into their places in a packed matrix of `outputs` columns, from column first_column on, each
 * number multiplied by `scale`. Columns after the last one are 0. */
static void pack(const float *w, ptrdiff_t input_stride, ptrdiff_t output_stride, size_t inputs, size_t columns,
                 float scale, size_t first_column, size_t outputs, float *packed) {
    const size_t end = first_column + columns, panels = (outputs + NR - 1) / NR;
    const size_t filled = end == outputs ? panels * NR : end; /* with the columns of zeros */
    for (size_t group = 0; group < groups_of(inputs); group++) {
        const size_t start = group_start(inputs, group), count = group_start(inputs, group + 1) - start;
        float *of_group = packed + start * panels * NR;
        for (size_t n = first_column; n < filled; n++) {
            float *to = of_group + n / NR * NR * count + n % NR;
            const float *from = w + (ptrdiff_t)(n - first_column) * output_stride + (ptrdiff_t)start * input_stride;
            for (size_t k = 0; k < count; k++) to[k * NR] = n < end ? from[(ptrdiff_t)k * input_stride] * scale : 0.0f;
        }
    }
}

typedef float partial_tile[MR * NR] __attribute__((aligned(64)));

/* The opposite. */
static void unpack(const float *packed, size_t inputs, size_t outputs, float *w) {
    const size_t panels = (outputs + NR - 1) / NR;
    for (size_t group = 0; group < groups_of(inputs); group++) {
        const size_t start = group_start(inputs, group), count = group_start(inputs, group + 1) - start;
        for (size_t k = 0; k < count; k++)
            for (size_t n = 0; n < outputs; n++)
                w[(start + k) * outputs + n] = packed[start * panels * NR + n / NR * NR * count + k * NR + n % NR];
    }
}

/* One tile: c (+)= a @ b for `rows` rows, k columns of a, and one panel of b. `ahead` is memory that is needed later:
 * each step fetches `lines` cache lines of it. Every caller has a constant `rows`, so the sums are in registers.
 *
 * Pairwise sums need only one partial sum of each size: when block number `block` is done, the sums of the blocks
 * before it are those of the powers of two in that number. */
INLINE void tile(const int rows, const float *restrict a, size_t lda, const float *restrict b, size_t k,
                 float *restrict c, size_t ldc, int add, const char *ahead, const int lines) {
    partial_tile partial[LEVELS];
    vf sum[MR][NV];
    for (size_t block = 0, start = 0;; block++) {
        const size_t end = smaller(start + LONGEST_SUM, k);
        UNROLL for (int i = 0; i < rows; i++) {
            UNROLL for (int j = 0; j < NV; j++) sum[i][j] = all(0.0f);
        }
        for (; start < end; start++) {
            vf right[NV];
            UNROLL for (int j = 0; j < NV; j++) right[j] = load(b + j * VL);
            for (int line = 0; line < lines; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
            UNROLL for (int i = 0; i < rows; i++) {
                const vf left = all(a[i * lda + start]);
                UNROLL for (int j = 0; j < NV; j++) sum[i][j] = fma_(left, right[j], sum[i][j]);
            }
            b += NR;
        }
        const int last = end == k;
        int level = 0;
        for (size_t before = block; last ? before : before & 1; level++, before >>= 1) {
            if (!(before & 1)) continue;
            UNROLL for (int i = 0; i < rows; i++) {
                UNROLL for (int j = 0; j < NV; j++) sum[i][j] += load(partial[level] + i * NR + j * VL);
            }
        }
        if (last) break;
        UNROLL for (int i = 0; i < rows; i++) {
            UNROLL for (int j = 0; j < NV; j++) store(partial[level] + i * NR + j * VL, sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < NV; j++) {
            float *at = c + i * ldc + j * VL;
            store(at, add ? load(at) + sum[i][j] : sum[i][j]);
        }
    }
}

typedef void tile_function(const float *a, size_t lda, const float *b, size_t k, float *c, size_t ldc, int add,
                           const char *ahead, int lines);
#define TILE(ROWS)                                                                                                \
    static void tile_##ROWS(const float *a, size_t lda, const float *b, size_t k, float *c, size_t ldc, int add, \
                            const char *ahead, int lines) {                                                       \
        if (lines == 0) tile(ROWS, a, lda, b, k, c, ldc, add, ahead, 0);                                          \
        else if (lines == 1) tile(ROWS, a, lda, b, k, c, ldc, add, ahead, 1);                                     \
        else tile(ROWS, a, lda, b, k, c, ldc, add, ahead, 2);                                                     \
    }
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if defined(ISA_AVX512) /* MR is 14 */
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#endif
static tile_function *const tiles[MR + 1] = {
    0, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6,
#if defined(ISA_AVX512)
    tile_7, tile_8, tile_9, tile_10, tile_11, tile_12, tile_13, tile_14,
#endif
};

/* Add the bias to some columns of a row, and apply the activation. */
INLINE void finish_row(float *y, const float *bias, size_t columns, int activation) {
    if (columns == NR && activation <= ACTIVATION_GELU) { /* a whole panel: NV registers at once */
        vf x[NV];
        UNROLL for (int j = 0; j < NV; j++) x[j] = load(y + j * VL) + load(bias + j * VL);
        if (activation == ACTIVATION_GELU) gelu_some(x, NV);
        UNROLL for (int j = 0; j < NV; j++) store(y + j * VL, x[j]);
        return;
    }
    for (size_t n = 0; n < columns; n++) y[n] += bias[n];
    activate(activation, y, columns);
}

/* Rows of a product, times one panel, times the blocks of a group, whose packed weights are `w`. The rows are cut into
 * tiles of about equal height. */
static void times_panel(const struct product *of, size_t first_row, size_t rows, size_t panel, size_t group,
                        const float *w, const float *next) {
    const size_t column = panel * NR, columns = smaller(of->outputs - column, NR), pieces = (rows + MR - 1) / MR;
    const size_t start = group_start(of->inputs, group), count = group_start(of->inputs, group + 1) - start;
    const int last = start + count == of->inputs;
    const char *ahead = (const char *)next; /* the weights of the next call, which the first tiles here fetch */
    size_t to_fetch = NR / 16;              /* cache lines for each k */
    for (size_t piece = 0; piece < pieces; piece++) {
        const size_t row = first_row + rows * piece / pieces, height = first_row + rows * (piece + 1) / pieces - row;
        const size_t lines = pieces == 1 ? to_fetch : smaller(to_fetch, 1);
        float *y = of->y + row * of->ldy + column;
        partial_tile part;
        float *c = columns == NR ? y : part; /* a tile writes whole panels */
        const size_t ldc = columns == NR ? of->ldy : NR;
        if (c == y) { /* into the L1 cache while the sums are computed */
            for (size_t i = 0; i < height; i++)
                for (size_t n = 0; n < NR; n += 16) __builtin_prefetch(c + i * ldc + n, 1, 3);
        } else if (start > 0) {
            for (size_t i = 0; i < height; i++) memcpy(part + i * NR, y + i * of->ldy, columns * sizeof *y);
        }
        tiles[height](of->x + row * of->ldx + start, of->ldx, w, count, c, ldc, start > 0, ahead, (int)lines);
        ahead += lines * count * 64;
        to_fetch -= lines;
        if (c == part)
            for (size_t i = 0; i < height; i++) memcpy(y + i * of->ldy, part + i * NR, columns * sizeof *y);
        if (last && of->bias)
            for (size_t i = 0; i < height; i++) finish_row(y + i * of->ldy, of->bias + column, columns, of->activation);
    }
}

INLINE const float *panel_in_group(const struct product *of, size_t group, size_t panel) {
    const size_t start = group_start(of->inputs, group), count = group_start(of->inputs, group + 1) - start;
    return of->w + start * of->panels * NR + panel * count * NR;
}

static const float *panel_of(const struct product *of, size_t panel) { return panel_in_group(of, 0, panel); }

static void product(const struct product *of, size_t first_row, size_t end_row, size_t first_panel, size_t end_panel,
                    const float *after) {
    const size_t groups = groups_of(of->inputs);
    for (size_t group = 0; group < groups; group++)
        for (size_t panel = first_panel; panel < end_panel; panel++) {
            const float *next = panel + 1 < end_panel  ? panel_in_group(of, group, panel + 1)
                                : group + 1 < groups ? panel_in_group(of, group + 1, first_panel)
                                                     : after;
            times_panel(of, first_row, end_row - first_row, panel, group, panel_in_group(of, group, panel), next);
        }
}

#endif
