/* retain_exec.c - a layer's retain step: observe, and where a sequence evicts now, select and copy.
 *
 * Scores are sums over rows in ascending order, one row after the other, so they do not depend on how
 * the rows were cut into tiles or, under mass_sum, into steps. */
#include <string.h>

#include "plan/schedule.h"

typedef struct eviction { /* one sequence in one layer */
    const hdl_schedule *schedule;
    const hdl_retain_step *at;
    hdl_exec_seq *seq;
    hdl_launch launch;
    int64_t first_row, held; /* of the batch; rows in the cache with this step's */
} eviction;

/* Adds the mass of the last n rows to score [n_kv_heads, stride]. */
static void observe(const eviction *e, int64_t n, float *score, int64_t stride)
{
    const hdl_retain_step *at = e->at;
    hdl_attend_args args = at->args;
    hdl_attend_seq seq = {.kv = hdl_kv_seq_view(e->seq->kv, at->group, at->layer_in_group)};
    int64_t first = e->first_row + e->seq->q_len - n;
    args.n_seqs = 1;
    args.seqs = &seq;
    args.mass = hdl_schedule_at(e->schedule, HDL_BUF_MASS);
    for (int64_t from = 0; from < n; from += e->schedule->retain_tile) {
        int64_t rows = HDL_MIN(n - from, e->schedule->retain_tile);
        seq.q_len = args.n_rows = args.max_q_len = rows;
        seq.kv_len = args.max_kv_len = e->held - n + from + rows;
        args.mass_stride = HDL_ALIGN_UP(seq.kv_len, 16);
        args.q = at->args.q + (first + from) * args.q_stride;
        at->attend_impl[rows == 1 ? HDL_CLASS_ONE : HDL_CLASS_MANY]->launch(&e->launch, &args);
        for (int64_t r = 0; r < rows; r++)
            for (int32_t l = 0; l < args.n_mass_lists; l++) {
                const float *mass = args.mass + (r * args.n_mass_lists + l) * args.mass_stride;
                float *sum = score + l * stride;
                for (int64_t j = 0; j < seq.kv_len - rows + r + 1; j++) sum[j] += mass[j];
            }
    }
}

/* Mean or largest of `pool` neighbours in [0, n): rows that do not exist count as 0, and not as largest. */
static void smooth(const hdl_retain_spec *spec, const float *from, int64_t n, float *to)
{
    int64_t half = spec->pool / 2;
    for (int64_t j = 0; j < n; j++) {
        int64_t begin = HDL_MAX(j - half, 0), end = HDL_MIN(j + half + 1, n);
        float sum = 0, best = from[j];
        for (int64_t i = begin; i < end; i++) {
            sum += from[i];
            best = HDL_MAX(best, from[i]);
        }
        to[j] = spec->is_pool_max ? best : sum / (float)spec->pool;
    }
}

static void fill_random(const eviction *e, float *score, int64_t stride)
{
    for (int32_t l = 0; l < e->schedule->facts->n_kv_heads; l++)
        for (int64_t j = 0; j < e->held; j++) {
            uint64_t h = (uint64_t)e->schedule->retain.seed * 0x9E3779B97F4A7C15u ^
                         (uint64_t)((e->at->layer_in_group * 131 + l) * 8191) * 0xD1B54A32D192ED03u ^
                         (uint64_t)j * 0x2545F4914F6CDD1Du;
            h = (h ^ (h >> 31)) * 0xBF58476D1CE4E5B9u;
            h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
            score[l * stride + j] = (float)(h >> 40) * (1.0f / 16777216.0f);
        }
}

