/* exec.c - walks the schedule: no options, no allocation, no choice but which rows are there.
 *
 * Arguments are copied from the step, row counts and page tables are filled in, the implementation
 * that compile chose is launched. Attention steps run once per group: the sequences of one route and
 * class, whose rows are contiguous. Where a list is made, many-row groups go in tiles of
 * tile_rows query rows, so that scores never exist for more than one tile. */
#include <math.h>
#include <string.h>

#include "plan/hidden.h"
#include "plan/schedule.h"

typedef struct group { /* sequences of one route and class */
    int32_t first_seq, n_seqs;
    int64_t first_row, n_rows;
    hdl_route route;
    hdl_class cls;
    /* set for one sequence alone: */
    hdl_kv_seq *hiding; /* some of its tokens are left out, or verified */
    const hdl_list_hook *hook;
} group;

static hdl_class class_of(const hdl_exec_seq *seq)
{
    return seq->q_len == 1 ? HDL_CLASS_ONE : HDL_CLASS_MANY;
}

static bool next_group(const hdl_exec_batch *batch, group *at)
{
    int32_t first = at->first_seq + at->n_seqs, i = first;
    if (first >= batch->n_seqs) return false;
    *at = (group){.first_seq = first,
                  .first_row = at->first_row + at->n_rows,
                  .route = batch->seqs[first].route,
                  .cls = class_of(&batch->seqs[first])};
    for (; i < batch->n_seqs && batch->seqs[i].route == at->route && class_of(&batch->seqs[i]) == at->cls;
         i++)
        at->n_rows += batch->seqs[i].q_len;
    at->n_seqs = i - first;
    return true;
}

static hdl_launch launch_of(const hdl_schedule *schedule)
{
    return (hdl_launch){.n_threads = schedule->limits.n_threads,
                        .workspace = hdl_schedule_at(schedule, HDL_BUF_WORK)};
}

/* ---- rotation tables: cos and sin per row and table, once a forward ---- */

static void fill_cos_sin(const hdl_schedule *schedule, const hdl_exec_batch *batch)
{
    float *table = hdl_schedule_at(schedule, HDL_BUF_COS_SIN);
    for (int32_t r = 0; r < schedule->facts->n_ropes; r++) {
        const hdl_rope_facts *rope = &schedule->facts->ropes[r];
        if (rope->style == HDL_ROPE_NONE) continue;
        int64_t row = 0;
        for (int32_t s = 0; s < batch->n_seqs; s++) {
            const hdl_exec_seq *seq = &batch->seqs[s];
            for (int64_t i = 0; i < seq->q_len; i++, row++) {
                int64_t position = batch->n_visible[row] - 1 - batch->doc_start[row];
                float *out = table + r * schedule->limits.max_rows * HDL_MAX_ROPE_DIM + row * rope->dim;
                for (int32_t d = 0; d < rope->dim / 2; d++) {
                    float angle = (float)position * rope->inv_freq[d];
                    out[2 * d] = (float)cos((double)angle) * rope->attn_factor;
                    out[2 * d + 1] = (float)sin((double)angle) * rope->attn_factor;
                }
            }
        }
    }
}

/* Rows of a KV group after this step: tokens, less what was evicted before it. */
static int64_t held(const hdl_schedule *schedule, const hdl_exec_seq *seq, int32_t kv_group)
{
    return seq->kv_len - (kv_group == schedule->retain_group ? seq->n_evicted : 0);
}

/* Rows that each query row sees, [rows of the batch]. */
static const int64_t *visible_rows(const hdl_schedule *schedule, const hdl_exec_batch *batch,
                                   int32_t kv_group)
{
    return kv_group == schedule->retain_group ? batch->n_held : batch->n_visible;
}

/* ---- lists ---- */

/* Row `row` of the batch is this row of every slot. */
static int64_t slot_row(const hdl_schedule *schedule, const hdl_exec_batch *batch, int64_t row)
{
    if (schedule->has_prefill_lists) return row;
    int64_t first = 0;
    for (int32_t s = 0; s < batch->n_seqs && batch->seqs[s].route == HDL_ROUTE_PREFILL; s++)
        first += batch->seqs[s].q_len;
    return row - first;
}

static hdl_selection slot_view(const hdl_schedule *schedule, const hdl_exec_batch *batch, int32_t slot,
                               int64_t row, int64_t n_rows)
{
    hdl_selection view = schedule->slots[slot];
    int64_t at = slot_row(schedule, batch, row);
    view.n_rows = n_rows;
    view.ids += at * view.n_lists * view.n_ids_max;
    view.counts += at * view.n_lists;
    if (view.order) {
        view.order += at * view.n_lists * view.n_ids_max;
        view.n_first += at * view.n_lists;
    }
    return view;
}

static void keep_list(const hdl_schedule *schedule, hdl_exec_seq *seq, int32_t kept,
                      const hdl_selection *list, int64_t row)
{
    int32_t *to = seq->kept_ids + kept * schedule->kept_ids_max;
    for (int32_t l = 0; l < list->n_lists; l++) {
        int32_t n = *hdl_selection_count(list, row, l);
        memcpy(to + l * list->n_ids_max, hdl_selection_ids(list, row, l), (size_t)n * sizeof *to);
        seq->kept_counts[kept * schedule->facts->n_kv_heads + l] = n;
    }
    seq->kept_visible = seq->kv_len;
}

