// context = softmax((Q + query_bias) K^T + bias) V for each text and head, on packed tokens, for any head size up to
// 128 and any type. It is for the cases that attention.cu does not support. The arguments are the same, and `size`, the
// head size, before `distance_bias`.
//
//   CHUNKS  numbers of a head per lane: size <= 32 CHUNKS
//   tiles   up to 16 queries each; a tile without queries is skipped
//   grid    tiles x heads blocks of 128 threads: 4 warps of 4 queries
//   shared  (16 size + 32 (size + 1) + 32 size) floats
//
// Keys and values are read in tiles of 32. For the scores, each lane has one key. For the sums of values, each lane has
// CHUNKS columns.
#include "common.cuh"

constexpr int QUERIES = 16, KEYS = 32, THREADS = 128, QUERIES_PER_WARP = 4;

template <class T, int CHUNKS, bool BIASED>
__global__ void __launch_bounds__(THREADS, 5)
attention_general(T* __restrict__ context, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                  const float* __restrict__ query_bias, const int4* __restrict__ tiles, int q_stride, int kv_stride,
                  int heads, int size, const float* __restrict__ distance_bias, int distances, int only_first) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int4 tile = tiles[blockIdx.x];
  const int keys = tile.y, queries = tile.w, column = blockIdx.y * size;
  if (queries == 0) return;  // for the whole block
  DYNAMIC_SHARED(memory);
  float* const Q = reinterpret_cast<float*>(memory);
  float* const K = Q + QUERIES * size;      // size + 1 numbers per row: a column of keys is in different banks
  float* const V = K + KEYS * (size + 1);

  q += (size_t)tile.z * q_stride + column;  // 64 bits: there may be more than 2^31 numbers
  k += (size_t)tile.x * kv_stride + column;
  v += (size_t)tile.x * kv_stride + column;

  for (int i = threadIdx.x; i < queries * size; i += THREADS) {
    const int r = i / size, c = i % size;
    Q[i] = to_float(q[(size_t)r * q_stride + c]) + query_bias[column + c];
  }
  const int first_query = only_first ? 0 : tile.z - tile.x;  // its index in the text
  const float* const bias = distance_bias + blockIdx.y * distances + distances / 2 - first_query;
  float most[QUERIES_PER_WARP], total[QUERIES_PER_WARP] = {}, sums[QUERIES_PER_WARP][CHUNKS] = {};
#pragma unroll
  for (int n = 0; n < QUERIES_PER_WARP; ++n) most[n] = -INFINITE;

  for (int first = 0; first < keys; first += KEYS) {
    const int here = keys - first < KEYS ? keys - first : KEYS;
    __syncthreads();  // no thread reads the last tile any more
    for (int i = threadIdx.x; i < here * size; i += THREADS) {
      const int r = i / size, c = i % size;
      K[r * (size + 1) + c] = to_float(k[(size_t)(first + r) * kv_stride + c]);
      V[r * size + c] = to_float(v[(size_t)(first + r) * kv_stride + c]);
    }
    __syncthreads();  // this tile and the queries are stored
#pragma unroll
    for (int n = 0; n < QUERIES_PER_WARP; ++n) {
      const int query = warp * QUERIES_PER_WARP + n;
      if (query >= queries) break;  // for the whole warp
      float score = -INFINITE;
      if (lane < here) {
        score = 0;
        for (int c = 0; c < size; ++c) score += Q[query * size + c] * K[lane * (size + 1) + c];
        if (BIASED) score += bias[first + lane - query];
      }
      const float largest = fmaxf(most[n], warp_max(score));
      const float rescale = expf(most[n] - largest);  // 0 in the first tile; never NaN: there is at least one key
      const float weight = expf(score - largest);
      most[n] = largest;
      total[n] = total[n] * rescale + weight;
#pragma unroll
      for (int i = 0; i < CHUNKS; ++i) sums[n][i] *= rescale;
      for (int r = 0; r < here; ++r) {
        const float w = __shfl_sync(ALL_LANES, weight, r);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
          if (i * WARP + lane < size) sums[n][i] += w * V[r * size + i * WARP + lane];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < QUERIES_PER_WARP; ++n) {
    const int query = warp * QUERIES_PER_WARP + n;
    if (query >= queries) break;  // for the whole warp
    const float share = 1.f / warp_sum(total[n]);
    T* const out = context + ((size_t)tile.z + query) * heads * size + column;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i)
      if (i * WARP + lane < size) out[i * WARP + lane] = from_float<T>(sums[n][i] * share);
  }
}
