"""Cross-entropy and label smoothing with two groups of classes: the optimum and where the means leave zero.

Group g has K_g classes of n_g samples and weight w_g, N_g = K_g n_g; h is the other group, q = K_A K_B/K and
x = N lam. A sample of g gives P_g to the other group, p_t to its class and p_s to another class of its group:

    p_t - p_s = (1 - alpha - x/(w_g sqrt(n_g)))_+ = the gain (0 for K_g = 1),   K_g p_s = 1 - P_g - gain
    xi_g = log(p_t/p_s)/K_g + log(p_s K_h/P_g), the mean logit of the own group above that of the other one.

Of xi_g the features give rho_g >= 0 and the bias the rest, xi_A = rho_A + s and xi_B = rho_B - s. The weight
of the nuclear norm on the means is sqrt(q (N_A rho_A^2 + N_B rho_B^2)), so that stationarity in rho reads

    P_g = x sqrt(q/N_g) u_g/w_g + alpha K_h/K,   u_g = sqrt(N_g) rho_g/sqrt(N_A rho_A^2 + N_B rho_B^2).

A free bias gives both groups the same w_g N_g (P_g - alpha K_h/K), hence u_A = sqrt(N_B/N): everything is
known. Without a bias s = 0, with a penalised one lam_b q s = sum_g +-w_g N_g (P_g - alpha K_h/K)/N, and the
angle of u is the root of one monotone equation.

Source: docs/theory.md, section 1.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.losses._base import Setting
from ufm.losses._closed import Block, Groups

Pair = Float[np.ndarray, " 2"]  # a number for each group


class Sizes(NamedTuple):
    """Two groups as plain numbers."""

    K: Pair  # K_g
    n: Pair  # n_g
    w: Pair  # w_g
    N: Pair  # N_g
    total: float  # N
    alpha: float  # of label smoothing

    @property
    def q(self) -> float:
        """K_A K_B/K."""
        return float(self.K.prod() / self.K.sum())

    @property
    def uniform(self) -> Pair:
        """alpha K_h/K, what the smoothed target gives to the other group."""
        return np.asarray(self.alpha * self.K[::-1] / self.K.sum())

    def gain(self, x: float) -> Pair:
        """p_t - p_s."""
        excess = np.maximum(0.0, 1 - self.alpha - x / np.sqrt(self.n) / self.w)
        return np.where(self.K > 1, excess, 0.0)

    def given_away(self, x: float, u: Pair) -> Pair:
        """P."""
        return x * np.sqrt(self.q / self.N) * u / self.w + self.uniform

    def xi(self, x: float, P: Pair) -> tuple[Pair, Pair]:
        """log(p_t/p_s) and xi; -inf where there is no such p_s."""
        gain = self.gain(x)
        rest = 1 - P - gain
        p_s = np.where(rest > 0, rest, 1.0) / self.K
        margin = np.log1p(gain / p_s)
        with np.errstate(divide="ignore"):
            xi = margin / self.K + np.log(p_s / (P / self.K[::-1]))
        return margin, np.where(rest > 0, xi, -np.inf)


def sizes_of(s: Setting, groups: Groups, alpha: float) -> Sizes | None:
    """None unless there are two groups."""
    if len(groups.counts) != 2:
        return None
    K, n, w, N = (np.asarray(x, float) for x in (groups.sizes, groups.counts, groups.weights, groups.samples))
    return Sizes(K, n, w, N, float(s.N), alpha)


def optimum(s: Setting, groups: Groups, alpha: float) -> Block | None:
    """The minimiser: first the probabilities, then the logits.

    None unless there are two groups, and where their means vanish.
    """
    g = sizes_of(s, groups, alpha)
    if g is None:
        return None
    x = s.N * math.sqrt(s.c_squared / s.n)
    u = free_direction(g) if s.bias and s.lam_b == 0 else _direction(g, s, x)
    if u is None:
        return None
    margin, xi = g.xi(x, g.given_away(x, u))
    if not np.isfinite(xi).all():
        return None
    if s.bias and s.lam_b == 0:
        rho = xi.sum() / (1 / g.N).sum() / g.N
        shift = xi[0] - rho[0]
    else:
        shift = _shift(g, s, x, u)
        rho = xi - np.array([shift, -shift])
    if not (rho >= 0).all():
        return None
    Theta = np.array([[g.K[1] * rho[0], -g.K[1] * rho[1]], [-g.K[0] * rho[0], g.K[0] * rho[1]]]) / s.K
    b = np.array([g.K[1], -g.K[0]]) * shift / s.K
    return Block(Theta * groups.mean_scale, np.sqrt(g.n) * margin, b)


def free_direction(g: Sizes) -> Pair:
    """u with a free bias."""
    return np.asarray(np.sqrt(g.N[::-1] / g.total))


def _shift(g: Sizes, s: Setting, x: float, u: Pair) -> float:
    """s = b_A - b_B of a bias that is absent or penalised."""
    pull = g.w * g.N / g.total * (g.given_away(x, u) - g.uniform)
    return float((pull[0] - pull[1]) / (s.lam_b * g.q)) if s.bias else 0.0


def _direction(g: Sizes, s: Setting, x: float) -> Pair | None:
    """u = (cos, sin) of the angle at which u is parallel to (sqrt(N_A) rho_A, sqrt(N_B) rho_B), else None.

    rho_A rises and rho_B falls with the angle: each sample gives away less the less its group is separated.
    """

    def turned(angle: float) -> float:
        u = np.array([math.cos(angle), math.sin(angle)])
        shift = _shift(g, s, x, u)
        rho = g.xi(x, g.given_away(x, u))[1] - np.array([shift, -shift])
        return float(np.clip(np.sqrt(g.N[0]) * rho[0] * u[1] - np.sqrt(g.N[1]) * rho[1] * u[0], -1e9, 1e9))

    # P_g < 1 - gain bounds the angle on both sides
    most = (1 - g.gain(x) - g.uniform) * g.w / (x * np.sqrt(g.q / g.N))
    low = math.acos(min(1.0, most[0]))
    high = math.asin(min(1.0, most[1]))
    margin = 1e-15 * (1 + high)
    if not low + margin < high - margin:
        return None
    if not turned(low + margin) < 0 < turned(high - margin):
        return None
    angle = _root(turned, low + margin, high - margin, rtol=4 * np.finfo(float).eps)
    return np.array([math.cos(angle), math.sin(angle)])


def parting(s: Setting, groups: Groups, alpha: float) -> float | None:
    """x = N lam at which the means of the two groups leave zero; None with a penalised bias.

    With a free bias it is where xi_A + xi_B = 0; if neither group is spread there, P_A + P_B = 1. Without a
    bias it is where the slope of the loss in the means, at means of zero, is lam:
    x^2 = sum_g (w_g (P_g - alpha K_h/K))^2 N_g/q with xi_g = 0.
    """
    g = sizes_of(s, groups, alpha)
    if g is None or (s.bias and s.lam_b > 0):
        return None
    together = _together(g, s.bias)
    spread = float(np.max(np.where(g.K > 1, (1 - alpha) * g.w * np.sqrt(g.n), 0.0)))
    excess = _free_excess if s.bias else _slope_excess
    if together >= spread:
        return together
    return _root(lambda x: excess(g, x), 1e-9 * spread, spread)


def _together(g: Sizes, bias: bool) -> float:
    """The threshold if no class is apart from the others of its group there."""
    if bias:
        return float((1 - g.alpha) / np.sum(np.sqrt(g.q / g.N) * free_direction(g) / g.w))
    share = (1 - g.alpha) * g.K[::-1] / g.K.sum()
    return float(np.sqrt(np.sum((g.w * share) ** 2 * g.N) / g.q))


def _free_excess(g: Sizes, x: float) -> float:
    """xi_A + xi_B."""
    _, xi = g.xi(x, g.given_away(x, free_direction(g)))
    return float(np.clip(xi.sum(), -1e9, 1e9))


def _slope_excess(g: Sizes, x: float) -> float:
    """log of the slope in the means over lam, where the means are zero and there is no bias."""
    away = np.array([_away(*pair) for pair in zip(g.gain(x), g.K, g.K[::-1], strict=True)]) - g.uniform
    return float(np.log(np.sum((g.w * away) ** 2 * g.N) / g.q) / 2 - math.log(x))


def _away(gain: float, K: float, others: float) -> float:
    """P of a sample with the logits margin (1 - 1/K), -margin/K, 0 of its class, its group and the others."""
    if gain == 0:
        return float(others / (K + others))

    def excess(margin: float) -> float:
        return float(np.expm1(margin) / (np.exp(margin) + K - 1 + others * np.exp(margin / K)) - gain)

    top = 1.0
    while excess(top) < 0:
        top *= 2
    margin = _root(excess, 0.0, top)
    return float(others / (np.exp(margin * (1 - 1 / K)) + (K - 1) * np.exp(-margin / K) + others))


def _root(f: Callable[[float], float], low: float, high: float, rtol: float = 1e-15) -> float:
    """Of a function that changes its sign between the two."""
    from scipy.optimize import brentq  # here, because `import ufm` does not need scipy

    return float(brentq(f, low, high, xtol=1e-300, rtol=rtol))
