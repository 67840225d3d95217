"""Builds the text corpus from unpacked Debian and Python packages.

  corpus.py --unpacked DIR --out DIR     DIR/<package>/... as left by `dpkg -x` or `unzip`

Steps: extract plain text per file, filter, exact dedup, MinHash dedup over line
shingles, drop train documents that share lines with held-out packages, split by
package, write records in package order, report document lengths.

Record: 0x1e kind 0x09 package 0x09 path 0x0a text. Files: train.rec, heldout.rec, report.txt.
"""
import argparse
import gzip
import hashlib
import html
import multiprocessing
import os
import re
import sys
import zlib

import numpy as np

HELDOUT = {"anarchism", "jargon-text", "libpython3.11-stdlib", "libpython3.11-minimal", "git-doc"}
SKIP = {"linux-doc-6.1", "libreoffice-help-en-us"}
SOURCES_ONLY = {"python3.11-doc", "cmake-doc", "python-sqlalchemy-doc", "git-doc"}     # their HTML repeats the text files
CAP_MB = {"linux-source-6.1": 60, "golang-1.19-src": 10, "openjdk-17-source": 10, "rust-src": 10,
          "libboost1.74-dev": 4, "pypi-transformers": 8, "dict-gcide": 20, "dict-wn": 5, "emacs-el": 10,
          "vim-runtime": 9, "pypi-pandas": 9, "python3-sympy": 9, "pypi-scikit_learn": 8, "pypi-jax": 6,
          "pypi-twisted": 8, "python3-scipy": 6, "pypi-sqlalchemy": 6, "pypi-matplotlib": 6, "perl-modules-5.36": 6,
          "python3-numpy": 5, "libstdc++-12-dev": 3, "pypi-ansible_core": 5, "pypi-networkx": 4, "pypi-django": 4,
          "rust-doc": 12, "ruby3.1-doc": 8, "cmake-doc": 6, "octave-doc": 6, "maxima-doc": 6,
          "freeciv-data": 3, "installation-guide-amd64": 4, "debian-handbook": 6, "octave": 5,
          "freebsd-manpages": 6, "ada-reference-manual-2012": 6, "gnuplot-doc": 3, "lilypond-doc": 4,
          "apache2-doc": 8, "gimp-help-en": 6, "nodejs-doc": 6, "pari-doc": 4}
CODE = {".c": "c", ".h": "c", ".hpp": "c", ".cc": "c", ".py": "py", ".go": "go", ".java": "java",
        ".rs": "rs", ".el": "el", ".pl": "pl", ".pm": "pl", ".js": "js", ".vim": "vim", ".m": "m"}
TEXT = {".txt", ".rst", ".md", ".texi", ".org", ".info", ".pod", ".TXT"}
LANG_DIR = re.compile(r"/(ar|bg|ca|cs|da|de|el|es|et|fa|fi|fr|he|hr|hu|id|it|ja|ko|lt|nb|nl|no|pl|pt|pt[-_]br|ro|ru|sk|sl|sr|sv|tr|uk|vi|zh[-_a-z]*|[a-z]{2}[-_][A-Z]{2})/", re.I)
BAD_PATH = re.compile(r"(changelog|copyright|/testdata/|core_arch|html/core/arch|html/src/|/test[s]?/data|license|\.min\.js|"
                      r"search[-_]?index|genindex|py-modindex|/po/|NEWS|translations|/2018-edition|/second-edition|sources\.txt|SOURCES|RECORD|top_level)", re.I)


def strip_html(s):
    m = re.search(r"<body[^>]*>", s, re.I)
    if m:
        s = s[m.end():]
    s = re.sub(r"(?is)<(script|style|nav|footer|header|select|svg)\b.*?</\1>", " ", s)
    s = re.sub(r"(?s)<!--.*?-->", " ", s)
    s = re.sub(r"(?is)<pre\b[^>]*>(.*?)</pre>", lambda m: "\n" + m.group(1).replace("\n", "\x01") + "\n", s)
    s = re.sub(r"\s*\n\s*", " ", s)
    s = re.sub(r"(?i)<(br|/?p|/?div|/?li|/?tr|/?h[1-6]|/?dt|/?dd|/?ul|/?ol|/?table|/?section|/?blockquote|hr)\b[^>]*>", "\n", s)
    s = re.sub(r"<[^>]*>", "", s)
    s = html.unescape(s).replace("\x01", "\n").replace("\xa0", " ")
    s = re.sub(r"[ \t]+\n", "\n", s)
    return re.sub(r"\n{3,}", "\n\n", s)


