// The same as attention.cu, for texts of up to 16 keys. A warp has one text and one head, and waits for no other warp.
// The bits are the same as those of attention.cu. The arguments are the same, and `count`, the number of tiles, before
// `distance_bias`. There is no `only_first`: the first query of a tile is always the first token of its text.
//
//   tiles   up to 16 queries each, of texts of 1 to 16 keys; a tile without queries is skipped
//   grid    ceil(count heads / 4) blocks of 128 threads: 4 warps; the heads of a tile are in consecutive warps
//   shared  4 * 3 * 16 * D numbers
#include "attention.cuh"

constexpr int TILE = 16;  // number of queries, and of keys, of a warp
constexpr int THREADS = 128;

template <class T, int D, bool BIASED>
__global__ void __launch_bounds__(THREADS, D <= 64 ? 8 : 4)
attention_short(T* __restrict__ context, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                const float* __restrict__ query_bias, const int4* __restrict__ tiles, int q_stride, int kv_stride,
                int heads, int count, const float* __restrict__ distance_bias, int distances) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int number = blockIdx.x * (THREADS / WARP) + warp;
  if (number >= count * heads) return;  // for the whole warp
  const int4 tile = tiles[number / heads];
  const int keys = tile.y, queries = tile.w, head = number % heads, column = head * D;
  if (queries == 0) return;  // for the whole warp
  DYNAMIC_SHARED(memory);
  T* const Q = reinterpret_cast<T*>(memory) + warp * 3 * TILE * D;
  T* const K = Q + TILE * D;
  T* const V = K + TILE * D;

  copy_tile<T, D, TILE, WARP>(Q, q + (size_t)tile.z * q_stride + column, queries, q_stride, lane);
  copy_tile<T, D, TILE, WARP>(K, k + (size_t)tile.x * kv_stride + column, keys, kv_stride, lane);
  end_copy_group();
  copy_tile<T, D, TILE, WARP>(V, v + (size_t)tile.x * kv_stride + column, keys, kv_stride, lane);
  end_copy_group();

  wait_for_copies<1>();  // queries and keys are copied
  __syncwarp();          // for all lanes
  unsigned q_fragments[D / 16][4];
  load_queries<T, D>(q_fragments, Q, query_bias + column);
  float scores[TILE / 8][4] = {};
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int of_lane = row * 8 + quad(), query = of_lane < queries ? of_lane : queries - 1;
    const float* const bias = distance_bias + head * distances + distances / 2 - query;
    if (BIASED) start_scores<TILE / 8, true>(scores, row, keys, bias);
  }
#pragma unroll
  for (int d = 0; d < D / 16; ++d) add_scores<T, D>(scores[0], scores[1], q_fragments[d], K, d);
  float total[2] = {0, 0};
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float most = -INFINITE;
    weigh<TILE / 8, true>(scores, row, keys, most, total[row]);
  }

  wait_for_copies<0>();  // values are copied
  __syncwarp();          // for all lanes
  float sums[D / 8][4] = {};
  add_values<T, D>(sums, scores[0], scores[1], V);
  store_rows<T, D>(context + (size_t)tile.z * heads * D + column, heads * D, Q, sums, total, queries);
}
