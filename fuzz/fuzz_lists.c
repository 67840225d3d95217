/* fuzz_lists.c - a file of recorded lists of any bytes whose checksum holds, replayed. */
#include "fuzz_saved.h"

/* What was loaded is read in full: ascending tokens at or before their row, and the text of the file's ids. */
static void read_all(const heddle_engine *engine, const heddle_lists *lists)
{
    enum { N_MAX = 64 };
    int32_t ids[N_MAX], layer;
    int64_t row, n_lists = 0;
    for (int64_t n; (n = heddle_lists_at(lists, n_lists, &row, &layer, ids, N_MAX)) >= 0; n_lists++) {
        if (row < 0 || layer < 0 || n > row + 1) abort();
        for (int64_t i = 0; i < n && n <= N_MAX; i++)
            if (ids[i] < 0 || ids[i] > row || (i && ids[i] <= ids[i - 1])) abort();
    }
    if (n_lists != heddle_lists_count(lists) || heddle_lists_at(lists, -1, NULL, NULL, NULL, 0) >= 0) abort();
    const int32_t *tokens;
    char *text;
    int64_t n_tokens = heddle_lists_tokens(lists, &tokens), n_bytes;
    if (!heddle_detokenize(engine, tokens, n_tokens, 1, &text, &n_bytes)) heddle_string_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    int fd;
    uint8_t *copy = fuzz_mend(data, size);
    heddle_engine *engine = fuzz_engine();
    if (!copy || !fuzz_file_make(copy, size, &fd, path)) {
        free(copy);
        return 0;
    }
    heddle_lists *lists;
    if (!heddle_lists_load(&lists, engine, path)) {
        read_all(engine, lists);
        heddle_session *session = fuzz_session_new(engine);
        static const int32_t ids[24] = {5, 6, 7, 8, 9, 10, 11, 12};
        (void)heddle_lists_check(lists, session, ids, 20); /* whatever it says: the replay below goes on */
        if (!heddle_session_replay(session, lists) && !heddle_session_extend(session, ids, 20, NULL, NULL))
            for (int i = 0; i < 4; i++)
                if (heddle_session_decode(session, ids + 20 + i, 1)) break;
        heddle_session_free(session);
        heddle_lists_free(lists);
    }
    close(fd);
    free(copy);
    return 0;
}
