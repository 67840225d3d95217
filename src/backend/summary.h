/* summary.h - planes: what routers score instead of all of K, kept beside the KV rows in their pages.
 *
 * A plane has one entry per block of block_size tokens (1 for planes of tokens) of a page; entry e of
 * a page stands for its tokens [e * block_size, (e+1) * block_size). A plane is a pure function of
 * the stored rows of its own block, so chunking, forks and truncation cannot change it; the entry of
 * a block that is not full yet covers the rows that are there. H = n_heads, D = dim of the plane:
 *
 *   MEAN, MEAN_V  f16 [entries][H][D]       mean of the block's K (V) rows over their real count
 *   BOUNDS        f16 [entries][H][2][D]    least and largest K element, rounded outwards
 *   KEY_I8        i8  [entries][H][D], then f32 [entries][H]      K = q * scale, scale = amax / 127
 *   KEY_I4        u8  [entries][H][D/2], then f32 [entries][H]    K = (q - 8) * scale, scale = amax / 7;
 *                     byte i of a row: element i in the low half, element i + D/2 in the high half
 *   KEY_PQ2       u8  [entries][H][D/4], then f32 [entries][H]    R K = m * scale * book: codes of 4 bits that
 *                     stand for 2 elements of the rotated key; R, m and the book: codebook.h
 *   KEY_PQ4       u8  [entries][H][D/8], then f32 [entries][H]    the same, 4 elements a code
 *   INDEX         as KEY_I8: the model's own index keys (H = 1)
 *   INDEX_MEAN    as INDEX, an entry per block: the mean of its index keys (q * scale), to int8 again
 *   PEAK          f16 [entries][H][D]       largest K element of the block, to the nearest half
 *   MIDDLE        f16 [entries][H][D]       the K row of token min(block_size / 2, n - 1) of the n there
 *   GROUP         i8  [entries][H][D], then f32 [entries][H], then u8 [entries][block_size]: an order map, the 256
 *                     tokens of a segment in groups of like keys (groups.h): the mean K of each group as KEY_I8
 *                     and its members, ascending, as places in the segment. A function of the segment's rows;
 *                     entries of a segment that is not full hold nothing: its tokens are not yet ordered, and
 *                     a list needs a window that holds them
 *
 * Sources of the quantised rows: quantise.h (round to nearest even, one scale a row), codebook.h. */
#ifndef HDL_SUMMARY_H
#define HDL_SUMMARY_H

#include "base/base.h"

typedef enum hdl_plane_kind {
    HDL_PLANE_NONE = 0,
    HDL_PLANE_MEAN,
    HDL_PLANE_MEAN_V,
    HDL_PLANE_BOUNDS,
    HDL_PLANE_KEY_I8,
    HDL_PLANE_KEY_I4,
    HDL_PLANE_INDEX,
    HDL_PLANE_INDEX_MEAN,
    HDL_PLANE_PEAK,
    HDL_PLANE_MIDDLE,
    HDL_PLANE_KEY_PQ2,
    HDL_PLANE_KEY_PQ4,
    HDL_PLANE_GROUP,
    HDL_N_PLANE_KINDS
} hdl_plane_kind;

enum { HDL_SEGMENT_TOKENS = 256 }; /* of GROUP: a page holds whole segments */

const char *hdl_plane_name(hdl_plane_kind kind); /* "block_mean" */
/* Bytes of one entry without its scales, and of its scales. */
int64_t hdl_plane_entry_bytes(hdl_plane_kind kind, int32_t n_heads, int32_t dim);
int64_t hdl_plane_scale_bytes(hdl_plane_kind kind, int32_t n_heads);
/* Bytes of an entry's members, behind the scales of all entries; 0 where entries are tokens that follow each other. */
int64_t hdl_plane_member_bytes(hdl_plane_kind kind, int32_t block_size);
/* Elements that a byte of an entry stands for: dim is a multiple of them; 1 where an element has a byte or more. */
int32_t hdl_plane_elements_per_byte(hdl_plane_kind kind);

#endif
