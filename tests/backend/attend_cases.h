/* attend_cases.h - attention's cases, one table for tests and bench, and what builds their arguments.
 *
 * A case names a batch of up to four sequences. Everything that must not be read is poisoned: tokens
 * past kv_len and, with lists or windows, tokens that no row may see are NaN; pages without a visible
 * token are NULL. Outputs start as NaN where the op must write and as a mark where it must not. */
#ifndef HDL_TEST_ATTEND_CASES_H
#define HDL_TEST_ATTEND_CASES_H

#include <stdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/attend_int.h"
#include "backend/cpu/cpu.h"

enum { CASE_SEQS = 4 };

typedef enum list_kind { LIST_NONE = 0, LIST_RANDOM, LIST_ALL, LIST_EMPTY, LIST_RUNS } list_kind;

typedef struct attend_case {
    const char *name;
    int32_t n_heads, n_kv_heads, head_dim, v_head_dim;
    hdl_dtype dtype;
    int32_t page_shift;
    bool is_head_major;
    int64_t q_len[CASE_SEQS], kv_len[CASE_SEQS]; /* 0 ends the batch */
    int32_t window;
    float soft_cap;
    bool has_sink, has_mask, has_positions, has_bias;
    list_kind lists;
    int32_t n_lists, block_size; /* block_size 0 or 1: tokens */
    int64_t n_ids;               /* of a random list */
    int32_t n_mass_lists;        /* 0 = no mass */
    hdl_reduce mass_reduce;
    bool is_invariant;
    int64_t first_token[CASE_SEQS];
    int32_t rows_per_list; /* 0 or 1: a list each */
} attend_case;

