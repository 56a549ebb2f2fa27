"""Geometries of class logits of low rank, in which a deep classifier may be cheaper than neural collapse.

A `Family` is a space of class logits Zbar = sum_i t_i X_i with a bias b = sum_r s_r B_r. Its parts X_i have
singular values 1, and ranges that are orthogonal from both sides; parts that are `tied` are of rank one and
share the classifier's direction. Hence sum sigma(Zbar)^(2/q) is sum_g rank_g |t_g|^(2/q) over the ties g.
A family holds the points of its rank that a group of permutations of the classes leaves alone, and a minimum
in it is a critical point of f (Palais 1979). `Line` is one that is not linear.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

#: up to this many classes all sizes are tried
ALL_SIZES = 12


class Family(NamedTuple):
    """Zbar = sum_i t_i X_i, b = sum_r s_r B_r."""

    name: str
    parts: np.ndarray  # (P, K, K)
    ties: tuple[int, ...]  # (P,) parts with the same number share a left singular vector
    bias: np.ndarray  # (R, K) directions of the bias, of mean zero where the loss does not feel a shift

    @property
    def ranks(self) -> np.ndarray:
        """(P,) the rank of each part, by the first part of its tie."""
        return np.rint((self.parts**2).sum(axis=(1, 2)))

    @property
    def rank(self) -> int:
        """Of Zbar."""
        return int(sum(dict(zip(self.ties, self.ranks, strict=True)).values()))


class Line(NamedTuple):
    """Points on an axis, symmetric to its middle: Zbar = u v' with u and v odd, and a bias that is even; with
    parts as in `Family` across the axis.
    """

    name: str
    odd: np.ndarray  # (m, K) orthonormal
    bias: np.ndarray  # (R, K) even and of mean zero; R = 0: no bias
    parts: np.ndarray  # (P, K, K)

    @property
    def ranks(self) -> np.ndarray:
        """(P,) the rank of each part."""
        return np.rint((self.parts**2).sum(axis=(1, 2)))

    @property
    def rank(self) -> int:
        """Of Zbar."""
        return 1 + int(self.ranks.sum())


class Block(NamedTuple):
    """Some classes that form a figure of their own, orthogonal to the other blocks."""

    name: str
    size: int
    parts: list[np.ndarray]  # (size, size) each; none: the classes lie at the origin


def line(K: int, bias: bool) -> Line:
    """K points on a line; told apart by the bias, where there is one."""
    m, one = K // 2, np.eye(K)
    even = one[:m] + one[: -m - 1 : -1]
    centred = even - even.mean(axis=1, keepdims=True)
    odd = (one[: -m - 1 : -1] - one[:m]) / math.sqrt(2)
    return Line(f"{K} points on a line", odd, centred if bias else np.zeros((0, K)), np.zeros((0, K, K)))


def capped(K: int, bias: bool) -> Line:
    """An antiprism of K - 2 classes and two opposite classes on its axis; an icosahedron for K = 12."""
    m = K - 2
    part, odd, caps = np.zeros((K, K)), np.zeros((2, K)), np.zeros(K)
    part[:m, :m] = cyclic(m, (1,)).parts[0]
    odd[0, :m], odd[1, m:] = (-1.0) ** np.arange(m) / math.sqrt(m), np.array([1, -1]) / math.sqrt(2)
    caps[m:] = 1.0
    share = (caps - caps.mean())[None]
    return Line(f"antiprism of {m} classes with 2 on its axis", odd, share if bias else share[:0], part[None])


def families(K: int, bias: bool) -> Iterator[Family | Line]:
    """For losses of differences of logits; `bias`: whether there is one, which may tell classes apart."""
    yield _sum([simplex(K)], bias)._replace(name="simplex ETF")
    if K > 3:
        yield from (_sum(blocks, bias) for blocks in (*_groupings(K), *_polygons(K)))
        yield from (_sum([cyclic(K, f)], bias) for f in _frequencies(K))
        yield from (_pyramid(blocks, bias) for blocks in _bases(K - 1))
        yield from _words(K)
        yield from _clusters(K, bias)
        if K <= ALL_SIZES:
            yield line(K, bias)
            if K % 2 == 0 and K > 6:
                yield capped(K, bias)
        if bias:
            yield from (_sum(blocks, bias, apart=1) for blocks in _groupings(K) if len(blocks) > 1)
    elif K == 3:
        yield _sum([simplex(2), origin(1)], bias)


def frames(K: int, bias: bool) -> Iterator[Family]:
    """For MSE, in which the mean of the classes is a part of its own: tight frames with rows of equal norm.

    Without a bias the loss sees only the diagonal and the norm of Zbar: all of them with the same rank and
    size are equally good. Those that are circulant serve.
    """
    every, mean = np.ones((int(bias), K)), np.ones((K, K)) / K
    pairs, middle = range(1, (K + 1) // 2), (K // 2,) if K % 2 == 0 else ()
    for some in (pairs[:m] for m in range(len(pairs), -1, -1)):
        for frequencies in dict.fromkeys([(*some, *middle), tuple(some)]):
            if not frequencies:
                continue
            spread = np.sum(cyclic(K, frequencies).parts, axis=0)
            r = round(np.trace(spread))
            name = f"tight frame of rank {r}"
            names = ("orthogonal frame", "simplex ETF") if r == K - 1 else (f"{name} beside the mean", name)
            yield Family(names[0], np.array([spread, mean]), (0, 1), every)
            yield Family(names[1], spread[None], (0,), every)
    yield Family("the same logits for every class", mean[None], (0,), every)


# --- figures of some of the classes ---------------------------------------------------------------


def simplex(m: int) -> Block:
    """m classes as a simplex ETF."""
    return Block(f"simplex ETF of {m} classes", m, [np.eye(m) - 1 / m])


def origin(m: int) -> Block:
    """m classes whose features vanish."""
    return Block(f"{m} class{'es' * (m > 1)} at the origin", m, [])


def cyclic(m: int, frequencies: tuple[int, ...]) -> Block:
    """A figure that the cyclic permutation of its m classes leaves alone: a polygon, or of higher rank."""
    angle = 2 * np.pi * np.subtract.outer(np.arange(m), np.arange(m)) / m
    parts = [np.cos(f * angle) * (1 if 2 * f == m else 2) / m for f in frequencies]
    return Block(_cyclic_name(m, frequencies), m, parts)


def _cyclic_name(m: int, frequencies: tuple[int, ...]) -> str:
    if frequencies == (1,):
        return f"regular polygon of {m} classes"
    if frequencies == (1, m / 2) and m % 4 == 0:
        return f"antiprism of {m} classes"
    return f"cyclic figure of {m} classes, frequencies {' and '.join(map(str, frequencies))}"


# --- how they share the classes -------------------------------------------------------------------


def _groupings(K: int) -> Iterator[list[Block]]:
    """Simplexes of nearly equal size, with classes at the origin beside one of them or one beside several."""
    for on in range(K - 1, 1, -1) if K <= ALL_SIZES else (K - 1, 2):
        yield [simplex(on), origin(K - on)]
    for rest, on in ((0, K), (1, K - 1)):
        for number in range(2, on // 2 + 1):
            size, larger = divmod(on, number)
            if K <= ALL_SIZES or size <= 3 or number == 2:
                blocks = [*[simplex(size + 1)] * larger, *[simplex(size)] * (number - larger)]
                yield [*blocks, origin(1)] if rest else blocks


def _polygons(K: int) -> Iterator[list[Block]]:
    """A polygon beside one class, two or three."""
    beside = (origin(1), simplex(2), simplex(3))
    yield from ([cyclic(K - x.size, (1,)), x] for x in beside if K - x.size > 4)


def _frequencies(K: int) -> Iterator[tuple[int, ...]]:
    """1 alone, and 1 beside another."""
    if K > 4:
        yield (1,)
    if K > 5:
        yield from ((1, f) for f in range(2, K // 2 + 1) if K <= ALL_SIZES or f == 2 or 2 * f == K)


def _bases(m: int) -> Iterator[list[Block]]:
    """What a pyramid may stand on."""
    if m % 2 == 0:
        yield [simplex(2)] * (m // 2)
    if m == 3 or m > 4:
        yield [cyclic(m, (1,))]


def _sum(blocks: list[Block], bias: bool, apart: int = 0) -> Family:
    """Blocks orthogonal to each other; equal ones share their margins and their bias, but for `apart`."""
    K = sum(block.size for block in blocks)
    orbits: dict[tuple[str, bool], list[slice]] = {}
    start, members = 0, {}
    for i, block in enumerate(blocks):
        orbits.setdefault((block.name, i < apart), []).append(slice(start, start + block.size))
        members[block.name] = block
        start += block.size
    parts = []
    for (name, _), places in orbits.items():
        for X in members[name].parts:
            part = np.zeros((K, K))
            for own in places:
                part[own, own] = X
            parts.append(part)
    share = [_centred(K, places) for places in list(orbits.values())[1:] if bias]
    return Family(_sum_name(blocks), np.array(parts), tuple(range(len(parts))), np.reshape(share, (-1, K)))


def _centred(K: int, places: list[slice]) -> np.ndarray:
    x = np.zeros(K)
    for own in places:
        x[own] = 1.0
    return x - x.mean()


def _sum_name(blocks: list[Block]) -> str:
    counted = [(name, len(list(group))) for name, group in itertools.groupby(block.name for block in blocks)]
    several = [name if k == 1 else f"{k} {name.replace('ETF', 'ETFs')}" for name, k in counted]
    return " and ".join(several)


def _pyramid(base: list[Block], bias: bool) -> Family:
    """An orthogonal sum and one class above it, on an axis that the classifier has with weights -1 and m.

    The gradient in the logits has columns of sum zero, which leaves no other direction to the classifier;
    where the features of the base and of the apex lie on the axis is free.
    """
    flat = _sum([*base, origin(1)], bias)
    K = flat.parts.shape[1]
    ties = (*flat.ties, len(flat.ties), len(flat.ties))
    parts = np.concatenate([flat.parts, _axis(K - 1, 1)])
    return flat._replace(name=f"pyramid over {_sum_name(base)}", parts=parts, ties=ties)


def _axis(low: int, high: int) -> np.ndarray:
    """(2, K, K) two groups of classes on a line, apart in the classifier and with features on either side."""
    u = np.repeat([-high, low], [low, high]) / math.sqrt(low * high * (low + high))
    ends = np.repeat([[-1.0, 0.0], [0.0, 1.0]], [low, high], axis=1) / np.sqrt([[low], [high]])
    return np.array([np.outer(u, end) for end in ends])


def _clusters(K: int, bias: bool) -> Iterator[Family]:
    """Classes that share their features with others: two clusters, or several of equal size as a simplex."""
    for low in range(K // 2, 0, -1) if K <= ALL_SIZES else (K // 2,):
        share = np.repeat([[1.0, 0.0]], [low, K - low], axis=1) - low / K
        name = f"2 clusters of {low} and {K - low} classes"
        yield Family(name, _axis(low, K - low), (0, 0), share if bias and 2 * low < K else np.zeros((0, K)))
    for g in range(3, K // 2 + 1):
        if K % g == 0:
            X = np.kron(np.eye(g) - 1 / g, np.ones((K // g, K // g)) * g / K)
            yield Family(f"{g} clusters of {K // g} classes", X[None], (0,), np.zeros((0, K)))


def _words(K: int) -> Iterator[Family]:
    """K = g^m classes as the words of m letters out of g, m > 1."""
    for g in range(2, math.isqrt(K) + 1):
        m = round(math.log(K, g))
        if g**m == K:
            letter, every = np.eye(g) - 1 / g, np.ones((g, g)) / g
            factors = [[letter if i == j else every for j in range(m)] for i in range(m)]
            parts = [_product(row) for row in factors]
            yield Family(
                f"words of {m} letters out of {g}", np.sum(parts, axis=0)[None], (0,), np.zeros((0, K))
            )


def _product(matrices: list[np.ndarray]) -> np.ndarray:
    product = np.ones((1, 1))
    for X in matrices:
        product = np.kron(product, X)
    return product
