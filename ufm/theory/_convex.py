"""Convex losses with class symmetry that feel a common shift of the logits (one-vs-all, squared, hinge).

Averaging over the permutations of the classes loses nothing, so Zbar = a (I - 11^T/K) + m 11^T/K and
b = b0 1. With the common shift s = m/K + b0 the split of s between the two has a closed form:
min c |m| + lam_b K b0^2/2 is K times Huber's function of s, and two variables (a, s) are left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import brentq

from ufm.losses import Loss
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm

FAR = 1e6  # a margin or shift beyond this: the infimum is not attained


class Family(NamedTuple):
    """l(a, s) = loss(s 1 + a (e_k - 1/K), k), its gradient in (a, s)."""

    value: Callable[[float, float], float]
    gradient: Callable[[float, float], np.ndarray]


class Point(NamedTuple):
    """A minimiser of the symmetric family and its objective."""

    a: float
    m: float
    b0: float
    value: float


def family(loss: Loss, K: int) -> Family:
    """Of a loss with K logits; its hyperparameters are leaves, so that new ones compile nothing."""
    return Family(
        lambda a, s: float(_value(loss, K, np.array([a, s]))),
        lambda a, s: np.asarray(_gradient(loss, K, np.array([a, s]))),
    )


@partial(jax.jit, static_argnums=1)
def _value(loss: Loss, K: int, x: Array) -> Array:
    return loss(x[1] + x[0] * jnp.where(jnp.arange(K) == 0, 1 - 1 / K, -1 / K), 0)


_gradient = jax.jit(jax.grad(_value, argnums=2), static_argnums=1)


def split(s: Setting, shift: float) -> tuple[float, float]:
    """(m, b0) with m/K + b0 = shift at the least cost c |m| + lam_b K b0^2/2."""
    if not s.bias:
        return s.K * shift, 0.0
    limit = np.inf if s.lam_b == 0 else s.c / s.lam_b
    b0 = float(np.clip(shift, -limit, limit))
    return s.K * (shift - b0), b0


def shift_slope(s: Setting, shift: float) -> float:
    """Derivative in the shift of that least cost (at a kink: zero, handled by the caller)."""
    if not s.bias:
        return float(s.K * s.c * np.sign(shift))
    return float(s.K * np.clip(s.lam_b * shift, -s.c, s.c))


def best_shift(s: Setting, f: Family, a: float) -> float:
    """argmin over the shift at margin a."""

    def slope(x: float) -> float:
        return float(f.gradient(a, x)[1]) + shift_slope(s, x)

    at_zero = float(f.gradient(a, 0.0)[1])
    if abs(at_zero) <= (0.0 if s.bias else s.K * s.c):
        return 0.0
    return root(slope, -np.sign(at_zero), "common shift of the logits")


def root(slope: Callable[[float], float], sign: float, what: str) -> float:
    """The zero, on the side `sign` of 0, of an increasing function that points there at 0."""
    inner, outer = 0.0, 1.0
    while slope(sign * outer) * sign < 0:
        inner, outer = outer, 2 * outer
        if outer > FAR:
            raise NoClosedForm(
                f"loss: its infimum is not attained, the {what} grows without bound; try lam_b > 0"
            )
    # the kink at 0 (no bias) leaves the sign of the slope at 0+ to the caller's test
    start = max(inner, 1e-300)
    return float(brentq(slope, sign * start, sign * outer, xtol=1e-18, rtol=1e-15, maxiter=500))


def optimum(s: Setting) -> Point:
    """Nested safeguarded root searches: both derivatives are monotone by convexity.

    Raises:
        NoClosedForm: the infimum is not attained.
    """
    f = family(s.loss, s.K)

    def slope(a: float) -> float:
        return float(f.gradient(a, best_shift(s, f, a))[0]) + s.C * np.sign(a)

    at_zero = slope(0.0)
    a = 0.0 if abs(at_zero) <= s.C else root(slope, -np.sign(at_zero), "margin")
    shift = best_shift(s, f, a)
    m, b0 = split(s, shift)
    cost = s.C * abs(a) + s.c * abs(m) + s.lam_b * s.K * b0**2 / 2
    return Point(a, m, b0, f.value(a, shift) + cost)


def thresholds(s: Setting) -> tuple[float, float]:
    """c below which the margin, and c below which the mean eigenvalue m, leaves zero (from the origin)."""
    f = family(s.loss, s.K)
    slope_a, slope_s = f.gradient(0.0, trivial_shift(s))
    return abs(float(slope_a)) / (s.K - 1), abs(float(slope_s)) / s.K


def trivial_value(s: Setting) -> float:
    """The objective at the best point with Z = 0."""
    shift = trivial_shift(s)
    return family(s.loss, s.K).value(0.0, shift) + s.lam_b * s.K * shift**2 / 2


def trivial_shift(s: Setting) -> float:
    """The bias that is best at Z = 0."""
    f = family(s.loss, s.K)
    at_zero = float(f.gradient(0.0, 0.0)[1])
    if at_zero == 0 or not s.bias:
        return 0.0

    def slope(x: float) -> float:
        return float(f.gradient(0.0, x)[1]) + s.K * s.lam_b * x

    return root(slope, -np.sign(at_zero), "bias at the origin")