def strip_roff(s):
    out = []
    for line in s.split("\n"):
        if line.startswith((".\\\"", "'\\\"", ".de", "..", ".if", ".ie", ".el", ".ds")):
            continue
        if line.startswith((".", "'")):
            w = line[1:].split(None, 1)
            if not w or len(w) < 2:
                out.append("")
                continue
            head = w[0] in ("SH", "Sh", "SS", "Ss", "TH", "Dt")
            line = ("\n" if head else "") + w[1].replace('"', "")
        line = re.sub(r"\\f[BIRPC]|\\f\(..|\\&|\\s[-+]?\d", "", line)
        line = line.replace("\\-", "-").replace("\\(aq", "'").replace("\\(bu", "*").replace("\\e", "\\")
        out.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out))


def strip_licence(s):
    """Drops a leading comment block that is a licence."""
    m = re.match(r"\s*(/\*.*?\*/|(?:(?://|#|;)[^\n]*\n)+)", s, re.S)
    if m and re.search(r"copyright|licen[sc]e", m.group(0), re.I):
        return s[m.end():].lstrip("\n")
    return s


def r_strings(raw):
    """Character vectors of an R lazy-load file: zlib pieces, then length-prefixed strings."""
    docs, pos = [], 0
    while pos < len(raw):
        i = raw.find(b"\x78\x9c", pos)
        j = raw.find(b"\x78\x5e", pos)
        k = raw.find(b"BZh", pos)
        c = [x for x in (i, j, k) if x >= 0]
        if not c:
            break
        p = min(c)
        try:
            if raw[p:p + 3] == b"BZh":
                import bz2
                d = bz2.BZ2Decompressor()
            else:
                d = zlib.decompressobj()
            data = d.decompress(raw[p:])
            pos = len(raw) - len(d.unused_data) if d.unused_data else len(raw)
        except Exception:
            pos = p + 2
            continue
        lines, q = [], 0
        for m in re.finditer(rb"\x00\x04?[\x00\x40]?[\x00-\xff]?\x09(\x00\x00[\x00-\xff]{2})", data):
            n = int.from_bytes(m.group(1), "big")
            lines.append(data[m.end():m.end() + n].decode("utf-8", "ignore"))
        if len(lines) > 500:
            docs.append("\n".join(lines))
    return docs


def sword_text(raw):
    out, pos = [], 0
    while True:
        p = raw.find(b"\x78", pos)
        if p < 0:
            break
        try:
            d = zlib.decompressobj()
            data = d.decompress(raw[p:])
            out.append(data)
            pos = len(raw) - len(d.unused_data)
        except Exception:
            pos = p + 1
    s = b"\n".join(out).decode("utf-8", "ignore")
    s = re.sub(r"(?s)<note.*?</note>", "", s)
    s = re.sub(r"<(verse|chapter|title|l|p|lg|div)\b[^>]*>", "\n", s)
    return re.sub(r"\n\s*\n+", "\n", html.unescape(re.sub(r"<[^>]*>", " ", s)).replace("\x00", ""))


