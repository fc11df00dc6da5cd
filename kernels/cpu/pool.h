/* From the token vectors of each text to one vector, as in minibert/pooling.py. Sums are in double precision. */
#ifndef MB_POOL_H
#define MB_POOL_H

#include "kernels.h"
#include "vec.h"

/* total = the sum of rows `first` to `end`, each multiplied by its number if `weighted`. */
static void sum_rows(const float *x, size_t ld, size_t first, size_t end, size_t hidden, int weighted, double *total) {
    for (size_t n = 0; n < hidden; n++) total[n] = 0.0;
    for (size_t row = first; row < end; row++) {
        const float *from = x + row * ld;
        const double weight = weighted ? (double)(row + 1) : 1.0;
        for (size_t n = 0; n < hidden; n++) total[n] += (double)from[n] * weight;
    }
}

/* The vector of a text of `tokens` tokens in rows of x. Tokens before `exclude` do not count. */
static void pool_text(int mode, const float *x, size_t ld, size_t tokens, size_t exclude, size_t hidden,
                      const double *weight_sum, double *total, float *out) {
    const size_t first = smaller(exclude, tokens), count = tokens - first;
    if (mode == POOL_MAX) {
        for (size_t n = 0; n < hidden; n++) out[n] = -__builtin_inff();
        for (size_t row = first; row < tokens; row++) {
            const float *from = x + row * ld; /* NaN is the largest, as in numpy */
            for (size_t n = 0; n < hidden; n++) out[n] = from[n] > out[n] || from[n] != from[n] ? from[n] : out[n];
        }
    } else if (mode == POOL_CLS || mode == POOL_LASTTOKEN) {
        /* The definition of cls takes token 0 of a text where no token counts; lasttoken takes zeros. */
        const size_t row = !count ? 0 : mode == POOL_CLS ? first : tokens - 1;
        if (tokens && (count || mode == POOL_CLS)) memcpy(out, x + row * ld, hidden * sizeof *out);
        else memset(out, 0, hidden * sizeof *out);
    } else {
        sum_rows(x, ld, first, tokens, hidden, mode == POOL_WEIGHTEDMEAN, total);
        double weights = (double)count;
        if (mode == POOL_WEIGHTEDMEAN) /* 1 + ... + tokens, without those that do not count */
            weights = (double)(tokens * (tokens + 1) / 2 - first * (first + 1) / 2);
        if (weight_sum) weights = *weight_sum;
        if (weights < 1e-9) weights = 1e-9;
        if (mode == POOL_MEAN_SQRT_LEN) weights = __builtin_sqrt(weights);
        for (size_t n = 0; n < hidden; n++) out[n] = (float)(total[n] / weights);
    }
}

/* Scale vectors to length 1. A vector shorter than 1e-12 is divided by 1e-12, so zeros stay zeros. */
static void normalize_vectors(float *x, size_t rows, size_t width, size_t ld) {
    enum { PARTS = 8 };
    for (size_t row = 0; row < rows; row++, x += ld) {
        double squares[PARTS] = {0};
        size_t n = 0;
        for (; n + PARTS <= width; n += PARTS)
            for (int i = 0; i < PARTS; i++) squares[i] += (double)x[n + i] * (double)x[n + i];
        for (int i = 0; n < width; n++, i++) squares[i] += (double)x[n] * (double)x[n];
        for (int half = PARTS / 2; half > 0; half /= 2)
            for (int i = 0; i < half; i++) squares[i] += squares[i + half];
        const double found = __builtin_sqrt(squares[0]), length = found < 1e-12 ? 1e-12 : found;
        for (n = 0; n < width; n++) x[n] = (float)((double)x[n] / length);
    }
}

static void pool(const struct pool *of) {
    for (size_t text = 0; text < of->texts; text++) {
        const size_t start = of->starts[text], tokens = of->starts[text + 1] - start;
        float *out = of->out + text * of->ldout;
        for (size_t i = 0; i < of->number_of_modes; i++)
            pool_text(of->modes[i], of->x + start * of->ldx, of->ldx, tokens, of->exclude, of->hidden,
                      of->weight_sums ? of->weight_sums + text : NULL, of->totals, out + i * of->hidden);
    }
    if (of->normalize) normalize_vectors(of->out, of->texts, of->number_of_modes * of->hidden, of->ldout);
}

#endif
