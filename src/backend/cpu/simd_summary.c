/* simd_summary.c - SUMMARISE of stored rows, and POOL.
 *
 * Every element's arithmetic is the reference's, in the reference's order; only elements side by side are
 * done at once. So all bytes of a plane are the same on every instruction set. Bound by memory where many
 * rows come at once; a decode step reads its own row (keys) or its own block (means and bounds) again. */
#include "backend/cpu/codebook.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/groups.h"
#include "backend/cpu/route_int.h"
#include "backend/cpu/simd_half.h"
#include "base/pool.h"

enum { MAX_DIM = 1024, TASK_TOKENS = 64, POOL_TASK = 1024 };

/* ---- rows ---- */

/* One stored K or V row as f32. */
static void load_row(const hdl_summarise_args *args, int64_t token, int32_t head, bool is_v, float *out)
{
    const hdl_kv_view *kv = &args->kv;
    int64_t dim = is_v ? args->v_head_dim : args->head_dim;
    const uint8_t *row = kv_token_at(kv, token) + (is_v ? kv->v_offset + head * kv->v_head_stride
                                                        : kv->k_offset + head * kv->head_stride);
    for (int64_t i = 0; i < dim; i += VW) vf_store(out + i, vf_load_as(kv->dtype, row, i));
    if (kv->dtype != HDL_I8) return;
    float scale;
    const uint8_t *scales = kv_scale_at(kv, token, args->n_kv_heads) +
                            (is_v ? kv->v_scale_offset : kv->k_scale_offset);
    memcpy(&scale, scales + head * (int64_t)sizeof scale, sizeof scale);
    for (int64_t i = 0; i < dim; i++) out[i] *= scale;
}

/* ---- keys of few bits ---- */

/* x / amax in whole steps: what quantise_i8 and quantise_i4 do, in a form that compilers vectorise. Adding
 * 1.5 * 2^23 rounds to the nearest whole number, even on ties, and leaves it in the low bits. */
static float row_scale(const float *x, int64_t n, float *factor)
{
    int32_t largest = 0, bits[MAX_DIM];
    float scale;
    memcpy(bits, x, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) largest = HDL_MAX(largest, bits[i] & INT32_MAX);
    *factor = hdl_qscale(largest, &scale);
    return scale;
}

static float store_i8(const float *x, int8_t *to, int64_t n)
{
    float factor, scale = row_scale(x, n, &factor), y[MAX_DIM];
    int32_t bits[MAX_DIM];
    if (factor == 0) {
        memset(to, 0, (size_t)n);
        return scale;
    }
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor + 0x1.8p23f;
    memcpy(bits, y, (size_t)n * sizeof *y);
    for (int64_t i = 0; i < n; i++) to[i] = (int8_t)bits[i];
    return scale;
}

static float store_i4(const float *x, uint8_t *to, int64_t n)
{
    float factor, scale = row_scale(x, n, &factor), y[MAX_DIM];
    int32_t bits[MAX_DIM];
    if (!(scale > 0)) {
        memset(to, 0x88, (size_t)n / 2);
        return scale;
    }
    scale *= 127.0f / 7;
    for (int64_t i = 0; i < n; i++) {
        float v = x[i] / scale;
        v = v < 7 ? v : 7;
        y[i] = (v > -7 ? v : -7) + (0x1.8p23f + 8);
    }
    memcpy(bits, y, (size_t)n * sizeof *y);
    for (int64_t i = 0; i < n / 2; i++) to[i] = (uint8_t)((bits[i] & 15) | (bits[i + n / 2] & 15) << 4);
    return scale;
}

