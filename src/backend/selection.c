#include "backend/selection.h"

static heddle_status check_list(const hdl_selection *sel, int64_t row, int32_t list, int64_t n_visible)
{
    const int32_t *ids = hdl_selection_ids(sel, row, list);
    int64_t count = *hdl_selection_count(sel, row, list), size = sel->block_size;
    int64_t n_units = (n_visible + size - 1) / size;
    if (count < 0 || count > sel->n_ids_max)
        return HDL_FAIL(HEDDLE_E_INVALID, "selection row %lld list %d: count %lld is outside 0..%lld",
                        (long long)row, list, (long long)count, (long long)sel->n_ids_max);
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= n_units)
            return HDL_FAIL(HEDDLE_E_INVALID, "selection row %lld list %d: id %d at %lld is outside 0..%lld",
                            (long long)row, list, ids[i], (long long)i, (long long)n_units - 1);
        if (i > 0 && ids[i] <= ids[i - 1])
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "selection row %lld list %d: id %d at %lld follows %d, not ascending",
                            (long long)row, list, ids[i], (long long)i, ids[i - 1]);
    }
    return HEDDLE_OK;
}

heddle_status hdl_selection_check(const hdl_selection *sel, const int64_t *n_visible)
{
    if (sel->block_size < 1 || (sel->unit == HDL_UNIT_TOKEN && sel->block_size != 1))
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "selection block_size %d: must be 1 for tokens and at least 1 for blocks",
                        sel->block_size);
    for (int64_t row = 0; row < sel->n_rows; row++)
        for (int32_t list = 0; list < sel->n_lists; list++)
            HDL_TRY(check_list(sel, row, list, n_visible[row]));
    return HEDDLE_OK;
}
