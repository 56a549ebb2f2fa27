"""The coordinates in which a solver runs.

A *view* of a problem changes only the coordinates: features are columns
f_j = sqrt(samples_j) Q'h_j / stretch, and W is stretch W Q.

`balance` chooses the stretch so that both blocks carry the penalty sqrt(lam_W lam_H): L-BFGS then needs a
fifth of the steps, Newton half. `rotate` keeps min(d, K) feature dimensions. Feature components orthogonal to
the rows of W incur only the penalty, so they vanish at the optimum, and gradients and Hessians leave the row
space of W invariant; in coordinates of that space a step costs K/d of what it costs in R^d, for any loss.
`reduced` solves the problem of the class means. Layers have coordinates of the same kind (`_layers`), unit
vectors those of their rays (`_rays`); other models run in their own variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _derivatives, _layers, _rays, solvers
from ufm._layers import Layers, class_means, row_space
from ufm._problem import Params, Problem, Variables
from ufm._rays import Rays
from ufm.models import unbound
from ufm.solvers import Bounded, Objective, Point, Solver, WithDerivatives, dot

#: a start with larger logits is scaled down: exp(-100) leaves nothing of a gradient or a curvature
SATURATED = 100.0


class View(NamedTuple):
    """Coordinates y in which a solver runs; see the module's docstring."""

    problem: Problem  # with fewer feature dimensions and other penalties; its variables are `params(y)`
    root: Array | None  # (columns,) square root of the samples of each column, None: ones
    stretch: Array | None  # W = y_W Q' / stretch and F = stretch Q y_F, None: y is the model's own variables
    Q: Array | None  # (d, K) orthonormal, None: the identity

    def params(self, y: Any) -> Variables:
        """The variables of `problem`."""
        if self.stretch is None:
            return y
        W, F, b = y
        F = F if self.root is None else F / self.root
        return Params(W, F, jnp.zeros(len(W), W.dtype) if b is None else b)

    def value(self, y: Any) -> Array:
        """f."""
        return self.problem(self.params(y))

    @property
    def objective(self) -> Objective:
        """f(y), with its derivatives where they are written out, and the bounds of y where there are any."""
        f: Objective = self.value
        if self.problem.model.two_factors:
            f = WithDerivatives(f, self.value_and_gradient, self.product)
        return f if self.lower is None else Bounded(f, self.lower)

    def value_and_gradient(self, y: Any) -> tuple[Array, Any]:
        """f and its gradient in y."""
        f, gradient = _derivatives.value_and_gradient(self.problem, self.params(y))
        return f, self._pulled_back(gradient)

    def product(self, y: Any) -> Callable[[Any], Any]:
        """The map v -> Hess f v in the coordinates y, in which the variables are linear."""
        product = _derivatives.curvature(self.problem, self.params(y))
        return lambda v: self._pulled_back(product(self.params(v)))

    def _pulled_back(self, gradient: Params) -> Any:
        """The transpose of `params`."""
        W, H, b = gradient
        return W, H if self.root is None else H / self.root, b if self.problem.bias else None

    @property
    def lower(self) -> Any:
        """The bounds of y, None where there are none; 0 and -inf are the same in every scale."""
        lower = self.problem.model.lower(self.problem)
        if lower is None or self.stretch is None:
            return lower
        W, F, b = lower
        return W, F, b if self.problem.bias else None

    def residual(self, y: Any, g: Any) -> Array:
        """|grad f| in the variables of the problem as it was given, from the gradient g at y.

        Where variables have bounds it is the norm of what they do not hold back of the gradient.
        """
        if self.lower is not None:
            return self._unbound(y, g)
        if self.stretch is None:
            return jnp.sqrt(dot(g, g))
        W, F, b = g
        square = self.stretch**2 * jnp.sum(W * W) + jnp.sum(F * F) / self.stretch**2
        return jnp.sqrt(square if b is None else square + jnp.sum(b * b))

    def _unbound(self, y: Any, g: Any) -> Array:
        if self.stretch is not None:
            (W, F, b), (dW, dF, db) = y, g
            y, g = (W / self.stretch, F * self.stretch, b), (dW * self.stretch, dF / self.stretch, db)
        held = unbound(y, g, self.lower)
        return jnp.sqrt(dot(held, held))


#: what the loop runs in
AnyView: TypeAlias = View | Layers | Rays


