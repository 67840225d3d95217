/* fuzz_plan.c - plan text of any bytes, up to the owners of two models' layers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static hdl_model_facts facts;
    static hdl_route_plan route;
    hdl_plan *plan;
    if (hdl_plan_parse(&plan, (const char *)data, (int64_t)size, "fuzz")) return 0;
    for (int sliding = 0; sliding < 2; sliding++) {
        snprintf(facts.arch, sizeof facts.arch, "%s", sliding ? "gemma3" : "llama");
        facts.n_layers = sliding ? 18 : 30;
        facts.hidden_size = sliding ? 640 : 576;
        for (int32_t i = 0; i < facts.n_layers; i++)
            facts.layers[i].window = sliding && (i + 1) % 6 ? 512 : 0;
        for (int r = 0; r < 2; r++) {
            if (hdl_plan_resolve(plan, &facts, (hdl_route)r, &route)) continue;
            for (int32_t i = 0; i < facts.n_layers; i++) { /* what compile relies on */
                const hdl_layer_plan *at = &route.layers[i];
                bool is_list = at->op != HDL_OPERATOR_DENSE;
                if (is_list != (at->owner >= 0) || at->owner > i) abort();
                if (is_list && (facts.layers[i].window || !route.layers[at->owner].has_router)) abort();
                double tokens = hdl_cost_of(&route, &facts, i, 4095).tokens;
                if (!(tokens >= 1 && tokens <= 2 * 4096)) abort();
            }
        }
    }
    hdl_buf text = {0};
    if (!hdl_plan_format(plan, &text)) {
        hdl_plan *again;
        if (hdl_plan_parse(&again, text.data, text.n, "again") || !json_equal(plan->doc, again->doc)) abort();
        hdl_plan_free(again);
    }
    hdl_buf_deinit(&text);
    hdl_plan_free(plan);
    return 0;
}
