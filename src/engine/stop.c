/* stop.c - an automaton over all stop strings (Aho and Corasick, 1975).
 *
 * Its state is the longest end of the stream that begins a stop string, so the state's depth is
 * the number of bytes to hold back. */
#include "engine/stop.h"

#include <string.h>

#include "base/mem.h"

typedef struct node {
    int32_t child, sibling, fail;
    int32_t depth;
    int32_t match; /* bytes of the longest stop string that ends here; 0 = none */
    uint8_t byte;
} node;

struct hdl_stop {
    node *nodes; /* [n_nodes]; 0 is the root */
    int32_t n_nodes, state;
    int32_t n_held;
    bool is_stopped;
    char held[HDL_MAX_STOP_BYTES + 4]; /* the last bytes of the stream that were not shown */
};

static int32_t child_of(const hdl_stop *stop, int32_t at, uint8_t byte)
{
    int32_t child = stop->nodes[at].child;
    while (child >= 0 && stop->nodes[child].byte != byte) child = stop->nodes[child].sibling;
    return child;
}

static int32_t next_state(const hdl_stop *stop, int32_t state, uint8_t byte)
{
    for (;;) {
        int32_t child = child_of(stop, state, byte);
        if (child >= 0) return child;
        if (!state) return 0;
        state = stop->nodes[state].fail;
    }
}

static void add_string(hdl_stop *stop, const char *text, int32_t n)
{
    int32_t at = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t child = child_of(stop, at, (uint8_t)text[i]);
        if (child < 0) {
            child = stop->n_nodes++;
            stop->nodes[child] = (node){
                .child = -1, .sibling = stop->nodes[at].child, .depth = i + 1, .byte = (uint8_t)text[i]};
            stop->nodes[at].child = child;
        }
        at = child;
    }
    stop->nodes[at].match = n;
}

/* Nodes in order of depth: a node's fail link is known before its children need it. */
static void link_fails(hdl_stop *stop, int32_t *queue)
{
    int32_t head = 0, tail = 0;
    queue[tail++] = 0;
    while (head < tail) {
        int32_t at = queue[head++];
        for (int32_t c = stop->nodes[at].child; c >= 0; c = stop->nodes[c].sibling) {
            node *n = &stop->nodes[c];
            n->fail = at ? next_state(stop, stop->nodes[at].fail, n->byte) : 0;
            if (!n->match) n->match = stop->nodes[n->fail].match;
            queue[tail++] = c;
        }
    }
}

heddle_status hdl_stop_new(hdl_stop **out, const char *const *strings, int64_t n_strings)
{
    *out = NULL;
    int64_t n_nodes = 1;
    if (n_strings < 0 || n_strings > HDL_MAX_STOPS)
        return HDL_FAIL(HEDDLE_E_INVALID, "stop strings: %lld: must be in 0..%d", (long long)n_strings,
                        HDL_MAX_STOPS);
    for (int64_t i = 0; i < n_strings; i++) {
        int64_t n = (int64_t)strlen(strings[i]);
        if (n < 1 || n > HDL_MAX_STOP_BYTES)
            return HDL_FAIL(HEDDLE_E_INVALID, "stop string %lld has %lld bytes: must be in 1..%d",
                            (long long)i, (long long)n, HDL_MAX_STOP_BYTES);
        n_nodes += n;
    }
    heddle_status status = HEDDLE_E_NOMEM;
    int32_t *queue = NULL;
    hdl_stop *stop = hdl_calloc(1, sizeof *stop);
    if (!stop) goto done;
    stop->nodes = hdl_calloc(n_nodes, sizeof *stop->nodes);
    queue = hdl_calloc(n_nodes, sizeof *queue);
    if (!stop->nodes || !queue) goto done;
    stop->nodes[0] = (node){.child = -1, .sibling = -1};
    stop->n_nodes = 1;
    for (int64_t i = 0; i < n_strings; i++) add_string(stop, strings[i], (int32_t)strlen(strings[i]));
    link_fails(stop, queue);
    *out = stop;
    stop = NULL;
    status = HEDDLE_OK;
done:
    hdl_free(queue);
    hdl_stop_free(stop);
    return status;
}

void hdl_stop_free(hdl_stop *stop)
{
    if (!stop) return;
    hdl_free(stop->nodes);
    hdl_free(stop);
}

void hdl_stop_reset(hdl_stop *stop)
{
    stop->state = stop->n_held = 0;
    stop->is_stopped = false;
}

/* Bytes at the end of text that begin a UTF-8 sequence and do not complete it. */
static int32_t incomplete_tail(const char *text, int32_t n)
{
    for (int32_t back = 1; back <= HDL_MIN(3, n); back++) {
        uint8_t c = (uint8_t)text[n - back];
        if ((c & 0xc0) == 0x80) continue;
        int32_t need = c >= 0xf0 && c < 0xf5 ? 4 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xc2 && c < 0xe0 ? 2 : 1;
        return need > back ? back : 0;
    }
    return 0;
}

static void show(hdl_stop *stop, int32_t n, hdl_buf *out)
{
    hdl_buf_add(out, stop->held, n);
    stop->n_held -= n;
    memmove(stop->held, stop->held + n, (size_t)stop->n_held);
}

bool hdl_stop_feed(hdl_stop *stop, const char *bytes, int64_t n, hdl_buf *out)
{
    for (int64_t i = 0; i < n && !stop->is_stopped; i++) {
        stop->held[stop->n_held++] = bytes[i];
        stop->state = next_state(stop, stop->state, (uint8_t)bytes[i]);
        const node *at = &stop->nodes[stop->state];
        if (at->match) {
            show(stop, stop->n_held - at->match, out);
            stop->is_stopped = true;
            stop->n_held = 0;
            break;
        }
        int32_t free_to_show = stop->n_held - at->depth;
        free_to_show -= incomplete_tail(stop->held, free_to_show);
        if (free_to_show > 0) show(stop, free_to_show, out);
    }
    return stop->is_stopped;
}

void hdl_stop_flush(hdl_stop *stop, hdl_buf *out)
{
    show(stop, stop->n_held, out);
    stop->state = 0;
}
