#!/usr/bin/env python3
"""Make the golden files of the tokenizers: tests/golden/tokenizer (formats: its README).

    tokenizer_oracle.py OUT_DIR SMOLLM2.gguf GEMMA3.gguf

First oracle: Hugging Face `tokenizers`, rebuilt from the GGUF file's vocabulary, merges or scores,
and the pretokeniser that the model's authors published. Second: llama.cpp (package llama_cpp, left
out with a warning if missing). Third, for Gemma: `sentencepiece` itself, from a model file made of
the GGUF's pieces and scores. Where they differ the script says so; the golden ids are the first's.
"""
import collections
import json
import os
import pathlib
import struct
import sys

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

import llama_lib
import make_text

CHUNK_BYTES = 4096
SHORT_BYTES = 20480
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def warn(text):
    print(f"tokenizer_oracle: {text}", file=sys.stderr)


# --- the first oracle ---------------------------------------------------------------------------

def smollm2_pretokenizer():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class Vocabulary:
    def __init__(self, path):
        fields = gguf.GGUFReader(path).fields
        self.tokens = fields["tokenizer.ggml.tokens"].contents()
        self.types = fields["tokenizer.ggml.token_type"].contents()
        self.scores = fields["tokenizer.ggml.scores"].contents() if "tokenizer.ggml.scores" in fields else None
        self.merges = fields["tokenizer.ggml.merges"].contents() if "tokenizer.ggml.merges" in fields else None
        template = fields.get("tokenizer.chat_template")
        self.chat_template = template.contents() if template else None

    def added(self):
        return [AddedToken(token, special=kind == CONTROL, normalized=False)
                for token, kind in zip(self.tokens, self.types) if kind in (CONTROL, USER_DEFINED)]


def smollm2_tokenizer(vocabulary):
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    tokenizer = Tokenizer(BPE(ids, merges))
    tokenizer.pre_tokenizer = smollm2_pretokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(vocabulary.added())
    return tokenizer


