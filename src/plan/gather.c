/* gather.c - keeps the slots of gather.h. */
#include <string.h>

#include "base/mem.h"
#include "plan/schedule.h"

enum { N_ARRAYS = 5 };

/* A page of one layer with n_max slots and no summaries. */
static heddle_status page_of(hdl_kv_layout *out, hdl_kv_group_spec *spec, int64_t n_max)
{
    spec->n_layers = 1;
    spec->n_planes = 0;
    spec->window = 0;
    for (spec->page_shift = 4; (int64_t)1 << spec->page_shift < n_max;) spec->page_shift++;
    return hdl_kv_layout_of(out, spec);
}

int64_t hdl_gather_bytes(const hdl_kv_group_spec *group, int64_t n_max)
{
    hdl_kv_group_spec spec = *group;
    hdl_kv_layout layout;
    if (page_of(&layout, &spec, n_max)) return 0;
    return layout.page_bytes + n_max * N_ARRAYS * 4;
}

heddle_status hdl_gather_new(hdl_gather **out, const hdl_kv_group_spec *group, int64_t n_max)
{
    hdl_kv_group_spec spec = *group;
    *out = NULL;
    hdl_gather *gather = hdl_calloc(1, sizeof *gather);
    if (!gather) return HEDDLE_E_NOMEM;
    heddle_status status = page_of(&gather->layout, &spec, n_max);
    gather->n_kv_heads = spec.n_kv_heads;
    gather->page_shift = spec.page_shift;
    gather->dtype = spec.dtype;
    gather->is_head_major = spec.is_head_major;
    gather->n_max = (int32_t)n_max;
    if (!status && (!(gather->page = hdl_pages_alloc(gather->layout.page_bytes)) ||
                    !(gather->memory = hdl_calloc(n_max * N_ARRAYS, sizeof *gather->memory))))
        status = HEDDLE_E_NOMEM;
    if (status) {
        hdl_gather_free(gather);
        return status;
    }
    gather->ids = gather->memory;
    gather->slots = gather->ids + n_max;
    gather->next_ids = gather->slots + n_max;
    gather->next_slots = gather->next_ids + n_max;
    gather->free_slots = gather->next_slots + n_max;
    *out = gather;
    return HEDDLE_OK;
}

void hdl_gather_free(hdl_gather *gather)
{
    if (!gather) return;
    if (gather->page) hdl_pages_free(gather->page, gather->layout.page_bytes);
    hdl_free(gather->memory);
    hdl_free(gather);
}

hdl_kv_view hdl_gather_view(const hdl_gather *gather)
{
    const hdl_kv_layout *layout = &gather->layout;
    return (hdl_kv_view){.pages = (uint8_t *const *)&gather->page,
                         .page_shift = gather->page_shift,
                         .dtype = gather->dtype,
                         .v_offset = layout->v_offset,
                         .token_stride = layout->token_stride,
                         .head_stride = layout->head_stride,
                         .v_head_stride = layout->v_head_stride,
                         .k_scale_offset = layout->k_scale_offset,
                         .v_scale_offset = layout->v_scale_offset};
}

static void copy_row(const hdl_gather *gather, const hdl_kv_view *from, int64_t token, int64_t slot)
{
    const hdl_kv_layout *to = &gather->layout;
    int64_t at = token & (((int64_t)1 << from->page_shift) - 1);
    const uint8_t *page = from->pages[token >> from->page_shift];
    int64_t scale_bytes = gather->n_kv_heads * (int64_t)sizeof(float);
    for (int32_t h = 0; h < (gather->is_head_major ? gather->n_kv_heads : 1); h++)
        memcpy(gather->page + slot * to->token_stride + h * to->head_stride,
               page + from->k_offset + at * from->token_stride + h * from->head_stride,
               (size_t)to->token_stride);
    if (gather->dtype != HDL_I8) return;
    memcpy(gather->page + to->k_scale_offset + slot * scale_bytes,
           page + from->k_scale_offset + at * scale_bytes, (size_t)scale_bytes);
    memcpy(gather->page + to->v_scale_offset + slot * scale_bytes,
           page + from->v_scale_offset + at * scale_bytes, (size_t)scale_bytes);
}

/* Slots of rows that stay, in next_slots; -1 for those that are new. The others' slots become free. */
static void keep_slots(hdl_gather *gather, const int32_t *ids, int32_t n)
{
    int32_t old = 0;
    for (int32_t i = 0; i < n; i++) {
        while (old < gather->n && gather->ids[old] < ids[i])
            gather->free_slots[gather->n_free++] = gather->slots[old++];
        bool is_there = old < gather->n && gather->ids[old] == ids[i];
        gather->next_ids[i] = ids[i];
        gather->next_slots[i] = is_there ? gather->slots[old++] : -1;
    }
    while (old < gather->n) gather->free_slots[gather->n_free++] = gather->slots[old++];
}

