"""Certificates: how far a point is from the global minimum at most, whatever its rank, d or bias."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ufm import _checks, _compile
from ufm._precision import in_float64
from ufm._problem import Params, Problem, Variables
from ufm._pytree import pytree_dataclass, static
from ufm._sheet import finite
from ufm.hessian import dual, supports
from ufm.hessian.dual import Point
from ufm.hessian.product import norm


class Bounds(NamedTuple):
    """What a certificate measures: arrays only, so that `bounds` may be compiled and batched."""

    objective: Float[Array, "*batch"]  # f at the point
    gap: Float[Array, "*batch"]  # >= f - f*
    linear_gap: Float[Array, "*batch"]  # the same from Cert A alone
    operator_norm: Float[Array, "*batch"]  # |G|_op
    lam: Float[Array, "*batch"]  # sqrt(lam_W lam_H)
    grad_norm: Float[Array, "*batch"]  # |grad f|, over W, H and b together
    curvature: Float[Array, "*batch"]  # v' (Hess f) v of the unit escape direction v
    rounding: Float[Array, "*batch"]  # what rounding may add to f - f*
    dual: Bool[Array, "*batch"]  # the gap comes from the dual, not from the loss's infimum


@pytree_dataclass
class Certificate:
    """How far a point is from the global minimum, at most, and why.

    `gap` >= f - f* at any point, critical or not, up to `rounding`: a bound on what floating point may
    hide (the dual point exists exactly within that of the one computed). `gap` itself is never negative.

    Verdicts:
        "global minimum": gap + rounding <= tol (1 + |f|).
        "not global: strict saddle direction": a critical point with |G|_op > lam and an explicit direction
            of negative curvature, found through a null vector of W.
        "not certified": neither; `why` says what is missing.
    """

    gap: Any  # >= f - f*
    lower_bound: Any  # f - gap <= f*
    objective: Any  # f
    operator_norm: Any  # |G|_op, G = grad_Z g (K, N); <= lam at every minimiser with rank W < d.
    #                     H >= 0: a bound on max |G h| over h >= 0, |h| = 1
    lam: Any  # sqrt(lam_W lam_H)
    grad_norm: Any
    curvature: Any  # of the escape direction; at a critical point with rank W < d: the Hessian's smallest
    rounding: Any
    tol: Any
    verdict: str = static()
    method: str = static()  # where the lower bound comes from
    why: str = static()

    @property
    def is_global(self) -> bool:
        """Whether the verdict is "global minimum"."""
        return self.verdict == GLOBAL

    def brief(self) -> str:
        """The verdict and the bound in a line."""
        return f"{self.verdict}, f - f* <= {float(self.gap):.1e}"

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON."""
        return {
            "verdict": self.verdict,
            "gap": finite(self.gap),
            "lower_bound": finite(self.lower_bound),
            "method": self.method,
            "why": self.why,
        }

    def __repr__(self) -> str:
        if not isinstance(self.gap, float):  # JAX rebuilds records around tracers and placeholders
            return f"Certificate: {self.verdict} (gap {self.gap})"
        sign = "<=" if self.operator_norm <= self.lam else ">" if self.operator_norm > self.lam else "against"
        name = "max |G h|  " if self.method == _NON_NEGATIVE else "|G|_op     "
        return "\n".join(
            (
                f"Certificate: {self.verdict}",
                f"  f - f*      <= {self.gap:.3e}  (rounding {self.rounding:.0e})",
                f"  f           =  {self.objective:.15g}",
                f"  f*          >= {self.lower_bound:.15g}",
                f"  {name} =  {self.operator_norm:.9e} {sign} lam = {self.lam:.9e}",
                f"  |grad f|    =  {self.grad_norm:.3e}",
                f"  lower bound :  {self.method}",
                f"  why         :  {self.why}",
            )
        )


GLOBAL = "global minimum"
SADDLE = "not global: strict saddle direction"
OPEN = "not certified"