static const attend_case attend_cases[] = {
    {"one token", 9, 3, 64, 64, HDL_F16, 4, .q_len = {1}, .kv_len = {1}},
    {"decode 300", 9, 3, 64, 64, HDL_F16, 4, .q_len = {1}, .kv_len = {300}},
    {"decode 5000 one page", 9, 3, 64, 64, HDL_F16, 20, .q_len = {1}, .kv_len = {5000}},
    {"decode bf16 mass", 9, 3, 64, 64, HDL_BF16, 8, .q_len = {1}, .kv_len = {3001}, .n_mass_lists = 1},
    {"decode largest mass", 9, 3, 64, 64, HDL_F16, 8, .q_len = {1}, .kv_len = {1003}, .n_mass_lists = 1,
     .mass_reduce = HDL_REDUCE_MAX},
    {"rows, sums of mass", 9, 3, 64, 64, HDL_F16, 8, .q_len = {37}, .kv_len = {533}, .n_mass_lists = 3,
     .mass_reduce = HDL_REDUCE_SUM},
    {"rows, largest mass", 9, 3, 64, 64, HDL_F16, 8, .q_len = {37}, .kv_len = {533}, .n_mass_lists = 1,
     .mass_reduce = HDL_REDUCE_MAX},
    {"decode i8 mass per kv head", 9, 3, 64, 64, HDL_I8, 6, .q_len = {1}, .kv_len = {777}, .n_mass_lists = 3},
    {"decode f32 head-major", 8, 8, 32, 48, HDL_F32, 5, true, .q_len = {1}, .kv_len = {513}},
    {"decode batch", 4, 1, 256, 256, HDL_F16, 8, .q_len = {1, 1, 1, 1}, .kv_len = {1, 256, 257, 2000}},
    {"decode window", 4, 1, 256, 256, HDL_BF16, 6, .q_len = {1, 1}, .kv_len = {100, 3000}, .window = 512},
    {"decode window mass", 4, 2, 64, 64, HDL_F16, 6, .q_len = {1}, .kv_len = {3000}, .window = 600,
     .n_mass_lists = 1},
    {"decode cap and sink", 14, 2, 64, 64, HDL_F16, 8, .q_len = {1}, .kv_len = {900}, .soft_cap = 20,
     .has_sink = true},
    {"decode positions", 6, 2, 80, 96, HDL_F16, 8, .q_len = {1}, .kv_len = {900}, .window = 300,
     .has_positions = true},
    {"prefill 64", 9, 3, 64, 64, HDL_F16, 8, .q_len = {64}, .kv_len = {64}},
    {"prefill 7 at 1000", 9, 3, 64, 64, HDL_F16, 4, .q_len = {7}, .kv_len = {1000}},
    {"prefill 200 at 700 mass", 9, 3, 64, 64, HDL_BF16, 30, .q_len = {200}, .kv_len = {700},
     .n_mass_lists = 1},
    {"prefill i8 head-major mass", 8, 2, 128, 64, HDL_I8, 6, true, .q_len = {33}, .kv_len = {290},
     .n_mass_lists = 2},
    {"prefill window", 4, 1, 256, 256, HDL_F16, 4, .q_len = {100}, .kv_len = {1500}, .window = 512},
    {"prefill window small", 4, 4, 16, 16, HDL_F32, 4, .q_len = {300}, .kv_len = {700}, .window = 5},
    {"prefill window mass", 4, 2, 48, 80, HDL_F16, 5, .q_len = {70}, .kv_len = {700}, .window = 129,
     .n_mass_lists = 1},
    {"prefill cap sink positions", 6, 1, 64, 112, HDL_BF16, 8, .q_len = {65}, .kv_len = {600}, .window = 200,
     .soft_cap = 30, .has_sink = true, .has_positions = true},
    {"mixed batch", 9, 3, 64, 64, HDL_F16, 8, .q_len = {1, 40, 1, 3}, .kv_len = {500, 40, 1, 600}},
    {"tree mask", 9, 3, 64, 64, HDL_F16, 8, .q_len = {17, 1}, .kv_len = {400, 9}, .has_mask = true},
    {"tree mask mass", 4, 2, 32, 32, HDL_F32, 8, .q_len = {17}, .kv_len = {40}, .has_mask = true,
     .n_mass_lists = 1},
    {"list decode", 9, 3, 64, 64, HDL_F16, 8, .q_len = {1}, .kv_len = {4000}, .lists = LIST_RANDOM,
     .n_ids = 700},
    {"list decode per kv head", 9, 3, 64, 64, HDL_I8, 8, .q_len = {1, 1}, .kv_len = {2000, 3},
     .lists = LIST_RANDOM, .n_lists = 3, .n_ids = 300},
    {"list rows", 9, 3, 64, 64, HDL_F16, 4, .q_len = {50, 3}, .kv_len = {900, 3}, .lists = LIST_RANDOM,
     .n_ids = 290},
    {"list all", 9, 3, 64, 64, HDL_F16, 8, .q_len = {40}, .kv_len = {900}, .lists = LIST_ALL},
    {"list all window", 4, 1, 128, 128, HDL_BF16, 8, .q_len = {20}, .kv_len = {900}, .window = 300,
     .lists = LIST_ALL},
    {"list runs bias", 8, 4, 64, 64, HDL_F16, 8, .q_len = {9}, .kv_len = {1200}, .lists = LIST_RUNS,
     .n_lists = 2, .has_bias = true, .n_ids = 500},
    {"list empty", 9, 3, 64, 64, HDL_F16, 8, .q_len = {2}, .kv_len = {900}, .lists = LIST_EMPTY},
    {"list empty sink", 4, 2, 64, 64, HDL_F16, 8, .q_len = {1}, .kv_len = {90}, .lists = LIST_EMPTY,
     .has_sink = true},
    {"list masked", 4, 2, 64, 64, HDL_F16, 8, .q_len = {12}, .kv_len = {90}, .lists = LIST_RANDOM,
     .n_ids = 60, .has_mask = true},
    {"list mass", 4, 2, 64, 64, HDL_F16, 8, .q_len = {2}, .kv_len = {90}, .lists = LIST_RANDOM, .n_ids = 60,
     .n_mass_lists = 1},
    {"blocks", 9, 3, 64, 64, HDL_F16, 6, .q_len = {5}, .kv_len = {1000}, .lists = LIST_RANDOM, .n_ids = 20,
     .block_size = 16},
    {"blocks bias window", 8, 2, 64, 64, HDL_F32, 6, .q_len = {5}, .kv_len = {1003}, .lists = LIST_RANDOM,
     .n_ids = 30, .block_size = 16, .has_bias = true, .window = 500, .soft_cap = 15},
    {"blocks of 16 decode", 9, 3, 64, 64, HDL_F16, 8, .q_len = {1, 1}, .kv_len = {4001, 5},
     .lists = LIST_RANDOM, .n_ids = 40, .block_size = 16},
    {"blocks of 64 per kv head i8", 9, 3, 64, 64, HDL_I8, 8, .q_len = {1, 1}, .kv_len = {4001, 129},
     .lists = LIST_RANDOM, .n_lists = 3, .n_ids = 12, .block_size = 64},
    {"blocks of 256 window", 4, 1, 256, 256, HDL_BF16, 8, .q_len = {1, 1}, .kv_len = {3000, 256},
     .lists = LIST_RANDOM, .n_ids = 8, .block_size = 256, .window = 700},
    {"blocks of 128 per kv head bias", 8, 4, 64, 48, HDL_F32, 8, .q_len = {1}, .kv_len = {2047},
     .lists = LIST_RANDOM, .n_lists = 4, .n_ids = 9, .block_size = 128, .has_bias = true},
    {"blocks larger than pages", 9, 3, 64, 64, HDL_F16, 4, .q_len = {1, 7}, .kv_len = {900, 333},
     .lists = LIST_RANDOM, .n_ids = 7, .block_size = 64},
    {"blocks all", 9, 3, 64, 64, HDL_F16, 6, .q_len = {1, 40}, .kv_len = {1000, 300}, .lists = LIST_ALL,
     .block_size = 32},
    {"tiles share blocks", 9, 3, 64, 64, HDL_F16, 8, .q_len = {200, 1, 70}, .kv_len = {1000, 777, 70},
     .lists = LIST_RANDOM, .n_ids = 9, .block_size = 64, .rows_per_list = 64},
    {"tiles share blocks per kv head", 8, 4, 64, 48, HDL_I8, 6, .q_len = {90, 40}, .kv_len = {701, 333},
     .lists = LIST_RANDOM, .n_lists = 4, .n_ids = 20, .block_size = 16, .rows_per_list = 32},
    {"wide tiles share tokens", 4, 1, 256, 256, HDL_BF16, 8, .q_len = {100}, .kv_len = {600},
     .lists = LIST_RANDOM, .n_ids = 300, .rows_per_list = 16, .soft_cap = 20, .has_sink = true},
    {"tiles share blocks and a window", 6, 2, 64, 64, HDL_F32, 8, .q_len = {130}, .kv_len = {900},
     .lists = LIST_RANDOM, .n_ids = 12, .block_size = 32, .rows_per_list = 64, .window = 300,
     .has_bias = true},
    {"tiles share all", 9, 3, 64, 64, HDL_F16, 8, .q_len = {150}, .kv_len = {333}, .lists = LIST_ALL,
     .block_size = 16, .rows_per_list = 64},
    {"tiles share under a mask", 4, 2, 64, 64, HDL_F16, 8, .q_len = {30}, .kv_len = {333},
     .lists = LIST_RANDOM, .n_ids = 12, .block_size = 16, .rows_per_list = 8, .has_mask = true},
    {"decode documents", 6, 2, 64, 64, HDL_F16, 6, .q_len = {1, 1}, .kv_len = {900, 900}, .window = 300,
     .first_token = {899, 700}},
    {"prefill documents", 6, 2, 64, 64, HDL_F16, 6, .q_len = {90, 1, 40}, .kv_len = {900, 901, 941},
     .window = 64, .first_token = {650, 900, 901}},
    {"prefill document i8 mass", 4, 2, 48, 80, HDL_I8, 5, .q_len = {33}, .kv_len = {700}, .window = 129,
     .n_mass_lists = 1, .first_token = {660}},
    {"list documents", 9, 3, 64, 64, HDL_F16, 4, .q_len = {50, 3}, .kv_len = {900, 600}, .lists = LIST_RANDOM,
     .n_ids = 290, .first_token = {500, 590}},
    {"decode q4_1", 9, 3, 64, 64, HDL_Q4_1, 8, .q_len = {1, 1}, .kv_len = {1, 5000}},
    {"decode q4_1 mass, wide heads", 4, 1, 256, 256, HDL_Q4_1, 6, .q_len = {1}, .kv_len = {777},
     .window = 512, .n_mass_lists = 1},
    {"decode q4_1 head-major, V of one block", 10, 2, 96, 32, HDL_Q4_1, 5, true, .q_len = {1, 1},
     .kv_len = {513, 300}, .soft_cap = 20, .has_sink = true},
    {"prefill q4_1 mass", 9, 3, 64, 64, HDL_Q4_1, 8, .q_len = {37}, .kv_len = {533}, .n_mass_lists = 3},
    {"prefill q4_1 window", 4, 1, 256, 256, HDL_Q4_1, 4, .q_len = {100}, .kv_len = {1500}, .window = 512},
    {"prefill q4_1 odd blocks", 6, 2, 96, 160, HDL_Q4_1, 6, true, .q_len = {33, 2}, .kv_len = {290, 40}},
    {"list decode q4_1", 9, 3, 64, 64, HDL_Q4_1, 8, .q_len = {1, 1}, .kv_len = {4000, 3},
     .lists = LIST_RANDOM, .n_lists = 3, .n_ids = 300},
    {"list rows q4_1", 9, 3, 64, 64, HDL_Q4_1, 4, .q_len = {50, 3}, .kv_len = {900, 3}, .lists = LIST_RANDOM,
     .n_ids = 290},
    {"blocks q4_1", 9, 3, 64, 64, HDL_Q4_1, 8, .q_len = {1, 1}, .kv_len = {4001, 129}, .lists = LIST_RANDOM,
     .n_ids = 40, .block_size = 16},
    {"tiles share blocks q4_1", 8, 4, 64, 96, HDL_Q4_1, 6, .q_len = {90, 40}, .kv_len = {701, 333},
     .lists = LIST_RANDOM, .n_lists = 4, .n_ids = 20, .block_size = 16, .rows_per_list = 32},
    {"odd heads", 3, 3, 20, 12, HDL_F16, 6, .q_len = {5}, .kv_len = {77}, .n_mass_lists = 1},
};

