"""Focal loss: where it is convex, where its slope is one, its optimum, and a lower bound of the objective.

h(p) = -(1-p)^gamma log p,  S(p) = -h'(p) p (1-p) = (1-p)^gamma ((1-p) - gamma p log p) = |d loss/d margin|.
S rises from S(0) = 1 to its maximum at p_infl(gamma), falls through 1 at p_unit(gamma), and ends at S(1) = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from scipy.optimize import brentq

from ufm.losses._base import Setting
from ufm.losses._closed import SymmetricPoint
from ufm.losses._profile import ScalarProfile, margin_of


def p_infl(gamma: float) -> float:
    """The target probability above which, and only above which, focal loss is convex in the logits.

    The root of (1 + 2g)(1-p) + g (1 - (1+g) p) log p = 0: the inflection of the scalar profile, independent
    of K and of the other logits. With log p = -2 - 1/g + x it reads x (1 - (1+g) p) + (1 + 2g) p = 0, which
    keeps full relative accuracy where p ~ exp(-2 - 1/g) is tiny. Largest value 0.058444, at g = 2.382.

    Raises:
        ValueError: gamma < 0.

    Source: docs/theory.md, section 3; Zhou et al. 2022, Appendix D, has the sufficient 0.21.
    """

    def residual(x: float, p: float) -> float:
        return x * (1 - (1 + gamma) * p) + (1 + 2 * gamma) * p

    return _root_near_zero(gamma, 2, residual)


def p_unit(gamma: float) -> float:
    """The target probability, other than 0, at which S(p) = 1: the slope of the loss in the margin is -1.

    With log p = -1 - 1/g + x and y = g p (1-x) it reads (1-x) log(1+y)/y = -log(1-p)/p. Below p_unit the
    convex hull of the scalar profile is a line of slope -1, so neural collapse is proved to be optimal with
    a bias if (K-1) c <= 1 or K <= 1/p_unit. Largest value 0.167533, at g = 2.672.

    Raises:
        ValueError: gamma < 0.
    """

    def residual(x: float, p: float) -> float:
        return _log1p_ratio(-p) - (1 - x) * _log1p_ratio(gamma * p * (1 - x))

    return _root_near_zero(gamma, 1, residual)


def _log1p_ratio(x: float) -> float:
    return math.log1p(x) / x if abs(x) > 1e-300 else 1.0


def _root_near_zero(gamma: float, shift: int, residual: Callable[[float, float], float]) -> float:
    """p = exp(-shift - 1/gamma + x) for the x <= 0 at which `residual(x, p)`, positive at 0, vanishes."""
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma: expected a finite number >= 0, got {gamma!r}")
    if gamma < 1e-3:
        return 0.0  # below exp(-1000), the end of float64
    exact = -shift - 1 / Fraction(gamma)
    whole = float(exact)  # exp amplifies its rounding error |whole| 1e-16: carry the remainder along
    rest = float(exact - Fraction(whole))

    def p(x: float) -> float:
        return math.exp(whole) * math.exp(x + rest)

    low = -1.0
    while residual(low, p(low)) > 0:
        low *= 2
    return p(brentq(lambda x: residual(x, p(x)), low, 0.0, xtol=1e-18, rtol=1e-15))


def branch_margin(profile: ScalarProfile, gamma: float, C: float) -> float | None:
    """The margin of the neural-collapse branch, S(p) = C with p >= p_infl, or None where it has ended."""
    K = profile.K
    inflection = p_infl(gamma)
    start = max(0.0, margin_of(inflection, K)) if inflection > 0 else 0.0
    if -profile.slope(start) <= C:
        return None

    def excess(a: float) -> float:
        return math.log(-profile.slope(a)) - math.log(C)

    # S <= (1+g)(1-p)^(1+g) and 1-p <= (K-1) e^-a
    end = math.log(K - 1) + max(0.0, math.log((1 + gamma) / C) / (1 + gamma)) + 1e-9
    a = brentq(excess, start, max(end, start + 1e-9), xtol=1e-18, rtol=1e-15, maxiter=500)
    curve = profile.curvature(a)
    step = (-float(profile.slope(a)) - C) / float(curve) if curve > 0 else 0.0
    return float(a + step) if abs(step) < 1e-9 * a else float(a)


def optimum(s: Setting, gamma: float, profile: ScalarProfile) -> SymmetricPoint:
    """S(p) = C on p >= p_infl, against the value at the origin."""
    trivial = float(profile.value(0.0))
    a = branch_margin(profile, gamma, s.C) or 0.0
    if s.K * p_infl(gamma) > 1 and float(profile.value(a)) + s.C * a >= trivial:
        a = 0.0
    value = float(profile.value(a)) + s.C * a
    if proves(s, gamma, profile):
        return SymmetricPoint(a, value, trivial)
    limit = 1 / p_unit(gamma)
    why = f"no proof is known with a bias, (K-1) c = {s.C:.6g} > 1 and K > 1/p_unit = {limit:.4g}"
    bound = lower_bound(s, gamma, profile)
    return SymmetricPoint(a, value, trivial, proved="numerical", remark=why, lower_bound=bound)


def lower_bound(s: Setting, gamma: float, profile: ScalarProfile) -> float:
    """`theory.focal_lower_bound`."""
    trivial = float(profile.value(0.0))
    unit = p_unit(gamma)
    if not s.bias or unit * s.K <= 1 or s.C <= 1:
        a = branch_margin(profile, gamma, s.C)
        return min(trivial, math.inf if a is None else float(profile.value(a)) + s.C * a)
    if origin_is_optimal(s, gamma, profile):
        return trivial
    a = margin_of(unit, s.K)
    return float(profile.value(a)) + a


def origin_is_optimal(s: Setting, gamma: float, profile: ScalarProfile) -> bool:
    """Proved with any bias: c >= sqrt(2/K) max S; |grad L| <= sqrt(2) S, sum_k |z_k| <= sqrt(K) ||Z||_*."""
    peak = p_infl(gamma)
    largest = -float(profile.slope(margin_of(peak, s.K))) if peak > 0 else 1.0
    return s.c >= math.sqrt(2 / s.K) * largest


def proves(s: Setting, gamma: float, profile: ScalarProfile) -> bool:
    """Whether `lower_bound` is the exact optimum: no bias, C <= 1, K <= 1/p_unit, or a large enough c."""
    if not s.bias or s.C <= 1 or s.K * p_unit(gamma) <= 1:
        return True
    return origin_is_optimal(s, gamma, profile)
