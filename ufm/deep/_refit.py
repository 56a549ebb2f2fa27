"""A last layer trained on to its minimum, while the features stay as they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import losses, solvers
from ufm.solvers import Point, Tree, dot, evaluate

#: of the gradient, relative to the objective: far below what NC2 needs, far above rounding
TOLERANCE = 1e-10
#: Newton's steps; about ten are needed
STEPS = 200


class _Given(NamedTuple):
    """What does not change."""

    features: Any  # (N, d)
    labels: Any  # (N,)
    weights: Any  # (N,) of the samples, their sum is 1
    loss: losses.Loss
    lam_W: Any  # ()
    lam_b: Any


def refitted(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    W: np.ndarray,
    b: np.ndarray,
    loss: losses.Loss,
    *,
    lam_W: float,
    lam_b: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The minimiser over W (K, d) and b (K,), from the given ones, of

        sum_j weights_j L(W h_j + b, y_j) + lam_W/2 |W|^2 + lam_b/2 |b|^2.

    The objective is strictly convex where the loss is convex and both penalties are positive. For another
    loss, such as focal loss, the minimiser is a local one.
    """
    given = _Given(features, labels.astype(int), weights, loss, lam_W, lam_b)
    found = _newton(given, (W, b))
    return np.asarray(found[0]), np.asarray(found[1])


@jax.jit
def _newton(given: _Given, start: Tree) -> Tree:
    newton = solvers.get("newton")

    def objective(layer: Tree) -> Array:
        W, b = layer
        each = jax.vmap(given.loss)(given.features @ W.T + b, given.labels)
        penalty = given.lam_W * jnp.sum(W**2) + given.lam_b * jnp.sum(b**2)
        return jnp.vdot(given.weights, each) + penalty / 2

    def going(run: tuple[Point, Tree, Array, Array]) -> Array:
        at, _, steps, flag = run
        return (dot(at.g, at.g) > (TOLERANCE * (1 + at.f)) ** 2) & (steps < STEPS) & (flag == 0)

    def step(run: tuple[Point, Tree, Array, Array]) -> tuple[Point, Tree, Array, Array]:
        at, memory, flag = newton.step(objective, *run[:2])
        return at, memory, run[2] + 1, flag

    at = evaluate(objective, start)
    begun = at, newton.init(objective, at), jnp.asarray(0), jnp.asarray(0)
    last: Tree = jax.lax.while_loop(going, step, begun)[0].y
    return last
