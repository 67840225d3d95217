/* ref_route.c - the reference of SUMMARISE, SCORE, POOL, SELECT, UNION and RESOLVE: naive and normative. */
#include <string.h>

#include "backend/cpu/codebook.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/groups.h"
#include "backend/cpu/route_int.h"
#include "base/pool.h"

/* ---- SUMMARISE ---- */

/* One stored K or V row as f32. */
static void load_row(const hdl_summarise_args *args, int64_t token, int32_t head, bool is_v, float *out)
{
    const hdl_kv_view *kv = &args->kv;
    float scale = 1;
    if (kv->dtype == HDL_I8) {
        const uint8_t *at = kv_scale_at(kv, token, args->n_kv_heads);
        scale = ((const float *)(at + (is_v ? kv->v_scale_offset : kv->k_scale_offset)))[head];
    }
    const uint8_t *row = kv_token_at(kv, token) + (is_v ? kv->v_offset + head * kv->v_head_stride
                                                        : kv->k_offset + head * kv->head_stride);
    for (int64_t i = 0; i < (is_v ? args->v_head_dim : args->head_dim); i++)
        out[i] = stored_element(kv->dtype, row, i, scale);
}

/* The f16 next to x that is not above (down) or not below it. */
static uint16_t f16_outwards(float x, bool is_down)
{
    uint16_t h = hdl_f32_to_f16(x);
    float back = hdl_f16_to_f32(h);
    if (is_down ? back <= x : back >= x) return h;
    bool is_negative = h >> 15;
    if ((h & 0x7fff) == 0) return is_down ? 0x8001 : 0x0001;
    return (uint16_t)(is_down == is_negative ? h + 1 : h - 1);
}

enum { MAX_DIM = 1024 };

static void summarise_mean(const hdl_summarise_args *args, int64_t entry, int32_t head, int64_t first,
                           int64_t n)
{
    bool is_v = args->kind == HDL_PLANE_MEAN_V;
    int64_t dim = args->kv.plane[0].dim;
    float row[MAX_DIM], sum[MAX_DIM] = {0};
    for (int64_t t = first; t < first + n; t++) {
        load_row(args, t, head, is_v, row);
        for (int64_t i = 0; i < dim; i++) sum[i] += row[i];
    }
    uint16_t *out = (uint16_t *)plane_at(&args->kv, args->kv.plane[0].offset, entry, args->block_size,
                                         hdl_plane_entry_bytes(args->kind, args->n_kv_heads, (int32_t)dim)) +
                    head * dim;
    for (int64_t i = 0; i < dim; i++) out[i] = hdl_f32_to_f16(sum[i] / (float)n);
}

static void summarise_bounds(const hdl_summarise_args *args, int64_t entry, int32_t head, int64_t first,
                             int64_t n)
{
    int64_t dim = args->kv.plane[0].dim;
    float row[MAX_DIM], least[MAX_DIM], largest[MAX_DIM];
    for (int64_t t = first; t < first + n; t++) {
        load_row(args, t, head, false, row);
        for (int64_t i = 0; i < dim; i++) {
            least[i] = t == first || row[i] < least[i] ? row[i] : least[i];
            largest[i] = t == first || row[i] > largest[i] ? row[i] : largest[i];
        }
    }
    uint16_t *out = (uint16_t *)plane_at(&args->kv, args->kv.plane[0].offset, entry, args->block_size,
                                         hdl_plane_entry_bytes(args->kind, args->n_kv_heads, (int32_t)dim)) +
                    head * 2 * dim;
    for (int64_t i = 0; i < dim; i++) {
        out[i] = f16_outwards(least[i], true);
        out[dim + i] = f16_outwards(largest[i], false);
    }
}

/* One row that stands for its block: the largest elements, or the row in the middle. */
static void summarise_one(const hdl_summarise_args *args, int64_t entry, int32_t head, int64_t first,
                          int64_t n)
{
    int64_t dim = args->kv.plane[0].dim;
    float row[MAX_DIM], out[MAX_DIM];
    if (args->kind == HDL_PLANE_MIDDLE) {
        load_row(args, first + HDL_MIN(args->block_size / 2, n - 1), head, false, out);
    } else {
        load_row(args, first, head, false, out);
        for (int64_t t = first + 1; t < first + n; t++) {
            load_row(args, t, head, false, row);
            for (int64_t i = 0; i < dim; i++) out[i] = row[i] > out[i] ? row[i] : out[i];
        }
    }
    uint16_t *to = (uint16_t *)plane_at(&args->kv, args->kv.plane[0].offset, entry, args->block_size,
                                        hdl_plane_entry_bytes(args->kind, args->n_kv_heads, (int32_t)dim)) +
                   head * dim;
    for (int64_t i = 0; i < dim; i++) to[i] = hdl_f32_to_f16(out[i]);
}

