/* fuzz_config.c - a config.json of any bytes, up to the facts of a model. */
#include <math.h>
#include <stdlib.h>

#include "model/model_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static hdl_model_facts facts;
    hdl_stated stated;
    const hdl_arch *arch;
    if (hdl_stated_from_config(&stated, &arch, (const char *)data, (int64_t)size, "config.json")) return 0;
    if (hdl_facts_build(&facts, arch, &stated, false, "config.json")) return 0;
    /* what everything above relies on */
    bool is_sound = facts.n_layers > 0 && facts.n_heads % facts.n_kv_heads == 0 && facts.head_dim > 0 &&
                    isfinite(facts.attn_scale) && facts.attn_scale > 0 && facts.norm_eps > 0;
    for (int32_t i = 0; i < facts.n_layers; i++) {
        const hdl_layer_facts *layer = &facts.layers[i];
        is_sound = is_sound && layer->cache_group < facts.n_groups && layer->rope < facts.n_ropes &&
                   layer->window >= 0;
    }
    for (int32_t r = 0; r < facts.n_ropes; r++)
        for (int32_t i = 0; i < facts.ropes[r].dim / 2; i++)
            is_sound = is_sound && isfinite(facts.ropes[r].inv_freq[i]);
    if (!is_sound) abort();
    return 0;
}
