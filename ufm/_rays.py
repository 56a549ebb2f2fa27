"""The coordinates in which a solver runs where parts of the variables lie on spheres.

f is constant along the rays of these parts, so that y may have any norms: the step of a solver need not come
back to the sphere, and the norms choose the metric. `balance` takes those in which the curvatures of all
parts are alike, in which Newton's inner iteration needs some sqrt(n) times fewer products.

`rotate` keeps the row space of W and what the model needs beside it. What features have outside of it does
not enter the logits; a unit vector needs it for its length only, for which one common direction will do. The
start is exchanged for one with the same logits in these coordinates, in which a step costs (K+1)/d of what it
costs in R^d. Gradients there are those in R^d.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm._layers import class_means, row_space
from ufm._problem import Problem, Variables
from ufm.models import by_part
from ufm.solvers import Objective, OnSpheres, Solver, dot


class Rays(NamedTuple):
    """Coordinates y: the variables, with any norm along each ray."""

    problem: Problem
    Q: Array | None  # (d, m) orthonormal, None: the identity

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
        params = self.params(y)
        return params if self.Q is None else params._replace(W=params.W @ self.Q.T, H=self.Q @ params.H)


def basis(prob: Problem, params: Variables, solver: Solver) -> Array | None:
    """The directions of `rays_of`, computed by numpy, which spares the compiled program a factorisation."""
    if not _turns(prob, solver):
        return None
    W, H = np.asarray(params.W), np.asarray(params.H)
    return jax.device_put(_directions(prob, W, class_means(prob, H), np))


def rays_of(prob: Problem, params: Variables, solver: Solver, Q: Array | None = None) -> tuple[Rays, Any]:
    """The view of a problem and the start in it; `Q` is the `basis`, if it is known already."""
    problem = prob
    if _turns(prob, solver):
        Q = _directions(prob, params.W, prob.class_means(params.H).T, jnp) if Q is None else Q
        problem, params = prob.replace(d=Q.shape[1]), prob.model.within(params, Q)
    if solver.balance:
        params = jax.tree.map(jnp.multiply, params, problem.model.stretch(problem))
    return Rays(problem, Q), params


def _turns(prob: Problem, solver: Solver) -> bool:
    beside = prob.model.beside
    return beside is not None and solver.rotate and prob.d > prob.K + beside


def _directions(prob: Problem, W: Any, means: Any, xp: Any) -> Any:
    """(d, m): the row space of W and what the model needs beside it; `xp` as in `row_space`."""
    Q = row_space(W, means, xp)
    if prob.model.beside == 0:
        return Q
    farthest = xp.eye(prob.d, dtype=Q.dtype)[xp.argmin(xp.sum(Q * Q, axis=1))]
    across = farthest - Q @ (Q.T @ farthest)
    return xp.column_stack([Q, across / xp.sqrt(xp.sum(across * across))])