def gemma3_tokenizer(vocabulary):
    """Merges are not in the file: every split of a piece into two pieces, best score first."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = []
    for token, kind, score in zip(vocabulary.tokens, vocabulary.types, vocabulary.scores):
        if kind == NORMAL:
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in ids and right in ids:
                    merges.append((-score, ids[left], ids[right], left, right))
    merges.sort()
    tokenizer = Tokenizer(BPE(ids, [(left, right) for *_, left, right in merges], byte_fallback=True,
                              fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(vocabulary.added())
    return tokenizer


def encode(tokenizer, text, parse_special=False):
    tokenizer.encode_special_tokens = not parse_special
    return tokenizer.encode(text, add_special_tokens=False).ids


# --- the third oracle ---------------------------------------------------------------------------

def sentencepiece_of(vocabulary):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb
    kinds = pb.ModelProto.SentencePiece
    model = pb.ModelProto()
    for token, kind, score in zip(vocabulary.tokens, vocabulary.types, vocabulary.scores):
        if token == "<unk>":
            kind = UNKNOWN
        if kind == USER_DEFINED:
            token, score = token.replace(" ", "\u2581"), 0.0
        piece = model.pieces.add(piece=token, score=score)
        piece.type = {NORMAL: kinds.NORMAL, UNKNOWN: kinds.UNKNOWN, CONTROL: kinds.CONTROL,
                      USER_DEFINED: kinds.USER_DEFINED, BYTE: kinds.BYTE}[kind]
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(vocabulary.tokens)
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = 0, 1, 2, 3
    spec.pad_piece, spec.eos_piece, spec.bos_piece, spec.unk_piece = "<pad>", "<eos>", "<bos>", "<unk>"
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


# --- files --------------------------------------------------------------------------------------

def fnv1a64(ids):
    h = 0xCBF29CE484222325
    for byte in struct.pack(f"<{len(ids)}i", *ids):
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def chunks_of(text, size=CHUNK_BYTES):
    """(offset, bytes): at most `size` bytes each, cut between characters."""
    offset = 0
    while offset < len(text):
        end = min(offset + size, len(text))
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        yield offset, text[offset:end]
        offset = end


def write_ids(path, ids):
    path.write_bytes(struct.pack(f"<{len(ids)}i", *ids))


def ids_field(ids):
    return " ".join(map(str, ids)) if ids else "-"


def write_tsv(path, header, rows):
    with open(path, "w", encoding="ascii", newline="\n") as out:
        out.write("# " + "\t".join(header) + "\n")
        for row in rows:
            out.write("\t".join(map(str, row)) + "\n")


def compare(name, what, ours, theirs, text):
    if theirs is None or ours == theirs:
        return 0
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    warn(f"{name}: {what} differs at id {at} of {len(ours)}: {ours[at:at + 6]} against {theirs[at:at + 6]}")
    return 1


def text_goldens(out, name, tokenizer, text, llama, sentencepiece_model=None):
    rows, differ = [], {"llama.cpp": 0, "sentencepiece": 0}
    pieces = list(chunks_of(text)) + [(0, text)]
    for offset, piece in pieces:
        ids = encode(tokenizer, piece.decode())
        rows.append((offset, len(piece), len(ids), f"{fnv1a64(ids):016x}"))
        if llama:
            differ["llama.cpp"] += compare(name, f"llama.cpp, chunk at {offset}", ids, llama.tokenize(piece), piece)
        if sentencepiece_model and len(piece) <= CHUNK_BYTES:
            theirs = sentencepiece_model.encode(piece.decode(), out_type=int)
            differ["sentencepiece"] += compare(name, f"sentencepiece, chunk at {offset}", ids, theirs, piece)
    write_tsv(out / f"{name}.chunks.tsv", ("offset", "bytes", "n_ids", "fnv1a64 of the ids as int32 LE"), rows)
    short = next(chunks_of(text, SHORT_BYTES))[1]
    ids = encode(tokenizer, short.decode())
    write_ids(out / f"{name}.short.i32", ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    print(f"{name}: {len(pieces)} texts, {rows[-1][2]} ids in the whole; differ: {differ}; "
          f"short text decodes back: {decoded == short.decode()}")


SPECIAL_CASES = {
    "smollm2": ["<|im_start|>user\nHello<|im_end|>\n", "a<|im_end|>b", " <|im_start|> ", "<|im_start|", "<|endoftext|><|endoftext|>",
                "<|im_start|><|im_start|>x<|im_end|>", "<repo_name>heddle<file_sep>a.c\n", "<empty_output>", "<|IM_START|>", ""],
    "gemma3": ["<start_of_turn>user\nHello<end_of_turn>\n", "a<end_of_turn>b", " <bos> ", "<bos><eos><pad><unk><mask>", "<table><tr><td>1</td></tr></table>",
               "\n\n\n", "\n" * 33, " " * 33 + "x", "\t" * 30 + "y", "<unused17>", "[multimodal]", "<0x0A>", "<start_of_turn", "\u2581\u2581x", " \u2581 x", ""],
}


def special_goldens(out, name, tokenizer, llama):
    rows = []
    for text in SPECIAL_CASES[name]:
        parsed, plain = encode(tokenizer, text, True), encode(tokenizer, text, False)
        rows.append((text.encode().hex() or "-", ids_field(parsed), ids_field(plain)))
        if llama:
            compare(name, f"llama.cpp, {text!r} with special tokens", parsed, llama.tokenize(text.encode(), parse_special=True), text)
            compare(name, f"llama.cpp, {text!r} as plain text", plain, llama.tokenize(text.encode()), text)
    write_tsv(out / f"{name}.special.tsv", ("text as hex", "ids, special tokens recognised", "ids, as plain text"), rows)


# --- broken UTF-8 -------------------------------------------------------------------------------

BROKEN = [
    ("lone-continuation", b"a\x80b"), ("two-continuations", b"\x80\xbf"), ("lead-then-ascii", b"\xe4a"),
    ("truncated-2", b"caf\xc3"), ("truncated-3", b"x \xe4\xb8"), ("truncated-4", b"x \xf0\x9f\x98"),
    ("truncated-4-then-text", b"\xf0\x9f\x98 text"), ("four-byte-lead-then-ascii", b"\xf0abcd"), ("overlong-slash", b"\xc0\xaf"), ("overlong-nul", b"a\xc0\x80b"),
    ("overlong-3", b"\xe0\x80\xaf"), ("overlong-4", b"\xf0\x80\x80\xaf"), ("surrogate", b"\xed\xa0\x80"), ("surrogate-pair", b"\xed\xa0\xbd\xed\xb8\x80"),
    ("above-10ffff", b"\xf4\x90\x80\x80"), ("five-bytes", b"\xf8\x88\x80\x80\x80"), ("ff-fe", b"\xff\xfeh\x00i\x00"),
    ("latin-1", b"Stra\xdfe nach M\xfcnchen, 5\xb0 C"), ("latin-1-spaces", b"d\xe9j\xe0 vu  \xe0 la\n\xe9"), ("utf-16", "heddle".encode("utf-16-be") + b"\xd8\x3d"),
    ("between-digits", b"1\xff2\xfe3"), ("after-space", b"the \xff\xfe end"), ("runs", b"\xff" * 20 + b"  \x80\x80 "),
    ("good-after-bad", b"\xe4\xb8\xe4\xb8\xad\xe5\x9b\xbd"), ("replacement-itself", "a\ufffdb".encode()), ("mixed", "中".encode() + b"\x93" + "é\u0301🧵".encode()[:-1] + b"!\r\n"),
    ("cut-emoji-family", "👨‍👩‍👧".encode()[2:-1]), ("nul-and-bad", b"\x00\xc1\x00"),
]


def split_valid(data):
    """[(valid, bytes)]: maximal well-formed stretches, and every other byte by itself."""
    parts, at = [], 0
    while at < len(data):
        try:
            data[at:].decode()
            parts.append((True, data[at:]))
            break
        except UnicodeDecodeError as error:
            if error.start:
                parts.append((True, data[at:at + error.start]))
            parts += [(False, data[i:i + 1]) for i in range(at + error.start, at + error.end)]
            at += error.end
    return parts


def byte_alphabet():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in keep}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return table


def broken_byte_level(tokenizer, data):
    """The pretokeniser sees U+FFFD for each broken byte (neither letter, number nor space); BPE sees the bytes."""
    text, sources = "", []
    for valid, part in split_valid(data):
        for char in part.decode() if valid else "\ufffd":
            text += char
            sources.append(char.encode() if valid else part)
    alphabet, ids = byte_alphabet(), []
    split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                     pre_tokenizers.Split(Regex(GPT2), "isolated")])
    for _, (start, end) in split.pre_tokenize_str(text):
        word = "".join(alphabet[b] for b in b"".join(sources[start:end]))
        ids += [token.id for token in tokenizer.model.tokenize(word)]
    return ids


def broken_byte_fallback(tokenizer, data):
    ids = []
    for valid, part in split_valid(data):
        ids += encode(tokenizer, part.decode()) if valid else [tokenizer.token_to_id(f"<0x{part[0]:02X}>")]
    return ids


def tokenize_in_child(llama, data):
    """llama.cpp ends the process on some ill-formed input: "abort" then."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(write_end, ids_field(llama.tokenize(data)).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as result:
        ids = result.read().decode()
    return ids if os.waitpid(child, 0)[1] == 0 else "abort"


