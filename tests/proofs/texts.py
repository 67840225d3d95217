#!/usr/bin/env python3
"""The three texts of the quality proofs, from Debian packages: prose, code and a lexicon.

    texts.py [--any-version] [--bytes N] [--documents N] FOLDER
                 writes FOLDER/{prose,code,lexicon}-{0,1,2}.txt and prints their hashes

    prose    An Anarchist FAQ, sections A to J, markup taken out   anarchism 15.3-3
    code     the modules of Python's standard library              libpython3.11-stdlib 3.11.2-6+deb12u9
    lexicon  the Jargon File 4.4.7                                 jargon-text 4.4.7-4.1

These are the versions of Debian 12 that the committed figures were made with. Another version may give
other bytes: the hashes below tell, and then this ends with a sentence, for figures of another text cannot
be set beside the committed ones. --any-version: write what there is all the same.

Documents begin at the first line after one third, one half and three quarters of a text, and are
48,000 bytes long: more than 8,192 tokens of both demo models. --documents N: up to nine, the others after one, two,
three, five, seven and ten twelfths; none overlap. --bytes N: of another length, for documents that are drawn from a
text; these have no hash to hold. Packages are downloaded with apt-get and unpacked, not installed.
"""
import argparse
import glob
import gzip
import hashlib
import html
import os
import re
import subprocess
import sys
import tempfile

DOC_BYTES = 48000
STARTS = ((1, 3), (1, 2), (3, 4), (1, 12), (1, 6), (1, 4), (5, 12), (7, 12), (5, 6))  # of the documents, in a text
VERSIONS = {"anarchism": "15.3-3", "libpython3.11-stdlib": "3.11.2-6+deb12u9", "jargon-text": "4.4.7-4.1"}
SHA256 = {  # the first 16 digits
    "prose": ("da30667668f616dc", "da003e5ca757b504", "bd365861108912d2",
              "e5e59b336416cd70", "1fd552c57d84dbbf", "06121577117fe87a",
              "249c328bc0c814c7", "4a410b8663356965", "6ce6b11a2034d080"),
    "code": ("6e10420c47c6b101", "3782ddc95df7dd5c", "3001662ffd0af6c2",
             "032ea1e4c79c2bc7", "e1701611745d3c16", "22fdc3518701f79b",
             "62f3eee6bfaada89", "f4e90ecd8ff57685", "11f9c5b02190c876"),
    "lexicon": ("ced6c17b43c198d1", "471f9bd72ab66fc6", "7bf2c18f039c632b",
                "5953ca16dbe5b1a1", "031d2aec0d9d62fa", "adf49360a0057c34",
                "f3f4753551853727", "40a805f2c0bc887f", "92976077ddeaeafa"),
}
found = {}  # package -> version, of what was unpacked


def unpack(package, folder):
    work = tempfile.mkdtemp(dir=folder)
    subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
    for deb in glob.glob(work + "/*.deb"):
        found[package] = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True,
                                        text=True).stdout.strip()
        subprocess.run(["dpkg", "-x", deb, work], check=True)
    return work


def plain(markup):
    text = re.sub(r"(?is)<(script|style|head).*?</\1>", "", markup)
    text = html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"(?i)<(br|p|/p|h[1-6]|/h[1-6]|li|tr)[^>]*>", "\n", text)))
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", text)).strip() + "\n"


def read(path):
    data = gzip.open(path).read() if path.endswith(".gz") else open(path, "rb").read()
    return data.decode("utf-8", "replace")


def prose(folder):
    root = unpack("anarchism", folder)
    files = sorted(glob.glob(root + "/usr/share/doc/anarchism/html/sec[A-J][0-9]*.html"))
    return "".join(plain(read(f)) for f in files)


def lexicon(folder):
    root = unpack("jargon-text", folder)
    return read(root + "/usr/share/doc/jargon-text/jargon.txt.gz")


def code(folder):
    names = subprocess.run(["apt-cache", "depends", "libpython3-stdlib"], check=True, capture_output=True, text=True).stdout
    package = re.search(r"Depends: (libpython3\.\d+-stdlib)", names).group(1)
    root = unpack(package, folder)
    files = sorted(glob.glob(root + "/usr/lib/python3.*/*.py"))
    return "\n".join(read(f) for f in files if os.path.isfile(f))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--any-version", action="store_true")
    parser.add_argument("--bytes", type=int, default=DOC_BYTES)
    parser.add_argument("--documents", type=int, default=3, choices=range(1, len(STARTS) + 1))
    parser.add_argument("folder")
    options = parser.parse_args()
    n_bytes, folder = options.bytes, options.folder
    is_any = options.any_version or n_bytes != DOC_BYTES
    others = []
    os.makedirs(folder, exist_ok=True)
    for name, make in (("prose", prose), ("code", code), ("lexicon", lexicon)):
        with tempfile.TemporaryDirectory() as work:
            data = make(work).encode()
        for i, (num, den) in enumerate(STARTS[:options.documents]):
            start = data.index(b"\n", len(data) * num // den) + 1
            piece = data[start:start + n_bytes]
            digest = hashlib.sha256(piece).hexdigest()[:16]
            if digest != SHA256[name][i]:
                others.append(f"{name}-{i} has SHA-256 {digest}..., not {SHA256[name][i]}...")
            open(f"{folder}/{name}-{i}.txt", "wb").write(piece)
            print(name, i, digest)
    if others and not is_any:
        here = ", ".join(f"{p} {v}" for p, v in sorted(found.items()))
        wanted = ", ".join(f"{p} {v}" for p, v in sorted(VERSIONS.items()))
        sys.exit(f"texts.py: other texts than the committed figures were made with: {'; '.join(others)}. "
                 f"The packages here are {here}; those were {wanted} (Debian 12)")


if __name__ == "__main__":
    main()
