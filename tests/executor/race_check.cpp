// Runs the kernels with barriers under a sanitizer, without Python. tests/test_kernel_sanitizers.py builds it.
#include <random>

#include "attention.cu"

namespace brief {
#include "attention_short.cu"
}
namespace general {
#include "attention_general.cu"
}
namespace pooling {
#include "pool.cu"
}

template <class Kernel>
int run(Kernel kernel, const char* name, unsigned blocks, unsigned heads, unsigned threads, size_t shared,
        void** arguments) {
  const unsigned grid[3] = {blocks, heads, 1}, size[3] = {threads, 1, 1};
  char error[300] = "";
  const int failed = executor::launch(kernel, grid, size, shared, arguments, error, sizeof error);
  printf("%s: %s\n", name, failed ? error : "ok");
  return failed;
}

int main() {
  constexpr int SIZE = 32;
  int heads = 2, stride = 3 * heads * SIZE, width = heads * SIZE, tokens = 0;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<int4> tiles, small_tiles, short_tiles;
  std::vector<int> cu_seqlens = {0};
  for (int length : {5, 1, 15, 17, 70, 140}) {
    if (length <= 16) short_tiles.push_back({tokens, length, tokens, length});
    for (int i = 0; i < length; i += 64) tiles.push_back({tokens, length, tokens + i, std::min(64, length - i)});
    for (int i = 0; i < length; i += 16) small_tiles.push_back({tokens, length, tokens + i, std::min(16, length - i)});
    cu_seqlens.push_back(tokens += length);
  }
  std::vector<float16> qkv((size_t)tokens * stride), context((size_t)tokens * width);
  for (float16& x : qkv) x = from_float<float16>(normal(random));
  std::vector<float> bias(width, 0.1f), vectors(6 * 2 * width);
  int distances = 2 * 140 - 1, short_distances = 2 * 15 - 1, only_first = 0;  // as few as the texts allow
  std::vector<float> of_distance(heads * distances, 0.1f), of_short_distance(heads * short_distances, 0.1f);

  float16 *out = context.data(), *q = qkv.data(), *k = q + width, *v = k + width;
  float *b = bias.data(), *y = vectors.data(), *d = of_distance.data(), *short_d = of_short_distance.data();
  int4 *t = tiles.data(), *small = small_tiles.data(), *of_short = short_tiles.data();
  int count = short_tiles.size(), head_size = SIZE, modes = 0x34, exclude = 1, *cu = cu_seqlens.data();
  void* arguments[] = {&out, &q, &k, &v, &b, &t, &stride, &stride, &heads, &d, &distances, &only_first};
  void* of_brief[] = {&out,    &q,      &k,     &v,     &b,       &of_short,
                      &stride, &stride, &heads, &count, &short_d, &short_distances};
  void* of_general[] = {&out,   &q,         &k, &v,         &b,         &small, &stride, &stride,
                        &heads, &head_size, &d, &distances, &only_first};
  void* of_pool[] = {&y, &out, &cu, &modes, &exclude, &width};
  const unsigned blocks = tiles.size(), small_blocks = small_tiles.size(), short_blocks = (count * heads + 3) / 4;
  const size_t memory = 5 * 64 * SIZE * 2, short_memory = 4 * 3 * 16 * SIZE * 2;
  const size_t general_memory = 4 * (16 * SIZE + 32 * (2 * SIZE + 1));
  int failed = 0;
  failed |= run(&attention<float16, SIZE, false>, "attention", blocks, heads, 128, memory, arguments);
  failed |= run(&attention<float16, SIZE, true>, "attention, biased", blocks, heads, 128, memory, arguments);
  failed |= run(&brief::attention_short<float16, SIZE, false>, "attention_short", short_blocks, 1, 128, short_memory,
                of_brief);
  failed |= run(&brief::attention_short<float16, SIZE, true>, "attention_short, biased", short_blocks, 1, 128,
                short_memory, of_brief);
  failed |= run(&general::attention_general<float16, 1, false>, "attention_general", small_blocks, heads, 128,
                general_memory, of_general);
  failed |= run(&general::attention_general<float16, 1, true>, "attention_general, biased", small_blocks, heads, 128,
                general_memory, of_general);
  failed |= run(&pooling::pool<float16, 8>, "pool", 6, 1, 256, 4 * 3 * 8 * 16 * 8, of_pool);
  return failed;
}