def extract(job):
    """(package, path) -> list of (kind, text)."""
    package, path = job
    try:
        raw = open(path, "rb").read(64 << 20)
        name = path
        if name.endswith((".gz", ".dz")):
            raw = gzip.decompress(raw)
            name = name[:-3]
        base, ext = os.path.splitext(name)
        if ext == ".rdb":
            return [("prose", t) for t in r_strings(raw)]
        if ext == ".bzz":
            return [("prose", sword_text(raw))]
        s = raw.decode("utf-8", "ignore") if raw.count(b"\xc3") * 50 < len(raw) + 50 else raw.decode("utf-8", "replace")
        s = s.replace("\r\n", "\n").replace("\x1e", "").replace("\x00", "").replace("\x0c", "\n")
        if ext == ".dict":
            n = 120000
            cuts, out = 0, []
            while cuts < len(s):
                e = s.find("\n\n" if "gcide" in package else "\n", cuts + n)
                e = len(s) if e < 0 else e
                out.append(("lexicon", s[cuts:e].strip("\n")))
                cuts = e
            return out
        if ext == ".cfg" and package.startswith("wesnoth"):
            t = [re.sub(r"\s+", " ", x) for x in re.findall(r'_\s*"([^"]{20,})"', s)]
            return [("prose", "\n".join(t))] if len(t) > 10 else []
        if ext in (".html", ".htm", ".xhtml"):
            return [("docs", strip_html(s))]
        if re.fullmatch(r"\.[1-9][a-zA-Z]*", ext) and ("man" in path):
            return [("docs", strip_roff(s))]
        if ext in CODE:
            return [("code", strip_licence(s))]
        if "/fortunes/" in path and not ext:
            return [("prose", s.replace("\n%\n", "\n\n"))]
        if ext == ".info" or re.search(r"\.info-\d+$", name) or ext in TEXT or (package in ("miscfiles", "jargon-text", "doc-debian") and ext in ("", ".txt")):
            s = re.sub(r"\x1f[^\n]*\n(File:[^\n]*\n)?", "\n", s)
            return [("docs", s)]
    except Exception as e:
        print("skipped", path, e, file=sys.stderr)
    return []


def keep(kind, s):
    if len(s) < 500:
        return False
    head = s[:20000]
    if sum(map(len, head.split())) < 0.4 * len(head):
        return False
    n_ascii = len(head.encode("ascii", "ignore"))
    if n_ascii < 0.93 * len(head):
        return False
    letters = sum(map(str.isalpha, head))
    if letters < 0.6 * sum(map(len, head.split())):
        return False
    if max(map(len, head.split("\n"))) > 6000:
        return False
    if kind in ("docs", "prose"):
        w = head.lower().split()
        if w.count("the") + w.count("of") + w.count("and") < 0.02 * len(w):
            return False
    return True


def natural(path):
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]


def clean(s):
    s = re.sub(r"[ \t]+$", "", s, flags=re.M)
    s = re.sub(r"\n{4,}", "\n\n\n", s)
    return re.sub(r"([-=*_~#.═─])\1{9,}", lambda m: m.group(1) * 8, s).strip("\n") + "\n"


def line_hashes(s):
    return np.unique(np.fromiter((zlib.crc32(x.encode()) for x in (y.strip() for y in s.split("\n")) if len(x) >= 12),
                                 dtype=np.uint64))


