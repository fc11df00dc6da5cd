// The steps of attention with tensor cores, for a warp with 16 queries of one head. attention.cu and attention_short.cu
// both use these steps, so that they give the same bits for the same text.
#pragma once
#include "common.cuh"

constexpr float LOG2_E = 1.44269504f;

// The part of a lane in a product of 16 rows and 8 columns: rows quad() and quad() + 8, columns pair() and pair() + 1.
DEVICE int quad() { return threadIdx.x % WARP / 4; }
DEVICE int pair() { return threadIdx.x % 4 * 2; }

// The offset of a chunk (8 numbers) of a tile in shared memory. The chunks of a row are permuted, and the permutation
// depends on the row. So a column of 8 consecutive rows is in 8 different groups of banks, and load_matrices reads it
// without bank conflicts. Any 16 rows of a tile that begin at a multiple of 16 are also a tile.
template <int D>
DEVICE int place(int row, int chunk) {
  constexpr int CHUNKS = D / 8;
  constexpr int ROWS_PER_LINE = CHUNKS >= 8 ? 1 : 8 / CHUNKS;  // a line is 128 bytes: all banks
  constexpr int MASK = CHUNKS >= 8 ? 7 : CHUNKS - 1;
  return row * D + ((chunk ^ ((row / ROWS_PER_LINE) & MASK)) * 8);
}

// Starts to copy the first `rows` rows of `from`, at most ROWS, to a tile. Each of THREADS threads copies its part.
// The products read 16 rows at a time. Missing rows of the last 16 become zeros, because other memory may contain NaN.
template <class T, int D, int ROWS, int THREADS>
DEVICE void copy_tile(T* tile, const T* from, int rows, int stride, int thread) {
  constexpr int ROWS_AT_ONCE = THREADS / (D / 8) < ROWS ? THREADS / (D / 8) : ROWS;
  const int chunk = thread % (D / 8), first = thread / (D / 8);
#pragma unroll
  for (int i = 0; i < ROWS; i += ROWS_AT_ONCE) {
    const int r = first + i;
    if (r < ((rows + 15) & ~15) && r < ROWS) {
      const bool is_there = r < rows;
      copy_or_zero_async(tile + place<D>(r, chunk), from + (size_t)(is_there ? r : 0) * stride + chunk * 8, is_there);
    }
  }
}

// Loads 16 queries from a tile and adds the bias.
template <class T, int D>
DEVICE void load_queries(unsigned (&q)[D / 16][4], const T* tile, const float* query_bias) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    load_matrices(q[d], tile + place<D>(lane % 16, d * 2 + lane / 16));
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // rows quad (even i) and quad + 8 (odd); columns pair (i < 2) and pair + 8
      float bias[2], low, high;
      load_floats(bias, query_bias + d * 16 + i / 2 * 8 + pair());
      unpack<T>(q[d][i], low, high);
      q[d][i] = pack<T>(low + bias[0], high + bias[1]);
    }
  }
}

// Adds the products of columns 16 d to 16 d + 15 to the scores of 16 keys. `low` has the first 8 keys, `high` the rest.
template <class T, int D>
DEVICE void add_scores(float (&low)[4], float (&high)[4], const unsigned (&q)[4], const T* keys, int d) {
  const int lane = threadIdx.x % WARP;
  unsigned b[4];
  load_matrices(b, keys + place<D>(lane % 8 + lane / 16 * 8, d * 2 + lane / 8 % 2));
  multiply_add<T>(low, q, b[0], b[1]);
  multiply_add<T>(high, q, b[2], b[3]);
}

// Sets the scores of one of a lane's two rows to the bias by distance; then add_scores adds the products to them.
// `bias` has those of the query and each key, in order. If MASKED, only the first `keys` of the 8 N keys exist, and
// nothing is read for the others.
template <int N, bool MASKED>
DEVICE void start_scores(float (&scores)[N][4], int row, int keys, const float* bias) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = n * 8 + pair() + i;
      if (!MASKED || key < keys) scores[n][2 * row + i] = bias[key];
    }
}

// Turns the scores of one of a lane's two rows into weights, 2^(LOG2_E (score - largest)). `largest` is the maximum of
// these scores and of `most`, the largest score of the row so far. `most` becomes `largest`. Adds the weights to
// `total`, the sum of this lane's weights. Returns the factor for the sums so far: 0 at the first scores. If MASKED,
// only the first `keys` of the 8 N keys exist. There must be at least one, else the result would be NaN.
template <int N, bool MASKED>
DEVICE float weigh(float (&scores)[N][4], int row, int keys, float& most, float& total) {
  float largest = most;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& score = scores[n][2 * row + i];
      if (MASKED && n * 8 + pair() + i >= keys) score = -INFINITE;
      largest = fmaxf(largest, score);
    }
  largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));  // the four lanes of a row
  largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
  const float shift = -largest * LOG2_E;
  const float rescale = exp2_fast(fmaf(most, LOG2_E, shift));
  most = largest;
  total *= rescale;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& score = scores[n][2 * row + i];
      score = exp2_fast(fmaf(score, LOG2_E, shift));
      total += score;
    }
  return rescale;
}

// Adds the values of 16 keys, times their weights, to the sums.
template <class T, int D>
DEVICE void add_values(float (&sums)[D / 8][4], const float (&low)[4], const float (&high)[4], const T* values) {
  const int lane = threadIdx.x % WARP;
  const unsigned weights[4] = {pack<T>(low[0], low[1]), pack<T>(low[2], low[3]), pack<T>(high[0], high[1]),
                               pack<T>(high[2], high[3])};
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    unsigned b[4];
    load_matrices_transposed(b, values + place<D>(lane % 16, d * 2 + lane / 16));
    multiply_add<T>(sums[2 * d], weights, b[0], b[1]);
    multiply_add<T>(sums[2 * d + 1], weights, b[2], b[3]);
  }
}

// Divides 16 rows of sums by their totals, and writes the first `rows` rows to `out`. The rows go through a tile that
// only this warp uses, so that a lane writes 16 bytes at a time.
template <class T, int D>
DEVICE void store_rows(T* out, int stride, T* tile, const float (&sums)[D / 8][4], const float (&totals)[2], int rows) {
  __syncwarp();  // no lane reads the tile any more
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float total = totals[row];
    total += __shfl_xor_sync(ALL_LANES, total, 1);
    total += __shfl_xor_sync(ALL_LANES, total, 2);
    const float share = 1.f / total;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      T* const to = tile + place<D>(row * 8 + quad(), n) + pair();
      store_pair(to, pack<T>(sums[n][2 * row] * share, sums[n][2 * row + 1] * share));
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16 * (D / 8); i += WARP) {
    const int r = (i + threadIdx.x % WARP) / (D / 8), chunk = (i + threadIdx.x % WARP) % (D / 8);
    if (r >= rows) break;
    const auto numbers = *reinterpret_cast<const Vector<T, 8>*>(tile + place<D>(r, chunk));
    *reinterpret_cast<Vector<T, 8>*>(out + (size_t)r * stride + chunk * 8) = numbers;
  }
}
