// y = act(y + bias), in place: the step between the two matrix products of the feed-forward.
//
//   y (rows, width)      bias (width,)
//   Act     a struct of activations.cuh
//   N       numbers in a vector: width is a multiple of it; each thread has one vector
//   grid    enough blocks of 256 threads for rows * width / N
#include "activations.cuh"

template <class T, class Act, int N>
__global__ void __launch_bounds__(256)
bias_activation(T* __restrict__ y, const float* __restrict__ bias, int rows, int width) {
  const int vectors = width / N;
  const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;  // 64 bits: there may be more than 2^31 numbers
  if (i >= (size_t)rows * vectors) return;
  const int column = (int)(i % vectors) * N;
  auto v = reinterpret_cast<const Vector<T, N>*>(y)[i];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    v.at[j] = from_float<T>(Act::template apply<sizeof(T) == 4>(to_float(v.at[j]) + bias[column + j]));
  }
  reinterpret_cast<Vector<T, N>*>(y)[i] = v;
}
