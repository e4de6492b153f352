"""Weights from a seed, the same bits here and in tests/unit/cpu/golden_weights.c.

Element i of tensor NAME is k * 2^-e, k = two dice of a hash of (seed, NAME, i), so that every value is exact in FP32,
BF16, FP16 and (k itself) E4M3. With FP8, k is stored and the block's scale is (8 + dice) / 8 * 2^-e.
"""
import math

import numpy as np

MASK = (1 << 64) - 1


def key_of(name, seed):
    h = 0xCBF29CE484222325 ^ seed
    for c in name.encode():
        h = ((h ^ c) * 0x100000001B3) & MASK
    return h


def mix(x):
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hashes(name, seed, count):
    with np.errstate(over="ignore"):
        return mix(np.uint64(key_of(name, seed)) + np.arange(count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))


def dice(name, seed, count):
    """Integers from -7 to 7, standard deviation 3.24."""
    h = hashes(name, seed, count)
    return (h & np.uint64(7)).astype(np.int64) + ((h >> np.uint64(3)) & np.uint64(7)).astype(np.int64) - 7


def exponent(name, shape):
    """e such that the standard deviation is about gain / sqrt(columns)."""
    if name.endswith("embed_tokens.weight"):
        return 5
    gain = 2.0 if name.endswith("lm_head.weight") or name.endswith("mlp.gate.weight") else 1.0
    return round(math.log2(3.24 * math.sqrt(shape[1]) / gain))


def is_quantised(name, shape):
    plain = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")
    return len(shape) == 2 and not name.endswith(plain)


def tensor(name, shape, seed, fp8):
    """The values as float32 (for FP8: dequantised)."""
    count = int(np.prod(shape))
    k = dice(name, seed, count).reshape(shape).astype(np.float32)
    if len(shape) == 1:
        if name.endswith("norm.weight"):
            return 1.0 + k / 16.0
        return k / (64.0 if name.endswith("correction_bias") else 32.0)
    scale = np.float32(2.0 ** -exponent(name, shape))
    if not (fp8 and is_quantised(name, shape)):
        return k * scale
    rows, cols = -(-shape[0] // 128), -(-shape[1] // 128)
    h = hashes(name + "_scale_inv", seed, rows * cols).reshape(rows, cols)
    scales = (8.0 + (h & np.uint64(7)).astype(np.float32)) / 8.0 * scale
    return k * scales.repeat(128, 0)[: shape[0]].repeat(128, 1)[:, : shape[1]]
