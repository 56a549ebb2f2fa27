"""First-order methods through optax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm.solvers._base import STALLED, Objective, Point, Tree, axpy, dot, evaluate, noise, scale, select

if TYPE_CHECKING:
    import optax


class _Descent(NamedTuple):
    """Memory of a first-order method."""

    rate: Array  # learning rate
    ceiling: Array  # a step above this objective is not taken
    state: Tree  # optax's


def _sharpness(f: Objective, y: Tree, products: int = 30) -> Array:
    """|largest eigenvalue| of the Hessian at y, by power iteration (approached from below)."""
    _, hvp = jax.linearize(jax.grad(f), y)
    v = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), y)

    def iterate(_: Any, v: Tree) -> Tree:
        size = jnp.sqrt(dot(v, v))
        return hvp(scale(1 / jnp.where(size > 0, size, 1.0), v))

    v = jax.lax.fori_loop(0, products, iterate, v)
    return jnp.sqrt(dot(v, v))


def of_optax(name: str, *arguments: float) -> optax.GradientTransformation:
    """A transformation of optax, imported here because it takes half as long as the rest of `import ufm`."""
    import optax

    made: optax.GradientTransformation = getattr(optax, name)(*arguments)
    return made


@dataclasses.dataclass(frozen=True)
class FirstOrder:
    """A gradient transformation of optax, run on equation (7) in its own coordinates.

    The step is -rate * transform(gradient). The rate is `learning_rate`, or 1 / sharpness at the start;
    a step that lifts the objective (for methods that are not monotone: above where it started) is taken
    back, the transform starts afresh and the rate halves. `half_life`: the number of
    steps in which the rate also halves, which Adam needs because its steps do not shrink with the gradient.
    """

    name: str
    transform: Callable[[], optax.GradientTransformation]
    monotone: bool = False
    learning_rate: float | None = None
    half_life: float = math.inf

    polish = False
    balance = False
    rotate = False
    max_steps = 1_000_000
    patience = 50_000  # ten half-lives of Adam's rate

    def init(self, f: Objective, at: Point) -> _Descent:
        rate = jnp.asarray(self.learning_rate, at.f.dtype) if self.learning_rate else 1 / _sharpness(f, at.y)
        return _Descent(rate, at.f, self.transform().init(at.y))

    def step(self, f: Objective, at: Point, memory: _Descent) -> tuple[Point, _Descent, Array]:
        transform = self.transform()
        direction, state = transform.update(at.g, memory.state, at.y)
        new = evaluate(f, axpy(-memory.rate, direction, at.y))
        accept = new.f <= memory.ceiling + noise(at.f)  # False for NaN
        rate = jnp.where(accept, memory.rate * 0.5 ** (1 / self.half_life), memory.rate / 2)
        memory = _Descent(
            rate,
            jnp.where(accept & self.monotone, new.f, memory.ceiling),
            select(accept, state, transform.init(at.y)),
        )
        stuck = rate < np.finfo(at.f.dtype).tiny
        return select(accept, new, at), memory, jnp.where(stuck, STALLED, 0)
