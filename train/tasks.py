"""Generated long-range tasks, assembled in tokens so that a row has an exact length.

Families: facts (planted sentences), keyvalue (assignments), chain (variables that name
variables), copy (repeat a passage). Training and held-out rows differ in template, key
type and haystack, not only in the seed.

row() returns the tokens and, for every question, where its answer lies in the row and how
far back the statement was.
"""
import numpy as np

ADJ = ("amber ancient brass bright broken calm carved cobalt copper crimson dusty eastern emerald faded frozen gentle gilded "
       "golden granite hidden hollow iron ivory jade linen little lonely lunar marble misty narrow northern oaken old painted "
       "pale patient plain quiet rapid rusty sacred scarlet secret shallow silent silver sleepy slender southern spotted stone "
       "sunken tall tin twisted velvet violet wandering western white wild winter wooden yellow").split()
NOUN = ("anchor anvil arch badger barrel basin beacon bell bridge cabin candle canyon castle cavern chapel cliff clock compass "
        "crane creek crown desert dragon drum eagle engine falcon ferry fiddle forest fountain fox garden gate glacier goose "
        "hammer harbour hawk heron hill island kettle ladder lake lantern library lion lodge mansion market meadow mill mirror "
        "monastery moose mountain museum needle orchard otter owl palace pigeon pillar piano quarry rabbit raven reef river "
        "saddle salmon school shield ship spring station swan temple tiger tower tunnel turtle valley village wagon well whale "
        "wheel windmill wolf workshop").split()
NAME = ("Ada Albert Alice Anton Basil Bruno Carla Cecil Clara Conrad Cora Daphne Dora Edgar Edith Elias Elsa Emil Esther Felix "
        "Flora Frank George Greta Hanna Harold Hector Helen Henry Hugo Ida Igor Irene Ivan Jasper Julia Karl Laura Leo Lena Lydia "
        "Magnus Marta Martin Max Mina Nadia Nora Oscar Otto Paula Peter Philip Quentin Rosa Rufus Ruth Samuel Sara Simon Stella "
        "Theo Thomas Ursula Vera Victor Walter Wanda Xavier Yvonne Zelda").split()
CITY = ("Antwerp Athens Bergen Bilbao Boston Bremen Cairo Calais Cork Dakar Delft Denver Dublin Geneva Genoa Ghent Havana Kyoto "
        "Leeds Lima Lisbon Lyon Madrid Malmo Milan Nairobi Naples Osaka Oslo Paris Porto Prague Quito Riga Rome Seville Split "
        "Sydney Tallinn Tampere Tunis Turin Utrecht Vienna Warsaw York Zagreb Zurich").split()
COLOUR = "black blue brown green grey indigo maroon orange pink purple red teal turquoise white yellow".split()

ATTR = {"access code": "digits", "serial number": "digits", "catalogue number": "digits", "password": "word",
        "owner": "name", "keeper": "name", "home city": "city", "favourite colour": "colour", "weight in grams": "digits"}
ATTR_HELD = {"magic number": "digits", "registration code": "hex", "inspector": "name", "port of call": "city"}
STATE = ["The {a} of the {e} is {v}.", "Note that the {a} of the {e} is {v}.", "Remember: the {a} of the {e} is {v}.",
         "It is recorded that the {a} of the {e} is {v}.", "As everyone agreed, the {a} of the {e} is {v}."]
STATE_HELD = ["In the ledger, the {a} of the {e} is {v}.", "Clerks wrote down that the {a} of the {e} is {v}."]
ASK = ["Question: What is the {a} of the {e}?\n"]
ASK_HELD = ["Question: Tell me the {a} of the {e}.\n"]


def pick(rng, seq):
    return seq[rng.randint(len(seq))]


