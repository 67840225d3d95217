/* state.c - states that layers keep in place of rows: two of each, the committed one and the next step's. */
#include <string.h>

#include "base/mem.h"
#include "kv/kv_int.h"

int64_t hdl_kv_state_bytes(int32_t n_layers, int64_t n_floats)
{
    return 2 * (int64_t)sizeof(float) * n_layers * n_floats;
}

void hdl_kv_store_keep_state(hdl_kv_store *store, int32_t n_layers, int64_t n_floats)
{
    store->n_state_layers = n_layers;
    store->n_state_floats = n_floats;
}

int64_t hdl_kv_store_state_floats(const hdl_kv_store *store)
{
    return store->n_state_layers * store->n_state_floats;
}

static int64_t bytes_of(const hdl_kv_store *store)
{
    return hdl_kv_state_bytes(store->n_state_layers, store->n_state_floats);
}

heddle_status hdl_kv_state_init(hdl_kv_seq *seq)
{
    hdl_kv_store *store = seq->store;
    int64_t n_bytes = bytes_of(store);
    if (!n_bytes) return HEDDLE_OK;
    if (!(seq->states = hdl_pages_alloc(n_bytes))) return HEDDLE_E_NOMEM;
    store->live_bytes += n_bytes;
    store->peak_bytes = HDL_MAX(store->peak_bytes, store->live_bytes);
    return HEDDLE_OK;
}

void hdl_kv_state_copy(hdl_kv_seq *to, const hdl_kv_seq *from)
{
    size_t n_bytes = (size_t)hdl_kv_store_state_floats(from->store) * sizeof(float);
    if (from->states) memcpy(hdl_kv_seq_states(to), hdl_kv_seq_states(from), n_bytes);
}

void hdl_kv_state_deinit(hdl_kv_seq *seq)
{
    if (!seq->states) return;
    hdl_pages_free(seq->states, bytes_of(seq->store));
    seq->store->live_bytes -= bytes_of(seq->store);
}

hdl_kv_state hdl_kv_seq_state(const hdl_kv_seq *seq, int32_t layer)
{
    int64_t n = hdl_kv_store_state_floats(seq->store), at = layer * seq->store->n_state_floats;
    HDL_ASSERT(seq->states && layer < seq->store->n_state_layers);
    return (hdl_kv_state){seq->states + seq->state * n + at, seq->states + (1 - seq->state) * n + at};
}

float *hdl_kv_seq_states(const hdl_kv_seq *seq)
{
    return seq->states ? seq->states + seq->state * hdl_kv_store_state_floats(seq->store) : NULL;
}