/* A kept list and the units that began after it: still unique and ascending. */
static void load_kept(const hdl_schedule *schedule, const hdl_exec_seq *seq, int32_t kept,
                      hdl_selection *list, int64_t row)
{
    const int32_t *from = seq->kept_ids + kept * schedule->kept_ids_max;
    for (int32_t l = 0; l < list->n_lists; l++) {
        int32_t *ids = hdl_selection_ids(list, row, l),
                n = seq->kept_counts[kept * schedule->facts->n_kv_heads + l];
        memcpy(ids, from + l * list->n_ids_max, (size_t)n * sizeof *ids);
        int64_t first = (seq->kept_visible + list->block_size - 1) / list->block_size;
        for (int64_t u = first; u * list->block_size < seq->kv_len; u++) ids[n++] = (int32_t)u;
        HDL_ASSERT(n <= list->n_ids_max);
        *hdl_selection_count(list, row, l) = n;
    }
}

/* `list` with its heads mapped, in the slot kept for that. */
static hdl_selection map_heads(const hdl_schedule *schedule, const hdl_exec_batch *batch,
                               const hdl_selection *list, const int16_t *head_map, int64_t first_row)
{
    hdl_selection mapped = slot_view(schedule, batch, schedule->mapped, first_row, list->n_rows);
    mapped.unit = list->unit;
    mapped.block_size = list->block_size;
    for (int64_t r = 0; r < list->n_rows; r++)
        for (int32_t h = 0; h < mapped.n_lists; h++) {
            int32_t n = *hdl_selection_count(list, r, head_map[h]);
            *hdl_selection_count(&mapped, r, h) = n;
            memcpy(hdl_selection_ids(&mapped, r, h), hdl_selection_ids(list, r, head_map[h]), (size_t)n * 4);
        }
    return mapped;
}

/* ---- attention ---- */

static hdl_attend_seq attend_seq(const hdl_schedule *schedule, const hdl_exec_seq *seq,
                                 const hdl_attend_step *step, int64_t first_row)
{
    hdl_attend_seq at = {.first_row = first_row,
                         .q_len = seq->q_len,
                         .kv_len = held(schedule, seq, step->group),
                         .kv = hdl_kv_seq_view(seq->kv, step->group, step->layer_in_group),
                         .mask = seq->mask};
    if (step->is_scoring && step->score.plane) {
        bool is_there = hdl_kv_seq_plane(seq->kv, step->group, step->layer_in_group, step->score.plane,
                                         step->score.block_size, &at.kv, 0);
        HDL_ASSERT(is_there); /* session and plan were matched when they met */
        (void)is_there;
    }
    for (int i = 0; i < 2 && step->complement; i++) {
        hdl_plane_kind kind = i ? HDL_PLANE_MEAN_V : HDL_PLANE_MEAN;
        bool is_there = hdl_kv_seq_plane(seq->kv, step->group, step->layer_in_group, kind, step->complement,
                                         &at.kv, i);
        HDL_ASSERT(is_there);
        (void)is_there;
    }
    return at;
}

/* What one launch over rows first_row.. of the batch works on. */
typedef struct row_span {
    const hdl_attend_seq *seqs; /* [n_seqs] */
    int32_t n_seqs;
    int64_t first_row, n_rows, max_q_len, max_kv_len, mass_stride;
    int64_t n_shared_rows;    /* rows that the sequences' score rows are made of; 0 = each has its own */
    const int64_t *n_visible; /* [n_rows] tokens, or rows of the retained group, that each row sees */
    float *scores;            /* [n_rows, n_lists, mass_stride] */
    float *slashes;           /* as scores: sums along distances; NULL = the rows' own scores are these */
    int32_t n_more; /* rows before each that read its list as well: the window reaches back so far */
    hdl_class cls;
    int32_t layer;
    hdl_kv_seq *hiding;
    const hdl_list_hook *hook;
    float *guesses; /* one row of one sequence: [n_lists] what the choice of its last row ended at; or NULL */
} row_span;

static void tell_tap(const hdl_attend_step *at, int32_t layer, const hdl_exec_batch *batch,
                     const row_span *span, const hdl_selection *list)
{
    bool has_score = (at->is_scoring || at->args.has_mass) && at->candidate_slot < 0 && !at->is_uniting &&
                     !at->is_resolving && !at->n_kv_heads;
    for (int64_t r = 0; r < span->n_rows; r++)
        for (int32_t l = 0; l < list->n_lists; l++) {
            hdl_tap_row row = {.layer = layer,
                               .list = l,
                               .n_visible = span->n_visible[r],
                               .made = list,
                               .row = r,
                               .score = has_score ? span->scores + (r * list->n_lists + l) * span->mass_stride
                                                  : NULL};
            batch->tap.fn(&row, batch->tap.user);
        }
}

/* The rows' lists as the hook gives them; false when it lacks one. A list that is kept needs room for the
 * tokens up to the next refresh, unless any list has room. */
