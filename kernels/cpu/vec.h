/* Vectors in the syntax of GCC and Clang, as wide as the registers of the instruction set.
 *
 * The file that includes this one defines ISA_AVX512, ISA_AVX2 or ISA_NEON. Besides this file, only the list of tiles
 * in product.h depends on the instruction set. No result does:
 *
 * - A sum over a row has 16 partial sums (LANES), whatever the width of a register. They are added as one fixed tree.
 * - All operations are + - * / sqrt, fused multiply-add, comparisons and integer operations. IEEE 754 defines their
 *   results exactly. Estimates of reciprocals differ between processors, so they are not used.
 * - A fused multiply-add is always written as fma_(). The build option -ffp-contract=off forbids any other.
 */
#ifndef MB_VEC_H
#define MB_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

/* VL: numbers in a register. A tile of a product has MR rows and NV registers of columns: all its sums, the columns of
 * one row of the weights, and one number of x fit into the registers (32, 16 and 32 of them). */
#if defined(ISA_AVX512)
enum { VL = 16, MR = 14, NV = 2 };
#elif defined(ISA_AVX2)
enum { VL = 8, MR = 6, NV = 2 };
#elif defined(ISA_NEON)
enum { VL = 4, MR = 6, NV = 4 };
#endif
enum {
    NR = VL * NV, /* columns of a tile, and of a panel of packed weights */
    LANES = 16,
    REGISTERS = LANES / VL,
};

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t vi4 __attribute__((vector_size(16)));
typedef float vf_at __attribute__((vector_size(4 * VL), aligned(4), may_alias)); /* in memory, at any address */
typedef float v4_at __attribute__((vector_size(16), aligned(4), may_alias));

INLINE vf load(const float *p) { return *(const vf_at *)p; }
INLINE void store(float *p, vf x) { *(vf_at *)p = x; }

INLINE vf all(float x) {
#if defined(ISA_AVX512)
    return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif defined(ISA_AVX2)
    return (vf){x, x, x, x, x, x, x, x};
#else
    return (vf){x, x, x, x};
#endif
}

/* a * b + c, rounded once. */
INLINE vf fma_(vf a, vf b, vf c) {
#if defined(ISA_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(ISA_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
}

INLINE vf sqrt_(vf x) {
#if defined(ISA_AVX512)
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(ISA_AVX2)
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    return (vf)vsqrtq_f32((float32x4_t)x);
#endif
}

/* `a` where the mask is set, `b` elsewhere. A comparison gives a mask: all bits of a lane, or none. */
INLINE vf choose(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/* a < b ? b : a. So `a` is the result if one of them is NaN, and for zeros of both signs. */
INLINE vf max_(vf a, vf b) {
#if defined(ISA_AVX512) /* this instruction returns its second operand in these cases */
    return (vf)_mm512_max_ps((__m512)b, (__m512)a);
#elif defined(ISA_AVX2)
    return (vf)_mm256_max_ps((__m256)b, (__m256)a);
#else
    return choose(a < b, b, a);
#endif
}

/* b < a ? b : a: `a` for NaN. */
INLINE vf min_(vf a, vf b) { return choose(b < a, b, a); }
INLINE vf abs_(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* The first `count` of VL numbers. The other lanes have `rest`. */
INLINE vf load_some(const float *p, size_t count, float rest) {
    float lanes[VL];
    for (size_t i = 0; i < VL; i++) lanes[i] = i < count ? p[i] : rest;
    return load(lanes);
}
INLINE void store_some(float *p, vf x, size_t count) { memcpy(p, &x, count * sizeof *p); }

/* The sum of 16 lanes. The second half is added to the first half, and so on: the same tree for every width. */
INLINE float sum_lanes(const vf x[REGISTERS]) {
    union {
        vf x[REGISTERS];
        v4 part[LANES / 4];
    } a;
    for (int i = 0; i < REGISTERS; i++) a.x[i] = x[i];
    v4 sum = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* The largest lane; NaN lanes do not count, except the first. */
INLINE float largest_lane(vf x) {
    union {
        vf x;
        v4 part[VL / 4];
    } a = {x};
    v4 most = a.part[0];
    for (int i = 1; i < VL / 4; i++) {
        vi4 less = most < a.part[i];
        most = (v4)(((vi4)a.part[i] & less) | ((vi4)most & ~less));
    }
    const float left = most[0] < most[1] ? most[1] : most[0], right = most[2] < most[3] ? most[3] : most[2];
    return left < right ? right : left;
}

INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
INLINE size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

#endif
