/* sampler.h - one id from one row of logits.
 *
 * Order, always the same (it is Hugging Face's; llama.cpp applies the temperature last):
 *
 *     mask and bias -> repetition penalty -> temperature -> sample_top_k -> top_p -> min_p -> draw
 *
 * temperature 0 is greedy after mask, bias and penalty; ties go to the lowest id everywhere. NaN
 * counts as -INF (never chosen), +INF as the largest finite float. Nothing is allocated after
 * hdl_sampler_new. Random numbers are xoshiro256** seeded through splitmix64 (Blackman & Vigna,
 * public domain), one per drawn token and none for greedy, so a seed gives the same draws on
 * every machine; the probabilities they meet are computed in double. */
#ifndef HDL_SAMPLER_H
#define HDL_SAMPLER_H

#include "base/base.h"

typedef struct hdl_logit_bias {
    int32_t id;
    float bias; /* added to the logit; -INF forbids the id */
} hdl_logit_bias;

typedef struct hdl_sampler_options {
    float temperature;     /* >= 0; 0 = greedy */
    int32_t sample_top_k;  /* >= 0; 0 = off */
    float top_p;           /* (0, 1]; 1 = off: fewest best ids whose probabilities reach it */
    float min_p;           /* [0, 1]; 0 = off: at least this share of the best probability */
    float repeat_penalty;  /* > 0; 1 = off: logit / penalty if > 0, else logit * penalty */
    int32_t repeat_window; /* tokens back that it looks at, each id once; 0 = off */
    uint64_t seed;
    const hdl_logit_bias *bias; /* [n_bias]; copied */
    int32_t n_bias;
} hdl_sampler_options;

enum { HDL_MAX_REPEAT_WINDOW = 1 << 20, HDL_MAX_LOGIT_BIAS = 1 << 16 };

typedef struct hdl_sampler hdl_sampler;

hdl_sampler_options hdl_sampler_options_default(void); /* greedy, everything off, seed 0 */
heddle_status hdl_sampler_new(hdl_sampler **out, const hdl_sampler_options *options, int32_t n_vocab);
void hdl_sampler_free(hdl_sampler *sampler); /* NULL is fine */
/* Tells the repetition penalty of a token of the text (prompt or answer), in order. */
void hdl_sampler_accept(hdl_sampler *sampler, int32_t id);
void hdl_sampler_forget(hdl_sampler *sampler); /* the accepted tokens */
/* Forgets the accepted tokens and starts the random numbers again from `seed`. */
void hdl_sampler_reset(hdl_sampler *sampler, uint64_t seed);
/* logits [n_vocab], not changed. allowed: bit id of word id / 64, [(n_vocab + 63) / 64]; NULL =
 * all. Does not accept the id. INVALID (and *id = -1) where no id is left to choose. */
heddle_status hdl_sampler_pick(hdl_sampler *sampler, const float *logits, const uint64_t *allowed,
                               int32_t *id);

#endif