/* Codes of the nearest entries, n groups of a half side by side; c [n_elements] takes the entries. */
ALWAYS_INLINE void find_codes(const float *u, uint8_t *to, float *c, int64_t n_elements, const int group)
{
    int64_t n = n_elements / (2 * group);
    int32_t code[MAX_DIM / 2];
    for (int half = 0; half < 2; half++) {
        const float *x = u + half * group * n;
        float least[MAX_DIM / 4];
        int32_t *best = code + half * n;
        for (int64_t i = 0; i < n; i++) {
            least[i] = INFINITY;
            best[i] = 0;
        }
        for (int32_t k = 0; k < HDL_BOOK_CODES; k++)
            for (int64_t i = 0; i < n; i++) {
                float distance = 0;
                for (int j = 0; j < group; j++) {
                    float d = x[j * n + i] - (float)hdl_book(group)[j][k];
                    distance += d * d;
                }
                best[i] = distance < least[i] ? k : best[i];
                least[i] = distance < least[i] ? distance : least[i];
            }
        for (int j = 0; j < group; j++)
            for (int64_t i = 0; i < n; i++)
                c[(half * group + j) * n + i] = (float)hdl_book(group)[j][best[i]];
    }
    for (int64_t i = 0; i < n; i++) to[i] = (uint8_t)(code[i] | code[n + i] << 4);
}

static float store_codes(const float *x, uint8_t *to, int64_t n, int group)
{
    float y[MAX_DIM], u[MAX_DIM], c[MAX_DIM], scale;
    hdl_rotate(x, y, n);
    float norm = hdl_dot16(y, y, n), factor = hdl_book_factor(norm, n, &scale);
    if (factor == 0) {
        memset(to, 0, (size_t)(n / (2 * group)));
        return scale;
    }
    for (int64_t i = 0; i < n; i++) u[i] = y[i] * factor;
    if (group == 2)
        find_codes(u, to, c, n, 2);
    else
        find_codes(u, to, c, n, 4);
    return hdl_book_scale(norm, hdl_dot16(y, c, n), n);
}

static float store_key(const float *x, uint8_t *to, int64_t n, hdl_plane_kind kind)
{
    switch (kind) {
        case HDL_PLANE_KEY_I8: return store_i8(x, (int8_t *)to, n);
        case HDL_PLANE_KEY_I4: return store_i4(x, to, n);
        default: return store_codes(x, to, n, kind == HDL_PLANE_KEY_PQ2 ? 2 : 4);
    }
}

static void summarise_key(const hdl_summarise_args *args, int64_t token)
{
    const hdl_kv_plane *plane = &args->kv.plane[0];
    int64_t dim = plane->dim, bytes = hdl_plane_entry_bytes(args->kind, args->n_kv_heads, plane->dim);
    uint8_t *to = plane_at(&args->kv, plane->offset, token, 1, bytes);
    uint8_t *scales = plane_at(&args->kv, plane->scale_offset, token, 1,
                               args->n_kv_heads * (int64_t)sizeof(float));
    float row[MAX_DIM], scale;
    for (int32_t head = 0; head < args->n_kv_heads; head++, to += bytes / args->n_kv_heads) {
        load_row(args, token, head, false, row);
        scale = store_key(row, to, dim, args->kind);
        memcpy(scales + head * (int64_t)sizeof scale, &scale, sizeof scale);
    }
}

/* ---- blocks ---- */

static void summarise_mean(const hdl_summarise_args *args, int32_t head, int64_t first, int64_t n,
                           uint16_t *out)
{
    bool is_v = args->kind == HDL_PLANE_MEAN_V;
    int64_t dim = args->kv.plane[0].dim;
    float row[MAX_DIM], sum[MAX_DIM];
    memset(sum, 0, (size_t)dim * sizeof *sum);
    for (int64_t t = first; t < first + n; t++) {
        load_row(args, t, head, is_v, row);
        for (int64_t i = 0; i < dim; i++) sum[i] += row[i];
    }
    for (int64_t i = 0; i < dim; i++) sum[i] /= (float)n;
    store_f16(sum, out, dim);
}

