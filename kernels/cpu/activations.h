/* exp, log1p, tanh and the activations. tools/fit_native.py prints the polynomials and their errors. */
#ifndef MB_ACTIVATIONS_H
#define MB_ACTIVATIONS_H

#include "kernels.h"
#include "vec.h"

#define EACH UNROLL for (int i = 0; i < count; i++)

/* e^x for x <= 88, with an error of about one unit in the last place. Results below the smallest normal number are 0.
 *
 * x = n ln 2 + r with |r| <= ln(2) / 2, and e^x = 2^n e^r. Adding 1.5 * 2^23 rounds x / ln 2 to a whole number n. Then
 * the low bits of the sum are n, so a shift adds n to the exponent of e^r.
 *
 * One call has some vectors, step by step: their chains are independent, so a processor overlaps them.
 */
INLINE void exp_some(vf *x, const int count) {
    const float least = -87.33654f, round = 12582912.0f;
    vf shifted[count], n[count], r[count], p[count];
    EACH shifted[i] = fma_(x[i], all(1.44269504f), all(round));
    EACH n[i] = shifted[i] - all(round);
    EACH r[i] = fma_(n[i], all(-0.693145752f), x[i]); /* ln 2 in two parts: n times the first part is exact */
    EACH r[i] = fma_(n[i], all(-1.42860677e-6f), r[i]);
    EACH p[i] = fma_(all(0.00138204091f), r[i], all(0.00836867746f));
    EACH p[i] = fma_(p[i], r[i], all(0.0416682698f));
    EACH p[i] = fma_(p[i], r[i], all(0.166665211f));
    EACH p[i] = fma_(p[i], r[i], all(0.49999994f));
    EACH p[i] = fma_(p[i], r[i], all(1.0f));
    EACH p[i] = fma_(p[i], r[i], all(1.0f));
    EACH {
        vi vanishes = x[i] < all(least); /* what was computed for these is not used */
        x[i] = (vf)(((vu)p[i] + ((vu)shifted[i] << 23)) & ~(vu)vanishes); /* unsigned: those may overflow */
    }
}

INLINE vf exp_(vf x) {
    exp_some(&x, 1);
    return x;
}

/* pull / ((|x| + far)^2 + width) - curve (|x| + near)^2 - level: the logarithm of Phi(-|x|), where Phi is the normal
 * distribution function. The fit is that of minibert/engine/fused_numpy.py, which tells its error. */
INLINE void log_tail(const vf *x, vf *tail, const int count) {
    vf far[count];
    EACH far[i] = abs_(x[i]) + all(3.4681232f);
    EACH far[i] = fma_(far[i], far[i], all(4.3218818f));
    EACH far[i] = all(24.247276f) / far[i];
    EACH tail[i] = abs_(x[i]) + all(0.17059813f);
    EACH tail[i] = tail[i] * tail[i];
    EACH far[i] = far[i] - all(2.161789f);
    EACH tail[i] = fma_(tail[i], all(-0.49451792f), far[i]);
}

/* x Phi(x), the larger of x - x Phi(-|x|) and x Phi(-|x|). */
INLINE void gelu_some(vf *x, const int count) {
    vf tail[count];
    log_tail(x, tail, count);
    exp_some(tail, count);
    EACH tail[i] = x[i] * tail[i];
    EACH x[i] = max_(x[i] - tail[i], tail[i]);
}

INLINE vf gelu_(vf x) {
    gelu_some(&x, 1);
    return x;
}

/* Phi(x) = erfc(-x / sqrt(2)) / 2, with erfc(z) = t exp(p(t) - z^2) and t = 1 / (1 + z / 2) for z >= 0: the Chebyshev
 * fit of Press et al., "Numerical Recipes", section 6.2, whose relative error is at most 1.2e-7. */
INLINE vf normal_distribution(vf x) {
    const vf z = abs_(x) * all(0.707106769f), t = all(1.0f) / fma_(all(0.5f), z, all(1.0f));
    vf p = fma_(all(0.17087277f), t, all(-0.82215223f));
    p = fma_(p, t, all(1.48851587f));
    p = fma_(p, t, all(-1.13520398f));
    p = fma_(p, t, all(0.27886807f));
    p = fma_(p, t, all(-0.18628806f));
    p = fma_(p, t, all(0.09678418f));
    p = fma_(p, t, all(0.37409196f));
    p = fma_(p, t, all(1.00002368f));
    p = fma_(p, t, all(-1.26551223f));
    const vf tail = all(0.5f) * (t * exp_(fma_(-z, z, p)));
    return choose(x < all(0.0f), tail, all(1.0f) - tail);
}

/* 1 / (1 + e^-x), or e^x / (1 + e^x) for negative x: nothing overflows. */
INLINE vf sigmoid_(vf x) {
    const vf z = exp_(-abs_(x));
    return choose(x < all(0.0f), z, all(1.0f)) / (all(1.0f) + z);
}

