/* tensor.h - a view: type, shape, row stride, pointer. It owns nothing. */
#ifndef HDL_TENSOR_H
#define HDL_TENSOR_H

#include "tensor/dtype.h"

typedef struct hdl_tensor {
    const void *data; /* borrowed, usually from a mapped file; NULL = absent */
    hdl_dtype dtype;
    int64_t n_rows;    /* slowest: outputs of a linear layer, entries of a vocabulary; 1 for a vector */
    int64_t n_cols;    /* elements of a row */
    int64_t row_bytes; /* distance of two rows; rows are contiguous: hdl_row_bytes(dtype, n_cols) */
} hdl_tensor;

#endif