@in_float64
def certificate(prob: Problem, params: Params, *, tol: float = 1e-10) -> Certificate:
    """Bound f(params) - f* rigorously, at any point, and say whether the point is a global minimum.

    Convex losses: the Fenchel dual at a point made from the gradient G = grad_Z g, scaled (Cert A, a gap of
    order |grad f|) or with its singular values clipped to lam (Cert B, of order |grad f|^2), the better of
    the two.  Valid for every d; it closes where an optimum of full rank fits, d >= K - 1 (d >= K for losses
    that are not shift-invariant).  Below, `theory.rank_lower_bound` takes its place where it is better: it
    closes for MSE with kappa = 1, and is nearer for cross-entropy and label smoothing.  H >= 0: Cert A of the
    dual over |Y h| <= lam |h| for h >= 0, by all supports of h for K <= 12, else by an eigenvalue bound.  A
    given classifier: strong convexity, or the dual of the problem in (H, b), of order |grad f|^2 for every d.
    Focal loss: the scalar bound `theory.focal_lower_bound`.  A deep classifier: the lower bound of
    `theory.global_optimum`.  Any other loss: f - `loss.infimum`.

    Args:
        prob: the problem.
        params: W (K, d), H (d, N), b (K,); evaluated in float64 where JAX has it enabled.
        tol: the verdict "global minimum" needs gap + rounding <= tol (1 + |f|).  The default 1e-10 is what
            a bound quadratic in |grad f| reaches at 1e-5, far above rounding (1e-13 at K = 100).

    Raises:
        ValueError: params of a wrong shape, an integer dtype or a value that is not finite; tol <= 0.

    Source: docs/theory.md, section 5.1, the Fenchel dual of the nuclear-norm problem; for small d section
    5.4; for a given classifier section 6.1.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=3, d=4, n=2)
    >>> ufm.landscape.certificate(prob, prob.zeros()).verdict
    'not global: strict saddle direction'
    """
    prob, params = prob.expanded(prob.check_params(params))
    tol = float(_checks.real("tol", tol, above=0.0))
    measure = _compiled_quickly if prob.K * prob.N <= _SMALL else _compiled
    found = Bounds(*(x.item() for x in jax.device_get(measure(*_as_leaves((prob, params))))))
    gap, method, why = _lower_bound(prob, found)
    if method == _DUAL and prob.model.constrained:
        gap, method, why = _under_bounds(prob, params, found, gap, tol)
    verdict, why = _verdict(prob, found, gap, tol, why)
    return Certificate(
        gap=gap,
        lower_bound=found.objective - gap if gap < math.inf else prob.loss.infimum,
        objective=found.objective,
        operator_norm=found.operator_norm,
        lam=found.lam,
        grad_norm=found.grad_norm,
        curvature=found.curvature,
        rounding=found.rounding,
        tol=tol,
        verdict=verdict,
        method=method,
        why=why,
    )


def bounds(prob: Problem, params: Params) -> Bounds:
    """The numbers of a certificate, as a pure function: fit for jit, and for vmap over starts or penalties.

    `gap` >= f - f* at any point.  Convex losses only use the dual; for others gap = f - `loss.infimum`.

    >>> import jax, ufm
    >>> prob = ufm.Problem.balanced("ce", K=3, d=4, n=2)
    >>> starts = jax.vmap(lambda seed: ufm.init(prob, seed=seed))(jax.numpy.arange(5))
    >>> jax.vmap(ufm.landscape.bounds, in_axes=(None, 0))(prob, starts).gap.shape
    (5,)
    """
    if not prob.model.two_factors:
        return _generic_bounds(prob, params)
    point = dual.evaluate(prob, params)
    gap = linear_gap = trivial = point.objective - prob.loss.infimum
    if prob.loss.convex:
        dual_gap, linear_gap = dual.gaps(prob, point)
        gap = jnp.where(dual_gap < trivial, dual_gap, trivial)  # also where the dual gap is not finite
        linear_gap = jnp.where(linear_gap < trivial, linear_gap, trivial)
    top, left = _top_singular(point.slope)
    operator_norm = top / prob.N
    curvature = jnp.full_like(top, jnp.nan)
    if prob.model.bilinear:
        curvature = _escape_curvature(prob, point, operator_norm, left)
    else:
        operator_norm = dual.dual_norm(prob, point, dual.dual_starts(prob, point)[0])
    gradient = jax.tree.map(jnp.add, *prob.gradients(params, point.slope.T / prob.N))
    return Bounds(
        objective=point.objective,
        gap=gap,
        linear_gap=linear_gap,
        operator_norm=operator_norm,
        lam=jnp.asarray(prob.lam, point.objective.dtype),
        grad_norm=norm(prob.unbound(params, gradient)),
        curvature=curvature,
        rounding=_rounding(prob, point),
        dual=gap < trivial,
    )


