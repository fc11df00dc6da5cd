/* Compute the final vectors of a whole model that a file has, and write them to standard output.
 *
 * Usage: vectors KERNELS WORKERS < MODEL
 *
 * tests/native_support.py writes the file. It has whole numbers (int64) and matrices (float32), in the order of their
 * use here. The matrices are those of a checkpoint, so this program does what minibert/engine/fused_native.py does:
 * it scales the queries, folds the bias of values, packs the weights, and calls the library.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

enum step_kind { STEP_DENSE, STEP_LAYER_NORM, STEP_NORMALIZE };

static void fail(const char *what) {
    fprintf(stderr, "vectors: %s\n", what);
    exit(1);
}

static void require(const char *wrong) {
    if (wrong) fail(wrong);
}

static void *memory(size_t size) {
    void *got = aligned_alloc(64, (size + 63) / 64 * 64 + 64);
    if (!got) fail("no memory");
    return got;
}

static void take(void *to, size_t size) {
    if (size && fread(to, size, 1, stdin) != 1) fail("the model's file is too short");
}

static size_t number(void) {
    int64_t value;
    take(&value, sizeof value);
    return (size_t)value;
}

static float real(void) {
    float value;
    take(&value, sizeof value);
    return value;
}

static float *floats(size_t count) {
    float *x = memory(count * sizeof *x);
    take(x, count * sizeof *x);
    return x;
}

static int64_t *whole_numbers(size_t count) {
    int64_t *x = memory(count * sizeof *x);
    take(x, count * sizeof *x);
    return x;
}

/* A packed matrix of some matrices side by side, each (outputs, inputs) as in a checkpoint. */
static float *packed(const struct kernels *kernels, size_t inputs, size_t outputs, size_t parts, float *const *w,
                     float first_scale) {
    const size_t size = mb_packed_size(kernels, inputs, outputs * parts);
    float *to = memory(size * sizeof *to);
    for (size_t i = 0; i < parts; i++)
        require(mb_pack(kernels, w[i], 1, (ptrdiff_t)inputs, inputs, outputs, i ? 1.0f : first_scale, i * outputs,
                        outputs * parts, to, size));
    return to;
}

static struct layer next_layer(const struct kernels *kernels, const struct shape *shape, float query_scale) {
    const size_t hidden = shape->hidden, inner = shape->inner;
    struct layer layer;
    float *qkv[3];
    qkv[0] = floats(hidden * hidden);
    float *query_bias = floats(hidden);
    qkv[1] = floats(hidden * hidden);
    qkv[2] = floats(hidden * hidden);
    float *value_bias = floats(hidden), *output = floats(hidden * hidden), *bias = floats(hidden);
    for (size_t i = 0; i < hidden; i++) query_bias[i] *= query_scale;
    float *output_bias = memory(hidden * sizeof *output_bias);
    mb_fold(output, value_bias, bias, hidden, hidden, output_bias);
    layer.qkv = packed(kernels, hidden, hidden, 3, qkv, query_scale);
    layer.query_bias = query_bias;
    layer.output = packed(kernels, hidden, hidden, 1, &output, 1.0f);
    layer.output_bias = output_bias;
    layer.norm1 = floats(hidden), layer.shift1 = floats(hidden);
    float *up = floats(inner * hidden);
    layer.up = packed(kernels, hidden, inner, 1, &up, 1.0f);
    layer.up_bias = floats(inner);
    float *down = floats(hidden * inner);
    layer.down = packed(kernels, inner, hidden, 1, &down, 1.0f);
    layer.down_bias = floats(hidden);
    layer.norm2 = floats(hidden), layer.shift2 = floats(hidden);
    return layer;
}

