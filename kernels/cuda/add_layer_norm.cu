// x = LayerNorm(x + y + bias), in place: the last step of the attention and of the feed-forward of a layer.
//
//   x, y (rows, width)      bias, gamma, beta (width,)
//   N, CHUNKS and the grid are as in embed_layer_norm.cu
#include "layer_norm.cuh"

template <class T, int N, int CHUNKS>
__global__ void __launch_bounds__(128)
add_layer_norm(T* __restrict__ x, const T* __restrict__ y, const float* __restrict__ bias,
               const float* __restrict__ gamma, const float* __restrict__ beta, float eps, int rows, int width) {
  const int r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (r >= rows) return;  // for the whole warp
  const size_t start = (size_t)r * width;  // 64 bits: there may be more than 2^31 numbers
  Row<N, CHUNKS> row;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int i = row.vector(c);
    Vector<T, N> old{}, added{};
    float b[N] = {};
    if (i < width / N) {
      old = reinterpret_cast<const Vector<T, N>*>(x + start)[i];
      added = reinterpret_cast<const Vector<T, N>*>(y + start)[i];
      load_floats(b, bias + i * N);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) row.at[c][j] = to_float(added.at[j]) + b[j] + to_float(old.at[j]);
  }
  layer_norm(x + start, row, gamma, beta, eps, width);
}
