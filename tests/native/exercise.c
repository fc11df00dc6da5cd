/* Call every function of the library, with sizes that do not fit to registers and tiles. All memory has exactly the size
 * that the library asks for, so AddressSanitizer sees each access beyond it.
 *
 * Usage: exercise KERNELS [SECTION]
 *
 * Without helpers and with them, results must have the same bits. Each section prints its name and "ok".
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

static const struct kernels *kernels;

static void require(int right, const char *what) {
    if (right) return;
    printf("%s\n", what);
    exit(1);
}
static void accepted(const char *wrong) { require(!wrong, wrong ? wrong : ""); }
static void refused(const char *wrong) { require(wrong != NULL, "wrong arguments must be refused"); }

static void *memory(size_t count, size_t size) { /* filled with NaN, so what was not written is seen */
    void *got = malloc(count * size);
    require(got != NULL || count == 0, "no memory");
    if (count) memset(got, 0xff, count * size);
    return got;
}
static float *floats(size_t count) { return memory(count, sizeof(float)); }

static _Thread_local uint32_t state = 1;
static uint32_t random_bits(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}
static size_t below(size_t n) { return random_bits() % n; }
static float *numbers(size_t count, float scale) {
    float *x = floats(count);
    for (size_t i = 0; i < count; i++) x[i] = ((float)random_bits() / 8388608.0f - 1.0f) * scale;
    return x;
}
static int finite(const float *x, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}
#define COUNT(ARRAY) (sizeof(ARRAY) / sizeof *(ARRAY))

/* ---------------------------------------------------------------- products */

static float *packed(const float *w, size_t inputs, size_t outputs) { /* of (outputs, inputs) */
    const size_t size = mb_packed_size(kernels, inputs, outputs);
    float *to = floats(size);
    accepted(mb_pack(kernels, w, 1, (ptrdiff_t)inputs, inputs, outputs, 1.0f, 0, outputs, to, size));
    require(finite(to, size), "packing must write all of the packed matrix");
    return to;
}

static void check_product(struct team *team, int workers, size_t M, size_t K, size_t N, int activation, int bias) {
    const size_t ldx = K + below(3), ldy = N + below(3), panels = mb_packed_size(kernels, 1, N) / mb_packed_size(kernels, 1, 1);
    const size_t x_size = M ? (M - 1) * ldx + K : 0, y_size = M ? (M - 1) * ldy + N : 0;
    float *x = numbers(x_size, 1), *w = numbers(K * N, 1), *b = bias ? numbers(N, 1) : NULL;
    float *y = floats(y_size), *again = floats(y_size), *weights = packed(w, K, N);
    struct product product = {x, weights, b, y, ldx, ldy, M, K, N, panels, 0, panels, activation};
    accepted(mb_product(kernels, NULL, 1, &product));
    product.y = again;
    accepted(mb_product(kernels, team, workers, &product));
    require(!y_size || !memcmp(y, again, y_size * sizeof *y), "helpers must not change a product");
    for (size_t m = 0; m < M && (!bias || activation == ACTIVATION_NONE); m++)
        for (size_t n = 0; n < N; n++) {
            double sum = b ? b[n] : 0.0;
            for (size_t k = 0; k < K; k++) sum += (double)x[m * ldx + k] * (double)w[n * K + k];
            require(fabs(sum - (double)y[m * ldy + n]) < 1e-5 * (double)(K + 10), "a product must be right");
        }
    free(x), free(w), free(b), free(y), free(again), free(weights);
}

static void products(void) {
    const size_t K[] = {1, 7, 127, 129, 300, 1100}, N[] = {1, 15, 17, 31, 32, 100}, M[] = {0, 1, 5, 14, 15, 115};
    struct team *team = mb_team(3);
    for (size_t i = 0; i < COUNT(K) * COUNT(N) * COUNT(M); i++)
        check_product(team, 1 + (int)below(4), M[i % 6], K[i / 6 % 6], N[i / 36], (int)below(ACTIVATIONS), i % 3 > 0);
    mb_team_free(team);
}

