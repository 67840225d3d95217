/* state_exec.c - steps that take each sequence's rows from one state to the next. */
#include "plan/schedule.h"

void hdl_exec_state(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch)
{
    hdl_launch launch = {.n_threads = schedule->limits.n_threads,
                         .workspace = hdl_schedule_at(schedule, HDL_BUF_WORK)};
    hdl_step run = *step;
    int64_t row = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        hdl_kv_state state = hdl_kv_seq_state(batch->seqs[s].kv, step->layer_in_group);
        batch->states[s] = (hdl_state_seq){row, batch->seqs[s].q_len, state.before + step->state_offset,
                                           state.after + step->state_offset};
        row += batch->seqs[s].q_len;
    }
    if (step->op == HDL_OP_CONV) {
        run.u.conv.n_rows = batch->n_rows;
        run.u.conv.n_seqs = batch->n_seqs;
        run.u.conv.seqs = batch->states;
        run.u.conv.n_visible = batch->n_visible;
        run.u.conv.doc_start = batch->doc_start;
    } else {
        run.u.delta.n_rows = batch->n_rows;
        run.u.delta.n_seqs = batch->n_seqs;
        run.u.delta.seqs = batch->states;
        run.u.delta.n_visible = batch->n_visible;
        run.u.delta.doc_start = batch->doc_start;
    }
    step->impl[batch->n_rows <= HDL_FEW_ROWS ? HDL_CLASS_ONE : HDL_CLASS_MANY]->launch(&launch, &run.u);
}
