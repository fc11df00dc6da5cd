// x = LayerNorm(word[id] + position[p] + token_type), one row for each token.
//
//   word (V, width), position (P, width), token_type (width,): the tables; all tokens have the same type
//   ids, positions (rows,)      gamma, beta (width,)      x (rows, width)
//   N       numbers in a vector, of up to 16 bytes: width is a multiple of it
//   CHUNKS  vectors per lane: width <= 32 N CHUNKS
//   grid    ceil(rows / 4) blocks of 128 threads: one warp per row
#include "layer_norm.cuh"

template <class T, int N, int CHUNKS>
__global__ void __launch_bounds__(128)
embed_layer_norm(T* __restrict__ x, const int* __restrict__ ids, const int* __restrict__ positions,
                 const T* __restrict__ word, const T* __restrict__ position, const T* __restrict__ token_type,
                 const float* __restrict__ gamma, const float* __restrict__ beta, float eps, int rows, int width) {
  const int r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (r >= rows) return;  // for the whole warp
  const T* of_word = word + (size_t)ids[r] * width;  // 64 bits: a table may have more than 2^31 numbers
  const T* of_position = position + (size_t)positions[r] * width;
  Row<N, CHUNKS> row;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int i = row.vector(c);
    Vector<T, N> a{}, b{}, t{};
    if (i < width / N) {
      a = reinterpret_cast<const Vector<T, N>*>(of_word)[i];
      b = reinterpret_cast<const Vector<T, N>*>(of_position)[i];
      t = reinterpret_cast<const Vector<T, N>*>(token_type)[i];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) row.at[c][j] = to_float(a.at[j]) + to_float(t.at[j]) + to_float(b.at[j]);
  }
  layer_norm(x + (size_t)r * width, row, gamma, beta, eps, width);
}
