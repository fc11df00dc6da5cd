// out[i] = x[rows[i]]: the rows of the first tokens, if the last layer computes only these.
//
//   x (any number, width)      rows (count,)      out (count, width)
//   N       numbers in a vector: width is a multiple of it; each thread has one vector
//   grid    enough blocks of 256 threads for count * width / N
#include "common.cuh"

template <class T, int N>
__global__ void __launch_bounds__(256)
take_rows(T* __restrict__ out, const T* __restrict__ x, const int* __restrict__ rows, int count, int width) {
  const int vectors = width / N;
  const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;  // 64 bits: there may be more than 2^31 numbers
  if (i >= (size_t)count * vectors) return;
  const size_t from = (size_t)rows[i / vectors] * vectors + i % vectors;
  reinterpret_cast<Vector<T, N>*>(out)[i] = reinterpret_cast<const Vector<T, N>*>(x)[from];
}
