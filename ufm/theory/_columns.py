"""A neuron for each class: the orthogonal frame of features that are not negative, with any counts and bias.

With h_k = eta_k e_k the penalty of the factors is lam sum_k sqrt(n_k) |z_k| at the class logits z_k, which is
the largest that it can be. The program

    min over z_k and b of  sum_k w_k n_k/N L(z_k + b, k) + lam sum_k sqrt(n_k) |z_k| + lam_b/2 |b|^2

is convex, and the permutations of classes of equal count and weight leave G (G + 1) numbers: the own logit of
a group and one value for each group. In the factors z = u v the norm is a square, (u^2 + |v|^2)/2; each
column has one factor, so that its only critical points are minima and strict saddles.

Source: docs/theory.md, section 6.4.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ufm import _compile
from ufm.losses._base import Setting
from ufm.losses._closed import Groups
from ufm.theory import _blocks
from ufm.theory._blocks import Derivatives, Program

#: a column shorter than this, relative to the longest, is zero
ZERO = 1e-9


class Columns(NamedTuple):
    """The minimiser of the program, in full."""

    Z: Float[np.ndarray, "K K"]  # column k: the logits of class k without the bias
    b: Float[np.ndarray, " K"]
    value: float
    gradient: Float[np.ndarray, "K K"]  # column k: w_k sqrt(n_k)/N grad L(z_k + b, k)


def solve(s: Setting, groups: Groups) -> Columns:
    """The minimiser.

    Raises:
        NoClosedForm: the loss has no class symmetry, is not convex or not smooth; the infimum appears not to
            be attained.
    """
    p = _blocks.program(s, groups)
    G = len(groups.sizes)
    used = np.ones((G, G + 1), bool)
    used[np.arange(G), np.arange(G)] = groups.sizes > 1  # a class alone has no other of its group
    start = np.tile(np.append(np.full(G, -1 / s.K), 1.0), (G, 1))
    free = np.concatenate([np.ones(G, bool), used.ravel(), np.full(G, s.bias)])
    y = np.where(free, np.concatenate([np.ones(G), start.ravel(), np.zeros(G)]), 0.0)

    def at(x: np.ndarray) -> Derivatives:
        full = y.copy()
        full[free] = x
        value, gradient, hessian = map(np.asarray, _derivatives(p, full))
        return float(value), gradient[free], hessian[np.ix_(free, free)]

    y[free] = _blocks.newton(at, y[free], f"the program of a neuron for each class of {s.loss!r}")
    return _expanded(p, s, groups, y)


def _parts(y: Array, G: int) -> tuple[Array, Array, Array]:
    """u (G,), v (G, G + 1), b (G,)."""
    return y[:G], y[G : G + G * (G + 1)].reshape(G, G + 1), y[G + G * (G + 1) :]


def _fit(p: Program, z: Array, b: Array) -> Array:
    """The mean loss at columns z (G, G + 1) and the bias, with its penalty."""
    logits = z + jnp.column_stack([jnp.broadcast_to(b, (len(b), len(b))), b])
    each = jax.vmap(p.loss)(jnp.take_along_axis(logits, jnp.asarray(p.slot), axis=1), jnp.asarray(p.owner))
    return jnp.vdot(p.share, each) + p.lam_b / 2 * jnp.vdot(p.sizes, b**2)


def _value(p: Program, y: Array) -> Array:
    G = p.sizes.shape[0]
    u, v, b = _parts(y, G)
    times = jnp.column_stack([p.sizes - jnp.eye(G), jnp.ones(G)])  # entries of a column with each value
    squares = u**2 + jnp.sum(times * v**2, axis=1)
    return _fit(p, u[:, None] * v, b) + p.lam / 2 * jnp.vdot(p.sizes * jnp.sqrt(p.counts), squares)


def _both(p: Program, y: Array) -> tuple[Array, Array, Array]:
    value, gradient = jax.value_and_grad(_value, argnums=1)(p, y)
    return value, gradient, jax.hessian(_value, argnums=1)(p, y)


_derivatives = _compile.jit(_both, options=_compile.INSTANT)


@_compile.jit
def _gradients(p: Program, Z: Array, b: Array) -> tuple[Array, Array]:
    """Losses and their gradients, row by row."""
    return jax.vmap(jax.value_and_grad(p.loss))(Z.T + b, jnp.arange(Z.shape[1]))


def _expanded(p: Program, s: Setting, groups: Groups, y: np.ndarray) -> Columns:
    G, of_class = len(groups.sizes), groups.of_class
    u, v, b = (np.asarray(part) for part in _parts(jnp.asarray(y), G))
    z = u[:, None] * v
    Z = z[of_class][:, of_class].T
    np.fill_diagonal(Z, z[of_class, G])
    lengths = np.linalg.norm(Z, axis=0)
    Z[:, lengths <= ZERO * max(float(lengths.max()), 1e-300)] = 0.0
    bias = b[of_class]
    if s.loss.shift_invariant and s.bias and s.lam_b == 0:
        bias = bias - bias.mean()
    each, slopes = (np.asarray(x) for x in _gradients(p, jnp.asarray(Z), jnp.asarray(bias)))
    counts, weights = groups.counts[of_class], groups.weights[of_class]
    lengths = np.linalg.norm(Z, axis=0)
    value = float(weights * counts @ each / s.N + float(p.lam) * (np.sqrt(counts) @ lengths))
    value += s.lam_b / 2 * float(bias @ bias)
    return Columns(Z, bias, value, (weights * np.sqrt(counts))[None, :] / s.N * slopes.T)
