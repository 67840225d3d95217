/* tokenizer_json.c - a tokenizer from Hugging Face's tokenizer.json and tokenizer_config.json.
 *
 * Understood: model BPE, byte-level or with byte fallback; normalizer none, NFC, or the space marks
 * (Prepend, Replace); pre_tokenizer ByteLevel, Digits, Split and Metaspace in the combinations that
 * published files use; post_processor TemplateProcessing with at most one token at each end.
 * Everything else that would change ids is refused by name: another tokenisation is worse than none.
 * Members that change no ids here (decoder, truncation, padding, trim_offsets, dropout null) are
 * not looked at. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/tokenizer_int.h"
#include "model/unicode.h"

enum { MAX_JSON_BYTES = 256 << 20, MAX_STEPS = 16 };

static const char space_mark[] = "\xe2\x96\x81";

typedef struct request { /* what the file asks for, before the tokenizer is made */
    const json_t *root, *model, *vocab, *merges, *added;
    const char *unk;
    bool byte_fallback, ignore_merges, fuses_unknown;
    bool is_byte_level, uses_gpt2_pattern, is_nfc, replaces_spaces;
    bool add_prefix_space, prefix_first_only, prefix_unless_space, prepends;
    const json_t *steps[MAX_STEPS]; /* pre_tokenizer, Sequences opened */
    int n_steps;
} request;

static const char *type_of(const json_t *obj)
{
    const char *type = json_string_value(json_object_get(obj, "type"));
    return type ? type : "";
}

static heddle_status refuse(const char *path, const char *what)
{
    return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "tokenizer.json: %s \"%.64s\" is not supported", path, what);
}

static bool is_absent(const json_t *value)
{
    return !value || json_is_null(value);
}

/* --- model ----------------------------------------------------------------------------------- */

static heddle_status read_model(request *p)
{
    const json_t *model = p->model = json_object_get(p->root, "model");
    if (!json_is_object(model)) return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer.json: model: must be an object");
    const char *type = type_of(model);
    if (*type && strcmp(type, "BPE") != 0) return refuse("model.type", type);
    p->vocab = json_object_get(model, "vocab");
    p->merges = json_object_get(model, "merges");
    if (!json_is_object(p->vocab) || !json_is_array(p->merges))
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "tokenizer.json: model: must have vocab (an object) and merges (a list)");
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) != 0) return refuse("model.dropout", "not 0");
    const char *affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *affix = json_string_value(json_object_get(model, affixes[i]));
        if (affix && *affix) return refuse(affixes[i], affix);
    }
    p->unk = json_string_value(json_object_get(model, "unk_token"));
    if (!is_absent(json_object_get(model, "byte_fallback")))
        HDL_TRY(hdl_json_bool(model, "model", "byte_fallback", &p->byte_fallback));
    if (!is_absent(json_object_get(model, "fuse_unk")))
        HDL_TRY(hdl_json_bool(model, "model", "fuse_unk", &p->fuses_unknown));
    if (!is_absent(json_object_get(model, "ignore_merges")))
        HDL_TRY(hdl_json_bool(model, "model", "ignore_merges", &p->ignore_merges));
    return HEDDLE_OK;
}

/* --- normalizer ------------------------------------------------------------------------------ */

