// context = softmax((Q + query_bias) K^T) V of each text and head, on packed tokens, on the tensor cores.
//
//   q (rows, q_stride), k, v (rows, kv_stride): views of wider arrays; a head has D columns of each, head 0 the first D
//   query_bias (heads D,)      context (rows of q, heads D), contiguous
//   tiles (n,): up to 64 queries of one text: {first row of its keys, how many keys, first row of the queries, how many}
//   grid    n x heads blocks of 128 threads: 4 warps of 16 queries      shared memory: 5 * 64 * D numbers
//
// Q comes scaled by 1 / sqrt(D), as the weights that made it are. Keys need no bias: it would add the same to all
// scores of a query. Nor do values: their bias goes through to the bias of the output projection.
//
// Keys and values come in tiles of 64, two of each in shared memory: while one is worked on, the next is copied.
// Scores are never stored: the softmax goes along with a running maximum and sum, and what is summed so far is rescaled
// when the maximum grows.
//   Dao, Fu, Ermon, Rudra and Re 2022, "FlashAttention", https://arxiv.org/abs/2205.14135, algorithm 1
//   Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", https://arxiv.org/abs/1805.02867
#include "common.cuh"

constexpr int TILE = 64;     // queries, and keys, of a tile
constexpr int THREADS = 128;
constexpr float LOG2_E = 1.44269504f;

// The place of 8 numbers, a chunk, in a tile in shared memory. Chunks of a row are permuted by the row, so that 8
// neighbouring rows have the same column in 8 different groups of banks, and load_matrices reads all at once.
template <int D>
DEVICE int place(int row, int chunk) {
  constexpr int CHUNKS = D / 8;
  constexpr int ROWS_PER_LINE = CHUNKS >= 8 ? 1 : 8 / CHUNKS;  // of the 128 bytes that all banks have
  constexpr int MASK = CHUNKS >= 8 ? 7 : CHUNKS - 1;
  return row * D + ((chunk ^ ((row / ROWS_PER_LINE) & MASK)) * 8);
}

// Begins to copy up to 64 rows of `from`, the first of them `first`, to a tile. The products read 16 rows at a time:
// what is missing of the last 16 is filled up with the last row, which is masked, and never with what may be NaN.
template <class T, int D>
DEVICE void copy_tile(T* tile, const T* from, int first, int rows, int stride) {
  const int copied = rows - first < TILE ? (rows - first + 15) & ~15 : TILE;
  for (int i = threadIdx.x; i < copied * (D / 8); i += THREADS) {
    const int r = i / (D / 8), chunk = i % (D / 8);
    const int source = first + r < rows ? first + r : rows - 1;
    copy_async(tile + place<D>(r, chunk), from + (size_t)source * stride + chunk * 8);
  }
}

// Blocks that a multiprocessor is to have room for: as many as registers allow without spilling.
constexpr int resident_blocks(int D) { return D <= 16 ? 5 : D <= 64 ? 4 : 2; }

