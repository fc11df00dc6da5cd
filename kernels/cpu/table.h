/* The table of one instruction set's kernels. The file that includes this one has chosen the instruction set. */
#include "attention.h"
#include "norm.h"
#include "pool.h"
#include "product.h"

static void exp_all(float *x, size_t count) {
    for (size_t i = 0; i < count; i += VL) {
        const size_t some = smaller(count - i, VL);
        vf y = load_some(x + i, some, 0.0f);
        exp_some(&y, 1);
        store_some(x + i, y, some);
    }
}

/* Enough independent chains to keep all multiply-add units busy, in registers. */
static double peak(size_t rounds) {
    enum { CHAINS = 12 };
    vf sum[CHAINS];
    volatile float one = 1.0f;
    const vf x = all(one), y = all(one);
    UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = all(one);
    for (size_t round = 0; round < rounds; round++) {
        UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = fma_(sum[i], x, y);
    }
    volatile float result = 0; /* the compiler may not drop the loop */
    for (int i = 0; i < CHAINS; i++) result += sum[i][0];
    return 2.0 * VL * CHAINS * rounds;
}

#define TABLE(NAME, TEXT)                                                                                          \
    const struct kernels NAME = {                                                                                  \
        .name = TEXT, .panel_columns = NR, .pack = pack, .unpack = unpack, .product = product, .panel = panel_of,  \
        .attention_scratch = attention_scratch, .attention = attention, .add_layer_norm = add_layer_norm,          \
        .embed = embed, .pool = pool, .normalize = normalize_vectors, .activate = activate, .exp = exp_all,        \
        .peak = peak,                                                                                              \
    };
