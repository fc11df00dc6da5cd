// Layer normalization of a row in the registers of a warp.
#pragma once
#include "common.cuh"

// A row of `width` numbers. Lane l has the vectors l, l + 32, l + 64, ..., of N numbers each. Vectors beyond the end of
// the row are zeros.
template <int N, int CHUNKS>
struct Row {
  float at[CHUNKS][N];

  // The index of this lane's vector in a chunk.
  static DEVICE int vector(int chunk) { return chunk * WARP + (threadIdx.x & (WARP - 1)); }

  DEVICE float sum() const {
    float total = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int j = 0; j < N; ++j) total += at[c][j];
    return warp_sum(total);
  }

  DEVICE float sum_of_squares() const {
    float total = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int j = 0; j < N; ++j) total += at[c][j] * at[c][j];
    return warp_sum(total);
  }

  DEVICE void subtract(float number, int width) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
      if (vector(c) < width / N)
#pragma unroll
        for (int j = 0; j < N; ++j) at[c][j] -= number;
  }
};

// Writes LayerNorm(row) to `out`.
//
// The mean is subtracted before the variance is computed: E[x^2] - E[x]^2 would lose digits when the mean is large. The
// mean is subtracted twice: the second time removes the rounding error of a large mean, and equal values become 0.
template <class T, int N, int CHUNKS>
DEVICE void layer_norm(T* out, Row<N, CHUNKS>& row, const float* gamma, const float* beta, float eps, int width) {
  const float share = 1.f / (float)width;
  row.subtract(row.sum() * share, width);
  row.subtract(row.sum() * share, width);
  const float scale = 1.f / sqrtf(row.sum_of_squares() * share + eps);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int i = row.vector(c);
    if (i < width / N) {
      float g[N], b[N];
      load_floats(g, gamma + i * N);
      load_floats(b, beta + i * N);
      Vector<T, N> y;
#pragma unroll
      for (int j = 0; j < N; ++j) y.at[j] = from_float<T>(row.at[c][j] * scale * g[j] + b[j]);
      reinterpret_cast<Vector<T, N>*>(out)[i] = y;
    }
  }
}
