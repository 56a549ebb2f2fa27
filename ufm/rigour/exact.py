"""Exact points, and the reduction of a point with coinciding features and low rank, in ball arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ufm._problem import Problem
from ufm.losses._closed import number
from ufm.rigour import balls, newton
from ufm.rigour.balls import Ball, ball
from ufm.rigour.newton import Reduced

#: unknowns of a reduced problem, multipliers included: 800 take 8 s
LARGEST = 1500


class Exact(NamedTuple):
    """W (K, d), H (d, N), b (K,): floats, Fractions or balls."""

    W: np.ndarray
    H: np.ndarray
    b: np.ndarray


# --- what is given --------------------------------------------------------------------------------


def exact(prob: Problem, params: Any, name: str = "") -> Exact:
    """Arrays of exact numbers, floats as they are or Fractions; b = 0 where the problem has none.

    Raises:
        ValueError: a wrong shape, or an entry that is neither a finite float nor a Fraction.
    """
    if not any(isinstance(x, np.ndarray) and x.dtype == object for x in params):
        try:
            W, H, b = (np.asarray(x, dtype=np.float64) for x in prob.check_params(params))
        except ValueError as error:
            raise ValueError(f"{name}{error}") from None
        return Exact(W, H, b if prob.bias else np.zeros(prob.K))
    rational = all(_is_exact(x) for array in params for x in np.ravel(array).tolist())
    shapes = [np.shape(x) for x in params]
    expected = [(prob.K, prob.d), (prob.d, prob.N), (prob.K,)]
    if not rational or shapes != expected:
        raise ValueError(
            f"{name}params: expected arrays of finite floats or Fractions of shapes {expected}, got {shapes}"
        )
    W, H, b = (np.asarray(x) for x in params)
    return Exact(W, H, b if prob.bias else np.zeros(prob.K))


def _is_exact(x: Any) -> bool:
    return isinstance(x, Fraction | int) or (isinstance(x, float) and math.isfinite(x))


def penalties(prob: Problem) -> tuple[Ball, Ball, Ball]:
    """lam_W, lam_H, lam_b (zero without a bias).

    Raises:
        ValueError: a batch of problems, or a tracer.
    """
    lam_W, lam_H, lam_b = (ball(number(name, getattr(prob, name))) for name in ("lam_W", "lam_H", "lam_b"))
    return lam_W, lam_H, lam_b if prob.bias else ball(0)


def balled(array: np.ndarray, radius: Ball | None = None) -> np.ndarray:
    """Balls around exact entries, of radius 0 or of the one given."""
    spread = ball(0) if radius is None else balls.flint().arb(0, radius)
    out = np.empty(array.size, dtype=object)
    out[:] = [ball(x) + spread for x in array.ravel().tolist()]
    return out.reshape(array.shape)


def reduce(prob: Problem, params: Exact, eps: float) -> tuple[Reduced, np.ndarray, np.ndarray, list[Ball]]:
    """The reduced problem, Q (d, r) in balls, the group of each sample (N,), and where to start (size,)."""
    labels, weights, owner = _groups(prob, params.H, eps)
    W, means = balled(params.W), _means(balled(params.H), owner)
    rows = np.vstack([W, means.T])
    U, s, _ = np.linalg.svd(balls.middle(rows) * np.sqrt(_sizes(prob, weights)), full_matrices=False)
    tails = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    rank = int(np.argmax(tails <= max(eps / 4, ROUNDING * s[0])))
    lam_W, lam_H, lam_b = penalties(prob)
    shift = prob.shift_is_free
    problem = Reduced(
        balls.loss_in_balls(prob.loss), tuple(labels.tolist()), tuple(weights.tolist()), prob.K, rank,
        lam_W, lam_H, lam_b, prob.bias, shift,
    )  # fmt: skip
    unknowns = problem.size + problem.gauge
    if unknowns > LARGEST:
        raise ValueError(
            f"params: expected at most {LARGEST} unknowns after the reduction, got {unknowns} ({problem.M} "
            f"distinct features of rank {rank}); a larger eps lets more of them coincide"
        )
    # the rows' own span, to all digits: that of the floats of the decomposition is wrong in the 16th
    Q = _orthonormal(rows.T @ (U[:, :rank] / s[:rank]).astype(object) if rank else np.empty((prob.d, 0)))
    product = newton.product
    start = newton.join(problem, product(W, Q), product(Q.T, means), balled(params.b))
    return problem, Q, owner, [x.mid() for x in start.tolist()]


#: relative spread and singular values that float64 cannot tell from zero
ROUNDING = 1e-14


def _sizes(prob: Problem, weights: np.ndarray) -> np.ndarray:
    """The samples that each row of [W; means'] stands for, (K + M, 1)."""
    return np.append(np.ones(prob.K), weights)[:, None]


def _means(H: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(d, M)"""
    columns = [H[:, owner == m] for m in range(owner.max() + 1)]
    return np.stack([own.sum(axis=1) / own.shape[1] for own in columns], axis=1)


def _groups(prob: Problem, H: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (M,) and sizes (M,) of the groups, and whose each sample is (N,)."""
    labels, H = np.asarray(prob.labels), H.astype(np.float64)
    merged, most = H.copy(), max(eps / 4, ROUNDING * float(np.linalg.norm(H))) / math.sqrt(prob.K)
    for k in range(prob.K):
        own = labels == k
        mean = H[:, own].mean(axis=1, keepdims=True)
        if np.linalg.norm(H[:, own] - mean) <= most:
            merged[:, own] = mean
    first, weights, owner = balls.distinct(labels.tolist(), merged)
    return labels[first], weights, owner


def _orthonormal(Q: np.ndarray) -> np.ndarray:
    """An enclosure of the exact Gram-Schmidt orthonormalisation of the columns of Q."""
    basis = balled(Q)
    for c in range(Q.shape[1]):
        q, before = basis[:, c], basis[:, :c]
        if c:
            q = q - before @ (before.T @ q)
        basis[:, c] = q / balls.norm(q)
    return basis


def expand(problem: Reduced, x: list[Ball], Q: np.ndarray, owner: np.ndarray) -> Exact:
    """W = A Q', h_j = Q B_m, b: balls."""
    A, B, b = problem.split(newton.objects(x))
    product = newton.product
    return Exact(product(A, Q.T), product(Q, B)[:, owner], balled(b))


def rationals(array: np.ndarray) -> np.ndarray:
    """The midpoints as Fractions."""
    out = np.empty(array.size, dtype=object)
    out[:] = [balls.fraction(x) for x in array.ravel().tolist()]
    return out.reshape(array.shape)


def distance(exact: Exact, true: Exact) -> Ball:
    """Upper bound of the Euclidean distance."""
    gaps = [(balled(np.asarray(x)) - y).ravel() for x, y in zip(exact, true, strict=True)]
    return balls.norm(np.concatenate(gaps))
