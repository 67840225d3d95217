/* fuzz_docfile.c - a document file of any bytes; the checksums of header and tables are mended (docfile.c draws
 * the header). */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "fuzz_file.h"
#include "kv/docfile.h"

enum {
    N_TOKENS_AT = 24,
    N_PAGES_AT = 32,
    IDS_AT = 48,
    SUMS_AT = 56,
    IDS_SUM_AT = 112,
    SUMS_SUM_AT = 120,
    HEADER_SUM_AT = 128
};

static int64_t docfile_number(const uint8_t *file, int at)
{
    int64_t n;
    memcpy(&n, file + at, sizeof n);
    return n;
}

/* The sum of n items of `each` bytes at the place that the header says, where they lie in the file. */
static void docfile_mend(uint8_t *file, int64_t size, int place, int count, int64_t each, int sum_at)
{
    int64_t at = docfile_number(file, place), n = docfile_number(file, count);
    if (at < 0 || n < 0 || at > size || n > (size - at) / each) return;
    uint64_t sum = hdl_hash(file + at, n * each);
    memcpy(file + sum_at, &sum, sizeof sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    int fd;
    hdl_docfile *file;
    if (size < HEADER_SUM_AT + 8) return 0;
    uint8_t *copy = malloc(size);
    if (!copy) return 0;
    memcpy(copy, data, size);
    docfile_mend(copy, (int64_t)size, IDS_AT, N_TOKENS_AT, 4, IDS_SUM_AT);
    docfile_mend(copy, (int64_t)size, SUMS_AT, N_PAGES_AT, 16, SUMS_SUM_AT);
    uint64_t sum = hdl_hash(copy, HEADER_SUM_AT);
    memcpy(copy + HEADER_SUM_AT, &sum, sizeof sum);
    if (fuzz_file_make(copy, size, &fd, path)) {
        if (!hdl_docfile_open(&file, path)) {
            const hdl_docfile_facts *facts = hdl_docfile_facts_of(file);
            int64_t total = 0;
            for (int64_t i = 0; i < facts->n_tokens; i++) total += hdl_docfile_ids(file)[i];
            if (hdl_docfile_verify(file)) total++;
            if (total == INT64_MIN) abort();
            hdl_docfile_unref(file);
        }
        close(fd);
    }
    free(copy);
    return 0;
}
