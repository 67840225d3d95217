/* Plan text: what is accepted is kept, what is not is named by its path. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "plan/plan.h"
#include "plan/presets.h"
#include "plan/schedule.h"

static hdl_model_facts facts;

static void set_facts(const char *arch, int32_t n_layers, int32_t hidden, int32_t window_every)
{
    memset(&facts, 0, sizeof facts);
    snprintf(facts.arch, sizeof facts.arch, "%s", arch);
    facts.n_layers = n_layers;
    facts.hidden_size = hidden;
    for (int32_t i = 0; window_every && i < n_layers; i++)
        facts.layers[i].window = (i + 1) % window_every ? 512 : 0;
}

/* The sentence for a plan that must be refused, by parse or by resolve. */
static void refused(const char *text, const char *words)
{
    hdl_plan *plan;
    static hdl_route_plan route;
    heddle_status status = hdl_plan_parse(&plan, text, (int64_t)strlen(text), "p.json");
    if (!status) {
        status = hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route);
        hdl_plan_free(plan);
    }
    if (!status || !strstr(hdl_last_error(), words))
        fail_msg("%s\n  gave: %s\n  wanted: %s", text, hdl_last_error(), words);
}

#define RULES(rules)    "{\"heddle_plan\": 1, \"name\": \"x\", \"variants\": [{\"decode\": [" rules "]}]}"
#define ROUTER(members) RULES("{\"layers\": [0], \"router\": {" members "}}")

/* A rule for each of n layers of four KV heads, three of which have a router each. */
static char *rules_with_head_routers(int32_t n)
{
    hdl_buf text = {0};
    hdl_buf_puts(&text, "{\"heddle_plan\": 1, \"name\": \"x\", \"variants\": [{\"decode\": [");
    for (int32_t layer = 0; layer < n; layer++) {
        hdl_buf_printf(&text,
                       "%s{\"layers\": [%d], \"operator\": \"token_list\", \"router\": {\"score\": \"none\", "
                       "\"lists\": \"kv_head\", \"window\": 9}, \"head_routers\": [",
                       layer ? ", " : "", layer);
        for (int h = 0; h < 3; h++)
            hdl_buf_printf(&text,
                           "%s{\"kv_heads\": [%d], \"router\": {\"score\": \"none\", \"lists\": \"kv_head\", "
                           "\"window\": %d}}",
                           h ? ", " : "", h, 10 + 3 * layer + h);
        hdl_buf_puts(&text, "]}");
    }
    hdl_buf_puts(&text, "]}]}");
    assert_int_equal(hdl_buf_status(&text), HEDDLE_OK);
    return text.data;
}

