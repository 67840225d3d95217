#!/usr/bin/env python3
"""Write a GGUF file whose tensors are all F32, from one with quantised tensors.

    dequantize.py IN.gguf OUT.gguf

Metadata are copied as they are, apart from general.file_type (0, all F32). Tensor order is kept.
The result is what both sides of a comparison load when a difference must come from the arithmetic
of the engines and not from how each multiplies quantised weights. Needs numpy and gguf
(requirements.txt). Exit code 2 and one sentence if the input cannot be read.
"""
import os
import sys
import tempfile

import gguf
import numpy as np

# The writer sets these itself.
WRITERS_OWN = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"}


def copy_metadata(reader, writer):
    for field in reader.fields.values():
        if field.name in WRITERS_OWN:
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.ALL_F32)
        sub_kind = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=sub_kind)


def dequantize(source, target):
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture, endianess=reader.endianess)
    copy_metadata(reader, writer)
    # Two passes: headers first, then one tensor in memory at a time.
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), int(np.prod(shape)) * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(np.ascontiguousarray(values, dtype=np.float32))
    writer.close()


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    source, target = sys.argv[1:]
    folder = os.path.dirname(os.path.abspath(target))
    handle, part = tempfile.mkstemp(dir=folder, prefix=".dequantize-")
    os.close(handle)
    try:
        dequantize(source, part)
        os.chmod(part, 0o644)
        os.replace(part, target)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        print(f"dequantize: {source}: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    print(f"{target}: {os.path.getsize(target)} bytes")


if __name__ == "__main__":
    main()
