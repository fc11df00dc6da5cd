/* Layer normalization of rows, and of the sum of embeddings. */
#ifndef MB_NORM_H
#define MB_NORM_H

#include "kernels.h"
#include "vec.h"

/* The numbers of a row from `n` on, as many as the lanes of register j have; the lanes after the end are `rest`. */
INLINE vf part_of(const float *row, size_t n, size_t hidden, float rest) {
    return n + VL <= hidden ? load(row + n) : load_some(row + n, n < hidden ? hidden - n : 0, rest);
}

INLINE void put_part(float *row, size_t n, size_t hidden, vf x) {
    if (n + VL <= hidden) store(row + n, x);
    else if (n < hidden) store_some(row + n, x, hidden - n);
}

/* LayerNorm of a row in place. `sum` is the sum of its numbers, over 16 lanes.
 *
 * The variance comes from the centred values: E[x^2] - E[x]^2 would lose digits when the mean is large. What rounding
 * left of a large mean is the second mean. Without it, equal values become 0, as in minibert/ops.py.
 */
INLINE void normalize(float *row, const vf sum[REGISTERS], size_t hidden, float eps, const float *weight,
                      const float *shift) {
    const float share = 1.0f / (float)hidden;
    const float first = sum_lanes(sum) * share;
    const vf mean = all(first);
    vf left[REGISTERS], squares[REGISTERS];
    UNROLL for (int j = 0; j < REGISTERS; j++) left[j] = squares[j] = all(0.0f);
    size_t n = 0;
    for (; n + LANES <= hidden; n += LANES) {
        UNROLL for (int j = 0; j < REGISTERS; j++) {
            const vf x = load(row + n + j * VL) - mean;
            left[j] += x;
            squares[j] = fma_(x, x, squares[j]);
        }
    }
    if (n < hidden) {
        UNROLL for (int j = 0; j < REGISTERS; j++) {
            const vf x = part_of(row, n + j * VL, hidden, first) - mean;
            left[j] += x;
            squares[j] = fma_(x, x, squares[j]);
        }
    }
    const float second = sum_lanes(left) * share, variance = sum_lanes(squares) * share - second * second;
    const vf scale = all(1.0f / __builtin_sqrtf((variance < 0.0f ? 0.0f : variance) + eps)), mean2 = all(second);
    for (n = 0; n + VL <= hidden; n += VL)
        store(row + n, fma_(((load(row + n) - mean) - mean2) * scale, load(weight + n), load(shift + n)));
    if (n < hidden) {
        const vf x = ((part_of(row, n, hidden, first) - mean) - mean2) * scale;
        put_part(row, n, hidden, fma_(x, part_of(weight, n, hidden, 0.0f), part_of(shift, n, hidden, 0.0f)));
    }
}

/* row = (a + b) + c; its sum over 16 lanes */
INLINE void add_three(const float *a, const float *b, const float *c, size_t hidden, float *row, vf sum[REGISTERS]) {
    UNROLL for (int j = 0; j < REGISTERS; j++) sum[j] = all(0.0f);
    size_t n = 0;
    for (; n + LANES <= hidden; n += LANES) {
        UNROLL for (int j = 0; j < REGISTERS; j++) {
            const size_t at = n + j * VL;
            const vf x = (load(a + at) + load(b + at)) + load(c + at);
            sum[j] += x;
            store(row + at, x);
        }
    }
    if (n < hidden) {
        UNROLL for (int j = 0; j < REGISTERS; j++) {
            const size_t at = n + j * VL;
            const vf x = (part_of(a, at, hidden, 0.0f) + part_of(b, at, hidden, 0.0f)) + part_of(c, at, hidden, 0.0f);
            sum[j] += x;
            put_part(row, at, hidden, x);
        }
    }
}

/* row = a; its sum over 16 lanes */
INLINE void copy_row(const float *a, size_t hidden, float *row, vf sum[REGISTERS]) {
    UNROLL for (int j = 0; j < REGISTERS; j++) sum[j] = all(0.0f);
    for (size_t n = 0; n < hidden; n += LANES) {
        UNROLL for (int j = 0; j < REGISTERS; j++) {
            const vf x = part_of(a, n + j * VL, hidden, 0.0f);
            sum[j] += x;
            put_part(row, n + j * VL, hidden, x);
        }
    }
}

static void add_layer_norm(const struct norm *of, size_t first_row, size_t end_row) {
    vf sum[REGISTERS];
    for (size_t i = first_row; i < end_row; i++) {
        const float *x = of->x + i * of->ldx;
        float *out = of->out + i * of->ldout;
        if (of->y) add_three(of->y + i * of->ldy, of->bias, x, of->hidden, out, sum);
        else copy_row(x, of->hidden, out, sum);
        normalize(out, sum, of->hidden, of->eps, of->weight, of->shift);
    }
}

static void embed(const struct embedding *of, size_t first_row, size_t end_row) {
    vf sum[REGISTERS];
    for (size_t i = first_row; i < end_row; i++) {
        const float *word = of->word + of->ids[i] * of->hidden;
        const float *position = of->position + of->positions[i] * of->hidden;
        float *out = of->out + i * of->ldout;
        add_three(word, of->type, position, of->hidden, out, sum);
        normalize(out, sum, of->hidden, of->eps, of->weight, of->shift);
    }
}

#endif
