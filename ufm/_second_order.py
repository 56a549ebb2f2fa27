"""Second-order conditions where a solver stopped: is there a way down, and where does it lead.

With G the gradient of the mean loss in the logits (K, N), lam = sqrt(lam_W lam_H), and an orthonormal set of
feature directions x_i that W and H do not use (W x_i = 0, x_i'H = 0), the step

    dW = (lam_H/lam_W)^(1/4) sum_i u_i x_i',   dH = -(lam_W/lam_H)^(1/4) sum_i x_i v_i',

with G v_i = sigma_i u_i, changes f by t^2 sum_i (lam - sigma_i) + O(t^4): it leads down wherever
|G|_op > lam.  Conversely, where |G|_op <= lam and the loss is convex in the logits of every sample, the
Hessian is positive semidefinite, because both parts of

    D^2 f = (1/N) sum_j D^2 L_j [dz_j, dz_j] + (2 <G, dW dH> + lam_W |dW|^2 + lam_H |dH|^2)

are non-negative.

These two cheap tests decide almost every solution.  The rest needs the smallest eigenvalue of the Hessian.

Source: Zhou et al. 2022, Theorem 2 and its proof; Zhu et al. 2021, Theorem 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from ufm._layers import bases, layers_of
from ufm._problem import Params, Problem, Variables
from ufm.solvers import Newton, axpy, noise

#: curvature above -RELATIVE lam counts as zero: what float64 resolves of |G|_op - lam at a converged point
RELATIVE = 1e-6
#: a Hessian up to this size is factorised, which takes some milliseconds
FACTORISED = 600
#: f within this of a proved lower bound, relative to 1 + |f|, is at its minimum
NOTHING_BELOW = 1e-12
#: a step of this length off a strict saddle of unit vectors is still close to it
SHORT = 0.03


class Evidence(NamedTuple):
    """What the compiled solver measures at its last point for the two cheap tests."""

    gram: Float[Array, "*sweep K K"]  # G G'
    convex: Bool[Array, "*sweep"]  # the loss is convex in z at the logits of every sample

    def operator_norm(self) -> np.ndarray:
        """|G|_op, one value for each point of a batch."""
        gram = np.asarray(self.gram)
        finite = np.isfinite(gram).all(axis=(-2, -1))
        largest = np.linalg.eigvalsh(np.where(finite[..., None, None], gram, 0.0))[..., -1]
        return np.where(finite, np.sqrt(np.maximum(largest, 0.0)), np.nan)


def resolution(lam: ArrayLike, grad_norm: ArrayLike) -> np.ndarray:
    """How far below zero a curvature must be to count at a point where |grad f| = `grad_norm`.

    An approximate second-order point (Nesterov and Polyak 2006) has curvature of at least
    -sqrt(Lipschitz constant x gradient norm); the constant is of the order of lam here.
    """
    lam, grad_norm = np.asarray(lam), np.asarray(grad_norm)
    relative = max(RELATIVE, 1e3 * float(np.finfo(grad_norm.dtype).eps))
    return np.maximum(relative * lam, np.sqrt(grad_norm * lam))


def may_be_saddle(evidence: Evidence, lam: ArrayLike, grad_norm: ArrayLike) -> np.ndarray:
    """Where the cheap tests do not prove that the Hessian is positive semidefinite (within `resolution`)."""
    excess = evidence.operator_norm() - lam
    return ~np.asarray(evidence.convex) | (excess > resolution(lam, grad_norm))


def way_down(prob: Problem, params: Variables, grad_norm: ArrayLike) -> Variables | None:
    """A point below a strict saddle, reached along directions of negative curvature; None where none is.

    Unused feature directions are tried first, all the singular vectors of G with sigma_i > lam at once, so
    that several classes separate in one step; else the eigenvector of the Hessian's smallest eigenvalue.
    A direction counts only if f falls along it by more than rounding. Layers are examined in their narrow
    coordinates: at a critical point no direction outside of these has negative curvature.
    """
    if prob.model.layered:
        return _between_layers(prob, params, grad_norm)
    floor = float(resolution(prob.model.stiffness(prob), grad_norm))
    if prob.model.curved and _is_lowest(prob, params, floor):
        return None
    if prob.model.two_factors and not prob.model.bilinear:
        return _with_bounds(prob, params, floor)
    for find in (_through_unused, _lowest_eigenvector):
        direction = find(prob, params, floor)
        below = None if direction is None else _lowest(prob, params, direction)
        if below is not None:
            return below
    return None


def _is_lowest(prob: Problem, params: Variables, floor: float) -> bool:
    """Whether a bound that theory proves leaves less below f than a curvature of -floor gains in a step.

    That spares an eigenvector, which costs more than the solve.
    """
    from ufm import theory  # here, because it needs scipy, which `import ufm` does not

    try:
        bound = theory.lower_bound(prob)
    except theory.NoClosedForm:
        return False
    return bool(_value(prob, params) - bound <= SHORT**2 / 2 * floor + NOTHING_BELOW * (1 + abs(bound)))


@jax.jit
def _value(prob: Problem, params: Variables) -> Array:
    return prob(params)


def _between_layers(prob: Problem, params: Variables, grad_norm: ArrayLike) -> Variables | None:
    """`way_down` of a product of layers.

    For a convex loss the features of a class coincide at a critical point, and to part them costs: the class
    means suffice.
    """
    means = bool(prob.loss.convex)
    Q = bases(prob, params, Newton(), means)
    view, y = layers_of(prob, params, Newton(), means, Q)
    small, at = view.problem, view.params(y)
    floor = float(resolution(small.lam, grad_norm))
    if small.size <= FACTORISED and _curves_up(small, at, floor):
        return None
    direction = _lowest_eigenvector(small, at, floor)
    below = None if direction is None else _lowest(small, at, direction)
    return None if below is None else view.expanded(prob, view.coordinates(below), means)


def _curves_up(prob: Problem, params: Variables, floor: float) -> bool:
    """Whether no eigenvalue of the Hessian is below -`floor`."""
    from ufm.hessian.product import NotFinite  # here, because it needs scipy, as below
    from ufm.hessian.spectrum import exceeds

    try:
        return exceeds(prob, params, -floor)
    except NotFinite:
        return True


def _with_bounds(prob: Problem, params: Params, floor: float) -> Params | None:
    """`way_down` where H >= 0: through idle neurons, else along the variables that are off their bounds.

    A convex loss has its minimum where |G h| <= lam |h| for every h >= 0.
    """
    from ufm.hessian import neurons  # here, because they need scipy
    from ufm.theory import _copositive

    G = neurons.class_gradient(prob, params)
    if prob.loss.convex and _copositive.upper_bound(G) <= float(prob.lam) + floor:
        return None
    step = neurons.through_idle(prob, params, G, floor)
    below = None if step is None else _lowest(prob, *step)
    if below is not None or (prob.size <= FACTORISED and _curves_up(prob, params, floor)):
        return below
    direction = _lowest_eigenvector(prob, params, floor)
    return None if direction is None else _lowest(prob, params, direction)


@jax.jit
def _logit_gradient(prob: Problem, params: Variables) -> Array:
    return prob.logit_gradient(params)


def _through_unused(prob: Problem, params: Params, floor: float) -> Params | None:
    """The module's step for all sigma_i > lam that find an unused direction; None where there is none."""
    if not prob.decomposes:
        return None
    W, H = np.asarray(params.W), np.asarray(params.H)
    U, sigma, Vt = np.linalg.svd(np.asarray(_logit_gradient(prob, params)), full_matrices=False)
    X = _unused(W, H)
    m = min(int((sigma > float(prob.lam) + floor).sum()), X.shape[1])
    if m == 0:
        return None
    root = (float(prob.lam_H) / float(prob.lam_W)) ** 0.25
    weight = np.sqrt(sigma[:m] - float(prob.lam))
    dW = root * (U[:, :m] * weight) @ X[:, :m].T
    dH = -(X[:, :m] * weight) @ Vt[:m] / root
    return Params(jnp.asarray(dW), jnp.asarray(dH), jnp.zeros_like(params.b))


