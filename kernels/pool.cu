// From the hidden states of each text's tokens to one vector, by one or several modes side by side, and on request
// scaled to length 1: minibert.pooling has the definitions.
//
//   hidden (tokens, width)      out (texts, number of modes * width), float
//   cu_seqlens (texts + 1,): text i has the rows from cu_seqlens[i] to cu_seqlens[i + 1]; it may have none
//   modes     four bits a mode, the first mode lowest: a Mode, and 0 after the last
//   exclude   how many of each text's first tokens, a prompt, are left out
//   grid      texts blocks of 256 threads: a thread has every 256th column      shared memory: 8 floats
#include "common.cuh"

enum Mode { CLS = 1, LAST_TOKEN, MAX, MEAN, MEAN_SQRT_LEN, WEIGHTED_MEAN };

constexpr int THREADS = 256;

template <class T>
__global__ void __launch_bounds__(THREADS, 4)
pool(float* __restrict__ out, const T* __restrict__ hidden, const int* __restrict__ cu_seqlens, int modes, int exclude,
     int normalize, int width) {
  DYNAMIC_SHARED(memory);
  float* const of_warps = reinterpret_cast<float*>(memory);
  const int start = cu_seqlens[blockIdx.x], tokens = cu_seqlens[blockIdx.x + 1] - start;
  const int first = exclude < tokens ? exclude : tokens;  // of those that are pooled
  const float count = (float)(tokens - first);
  // The weights of a weighted mean are positions from 1: those that are left out keep theirs.
  const float weights = 0.5f * ((float)tokens * (float)(tokens + 1) - (float)first * (float)(first + 1));
  int number_of_modes = 0;
  bool reads_all = false;
  for (int left = modes; left; left >>= 4) {
    ++number_of_modes;
    reads_all |= (left & 15) >= MAX;
  }
  hidden += (size_t)start * width;  // 64 bits: there may be more than 2^31 numbers
  out += (size_t)blockIdx.x * number_of_modes * width;

  float squares = 0;
  for (int c = threadIdx.x; c < width; c += THREADS) {
    float sum = 0, weighted = 0, largest = -INFINITE;
    if (reads_all)
      for (int t = first; t < tokens; ++t) {
        const float x = to_float(hidden[(size_t)t * width + c]);
        sum += x;
        weighted += x * (float)(t + 1);
        largest = fmaxf(largest, x);
      }
    int column = c;
    for (int left = modes; left; left >>= 4, column += width) {
      const int mode = left & 15;
      float y = 0;  // what all modes but MAX give where there is no token
      if (mode == MAX) y = largest;
      if (mode == CLS && tokens > 0) y = to_float(hidden[(size_t)(first < tokens ? first : 0) * width + c]);
      if (first < tokens) {
        if (mode == LAST_TOKEN) y = to_float(hidden[(size_t)(tokens - 1) * width + c]);
        if (mode == MEAN) y = sum / count;
        if (mode == MEAN_SQRT_LEN) y = sum / sqrtf(count);
        if (mode == WEIGHTED_MEAN) y = weighted / weights;
      }
      out[column] = y;
      squares += y * y;
    }
  }
  if (!normalize) return;
  squares = warp_sum(squares);
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = squares;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < THREADS / WARP; ++i) total += of_warps[i];
  const float scale = 1.f / fmaxf(sqrtf(total), 1e-12f);
  for (int c = threadIdx.x; c < width; c += THREADS)
    for (int i = 0; i < number_of_modes; ++i) out[(size_t)i * width + c] *= scale;
}