/* Parts of different strides side by side, from memory that ends where the last number ends. */
static void packing(void) {
    const size_t inputs = 37, columns[] = {10, 30, 5}, outputs = 45, size = mb_packed_size(kernels, inputs, outputs);
    float *to = floats(size);
    size_t first = 0;
    for (size_t part = 0; part < 3; part++) {
        const ptrdiff_t by_input = part == 0 ? 1 : (ptrdiff_t)columns[part] + 3, by_output = part == 0 ? 41 : 1;
        const size_t last = (inputs - 1) * (size_t)by_input + (columns[part] - 1) * (size_t)by_output;
        float *w = numbers(last + 1, 1);
        const int backward = part == 2; /* the first row is the last one in memory */
        const float *from = backward ? w + (inputs - 1) * (size_t)by_input : w;
        accepted(mb_pack(kernels, from, backward ? -by_input : by_input, by_output, inputs, columns[part], 0.5f, first,
                         outputs, to, size));
        first += columns[part];
        free(w);
    }
    require(finite(to, size), "packing must write all of the packed matrix");
    refused(mb_pack(kernels, to, 1, 1, inputs, 1, 1.0f, outputs, outputs, to, size));
    refused(mb_pack(kernels, to, 1, 1, inputs, 1, 1.0f, 0, outputs, to, size - 1));
    free(to);
}

/* ---------------------------------------------------------------- rows */

static void rows(void) {
    for (size_t width = 1; width < 80; width += 1 + width / 20) {
        const size_t n = 3, ld = width + 2, size = (n - 1) * ld + width;
        float *x = numbers(size, 5), *y = numbers(size, 5), *bias = numbers(width, 1), *weight = numbers(width, 1);
        float *shift = numbers(width, 1), *out = floats(size);
        struct norm norm = {x, y, bias, weight, shift, out, n, width, ld, ld, ld, 1e-12f};
        mb_layer_norm(kernels, &norm);
        norm.y = norm.bias = NULL;
        mb_layer_norm(kernels, &norm);
        for (size_t i = 0; i < n; i++) require(finite(out + i * ld, width), "layer norm must write each number");
        mb_normalize(kernels, x, n, width, ld);
        for (size_t i = 0; i < n; i++) {
            double length = 0;
            for (size_t j = 0; j < width; j++) length += (double)x[i * ld + j] * (double)x[i * ld + j];
            require(fabs(length - 1) < 1e-5, "vectors must have length 1");
        }
        float *folded = floats(n), *matrix = numbers(n * width, 1);
        mb_fold(matrix, weight, y, width, n, folded);
        require(finite(folded, n), "a folded bias must have each number");
        free(x), free(y), free(bias), free(weight), free(shift), free(out), free(folded), free(matrix);
    }
    for (int activation = 0; activation < ACTIVATIONS; activation++)
        for (size_t count = 0; count < 40; count++) {
            float *x = numbers(count, 200);
            mb_activate(kernels, activation, x, count);
            require(finite(x, count), "activations must be finite");
            free(x);
        }
    for (size_t count = 0; count < 40; count++) {
        float *x = numbers(count, 80);
        mb_exp(kernels, x, count);
        require(finite(x, count), "exp must be finite");
        free(x);
    }
    require(mb_peak(kernels, 10) > 0, "there must be operations");
}

/* ---------------------------------------------------------------- models */

enum { LAYERS = 2, MODES = 6, WORDS = 50, PLACES = 70 };
static const int ALL_MODES[MODES] = {POOL_CLS, POOL_LASTTOKEN, POOL_MAX, POOL_MEAN, POOL_MEAN_SQRT_LEN, POOL_WEIGHTEDMEAN};

struct model {
    struct shape shape;
    float *word, *place, *type, *weight, *shift;
    struct layer layers[LAYERS];
};