def value(rng, kind):
    if kind == "digits":
        return "".join(str(rng.randint(10)) for _ in range(rng.randint(4, 8)))
    if kind == "hex":
        return "".join("0123456789abcdef"[rng.randint(16)] for _ in range(6))
    return {"word": NOUN, "name": NAME, "city": CITY, "colour": COLOUR}[kind][rng.randint(
        len({"word": NOUN, "name": NAME, "city": CITY, "colour": COLOUR}[kind]))]


def facts(rng, n, held):
    """-> statements [(text)], questions [(index, prompt, answer)]"""
    attrs = ATTR_HELD if held else ATTR
    names = list(attrs)
    used, st, qs = set(), [], []
    while len(st) < n:
        e = f"{pick(rng, ADJ)} {pick(rng, NOUN)}"
        a = pick(rng, names)
        if (a, e) in used:
            continue
        used.add((a, e))
        v = value(rng, attrs[a])
        st.append(pick(rng, STATE_HELD if held else STATE).format(a=a, e=e, v=v) + "\n")
        ask = pick(rng, ASK_HELD if held else ASK).format(a=a, e=e)
        if rng.rand() < 0.6:
            qs.append((len(st) - 1, ask + f"Answer: The {a} of the {e} is", f" {v}.\n"))
        else:
            qs.append((len(st) - 1, ask + "Answer:", f" {v}.\n"))
    return st, qs


def key(rng, held):
    c = rng.randint(3)
    if held:
        return f"{pick(rng, CITY).lower()}/{pick(rng, NOUN)}{rng.randint(10, 99)}"
    if c == 0:
        return f"{pick(rng, ADJ)}_{pick(rng, NOUN)}"
    if c == 1:
        return "".join("0123456789abcdef"[rng.randint(16)] for _ in range(6))
    return f"{pick(rng, NOUN)}.{pick(rng, NOUN)}.{rng.randint(10, 99)}"


def keyvalue(rng, n, held):
    used, st, qs = set(), [], []
    sep = " -> " if held else pick(rng, [" = ", ": "])
    while len(st) < n:
        k = key(rng, held)
        if k in used:
            continue
        used.add(k)
        v = value(rng, pick(rng, ["digits", "hex", "word"]))
        st.append(f"{k}{sep}{v}\n")
        qs.append((len(st) - 1, f"Lookup: {k}{sep.rstrip()}", f" {v}\n"))
    return st, qs


def chain(rng, n, held):
    """Variables defined by numbers or by earlier variables; answers direct or written out."""
    st, qs, defs, names = [], [], {}, []
    verb = "assign" if held else "let"
    while len(st) < n:
        x = f"{'QWZ'[rng.randint(3)] if held else 'ABCDEFGHKLMN'[rng.randint(12)]}{rng.randint(100, 999)}"
        if x in defs:
            continue
        if names and rng.rand() < 0.6:
            src = pick(rng, names)
            if defs[src][1] >= 3:
                continue
            defs[x] = (src, defs[src][1] + 1)
        else:
            defs[x] = (value(rng, "digits"), 0)
        names.append(x)
        st.append(f"{verb} {x} = {defs[x][0]};\n")
        hops, y = [x], defs[x][0]
        while y in defs:
            hops.append(y)
            y = defs[y][0]
        if rng.rand() < 0.5:
            qs.append((len(st) - 1, f"Trace: {x} =", " " + " = ".join(hops[1:] + [y]) + "\n"))
        else:
            qs.append((len(st) - 1, f"Value: {x} =", f" {y}\n"))
    return st, qs


FAMILIES = {"facts": facts, "keyvalue": keyvalue, "chain": chain}