/* Head routers of a route stand in one table: each layer finds its own, and a full table is refused. */
static void test_head_routers_of_a_route(void **state)
{
    (void)state;
    static hdl_route_plan route;
    hdl_plan *plan;
    set_facts("llama", 65, 64, 0);
    facts.n_kv_heads = 4;
    char *text = rules_with_head_routers(64);
    assert_int_equal(hdl_plan_parse(&plan, text, (int64_t)strlen(text), "p.json"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    for (int32_t layer = 0; layer < 64; layer++)
        for (int32_t h = 0; h < 4; h++)
            assert_int_equal(hdl_router_of_head(&route, layer, h)->window, h < 3 ? 10 + 3 * layer + h : 9);
    assert_int_equal(hdl_heads_of_layer_router(&route, 5, 4), 8);
    hdl_plan_free(plan);
    hdl_free(text);
    text = rules_with_head_routers(65);
    refused(text,
            "decode[64].head_routers: with those of the rules before them they are 195; must be at most 192");
    hdl_free(text);
}

static void test_refusals(void **state)
{
    (void)state;
    set_facts("llama", 4, 64, 0);
    refused("{\"heddle_plan\": 1,\n  nonsense}", "p.json: line 2, column 10");
    refused("", "p.json: is empty"); /* it had been an error in column 0 */
    refused(" \n\t\r\n", "p.json: is empty");
    refused("[]", "plan p.json: a plan must be a JSON object");
    refused("{\"name\": \"x\", \"variants\": [{}]}", "heddle_plan: is missing");
    refused("{\"heddle_plan\": 2, \"name\": \"x\", \"variants\": [{}]}", "heddle_plan 2: must be in 1..1");
    refused("{\"heddle_plan\": 1, \"variants\": [{}]}", "name: is missing");
    refused("{\"heddle_plan\": 1, \"name\": \"x\", \"variants\": []}", "variants: must be");
    refused("{\"heddle_plan\": 1, \"name\": \"x\", \"variants\": [{}], \"speed\": 3}",
            "speed: is not a member");
    refused("{\"heddle_plan\": 1, \"name\": \"x\", \"name\": \"y\", \"variants\": [{}]}", "duplicate");
    refused("{\"heddle_plan\": 1, \"name\": \"x\", \"variants\": [{\"decode\": 5}]}",
            "variants[0].decode: must be a list");
    refused(RULES("{\"operator\": \"dense\"}"), "variants[0].decode[0].layers: must be");
    refused(RULES("{\"layers\": [0], \"operator\": \"fast\"}"), "decode[0].operator \"fast\"");
    refused(RULES("{\"layers\": [0], \"operator\": \"token_list\"}"),
            "either a router of its own or \"share\"; it has neither");
    refused(
        RULES(
            "{\"layers\": [0], \"router\": {\"top_k\": 8}}, {\"layers\": [1], \"operator\": \"token_list\", "
            "\"share\": 0, \"router\": {\"top_k\": 8}}"),
        "decode[1]: token_list needs either a router of its own or \"share\"; it has both");
    refused(RULES("{\"layers\": [0], \"share\": \"previous\"}"), "a dense layer reads no list");
    refused(RULES("{\"layers\": [0], \"operator\": \"token_list\", \"share\": \"next\"}"),
            "decode[0].share: must be");
    refused(RULES("{\"layers\": [0], \"operator\": \"token_list\", \"share\": \"previous\"}"),
            "variants[0].decode[0].share: layer 0 shares the previous list, but no layer makes one");
    refused(
        RULES(
            "{\"layers\": [2], \"operator\": \"token_list\", \"router\": {\"score\": \"random\", \"top_k\": 8}}, "
            "{\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}"),
        "variants[0].decode[1].share: layer 0 shares the previous list, but the first that makes one is "
        "layer 2: give layer 0 a rule of its own before");
    refused(RULES("{\"layers\": [1]}, {\"layers\": [0], \"operator\": \"token_list\", \"share\": 2}"),
            "variants[0].decode[1].share: layer 0 shares the list of layer 2");
    refused(RULES("{\"layers\": [0], \"operater\": \"dense\"}"),
            "decode[0].operater: is not a member known here; did you mean \"operator\"?");
    refused(RULES("{\"layers\": [0], \"zzzzzzzz\": 1}"), "known here: layers, operator");
    refused(RULES("{\"layers\": [4]}"), "layers[0] 4: the model has layers 0..3");
    refused(RULES("{\"layers\": [1.5]}"), "layers[0]: must be a whole number");
    refused(RULES("{\"layers\": [4]}"), "plan p.json: ");
    refused(RULES("{\"layers\": [1, 1]}"), "layers[1] 1: a rule before it names this layer");
    refused(ROUTER("\"top_k\": -1"), "variants[0].decode[0].router.top_k -1: must be in 0..");
    refused(ROUTER("\"top_k\": 1.5"), "router.top_k: must be a whole number");
    refused(ROUTER("\"sinks\": 4, \"score\": \"magic\""), "router.score \"magic\"");
    refused(ROUTER("\"score\": \"none\", \"top_k\": 3"), "router.top_k 3: must be 0");
    refused(ROUTER("\"select\": \"best\", \"top_k\": 3"), "router.select \"best\"");
    refused(ROUTER("\"top_k\": 0"), "a row could read nothing");
    refused(ROUTER("\"top_k\": 4, \"refresh\": 2"), "needs a window");
    refused(ROUTER("\"top_k\": 4, \"k\": 2"), "router.k: is not a member");
    refused("{\"heddle_plan\": 1, \"name\": \"x\", \"variants\": [{\"when\": {\"arch\": \"other\"}}]}",
            "has no variant for");
    facts.n_kv_heads = 2;
    refused(
        RULES(
            "{\"layers\": [0], \"router\": {\"top_k\": 8}}, {\"layers\": [1], \"operator\": \"token_list\", \"share\": "
            "\"previous\", \"head_map\": [1, 0]}"),
        "makes one list for all heads");
    refused(
        RULES(
            "{\"layers\": [0], \"router\": {\"top_k\": 8, \"lists\": \"kv_head\"}}, {\"layers\": [1], \"operator\": "
            "\"token_list\", \"share\": 0, \"head_map\": [1, 2]}"),
        "decode[1].head_map[1] 2: must be in 0..1");
    refused(
        RULES(
            "{\"layers\": [0], \"router\": {\"top_k\": 8, \"lists\": \"kv_head\"}}, {\"layers\": [1], \"operator\": "
            "\"token_list\", \"share\": 0, \"head_map\": [1]}"),
        "has 1 entries; the model has 2 KV heads");
    refused(
        RULES(
            "{\"layers\": [0], \"router\": {\"top_k\": 8, \"lists\": \"union\"}}, {\"layers\": [1], \"operator\": "
            "\"token_list\", \"share\": 0, \"head_map\": [1, 0]}"),
        "makes one list for all heads");
    refused(ROUTER("\"lists\": \"union\", \"head_top_k\": [8, 8]"),
            "head_top_k: needs \"lists\": \"kv_head\"");
    refused(ROUTER("\"lists\": \"union\", \"score\": \"random\", \"top_k\": 8"),
            "router.lists \"union\": score \"random\" is not by head");
    refused(ROUTER("\"lists\": \"union\", \"score\": \"index\", \"top_k\": 8"),
            "router.lists \"union\": score \"index\" is not by head");
    refused(ROUTER("\"lists\": \"kv_head\", \"score\": \"index\", \"top_k\": 8"),
            "router.lists \"kv_head\": score \"index\" is not by head"); /* such lists held chance numbers */
    refused(ROUTER("\"lists\": \"heads\", \"top_k\": 8"),
            "router.lists \"heads\": must be \"layer\", \"kv_head\" or \"union\"");
    facts.n_kv_heads = 65;
    refused(ROUTER("\"lists\": \"union\", \"top_k\": 8"), "the model has 65 KV heads; at most 64");
    facts.n_kv_heads = 2;
#define STOPPED(stop, router)                                                                                \
    RULES("{\"layers\": [0], \"operator\": \"token_list\", \"stop\": " stop ", \"router\": {" router "}}")
    refused(STOPPED("{\"below\": 1}", "\"top_k\": 8"),
            "decode[0].stop.below 1: must be at least 0 and, as a float, below 1");
    refused(STOPPED("{\"below\": 0.1, \"tile\": 0}", "\"top_k\": 8"), "stop.tile 0: must be in 1..65536");
    refused(STOPPED("{\"patience\": 0}", "\"top_k\": 8"), "stop.patience 0: must be in 1..65536");
    refused(STOPPED("{\"bellow\": 0}", "\"top_k\": 8"), "did you mean \"below\"?");
    refused(STOPPED("0.1", "\"top_k\": 8"), "decode[0].stop: must be an object");
    refused(RULES("{\"layers\": [0], \"stop\": {}}"), "decode[0].stop: a dense layer reads no list");
    refused(STOPPED("{}, \"complement\": 16", "\"top_k\": 8, \"window\": 16"),
            "stop: goes not with complement");
    refused(STOPPED("{}", "\"score\": \"none\", \"window\": 8"), "but that layer scores nothing");
    refused(STOPPED("{}", "\"lists\": \"union\", \"top_k\": 8"),
            "but that layer unites lists of several scores");
    refused(STOPPED("{}", "\"top_k\": 8, \"window\": 1, \"refresh\": 2"),
            "keeps its lists between refreshes");
    refused(
        STOPPED("{}",
                "\"score\": \"key_i8\", \"top_k\": 8, \"candidates\": {\"score\": \"key_i4\", \"top_k\": 9}"),
        "but that layer picks from candidates");
    refused(RULES("{\"layers\": [0], \"router\": {\"top_k\": 8, \"lists\": \"kv_head\"}}, {\"layers\": [1], "
                  "\"operator\": \"token_list\", \"share\": 0, \"stop\": {}, \"head_map\": [1, 0]}"),
            "decode[1].stop: goes not with head_map");
#define POOLED(first, of)                                                                                    \
    RULES("{\"layers\": [0], \"router\": {\"score\": \"key_i8\", \"top_k\": 8" first "}}, "                  \
          "{\"layers\": [1], \"router\": {\"score\": \"key_i4\", \"top_k\": 8, \"candidates\": "             \
          "{\"share\": \"previous\", \"of\": \"" of "\"}}}")
    refused(POOLED("", "candidates"), "layer 0, whose candidates layer 1 picks from, has none of its own");
    refused(POOLED(", \"candidates\": {\"score\": \"key_i4\", \"top_k\": 9}", "pool"),
            "router.candidates.of \"pool\": must be \"list\" or \"candidates\"");
#define HEADS "\"lists\": \"kv_head\", \"head_top_k\": "
#define BESIDE(members, heads)                                                                                       \
    RULES(                                                                                                           \
        "{\"layers\": [0], \"operator\": \"token_list\", \"router\": {\"score\": \"key_i8\", \"top_k\": 8, " members \
        "}, \"head_routers\": " heads "}")
#define ONE_HEAD(h, members) "[{\"kv_heads\": [" h "], \"router\": {" members "}}]"
#define OF_HEADS             "\"lists\": \"kv_head\""
#define FOUR_BITS            OF_HEADS ", \"score\": \"key_i4\", \"top_k\": 4"
    refused(BESIDE("\"window\": 1", ONE_HEAD("0", FOUR_BITS)), "router: has lists other than \"kv_head\"");
    refused(BESIDE(OF_HEADS, "[]"), "head_routers: must be a list of 1..3 routers");
    refused(BESIDE(OF_HEADS, "[{\"router\": {}}]"),
            "head_routers[0].kv_heads: must be a list of at least one");
    refused(BESIDE(OF_HEADS, ONE_HEAD("-1", FOUR_BITS)), "kv_heads[0]: must be in 0..63");
    refused(BESIDE(OF_HEADS, ONE_HEAD("1, 1", FOUR_BITS)), "kv_heads[1] 1: is named before");
    refused(BESIDE(OF_HEADS, ONE_HEAD("2", FOUR_BITS)),
            "head_routers[0].kv_heads: the model has KV heads 0..1");
    refused(BESIDE(OF_HEADS, ONE_HEAD("0, 1", FOUR_BITS)), "head_routers: name every KV head");
    refused(BESIDE(OF_HEADS, ONE_HEAD("0", "\"top_k\": 4")), "router: has score \"attention_mass\"");
    refused(BESIDE(OF_HEADS, ONE_HEAD("0", "\"score\": \"key_i4\", \"top_k\": 4")),
            "head_routers[0].router: has lists other than \"kv_head\"");
    refused(BESIDE(OF_HEADS,
                   ONE_HEAD("0", OF_HEADS
                            ", \"score\": \"block_mean\", \"block\": 16, \"top_k\": 16, \"window\": 1")),
            "head_routers[0].router.block 16: the layer's router makes lists of units of 1");
    refused(BESIDE(OF_HEADS, ONE_HEAD("0", FOUR_BITS ", \"refresh\": 2, \"window\": 2")),
            "head_routers[0].router: head routers have neither candidates nor a refresh of their own");
    refused(BESIDE(OF_HEADS, ONE_HEAD("0", OF_HEADS ", \"score\": \"none\", \"sinks\": 4")),
            "head_routers[0].router.window 0: score \"none\" needs a window of at least 1 token");
    refused(BESIDE(OF_HEADS, "[{\"kv_heads\": [0], \"routers\": {}}]"), "did you mean \"router\"?");
    refused(RULES("{\"layers\": [0], \"head_routers\": []}"),
            "head_routers: needs a router without candidates beside it");
    refused(ROUTER("\"head_top_k\": [8, 8]"), "router.head_top_k: needs \"lists\": \"kv_head\"");
    refused(ROUTER("\"select\": \"top_p\", \"window\": 1, " HEADS "[8, 8]"), "and select \"top_k\"");
    refused(ROUTER("\"top_k\": 8, " HEADS "[8, 8]"), "head_top_k: goes not with top_k");
    refused(ROUTER(HEADS "[8, -1]"), "head_top_k[1]: must be \"all\" or in 0..16777216");
    refused(ROUTER(HEADS "[8, \"most\"]"), "head_top_k[1]: must be \"all\" or in");
    refused(ROUTER(HEADS "[8, 0]"), "head_top_k[1]: sinks + window + top_k is 0: a head could read nothing");
    refused(ROUTER(HEADS "[8]"), "router.head_top_k: has 1 entries; the model has 2 KV heads");
    refused(ROUTER(HEADS "8"), "head_top_k: must be a list of 1..64 numbers");
    refused(ROUTER("\"score\": \"none\", \"window\": 4, " HEADS "[\"all\", 8]"),
            "head_top_k[1] 8: must be 0 or \"all\" when score is \"none\"");
    refused(ROUTER("\"top_k\": 4, \"tile\": 64"),
            "router.tile 64: score \"attention_mass\" is of single rows");
    refused(ROUTER("\"score\": \"index\", \"top_k\": 4, \"tile\": 64"),
            "router.tile 64: score \"index\" is of single rows");
    refused(ROUTER("\"score\": \"key_i8\", \"top_k\": 4, \"tile\": 48"),
            "router.tile 48: must be a power of two");
    refused(ROUTER("\"score\": \"key_i8\", \"top_k\": 4, \"tile\": 64, \"window\": 1, \"refresh\": 2"),
            "router.tile 64: goes not with refresh 2");
    refused(ROUTER("\"score\": \"key_i8\", \"top_k\": 4, \"window\": 1, \"tile_by\": \"sum\""),
            "router.tile_by: needs a tile above 1");
    refused(ROUTER("\"score\": \"key_i8\", \"top_k\": 4, \"tile\": 64, \"tile_by\": \"sum\""),
            "router.window 0: rows scored together need a window of at least 1 token");
    refused(ROUTER("\"score\": \"random\", \"top_k\": 4, \"window\": 1, \"tile\": 64, \"tile_by\": \"max\""),
            "router.tile_by: score \"random\" is the same for all rows of a tile");
    refused(ROUTER("\"score\": \"key_i8\", \"top_k\": 4, \"window\": 1, \"tile\": 64, \"tile_by\": \"mean\""),
            "router.tile_by \"mean\": must be \"query_mean\", \"sum\" or \"max\"");
    refused(RULES("{\"layers\": [0], \"complement\": 64, \"router\": {\"top_k\": 8}}"),
            "decode[0].complement: a dense layer leaves nothing out");
    refused(
        RULES(
            "{\"layers\": [0], \"operator\": \"token_list\", \"complement\": 48, \"router\": {\"top_k\": 8}}"),
        "decode[0].complement 48: must be a power of two");
    refused(
        RULES(
            "{\"layers\": [0], \"operator\": \"token_list\", \"complement\": 64, \"router\": {\"top_k\": 8, "
            "\"window\": 63}}"),
        "decode[0].complement 64: the list of layer 0 must hold each row's own block of so many tokens; its "
        "window is 63");
    refused(
        RULES("{\"layers\": [0], \"operator\": \"block_list\", \"complement\": 64, \"router\": {\"score\": "
              "\"block_mean\", \"block\": 32, \"top_k\": 8, \"window\": 1}}"),
        "its window is 1");
    refused(ROUTER("\"scale\": \"sqrt_length\", \"top_k\": 4"),
            "scale \"sqrt_length\": score \"attention_mass\" is not by block");
    refused(RULES("{\"layers\": []}"), "decode[0].layers: is an empty list; must name at least one layer");
    refused(RULES("{\"layers\": \"all\"}, {\"layers\": \"all\"}"),
            "decode[1].layers \"all\": names no layer of this model: rules before name those");
    refused(RULES("{\"layers\": \"leaders\"}"),
            "decode[0].layers \"leaders\": names no layer of this model: it has no index");
    refused(ROUTER("\"score\": \"key_i8\", \"select\": \"threshold\", \"window\": 4"),
            "threshold: is missing; select \"threshold\" needs one");
    refused(ROUTER("\"score\": \"key_i8\", \"measure\": \"logit\", \"select\": \"top_p\", \"window\": 4"),
            "select \"top_p\": needs a measure of mass");
    refused(ROUTER("\"score\": \"key_i5\", \"top_k\": 4"), "did you mean \"key_i8\"?");
    refused(ROUTER("\"select\": \"beam\", \"sinks\": 4"), "top_k 0: a beam needs a width of at least 1");
    set_facts("gemma3", 12, 64, 6);
    refused(ROUTER("\"top_k\": 4"), "the model gives this layer a window of 512 tokens");
}

/* The sentence for a plan by name, or of a file of this text, that must be refused. */
static void named_refused(const char *spec, const char *words)
{
    static hdl_route_plan route;
    hdl_plan *plan;
    heddle_status status = hdl_plan_named(&plan, spec);
    if (!status) {
        status = hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route);
        hdl_plan_free(plan);
    }
    if (!status || !strstr(hdl_last_error(), words))
        fail_msg("%s\n  gave: %s\n  wanted: %s", spec, status ? hdl_last_error() : "a plan", words);
}

/* They had scored everything and read a window, or had been passed over without a word. */
static void test_members_that_would_do_nothing_are_refused(void **state)
{
    (void)state;
    static const char *const chooses[] = {"keys4:top_k=0", "anchor:top_k=0", "kascade:top_k=0",
                                          "hisa:top_k=0"};
    static const char *const unread[][3] = {
        {"\"p\": 0.9", "router.p 0.9", "select \"top_p\" only, but select is \"top_k\""},
        {"\"p_rule\": \"strict\"", "router.p_rule \"strict\"", "select \"top_p\" only"},
        {"\"threshold\": 0.5", "router.threshold 0.5", "select \"threshold\" only"},
        {"\"stride\": 3", "router.stride 3", "score \"stride\" only, but score is \"key_i4\""},
        {"\"seed\": 3", "router.seed 3", "score \"random\" only"},
        {"\"pool\": \"max\"", "router.pool \"max\"", "\"block\" is above 1"}};
    char text[512], words[128];
    set_facts("llama", 30, 576, 0);
    facts.n_kv_heads = 3;
    for (size_t i = 0; i < HDL_COUNT(chooses); i++)
        named_refused(chooses[i], "would score everything and choose nothing; must be at least 1");
    for (size_t i = 0; i < HDL_COUNT(unread); i++) {
        snprintf(text, sizeof text, ROUTER("\"score\": \"key_i4\", \"top_k\": 8, %s"), unread[i][0]);
        snprintf(words, sizeof words, "%s: is read by ", unread[i][1]);
        refused(text, words);
        refused(text, unread[i][2]);
    }
    refused(ROUTER("\"score\": \"key_i4\", \"window\": 8, \"p\": 0.9"), "router.p 0.9: is read by");
    refused(ROUTER("\"score\": \"random\", \"top_k\": 8, \"heads\": \"max\""),
            "router.heads \"max\": is read by scores of heads only, but score is \"random\"");
    refused(ROUTER("\"score\": \"none\", \"window\": 8, \"measure\": \"mass\""), "router.measure \"mass\"");
    refused(
        ROUTER("\"score\": \"key_i4\", \"lists\": \"kv_head\", \"window\": 4, \"head_top_k\": [0, 0, 0]"),
        "router.head_top_k 0 of every KV head: score \"key_i4\" would score everything and choose nothing; "
        "must be at least 1 of some");
    named_refused("keys4:seed=3", "router.seed 3: is read by score \"random\" only");
    named_refused("snapkv:seed=3", "retain.seed 3: belongs to score \"random\"");
    refused(RULES("{\"layers\": \"all\"}, {\"layers\": \"rest\"}"),
            "decode[1].layers \"rest\": names no layer: rule 0 before it names \"all\"");
    refused(RULES("{\"layers\": [0]}, {\"layers\": \"rest\"}, {\"layers\": \"rest\"}"),
            "decode[2].layers \"rest\": names no layer: rule 1 before it names \"rest\"");
}

/* Rows that read nothing, or not their own token, had given garbage without a word. */
static void test_a_row_reads_something(void **state)
{
    (void)state;
#define ABOVE(n)  "\"select\": \"threshold\", \"threshold\": " n
#define EXCLUSIVE "\"select\": \"top_p\", \"p_rule\": \"exclusive\", \"p\": 1e-12"
    static const char *const kept[] = {
        ROUTER("\"score\": \"key_i4\", \"window\": 1, " ABOVE("1")),
        ROUTER("\"score\": \"key_i4\", \"sinks\": 1, " ABOVE("0.5")),
        ROUTER("\"score\": \"key_i4\", \"measure\": \"logit\", \"window\": 1, " ABOVE("1e30")),
        ROUTER("\"score\": \"key_i4\", \"heads\": \"sum\", \"window\": 1, " ABOVE("1.5")),
        ROUTER("\"score\": \"key_i4\", \"tile\": 8, \"tile_by\": \"sum\", \"window\": 1, " ABOVE("1.5")),
        ROUTER("\"score\": \"key_i4\", \"window\": 1, " EXCLUSIVE),
        ROUTER("\"score\": \"key_i4\", \"select\": \"top_p\", \"p\": 0.5"),
        ROUTER("\"score\": \"none\", \"window\": 1"),
        ROUTER("\"score\": \"none\", " HEADS "[\"all\", \"all\"]"),
        ROUTER("\"score\": \"none\", \"window\": 1, " HEADS "[0, \"all\"]")};
    set_facts("llama", 30, 576, 0);
    facts.n_kv_heads = 2;
    for (size_t i = 0; i < HDL_COUNT(kept); i++) {
        static hdl_route_plan route;
        hdl_plan *plan;
        if (hdl_plan_parse(&plan, kept[i], (int64_t)strlen(kept[i]), "t") ||
            hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route))
            fail_msg("%s: %s", kept[i], hdl_last_error());
        hdl_plan_free(plan);
    }
    refused(ROUTER("\"score\": \"key_i4\", \"measure\": \"logit\", " ABOVE("1e30")),
            "router: sinks + window is 0 and select \"threshold\" may choose nothing");
    refused(ROUTER("\"score\": \"key_i4\", \"top_k\": 8, " ABOVE("0.5")), "select \"threshold\" may choose");
    refused(ROUTER("\"score\": \"key_i4\", " EXCLUSIVE),
            "sinks + window is 0 and select \"top_p\" with p_rule \"exclusive\" may choose nothing");
    refused(ROUTER("\"score\": \"key_i4\", \"window\": 1, " ABOVE("5")),
            "router.threshold 5: no mass exceeds 1; must be at most that");
    refused(ROUTER("\"window\": 1, " ABOVE("5")), "router.threshold 5: no mass exceeds 1");
    refused(ROUTER("\"score\": \"none\", \"sinks\": 4"), "router.window 0: score \"none\" needs a window");
    refused(ROUTER("\"score\": \"none\", \"sinks\": 4, " HEADS "[0, \"all\"]"), "router.window 0: score");
    named_refused("window:window=0", "window of at least 1 token, so that a row reads its own");
    named_refused("window512:window=0", "window of at least 1 token, so that a row reads its own");
    named_refused("keys4:top_k=512:top_k=16", "overrides follow one colon and are separated by commas");
    named_refused("./a:b=1/c:top_k=16", "No such file"); /* a path may have both */
}

