// All kernels include this file. device.cuh defines the few names for a GPU that plain C++ does not have. In the tests,
// tests/executor/executor.h defines the same names for a CPU, which runs the same sources.
//
//   T   the type that hidden states and matrices are stored in: float16, bfloat16 or float
//
// All arithmetic is in float. Biases, and the scales and shifts of layer norms, are also stored as float.
#pragma once
#ifdef MINIBERT_EXECUTOR
#include "executor.h"
#else
#include "device.cuh"
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// N numbers that one instruction reads or writes.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T at[N];
};

// Reads N floats, in vectors of up to 16 bytes. `from` is aligned to the size of a vector.
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

// Returns the sum of x over the lanes of a warp, in every lane.
DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
  return x;
}

// Returns the maximum of x over the lanes of a warp, in every lane.
DEVICE float warp_max(float x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
  }
  return x;
}