typedef struct attend_setup {
    hdl_attend_args args;
    hdl_attend_seq seqs[CASE_SEQS];
    hdl_selection selection;
    uint8_t **pages[CASE_SEQS];
    int32_t *positions[CASE_SEQS];
    uint8_t *masks[CASE_SEQS];
    float *sink, *bias;
    uint64_t random;
} attend_setup;

static inline uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static inline float next_unit(uint64_t *state) /* -1 .. 1, a sum of three */
{
    float x = 0;
    for (int i = 0; i < 3; i++) x += (float)next_random(state) / 1073741824.0f - 1;
    return x * 0.6f;
}

static inline void *must_alloc(int64_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, (size_t)HDL_MAX(bytes, 1))) abort();
    return p;
}

static inline void fill_random(float *x, int64_t n, uint64_t *state)
{
    for (int64_t i = 0; i < n; i++) x[i] = next_unit(state);
}

/* Offsets of a page for the two layouts; scales of I8 at its end. Returns the page's bytes. */
static inline int64_t lay_out_page(hdl_kv_view *kv, const attend_case *c)
{
    int64_t slots = (int64_t)1 << c->page_shift, n = c->n_kv_heads, total;
    int64_t k_bytes = hdl_row_bytes(c->dtype, c->head_dim), v_bytes = hdl_row_bytes(c->dtype, c->v_head_dim);
    kv->page_shift = c->page_shift;
    kv->dtype = c->dtype;
    if (c->is_head_major) {
        kv->token_stride = k_bytes;
        kv->head_stride = slots * k_bytes;
        kv->v_offset = n * slots * k_bytes;
        kv->v_head_stride = slots * k_bytes; /* V rows at K's stride: needs v_bytes <= stride, see below */
        if (v_bytes > k_bytes) kv->token_stride = v_bytes;
        kv->head_stride = kv->v_head_stride = slots * kv->token_stride;
        kv->v_offset = n * kv->head_stride;
        total = 2 * n * kv->head_stride;
    } else {
        kv->token_stride = n * (k_bytes + v_bytes);
        kv->head_stride = k_bytes;
        kv->v_head_stride = v_bytes;
        kv->v_offset = n * k_bytes;
        total = slots * kv->token_stride;
    }
    kv->k_scale_offset = total;
    kv->v_scale_offset = total + slots * n * 4;
    return total + (c->dtype == HDL_I8 ? 2 * slots * n * 4 : 0);
}