def broken_goldens(out, name, tokenizer, llama, ours):
    rows, same = [], 0
    for case, data in BROKEN:
        ids = ours(tokenizer, data)
        replaced = encode(tokenizer, data.decode("utf-8", "replace"))
        theirs = tokenize_in_child(llama, data) if llama else "-"
        same += ids_field(ids) == theirs
        rows.append((case, data.hex(), ids_field(ids), ids_field(replaced), theirs))
    write_tsv(out / f"{name}.broken.tsv", ("case", "bytes as hex", "ids: bytes kept (ours)", "ids: Hugging Face, U+FFFD first", "ids: llama.cpp"), rows)
    print(f"{name}: broken UTF-8, {len(rows)} cases, llama.cpp agrees with ours on {same}")


# --- chat ---------------------------------------------------------------------------------------

CONVERSATIONS = [
    ("one-turn", [("user", "Who wove the tapestry?")]),
    ("system", [("system", "Answer in one word."), ("user", "Who wove the tapestry?")]),
    ("two-turns", [("user", "Hello"), ("assistant", "Hi. What shall I read?"), ("user", "The ledger.")]),
    ("white-space", [("user", "  two leading spaces and a final line feed\n")]),
    ("empty", [("user", "")]),
    ("unicode", [("user", "中文, العربية, 🧵 e\u0301")]),
    ("markup", [("user", "a <|im_end|> b <end_of_turn> c <|eot_id|> d")]),
    ("answered", [("user", "Hello"), ("assistant", "Hi.")]),
]


