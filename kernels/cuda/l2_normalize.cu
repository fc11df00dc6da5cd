// x = x / max(|x|, 1e-12) for each row, in place. minibert.ops has the definition.
//
//   x (rows, width), float
//   N       numbers in a vector, of up to 16 bytes: width is a multiple of it
//   grid    ceil(rows / 4) blocks of 128 threads: one warp per row
#include "common.cuh"

template <int N>
__global__ void __launch_bounds__(128)
l2_normalize(float* __restrict__ x, int rows, int width) {
  const int r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (r >= rows) return;  // for the whole warp
  x += (size_t)r * width;  // 64 bits: there may be more than 2^31 numbers
  float squares = 0;
  for (int i = lane * N; i < width; i += WARP * N) {
    float numbers[N];
    load_floats(numbers, x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) squares += numbers[j] * numbers[j];
  }
  const float scale = 1.f / fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
  for (int i = lane * N; i < width; i += WARP * N) {
    float numbers[N];
    load_floats(numbers, x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) numbers[j] *= scale;
    store_floats(x + i, numbers);
  }
}
