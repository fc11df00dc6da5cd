/* Attention of one text and head: the scores of a few queries at a time, which stay in the L1 cache. */
#ifndef MB_ATTENTION_H
#define MB_ATTENTION_H

#include "activations.h"
#include "kernels.h"
#include "product.h"
#include "vec.h"

enum { SCORES_APART = 16 }; /* rows of scores are not a multiple of 4 kB apart: see padded_row in library.c */

/* Floats of scratch memory: keys transposed and values, both packed; of one tile of queries, themselves, their scores
 * and their output. */
static size_t attention_scratch(size_t keys, size_t head_size) {
    const size_t columns = round_up(keys, NR), width = round_up(head_size, NR);
    return head_size * columns + keys * width + MR * (head_size + columns + SCORES_APART + width);
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define SHUFFLE(A, B, ...) __builtin_shuffle(A, B, (vi4){__VA_ARGS__})
#endif

/* to[j * NR + i] = from[i * ld + j], for 4 x 4 numbers */
INLINE void transpose4(const float *from, size_t ld, float *to) {
    const v4 a = *(const v4_at *)from, b = *(const v4_at *)(from + ld);
    const v4 c = *(const v4_at *)(from + 2 * ld), d = *(const v4_at *)(from + 3 * ld);
    const v4 ac0 = SHUFFLE(a, c, 0, 4, 1, 5), ac2 = SHUFFLE(a, c, 2, 6, 3, 7);
    const v4 bd0 = SHUFFLE(b, d, 0, 4, 1, 5), bd2 = SHUFFLE(b, d, 2, 6, 3, 7);
    *(v4_at *)to = SHUFFLE(ac0, bd0, 0, 4, 1, 5);
    *(v4_at *)(to + NR) = SHUFFLE(ac0, bd0, 2, 6, 3, 7);
    *(v4_at *)(to + 2 * NR) = SHUFFLE(ac2, bd2, 0, 4, 1, 5);
    *(v4_at *)(to + 3 * NR) = SHUFFLE(ac2, bd2, 2, 6, 3, 7);
}

/* Keys as the packed weights of a product: (head size, keys) in panels. Columns that fill the last panel are 0. */
static void pack_keys(const float *k, size_t ld, size_t keys, size_t d, float *packed) {
    if (keys % NR) memset(packed + keys / NR * NR * d, 0, NR * d * sizeof *packed);
    const size_t whole = d % 4 ? 0 : keys / 4 * 4;
    for (size_t key = 0; key < whole; key += 4)
        for (size_t i = 0; i < d; i += 4)
            transpose4(k + key * ld + i, ld, packed + key / NR * NR * d + key % NR + i * NR);
    for (size_t key = whole; key < keys; key++)
        for (size_t i = 0; i < d; i++) packed[key / NR * NR * d + key % NR + i * NR] = k[key * ld + i];
}

/* Values likewise: (keys, head size) in panels. */
static void pack_values(const float *v, size_t ld, size_t keys, size_t d, float *packed) {
    for (size_t panel = 0; panel < d; panel += NR)
        for (size_t key = 0; key < keys; key++, packed += NR) {
            const float *from = v + key * ld + panel;
            if (panel + NR <= d) {
                UNROLL for (int j = 0; j < NV; j++) store(packed + j * VL, load(from + j * VL));
            } else {
                memset(packed, 0, NR * sizeof *packed);
                memcpy(packed, from, (d - panel) * sizeof *packed);
            }
        }
}

INLINE void add_bias(const float *x, const float *bias, size_t count, float *y) {
    size_t i = 0;
    for (; i + VL <= count; i += VL) store(y + i, load(x + i) + load(bias + i));
    for (; i < count; i++) y[i] = x[i] + bias[i];
}

/* exp(x - top) of some registers in place. It is added to the sums of 16 lanes. */
INLINE void exp_and_add(float *x, vf top, vf sum[REGISTERS], const int registers) {
    vf weight[registers];
    UNROLL for (int j = 0; j < registers; j++) weight[j] = load(x + j * VL) - top;
    exp_some(weight, registers);
    UNROLL for (int j = 0; j < registers; j++) {
        sum[j % REGISTERS] += weight[j];
        store(x + j * VL, weight[j]);
    }
}

/* exp(x - max x) in place; returns the sum. It also writes the memory up to a multiple of 16 numbers. */
INLINE float softmax_row(float *x, size_t count) {
    const size_t end = round_up(count, LANES);
    for (size_t n = count; n < end; n++) x[n] = -__builtin_inff();
    vf even = load(x), odd = even, sum[REGISTERS];
    size_t n = 0;
    for (; n + 2 * VL <= end; n += 2 * VL) even = max_(even, load(x + n)), odd = max_(odd, load(x + n + VL));
    if (n < end) odd = max_(odd, load(x + n));
    const vf top = all(largest_lane(max_(even, odd)));
    UNROLL for (int j = 0; j < REGISTERS; j++) sum[j] = all(0.0f);
    for (n = 0; n + 2 * LANES <= end; n += 2 * LANES) exp_and_add(x + n, top, sum, 2 * REGISTERS);
    if (n < end) exp_and_add(x + n, top, sum, REGISTERS);
    return sum_lanes(sum);
}

static void attention(const struct attention *of, size_t text, size_t head, float *scratch) {
    const size_t d = of->head_size, first = of->queries[text], queries = of->queries[text + 1] - first;
    const size_t first_key = of->keys[text], keys = of->keys[text + 1] - first_key;
    const size_t columns = round_up(keys, NR), width = round_up(d, NR), pieces = (queries + MR - 1) / MR;
    const size_t ld = columns + SCORES_APART;
    float *k = scratch, *v = k + d * columns, *q = v + keys * width, *scores = q + MR * d, *out = scores + MR * ld;
    if (!queries || !keys) return;
    pack_keys(of->k + first_key * of->ldk + head * d, of->ldk, keys, d, k);
    pack_values(of->v + first_key * of->ldk + head * d, of->ldk, keys, d, v);
    for (size_t piece = 0; piece < pieces; piece++) {
        const size_t row = queries * piece / pieces, rows = queries * (piece + 1) / pieces - row;
        for (size_t i = 0; i < rows; i++)
            add_bias(of->q + (first + row + i) * of->ldq + head * d, of->query_bias + head * d, d, q + i * d);
        if (head + 1 < of->heads) /* what the next head reads */
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < d; j += 16) {
                    const size_t at = (head + 1) * d + j, key = first_key + smaller(row + i, keys - 1);
                    __builtin_prefetch(of->q + (first + row + i) * of->ldq + at, 0, 2);
                    __builtin_prefetch(of->k + key * of->ldk + at, 0, 2);
                    __builtin_prefetch(of->v + key * of->ldk + at, 0, 2);
                }
        for (size_t column = 0; column < columns; column += NR)
            tiles[rows](q, d, k + column * d, d, scores + column, ld, 0, 0, 0);
        for (size_t i = 0; of->distance_bias && i < rows; i++) { /* key 0 is row + i before the query */
            const float *bias = of->distance_bias + head * of->distances + of->distances / 2 - (row + i);
            add_bias(scores + i * ld, bias, keys, scores + i * ld);
        }
        float sums[MR];
        for (size_t i = 0; i < rows; i++) sums[i] = softmax_row(scores + i * ld, keys);
        for (size_t panel = 0; panel < width; panel += NR)
            tiles[rows](scores, ld, v + panel * keys, keys, out + panel, width, 0, 0, 0);
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < d; j++)
                of->out[(first + row + i) * of->ldout + head * d + j] = out[i * width + j] / sums[i];
    }
}

#endif
