/* story.c - chapters of one person's travels; what is asked is where, whom and what in a chapter. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/document_int.h"
#include "eval/words.h"

/* Slots: 0 place, 1 event, 2 person, 3 thing. Each part in several wordings, drawn for each chapter. */
typedef struct story_part {
    const char *wordings[4];
    int slot;
} story_part;

static const char hero[] = "Arthur";
static const story_part parts[] = {
    {{"Early in the morning Arthur set out and came to %s.", "A slow cart took Arthur to %s.",
      "After a long walk along the canal Arthur arrived at %s.",
      "Arthur had planned to rest, but he went to %s."},
     0},
    {{"When he arrived, %s.", "Nobody was surprised that %s.", "It was one of those days: %s.",
      "People were still talking about it: %s."},
     1},
    {{"At the door he met %s, who was in a good mood.",
      "He sat down and met %s, who had been waiting since noon.",
      "In the crowd he met %s and they shook hands.", "There he met %s for the first time in years."},
     2},
    {{"They talked about the harvest and the price of salt.", "They agreed that the winter would be long.",
      "They shared bread and cheese and said little.", "They argued about music until it grew dark."},
     -1},
    {{"Before he left he bought a %s.", "He had a little money left and bought a %s.",
      "From a passing trader he bought a %s.", "He could not resist and bought a %s."},
     3},
    {{"Then he went home content.", "He left without looking back.",
      "The road home seemed shorter than before.", "He wrote it all down that evening."},
     -1},
};

typedef struct chapter {
    char place[48], event[64], person[64], thing[64];
} chapter;

static bool is_new(const doc_builder *b, const char *value)
{
    for (int32_t i = 0; i < b->n_facts; i++)
        if (!strcmp(b->facts[i].key, value)) return false;
    return true;
}

/* A person and a thing that no chapter had before, while there are any. */
static void draw_chapter(doc_builder *b, chapter *c)
{
    snprintf(c->place, sizeof c->place, "%s", eval_word(&b->rng, &eval_places));
    snprintf(c->event, sizeof c->event, "%s", eval_word(&b->rng, &eval_events));
    for (int attempt = 0; attempt < 100; attempt++) {
        const char *name = eval_word(&b->rng, &eval_names), *role = eval_word(&b->rng, &eval_roles);
        snprintf(c->person, sizeof c->person, "%s %s", name, role);
        if (is_new(b, c->person)) break;
    }
    for (int attempt = 0; attempt < 100; attempt++) {
        const char *adjective = eval_word(&b->rng, &eval_adjectives);
        const char *material = eval_word(&b->rng, &eval_materials), *thing = eval_word(&b->rng, &eval_things);
        snprintf(c->thing, sizeof c->thing, "%s %s %s", adjective, material, thing);
        if (is_new(b, c->thing)) break;
    }
}

/* Keeps what a chapter used, so that later ones differ. */
static void remember(doc_builder *b, const char *value)
{
    doc_fact *fact = doc_fact_add(b, EVAL_STORY_FACT, "");
    if (fact) snprintf(fact->key, sizeof fact->key, "%s", value);
}

static void ask(doc_builder *b, int number, int slot, const char *value, int64_t at)
{
    static const char *const questions[] = {"Where did %s go in chapter %d?", NULL,
                                            "Whom did %s meet in chapter %d?",
                                            "What did %s buy in chapter %d?"};
    static const char *const prefixes[] = {"In chapter %d, %s went to", NULL, "In chapter %d, %s met",
                                           "In chapter %d, %s bought a"};
    eval_buf question = {0}, prefix = {0}, answer = {0};
    char text[128];
    snprintf(text, sizeof text, questions[slot], hero, number);
    eval_buf_printf(&question, "\n%s", text);
    snprintf(text, sizeof text, prefixes[slot], number, hero);
    eval_buf_text(&prefix, text);
    eval_buf_printf(&answer, " %s", value);
    doc_ask(b, EVAL_STORY_FACT, &question, &prefix, &answer, (double)at); /* bytes; made a depth at the end */
}

static void write_chapter(doc_builder *b, int number, bool is_asked)
{
    chapter c;
    int64_t start = b->body.n;
    char line[160];
    draw_chapter(b, &c);
    remember(b, c.person);
    remember(b, c.thing);
    const char *const slots[] = {c.place, c.event, c.person, c.thing};
    eval_buf_printf(&b->body, "Chapter %d\n", number);
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        const char *wording = parts[p].wordings[eval_rng_below(&b->rng, 4)];
        int slot = parts[p].slot;
        if (slot < 0)
            snprintf(line, sizeof line, "%s", wording);
        else
            snprintf(line, sizeof line, wording, slots[slot]);
        if (is_asked && slot >= 0 && slot != 1) ask(b, number, slot, slots[slot], b->body.n);
        eval_buf_printf(&b->body, "%s%s", p ? " " : "", line);
    }
    eval_buf_text(&b->body, "\n");
    if (!b->body.is_failed) b->units_tokens += doc_count(b, b->body.data + start, b->body.n - start);
}

void doc_make_story(doc_builder *b)
{
    eval_buf_text(&b->head,
                  "Below is a story in chapters. Remember where Arthur went, whom he met and what he bought "
                  "in each chapter.\n");
    int64_t budget = b->request->n_tokens - doc_count(b, b->head.data, b->head.n);
    for (int number = 1; b->units_tokens < budget && !b->is_failed && !b->body.is_failed; number++)
        write_chapter(b, number, doc_wants(b, EVAL_STORY_FACT));
    for (int32_t i = 0; i < b->n_questions; i++)
        b->questions[i].depth = doc_depth(b, (int64_t)b->questions[i].depth);
}
