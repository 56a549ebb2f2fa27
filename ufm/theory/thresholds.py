"""Where and how neural collapse appears as the penalties fall: thresholds in c and C = (K-1) c."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq

from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._sheet import printed
from ufm.losses import Loss
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.losses._profile import ScalarProfile, margin_of
from ufm.models import Model
from ufm.theory import _convex
from ufm.theory._blocks import groups_of
from ufm.theory._setting import any_counts, need_free_factors, setting
from ufm.theory.imbalance import group_thresholds
from ufm.theory.profiles import facts_of, profile_of

Kind = Literal["second order", "first order"]


@printed
class Threshold(NamedTuple):
    """Three values of C = (K-1) c in ascending order, equal where the transition is of second order."""

    c_thr: float  # c at and above which the point with Z = 0 is stable
    C_thr: float  # (K-1) c_thr
    C_tie: float  # above it the point with Z = 0 has a lower objective than neural collapse
    C_spin: float  # above it no critical point has neural collapse
    c: float  # of the problem
    C: float
    kind: Kind
    a_tie: float  # the margin of neural collapse at C_tie: the jump
    a_spin: float  # its margin at C_spin, where it ends
    c_rank: float | None  # MSE with a penalised bias: c at which the rank falls from K to K-1

    @property
    def collapses(self) -> bool:
        """Whether the problem lies below the tie: the global optimum is not zero."""
        return self.C_tie > self.C


#: Thresholds of models other than two free factors, by type. The module of each model adds itself.
OF_MODELS: dict[type[Model], Callable[[Problem], Any]] = {}


@in_float64
def threshold(prob: Problem) -> Any:
    """Where the point with Z = 0 turns stable, ties with neural collapse, and is the only one left.

    The three differ only where the profile l(a) is concave at 0 (focal loss with K > 1/p_infl(gamma)):
    C_thr = -l'(0),  C_tie = max over a of (l(0) - l(a))/a,  C_spin = max over a >= 0 of -l'(a).
    cross-entropy: c_thr = 1/K;  label smoothing: (1 - alpha)/K;  focal: C_thr = S(1/K), C_spin = S(p_infl);
    MSE: 2 kappa beta/K without a bias, 2 kappa beta/(kappa + K - 1) with a free one, and with lam_b > 0
    (2/K)(kappa (beta - b0) + b0), b0 the best bias at Z = 0.

    C_tie compares neural collapse with the origin; with a bias and a first-order transition partial collapse
    is below both in a window around it (`global_optimum`).

    Unequal counts or class weights: where the classes of each group of equal count and weight merge, where
    the means of the groups, each group and everything vanish, in x = N sqrt(lam_W lam_H). For cross-entropy
    and label smoothing the classes with n_k samples of weight w_k merge at x = (1 - alpha) w_k sqrt(n_k),
    whatever the other counts: w_k = N/(K n_k) lets the majority collapse first, and w_k proportional to
    1/sqrt(n_k) all classes at once.

    Returns: a `Threshold`, or `GroupThresholds` where the counts differ or the classes have weights; with a
    deep classifier a `DepthThreshold` (docs/theory.md, section 6.2).

    Raises:
        NoClosedForm: another model than two free factors; a user's loss without class symmetry, or one that
            is neither shift-invariant nor declared convex; with unequal counts, one that is not convex or not
            smooth.
        ValueError: a batch of problems.

    Source: docs/theory.md, sections 1.7 and 2.3, from Zhou et al. 2022, equation (10). Their Appendix C.1 and
    figure 10 have K sqrt(n lam_W lam_H) in place of (K-1) c, which would put the threshold of cross-entropy
    at 1/K^2.
    """
    if type(prob.model) in OF_MODELS:
        return OF_MODELS[type(prob.model)](prob)
    need_free_factors(prob)
    if prob.n is None:
        return group_thresholds(any_counts(prob), groups_of(prob.counts, prob.class_weights))
    return balanced_threshold(prob)


@in_float64
def balanced_threshold(prob: Problem) -> Threshold:
    """`threshold` of a problem with equal counts.

    Raises:
        NoClosedForm: as `threshold`, and for unequal counts.
    """
    s = setting(prob)
    known = s.loss.threshold(s)
    return _any_loss(s) if known is None else second_order(s, *known)


def second_order(s: Setting, c_thr: float, c_rank: float | None = None) -> Threshold:
    C = (s.K - 1) * c_thr
    return Threshold(c_thr, C, C, C, s.c, s.C, "second order", 0.0, 0.0, c_rank)


def _from_slopes(s: Setting, profile: ScalarProfile) -> Threshold:
    jump = first_order_margins(s.loss, s.K)
    if jump is None:
        return second_order(s, -float(profile.slope(0.0)) / (s.K - 1))
    return _first_order(s, profile, *jump)


def _first_order(s: Setting, profile: ScalarProfile, a_spin: float, a_tie: float) -> Threshold:
    C_thr, C_tie, C_spin = (-float(profile.slope(a)) for a in (0.0, a_tie, a_spin))
    return Threshold(C_thr / (s.K - 1), C_thr, C_tie, C_spin, s.c, s.C, "first order", a_tie, a_spin, None)


def tie_margin(profile: ScalarProfile, a_spin: float) -> float:
    """The a > a_spin whose tangent meets l at 0: l(0) - l(a) + a l'(a), the integral of x l''(x), is 0.

    The integral keeps relative accuracy for K just above 1/p_infl, where the left side cancels badly.

    Raises:
        NoClosedForm: a profile without second derivative (hinge, ramp).
    """
    nodes, weights = _gauss_legendre()

    def excess(a: float) -> float:
        x = a * (nodes + 1) / 2
        return float(np.sum(weights * x * profile.curvature(x)))

    if excess(a_spin) >= 0:
        return a_spin
    outer = 1.5 * a_spin
    while excess(outer) <= 0:
        outer *= 1.5
        if outer > 1e4:
            raise NoClosedForm("loss: no margin ties with the origin; the profile is not smooth")
    return float(brentq(excess, a_spin, outer, xtol=1e-18, rtol=1e-15, maxiter=500))


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """96 nodes: l'' is analytic within pi of the real axis, so margins up to 20 integrate to round-off."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    return nodes, weights