static inline void build_lists(attend_setup *setup, const attend_case *c)
{
    hdl_selection *sel = &setup->selection;
    hdl_attend_args *args = &setup->args;
    sel->unit = c->block_size > 1 ? HDL_UNIT_BLOCK : HDL_UNIT_TOKEN;
    sel->block_size = HDL_MAX(c->block_size, 1);
    sel->n_rows = args->n_rows;
    sel->n_lists = HDL_MAX(c->n_lists, 1);
    sel->rows_per_list = args->rows_per_list = c->rows_per_list;
    sel->n_ids_max = args->max_kv_len;
    int64_t n = args->n_rows * sel->n_lists * sel->n_ids_max;
    sel->ids = must_alloc(n * 4);
    sel->counts = must_alloc(args->n_rows * sel->n_lists * 4);
    memset(sel->ids, 0x7f, (size_t)n * 4);
    for (int32_t s = 0; s < args->n_seqs; s++)
        for (int64_t i = 0; i < args->seqs[s].q_len * sel->n_lists; i++) {
            const hdl_attend_seq *seq = &args->seqs[s];
            int64_t row = seq->first_row + i / sel->n_lists,
                    n_visible = seq->kv_len - seq->q_len + i / sel->n_lists + 1;
            if (c->rows_per_list >
                1) { /* of the last that shares it; rows that own none have a wrong count */
                *hdl_selection_count(sel, row, (int32_t)(i % sel->n_lists)) = INT32_MAX;
                if (list_row(sel, seq, i / sel->n_lists) != row) continue;
                n_visible = HDL_MIN(HDL_ALIGN_UP(n_visible, c->rows_per_list), seq->kv_len);
            }
            int64_t n_units = (n_visible + sel->block_size - 1) / sel->block_size;
            int32_t *ids = hdl_selection_ids(sel, row, (int32_t)(i % sel->n_lists)), count = 0;
            for (int64_t t = 0; t < n_units && c->lists != LIST_EMPTY; t++) {
                bool is_in = c->lists == LIST_ALL ||
                             (int64_t)(next_random(&setup->random) % n_units) < c->n_ids;
                if (c->lists == LIST_RUNS) is_in = t < 4 || t + 100 > n_units || (t / 37) % 3 == 1;
                if (is_in) ids[count++] = (int32_t)t;
            }
            *hdl_selection_count(sel, row, (int32_t)(i % sel->n_lists)) = count;
        }
    if (c->has_bias) {
        setup->bias = must_alloc(n * 4);
        fill_random(setup->bias, n, &setup->random);
        sel->bias = setup->bias;
    }
    args->selection = sel;
    args->has_selection = true;
}

