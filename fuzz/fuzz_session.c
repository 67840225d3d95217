/* fuzz_session.c - a session file of any bytes whose checksum holds, loaded into a session that goes on. */
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
    heddle_session *session = fuzz_session_new(engine);
    heddle_session_file_info info = {.struct_size = sizeof info};
    heddle_status seen = heddle_session_file_inspect(path, &info);
    heddle_status status = heddle_session_load(session, path);
    if (!status && seen) abort();
    if (status && heddle_session_len(session)) abort(); /* refused: the session is as it was */
    const int32_t id = 5;
    for (int i = 0; i < 6 && heddle_session_len(session) < 48; i++)
        if (heddle_session_decode(session, &id, 1)) break;
    heddle_session_free(session);
    close(fd);
    free(copy);
    return 0;
}
