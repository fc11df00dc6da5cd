/* The choice of kernels: what this processor can do, and what the operating system lets it do. */
#include "library.h"

#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

/* The registers that the system saves: XCR0 has the bits 6 for AVX and e6 for AVX-512. __builtin_cpu_supports knows
 * this, too, but it needs a part of the compiler's library that not every compiler links into a shared library. */
static int saves(unsigned registers) {
    unsigned a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    return (saved & registers) == registers;
}

static int has_avx2(void) {
    unsigned a, b, c, d;
    return saves(0x06) && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_FMA) && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (b & bit_AVX2);
}

static int has_avx512(void) {
    const unsigned needed = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    unsigned a, b, c, d;
    return has_avx2() && saves(0xe6) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & needed) == needed;
}
#endif

const struct kernels *mb_kernels(const char *name) {
#if defined(__x86_64__) || defined(_M_X64)
    if (!strcmp(name, "avx512") && has_avx512()) return &kernels_avx512;
    if (!strcmp(name, "avx2") && has_avx2()) return &kernels_avx2;
#elif defined(__aarch64__) || defined(_M_ARM64)
    if (!strcmp(name, "neon")) return &kernels_neon;
#endif
    return NULL;
}
