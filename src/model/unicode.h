/* unicode.h - the little of UTF-8 and Unicode that tokenizers need.
 *
 * Broken text is never refused: a byte that is not part of a well-formed sequence (Unicode table
 * 3-7: no overlong forms, no surrogates, nothing above U+10FFFF) is a unit of its own. */
#ifndef HDL_UNICODE_H
#define HDL_UNICODE_H

#include "base/buf.h"

/* Bytes of the well-formed sequence at text (1..4), its code point in *cp; 0 if there is none. */
int hdl_utf8_next(const char *text, int64_t n, int32_t *cp);
/* Writes 1..4 bytes, returns their number. */
int hdl_utf8_put(int32_t cp, char out[4]);
/* Bytes of the longest well-formed prefix. */
int64_t hdl_utf8_valid_prefix(const char *text, int64_t n);
/* White_Space of Unicode: what `\s` means to tokenizer.json's patterns. */
bool hdl_unicode_is_space(int32_t cp);
/* Alphabetic, marks, decimal digits, connectors, joiners: what `\w` means to tokenizer.json's
 * single_word. */
bool hdl_unicode_is_word(int32_t cp);
/* Appends the NFC form; broken bytes are copied and stop composition. O(n) for any text. */
heddle_status hdl_unicode_nfc(const char *text, int64_t n, hdl_buf *out);

#endif