static heddle_status read_normalizer(request *p, const json_t *normalizer, int depth)
{
    if (is_absent(normalizer)) return HEDDLE_OK;
    const char *type = type_of(normalizer);
    if (!strcmp(type, "Sequence") && depth < 4) {
        const json_t *list = json_object_get(normalizer, "normalizers");
        for (size_t i = 0; i < json_array_size(list); i++)
            HDL_TRY(read_normalizer(p, json_array_get(list, i), depth + 1));
        return HEDDLE_OK;
    }
    if (!strcmp(type, "NFC")) {
        p->is_nfc = true;
        return HEDDLE_OK;
    }
    if (!strcmp(type, "Prepend")) {
        const char *what = json_string_value(json_object_get(normalizer, "prepend"));
        if (!what || strcmp(what, space_mark) != 0 || p->replaces_spaces)
            return refuse("normalizer.prepend", what ? what : "");
        p->add_prefix_space = p->prepends = true;
        return HEDDLE_OK;
    }
    if (!strcmp(type, "Replace")) {
        const char *from = json_string_value(
            json_object_get(json_object_get(normalizer, "pattern"), "String"));
        const char *to = json_string_value(json_object_get(normalizer, "content"));
        if (!from || !to || strcmp(from, " ") != 0 || strcmp(to, space_mark) != 0)
            return refuse("normalizer Replace of", from ? from : "a regular expression");
        p->replaces_spaces = true;
        return HEDDLE_OK;
    }
    return refuse("normalizer.type", type);
}

/* --- pre_tokenizer --------------------------------------------------------------------------- */

static heddle_status open_steps(request *p, const json_t *step, int depth)
{
    if (is_absent(step)) return HEDDLE_OK;
    if (!strcmp(type_of(step), "Sequence") && depth < 4) {
        const json_t *list = json_object_get(step, "pretokenizers");
        for (size_t i = 0; i < json_array_size(list); i++)
            HDL_TRY(open_steps(p, json_array_get(list, i), depth + 1));
        return HEDDLE_OK;
    }
    if (p->n_steps == MAX_STEPS) return refuse("pre_tokenizer", "more than 16 steps");
    p->steps[p->n_steps++] = step;
    return HEDDLE_OK;
}

static heddle_status read_byte_level(request *p, const json_t *step, int index)
{
    bool prefix = true, use_regex = true; /* what the library assumes */
    HDL_TRY(hdl_json_bool(step, "pre_tokenizer", "add_prefix_space", &prefix));
    HDL_TRY(hdl_json_bool(step, "pre_tokenizer", "use_regex", &use_regex));
    if (prefix && index > 0) return refuse("pre_tokenizer ByteLevel.add_prefix_space", "after another step");
    if (index + 1 != p->n_steps) return refuse("pre_tokenizer", "a step after ByteLevel");
    p->is_byte_level = true;
    p->add_prefix_space = p->prefix_unless_space = prefix;
    p->uses_gpt2_pattern = use_regex;
    return HEDDLE_OK;
}

static heddle_status read_metaspace(request *p, const json_t *step)
{
    const char *mark = space_mark, *scheme = "always";
    bool prefix = true, splits = true;
    HDL_TRY(hdl_json_str(step, "pre_tokenizer", "replacement", &mark));
    HDL_TRY(hdl_json_str(step, "pre_tokenizer", "prepend_scheme", &scheme));
    HDL_TRY(hdl_json_bool(step, "pre_tokenizer", "add_prefix_space", &prefix));
    HDL_TRY(hdl_json_bool(step, "pre_tokenizer", "split", &splits));
    if (strcmp(mark, space_mark) != 0) return refuse("pre_tokenizer Metaspace.replacement", mark);
    if (splits) return refuse("pre_tokenizer Metaspace.split", "true");
    if (p->n_steps > 1 || p->prepends) return refuse("pre_tokenizer", "Metaspace beside another step");
    p->replaces_spaces = true;
    p->add_prefix_space = prefix && strcmp(scheme, "never") != 0;
    p->prefix_first_only = !strcmp(scheme, "first");
    p->prefix_unless_space = true;
    return HEDDLE_OK;
}

