/* slots.c - where lists lie: every slot's place in the booked buffer LISTS.
 *
 * A list is needed from the step that makes it to the last step that reads it: a layer that chooses for itself is
 * done with its list when it has attended, and the next such layer's may lie in the same place. So slots whose
 * spans of steps do not meet share a region; order.c refuses a step that would read what another list was written
 * over. Where the upper layers of a model run over tiles of rows (cross_from), steps are walked more than once and
 * every slot has its own region. */
#include "plan/schedule.h"

/* Steps [first, last] that make or read the slot. */
typedef struct slot_span {
    int32_t first, last;
} slot_span;

typedef struct slot_region {
    int64_t bytes;
    int32_t last; /* of the slot that was placed there last */
} slot_region;

int64_t hdl_slot_bytes(const hdl_schedule *schedule, int32_t slot)
{
    const hdl_selection *at = &schedule->slots[slot];
    int64_t lists = schedule->slot_rows * at->n_lists;
    int64_t ids_bytes = HDL_ALIGN_UP(lists * at->n_ids_max * 4, 64) + HDL_ALIGN_UP(lists * 4, 64);
    return at->has_order ? 2 * ids_bytes : ids_bytes;
}

static void note_use(slot_span *spans, int32_t slot, int32_t step)
{
    if (slot < 0) return;
    spans[slot].first = HDL_MIN(spans[slot].first, step);
    spans[slot].last = HDL_MAX(spans[slot].last, step);
}

/* Slots that no step names (those on the way to others) and all slots of steps that run more than once: always. */
static void find_spans(const hdl_schedule *schedule, slot_span *spans)
{
    bool is_once = schedule->facts->cross_from >= schedule->facts->n_layers;
    for (int32_t i = 0; i < schedule->n_slots; i++) spans[i] = (slot_span){schedule->n_steps, -1};
    for (int32_t i = 0; i < schedule->n_steps && is_once; i++) {
        const hdl_step *step = &schedule->steps[i];
        if (step->op != HDL_OP_ATTEND) continue;
        note_use(spans, step->u.attend.slot, i);
        note_use(spans, step->u.attend.candidate_slot, i);
    }
    for (int32_t i = 0; i < schedule->n_slots; i++)
        if (spans[i].last < 0) spans[i] = (slot_span){0, schedule->n_steps};
}

/* Of the regions that are free by then: the least that is large enough, else the largest; -1 = none is free. */
static int32_t find_region(const slot_region *regions, int32_t n, const slot_span *span, int64_t bytes)
{
    int32_t best = -1;
    for (int32_t r = 0; r < n; r++) {
        if (regions[r].last >= span->first) continue;
        bool fits = regions[r].bytes >= bytes, best_fits = best >= 0 && regions[best].bytes >= bytes;
        bool is_less = best >= 0 && regions[r].bytes < regions[best].bytes;
        if (best < 0 || (fits && !best_fits) || (fits == best_fits && fits == is_less)) best = r;
    }
    return best;
}

int64_t hdl_schedule_place_slots(hdl_schedule *schedule)
{
    slot_span spans[HDL_MAX_SLOTS];
    slot_region regions[HDL_MAX_SLOTS];
    int32_t region_of[HDL_MAX_SLOTS], n_regions = 0;
    bool is_placed[HDL_MAX_SLOTS] = {false};
    find_spans(schedule, spans);
    for (int32_t n = 0; n < schedule->n_slots; n++) { /* in the order in which they are made */
        int32_t slot = -1;
        for (int32_t i = 0; i < schedule->n_slots; i++)
            if (!is_placed[i] && (slot < 0 || spans[i].first < spans[slot].first)) slot = i;
        int64_t bytes = hdl_slot_bytes(schedule, slot);
        int32_t r = find_region(regions, n_regions, &spans[slot], bytes);
        if (r < 0) regions[r = n_regions++] = (slot_region){0, -1};
        regions[r] = (slot_region){HDL_MAX(regions[r].bytes, bytes), spans[slot].last};
        region_of[slot] = r;
        is_placed[slot] = true;
    }
    int64_t region_at[HDL_MAX_SLOTS + 1] = {0};
    for (int32_t r = 0; r < n_regions; r++) region_at[r + 1] = region_at[r] + regions[r].bytes;
    for (int32_t i = 0; i < schedule->n_slots; i++) schedule->slot_at[i] = region_at[region_of[i]];
    return region_at[n_regions];
}

bool hdl_slots_meet(const hdl_schedule *schedule, int32_t one, int32_t other)
{
    const int64_t *at = schedule->slot_at;
    return at[one] < at[other] + hdl_slot_bytes(schedule, other) &&
           at[other] < at[one] + hdl_slot_bytes(schedule, one);
}

void hdl_schedule_bind_slots(hdl_schedule *schedule)
{
    uint8_t *lists = (uint8_t *)hdl_schedule_at(schedule, HDL_BUF_LISTS);
    for (int32_t i = 0; i < schedule->n_slots; i++) {
        hdl_selection *slot = &schedule->slots[i];
        int64_t n_lists = schedule->slot_rows * slot->n_lists;
        slot->n_rows = schedule->slot_rows;
        slot->ids = (int32_t *)(void *)(lists + schedule->slot_at[i]);
        slot->counts = slot->ids + HDL_ALIGN_UP(n_lists * slot->n_ids_max * 4, 64) / 4;
        if (!slot->has_order) continue;
        slot->order = slot->ids + hdl_slot_bytes(schedule, i) / 8;
        slot->n_first = slot->order + (slot->counts - slot->ids);
    }
}