static struct model new_model(size_t hidden, size_t heads, size_t inner, int activation) {
    struct model model = {.shape = {hidden, inner, heads, 1e-12f, activation}};
    model.word = numbers(WORDS * hidden, 1), model.place = numbers(PLACES * hidden, 1), model.type = numbers(hidden, 1);
    model.weight = numbers(hidden, 1), model.shift = numbers(hidden, 1);
    for (int i = 0; i < LAYERS; i++) {
        float *qkv = numbers(3 * hidden * hidden, 0.2f), *output = numbers(hidden * hidden, 0.2f);
        float *up = numbers(inner * hidden, 0.2f), *down = numbers(inner * hidden, 0.2f);
        model.layers[i] = (struct layer){
            packed(qkv, hidden, 3 * hidden), numbers(hidden, 1), packed(output, hidden, hidden), numbers(hidden, 1),
            numbers(hidden, 1), numbers(hidden, 1), packed(up, hidden, inner), numbers(inner, 1),
            packed(down, inner, hidden), numbers(hidden, 1), numbers(hidden, 1), numbers(hidden, 1),
        };
        free(qkv), free(output), free(up), free(down);
    }
    return model;
}

static void free_model(struct model *model) {
    free(model->word), free(model->place), free(model->type), free(model->weight), free(model->shift);
    for (int i = 0; i < LAYERS; i++) {
        const float *all[12];
        _Static_assert(sizeof all == sizeof(struct layer), "a layer has twelve pointers");
        memcpy(all, &model->layers[i], sizeof all);
        for (int j = 0; j < 12; j++) free((void *)all[j]);
    }
}

/* The vectors of texts, by all pooling modes. */
static float *vectors(const struct model *model, struct team *team, int workers, const int64_t *starts, size_t texts,
                      int first_only, size_t exclude, int normalize) {
    const size_t hidden = model->shape.hidden, tokens = (size_t)starts[texts], ld = mb_leading(hidden);
    int64_t *ids = memory(tokens, sizeof *ids), *places = memory(tokens, sizeof *places);
    int64_t *firsts = memory(texts + 1, sizeof *firsts);
    size_t longest = 0;
    firsts[0] = 0;
    for (size_t text = 0; text < texts; text++) {
        const size_t length = (size_t)(starts[text + 1] - starts[text]);
        for (size_t i = 0; i < length; i++) {
            const size_t at = (size_t)starts[text] + i;
            ids[at] = (int64_t)(at * 7 % WORDS), places[at] = (int64_t)i;
        }
        firsts[text + 1] = firsts[text] + (length > 0);
        longest = length > longest ? length : longest;
    }
    float *x = floats(tokens * ld);
    struct embedding embedding = {model->word, model->place, model->type, model->weight, model->shift, ids, places, x,
                                  tokens, hidden, ld, 1e-12f};
    accepted(mb_embed(kernels, team, workers, &embedding, WORDS, PLACES));
    if (tokens) {
        refused(mb_embed(kernels, team, workers, &embedding, (size_t)ids[tokens - 1], PLACES));
        refused(mb_embed(kernels, team, workers, &embedding, WORDS, longest - 1));
    }
    const size_t size = mb_workspace(kernels, &model->shape, tokens, longest, workers);
    float *workspace = floats(size);
    for (int i = 0; i < LAYERS; i++) {
        const int last = i + 1 == LAYERS;
        const struct batch batch = {starts, last && first_only ? firsts : starts, NULL, texts, 0};
        accepted(mb_layer(kernels, team, workers, &model->shape, &model->layers[i], last ? NULL : &model->layers[i + 1],
                          &batch, x, workspace, size));
    }
    float *out = floats(texts * MODES * hidden);
    double *totals = memory(hidden, sizeof *totals);
    const struct pool pool = {x, out, totals, first_only ? firsts : starts, NULL, texts, hidden, ld, MODES * hidden,
                              exclude, ALL_MODES, MODES, normalize};
    accepted(mb_pool(kernels, &pool, first_only ? (size_t)firsts[texts] : tokens));
    free(ids), free(places), free(firsts), free(x), free(workspace), free(totals);
    return out;
}

