"""unzstd.py whole|part OUT PIECE...: joins the pieces of a zstd stream; `part`: the last pieces are missing yet, and
the record that is cut is dropped."""
import io
import sys

import pyarrow

whole, out, size, last = sys.argv[1] == "whole", open(sys.argv[2], "wb"), 0, 0
joined = io.BytesIO(b"".join(open(p, "rb").read() for p in sorted(sys.argv[3:])))
reader = pyarrow.CompressedInputStream(pyarrow.PythonFile(joined, "r"), "zstd")
try:
    while part := reader.read(1 << 20):
        at = part.rfind(b"\x1e")
        last = size + at if at >= 0 else last
        out.write(part)
        size += len(part)
except (OSError, EOFError) as e:
    if whole:
        raise
    print("cut short, as said:", str(e)[:100])
out.truncate(size if whole else last)
print(f"{sys.argv[2]}: {size if whole else last} bytes")
