// context = softmax((Q + query_bias) K^T + bias) V for each text and head, on packed tokens, with tensor cores.
//
//   q (rows, q_stride), k, v (rows, kv_stride): views of wider arrays; a head has D columns of each, head 0 the first D
//   query_bias (heads D,)      context (rows of q, heads D), contiguous
//   tiles (n,): each has up to 64 queries of a text: {first row of keys, number of keys, first row of queries, number
//           of queries}; a tile without queries is skipped
//   BIASED  whether there is a bias by distance; without it, the next three arguments are not used
//   distance_bias (heads, distances): what is added to the score of query i and key j of a text is at j - i; the middle
//           number is that of distance 0, and no text has more than (distances + 1) / 2 tokens
//   only_first  whether the only query of each text is its first token; else all tokens are queries, in the same rows
//   grid    n x heads blocks of 128 threads: 4 warps of 16 queries      shared memory: 5 * 64 * D numbers
//
// Q is already scaled by 1 / sqrt(D), because the query weights are. Keys need no bias: it would add the same number to
// all scores of a query. Values need no bias either: the bias of the output projection includes it.
//
// Keys and values are read in tiles of 64. Shared memory has two tiles of each: the block copies the next tile while it
// works on the current one. Scores are never stored in memory. The softmax has a running maximum and a running sum.
// When the maximum grows, the sums so far are rescaled.
//   Dao, Fu, Ermon, Rudra and Re 2022, "FlashAttention", https://arxiv.org/abs/2205.14135, algorithm 1
//   Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", https://arxiv.org/abs/1805.02867
#include "attention.cuh"

constexpr int TILE = 64;     // number of queries, and of keys, of a tile
constexpr int THREADS = 128;

// Computes the scores of a warp's queries for a tile of keys, turns them into weights, and rescales the sums so far.
// ALL: the tile has all its 64 keys. `bias` has those of the first of the block's `queries` and each key, in order.
template <class T, int D, bool BIASED, bool ALL>
DEVICE void weigh_tile(float (&scores)[TILE / 8][4], float (&sums)[D / 8][4], float (&most)[2], float (&total)[2],
                       const unsigned (&q)[D / 16][4], const T* K, int keys, const float* bias, int queries) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int of_lane = threadIdx.x / WARP * 16 + row * 8 + quad(), query = of_lane < queries ? of_lane : queries - 1;
    if (BIASED) start_scores<TILE / 8, !ALL>(scores, row, keys, bias - query);
  }
#pragma unroll
  for (int d = 0; d < D / 16; ++d)
#pragma unroll
    for (int n = 0; n < TILE / 16; ++n)
      if (ALL || n * 16 < keys) add_scores<T, D>(scores[2 * n], scores[2 * n + 1], q[d], K + n * 16 * D, d);
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float rescale = weigh<TILE / 8, !ALL>(scores, row, keys, most[row], total[row]);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      sums[n][2 * row] *= rescale;
      sums[n][2 * row + 1] *= rescale;
    }
  }
}

// The number of blocks that a multiprocessor must have room for: as many as possible without register spills. If shared
// memory is small, fewer blocks fit.
#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
constexpr int resident_blocks(int D) { return D <= 16 ? 5 : D <= 64 ? 4 : 2; }
#else
constexpr int resident_blocks(int D) { return D <= 16 ? 5 : D <= 32 ? 3 : 1; }
#endif

template <class T, int D, bool BIASED>
__global__ void __launch_bounds__(THREADS, resident_blocks(D))
attention(T* __restrict__ context, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
          const float* __restrict__ query_bias, const int4* __restrict__ tiles, int q_stride, int kv_stride,
          int heads, const float* __restrict__ distance_bias, int distances, int only_first) {
  const int4 tile = tiles[blockIdx.x];
  const int keys = tile.y, queries = tile.w, column = blockIdx.y * D;
  if (queries == 0) return;  // for the whole block
  DYNAMIC_SHARED(memory);
  T* const Q = reinterpret_cast<T*>(memory);
  T* const K = Q + TILE * D;      // two tiles
  T* const V = K + 2 * TILE * D;  // two tiles

  const int warp = threadIdx.x / WARP;
  q += (size_t)tile.z * q_stride + column;  // 64 bits: there may be more than 2^31 numbers
  k += (size_t)tile.x * kv_stride + column;
  v += (size_t)tile.x * kv_stride + column;
  const bool has_queries = warp * 16 < queries;  // a warp without queries still copies and waits
  T* const of_warp = Q + warp * 16 * D;

  copy_tile<T, D, TILE, THREADS>(Q, q, queries, q_stride, threadIdx.x);
  copy_tile<T, D, TILE, THREADS>(K, k, keys, kv_stride, threadIdx.x);
  end_copy_group();
  copy_tile<T, D, TILE, THREADS>(V, v, keys, kv_stride, threadIdx.x);
  end_copy_group();

  unsigned q_fragments[D / 16][4];
  float sums[D / 8][4] = {};               // of weights times values
  float most[2] = {-INFINITE, -INFINITE};  // the largest score so far of each row
  float total[2] = {0, 0};                 // the sum of this lane's weights of each row

  const int first_query = only_first ? 0 : tile.z - tile.x;  // its index in the text
  const float* const bias = distance_bias + blockIdx.y * distances + distances / 2 - first_query;

  for (int first = 0, stage = 0; first < keys; first += TILE, stage ^= 1) {
    const T* const K_tile = K + stage * TILE * D;
    const T* const V_tile = V + stage * TILE * D;
    const int left = keys - first, next = first + TILE;
    const bool is_last = left <= TILE;

    wait_for_copies<1>();  // this tile's keys and the queries are copied
    __syncthreads();       // for all threads; and nobody reads the other tile of keys any more
    if (first == 0 && has_queries) load_queries<T, D>(q_fragments, of_warp, query_bias + column);
    if (!is_last) {
      T* const to = K + (stage ^ 1) * TILE * D;
      copy_tile<T, D, TILE, THREADS>(to, k + (size_t)next * kv_stride, left - TILE, kv_stride, threadIdx.x);
    }
    end_copy_group();

    float scores[TILE / 8][4] = {};  // later, the weights
    const float* const of_keys = bias + first;
    if (has_queries && left >= TILE)
      weigh_tile<T, D, BIASED, true>(scores, sums, most, total, q_fragments, K_tile, left, of_keys, queries);
    if (has_queries && left < TILE)
      weigh_tile<T, D, BIASED, false>(scores, sums, most, total, q_fragments, K_tile, left, of_keys, queries);

    wait_for_copies<1>();  // this tile's values are copied
    __syncthreads();       // for all threads; and no thread reads the other tile of values any more
    if (!is_last) {
      T* const to = V + (stage ^ 1) * TILE * D;
      copy_tile<T, D, TILE, THREADS>(to, v + (size_t)next * kv_stride, left - TILE, kv_stride, threadIdx.x);
    }
    end_copy_group();
#pragma unroll
    for (int n = 0; n < TILE / 16; ++n)
      if (has_queries && n * 16 < left) {
        add_values<T, D>(sums, scores[2 * n], scores[2 * n + 1], V_tile + n * 16 * D);
      }
  }
  if (!has_queries) return;
  T* const out = context + ((size_t)tile.z + warp * 16) * heads * D + column;
  store_rows<T, D>(out, heads * D, of_warp, sums, total, queries - warp * 16);
}
