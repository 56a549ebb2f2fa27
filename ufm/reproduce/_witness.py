"""Witnesses that use no closed form: autodiff of the loss itself, dense Hessians, and solved problems."""

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
from numpy.typing import ArrayLike

import ufm
from ufm import _compile, losses, theory
from ufm._problem import Params, Problem
from ufm._solution import Solution
from ufm.losses import Loss

#: A witness runs a few times at one shape, so the time to compile it is nearly all of its time.
_instant = partial(_compile.jit, options=_compile.INSTANT)
#: the length to which inputs are padded, so that one program serves all of them
_ROWS = 256
#: the number of problems in a full chunk of a sweep, to which fewer are padded for the same reason
_CHUNK = 32


def shown(loss: Loss | str) -> str:
    """The name of a loss with its hyperparameters."""
    return repr(losses.get(loss))


# --- the scalar profile, from the loss ------------------------------------------------------------


@partial(_instant, static_argnames=("K",))
def _derivatives(loss: Loss, a: Array, *, K: int) -> tuple[Array, ...]:
    def l(a: Array) -> Array:  # noqa: E743
        return loss(a * (jnp.arange(K) == 0), 0)

    def one(a: Array) -> tuple[Array, ...]:
        ((value, first), (_, second)), (_, (_, third)) = _with_slope(_with_slope(_with_slope(l)))(a)
        return value, first, second, third

    return tuple(jax.vmap(one)(a))


def _with_slope(f: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """a -> (f(a), f'(a)) in forward mode, which traces the loss once however often it is nested."""
    return lambda a: jax.jvp(f, (a,), (jnp.ones_like(a),))


def profile(loss: Loss, K: int, a: ArrayLike) -> tuple[np.ndarray, ...]:
    """L(a e_0, 0) and its first three derivatives in a, by autodiff."""
    a = np.asarray(a, dtype=np.float64)
    padded = np.resize(a.ravel(), max(_ROWS, a.size))
    found = _derivatives(loss, padded, K=K)
    return tuple(np.asarray(f)[: a.size].reshape(a.shape) for f in found)


@partial(_instant, static_argnames=("K",))
def _shifted(loss: Loss, a: Array, *, K: int) -> Array:
    def at(a: Array, s: float) -> Array:
        return loss(a * (jnp.arange(K) == 0) + s, 0)

    def one(a: Array) -> Array:
        low, middle, high = at(a, -1.0), at(a, 0.0), at(a, 1.0)
        bend, slope = high + low - 2 * middle, (high - low) / 2
        return middle - slope**2 / (2 * bend)

    return jax.vmap(one)(a)


def least_over_shifts(loss: Loss, K: int, a: np.ndarray) -> np.ndarray:
    """min over s of L(a e_0 + s 1, 0) for a loss that is quadratic in the logits."""
    padded = np.resize(a, max(_ROWS, a.size))
    return np.asarray(_shifted(loss, padded, K=K))[: a.size]


def lowest(loss: Loss, K: int, weight: float) -> tuple[float, float]:
    """argmin and min over a >= 0 of L(a e_0, 0) + weight a, by a grid and then Newton with autodiff."""
    reach = (
        float(profile(loss, K, np.zeros(1))[0][0]) / weight
    )  # beyond it the penalty alone exceeds the value at a = 0
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


@_instant
def _hessian(prob: Problem, params: Params) -> Array:
    flat, unravel = ravel_pytree(params if prob.bias else (params.W, params.H))

    def f(x: Array) -> Array:
        moved: Any = unravel(x)
        return prob(Params(moved[0], moved[1], moved[2] if prob.bias else params.b))

    return jax.hessian(f)(flat)


def hessian_eigenvalues(prob: Problem, params: Params) -> np.ndarray:
    """All eigenvalues, ascending, of the dense Hessian in (W, H, b), which autodiff forms."""
    return np.linalg.eigvalsh(np.asarray(_hessian(*_as_leaves(prob, params))))


def _as_leaves(prob: Problem, params: Params) -> tuple[Problem, Params]:
    """Both with every leaf as an array, so that problems of one shape share a program."""
    leaves: tuple[Problem, Params] = jax.tree.map(jnp.asarray, (prob, params))
    return leaves


@_instant
def _objective(prob: Problem, params: Params) -> Array:
    return prob(params)


def objective(prob: Problem, params: Params) -> float:
    """f(W, H, b) from its definition."""
    return float(_objective(*_as_leaves(prob, params)))


@_instant
def _logit_gradient(prob: Problem, params: Params) -> Array:
    return prob.logit_gradient(params)


def logit_gradient(prob: Problem, params: Params) -> np.ndarray:
    """G (K, N), the gradient of the mean loss in the logits."""
    return np.asarray(_logit_gradient(*_as_leaves(prob, params)))


# --- solved problems ------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Classes, feature dimension, samples in a class."""

    K: int
    d: int
    n: int


#: the sizes that many rows share, so that they share compiled programs
SHAPE = Shape(K=10, d=12, n=2)


class Point(NamedTuple):
    """Penalties and seed of one solve."""

    c: float  # sqrt(n lam_W lam_H)
    lam_b: float = 0.0
    seed: int = 0
    ratio: float = 4.0  # lam_W/lam_H; at 1 mistakes in the two penalties would cancel


def penalties(c: float, n: int, ratio: float) -> tuple[float, float]:
    """lam_W and lam_H with sqrt(n lam_W lam_H) = c."""
    lam = c / math.sqrt(n)
    return lam * math.sqrt(ratio), lam / math.sqrt(ratio)


def problem(
    loss: str | Loss, shape: Shape, c: float, *, lam_b: float = 0.0, bias: bool = True,
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
    """Solve the problem at each point; one program serves all points of a loss, shape and bias."""
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


def threshold(prob: Problem) -> theory.Threshold:
    """`theory.threshold` of a balanced problem."""
    found = theory.threshold(prob)
    assert isinstance(found, theory.Threshold)
    return found


def collapse_threshold(loss: str | Loss, shape: Shape, *, lam_b: float = 0.0, bias: bool = True) -> float:
    """c at which neural collapse ties with the origin, by theory."""
    return threshold(problem(loss, shape, 1e-2, lam_b=lam_b, bias=bias)).C_tie / (shape.K - 1)
