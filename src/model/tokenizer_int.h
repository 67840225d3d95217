/* tokenizer_int.h - what the files of the tokenizer share; nobody else includes it.
 *
 *     text -> added tokens (trie) -> segments -> [normal form] -> chunks -> symbols -> merges -> ids
 *
 * Two ways to make symbols: byte-level (every byte has a token; chunks come from a regular
 * expression) and character-level (every character that has a token, else its bytes' tokens
 * <0xNN>; space is written U+2581). Two ways to rank a merge of neighbours: a table of pairs, or
 * the score of the token that the two spell together. One merge engine does all four.
 *
 * Token texts are kept in matching form: raw bytes for byte-level vocabularies (the printable
 * alphabet of GPT-2 files is undone when they are read), U+2581 for spaces otherwise. */
#ifndef HDL_TOKENIZER_INT_H
#define HDL_TOKENIZER_INT_H

#include "model/tokenizer.h"

typedef enum hdl_token_type { /* GGUF's numbers */
                              HDL_TOKEN_NORMAL = 1,
                              HDL_TOKEN_UNKNOWN = 2,
                              HDL_TOKEN_CONTROL = 3,
                              HDL_TOKEN_USER = 4,
                              HDL_TOKEN_UNUSED = 5,
                              HDL_TOKEN_BYTE = 6
} hdl_token_type;

enum { /* token_flags */
       HDL_TOKEN_IS_END = 1,
       HDL_TOKEN_LSTRIP = 2, /* an added token also takes the white space before it */
       HDL_TOKEN_RSTRIP = 4, /* and after it */
       HDL_TOKEN_WHOLE_WORD = 8
};

enum {
    HDL_TOK_MAX_VOCAB = 1 << 24,
    HDL_TOK_MAX_ADDED_BYTES = 1024, /* bounds the work of the trie per text byte */
    HDL_TOK_MAX_STAGES = 8,
    HDL_TOK_MAX_PATTERN_BYTES = 16384
};

typedef struct hdl_token_in { /* one row of a vocabulary on its way in; all zero = a hole */
    hdl_text text;            /* borrowed; as the file spells it */
    float score;              /* higher merges first; unused with a pair table */
    uint8_t type, flags;
} hdl_token_in;

typedef struct hdl_vocab_slot { /* the tag spares a look at the text of most other tokens */
    uint32_t tag;
    int32_t id; /* -1 = empty */
} hdl_vocab_slot;

typedef struct hdl_merge_slot {
    int32_t left, right; /* left -1 = empty */
    int32_t rank, id;
} hdl_merge_slot;

typedef struct hdl_trie_node {
    int32_t child, sibling, id; /* -1 = none */
    uint8_t byte;
} hdl_trie_node;

typedef struct hdl_pretok_stage {
    void *code; /* pcre2_code */
    bool has_jit, drops_gaps;
} hdl_pretok_stage;

typedef struct hdl_pretok {
    int n_stages;
    hdl_pretok_stage stages[HDL_TOK_MAX_STAGES];
} hdl_pretok;

struct hdl_tokenizer {
    bool is_byte_level;
    bool uses_scores;         /* merges by score of the spelled token, no pair table */
    bool ignore_merges;       /* a chunk that is a token needs no merging */
    bool add_prefix_space;    /* a space in front of each segment, */
    bool prefix_first_only;   /* ... of the first one only, */
    bool prefix_unless_space; /* ... unless it begins with one */
    bool replaces_spaces;     /* " " -> U+2581 */
    bool is_nfc;
    bool fuses_unknown;
    bool joins_space[256]; /* some token has U+2581 right behind this byte, not of another U+2581 */
    int32_t n_vocab;
    char *text;     /* [at[n_vocab]] matching form of every token */
    uint32_t *at;   /* [n_vocab + 1] */
    uint8_t *type;  /* [n_vocab] hdl_token_type; 0 = hole */
    uint8_t *flags; /* [n_vocab] */
    float *score;   /* [n_vocab]; NULL unless uses_scores */
    int32_t max_piece_bytes;
    hdl_vocab_slot *slots;  /* [n_slots] text -> id, open addressing */
    int64_t n_slots;        /* power of two */
    hdl_merge_slot *merges; /* [n_merge_slots]; NULL with scores */
    int64_t n_merge_slots;
    hdl_trie_node *trie; /* [n_trie]; added tokens by their literal spelling */
    int64_t n_trie, trie_capacity;
    int32_t trie_root[256];
    int32_t byte_ids[256]; /* -1 = the vocabulary lacks this byte */
    int32_t char_ids[128]; /* character-level: tokens of one ASCII character; -1 = none */
    hdl_pretok pretok;
    hdl_special_ids special;
};

/* --- building (vocab.c) ---------------------------------------------------------------------- */

