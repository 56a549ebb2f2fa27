"""Witnesses that know no closed form: the loss itself by autodiff, dense Hessians, and solved problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import ufm
from ufm import losses, theory
from ufm._problem import Params, Problem
from ufm._solution import Solution
from ufm.losses import Loss

#: numbers that one call of a compiled witness takes: one shape, one compilation
_ROWS = 256
#: problems that make one full chunk of a sweep: fewer would be another shape
_CHUNK = 32


# --- the scalar profile, from the loss ------------------------------------------------------------


@partial(jax.jit, static_argnames="K")
def _derivatives(loss: Loss, a: Array, *, K: int) -> tuple[Array, ...]:
    def l(a: Array) -> Array:  # noqa: E743
        return loss(a * (jnp.arange(K) == 0), 0)

    first = jax.grad(l)
    second = jax.grad(first)
    return tuple(jax.vmap(f)(a) for f in (l, first, second, jax.grad(second)))


def profile(loss: Loss, K: int, a: Any) -> tuple[np.ndarray, ...]:
    """L(a e_0, 0) and its first three derivatives in a, by autodiff."""
    a = np.asarray(a, dtype=np.float64)
    padded = np.resize(a.ravel(), max(_ROWS, a.size))
    found = _derivatives(loss, padded, K=K)
    return tuple(np.asarray(f)[: a.size].reshape(a.shape) for f in found)


@partial(jax.jit, static_argnames="K")
def _shifted(loss: Loss, a: Array, *, K: int) -> Array:
    def at(a: Array, s: float) -> Array:
        return loss(a * (jnp.arange(K) == 0) + s, 0)

    def one(a: Array) -> Array:
        low, middle, high = at(a, -1.0), at(a, 0.0), at(a, 1.0)
        bend, slope = high + low - 2 * middle, (high - low) / 2
        return middle - slope**2 / (2 * bend)

    return jax.vmap(one)(a)


def least_over_shifts(loss: Loss, K: int, a: Any) -> np.ndarray:
    """min over s of L(a e_0 + s 1, 0) for a loss that is quadratic in the logits."""
    a = np.asarray(a, dtype=np.float64)
    padded = np.resize(a, max(_ROWS, a.size))
    return np.asarray(_shifted(loss, padded, K=K))[: a.size]


def lowest(loss: Loss, K: int, weight: float) -> tuple[float, float]:
    """argmin and min over a >= 0 of L(a e_0, 0) + weight a: a grid, then Newton by autodiff."""
    reach = float(profile(loss, K, np.zeros(1))[0][0]) / weight  # beyond it the penalty alone is too much
    grid = np.append(0.0, np.geomspace(1e-4, 1.0, 2 * _ROWS - 1) * max(reach, 1.0))
    values = profile(loss, K, grid)[0] + weight * grid
    a = float(grid[int(np.argmin(values))])
    for _ in range(50 if a > 0 else 0):
        _, slope, bend, _ = (float(x[0]) for x in profile(loss, K, np.array([a])))
        step = (slope + weight) / abs(bend)
        a -= step
        if abs(step) < 1e-15 * a:
            break
    return a, float(profile(loss, K, np.array([a]))[0][0]) + weight * a


# --- dense Hessians -------------------------------------------------------------------------------


@jax.jit
def _hessian(prob: Problem, params: Params) -> Array:
    flat, unravel = ravel_pytree(params if prob.bias else (params.W, params.H))

    def f(x: Array) -> Array:
        moved: Any = unravel(x)
        return prob(Params(moved[0], moved[1], moved[2] if prob.bias else params.b))

    return jax.hessian(f)(flat)


def hessian_eigenvalues(prob: Problem, params: Params) -> np.ndarray:
    """All eigenvalues of the Hessian in (W, H, b), formed by autodiff as a dense matrix; ascending."""
    one = Params(*(jnp.asarray(x) for x in params))
    return np.linalg.eigvalsh(np.asarray(_hessian(as_leaves(prob), one)))


def as_leaves(prob: Problem) -> Problem:
    """Every penalty and hyperparameter as an array: one type, one compilation."""
    leaves: Problem = jax.tree.map(jnp.asarray, prob)
    return leaves


@jax.jit
def _objective(prob: Problem, params: Params) -> Array:
    return prob(params)


def objective(prob: Problem, params: Params) -> float:
    """f(W, H, b) as it is written."""
    return float(_objective(as_leaves(prob), Params(*(jnp.asarray(x) for x in params))))


# --- solved problems ------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Classes, dimension, samples a class."""

    K: int
    d: int
    n: int


class Point(NamedTuple):
    """Penalties and seed of one solve."""

    c: float  # sqrt(n lam_W lam_H)
    lam_b: float = 0.0
    seed: int = 0
    ratio: float = 4.0  # lam_W/lam_H: never 1, at which mistakes cancel


def penalties(c: float, n: int, ratio: float) -> tuple[float, float]:
    """lam_W and lam_H with sqrt(n lam_W lam_H) = c."""
    lam = c / math.sqrt(n)
    return lam * math.sqrt(ratio), lam / math.sqrt(ratio)


def problem(
    loss: str | Loss | Callable[..., Any], shape: Shape, c: float, *, lam_b: float = 0.0, bias: bool = True,
    ratio: float = 4.0,
) -> Problem:  # fmt: skip
    """A balanced problem with sqrt(n lam_W lam_H) = c."""
    lam_W, lam_H = penalties(c, shape.n, ratio)
    return Problem.balanced(
        losses.get(loss), **shape._asdict(), lam_W=lam_W, lam_H=lam_H, lam_b=lam_b, bias=bias
    )


def solve(
    loss: str | Loss, shape: Shape, points: Sequence[Point], *, bias: bool = True, scale: float = 0.1
) -> list[Solution]:
    """Each point solved; one program for each loss, shape and bias, whatever the points."""
    base = problem(loss, shape, points[0].c, bias=bias)
    found: dict[int, Solution] = {}
    for seed in sorted({point.seed for point in points}):
        mine = [i for i, point in enumerate(points) if point.seed == seed]
        padded = [points[mine[min(j, len(mine) - 1)]] for j in range(max(_CHUNK, len(mine)))]
        lam = np.array([penalties(p.c, shape.n, p.ratio) for p in padded])
        axes: dict[str, Any] = {"lam_W": lam[:, 0], "lam_H": lam[:, 1]}
        if bias:
            axes["lam_b"] = np.array([p.lam_b for p in padded])
        sweep = ufm.solve_sweep(base, seeds=range(seed, seed + 1), scale=scale, progress=False, **axes)
        found |= {i: sweep[0, j] for j, i in enumerate(mine)}
    return [found[i] for i in range(len(points))]


def collapse_threshold(loss: str | Loss, shape: Shape, *, lam_b: float = 0.0, bias: bool = True) -> float:
    """c at which neural collapse ties with the origin, by theory."""
    return theory.threshold(problem(loss, shape, 1e-2, lam_b=lam_b, bias=bias)).C_tie / (shape.K - 1)
