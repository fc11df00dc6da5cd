/* What minibert/engine/native.py calls.
 *
 * Arrays are float32, ids and starts are int64. Nothing here keeps a pointer after the call. A function that returns
 * text returns NULL, or what is wrong with its arguments; then it has computed nothing. It checks ids, the order of
 * texts and the sizes of workspaces. The caller vouches that each array is as long as its sizes say. A function that
 * does not return text checks nothing.
 */
#ifndef MB_LIBRARY_H
#define MB_LIBRARY_H

#include "kernels.h"
#include "team.h"

#if defined(_WIN32)
#define MB_API __declspec(dllexport)
#else
#define MB_API __attribute__((visibility("default")))
#endif

/* The sizes of a model. */
struct shape {
    size_t hidden, inner, heads;
    float eps;
    int activation;
};

/* The parameters of a layer. The four matrices are packed; qkv has the queries, keys and values side by side. Only
 * queries have a bias (engine/packed.py tells why). */
struct layer {
    const float *qkv, *query_bias, *output, *output_bias, *norm1, *shift1;
    const float *up, *up_bias, *down, *down_bias, *norm2, *shift2;
};

/* Some texts: the row of each text's first token, and the end of the last text, for keys and for queries. Queries are
 * the same rows, or the first token of each text, one after the other. With the bias by distance of struct attention. */
struct batch {
    const int64_t *keys, *queries;
    const float *distance_bias;
    size_t texts, distances;
};

MB_API const char *mb_source(void);                    /* a hash of the sources */
MB_API const struct kernels *mb_kernels(const char *name); /* NULL if this processor, or this build, has none */
MB_API const char *mb_name(const struct kernels *);

MB_API struct team *mb_team(int workers); /* NULL: everything works without a team */
MB_API void mb_team_free(struct team *);

/* Packed weights: their size in floats, and columns of a matrix put into them. Strides are in floats. */
MB_API size_t mb_packed_size(const struct kernels *, size_t inputs, size_t outputs);
MB_API const char *mb_pack(const struct kernels *, const float *w, ptrdiff_t input_stride, ptrdiff_t output_stride,
                           size_t inputs, size_t columns, float scale, size_t first_column, size_t outputs,
                           float *packed, size_t packed_size);
MB_API const char *mb_unpack(const struct kernels *, const float *packed, size_t packed_size, size_t inputs,
                             size_t outputs, float *w);
/* out[n] = bias[n] + the sum over k of w[n][k] x[k], in double precision; w is (outputs, inputs). */
MB_API void mb_fold(const float *w, const float *x, const float *bias, size_t inputs, size_t outputs, float *out);

MB_API size_t mb_leading(size_t columns); /* the leading dimension of hidden states */
MB_API size_t mb_workspace(const struct kernels *, const struct shape *, size_t tokens, size_t longest, int workers);

/* The embeddings of all tokens, layer-normalized. `tables` are the numbers of word and position embeddings. */
MB_API const char *mb_embed(const struct kernels *, struct team *, int workers, const struct embedding *, size_t words,
                            size_t positions);
/* A layer, in the memory of x. With queries of first tokens, only the first rows of x have a result. `next` is the
 * layer that will be computed next, or NULL: its first weights are fetched ahead. */
MB_API const char *mb_layer(const struct kernels *, struct team *, int workers, const struct shape *,
                            const struct layer *, const struct layer *next, const struct batch *, float *x,
                            float *workspace, size_t workspace_size);
MB_API const char *mb_pool(const struct kernels *, const struct pool *, size_t rows);
MB_API void mb_normalize(const struct kernels *, float *x, size_t rows, size_t width, size_t ld);
MB_API void mb_layer_norm(const struct kernels *, const struct norm *);
MB_API const char *mb_product(const struct kernels *, struct team *, int workers, const struct product *);
MB_API void mb_activate(const struct kernels *, int activation, float *x, size_t count);

/* For tests and measurements. */
MB_API size_t mb_attention_scratch(const struct kernels *, size_t longest, size_t head_size);
MB_API const char *mb_attention(const struct kernels *, struct team *, const struct attention *, float *scratch,
                                size_t scratch_size);
MB_API void mb_exp(const struct kernels *, float *x, size_t count);
MB_API double mb_peak(const struct kernels *, size_t rounds);

#endif
