"""The lowest eigenvalues of the Hessian at any point, from products alone.

Lanczos' three-term recurrence without a stored basis: the tridiagonal matrix's lowest eigenvalue converges
in spite of lost orthogonality, which only repeats what has converged (Paige 1980). The eigenvector is summed
in a second pass. An eigenvalue that one start finds once is found again, once it is deflated, by the next.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.linalg import eigh_tridiagonal

from ufm._problem import Params, Problem
from ufm.hessian.product import product
from ufm.hessian.structure import NotFinite

#: steps between two looks at the tridiagonal matrix
CHUNK = 16
#: products for one eigenvalue at most
LIMIT = 20_000


class Pair(NamedTuple):
    """A Ritz pair of sign * Hess."""

    value: float
    vector: Params  # of norm 1
    residual: float  # |Hess v - value v|, the bound on the error of `value`
    products: int


class _State(NamedTuple):
    old: Params
    new: Params
    beta: Array


def _dot(a: Params, b: Params) -> Array:
    return sum((jnp.vdot(x, y) for x, y in zip(a, b, strict=True)), jnp.zeros(()))


def _sum(a: Params, *terms: tuple[Any, Params]) -> Params:
    for s, b in terms:
        a = Params(*(x + s * y for x, y in zip(a, b, strict=True)))
    return a


def _deflate(v: Params, locked: Params) -> Params:
    """v less its parts along the locked vectors (leading axis; zeros where there is none)."""
    along = sum((jnp.tensordot(L, x, x.ndim) for L, x in zip(locked, v, strict=True)), jnp.zeros(()))
    return Params(*(x - jnp.tensordot(along, L, 1) for x, L in zip(v, locked, strict=True)))


@partial(jax.jit, static_argnames="steps")
def _advance(
    prob: Problem, params: Params, locked: Params, sign: Array, state: _State, *, steps: int
) -> tuple[_State, Array, Array]:
    """`steps` more rows of the tridiagonal matrix: diagonal and off-diagonal."""
    apply = product(prob, params)

    def step(state: _State, _: None) -> tuple[_State, tuple[Array, Array]]:
        w = apply(state.new)
        w = Params(*(sign * x for x in w))
        alpha = _dot(w, state.new)
        w = _deflate(_sum(w, (-alpha, state.new), (-state.beta, state.old)), locked)
        beta = jnp.sqrt(_dot(w, w))
        scaled = Params(*(x / jnp.where(beta > 0, beta, 1.0) for x in w))
        return _State(state.new, scaled, beta), (alpha, beta)

    state, (alphas, betas) = jax.lax.scan(step, state, None, length=steps)
    return state, alphas, betas


@jax.jit
def _combine(
    prob: Problem, params: Params, locked: Params, sign: Array, start: Params, T: tuple[Array, Array, Array]
) -> tuple[Params, Array, Array]:
    """The Ritz vector sum s_j v_j by repeating the recurrence; its Rayleigh quotient and residual."""
    apply = product(prob, params)

    def step(carry: tuple[Params, Params, Params, Array], row: tuple[Array, Array, Array]) -> Any:
        old, new, total, last = carry
        alpha, beta, s = row
        total = _sum(total, (s, new))
        w = Params(*(sign * x for x in apply(new)))
        w = _deflate(_sum(w, (-alpha, new), (-last, old)), locked)
        scaled = Params(*(x / jnp.where(beta > 0, beta, 1.0) for x in w))
        return (new, scaled, total, beta), None

    zero = jax.tree.map(jnp.zeros_like, start)
    (_, _, total, _), _ = jax.lax.scan(step, (zero, start, zero, jnp.zeros(())), T)
    total = _unit(_deflate(total, locked))
    image = Params(*(sign * x for x in apply(total)))
    value = _dot(image, total)
    off = _sum(image, (-value, total))
    return total, value, jnp.sqrt(_dot(off, off))


def _unit(v: Params) -> Params:
    size = jnp.sqrt(_dot(v, v))
    return Params(*(x / size for x in v))


@jax.jit
def _start(prob: Problem, params: Params, locked: Params, seed: Array) -> Params:
    keys = jax.random.split(jax.random.key(seed), 3)
    v = Params(*(jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, params, strict=True)))
    if not prob.bias:
        v = v._replace(b=jnp.zeros_like(v.b))
    return _unit(_deflate(v, locked))


def lowest(
    prob: Problem, params: Params, k: int, *, sign: float = 1.0, tol: float = 1e-8, seed: int = 0
) -> list[Pair]:
    """The k lowest Ritz pairs of sign * Hess, ascending, to residuals of tol * |largest Ritz value|."""
    room = 1 if k == 1 else k
    locked = Params(*(jnp.zeros((room, *x.shape), x.dtype) for x in params))
    pairs: list[Pair] = []
    for i in range(k):
        pair = _lowest_one(prob, params, locked, jnp.asarray(sign), tol, seed + i)
        pairs.append(pair)
        if i + 1 < k:
            locked = Params(*(L.at[i].set(v) for L, v in zip(locked, pair.vector, strict=True)))
    return sorted(pairs, key=lambda pair: pair.value)


def lowest_value(
    prob: Problem, params: Params, *, sign: float = 1.0, tol: float = 1e-8, seed: int = 0
) -> tuple[float, float, int]:
    """(value, residual bound, products) without the second pass that the vector takes."""
    locked = Params(*(jnp.zeros((1, *x.shape), x.dtype) for x in params))
    start = _start(prob, params, locked, jnp.asarray(seed))
    a, b, _ = _tridiagonal(prob, params, locked, jnp.asarray(sign), start, tol)
    theta, s = eigh_tridiagonal(a, b[:-1], select="i", select_range=(0, 0))
    return float(theta[0]), float(b[-1] * abs(s[-1, 0])), len(a)


def _tridiagonal(
    prob: Problem, params: Params, locked: Params, sign: Array, start: Params, tol: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Diagonals of T, grown until the residual of its lowest eigenvalue is within tol |largest|."""
    zero = jax.tree.map(jnp.zeros_like, start)
    state = _State(zero, start, jnp.zeros(()))
    a, b = np.zeros(0), np.zeros(0)
    while True:
        state, alphas, betas = _advance(prob, params, locked, sign, state, steps=CHUNK)
        a, b = np.concatenate([a, alphas]), np.concatenate([b, betas])
        if not np.isfinite(a).all():
            raise NotFinite(
                "params: expected a point where the Hessian is finite, got NaN or infinity in its product "
                f"with a vector; take a point where {prob.loss!r} is twice differentiable and the logits do "
                "not overflow"
            )
        spread = float(np.max(np.abs(a)) + 2 * np.max(b))
        broken = np.flatnonzero(b <= 1e-14 * spread)  # an invariant subspace: T ends there
        if broken.size:
            a, b = a[: broken[0] + 1], b[: broken[0] + 1]
            return a, b, 0.0
        s = eigh_tridiagonal(a, b[:-1], select="i", select_range=(0, 0))[1]
        residual = float(b[-1] * abs(s[-1, 0]))
        if residual <= tol * spread or len(a) >= LIMIT:
            return a, b, residual


def _lowest_one(prob: Problem, params: Params, locked: Params, sign: Array, tol: float, seed: int) -> Pair:
    start = _start(prob, params, locked, jnp.asarray(seed))
    a, b, _ = _tridiagonal(prob, params, locked, sign, start, tol)
    s = eigh_tridiagonal(a, b[:-1], select="i", select_range=(0, 0))[1][:, 0]
    T = (jnp.asarray(a), jnp.asarray(b), jnp.asarray(s))
    vector, value, residual = _combine(prob, params, locked, sign, start, T)
    return Pair(float(value), vector, float(residual), 2 * len(a))