static heddle_status read_pre_tokenizer(request *p)
{
    HDL_TRY(open_steps(p, json_object_get(p->root, "pre_tokenizer"), 0));
    for (int i = 0; i < p->n_steps; i++) {
        const json_t *step = p->steps[i];
        const char *type = type_of(step);
        if (!strcmp(type, "ByteLevel"))
            HDL_TRY(read_byte_level(p, step, i));
        else if (!strcmp(type, "Metaspace"))
            HDL_TRY(read_metaspace(p, step));
        else if (strcmp(type, "Digits") != 0 && strcmp(type, "Split") != 0)
            return refuse("pre_tokenizer.type", type);
    }
    if (p->is_byte_level) {
        if (p->replaces_spaces || p->prepends) return refuse("normalizer", "space marks with ByteLevel");
        return HEDDLE_OK;
    }
    if (!p->byte_fallback) return refuse("model", "BPE with neither ByteLevel nor byte_fallback");
    if (p->is_nfc) return refuse("normalizer.type", "NFC with byte_fallback");
    for (int i = 0; i < p->n_steps; i++) {
        /* splitting at spaces when there are none left; anything else would cut */
        const char *at = json_string_value(
            json_object_get(json_object_get(p->steps[i], "pattern"), "String"));
        bool is_idle = !strcmp(type_of(p->steps[i]), "Split") && at && !strcmp(at, " ") && p->replaces_spaces;
        if (!is_idle && strcmp(type_of(p->steps[i]), "Metaspace") != 0)
            return refuse("pre_tokenizer with byte_fallback: type", type_of(p->steps[i]));
    }
    return HEDDLE_OK;
}

/* One Split as a pattern step. */
static heddle_status add_split(hdl_pretok *pretok, const json_t *step)
{
    const json_t *pattern = json_object_get(step, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *plain = json_string_value(json_object_get(pattern, "String"));
    const char *behavior = json_string_value(json_object_get(step, "behavior"));
    bool invert = json_is_true(json_object_get(step, "invert"));
    bool drops_gaps = behavior && !strcmp(behavior, "Removed") && invert;
    if (!drops_gaps && (!behavior || strcmp(behavior, "Isolated") != 0))
        return refuse("pre_tokenizer Split.behavior", behavior ? behavior : "");
    if (regex) return hdl_pretok_add(pretok, regex, drops_gaps);
    if (!plain || !*plain) return refuse("pre_tokenizer Split.pattern", "neither Regex nor String");
    hdl_buf quoted = {0};
    for (const char *c = plain; *c; c++) {
        bool is_word = (*c >= '0' && *c <= '9') || (*c >= 'A' && *c <= 'Z') || (*c >= 'a' && *c <= 'z') ||
                       *c & 0x80;
        if (!is_word) hdl_buf_puts(&quoted, "\\");
        hdl_buf_add(&quoted, c, 1);
    }
    heddle_status status = hdl_buf_status(&quoted);
    if (!status) status = hdl_pretok_add(pretok, quoted.data, drops_gaps);
    hdl_buf_deinit(&quoted);
    return status;
}

static heddle_status add_steps(const request *p, hdl_pretok *pretok)
{
    if (!p->is_byte_level) return HEDDLE_OK;
    bool is_smollm = p->n_steps == 2 && !strcmp(type_of(p->steps[0]), "Digits") && p->uses_gpt2_pattern;
    if (is_smollm) {
        bool individual = json_is_true(json_object_get(p->steps[0], "individual_digits"));
        return hdl_pretok_add(pretok, individual ? hdl_pretok_digits : hdl_pretok_numbers, false);
    }
    for (int i = 0; i < p->n_steps; i++) {
        const char *type = type_of(p->steps[i]);
        if (!strcmp(type, "Split")) HDL_TRY(add_split(pretok, p->steps[i]));
        if (!strcmp(type, "Digits")) {
            bool individual = json_is_true(json_object_get(p->steps[i], "individual_digits"));
            HDL_TRY(hdl_pretok_add(pretok, individual ? "\\p{N}" : "\\p{N}+", false));
        }
        if (!strcmp(type, "ByteLevel") && p->uses_gpt2_pattern)
            HDL_TRY(hdl_pretok_add(pretok, hdl_pretok_gpt2, false));
    }
    return HEDDLE_OK;
}

/* --- vocabulary ------------------------------------------------------------------------------ */

/* Largest id + 1 over vocabulary and added tokens; files leave few holes. */
static heddle_status count_ids(const request *p, int64_t *n_ids)
{
    const char *key;
    json_t *value;
    int64_t max = -1, n = (int64_t)json_object_size(p->vocab) + (int64_t)json_array_size(p->added);
    json_object_foreach((json_t *)p->vocab, key, value)
    {
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer.json: model.vocab[\"%.64s\"]: must be a whole number",
                            key);
        max = HDL_MAX(max, json_integer_value(value));
    }
    for (size_t i = 0; i < json_array_size(p->added); i++) {
        const json_t *row = json_array_get(p->added, i), *id = json_object_get(row, "id");
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            !json_is_string(json_object_get(row, "content")))
            return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer.json: added_tokens[%zu]: must have id and content",
                            i);
        max = HDL_MAX(max, json_integer_value(id));
    }
    if (max < 0 || max >= HDL_TOK_MAX_VOCAB || max > 2 * n + 65536)
        return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer.json: %lld tokens with ids up to %lld", (long long)n,
                        (long long)max);
    *n_ids = max + 1;
    return HEDDLE_OK;
}