/* The element j of the group that half `half` of byte i codes, of rows of n bytes and groups of `group`. */
static int64_t coded_element(int64_t i, int half, int32_t j, int32_t group, int64_t n)
{
    return (half * group + j) * n + i;
}

/* The entry nearest to the elements at[0..group) of u. */
static int nearest_code(const float *u, const int64_t *at, int32_t group)
{
    int best = 0;
    float least = INFINITY;
    for (int code = 0; code < HDL_BOOK_CODES; code++) {
        float distance = 0;
        for (int32_t j = 0; j < group; j++) {
            float d = u[at[j]] - (float)hdl_book(group)[j][code];
            distance += d * d;
        }
        if (distance < least) {
            least = distance;
            best = code;
        }
    }
    return best;
}

/* x [dim] as codes of a book; returns the row's scale. */
static float code_row(const float *x, uint8_t *out, int64_t dim, int32_t group)
{
    int64_t n = dim / (2 * group), at[4];
    float y[MAX_DIM], u[MAX_DIM], c[MAX_DIM], scale;
    hdl_rotate(x, y, dim);
    float norm = hdl_dot16(y, y, dim), factor = hdl_book_factor(norm, dim, &scale);
    memset(out, 0, (size_t)n);
    if (factor == 0) return scale;
    for (int64_t i = 0; i < dim; i++) u[i] = y[i] * factor;
    for (int64_t i = 0; i < n; i++)
        for (int half = 0; half < 2; half++) {
            for (int32_t j = 0; j < group; j++) at[j] = coded_element(i, half, j, group, n);
            int code = nearest_code(u, at, group);
            out[i] |= (uint8_t)(code << 4 * half);
            for (int32_t j = 0; j < group; j++) c[at[j]] = (float)hdl_book(group)[j][code];
        }
    return hdl_book_scale(norm, hdl_dot16(y, c, dim), dim);
}

static void summarise_key(const hdl_summarise_args *args, int64_t token, int32_t head)
{
    const hdl_kv_plane *plane = &args->kv.plane[0];
    int64_t dim = plane->dim, bytes = hdl_plane_entry_bytes(args->kind, args->n_kv_heads, plane->dim);
    float row[MAX_DIM], scale;
    int8_t q[MAX_DIM];
    load_row(args, token, head, false, row);
    uint8_t *out = plane_at(&args->kv, plane->offset, token, 1, bytes) + head * (bytes / args->n_kv_heads);
    if (args->kind == HDL_PLANE_KEY_I8) {
        scale = quantise_i8(row, (int8_t *)out, dim);
    } else if (args->kind == HDL_PLANE_KEY_PQ2 || args->kind == HDL_PLANE_KEY_PQ4) {
        scale = code_row(row, out, dim, args->kind == HDL_PLANE_KEY_PQ2 ? 2 : 4);
    } else {
        scale = quantise_i4(row, q, dim);
        for (int64_t i = 0; i < dim / 2; i++) out[i] = (uint8_t)((q[i] + 8) | (q[i + dim / 2] + 8) << 4);
    }
    uint8_t *scales = plane_at(&args->kv, plane->scale_offset, token, 1,
                               args->n_kv_heads * (int64_t)sizeof scale);
    memcpy(scales + head * sizeof scale, &scale, sizeof scale);
}

static void summarise_index(const hdl_summarise_args *args)
{
    const hdl_kv_plane *plane = &args->kv.plane[0];
    for (int64_t row = 0; row < args->n_rows; row++) {
        int64_t token = args->first_token + row;
        uint8_t *out = plane_at(&args->kv, plane->offset, token, 1, plane->dim);
        float scale = quantise_i8(args->x + row * args->x_stride, (int8_t *)out, plane->dim);
        memcpy(plane_at(&args->kv, plane->scale_offset, token, 1, sizeof scale), &scale, sizeof scale);
    }
}

