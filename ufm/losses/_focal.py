"""Focal loss; its optimum and bounds are in `_focal_branch`, which needs scipy and is imported when used."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss, Setting
from ufm.losses._closed import (
    Ball,
    BallLoss,
    ConvexityRegion,
    Odds,
    SymmetricPoint,
    ToBall,
    number,
    of_odds,
)
from ufm.losses._logits import log_odds, sigmoid, softplus
from ufm.losses._profile import Real, ScalarProfile
from ufm.losses._profile import sigmoid as share
from ufm.losses._profile import softplus as log1p_exp


@pytree_dataclass
class Focal(Loss, pure=True, by_column=True):
    """L = -(1 - p_k)^gamma log p_k = sigmoid(q)^gamma softplus(q).  Shift-invariant.  Paper, equation (5).

    Not convex in z for gamma > 0: convex exactly where p_k >= p_infl(gamma) (`theory.convexity_region`).
    """

    gamma: Any = 3.0  # the paper's value (Section 4)

    name = "fl"
    title = "focal loss"
    formula = r"-(1-p)^\gamma \log p"
    source = "Zhou et al. 2022"
    shift_invariant = True
    symmetric = True
    of_p = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", _checks.real("gamma", self.gamma, least=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        q = log_odds(z, k)
        # sigmoid(q)^gamma through its logarithm: smooth for gamma < 1 too, where p -> (1 - p)^gamma is not
        return jnp.exp(-jnp.asarray(self.gamma, z.dtype) * softplus(-q)) * softplus(q)

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """With s = sigmoid(q) and t = softplus(q), as a function of q the loss has the second derivative

            s^gamma (1 - s) [gamma t (gamma (1 - s) - s) + (2 gamma + 1) s],

        and q is convex in z, the loss increasing in q: it is convex in z where the bracket is >= 0.
        """
        gamma, q = jnp.asarray(self.gamma, z.dtype), log_odds(z, k)
        s, t = sigmoid(q), softplus(q)
        return gamma * t * (gamma * sigmoid(-q) - s) + (2 * gamma + 1) * s >= 0

    def region(self) -> ConvexityRegion:
        from scipy.special import lambertw

        from ufm.losses._focal_branch import p_infl

        # root of log p + 2 (1-p) = 0, sufficient for every gamma; the paper rounds it up to 0.21
        paper = float(-lambertw(-2 * np.exp(-2.0)).real / 2)
        reason = (
            "the inflection of the scalar profile, exact; the paper's 0.21 (0.203187869980) is sufficient"
        )
        return ConvexityRegion(p_infl(self._gamma), paper, "proved", reason)

    @property
    def _gamma(self) -> float:
        return number("gamma", self.gamma)

    def profile(self, K: int) -> ScalarProfile:
        """-l'(a) = S(p) = (1-p)^g ((1-p) - g p log p) and

        l''(a) = p (1-p)^g ((1+2g)(1-p) + g(1-(1+g)p) log p).
        """
        g, top = self._gamma, math.log(K - 1)

        def parts(a: Real) -> tuple[Real, Real, Real, Real]:
            q = top - a
            return share(-q), share(q), log1p_exp(q), np.exp(-g * log1p_exp(-q))  # p, 1-p, -log p, (1-p)^g

        def value(a: Real) -> Real:
            _, _, log_p, power = parts(a)
            return power * log_p

        def slope(a: Real) -> Real:
            p, rest, log_p, power = parts(a)
            return -power * (rest + g * p * log_p)

        def curvature(a: Real) -> Real:
            p, rest, log_p, power = parts(a)
            return p * power * ((1 + 2 * g) * rest - g * (1 - (1 + g) * p) * log_p)

        return ScalarProfile(value, slope, curvature, K)

    def optimum(self, setting: Setting) -> SymmetricPoint:
        from ufm.losses import _focal_branch

        return _focal_branch.optimum(setting, self._gamma, self.profile(setting.K))

    def branch(self, setting: Setting) -> float | None:
        from ufm.losses import _focal_branch

        return _focal_branch.branch_margin(self.profile(setting.K), self._gamma, setting.C)

    def lower_bound(self, setting: Setting) -> float:
        from ufm.losses import _focal_branch

        return _focal_branch.lower_bound(setting, self._gamma, self.profile(setting.K))

    def in_balls(self, ball: ToBall) -> BallLoss:
        """h = -(1-p)^g log p, with -log p = log(1 + o) and 1-p = o/(1 + o)."""
        g = ball(self._gamma)

        def power(o: Ball, less: int) -> Ball:
            return (o / (1 + o)) ** (g - less)

        def eta(o: Ball) -> Ball:
            return -power(o, 1) * (o + g * o.log1p()) / (1 + o)

        def eta_slope(o: Ball) -> Ball:
            p = 1 / (1 + o)
            return g * power(o, 2) * (2 * o * p - (1 - g * p) * o.log1p())

        return of_odds(Odds(lambda o: power(o, 0) * o.log1p(), eta, eta_slope), ball(0), ball)


def focal(gamma: ArrayLike = 3.0) -> Focal:
    """Focal loss, L = -(1 - p_k)^gamma log p_k; `gamma` >= 0, zero is cross-entropy.  Paper, equation (5)."""
    return Focal(gamma)