template <class T, int D>
__global__ void __launch_bounds__(THREADS, resident_blocks(D))
attention(T* __restrict__ context, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
          const float* __restrict__ query_bias, const int4* __restrict__ tiles, int q_stride, int kv_stride,
          int heads) {
  DYNAMIC_SHARED(memory);
  T* const Q = reinterpret_cast<T*>(memory);
  T* const K = Q + TILE * D;      // two tiles
  T* const V = K + 2 * TILE * D;  // two tiles

  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int quad = lane / 4, pair = lane % 4 * 2;  // a lane has rows quad and quad + 8 of a product, columns pair, + 1
  const int4 tile = tiles[blockIdx.x];
  const int keys = tile.y, queries = tile.w, column = blockIdx.y * D;
  q += (size_t)tile.z * q_stride + column;  // 64 bits: there may be more than 2^31 numbers
  k += (size_t)tile.x * kv_stride + column;
  v += (size_t)tile.x * kv_stride + column;
  const bool has_queries = warp * 16 < queries;  // a warp without any copies, and waits, with the others

  copy_tile<T, D>(Q, q, 0, queries, q_stride);
  copy_tile<T, D>(K, k, 0, keys, kv_stride);
  end_copy_group();
  copy_tile<T, D>(V, v, 0, keys, kv_stride);
  end_copy_group();

  unsigned q_fragments[D / 16][4];
  float sums[D / 8][4] = {};                      // of weights times values: columns 8 i + pair, of both rows
  float most[2] = {-INFINITE, -INFINITE};         // of the scores so far, times log2(e)
  float total[2] = {0, 0};                        // of the weights, in this lane

  for (int first = 0, stage = 0; first < keys; first += TILE, stage ^= 1) {
    const T* const K_tile = K + stage * TILE * D;
    const T* const V_tile = V + stage * TILE * D;
    const int left = keys - first;
    const bool is_last = left <= TILE;

    wait_for_copies<1>();  // this tile's keys, and the queries, are here
    __syncthreads();       // for all threads; and nobody reads the other tile of keys any more
    if (first == 0 && has_queries) {
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        load_matrices(q_fragments[d], Q + place<D>(warp * 16 + lane % 16, d * 2 + lane / 16));
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // rows quad (even i) and quad + 8 (odd); columns pair (i < 2) and pair + 8
          const float* const bias = query_bias + column + d * 16 + i / 2 * 8 + pair;
          float low, high;
          unpack<T>(q_fragments[d][i], low, high);
          q_fragments[d][i] = pack<T>(low + bias[0], high + bias[1]);
        }
      }
    }
    if (!is_last) copy_tile<T, D>(K + (stage ^ 1) * TILE * D, k, first + TILE, keys, kv_stride);
    end_copy_group();

    float scores[TILE / 8][4] = {};  // keys 8 n + pair; after the softmax, the weights
    if (has_queries) {
#pragma unroll
      for (int d = 0; d < D / 16; ++d)
#pragma unroll
        for (int n = 0; n < TILE / 16; ++n)
          if (n * 16 < left) {
            unsigned b[4];
            load_matrices(b, K_tile + place<D>(n * 16 + lane % 8 + lane / 16 * 8, d * 2 + lane / 8 % 2));
            multiply_add<T>(scores[2 * n], q_fragments[d], b[0], b[1]);
            multiply_add<T>(scores[2 * n + 1], q_fragments[d], b[2], b[3]);
          }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float largest = most[row];
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[n][2 * row + i];
            score = n * 8 + pair + i < left ? score * LOG2_E : -INFINITE;
            largest = fmaxf(largest, score);
          }
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));  // the four lanes of a row
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
        const float rescale = exp2_fast(most[row] - largest);  // 0 in the first tile; there is a key, so no NaN
        most[row] = largest;
        total[row] *= rescale;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          sums[n][2 * row] *= rescale;
          sums[n][2 * row + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[n][2 * row + i];
            score = exp2_fast(score - largest);
            total[row] += score;
          }
      }
    }

    wait_for_copies<1>();  // this tile's values are here
    __syncthreads();       // for all threads; and nobody reads the other tile of values any more
    if (!is_last) copy_tile<T, D>(V + (stage ^ 1) * TILE * D, v, first + TILE, keys, kv_stride);
    end_copy_group();
#pragma unroll
    for (int n = 0; n < TILE / 16; ++n)
      if (has_queries && n * 16 < left) {
        const float(&low)[4] = scores[2 * n], (&high)[4] = scores[2 * n + 1];
        const unsigned weights[4] = {pack<T>(low[0], low[1]), pack<T>(low[2], low[3]), pack<T>(high[0], high[1]),
                                     pack<T>(high[2], high[3])};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
          unsigned b[4];
          load_matrices_transposed(b, V_tile + place<D>(n * 16 + lane % 16, d * 2 + lane / 16));
          multiply_add<T>(sums[2 * d], weights, b[0], b[1]);
          multiply_add<T>(sums[2 * d + 1], weights, b[2], b[3]);
        }
      }
  }
  if (!has_queries) return;

#pragma unroll
  for (int row = 0; row < 2; ++row) {
    total[row] += __shfl_xor_sync(ALL_LANES, total[row], 1);
    total[row] += __shfl_xor_sync(ALL_LANES, total[row], 2);
    const int r = warp * 16 + row * 8 + quad;
    if (r >= queries) continue;
    T* const out = context + ((size_t)tile.z + r) * heads * D + column + pair;
    const float share = 1.f / total[row];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      store_pair(out + n * 8, pack<T>(sums[n][2 * row] * share, sums[n][2 * row + 1] * share));
    }
  }
}