static int same(const float *a, const float *b, size_t count) { return !count || !memcmp(a, b, count * sizeof *a); }

static void models(void) {
    const size_t sizes[][3] = {{30, 3, 50}, {100, 1, 17}, {312, 12, 330}, {16, 2, 64}, {1, 1, 1}, {7, 7, 5}, {96, 3, 100}};
    const int64_t lengths[] = {0, 1, 1, 5, 0, 33, 16, 70, 2, 15, 17, 0};
    struct team *teams[5] = {NULL};
    for (int workers = 2; workers <= 4; workers++) teams[workers] = mb_team(workers);
    for (size_t i = 0; i < COUNT(sizes) + ACTIVATIONS; i++) {
        const size_t *size = sizes[i % COUNT(sizes)];
        const int activation = (int)(i % ACTIVATIONS), normalize = i % 2 == 1;
        struct model model = new_model(size[0], size[1], size[2], activation);
        for (int first_only = 0; first_only < 2; first_only++) {
            int64_t starts[COUNT(lengths) + 1] = {0};
            const size_t texts = i % 5 == 4 ? i % 3 : COUNT(lengths), count = texts * MODES * size[0];
            for (size_t text = 0; text < texts; text++) starts[text + 1] = starts[text] + lengths[(text + i) % COUNT(lengths)];
            const size_t exclude = below(2) ? 0 : below(20);
            float *alone = vectors(&model, NULL, 1, starts, texts, first_only, exclude, normalize);
            for (int workers = 2; workers <= 4; workers++) {
                float *helped = vectors(&model, teams[workers], workers, starts, texts, first_only, exclude, normalize);
                require(same(alone, helped, count), "helpers must not change vectors");
                free(helped);
            }
            free(alone);
        }
        free_model(&model);
    }
    for (int workers = 2; workers <= 4; workers++) mb_team_free(teams[workers]);
}

static void attention(void) {
    struct team *team = mb_team(3);
    for (size_t d = 1; d < 70; d += 1 + d / 4) {
        const size_t heads = 3, hidden = heads * d, texts = 4;
        const int64_t starts[] = {0, 1, 1, 18, 83};
        const size_t tokens = (size_t)starts[texts], size = 3 * mb_attention_scratch(kernels, 65, d);
        float *q = numbers(tokens * hidden, 1), *k = numbers(tokens * hidden, 1), *v = numbers(tokens * hidden, 1);
        float *bias = numbers(hidden, 1), *alone = floats(tokens * hidden), *helped = floats(tokens * hidden);
        float *scratch = floats(size), *by_distance = numbers(heads * 129, 1); /* for texts of at most 65 tokens */
        struct attention of = {q, k, v, bias, alone, hidden, hidden, hidden, heads, d, texts, starts, starts, NULL, 0};
        of.distance_bias = d % 2 ? by_distance : NULL, of.distances = 127;
        if (d % 2) refused(mb_attention(kernels, NULL, &of, scratch, size / 3));
        of.distances = 130;
        if (d % 2) refused(mb_attention(kernels, NULL, &of, scratch, size / 3));
        of.distances = 129;
        accepted(mb_attention(kernels, NULL, &of, scratch, size / 3));
        require(finite(alone, tokens * hidden), "attention must write each number");
        of.out = helped;
        refused(mb_attention(kernels, team, &of, scratch, size - 1));
        accepted(mb_attention(kernels, team, &of, scratch, size));
        require(same(alone, helped, tokens * hidden), "helpers must not change attention");
        free(q), free(k), free(v), free(bias), free(alone), free(helped), free(scratch);
        free(by_distance);
    }
    mb_team_free(team);
}

