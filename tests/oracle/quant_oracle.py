#!/usr/bin/env python3
"""Make the golden files of the block formats: what the `gguf` package encodes and decodes.

    quant_oracle.py OUT_DIR

OUT_DIR/TYPE.bin: int32 n, int32 n_bytes, int32 is_encoded, then f32 x[n], u8 bytes[n_bytes], f32 y[n].
y are the values that `bytes` stand for; where is_encoded is 1, bytes are the encoding of x. The package does not encode
the K formats: their bytes are random, with scales that are finite, negative or subnormal.
Needs numpy and gguf (requirements.txt).
"""
import pathlib
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

N = 512
ENCODED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
# type: (bytes of a block of 256, byte offsets of its f16 fields)
RANDOM = {"Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,))}


def make_values(rng):
    """Blocks of several widths; some constant, zero, one-sided or with one outlier."""
    x = rng.standard_normal((N // 32, 32)).astype(np.float32)
    x *= np.float32(10.0) ** rng.integers(-3, 3, (N // 32, 1)).astype(np.float32)
    x[1] = 0
    x[2] = -1.5
    x[3] = np.abs(x[3])
    x[4] = -np.abs(x[4])
    x[5, 7] *= 1000
    x[6, ::2] = 0
    return x.reshape(N)


def random_bytes(rng, block_bytes, f16_at):
    blocks = rng.integers(0, 256, (N // 256, block_bytes), dtype=np.uint8)
    for i, scale in enumerate(rng.standard_normal((N // 256, len(f16_at))) * np.array([[0.03]]) ** np.array([[1], [2]])):
        for at, value in zip(f16_at, scale):
            blocks[i, at:at + 2] = np.frombuffer(np.float16(value if i else value * 1e-4).tobytes(), np.uint8)
    return blocks.reshape(-1)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in ENCODED + list(RANDOM):
        rng = np.random.default_rng(sum(map(ord, name)))
        x = make_values(rng)
        if name in RANDOM:
            data = random_bytes(rng, *RANDOM[name])
        else:
            data = quantize(x, Type[name]).view(np.uint8).reshape(-1)
        y = dequantize(data if name not in ("F32", "F16") else data.view({"F32": np.float32, "F16": np.float16}[name]),
                       Type[name]).astype(np.float32).reshape(-1)
        assert y.size == N and np.isfinite(y).all()
        header = struct.pack("<3i", N, data.size, name in ENCODED)
        (out / f"{name}.bin").write_bytes(header + x.tobytes() + data.tobytes() + y.tobytes())
        print(f"{name}: {data.size} bytes, max |x - y| {np.abs(x - y).max():.4g}" if name in ENCODED else f"{name}: {data.size} bytes")


if __name__ == "__main__":
    main()
