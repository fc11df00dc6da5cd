/* The operations cut into tasks for a team, a layer made of them, and the checks of what a caller passes. */
#include "library.h"

#include <limits.h>
#include <string.h>

#ifndef MB_SOURCE
#define MB_SOURCE "unknown"
#endif

/* Rows of a product that are worked on at once: see product.h. With so many rows, the time to read the weights does not
 * matter. */
enum { ROWS_AT_ONCE = 112 };
enum { NORM_ROWS = 8 };

static size_t pieces_of(size_t count, size_t size) { return (count + size - 1) / size; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

const char *mb_source(void) { return MB_SOURCE; }
const char *mb_name(const struct kernels *kernels) { return kernels->name; }
struct team *mb_team(int workers) { return team_new(workers); }
void mb_team_free(struct team *team) { team_free(team); }

/* ---------------------------------------------------------------- products */

/* The tasks of a product are runs of rows, times runs of panels. One worker takes all panels at once. A team gets many
 * runs, so that nobody waits long for the last one, but not so many that rows of x come from the L3 cache again for
 * each panel. */
enum { SMALL_X = 400000, RUNS_PER_WORKER = 4 };

struct product_tasks {
    const struct kernels *kernels;
    const struct product *product;
    size_t row_runs, panel_runs;
    int workers;
    const struct product_tasks *next; /* whose weights are needed next, or NULL */
};

static size_t panels_to_do(const struct product *product) { return product->end_panel - product->first_panel; }

static struct product_tasks tasks_of(const struct kernels *kernels, int workers, const struct product *product) {
    struct product_tasks tasks = {kernels, product, pieces_of(product->rows, ROWS_AT_ONCE), 1, workers, NULL};
    if (workers > 1 && tasks.row_runs) {
        const size_t rows = pieces_of(product->rows, tasks.row_runs), panels = panels_to_do(product);
        tasks.panel_runs = rows * product->inputs * sizeof(float) < SMALL_X
                               ? panels
                               : smaller(panels, RUNS_PER_WORKER * (size_t)workers);
    }
    return tasks;
}

static size_t first_panel(const struct product_tasks *of, size_t run) {
    return of->product->first_panel + panels_to_do(of->product) * run / of->panel_runs;
}

static void product_task(const void *argument, size_t task, int worker) {
    const struct product_tasks *of = argument;
    const size_t row_run = task / of->panel_runs, run = task % of->panel_runs, rows = of->product->rows;
    const size_t tasks = of->row_runs * of->panel_runs;
    /* The worker's next task, if no other worker takes it: of this product, or its first one of the next product. */
    const int last = task + 1 == tasks || task + 1 == tasks * ((size_t)worker + 1) / (size_t)of->workers;
    const struct product_tasks *next = last ? of->next : of;
    const float *after = of->product->w;
    if (next && next->row_runs) {
        const size_t next_task =
            next == of ? task + 1 : next->row_runs * next->panel_runs * (size_t)worker / (size_t)of->workers;
        after = of->kernels->panel(next->product, first_panel(next, next_task % next->panel_runs));
    }
    of->kernels->product(of->product, rows * row_run / of->row_runs, rows * (row_run + 1) / of->row_runs,
                         first_panel(of, run), first_panel(of, run + 1), after);
}

static void multiply(const struct kernels *kernels, struct team *team, int workers, const struct product *product,
                     const struct product *next) {
    struct product_tasks tasks = tasks_of(kernels, workers, product), next_tasks;
    if (next) next_tasks = tasks_of(kernels, workers, next), tasks.next = &next_tasks;
    team_run(team, workers, tasks.row_runs * tasks.panel_runs, product_task, &tasks);
}

size_t mb_packed_size(const struct kernels *kernels, size_t inputs, size_t outputs) {
    return inputs * pieces_of(outputs, kernels->panel_columns) * kernels->panel_columns;
}

const char *mb_pack(const struct kernels *kernels, const float *w, ptrdiff_t input_stride, ptrdiff_t output_stride,
                    size_t inputs, size_t columns, float scale, size_t first_column, size_t outputs, float *packed,
                    size_t packed_size) {
    if (first_column + columns > outputs) return "the columns must be inside the packed matrix";
    if (packed_size < mb_packed_size(kernels, inputs, outputs)) return "the memory of a packed matrix is too small";
    if (inputs) kernels->pack(w, input_stride, output_stride, inputs, columns, scale, first_column, outputs, packed);
    return NULL;
}

const char *mb_unpack(const struct kernels *kernels, const float *packed, size_t packed_size, size_t inputs,
                      size_t outputs, float *w) {
    if (packed_size < mb_packed_size(kernels, inputs, outputs)) return "the packed matrix is too small";
    if (inputs) kernels->unpack(packed, inputs, outputs, w);
    return NULL;
}

void mb_fold(const float *w, const float *x, const float *bias, size_t inputs, size_t outputs, float *out) {
    enum { PARTS = 8 }; /* partial sums, so that the result is the same for every width of registers */
    for (size_t n = 0; n < outputs; n++, w += inputs) {
        double sums[PARTS] = {0};
        size_t k = 0;
        for (; k + PARTS <= inputs; k += PARTS)
            for (int i = 0; i < PARTS; i++) sums[i] += (double)w[k + i] * (double)x[k + i];
        for (int i = 0; k < inputs; k++, i++) sums[i] += (double)w[k] * (double)x[k];
        for (int half = PARTS / 2; half > 0; half /= 2)
            for (int i = 0; i < half; i++) sums[i] += sums[i + half];
        out[n] = (float)(sums[0] + (double)bias[n]);
    }
}

const char *mb_product(const struct kernels *kernels, struct team *team, int workers, const struct product *product) {
    const size_t panels = pieces_of(product->outputs, kernels->panel_columns);
    if (product->panels < panels || product->end_panel > panels || product->first_panel > product->end_panel)
        return "the panels must be those of the packed weights";
    if (product->ldx < product->inputs || product->ldy < product->outputs) return "rows must not overlap";
    if (product->activation < 0 || product->activation >= ACTIVATIONS) return "there is no such activation";
    if (workers < 1) workers = 1;
    if (product->inputs) multiply(kernels, team_ready(team), workers, product, NULL);
    return NULL;
}

/* ---------------------------------------------------------------- attention */

struct attention_tasks { /* a task is a head of a text */
    const struct kernels *kernels;
    const struct attention *attention;
    float *scratch;
    size_t scratch_size; /* of one worker */
};

static void attention_task(const void *argument, size_t task, int worker) {
    const struct attention_tasks *of = argument;
    of->kernels->attention(of->attention, task / of->attention->heads, task % of->attention->heads,
                           of->scratch + of->scratch_size * (size_t)worker);
}

static size_t longest_text(const int64_t *starts, size_t texts) {
    size_t longest = 0;
    for (size_t i = 0; i < texts; i++) longest = larger(longest, (size_t)(starts[i + 1] - starts[i]));
    return longest;
}

static void attend(const struct kernels *kernels, struct team *team, int workers, const struct attention *attention,
                   float *scratch) {
    const size_t longest = longest_text(attention->keys, attention->texts);
    struct attention_tasks tasks = {kernels, attention, scratch, 0};
    tasks.scratch_size = kernels->attention_scratch(longest, attention->head_size);
    team_run(team, workers, attention->texts * attention->heads, attention_task, &tasks);
}

/* Whether starts are those of texts: from 0 on, never falling. */
static int ordered(const int64_t *starts, size_t texts) {
    if (starts[0] != 0) return 0;
    for (size_t i = 0; i < texts; i++)
        if (starts[i + 1] < starts[i]) return 0;
    return 1;
}

/* Whether a bias by distance, if there is one, has numbers for all pairs of tokens. */
static int has_distances(const float *bias, size_t distances, size_t longest) {
    return !bias || (distances % 2 == 1 && longest <= distances / 2 + 1);
}

size_t mb_attention_scratch(const struct kernels *kernels, size_t longest, size_t head_size) {
    return kernels->attention_scratch(longest, head_size);
}

const char *mb_attention(const struct kernels *kernels, struct team *team, const struct attention *attention,
                         float *scratch, size_t scratch_size) {
    const int workers = team_size(team);
    if (!ordered(attention->keys, attention->texts) || !ordered(attention->queries, attention->texts))
        return "the starts of texts must begin with 0 and not fall";
    const size_t longest = longest_text(attention->keys, attention->texts);
    if (longest > MOST_KEYS) return "a text has too many tokens";
    const size_t most = larger(longest, longest_text(attention->queries, attention->texts));
    if (!has_distances(attention->distance_bias, attention->distances, most))
        return "a text has more tokens than the bias has distances";
    if (scratch_size < kernels->attention_scratch(longest, attention->head_size) * (size_t)workers)
        return "the scratch memory is too small";
    attend(kernels, team, workers, attention, scratch);
    return NULL;
}

/* ---------------------------------------------------------------- rows */

struct row_tasks { /* a task is a few rows */
    const struct kernels *kernels;
    const void *what;
    size_t rows;
};

static void norm_task(const void *argument, size_t task, int worker) {
    (void)worker;
    const struct row_tasks *of = argument;
    of->kernels->add_layer_norm(of->what, task * NORM_ROWS, smaller((task + 1) * NORM_ROWS, of->rows));
}

static void embed_task(const void *argument, size_t task, int worker) {
    (void)worker;
    const struct row_tasks *of = argument;
    of->kernels->embed(of->what, task * NORM_ROWS, smaller((task + 1) * NORM_ROWS, of->rows));
}

/* A worker alone is faster with so few numbers: to wait for others takes about a microsecond. */
enum { FEW_NUMBERS = 8192 };

static void add_layer_norm(const struct kernels *kernels, struct team *team, int workers, const struct norm *norm) {
    struct row_tasks tasks = {kernels, norm, norm->rows};
    if (norm->rows * norm->hidden <= FEW_NUMBERS) team = NULL;
    team_run(team, workers, pieces_of(norm->rows, NORM_ROWS), norm_task, &tasks);
}

const char *mb_embed(const struct kernels *kernels, struct team *team, int workers, const struct embedding *embedding,
                     size_t words, size_t positions) {
    for (size_t i = 0; i < embedding->rows; i++) {
        if (embedding->ids[i] < 0 || (size_t)embedding->ids[i] >= words) return "a token id is outside the table";
        if (embedding->positions[i] < 0 || (size_t)embedding->positions[i] >= positions)
            return "a position is outside the table";
    }
    struct row_tasks tasks = {kernels, embedding, embedding->rows};
    if (embedding->rows * embedding->hidden <= FEW_NUMBERS) team = NULL;
    team_run(team_ready(team), workers, pieces_of(embedding->rows, NORM_ROWS), embed_task, &tasks);
    return NULL;
}

void mb_layer_norm(const struct kernels *kernels, const struct norm *norm) {
    kernels->add_layer_norm(norm, 0, norm->rows);
}

void mb_normalize(const struct kernels *kernels, float *x, size_t rows, size_t width, size_t ld) {
    kernels->normalize(x, rows, width, ld);
}

const char *mb_pool(const struct kernels *kernels, const struct pool *pool, size_t rows) {
    if (!ordered(pool->starts, pool->texts) || (size_t)pool->starts[pool->texts] > rows)
        return "the texts must be inside the rows";
    if (pool->ldx < pool->hidden || pool->ldout < pool->number_of_modes * pool->hidden) return "rows must not overlap";
    for (size_t i = 0; i < pool->number_of_modes; i++)
        if (pool->modes[i] < 0 || pool->modes[i] >= POOLINGS) return "there is no such pooling mode";
    kernels->pool(pool);
    return NULL;
}

void mb_activate(const struct kernels *kernels, int activation, float *x, size_t count) {
    kernels->activate(activation, x, count);
}
void mb_exp(const struct kernels *kernels, float *x, size_t count) { kernels->exp(x, count); }
double mb_peak(const struct kernels *kernels, size_t rounds) { return kernels->peak(rounds); }

/* ---------------------------------------------------------------- a layer */

/* The leading dimension of a matrix in the workspace: an odd number of cache lines. If rows were a multiple of 4 kB
 * apart, as 1024 or 3072 numbers are, the rows of a tile would share one set of the L1 cache, which holds fewer. */
static size_t padded_row(size_t columns) { return ((columns + 15) / 16 | 1) * 16; }
size_t mb_leading(size_t columns) { return padded_row(columns); }

static size_t wide_row(const struct shape *shape) {
    return larger(padded_row(shape->inner), padded_row(3 * shape->hidden));
}

size_t mb_workspace(const struct kernels *kernels, const struct shape *shape, size_t tokens, size_t longest,
                    int workers) {
    return tokens * (wide_row(shape) + 2 * padded_row(shape->hidden)) +
           kernels->attention_scratch(longest, shape->hidden / shape->heads) * (size_t)workers;
}

static const char *wrong_batch(const struct batch *batch) {
    if (!ordered(batch->keys, batch->texts) || !ordered(batch->queries, batch->texts))
        return "the starts of texts must begin with 0 and not fall";
    if (batch->queries == batch->keys) return NULL;
    for (size_t i = 0; i < batch->texts; i++)
        if (batch->queries[i + 1] - batch->queries[i] != (batch->keys[i + 1] > batch->keys[i]))
            return "there must be one query for each text that has tokens";
    return NULL;
}

const char *mb_layer(const struct kernels *kernels, struct team *whole_team, int workers, const struct shape *shape,
                     const struct layer *layer, const struct layer *next, const struct batch *batch, float *x,
                     float *workspace, size_t workspace_size) {
    if (!shape->heads || shape->hidden % shape->heads) return "the heads must divide the hidden size";
    if (!shape->hidden || !shape->inner || shape->hidden > INT_MAX || shape->inner > INT_MAX)
        return "the sizes must be positive numbers of 31 bits";
    if (shape->activation < 0 || shape->activation >= ACTIVATIONS) return "there is no such activation";
    const char *wrong = wrong_batch(batch);
    if (wrong) return wrong;
    const size_t longest = longest_text(batch->keys, batch->texts);
    if (longest > MOST_KEYS) return "a text has too many tokens";
    if (!has_distances(batch->distance_bias, batch->distances, longest))
        return "a text has more tokens than the bias has distances";
    const size_t hidden = shape->hidden, inner = shape->inner, tokens = (size_t)batch->keys[batch->texts];
    const size_t rows = (size_t)batch->queries[batch->texts]; /* from the attention on */
    struct team *team = team_ready(whole_team);
    if (workers < 1 || !team) workers = 1;
    if (workers > team_size(team)) workers = team_size(team);
    if (workspace_size < mb_workspace(kernels, shape, tokens, longest, workers))
        return "the workspace is too small";

    const size_t ld = padded_row(hidden), ld3 = padded_row(3 * hidden), ldi = padded_row(inner);
    const size_t panel = kernels->panel_columns, panels = pieces_of(hidden, panel);
    const size_t panels3 = pieces_of(3 * hidden, panel);
    const size_t panels_up = pieces_of(inner, panel);
    float *y = workspace, *context = y + tokens * ld, *wide = context + tokens * ld;
    float *scratch = wide + tokens * wide_row(shape);

    struct product qkv = {x, layer->qkv, NULL, wide, ld, ld3, tokens, hidden, 3 * hidden, panels3, 0, panels3, 0};
    struct product output = {context, layer->output, NULL, y, ld, ld, rows, hidden, hidden, panels, 0, panels, 0};
    struct attention attention = {wide, wide + hidden, wide + 2 * hidden, layer->query_bias, context, ld3, ld3, ld,
                                  shape->heads, hidden / shape->heads, batch->texts, batch->queries, batch->keys,
                                  batch->distance_bias, batch->distances};
    if (batch->queries == batch->keys) {
        multiply(kernels, team, workers, &qkv, &output);
    } else { /* keys and values of all tokens; queries of first tokens, in y */
        struct product query = qkv;
        qkv.first_panel = hidden / panel; /* its first columns may be queries, which nobody reads */
        multiply(kernels, team, workers, &qkv, &query);
        for (size_t text = 0; text < batch->texts; text++)
            if (batch->keys[text + 1] > batch->keys[text])
                memmove(x + (size_t)batch->queries[text] * ld, x + (size_t)batch->keys[text] * ld, hidden * sizeof *x);
        query.y = y, query.ldy = ld, query.rows = rows, query.outputs = hidden, query.end_panel = panels;
        multiply(kernels, team, workers, &query, &output);
        attention.q = y, attention.ldq = ld;
    }
    attend(kernels, team, workers, &attention, scratch);

    struct norm norm1 = {x, y, layer->output_bias, layer->norm1, layer->shift1, x,
                         rows, hidden, ld, ld, ld, shape->eps};
    struct product up = {x, layer->up, layer->up_bias, wide, ld, ldi, rows, hidden, inner, panels_up, 0, panels_up,
                         shape->activation};
    struct product down = {wide, layer->down, NULL, y, ldi, ld, rows, inner, hidden, panels, 0, panels, 0};
    struct norm norm2 = {x, y, layer->down_bias, layer->norm2, layer->shift2, x,
                         rows, hidden, ld, ld, ld, shape->eps};
    struct product next_qkv = qkv;
    if (next) next_qkv.w = next->qkv, next_qkv.first_panel = 0;
    multiply(kernels, team, workers, &output, &up);
    add_layer_norm(kernels, team, workers, &norm1);
    multiply(kernels, team, workers, &up, &down);
    multiply(kernels, team, workers, &down, next ? &next_qkv : NULL);
    add_layer_norm(kernels, team, workers, &norm2);
    return NULL;
}