def _generic_bounds(prob: Problem, params: Variables) -> Bounds:
    """For another model: the dual where f is convex; the loss is at least its infimum, the penalty zero."""
    objective, gradient = jax.value_and_grad(prob)(params)
    G, logits = prob.logit_gradient(params), prob.logits(params)
    gap = trivial = objective - prob.loss.infimum
    if prob.model.convex and prob.loss.convex and prob.samples is None:
        dual_gap = dual.gap_of_features(prob, prob.model.effective(prob, params))
        gap = jnp.where(dual_gap < trivial, dual_gap, trivial)
    size = jnp.abs(objective) + jnp.sum(jnp.linalg.norm(G, axis=0) * jnp.linalg.norm(logits, axis=0))
    return Bounds(
        objective=objective,
        gap=gap,
        linear_gap=trivial,
        operator_norm=jnp.linalg.norm(G, 2),
        lam=jnp.asarray(prob.lam, objective.dtype),
        grad_norm=norm(prob.unbound(params, gradient)),
        curvature=jnp.full_like(objective, jnp.nan),
        rounding=4 * prob.K * float(np.finfo(objective.dtype).eps) * size,
        dual=gap < trivial,
    )


_compiled = jax.jit(lambda prob, params: bounds(prob, params))  # its own name: doctests run once
# Without LLVM's optimisation the compilation takes half the time (K=10: 0.8 instead of 1.7 s on a busy core),
# which a small problem never earns back: it runs in 0.4 instead of 0.3 ms.
_compiled_quickly = _compile.jit(bounds, options=_compile.INSTANT)
_SMALL = 20_000  # logits


def _as_leaves(tree: Any) -> Any:
    """Leaves of one float type (float64 where enabled): a Python number would compile again."""
    real = jnp.result_type(float)

    def leaf(x: Any) -> Any:
        if np.ndim(x) == 0:
            return np.asarray(x, real)  # also a JAX scalar, which may be weakly typed
        return x if x.dtype == real or np.issubdtype(x.dtype, np.integer) else x.astype(real)

    return jax.tree.map(leaf, tree)


# --- what else is measured at the point -----------------------------------------------------------


def _top_singular(slope: Array) -> tuple[Array, Array]:
    """Largest singular value of `slope` (N, K) and its vector in R^K."""
    values, vectors = jnp.linalg.eigh(slope.T @ slope)
    return jnp.sqrt(jnp.maximum(values[-1], 0.0)), vectors[:, -1]


def _rounding(prob: Problem, point: Point) -> Array:
    """Backward error of the K x K factorisations, 4 K eps in the dual point, times what it multiplies."""
    size = jnp.abs(point.objective)
    size += jnp.mean(jnp.linalg.norm(point.slope, axis=1) * jnp.linalg.norm(point.logits, axis=1))
    return 4 * prob.K * float(np.finfo(point.objective.dtype).eps) * size