static bool is_byte_spelling(const char *text)
{
    return strlen(text) == 6 && !strncmp(text, "<0x", 3) && text[5] == '>' &&
           strspn(text + 3, "0123456789ABCDEF") == 2;
}

static heddle_status fill_added(const request *p, hdl_token_in *rows)
{
    for (size_t i = 0; i < json_array_size(p->added); i++) {
        const json_t *row = json_array_get(p->added, i), *content = json_object_get(row, "content");
        bool special = false, normalized = false, lstrip = false, rstrip = false, whole = false;
        char path[64];
        snprintf(path, sizeof path, "added_tokens[%zu]", i);
        HDL_TRY(hdl_json_bool(row, path, "special", &special));
        HDL_TRY(hdl_json_bool(row, path, "normalized", &normalized));
        HDL_TRY(hdl_json_bool(row, path, "lstrip", &lstrip));
        HDL_TRY(hdl_json_bool(row, path, "rstrip", &rstrip));
        HDL_TRY(hdl_json_bool(row, path, "single_word", &whole));
        if (normalized && p->prepends) return refuse(path, "normalized with a Prepend normalizer");
        /* the model's own id counts where it has the same token */
        const json_t *own = json_object_get(p->vocab, json_string_value(content));
        int64_t id = json_integer_value(own ? own : json_object_get(row, "id"));
        hdl_token_in *in = &rows[id];
        bool is_taken = in->type && !own &&
                        (in->text.n != (int64_t)json_string_length(content) ||
                         memcmp(in->text.data, json_string_value(content), (size_t)in->text.n));
        if (is_taken)
            return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer.json: %s: id %lld belongs to another token", path,
                            (long long)id);
        in->text = (hdl_text){json_string_value(content), (int64_t)json_string_length(content)};
        in->type = special ? HDL_TOKEN_CONTROL : HDL_TOKEN_USER;
        in->flags = (uint8_t)((lstrip ? HDL_TOKEN_LSTRIP : 0) | (rstrip ? HDL_TOKEN_RSTRIP : 0) |
                              (whole ? HDL_TOKEN_WHOLE_WORD : 0));
    }
    return HEDDLE_OK;
}

static heddle_status fill_rows(const request *p, hdl_token_in *rows)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)p->vocab, key, value)
    {
        hdl_token_in *in = &rows[json_integer_value(value)];
        if (in->type)
            return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer.json: model.vocab: id %lld is given twice",
                            (long long)json_integer_value(value));
        in->text = (hdl_text){key, (int64_t)strlen(key)};
        bool is_byte = !p->is_byte_level && p->byte_fallback && is_byte_spelling(key);
        in->type = is_byte ? HDL_TOKEN_BYTE : HDL_TOKEN_NORMAL;
    }
    return fill_added(p, rows);
}

