"""Numbers that Python and Rust make alike: inputs and weights by formula instead of by file.

`uniform(seed, n)` is splitmix64 over a counter, its top 24 bits scaled to unit variance, in float64, rounded once
to float32. The Rust twin is `tests/support/fill.rs`; both sides are pinned to the same values.
"""

from __future__ import annotations

import numpy as np

MASK = (1 << 64) - 1


def uniform(seed: int, n: int) -> np.ndarray:
    """`n` float32 values, uniform in ±sqrt(3): mean 0, variance 1."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed & MASK) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float64) / float(1 << 24)
    return ((2.0 * unit - 1.0) * 1.7320508075688772).astype(np.float32)


def name_seed(name: str) -> int:
    """FNV-1a, 64 bits, of the UTF-8 name."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def weight(file: str, name: str, shape: tuple[int, ...], queries: float = 0.4) -> np.ndarray:
    """A float32 weight that float16 holds exactly, away from its initial value as in no freshly made network.

    Alphas of low-rank adaptations are 3, mixing factors uniform in ±2, norm weights 1 ± 0.1; embeddings and tables of biases have deviation 1, queries and
    keys `queries` (0.4, so that attention is far from uniform and the number of heads matters; not where heads must be wide), other
    matrices 0.15, everything else 0.05. Single files are of wider networks, whose matrices have half of
    that, lest rounding grows from layer to layer; so have the queries and keys of `image_unet` and of `lavie-vsr`, whose heads
    are wide: with 0.4 their softmax chooses one key, and PyTorch's own float32 is up to 7e-5 off its float64, with 0.2 up to 6e-6.
    """
    u = uniform(name_seed(f"{file}:{name}"), int(np.prod(shape, dtype=np.int64))).astype(np.float64).reshape(shape)
    if name.endswith(".alpha"):
        w = 3.0 + 0.0 * u
    elif name.endswith("mix_factor"):
        w = u * (2.0 / 1.7320508075688772)
    elif name.endswith(".weight") and len(shape) == 1:
        w = 1.0 + 0.1 * u
    elif name.endswith(("embedding.weight", "attention_bias.weight")) or file.startswith("conditions/"):
        w = u
    elif any(q in name for q in (".to_q.", ".to_k.", ".q_proj.", ".k_proj.")) and ".attn_temp" not in name:
        w = (0.2 if file.startswith("image_unet/") else queries) * u
    else:
        w = (0.15 if len(shape) == 2 else 0.05) * u
    if file == "checkpoint.safetensors" and len(shape) > 1:
        w = 0.5 * w
    return w.astype(np.float32).astype(np.float16).astype(np.float32)
