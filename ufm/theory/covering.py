"""Focal loss with a bias: where neural collapse is proved to be optimal although C = (K-1) c > 1.

Margins a stand for target probabilities p = e^a/(e^a + K - 1); l is the scalar profile and S = -l' its slope.
V, the value of neural collapse, is the minimum of l(a) + C a over p >= p_infl, attained at a*. Let theta be
the margin below it with l(theta) + C theta = V. If no class lies below theta, f >= V. Otherwise m classes
are *bad*, below it, and the other g = K - m are *good*. With P, the centring over all classes, and P_G, that
over the good ones,

    ||y P + (1-y) P_G|| <= 1  for 0 <= y <= 1,  so  c ||Z||_* >= c <Z, y P + (1-y) P_G>,

in which the bias drops out. In K f a bad class then costs at least l(a) + y C a, and a good one the least of
l + al A + be B over its margins A among the good and B against the bad classes, whose odds add up to (1-p)/p:

    v(a) = l(a) + s (a - log(K-1)) + al log((g-1) s/al) + be log(m s/be),
    al = (1-y) C K (g-1)/((K-1) g) + y C (g-1)/(K-1),   be = y C m/(K-1),   s = al + be.

Neural collapse is optimal if, for each m and each interval of the lowest bad margin, some y makes the sum of
the costs at least K V. All of them bad is never better: y = 1/C gives l(theta) + theta > V, as theta < 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import xlogy

from ufm import _checks
from ufm._precision import in_float64
from ufm._sheet import printed
from ufm.losses import focal
from ufm.losses._focal_branch import branch_margin, p_infl
from ufm.losses._profile import ScalarProfile, margin_of
from ufm.theory.thresholds import first_order_margins

#: values of y: the best ones are close to 1 where the inequality is tight
_SHARES = 1 - np.linspace(1.0, 0.0, 97) ** 3
#: how far below theta the intervals of the lowest bad margin end; the last one has no end
_DEPTHS = np.append(0.0, np.geomspace(1e-3, 40.0, 60))
#: margins at which the profile has a tangent, and how far they reach
_TANGENTS = np.linspace(0.0, 60.0, 20_000)
#: the cover ends where its intervals are shorter than this: the inequality fails there, or nearly
_SHORTEST = 1e-9
#: margins below this are not told from rounding, which is about 1e-12 at K = 100
_LEAST = 1e-10


@printed
class CertifiedRange(NamedTuple):
    """The C = (K-1) c up to which Theorem 1 is proved for focal loss, with any bias, n and d >= K - 1."""

    C: float  # inf: for every C
    ends: Float[np.ndarray, " steps"]  # of the intervals of C that cover what lies above 1
    margins: Float[np.ndarray, " steps"]  # by which K f exceeds K V, at least, in each interval

    @property
    def margin(self) -> float:
        """The smallest of the margins, never below 1e-10; rounding is about 1e-12."""
        return float(self.margins.min(initial=math.inf))


@in_float64
def certified_range(gamma: float, K: int) -> CertifiedRange:
    """Up to which C = (K-1) c no (W, H, b) lies below neural collapse (or zero), for focal loss with a bias.

    Up to C = 1 this is Theorem 1 (docs/theory.md, section 2.2). From there on intervals [C_1, C_2] are added
    in which a dual bound exceeds the value of neural collapse: with the theta of C_2, which grows with C, the
    excess at C_1 has to be larger than K a*(C_1) (C_2 - C_1), by which the concave value of neural collapse
    can rise while f does not fall. Where the transition is of second order, K <= 17 for every gamma, the
    cover can reach C_thr, beyond which zero is optimal because f does not fall. Inequalities are evaluated in
    float64; the margins say by how much they hold.

    Args:
        gamma: the exponent of focal loss, > 0.
        K: classes, >= 2.

    Raises:
        ValueError: gamma <= 0 or K < 2.

    Source: docs/theory.md, section 2.6.
    """
    gamma, K = _checks.real("gamma", gamma, above=0.0), _checks.integer("K", K, least=2)
    setting = _setting_of(gamma, K)
    limit = setting.limit
    C, length = 1.0, math.inf
    ends: list[float] = []
    margins: list[float] = []
    while limit > C:
        length = min(4 * length, limit - C)
        while (left := setting.excess(C, C + length)) <= _LEAST and length > _SHORTEST:
            length /= 2
        if left <= _LEAST:
            break
        C = limit if length == limit - C else C + length
        ends.append(C)
        margins.append(left)
    whole = setting.second_order and limit <= C
    return CertifiedRange(math.inf if whole else C, np.array(ends), np.array(margins))


def certifies(gamma: float, K: int, C: float) -> bool:
    """Whether the bound of this C alone proves neural collapse, or zero from C_thr on, to be optimal."""
    setting = _setting_of(gamma, K)
    if setting.second_order:
        C = min(C, setting.limit)
    if C <= 1:
        return True
    return setting.limit >= C and setting.excess(C, max(C, 1 + _SHORTEST)) > _LEAST


@functools.lru_cache(maxsize=32)
def _setting_of(gamma: float, K: int) -> _Setting:
    return _Setting(gamma, K, focal(gamma).profile(K), margin_of(p_infl(gamma), K))


class _Setting:
    """Focal loss with a table of tangents, whose envelope bounds l + s a from below where l is convex."""

    def __init__(self, gamma: float, K: int, profile: ScalarProfile, inflection: float) -> None:
        self.gamma, self.K, self.profile, self.inflection = gamma, K, profile, inflection
        jump = first_order_margins(focal(gamma), K)
        self.second_order = jump is None
        self.limit = -float(profile.slope(0.0 if jump is None else jump[1]))  # C_thr or C_tie
        at = inflection + _TANGENTS
        slopes = -profile.slope(at)
        self._slopes = np.append(0.0, slopes[::-1])
        self._heights = np.append(0.0, (profile.value(at) + slopes * _TANGENTS)[::-1])

    def collapsed(self, C: float) -> tuple[float, float]:
        """a* and V."""
        a = branch_margin(self.profile, self.gamma, C) or 0.0
        return a, float(self.profile.value(a)) + C * a

    def theta(self, C: float) -> float:
        """The margin below the local maximum of l(a) + C a at which this is V."""
        _, V = self.collapsed(C)

        def rise(a: float) -> float:
            return float(self.profile.slope(a)) + C

        def excess(a: float) -> float:
            return float(self.profile.value(a)) + C * a - V

        top = brentq(rise, _below(lambda a: -rise(a), self.inflection), self.inflection, xtol=1e-15)
        return float(brentq(excess, _below(excess, top), top, xtol=1e-15))

    def tangent(self, s: np.ndarray) -> np.ndarray:
        """At most min over a >= inflection of l(a) + s a: a concave function of s, interpolated."""
        inside = np.interp(s, self._slopes, self._heights)
        least = np.where(s < self._slopes[-1], inside, self.profile.value(self.inflection))
        return np.asarray(least + s * self.inflection)

    def excess(self, C: float, end: float) -> float:
        """What is left of K (f - V) in [C, end]: negative where the bound does not prove f >= V."""
        a, V = self.collapsed(C)
        theta = self.theta(end)
        bad = np.arange(1, self.K)[:, None]
        lowest, others = self._bad(C, theta)
        good = self._good(C, theta, bad)
        total = lowest[:, None] + (bad - 1) * others[:, None] + (self.K - bad) * good
        return float(total.max(axis=-1).min()) - self.K * V - self.K * a * (end - C)

    def _bad(self, C: float, theta: float) -> tuple[np.ndarray, np.ndarray]:
        """(intervals, y): the least cost of the class of lowest margin, and of another bad one.

        l + y C a is concave below the inflection, so the least is at an end; it falls if y C <= 1 <= S, which
        the last interval needs.
        """
        ends = theta - _DEPTHS
        cost = self.profile.value(ends)[:, None] + C * _SHARES * ends[:, None]
        lowest, others = np.minimum(cost[:-1], cost[1:]), np.minimum(cost[0], cost[1:])
        falls = C * _SHARES <= 1
        last = (np.where(falls, cost[i], -1e300) for i in (-1, 0))
        return tuple(np.vstack(pair) for pair in zip((lowest, others), last, strict=True))  # type: ignore[return-value]

    def _good(self, C: float, theta: float, bad: np.ndarray) -> np.ndarray:
        """(m, y): the least of v over margins >= theta, at theta or at the tangent of slope -s."""
        al, be, constant = weights(C, self.K, bad, _SHARES)
        s = al + be
        least = np.minimum(self.profile.value(theta) + s * theta, self.tangent(s))
        return np.asarray(least + constant)


def weights(C: float, K: int, bad: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """al, be and v(a) - l(a) - s a for this many bad classes."""
    good, share = K - bad, C / (K - 1)
    al = (1 - y) * share * K * (good - 1) / good + y * share * (good - 1)
    be = y * share * bad
    s = al + be
    entropy = xlogy(al, good - 1) + xlogy(be, bad) + xlogy(s, s) - xlogy(al, al) - xlogy(be, be)
    return al, be, entropy - s * math.log(K - 1)


def _below(f: Callable[[float], float], start: float) -> float:
    """A margin below `start` at which f is not positive."""
    step = 1.0
    while f(start - step) > 0:
        step *= 2
    return start - step