static heddle_status add_merges(const request *p, hdl_tokenizer *tok)
{
    size_t n = json_array_size(p->merges);
    HDL_TRY(hdl_tok_reserve_merges(tok, (int64_t)n));
    for (size_t i = 0; i < n; i++) {
        const json_t *merge = json_array_get(p->merges, i), *a = json_array_get(merge, 0),
                     *b = json_array_get(merge, 1);
        if (json_is_string(merge)) {
            hdl_text line = {json_string_value(merge), (int64_t)json_string_length(merge)};
            HDL_TRY(hdl_tok_add_merge_line(tok, line, (int32_t)i));
        } else if (json_array_size(merge) == 2 && json_is_string(a) && json_is_string(b)) {
            hdl_text left = {json_string_value(a), (int64_t)json_string_length(a)};
            hdl_text right = {json_string_value(b), (int64_t)json_string_length(b)};
            HDL_TRY(hdl_tok_add_merge(tok, left, right, (int32_t)i));
        } else {
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "tokenizer.json: model.merges[%zu]: must be \"a b\" or [\"a\", \"b\"]", i);
        }
    }
    return HEDDLE_OK;
}

/* --- what stands around a text --------------------------------------------------------------- */

/* Id of a special token by its spelling; -1 for NULL or an unknown one. */
static int32_t id_of(const hdl_tokenizer *tok, const char *text)
{
    return text ? hdl_tokenizer_id_of(tok, text) : -1;
}

static heddle_status read_template(const json_t *processor, hdl_tokenizer *tok)
{
    const json_t *single = json_object_get(processor, "single");
    hdl_special_ids *special = &tok->special;
    bool is_after = false;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i), *token = json_object_get(item, "SpecialToken");
        if (json_object_get(item, "Sequence")) {
            is_after = true;
            continue;
        }
        const char *name = json_string_value(json_object_get(token, "id"));
        const json_t *known = name ? json_object_get(json_object_get(processor, "special_tokens"), name)
                                   : NULL;
        const json_t *ids = json_object_get(known, "ids");
        int64_t id = json_array_size(ids) == 1 ? json_integer_value(json_array_get(ids, 0))
                                               : id_of(tok, name);
        bool *adds = is_after ? &special->add_eos : &special->add_bos;
        if (id < 0 || id >= tok->n_vocab || json_array_size(ids) > 1 || *adds)
            return refuse("post_processor.single", name ? name : "");
        *adds = true;
        *(is_after ? &special->eos : &special->bos) = (int32_t)id;
    }
    return HEDDLE_OK;
}

static heddle_status read_post_processor(const json_t *processor, hdl_tokenizer *tok, int depth)
{
    if (is_absent(processor)) return HEDDLE_OK;
    const char *type = type_of(processor);
    if (!strcmp(type, "ByteLevel")) return HEDDLE_OK; /* offsets only */
    if (!strcmp(type, "TemplateProcessing")) return read_template(processor, tok);
    if (strcmp(type, "Sequence") != 0 || depth >= 4) return refuse("post_processor.type", type);
    const json_t *list = json_object_get(processor, "processors");
    for (size_t i = 0; i < json_array_size(list); i++)
        HDL_TRY(read_post_processor(json_array_get(list, i), tok, depth + 1));
    return HEDDLE_OK;
}

