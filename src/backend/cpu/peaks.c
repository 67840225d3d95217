/* peaks.c - read bandwidth and arithmetic peaks.
 *
 * read   every thread walks its own contiguous share of the buffer again and again with full-width
 *        loads into 8 sums. 1 load + 1 add per vector: bound by the loads at every size.
 * fma    16 independent chains of f32 multiply-adds in registers, no memory.
 * int8   16 independent chains of vpdpbusd (AVX-512), or vpmaddubsw + vpmaddwd + vpaddd (AVX2).
 * The empty asm statements make every chain's value opaque in each round, so that the compiler can
 * neither fold rounds nor drop them; sums end in a volatile. The loops were read in disassembly:
 * 16 vfmadd231ps / vpdpbusd zmm per round and no spills (gcc 12, clang 14). */
#include "backend/cpu/peaks.h"

#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/pool.h"

/* Arrays stay in registers only when every loop over them is unrolled. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { CHAINS = 16, ROUNDS = 4096, RUNS = 15 };
static const int64_t read_sizes[HDL_N_READ_SIZES] = {32 << 10, 512 << 10, 8 << 20, 192 << 20};
static const double run_seconds = 0.003;
static volatile uint64_t sink; /* sums wrap */

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef uint64_t (*read_fn)(const uint8_t *p, int64_t n);
typedef double (*work_fn)(void); /* operations of one call */

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET_AVX512 __attribute__((target("avx512f,avx512vnni")))
#define TARGET_AVX2   __attribute__((target("avx2,fma")))

TARGET_AVX512 static uint64_t read_avx512(const uint8_t *p, int64_t n)
{
    __m512i sum[8] = {_mm512_setzero_si512()};
    UNROLL
    for (int i = 1; i < 8; i++) sum[i] = sum[0];
    for (int64_t at = 0; at + 512 <= n; at += 512) UNROLL
    for (int i = 0; i < 8; i++) sum[i] = _mm512_add_epi64(sum[i], _mm512_loadu_si512(p + at + 64 * i));
    UNROLL
    for (int i = 1; i < 8; i++) sum[0] = _mm512_add_epi64(sum[0], sum[i]);
    uint64_t word[8]; /* by hand: the header's reduction adds signed numbers, and sums wrap */
    _mm512_storeu_si512(word, sum[0]);
    for (int i = 1; i < 8; i++) word[0] += word[i];
    return word[0];
}

TARGET_AVX2 static uint64_t read_avx2(const uint8_t *p, int64_t n)
{
    __m256i sum[8] = {_mm256_setzero_si256()};
    UNROLL
    for (int i = 1; i < 8; i++) sum[i] = sum[0];
    for (int64_t at = 0; at + 256 <= n; at += 256) UNROLL
    for (int i = 0; i < 8; i++)
        sum[i] = _mm256_add_epi64(sum[i], _mm256_loadu_si256((const __m256i *)(p + at + 32 * i)));
    UNROLL
    for (int i = 1; i < 8; i++) sum[0] = _mm256_add_epi64(sum[0], sum[i]);
    uint64_t word[4];
    _mm256_storeu_si256((__m256i *)word, sum[0]);
    return word[0] + word[1] + word[2] + word[3];
}

TARGET_AVX512 static double fma_avx512(void)
{
    __m512 acc[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
    UNROLL
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_ps((float)i);
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = _mm512_fmadd_ps(acc[i], a, b);
            __asm__ volatile("" : "+v"(acc[i]));
        }
    }
    return 2.0 * 16 * CHAINS * ROUNDS;
}

TARGET_AVX2 static double fma_avx2(void)
{
    __m256 acc[CHAINS - 4], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
    UNROLL
    for (int i = 0; i < CHAINS - 4; i++) acc[i] = _mm256_set1_ps((float)i);
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL
        for (int i = 0; i < CHAINS - 4; i++) {
            acc[i] = _mm256_fmadd_ps(acc[i], a, b);
            __asm__ volatile("" : "+x"(acc[i]));
        }
    }
    return 2.0 * 8 * (CHAINS - 4) * ROUNDS;
}

TARGET_AVX512 static double int8_avx512(void)
{
    __m512i acc[CHAINS], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
    UNROLL
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_epi32(i);
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
            __asm__ volatile("" : "+v"(acc[i]));
        }
    }
    return 2.0 * 64 * CHAINS * ROUNDS;
}