def _unused(W: np.ndarray, H: np.ndarray) -> np.ndarray:
    """(d, m): an orthonormal basis of the feature directions x with W x = 0 and x'H = 0, to rounding."""
    scale_W, scale_H = np.linalg.norm(W), np.linalg.norm(H)
    seen = W.T @ W / (scale_W**2 or 1.0) + H @ H.T / (scale_H**2 or 1.0)
    square, basis = np.linalg.eigh(seen)
    cut = 1e-12 if W.dtype == np.float64 else 1e-5  # squares: directions below 1e-6 (3e-3) of the norm
    return basis[:, square <= cut]


def _lowest_eigenvector(prob: Problem, params: Variables, floor: float) -> Variables | None:
    """A unit eigenvector of the Hessian's smallest eigenvalue if that is below -`floor`."""
    from ufm.hessian.point import Analysis  # here, because it needs scipy, which `import ufm` does not
    from ufm.hessian.product import NotFinite

    try:
        value, direction, _ = Analysis(prob, params).lowest
    except NotFinite:  # a loss without a second derivative here tells nothing about curvature
        return None
    return direction if value < -floor else None


@jax.jit
def heights(prob: Problem, params: Variables, direction: Variables, ts: Array) -> Array:
    """f at params + t direction for each t, or at the nearest point that the model allows."""

    def height(t: Array) -> Array:
        return prob(prob.model.retract(prob, axpy(t, direction, params)))

    return jax.lax.map(height, ts)


def steps_along(params: Variables) -> np.ndarray:
    """Step lengths of both signs on a geometric grid around zero, for a direction of norm 1."""
    size = 1.0 + float(np.sqrt(sum(np.vdot(x, x) for x in params)))
    grid = size * 2.0 ** -np.arange(0.0, 16.0, 0.5)
    return np.concatenate([-grid, [0.0], grid[::-1]])


def _lowest(prob: Problem, params: Variables, direction: Variables) -> Variables | None:
    """The lowest point of a geometric grid on the line, if it lies below `params` by more than rounding."""
    size = float(np.sqrt(sum(np.vdot(x, x) for x in direction)))
    dtype = params.b.dtype
    direction = jax.tree.map(lambda x: jnp.asarray(x, dtype) / size, direction)
    ts = steps_along(params)
    at = np.asarray(heights(prob, params, direction, jnp.asarray(ts, dtype)))
    lowest = int(np.nanargmin(at))
    here = at[ts == 0.0][0]
    if not at[lowest] < here - float(noise(jnp.asarray(here))):
        return None
    return prob.model.retract(prob, axpy(ts[lowest], direction, params))
