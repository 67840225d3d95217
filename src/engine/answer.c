/* answer.c - the public sampler and the public text stream, over sampler.h and stop.h. */
#include <string.h>

#include "base/mem.h"
#include "engine/engine_int.h"
#include "engine/sampler.h"
#include "engine/stop.h"

struct heddle_sampler {
    hdl_sampler *inner;
    int64_t window; /* tokens back that the repetition penalty looks at; 0 = it is off */
};

void heddle_sampler_options_default(heddle_sampler_options *options)
{
    if (!options) return;
    *options = (heddle_sampler_options){
        .struct_size = sizeof *options, .top_p = 1, .repetition_penalty = 1, .repetition_window = 64};
}

static void copy_options(const heddle_sampler_options *from, hdl_logit_bias *bias, hdl_sampler_options *to)
{
    *to = (hdl_sampler_options){.temperature = from->temperature,
                                .sample_top_k = from->sample_top_k,
                                .top_p = from->top_p,
                                .min_p = from->min_p,
                                .repeat_penalty = from->repetition_penalty,
                                .repeat_window = from->repetition_window,
                                .seed = from->seed,
                                .bias = bias,
                                .n_bias = (int32_t)from->n_bias};
    for (int64_t i = 0; i < from->n_bias; i++)
        bias[i] = (hdl_logit_bias){from->bias[i].id, from->bias[i].bias};
}

heddle_status heddle_sampler_new(heddle_sampler **out, const heddle_engine *engine,
                                 const heddle_sampler_options *options)
{
    heddle_sampler_options given;
    hdl_sampler_options inner;
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine);
    heddle_sampler_options_default(&given);
    if (options) memcpy(&given, options, HDL_MIN(options->struct_size, sizeof given));
    if (given.n_bias < 0 || given.n_bias > HDL_MAX_LOGIT_BIAS)
        return HDL_FAIL(HEDDLE_E_INVALID, "%lld logit biases: must be in 0..%d", (long long)given.n_bias,
                        HDL_MAX_LOGIT_BIAS);
    if (given.n_bias) HDL_GIVEN(given.bias);
    hdl_logit_bias *bias = hdl_calloc(given.n_bias, sizeof *bias);
    heddle_sampler *sampler = hdl_calloc(1, sizeof *sampler);
    heddle_status status = HEDDLE_E_NOMEM;
    if (bias && sampler) {
        copy_options(&given, bias, &inner);
        status = hdl_sampler_new(&sampler->inner, &inner, engine->model->facts.n_vocab);
    }
    hdl_free(bias);
    if (status) {
        heddle_sampler_free(sampler);
        return status;
    }
    sampler->window = given.repetition_penalty == 1 ? 0 : given.repetition_window;
    *out = sampler;
    return HEDDLE_OK;
}

void heddle_sampler_free(heddle_sampler *sampler)
{
    if (!sampler) return;
    hdl_sampler_free(sampler->inner);
    hdl_free(sampler);
}

heddle_status heddle_sample(heddle_sampler *sampler, const heddle_session *session, const uint64_t *mask,
                            int32_t *id)
{
    HDL_GIVEN(id);
    *id = -1;
    HDL_GIVEN(sampler, session);
    const float *logits = heddle_session_logits(session);
    int64_t len = heddle_session_len(session);
    if (!logits)
        return HDL_FAIL(HEDDLE_E_INVALID, "the session holds no logits yet: read at least one token first");
    /* Told anew each time: the session may have been cut back and grown again, or be another one. */
    hdl_sampler_forget(sampler->inner);
    for (int64_t i = HDL_MAX(len - sampler->window, 0); i < len; i++)
        hdl_sampler_accept(sampler->inner, heddle_session_ids(session)[i]);
    return hdl_sampler_pick(sampler->inner, logits, mask, id);
}

struct heddle_stream {
    const heddle_engine *engine;
    hdl_stop *stop;
    hdl_buf piece, shown; /* of one id; grown once and reused */
    bool is_ended;
};

heddle_status heddle_stream_new(heddle_stream **out, const heddle_engine *engine, const char *const *stops,
                                int32_t n_stops)
{
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine);
    if (n_stops > 0) HDL_GIVEN(stops);
    for (int32_t i = 0; i < n_stops; i++) HDL_GIVEN(stops[i]);
    if (!engine->model->tokenizer) return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "the model file holds no tokenizer");
    heddle_stream *stream = hdl_calloc(1, sizeof *stream);
    if (!stream) return HEDDLE_E_NOMEM;
    stream->engine = engine;
    heddle_status status = hdl_stop_new(&stream->stop, stops, n_stops);
    if (status) {
        heddle_stream_free(stream);
        return status;
    }
    *out = stream;
    return HEDDLE_OK;
}

void heddle_stream_free(heddle_stream *stream)
{
    if (!stream) return;
    hdl_stop_free(stream->stop);
    hdl_buf_deinit(&stream->piece);
    hdl_buf_deinit(&stream->shown);
    hdl_free(stream);
}

static heddle_status show(heddle_stream *stream, const char **text, int64_t *n_bytes)
{
    *text = stream->shown.data ? stream->shown.data : "";
    *n_bytes = stream->shown.n;
    return hdl_buf_status(&stream->shown);
}

heddle_status heddle_stream_push(heddle_stream *stream, int32_t id, const char **text, int64_t *n_bytes,
                                 int *is_stopped)
{
    HDL_GIVEN(stream, text, n_bytes, is_stopped);
    stream->shown.n = stream->piece.n = 0;
    if (heddle_token_is_end(stream->engine, id)) {
        stream->is_ended = true;
    } else if (!stream->is_ended) {
        HDL_TRY(hdl_tokenizer_decode(stream->engine->model->tokenizer, &id, 1, false, &stream->piece));
        const char *bytes = stream->piece.data ? stream->piece.data : "";
        stream->is_ended = hdl_stop_feed(stream->stop, bytes, stream->piece.n, &stream->shown);
    }
    *is_stopped = stream->is_ended;
    return show(stream, text, n_bytes);
}

heddle_status heddle_stream_flush(heddle_stream *stream, const char **text, int64_t *n_bytes)
{
    HDL_GIVEN(stream, text, n_bytes);
    stream->shown.n = 0;
    hdl_stop_flush(stream->stop, &stream->shown);
    hdl_stop_reset(stream->stop);
    stream->is_ended = false;
    return show(stream, text, n_bytes);
}
