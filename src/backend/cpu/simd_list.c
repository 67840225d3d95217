/* simd_list.c - UNION, RESOLVE and ORDER: what becomes of lists after they are chosen.
 *
 * UNION marks ids in a window of WINDOW bits, which moves to the least id that is left, and lists the bits that are
 * set. An id costs one read-modify-write of a word in the first-level cache and one step over set bits (about 3 + 2
 * cycles); a run of a slash costs its words; an empty stretch between two windows nothing. With 16 lanes a word that
 * is mostly set is listed 16 bits at a time.
 *
 * RESOLVE marks the members of a segment's groups in its 256 bits and lists these as UNION does; a segment without
 * any costs a look at its four words.
 *
 * ORDER sorts (key, place) by bytes of the key, least first: four passes of a load, an increment and a store
 * of 8 bytes, stable, so that ties stay with the lowest place; a byte that all keys share is no pass. 4,096 places are
 * 64 KiB in two copies and about 100,000 cycles: the second-level cache, bound by the stores. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/route_int.h"
#include "backend/cpu/simd_attend_int.h"
#include "base/pool.h"

/* ---- UNION ---- */

enum { WORD = 64, WINDOW = 1 << 14, N_WORDS = WINDOW / WORD, MANY_BITS = 12 };

typedef struct union_row {
    const hdl_union_args *args;
    int64_t row;
    int32_t list, n_united; /* lists that become one; the slashes' is one more */
    int32_t at[HDL_MAX_UNITED + 1];
} union_row;

/* Source i of the row: its list, and how far before an id the run of it begins. */
static const int32_t *source_of(const union_row *row, int32_t i, int32_t *n, int64_t *n_before)
{
    bool is_slash = i == row->n_united;
    const hdl_selection *of = is_slash ? row->args->slashes : row->args->lists;
    int32_t l = is_slash ? row->list : row->list * row->n_united + i;
    *n = *hdl_selection_count(of, row->row, l);
    *n_before = is_slash ? row->args->n_before : 0;
    return hdl_selection_ids(of, row->row, l);
}

static int32_t n_sources(const union_row *row)
{
    return row->n_united + (row->args->slashes != NULL);
}

/* The least id from `from` on that is not yet listed; INT64_MAX: none. */
static int64_t next_id(const union_row *row, int64_t from)
{
    int64_t least = INT64_MAX, n_before;
    for (int32_t i = 0, n; i < n_sources(row); i++) {
        const int32_t *ids = source_of(row, i, &n, &n_before);
        if (row->at[i] < n) least = HDL_MIN(least, HDL_MAX(ids[row->at[i]] - n_before, from));
    }
    return least;
}

/* Bits [begin, end) of the window. */
static void mark_run(uint64_t *bits, int64_t begin, int64_t end)
{
    int64_t first = begin / WORD, last = (end - 1) / WORD;
    uint64_t head = UINT64_MAX << begin % WORD, tail = UINT64_MAX >> (WORD - 1 - (end - 1) % WORD);
    if (first == last) {
        bits[first] |= head & tail;
        return;
    }
    bits[first] |= head;
    for (int64_t w = first + 1; w < last; w++) bits[w] = UINT64_MAX;
    bits[last] |= tail;
}

/* Marks what the sources hold of ids [base, base + WINDOW). */
static void mark_window(union_row *row, int64_t base, uint64_t *bits)
{
    int64_t end = base + WINDOW, n_before;
    for (int32_t i = 0, n; i < n_sources(row); i++) {
        const int32_t *ids = source_of(row, i, &n, &n_before);
        int32_t at = row->at[i];
        if (!n_before)
            for (; at < n && ids[at] < end; at++)
                bits[(ids[at] - base) / WORD] |= (uint64_t)1 << (ids[at] - base) % WORD;
        for (; at < n && ids[at] < end; at++)
            mark_run(bits, HDL_MAX(ids[at] - n_before, base) - base, ids[at] + 1 - base);
        row->at[i] = at;
        for (; at < n && ids[at] - n_before < end; at++) /* runs that the window's end cuts: seen again */
            mark_run(bits, HDL_MAX(ids[at] - n_before, base) - base, WINDOW);
    }
}

