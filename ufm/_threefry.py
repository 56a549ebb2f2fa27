"""Normal numbers of `jax.random`, drawn by numpy: the same numbers up to rounding, and nothing to compile.

Source: Salmon, Moraes, Dror and Shaw, SC 2011 (Threefry-2x32 with 20 rounds); the layout of keys and counters
is that of JAX's partitionable generator, its default.
"""

from __future__ import annotations

import math

import jax
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

Key = tuple[np.uint32, np.uint32]


def available() -> bool:
    """Whether JAX's generator is the one that is written out here, in double precision."""
    partitionable = bool(jax.config.jax_threefry_partitionable)  # type: ignore[attr-defined]
    threefry = jax.config.jax_default_prng_impl == "threefry2x32"  # type: ignore[attr-defined]
    return partitionable and threefry and jax.numpy.result_type(float) == np.float64


def key(seed: int) -> Key:
    """`jax.random.key(seed)`."""
    return np.uint32(seed >> 32), np.uint32(seed & 0xFFFFFFFF)


def split(parent: Key, number: int) -> list[Key]:
    """`jax.random.split(parent, number)`."""
    return list(zip(*_bits(parent, number), strict=True))


def normal(of: Key, shape: tuple[int, ...]) -> np.ndarray:
    """`jax.random.normal(of, shape)`: sqrt(2) erfinv(u) with u uniform on (-1, 1)."""
    from statistics import NormalDist

    high, low = _bits(of, math.prod(shape))
    bits = (high.astype(np.uint64) << np.uint64(32)) | low
    one_to_two = ((bits >> np.uint64(12)) | np.float64(1.0).view(np.uint64)).view(np.float64)
    least = np.nextafter(-1.0, 0.0)
    u = np.maximum(least, (one_to_two - 1.0) * (1.0 - least) + least)
    quantile = NormalDist().inv_cdf
    tail = (1.0 - np.abs(u)) / 2  # exact, so that no digits of rare values are lost
    return np.copysign([quantile(p) for p in tail.tolist()], u).reshape(shape)


def _bits(of: Key, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two words for each of the counters 0 .. number - 1 (below 2^32)."""
    keys = (*of, of[0] ^ of[1] ^ _PARITY)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^32
        x, y = np.full(number, keys[0]), np.arange(number, dtype=np.uint32) + keys[1]
        for block in range(5):
            for distance in _ROTATIONS[block % 2]:
                x = x + y
                y = ((y << np.uint32(distance)) | (y >> np.uint32(32 - distance))) ^ x
            x = x + keys[(block + 1) % 3]
            y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y