/* Whether any row of the sequence may read the token. */
static inline bool is_token_seen(const attend_setup *setup, const hdl_attend_seq *seq, int64_t token)
{
    const hdl_attend_args *args = &setup->args;
    const hdl_selection *sel = args->selection;
    for (int64_t i = 0; i < seq->q_len; i++) {
        int64_t at = seq->kv_len - seq->q_len + i;
        const int32_t *pos = seq->kv.positions;
        int64_t distance = pos ? pos[at] - pos[token] : at - token;
        if (token > at || (args->window && distance >= args->window) || token < seq->first_token) continue;
        if (!sel) return true;
        for (int32_t list = 0; list < sel->n_lists; list++) {
            const int32_t *ids = hdl_selection_ids(sel, list_row(sel, seq, i), list);
            for (int32_t j = 0; j < *hdl_selection_count(sel, list_row(sel, seq, i), list); j++)
                if (ids[j] == token / sel->block_size) return true;
        }
    }
    return false;
}

/* Pages of one sequence: unseen tokens NaN, wholly unseen pages absent. */
static inline void build_cache(attend_setup *setup, const attend_case *c, int32_t s)
{
    hdl_attend_seq *seq = &setup->seqs[s];
    hdl_kv_view *kv = &seq->kv;
    int64_t page_bytes = lay_out_page(kv, c), slots = (int64_t)1 << c->page_shift;
    int64_t n_pages = (seq->kv_len + slots - 1) / slots;
    if (c->page_shift > 12) page_bytes = lay_out_page(kv, c); /* large pages are used in part */
    setup->pages[s] = must_alloc(n_pages * (int64_t)sizeof(uint8_t *));
    kv->pages = (uint8_t *const *)setup->pages[s];
    int64_t k_n = (int64_t)c->n_kv_heads * c->head_dim, v_n = (int64_t)c->n_kv_heads * c->v_head_dim;
    float *k = must_alloc(k_n * 4), *v = must_alloc(v_n * 4);
    const hdl_impl *append = hdl_cpu_ref_attend;
    while (append->op != HDL_OP_APPEND) append++;
    for (int64_t p = 0; p < n_pages; p++) {
        int64_t end = HDL_MIN((p + 1) * slots, seq->kv_len), bytes = page_bytes;
        if (c->page_shift > 12 && !c->is_head_major && c->dtype != HDL_I8)
            bytes = (end - p * slots) * kv->token_stride;
        bool is_seen = false;
        setup->pages[s][p] = must_alloc(bytes);
        memset(setup->pages[s][p], 0xff, (size_t)bytes);
        for (int64_t t = p * slots; t < end; t++) {
            fill_random(k, k_n, &setup->random);
            fill_random(v, v_n, &setup->random);
            if (!is_token_seen(setup, seq, t)) continue;
            is_seen = true;
            hdl_append_args one = {1, t, c->n_kv_heads, c->head_dim, c->v_head_dim, k, v, k_n, v_n, *kv};
            append->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &one);
        }
        if (is_seen) continue;
        free(setup->pages[s][p]);
        setup->pages[s][p] = NULL;
    }
    free(k);
    free(v);
}

