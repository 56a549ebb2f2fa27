"""Strict saddles: the direction out of one, and the road down from saddle to saddle."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm import _checks
from ufm._figure import plot
from ufm._precision import in_float64
from ufm._problem import Params, Problem, Variables
from ufm._progress import Progress
from ufm._second_order import heights, steps_along
from ufm._solve import solve
from ufm.hessian import neurons
from ufm.hessian.certificate import Certificate
from ufm.hessian.inertia import Inertia
from ufm.hessian.point import Analysis
from ufm.hessian.product import check_critical, hvp
from ufm.hessian.spectrum import unused_vector
from ufm.hessian.structure import structure
from ufm.landscape._polish import polish
from ufm.solvers import Newton
from ufm.theory import _copositive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Escape(NamedTuple):
    """The steepest way out of a critical point, and the one of Theorem 2's proof."""

    direction: Params  # of norm 1: a numerical eigenvector of the smallest eigenvalue
    curvature: float  # D^2 f [direction, direction], measured by a Hessian-vector product
    eigenvalue: float  # the smallest, from the decomposition: equals the curvature
    where: str  # "unused features", "active features", "within a class"; H >= 0: "idle neurons"
    operator_norm: float  # |G|_op; H >= 0: max |G h| over h >= 0, |h| = 1.  Above lam unused features escape
    lam: float  # sqrt(lam_W lam_H)
    proof_direction: Params | None  # of norm 1; None where W and H use all feature directions
    proof_curvature: float  # measured; NaN without that direction
    proof_formula: float  # 2 (lam - |G|_op)/(sqrt(lam_H/lam_W) + sqrt(lam_W/lam_H))

    @property
    def strict(self) -> bool:
        """The critical point is a strict saddle."""
        return self.curvature < -1e-9 * max(self.lam, self.operator_norm)

    def __repr__(self) -> str:
        kind = "a strict saddle" if self.strict else "no strict saddle"
        proof = "" if self.proof_direction is None else f", the proof's {self.proof_curvature:.6e}"
        return f"Escape({kind}: curvature {self.curvature:.6e} ({self.where}){proof})"


@in_float64
def escape_direction(prob: Problem, params: Variables) -> Escape:
    """The direction of the smallest curvature at a critical point, and the explicit one of Theorem 2.

    With G = grad_Z g, G v = |G|_op u and a unit x with W x = 0 and x'H = 0 (it exists where rank W < d),

        dW = (lam_H/lam_W)^(1/4) u x',   dH = -(lam_W/lam_H)^(1/4) x v'
        D^2 f = -2 (|G|_op - lam),  |(dW, dH)|^2 = sqrt(lam_H/lam_W) + sqrt(lam_W/lam_H),

    and the best weights of the two give the smallest eigenvalue of these directions,
    A/2 - sqrt((lam_W - lam_H)^2/4 + |G|_op^2).  At a global minimum there is no way down: `strict` is False
    and the curvature that of a flat direction.

    Where H >= 0, idle neurons take the place of unused directions: features h >= 0 with |G h| > lam |h| and a
    column of W opposite to G h. Without an idle neuron it is the smallest curvature in the variables that are
    off their bounds.

    Raises:
        ValueError: not a critical point, a Hessian that is not finite there, or a wrong shape.

    Source: Zhou et al. 2022, Theorem 2 and its proof; Zhu et al. 2021; docs/theory.md, sections 4.2 to 4.4.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    >>> escape_direction(prob, prob.zeros())
    Escape(a strict saddle: curvature -1.618474e-01 (unused features), the proof's -1.533333e-01)
    """
    bounded = prob.model.two_factors and prob.model.constrained
    if not bounded:
        prob.need_free_factors("the escape from a saddle")
    params = prob.check_params(params)
    check_critical(prob, params)
    point = Analysis(prob, params)
    return _escape_under_bounds(point) if bounded else _escape(point)


def _escape(point: Analysis) -> Escape:
    prob, params, at = point.prob, point.params, point.structure
    value, direction, where = point.lowest
    lam, sigma = float(prob.lam), float(at.sigma[0])
    proof, proof_curvature, formula = None, float("nan"), float("nan")
    if at.unused:
        root = (at.lam_H / at.lam_W) ** 0.25
        size = float(np.hypot(root, 1 / root))
        proof = unused_vector(at, root / size, -1 / root / size)
        proof_curvature = _curvature(prob, params, proof)
        formula = 2 * (lam - sigma) / size**2
    measured = _curvature(prob, params, direction)
    return Escape(direction, measured, value, where, sigma, lam, proof, proof_curvature, formula)


def _escape_under_bounds(point: Analysis) -> Escape:
    prob, params = point.prob, point.params
    G = neurons.class_gradient(prob, params)
    sigma, lam, none = _copositive.largest(G)[0], float(prob.lam), float("nan")
    found = neurons.through_idle(prob, params, G, 1e-9 * lam)
    if found is None or not np.allclose(found[0].H, params.H, atol=neurons.IDLE):  # parallel neurons merged
        value, direction, where = point.lowest
        measured = _curvature(prob, params, direction)
        return Escape(direction, measured, value, where, sigma, lam, None, none, none)
    size = float(np.sqrt(sum(np.vdot(x, x) for x in found[1])))
    direction = Params(*(x / size for x in found[1]))
    measured = _curvature(prob, params, direction)
    return Escape(direction, measured, measured, "idle neurons", sigma, lam, direction, measured, none)


def _curvature(prob: Problem, params: Params, direction: Params) -> float:
    image = hvp(prob, params, direction)
    return float(sum(np.vdot(x, y) for x, y in zip(direction, image, strict=True)))