static bool take_lists(const hdl_schedule *schedule, const row_span *span, hdl_selection *list)
{
    const hdl_list_hook *hook = span->hook;
    int64_t n_max = list->n_ids_max;
    if (n_max < schedule->limits.max_context) n_max -= schedule->refresh - 1;
    if (!hook || !hook->wanted || list->n_lists != 1 || list->block_size != 1) return false;
    for (int64_t r = 0; r < span->n_rows; r++) {
        int32_t n = hook->wanted(hook->wanted_user, span->layer, span->n_visible[r] - 1,
                                 hdl_selection_ids(list, r, 0), n_max);
        if (n < 0) return false;
        *hdl_selection_count(list, r, 0) = n;
    }
    return true;
}

static void show_lists(const row_span *span, const hdl_selection *list)
{
    const hdl_list_hook *hook = span->hook;
    if (!hook || !hook->made || list->n_lists != 1 || list->block_size != 1) return;
    for (int64_t r = 0; r < span->n_rows; r++)
        hook->made(hook->made_user, span->layer, span->n_visible[r] - 1, hdl_selection_ids(list, r, 0),
                   *hdl_selection_count(list, r, 0));
}

/* Fills the score rows from a summary, unless they were observed, and pools them. q: [n_rows, q_stride] */
static void score_rows(const hdl_schedule *schedule, const hdl_attend_step *at, const row_span *span,
                       const float *q, const hdl_selection *candidates, bool has_tap)
{
    hdl_launch launch = launch_of(schedule);
    bool needs_scores = span->hiding || has_tap || span->max_kv_len > at->all_below;
    if (at->is_scoring && needs_scores) {
        hdl_score_args score = at->score;
        score.is_shared = span->n_shared_rows > 0;
        score.n_rows = score.is_shared ? span->n_shared_rows : span->n_rows;
        score.n_seqs = span->n_seqs;
        score.seqs = span->seqs;
        score.max_q_len = span->max_q_len;
        score.max_kv_len = span->max_kv_len;
        score.q = q;
        if (score.has_bias)
            score.bias = hdl_schedule_at(schedule, HDL_BUF_INDEX_BIAS) + span->first_row * score.n_heads;
        score.score = span->scores;
        score.score_stride = span->mass_stride;
        if (score.has_candidates) score.candidates = candidates;
        if (score.is_shared) score.slash = span->slashes;
        if (span->hiding) hdl_kv_seq_check_index(span->hiding);
        at->score_impl[span->cls]->launch(&launch, &score);
    }
    if (span->hiding)
        hdl_hide_scores(span->hiding, span->scores, at->select.n_lists, span->mass_stride, span->n_visible,
                        span->n_rows);
    if (at->is_pooling && needs_scores) {
        hdl_pool_args pool = at->pool;
        pool.n_rows = span->n_rows;
        pool.score = span->scores;
        pool.score_stride = span->mass_stride;
        pool.n_visible = span->n_visible;
        at->pool_impl->launch(&launch, &pool);
    }
}

static void select_rows(const hdl_schedule *schedule, const hdl_attend_step *at, const row_span *span,
                        const hdl_selection *candidates, hdl_selection *list)
{
    hdl_launch launch = launch_of(schedule);
    hdl_select_args select = at->select;
    select.n_rows = span->n_rows;
    select.score = span->scores;
    select.score_stride = span->mass_stride;
    select.n_visible = span->n_visible;
    select.max_visible = span->max_kv_len;
    select.window += select.window ? span->n_more : 0;
    if (select.has_candidates) select.candidates = candidates;
    select.guess = span->guesses;
    select.out = list;
    at->select_impl->launch(&launch, &select);
}

/* In which order the rows' lists are visited; lists that were not chosen by scores are read whole. */
static void order_rows(const hdl_schedule *schedule, const hdl_attend_step *at, const row_span *span,
                       bool has_scores, hdl_selection *list)
{
    hdl_launch launch = launch_of(schedule);
    hdl_order_args order = {.n_rows = span->n_rows,
                            .score = has_scores ? span->scores : NULL,
                            .score_stride = span->mass_stride,
                            .n_visible = span->n_visible,
                            .n_sink = at->select.n_sink,
                            .window = at->select.window + (at->select.window ? span->n_more : 0),
                            .list = list};
    at->order_impl->launch(&launch, &order);
}

/* A dense pass that leaves hidden tokens out, as a list of the others. */
static void attend_allowed(const hdl_schedule *schedule, const hdl_attend_step *at, hdl_attend_args *args,
                           const group *group_at)
{
    hdl_launch launch = launch_of(schedule);
    int32_t *space = (int32_t *)(void *)hdl_schedule_at(schedule, HDL_BUF_ALLOWED);
    hdl_selection allowed = hdl_list_allowed(group_at->hiding, args->max_kv_len, space,
                                             schedule->limits.max_context, args->n_rows);
    args->has_selection = true;
    args->selection = &allowed;
    at->listed_impl[group_at->cls]->launch(&launch, args);
}

/* The rows' lists, and with them the tokens at the best distances from every row that reads them. A row alone is a
 * tile of one. */