void hdl_gather_update(hdl_gather *gather, const hdl_kv_view *from, uint64_t content, const int32_t *ids,
                       int32_t n)
{
    HDL_ASSERT(n <= gather->n_max);
    if (content != gather->content) gather->n = gather->n_used = gather->n_free = 0;
    keep_slots(gather, ids, n);
    for (int32_t i = 0; i < n; i++) {
        if (gather->next_slots[i] >= 0) continue;
        int32_t slot = gather->n_free ? gather->free_slots[--gather->n_free] : gather->n_used++;
        gather->next_slots[i] = slot;
        copy_row(gather, from, ids[i], slot);
        gather->n_copied++;
    }
    int32_t *ids_before = gather->ids, *slots_before = gather->slots;
    gather->ids = gather->next_ids;
    gather->slots = gather->next_slots;
    gather->next_ids = ids_before;
    gather->next_slots = slots_before;
    gather->n = n;
    gather->n_listed += n;
    gather->content = content;
}

/* ---- compile ---- */

/* Layers that read the list of `owner` and the rows of kv_source. */
static int32_t n_readers(const hdl_schedule *schedule, int32_t owner, int32_t kv_source)
{
    const hdl_model_facts *facts = schedule->facts;
    int32_t n = 0;
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        const hdl_layer_plan *at = &schedule->routes[HDL_ROUTE_DECODE].layers[layer];
        n += at->op == HDL_OPERATOR_TOKEN_LIST && at->owner == owner &&
             facts->layers[layer].kv_source == kv_source && !at->stop.patience && !at->complement;
    }
    return n;
}

int32_t hdl_gather_of(hdl_schedule *schedule, int32_t layer, bool *is_first)
{
    const hdl_model_facts *facts = schedule->facts;
    const hdl_schedule_limits *limits = &schedule->limits;
    const hdl_layer_plan *at = &schedule->routes[HDL_ROUTE_DECODE].layers[layer];
    int32_t source = facts->layers[layer].kv_source, i = 0;
    const hdl_selection *list = &schedule->slots[schedule->slot_of_layer[HDL_ROUTE_DECODE][at->owner]];
    *is_first = false;
    /* AUTO gathers nothing: on a CPU the first layer brings the rows to the core's caches, and the others find them
     * there wherever they lie (bench/results/2026-11-27-gather.md: six readers at 128K tokens take 58 us more). */
    if (limits->gathering != HDL_GATHERING_ALWAYS || at->stop.patience || at->complement ||
        at->has_head_map || list->n_lists > 1 || list->block_size > 1 || schedule->refresh > 1 ||
        schedule->retain.score != HDL_RETAIN_ALL)
        return -1;
    if (n_readers(schedule, at->owner, source) < 2) return -1;
    while (i < schedule->n_gathers &&
           (schedule->gathers[i].owner != at->owner || schedule->gathers[i].kv_source != source))
        i++;
    if (i == HDL_MAX_GATHERS) return -1;
    *is_first = i == schedule->n_gathers;
    if (!*is_first) return i;
    schedule->gathers[schedule->n_gathers].owner = at->owner;
    schedule->gathers[schedule->n_gathers].kv_source = source;
    schedule->gathers[schedule->n_gathers].n_max = list->n_ids_max;
    return schedule->n_gathers++;
}

/* ---- running ---- */

void hdl_attend_gathered(const hdl_launch *launch, const hdl_step *step, hdl_class cls,
                         const hdl_exec_seq *seqs, const hdl_attend_args *args)
{
    const hdl_attend_step *at = &step->u.attend;
    const hdl_selection *lists = args->selection;
    for (int32_t i = 0; i < args->n_seqs; i++) {
        hdl_gather *gather = seqs[i].gathers[at->gather];
        hdl_attend_seq row = args->seqs[i];
        if (at->is_gathering)
            hdl_gather_update(gather, &row.kv, hdl_kv_seq_content(seqs[i].kv),
                              hdl_selection_ids(lists, row.first_row, 0),
                              *hdl_selection_count(lists, row.first_row, 0));
        hdl_selection slots = *lists;
        slots.n_rows = 1;
        slots.ids = gather->slots;
        slots.counts = &gather->n;
        hdl_attend_args one = *args;
        one.n_rows = one.n_seqs = 1;
        one.seqs = &row;
        one.selection = &slots;
        one.q += row.first_row * one.q_stride;
        one.o += row.first_row * one.o_stride;
        row.first_row = 0;
        row.kv = hdl_gather_view(gather);
        step->impl[cls]->launch(launch, &one);
    }
}
