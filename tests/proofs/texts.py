#!/usr/bin/env python3
"""The three texts of the quality proofs, from Debian packages: prose, code and a lexicon.

    texts.py FOLDER        writes FOLDER/{prose,code,lexicon}-{0,1,2}.txt and prints their hashes

prose: An Anarchist FAQ (package anarchism), sections A to J, markup taken out; code: the modules of
Python's standard library (libpython3.11-stdlib or whatever version the distribution has); lexicon:
the Jargon File 4.4.7 (jargon-text). Documents begin at the first line after one third, one half and
three quarters of a text, and are 48,000 bytes long: more than 8,192 tokens of both demo models.
Packages are downloaded with apt-get and unpacked, not installed.
"""
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


def unpack(package, folder):
    work = tempfile.mkdtemp(dir=folder)
    subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
    for deb in glob.glob(work + "/*.deb"):
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
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    for name, make in (("prose", prose), ("code", code), ("lexicon", lexicon)):
        data = make(folder).encode()
        for i, (num, den) in enumerate(((1, 3), (1, 2), (3, 4))):
            start = data.index(b"\n", len(data) * num // den) + 1
            piece = data[start:start + DOC_BYTES]
            open(f"{folder}/{name}-{i}.txt", "wb").write(piece)
            print(name, i, hashlib.sha256(piece).hexdigest()[:16])


if __name__ == "__main__":
    main()