/* The mean of a block's index keys. */
static void summarise_index_mean(const hdl_summarise_args *args, int64_t entry, int64_t first, int64_t n)
{
    const hdl_kv_plane *mean = &args->kv.plane[0], *keys = &args->kv.plane[1];
    int64_t block = args->block_size, dim = mean->dim;
    float sum[MAX_DIM] = {0}, scale;
    HDL_ASSERT(dim <= MAX_DIM && keys->dim == mean->dim);
    for (int64_t t = first; t < first + n; t++) {
        const int8_t *key = (const int8_t *)plane_at(&args->kv, keys->offset, t, 1, dim);
        memcpy(&scale, plane_at(&args->kv, keys->scale_offset, t, 1, sizeof scale), sizeof scale);
        for (int64_t i = 0; i < dim; i++) sum[i] += (float)key[i] * scale;
    }
    for (int64_t i = 0; i < dim; i++) sum[i] /= (float)n;
    scale = quantise_i8(sum, (int8_t *)plane_at(&args->kv, mean->offset, entry, block, dim), dim);
    memcpy(plane_at(&args->kv, mean->scale_offset, entry, block, sizeof scale), &scale, sizeof scale);
}

/* The groups of one full segment; space: its rows, and what ordering them takes. */
static void summarise_groups(const hdl_summarise_args *args, int64_t segment, float *space)
{
    const hdl_kv_plane *plane = &args->kv.plane[0];
    int64_t width = (int64_t)args->n_kv_heads * args->head_dim, block = args->block_size;
    int64_t bytes = hdl_plane_entry_bytes(args->kind, args->n_kv_heads, plane->dim);
    float *rows = space, *rest = rows + hdl_group_rows_size(width);
    uint8_t places[HDL_SEGMENT_TOKENS];
    for (int64_t t = 0; t < HDL_SEGMENT_TOKENS; t++)
        for (int32_t head = 0; head < args->n_kv_heads; head++)
            load_row(args, segment * HDL_SEGMENT_TOKENS + t, head, false,
                     rows + t * width + head * (int64_t)args->head_dim);
    hdl_group_order(rows, width, args->block_size, places, rest);
    for (int64_t g = 0; g < HDL_SEGMENT_TOKENS / block; g++) {
        int64_t entry = segment * HDL_SEGMENT_TOKENS / block + g;
        int8_t *out = (int8_t *)plane_at(&args->kv, plane->offset, entry, block, bytes);
        float *scales = (float *)plane_at(&args->kv, plane->scale_offset, entry, block,
                                          args->n_kv_heads * (int64_t)sizeof *scales);
        hdl_group_mean(rows, width, places + g * block, args->block_size, rest);
        for (int64_t h = 0; h < args->n_kv_heads; h++)
            scales[h] = quantise_i8(rest + h * args->head_dim, out + h * args->head_dim, args->head_dim);
    }
    memcpy(group_members(&args->kv, args->block_size, segment * HDL_SEGMENT_TOKENS), places, sizeof places);
}

static void summarise(const hdl_launch *launch, const void *op)
{
    const hdl_summarise_args *args = op;
    int64_t end = args->first_token + args->n_rows, block = args->block_size;
    if (args->kind == HDL_PLANE_GROUP) {
        int64_t first = args->first_token / HDL_SEGMENT_TOKENS;
        for (int64_t segment = first; segment < end / HDL_SEGMENT_TOKENS; segment++)
            summarise_groups(args, segment, launch->workspace);
        return;
    }
    if (args->kind == HDL_PLANE_INDEX) {
        summarise_index(args);
        return;
    }
    if (args->kind == HDL_PLANE_INDEX_MEAN) {
        for (int64_t entry = args->first_token / block; entry * block < end; entry++)
            summarise_index_mean(args, entry, entry * block, HDL_MIN(block, end - entry * block));
        return;
    }
    HDL_ASSERT(args->head_dim <= MAX_DIM && args->v_head_dim <= MAX_DIM);
    for (int64_t entry = args->first_token / block; entry * block < end; entry++)
        for (int32_t head = 0; head < args->n_kv_heads; head++) {
            int64_t first = entry * block, n = HDL_MIN(block, end - first);
            switch (args->kind) {
                case HDL_PLANE_MEAN:
                case HDL_PLANE_MEAN_V: summarise_mean(args, entry, head, first, n); break;
                case HDL_PLANE_BOUNDS: summarise_bounds(args, entry, head, first, n); break;
                case HDL_PLANE_PEAK:
                case HDL_PLANE_MIDDLE: summarise_one(args, entry, head, first, n); break;
                case HDL_PLANE_KEY_I8:
                case HDL_PLANE_KEY_PQ2:
                case HDL_PLANE_KEY_PQ4:
                case HDL_PLANE_KEY_I4: /* entries are tokens; those before first_token are up to date */
                    if (entry >= args->first_token) summarise_key(args, entry, head);
                    break;
                default: HDL_ASSERT(false);
            }
        }
}

