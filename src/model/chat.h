/* chat.h - chat templates that are recognised (not interpreted): ChatML, Llama 3, Gemma.
 *
 * The model file's Jinja text is matched against known fingerprints; what is not recognised is
 * refused by the caller, which offers --raw. */
#ifndef HDL_CHAT_H
#define HDL_CHAT_H

#include "base/buf.h"
#include "model/gguf.h"

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
/* Fills pieces (borrowed: markup from static or template storage, content as given) and returns
 * their number. open_answer: also the header that makes the model answer next. */
int hdl_chat_turn(const hdl_chat_template *tmpl, const char *role, hdl_text content, bool is_first,
                  bool open_answer, hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES]);

#endif
