/* order.c - every step declares what it reads and writes, and its queue; a schedule whose steps read what no step
 * before them wrote, or write where no memory is booked, is refused before it runs.
 *
 * Lists may share a place (slots.c), so a list that another was made over since is one that no step wrote.
 * What can be read: activations (buffers), the KV rows of a layer, its summaries, the list slots of a route. Rows of
 * tokens that were read in an earlier forward are there already; this looks at the new rows of one forward.
 *
 * Steps that copy have a queue of their own, which a device may run beside the one that computes. Each queue keeps its
 * order; between them a step waits for the last step of the other queue that wrote what it reads, or that read or wrote
 * what it writes. The CPU runs all steps in their order, which keeps every wait. */
#include <string.h>

#include "plan/schedule.h"

enum { MAX_WRITTEN_PLANES = 4 * HDL_MAX_LAYERS };

typedef struct use { /* of something by the steps so far: a step's number + 1; 0 = none */
    int32_t writer, reader[HDL_N_QUEUES];
} use;

typedef struct plane_use {
    int32_t group, layer, block_size;
    hdl_plane_kind kind;
    use use;
} plane_use;

typedef struct uses { /* so far */
    use buffers[HDL_N_BUFFERS];
    use kv[HDL_KV_MAX_GROUPS][HDL_KV_MAX_LAYERS];
    use slots[HDL_N_ROUTES][HDL_MAX_SLOTS];
    plane_use planes[MAX_WRITTEN_PLANES];
    int32_t n_planes;
    const hdl_schedule *schedule;
    const hdl_step *step;  /* at work, */
    int32_t number, after; /* its number + 1; that of the step that it waits for */
} uses;

static hdl_queue queue_of(hdl_op op)
{
    return op == HDL_OP_APPEND ? HDL_QUEUE_COPY : HDL_QUEUE_COMPUTE;
}

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

static void wait_for(uses *at, int32_t number)
{
    if (number && at->schedule->steps[number - 1].queue != at->step->queue)
        at->after = HDL_MAX(at->after, number);
}

static heddle_status reads(uses *at, use *what, const char *name)
{
    if (!what->writer) return refuse(at->step, name);
    wait_for(at, what->writer);
    what->reader[at->step->queue] = at->number;
    return HEDDLE_OK;
}

static void writes(uses *at, use *what)
{
    wait_for(at, what->writer);
    for (int q = 0; q < HDL_N_QUEUES; q++) wait_for(at, what->reader[q]);
    *what = (use){.writer = at->number};
}

static heddle_status reads_buffer(uses *at, hdl_buffer buffer)
{
    return buffer == HDL_BUF_NONE ? HEDDLE_OK : reads(at, &at->buffers[buffer], hdl_buffer_name(buffer));
}

/* The summary's use; a new one has no writer. NULL: there is no room for one more. */
static use *plane_at(uses *at, int32_t group, int32_t layer, int32_t block_size, hdl_plane_kind kind)
{
    for (int32_t i = 0; i < at->n_planes; i++) {
        plane_use *plane = &at->planes[i];
        if (plane->group == group && plane->layer == layer && plane->block_size == block_size &&
            plane->kind == kind)
            return &plane->use;
    }
    if (at->n_planes == MAX_WRITTEN_PLANES) return NULL;
    at->planes[at->n_planes] = (plane_use){group, layer, block_size, kind, {0}};
    return &at->planes[at->n_planes++].use;
}

static heddle_status reads_plane(uses *at, int32_t group, int32_t layer, int32_t block_size,
                                 hdl_plane_kind kind)
{
    use *plane = plane_at(at, group, layer, block_size, kind);
    return plane ? reads(at, plane, hdl_plane_name(kind)) : refuse(at->step, hdl_plane_name(kind));
}

/* A list is made, and those that lay in its place are there no more. */
static void writes_list(uses *at)
{
    int32_t slot = at->step->u.attend.slot;
    for (int32_t i = 0; i < at->schedule->n_slots; i++)
        for (int r = 0; r < HDL_N_ROUTES; r++) {
            if (i == slot || !at->slots[r][i].writer || !hdl_slots_meet(at->schedule, i, slot)) continue;
            writes(at, &at->slots[r][i]);
            at->slots[r][i] = (use){0};
        }
    writes(at, &at->slots[at->step->route][slot]);
}