/* ---- SCORE ---- */

typedef struct score_call {
    const hdl_score_args *args;
    float *s; /* [n_threads, 2, entries]: of one head, of one of several rows */
    int64_t n_max;
} score_call;

/* q8 of one head and its scale, and q itself for the float planes. */
typedef struct query {
    const float *q;
    int8_t q8[MAX_DIM];
    float scale;
} query;

static float float_dot(const query *q, const uint16_t *key, int64_t dim)
{
    double dot = 0;
    for (int64_t i = 0; i < dim; i++) dot += (double)q->q[i] * hdl_f16_to_f32(key[i]);
    return (float)dot;
}

static float pair_dot(const query *q, const uint16_t *a, const uint16_t *b, int64_t dim)
{
    double dot = 0;
    for (int64_t i = 0; i < dim; i++)
        dot += (double)q->q[i] * 0.5 * (hdl_f16_to_f32(a[i]) + hdl_f16_to_f32(b[i]));
    return (float)dot;
}

static float bound(const query *q, const uint16_t *entry, int64_t dim)
{
    double sum = 0;
    for (int64_t i = 0; i < dim; i++) {
        double low = (double)q->q[i] * hdl_f16_to_f32(entry[i]);
        double high = (double)q->q[i] * hdl_f16_to_f32(entry[dim + i]);
        sum += HDL_MAX(low, high);
    }
    return (float)sum;
}

/* The query is rotated: prepare_query. */
static float coded_dot(const query *q, const uint8_t *key, int64_t dim, int32_t group)
{
    int64_t n = dim / (2 * group);
    int32_t dot = 0;
    for (int64_t i = 0; i < n; i++)
        for (int half = 0; half < 2; half++)
            for (int32_t j = 0; j < group; j++)
                dot += hdl_book(group)[j][key[i] >> 4 * half & 15] *
                       q->q8[coded_element(i, half, j, group, n)];
    return (float)dot;
}

static float integer_dot(const query *q, hdl_plane_kind kind, const uint8_t *key, int64_t dim)
{
    int32_t dot = 0;
    if (kind == HDL_PLANE_KEY_PQ2 || kind == HDL_PLANE_KEY_PQ4)
        return coded_dot(q, key, dim, kind == HDL_PLANE_KEY_PQ2 ? 2 : 4);
    for (int64_t i = 0; i < dim; i++) {
        int32_t k = kind == HDL_PLANE_KEY_I4 ? (i < dim / 2 ? key[i] & 15 : key[i - dim / 2] >> 4) - 8
                                             : ((const int8_t *)key)[i];
        dot += k * q->q8[i];
    }
    return (float)dot;
}

/* The score of entry e for one query head of the plane's head kv_head, scaled; see op.h for each rule. */
static float entry_score(const hdl_score_args *args, const hdl_kv_view *kv, const query *q, int32_t kv_head,
                         int64_t e)
{
    const hdl_kv_plane *plane = &kv->plane[0];
    int64_t dim = plane->dim, bytes = hdl_plane_entry_bytes(args->plane, plane->n_heads, plane->dim);
    const uint8_t *at = plane_at(kv, plane->offset, e, args->block_size, bytes) +
                        kv_head * (bytes / plane->n_heads);
    if (args->rule == HDL_RULE_BOUND) return args->scale * bound(q, (const uint16_t *)at, dim);
    if (args->rule == HDL_RULE_PAIRS) {
        const uint8_t *next = plane_at(kv, plane->offset, e + 1, args->block_size, bytes) +
                              kv_head * (bytes / plane->n_heads);
        return args->scale * pair_dot(q, (const uint16_t *)at, (const uint16_t *)next, dim);
    }
    if (args->plane == HDL_PLANE_MEAN || args->plane == HDL_PLANE_PEAK || args->plane == HDL_PLANE_MIDDLE)
        return args->scale * float_dot(q, (const uint16_t *)at, dim);
    const float *scales = (const float *)plane_at(kv, plane->scale_offset, e, args->block_size,
                                                  plane->n_heads * (int64_t)sizeof(float));
    float dot = integer_dot(q, args->plane, at, dim), k_scale = scales[kv_head];
    return args->rule == HDL_RULE_INDEX ? dot * k_scale : dot * (k_scale * (q->scale * args->scale));
}