/* The halves next to x that are not above it (is_down) or not below it. */
static void store_outwards(const float *x, uint16_t *out, int64_t dim, bool is_down)
{
    float back[MAX_DIM];
    store_f16(x, out, dim);
    for (int64_t i = 0; i < dim; i += VW) vf_store(back + i, vf_load_f16(out + i));
    for (int64_t i = 0; i < dim; i++) {
        int32_t h = out[i], is_up = is_down ? 0 : 1;
        bool is_in = is_down ? back[i] <= x[i] : back[i] >= x[i];
        int32_t away = (h >> 15) ^ is_up ? 1 : -1; /* a larger magnitude lies in the wanted direction */
        int32_t next = (h & 0x7fff) == 0 ? (is_down ? 0x8001 : 0x0001) : h + away;
        out[i] = (uint16_t)(is_in ? h : next);
    }
}

static void summarise_bounds(const hdl_summarise_args *args, int32_t head, int64_t first, int64_t n,
                             uint16_t *out)
{
    int64_t dim = args->kv.plane[0].dim;
    float row[MAX_DIM], least[MAX_DIM], largest[MAX_DIM];
    load_row(args, first, head, false, least);
    memcpy(largest, least, (size_t)dim * sizeof *least);
    for (int64_t t = first + 1; t < first + n; t++) {
        load_row(args, t, head, false, row);
        for (int64_t i = 0; i < dim; i++) {
            least[i] = row[i] < least[i] ? row[i] : least[i];
            largest[i] = row[i] > largest[i] ? row[i] : largest[i];
        }
    }
    store_outwards(least, out, dim, true);
    store_outwards(largest, out + dim, dim, false);
}

/* One row that stands for its block: the largest elements, or the row in the middle. */
static void summarise_one(const hdl_summarise_args *args, int32_t head, int64_t first, int64_t n,
                          uint16_t *out)
{
    int64_t dim = args->kv.plane[0].dim;
    bool is_middle = args->kind == HDL_PLANE_MIDDLE;
    float row[MAX_DIM], largest[MAX_DIM];
    load_row(args, is_middle ? first + HDL_MIN(args->block_size / 2, n - 1) : first, head, false, largest);
    for (int64_t t = first + 1; t < first + n && !is_middle; t++) {
        load_row(args, t, head, false, row);
        for (int64_t i = 0; i < dim; i++) largest[i] = row[i] > largest[i] ? row[i] : largest[i];
    }
    store_f16(largest, out, dim);
}

static void summarise_block(const hdl_summarise_args *args, int64_t entry)
{
    const hdl_kv_plane *plane = &args->kv.plane[0];
    int64_t block = args->block_size, first = entry * block;
    int64_t n = HDL_MIN(block, args->first_token + args->n_rows - first);
    int64_t bytes = hdl_plane_entry_bytes(args->kind, args->n_kv_heads, plane->dim);
    uint8_t *to = plane_at(&args->kv, plane->offset, entry, block, bytes);
    for (int32_t head = 0; head < args->n_kv_heads; head++, to += bytes / args->n_kv_heads) {
        if (args->kind == HDL_PLANE_BOUNDS)
            summarise_bounds(args, head, first, n, (uint16_t *)(void *)to);
        else if (args->kind == HDL_PLANE_PEAK || args->kind == HDL_PLANE_MIDDLE)
            summarise_one(args, head, first, n, (uint16_t *)(void *)to);
        else
            summarise_mean(args, head, first, n, (uint16_t *)(void *)to);
    }
}

/* ---- groups ---- */

typedef struct groups_call {
    const hdl_summarise_args *args;
    float *space; /* [n_threads] of a segment's rows, and what ordering them takes */
    int64_t width, size;
} groups_call;

