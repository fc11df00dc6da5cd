// Kernels for the trials of cuBLASLt's algorithms in minibert/engine/products.py. One repeats a few rows many times.
// The other checks whether the rows of a product repeat in the same way.
//
//   rows (period, width)       a few different rows
//   x, y (count, width)        repeat_rows sets row i of x to row i % period of `rows`; compare_rows compares y with it
//   different (1,)             is set to 1 if a number of y differs
//   grid    enough blocks of 256 threads for count * width; each thread has one number
#include "common.cuh"

template <class T>
DEVICE bool same(T a, T b) {
  return a.bits == b.bits;
}
template <>
DEVICE bool same<float>(float a, float b) {
  return a == b;
}

template <class T>
__global__ void __launch_bounds__(256)
repeat_rows(T* __restrict__ x, const T* __restrict__ rows, int period, int count, int width) {
  const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;  // 64 bits: there may be more than 2^31 numbers
  if (i < (size_t)count * width) x[i] = rows[i / width % period * width + i % width];
}

template <class T>
__global__ void __launch_bounds__(256)
compare_rows(int* __restrict__ different, const T* __restrict__ y, const T* __restrict__ rows, int period, int count,
             int width) {
  const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < (size_t)count * width && !same(y[i], rows[i / width % period * width + i % width])) *different = 1;
}
