// What every kernel is written in: the few things beyond plain C++ that device.cuh names for a GPU, and
// tests/executor/executor.h for the CPU that runs the same sources in the tests.
//
//   T   the type that hidden states and matrices are stored in: float16, bfloat16 or float
//
// All arithmetic is in float. Biases, and the scales and shifts of layer norms, are stored as float, too.
#pragma once
#ifdef MINIBERT_EXECUTOR
#include "executor.h"
#else
#include "device.cuh"
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// N numbers that are read or written at once.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T at[N];
};

// Reads N floats, in vectors of up to 16 bytes: `from` is a multiple of that.
template <int N>
DEVICE void load_floats(float (&to)[N], const float* from) {
  constexpr int AT_ONCE = N < 4 ? N : 4;
  static_assert(N % AT_ONCE == 0);
#pragma unroll
  for (int i = 0; i < N; i += AT_ONCE) {
    const auto v = *reinterpret_cast<const Vector<float, AT_ONCE>*>(from + i);
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) to[i + j] = v.at[j];
  }
}

// Writes N floats, in the same way.
template <int N>
DEVICE void store_floats(float* to, const float (&from)[N]) {
  constexpr int AT_ONCE = N < 4 ? N : 4;
  static_assert(N % AT_ONCE == 0);
#pragma unroll
  for (int i = 0; i < N; i += AT_ONCE) {
    Vector<float, AT_ONCE> v;
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) v.at[j] = from[i + j];
    *reinterpret_cast<Vector<float, AT_ONCE>*>(to + i) = v;
  }
}

// The sum of what the lanes of a warp have, in each of them.
DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
  return x;
}

// The largest of what the lanes of a warp have, in each of them.
DEVICE float warp_max(float x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
  }
  return x;
}
