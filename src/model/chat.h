/* chat.h - chat templates that are recognised (not interpreted): ChatML, Llama 3, Gemma.
 *
 * The model file's Jinja text is matched against known fingerprints; what is not recognised is
 * refused by the caller, which offers --raw. */
#ifndef HDL_CHAT_H
#define HDL_CHAT_H

#include "base/buf.h"
#include "model/tokenizer.h"

typedef enum hdl_chat_kind {
    HDL_CHAT_NONE = 0,    /* the file has no template: raw text */
    HDL_CHAT_UNKNOWN = 1, /* it has one that is not recognised */
    HDL_CHAT_CHATML = 2,
    HDL_CHAT_LLAMA3 = 3,
    HDL_CHAT_GEMMA = 4
} hdl_chat_kind;

typedef struct hdl_chat_template {
    hdl_chat_kind kind;
    char default_system[256]; /* text the template adds when no system turn is given; may be "" */
    bool default_precedes;    /* a system turn's own text comes after default_system, not instead */
    bool trims;               /* white space around a turn's text is dropped */
} hdl_chat_template;

/* `jinja` may be empty (n = 0): HDL_CHAT_NONE. */
hdl_chat_template hdl_chat_recognise(hdl_text jinja);
const char *hdl_chat_kind_name(hdl_chat_kind kind);

/* One turn. role: "system", "user", "assistant". is_first: nothing came before. Appends the turn's
 * text with the template's markers as literal special-token spellings; the content is kept apart
 * so that it is tokenised without parsing special tokens: pieces are appended to `out` in order. */
typedef struct hdl_chat_piece {
    bool is_markup; /* markers: tokenise with parse_special; else plain content */
    const char *text;
    int64_t n;
} hdl_chat_piece;
enum { HDL_CHAT_MAX_PIECES = 8 };
/* Gemma has no system role: its text opens the first user turn. A user turn that comes directly
 * after a system turn is therefore rendered with hdl_chat_turn_after(..., "system", ...). */
/* Fills pieces (borrowed: markup from static or template storage, content as given) and returns
 * their number. open_answer: also the header that makes the model answer next. */
int hdl_chat_turn(const hdl_chat_template *tmpl, const char *role, hdl_text content, bool is_first,
                  bool open_answer, hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES]);

/* The same, told which role came before (NULL: nothing). */
int hdl_chat_turn_after(const hdl_chat_template *tmpl, const char *previous_role, const char *role,
                        hdl_text content, bool open_answer, hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES]);
/* Markup that closes an answer before the next turn; has_end: the model's own end token is
 * already there. Static text, "" where nothing is needed. */
const char *hdl_chat_close_answer(const hdl_chat_template *tmpl, bool has_end);
/* Appends the ids of pieces (of one turn or of several) as one text. add_bos: as the file says. */
heddle_status hdl_chat_encode(const hdl_tokenizer *tok, const hdl_chat_piece *pieces, int64_t n_pieces,
                              bool add_bos, hdl_ids *ids);

#endif