TARGET_AVX2 static double int8_avx2(void)
{
    __m256i acc[CHAINS - 6], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5), one = _mm256_set1_epi16(1);
    UNROLL
    for (int i = 0; i < CHAINS - 6; i++) acc[i] = _mm256_set1_epi32(i);
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL
        for (int i = 0; i < CHAINS - 6; i++) {
            __m256i x = b;
            __asm__ volatile("" : "+x"(x));
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, x), one));
            __asm__ volatile("" : "+x"(acc[i]));
        }
    }
    return 2.0 * 32 * (CHAINS - 6) * ROUNDS;
}
#endif

static uint64_t read_plain(const uint8_t *p, int64_t n)
{
    uint64_t sum[8] = {0}, word;
    for (int64_t at = 0; at + 64 <= n; at += 64)
        for (int i = 0; i < 8; i++) memcpy(&word, p + at + 8 * i, 8), sum[i] += word;
    for (int i = 1; i < 8; i++) sum[0] += sum[i];
    return sum[0];
}

/* Plain C vectors of 4: what the generic kernels are made of (no fma: a multiply and an add). */
static double fma_plain(void)
{
    typedef float vf __attribute__((vector_size(16)));
    vf acc[8], a = {0.999f, 0.999f, 0.999f, 0.999f}, b = {0.001f, 0.001f, 0.001f, 0.001f};
    UNROLL
    for (int i = 0; i < 8; i++) acc[i] = a * (float)i;
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            acc[i] = acc[i] * a + b;
            __asm__ volatile("" : "+x"(acc[i]));
        }
    }
    return 2.0 * 4 * 8 * ROUNDS;
}

typedef struct peak_job {
    read_fn read;
    work_fn work;
    const uint8_t *data;
    int64_t bytes_per_task;
    double amount[HDL_MAX_THREADS]; /* bytes or operations done, by task */
} peak_job;

/* Repeats for run_seconds, so that tasks run beside each other and not one after the other. */
static void peak_task(void *arg, int64_t task, int thread)
{
    peak_job *job = arg;
    double begin = seconds_now(), amount = 0;
    (void)thread;
    do {
        if (job->work) {
            amount += job->work();
        } else {
            sink = sink + job->read(job->data + task * job->bytes_per_task, job->bytes_per_task);
            amount += (double)job->bytes_per_task;
        }
    } while (seconds_now() - begin < run_seconds);
    job->amount[task] = amount;
}

/* 1e9 bytes or operations per second: the best run. */
static double best_rate(peak_job *job, int n_threads)
{
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        double begin = seconds_now(), amount = 0;
        hdl_parallel_for(n_threads, n_threads, peak_task, job);
        double elapsed = seconds_now() - begin;
        for (int t = 0; t < n_threads; t++) amount += job->amount[t];
        best = HDL_MAX(best, 1e-9 * amount / elapsed);
    }
    return best;
}

heddle_status hdl_measure_peaks(hdl_peaks *peaks, int n_threads)
{
    const int64_t largest = read_sizes[HDL_N_READ_SIZES - 1];
    peak_job job = {.read = read_plain};
    work_fn fma = fma_plain, int8 = NULL;
    memset(peaks, 0, sizeof *peaks);
    peaks->isa = hdl_cpu_isa();
    peaks->n_threads = n_threads > 0 ? HDL_MIN(n_threads, (int)HDL_MAX_THREADS) : hdl_default_threads();
#if defined(__x86_64__)
    if (peaks->isa >= HDL_ISA_AVX512) job.read = read_avx512, fma = fma_avx512, int8 = int8_avx512;
    if (peaks->isa == HDL_ISA_AVX2) job.read = read_avx2, fma = fma_avx2, int8 = int8_avx2;
#endif
    uint8_t *data = hdl_calloc(largest, 1);
    if (!data) return HEDDLE_E_NOMEM;
    memset(data, 1, (size_t)largest); /* a page of its own behind every address */
    job.data = data;
    for (int i = 0; i < HDL_N_READ_SIZES; i++) {
        hdl_read_peak *peak = &peaks->read[i];
        peak->bytes = read_sizes[i];
        job.bytes_per_task = peak->bytes;
        peak->gbs_one = best_rate(&job, 1);
        job.bytes_per_task = peak->bytes / peaks->n_threads / 512 * 512;
        peak->gbs_all = best_rate(&job, peaks->n_threads);
    }
    hdl_free(data);
    job.work = fma;
    peaks->fma_gflops_one = best_rate(&job, 1);
    peaks->fma_gflops_all = best_rate(&job, peaks->n_threads);
    job.work = int8;
    if (int8) peaks->int8_gops_one = best_rate(&job, 1);
    if (int8) peaks->int8_gops_all = best_rate(&job, peaks->n_threads);
    return HEDDLE_OK;
}