def first_point(view: AnyView, y: Any) -> Point:
    """The start; with logits above `SATURATED` it is shrunk along its ray, if that lowers the objective.

    Where every softmax is saturated, gradients and Hessians say nothing of the loss: Newton's step leads to
    the origin, and a trust region that follows a piecewise linear loss takes hundreds of steps.
    """
    if not view.problem.model.two_factors:
        return solvers.evaluate(view.objective, y)
    largest = jnp.max(jnp.abs(view.problem.logits(view.params(y))))
    t = jnp.sqrt(SATURATED / jnp.maximum(largest, SATURATED))

    def attempt(state: tuple[Array, Point]) -> tuple[Array, Point]:
        i, best = state
        r = jnp.where(i == 0, 1.0, t).astype(t.dtype)
        W, F, b = y
        at = solvers.evaluate(view.objective, (r * W, r * F, None if b is None else r**2 * b))
        better = (i == 0) | (at.f < best.f)
        return i + 1, jax.tree.map(lambda new, old: jnp.where(better, new, old), at, best)

    # a loop, so that the objective is compiled once for both attempts
    tries = jnp.where(largest > SATURATED, 2, 1)
    nothing = (jnp.asarray(0), Point(y, jnp.zeros_like(t), y))
    return jax.lax.while_loop(lambda state: state[0] < tries, attempt, nothing)[1]


def turns(prob: Problem, solver: Solver, reduced: bool) -> bool:
    """Whether a solver runs in fewer feature dimensions than the problem has."""
    return prob.model.bilinear and prob.model.isotropic and (solver.rotate or reduced) and prob.d > prob.K


def basis(prob: Problem, params: Variables, solver: Solver, reduced: bool) -> Any:
    """The feature directions of `view_of`, computed by numpy; None where a solver runs in all of them.

    On a CPU this spares the compiled program two factorisations, which double what its first run takes.
    """
    if prob.model.layered:
        return _layers.bases(prob, params, solver, reduced)
    if prob.model.curved:
        return _rays.basis(prob, params, solver)
    if not turns(prob, solver, reduced):
        return None
    W, H = np.asarray(params.W), np.asarray(params.H)
    return jax.device_put(row_space(W, class_means(prob, H), np))


def traced_basis(prob: Problem, params: Variables, solver: Solver, reduced: bool) -> Array | None:
    """The same within a program, where problems that differ in penalties share a start."""
    if not turns(prob, solver, reduced):
        return None
    return jnp.asarray(row_space(params.W, prob.class_means(params.H).T, jnp))


def view_of(
    prob: Problem, params: Variables, solver: Solver, reduced: bool, Q: Any = None
) -> tuple[AnyView, Any]:
    """The view of a problem and the start in it; `Q` is the `basis`, if it is known already."""
    if prob.model.layered:
        return _layers.layers_of(prob, params, solver, reduced, Q)
    if prob.model.curved:
        return _rays.rays_of(prob, params, solver, Q)
    if not prob.model.two_factors:
        return View(prob, None, None, None), params
    base, H = (prob.means(), prob.class_means(params.H)) if reduced else (prob, params.H)
    dtype = params.W.dtype
    lam_W, lam_H, lam_b = (jnp.asarray(x, dtype) for x in (prob.lam_W, prob.lam_H, prob.lam_b))
    stretch = (lam_W / lam_H) ** 0.25 if solver.balance else jnp.ones((), dtype)
    root = None if base.samples is None else jnp.sqrt(base.samples).astype(dtype)
    W, F, b = params.W * stretch, H / stretch, params.b if prob.bias else None
    F = F if root is None else root * F
    if turns(prob, solver, reduced):
        Q = row_space(W, prob.class_means(params.H).T, jnp) if Q is None else Q
        W, F = W @ Q, Q.T @ F
    penalties = {"lam_W": lam_W / stretch**2, "lam_H": lam_H * stretch**2, "lam_b": lam_b}
    problem = base.replace(d=W.shape[1], **penalties)
    return View(problem, root, stretch, Q), (W, F, b)


def expanded(prob: Problem, view: AnyView, y: Any, reduced: bool) -> Variables:
    """The variables of the problem as it was given."""
    if not isinstance(view, View):
        return view.expanded(prob, y, reduced)
    params = view.params(y)
    if view.stretch is None:
        return params
    W, H, b = params
    W, H = W / view.stretch, H * view.stretch
    if view.Q is not None:
        W, H = W @ view.Q.T, view.Q @ H
    return Params(W, H[:, prob.labels] if reduced else H, b)