static heddle_status attend(uses *at)
{
    const hdl_attend_step *step = &at->step->u.attend;
    use *slots = at->slots[at->step->route];
    HDL_TRY(reads(at, &at->kv[step->group][step->layer_in_group], "KV rows"));
    if (step->args.has_selection && !step->is_kept) HDL_TRY(reads(at, &slots[step->slot], "a list"));
    if (step->is_replacing) HDL_TRY(reads(at, &slots[step->slot], "the other heads' lists"));
    if (step->candidate_slot >= 0) HDL_TRY(reads(at, &slots[step->candidate_slot], "candidates"));
    for (int i = 0; i < 2 && step->is_completing; i++)
        HDL_TRY(reads_plane(at, step->group, step->layer_in_group, step->complement.block_size,
                            i ? HDL_PLANE_MEAN_V : HDL_PLANE_MEAN));
    if (step->is_scoring && step->score.plane)
        HDL_TRY(
            reads_plane(at, step->group, step->layer_in_group, step->score.block_size, step->score.plane));
    if (step->slot >= 0 && (step->is_selecting || step->is_kept)) writes_list(at);
    return HEDDLE_OK;
}

static heddle_status summarise(uses *at)
{
    const hdl_step *step = at->step;
    hdl_plane_kind kind = step->u.summarise.kind;
    if (kind == HDL_PLANE_INDEX_MEAN)
        HDL_TRY(reads_plane(at, step->group, step->layer_in_group, 1, HDL_PLANE_INDEX));
    else if (kind != HDL_PLANE_INDEX)
        HDL_TRY(reads(at, &at->kv[step->group][step->layer_in_group], "KV rows"));
    use *plane = plane_at(at, step->group, step->layer_in_group, step->u.summarise.block_size, kind);
    if (plane) writes(at, plane);
    return HEDDLE_OK;
}

static heddle_status compact(uses *at)
{
    use *rows = &at->kv[at->step->u.retain.group][at->step->u.retain.layer_in_group];
    HDL_TRY(reads(at, rows, "KV rows"));
    writes(at, rows);
    return HEDDLE_OK;
}

static heddle_status use_all(uses *at)
{
    const hdl_step *step = at->step;
    HDL_TRY(reads_buffer(at, step->in));
    HDL_TRY(reads_buffer(at, step->in2));
    if (step->op == HDL_OP_LINEAR)
        for (int32_t i = 0; i < step->u.linear.n_parts; i++)
            if (step->u.linear.part[i].accumulate) HDL_TRY(reads_buffer(at, step->out[i]));
    if (step->op == HDL_OP_ATTEND) HDL_TRY(attend(at));
    if (step->op == HDL_OP_SUMMARISE) HDL_TRY(summarise(at));
    if (step->op == HDL_OP_COMPACT) HDL_TRY(compact(at));
    if (step->op == HDL_OP_APPEND) writes(at, &at->kv[step->group][step->layer_in_group]);
    for (int i = 0; i < HDL_LINEAR_MAX_PARTS && step->out[i]; i++) writes(at, &at->buffers[step->out[i]]);
    return HEDDLE_OK;
}

heddle_status hdl_schedule_check_order(hdl_schedule *schedule)
{
    static _Thread_local uses at; /* some hundred KiB: not for every stack */
    memset(&at, 0, sizeof at);
    at.schedule = schedule;
    for (int32_t i = 0; i < schedule->n_steps; i++) {
        hdl_step *step = &schedule->steps[i];
        at.step = step;
        at.number = i + 1;
        at.after = 0;
        step->queue = queue_of(step->op);
        /* the rows whose logits are wanted are gathered between the two parts, when everything before is over */
        if (i == schedule->n_lower_steps) at.buffers[HDL_BUF_LAST].writer = i;
        HDL_TRY(check_booked(schedule, step));
        HDL_TRY(use_all(&at));
        step->waits_for = at.after - 1;
    }
    return HEDDLE_OK;
}
