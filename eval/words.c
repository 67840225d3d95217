/* words.c - the words that generated documents are made of. A change changes every golden hash. */
#include "eval/words.h"

#include <stdio.h>

static const char *const adjectives[] = {
    "amber",  "brisk",  "calm",  "dusty",  "eager", "faint",   "gentle", "hollow", "icy",     "jolly",
    "keen",   "loud",   "misty", "noble",  "odd",   "proud",   "quiet",  "rapid",  "silent",  "tender",
    "upbeat", "vivid",  "wild",  "young",  "zesty", "ancient", "bright", "clever", "distant", "early",
    "famous", "golden", "happy", "inner",  "joint", "kind",    "little", "modern", "narrow",  "open",
    "plain",  "quick",  "royal", "simple", "tall",  "useful",  "violet", "warm",   "yellow",  "bold",
    "crisp",  "dark",   "empty", "fresh",  "grand", "heavy",   "lucky",  "mellow", "neat",
};

static const char *const nouns[] = {
    "anchor",   "bottle",  "castle", "dragon", "engine",  "feather", "garden", "harbor", "island", "jacket",
    "kettle",   "lantern", "mirror", "needle", "orchard", "pencil",  "quarry", "ribbon", "saddle", "temple",
    "umbrella", "violin",  "window", "yacht",  "zipper",  "arrow",   "bridge", "candle", "desert", "eagle",
    "forest",   "guitar",  "hammer", "insect", "jungle",  "kitchen", "ladder", "market", "number", "ocean",
    "palace",   "quilt",   "river",  "shadow", "table",   "uncle",   "valley", "wagon",  "basket", "camera",
    "doctor",   "elbow",   "finger", "glove",  "helmet",  "iron",    "jewel",  "knight", "lemon",  "monkey",
    "nest",     "orange",  "planet", "rabbit", "silver",  "tiger",   "turtle", "velvet", "walnut", "bucket",
    "copper",   "donkey",  "falcon", "goblet", "hunter",
};

static const char *const subjects[] = {
    "special magic number", "secret door code",   "lucky ticket number",  "hidden locker number",
    "private phone number", "lost parcel number", "old library number",   "winning lottery number",
    "sealed safe code",     "spare key number",   "royal invoice number", "silver badge number",
    "garden gate code",     "night train number", "harbor permit number", "museum entry code",
};

static const char *const places[] = {
    "the lighthouse",    "the old library", "the fish market",   "the clock tower",   "the royal garden",
    "the train station", "the paper mill",  "the stone bridge",  "the opera house",   "the glass factory",
    "the north harbor",  "the town hall",   "the apple orchard", "the silver mine",   "the weaving mill",
    "the post office",   "the city museum", "the bakery",        "the chapel",        "the observatory",
    "the horse stable",  "the salt works",  "the ferry landing", "the winter palace", "the theatre",
    "the water mill",    "the cattle fair", "the shipyard",      "the vineyard",      "the forest inn",
    "the school house",  "the castle gate", "the potter's yard", "the flower market", "the print shop",
    "the customs house", "the brewery",     "the wind mill",     "the river bank",    "the mountain hut",
    "the boat house",    "the tea house",   "the court room",    "the wool store",    "the quarry",
    "the village green", "the tannery",     "the bell foundry",
};

static const char *const names[] = {
    "Agnes", "Bruno",  "Clara",  "Dmitri", "Elena",  "Felix",  "Greta", "Hugo",   "Irene", "Jonas",
    "Katya", "Leon",   "Marta",  "Nils",   "Olga",   "Pablo",  "Rosa",  "Stefan", "Thea",  "Ulrich",
    "Vera",  "Walter", "Yvonne", "Albert", "Bianca", "Conrad", "Dora",  "Emil",   "Flora", "Gustav",
    "Helga", "Ivan",   "Judith", "Karl",   "Lydia",  "Magnus", "Nora",  "Oscar",  "Paula", "Robert",
    "Sonja", "Theo",   "Ursula", "Victor", "Wanda",  "Xaver",  "Yusuf", "Zelda",
};

static const char *const roles[] = {
    "the baker",    "the sailor",  "the painter",   "the weaver",    "the doctor",   "the teacher",
    "the miller",   "the singer",  "the smith",     "the judge",     "the shepherd", "the printer",
    "the gardener", "the captain", "the tailor",    "the fisher",    "the potter",   "the mason",
    "the clerk",    "the hunter",  "the librarian", "the carpenter", "the musician", "the watchmaker",
};

static const char *const materials[] = {
    "copper", "wooden", "silver", "glass",  "leather", "ivory", "marble", "bronze",
    "velvet", "iron",   "paper",  "golden", "clay",    "linen", "amber",  "pewter",
};

static const char *const things[] = {
    "compass", "teapot",  "whistle",  "chessboard", "lantern", "music box", "candlestick", "flute",
    "mask",    "inkwell", "bracelet", "hourglass",  "drum",    "map case",  "mirror",      "key ring",
    "kite",    "bell",    "puzzle",   "fan",        "ring",    "telescope", "spoon",       "rattle",
};

static const char *const events[] = {
    "a storm had broken three windows",
    "the bells rang for an hour",
    "a parade blocked the road",
    "the lamps went out at noon",
    "a goat had eaten the flags",
    "the river rose to the doorstep",
    "a letter arrived without a stamp",
    "the fair had begun a day early",
    "snow fell in the middle of May",
    "a band was tuning its trumpets",
    "the fog hid every sign",
    "two carts had lost their wheels",
    "a choir was looking for its conductor",
    "the market opened without any bread",
    "a balloon landed on the roof",
    "the ferry had sailed without its crew",
    "somebody had painted the fence green",
    "a dog guarded the only chair",
    "the clocks all showed different hours",
    "a lost parrot was reciting poems",
};

#define WORDS(list)                                                                                          \
    {                                                                                                        \
        list, (int32_t)(sizeof(list) / sizeof *(list))                                                       \
    }
const eval_words eval_adjectives = WORDS(adjectives);
const eval_words eval_nouns = WORDS(nouns);
const eval_words eval_subjects = WORDS(subjects);
const eval_words eval_places = WORDS(places);
const eval_words eval_names = WORDS(names);
const eval_words eval_roles = WORDS(roles);
const eval_words eval_materials = WORDS(materials);
const eval_words eval_things = WORDS(things);
const eval_words eval_events = WORDS(events);

const char *eval_word(eval_rng *rng, const eval_words *words)
{
    return words->items[eval_rng_below(rng, words->n)];
}

void eval_word_key(eval_rng *rng, char *key, int64_t n_bytes)
{
    const char *adjective = eval_word(rng, &eval_adjectives), *noun = eval_word(rng, &eval_nouns);
    snprintf(key, (size_t)n_bytes, "%s-%s", adjective, noun);
}

void eval_word_digits(eval_rng *rng, int n_digits, char *digits)
{
    for (int i = 0; i < n_digits; i++)
        digits[i] = (char)('0' + (i ? eval_rng_below(rng, 10) : 1 + eval_rng_below(rng, 9)));
    digits[n_digits] = 0;
}

void eval_word_letters(eval_rng *rng, int n, bool is_upper, char *to)
{
    for (int i = 0; i < n; i++) to[i] = (char)((is_upper ? 'A' : 'a') + eval_rng_below(rng, 26));
    to[n] = 0;
}