# --- the road down ------------------------------------------------------------------------------------


class Stop(NamedTuple):
    """A critical point on the road."""

    params: Params
    objective: float
    grad_norm: float
    inertia: Inertia
    curvature: float  # the smallest eigenvalue
    rank: int  # of W


class Descent(NamedTuple):
    """The critical points that one passes on the way down, each below the one before."""

    problem: Problem
    stops: tuple[Stop, ...]
    certificate: Certificate  # at the last
    climb: tuple[np.ndarray, ...]  # objective along each straight escape, for the plot

    @property
    def objectives(self) -> list[float]:
        """f at each stop."""
        return [stop.objective for stop in self.stops]

    @property
    def indices(self) -> list[int]:
        """The number of negative eigenvalues at each stop."""
        return [stop.inertia.neg for stop in self.stops]

    @property
    def params(self) -> Params:
        """The last stop."""
        return self.stops[-1].params

    def plot(self) -> Figure:
        """A matplotlib figure: objective along the road, with the index of every saddle."""
        return plot(self)

    def __repr__(self) -> str:
        lines = [f"{'stop':>4}{'objective':>20}{'index':>8}{'rank':>6}{'curvature':>13}{'|grad f|':>10}"]
        for i, at in enumerate(self.stops):
            numbers = f"{at.objective:>20.12f}{at.inertia.neg:>8}{at.rank:>6}{at.curvature:>13.3e}"
            lines.append(f"{i:>4}{numbers}{at.grad_norm:>10.1e}")
        return "\n".join([*lines, f"the last: {self.certificate.verdict} ({self.certificate.why})"])


@in_float64
def descend(
    prob: Problem,
    params: Variables,
    *,
    tol: float = 1e-10,
    max_stops: int = 1000,
    progress: bool | None = None,
) -> Descent:
    """From a critical point to a minimum, by escaping from one saddle to a lower one.

    Each escape follows the direction of smallest curvature downhill and then minimises f with the feature
    directions that W and H use by then. That subspace is invariant under gradients and Hessians: the unused
    coordinates stay exactly zero, and what is reached is a critical point of the full problem, a saddle as
    long as the rank is too small. From the origin one passes a saddle of every rank.

    Args:
        params: a critical point.
        tol: |grad f| at the stops.
        max_stops: at most that many.
        progress: True shows a bar, False does not, None shows one after two seconds if it is seen.

    Returns: a `Descent`; it ends where no eigenvalue is negative, and the certificate says whether globally.

    Raises:
        ValueError: not a critical point, a Hessian that is not finite there, a wrong shape, `tol` or
            `max_stops` out of range.
    """
    prob.need_free_factors("the descent from saddle to saddle")
    params = prob.check_params(params)
    tol = float(_checks.real("tol", tol, above=0.0))
    max_stops = _checks.integer("max_stops", max_stops, least=1)
    check_critical(prob, params)
    stops: list[Stop] = []
    climb: list[np.ndarray] = []
    point = Analysis(prob, params)
    with Progress("descend", min(prob.d, prob.K) + 1, progress) as bar:
        while True:
            escape = _escape(point)
            objective = float(prob(point.params))
            stops.append(
                Stop(
                    params=point.params,
                    objective=objective,
                    grad_norm=point.grad_norm,
                    inertia=point.inertia,
                    curvature=escape.eigenvalue,
                    rank=point.structure.r,
                )
            )
            bar.update(len(stops), f"objective {objective:.6g}, index {stops[-1].inertia.neg}")
            if not escape.strict or len(stops) == max_stops:
                break
            start, profile = _downhill(prob, point.params, escape.direction)
            reached = Analysis(prob, _minimise_within(prob, start, tol))
            # whatever goes wrong on the way ends it, and the certificate says what the last stop is
            if not (reached.critical and reached.finite and float(prob(reached.params)) < objective):
                break
            climb.append(profile)
            point = reached
    return Descent(prob, tuple(stops), point.certificate, tuple(climb))


def _downhill(prob: Problem, params: Params, direction: Params) -> tuple[Params, np.ndarray]:
    """The lowest point on the line through the saddle, on a geometric grid of both signs."""
    ts = steps_along(params)
    f = np.asarray(heights(prob, params, direction, jnp.asarray(ts)))
    t = ts[int(np.nanargmin(f))]
    return Params(*(x + t * y for x, y in zip(params, direction, strict=True))), np.stack([ts, f])


def _minimise_within(prob: Problem, params: Params, tol: float) -> Params:
    """A minimum of f among the points that use no other feature directions than this one."""
    at = structure(prob, params)
    pad = ((0, 0), (0, prob.d - at.r))
    collapsed = prob.columns > prob.K and at.M == prob.K
    small = prob.means() if collapsed else prob
    F = at.h[at.cluster]
    F = np.asarray(prob.class_means(jnp.asarray(F.T))).T if collapsed else F
    start = Params(jnp.asarray(np.pad(at.W, pad)), jnp.asarray(np.pad(F, pad).T), params.b)
    # in these coordinates: a rotation would put rounding into those that must stay zero
    sol = solve(small, start, solver=Newton(rotate=False), tol=tol, escape=False, progress=False)
    W, F = np.asarray(sol.W)[:, : at.r], np.asarray(sol.H)[: at.r].T
    F = F[np.asarray(prob.labels)] if collapsed else F
    reached = Params(jnp.asarray(W @ at.Q.T), jnp.asarray((F @ at.Q.T).T), sol.b)
    return polish(prob, reached).params  # to rounding: degenerate eigenvalues would split by what is left