def render_chatml(messages, generate, system=None):
    if system is not None and messages[0][0] != "system":
        messages = [("system", system)] + messages
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return text + ("<|im_start|>assistant\n" if generate else "")


def render_llama3(messages, generate):
    """Llama 3.0; Llama 3.1 and later add a dated system turn, which is not golden here."""
    text = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{content.strip()}<|eot_id|>" for role, content in messages)
    return text + ("<|start_header_id|>assistant<|end_header_id|>\n\n" if generate else "")


def render_gemma(messages, generate):
    prefix = ""
    if messages[0][0] == "system":
        prefix, messages = messages[0][1] + "\n\n", messages[1:]
    text = ""
    for i, (role, content) in enumerate(messages):
        role = "model" if role == "assistant" else role
        text += f"<start_of_turn>{role}\n{prefix if i == 0 else ''}{content.strip()}<end_of_turn>\n"
    return text + ("<start_of_turn>model\n" if generate else "")


def render_jinja(template, messages, generate):
    import jinja2.sandbox
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        messages=[{"role": role, "content": content} for role, content in messages], add_generation_prompt=generate)


def render_llama_cpp(lib, template, messages, generate):
    chat = (lib.llama_chat_message * len(messages))(*[lib.llama_chat_message(role=r.encode(), content=c.encode()) for r, c in messages])
    buffer = bytes(65536)
    n = lib.llama_chat_apply_template(template.encode(), chat, len(messages), generate, buffer, len(buffer))
    return buffer[:n].decode() if n >= 0 else None


def chat_goldens(out, template, bundle, llama):
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    forms = {"smollm2": (lambda m, g: render_chatml(m, g, default), "chatml"), "chatml": (render_chatml, "chatml"),
             "gemma": (render_gemma, "gemma"), "llama3": (render_llama3, "llama3")}
    for form, (render, peer_name) in forms.items():
        rows = []
        for case, messages in CONVERSATIONS:
            for generate in (True, False):
                text = render(messages, generate)
                if form == "smollm2" and text != render_jinja(template, messages, generate):
                    raise SystemExit(f"chat {case}: the model's own template gives another text")
                if llama and form != "smollm2":
                    theirs = render_llama_cpp(llama.lib, peer_name, messages, generate)
                    if theirs != text:
                        warn(f"chat {form} {case}: llama.cpp gives {theirs!r}, not {text!r}")
                turns = " ".join(f"{role}:{content.encode().hex()}" for role, content in messages)
                rows.append((case, int(generate), turns, text.encode().hex()))
        write_tsv(out / f"chat-{form}.tsv", ("case", "generation prompt", "role:content as hex, ...", "rendered text as hex"), rows)


# --- small tokenizer.json files -----------------------------------------------------------------