#if defined(HDL_ISA_avx512)
/* Ids of a word with many bits, 16 bits at a time; 16 are stored where there is room. */
ALWAYS_INLINE int64_t list_many(uint64_t word, int64_t first, int32_t *out, int64_t n, int64_t room)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < WORD && word; i += 16, word >>= 16) {
        __mmask16 part = (__mmask16)word;
        __m512i ids = _mm512_add_epi32(_mm512_set1_epi32((int32_t)first + i), lane);
        int64_t count = __builtin_popcountll(part);
        uint32_t stored = n + 16 <= room ? 0xffffu : (1u << count) - 1;
        _mm512_mask_storeu_epi32(out + n, (__mmask16)stored, _mm512_maskz_compress_epi32(part, ids));
        n += count;
    }
    return n;
}
#endif

/* Lists the marked ids of n_words words behind the n in `out` and clears them. */
static int64_t list_words(uint64_t *bits, int64_t n_words, int64_t base, int32_t *out, int64_t n,
                          int64_t room)
{
    (void)room;
    for (int64_t w = 0; w < n_words; w++) {
        uint64_t word = bits[w];
        int64_t first = base + w * WORD;
        if (!word) continue;
        bits[w] = 0;
#if defined(HDL_ISA_avx512)
        if (__builtin_popcountll(word) >= MANY_BITS) {
            n = list_many(word, first, out, n, room);
            continue;
        }
#endif
        for (; word; word &= word - 1) out[n++] = (int32_t)(first + __builtin_ctzll(word));
    }
    return n;
}

static void unite_list(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_union_args *args = arg;
    hdl_selection *out = args->out;
    union_row row = {.args = args, .row = task / out->n_lists, .list = (int32_t)(task % out->n_lists)};
    row.n_united = args->lists->n_lists / out->n_lists;
    HDL_ASSERT(row.n_united >= 1 && row.n_united <= HDL_MAX_UNITED);
    HDL_ASSERT(!args->slashes || args->slashes->n_lists == out->n_lists);
    uint64_t bits[N_WORDS] = {0};
    int32_t *ids = hdl_selection_ids(out, row.row, row.list);
    int64_t n = 0;
    for (int64_t id = 0; (id = next_id(&row, id)) < INT64_MAX; id += WINDOW) {
        id = id / WORD * WORD;
        mark_window(&row, id, bits);
        n = list_words(bits, N_WORDS, id, ids, n, out->n_ids_max);
        HDL_ASSERT(n <= out->n_ids_max);
    }
    *hdl_selection_count(out, row.row, row.list) = (int32_t)n;
}

static void unite(const hdl_launch *launch, const void *op)
{
    hdl_union_args args = *(const hdl_union_args *)op;
    hdl_parallel_for(launch->n_threads, args.n_rows * args.out->n_lists, unite_list, &args);
}

/* ---- RESOLVE ---- */

enum { SEGMENT_WORDS = HDL_SEGMENT_TOKENS / WORD };

/* Bits of tokens [begin, end) that lie in the segment from `first` on. */
static void mark_tokens(uint64_t *bits, int64_t first, int64_t begin, int64_t end)
{
    begin = HDL_MAX(begin - first, 0);
    end = HDL_MIN(end - first, (int64_t)HDL_SEGMENT_TOKENS);
    if (begin < end) mark_run(bits, begin, end);
}

static void resolve_list(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_resolve_args *args = arg;
    hdl_selection *out = args->out;
    int64_t row = task / out->n_lists, visible = args->n_visible[row], n = 0, block = args->block_size;
    int32_t list = (int32_t)(task % out->n_lists), at = 0;
    int32_t *ids = hdl_selection_ids(out, row, list);
    const int32_t *groups = hdl_selection_ids(args->lists, row, list);
    int32_t n_groups = *hdl_selection_count(args->lists, row, list);
    const hdl_kv_view *kv = &seq_of_row(args->seqs, row)->kv;
    for (int64_t first = 0; first < visible; first += HDL_SEGMENT_TOKENS) {
        int64_t end = first + HDL_SEGMENT_TOKENS;
        uint64_t bits[SEGMENT_WORDS] = {0};
        mark_tokens(bits, first, 0, HDL_MIN((int64_t)args->n_sink, visible));
        mark_tokens(bits, first, visible - args->window, visible);
        const uint8_t *members = NULL; /* of the segment's groups, where it is full */
        if (end <= visible && at < n_groups && groups[at] * block < end)
            members = group_members(kv, args->block_size, first);
        for (; at < n_groups && groups[at] * block < end; at++) {
            int64_t place = groups[at] * block - first;
            if (!members) mark_tokens(bits, first, first + place, HDL_MIN(first + place + block, visible));
            for (int64_t i = place; members && i < place + block; i++)
                bits[members[i] / WORD] |= (uint64_t)1 << members[i] % WORD;
        }
        n = list_words(bits, SEGMENT_WORDS, first, ids, n, out->n_ids_max);
        HDL_ASSERT(n <= out->n_ids_max);
    }
    *hdl_selection_count(out, row, list) = (int32_t)n;
}