static void add_slashes(const hdl_schedule *schedule, const hdl_attend_step *at, const hdl_exec_batch *batch,
                        const row_span *span, hdl_selection *list)
{
    hdl_launch launch = launch_of(schedule);
    hdl_attend_step far = *at;
    row_span along = *span;
    hdl_selection chosen = slot_view(schedule, batch, schedule->united, span->first_row, span->n_rows),
                  slashes;
    chosen.n_lists = list->n_lists;
    slashes = chosen;
    slashes.ids += span->n_rows * chosen.n_lists * chosen.n_ids_max;
    slashes.counts += span->n_rows * chosen.n_lists;
    select_rows(schedule, at, span, NULL, &chosen);
    far.select.top_k = at->n_slashes;
    far.select.n_sink = 0;
    along.n_more = 0;
    along.guesses = NULL;
    if (span->slashes) along.scores = span->slashes;
    select_rows(schedule, &far, &along, NULL, &slashes);
    hdl_union_args args = {
        .n_rows = span->n_rows, .lists = &chosen, .slashes = &slashes, .n_before = span->n_more, .out = list};
    at->union_impl->launch(&launch, &args);
}

/* The rows' lists of each KV head, and the layer's one list of them. */
static void unite_rows(const hdl_schedule *schedule, const hdl_attend_step *at, const hdl_exec_batch *batch,
                       const row_span *span, const hdl_selection *candidates, hdl_selection *list)
{
    hdl_launch launch = launch_of(schedule);
    hdl_selection heads = slot_view(schedule, batch, schedule->united, span->first_row, span->n_rows);
    heads.unit = list->unit;
    heads.block_size = list->block_size;
    select_rows(schedule, at, span, candidates, &heads);
    hdl_union_args args = {.n_rows = span->n_rows, .lists = &heads, .out = list};
    at->union_impl->launch(&launch, &args);
}

/* The rows' lists of groups, and their tokens. */
static void resolve_rows(const hdl_schedule *schedule, const hdl_attend_step *at, const hdl_exec_batch *batch,
                         const row_span *span, hdl_selection *list)
{
    hdl_launch launch = launch_of(schedule);
    hdl_selection groups = slot_view(schedule, batch, schedule->united, span->first_row, span->n_rows);
    groups.n_lists = list->n_lists;
    groups.unit = HDL_UNIT_BLOCK;
    groups.block_size = at->resolve.block_size;
    select_rows(schedule, at, span, NULL, &groups);
    hdl_resolve_args args = at->resolve;
    args.n_rows = span->n_rows;
    args.n_seqs = span->n_seqs;
    args.seqs = span->seqs;
    args.n_visible = span->n_visible;
    args.window += span->n_more;
    args.lists = &groups;
    args.out = list;
    at->resolve_impl->launch(&launch, &args);
}

/* The rows' lists of a range of KV heads, beside those of the others. */
static void make_heads(const hdl_schedule *schedule, const hdl_attend_step *at, const hdl_exec_batch *batch,
                       const row_span *span, hdl_selection *list)
{
    hdl_selection made = slot_view(schedule, batch, schedule->united, span->first_row, span->n_rows);
    row_span own = *span;
    if (own.guesses) own.guesses = at->is_replacing ? NULL : own.guesses + at->first_kv_head;
    made.n_lists = at->n_kv_heads;
    made.unit = list->unit;
    made.block_size = list->block_size;
    select_rows(schedule, at, &own, NULL, &made);
    for (int64_t r = 0; r < span->n_rows; r++)
        for (int32_t l = 0; l < made.n_lists; l++) {
            int32_t n = *hdl_selection_count(&made, r, l), to = at->first_kv_head + l;
            *hdl_selection_count(list, r, to) = n;
            memcpy(hdl_selection_ids(list, r, to), hdl_selection_ids(&made, r, l),
                   (size_t)n * sizeof(int32_t));
        }
}

/* The rows' lists, and what the tap hears of them. */
static void make_lists(const hdl_schedule *schedule, const hdl_step *step, const hdl_exec_batch *batch,
                       const row_span *span, const float *q, hdl_selection *list)
{
    const hdl_attend_step *at = &step->u.attend;
    hdl_selection candidates;
    bool is_final = at->slot ==
                        schedule->slot_of_layer[HDL_MIN(step->route, HDL_ROUTE_DECODE)][step->layer] &&
                    !at->is_partial;
    if (at->candidate_slot >= 0)
        candidates = slot_view(schedule, batch, at->candidate_slot, span->first_row, span->n_rows);
    bool is_taken = is_final && take_lists(schedule, span, list);
    if (!is_taken) {
        if (q) score_rows(schedule, at, span, q, &candidates, batch->tap.fn);
        if (at->n_slashes)
            add_slashes(schedule, at, batch, span, list);
        else if (at->is_uniting)
            unite_rows(schedule, at, batch, span, &candidates, list);
        else if (at->n_kv_heads)
            make_heads(schedule, at, batch, span, list);
        else if (at->is_resolving)
            resolve_rows(schedule, at, batch, span, list);
        else
            select_rows(schedule, at, span, &candidates, list);
    }
    if (span->hiding && !at->is_partial)
        hdl_hide_listed(span->hiding, list); /* of heads: when all are there */
    if (at->is_ordering) order_rows(schedule, at, span, !is_taken, list);
    if (is_final) show_lists(span, list); /* what is picked from is read by nobody */
    if (batch->tap.fn && is_final) tell_tap(at, step->layer, batch, span, list);
}

