#!/usr/bin/env python3
"""What eviction at the end of a prompt costs: the loss of what comes after it, each token decoded.

    eviction_quality.py MODEL TEXT_FOLDER [KEEP...]      CSV on standard output, for bench/results/eviction-quality.csv
    eviction_quality.py --check                          whether eviction-quality.md has its rows, of the plans as they are

Of every text of texts.py the first 4,096 tokens are read as a prompt under each plan; its end evicts.
The next 128 tokens are fed one by one by the decode route: mean loss, and the paired difference to dense
with its 95 % interval over tokens of all texts. KV bytes are those of the session after the last token.
A plan that evicts cannot be judged as `heddle perplexity` does: no prompt row sees an eviction.
"""
import csv
import ctypes as c
import glob
import math
import os
import sys

from behaviour import TOP, plan_hash

N_PROMPT, N_AFTER = 4096, 128
RESULTS = TOP + "/bench/results/eviction-quality"
FIELDS = ("plan_hash", "plan", "keep", "n_tokens", "loss", "minus_dense", "low95", "high95", "kv_percent")
lib = c.CDLL(TOP + "/build/libheddle.so")
lib.heddle_last_error.restype = c.c_char_p
lib.heddle_session_logits.restype = c.POINTER(c.c_float)
P = c.c_void_p


PLANS = ("h2o", "snapkv", "recent")  # the last is the control


def spec(plan, keep):
    window = {"h2o": keep // 2, "recent": keep - 4}.get(plan)
    return f"{plan}:keep={keep}" + (f",window={window}" if window else "")


def done(status):
    if status:
        sys.exit(lib.heddle_last_error().decode())


def tokens(engine, path):
    text, ids, n = open(path, "rb").read(), c.POINTER(c.c_int32)(), c.c_int64()
    done(lib.heddle_tokenize(engine, text, c.c_int64(len(text)), 0, c.byref(ids), c.byref(n)))
    return list(ids[:min(n.value, N_PROMPT + N_AFTER)])


def losses(engine, plan_name, ids, n_vocab):
    plan, session = P(), P()
    done(lib.heddle_plan_named(c.byref(plan), plan_name.encode()))
    options = (c.c_char * 256)()
    lib.heddle_session_options_default(options)
    c.c_int64.from_buffer(options, 8).value = N_PROMPT + N_AFTER  # context_tokens
    done(lib.heddle_session_new(c.byref(session), engine, plan, options))
    array = (c.c_int32 * len(ids))(*ids)
    done(lib.heddle_session_extend(session, array, c.c_int64(N_PROMPT), None, None))
    out = []
    for i in range(N_PROMPT, len(ids)):
        logits = lib.heddle_session_logits(session)[:n_vocab]
        top = max(logits)
        out.append(top + math.log(sum(math.exp(x - top) for x in logits)) - logits[ids[i]])
        done(lib.heddle_session_decode(session, c.byref(array, 4 * i), c.c_int64(1)))
    stats = (c.c_char * 256)()
    c.c_uint32.from_buffer(stats).value = 256  # struct_size
    lib.heddle_session_stats(session, stats)
    kv_bytes = c.c_int64.from_buffer(stats, 40).value
    lib.heddle_session_free(session)
    lib.heddle_plan_free(plan)
    return out, kv_bytes


def main():
    engine, info = P(), (c.c_char * 512)()
    c.c_uint32.from_buffer(info).value = 512  # struct_size
    done(lib.heddle_engine_open(c.byref(engine), sys.argv[1].encode(), None))
    lib.heddle_engine_model_info(engine, info)
    n_vocab = c.c_int32.from_buffer(info, 60).value
    texts = [tokens(engine, path) for path in sorted(glob.glob(os.path.join(sys.argv[2], "*-0.txt")))]
    dense = [losses(engine, "dense", ids, n_vocab) for ids in texts]
    base = [x for one, _ in dense for x in one]
    out = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    out.writeheader()
    out.writerow(dict(zip(FIELDS, (plan_hash("dense"), "dense", "", len(base), f"{sum(base) / len(base):.4f}", 0, "", "", 100))))
    for keep in [int(k) for k in sys.argv[3:]] or [2048, 1024, 512]:
        for plan in PLANS:
            name = spec(plan, keep)
            runs = [losses(engine, name, ids, n_vocab) for ids in texts]
            diff = [x - y for x, y in zip([x for one, _ in runs for x in one], base)]
            mean = sum(diff) / len(diff)
            half = 1.96 * math.sqrt(sum((d - mean) ** 2 for d in diff) / (len(diff) - 1) / len(diff))
            out.writerow(dict(zip(FIELDS, (plan_hash(name), plan, keep, len(diff), f"{mean + sum(base) / len(base):.4f}", f"{mean:+.4f}",
                                           f"{mean - half:+.4f}", f"{mean + half:+.4f}", f"{100 * runs[0][1] / dense[0][1]:.0f}"))))
            sys.stdout.flush()


def claims(rows):
    """What the page says of them: (sentence, whether it holds)."""
    loss = {(r["plan"], r["keep"]): float(r["loss"]) for r in rows}
    keeps = sorted({r["keep"] for r in rows if r["keep"]}, key=int)
    for plan in PLANS[:2]:
        yield f"{plan} loses less than the control at each budget", all(loss[plan, k] < loss["recent", k] for k in keeps)
    even = {(r["plan"], r["keep"]) for r in rows if r["keep"] and float(r["low95"]) <= 0 <= float(r["high95"])}
    yield "only h2o at half of the rows has an interval that holds 0", even == {("h2o", "2048")}


def check():
    if not os.path.exists(RESULTS + ".csv"):
        print("eviction: bench/results/eviction-quality.csv is not there")
        return 1
    with open(RESULTS + ".csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    with open(RESULTS + ".md") as file:
        page = file.read()
    bad = []
    for r in rows:
        name = r["plan"] if r["plan"] == "dense" else spec(r["plan"], int(r["keep"]))
        if plan_hash(name) != r["plan_hash"]:
            bad.append(f"{name}: the row is of another plan file")
        shown = f"| `{r['plan']}`{', control' if r['plan'] == 'recent' else ''} | {int(r['keep'] or 0):,} | {r['loss']} | {r['minus_dense']} |"
        if r["keep"] and f"{shown} {r['low95']} .. {r['high95']} | {r['kv_percent']} % |" not in page:
            bad.append(f"{name}: eviction-quality.md does not have its row")
    if page.count("\n| `") != len(rows) - 1:
        bad.append("eviction-quality.md has rows that eviction-quality.csv does not")
    bad += [f"{claim}: DOES NOT HOLD" for claim, is_met in claims(rows) if not is_met]
    print("\n".join(f"eviction: {why}" for why in bad) or f"eviction: {len(rows)} rows, of the plans as they are now")
    return 1 if bad else 0


sys.exit(check() if sys.argv[1:] == ["--check"] else main())
