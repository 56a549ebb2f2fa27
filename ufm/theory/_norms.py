"""The optimum of the layer-peeled model: |W|^2 <= K E_W and |H|^2 <= N E_H in place of penalties.

Logits Z = W H are feasible exactly where ||Z||_* <= r = sqrt(K E_W N E_H). For equal counts and a convex
profile l the bound of unit vectors holds with s = sqrt(E_W E_H): the norms need not be fixed one by one. For
any counts and convex loss the program in Z is convex, and by duality

    f* = max over lam >= 0 of  (min of the penalised problem at lam) - lam r,

which is attained where the penalised minimiser has ||Z||_* = r: then it is the minimiser here, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._sheet import printed
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.losses._profile import ScalarProfile
from ufm.models import Free, NormConstrained
from ufm.models._fixed import simplex
from ufm.models._norms import Bounded
from ufm.theory import optima
from ufm.theory._setting import any_counts, need_rank
from ufm.theory._spheres import averaged_profile, of_margin
from ufm.theory.optima import BOUNDS_OF_MODELS, OF_MODELS, Optimum
from ufm.theory.profiles import falls_to

#: relative accuracy of the penalty that unequal counts amount to
_ACCURACY = 1e-14


def optimum(prob: Problem) -> Optimum:
    """The global minimum and its minimiser.

    Raises:
        NoClosedForm: d below the rank of the optimum; equal counts: a loss that tells classes apart, feels a
            common shift or lacks the averaging property; unequal counts: as for two free factors.

    Source: docs/theory.md, section 6.5.
    """
    s, model = any_counts(prob), prob.model
    assert isinstance(model, NormConstrained)
    if _needs_dual(prob, s):
        best, lam = _dual(prob)
        return _of_penalised(prob, best, lam)
    profile, reach = averaged_profile(s), _reach(s, model)
    a = falls_to(profile, reach)
    need_rank(s, s.K - 1, "simplex ETF")
    share, unit = a / reach, math.sqrt(s.K / (s.K - 1)) * simplex(s.K, s.d)
    W = math.sqrt(share * float(model.E_W)) * unit
    H = math.sqrt(share * float(model.E_H)) * unit.T[:, s.labels]
    inside = "" if a == reach else ", inside the bounds"
    return of_margin(s, profile, a, "simplex ETF" + inside, _point(prob, W, H, np.zeros(s.K)))


def bound(prob: Problem) -> float:
    """What no factors within the bounds reach less than, for every d.

    Raises:
        NoClosedForm: as `optimum`, but not for the sake of d.

    Source: docs/theory.md, section 6.5.
    """
    s, model = any_counts(prob), prob.model
    assert isinstance(model, NormConstrained)
    if _needs_dual(prob, s):
        best, lam = _dual(prob)
        return best.lower_bound - lam * _radius(prob)
    profile = averaged_profile(s)
    a = falls_to(profile, _reach(s, model))
    return of_margin(s, profile, a, "", None).lower_bound


def _reach(s: Setting, model: NormConstrained) -> float:
    """The margin of the simplex ETF on both bounds."""
    return math.sqrt(float(model.E_W) * float(model.E_H)) * s.K / (s.K - 1)


def _radius(prob: Problem) -> float:
    """sqrt(K E_W N E_H), the nuclear norm of Z at most."""
    assert isinstance(prob.model, NormConstrained)
    return math.sqrt(prob.K * float(prob.model.E_W) * prob.N * float(prob.model.E_H))


def _point(prob: Problem, W: np.ndarray, H: np.ndarray, b: np.ndarray) -> Bounded:
    """The point with its slack."""
    model = prob.model
    assert isinstance(model, NormConstrained)
    whole = np.array([prob.K * float(model.E_W), prob.N * float(model.E_H)])
    left = whole - [np.sum(W**2), np.sum(H**2)]
    slack = np.sqrt(np.where(left > 1e-13 * whole, left, 0.0))  # the root of a rounding would be no zero
    return Bounded(*(jnp.asarray(x) for x in (W, H, slack, b)))


# --- through the penalised problem ----------------------------------------------------------------


def _needs_dual(prob: Problem, s: Setting) -> bool:
    """Unequal counts, or a convex loss that is no function of differences of logits."""
    return prob.n is None or (s.loss.convex and not s.loss.shift_invariant)


def _penalised(prob: Problem, lam: float) -> Problem:
    """Two free factors with lam_W = lam_H = lam, in a space that holds every optimum."""
    return prob.replace(model=Free(), d=max(prob.d, prob.K), lam_W=lam, lam_H=lam)


def _dual(prob: Problem) -> tuple[Optimum, float]:
    """The penalised optimum with ||Z||_* = r, and its penalty.

    At its minimiser lam_W |W|^2 = lam_H |H|^2 = lam ||Z||_*; the norm falls as lam rises, to zero where the
    optimum is trivial.

    Raises:
        NoClosedForm: as `global_optimum` for unequal counts; no penalty of normal size makes the norms equal.
    """
    radius = _radius(prob)

    def excess(log_lam: float) -> float:
        lam = math.exp(log_lam)
        return float(np.sum(np.square(_best(prob, lam).params.W))) / radius - 1

    low = high = math.log(1e-12)
    if excess(low) < 0:
        raise NoClosedForm(
            f"E_W, E_H: the bounds allow ||W H||_* = {radius:.6g}, which no penalised optimum with "
            "sqrt(lam_W lam_H) >= 1e-12 has; take smaller bounds, or ufm.solve"
        )
    while excess(high) > 0:
        low, high = high, high + math.log(100.0)
    lam = math.exp(brentq(excess, low, high, xtol=_ACCURACY, rtol=_ACCURACY))
    return _best(prob, lam), lam


def _best(prob: Problem, lam: float) -> Optimum:
    return optima.global_optimum(_penalised(prob, lam))


def _of_penalised(prob: Problem, best: Optimum, lam: float) -> Optimum:
    """The penalised minimiser, scaled to the bounds; below the true radius by the rounding of lam."""
    need_rank(any_counts(prob), best.rank, best.structure)
    model = prob.model
    assert isinstance(model, NormConstrained)
    W, H = (np.asarray(x) for x in best.params[:2])
    W, H = W[:, : prob.d] if W.shape[1] > prob.d else W, H[: prob.d]
    W = W * math.sqrt(prob.K * float(model.E_W) / np.sum(W**2))
    H = H * math.sqrt(prob.N * float(model.E_H) / np.sum(H**2))
    point = _point(prob, W, H, best.b)
    return best._replace(
        objective=float(prob(point)),
        lower_bound=best.lower_bound - lam * _radius(prob),
        theorem=f"{best.theorem}; Lagrange's multiplier of the nuclear norm",
        setting=any_counts(prob),
        point=point,
    )


# --- the penalties that amount to the same --------------------------------------------------------


@printed
class EquivalentPenalties(NamedTuple):
    """The penalties at which the minimiser within the bounds is critical for two free factors."""

    lam_W: float
    lam_H: float
    equivalent: bool  # it is the global minimiser of the penalised problem, too
    why: str


@in_float64
def equivalent_penalties(prob: Problem) -> EquivalentPenalties:
    """The penalties lam_W and lam_H whose optimum is that of the layer-peeled model.

    Equal counts: c = -l'(a)/(K-1), for cross-entropy 1/(e^a + K - 1), at the margin a of the optimum, and

        lam_W = c sqrt(E_H/E_W),    lam_H = (c/n) sqrt(E_W/E_H).

    For a strictly convex profile this is one to one. For focal loss margins below a_tie, where the penalised
    optimum jumps to zero, are optimal for bounds and for no penalties: the two models are not equivalent.
    Unequal counts: lam_W K E_W = lam_H N E_H = lam r with the multiplier lam of ||W H||_* <= r.

    Raises:
        ValueError: a model that is not `models.norm_constrained`.
        NoClosedForm: as `global_optimum`.

    Source: docs/theory.md, section 6.5.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=4, d=6, n=3, model=ufm.models.norm_constrained(E_W=2.0, E_H=1.0))
    >>> found = ufm.theory.equivalent_penalties(prob)
    >>> round(found.lam_W, 12), found.equivalent
    (0.073730482445, True)
    """
    model = prob.model
    if not isinstance(model, NormConstrained):
        raise ValueError(f"prob: expected model=models.norm_constrained(...), got {model!r}")
    E_W, E_H = float(model.E_W), float(model.E_H)
    if _needs_dual(prob, any_counts(prob)):
        lam = _dual(prob)[1] * _radius(prob)
        return EquivalentPenalties(lam / (prob.K * E_W), lam / (prob.N * E_H), True, "convex duality")
    best = optimum(prob)
    s, a = best.setting, best.margin
    profile = averaged_profile(s)
    C = -float(profile.slope(a)) if a == _reach(s, model) else 0.0  # inside the bounds the slope is rounding
    c = C / (s.K - 1)
    same, why = _same_optimum(s, profile, a, C)
    return EquivalentPenalties(c * math.sqrt(E_H / E_W), c / int(s.n) * math.sqrt(E_W / E_H), same, why)


def _same_optimum(s: Setting, profile: ScalarProfile, a: float, C: float) -> tuple[bool, str]:
    """Whether a minimises l(a) + C a, and why."""
    if C == 0:
        return False, "the bounds are not active: the loss is lowest inside of them, and needs no penalty"
    if s.loss.convex:
        return True, "the loss is convex"
    penalised = optima.scalar_minimum(profile, C, float(s.loss.infimum))
    if abs(penalised - a) <= 1e-6 * (1 + a):
        return True, "the margin minimises l(a) + C a as well"
    return False, (
        f"at these penalties the margin {a:.6g} is critical, and the optimum has {penalised:.6g}: it is the "
        "optimum of no penalties"
    )


OF_MODELS[NormConstrained] = optimum
BOUNDS_OF_MODELS[NormConstrained] = bound