/* Apply the module that the file has next to some vectors. Return the new vectors. */
static float *step(const struct kernels *kernels, struct team *team, int workers, float *x, size_t rows, size_t *width) {
    const size_t kind = number(), inputs = *width;
    if (kind == STEP_NORMALIZE) return mb_normalize(kernels, x, rows, inputs, inputs), x;
    if (kind == STEP_LAYER_NORM) {
        const float eps = real();
        const float *weight = floats(inputs), *shift = floats(inputs);
        float *out = memory(rows * inputs * sizeof *out);
        const struct norm norm = {x, NULL, NULL, weight, shift, out, rows, inputs, inputs, inputs, inputs, eps};
        mb_layer_norm(kernels, &norm);
        return out;
    }
    const size_t outputs = number(), activation = number(), has_bias = number();
    float *w = floats(outputs * inputs);
    const float *bias = has_bias ? floats(outputs) : NULL;
    const float *weights = packed(kernels, inputs, outputs, 1, &w, 1.0f);
    float *out = memory(rows * outputs * sizeof *out);
    const size_t panels = mb_packed_size(kernels, 1, outputs) / mb_packed_size(kernels, 1, 1);
    const struct product product = {x,      weights, bias,   out, inputs, outputs, rows, inputs, outputs,
                                    panels, 0,       panels, bias ? (int)activation : ACTIVATION_NONE};
    require(mb_product(kernels, team, workers, &product));
    if (!bias) mb_activate(kernels, (int)activation, out, rows * outputs);
    *width = outputs;
    return out;
}

int main(int argc, char **argv) {
    if (argc != 3) fail("the arguments must be the kernels and the number of workers");
    const struct kernels *kernels = mb_kernels(argv[1]);
    const int workers = atoi(argv[2]);
    if (!kernels) fail("this processor does not have these kernels");
    struct team *team = mb_team(workers);
    if (workers > 1 && !team) fail("there must be a team");

    struct shape shape;
    shape.hidden = number(), shape.inner = number(), shape.heads = number();
    const size_t layers = number(), words = number(), places = number();
    shape.activation = (int)number();
    const size_t texts = number(), tokens = number(), first_only = number(), exclude = number(), modes = number();
    const size_t pool_normalize = number(), steps = number();
    shape.eps = real();
    const float query_scale = real();
    int *mode = memory(modes * sizeof *mode);
    for (size_t i = 0; i < modes; i++) mode[i] = (int)number();
    const int64_t *ids = whole_numbers(tokens), *starts = whole_numbers(texts + 1);
    int64_t *positions = memory(tokens * sizeof *positions), *firsts = memory((texts + 1) * sizeof *firsts);
    size_t longest = 0;
    firsts[0] = 0;
    for (size_t text = 0; text < texts; text++) {
        const size_t length = (size_t)(starts[text + 1] - starts[text]);
        for (size_t i = 0; i < length; i++) positions[(size_t)starts[text] + i] = (int64_t)i;
        firsts[text + 1] = firsts[text] + (length > 0);
        if (length > longest) longest = length;
    }

    const size_t hidden = shape.hidden, ld = mb_leading(hidden);
    float *x = memory(tokens * ld * sizeof *x);
    struct embedding embedding = {.rows = tokens, .hidden = hidden, .ldout = ld, .eps = shape.eps, .out = x};
    embedding.word = floats(words * hidden), embedding.position = floats(places * hidden);
    embedding.type = floats(hidden), embedding.weight = floats(hidden), embedding.shift = floats(hidden);
    embedding.ids = ids, embedding.positions = positions;
    require(mb_embed(kernels, team, workers, &embedding, words, places));

    struct layer *layer = memory(layers * sizeof *layer);
    for (size_t i = 0; i < layers; i++) layer[i] = next_layer(kernels, &shape, query_scale);
    const size_t size = mb_workspace(kernels, &shape, tokens, longest, workers);
    float *workspace = memory(size * sizeof *workspace);
    for (size_t i = 0; i < layers; i++) {
        const int last = i + 1 == layers;
        const struct batch batch = {starts, last && first_only ? firsts : starts, NULL, texts, 0};
        require(mb_layer(kernels, team, workers, &shape, &layer[i], last ? NULL : &layer[i + 1], &batch, x, workspace,
                         size));
    }

    size_t width = modes * hidden;
    float *vectors = memory(texts * width * sizeof *vectors);
    double *totals = memory(hidden * sizeof *totals);
    const struct pool pool = {x, vectors, totals, first_only ? firsts : starts, NULL, texts, hidden, ld, width, exclude,
                              mode, modes, (int)pool_normalize};
    require(mb_pool(kernels, &pool, first_only ? (size_t)firsts[texts] : tokens));
    for (size_t i = 0; i < steps; i++) vectors = step(kernels, team, workers, vectors, texts, &width);
    if (getchar() != EOF) fail("the model's file is too long");
    if (texts && fwrite(vectors, texts * width * sizeof *vectors, 1, stdout) != 1) fail("nothing can be written");
    mb_team_free(team);
    return 0;
}