def _escape_curvature(prob: Problem, point: Point, operator_norm: Array, left: Array) -> Array:
    """v' (Hess f) v, v = (alpha u x', -beta x r') of norm 1; u, r: the top singular pair of G, W x = 0.

    At a critical point with rank W < d also x'H = 0 and the value is
    (lam_W + lam_H)/2 - sqrt(((lam_W - lam_H)/2)^2 + |G|_op^2): negative exactly where |G|_op > lam, and
    for convex losses the smallest eigenvalue of the Hessian. Computed with the second derivative of the
    loss, so it holds at every point.
    """
    wide = min(point.W.shape[1], prob.K + 1)  # K + 1 coordinates of R^d always hold a null vector of W
    head = point.W[:, :wide]
    x = jnp.linalg.eigh(head.T @ head)[1][:, 0]
    right = point.slope @ left / (prob.N * jnp.where(operator_norm > 0, operator_norm, 1.0))
    half = (prob.lam_W - prob.lam_H) / 2
    alpha, beta = operator_norm, half + jnp.hypot(half, operator_norm)
    step = alpha * jnp.outer(point.features[:, :wide] @ x, left) - beta * jnp.outer(right, head @ x)
    grad = jax.vmap(jax.grad(prob.loss))
    bend = jax.jvp(lambda z: grad(z, prob.labels), (point.logits,), (step,))[1]
    form = prob.lam_W * alpha**2 + prob.lam_H * beta**2 - 2 * alpha * beta * operator_norm
    form += jnp.vdot(step, bend) / prob.N
    norm = alpha**2 + beta**2
    return form / jnp.where(norm > 0, norm, 1.0)


# --- the verdict ----------------------------------------------------------------------------------

_DUAL = "Fenchel dual of the nuclear-norm problem"
_NON_NEGATIVE = "Fenchel dual over |Y h| <= lam |h| for h >= 0"
_CONVEX = "Fenchel dual of the problem in features and bias"


def _lower_bound(prob: Problem, found: Bounds) -> tuple[float, str, str]:
    """The gap, where its lower bound comes from, and why there is no better one."""
    loss, infimum = prob.loss, "infimum of the loss"
    if not math.isfinite(found.objective):
        return math.inf, infimum, "the objective overflows"
    if found.gap < -found.rounding:
        raise ValueError(
            f"loss: the objective {found.objective!r} is below infimum={loss.infimum!r}, which {loss!r} "
            "declares as a lower bound; pass the true one to ufm.losses.custom(..., infimum=...)"
        )
    gap = max(float(found.gap), 0.0)
    if not prob.model.bilinear and not (prob.model.two_factors and loss.convex and found.dual):
        return (gap, _CONVEX, "") if found.dual else _of_theory(prob, found, gap)
    if loss.convex:
        return (gap, _DUAL, "") if prob.model.constrained else _of_rank(prob, found, gap)
    if not loss.has_lower_bound:
        return gap, infimum, "the loss is not declared convex: no bound but its infimum"
    from ufm import theory

    try:
        bound = float(theory.focal_lower_bound(prob))
    except theory.NoClosedForm as error:
        return gap, infimum, f"no closed-form bound ({error})"
    if found.objective < bound - found.rounding:
        raise RuntimeError(
            f"the objective {found.objective!r} is below the proved lower bound {bound!r} of {loss.title}; "
            "this contradicts the theorem: please report it with the problem and the params"
        )
    scalar = max(float(found.objective) - bound, 0.0)
    C = (prob.K - 1) * math.sqrt(prob.N / prob.K) * found.lam
    why = "the bound is not known to be attained with a bias and C > 1" if prob.bias and C > 1 else ""
    return min(gap, scalar), f"scalar lower bound of {loss.title}", why


def _under_bounds(
    prob: Problem, params: Params, found: Bounds, gap: float, tol: float
) -> tuple[float, str, str]:
    """Where H >= 0 and the simple bound is not tight: the dual with the exact norm, and theory."""
    if gap > tol * (1 + abs(found.objective)) and prob.loss.has_conjugate:
        gap = min(gap, supports.gap(prob, params))
    if gap <= tol * (1 + abs(found.objective)):
        return gap, _NON_NEGATIVE, ""
    above, method, why = _of_theory(prob, found, gap)
    return (above, method, why) if above < gap else (gap, _NON_NEGATIVE, "")