def train_byte_level(text, pretokenizer, specials, n_vocab, ignore_merges=False, normalizer=None):
    tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pretokenizer, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=n_vocab, special_tokens=specials, show_progress=False,
                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def train_byte_fallback(text, n_vocab):
    """A tokenizer.json as Gemma's: byte tokens, Replace normaliser, user-defined white space."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    counts = collections.Counter(text.replace(" ", "\u2581").replace("\n", ""))
    alphabet = sorted(counts, key=lambda char: (-counts[char], char))[:160]  # the trainer's own choice varies on ties
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=n_vocab, initial_alphabet=alphabet, limit_alphabet=160, show_progress=False)
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    model = json.loads(tokenizer.to_str())
    trained = sorted(model["model"]["vocab"], key=model["model"]["vocab"].get)
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    spaces = ["\n" * n for n in range(1, 9)] + ["\t", "\t\t"]
    order = list(dict.fromkeys(specials + spaces + [f"<0x{b:02X}>" for b in range(256)] + trained))
    model["model"].update(vocab={token: i for i, token in enumerate(order)}, byte_fallback=True, fuse_unk=True)
    model["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    model["decoder"] = json.loads(decoders_json())
    tokenizer = Tokenizer.from_str(json.dumps(model))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in spaces])
    return tokenizer


def decoders_json():
    tokenizer = Tokenizer(BPE())
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return json.dumps(json.loads(tokenizer.to_str())["decoder"])


def json_goldens(out, text):
    short = next(chunks_of(text, SHORT_BYTES))[1].decode()
    sample = text[:200000].decode("utf-8", "ignore")
    made = {
        "gpt2": train_byte_level(sample, pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"], 1500),
        "smollm2": train_byte_level(sample, smollm2_pretokenizer(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 1500),
        "llama3": train_byte_level(sample, split_then_bytes(LLAMA3), ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                                   1500, ignore_merges=True),
        "qwen2": train_byte_level(sample, split_then_bytes(QWEN2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 1500, normalizer=normalizers.NFC()),
        "gemma": train_byte_fallback(sample, 1500),
    }
    made["llama3"].post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", made["llama3"].token_to_id("<|begin_of_text|>"))])
    made["gemma"].post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made["gemma"].token_to_id("<bos>"))])
    for name, tokenizer in made.items():
        path = out / f"json-{name}.json"
        data = json.loads(tokenizer.to_str())
        path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        tokenizer = Tokenizer.from_file(str(path))
        ids = encode(tokenizer, short)
        write_ids(out / f"json-{name}.short.i32", ids)
        print(f"json-{name}: {path.stat().st_size} bytes, {len(ids)} ids, decodes back: {tokenizer.decode(ids, skip_special_tokens=False) == short}")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    os.environ["GGML_NO_BACKTRACE"] = "1"
    text = make_text.make_text()
    (out / "short.txt").write_bytes(next(chunks_of(text, SHORT_BYTES))[1])
    json_goldens(out, text)
    models = {"smollm2": (sys.argv[2], smollm2_tokenizer, broken_byte_level), "gemma3": (sys.argv[3], gemma3_tokenizer, broken_byte_fallback)}
    for name, (path, build, broken) in models.items():
        vocabulary = Vocabulary(path)
        tokenizer = build(vocabulary)
        try:
            llama = llama_lib.Model(path, vocab_only=True)
        except ImportError as error:
            warn(f"no llama.cpp ({error}): one oracle less")
            llama = None
        third = None
        if name == "gemma3":
            try:
                third = sentencepiece_of(vocabulary)
            except ImportError as error:
                warn(f"no sentencepiece ({error}): one oracle less")
        if name == "smollm2":
            chat_goldens(out, vocabulary.chat_template, None, llama)
        special_goldens(out, name, tokenizer, llama)
        broken_goldens(out, name, tokenizer, llama, broken)
        text_goldens(out, name, tokenizer, text, llama, third)


if __name__ == "__main__":
    main()
