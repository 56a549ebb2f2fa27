"""What the loop needs of a solver, and linear algebra on pytrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Tree = Any
Objective = Callable[[Tree], Array]


@dataclasses.dataclass(frozen=True)
class WithDerivatives:
    """An objective that knows its derivatives better than automatic differentiation."""

    value: Objective
    value_and_gradient: Callable[[Tree], tuple[Array, Tree]]
    product: Callable[[Tree], Callable[[Tree], Tree]]  # y -> (v -> Hess v)

    def __call__(self, y: Tree) -> Array:
        return self.value(y)


@dataclasses.dataclass(frozen=True)
class OnSpheres:
    """An objective that is constant along the rays of the parts of y that lie on spheres."""

    value: Objective
    tangent: Callable[[Tree, Tree], Tree]  # (y, step) -> the part of a step that changes these rays

    def __call__(self, y: Tree) -> Array:
        return self.value(y)


class Point(NamedTuple):
    """Where a solver stands."""

    y: Tree  # the variables
    f: Array  # () objective
    g: Tree  # gradient, shaped as y


@runtime_checkable
class Solver(Protocol):
    """What the loop needs of a solver."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def balance(self) -> bool:
        """Run in the coordinates in which both penalties are sqrt(lam_W lam_H)."""

    @property
    def rotate(self) -> bool:
        """Keep only the feature components in the row space of W, in min(d, K) coordinates."""

    @property
    def polish(self) -> bool:
        """Take one step more once within the tolerance."""

    @property
    def max_steps(self) -> int:
        """The default limit."""

    def init(self, f: Objective, at: Point) -> Tree:
        """What the method remembers at the start."""

    def step(self, f: Objective, at: Point, memory: Tree) -> tuple[Point, Tree, Array]:
        """One step; the flag is 0 (go on) or `STALLED`."""


STALLED = 3  # the flag of a step that cannot be taken; `ufm.Status` has the same number

# --- linear algebra on pytrees --------------------------------------------------------------------


def dot(a: Tree, b: Tree) -> Array:
    """Euclidean inner product."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)), jnp.zeros(()))


def axpy(s: Any, a: Tree, b: Tree) -> Tree:
    """s a + b."""
    return jax.tree.map(lambda x, y: s * x + y, a, b)


def scale(s: Any, a: Tree) -> Tree:
    """s a."""
    return jax.tree.map(lambda x: s * x, a)


def select(condition: Array, a: Tree, b: Tree) -> Tree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def evaluate(f: Objective, y: Tree) -> Point:
    known = f.value_and_gradient if isinstance(f, WithDerivatives) else jax.value_and_grad(f)
    return Point(y, *known(y))


def curvature(f: Objective, y: Tree) -> Callable[[Tree], Tree]:
    """The product with the Hessian at y; on spheres with the Riemannian one, of tangent directions.

    Along rays the full Hessian couples to the gradient, H y = -g, and has no curvature of its own.
    """
    if isinstance(f, WithDerivatives):
        return f.product(y)
    _, hvp = jax.linearize(jax.grad(f), y)
    return (lambda v: f.tangent(y, hvp(v))) if isinstance(f, OnSpheres) else hvp


def noise(f: Array) -> Array:
    """The size below which differences of objectives are rounding."""
    return 10 * np.finfo(f.dtype).eps * jnp.maximum(jnp.abs(f), np.finfo(f.dtype).tiny)
