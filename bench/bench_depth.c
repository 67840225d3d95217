/* bench_depth.c - decode speed of a model at depths whose rows are made up, so that no time goes into
 * reading: what a step costs does not depend on what the rows hold.
 *
 *   build/bench/bench_depth MODEL PLAN[,PLAN...] KV_TYPE DEPTH...     one line a plan and depth, comma-separated
 *
 * Rows are small random f16 numbers (or int8 bytes), every page its own memory. The list that a plan
 * makes is of the right length. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/engine_int.h"

enum { N_WARM = 8, N_TIMED = 40 };

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* n tokens that nobody read: pages taken, filled, committed. */
static heddle_status make_up(heddle_session *session, int64_t n)
{
    uint64_t random = 1;
    for (int64_t done = 0; done < n;) {
        int64_t step = HDL_MIN(n - done, 256);
        HDL_TRY(hdl_kv_seq_reserve(session->kv, step));
        for (int32_t g = 0; g < hdl_kv_store_n_groups(session->store); g++) {
            const hdl_kv_layout *layout = hdl_kv_store_layout(session->store, g);
            uint8_t *page = hdl_kv_seq_view(session->kv, g, 0).pages[done >> 8];
            for (int64_t i = 0; i + 2 <= layout->page_bytes; i += 2) {
                random = random * 6364136223846793005u + 1442695040888963407u;
                uint16_t value = (uint16_t)(0x2000 + (random >> 52)); /* f16 of about 0.01, int8 of 32 */
                memcpy(page + i, &value, 2);
            }
        }
        for (int64_t t = done; t < done + step; t++) session->ids[t] = 5;
        hdl_kv_seq_commit(session->kv, step);
        done += step;
    }
    return HEDDLE_OK;
}

static heddle_status run_depth(heddle_engine *engine, const char *spec, const heddle_plan *plan,
                               const char *kv_type, int64_t depth)
{
    heddle_session *session = NULL;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = depth + N_WARM + N_TIMED + 1;
    options.kv_type = kv_type;
    double took[N_TIMED];
    heddle_status status = heddle_session_new(&session, engine, plan, &options);
    if (!status) status = make_up(session, depth);
    for (int i = 0; i < N_WARM + N_TIMED && !status; i++) {
        int32_t id = 7 + i % 50;
        double start = now_s();
        status = heddle_session_decode(session, &id, 1);
        if (i >= N_WARM) took[i - N_WARM] = now_s() - start;
    }
    if (!status) {
        heddle_stats stats = {.struct_size = sizeof stats};
        heddle_session_stats(session, &stats);
        qsort(took, N_TIMED, sizeof *took, compare);
        printf("%" PRId64 ",%s,%s,%.3f,%.3f,%.3f,%.0f,%.4f,%" PRId64 "\n", depth, spec, kv_type,
               1e3 * took[N_TIMED / 2], 1e3 * took[N_TIMED / 10], 1e3 * took[N_TIMED * 9 / 10],
               stats.decode_kv_bytes_read / (N_WARM + N_TIMED),
               stats.decode_kv_bytes_read / stats.decode_kv_bytes_dense, stats.kv_bytes);
        fflush(stdout);
    }
    heddle_session_free(session);
    return status;
}

int main(int argc, char **argv)
{
    heddle_engine *engine = NULL;
    char *rest = NULL;
    int n_failed = 0;
    if (argc < 5) {
        fprintf(stderr, "bench_depth MODEL PLAN[,PLAN...] KV_TYPE DEPTH...\n");
        return 2;
    }
    if (heddle_engine_open(&engine, argv[1], NULL)) {
        fprintf(stderr, "bench_depth: %s\n", heddle_last_error());
        return 1;
    }
    printf("depth,plan,kv,step_ms,p10_ms,p90_ms,kv_bytes_read,share_of_dense,kv_bytes\n");
    for (char *spec = strtok_r(argv[2], ",", &rest); spec; spec = strtok_r(NULL, ",", &rest)) {
        heddle_plan *plan = NULL;
        heddle_status status = heddle_plan_named(&plan, spec);
        for (int i = 4; i < argc && !status; i++)
            status = run_depth(engine, spec, plan, argv[3], atoll(argv[i]));
        if (status) fprintf(stderr, "bench_depth: %s: %s\n", spec, heddle_last_error());
        n_failed += status != HEDDLE_OK;
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
    return n_failed > 0;
}
