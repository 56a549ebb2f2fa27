"""Convex losses that feel a common shift of the logits, with features that are not negative.

As in `theory._convex` the logits are a (I - 11'/K) + m 11'/K + b0 11', at the price c Gamma(a, m), the norm

    Gamma(a, m) = sqrt(K ((K-1) a^2 + m^2)) where |m| <= |a|,  (K-1) |a| + |m| where |m| >= |a|,

which is differentiable where a and m are not both zero and the smaller of the two, if it is a, is not zero.

Source: docs/theory.md, section 6.4.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq

from ufm.losses._base import Setting
from ufm.theory import _convex
from ufm.theory._convex import Family, Point

#: beside a = 0, where Gamma is not differentiable
BESIDE = 1e-13


def norm(K: int, a: float, m: float) -> float:
    """Gamma."""
    if abs(m) <= abs(a):
        return math.sqrt(K) * math.hypot(math.sqrt(K - 1) * a, m)  # squares of tiny numbers vanish
    return (K - 1) * abs(a) + abs(m)


def slopes(K: int, a: float, m: float) -> tuple[float, float]:
    """Its derivatives in a and m, for a != 0."""
    if abs(m) > abs(a):
        return (K - 1) * float(np.sign(a)), float(np.sign(m))
    size = norm(K, a, m)
    return K * (K - 1) * a / size, K * m / size


def optimum(s: Setting) -> Point:
    """The minimiser; nested safeguarded root searches, as all slopes are monotone by convexity.

    Raises:
        NoClosedForm: the infimum is not attained.
    """
    if s.bias and s.lam_b == 0:  # the bias takes the mean at no cost: m = 0
        return _convex.optimum(s._replace(c_squared=s.c_squared * s.K / (s.K - 1)))
    f = _convex.family(s.loss, s.K)
    if s.c >= threshold(s):
        b0 = _convex.trivial_shift(s)
        return Point(0.0, 0.0, b0, f.value(0.0, b0) + s.lam_b * s.K * b0**2 / 2)

    def slope(a: float) -> float:
        x = _best_shift(s, f, a)
        return float(f.gradient(a, x)[0]) + s.c * slopes(s.K, a, s.K * (x - _bias(s, a, x)))[0]

    up, down = slope(BESIDE), slope(-BESIDE)
    a = 0.0 if up >= 0 >= down else _convex.root(slope, 1.0 if up < 0 else -1.0, "margin")
    x = _best_shift(s, f, a) if a else _convex.best_shift(s, f, 0.0)
    m, b0 = (s.K * (x - _bias(s, a, x)), _bias(s, a, x)) if a else _convex.split(s, x)
    return Point(a, m, b0, f.value(a, x) + s.c * norm(s.K, a, m) + s.lam_b * s.K * b0**2 / 2)


def _bias(s: Setting, a: float, x: float) -> float:
    """The best b0 where m/K + b0 = x: lam_b b0 is c times the slope of Gamma in m."""
    if not s.bias or x == 0:
        return 0.0

    def excess(b0: float) -> float:
        return s.lam_b * b0 - s.c * slopes(s.K, a, s.K * (x - b0))[1]

    return float(brentq(excess, 0.0, x, xtol=1e-18, rtol=1e-15, maxiter=500))


def _best_shift(s: Setting, f: Family, a: float) -> float:
    """The minimiser over m/K + b0 at a margin a != 0."""

    def slope(x: float) -> float:
        return float(f.gradient(a, x)[1]) + s.c * s.K * slopes(s.K, a, s.K * (x - _bias(s, a, x)))[1]

    at_zero = slope(0.0)
    return (
        0.0 if at_zero == 0 else _convex.root(slope, -float(np.sign(at_zero)), "common shift of the logits")
    )


def threshold(s: Setting) -> float:
    """c from which on W = 0 and H = 0 is optimal: the dual norm of the gradient y_a, y_m at the best bias,

    max(sqrt(((K-1) y_a^2 + y_m^2)/K), |y_m|).
    """
    y_a, y_m = _convex.thresholds(s)
    return max(math.sqrt(((s.K - 1) * y_a**2 + y_m**2) / s.K), y_m)
