"""The coordinates in which a solver runs where parts of the variables lie on spheres.

f is constant along the rays of these parts, so that y may have any norms: the step of a solver need not come
back to the sphere, and the norms choose the metric. `balance` takes those in which the curvatures of all
parts are alike, in which Newton's inner iteration needs some sqrt(n) times fewer products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ufm._problem import Problem, Variables
from ufm.models import by_part
from ufm.solvers import Objective, OnSpheres, Solver, dot


class Rays(NamedTuple):
    """Coordinates y: the variables, with any norm along each ray."""

    problem: Problem

    def params(self, y: Any) -> Variables:
        """The variables on their spheres."""
        return self.problem.model.onto(self.problem, y)

    @property
    def objective(self) -> Objective:
        """f(y), with the projection on the tangents for Newton's method."""
        return OnSpheres(self.problem, self.problem.model.tangent)

    def residual(self, y: Any, g: Any) -> Array:
        """|grad f| on the spheres, the Riemannian gradient: along a ray the gradient falls like 1/|y|."""
        model = self.problem.model
        squares, radii = model.products(y, y), model.radii(self.problem)
        g = by_part(lambda square, g, r: g * (square**0.5 / r), squares, g, radii)
        return jnp.sqrt(dot(g, g))

    def expanded(self, prob: Problem, y: Any, reduced: bool) -> Variables:
        """The variables of the problem as it was given."""
        return self.params(y)


def rays_of(prob: Problem, params: Variables, solver: Solver) -> tuple[Rays, Any]:
    """The view of a problem and the start in it."""
    if not solver.balance:
        return Rays(prob), params
    return Rays(prob), jax.tree.map(jnp.multiply, params, prob.model.stretch(prob))
