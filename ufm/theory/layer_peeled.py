"""Minority collapse of the layer-peeled model: the exact ratio of counts at which it begins, for two groups.

The model of Fang et al. 2021: minimise the mean cross-entropy of W h, without a bias, over

    (1/K) sum_k |w_k|^2 <= E_W,   (1/K) sum_k (1/n_k) sum_i |h_ki|^2 <= E_H.

In the class means the constraints say ||Z||_* <= K sqrt(E_W E_H) with Z (K, K) not weighted by the counts, so
that with the multiplier mu of the norm the classes of n samples coincide exactly where n/N <= mu: on their
spread the gradient of the mean loss is (n/N)(1 - p_t + p_s) (docs/theory.md, section 1.7). At R = n_A/n_B the
minority's spread vanishes at mu = n_B/N, which makes the probabilities known up to one angle.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from scipy.optimize import brentq

from ufm import _checks
from ufm._sheet import printed


@printed
class CollapseRatio(NamedTuple):
    """Where minority collapse begins as the ratio of the counts grows."""

    ratio: float  # R_0: at R = n_A/n_B >= R_0 the minority's classifiers and features coincide
    angle: float  # theta, P_A = sqrt(K_B/K) cos(theta)/R and P_B = sqrt(K_A/K) sin(theta)
    majority: float  # P_A, what a sample of the majority gives to all minority classes
    minority: float  # P_B, what a sample of the minority gives to all majority classes


def collapse_ratio(K_A: int, K_B: int, *, E_W: Any, E_H: Any) -> CollapseRatio:
    """R_0 of the layer-peeled model with K_A majority and K_B minority classes.

    Root in R and theta of, with q = K_A K_B/K and P_A, P_B as in `CollapseRatio`,

        p_s = (1/R - P_A)/K_A,  a = log(1 + (1 - 1/R)/p_s),
        r_A = a/K_A + log(p_s K_B/P_A),  r_B = log((1 - P_B) K_A/(K_B P_B)),
        tan(theta) = sqrt(K_B/K_A) r_B/r_A,
        (K_A - 1) a + sqrt(q (K_A r_A^2 + K_B r_B^2)) = K sqrt(E_W E_H).

    Fang et al. 2021 prove that minority collapse occurs as R tends to infinity and find a finite R_0
    numerically; this is its exact value.

    Args:
        K_A: majority classes, >= 1.  K_B: minority classes, >= 2.
        E_W, E_H: bounds > 0 of the mean squared norms.

    Raises:
        ValueError: K_A < 1, K_B < 2, or a bound that is not positive.

    Source: the model of Fang et al. 2021; docs/theory.md, section 1.7.

    >>> import ufm
    >>> round(ufm.theory.collapse_ratio(5, 5, E_W=1.0, E_H=5.0).ratio, 6)
    12.192447
    """
    K_A, K_B = _checks.integer("K_A", K_A, least=1), _checks.integer("K_B", K_B, least=2)
    E_W, E_H = _checks.real("E_W", E_W, above=0.0), _checks.real("E_H", E_H, above=0.0)
    size = (K_A + K_B) * math.sqrt(E_W * E_H)

    def excess(log_ratio: float) -> float:
        return _norm(K_A, K_B, math.exp(log_ratio)) - size

    high = 1.0
    while excess(high) < 0:
        high *= 2
    ratio = math.exp(float(brentq(excess, 1e-9, high, xtol=1e-15, rtol=1e-15)))
    angle = _angle(K_A, K_B, ratio)
    P_A, P_B = _given_away(K_A, K_B, ratio, angle)
    return CollapseRatio(ratio, angle, P_A, P_B)


def _given_away(K_A: int, K_B: int, R: float, angle: float) -> tuple[float, float]:
    """P_A and P_B."""
    K = K_A + K_B
    return math.sqrt(K_B / K) * math.cos(angle) / R, math.sqrt(K_A / K) * math.sin(angle)


def _means(K_A: int, K_B: int, R: float, angle: float) -> tuple[float, float, float]:
    """a, r_A and r_B."""
    P_A, P_B = _given_away(K_A, K_B, R, angle)
    p_s = (1 / R - P_A) / K_A
    a = math.log1p((1 - 1 / R) / p_s)
    return a, a / K_A + math.log(p_s * K_B / P_A), math.log((1 - P_B) * K_A / (K_B * P_B))


def _angle(K_A: int, K_B: int, R: float) -> float:
    """theta: r_A rises and r_B falls with it."""

    def turned(angle: float) -> float:
        _, r_A, r_B = _means(K_A, K_B, R, angle)
        return math.sqrt(K_A) * r_A * math.sin(angle) - math.sqrt(K_B) * r_B * math.cos(angle)

    return float(brentq(turned, 1e-300, math.pi / 2, xtol=1e-300, rtol=1e-15))


def _norm(K_A: int, K_B: int, R: float) -> float:
    """||Z||_* at which the minority's spread vanishes."""
    a, r_A, r_B = _means(K_A, K_B, R, _angle(K_A, K_B, R))
    q = K_A * K_B / (K_A + K_B)
    return (K_A - 1) * a + math.sqrt(q * (K_A * r_A**2 + K_B * r_B**2))
