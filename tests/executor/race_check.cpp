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
  for (int length : {5, 1, 16, 17, 70, 140}) {
    if (length <= 16) short_tiles.push_back({tokens, length, tokens, length});
    for (int i = 0; i < length; i += 64) tiles.push_back({tokens, length, tokens + i, std::min(64, length - i)});
    for (int i = 0; i < length; i += 16) small_tiles.push_back({tokens, length, tokens + i, std::min(16, length - i)});
    cu_seqlens.push_back(tokens += length);
  }
  std::vector<float16> qkv((size_t)tokens * stride), context((size_t)tokens * width);
  for (float16& x : qkv) x = from_float<float16>(normal(random));
  std::vector<float> bias(width, 0.1f), vectors(6 * 2 * width);

  float16 *out = context.data(), *q = qkv.data(), *k = q + width, *v = k + width;
  float *b = bias.data(), *y = vectors.data();
  int4 *t = tiles.data(), *small = small_tiles.data(), *of_short = short_tiles.data();
  int count = short_tiles.size(), head_size = SIZE, modes = 0x34, exclude = 1, *cu = cu_seqlens.data();
  void* arguments[] = {&out, &q, &k, &v, &b, &t, &stride, &stride, &heads};
  void* of_brief[] = {&out, &q, &k, &v, &b, &of_short, &stride, &stride, &heads, &count};
  void* of_general[] = {&out, &q, &k, &v, &b, &small, &stride, &stride, &heads, &head_size};
  void* of_pool[] = {&y, &out, &cu, &modes, &exclude, &width};
  int failed = run(&attention<float16, SIZE>, "attention", tiles.size(), heads, 128, 5 * 64 * SIZE * 2, arguments);
  failed |= run(&brief::attention_short<float16, SIZE>, "attention_short", (count * heads + 3) / 4, 1, 128,
                4 * 3 * 16 * SIZE * 2, of_brief);
  failed |= run(&general::attention_general<float16, 1>, "attention_general", small_tiles.size(), heads, 128,
                4 * (16 * SIZE + 32 * (2 * SIZE + 1)), of_general);
  failed |= run(&pooling::pool<float16, 8>, "pool", 6, 1, 256, 4 * 3 * 8 * 16 * 8, of_pool);
  return failed;
}