static void test_numbers_beyond_a_float_are_refused(void **state)
{
    (void)state;
    set_facts("llama", 4, 64, 0);
    refused(ROUTER("\"score\": \"key_i4\", \"select\": \"threshold\", \"threshold\": 1e39, \"window\": 4"),
            "router.threshold 1e+39: must be in -3.40282e+38..3.40282e+38");
    refused(ROUTER("\"score\": \"key_i4\", \"select\": \"top_p\", \"p\": 1e-60, \"window\": 4"),
            "router.p 1e-60: must be above 0");
    refused(STOPPED("{\"below\": 0.99999999999}", "\"score\": \"key_i4\", \"top_k\": 8"),
            "stop.below 0.99999999999: must be at least 0 and, as a float, below 1");
    refused(ROUTER("\"score\": \"key_i4\", \"select\": \"top_p\", \"p\": 1.00000001, \"window\": 4"),
            "router.p 1.00000001: must be above 0 and at most 1");
    refused(
        ROUTER("\"score\": \"key_i4\", \"select\": \"threshold\", \"threshold\": 1.000001, \"window\": 4"),
        "router.threshold 1.00000095: no mass exceeds 1");
}

static void test_more_than_the_candidates_hold_is_refused(void **state)
{
    (void)state;
    static hdl_route_plan route;
    hdl_plan *plan;
    char text[512];
#define PICKED(top_k, forced, candidates)                                                                       \
    RULES(                                                                                                      \
        "{\"layers\": [0], \"operator\": \"token_list\", \"router\": {\"score\": \"key_i4\", \"top_k\": " top_k \
        ", " forced ", \"candidates\": {" candidates "}}}")
#define FROM(top_k) "\"score\": \"key_i8\", \"window\": 4, \"top_k\": " top_k
    set_facts("llama", 4, 64, 0);
    facts.n_kv_heads = 2;
    refused(
        PICKED("16", "\"window\": 4", FROM("8")),
        "router.top_k 16: layer 0 picks from candidates that hold at most 8 tokens which it does not force");
    refused(PICKED("13", "\"window\": 0", FROM("8")), "candidates that hold at most 12 tokens");
    refused(PICKED("17", "\"window\": 4", FROM("8") ", \"lists\": \"union\""), "at most 16 tokens");
    static const char *const kept[] = {
        PICKED("8", "\"window\": 4", FROM("8")), PICKED("12", "\"window\": 0", FROM("8")),
        PICKED("16", "\"window\": 4", FROM("8") ", \"lists\": \"union\""),
        PICKED("99", "\"window\": 4", FROM("0") ", \"select\": \"threshold\", \"threshold\": 0.1")};
    for (size_t i = 0; i < HDL_COUNT(kept); i++) {
        snprintf(text, sizeof text, "%s", kept[i]);
        if (hdl_plan_parse(&plan, text, (int64_t)strlen(text), "t") ||
            hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route))
            fail_msg("%s: %s", text, hdl_last_error());
        hdl_plan_free(plan);
    }
}