/* A head's query in whole numbers, as the plane wants it; returns its scale. */
static float prepare_query(const hdl_score_args *args, const float *x, int8_t *q8)
{
    float y[MAX_DIM];
    if (args->plane != HDL_PLANE_KEY_PQ2 && args->plane != HDL_PLANE_KEY_PQ4)
        return quantise_i8(x, q8, args->head_dim);
    hdl_rotate(x, y, args->head_dim);
    return quantise_i8(y, q8, args->head_dim);
}

/* Adds one head's scores s [n] (scored entries) into the list's. */
static void reduce_head(const hdl_score_args *args, const float *s, int64_t n, int64_t n_heads, bool is_first,
                        float *out)
{
    double max = -INFINITY, sum = 0;
    if (args->measure == HDL_MEASURE_MASS) {
        for (int64_t e = 0; e < n; e++) max = HDL_MAX(max, (double)s[e]);
        for (int64_t e = 0; e < n && max > -INFINITY; e++) sum += exp(s[e] - max);
    }
    for (int64_t e = 0; e < n; e++) {
        double x = s[e];
        if (args->measure == HDL_MEASURE_MASS) x = sum > 0 ? exp(s[e] - max) / sum : 0;
        if (args->reduce == HDL_REDUCE_MAX)
            out[e] = is_first ? (float)x : HDL_MAX(out[e], (float)x);
        else
            out[e] = (is_first ? 0 : out[e]) +
                     (float)(args->reduce == HDL_REDUCE_MEAN ? x / (double)n_heads : x);
    }
}

/* One row's scores for one list into out; s: [entries] scratch. Returns the entries that were scored. */
static int64_t score_row(const hdl_score_args *args, const hdl_attend_seq *seq, int64_t row, int32_t list,
                         float *out, float *s)
{
    int64_t visible = seq->kv_len - seq->q_len + row - seq->first_row + 1, block = args->block_size;
    int64_t n_all = (visible + block - 1) / block, n = whole_entries(args->plane, visible, block);
    kv_walk walk = {0};
    if (args->has_candidates) {
        walk = candidate_walk(args->candidates, &seq->kv, row, list, visible);
        n = n_all = walk.end;
    }
    if (args->rule == HDL_RULE_PAIRS) n = HDL_MAX(n - 1, 0);
    for (int64_t e = n; e < n_all; e++) out[e] = -INFINITY;
    if (args->plane == HDL_PLANE_NONE) {
        for (int64_t e = 0; e < n; e++) out[e] = pattern_score(args, (visible - 1) / block, e, list);
        return n;
    }
    int32_t n_heads = args->n_heads / args->n_lists;
    for (int32_t h = 0; h < n_heads; h++) {
        int32_t head = list * n_heads + h,
                kv_head = args->first_kv_head + (int32_t)((int64_t)head * args->n_kv_heads / args->n_heads);
        query q = {.q = args->q + row * args->q_stride + (int64_t)head * args->head_dim};
        q.scale = prepare_query(args, q.q, q.q8);
        float bias = args->bias ? args->bias[row * args->n_heads + head] : 0;
        for (int64_t e = 0; e < n; e++)
            s[e] = entry_score(args, &seq->kv, &q, kv_head, walk.ids ? walk_token(&walk, e) : e) + bias;
        reduce_head(args, s, n, n_heads, h == 0, out);
    }
    return n;
}

static void score_list(void *arg, int64_t task, int thread)
{
    const score_call *call = arg;
    const hdl_score_args *args = call->args;
    int64_t row = task / args->n_lists;
    int32_t list = (int32_t)(task % args->n_lists);
    score_row(args, seq_of_row(args->seqs, row), row, list, args->score + task * args->score_stride,
              call->s + 2 * thread * call->n_max);
}

/* The rows of sequence task / n_lists as one, the last row first: it has the most entries. */
static void score_shared(void *arg, int64_t task, int thread)
{
    const score_call *call = arg;
    const hdl_score_args *args = call->args;
    const hdl_attend_seq *seq = &args->seqs[task / args->n_lists];
    int32_t list = (int32_t)(task % args->n_lists);
    float *out = args->score + task * args->score_stride, *s = call->s + 2 * thread * call->n_max,
          *one = s + call->n_max, *slash = args->slash ? args->slash + task * args->score_stride : NULL;
    for (int64_t i = seq->q_len; i--;) {
        int64_t shift = seq->q_len - 1 - i;
        int64_t n = score_row(args, seq, seq->first_row + i, list, shift ? one : out, s);
        for (int64_t e = 0; e < n && shift; e++)
            out[e] = args->rows == HDL_REDUCE_MAX ? HDL_MAX(out[e], one[e]) : out[e] + one[e];
        for (int64_t e = 0; e < n && slash; e++)
            slash[e + shift] = shift ? slash[e + shift] + one[e] : out[e];
    }
}