static void summarise_segment(void *arg, int64_t task, int thread)
{
    const groups_call *call = arg;
    const hdl_summarise_args *args = call->args;
    const hdl_kv_plane *plane = &args->kv.plane[0];
    int64_t segment = args->first_token / HDL_SEGMENT_TOKENS + task, width = call->width;
    int64_t block = args->block_size, n_groups = HDL_SEGMENT_TOKENS / block;
    float *rows = call->space + thread * call->size, *rest = rows + hdl_group_rows_size(width);
    uint8_t places[HDL_SEGMENT_TOKENS];
    for (int64_t t = 0; t < HDL_SEGMENT_TOKENS; t++)
        for (int32_t head = 0; head < args->n_kv_heads; head++)
            load_row(args, segment * HDL_SEGMENT_TOKENS + t, head, false,
                     rows + t * width + head * (int64_t)args->head_dim);
    hdl_group_order(rows, width, args->block_size, places, rest);
    /* entries of a segment follow each other */
    int64_t scale_bytes = args->n_kv_heads * (int64_t)sizeof(float);
    int8_t *mean = (int8_t *)plane_at(&args->kv, plane->offset, segment * n_groups, block, width);
    uint8_t *scales = plane_at(&args->kv, plane->scale_offset, segment * n_groups, block, scale_bytes);
    memcpy(group_members(&args->kv, args->block_size, segment * HDL_SEGMENT_TOKENS), places, sizeof places);
    for (int64_t g = 0; g < n_groups; g++) {
        hdl_group_mean(rows, width, places + g * block, args->block_size, rest);
        for (int32_t head = 0; head < args->n_kv_heads; head++) {
            int64_t at = head * (int64_t)args->head_dim;
            float scale = store_i8(rest + at, mean + g * width + at, args->head_dim);
            memcpy(scales + g * scale_bytes + head * (int64_t)sizeof scale, &scale, sizeof scale);
        }
    }
}

static void summarise_groups(const hdl_launch *launch, const hdl_summarise_args *args)
{
    int64_t end = args->first_token + args->n_rows, width = (int64_t)args->n_kv_heads * args->head_dim;
    groups_call call = {.args = args,
                        .space = launch->workspace,
                        .width = width,
                        .size = hdl_group_rows_size(width) + hdl_group_space_size(width)};
    hdl_parallel_for(launch->n_threads, end / HDL_SEGMENT_TOKENS - args->first_token / HDL_SEGMENT_TOKENS,
                     summarise_segment, &call);
}

/* ---- the op ---- */

static bool is_by_token(const hdl_summarise_args *args)
{
    return hdl_plane_scale_bytes(args->kind, 1) > 0; /* index keys are refused */
}

/* Entries of a task: about TASK_TOKENS tokens. */
static int64_t task_entries(const hdl_summarise_args *args)
{
    return HDL_MAX(TASK_TOKENS / (is_by_token(args) ? 1 : args->block_size), 1);
}

/* The entries that the new rows touch: [first, end). */
static int64_t first_entry(const hdl_summarise_args *args)
{
    return is_by_token(args) ? args->first_token : args->first_token / args->block_size;
}

static int64_t end_entry(const hdl_summarise_args *args)
{
    int64_t end = args->first_token + args->n_rows;
    return is_by_token(args) ? end : (end + args->block_size - 1) / args->block_size;
}

static void summarise_task(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_summarise_args *args = arg;
    int64_t n = task_entries(args), first = first_entry(args) + task * n;
    for (int64_t entry = first; entry < HDL_MIN(first + n, end_entry(args)); entry++) {
        if (is_by_token(args))
            summarise_key(args, entry);
        else
            summarise_block(args, entry);
    }
}

static const char *summarise_why_not(const void *op)
{
    const hdl_summarise_args *args = op;
    if (args->kind == HDL_PLANE_INDEX || args->kind == HDL_PLANE_INDEX_MEAN)
        return "index keys come from the model, not from stored rows";
    if (args->head_dim % 16 || args->v_head_dim % 16) return "head_dim is not a multiple of 16";
    if (args->head_dim > MAX_DIM || args->v_head_dim > MAX_DIM) return "head_dim is more than 1024";
    return NULL;
}

