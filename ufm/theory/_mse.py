"""Rescaled MSE: kappa (z_k - beta)^2 + sum_{j != k} z_j^2, in closed form for every bias.

By convexity the class means can be averaged over all permutations: Zbar = a (I - 11^T/K) + m 11^T/K and
b = b0 1, which leaves f = kappa (z_k - beta)^2 + (K-1) z_j^2 + c ((K-1)|a| + |m|) + lam_b K b0^2/2, convex in
(a, m, b0), with z_k = ((K-1) a + m)/K + b0 and z_j = (m - a)/K + b0. Each phase in c is one linear system.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from ufm.theory._setting import Setting, number


class Phases(NamedTuple):
    """Thresholds in c, exact: rank K below `full`, rank K-1 up to `origin`, then zero."""

    full: Fraction
    origin: Fraction


class Point(NamedTuple):
    """One point of the symmetric family."""

    phase: str  # "A" rank K, "B" rank K-1, "C" zero
    a: float
    m: float
    b0: float


def _rationals(s: Setting) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """kappa, beta, lam_b and A1 = (K-1)/(2K) + 1/(2 kappa K)."""
    loss: Any = s.loss
    kappa, beta = Fraction(number("kappa", loss.kappa)), Fraction(number("beta", loss.beta))
    return kappa, beta, Fraction(s.lam_b), Fraction(s.K - 1, 2 * s.K) + 1 / (2 * kappa * s.K)


def phases(s: Setting) -> Phases:
    """c at which the mean eigenvalue m, and then the margin a, reaches zero."""
    kappa, beta, lam_b, _ = _rationals(s)
    if not s.bias:
        return Phases(2 * kappa * beta / s.K, 2 * kappa * beta / s.K)
    b0 = trivial_bias(s)
    full = beta / s.K * lam_b / (1 + lam_b / (2 * kappa))
    return Phases(full, Fraction(2, s.K) * (kappa * (beta - b0) + b0))


def trivial_bias(s: Setting) -> Fraction:
    """argmin over b0 of kappa (b0 - beta)^2 + (K-1) b0^2 + lam_b K b0^2/2."""
    kappa, beta, lam_b, _ = _rationals(s)
    return 2 * kappa * beta / (2 * kappa + 2 * (s.K - 1) + lam_b * s.K) if s.bias else Fraction(0)


def optimum(s: Setting) -> Point:
    """The minimiser. Margins and m are slopes times exact distances to their thresholds."""
    kappa, beta, lam_b, A1 = _rationals(s)
    full, origin = phases(s)
    above, below = s.below(origin), s.below(full)
    if above <= 0:
        return Point("C", 0.0, 0.0, float(trivial_bias(s)))
    if not s.bias:
        a = float(s.K / (2 * kappa)) * above
        return Point("A", a, a, 0.0)
    if below > 0:
        m = float(s.K * (1 / (2 * kappa) + 1 / lam_b)) * below
        return Point("A", float(s.K / (2 * kappa)) * s.below(2 * kappa * beta / s.K), m, s.c / s.lam_b)
    shared = (1 + lam_b / (2 * kappa)) / (1 + A1 * lam_b)
    slope = float(s.K / (2 * kappa) - (1 - kappa) / (2 * kappa) * shared)
    tilt = float(Fraction(s.K - 1, 2) * (1 - 1 / kappa))
    return Point("B", slope * above, 0.0, (float(beta) + s.c * tilt) / float(s.K * (1 + A1 * lam_b)))


def value(s: Setting, a: float, m: float, b0: float) -> float:
    """The objective at a point of the symmetric family: a sum of terms >= 0."""
    loss: Any = s.loss
    kappa, beta, K = float(loss.kappa), float(loss.beta), s.K
    own, other = ((K - 1) * a + m) / K + b0, (m - a) / K + b0
    fit = kappa * (own - beta) ** 2 + (K - 1) * other**2
    return fit + s.c * ((K - 1) * abs(a) + abs(m)) + s.lam_b * K * b0**2 / 2