static int64_t score_workspace(const void *op, int n_threads)
{
    const hdl_score_args *args = op;
    return 2 * n_threads * (args->max_kv_len + 1) * (int64_t)sizeof(float);
}

static void score(const hdl_launch *launch, const void *op)
{
    const hdl_score_args *args = op;
    score_call call = {args, launch->workspace, args->max_kv_len + 1};
    HDL_ASSERT(args->head_dim <= MAX_DIM);
    if (args->is_shared)
        hdl_parallel_for(launch->n_threads, args->n_seqs * (int64_t)args->n_lists, score_shared, &call);
    else
        hdl_parallel_for(launch->n_threads, args->n_rows * args->n_lists, score_list, &call);
}

/* ---- POOL ---- */

static void pool(const hdl_launch *launch, const void *op)
{
    (void)launch;
    const hdl_pool_args *args = op;
    for (int64_t r = 0; r < args->n_rows * args->n_lists; r++) {
        float *s = args->score + r * args->score_stride;
        int64_t visible = args->n_visible[r / args->n_lists];
        int64_t n = (visible + args->entry_size - 1) / args->entry_size;
        /* pad reaches back into entries that a unit before has overwritten: kept here */
        float kept[2] = {-INFINITY, -INFINITY};
        HDL_ASSERT(args->pad >= 0 && args->pad <= 1);
        for (int64_t u = 0; u * args->n < n; u++) {
            int64_t end = HDL_MIN((u + 1) * args->n, n);
            float value = args->reduce == HDL_REDUCE_SUM ? 0 : -INFINITY;
            kept[1] = s[end - 1];
            for (int64_t e = u * args->n - args->pad; e < end; e++) {
                float x = e < 0 ? -INFINITY : e < u * args->n ? kept[0] : s[e];
                if (args->reduce == HDL_REDUCE_SUM)
                    value += x == -INFINITY ? 0 : x;
                else
                    value = HDL_MAX(value, x);
            }
            kept[0] = kept[1];
            s[u] = value;
        }
    }
}

/* ---- SELECT ---- */

/* Scores as integers in the same order; NaN below everything but equal to -inf, -0 equal to 0. */
static uint32_t score_key(float score)
{
    if (isnan(score)) score = -INFINITY;
    score += 0.0f;
    uint32_t u;
    memcpy(&u, &score, sizeof u);
    return u >> 31 ? ~u : u | 0x80000000;
}

static int64_t count_at_least(const float *score, int64_t begin, int64_t end, uint32_t key)
{
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++) n += score_key(score[i]) >= key;
    return n;
}

/* How many of the unforced units, best first, a share p of the mass takes. */
static int64_t count_for_share(const hdl_select_args *args, const float *score, const unit_range *at,
                               const hdl_row_mass *mass, float *sorted)
{
    int64_t n = at->end - at->begin, share = mass->forced, m = 0;
    double scale = hdl_mass_scale(mass->largest);
    if (!mass->total) return 0;
    for (int64_t i = 0; i < n; i++) { /* insertion into descending order: slow and plain */
        float x = isnan(score[at->begin + i]) ? -INFINITY : score[at->begin + i];
        int64_t to = i;
        for (; to > 0 && sorted[to - 1] < x; to--) sorted[to] = sorted[to - 1];
        sorted[to] = x;
    }
    bool has_room = hdl_is_below_p(args, share, mass->total);
    for (; m < n; m++) {
        share += hdl_mass_units(sorted[m], scale);
        if (!hdl_is_below_p(args, share, mass->total)) break;
    }
    return hdl_count_by_p(args, has_room, m, n);
}

static int64_t n_chosen(const hdl_select_args *args, int64_t row, int32_t list, const float *score,
                        const unit_range *at, float *sorted)
{
    int64_t n = at->end - at->begin, k = 0;
    if (args->kind == HDL_SELECT_TOP_K) return HDL_MIN(top_k_of(args, list), n);
    if (args->kind == HDL_SELECT_TOP_P) {
        hdl_row_mass mass = row_mass_of(args, row, list, score, at);
        k = count_for_share(args, score, at, &mass, sorted);
    } else {
        for (int64_t i = at->begin; i < at->end; i++) k += score[i] > args->threshold;
    }
    return args->top_k > 0 ? HDL_MIN(k, args->top_k) : k;
}

