/* route_int.h - units, forced ranges and entries of the routing ops: plain C, shared by their files. */
#ifndef HDL_ROUTE_INT_H
#define HDL_ROUTE_INT_H

#include "backend/cpu/attend_int.h"
#include "backend/pick.h"

/* Keys: int32 in the order of the scores; -0 is 0 and NaN is -inf. */
static inline int32_t key_of(float score)
{
    int32_t u;
    score = score == score ? score + 0.0f : -INFINITY;
    memcpy(&u, &score, sizeof u);
    return u ^ (u >> 31 & INT32_MAX);
}

static inline float score_of(int32_t key)
{
    float score;
    int32_t u = key ^ (key >> 31 & INT32_MAX);
    memcpy(&score, &u, sizeof score);
    return score;
}

/* The units of one (row, list) of SELECT: [0, n), of which [0, begin) and [end, n) are forced. */
typedef struct unit_range {
    int64_t n, begin, end;
    kv_walk walk; /* with candidates: the tokens of steps 0..n-1 */
} unit_range;

static inline unit_range select_range(const hdl_select_args *args, int64_t row, int32_t list)
{
    int64_t visible = args->n_visible[row], block = HDL_MAX(args->block_size, 1);
    unit_range at = {.n = (visible + block - 1) / block,
                     .begin = (args->n_sink + block - 1) / block,
                     .end = HDL_MAX(visible - args->window, 0) / block};
    if (args->window < 1) at.end = at.n;
    if (args->has_candidates) {
        const hdl_selection *sel = args->candidates;
        int32_t from = sel->n_lists == 1 ? 0 : list;
        at.walk = (kv_walk){.ids = hdl_selection_ids(sel, row, from), .size = sel->block_size};
        at.n = walk_lower_bound(&at.walk, *hdl_selection_count(sel, row, from) * at.walk.size, visible);
        at.begin = args->n_sink;
        at.end = at.n - args->window;
    }
    at.begin = HDL_MIN(at.begin, at.n);
    at.end = HDL_MAX(at.begin, HDL_MIN(at.end, at.n));
    if (visible <= args->dense_below) at.begin = at.end = at.n;
    return at;
}

/* TOP_K: unforced units of a list. */
static inline int64_t top_k_of(const hdl_select_args *args, int32_t list)
{
    return args->list_top_k ? args->list_top_k[list] : args->top_k;
}

/* TOP_P: the mass of the row that the shares are of. */
static inline hdl_row_mass row_mass_of(const hdl_select_args *args, int64_t row, int32_t list,
                                       const float *score, const unit_range *at)
{
    if (args->mass) return args->mass[row * args->n_lists + list];
    hdl_row_mass mass = {.largest = hdl_largest_mass(score, at->n)};
    hdl_add_mass(score, at->n, at->begin, at->end, &mass);
    return mass;
}

/* Steps become the tokens they stand for. */
static inline void select_map(const hdl_select_args *args, const unit_range *at, int32_t *ids, int32_t n)
{
    if (args->has_candidates)
        for (int32_t i = 0; i < n; i++) ids[i] = (int32_t)walk_token(&at->walk, ids[i]);
}

/* Entries of a row that are scored: those wholly visible, and of a segment that is. */
static inline int64_t whole_entries(hdl_plane_kind plane, int64_t n_visible, int64_t block_size)
{
    if (plane == HDL_PLANE_GROUP) n_visible -= n_visible % HDL_SEGMENT_TOKENS;
    return n_visible / block_size;
}

/* Where entry e of a plane lies; `bytes` per entry (its rows, or its scales with scale_offset). */
static inline uint8_t *plane_at(const hdl_kv_view *kv, int64_t offset, int64_t entry, int64_t block_size,
                                int64_t bytes)
{
    int64_t first = entry * block_size, slot = first & (((int64_t)1 << kv->page_shift) - 1);
    return kv->pages[first >> kv->page_shift] + offset + slot / block_size * bytes;
}

/* The members that plane GROUP (plane[0]) keeps from place `token` on, up to the end of its segment. */
static inline uint8_t *group_members(const hdl_kv_view *kv, int32_t block_size, int64_t token)
{
    int64_t page_tokens = (int64_t)1 << kv->page_shift;
    const hdl_kv_plane *plane = &kv->plane[0];
    return kv->pages[token >> kv->page_shift] + plane->scale_offset +
           page_tokens / block_size * plane->n_heads * (int64_t)sizeof(float) + (token & (page_tokens - 1));
}

/* 0..2^24-1, the same for the same (seed, block of the row, entry, list). */
static inline uint32_t hash24(int64_t seed, int64_t row_block, int64_t entry, int32_t list)
{
    uint64_t h = (uint64_t)seed * 0x9E3779B97F4A7C15u ^ (uint64_t)(row_block + 1) * 0xD1B54A32D192ED03u ^
                 (uint64_t)(entry * 131 + list) * 0x2545F4914F6CDD1Du;
    h = (h ^ (h >> 31)) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(h >> 40);
}

/* The score of entry e by a rule that reads no plane; `own` is the row's own block, `list` one of the call's. */
static inline float pattern_score(const hdl_score_args *args, int64_t own, int64_t e, int32_t list)
{
    int64_t distance = own - e;
    list += (int32_t)((int64_t)args->first_kv_head * args->n_lists / args->n_kv_heads);
    switch (args->rule) {
        case HDL_RULE_HASH: return (float)hash24(args->seed, own, e, list) * (1.0f / 16777216.0f);
        case HDL_RULE_STRIDE: return (e + list) % args->stride ? -INFINITY : 1;
        default: return distance > 0 && !(distance & (distance - 1)) ? 1 : -INFINITY;
    }
}

static inline const hdl_attend_seq *seq_of_row(const hdl_attend_seq *seq, int64_t row)
{
    while (row >= seq->first_row + seq->q_len || row < seq->first_row) seq++;
    return seq;
}

/* The candidate walk of a row, its visible steps [0, end). */
static inline kv_walk candidate_walk(const hdl_selection *sel, const hdl_kv_view *kv, int64_t row,
                                     int32_t list, int64_t n_visible)
{
    int32_t from = sel->n_lists == 1 ? 0 : list;
    kv_walk walk = {.kv = kv, .ids = hdl_selection_ids(sel, row, from), .size = sel->block_size};
    walk.end = walk_lower_bound(&walk, *hdl_selection_count(sel, row, from) * walk.size, n_visible);
    return walk;
}

#endif