/* The scores by which rows stay: [n_kv_heads, *stride]. */
static const float *scores_of(const eviction *e, int64_t *stride)
{
    const hdl_retain_spec *spec = &e->schedule->retain;
    int32_t n_heads = e->schedule->facts->n_kv_heads;
    float *score = hdl_schedule_at(e->schedule, HDL_BUF_RETAIN), *smoothed;
    *stride = hdl_retain_stride(e->schedule);
    smoothed = score + n_heads * *stride;
    if (spec->score == HDL_RETAIN_RANDOM) fill_random(e, score, *stride);
    if (spec->score == HDL_RETAIN_MASS_SUM) {
        *stride = e->schedule->limits.max_context;
        return e->seq->mass + e->at->layer_in_group * n_heads * *stride;
    }
    if (spec->score != HDL_RETAIN_MASS_WINDOW) return score;
    for (int32_t l = 0; l < n_heads; l++) memset(score + l * *stride, 0, (size_t)e->held * sizeof *score);
    observe(e, e->seq->n_observed, score, *stride);
    if (spec->pool == 1) return score;
    for (int32_t l = 0; l < n_heads; l++)
        smooth(spec, score + l * *stride, HDL_MAX(e->held - spec->window, 0), smoothed + l * *stride);
    return smoothed;
}

/* Summaries of the rows that stay, in their new places. */
static void summarise(const eviction *e)
{
    const hdl_retain_step *at = e->at;
    for (int32_t i = 0; i < at->n_summaries; i++) {
        const hdl_step *step = &e->schedule->steps[at->first_summary + i];
        hdl_summarise_args args = step->u.summarise;
        args.n_rows = e->seq->n_retained;
        args.first_token = 0;
        args.kv = hdl_kv_seq_retained_view(e->seq->kv, at->group, at->layer_in_group);
        bool is_there = hdl_kv_seq_plane(e->seq->kv, at->group, at->layer_in_group, args.kind,
                                         args.block_size, &args.kv, 0);
        HDL_ASSERT(is_there);
        (void)is_there;
        step->impl[HDL_CLASS_MANY]->launch(&e->launch, &args);
    }
}

static void evict(const eviction *e, const hdl_impl *impl)
{
    const hdl_retain_step *at = e->at;
    hdl_selection list = e->schedule->retain_list;
    hdl_select_args select = at->select;
    hdl_compact_args compact = at->compact;
    select.score = scores_of(e, &select.score_stride);
    select.n_visible = &e->held;
    select.max_visible = e->held;
    select.out = &list;
    at->select_impl->launch(&e->launch, &select);
    compact.from = hdl_kv_seq_view(e->seq->kv, at->group, at->layer_in_group);
    compact.to = hdl_kv_seq_retained_view(e->seq->kv, at->group, at->layer_in_group);
    compact.rows = &list;
    impl->launch(&e->launch, &compact);
    summarise(e);
    float *mass = e->seq->mass;
    int64_t stride = e->schedule->limits.max_context;
    for (int32_t l = 0; mass && l < list.n_lists; l++) { /* ascending: what is read was not yet written */
        float *row = mass + (at->layer_in_group * (int64_t)list.n_lists + l) * stride;
        const int32_t *ids = hdl_selection_ids(&list, 0, l);
        for (int64_t r = 0; r < e->seq->n_retained; r++) row[r] = row[ids[r]];
        memset(row + e->seq->n_retained, 0, (size_t)(e->held - e->seq->n_retained) * sizeof *row);
    }
}

void hdl_exec_retain(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch)
{
    int64_t row = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        hdl_exec_seq *seq = &batch->seqs[s];
        eviction e = {.schedule = schedule,
                      .at = &step->u.retain,
                      .seq = seq,
                      .launch = {.n_threads = schedule->limits.n_threads,
                                 .workspace = hdl_schedule_at(schedule, HDL_BUF_WORK)},
                      .first_row = row,
                      .held = seq->kv_len - seq->n_evicted};
        if (seq->mass) {
            int64_t stride = schedule->limits.max_context;
            float *sum = seq->mass + e.at->layer_in_group * (int64_t)schedule->facts->n_kv_heads * stride;
            observe(&e, seq->q_len, sum, stride);
        }
        if (seq->n_retained) evict(&e, step->impl[HDL_CLASS_MANY]);
        row += seq->q_len;
    }
}
