// What minibert/engine/products.py needs to try an algorithm of cuBLASLt: many equal rows, and whether they stay equal.
//
//   rows (period, width)       a few different rows
//   x, y (count, width)        row i is, or is to be, row i % period of `rows`
//   different (1,)             becomes 1 if a number of y is another one than its row of `rows` has
//   grid    enough blocks of 256 threads for count * width; a thread has one number
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
