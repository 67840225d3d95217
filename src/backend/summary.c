#include "backend/summary.h"

static const struct plane_traits {
    const char *name;
    int32_t bits;  /* of an element */
    int32_t n_per; /* values per element: 2 for bounds */
    bool has_scale;
} traits[HDL_N_PLANE_KINDS] = {
    [HDL_PLANE_NONE] = {"none", 0, 0, false},
    [HDL_PLANE_MEAN] = {"block_mean", 16, 1, false},
    [HDL_PLANE_MEAN_V] = {"block_mean_v", 16, 1, false},
    [HDL_PLANE_BOUNDS] = {"block_bounds", 16, 2, false},
    [HDL_PLANE_KEY_I8] = {"key_i8", 8, 1, true},
    [HDL_PLANE_KEY_I4] = {"key_i4", 4, 1, true},
    [HDL_PLANE_INDEX] = {"index", 8, 1, true},
    [HDL_PLANE_INDEX_MEAN] = {"index_mean", 8, 1, true},
    [HDL_PLANE_PEAK] = {"block_peak", 16, 1, false},
    [HDL_PLANE_MIDDLE] = {"block_middle", 16, 1, false},
    [HDL_PLANE_KEY_PQ2] = {"key_pq2", 2, 1, true},
    [HDL_PLANE_KEY_PQ4] = {"key_pq4", 1, 1, true},
    [HDL_PLANE_GROUP] = {"group_mean", 8, 1, true},
};

const char *hdl_plane_name(hdl_plane_kind kind)
{
    return traits[kind].name;
}

int64_t hdl_plane_entry_bytes(hdl_plane_kind kind, int32_t n_heads, int32_t dim)
{
    return (int64_t)n_heads * traits[kind].n_per * dim * traits[kind].bits / 8;
}

int64_t hdl_plane_scale_bytes(hdl_plane_kind kind, int32_t n_heads)
{
    return traits[kind].has_scale ? (int64_t)n_heads * (int64_t)sizeof(float) : 0;
}

int64_t hdl_plane_member_bytes(hdl_plane_kind kind, int32_t block_size)
{
    return kind == HDL_PLANE_GROUP ? block_size : 0;
}

int32_t hdl_plane_elements_per_byte(hdl_plane_kind kind)
{
    return traits[kind].bits && traits[kind].bits < 8 ? 8 / traits[kind].bits : 1;
}