def minhash(h, a, b):
    if len(h) == 0:
        return None
    if len(h) > 4000:
        h = h[:: len(h) // 4000 + 1]
    return ((h[:, None] * a + b) % np.uint64(4294967291)).min(axis=0)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--unpacked", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--procs", type=int, default=2)
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    docs = []
    pool = multiprocessing.Pool(args.procs)
    for package in sorted(os.listdir(args.unpacked)):
        if package in SKIP:
            continue
        paths = []
        for root, dirs, files in os.walk(os.path.join(args.unpacked, package)):
            for f in files:
                p = os.path.join(root, f)
                rel = os.path.relpath(p, args.unpacked)
                if os.path.islink(p) or LANG_DIR.search(rel) or BAD_PATH.search(rel):
                    continue
                if (package in SOURCES_ONLY and f.endswith((".html", ".html.gz"))) or (package == "anarchism" and f.endswith(".md.gz")):
                    continue
                paths.append(p)
        cap = CAP_MB.get(package, 20) * 1000000
        by_dir = {}
        for p in paths:
            by_dir.setdefault(os.path.dirname(p), []).append(p)
        order = sorted(by_dir, key=lambda d: (0 if "Documentation" in d else 1, hashlib.sha1(os.path.relpath(d, args.unpacked).encode()).digest()))
        got, took = [], 0
        for start in range(0, len(order), 64):
            jobs = [(package, p) for d in order[start:start + 64] for p in sorted(by_dir[d], key=natural)]
            for (pk, p), res in zip(jobs, pool.map(extract, jobs, chunksize=16)):
                for i, (kind, s) in enumerate(res):
                    s = clean(s)
                    if (package == "jargon-text" or keep(kind, s)) and took < cap:
                        got.append((kind, package, os.path.relpath(p, args.unpacked) + (f"#{i}" if i else ""), s))
                        took += len(s)
            if took >= cap:
                break
        got.sort(key=lambda r: (os.path.dirname(r[2]), natural(r[2])))
        docs += got
        print(f"{package}: {len(got)} documents, {took / 1e6:.1f} MB", flush=True)

    # exact, then near duplicates; held-out packages are placed first and so are kept
    docs.sort(key=lambda r: r[1] not in HELDOUT)
    rng = np.random.RandomState(7)
    a = rng.randint(1, 1 << 31, size=64).astype(np.uint64)
    b = rng.randint(0, 1 << 31, size=64).astype(np.uint64)
    seen, bands, held_lines, out, out_sig = set(), {}, set(), [], []
    stats = dict(exact=0, near=0, leak=0)
    for kind, package, path, s in docs:
        key = hashlib.sha1(" ".join(s.split()).encode()).digest()
        if key in seen:
            stats["exact"] += 1
            continue
        seen.add(key)
        h = line_hashes(s)
        sig = minhash(h, a, b)
        dup = False
        if sig is not None and len(h) >= 8:
            keys = [(i, sig[4 * i:4 * i + 4].tobytes()) for i in range(16)]
            cand = {bands[k] for k in keys if k in bands}
            dup = any((out_sig[c] == sig).mean() >= 0.6 for c in cand) if cand else False
            if dup:
                stats["near"] += 1
                continue
        else:
            keys = []
        if package in HELDOUT:
            held_lines.update(h.tolist())
        elif len(h) >= 4:
            shared = sum(x in held_lines for x in h.tolist())
            if shared > 0.25 * len(h):
                stats["leak"] += 1
                continue
        for k in keys:
            bands.setdefault(k, len(out))
        out_sig.append(sig)
        out.append((kind, package, path, s))
    report = [f"removed: exact {stats['exact']}, near {stats['near']}, shared with held-out {stats['leak']}"]
    for split in ("train", "heldout"):
        rows = [r for r in out if (r[1] in HELDOUT) == (split == "heldout")]
        rows.sort(key=lambda r: r[1])
        with open(os.path.join(args.out, split + ".rec"), "w", encoding="utf-8") as f:
            for kind, package, path, s in rows:
                f.write(f"\x1e{kind}\t{package}\t{path}\n{s}")
        report.append(f"\n{split}: {len(rows)} documents, {sum(len(r[3]) for r in rows) / 1e6:.1f} MB")
        for kind in sorted({r[0] for r in rows}):
            n = np.array([len(r[3]) for r in rows if r[0] == kind])
            report.append(f"  {kind:8s} {len(n):6d} documents {n.sum() / 1e6:7.1f} MB; bytes at 10/50/90/99 %: "
                          + " ".join(str(int(x)) for x in np.percentile(n, [10, 50, 90, 99])))
        n = np.array([len(r[3]) for r in rows])
        for lim in (16384, 65536, 131072, 262144):
            report.append(f"  longer than {lim:7d} bytes: {(n > lim).sum():5d} documents, {n[n > lim].sum() / 1e6:.1f} MB")
        for package in sorted({r[1] for r in rows}):
            m = [len(r[3]) for r in rows if r[1] == package]
            report.append(f"    {package:34s} {len(m):6d} {sum(m) / 1e6:8.2f} MB")
    open(os.path.join(args.out, "report.txt"), "w").write("\n".join(report) + "\n")
    print("\n".join(report[:30]))


if __name__ == "__main__":
    main()
