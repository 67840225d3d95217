#!/usr/bin/env python3
"""The short convolution and the gated delta rule by brute force, for the engine's ops CONV and DELTA.

    delta_oracle.py OUT_DIR        writes OUT_DIR/small.f32

Float32, one after another: x [40, 64] (q, k, v of 2 heads of 8, 8 and 16 elements, as they are projected), conv
weight [4, 64], ab [40, 4], a_log [2], dt_bias [2]; then x after the convolution [40, 64], o [40, 2, 16] and the state
after the last row, transposed [2, 8, 16]. Documents begin at rows 0 and 23. All is computed in float64 from the float32
inputs, with the matrix I - beta k k^T written out; the chunk-parallel form, which shares no step with that, must give
the same. Needs numpy.
"""
import pathlib
import sys

import numpy as np

ROWS, HEADS, K, V, WIDTH, STARTS, SCALE, EPS = 40, 2, 8, 16, 4, (0, 23), 0.35, 1e-6


def conv(x, w):
    y = np.zeros_like(x)
    for first, end in zip(STARTS, STARTS[1:] + (ROWS,)):
        doc = np.vstack([np.zeros((WIDTH - 1, x.shape[1])), x[first:end]])
        for r in range(end - first):
            y[first + r] = (doc[r:r + WIDTH] * w).sum(0)
    return y / (1 + np.exp(-y))


def split(x, head):
    n = HEADS * K
    unit = lambda y: y / np.sqrt((y * y).sum(-1, keepdims=True) + EPS)
    return unit(x[:, head * K:(head + 1) * K]), unit(x[:, n + head * K:n + (head + 1) * K]), x[:, 2 * n + head * V:2 * n + (head + 1) * V]


def step(q, k, v, alpha, beta):
    s, o = np.zeros((V, K)), np.zeros((len(q), V))
    for t in range(len(q)):
        s = alpha[t] * s @ (np.eye(K) - beta[t] * np.outer(k[t], k[t])) + beta[t] * np.outer(v[t], k[t])
        o[t] = SCALE * s @ q[t]
    return o, s


def chunk(q, k, v, alpha, beta):
    """All rows at once: U = (I + A)^-1 diag(beta) V with A_ti = beta_t g_t / g_i <k_t, k_i> below the diagonal."""
    g = np.cumprod(alpha)
    decay = np.tril(g[:, None] / g[None, :])
    u = np.linalg.solve(np.eye(len(q)) + np.tril(beta[:, None] * decay * (k @ k.T), -1), beta[:, None] * v)
    return SCALE * (decay * (q @ k.T)) @ u, u.T @ (g[-1] / g[:, None] * k)


def main():
    rng = np.random.default_rng(7)
    f32 = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, w, ab = 1.5 * f32(ROWS, HEADS * (2 * K + V)), 0.6 * f32(WIDTH, HEADS * (2 * K + V)), f32(ROWS, 2 * HEADS)
    a_log, dt_bias = f32(HEADS) - 1, f32(HEADS)
    mixed = conv(x.astype(np.float64), w.astype(np.float64))
    o, state = np.zeros((ROWS, HEADS, V)), np.zeros((HEADS, K, V))
    for head in range(HEADS):
        q, k, v = split(mixed, head)
        alpha = np.exp(-np.exp(np.float64(a_log[head])) * np.log1p(np.exp(ab[:, head].astype(np.float64) + dt_bias[head])))
        beta = 1 / (1 + np.exp(-ab[:, HEADS + head].astype(np.float64)))
        for first, end in zip(STARTS, STARTS[1:] + (ROWS,)):
            doc = [y[first:end] for y in (q, k, v, alpha, beta)]
            o[first:end, head], s = step(*doc)
            other = chunk(*doc)
            assert np.abs(other[0] - o[first:end, head]).max() < 1e-12 and np.abs(other[1] - s).max() < 1e-12
        state[head] = s.T
    path = pathlib.Path(sys.argv[1]) / "small.f32"
    path.write_bytes(b"".join(np.ascontiguousarray(y, dtype="<f4").tobytes() for y in (x, w, ab, a_log, dt_bias, mixed, o, state)))
    print(path, path.stat().st_size, "bytes; largest state", np.abs(state).max(), "largest o", np.abs(o).max())


if __name__ == "__main__":
    main()
