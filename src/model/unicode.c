#include "model/unicode.h"

#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"

int hdl_utf8_next(const char *text, int64_t n, int32_t *cp)
{
    const uint8_t *s = (const uint8_t *)text;
    if (n <= 0) return 0;
    if (s[0] < 0x80) {
        *cp = s[0];
        return 1;
    }
    int len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n < len) return 0;
    int32_t value = s[0] & (0x7f >> len);
    for (int i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        value = value << 6 | (s[i] & 0x3f);
    }
    if (len == 3 && (value < 0x800 || (value >= 0xd800 && value < 0xe000))) return 0;
    if (len == 4 && (value < 0x10000 || value > 0x10ffff)) return 0;
    *cp = value;
    return len;
}

int hdl_utf8_put(int32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    int len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3f));
    out[0] = (char)((0xf00 >> len & 0xff) | cp);
    return len;
}

int64_t hdl_utf8_valid_prefix(const char *text, int64_t n)
{
    int64_t i = 0;
    while (i < n) {
        uint64_t word;
        if (n - i >= 8) {
            memcpy(&word, text + i, 8);
            if (!(word & UINT64_C(0x8080808080808080))) {
                i += 8;
                continue;
            }
        }
        int32_t cp;
        int len = hdl_utf8_next(text + i, n - i, &cp);
        if (!len) return i;
        i += len;
    }
    return i;
}

bool hdl_unicode_is_space(int32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
           cp == 0x3000;
}

bool hdl_unicode_is_word(int32_t cp)
{
    utf8proc_category_t category = utf8proc_category(cp);
    /* the circled letters are the Alphabetic characters among the symbols */
    bool is_circled = (cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) ||
                      (cp >= 0x1f150 && cp <= 0x1f169) || (cp >= 0x1f170 && cp <= 0x1f189);
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) ||
           category == UTF8PROC_CATEGORY_PC || cp == 0x200c || cp == 0x200d || is_circled;
}

/* Stable sort by combining class of the marks between two starters. utf8proc's own reordering
 * exchanges neighbours, which is quadratic on a hostile run of marks; counting is not. */
static heddle_status reorder(int32_t *cps, int64_t n)
{
    for (int64_t i = 0; i < n;) {
        int64_t end = i;
        bool is_sorted = true;
        int last = 0;
        for (; end < n; end++) {
            int ccc = utf8proc_get_property(cps[end])->combining_class;
            if (!ccc) break;
            if (ccc < last) is_sorted = false;
            last = ccc;
        }
        if (!is_sorted) {
            int64_t at[257] = {0};
            int32_t *copy = hdl_calloc(end - i, sizeof *copy);
            if (!copy) return HEDDLE_E_NOMEM;
            memcpy(copy, cps + i, (size_t)(end - i) * sizeof *copy);
            for (int64_t k = 0; k < end - i; k++) at[utf8proc_get_property(copy[k])->combining_class + 1]++;
            for (int c = 1; c < 257; c++) at[c] += at[c - 1];
            for (int64_t k = 0; k < end - i; k++)
                cps[i + at[utf8proc_get_property(copy[k])->combining_class]++] = copy[k];
            hdl_free(copy);
        }
        i = HDL_MAX(end, i + 1);
    }
    return HEDDLE_OK;
}

enum { MAX_DECOMPOSED = 32 }; /* code points one code point can become; 4 in canonical forms */

/* A well-formed run of n bytes. */
static heddle_status nfc_run(const char *text, int64_t n, hdl_buf *out)
{
    int64_t n_cps = 0, capacity = n + MAX_DECOMPOSED;
    int32_t *cps = hdl_calloc(capacity, sizeof *cps);
    if (!cps) return HEDDLE_E_NOMEM;
    heddle_status status = HEDDLE_OK;
    for (int64_t i = 0; i < n;) {
        int32_t cp = 0;
        i += HDL_MAX(hdl_utf8_next(text + i, n - i, &cp), 1);
        if (n_cps + MAX_DECOMPOSED > capacity) {
            int32_t *grown = hdl_realloc(cps, capacity, capacity * 2, sizeof *cps);
            if (!grown) {
                status = HEDDLE_E_NOMEM;
                goto done;
            }
            cps = grown;
            capacity *= 2;
        }
        int boundclass = UTF8PROC_BOUNDCLASS_START;
        utf8proc_ssize_t got = utf8proc_decompose_char(cp, cps + n_cps, MAX_DECOMPOSED,
                                                       UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundclass);
        if (got < 0 || got > MAX_DECOMPOSED) {
            cps[n_cps] = cp;
            got = 1;
        }
        n_cps += got;
    }
    status = reorder(cps, n_cps);
    if (status) goto done;
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(cps, n_cps, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < composed; i++) {
        char bytes[4];
        hdl_buf_add(out, bytes, hdl_utf8_put(cps[i], bytes));
    }
    status = hdl_buf_status(out);
done:
    hdl_free(cps);
    return status;
}

heddle_status hdl_unicode_nfc(const char *text, int64_t n, hdl_buf *out)
{
    /* below U+0300 (first bytes up to 0xcb) every text is its own NFC */
    int64_t plain = 0;
    while (plain < n && (uint8_t)text[plain] < 0xcc) plain++;
    if (plain == n) {
        hdl_buf_add(out, text, n);
        return hdl_buf_status(out);
    }
    for (int64_t i = 0; i < n;) {
        int64_t valid = hdl_utf8_valid_prefix(text + i, n - i);
        if (valid) HDL_TRY(nfc_run(text + i, valid, out));
        i += valid;
        if (i < n) hdl_buf_add(out, text + i++, 1);
    }
    return hdl_buf_status(out);
}
