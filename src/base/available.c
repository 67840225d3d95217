/* available.c - MemAvailable, and what the memory control groups leave.
 *
 * A container sees the machine's MemAvailable but is stopped at its group's limit. /proc/self/cgroup
 * names the group, /proc/self/mountinfo says where the hierarchy is mounted and which part of it;
 * every group from there up to the mount's root limits what is below it. */
#include "base/available.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PATH = 4096, MAX_LINE = 8192 };

/* One hierarchy: where it is mounted, which group the mount shows as its root, and ours. */
typedef struct hierarchy {
    bool is_v2;
    char mount[MAX_PATH], mount_root[MAX_PATH], group[MAX_PATH];
} hierarchy;

static FILE *open_under(const char *root, const char *path)
{
    char whole[2 * MAX_PATH];
    int n = snprintf(whole, sizeof whole, "%s%s", root, path);
    return n > 0 && n < (int)sizeof whole ? fopen(whole, "r") : NULL;
}

/* The number in mount/group/name, or, with `key`, the one after that word; -1 = none ("max"). */
static int64_t number_of(const char *root, const hierarchy *at, const char *name, const char *key)
{
    char path[2 * MAX_PATH], line[MAX_LINE];
    int64_t value = -1;
    int n = snprintf(path, sizeof path, "%s%s/%s", at->mount, at->group, name);
    FILE *file = n > 0 && n < (int)sizeof path ? open_under(root, path) : NULL;
    while (file && value < 0 && fgets(line, sizeof line, file)) {
        size_t n_key = key ? strlen(key) : 0;
        if (key && (strncmp(line, key, n_key) != 0 || line[n_key] != ' ')) continue;
        if (sscanf(line + n_key, "%" SCNd64, &value) != 1) value = -1;
        if (!key) break;
    }
    if (file) fclose(file);
    return value;
}

/* What the group at->group leaves; INT64_MAX = it has no limit. */
static int64_t room_of(const char *root, const hierarchy *at)
{
    int64_t limit = number_of(root, at, at->is_v2 ? "memory.max" : "memory.limit_in_bytes", NULL);
    if (limit < 0) return INT64_MAX;
    int64_t used = number_of(root, at, at->is_v2 ? "memory.current" : "memory.usage_in_bytes", NULL);
    static const char *const keys[2][2] = {{"total_inactive_file", "total_active_file"},
                                           {"inactive_file", "active_file"}};
    used = HDL_MAX(used, 0);
    for (int k = 0; k < 2; k++) used -= HDL_MAX(number_of(root, at, "memory.stat", keys[at->is_v2][k]), 0);
    return HDL_MAX(limit - HDL_MAX(used, 0), 0);
}

/* Fills mount and mount_root from /proc/self/mountinfo; false = not mounted here. */
static bool find_mount(const char *root, hierarchy *at)
{
    char line[MAX_LINE], mount[MAX_PATH], mount_root[MAX_PATH], type[64], options[MAX_PATH];
    bool is_found = false;
    FILE *file = open_under(root, "/proc/self/mountinfo");
    while (file && !is_found && fgets(line, sizeof line, file)) {
        const char *tail = strstr(line, " - ");
        if (!tail || sscanf(line, "%*s %*s %*s %4095s %4095s", mount_root, mount) != 2 ||
            sscanf(tail + 3, "%63s %*s %4095s", type, options) != 2)
            continue;
        const char *word = strstr(options, "memory");
        bool has_memory = word && (word == options || word[-1] == ',') && (!word[6] || word[6] == ',');
        is_found = at->is_v2 ? !strcmp(type, "cgroup2") : !strcmp(type, "cgroup") && has_memory;
    }
    if (file) fclose(file);
    if (!is_found) return false;
    memcpy(at->mount, mount, sizeof mount);
    memcpy(at->mount_root, mount_root, sizeof mount_root);
    return true;
}

/* The group's path below the mount: a container often sees a part of the hierarchy as its root. */
static void below_mount(hierarchy *at)
{
    size_t n = strlen(at->mount_root), n_group = strlen(at->group);
    if (!strcmp(at->mount_root, "/")) n = 0;
    bool is_inside = !strncmp(at->group, at->mount_root, n) && (!at->group[n] || at->group[n] == '/');
    if (is_inside)
        memmove(at->group, at->group + n, n_group - n + 1);
    else
        at->group[0] = 0;
    if (!strcmp(at->group, "/")) at->group[0] = 0;
}

static int64_t room_in_hierarchy(const char *root, hierarchy *at)
{
    int64_t room = INT64_MAX;
    if (!find_mount(root, at)) return room;
    below_mount(at);
    for (;;) {
        int64_t here = room_of(root, at);
        room = HDL_MIN(room, here);
        char *slash = strrchr(at->group, '/');
        if (!slash) return room;
        *slash = 0;
    }
}

static int64_t groups_room(const char *root)
{
    char line[MAX_LINE];
    int64_t room = INT64_MAX;
    FILE *file = open_under(root, "/proc/self/cgroup");
    while (file && fgets(line, sizeof line, file)) {
        static const char v1[] = ":memory:";
        hierarchy at = {.is_v2 = !strncmp(line, "0::", 3)};
        const char *group = at.is_v2 ? line + 3 : strstr(line, v1) ? strstr(line, v1) + strlen(v1) : NULL;
        size_t n = group ? strcspn(group, "\n") : sizeof at.group;
        if (n >= sizeof at.group) continue;
        memcpy(at.group, group, n);
        int64_t here = room_in_hierarchy(root, &at);
        room = HDL_MIN(room, here);
    }
    if (file) fclose(file);
    return room;
}

int64_t hdl_available_bytes(const char *root)
{
    char line[256];
    int64_t kib = -1;
    FILE *file = open_under(root, "/proc/meminfo");
    while (file && kib < 0 && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %" SCNd64 " kB", &kib) == 1) break;
    if (file) fclose(file);
    int64_t room = groups_room(root);
    return kib < 0 ? room : HDL_MIN(kib * 1024, room);
}
