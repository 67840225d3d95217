/* order.c - every step declares what it reads and writes; a schedule whose steps read what no step before them
 * wrote, or write where no memory is booked, is refused before it runs.
 *
 * What can be read: activations (buffers), the KV rows of a layer, its summaries, the list slots of a route. Rows of
 * tokens that were read in an earlier forward are there already; this looks at the new rows of one forward. */
#include <string.h>

#include "plan/schedule.h"

enum { MAX_WRITTEN_PLANES = 4 * HDL_MAX_LAYERS };

typedef struct written_plane {
    int32_t group, layer, block_size;
    hdl_plane_kind kind;
} written_plane;

typedef struct written { /* so far */
    uint32_t buffers;    /* bit per hdl_buffer */
    bool kv[HDL_KV_MAX_GROUPS][HDL_KV_MAX_LAYERS];
    bool slots[HDL_N_ROUTES][HDL_MAX_SLOTS];
    written_plane planes[MAX_WRITTEN_PLANES];
    int32_t n_planes;
} written;

static heddle_status refuse(const hdl_step *step, const char *what)
{
    return HDL_FAIL(HEDDLE_E_INVALID, "schedule: step %s of layer %d reads %s before any step writes it",
                    hdl_op_name(step->op), step->layer, what);
}

/* A buffer that nobody booked would lie on its neighbour. */
static heddle_status check_booked(const hdl_schedule *schedule, const hdl_step *step)
{
    for (int i = 0; i < HDL_LINEAR_MAX_PARTS && step->out[i]; i++)
        if (!schedule->buffer_bytes[step->out[i]])
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "schedule: step %s of layer %d writes %s, for which no memory is booked",
                            hdl_op_name(step->op), step->layer, hdl_buffer_name(step->out[i]));
    return HEDDLE_OK;
}

static heddle_status check_buffer(const written *at, const hdl_step *step, hdl_buffer buffer)
{
    if (buffer == HDL_BUF_NONE || at->buffers >> buffer & 1) return HEDDLE_OK;
    return refuse(step, hdl_buffer_name(buffer));
}

static bool has_plane(const written *at, const written_plane *plane)
{
    for (int32_t i = 0; i < at->n_planes; i++)
        if (!memcmp(&at->planes[i], plane, sizeof *plane)) return true;
    return false;
}

static heddle_status check_attend(const written *at, const hdl_step *step)
{
    const hdl_attend_step *attend = &step->u.attend;
    const bool *slots = at->slots[step->route];
    if (!at->kv[attend->group][attend->layer_in_group]) return refuse(step, "KV rows");
    if (attend->args.has_selection && !attend->is_kept && !slots[attend->slot]) return refuse(step, "a list");
    if (attend->candidate_slot >= 0 && !slots[attend->candidate_slot]) return refuse(step, "candidates");
    for (int i = 0; i < 2 && attend->is_completing; i++) {
        written_plane mean = {attend->group, attend->layer_in_group, attend->complement.block_size,
                              i ? HDL_PLANE_MEAN_V : HDL_PLANE_MEAN};
        if (!has_plane(at, &mean)) return refuse(step, hdl_plane_name(mean.kind));
    }
    if (!attend->is_scoring || !attend->score.plane) return HEDDLE_OK;
    written_plane plane = {attend->group, attend->layer_in_group, attend->score.block_size,
                           attend->score.plane};
    return has_plane(at, &plane) ? HEDDLE_OK : refuse(step, hdl_plane_name(plane.kind));
}

static heddle_status check_step(const written *at, const hdl_step *step)
{
    HDL_TRY(check_buffer(at, step, step->in));
    HDL_TRY(check_buffer(at, step, step->in2));
    if (step->op == HDL_OP_LINEAR)
        for (int32_t i = 0; i < step->u.linear.n_parts; i++)
            if (step->u.linear.part[i].accumulate) HDL_TRY(check_buffer(at, step, step->out[i]));
    bool is_of_index = step->op == HDL_OP_SUMMARISE && step->u.summarise.kind == HDL_PLANE_INDEX_MEAN;
    written_plane keys = {step->group, step->layer_in_group, 1, HDL_PLANE_INDEX};
    if (is_of_index && !has_plane(at, &keys)) return refuse(step, hdl_plane_name(keys.kind));
    if (step->op == HDL_OP_SUMMARISE && !is_of_index && step->u.summarise.kind != HDL_PLANE_INDEX &&
        !at->kv[step->group][step->layer_in_group])
        return refuse(step, "KV rows");
    if (step->op == HDL_OP_COMPACT && !at->kv[step->u.retain.group][step->u.retain.layer_in_group])
        return refuse(step, "KV rows");
    return step->op == HDL_OP_ATTEND ? check_attend(at, step) : HEDDLE_OK;
}

static void note_writes(written *at, const hdl_step *step)
{
    for (int i = 0; i < HDL_LINEAR_MAX_PARTS && step->out[i]; i++) at->buffers |= (uint32_t)1 << step->out[i];
    if (step->op == HDL_OP_APPEND) at->kv[step->group][step->layer_in_group] = true;
    if (step->op == HDL_OP_SUMMARISE && at->n_planes < MAX_WRITTEN_PLANES)
        at->planes[at->n_planes++] = (written_plane){step->group, step->layer_in_group,
                                                     step->u.summarise.block_size, step->u.summarise.kind};
    if (step->op != HDL_OP_ATTEND || step->u.attend.slot < 0) return;
    if (step->u.attend.is_selecting || step->u.attend.is_kept)
        at->slots[step->route][step->u.attend.slot] = true;
}

heddle_status hdl_schedule_check_order(const hdl_schedule *schedule)
{
    static _Thread_local written at; /* a hundred KiB: not for every stack */
    memset(&at, 0, sizeof at);
    for (int32_t i = 0; i < schedule->n_steps; i++) {
        /* the rows whose logits are wanted are gathered between the two parts */
        if (i == schedule->n_lower_steps) at.buffers |= (uint32_t)1 << HDL_BUF_LAST;
        HDL_TRY(check_booked(schedule, &schedule->steps[i]));
        HDL_TRY(check_step(&at, &schedule->steps[i]));
        note_writes(&at, &schedule->steps[i]);
    }
    return HEDDLE_OK;
}
