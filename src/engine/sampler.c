#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/mem.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct hdl_sampler {
    hdl_sampler_options options; /* bias points to our copy */
    int32_t n_vocab;
    hdl_logit_bias *bias; /* [n_bias] */
    float *scores;        /* [n_vocab] logits after mask, bias and penalty */
    candidate *heap;      /* [n_vocab] what may still be chosen; sorted ones grow from its end */
    uint64_t *seen;       /* [(n_vocab + 63) / 64] all zero between calls */
    int32_t *recent;      /* [repeat_window] ring of accepted ids */
    int64_t n_accepted;
    uint64_t random[4];
};

/* --- random numbers -------------------------------------------------------------------------- */

static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint64_t rotate(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* xoshiro256**: uniform in [0, 1), 53 bits. */
static double draw(uint64_t s[4])
{
    uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

/* --- life ------------------------------------------------------------------------------------ */

hdl_sampler_options hdl_sampler_options_default(void)
{
    return (hdl_sampler_options){.top_p = 1, .repeat_penalty = 1};
}

static heddle_status check(const hdl_sampler_options *o, int32_t n_vocab)
{
    if (!(o->temperature >= 0 && o->temperature <= FLT_MAX))
        return HDL_FAIL(HEDDLE_E_INVALID, "temperature %g: must be 0 or more", (double)o->temperature);
    if (o->sample_top_k < 0)
        return HDL_FAIL(HEDDLE_E_INVALID, "sample_top_k %d: must be 0 or more", o->sample_top_k);
    if (!(o->top_p > 0 && o->top_p <= 1))
        return HDL_FAIL(HEDDLE_E_INVALID, "top_p %g: must be above 0 and at most 1", (double)o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return HDL_FAIL(HEDDLE_E_INVALID, "min_p %g: must be in 0..1", (double)o->min_p);
    if (!(o->repeat_penalty > 0 && o->repeat_penalty <= FLT_MAX))
        return HDL_FAIL(HEDDLE_E_INVALID, "repeat_penalty %g: must be above 0", (double)o->repeat_penalty);
    if (o->repeat_window < 0 || o->repeat_window > HDL_MAX_REPEAT_WINDOW)
        return HDL_FAIL(HEDDLE_E_INVALID, "repeat_window %d: must be in 0..%d", o->repeat_window,
                        HDL_MAX_REPEAT_WINDOW);
    if (o->n_bias < 0 || o->n_bias > HDL_MAX_LOGIT_BIAS)
        return HDL_FAIL(HEDDLE_E_INVALID, "logit bias: %d entries: must be in 0..%d", o->n_bias,
                        HDL_MAX_LOGIT_BIAS);
    if (n_vocab < 1) return HDL_FAIL(HEDDLE_E_INVALID, "n_vocab %d: must be 1 or more", n_vocab);
    for (int32_t i = 0; i < o->n_bias; i++) {
        if (o->bias[i].id < 0 || o->bias[i].id >= n_vocab)
            return HDL_FAIL(HEDDLE_E_INVALID, "logit bias: id %d: must be in 0..%d", o->bias[i].id,
                            n_vocab - 1);
        if (isnan(o->bias[i].bias))
            return HDL_FAIL(HEDDLE_E_INVALID, "logit bias of id %d: is not a number", o->bias[i].id);
    }
    return HEDDLE_OK;
}

heddle_status hdl_sampler_new(hdl_sampler **out, const hdl_sampler_options *options, int32_t n_vocab)
{
    *out = NULL;
    HDL_TRY(check(options, n_vocab));
    hdl_sampler *s = hdl_calloc(1, sizeof *s);
    if (!s) return HEDDLE_E_NOMEM;
    heddle_status status = HEDDLE_E_NOMEM;
    s->options = *options;
    s->n_vocab = n_vocab;
    s->bias = hdl_calloc(options->n_bias, sizeof *s->bias);
    s->scores = hdl_calloc(n_vocab, sizeof *s->scores);
    s->heap = hdl_calloc(n_vocab, sizeof *s->heap);
    s->seen = hdl_calloc(((int64_t)n_vocab + 63) / 64, sizeof *s->seen);
    s->recent = hdl_calloc(options->repeat_window, sizeof *s->recent);
    if (!s->bias || !s->scores || !s->heap || !s->seen || !s->recent) goto done;
    if (options->n_bias) memcpy(s->bias, options->bias, (size_t)options->n_bias * sizeof *s->bias);
    s->options.bias = s->bias;
    hdl_sampler_reset(s, options->seed);
    *out = s;
    s = NULL;
    status = HEDDLE_OK;
done:
    hdl_sampler_free(s);
    return status;
}

void hdl_sampler_free(hdl_sampler *s)
{
    if (!s) return;
    hdl_free(s->bias);
    hdl_free(s->scores);
    hdl_free(s->heap);
    hdl_free(s->seen);
    hdl_free(s->recent);
    hdl_free(s);
}

void hdl_sampler_accept(hdl_sampler *s, int32_t id)
{
    if (!s->options.repeat_window || id < 0 || id >= s->n_vocab) return;
    s->recent[s->n_accepted++ % s->options.repeat_window] = id;
}

void hdl_sampler_forget(hdl_sampler *s)
{
    s->n_accepted = 0;
}

void hdl_sampler_reset(hdl_sampler *s, uint64_t seed)
{
    hdl_sampler_forget(s);
    for (int i = 0; i < 4; i++) s->random[i] = splitmix(&seed);
}

/* --- one pick -------------------------------------------------------------------------------- */

static float usable(float x)
{
    return isnan(x) ? -INFINITY : HDL_MIN(x, FLT_MAX);
}

/* scores = logits after mask, bias and penalty; each is -INF or finite. */
static void prepare(hdl_sampler *s, const float *logits, const uint64_t *allowed)
{
    const hdl_sampler_options *o = &s->options;
    float *scores = s->scores;
    for (int32_t id = 0; id < s->n_vocab; id++) scores[id] = usable(logits[id]);
    for (int32_t i = 0; i < o->n_bias; i++) {
        int32_t id = s->bias[i].id;
        scores[id] = usable(scores[id] + s->bias[i].bias);
    }
    if (allowed)
        for (int32_t id = 0; id < s->n_vocab; id++)
            if (!(allowed[id / 64] >> (id % 64) & 1)) scores[id] = -INFINITY;
    if (o->repeat_penalty == 1) return;
    int64_t n_recent = HDL_MIN(s->n_accepted, o->repeat_window);
    for (int64_t i = 0; i < n_recent; i++) {
        int32_t id = s->recent[i];
        uint64_t bit = UINT64_C(1) << (id % 64);
        if (s->seen[id / 64] & bit) continue;
        s->seen[id / 64] |= bit;
        scores[id] = usable(scores[id] > 0 ? scores[id] / o->repeat_penalty : scores[id] * o->repeat_penalty);
    }
    for (int64_t i = 0; i < n_recent; i++) s->seen[s->recent[i] / 64] = 0;
}

static bool is_better(candidate a, candidate b)
{
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

static void sift_down(candidate *heap, int64_t n, int64_t i)
{
    candidate item = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_better(heap[child + 1], heap[child])) child++;
        if (!is_better(heap[child], item)) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

/* Moves the best of heap[0, n) to heap[n - 1]: the sorted ones stand from the end downwards. */
static candidate pop(candidate *heap, int64_t n)
{
    candidate best = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = best;
    if (n > 2) sift_down(heap, n - 1, 0);
    return best;
}

/* Draws among candidates at from, from + step, ...: n of them, in that order. */
static int32_t draw_one(hdl_sampler *s, const candidate *from, int64_t n, int64_t step, double max)
{
    double scale = 1 / (double)s->options.temperature, total = 0, least = -INFINITY;
    if (s->options.min_p > 0) least = log((double)s->options.min_p);
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = ((double)from[i * step].logit - max) * scale;
        if (x >= least) total += exp(x);
    }
    double target = draw(s->random) * total, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = ((double)from[i * step].logit - max) * scale;
        if (!(x >= least)) continue;
        sum += exp(x);
        last = i;
        if (sum > target) break;
    }
    return from[last * step].id;
}

heddle_status hdl_sampler_pick(hdl_sampler *s, const float *logits, const uint64_t *allowed, int32_t *id)
{
    const hdl_sampler_options *o = &s->options;
    *id = -1;
    prepare(s, logits, allowed);
    int32_t best = -1, n = 0;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        if (s->scores[i] == -INFINITY) continue;
        if (best < 0 || s->scores[i] > s->scores[best]) best = i;
        if (o->temperature > 0) s->heap[n++] = (candidate){s->scores[i], i};
    }
    if (best < 0)
        return HDL_FAIL(HEDDLE_E_INVALID, "sampler: none of the %d tokens is allowed and has a finite logit",
                        s->n_vocab);
    if (o->temperature == 0) {
        *id = best;
        return HEDDLE_OK;
    }
    double max = s->scores[best], scale = 1 / (double)o->temperature;
    bool has_top_k = o->sample_top_k > 0 && o->sample_top_k < n;
    if (!has_top_k && o->top_p == 1) {
        *id = draw_one(s, s->heap, n, 1, max);
        return HEDDLE_OK;
    }
    /* best first, through a heap: as many as top-k and top-p keep */
    int64_t keep = has_top_k ? o->sample_top_k : n, n_kept = 0;
    double total = 0, sum = 0;
    if (!has_top_k)
        for (int64_t i = 0; i < n; i++) total += exp(((double)s->heap[i].logit - max) * scale);
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift_down(s->heap, n, i);
    if (has_top_k) {
        for (; n_kept < keep; n_kept++) total += exp(((double)pop(s->heap, n - n_kept).logit - max) * scale);
        if (o->top_p < 1)
            for (n_kept = 0; n_kept < keep && sum < (double)o->top_p * total; n_kept++)
                sum += exp(((double)s->heap[n - 1 - n_kept].logit - max) * scale);
    } else {
        for (; n_kept < keep && sum < (double)o->top_p * total; n_kept++)
            sum += exp(((double)pop(s->heap, n - n_kept).logit - max) * scale);
    }
    *id = draw_one(s, &s->heap[n - 1], n_kept, -1, max);
    return HEDDLE_OK;
}
