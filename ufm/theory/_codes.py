"""Orthogonal blocks of symmetric codes: critical points of cross-entropy in any number of dimensions.

The classes are divided into blocks, block i of K_i classes. Each block has a code: unit vectors X_i
(K_i, d_i) that a group permutes transitively, and on whose span it acts without an invariant subspace. Blocks
lie in orthogonal subspaces: the logits are a_i X_i X_i' inside block i and zero elsewhere, plus a bias b_i.
Such a point is critical wherever it is so in the numbers (a, b) (symmetric criticality), and there

    F(a, b) = sum_i K_i/K log( sum_(j in i) e^(a_i (x_j.x_1 - 1)) + e^(-a_i) sum_(l != i) K_l e^(b_l - b_i) )
              + u sum_i K_i a_i + lam_b/2 sum_i K_i b_i^2,        u = c + alpha/K,

which is convex; its minimum over a >= 0 and b is found by Newton's method. A point is a block of one class
with a = 0: the class whose features are zero.

Source: docs/theory.md, section 4.5.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.special import logsumexp

from ufm import _checks
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.models._fixed import helmert
from ufm.theory._frames import Factors
from ufm.theory._rank_bound import slope


class Code(NamedTuple):
    """Unit vectors of one block."""

    name: str
    size: int

    @property
    def dimension(self) -> int:
        """Of its span."""
        flat = {"point": 0, "polygon": 2, "icosahedron": 3, "simplex": self.size - 1}
        return flat.get(self.name, self.size // 2)

    @property
    def is_cross(self) -> bool:
        """Pairs, squares and cross-polytopes: orthogonal pairs of opposite vectors."""
        return self.name == "cross-polytope" or (self.name, self.size) in (("simplex", 2), ("polygon", 4))

    @property
    def vectors(self) -> Float[np.ndarray, "size dimension"]:
        """One row a class, of norm 1 (a point: no columns)."""
        m = self.size
        if self.name == "simplex":
            return helmert(m) * math.sqrt(m / (m - 1))
        if self.name == "polygon":
            angle = 2 * np.pi * np.arange(m) / m
            return np.column_stack([np.cos(angle), np.sin(angle)])
        if self.name == "cross-polytope":
            return np.vstack([np.eye(m // 2), -np.eye(m // 2)])
        if self.name == "icosahedron":
            return _icosahedron()
        return np.zeros((1, 0))

    @property
    def inner_products(self) -> tuple[np.ndarray, np.ndarray]:
        """The different ones of a vector with all of the code, its own first; how often each occurs."""
        m = self.size
        if self.name == "simplex":
            return np.array([1.0, -1 / (m - 1)]), np.array([1.0, m - 1.0])
        if self.name == "cross-polytope":
            return np.array([1.0, 0.0, -1.0]), np.array([1.0, m - 2.0, 1.0])
        X = self.vectors
        return X @ X[0], np.ones(m)

    def __str__(self) -> str:
        return self.name if self.name in ("point", "icosahedron") else f"{self.name} {self.size}"


def _icosahedron() -> Float[np.ndarray, "12 3"]:
    golden = (1 + math.sqrt(5)) / 2
    corners = np.array([[0.0, one, x] for one in (1, -1) for x in (golden, -golden)])
    return np.vstack([np.roll(corners, shift, axis=1) for shift in range(3)]) / math.hypot(1, golden)


#: name: the least number of classes, and of what it is a multiple
CODES = {
    "simplex": (2, 1),
    "polygon": (3, 1),
    "cross-polytope": (4, 2),
    "icosahedron": (12, 12),
    "point": (1, 1),
}
#: one word for a code with its size
WORDS = {
    "pair": "simplex 2",
    "triangle": "simplex 3",
    "tetrahedron": "simplex 4",
    "square": "polygon 4",
    "pentagon": "polygon 5",
    "hexagon": "polygon 6",
    "heptagon": "polygon 7",
    "octahedron": "cross-polytope 6",
    "icosahedron": "icosahedron 12",
    "point": "point 1",
}


def parse(structure: str) -> tuple[Code, ...]:
    """The blocks of a text such as "simplex 3 + pair".

    Raises:
        ValueError: an unknown code, or a number of classes that it does not have.
    """
    return tuple(_code(part.strip()) for part in structure.split("+"))


def _code(part: str) -> Code:
    found = re.fullmatch(r"([a-z-]+)(?:\s+(\d{1,6}))?", WORDS.get(part, part))
    if found is None:
        raise ValueError(f"structure: expected blocks such as 'simplex 3 + point', got {part!r}")
    name = _checks.choice("structure", found[1], CODES, also={word: word for word in WORDS})
    least, step = CODES[name]
    size = int(found[2] or 0)
    single = name in ("point", "icosahedron")
    if size < least or size % step or (single and size != least):
        allowed = f"{least} classes" if single else f"at least {least} classes"
        even = ", an even number" if step == 2 else ""
        raise ValueError(f"structure: expected {allowed}{even} in a {name}, got {part!r}")
    return Code(name, size)


def named(blocks: Sequence[Code]) -> str:
    """The text that `parse` reads."""
    return " + ".join(map(str, blocks))


def arrangements(K: int, d: int) -> Iterator[tuple[Code, ...]]:
    """Up to three blocks (two beyond `SEVERAL` classes) and at most one point, in exactly d dimensions.

    Orthogonal pairs are one cross-polytope, and two cross-polytopes are a larger one: an arrangement has one
    of them at most, so that none comes twice.
    """
    for point in ((), (Code("point", 1),)):
        for blocks in _blocks(K - len(point), d, 3 if K <= SEVERAL else 2, Code("z", K)):
            if sum(block.is_cross for block in blocks) <= 1:
                yield (*blocks, *point)


SEVERAL = 16


def _blocks(K: int, d: int, most: int, last: Code) -> Iterator[tuple[Code, ...]]:
    if K == 0 and d == 0:
        yield ()
    if not most:
        return
    for size in range(min(K, last.size), 1, -1):
        for code in _codes_of(size):
            if code.dimension <= d and (size, code.name) <= (last.size, last.name):
                for rest in _blocks(K - size, d - code.dimension, most - 1, code):
                    yield (code, *rest)


def _codes_of(size: int) -> list[Code]:
    """Codes of a number of classes, each once: a square is no cross-polytope, a triangle no polygon."""
    names = ["simplex"]
    names += ["polygon"] * (size > 3) + ["cross-polytope"] * (size > 4 and size % 2 == 0)
    names += ["icosahedron"] * (size == 12)
    return [Code(name, size) for name in names]


# --- the convex problem in (a, b) -------------------------------------------------------------------


class Blocks(NamedTuple):
    """The minimum of F and where it is."""

    codes: tuple[Code, ...]
    value: float
    a: Float[np.ndarray, " blocks"]
    b: Float[np.ndarray, " blocks"]

    @property
    def bias(self) -> Float[np.ndarray, " K"]:
        """Of every class."""
        return np.repeat(self.b, [code.size for code in self.codes])

    @property
    def factors(self) -> Factors:
        """Of Zbar = blocks a_i X_i X_i', X_i'X_i = (K_i/d_i) I."""
        K, r = sum(code.size for code in self.codes), sum(code.dimension for code in self.codes)
        U, sigma, row, column = np.zeros((K, r)), np.zeros(r), 0, 0
        for code, a in zip(self.codes, self.a, strict=True):
            high, wide = row + code.size, column + code.dimension
            if wide > column:
                U[row:high, column:wide] = code.vectors * math.sqrt(code.dimension / code.size)
                sigma[column:wide] = a * code.size / code.dimension
            row, column = high, wide
        keep = sigma > 0
        return Factors(U[:, keep], sigma[keep], U[:, keep])


class _Rows(NamedTuple):
    """The logits of one class of a block, linear in (a, b): each entry stands for several classes."""

    entries: Float[np.ndarray, "entries unknowns"]
    log_count: Float[np.ndarray, " entries"]
    target: Float[np.ndarray, " unknowns"]


def _rows(codes: tuple[Code, ...], i: int) -> _Rows:
    B, (inner, counts) = len(codes), codes[i].inner_products
    own = np.zeros((len(inner), 2 * B))
    own[:, i], own[:, B + i] = inner, 1.0
    others = [j for j in range(B) if j != i]
    log_count = np.log(np.append(counts, [codes[j].size for j in others]))
    return _Rows(np.vstack([own, np.eye(2 * B)[[B + j for j in others]]]), log_count, own[0])


def _jet(
    rows: list[_Rows], sizes: np.ndarray, u: float, lam_b: float, x: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """F, its gradient and its Hessian in x = (a, b)."""
    B, K = len(sizes), sizes.sum()
    weight = np.append(np.zeros(B), lam_b * sizes)
    value = u * sizes @ x[:B] + weight @ x**2 / 2
    gradient = np.append(u * sizes, np.zeros(B)) + weight * x
    hessian = np.diag(weight)
    for share, (entries, log_count, target) in zip(sizes / K, rows, strict=True):
        z = (entries - target) @ x + log_count
        p = np.exp(z - logsumexp(z))
        mean = p @ entries
        value += share * logsumexp(z)
        gradient += share * (mean - target)
        hessian += share * ((entries.T * p) @ entries - np.outer(mean, mean))
    return float(value), gradient, hessian


def minimum(s: Setting, codes: tuple[Code, ...]) -> Blocks:
    """The minimum of F over a >= 0 and b.

    Raises:
        NoClosedForm: the loss is neither cross-entropy nor label smoothing.
    """
    if s.loss.smoothing() is None:
        raise NoClosedForm(
            f"loss: orthogonal codes are solved for cross-entropy and label smoothing, got {s.loss!r}; "
            "ufm.landscape.find_critical_points takes any loss"
        )
    return _minimum(codes, slope(s), s.lam_b, s.bias)


@functools.lru_cache(maxsize=4096)
def _minimum(codes: tuple[Code, ...], u: float, lam_b: float, bias: bool) -> Blocks:
    sizes = np.array([float(code.size) for code in codes])
    rows = [_rows(codes, i) for i in range(len(codes))]
    free = np.append([code.dimension > 0 for code in codes], np.full(len(codes), bias))
    x = np.where(free, np.append(np.full(len(codes), 1.0), np.zeros(len(codes))), 0.0)
    x = _newton(functools.partial(_jet, rows, sizes, u, lam_b), x, free)
    a, b = x[: len(codes)], x[len(codes) :]
    if bias:
        b = b - sizes @ b / sizes.sum()
    return Blocks(codes, _jet(rows, sizes, u, lam_b, np.append(a, b))[0], a, b)


def _newton(
    jet: functools.partial[tuple[float, np.ndarray, np.ndarray]], x: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """The minimum of a convex function over the free unknowns, the first half of which stay >= 0."""
    B = len(x) // 2
    low = np.append(np.zeros(B), np.full(B, -np.inf))
    value, gradient, hessian = jet(x)
    for _ in range(200):
        open_ = free & ((x > low) | (gradient < 0))
        size = float(np.linalg.norm(gradient[open_]))
        step = np.zeros_like(x)
        step[open_] = _step(gradient[open_], hessian[np.ix_(open_, open_)])
        for scale in 0.5 ** np.arange(40):
            new = np.maximum(x + scale * step, low)
            there = jet(new)
            # near rounding the value no longer tells a good step: there the gradient does
            falls = there[0] < value - 1e-14 * (1 + abs(value))
            if falls or float(np.linalg.norm(there[1][open_])) < size / 2:
                x, (value, gradient, hessian) = new, there
                break
        else:
            return x
    return x


def _step(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """-H^-1 gradient without the directions in which F does not change, no longer than 2."""
    if not len(gradient):
        return gradient
    curvature, vectors = eigh(hessian, driver="evd", check_finite=False)
    flat = curvature <= 1e-13 * max(curvature.max(), 1e-300)
    along = np.where(flat, 0.0, -(vectors.T @ gradient) / np.where(flat, 1.0, curvature))
    step = vectors @ along
    return np.asarray(step * min(1.0, 2.0 / max(float(np.linalg.norm(step)), 1e-300)))


def lowest(s: Setting, count: int = 1) -> list[Blocks]:
    """The lowest arrangements in exactly d dimensions in which no code has shrunk to zero, lowest first."""
    found = (minimum(s, codes) for codes in arrangements(s.K, s.d))
    apart = [x for x in found if all(a > 0 for a, code in zip(x.a, x.codes, strict=True) if code.dimension)]
    return sorted(apart, key=lambda x: x.value)[:count]
