/* tokenizer.h - text to ids and back: byte-level BPE and SentencePiece BPE with byte fallback.
 *
 * Built from a GGUF's metadata or from a Hugging Face tokenizer.json. Immutable after it is made;
 * encode and decode may run on several threads at once. */
#ifndef HDL_TOKENIZER_H
#define HDL_TOKENIZER_H

#include "base/buf.h"
#include "model/gguf.h"

typedef struct hdl_tokenizer hdl_tokenizer;

typedef struct hdl_special_ids { /* -1 = the model has none */
    int32_t bos, eos, eot, unk, pad;
    bool add_bos, add_eos; /* what the file says encode() should add around a whole text */
} hdl_special_ids;

typedef struct hdl_ids { /* growable; zero-initialise; deinit with hdl_ids_deinit */
    int32_t *data;
    int64_t n, capacity;
} hdl_ids;

heddle_status hdl_ids_add(hdl_ids *ids, const int32_t *data, int64_t n);
void hdl_ids_deinit(hdl_ids *ids);

heddle_status hdl_tokenizer_from_gguf(hdl_tokenizer **out, const hdl_gguf *gguf);
/* `dir` is the model's folder: tokenizer.json, and tokenizer_config.json where it is present. */
heddle_status hdl_tokenizer_from_json(hdl_tokenizer **out, const char *dir);
/* `id` starts every text, and as an answer's token ends it: another document would begin. */
void hdl_tokenizer_set_document(hdl_tokenizer *tok, int32_t id);
void hdl_tokenizer_free(hdl_tokenizer *tok);

/* Appends the ids of text [n bytes, any bytes]. parse_special: special tokens' spellings in the
 * text become their ids (templates), else they are ordinary text (documents, users' input).
 * add_bos_eos: put BOS/EOS around it as the file says. Invalid UTF-8 never fails and
 * is never replaced: byte-level BPE maps each byte, SentencePiece falls back to byte tokens. A byte
 * for which the vocabulary has no token is dropped, before merging, as Hugging Face's tokenizers do
 * (tests/golden/tokenizer/README.md names SmolLM2's 21). O(n log n). */
heddle_status hdl_tokenizer_encode(const hdl_tokenizer *tok, const char *text, int64_t n, bool parse_special,
                                   bool add_bos_eos, hdl_ids *ids);
/* A stretch of a text. Special tokens' spellings count only where they lie wholly inside one part
 * that asks for it; everything else is as if the parts were one text, so that the ids are those of
 * a template rendered whole. */
typedef struct hdl_text_part {
    const char *text; /* borrowed */
    int64_t n;
    bool parse_special;
} hdl_text_part;
heddle_status hdl_tokenizer_encode_parts(const hdl_tokenizer *tok, const hdl_text_part *parts,
                                         int64_t n_parts, bool add_bos_eos, hdl_ids *ids);
/* Appends the bytes of ids; special tokens give nothing unless with_special. Concatenating the
 * pieces of single ids gives the whole (so a stream may show them one by one; an incomplete UTF-8
 * sequence at its end is the caller's to hold back). */
heddle_status hdl_tokenizer_decode(const hdl_tokenizer *tok, const int32_t *ids, int64_t n, bool with_special,
                                   hdl_buf *text);
int32_t hdl_tokenizer_n_vocab(const hdl_tokenizer *tok);
const hdl_special_ids *hdl_tokenizer_special(const hdl_tokenizer *tok);
/* The id whose spelling is exactly `piece` (special tokens), or -1. */
int32_t hdl_tokenizer_id_of(const hdl_tokenizer *tok, const char *piece);
bool hdl_tokenizer_is_special(const hdl_tokenizer *tok, int32_t id);
/* True for every id that ends an answer (EOS, <|im_end|>, <end_of_turn>, <|eot_id|>, ...). */
bool hdl_tokenizer_is_end(const hdl_tokenizer *tok, int32_t id);

#endif