class TaskMaker:
    def __init__(self, tok, doc_token=0):
        self.tok = tok
        self.doc_token = doc_token
        n = tok.get_vocab_size()
        self.ends_line = np.array([tok.decode([i], skip_special_tokens=False).endswith("\n") for i in range(n)])

    def enc(self, texts):
        return [np.array(e.ids, dtype=np.uint16) for e in self.tok.encode_batch(texts, add_special_tokens=False)]

    def row(self, rng, hay, length, family=None, held=False, n_statements=None, n_questions=None, split_docs=None):
        """hay(rng, n) -> n natural tokens. -> tokens [length], answers [(start, end, distance, family)]"""
        fam = family or ["facts", "facts", "keyvalue", "chain", "copy"][rng.randint(5)]
        big = length >= 16384
        n = n_statements or (rng.randint(8, 65) if big else rng.randint(3, 33))
        nq = n_questions or min(n, rng.randint(6, 25) if big else rng.randint(3, 17))
        own_doc = rng.rand() < 0.5
        if fam == "copy":
            return self.copy_row(rng, hay, length, own_doc, nq)
        st, qs = FAMILIES[fam](rng, n, held)
        order = rng.permutation(n)[:nq]
        qs = [qs[i] for i in order]
        ids = self.enc(st + [q[1] for q in qs] + [q[2] for q in qs])
        st_ids, pr_ids, an_ids = ids[:n], ids[n:n + nq], ids[n + nq:]
        tail = sum(map(len, pr_ids)) + sum(map(len, an_ids)) + (1 if own_doc else 0)
        body_len = length - tail - sum(map(len, st_ids))
        if body_len < 1000:
            raise ValueError(f"a row of {length} tokens is too short for {n} statements and {nq} questions")
        n_docs = split_docs or (1 if rng.rand() < 0.4 else rng.randint(2, 6))
        cuts = np.sort(rng.choice(np.arange(200, body_len - 200), n_docs - 1, replace=False)) if n_docs > 1 else []
        parts = []
        for m in np.diff(np.concatenate(([0], cuts, [body_len]))).astype(int):
            h = hay(rng, m - 1)
            parts += [np.array([self.doc_token], np.uint16), h]
        body = np.concatenate(parts)
        lines = np.flatnonzero(self.ends_line[body]) + 1
        lines = lines[lines < len(body)]
        if len(lines) < 4:
            lines = np.arange(1, len(body))
        # chains keep their order; the others are placed freely, one a line end, or in one table
        if fam == "keyvalue" and rng.rand() < 0.3:
            at = np.full(n, pick(rng, lines))
        else:
            at = np.sort(lines[rng.randint(len(lines), size=n)])
        perm = np.arange(n) if fam == "chain" else rng.permutation(n)
        out, prev, where, pos = [], 0, {}, 0
        for slot, j in zip(at, perm):
            out += [body[prev:slot], st_ids[j]]
            pos += slot - prev
            where[j] = pos
            pos += len(st_ids[j])
            prev = slot
        out.append(body[prev:])
        pos += len(body) - prev
        if own_doc:
            out.append(np.array([self.doc_token], np.uint16))
            pos += 1
        answers = []
        for (j, _, _), p, a in zip(qs, pr_ids, an_ids):
            out += [p, a]
            start = pos + len(p)
            answers.append((start, start + len(a), start - where[j], fam))
            pos = start + len(a)
        row = np.concatenate(out)
        assert len(row) == length, (len(row), length)
        return row, answers

    def copy_row(self, rng, hay, length, own_doc, nq):
        nq = max(1, min(nq, 2 + length // 2048, 12))
        head = self.enc(["Repeat the passage that begins:\n"])[0]
        end = self.enc(["\nEnd of passage.\n"])[0]
        size = [int(rng.randint(40, 120)) for _ in range(nq)]
        tail = sum(size) + nq * (len(head) + len(end)) + (1 if own_doc else 0)
        body = np.concatenate((np.array([self.doc_token], np.uint16), hay(rng, length - tail - 1)))
        out, pos, answers = [body], len(body), []
        if own_doc:
            out.append(np.array([self.doc_token], np.uint16))
            pos += 1
        for m in size:
            s = int(rng.randint(1, len(body) - m))
            out += [head, body[s:s + m], end]
            start = pos + len(head)
            answers.append((start + 12, start + m, start - s, "copy"))
            pos = start + m + len(end)
        return np.concatenate(out), answers