/* "<s>" or {"content": "<s>", ...} */
static const char *token_name(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

static heddle_status read_config(const json_t *config, hdl_tokenizer *tok)
{
    hdl_special_ids *special = &tok->special;
    if (special->bos < 0) special->bos = id_of(tok, token_name(config, "bos_token"));
    if (special->eos < 0) special->eos = id_of(tok, token_name(config, "eos_token"));
    special->pad = id_of(tok, token_name(config, "pad_token"));
    if (!is_absent(json_object_get(config, "add_bos_token")))
        HDL_TRY(hdl_json_bool(config, "tokenizer_config.json", "add_bos_token", &special->add_bos));
    if (!is_absent(json_object_get(config, "add_eos_token")))
        HDL_TRY(hdl_json_bool(config, "tokenizer_config.json", "add_eos_token", &special->add_eos));
    return HEDDLE_OK;
}

/* --- all of it ------------------------------------------------------------------------------- */

static heddle_status build(hdl_tokenizer **out, request *p, const json_t *config)
{
    hdl_tokenizer *tok = NULL;
    hdl_token_in *rows = NULL;
    int64_t n_vocab = 0;
    HDL_TRY(read_model(p));
    HDL_TRY(read_normalizer(p, json_object_get(p->root, "normalizer"), 0));
    HDL_TRY(read_pre_tokenizer(p));
    p->added = json_object_get(p->root, "added_tokens");
    HDL_TRY(count_ids(p, &n_vocab));
    rows = hdl_calloc(n_vocab, sizeof *rows);
    if (!rows) return HEDDLE_E_NOMEM;
    heddle_status status = fill_rows(p, rows);
    if (!status) status = hdl_tok_new(&tok, p->is_byte_level, false, rows, n_vocab);
    if (!status) status = add_merges(p, tok);
    if (!status) status = add_steps(p, &tok->pretok);
    if (!status) status = read_post_processor(json_object_get(p->root, "post_processor"), tok, 0);
    if (!status && config) status = read_config(config, tok);
    if (status) goto done;
    tok->special.unk = id_of(tok, p->unk);
    tok->ignore_merges = p->ignore_merges;
    tok->fuses_unknown = p->fuses_unknown;
    tok->is_nfc = p->is_nfc;
    tok->replaces_spaces = p->replaces_spaces;
    tok->add_prefix_space = p->add_prefix_space;
    tok->prefix_first_only = p->prefix_first_only;
    tok->prefix_unless_space = p->prefix_unless_space;
    hdl_tok_finish(tok);
    *out = tok;
    tok = NULL;
done:
    hdl_free(rows);
    hdl_tokenizer_free(tok);
    return status;
}

heddle_status hdl_tokenizer_from_json_text(hdl_tokenizer **out, hdl_text json, hdl_text config)
{
    *out = NULL;
    request p = {0};
    json_t *root = NULL, *config_root = NULL;
    heddle_status status = hdl_json_parse(&root, json.data, json.n, "tokenizer.json");
    if (!status && config.n)
        status = hdl_json_parse(&config_root, config.data, config.n, "tokenizer_config.json");
    if (!status && !json_is_object(root))
        status = HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer.json: must be an object");
    p.root = root;
    if (!status) status = build(out, &p, config_root);
    json_decref(root);
    json_decref(config_root);
    return status;
}

heddle_status hdl_tokenizer_from_json(hdl_tokenizer **out, const char *dir)
{
    *out = NULL;
    hdl_buf path = {0}, json = {0}, config = {0};
    hdl_buf_printf(&path, "%s/tokenizer.json", dir);
    heddle_status status = hdl_buf_status(&path);
    if (!status) status = hdl_buf_read_file(&json, path.data, MAX_JSON_BYTES);
    if (status) goto done;
    path.n = 0;
    hdl_buf_printf(&path, "%s/tokenizer_config.json", dir);
    status = hdl_buf_status(&path);
    if (!status && access(path.data, F_OK) == 0)
        status = hdl_buf_read_file(&config, path.data, MAX_JSON_BYTES);
    if (!status)
        status = hdl_tokenizer_from_json_text(out, (hdl_text){json.data, json.n},
                                              (hdl_text){config.data, config.n});
done:
    hdl_buf_deinit(&path);
    hdl_buf_deinit(&json);
    hdl_buf_deinit(&config);
    return status;
}