/* ---------------------------------------------------------------- teams */

struct counts {
    atomic_int *of_task;
    atomic_int wrong;
    int workers;
    int spread; /* whether some tasks take much longer than others, so that workers steal */
};

static void count_task(const void *argument, size_t task, int worker) {
    struct counts *counts = (struct counts *)argument;
    atomic_fetch_add(&counts->of_task[task], 1);
    if (worker < 0 || worker >= counts->workers) atomic_store(&counts->wrong, 1);
    volatile int busy = 0;
    for (size_t i = 0; counts->spread && i < (task % 7 == 0 ? 5000 : 10); i++) busy++;
}

static void run_and_count(struct team *team, int workers, size_t tasks, int spread) {
    struct counts counts = {.of_task = calloc(tasks ? tasks : 1, sizeof(atomic_int)), .workers = workers, .spread = spread};
    team_run(team, workers, tasks, count_task, &counts);
    for (size_t i = 0; i < tasks; i++) require(atomic_load(&counts.of_task[i]) == 1, "a task must run exactly once");
    require(!atomic_load(&counts.wrong), "there must be no more workers than asked for");
    free(counts.of_task);
}

static void tasks(void) {
    const size_t numbers_of_tasks[] = {0, 1, 2, 3, 5, 16, 100, 1000, 0xffff, 0x10000, 200001};
    for (int size = 1; size <= 5; size++) {
        struct team *team = mb_team(size);
        require(team_size(team) == size, "a team must have the size that was asked for");
        for (int workers = 1; workers <= size; workers++)
            for (size_t i = 0; i < COUNT(numbers_of_tasks); i++) run_and_count(team, workers, numbers_of_tasks[i], i < 8);
        for (int i = 0; i < 300; i++) run_and_count(team, size, below(40), 1);
        mb_team_free(team);
    }
}

static void *call_tasks(void *team) {
    for (int i = 0; i < 300; i++) run_and_count(team, 3, 1 + (size_t)i % 40, 1);
    return NULL;
}

struct call {
    const struct model *model;
    struct team *team;
    const float *expected;
    const int64_t *starts;
    size_t texts, count;
};

static void *call_model(void *argument) {
    const struct call *call = argument;
    for (int i = 0; i < 10; i++) {
        float *found = vectors(call->model, call->team, 1 + i % 3, call->starts, call->texts, 0, 0, 1);
        require(same(found, call->expected, call->count), "other callers must not change vectors");
        free(found);
    }
    return NULL;
}

static void callers(void) {
    enum { CALLERS = 6 };
    const int64_t starts[] = {0, 3, 20, 21, 60};
    struct model model = new_model(60, 3, 130, ACTIVATION_GELU);
    float *expected = vectors(&model, NULL, 1, starts, 4, 0, 0, 1);
    for (int round = 0; round < 3; round++) { /* the team is made again each time */
        struct team *team = mb_team(3);
        struct call call = {&model, team, expected, starts, 4, 4 * MODES * 60};
        pthread_t thread[CALLERS];
        for (int i = 0; i < CALLERS; i++)
            require(!pthread_create(&thread[i], NULL, i % 2 ? call_model : call_tasks, i % 2 ? (void *)&call : (void *)team),
                    "a thread must start");
        for (int i = 0; i < CALLERS; i++) pthread_join(thread[i], NULL);
        mb_team_free(team);
    }
    free(expected);
    free_model(&model);
}

static void remade(void) {
    for (int i = 0; i < 200; i++) {
        struct team *team = mb_team(1 + i % 5);
        if (i % 3) run_and_count(team, 1 + i % 5, 20, 0); /* or nobody has woken the helpers when it ends */
        mb_team_free(team);
    }
}

/* ---------------------------------------------------------------- refused arguments */

