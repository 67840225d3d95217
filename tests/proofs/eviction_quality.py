#!/usr/bin/env python3
"""What eviction at the end of a prompt costs: the loss of what comes after it, each token decoded.

    eviction_quality.py MODEL TEXT_FOLDER [KEEP...]      CSV on standard output

Of every text of texts.py the first 4,096 tokens are read as a prompt under each plan; its end evicts.
The next 128 tokens are fed one by one by the decode route: mean loss, and the paired difference to dense
with its 95 % interval over tokens of all texts. KV bytes are those of the session after the last token.
A plan that evicts cannot be judged as `heddle perplexity` does: no prompt row sees an eviction.
"""
import ctypes as c
import glob
import math
import os
import sys

N_PROMPT, N_AFTER = 4096, 128
lib = c.CDLL(os.path.join(os.path.dirname(__file__), "../../build/libheddle.so"))
lib.heddle_last_error.restype = c.c_char_p
lib.heddle_session_logits.restype = c.POINTER(c.c_float)
P = c.c_void_p


def check(status):
    if status:
        sys.exit(lib.heddle_last_error().decode())


def tokens(engine, path):
    text, ids, n = open(path, "rb").read(), c.POINTER(c.c_int32)(), c.c_int64()
    check(lib.heddle_tokenize(engine, text, c.c_int64(len(text)), 0, c.byref(ids), c.byref(n)))
    return list(ids[:min(n.value, N_PROMPT + N_AFTER)])


def losses(engine, plan_name, ids, n_vocab):
    plan, session = P(), P()
    check(lib.heddle_plan_named(c.byref(plan), plan_name.encode()))
    options = (c.c_char * 256)()
    lib.heddle_session_options_default(options)
    c.c_int64.from_buffer(options, 8).value = N_PROMPT + N_AFTER  # context_tokens
    check(lib.heddle_session_new(c.byref(session), engine, plan, options))
    array = (c.c_int32 * len(ids))(*ids)
    check(lib.heddle_session_extend(session, array, c.c_int64(N_PROMPT), None, None))
    out = []
    for i in range(N_PROMPT, len(ids)):
        logits = lib.heddle_session_logits(session)[:n_vocab]
        top = max(logits)
        out.append(top + math.log(sum(math.exp(x - top) for x in logits)) - logits[ids[i]])
        check(lib.heddle_session_decode(session, c.byref(array, 4 * i), c.c_int64(1)))
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
    check(lib.heddle_engine_open(c.byref(engine), sys.argv[1].encode(), None))
    lib.heddle_engine_model_info(engine, info)
    n_vocab = c.c_int32.from_buffer(info, 60).value
    texts = [tokens(engine, path) for path in sorted(glob.glob(os.path.join(sys.argv[2], "*-0.txt")))]
    dense = [losses(engine, "dense", ids, n_vocab) for ids in texts]
    base = [x for one, _ in dense for x in one]
    print("plan,keep,n_tokens,mean_loss,minus_dense,low95,high95,kv_bytes,dense_kv_bytes")
    print(f"dense,,{len(base)},{sum(base) / len(base):.4f},0,0,0,{dense[0][1]},{dense[0][1]}", flush=True)
    for keep in [int(k) for k in sys.argv[3:]] or [1024, 512, 256]:
        plans = [f"snapkv:keep={keep}", f"h2o:keep={keep},window={keep // 2}", f"recent:keep={keep},window={keep - 4}"]
        for name in plans:
            runs = [losses(engine, name, ids, n_vocab) for ids in texts]
            diff = [x - y for x, y in zip([x for one, _ in runs for x in one], base)]
            mean = sum(diff) / len(diff)
            half = 1.96 * math.sqrt(sum((d - mean) ** 2 for d in diff) / (len(diff) - 1) / len(diff))
            print(f"{name.split(':')[0]},{keep},{len(diff)},{mean + sum(base) / len(base):.4f},{mean:+.4f},{mean - half:+.4f},"
                  f"{mean + half:+.4f},{runs[0][1]},{dense[0][1]}", flush=True)


main()