static void resolve(const hdl_launch *launch, const void *op)
{
    hdl_resolve_args args = *(const hdl_resolve_args *)op;
    hdl_parallel_for(launch->n_threads, args.n_rows * args.out->n_lists, resolve_list, &args);
}

/* ---- ORDER ---- */

enum { N_BYTES = 4, N_VALUES = 256 };

typedef struct keyed_place {
    uint32_t key; /* ascends as scores fall */
    int32_t place;
} keyed_place;

typedef struct order_call {
    const hdl_order_args *args;
    keyed_place *space; /* [n_threads, 2, n_ids_max] */
} order_call;

/* Sorted by key, stable; in `a` or in `spare`, which is returned. */
static keyed_place *sort_places(keyed_place *a, keyed_place *spare, int64_t n)
{
    uint32_t bins[N_BYTES][N_VALUES] = {{0}};
    for (int64_t i = 0; i < n; i++)
        for (int b = 0; b < N_BYTES; b++) bins[b][a[i].key >> 8 * b & 0xff]++;
    for (int b = 0; b < N_BYTES && n; b++) {
        if (bins[b][a[0].key >> 8 * b & 0xff] == n) continue;
        uint32_t at = 0;
        for (int v = 0; v < N_VALUES; v++) {
            uint32_t count = bins[b][v];
            bins[b][v] = at;
            at += count;
        }
        for (int64_t i = 0; i < n; i++) spare[bins[b][a[i].key >> 8 * b & 0xff]++] = a[i];
        keyed_place *sorted = spare;
        spare = a;
        a = sorted;
    }
    return a;
}

/* Ids ascend, so that the forced places are the first few and the last. */
static void order_list(void *arg, int64_t task, int thread)
{
    const order_call *call = arg;
    const hdl_order_args *args = call->args;
    hdl_selection *sel = args->list;
    int64_t row = task / sel->n_lists, block = sel->block_size, visible = args->n_visible[row];
    int32_t list = (int32_t)(task % sel->n_lists), n = *hdl_selection_count(sel, row, list);
    const int32_t *ids = hdl_selection_ids(sel, row, list);
    const float *score = args->score ? args->score + task * args->score_stride : NULL;
    int32_t *order = sel->order + task * sel->n_ids_max, begin = 0, end = n, at = 0;
    keyed_place *rest = call->space + thread * 2 * sel->n_ids_max;
    while (begin < n && (!score || ids[begin] * block < args->n_sink)) begin++;
    while (end > begin && args->window > 0 && (ids[end - 1] + 1) * block > visible - args->window) end--;
    for (int32_t i = 0; i < begin; i++) order[at++] = i;
    for (int32_t i = end; i < n; i++) order[at++] = i;
    sel->n_first[task] = at;
    for (int32_t i = begin; i < end; i++)
        rest[i - begin] = (keyed_place){(uint32_t)(key_of(score[ids[i]]) ^ INT32_MAX), i};
    rest = sort_places(rest, rest + sel->n_ids_max, end - begin);
    for (int32_t i = 0; i < end - begin; i++) order[at + i] = rest[i].place;
}

static int64_t order_workspace(const void *op, int n_threads)
{
    const hdl_order_args *args = op;
    return 2 * n_threads * args->list->n_ids_max * (int64_t)sizeof(keyed_place);
}

static void order(const hdl_launch *launch, const void *op)
{
    const hdl_order_args *args = op;
    order_call call = {args, launch->workspace};
    hdl_parallel_for(launch->n_threads, args->n_rows * args->list->n_lists, order_list, &call);
}

const hdl_impl HDL_CPU_ROWS(list)[] = {
    {"union" HDL_ISA_SUFFIX, HDL_OP_UNION, (hdl_isa)THIS_ISA, NULL, NULL, unite},
    {"resolve" HDL_ISA_SUFFIX, HDL_OP_RESOLVE, (hdl_isa)THIS_ISA, NULL, NULL, resolve},
    {"order" HDL_ISA_SUFFIX, HDL_OP_ORDER, (hdl_isa)THIS_ISA, NULL, order_workspace, order},
    {NULL, HDL_OP_UNION, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