static void summarise(const hdl_launch *launch, const void *op)
{
    hdl_summarise_args args = *(const hdl_summarise_args *)op;
    if (args.kind == HDL_PLANE_GROUP) {
        summarise_groups(launch, &args);
        return;
    }
    int64_t n = task_entries(&args), n_entries = end_entry(&args) - first_entry(&args);
    hdl_parallel_for(launch->n_threads, (n_entries + n - 1) / n, summarise_task, &args);
}

/* ---- POOL ---- */

static float pool_add(float value, float x, bool is_sum)
{
    if (is_sum) return value + (x == -INFINITY ? 0 : x);
    return value > x ? value : x;
}

/* x, and 0 for -inf. */
ALWAYS_INLINE vf drop_infinite(vf x)
{
#if defined(HDL_ISA_avx512)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, vf_set1(-INFINITY), _CMP_NEQ_UQ), x);
#elif defined(HDL_ISA_avx2)
    return _mm256_and_ps(x, _mm256_cmp_ps(x, vf_set1(-INFINITY), _CMP_NEQ_UQ));
#else
    return vf_pick(x != vf_set1(-INFINITY), x, vf_set1(0));
#endif
}

/* Units [first, end) one by one; `before` is the entry before the first unit's, for a pad of 1. */
static void pool_plain(const hdl_pool_args *args, float *s, int64_t n, int64_t first, int64_t end,
                       float before)
{
    bool is_sum = args->reduce == HDL_REDUCE_SUM;
    for (int64_t u = first; u < end; u++) {
        int64_t to = HDL_MIN((u + 1) * args->n, n);
        float value = is_sum ? 0 : -INFINITY, last = s[to - 1];
        if (args->pad) value = pool_add(value, before, is_sum);
        for (int64_t e = u * args->n; e < to; e++) value = pool_add(value, s[e], is_sum);
        before = last;
        s[u] = value;
    }
}

/* VW whole units from unit u: turned round, so that each lane adds up its own unit in order. */
ALWAYS_INLINE vf pool_units(const float *s, int64_t n, const bool is_sum)
{
    vf value = vf_set1(is_sum ? 0 : -INFINITY);
    for (int64_t e = 0; e < n; e += VW) {
        vf x[VW];
        for (int i = 0; i < VW; i++) x[i] = vf_load(s + i * n + e);
        vf_transpose(x);
        for (int i = 0; i < VW; i++) {
            if (is_sum)
                value = vf_add(value, drop_infinite(x[i]));
            else
                value = vf_max(value, x[i]);
        }
    }
    return value;
}

static void pool_row(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_pool_args *args = arg;
    float *s = args->score + task * args->score_stride;
    int64_t visible = args->n_visible[task / args->n_lists];
    int64_t n = (visible + args->entry_size - 1) / args->entry_size, u = 0;
    if (!args->pad && args->n % VW == 0)
        for (; (u + VW) * args->n <= n; u += VW) {
            const float *from = s + u * args->n; /* results lie before what is still to be read */
            vf_store(s + u, args->reduce == HDL_REDUCE_SUM ? pool_units(from, args->n, true)
                                                           : pool_units(from, args->n, false));
        }
    pool_plain(args, s, n, u, (n + args->n - 1) / args->n, -INFINITY);
}

static const char *pool_why_not(const void *op)
{
    const hdl_pool_args *args = op;
    return args->pad < 0 || args->pad > 1 ? "a unit reaches back more than one entry" : NULL;
}

static void pool(const hdl_launch *launch, const void *op)
{
    hdl_pool_args args = *(const hdl_pool_args *)op;
    hdl_parallel_for(launch->n_threads, args.n_rows * args.n_lists, pool_row, &args);
}

const hdl_impl HDL_CPU_ROWS(summary)[] = {
    {"summarise" HDL_ISA_SUFFIX, HDL_OP_SUMMARISE, (hdl_isa)THIS_ISA, summarise_why_not, hdl_group_workspace,
     summarise},
    {"pool" HDL_ISA_SUFFIX, HDL_OP_POOL, (hdl_isa)THIS_ISA, pool_why_not, NULL, pool},
    {NULL, HDL_OP_POOL, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
