"""Where a search for critical points begins: kinds of starts, all in the reduced unknowns of `_levenberg`.

A root search from Gaussian points finds the origin most of the time. Rows and columns that are exactly zero,
equal or permuted stay so under every step (the objective has this symmetry), so starts of low
rank or with a symmetry search a smaller problem, in which a saddle is often a minimum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ufm.landscape import _orbits
from ufm.landscape._levenberg import Reduction

Start = np.ndarray


def gaussian(red: Reduction, rng: np.random.Generator, scale: float) -> Start:
    """Gaussian in a random number of feature directions, at a random scale."""
    K, M, r, _ = red.shape
    q = rng.integers(1, r + 1)
    size = scale * 10 ** rng.uniform(-0.8, 0.4)
    V, F = np.zeros((K, r)), np.zeros((M, r))
    V[:, :q] = size * rng.normal(size=(K, q))
    F[:, :q] = size * rng.normal(size=(M, q))
    if red.shape.M > K and rng.random() < 0.5:
        F = _collapse(red, F)
    return red.join(V, F, rng.choice([0.0, 1.0]) * rng.normal(size=K))


def aligned(red: Reduction, rng: np.random.Generator, scale: float) -> Start:
    """F proportional to V as at neural collapse, with classes set to zero and others added up at random."""
    K, _, r, _ = red.shape
    W = np.zeros((K, r))
    q = rng.integers(1, r + 1)
    W[:, :q] = rng.normal(size=(K, q))
    blocks = rng.integers(0, int(rng.integers(1, K + 1)) + 1, size=K)  # block 0 is off
    for block in np.unique(blocks):
        W[blocks == block] = W[blocks == block].mean(axis=0) if block else 0.0
    V = scale * 10 ** rng.uniform(-0.5, 0.4) * (W - W.mean(axis=0) * (blocks > 0)[:, None])
    b = rng.normal() * (blocks > 0) * rng.choice([0.0, 1.0])
    return red.join(V, _by_class(red, V), b)


def symmetric(red: Reduction, rng: np.random.Generator, scale: float) -> Start:
    """A Gaussian point averaged over a cyclic group: a permutation of the classes with a rotation."""
    K, M, r, _ = red.shape
    kinds = _orbits.kinds(red.prob)
    moves = np.arange(K)
    for kind in np.unique(kinds):  # only classes of one kind may be exchanged
        members = rng.permutation(np.flatnonzero(kinds == kind))
        for cycle in np.split(members, np.sort(rng.integers(0, len(members) + 1, size=rng.integers(1, 3)))):
            moves[cycle] = np.roll(cycle, 1)
    order, now = 1, moves
    while (now != np.arange(K)).any():
        order, now = order + 1, moves[now]
    q = int(rng.integers(1, r + 1))
    turn = _rotation(rng, r, q, order)
    x = gaussian(red, rng, scale)
    V, F, b = red.split(x)
    V, F = V.copy(), F.copy()
    V[:, q:], F[:, q:] = 0.0, 0.0
    F = _collapse(red, F) if M > K else F
    first = np.unique(red.merged.labels, return_index=True)[1]
    means, sums, now = F[first], [np.zeros((K, r)), np.zeros((K, r)), np.zeros(K)], np.arange(K)
    Q = np.eye(r)
    for _ in range(order):
        for total, part in zip(sums, (V[now] @ Q, means[now] @ Q, b[now]), strict=True):
            total += part / order
        now, Q = moves[now], Q @ turn
    return red.join(sums[0] * order**0.5, sums[1][red.merged.labels] * order**0.5, sums[2])


def _rotation(rng: np.random.Generator, r: int, q: int, order: int) -> np.ndarray:
    """An orthogonal matrix (r, r) whose `order`-th power is 1, acting on the first q directions."""
    turn, i = np.eye(r), 0
    while i < q:
        if i + 1 < q and order > 2 and rng.random() < 0.7:
            angle = 2 * np.pi * rng.integers(1, order) / order
            turn[i : i + 2, i : i + 2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            i += 2
        else:
            turn[i, i] = rng.choice([1.0, -1.0]) if order % 2 == 0 else 1.0
            i += 1
    return turn


def _collapse(red: Reduction, F: np.ndarray) -> np.ndarray:
    """The first row of each class for all of its samples."""
    first = np.unique(red.merged.labels, return_index=True)[1]
    return np.asarray(F[first][red.merged.labels])


def _by_class(red: Reduction, V: np.ndarray) -> np.ndarray:
    return np.asarray(V[red.merged.labels])


#: from nothing but a seed
FRESH: tuple[Callable[[Reduction, np.random.Generator, float], Start], ...] = (gaussian, aligned, symmetric)


# --- from points that are known -------------------------------------------------------------------


def perturbed(red: Reduction, rng: np.random.Generator, known: list[Start]) -> Start:
    """A known point and noise of 1 to 100 percent, in a random number of directions."""
    x = known[rng.integers(len(known))]
    V, F, b = red.split(x)
    size = 10 ** rng.uniform(-2, 0) * max(float(np.sqrt(np.mean(x**2))), 0.1)
    q = rng.integers(1, red.shape.r + 1)
    noise_V, noise_F = size * rng.normal(size=V.shape), size * rng.normal(size=F.shape)
    noise_V[:, q:], noise_F[:, q:] = 0.0, 0.0
    if red.shape.M > red.shape.K and rng.random() < 0.5:
        noise_F = _collapse(red, noise_F)
    return red.join(V + noise_V, F + noise_F, b + size * rng.normal(size=b.shape))


def between(red: Reduction, rng: np.random.Generator, known: list[Start]) -> Start:
    """A point on the line between two known ones, the second with its classes and directions moved."""
    one, two = (red.split(known[i]) for i in rng.integers(len(known), size=2))
    kinds, r = _orbits.kinds(red.prob), red.shape.r
    moves = np.arange(red.shape.K)
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        moves[members] = rng.permutation(members)
    turn = np.linalg.qr(rng.normal(size=(r, r)))[0] if rng.random() < 0.5 else np.eye(r)[rng.permutation(r)]
    labels = red.merged.labels
    cells = np.empty(red.shape.M, dtype=np.int64)
    for k in range(red.shape.K):  # the j-th cell of class k from the j-th of class moves[k]
        cells[labels == k] = np.flatnonzero(labels == moves[k])
    t = rng.uniform(0.0, 1.0)
    V = (1 - t) * one[0] + t * two[0][moves] @ turn
    F = (1 - t) * one[1] + t * two[1][cells] @ turn
    return red.join(V, F, (1 - t) * one[2] + t * two[2][moves])


#: from points found before
DERIVED: tuple[Callable[[Reduction, np.random.Generator, list[Start]], Start], ...] = (perturbed, between)