/* Attends to lists and to what they leave out. */
static void complete(const hdl_schedule *schedule, const hdl_attend_step *at, const hdl_attend_args *attend,
                     hdl_class cls)
{
    hdl_launch launch = launch_of(schedule);
    hdl_complement_args args = {.attend = *attend, .block_size = at->complement};
    at->complement_impl[cls]->launch(&launch, &args);
}

/* Tokens of the lists that rows read, the mean of a layer's lists: what a plan bounds by a share or a
 * threshold only is known here. n_visible, n_listed: of the call's rows. */
static void count_listed(const hdl_attend_args *args, const int64_t *n_visible, double *n_listed)
{
    const hdl_selection *list = args->selection;
    for (int32_t s = 0; s < args->n_seqs; s++) {
        int64_t first = args->seqs[s].first_row, q_len = args->seqs[s].q_len, owner = first;
        int64_t rows = q_len > 1 ? HDL_MAX(list->rows_per_list, 1) : 1;
        for (int64_t r = first; r < first + q_len; r++) {
            if ((n_visible[r] - 1) % rows == 0 || rows == 1) owner = r;
            double n = 0;
            for (int32_t l = 0; l < list->n_lists; l++) {
                int64_t count = *hdl_selection_count(list, owner, l), block = list->block_size;
                const int32_t *ids = hdl_selection_ids(list, owner, l);
                while (count > 0 && ids[count - 1] * block >= n_visible[r]) count--;
                if (!count) continue;
                int64_t cut = (ids[count - 1] + 1) * block - n_visible[r]; /* of the row's own block */
                n += (double)(count * block - HDL_MAX(cut, 0));
            }
            n_listed[r] += n / list->n_lists;
        }
    }
}

/* Attends to lists in their order, as far as the stop rule says, and counts what was read. */
static void visit(const hdl_schedule *schedule, const hdl_attend_step *at, const hdl_attend_args *attend,
                  double *n_listed)
{
    hdl_launch launch = launch_of(schedule);
    int32_t *n_read = (int32_t *)(void *)hdl_schedule_at(schedule, HDL_BUF_N_READ);
    hdl_visit_args args = {.attend = *attend, .stop = at->stop, .n_read = n_read};
    at->visit_impl->launch(&launch, &args);
    for (int64_t i = 0; n_listed && i < attend->n_rows * attend->n_kv_heads; i++)
        n_listed[i / attend->n_kv_heads] += (double)n_read[i] / attend->n_kv_heads;
}

/* Attends rows first_row.. of the batch with the prepared sequences, then makes their lists. */
static void attend_rows(const hdl_schedule *schedule, const hdl_step *step, const hdl_exec_batch *batch,
                        const group *of, const hdl_attend_seq *seqs, int32_t n_seqs, int64_t first_row,
                        int64_t n_rows)
{
    const hdl_attend_step *at = &step->u.attend;
    hdl_launch launch = launch_of(schedule);
    hdl_attend_args args = at->args;
    hdl_selection list;
    args.n_rows = n_rows;
    args.n_seqs = n_seqs;
    args.seqs = seqs;
    args.max_q_len = args.max_kv_len = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        args.max_q_len = HDL_MAX(args.max_q_len, seqs[i].q_len);
        args.max_kv_len = HDL_MAX(args.max_kv_len, seqs[i].kv_len);
    }
    args.q += first_row * args.q_stride;
    if (step->out[0] == HDL_BUF_ATTN)
        args.o += first_row * args.o_stride; /* else SPARE, or it does not attend */
    args.mass_stride = HDL_ALIGN_UP(args.max_kv_len, 16);
    if (args.has_mass) args.mass = hdl_schedule_at(schedule, HDL_BUF_MASS);
    if (at->slot >= 0) list = slot_view(schedule, batch, at->slot, first_row, n_rows);
    if (at->head_map) list = map_heads(schedule, batch, &list, at->head_map, first_row);
    if (args.has_selection) args.selection = &list;
    if (at->is_attending && of->hiding && at->listed_impl[of->cls])
        attend_allowed(schedule, at, &args, of);
    else if (at->stop.patience)
        visit(schedule, at, &args, batch->n_listed ? batch->n_listed + first_row : NULL);
    else if (at->complement)
        complete(schedule, at, &args, of->cls);
    else if (at->gather >= 0 && of->cls == HDL_CLASS_ONE)
        hdl_attend_gathered(&launch, step, of->cls, batch->seqs + of->first_seq, &args);
    else if (at->is_attending)
        step->impl[of->cls]->launch(&launch, &args);
    if (batch->n_listed && at->is_attending && at->args.has_selection && !at->stop.patience)
        count_listed(&args, visible_rows(schedule, batch, at->group) + first_row,
                     batch->n_listed + first_row);
    if (!at->is_selecting) return;
    float *guesses = of->n_seqs == 1 && of->cls == HDL_CLASS_ONE ? batch->seqs[of->first_seq].guesses : NULL;
    row_span span = {.seqs = seqs,
                     .n_seqs = n_seqs,
                     .guesses = guesses ? guesses + at->slot * schedule->facts->n_kv_heads : NULL,
                     .n_visible = visible_rows(schedule, batch, at->group) + first_row,
                     .first_row = first_row,
                     .n_rows = n_rows,
                     .max_q_len = args.max_q_len,
                     .max_kv_len = args.max_kv_len,
                     .mass_stride = args.mass_stride,
                     .scores = hdl_schedule_at(schedule, HDL_BUF_MASS),
                     .cls = of->cls,
                     .layer = step->layer,
                     .hiding = of->hiding,
                     .hook = of->hook};
    make_lists(schedule, step, batch, &span, at->score.q + first_row * at->score.q_stride, &list);
}