def _of_rank(prob: Problem, found: Bounds, gap: float) -> tuple[float, str, str]:
    """For a convex loss: the dual bound, or where d is small the one that knows the rank, if it is better."""
    from ufm import theory

    how = "" if prob.loss.has_conjugate else ", at gradients of the loss (it carries no conjugate)"
    best, why = (_DUAL + how, "") if found.dual else ("infimum of the loss", _NO_BETTER)
    if prob.d >= prob.full_rank:
        return gap, best, why
    try:
        above = float(found.objective) - theory.rank_lower_bound(prob)
    except theory.NoClosedForm:
        return gap, best, why
    return (max(above, 0.0), f"lower bound at rank <= {prob.d}", "") if above < gap else (gap, best, why)


_NO_BETTER = "the dual bound is no better than the loss's infimum at this point"


def _of_theory(prob: Problem, found: Bounds, gap: float) -> tuple[float, str, str]:
    """What `_lower_bound` says of another model, from the bound that theory proves for it."""
    from ufm import theory

    try:
        bound = theory.lower_bound(prob)
    except theory.NoClosedForm as error:
        return gap, "infimum of the loss", f"{_no_dual(prob)} ({error})"
    above = float(found.objective) - bound
    if above < -found.rounding - 1e-12 * abs(bound):
        raise RuntimeError(
            f"the objective {found.objective!r} is below the proved lower bound {bound!r} of the "
            f"model {prob.model!r}; please report it with the problem and the params"
        )
    return min(gap, max(above, 0.0)), "theory.lower_bound", _nothing_proved(bound)


def _nothing_proved(bound: float) -> str:
    return f"no point is below {bound:.15g}; between the two nothing is proved"


def _no_dual(prob: Problem) -> str:
    """Why a model has no better bound than the loss's infimum."""
    if not prob.model.convex:
        return f"no better bound is known for the model {prob.model!r}"
    if not prob.loss.convex:
        return "the loss is not declared convex: no bound but its infimum"
    why = "the dual bound is no better than the loss's infimum at this point"
    if not prob.bias or prob.lam_b > 0 or prob.loss.has_conjugate:
        return why
    return f"{why}: with lam_b = 0 and a loss without a conjugate it needs grad_b f = 0 to rounding"


def _verdict(prob: Problem, found: Bounds, gap: float, tol: float, why: str) -> tuple[str, str]:
    """The verdict and its reason."""
    allowed = tol * (1 + abs(found.objective))
    if gap + found.rounding <= allowed:
        return GLOBAL, f"gap + rounding <= {tol:g} (1 + |f|)"
    # a thousandth: the point is then within about 1e-3 of the saddle (|grad f| = |curvature| distance)
    critical = found.grad_norm <= 1e-3 * abs(found.curvature)
    excess = found.operator_norm > found.lam * (1 + 1e-6)
    if critical and excess and found.curvature < -1e-6 * found.lam:
        return SADDLE, (
            f"|G|_op > lam at a critical point (|grad f| = {found.grad_norm:.1e}) and rank W < d: "
            f"curvature {found.curvature:.3e} along a null vector of W"
        )
    reasons = [f"gap {gap:.1e}, not below {tol:g} (1 + |f|)", f"|grad f| = {found.grad_norm:.1e}"]
    full = prob.full_rank
    if prob.d < full and prob.model.bilinear:
        reasons.append(f"d = {prob.d} < {full}: the bound holds, but is not known to be attained")
    if found.rounding > allowed:
        reasons.append(f"rounding {found.rounding:.1e} alone exceeds that")
    if not math.isfinite(found.grad_norm) and math.isfinite(found.objective):
        reasons.append(f"{prob.loss!r} has no finite gradient here")
    elif prob.model.bilinear and not math.isfinite(found.curvature) and math.isfinite(found.objective):
        reasons.append(f"{prob.loss!r} has no finite second derivative here")
    if why:
        reasons.append(why)
    return OPEN, "; ".join(reasons)