static void refusals(void) {
    float *x = numbers(64, 1);
    const size_t size = mb_packed_size(kernels, 4, 4);
    float *w = numbers(size, 1);
    struct product product = {x, w, NULL, x + 32, 4, 4, 2, 4, 4, 1, 0, 1, 0};
    struct product wrong[] = {product, product, product, product, product, product};
    wrong[0].panels = 0, wrong[1].end_panel = 2, wrong[2].first_panel = 2, wrong[3].ldx = 3, wrong[4].ldy = 3;
    wrong[5].activation = ACTIVATIONS;
    for (size_t i = 0; i < COUNT(wrong); i++) refused(mb_product(kernels, NULL, 1, &wrong[i]));
    accepted(mb_product(kernels, NULL, 1, &product));

    const int64_t falling[] = {0, 3, 2}, late[] = {1, 2, 3}, keys[] = {0, 2, 2}, firsts[] = {0, 1, 1};
    double total[4];
    const int unknown = POOLINGS, mode = POOL_MEAN;
    struct pool pool = {x, x + 32, total, keys, NULL, 2, 4, 4, 4, 0, &mode, 1, 0};
    struct pool pools[] = {pool, pool, pool, pool, pool};
    pools[0].starts = falling, pools[1].starts = late, pools[2].modes = &unknown, pools[3].ldx = 3, pools[4].ldout = 3;
    for (size_t i = 0; i < COUNT(pools); i++) refused(mb_pool(kernels, &pools[i], 3));
    refused(mb_pool(kernels, &pool, 1));
    accepted(mb_pool(kernels, &pool, 2));

    struct model model = new_model(6, 3, 5, ACTIVATION_GELU);
    struct shape shape = model.shape, no_heads = shape, odd = shape, none = shape, other = shape;
    no_heads.heads = 0, odd.heads = 4, none.inner = 0, other.activation = -1;
    const struct batch batch = {keys, firsts, NULL, 2, 0}, two = {keys, falling, NULL, 2, 0},
                       none_of_text = {keys, (int64_t[]){0, 0, 0}, NULL, 2, 0};
    const size_t work = mb_workspace(kernels, &shape, 2, 2, 1), ld = mb_leading(6);
    float *hidden = numbers(2 * ld, 1), *space = floats(work);
    const struct shape *shapes[] = {&no_heads, &odd, &none, &other};
    for (size_t i = 0; i < COUNT(shapes); i++)
        refused(mb_layer(kernels, NULL, 1, shapes[i], model.layers, NULL, &batch, hidden, space, work));
    refused(mb_layer(kernels, NULL, 1, &shape, model.layers, NULL, &two, hidden, space, work));
    refused(mb_layer(kernels, NULL, 1, &shape, model.layers, NULL, &none_of_text, hidden, space, work));
    refused(mb_layer(kernels, NULL, 1, &shape, model.layers, NULL, &batch, hidden, space, work - 1));
    accepted(mb_layer(kernels, NULL, 1, &shape, model.layers, NULL, &batch, hidden, space, work));
    require(mb_kernels("none") == NULL, "unknown kernels must be refused");
    require(mb_kernels(mb_name(kernels)) == kernels, "kernels must know their name");
    free_model(&model);
    free(x), free(w), free(hidden), free(space);
}

int main(int argc, char **argv) {
    const struct {
        const char *name;
        void (*run)(void);
    } sections[] = {{"products", products}, {"packing", packing}, {"rows", rows},       {"models", models},
                    {"attention", attention}, {"tasks", tasks},   {"callers", callers}, {"remade", remade},
                    {"refusals", refusals}};
    kernels = argc > 1 ? mb_kernels(argv[1]) : NULL;
    require(kernels != NULL, "this processor does not have these kernels");
    for (size_t i = 0; i < COUNT(sections); i++) {
        if (argc > 2 && strcmp(argv[2], sections[i].name)) continue;
        sections[i].run();
        printf("%s: ok\n", sections[i].name);
        fflush(stdout);
    }
    return 0;
}