static inline void build_seq(attend_setup *setup, const attend_case *c, int32_t s)
{
    hdl_attend_seq *seq = &setup->seqs[s];
    seq->first_row = setup->args.n_rows;
    seq->q_len = c->q_len[s];
    seq->kv_len = c->kv_len[s];
    seq->first_token = c->first_token[s];
    setup->args.n_rows += seq->q_len;
    setup->args.max_q_len = HDL_MAX(setup->args.max_q_len, seq->q_len);
    setup->args.max_kv_len = HDL_MAX(setup->args.max_kv_len, seq->kv_len);
    if (c->has_positions) {
        setup->positions[s] = must_alloc(seq->kv_len * 4);
        for (int64_t t = 0, at = 3; t < seq->kv_len; t++, at += 1 + next_random(&setup->random) % 3)
            setup->positions[s][t] = (int32_t)at;
        seq->kv.positions = setup->positions[s];
    }
    if (c->has_mask) { /* a tree: each row sees itself, and its parent's row */
        setup->masks[s] = must_alloc(seq->q_len * seq->q_len);
        memset(setup->masks[s], 0, (size_t)(seq->q_len * seq->q_len));
        for (int64_t i = 0; i < seq->q_len; i++) {
            uint8_t *mask = setup->masks[s] + i * seq->q_len;
            if (i)
                memcpy(mask, setup->masks[s] + (int64_t)(next_random(&setup->random) % i) * seq->q_len,
                       (size_t)i);
            mask[i] = 1;
        }
        seq->mask = setup->masks[s];
    }
}

/* Arguments of a case; outputs are the caller's. */
static inline void build_case(attend_setup *setup, const attend_case *c, uint64_t seed)
{
    *setup = (attend_setup){.random = seed};
    hdl_attend_args *args = &setup->args;
    args->seqs = setup->seqs;
    args->n_heads = c->n_heads;
    args->n_kv_heads = c->n_kv_heads;
    args->head_dim = c->head_dim;
    args->v_head_dim = c->v_head_dim;
    args->kv_dtype = c->dtype;
    args->scale = 1.0f / 4;
    args->soft_cap = c->soft_cap;
    args->window = c->window;
    args->n_mass_lists = c->n_mass_lists;
    args->mass_reduce = c->mass_reduce;
    args->has_mass = c->n_mass_lists > 0;
    args->is_invariant = c->is_invariant;
    for (int32_t s = 0; s < CASE_SEQS && c->kv_len[s]; s++, args->n_seqs++) build_seq(setup, c, s);
    if (c->lists) build_lists(setup, c);
    for (int32_t s = 0; s < args->n_seqs; s++) build_cache(setup, c, s);
    args->q_stride = (int64_t)c->n_heads * c->head_dim + 5;
    args->o_stride = (int64_t)c->n_heads * c->v_head_dim + 3;
    args->mass_stride = args->max_kv_len + 7;
    float *q = must_alloc(args->n_rows * args->q_stride * 4);
    fill_random(q, args->n_rows * args->q_stride, &setup->random);
    for (int64_t i = 0; i < args->n_rows; i += 3) /* some rows are peaked */
        for (int64_t j = 0; j < args->q_stride; j++) q[i * args->q_stride + j] *= 6;
    args->q = q;
    if (c->has_sink) {
        setup->sink = must_alloc(c->n_heads * 4);
        fill_random(setup->sink, c->n_heads, &setup->random);
        args->sink = setup->sink;
    }
}

static inline void free_case(attend_setup *setup)
{
    for (int32_t s = 0; s < setup->args.n_seqs; s++) {
        const hdl_attend_seq *seq = &setup->seqs[s];
        int64_t slots = (int64_t)1 << seq->kv.page_shift;
        for (int64_t p = 0; p < (seq->kv_len + slots - 1) / slots; p++) free(setup->pages[s][p]);
        free(setup->pages[s]);
        free(setup->positions[s]);
        free(setup->masks[s]);
    }
    free((void *)(uintptr_t)setup->args.q);
    free(setup->sink);
    free(setup->bias);
    free(setup->selection.ids);
    free(setup->selection.counts);
}

#endif