/* Tile rows [from, from + n) of one sequence as a sequence of their own. */
static hdl_attend_seq row_tile(const hdl_attend_seq *seq, int64_t from, int64_t n)
{
    hdl_attend_seq tile = *seq;
    tile.first_row = 0;
    tile.q_len = n;
    tile.kv_len = seq->kv_len - (seq->q_len - from - n);
    return tile;
}

/* mean [width] of n rows of q. */
static void mean_query(const float *q, int64_t stride, int64_t n, int64_t width, float *mean)
{
    memcpy(mean, q, (size_t)width * sizeof *mean);
    for (int64_t r = 1; r < n; r++)
        for (int64_t i = 0; i < width; i++) mean[i] += q[r * stride + i];
    for (int64_t i = 0; i < width; i++) mean[i] /= (float)n;
}

/* The next tiles of a sequence from *row on, as many as are scored at once: each is a sequence of its rows,
 * or of one row, their mean query at the last position. begin[t]: the tile's first row, begin[n] the end. */
static int32_t next_tiles(const hdl_schedule *schedule, const hdl_attend_step *at, const hdl_attend_seq *seq,
                          const float *q, hdl_attend_seq *tiles, int64_t *begin, int64_t *n_visible)
{
    int64_t before = seq->kv_len - seq->q_len, tile = schedule->slots[at->slot].rows_per_list;
    int64_t row = begin[0], stride = at->score.q_stride;
    bool is_shared = at->score.is_shared;
    float *mean = hdl_schedule_at(schedule, HDL_BUF_Q_TILE);
    int32_t n = 0;
    for (; n < schedule->tile_rows && row < seq->q_len; n++) {
        int64_t end = HDL_MIN((before + row) / tile * tile + tile - before, seq->q_len);
        tiles[n] = row_tile(seq, row, end - row);
        tiles[n].q_len = is_shared ? end - row : 1;
        tiles[n].first_row = is_shared ? row - begin[0] : n;
        tiles[n].mask = NULL;
        n_visible[n] = tiles[n].kv_len;
        if (at->is_scoring && !is_shared)
            mean_query(q + row * stride, stride, end - row, stride, mean + n * stride);
        begin[n + 1] = row = end;
    }
    return n;
}

/* Lists that tiles of a sequence's rows share, each kept at the first of its rows. */
static void make_tile_lists(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch,
                            const group *of, const hdl_attend_seq *seq)
{
    const hdl_attend_step *at = &step->u.attend;
    int64_t first_row = of->first_row + seq->first_row;
    bool is_shared = at->score.is_shared;
    const float *q = at->is_scoring ? at->score.q + first_row * at->score.q_stride : NULL;
    hdl_attend_seq *tiles = batch->attend + batch->n_seqs;
    int64_t begin[HDL_MAX_TILE_ROWS + 1] = {0}, n_visible[HDL_MAX_TILE_ROWS];
    for (int32_t n; begin[0] < seq->q_len; begin[0] = begin[n]) {
        n = next_tiles(schedule, at, seq, q, tiles, begin, n_visible);
        row_span span = {.seqs = tiles,
                         .n_seqs = n,
                         .n_rows = n,
                         .n_shared_rows = is_shared ? begin[n] - begin[0] : 0,
                         .max_q_len = is_shared ? schedule->slots[at->slot].rows_per_list : 1,
                         .max_kv_len = n_visible[n - 1],
                         .mass_stride = HDL_ALIGN_UP(n_visible[n - 1], 16),
                         .n_visible = n_visible,
                         .scores = hdl_schedule_at(schedule, HDL_BUF_MASS),
                         .cls = HDL_CLASS_MANY,
                         .layer = step->layer,
                         .hiding = of->hiding,
                         .hook = of->hook};
        if (at->n_slashes) span.slashes = span.scores + n * at->select.n_lists * span.mass_stride;
        const float *scored = is_shared ? q + begin[0] * at->score.q_stride
                                        : hdl_schedule_at(schedule, HDL_BUF_Q_TILE);
        score_rows(schedule, at, &span, scored, NULL, batch->tap.fn);
        for (int32_t t = 0; t < n; t++) {
            hdl_selection list = slot_view(schedule, batch, at->slot, first_row + begin[t], 1);
            row_span one = span;
            one.n_rows = 1;
            one.first_row = first_row + begin[t];
            one.n_visible += t;
            one.scores += t * at->select.n_lists * span.mass_stride;
            if (one.slashes) one.slashes += t * at->select.n_lists * span.mass_stride;
            one.n_more = (int32_t)(begin[t + 1] - begin[t] - 1);
            make_lists(schedule, step, batch, &one, NULL, &list);
        }
    }
}