/* log(1 + z) for 0 <= z <= 1. Beyond sqrt(2) - 1, it is ln 2 + log(1 + (z - 1) / 2). */
INLINE vf log1p_(vf z) {
    const vi far = z > all(0.41421354f);
    const vf f = choose(far, all(0.5f) * (z - all(1.0f)), z);
    vf p = fma_(all(0.0691561252f), f, all(-0.117893703f));
    p = fma_(p, f, all(0.118726194f));
    p = fma_(p, f, all(-0.12384402f));
    p = fma_(p, f, all(0.142187163f));
    p = fma_(p, f, all(-0.166692495f));
    p = fma_(p, f, all(0.200022236f));
    p = fma_(p, f, all(-0.249999866f));
    p = fma_(p, f, all(0.333333105f));
    const vf square = f * f;
    const vf rest = fma_(p * f, square, all(-0.5f) * square);
    return choose(far, all(0.693147182f) + (f + rest), f + rest);
}

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|) */
INLINE vf softplus_(vf x) { return max_(x, all(0.0f)) + log1p_(exp_(-abs_(x))); }

/* A polynomial near 0, where 1 - 2 / (e^2|x| + 1) would lose digits. Beyond 10, the result is 1. */
INLINE vf tanh_(vf x) {
    const vf a = abs_(x), square = x * x;
    vf p = fma_(all(-0.00571619812f), square, all(0.0206497069f));
    p = fma_(p, square, all(-0.0537431724f));
    p = fma_(p, square, all(0.133314863f));
    p = fma_(p, square, all(-0.333332837f));
    const vf near = fma_(p * square, x, x);
    const vf far = all(1.0f) - all(2.0f) / (exp_(all(2.0f) * min_(a, all(10.0f))) + all(1.0f));
    const vi sign = (vi)x & (int32_t)0x80000000;
    return choose(a > all(0.625f), (vf)((vi)far | sign), near);
}

/* x (1 + tanh(root (x + 0.044715 x^3))) / 2 = x sigmoid(2 root (x + 0.044715 x^3)) */
INLINE vf gelu_tanh_(vf x, float twice_root) {
    const vf cube = fma_(all(0.044715f) * x * x, x, x);
    return x * sigmoid_(all(twice_root) * cube);
}

/* x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2). From 20 on, it is x. */
INLINE vf mish_(vf x) {
    const vf e = exp_(min_(x, all(20.0f))), n = e * (e + all(2.0f));
    return x * (n / (n + all(2.0f)));
}

INLINE vf clip_(vf x, float low, float high) { return min_(max_(x, all(low)), all(high)); }
INLINE vf relu_(vf x) { return max_(x, all(0.0f)); }

INLINE vf activated(int activation, vf x) {
    switch (activation) {
    case ACTIVATION_GELU: return gelu_(x);
    case ACTIVATION_GELU_10: return clip_(gelu_(x), -10.0f, 10.0f);
    case ACTIVATION_GELU_TANH: return gelu_tanh_(x, 1.59576912160573f); /* 2 sqrt(2 / pi) */
    case ACTIVATION_GELU_FAST: return gelu_tanh_(x, 2.0f * 0.7978845608f);
    case ACTIVATION_HARDSWISH: return x * clip_(x + all(3.0f), 0.0f, 6.0f) / all(6.0f);
    case ACTIVATION_LAPLACE: return normal_distribution((x - all(0.707107f)) / all(0.282095f));
    case ACTIVATION_LEAKY_RELU: return choose(x > all(0.0f), x, all(0.01f) * x);
    case ACTIVATION_MISH: return mish_(x);
    case ACTIVATION_QUICK_GELU: return x * sigmoid_(all(1.702f) * x);
    case ACTIVATION_RELU: return relu_(x);
    case ACTIVATION_RELU2: return relu_(x) * relu_(x);
    case ACTIVATION_RELU6: return clip_(x, 0.0f, 6.0f);
    case ACTIVATION_SIGMOID: return sigmoid_(x);
    case ACTIVATION_SILU: return x * sigmoid_(x);
    case ACTIVATION_SOFTPLUS: return softplus_(x);
    case ACTIVATION_SQRT_SOFTPLUS: return sqrt_(softplus_(x));
    case ACTIVATION_TANH: return tanh_(x);
    default: return x;
    }
}

/* Any activation, in place. Only GELU is also a part of the product: the others are rare. */
static void activate(int activation, float *x, size_t count) {
    size_t i = 0;
    for (; i + VL <= count; i += VL) store(x + i, activated(activation, load(x + i)));
    if (i < count) store_some(x + i, activated(activation, load_some(x + i, count - i, 0.0f)), count - i);
}

#endif