/* A row that reads everything picks it from candidates that hold everything. */
static void test_candidates_hold_all_that_dense_below_promises(void **state)
{
    (void)state;
    static hdl_route_plan route;
    hdl_plan *plan;
    set_facts("llama", 4, 64, 0);
    facts.n_kv_heads = 2;
    assert_int_equal(hdl_plan_named(&plan, "hisa:dense_below=4000,top_k=200"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    assert_int_equal(route.layers[0].router.dense_below, 4000);
    assert_int_equal(route.layers[0].candidates.dense_below, 4000);
    hdl_plan_free(plan);
#define SHARED(first)                                                                                        \
    RULES("{\"layers\": [0], \"operator\": \"token_list\", \"router\": {\"score\": \"key_i8\", "             \
          "\"top_k\": 64, \"window\": 4" first "}}, {\"layers\": [1], \"operator\": \"token_list\", "        \
          "\"router\": {\"score\": \"key_i4\", \"top_k\": 8, \"window\": 4, \"dense_below\": 100, "          \
          "\"candidates\": {\"share\": 0}}}")
    refused(SHARED(""), "router.dense_below 100: layer 1 picks from candidates of layer 0, which hold "
                        "everything only up to 0 tokens");
    const char *text = SHARED(", \"dense_below\": 100");
    assert_int_equal(hdl_plan_parse(&plan, text, (int64_t)strlen(text), "t"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    hdl_plan_free(plan);
}

static void test_texts_and_variants(void **state)
{
    (void)state;
#define DOC(members, variants) "{\"heddle_plan\": 1, " members ", \"variants\": [" variants "]}"
#define NAMED                  "\"name\": \"x\""
    refused(DOC("\"name\": \"\"", "{}"), "name \"\": must have at least one character");
    refused(DOC("\"name\": \"a\\nb\"", "{}"), "name: has control character 10 at byte 1");
    refused(DOC(NAMED ", \"about\": \"ab\\u001b[31mRED\"", "{}"),
            "about: has control character 27 at byte 2");
    refused(DOC(NAMED ", \"cites\": {\"a\": 1}", "{}"), "cites: must be a list of texts");
    refused(DOC(NAMED ", \"cites\": \"a\"", "{}"), "cites: must be a list of texts");
    refused(DOC(NAMED ", \"cites\": [1]", "{}"), "cites[0]: must be a text");
    refused(DOC(NAMED ", \"cites\": [\"\"]", "{}"), "cites[0] \"\": must have at least one character");
    refused(DOC(NAMED, "{}, {}"), "variants[1].when: variants[0], which comes first, fits every model");
    refused(
        DOC(NAMED, "{\"when\": {\"arch\": \"llama\"}}, {\"when\": {\"n_layers\": 4, \"arch\": \"llama\"}}"),
        "variants[1].when: variants[0], which comes first");
    hdl_plan *plan;
    const char *text = DOC(NAMED,
                           "{\"when\": {\"n_layers\": 4, \"arch\": \"llama\"}}, {\"when\": {\"n_layers\": 4, "
                           "\"hidden_size\": 8}}, {\"when\": {\"arch\": \"llama\"}}, {}");
    assert_int_equal(hdl_plan_parse(&plan, text, (int64_t)strlen(text), "t"), HEDDLE_OK);
    hdl_plan_free(plan);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* In a file: a program may parse a plan whose lists it only watches. */
static void test_lists_that_no_layer_reads_are_refused(void **state)
{
    (void)state;
    static hdl_route_plan route;
    char path[] = "/tmp/heddle-plan-XXXXXX.json";
    hdl_plan *plan;
    int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    close(fd);
    set_facts("llama", 4, 64, 0);
    const char *text = RULES("{\"layers\": [1, 2], \"router\": {\"top_k\": 8}}");
    write_file(path, text);
    named_refused(path, "variants[0].decode[0].router: no layer reads or picks from the list of layer 1");
    assert_int_equal(hdl_plan_parse(&plan, text, (int64_t)strlen(text), "t"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    hdl_plan_free(plan);
    /* layer 1 makes one in vain, of a rule whose other list is read */
    write_file(path,
               RULES("{\"layers\": [1, 2], \"router\": {\"top_k\": 8}}, {\"layers\": [3], \"operator\": "
                     "\"token_list\", \"share\": \"previous\"}"));
    if (hdl_plan_named(&plan, path) || hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route))
        fail_msg("%s", hdl_last_error());
    hdl_plan_free(plan);
    unlink(path);
}

static void test_owners(void **state)
{
    (void)state;
    static hdl_route_plan route;
    hdl_plan *plan;
    const char *text = RULES(
        "{\"layers\": [1, 3], \"router\": {\"top_k\": 8}}, {\"layers\": [5], \"operator\": \"token_list\", "
        "\"share\": 1}, {\"layers\": [0]}, {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": "
        "\"previous\"}");
    static const int32_t owners[] = {-1, -1, 1, -1, 3, 1, 3};
    set_facts("llama", 7, 64, 0);
    assert_int_equal(hdl_plan_parse(&plan, text, (int64_t)strlen(text), "t"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    for (int i = 0; i < 7; i++) assert_int_equal(route.layers[i].owner, owners[i]);
    assert_true(route.layers[3].has_router && !route.layers[4].has_router);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_PREFILL, &route), HEDDLE_OK);
    for (int i = 0; i < 7; i++) assert_int_equal(route.layers[i].op, HDL_OPERATOR_DENSE);
    hdl_plan_free(plan);
}

/* Rows of rule 0 make lists; which layers those are, as bits. */
static unsigned list_layers(const char *layers)
{
    char text[512];
    snprintf(text, sizeof text, RULES("{\"layers\": %s, \"router\": {\"top_k\": 8}}"), layers);
    hdl_plan *plan;
    hdl_route_plan route;
    unsigned bits = 0;
    assert_int_equal(hdl_plan_parse(&plan, text, (int64_t)strlen(text), "p.json"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    for (int i = 0; i < facts.n_layers; i++) bits |= (unsigned)route.layers[i].has_router << i;
    hdl_plan_free(plan);
    return bits;
}

static void test_layers_are_counted_from_either_end(void **state)
{
    (void)state;
    set_facts("llama", 7, 64, 0);
    assert_int_equal(list_layers("{\"first\": 1}"), 0x01);
    assert_int_equal(list_layers("{\"first\": 3}"), 0x07);
    assert_int_equal(list_layers("{\"last\": 4}"), 0x78);
    assert_int_equal(list_layers("{\"last\": 7}"), 0x7f);
    refused(RULES("{\"layers\": {\"last\": 8}}"), "layers.last 8: the model has 7 layers without a window");
    refused(RULES("{\"layers\": {\"first\": 0}}"), "decode[0].layers.first 0: must be in 1..");
    refused(RULES("{\"layers\": {}}"), "layers: must have either");
    refused(RULES("{\"layers\": {\"first\": 1, \"last\": 1}}"), "layers: must have either");
    refused(RULES("{\"layers\": {\"lest\": 1}}"), "lest");
    refused(RULES("{\"layers\": [6]}, {\"layers\": {\"last\": 2}}"), "a rule before it names layer 6");
    set_facts("llama", 7, 64, 3); /* windows but in layers 2 and 5 */
    assert_int_equal(list_layers("{\"first\": 1}"), 0x04);
    assert_int_equal(list_layers("{\"last\": 1}"), 0x20);
    refused(RULES("{\"layers\": {\"first\": 3}}"), "layers.first 3: the model has 2 layers without a window");
}

static void test_sliding_layers_are_passed_over(void **state)
{
    (void)state;
    static hdl_route_plan route;
    hdl_plan *plan;
    set_facts("gemma3", 18, 640, 6);
    assert_int_equal(hdl_plan_named(&plan, "anchor"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    for (int i = 0; i < 18; i++)
        assert_int_equal(route.layers[i].op,
                         i == 11 || i == 17 ? HDL_OPERATOR_TOKEN_LIST : HDL_OPERATOR_DENSE);
    assert_int_equal(route.layers[17].owner, 5);
    hdl_plan_free(plan);
}

static void test_every_preset_prints_as_it_parses(void **state)
{
    (void)state;
    int n = 0;
    for (const hdl_embedded_plan *p = hdl_embedded_plans; p->name; p++, n++) {
        hdl_plan *plan, *again;
        hdl_buf text = {0}, second = {0};
        assert_int_equal(hdl_plan_named(&plan, p->name), HEDDLE_OK);
        assert_string_equal(plan->name, p->name);
        assert_int_equal(hdl_plan_format(plan, &text), HEDDLE_OK);
        assert_int_equal(hdl_plan_parse(&again, text.data, text.n, "again"), HEDDLE_OK);
        assert_true(json_equal(plan->doc, again->doc));
        assert_int_equal(hdl_plan_format(again, &second), HEDDLE_OK);
        assert_string_equal(text.data, second.data);
        hdl_buf_deinit(&text);
        hdl_buf_deinit(&second);
        hdl_plan_free(plan);
        hdl_plan_free(again);
    }
    assert_true(n >= 4);
}

static void test_overrides(void **state)
{
    (void)state;
    static hdl_route_plan route;
    static const char *const bad[] = {
        "anchor:k=3",      "anchor:top_k", "anchor:top_k=",      "anchor:top_k=3x",
        "anchor:top_k=-3", "nosuch",       "/no/such/file.json", "anchor:window=0,sinks=0,top_k=0",
        "dense:top_k=3"};
    static const char *const told[][2] = {
        {"anchor:topk=5", "override \"topk=5\": is not known here; did you mean \"top_k\"?"},
        {"anchor:zzzzzzzz=5", "override \"zzzzzzzz=5\": must be one of top_k, sinks"},
        {"anchor:top_k=5,top_k=6", "override \"top_k=6\": top_k is given before"},
        {"anchor:", "the colon before overrides is followed by none"},
        {"anchor:zzzzzzzz=5", "dense_below, seed, keep, observe, pool, every"}, /* each once */
        {"anchor:top_k=99999999999999999999",
         "override \"top_k=99999999999999999999\": must be in 0..16777216"},
        {"anchor:top_k=5,", "override \"\": must be one of"},
        {"anchor:top_k= 5", "override \"top_k= 5\": must be key=whole number"},
        {"anchor:top_k=+5", "override \"top_k=+5\": must be key=whole number"},
        {"anchr", "plan \"anchr\": did you mean \"anchor\"? It is neither a file"}};
    hdl_plan *plan;
    set_facts("llama", 30, 576, 0);
    assert_int_equal(hdl_plan_named(&plan, "anchor:top_k=77,window=5"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    assert_int_equal(route.layers[0].router.top_k, 77);
    assert_int_equal(route.layers[20].router.window, 5);
    assert_int_equal(route.layers[20].router.n_sink, 4);
    hdl_plan_free(plan);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_not_equal(hdl_plan_named(&plan, bad[i]), HEDDLE_OK);
        assert_null(plan);
        print_message("%s\n", hdl_last_error());
    }
    for (size_t i = 0; i < HDL_COUNT(told); i++) {
        assert_int_equal(hdl_plan_named(&plan, told[i][0]), HEDDLE_E_INVALID);
        if (!strstr(hdl_last_error(), told[i][1])) fail_msg("%s", hdl_last_error());
    }
}

static void test_a_plan_path_may_hold_colons(void **state)
{
    (void)state;
    static const char *const whole[] = {"", ":top_k=7"};
    char folder[] = "/tmp/heddle-plan-XXXXXX", inner[64], path[128], spec[160];
    hdl_plan *plan;
    assert_non_null(mkdtemp(folder));
    snprintf(inner, sizeof inner, "%s/a:b", folder);
    assert_int_equal(mkdir(inner, 0700), 0);
    for (int is_json = 0; is_json < 2; is_json++) {
        snprintf(path, sizeof path, "%s/%s", inner, is_json ? "p:q.json" : "plan");
        write_file(path,
                   RULES("{\"layers\": [0], \"operator\": \"token_list\", \"router\": {\"top_k\": 8}}"));
        for (int i = 0; i < 2; i++) {
            static hdl_route_plan route;
            snprintf(spec, sizeof spec, "%s%s", path, whole[i]);
            if (hdl_plan_named(&plan, spec)) fail_msg("%s: %s", spec, hdl_last_error());
            set_facts("llama", 2, 64, 0);
            assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
            assert_int_equal(route.layers[0].router.top_k, i ? 7 : 8);
            hdl_plan_free(plan);
        }
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/bad.json", folder);
    write_file(path, RULES("{\"layers\": [0], \"router\": 5}"));
    snprintf(spec, sizeof spec, "%s:top_k=7", path);
    assert_int_equal(hdl_plan_named(&plan, spec), HEDDLE_E_INVALID); /* once: out of memory */
    assert_non_null(strstr(hdl_last_error(), "variants[0].decode[0].router: must be an object"));
    unlink(path);
    rmdir(inner);
    rmdir(folder);
}

static void test_cost(void **state)
{
    (void)state;
    static hdl_route_plan route;
    hdl_plan *plan;
    set_facts("llama", 30, 576, 0);
    assert_int_equal(hdl_plan_named(&plan, "anchor:top_k=1024,sinks=4,window=128"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    assert_true(hdl_cost_of(&route, &facts, 0, 9999).tokens == 10000); /* an anchor: dense, K read once */
    assert_true(hdl_cost_of(&route, &facts, 1, 9999).tokens == 1156);
    assert_true(hdl_cost_of(&route, &facts, 1, 99).tokens == 100);
    hdl_plan_free(plan);
    assert_int_equal(hdl_plan_named(&plan, "oracle:top_k=10,sinks=0,window=0"), HEDDLE_OK);
    assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &route), HEDDLE_OK);
    assert_true(hdl_cost_of(&route, &facts, 3, 999).tokens == 1010); /* the dense pass and the list */
    hdl_plan_free(plan);
}

/* Bytes of codes that would begin inside one head's key and end in the next one's. */
static void test_keys_that_codes_cannot_cut_are_refused(void **state)
{
    (void)state;
    static hdl_schedule schedule;
    hdl_plan *plan;
    set_facts("llama", 2, 64, 0);
    facts.n_kv_heads = 2;
    schedule.facts = &facts;
    assert_int_equal(hdl_plan_named(&plan, "pqkeys"), HEDDLE_OK);
    for (int i = 0; i < 2; i++) {
        facts.head_dim = i ? 20 : 22;
        memset(schedule.n_planes, 0, sizeof schedule.n_planes);
        assert_int_equal(hdl_plan_resolve(plan, &facts, HDL_ROUTE_DECODE, &schedule.routes[1]), HEDDLE_OK);
        heddle_status status = hdl_schedule_find_planes(&schedule, plan);
        assert_int_equal(status, i ? HEDDLE_OK : HEDDLE_E_UNSUPPORTED);
        if (!i)
            assert_non_null(
                strstr(hdl_last_error(), "key_pq2, whose bytes stand for 4 elements: keys of 22"));
    }
    assert_int_equal(schedule.n_planes[0], 1); /* both layers read layer 0's rows */
    hdl_plan_free(plan);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    heddle_status status;
    int64_t n = 0, live = hdl_mem_live_bytes();
    do {
        hdl_plan *plan;
        hdl_mem_fail_at(++n);
        status = hdl_plan_named(&plan, "anchor:top_k=9");
        hdl_mem_fail_at(0);
        hdl_plan_free(plan);
        assert_int_equal(hdl_mem_live_bytes(), live);
    } while (status == HEDDLE_E_NOMEM);
    assert_int_equal(status, HEDDLE_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_head_routers_of_a_route),
        cmocka_unit_test(test_members_that_would_do_nothing_are_refused),
        cmocka_unit_test(test_a_row_reads_something),
        cmocka_unit_test(test_numbers_beyond_a_float_are_refused),
        cmocka_unit_test(test_more_than_the_candidates_hold_is_refused),
        cmocka_unit_test(test_candidates_hold_all_that_dense_below_promises),
        cmocka_unit_test(test_texts_and_variants),
        cmocka_unit_test(test_lists_that_no_layer_reads_are_refused),
        cmocka_unit_test(test_owners),
        cmocka_unit_test(test_layers_are_counted_from_either_end),
        cmocka_unit_test(test_sliding_layers_are_passed_over),
        cmocka_unit_test(test_every_preset_prints_as_it_parses),
        cmocka_unit_test(test_overrides),
        cmocka_unit_test(test_a_plan_path_may_hold_colons),
        cmocka_unit_test(test_cost),
        cmocka_unit_test(test_keys_that_codes_cannot_cut_are_refused),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
