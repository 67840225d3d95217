/* fuzz_gguf.c - a GGUF file of any bytes: the reader and all its getters, then the whole model. */
#include "fuzz_file.h"

#include "model/model.h"
#include "tensor/quant.h"

/* The first and last block of each tensor, so that a view past the mapping is seen. */
static void read_tensors(const hdl_gguf *gguf)
{
    float block[256];
    for (int64_t i = 0; i < hdl_gguf_n_tensors(gguf); i++) {
        hdl_tensor t;
        hdl_gguf_tensor_at(gguf, i, &t);
        const hdl_dtype_traits *traits = hdl_dtype_of(t.dtype);
        const char *end = (const char *)t.data + t.n_rows * t.row_bytes;
        hdl_dequant_row(t.dtype, t.data, block, traits->block_elems);
        hdl_dequant_row(t.dtype, end - traits->block_bytes, block, traits->block_elems);
    }
}

static void read_metadata(const hdl_gguf *gguf)
{
    static const char *const keys[] = {"general.alignment",         "general.name",
                                       "tokenizer.ggml.tokens",     "tokenizer.ggml.scores",
                                       "tokenizer.ggml.token_type", "k"};
    int64_t whole, cursor = 0, sum = 0;
    double num;
    hdl_text text;
    for (int i = 0; i < HDL_COUNT(keys); i++) {
        hdl_gguf_int(gguf, keys[i], &whole);
        hdl_gguf_num(gguf, keys[i], &num);
        hdl_gguf_str(gguf, keys[i], &text);
        int64_t n = hdl_gguf_array_n(gguf, keys[i]);
        for (int64_t j = -1; j <= n && j < 300; j++) {
            hdl_gguf_array_int(gguf, keys[i], j, &whole);
            hdl_gguf_array_num(gguf, keys[i], j, &num);
        }
        for (cursor = 0; hdl_gguf_array_next_str(gguf, keys[i], &cursor, &text);)
            if (text.n) sum += text.data[0] + text.data[text.n - 1];
    }
    volatile int64_t sink = sum;
    (void)sink;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd;
    char path[64];
    if (!fuzz_file_make(data, size, &fd, path)) return 0;
    hdl_gguf *gguf;
    if (!hdl_gguf_open(&gguf, path)) {
        read_tensors(gguf);
        read_metadata(gguf);
        hdl_gguf_close(gguf);
        hdl_model *model;
        hdl_model_open(&model, path);
        hdl_model_close(model);
    }
    close(fd);
    return 0;
}
