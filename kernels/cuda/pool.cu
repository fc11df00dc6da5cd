// Pools the hidden states of each text's tokens to one vector: the concatenated results of one or several modes.
// minibert.pooling has the definitions.
//
//   hidden (tokens, width)      out (texts, number of modes * width), float
//   cu_seqlens (texts + 1,): text i has the rows from cu_seqlens[i] to cu_seqlens[i + 1] - 1; it may have none
//   modes     four bits for each Mode, the first mode in the lowest bits; 0 after the last mode
//   exclude   number of tokens at the start of each text (a prompt) that are left out
//   N         numbers in a vector, of up to 16 bytes: width is a multiple of it
//   grid      texts x slices of 16 N columns, blocks of 256 threads      shared memory: 3 * 8 * 16 N floats
//
// A thread reads one vector of columns of every 16th token, so many threads read a long text. The split of tokens over
// threads depends only on the text and the width. So the bits of the result depend only on these, too.
#include "common.cuh"

enum Mode { CLS = 1, LAST_TOKEN, MAX, MEAN, MEAN_SQRT_LEN, WEIGHTED_MEAN };
enum Statistic { SUM, WEIGHTED_SUM, LARGEST, STATISTICS };

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int VECTORS = 16, GROUPS = THREADS / VECTORS;  // of columns per slice, and of tokens; a warp has two groups

template <class T, int N>
__global__ void __launch_bounds__(THREADS, 4)
pool(float* __restrict__ out, const T* __restrict__ hidden, const int* __restrict__ cu_seqlens, int modes, int exclude,
     int width) {
  constexpr int COLUMNS = VECTORS * N;
  static_assert(COLUMNS <= THREADS);
  DYNAMIC_SHARED(memory);
  float* const of_warps = reinterpret_cast<float*>(memory);  // (STATISTICS, WARPS, COLUMNS)
  const int start = cu_seqlens[blockIdx.x], tokens = cu_seqlens[blockIdx.x + 1] - start;
  const int first = exclude < tokens ? exclude : tokens;  // the first token to pool
  int number_of_modes = 0;
  bool reads_all = false;
  for (int left = modes; left; left >>= 4) {
    ++number_of_modes;
    reads_all |= (left & 15) >= MAX;
  }
  hidden += (size_t)start * width + blockIdx.y * COLUMNS;  // 64 bits: there may be more than 2^31 numbers
  out += (size_t)blockIdx.x * number_of_modes * width + blockIdx.y * COLUMNS;
  const int columns = width - (int)blockIdx.y * COLUMNS;  // columns left; this block has at most COLUMNS

  if (reads_all) {
    const int vector = threadIdx.x % VECTORS, group = threadIdx.x / VECTORS;
    float sum[N] = {}, weighted[N] = {}, largest[N];
#pragma unroll
    for (int j = 0; j < N; ++j) largest[j] = -INFINITE;
    if (vector * N < columns)
#pragma unroll 4
      for (int t = first + group; t < tokens; t += GROUPS) {
        const auto x = *reinterpret_cast<const Vector<T, N>*>(hidden + (size_t)t * width + vector * N);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float number = to_float(x.at[j]);
          sum[j] += number;
          weighted[j] += number * (float)(t + 1);
          largest[j] = fmaxf(largest[j], number);
        }
      }
#pragma unroll
    for (int j = 0; j < N; ++j) {  // combine the two groups of the warp
      sum[j] += __shfl_xor_sync(ALL_LANES, sum[j], VECTORS);
      weighted[j] += __shfl_xor_sync(ALL_LANES, weighted[j], VECTORS);
      largest[j] = fmaxf(largest[j], __shfl_xor_sync(ALL_LANES, largest[j], VECTORS));
    }
    if (threadIdx.x % WARP < VECTORS) {
      float* const to = of_warps + threadIdx.x / WARP * COLUMNS + vector * N;
      store_floats(to + SUM * WARPS * COLUMNS, sum);
      store_floats(to + WEIGHTED_SUM * WARPS * COLUMNS, weighted);
      store_floats(to + LARGEST * WARPS * COLUMNS, largest);
    }
    __syncthreads();
  }

  const int c = threadIdx.x;
  if (c >= COLUMNS || c >= columns) return;
  const auto sum_of = [&](int statistic) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) total += of_warps[(statistic * WARPS + w) * COLUMNS + c];
    return total;
  };
  const float count = (float)(tokens - first);
  // The weights of a weighted mean are the positions, counted from 1. Excluded tokens keep their positions.
  const float weights = 0.5f * ((float)tokens * (float)(tokens + 1) - (float)first * (float)(first + 1));
  for (int left = modes; left; left >>= 4, out += width) {
    const int mode = left & 15;
    float y = 0;  // the result of all modes except MAX if there is no token
    if (mode == MAX) {
      y = -INFINITE;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) y = fmaxf(y, of_warps[(LARGEST * WARPS + w) * COLUMNS + c]);
    }
    if (mode == CLS && tokens > 0) y = to_float(hidden[(size_t)(first < tokens ? first : 0) * width + c]);
    if (first < tokens) {
      if (mode == LAST_TOKEN) y = to_float(hidden[(size_t)(tokens - 1) * width + c]);
      if (mode == MEAN) y = sum_of(SUM) / count;
      if (mode == MEAN_SQRT_LEN) y = sum_of(SUM) / sqrtf(count);
      if (mode == WEIGHTED_MEAN) y = sum_of(WEIGHTED_SUM) / weights;
    }
    out[c] = y;
  }
}