/* The largest key that at least k of the scores [begin, end) reach. */
static uint32_t bound_of(const float *score, int64_t begin, int64_t end, int64_t k)
{
    uint32_t bound = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t higher = bound | (uint32_t)1 << bit;
        if (count_at_least(score, begin, end, higher) >= k) bound = higher;
    }
    return bound;
}

static void beam_list(const hdl_select_args *args, int64_t row, int32_t list, void *workspace)
{
    const float *score = args->score + (row * args->n_lists + list) * args->score_stride;
    int32_t *ids = hdl_selection_ids(args->out, row, list), count = 0;
    unit_range at = select_range(args, row, list);
    int64_t n = at.end - at.begin, k = HDL_MIN(args->top_k, n);
    hdl_beam_node *nodes = workspace, *halves = nodes + k;
    float *of = (float *)(void *)(halves + 2 * k);
    for (int64_t longest = hdl_beam_tile(at.begin, n, k, nodes); longest > 1; longest = (longest + 1) / 2) {
        int64_t m = hdl_beam_split(nodes, k, halves), kept = 0;
        for (int64_t i = 0; i < m; i++) of[i] = score[halves[i].first];
        uint32_t bound = bound_of(of, 0, m, k);
        int64_t n_ties = k - (bound == UINT32_MAX ? 0 : count_at_least(of, 0, m, bound + 1));
        for (int64_t i = 0; i < m; i++) {
            uint32_t key = score_key(of[i]);
            if (key > bound || (key == bound && n_ties-- > 0)) nodes[kept++] = halves[i];
        }
    }
    for (int64_t i = 0; i < at.begin; i++) ids[count++] = (int32_t)i;
    for (int64_t i = 0; i < k; i++) ids[count++] = nodes[i].first;
    for (int64_t i = at.end; i < at.n; i++) ids[count++] = (int32_t)i;
    select_map(args, &at, ids, count);
    *hdl_selection_count(args->out, row, list) = count;
}

static void select_list(const hdl_select_args *args, int64_t row, int32_t list, float *sorted)
{
    const float *score = args->score + (row * args->n_lists + list) * args->score_stride;
    int32_t *ids = hdl_selection_ids(args->out, row, list), n = 0;
    unit_range at = select_range(args, row, list);
    int64_t k = n_chosen(args, row, list, score, &at, sorted);
    bool takes_all = at.end - at.begin <= k;
    uint32_t bound = 0; /* the largest key that at least k candidates reach */
    int64_t n_ties = 0; /* how many of the candidates at the bound are taken, lowest ids first */
    if (!takes_all) {
        bound = bound_of(score, at.begin, at.end, k);
        n_ties = k - (bound == UINT32_MAX ? 0 : count_at_least(score, at.begin, at.end, bound + 1));
    }
    for (int64_t i = 0; i < at.n; i++) {
        bool is_taken = takes_all || i < at.begin || i >= at.end;
        if (!is_taken) {
            uint32_t key = score_key(score[i]);
            is_taken = key > bound || (key == bound && n_ties-- > 0);
        }
        if (is_taken) ids[n++] = (int32_t)i;
    }
    select_map(args, &at, ids, n);
    *hdl_selection_count(args->out, row, list) = n;
}

static int64_t select_workspace(const void *op, int n_threads)
{
    const hdl_select_args *args = op;
    (void)n_threads;
    if (args->kind == HDL_SELECT_BEAM)
        return HDL_MIN(args->top_k, args->max_visible) *
               (int64_t)(3 * sizeof(hdl_beam_node) + 2 * sizeof(float));
    return args->kind == HDL_SELECT_TOP_P ? args->max_visible * (int64_t)sizeof(float) : 0;
}

static void select(const hdl_launch *launch, const void *op)
{
    const hdl_select_args *args = op;
    for (int64_t row = 0; row < args->n_rows; row++)
        for (int32_t list = 0; list < args->n_lists; list++) {
            if (args->kind == HDL_SELECT_BEAM)
                beam_list(args, row, list, launch->workspace);
            else
                select_list(args, row, list, launch->workspace);
        }
}

/* ---- UNION ---- */

/* The least id from `from` on that the lists hold, or INT32_MAX; at[i]: places before which nothing is left. */
static int32_t next_united(const hdl_union_args *args, int64_t row, int32_t list, int32_t from, int32_t *at)
{
    int32_t n_united = args->lists->n_lists / args->out->n_lists, least = INT32_MAX;
    for (int32_t i = 0; i < n_united + (args->slashes != NULL); i++) {
        bool is_slash = i == n_united;
        const hdl_selection *of = is_slash ? args->slashes : args->lists;
        int32_t l = is_slash ? list : list * n_united + i, n = *hdl_selection_count(of, row, l);
        const int32_t *ids = hdl_selection_ids(of, row, l);
        while (at[i] < n && ids[at[i]] < from) at[i]++;
        if (at[i] < n) least = HDL_MIN(least, HDL_MAX(ids[at[i]] - (is_slash ? args->n_before : 0), from));
    }
    return least;
}

