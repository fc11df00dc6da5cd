// One kernel for each function of kernels/cuda/device.cuh, with one warp. They run on the executor, and on a GPU if
// there is one.
#include "common.cuh"

template <class T>
__global__ void round_trip(float* out, const float* in, int count) {
  for (int i = threadIdx.x; i < count; i += WARP) out[i] = to_float(from_float<T>(in[i]));
}

template <class T>
__global__ void widen(float* out, const T* in, int count) {
  for (int i = threadIdx.x; i < count; i += WARP) out[i] = to_float(in[i]);
}

template <class T>
__global__ void pack_pairs(unsigned* out, const float* in) {
  out[threadIdx.x] = pack<T>(in[2 * threadIdx.x], in[2 * threadIdx.x + 1]);
}

template <class T>
__global__ void unpack_pairs(float* out, const unsigned* in) {
  unpack<T>(in[threadIdx.x], out[2 * threadIdx.x], out[2 * threadIdx.x + 1]);
}

template <class T>
__global__ void store_pairs(T* out, const unsigned* in) {
  store_pair(out + 2 * threadIdx.x, in[threadIdx.x]);
}

// Copies 32 rows of 16 bytes in two groups, and adds a number after each wait.
__global__ void copy_rows(float* out, const float* in) {
  DYNAMIC_SHARED(memory);
  float* const first = reinterpret_cast<float*>(memory);
  float* const second = first + 4 * WARP;
  const int t = threadIdx.x;
  copy_async(first + 4 * t, in + 4 * t);
  end_copy_group();
  copy_async(second + 4 * t, in + 4 * (WARP - 1 - t));
  end_copy_group();
  wait_for_copies<1>();
  for (int i = 0; i < 4; ++i) out[4 * t + i] = first[4 * t + i];
  wait_for_copies<0>();
  for (int i = 0; i < 4; ++i) out[4 * (WARP + t) + i] = second[4 * t + i];
}

// Copies the first `rows` of 32 rows of 16 bytes. The others become zeros and are not read.
__global__ void copy_some_rows(float* out, const float* in, int rows) {
  DYNAMIC_SHARED(memory);
  float* const numbers = reinterpret_cast<float*>(memory) + 4 * threadIdx.x;
  copy_or_zero_async(numbers, in + 4 * threadIdx.x, (int)threadIdx.x < rows);
  end_copy_group();
  wait_for_copies<0>();
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = numbers[i];
}

// Loads four 8x8 matrices, one after the other in memory.
template <bool TRANSPOSED>
__global__ void load_four(unsigned* out, const uint4* in) {
  DYNAMIC_SHARED(memory);
  uint4* const rows = reinterpret_cast<uint4*>(memory);
  rows[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  unsigned fragments[4];
  if (TRANSPOSED) {
    load_matrices_transposed(fragments, rows + threadIdx.x);
  } else {
    load_matrices(fragments, rows + threadIdx.x);
  }
  for (int m = 0; m < 4; ++m) out[4 * threadIdx.x + m] = fragments[m];
}

// C += A B. A and C are stored by rows, and B by columns, as an array (8, 16): the layout of the fragments.
template <class T>
__global__ void add_product(float* c, const T* a, const T* b) {
  const int i = threadIdx.x / 4, j = threadIdx.x % 4 * 2;
  const auto two = [](const T* from) { return from[0].bits | (unsigned)from[1].bits << 16; };
  const unsigned of_a[4] = {two(a + i * 16 + j), two(a + (i + 8) * 16 + j), two(a + i * 16 + j + 8),
                            two(a + (i + 8) * 16 + j + 8)};
  float of_c[4] = {c[i * 8 + j], c[i * 8 + j + 1], c[(i + 8) * 8 + j], c[(i + 8) * 8 + j + 1]};
  multiply_add<T>(of_c, of_a, two(b + i * 16 + j), two(b + i * 16 + j + 8));
  c[i * 8 + j] = of_c[0];
  c[i * 8 + j + 1] = of_c[1];
  c[(i + 8) * 8 + j] = of_c[2];
  c[(i + 8) * 8 + j + 1] = of_c[3];
}

__global__ void fast_functions(float* out, const float* in, int count) {
  for (int i = threadIdx.x; i < count; i += WARP) {
    out[i] = exp2_fast(in[i]);
    out[count + i] = reciprocal_fast(in[i]);
  }
}

__global__ void across_lanes(float* out, const float* in) {
  const float x = in[threadIdx.x];
  out[threadIdx.x] = warp_sum(x);
  out[WARP + threadIdx.x] = warp_max(x);
  out[2 * WARP + threadIdx.x] = __shfl_sync(ALL_LANES, x, 5);
}
