"""Many starts at once: Levenberg-Marquardt on |grad f|^2 / 2, or regularised Newton on f, in one program.

Coordinates: V (K, r), F (M, r) and b in the units in which both penalties are sqrt(lam_W lam_H), one row of F
a cell of samples whose features coincide (times the root of its size), r = min(d, K) feature directions.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm._problem import Params, Problem


class Shape(NamedTuple):
    """What is compiled in."""

    K: int
    M: int  # cells
    r: int
    bias: bool

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return (self.K + self.M) * self.r + (self.K if self.bias else 0)


class Reduction(NamedTuple):
    """How params and reduced unknowns translate."""

    prob: Problem
    shape: Shape
    merged: Problem  # one column a cell, in r dimensions and with both penalties sqrt(lam_W lam_H)
    cell: np.ndarray  # (N,) of each sample
    sizes: np.ndarray  # (M,)
    ratio: float  # V = ratio W

    def encode(self, params: Params) -> np.ndarray:
        """(size,): the features averaged over the cells, in the r largest directions."""
        W, F, b = np.asarray(params.W), np.asarray(params.H).T, np.asarray(params.b)
        means = np.zeros((self.shape.M, F.shape[1]))
        np.add.at(means, self.cell, F)
        F = means / np.sqrt(self.sizes)[:, None] / self.ratio
        V = self.ratio * W
        Q = np.linalg.svd(np.concatenate([V, F]), full_matrices=False)[2][: self.shape.r].T
        Q = np.pad(Q, ((0, 0), (0, self.shape.r - Q.shape[1])))
        return self.join(V @ Q, F @ Q, b)

    def join(self, V: np.ndarray, F: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Flat unknowns."""
        return np.concatenate([V.ravel(), F.ravel(), b if self.shape.bias else b[:0]])

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """V, F, b."""
        K, M, r, bias = self.shape
        V, F = x[: K * r].reshape(K, r), x[K * r : (K + M) * r].reshape(M, r)
        return V, F, x[(K + M) * r :] if bias else np.zeros(K)

    def decode(self, x: np.ndarray) -> Params:
        """Back to W, H, b."""
        V, F, b = self.split(x)
        features = (self.ratio * F / np.sqrt(self.sizes)[:, None])[self.cell]
        wide = ((0, 0), (0, self.prob.d - self.shape.r))
        W, H = np.pad(V / self.ratio, wide), np.pad(features, wide).T
        arrays: Any = (W, H, b)  # numpy: most are only compared
        return Params(*arrays)


def reduction(prob: Problem, collapsed: bool) -> Reduction:
    """The class means (`collapsed`) or all samples."""
    labels = np.asarray(prob.labels)
    cell = labels.astype(np.int64) if collapsed else np.arange(prob.N)
    sizes = np.bincount(cell)
    of_cell = np.arange(prob.K, dtype=labels.dtype) if collapsed else labels
    shape = Shape(prob.K, len(sizes), min(prob.d, prob.K), bool(prob.bias))
    lam = np.sqrt(np.float64(prob.lam_W) * np.float64(prob.lam_H))
    penalties = {"lam_W": lam, "lam_H": lam, "lam_b": np.float64(prob.lam_b)}
    merged = prob.replace(labels=of_cell, samples=sizes.astype(np.float64), d=shape.r, **penalties)
    ratio = (float(prob.lam_W) / float(prob.lam_H)) ** 0.25
    return Reduction(prob, shape, merged, cell, sizes, ratio)


def objective(merged: Problem, shape: Shape, x: Array) -> Array:
    """f in the reduced unknowns."""
    K, M, r, bias = shape
    V, F, b = x[: K * r].reshape(K, r), x[K * r : (K + M) * r].reshape(M, r), x[(K + M) * r :]
    assert merged.samples is not None
    H = (F / jnp.sqrt(merged.samples)[:, None]).T
    return merged(Params(V, H, b if bias else jnp.zeros(K)))


class _State(NamedTuple):
    x: Array
    f: Array
    g: Array
    H: Array
    mu: Array  # damping, relative to the size of H (or of H^2)
    steps: Array
    done: Array


#: |grad f| over lam (1 + |x|) at which a start has arrived: close enough to compare with what is known
ARRIVED = 1e-9
GIVE_UP = 1e6


@partial(jax.jit, static_argnames="shape")
def run(
    merged: Problem, x: Array, minimise: Array, limit: Array, *, shape: Shape
) -> tuple[Array, Array, Array]:
    """From starts x (S, size): the ends, their f and |grad f|.

    minimise: (S,) whether f is to fall, or |grad f| whatever happens to f.
    """
    return jax.vmap(lambda x, mode: _one(merged, shape, x, mode, limit))(x, minimise)


def _one(
    merged: Problem, shape: Shape, x: Array, minimise: Array, limit: Array
) -> tuple[Array, Array, Array]:
    gradient = jax.grad(objective, 2)
    eye = jnp.eye(shape.size)

    def jet(x: Array) -> tuple[Array, Array, Array]:
        g, product = jax.linearize(lambda x: gradient(merged, shape, x), x)
        return objective(merged, shape, x), g, jax.vmap(product)(eye)

    def arrived(x: Array, g: Array) -> Array:
        return jnp.linalg.norm(g) <= ARRIVED * merged.lam * (1 + jnp.linalg.norm(x))

    def step(s: _State) -> _State:
        model = jnp.where(minimise, s.H, s.H @ s.H)
        slope = jnp.where(minimise, s.g, s.H @ s.g)
        size = jnp.sqrt(jnp.sum(s.H * s.H) / shape.size)
        ridge = s.mu * jnp.where(minimise, size, size**2)
        factor = jnp.linalg.cholesky(model + ridge * eye)  # NaN where not definite: the step is then refused
        move = -jax.scipy.linalg.cho_solve((factor, True), slope)
        x = s.x + move
        f, g, H = jet(x)
        before = jnp.where(minimise, s.f, jnp.vdot(s.g, s.g) / 2)
        after = jnp.where(minimise, f, jnp.vdot(g, g) / 2)
        expected = -(jnp.vdot(slope, move) + jnp.vdot(move, model @ move) / 2)
        gain = (before - after) / expected
        # near rounding f no longer tells a good step: there the gradient does
        small = minimise & (expected <= 1e-13 * jnp.abs(s.f)) & (jnp.linalg.norm(g) < jnp.linalg.norm(s.g))
        good = ((gain > 1e-3) | small) & jnp.isfinite(after) & (expected > 0)
        x, f, g, H = (jnp.where(good, a, b) for a, b in ((x, s.x), (f, s.f), (g, s.g), (H, s.H)))
        factor_mu = jnp.where(gain > 0.7, 0.1, jnp.where(gain > 0.2, 0.7, 2.0))
        mu = jnp.where(good, jnp.maximum(s.mu * jnp.where(small, 0.1, factor_mu), 1e-14), s.mu * 5)
        return _State(x, f, g, H, mu, s.steps + 1, arrived(x, g) | (mu > GIVE_UP))

    f, g, H = jet(x)
    first = _State(x, f, g, H, jnp.asarray(1e-2), jnp.asarray(0), arrived(x, g))
    last = jax.lax.while_loop(lambda s: ~s.done & (s.steps < limit), step, first)
    return last.x, last.f, jnp.linalg.norm(last.g)