/* A window does not reach over a document's border: rows of each document are a sequence of their own. */
static void attend_documents(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch,
                             const group *at)
{
    int64_t row = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < at->n_seqs; i++) {
        const hdl_exec_seq *seq = &batch->seqs[at->first_seq + i];
        const int64_t *start = batch->doc_start + at->first_row + row;
        for (int64_t from = 0, to; from < seq->q_len; from = to) {
            for (to = from + 1; to < seq->q_len && start[to] == start[from];) to++;
            hdl_attend_seq part = attend_seq(schedule, seq, &step->u.attend, row + from);
            part.kv_len = seq->kv_len - (seq->q_len - to);
            part.q_len = to - from;
            part.first_token = start[from];
            batch->attend[n++] = part;
        }
        row += seq->q_len;
    }
    attend_rows(schedule, step, batch, at, batch->attend, n, at->first_row, at->n_rows);
}

static void attend_group(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch,
                         const group *at)
{
    const hdl_attend_step *attend = &step->u.attend;
    int64_t row = 0;
    if (schedule->facts->has_doc_resets && attend->args.window) {
        attend_documents(schedule, step, batch, at);
        return;
    }
    for (int32_t i = 0; i < at->n_seqs; i++) {
        hdl_exec_seq *seq = &batch->seqs[at->first_seq + i];
        batch->attend[i] = attend_seq(schedule, seq, attend, row);
        if (attend->is_kept) {
            hdl_selection list = slot_view(schedule, batch, attend->slot, at->first_row + row, seq->q_len);
            for (int64_t r = 0; r < seq->q_len; r++) load_kept(schedule, seq, attend->kept, &list, r);
        }
        row += seq->q_len;
    }
    if (!attend->is_selecting) {
        attend_rows(schedule, step, batch, at, batch->attend, at->n_seqs, at->first_row, at->n_rows);
        return;
    }
    if (at->cls == HDL_CLASS_ONE) { /* sequences in tiles, a row each */
        for (int32_t i = 0; i < at->n_seqs; i += (int32_t)schedule->tile_rows) {
            int32_t n = (int32_t)HDL_MIN((int64_t)(at->n_seqs - i), schedule->tile_rows);
            for (int32_t j = 0; j < n; j++) batch->attend[i + j].first_row = j;
            attend_rows(schedule, step, batch, at, batch->attend + i, n, at->first_row + i, n);
        }
    } else {
        for (int32_t i = 0; i < at->n_seqs; i++) {
            const hdl_attend_seq seq = batch->attend[i];
            if (schedule->slots[attend->slot].rows_per_list > 1) {
                make_tile_lists(schedule, step, batch, at, &seq);
                continue;
            }
            for (int64_t from = 0; from < seq.q_len; from += schedule->tile_rows) {
                int64_t n = HDL_MIN(seq.q_len - from, schedule->tile_rows);
                hdl_attend_seq *tile = &batch->attend[batch->n_seqs];
                *tile = row_tile(&seq, from, n);
                attend_rows(schedule, step, batch, at, tile, 1, at->first_row + seq.first_row + from, n);
            }
        }
    }
    for (int32_t i = 0; attend->kept >= 0 && i < at->n_seqs; i++) {
        hdl_exec_seq *seq = &batch->seqs[at->first_seq + i];
        int64_t last = batch->attend[i].first_row + seq->q_len - 1;
        if (at->cls == HDL_CLASS_ONE) last = i;
        hdl_selection list = slot_view(schedule, batch, attend->slot, at->first_row + last, 1);
        keep_list(schedule, seq, attend->kept, &list, 0);
    }
}

static void exec_attend(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch)
{
    group at = {0};
    while (next_group(batch, &at)) {
        if (at.route != step->route) continue;
        bool is_alone = false; /* only where global rows are read */
        for (int32_t i = 0; i < at.n_seqs && !step->u.attend.args.window; i++) {
            const hdl_exec_seq *seq = &batch->seqs[at.first_seq + i];
            is_alone |= seq->hook || hdl_has_hidden(seq->kv);
        }
        group one = at;
        one.n_seqs = is_alone ? 1 : at.n_seqs;
        for (int32_t i = 0; i < at.n_seqs; i += one.n_seqs) { /* such sequences go one by one */
            hdl_exec_seq *seq = &batch->seqs[at.first_seq + i];
            one.first_seq = at.first_seq + i;
            if (is_alone) {
                one.n_rows = seq->q_len;
                one.hook = seq->hook;
                one.hiding = hdl_has_hidden(seq->kv) ? seq->kv : NULL;
            }
            attend_group(schedule, step, batch, &one);
            one.first_row += one.n_rows;
        }
    }
}