/* A tokenizer with this vocabulary and no merges, special ids, pattern or flags yet. */
heddle_status hdl_tok_new(hdl_tokenizer **out, bool is_byte_level, bool uses_scores,
                          const hdl_token_in *tokens, int64_t n_vocab);
heddle_status hdl_tok_reserve_merges(hdl_tokenizer *tok, int64_t n_merges);
/* left and right as the file spells them; rank = position in the list. */
heddle_status hdl_tok_add_merge(hdl_tokenizer *tok, hdl_text left, hdl_text right, int32_t rank);
/* "a b", as GGUF and old tokenizer.json files spell a merge. */
heddle_status hdl_tok_add_merge_line(hdl_tokenizer *tok, hdl_text line, int32_t rank);
/* Last step: marks end-of-answer tokens by id and by their known spellings. */
void hdl_tok_finish(hdl_tokenizer *tok);

/* Matching form of a spelling: undoes GPT-2's printable alphabet; text outside it stays. */
void hdl_tok_unmap_bytes(hdl_text text, hdl_buf *out);
enum { /* types that plain text can become; a whole mask of them */
       HDL_TOKENS_PLAIN = 1 << HDL_TOKEN_NORMAL | 1 << HDL_TOKEN_USER | 1 << HDL_TOKEN_UNUSED
};
/* Id of a token by matching form whose type is in type_mask (1 << hdl_token_type), or -1. */
int32_t hdl_tok_find(const hdl_tokenizer *tok, const char *text, int64_t n, unsigned type_mask);
/* Longest added token that starts at text, or -1. Control and unknown ones only where they end
 * within n_control bytes (0 = none). */
int32_t hdl_tok_match_added(const hdl_tokenizer *tok, const char *text, int64_t n, int64_t n_control);
/* Id and rank of the merge of two tokens in the pair table, or NULL. */
const hdl_merge_slot *hdl_tok_merge_of(const hdl_tokenizer *tok, int32_t left, int32_t right);

/* tokenizer_json.c: from the two files' contents; config.n 0 = there is none. */
heddle_status hdl_tokenizer_from_json_text(hdl_tokenizer **out, hdl_text json, hdl_text config);

/* --- encoding -------------------------------------------------------------------------------- */

typedef struct hdl_sym {
    int32_t id, at, len; /* bytes of base it covers; len 0 = merged away */
    int32_t n_chars;     /* 0 = takes no part in merges by score (bytes of an unknown character) */
    int32_t prev, next;  /* -1 = none */
} hdl_sym;

typedef struct hdl_merge_item {
    uint64_t order; /* lower first */
    int32_t left, right, len, id;
} hdl_merge_item;

typedef struct hdl_word_slot { /* a chunk seen before: where in the text, where its ids went */
    int32_t at, n_bytes;       /* n_bytes 0 = empty */
    int64_t ids_at;
    int32_t n_ids;
} hdl_word_slot;

enum { HDL_WORD_SLOTS = 1 << 14, HDL_WORD_MAX_BYTES = 64 };

typedef struct hdl_tok_work { /* scratch of one encode call */
    const hdl_tokenizer *tok;
    hdl_ids *ids;
    hdl_buf norm;  /* normalised segments, one after the other */
    hdl_buf clean; /* a segment with broken bytes as U+FFFD, for the pattern only */
    hdl_sym *syms;
    int64_t sym_capacity;
    hdl_merge_item *heap;
    int64_t heap_capacity;
    hdl_word_slot *words; /* [HDL_WORD_SLOTS]; NULL for short texts */
    void *match_data, *match_context;
    bool is_first_segment;
} hdl_tok_work;

/* bpe.c: ids of one chunk, base[at, at + n); words are looked up among those seen before. */
heddle_status hdl_bpe_chunk(hdl_tok_work *work, const char *base, int64_t at, int64_t n);
/* spm.c: chunks of a normalised segment of a character-level vocabulary. */
heddle_status hdl_spm_segment(hdl_tok_work *work, const char *base, int64_t at, int64_t n);
/* spm.c: where words may be merged apart; fills joins_space. */
void hdl_spm_inspect(hdl_tokenizer *tok);

/* pretok.c */
typedef struct hdl_pretok_row {
    const char *name; /* as tokenizer.ggml.pre spells it */
    const char *pattern;
    bool ignore_merges, add_bos;
} hdl_pretok_row;
const hdl_pretok_row *hdl_pretok_find(hdl_text name); /* NULL = unknown */
extern const char hdl_pretok_gpt2[], hdl_pretok_digits[], hdl_pretok_numbers[];
heddle_status hdl_pretok_add(hdl_pretok *pretok, const char *pattern, bool drops_gaps);
void hdl_pretok_deinit(hdl_pretok *pretok);
heddle_status hdl_pretok_segment(hdl_tok_work *work, const char *base, int64_t at, int64_t n);
heddle_status hdl_pretok_work_init(hdl_tok_work *work, int64_t n);
void hdl_pretok_work_deinit(hdl_tok_work *work);

#endif
