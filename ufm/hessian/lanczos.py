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

from ufm._problem import Problem, Variables
from ufm.hessian.product import NotFinite, off_bounds, product

#: steps between two looks at the tridiagonal matrix
CHUNK = 16
#: products for one eigenvalue at most
LIMIT = 20_000


class Pair(NamedTuple):
    """A Ritz pair of sign * Hess."""

    value: float
    vector: Variables  # of norm 1
    residual: float  # |Hess v - value v|, the bound on the error of `value`
    products: int


class _State(NamedTuple):
    old: Variables
    new: Variables
    beta: Array


def _dot(a: Variables, b: Variables) -> Array:
    return sum((jnp.vdot(x, y) for x, y in zip(a, b, strict=True)), jnp.zeros(()))


def _scaled(s: Any, a: Variables) -> Variables:
    return jax.tree.map(lambda x: s * x, a)


def _sum(a: Variables, *terms: tuple[Any, Variables]) -> Variables:
    for s, b in terms:
        a = jax.tree.map(lambda x, y, s=s: x + s * y, a, b)
    return a


def _deflate(v: Variables, locked: Variables) -> Variables:
    """v less its parts along the locked vectors (leading axis; zeros where there is none)."""
    along = sum((jnp.tensordot(L, x, x.ndim) for L, x in zip(locked, v, strict=True)), jnp.zeros(()))
    return jax.tree.map(lambda x, L: x - jnp.tensordot(along, L, 1), v, locked)


@partial(jax.jit, static_argnames="steps")
def _advance(
    prob: Problem, params: Variables, locked: Variables, sign: Array, state: _State, *, steps: int
) -> tuple[_State, Array, Array]:
    """`steps` more rows of the tridiagonal matrix: diagonal and off-diagonal."""
    apply, free = product(prob, params), off_bounds(prob, params)

    def step(state: _State, _: None) -> tuple[_State, tuple[Array, Array]]:
        w = free(apply(state.new))
        w = _scaled(sign, w)
        alpha = _dot(w, state.new)
        w = _deflate(_sum(w, (-alpha, state.new), (-state.beta, state.old)), locked)
        beta = jnp.sqrt(_dot(w, w))
        scaled = _scaled(1 / jnp.where(beta > 0, beta, 1.0), w)
        return _State(state.new, scaled, beta), (alpha, beta)

    state, (alphas, betas) = jax.lax.scan(step, state, None, length=steps)
    return state, alphas, betas


@jax.jit
def _combine(
    prob: Problem,
    params: Variables,
    locked: Variables,
    sign: Array,
    start: Variables,
    T: tuple[Array, Array, Array],
) -> tuple[Variables, Array, Array]:
    """The Ritz vector sum s_j v_j by repeating the recurrence; its Rayleigh quotient and residual."""
    apply, free = product(prob, params), off_bounds(prob, params)

    def step(carry: tuple[Variables, Variables, Variables, Array], row: tuple[Array, Array, Array]) -> Any:
        old, new, total, last = carry
        alpha, beta, s = row
        total = _sum(total, (s, new))
        w = _scaled(sign, free(apply(new)))
        w = _deflate(_sum(w, (-alpha, new), (-last, old)), locked)
        scaled = _scaled(1 / jnp.where(beta > 0, beta, 1.0), w)
        return (new, scaled, total, beta), None

    zero = jax.tree.map(jnp.zeros_like, start)
    (_, _, total, _), _ = jax.lax.scan(step, (zero, start, zero, jnp.zeros(())), T)
    total = _unit(_deflate(total, locked))
    image = _scaled(sign, free(apply(total)))
    value = _dot(image, total)
    off = _sum(image, (-value, total))
    return total, value, jnp.sqrt(_dot(off, off))


def _unit(v: Variables) -> Variables:
    return _scaled(1 / jnp.sqrt(_dot(v, v)), v)


@jax.jit
def _start(prob: Problem, params: Variables, locked: Variables, seed: Array) -> Variables:
    keys = jax.random.split(jax.random.key(seed), len(params))
    drawn = (jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, params, strict=True))
    v = type(params)(*drawn)
    if not prob.bias:
        v = v._replace(b=jnp.zeros_like(v.b))
    return _unit(_deflate(off_bounds(prob, params)(prob.model.tangent(params, v)), locked))


def lowest(
    prob: Problem, params: Variables, k: int, *, sign: float = 1.0, tol: float = 1e-8, seed: int = 0
) -> list[Pair]:
    """The k lowest Ritz pairs of sign * Hess, ascending, to residuals of tol * |largest Ritz value|."""
    room = 1 if k == 1 else k
    locked = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype), params)
    pairs: list[Pair] = []
    for i in range(k):
        pair = _lowest_one(prob, params, locked, jnp.asarray(sign), tol, seed + i)
        pairs.append(pair)
        if i + 1 < k:
            locked = jax.tree.map(lambda L, v, i=i: L.at[i].set(v), locked, pair.vector)
    return sorted(pairs, key=lambda pair: pair.value)


def lowest_value(
    prob: Problem, params: Variables, *, sign: float = 1.0, tol: float = 1e-8, seed: int = 0
) -> tuple[float, float, int]:
    """(value, residual bound, products) without the second pass that the vector takes."""
    locked = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), params)
    start = _start(prob, params, locked, jnp.asarray(seed))
    a, b, _ = _tridiagonal(prob, params, locked, jnp.asarray(sign), start, tol)
    theta, s = eigh_tridiagonal(a, b[:-1], select="i", select_range=(0, 0))
    return float(theta[0]), float(b[-1] * abs(s[-1, 0])), len(a)


def _tridiagonal(
    prob: Problem, params: Variables, locked: Variables, sign: Array, start: Variables, tol: float
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


def _lowest_one(
    prob: Problem, params: Variables, locked: Variables, sign: Array, tol: float, seed: int
) -> Pair:
    start = _start(prob, params, locked, jnp.asarray(seed))
    a, b, _ = _tridiagonal(prob, params, locked, sign, start, tol)
    s = eigh_tridiagonal(a, b[:-1], select="i", select_range=(0, 0))[1][:, 0]
    T = (jnp.asarray(a), jnp.asarray(b), jnp.asarray(s))
    vector, value, residual = _combine(prob, params, locked, sign, start, T)
    return Pair(float(value), vector, float(residual), 2 * len(a))