/* Summaries of the rows that were just appended. */
static void exec_summarise(const hdl_schedule *schedule, const hdl_step *step, const hdl_exec_batch *batch)
{
    hdl_launch launch = launch_of(schedule);
    int64_t row = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const hdl_exec_seq *seq = &batch->seqs[s];
        hdl_summarise_args args = step->u.summarise;
        args.x += row * args.x_stride;
        row += seq->q_len;
        args.n_rows = seq->q_len;
        args.first_token = held(schedule, seq, step->group) - seq->q_len;
        args.kv = hdl_kv_seq_view(seq->kv, step->group, step->layer_in_group);
        bool is_there = hdl_kv_seq_plane(seq->kv, step->group, step->layer_in_group, args.kind,
                                         args.block_size, &args.kv, 0);
        if (args.kind == HDL_PLANE_INDEX_MEAN) /* made of the plane of index keys */
            is_there &= hdl_kv_seq_plane(seq->kv, step->group, step->layer_in_group, HDL_PLANE_INDEX, 1,
                                         &args.kv, 1);
        HDL_ASSERT(is_there);
        (void)is_there;
        step->impl[seq->q_len == 1 ? HDL_CLASS_ONE : HDL_CLASS_MANY]->launch(&launch, &args);
    }
}

static void exec_append(const hdl_schedule *schedule, const hdl_step *step, const hdl_exec_batch *batch)
{
    hdl_launch launch = launch_of(schedule);
    int64_t row = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const hdl_exec_seq *seq = &batch->seqs[s];
        hdl_append_args args = step->u.append;
        args.n_rows = seq->q_len;
        args.first_token = held(schedule, seq, step->group) - seq->q_len;
        args.k += row * args.k_stride;
        args.v += row * args.v_stride;
        args.kv = hdl_kv_seq_view(seq->kv, step->group, step->layer_in_group);
        step->impl[seq->q_len == 1 ? HDL_CLASS_ONE : HDL_CLASS_MANY]->launch(&launch, &args);
        row += seq->q_len;
    }
}

/* ---- steps over rows ---- */

static void exec_rows(const hdl_schedule *schedule, const hdl_step *step, const int32_t *ids, int64_t n_rows)
{
    hdl_launch launch = launch_of(schedule);
    hdl_step run = *step;
    const hdl_impl *impl = step->impl[n_rows <= HDL_FEW_ROWS ? HDL_CLASS_ONE : HDL_CLASS_MANY];
    switch (step->op) {
        case HDL_OP_EMBED:
            run.u.embed.n_rows = n_rows;
            run.u.embed.ids = ids;
            break;
        case HDL_OP_NORM: run.u.norm.n_rows *= n_rows; break;
        case HDL_OP_LINEAR:
            run.u.linear.n_rows = n_rows;
            launch.next = step->next;
            break;
        case HDL_OP_ROPE:
            run.u.rope.n_rows = n_rows;
            run.u.rope.cos_sin = hdl_schedule_at(schedule, HDL_BUF_COS_SIN) +
                                 step->rope * schedule->limits.max_rows * HDL_MAX_ROPE_DIM;
            break;
        case HDL_OP_GLU: run.u.glu.n_rows = n_rows; break;
        default: HDL_ASSERT(false);
    }
    impl->launch(&launch, &run.u);
}

static void exec_step(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch)
{
    if (step->op == HDL_OP_ATTEND)
        exec_attend(schedule, step, batch);
    else if (step->op == HDL_OP_APPEND)
        exec_append(schedule, step, batch);
    else if (step->op == HDL_OP_SUMMARISE)
        exec_summarise(schedule, step, batch);
    else if (step->op == HDL_OP_CONV || step->op == HDL_OP_DELTA)
        hdl_exec_state(schedule, step, batch);
    else if (step->op == HDL_OP_COMPACT)
        hdl_exec_retain(schedule, step, batch);
    else
        exec_rows(schedule, step, batch->ids, batch->n_rows);
}

void hdl_exec_lower(const hdl_schedule *schedule, hdl_exec_batch *batch)
{
    fill_cos_sin(schedule, batch);
    for (int32_t i = 0; i < schedule->n_lower_steps; i++) exec_step(schedule, &schedule->steps[i], batch);
}

void hdl_exec_upper(const hdl_schedule *schedule, hdl_exec_batch *batch, const int64_t *rows)
{
    int64_t hidden = schedule->facts->hidden_size, n_rows = batch->n_rows;
    const float *x = hdl_schedule_at(schedule, HDL_BUF_X);
    float *last = hdl_schedule_at(schedule, HDL_BUF_LAST);
    HDL_ASSERT(n_rows <= schedule->limits.max_logit_rows);
    for (int64_t i = 0; i < n_rows; i++)
        memcpy(last + i * hidden, x + rows[i] * hidden, (size_t)hidden * sizeof *last);
    for (int32_t i = schedule->n_lower_steps; i < schedule->n_steps; i++)
        exec_step(schedule, &schedule->steps[i], batch);
    float cap = schedule->facts->logit_soft_cap;
    float *logits = hdl_schedule_at(schedule, HDL_BUF_LOGITS);
    for (int64_t i = 0; cap > 0 && i < n_rows * schedule->facts->n_vocab; i++)
        logits[i] = cap * tanhf(logits[i] / cap);
}