def _any_loss(s: Setting) -> Threshold:
    facts = facts_of(s.loss, s.K)
    if not facts.symmetric:
        raise NoClosedForm(f"loss: {s.loss!r} treats classes differently, so there is no scalar problem")
    if not facts.shift_invariant:
        if not s.loss.convex:
            raise NoClosedForm(f"loss: {s.loss!r} is neither shift-invariant nor declared convex")
        return second_order(s, max(_convex.thresholds(s)))
    return _from_slopes(s, profile_of(s.loss, s.K))


def first_order_margins(loss: Loss, K: int) -> tuple[float, float] | None:
    """(a_spin, a_tie), or None where the transition is of second order.

    Where the profile is known to have one inflection, at the target probability p_min, the transition is of
    first order if it is concave at the origin, K p_min > 1.
    """
    if loss.convex:
        return None
    profile, region = profile_of(loss, K), loss.region()
    if region is None:
        return _search_margins(profile)
    if K * region.p_min <= 1:
        return None
    a_spin = margin_of(region.p_min, K)
    return a_spin, tie_margin(profile, a_spin)


def _search_margins(profile: ScalarProfile) -> tuple[float, float] | None:
    """On a grid of margins up to 60: where -l' is largest, and where the chord from 0 is steepest."""
    grid = np.geomspace(1e-2, 60.0, 2000)
    slopes = -np.asarray(profile.slope(grid))
    chords = (float(profile.value(0.0)) - np.asarray(profile.value(grid))) / grid
    if not float(np.max(chords)) > -float(profile.slope(0.0)) * (1 + 1e-9):
        return None
    a_spin = _crossing(profile.curvature, grid, int(np.argmax(slopes)))
    return a_spin, tie_margin(profile, max(a_spin, grid[max(int(np.argmax(chords)) - 2, 0)]))


def _crossing(curvature: Callable[[Any], Any], grid: np.ndarray, cell: int) -> float:
    low, high = grid[max(cell - 1, 0)], grid[min(cell + 1, grid.size - 1)]
    if not float(curvature(low)) < 0 < float(curvature(high)):
        return float(grid[cell])
    return float(brentq(lambda a: float(curvature(a)), low, high, xtol=1e-15, rtol=1e-15))
