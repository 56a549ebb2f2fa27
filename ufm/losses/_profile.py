"""The scalar profile l(a) of a loss: its value when the target logit stands a above all others.

Under neural collapse every logit vector is a e_k up to a common shift, so one function of the margin a
decides the optimum, its threshold and its curvature. The paper's phi has the argument t = -(K-1) a.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Real = Any  # a float or a float64 array


class ScalarProfile(NamedTuple):
    """l(a) = min over s of loss(a e_k + s 1, k), with two derivatives; arguments are floats or arrays."""

    value: Callable[[Real], Real]
    slope: Callable[[Real], Real]
    curvature: Callable[[Real], Real]
    K: int

    def phi(self, t: Real) -> Real:
        """The paper's phi: its argument is t = sum_{j != k} (z_j - z_k) = -(K-1) a."""
        return self.value(-np.asarray(t) / (self.K - 1))

    def odds(self, a: Real) -> Real:
        """q = log((1-p)/p) at margin a."""
        return math.log(self.K - 1) - a

    def tilted(self, weight: float) -> ScalarProfile:
        """l(a) + weight a."""
        return ScalarProfile(
            lambda a: self.value(a) + weight * a, lambda a: self.slope(a) + weight, self.curvature, self.K
        )


def sigmoid(x: Real) -> Real:
    """1/(1 + e^-x) in full relative accuracy on both sides, without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(np.asarray(x) >= 0, 1.0, e) / (1.0 + e)


def softplus(x: Real) -> Real:
    """log(1 + e^x)."""
    return np.logaddexp(0.0, x)


def margin_of(p: float, K: int) -> float:
    """The margin at which the target probability is p: log(p (K-1)/(1-p))."""
    return math.log(p) - math.log1p(-p) + math.log(K - 1)


def probability(a: float, K: int) -> float:
    """p = e^a/(e^a + K - 1)."""
    return float(sigmoid(a - math.log(K - 1)))
