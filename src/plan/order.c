/* order.c - every step declares what it reads and writes, and its queue; a schedule whose steps read what no step
 * before them wrote, or write where no memory is booked, is refused before it runs.
 *
 * A step of one route writes the rows of that route: who reads all rows needs the steps of every route. What a layer
 * makes for itself (queries to its MLP) is not what the layer before left there.
 *
 * Lists may share a place (slots.c), so a list that another was made over since is one that no step wrote.
 * What can be read: activations (buffers), the KV rows of a layer, its summaries, the list slots of a route. Rows of
 * tokens that were read in an earlier forward are there already; this looks at the new rows of one forward.
 *
 * Steps that copy have a queue of their own, which a device may run beside the one that computes. Each queue keeps its
 * order; between them a step waits for the last step of the other queue that wrote what it reads, or that read or wrote
 * what it writes. The CPU runs all steps in their order, which keeps every wait. */
#include <stdio.h>
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

typedef struct uses {                         /* so far */
    use buffers[HDL_N_ROUTES][HDL_N_BUFFERS]; /* the rows of a route */
    use kv[HDL_KV_MAX_GROUPS][HDL_KV_MAX_LAYERS];
    use slots[HDL_N_ROUTES][HDL_MAX_SLOTS];
    plane_use planes[MAX_WRITTEN_PLANES];
    int32_t n_planes;
    const hdl_schedule *schedule;
    const hdl_step *step;  /* at work, */
    int32_t number, after; /* its number + 1; that of the step that it waits for */
    int32_t before_layer;  /* the last step of the layer before, its number + 1 */
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

/* Whose rows the step is for: those of routes [first, end). */
static void routes_of(const uses *at, int *first, int *end)
{
    bool is_of_route = at->step->where == HDL_WHERE_ROUTE;
    *first = is_of_route ? (int)at->step->route : 0;
    *end = is_of_route ? *first + 1 : at->schedule->refresh > 1 ? HDL_N_ROUTES : HDL_ROUTE_REUSE;
}

static heddle_status reads_buffer(uses *at, hdl_buffer buffer)
{
    bool is_of_layer = buffer >= HDL_BUF_Q && buffer <= HDL_BUF_DELTA_AB;
    int first, end;
    char name[64];
    if (buffer == HDL_BUF_NONE) return HEDDLE_OK;
    snprintf(name, sizeof name, "%s%s", hdl_buffer_name(buffer), is_of_layer ? " of its layer" : "");
    routes_of(at, &first, &end);
    for (int r = first; r < end; r++) {
        use *what = &at->buffers[r][buffer];
        if (is_of_layer && what->writer <= at->before_layer) return refuse(at->step, name);
        HDL_TRY(reads(at, what, name));
    }
    return HEDDLE_OK;
}

/* A buffer that nobody booked would lie on its neighbour. */
static heddle_status writes_buffer(uses *at, hdl_buffer buffer)
{
    int first, end;
    if (!at->schedule->buffer_bytes[buffer])
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "schedule: step %s of layer %d writes %s, for which no memory is booked",
                        hdl_op_name(at->step->op), at->step->layer, hdl_buffer_name(buffer));
    routes_of(at, &first, &end);
    for (int r = first; r < end; r++) writes(at, &at->buffers[r][buffer]);
    return HEDDLE_OK;
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
static void writes_list(uses *at, int32_t slot)
{
    for (int32_t i = 0; i < at->schedule->n_slots; i++)
        for (int r = 0; r < HDL_N_ROUTES; r++) {
            if (i == slot || !at->slots[r][i].writer || !hdl_slots_meet(at->schedule, i, slot)) continue;
            writes(at, &at->slots[r][i]);
            at->slots[r][i] = (use){0};
        }
    writes(at, &at->slots[at->step->route][slot]);
}

/* What the step needs on the way from a query to lists or to its output. */
static heddle_status use_scratch(uses *at)
{
    const hdl_attend_step *step = &at->step->u.attend;
    bool has_tiles = step->is_scoring && at->schedule->slots[step->slot].rows_per_list > 1;
    if (step->score.has_bias) HDL_TRY(reads_buffer(at, HDL_BUF_INDEX_BIAS));
    if (has_tiles && !step->score.is_shared) HDL_TRY(writes_buffer(at, HDL_BUF_Q_TILE));
    if (step->args.has_mass || step->is_scoring) HDL_TRY(writes_buffer(at, HDL_BUF_MASS));
    if (step->stop.patience) HDL_TRY(writes_buffer(at, HDL_BUF_N_READ));
    if (step->listed_impl[0]) HDL_TRY(writes_buffer(at, HDL_BUF_ALLOWED));
    if (step->head_map) writes_list(at, at->schedule->mapped);
    if (step->is_uniting || step->is_resolving || step->n_kv_heads) writes_list(at, at->schedule->united);
    return HEDDLE_OK;
}

static heddle_status attend(uses *at)
{
    const hdl_attend_step *step = &at->step->u.attend;
    use *slots = at->slots[at->step->route];
    HDL_TRY(use_scratch(at)); /* first: what is read must not lie there */
    HDL_TRY(reads(at, &at->kv[step->group][step->layer_in_group], "KV rows"));
    if (step->args.has_selection && !step->is_kept) HDL_TRY(reads(at, &slots[step->slot], "a list"));
    if (step->is_replacing) HDL_TRY(reads(at, &slots[step->slot], "the other heads' lists"));
    if (step->candidate_slot >= 0) HDL_TRY(reads(at, &slots[step->candidate_slot], "candidates"));
    for (int i = 0; i < 2 && step->complement; i++)
        HDL_TRY(reads_plane(at, step->group, step->layer_in_group, step->complement,
                            i ? HDL_PLANE_MEAN_V : HDL_PLANE_MEAN));
    if (step->is_scoring && step->score.plane)
        HDL_TRY(
            reads_plane(at, step->group, step->layer_in_group, step->score.block_size, step->score.plane));
    if (step->slot >= 0 && (step->is_selecting || step->is_kept)) writes_list(at, step->slot);
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
    const hdl_retain_step *step = &at->step->u.retain;
    use *rows = &at->kv[step->group][step->layer_in_group];
    HDL_TRY(reads(at, rows, "KV rows"));
    writes(at, rows);
    for (int32_t i = 0; i < step->n_summaries; i++) { /* of the rows that stay */
        const hdl_summarise_args *made = &at->schedule->steps[step->first_summary + i].u.summarise;
        use *plane = plane_at(at, step->group, step->layer_in_group, made->block_size, made->kind);
        if (plane) writes(at, plane);
    }
    if (step->attend_impl[0]) HDL_TRY(writes_buffer(at, HDL_BUF_MASS));
    HDL_TRY(writes_buffer(at, HDL_BUF_RETAIN));
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
    for (int i = 0; i < HDL_LINEAR_MAX_PARTS && step->out[i]; i++) HDL_TRY(writes_buffer(at, step->out[i]));
    return HEDDLE_OK;
}

heddle_status hdl_schedule_check_order(hdl_schedule *schedule)
{
    static _Thread_local uses at; /* some hundred KiB: not for every stack */
    memset(&at, 0, sizeof at);
    at.schedule = schedule;
    for (int32_t i = 0; i < schedule->n_steps; i++) {
        hdl_step *step = &schedule->steps[i];
        if (i && step->layer != schedule->steps[i - 1].layer) at.before_layer = i;
        at.step = step;
        at.number = i + 1;
        at.after = 0;
        step->queue = queue_of(step->op);
        /* the rows whose logits are wanted are gathered between the two parts, when everything before is over */
        for (int r = 0; r < HDL_N_ROUTES && i == schedule->n_lower_steps; r++)
            at.buffers[r][HDL_BUF_LAST].writer = i;
        HDL_TRY(use_all(&at));
        step->waits_for = at.after - 1;
    }
    return HEDDLE_OK;
}
