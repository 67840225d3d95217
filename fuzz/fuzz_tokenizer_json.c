/* fuzz_tokenizer_json.c - a tokenizer.json of any bytes; what is accepted must encode and decode.
 *
 * Bytes behind the first 0xff, which no JSON text holds, are tokenizer_config.json. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] =
    "<s>The weaver's 12 looms, caf\xc3\xa9 e\xcc\x81 \xe4\xb8\xad\xe6\x96\x87\n\n  \xff\xc3 <|im_end|>";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *cut = size ? memchr(data, 0xff, size) : NULL;
    int64_t n = cut ? cut - data : (int64_t)size;
    hdl_text json = {(const char *)data, n};
    hdl_text config = {cut ? (const char *)cut + 1 : NULL, cut ? (int64_t)size - n - 1 : 0};
    hdl_tokenizer *tok;
    if (hdl_tokenizer_from_json_text(&tok, json, config)) return 0;
    for (int mode = 0; mode < 4; mode++) {
        hdl_ids ids = {0};
        hdl_buf out = {0};
        if (!hdl_tokenizer_encode(tok, text, sizeof text - 1, mode & 1, mode & 2, &ids) &&
            hdl_tokenizer_decode(tok, ids.data, ids.n, mode & 1, &out))
            abort(); /* every id it made must be its own */
        hdl_ids_deinit(&ids);
        hdl_buf_deinit(&out);
    }
    hdl_tokenizer_free(tok);
    return 0;
}
