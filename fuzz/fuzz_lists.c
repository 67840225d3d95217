/* fuzz_lists.c - a file of recorded lists of any bytes whose checksum holds, replayed. */
#include "fuzz_saved.h"

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
        heddle_session *session = fuzz_session_new(engine);
        static const int32_t ids[24] = {5, 6, 7, 8, 9, 10, 11, 12};
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