static void union_row(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_union_args *args = arg;
    int64_t row = task / args->out->n_lists;
    int32_t list = (int32_t)(task % args->out->n_lists), n_united = args->lists->n_lists / args->out->n_lists;
    int32_t *out = hdl_selection_ids(args->out, row, list), n = 0, at[HDL_MAX_UNITED + 1] = {0};
    HDL_ASSERT(n_united >= 1 && n_united <= HDL_MAX_UNITED);
    HDL_ASSERT(!args->slashes || args->slashes->n_lists == args->out->n_lists);
    for (int32_t id = 0; (id = next_united(args, row, list, id, at)) < INT32_MAX; id++) {
        HDL_ASSERT(n < args->out->n_ids_max);
        out[n++] = id;
    }
    *hdl_selection_count(args->out, row, list) = n;
}

static void unite(const hdl_launch *launch, const void *op)
{
    hdl_union_args args = *(const hdl_union_args *)op;
    hdl_parallel_for(launch->n_threads, args.n_rows * args.out->n_lists, union_row, &args);
}

/* ---- RESOLVE ---- */

/* Marks what group `group` stands for among the `visible` tokens, each by its place in the group's segment. */
static void mark_group(const hdl_resolve_args *args, const hdl_kv_view *kv, int64_t group, int64_t visible,
                       bool *marks)
{
    int64_t block = args->block_size, segment = group * block / HDL_SEGMENT_TOKENS;
    int64_t first = segment * HDL_SEGMENT_TOKENS;
    const uint8_t *members = NULL;
    if (first + HDL_SEGMENT_TOKENS <= visible) members = group_members(kv, args->block_size, group * block);
    for (int64_t i = 0; i < block; i++) marks[members ? members[i] : group * block - first + i] = true;
}

static void resolve_list(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_resolve_args *args = arg;
    int64_t row = task / args->out->n_lists, visible = args->n_visible[row];
    int32_t list = (int32_t)(task % args->out->n_lists), n = 0, at = 0;
    int32_t *out = hdl_selection_ids(args->out, row, list);
    const int32_t *groups = hdl_selection_ids(args->lists, row, list);
    int32_t n_groups = *hdl_selection_count(args->lists, row, list);
    const hdl_kv_view *kv = &seq_of_row(args->seqs, row)->kv;
    for (int64_t first = 0; first < visible; first += HDL_SEGMENT_TOKENS) {
        bool marks[HDL_SEGMENT_TOKENS] = {false};
        for (; at < n_groups && (int64_t)groups[at] * args->block_size < first + HDL_SEGMENT_TOKENS; at++)
            mark_group(args, kv, groups[at], visible, marks);
        for (int64_t t = first; t < HDL_MIN(first + HDL_SEGMENT_TOKENS, visible); t++) {
            if (!marks[t - first] && t >= args->n_sink && t < visible - args->window) continue;
            HDL_ASSERT(n < args->out->n_ids_max);
            out[n++] = (int32_t)t;
        }
    }
    *hdl_selection_count(args->out, row, list) = n;
}

static void resolve(const hdl_launch *launch, const void *op)
{
    hdl_resolve_args args = *(const hdl_resolve_args *)op;
    hdl_parallel_for(launch->n_threads, args.n_rows * args.out->n_lists, resolve_list, &args);
}

const hdl_impl hdl_cpu_ref_route[] = {
    {"summarise_ref", HDL_OP_SUMMARISE, HDL_ISA_REF, NULL, hdl_group_workspace, summarise},
    {"score_ref", HDL_OP_SCORE, HDL_ISA_REF, NULL, score_workspace, score},
    {"pool_ref", HDL_OP_POOL, HDL_ISA_REF, NULL, NULL, pool},
    {"select_ref", HDL_OP_SELECT, HDL_ISA_REF, NULL, select_workspace, select},
    {"union_ref", HDL_OP_UNION, HDL_ISA_REF, NULL, NULL, unite},
    {"resolve_ref", HDL_OP_RESOLVE, HDL_ISA_REF, NULL, NULL, resolve},
    {NULL, HDL_OP_SELECT, HDL_ISA_REF, NULL, NULL, NULL},
};
