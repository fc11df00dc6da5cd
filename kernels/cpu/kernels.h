/* The kernels of one instruction set, and the arguments that they take.
 *
 * All matrices are float32, with rows of contiguous numbers. A leading dimension (ld...) is the number of floats from
 * one row to the next. Nothing here allocates memory, and nothing checks a pointer: library.c does.
 */
#ifndef MB_KERNELS_H
#define MB_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* minibert/engine/native.py has the same numbers. */
enum activation {
    ACTIVATION_NONE,
    ACTIVATION_GELU,
    ACTIVATION_GELU_10,
    ACTIVATION_GELU_TANH,
    ACTIVATION_GELU_FAST,
    ACTIVATION_HARDSWISH,
    ACTIVATION_LAPLACE,
    ACTIVATION_LEAKY_RELU,
    ACTIVATION_MISH,
    ACTIVATION_QUICK_GELU,
    ACTIVATION_RELU,
    ACTIVATION_RELU2,
    ACTIVATION_RELU6,
    ACTIVATION_SIGMOID,
    ACTIVATION_SILU,
    ACTIVATION_SOFTPLUS,
    ACTIVATION_SQRT_SOFTPLUS,
    ACTIVATION_TANH,
    ACTIVATIONS,
};

enum pooling { POOL_CLS, POOL_LASTTOKEN, POOL_MAX, POOL_MEAN, POOL_MEAN_SQRT_LEN, POOL_WEIGHTEDMEAN, POOLINGS };

/* y = activation(x @ w + bias), of some panels of w. */
struct product {
    const float *x;    /* (rows, inputs) */
    const float *w;    /* packed */
    const float *bias; /* (outputs), or NULL: then there is no activation */
    float *y;          /* (rows, outputs) */
    size_t ldx, ldy;
    size_t rows, inputs, outputs;
    size_t panels;                /* of w; they may have more columns than `outputs`, which are not written */
    size_t first_panel, end_panel; /* those to compute; column n of y is column n of w */
    int activation;
};

/* softmax((q + query_bias) k^T + bias) v for each text and head. q, k, v and out have the heads side by side. */
struct attention {
    const float *q, *k, *v;
    const float *query_bias; /* (heads * head_size) */
    float *out;
    size_t ldq, ldk, ldout; /* the leading dimension of v is ldk */
    size_t heads, head_size, texts;
    const int64_t *queries, *keys; /* the first row of each text, and the end of the last one: texts + 1 numbers */
    const float *distance_bias;    /* (heads, distances): the bias of key - query, from -(distances / 2) on; or NULL */
    size_t distances;              /* an odd number */
};

/* out = LayerNorm(x + y + bias). y and bias may both be NULL. out may be x. */
struct norm {
    const float *x, *y, *bias, *weight, *shift;
    float *out;
    size_t rows, hidden, ldx, ldy, ldout;
    float eps;
};

/* out = LayerNorm(word[ids] + type + position[positions]) */
struct embedding {
    const float *word, *position, *type, *weight, *shift;
    const int64_t *ids, *positions;
    float *out;
    size_t rows, hidden, ldout;
    float eps;
};

/* out[text] = the concatenated results of `modes`. */
struct pool {
    const float *x; /* the tokens of all texts */
    float *out;     /* (texts, modes * hidden) */
    double *totals; /* scratch: hidden numbers */
    const int64_t *starts;
    const double *weight_sums; /* of each text, in place of its number of tokens; or NULL */
    size_t texts, hidden, ldx, ldout;
    size_t exclude; /* tokens at the start of each text that do not count */
    const int *modes;
    size_t number_of_modes;
    int normalize; /* whether vectors are scaled to length 1 */
};

/* The longest text: product.h has the reason. */
enum { MOST_KEYS = 1 << 18 };

struct kernels {
    const char *name;
    size_t panel_columns;
    void (*pack)(const float *w, ptrdiff_t input_stride, ptrdiff_t output_stride, size_t inputs, size_t columns,
                 float scale, size_t first_column, size_t outputs, float *packed);
    void (*unpack)(const float *packed, size_t inputs, size_t outputs, float *w); /* w is (inputs, outputs) */
    /* Some rows and panels of a product. `after`: the packed weights that the caller needs next. */
    void (*product)(const struct product *, size_t first_row, size_t end_row, size_t first_panel, size_t end_panel,
                    const float *after);
    const float *(*panel)(const struct product *, size_t panel); /* where the weights of a panel begin */
    size_t (*attention_scratch)(size_t keys, size_t head_size);  /* floats */
    void (*attention)(const struct attention *, size_t text, size_t head, float *scratch);
    void (*add_layer_norm)(const struct norm *, size_t first_row, size_t end_row);
    void (*embed)(const struct embedding *, size_t first_row, size_t end_row);
    void (*pool)(const struct pool *);
    void (*normalize)(float *x, size_t rows, size_t width, size_t ld);
    void (*activate)(int activation, float *x, size_t count);
    void (*exp)(float *x, size_t count); /* x <= 88 */
    double (*peak)(size_t rounds);       /* multiply-adds and nothing else; returns the number of operations */
};

extern const struct kernels kernels_avx512, kernels_avx2, kernels_neon;

#endif
