#!/usr/bin/env python3
"""Write the tokenizer test's text: prose, code, numbers, emoji, many scripts, odd white space.

    make_text.py OUT [BYTES]        (default: 1114112 bytes; the golden files are for the default)

The text is a pure function of BYTES: it has its own generator of random numbers and uses no
Unicode tables, so every Python 3 writes the same bytes. It is valid UTF-8, cut at a character.
Its first 20 KB hold every category in short form. Standard library only.
"""
import sys

DEFAULT_BYTES = 1088 * 1024


class Random:
    """xorshift64*: the same sequence everywhere."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        x = self.state
        x ^= x >> 12
        x = (x ^ (x << 25)) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 27
        self.state = x
        return ((x * 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF) >> 32

    def below(self, n):
        return self.next() % n

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def choice(self, items):
        return items[self.below(len(items))]

    def codepoints(self, ranges, n):
        return "".join(chr(self.between(*self.choice(ranges))) for _ in range(n))


NOUNS = """loom thread weaver shuttle river mountain harbour engine paper letter question answer window
garden morning evening winter summer language memory attention context document sentence kettle
lighthouse captain sailor merchant bridge village forest stone feather compass ledger printer
clock mirror violin orchestra theorem experiment laboratory telescope planet satellite antenna
keyboard compiler register processor cache pipeline bandwidth latency kernel scheduler socket
government election parliament treaty economy inflation market currency harvest orchard vineyard
hospital physician vaccine antibody protein molecule electron neutrino galaxy horizon""".split()
VERBS = """weaves carries follows answers remembers forgets measures crosses builds repairs opens
closes describes compiles schedules reads writes copies merges splits sorts searches finds loses
sells buys plants harvests teaches learns paints photographs translates publishes refutes proves
doubts believes hesitates wanders returns arrives departs burns freezes melts dissolves""".split()
ADJECTIVES = """old quiet narrow brilliant crooked ordinary forgotten careful reckless distant warm cold
blue grey golden transparent heavy light exact approximate sparse dense routed shared learned
unlikely counterintuitive electromagnetic internationalised well-known self-evident
half-hearted state-of-the-art incomprehensible""".split()
CONTRACTIONS = ["don't", "it's", "they're", "I've", "I'm", "we'll", "he'd", "DON'T", "IT'S", "THEY'RE",
                "I'VE", "I'M", "WE'LL", "HE'D", "o'clock", "rock'n'roll", "it’s", "they’re",
                "'tis", "'S", "'Re", "'lL", "x'\u017F", "''s", "'s's", "John's'", "y'all'd've"]
EMOJI = ["😀", "😂", "🥺", "👍", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵🇺🇸", "❤️", "☺",
         "✈️", "1️⃣", "#️⃣", "🧵", "🪡", "🤷🏿‍♀️", "🐈‍⬛", "⌚", "♻︎", "🀄", "🏴󠁧󠁢󠁳󠁣󠁴󠁿"]
CJK = [(0x4E00, 0x9FA5)]
KANA = [(0x3042, 0x3093), (0x30A2, 0x30F3), (0x30FC, 0x30FC)]
HANGUL = [(0xAC00, 0xD7A3)]
CJK_PHRASES = ["我们在长文档中寻找答案。", "注意力只读取被选中的词元，", "東京都渋谷区１丁目２番３号", "これは織機の部品です。",
               "メモリ帯域幅", "안녕하세요 세계", "한국어 문장입니다.", "「引用」『書名』（括弧）", "第３章：線形代数", "２０２６年１１月２３日"]
ARABIC = [(0x0627, 0x063A), (0x0641, 0x064A)]
ARABIC_MARKS = [(0x064B, 0x0652)]
ARABIC_PHRASES = ["السلام عليكم", "اللُّغَةُ العَرَبِيَّةُ", "كتاب طويل جدا،", "١٢٣٤٥٦٧٨٩٠", "۱۲۳", "هل هذا سؤال؟"]
SCRIPTS = [  # letters and marks that were in Unicode long before 2010
    [(0x05D0, 0x05EA)], [(0x0915, 0x0939), (0x093E, 0x094D)], [(0x0E01, 0x0E30), (0x0E40, 0x0E4E)],
    [(0x0410, 0x044F)], [(0x0391, 0x03A1), (0x03B1, 0x03C9)], [(0x0531, 0x0556), (0x0561, 0x0586)],
    [(0x10D0, 0x10F0)], [(0x0985, 0x098C), (0x09BE, 0x09C4)], [(0x0B85, 0x0B8A), (0x0BBE, 0x0BC2)],
    [(0x1200, 0x1248)], [(0x13A0, 0x13F4)], [(0x1780, 0x17B3)], [(0x00C0, 0x00D6), (0x00D8, 0x00F6)],
    [(0x0100, 0x017E)], [(0x1EA0, 0x1EF9)], [(0x10400, 0x1044F)], [(0x12000, 0x12100)],
    [(0x1D400, 0x1D454)], [(0x20000, 0x2A6D6)], [(0xFF21, 0xFF3A), (0xFF41, 0xFF5A)]]
NUMERIC = ["0", "7", "42", "007", "3.14159265358979", "1,234,567.89", "0xDEADBEEF", "1e-9", "-273.15", "½", "Ⅻ", "²",
           "10⁻³", "٣٤", "१२३", "１２３", "①②③", "2026-11-23", "07:47:17.123", "192.168.0.1", "+49 30 123456",
           "99.9%", "$1,000", "€5", "№ 9", "1st", "2nd", "x86_64", "v1.2.3-rc4", "12345678901234567890", "㊿", "𝟘𝟙𝟚", "৪৫"]
SPACES = [" ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\r\r", " \n", "\n ", "  \n  ", "\t \t",
          "\u00A0", "\u00A0 ", " \u00A0", "\u2003", "\u2009", "\u202F", "\u3000", "\u2028", "\u2029", "\u1680", "\u0085", "\v", "\f",
          "\u200B", "\u200D", "\uFEFF", "\u180E", "\u2060", "\u00AD", "\u001C", "\u001F", " \r\n \r\n", "\n\r"]
CONTROLS = [chr(c) for c in range(0, 32)] + ["\x7F", "\u0080", "\u009F", "\u200E", "\u202E", "\uFFFD", "\uFFFC",
            "\uE000", "\uFFFE", "\uFFFF", "\U000E0001", "\U0010FFFF"]
SYMBOLS = ["∀x∈ℝ", "∑ᵢ", "≤", "≠", "→", "⇔", "∫", "√2", "±", "×", "÷", "°C", "µm", "™", "®", "©", "§", "¶", "†", "…", "—", "–", "«", "»",
           "„", "“", "”", "‚", "‘", "’", "•", "■", "█", "│", "└──", "░", "♪", "☃", "⠓⠑", "﷽", "ﬁ", "Ǆ", "ß", "İ", "ı", "ſ", "ẞ",
           "e\u0301", "A\u030A", "o\u0308\u0304", "\u0301", " \u0301", "q\u0323\u0307", "\u1112\u1161\u11AB", "가\u11A8", "Å", "Ω", "Ġ", "Ċ", "Ã©"]
PUNCTUATION = ["...", "?!", "!!!", "--", "---", "====", "****", "~~~", "####", "//", "/*", "*/", "->", "=>", "::", "<=", ">=", "!=", "&&", "||",
               "<<", ">>", "+=", "(", ")", "[]", "{}", "();", "});", "\"", "'", "`", "```", "\\", "\\n", "@", "#", "$", "%", "^", "&", "*", "_", "__",
               "<b>", "</b>", "<table>", "<|", "|>", "<s>", "[INST]", "<0x0A>", "<unk>", "</", "<!--", "-->"]


def sentence(r):
    words = ["The", r.choice(ADJECTIVES), r.choice(NOUNS), r.choice(VERBS), "the", r.choice(NOUNS)]
    for _ in range(r.below(4)):
        words += [r.choice(["of", "and", "under", "without", "near", "because", "while"]),
                  r.choice(["a", "its", "every", "no"]), r.choice(ADJECTIVES), r.choice(NOUNS)]
    if r.below(3) == 0:
        words.insert(r.below(len(words)), r.choice(CONTRACTIONS))
    if r.below(5) == 0:
        words.insert(r.below(len(words)), r.choice(NUMERIC))
    if r.below(6) == 0:
        words[r.below(len(words))] = r.choice(NOUNS).upper()
    if r.below(6) == 0:
        words[r.below(len(words))] = r.choice(NOUNS).capitalize() + r.choice(NOUNS).capitalize()
    text = " ".join(words)
    if r.below(4) == 0:
        text = text.replace(" and ", ", and ")
    return text + r.choice([".", ".", ".", "!", "?", ";", ":", "...", ".)", ".\""])


def prose(r, n):
    return "".join(sentence(r) + r.choice([" ", " ", " ", "  ", "\n", "\n\n"]) for _ in range(n))


def code(r, n):
    out = []
    for _ in range(n):
        a, b, c = r.choice(NOUNS), r.choice(NOUNS), r.choice(VERBS)
        k, m = r.below(1000), r.below(70000)
        out.append(r.choice([
            f"static int {a}_{b}(const struct {a} *{b}, size_t n_{a}s)\n{{\n\tif (n_{a}s > {m}u)\n\t\treturn -{k};\n"
            f"    for (size_t i = 0; i < n_{a}s; i++)\n        {b}->{c}[i] ^= 0x{m:04X}; /* {c} */\n\treturn 0;\n}}\n\n",
            f"def {c}_{a}(self, {b}: int = {k}) -> dict[str, float]:\n    \"\"\"{a.capitalize()} {c}.\"\"\"\n"
            f"    if not {b}:\n        raise ValueError(f\"{{{b}!r}} isn't {a}\")\n    return {{\"{a}\": {k}.{m}e-3}}\n\n\n",
            f"{{\"{a}\": {{\"{b}\": [{k}, {m}, null, true], \"{c}\": \"\\u00e9\\n\"}}, \"n\": -{k}.5}}\n",
            f"<div class=\"{a}\" id='{b}-{k}'><a href=\"https://example.org/{a}/{b}?q={c}&n={m}#s{k}\">{c}</a></div>\n<!-- {a} -->\n",
            f"#include <{a}.h>\n#define {a.upper()}_{b.upper()}(x) ((x) << {k % 32})\n",
            f"SELECT {a}, COUNT(*) FROM {b} WHERE {c} >= {m} GROUP BY {a}; -- {k}\n",
            f"$ {a} --{b}={k} -x{m} < /dev/null | grep -E '^{c}[0-9]+$' || exit {k % 256}\r\n",
            f"\\begin{{equation}} {a}_{{{k}}} = \\frac{{{b}}}{{{m}}} \\end{{equation}}\n",
            f"                                        {a} = {b}                        # {c}\n",
            f"camelCase{a.capitalize()}{b.capitalize()}HTTPServer{k}.{c}().then((x)=>{{return x?.{a}??{m}}});\n"]))
    return "".join(out)


def numbers(r, n):
    out = []
    for _ in range(n):
        out.append(r.choice(NUMERIC) if r.below(2) else str(r.next() >> r.below(32)))
        out.append(r.choice([" ", " ", ", ", "\n", "", "\t", " + ", "="]))
    return "".join(out)


def emoji(r, n):
    return "".join(r.choice(EMOJI) + r.choice(["", "", " ", "  ", "!", "a"]) for _ in range(n)) + "\n"


def cjk(r, n):
    out = []
    for _ in range(n):
        out.append(r.choice([r.choice(CJK_PHRASES), r.codepoints(CJK, r.between(1, 12)), r.codepoints(KANA, r.between(1, 9)),
                             r.codepoints(HANGUL, r.between(1, 6))]))
        out.append(r.choice(["", "", "。", "、", " ", "\n", "！", r.choice(NOUNS), "　"]))
    return "".join(out)


def arabic(r, n):
    out = []
    for _ in range(n):
        word = r.codepoints(ARABIC, r.between(1, 8))
        if r.below(3) == 0:
            word += r.codepoints(ARABIC_MARKS, 1) + r.codepoints(ARABIC, 2)
        out.append(r.choice([word, word, r.choice(ARABIC_PHRASES)]) + r.choice([" ", " ", "، ", ".\n", "\u200C", "؟ "]))
    return "".join(out)


def scripts(r, n):
    return "".join(r.codepoints(r.choice(SCRIPTS), r.between(1, 10)) + r.choice([" ", " ", "", ", ", "\n", "-"]) for _ in range(n))


def white_space(r, n):
    out = []
    for _ in range(n):
        kind = r.below(8)
        if kind == 0:
            out.append(r.choice([" ", "\n", "\t", "\r\n"]) * r.between(1, 70))
        elif kind == 1:
            out.append("".join(r.choice(SPACES) for _ in range(r.between(2, 6))))
        else:
            out.append(r.choice(SPACES))
        out.append(r.choice(["", "x", "word", "7", "!", "é", "中", " a", r.choice(NOUNS)]))
    return "".join(out)


def controls(r, n):
    return "".join(r.choice(CONTROLS) * r.choice([1, 1, 1, 2]) + r.choice(["", "", "a", " ", "0", "é"]) for _ in range(n))


def symbols(r, n):
    out = []
    for _ in range(n):
        out.append(r.choice(SYMBOLS if r.below(2) else PUNCTUATION) + r.choice(["", "", " ", "\n", "a", "1", " b"]))
    return "".join(out)


def runs(r, n):
    """Repeated characters: ties between merges of equal pieces."""
    return "".join(r.choice("-=_*#.~aeoxz0193!? 的ーи") * r.between(2, 90) + r.choice(["", " ", "\n", "b"]) for _ in range(n))


# function, weight, units in a long block
CATEGORIES = [(prose, 5, 24), (code, 4, 8), (numbers, 1, 60), (emoji, 1, 40), (cjk, 3, 60), (arabic, 2, 60), (scripts, 2, 60),
              (white_space, 1, 40), (controls, 1, 30), (symbols, 2, 80), (runs, 1, 12)]


def make_text(n_bytes=DEFAULT_BYTES):
    r = Random(0x9E3779B97F4A7C15)
    deck = [c for c in CATEGORIES for _ in range(c[1])]
    blocks, size = [], 0
    while size < n_bytes:
        if size < 20480:  # every category, short
            make, _, units = CATEGORIES[len(blocks) % len(CATEGORIES)]
            block = make(r, max(2, units // 3))
        else:
            make, _, units = r.choice(deck)
            block = make(r, r.between(2, 2 * units))
        block = block.encode("utf-8")
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)[:n_bytes].decode("utf-8", "ignore").encode("utf-8")


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    with open(sys.argv[1], "wb") as out:
        out.write(make_text(int(sys.argv[2]) if len(sys.argv) == 3 else DEFAULT_BYTES))


if __name__ == "__main__":
    main()
