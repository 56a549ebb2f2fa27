"""Losses of one probability, a free bias: simplexes of some of the classes as local minima near the tie.

`on` = m classes form a simplex of margin alpha, the others are at the origin and lower by the bias s. A pure
simplex is a minimum exactly where the singular value of G along the contrast of the two groups is at most
lam; elsewhere the contrast enters as one more part, of rank one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Problem, Variables
from ufm._sheet import printed
from ufm.losses import Loss
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.losses._profile import ScalarProfile
from ufm.theory import _frames, _partial
from ufm.theory._setting import need_free_factors, setting
from ufm.theory.profiles import is_of_p, profile_of
from ufm.theory.thresholds import first_order_margins


@printed
class SpuriousRange(NamedTuple):
    """Where a simplex of all classes but one is a strict local minimum above neural collapse."""

    C_start: float  # below C_thr
    C_fold: float  # above C_spin; no such critical point exists beyond
    C_thr: float
    margin: float  # alpha at C_start: there it is the margin of neural collapse
    gap: float  # b_on - b_off at C_start
    excess: float  # f less that of neural collapse at C_start
    fold_margin: float  # alpha at C_fold
    fold_gap: float  # b_on - b_off at C_fold


@in_float64
def spurious_range(loss: Loss, K: int) -> SpuriousRange:
    """The interval of C = (K-1) c with a spurious minimum of K - 1 classes, for a free bias.

    With m = K - 1 classes on, the state is stable where S(p_off) <= C. At the lower end S(p_off) = C, and its
    two other equations then give S(p_on) = C and b_on - b_off = alpha/(K-1): p_on is that of neural collapse,

        S(p_on) = S(p_off),  p_on = 1/(1 + (K-1) e^-a),  p_off = 1/(1 + (K-1) e^(a/(K-1))),

    an equation in the margin a alone. The upper end is the fold of the branch of critical points.

    Args:
        loss: one of the target probability alone, L = h(p).
        K: classes, >= 3.

    Raises:
        NoClosedForm: a loss that depends on more than p; a transition of second order.
        ValueError: K < 3.

    Source: docs/theory.md, section 2.5.

    >>> from ufm import losses
    >>> found = spurious_range(losses.focal(3.0), K=20)
    >>> f"{found.C_start:.9f} < {found.C_thr:.9f}"
    '1.199395849 < 1.199776144'
    """
    K = _checks.integer("K", K, least=3)
    if not is_of_p(loss, K):
        raise NoClosedForm(f"loss: expected one of the target probability alone, got {loss!r}")
    jump = first_order_margins(loss, K)
    if jump is None:
        raise NoClosedForm(f"K: for {loss!r} the transition is of second order at K={K}, without such minima")
    branch = _Branch(profile_of(loss, K))
    a = branch.start(jump[0])
    C = branch.strength(a)
    value = branch.profile.value
    excess = (float(value(-a / (K - 1))) - float(value(a))) / K - C * a / (K - 1)
    fold = branch.fold(a)
    gaps = a / (K - 1), branch.gap(fold)
    return SpuriousRange(C, branch.C(fold), branch.strength(0.0), a, gaps[0], excess, fold, gaps[1])


class _Branch:
    """Critical points with m = K - 1 classes on, by their margin alpha."""

    def __init__(self, profile: ScalarProfile) -> None:
        self.profile, self.m = profile, profile.K - 1

    def strength(self, a: float) -> float:
        """S at the margin a."""
        return -float(self.profile.slope(a))

    def start(self, spin: float) -> float:
        """The margin a > 0 with S(a) = S(-a/(K-1))."""

        def difference(a: float) -> float:
            return self.strength(a) - self.strength(-a / self.m)

        high = 2 * spin
        while difference(high) > 0:
            high *= 1.5
        return float(brentq(difference, spin, high, xtol=1e-16, rtol=1e-15))

    def fold(self, a: float) -> float:
        """The alpha of the largest C of the branch between the origin and the margin a."""
        found = minimize_scalar(
            lambda alpha: -self.C(alpha), bounds=(1e-3 * a, a), method="bounded", options={"xatol": 1e-8 * a}
        )
        return float(found.x)

    def C(self, alpha: float) -> float:
        """From the equation of alpha, with the bias of the state."""
        m, K = self.m, self.profile.K
        S, share = self._on(alpha, self.gap(alpha))
        return S * (m / K) * (1 - share / m) * m / (m - 1)

    def gap(self, alpha: float) -> float:
        """The s > 0 at which f is stationary: m S(p_on) times the share of the class off is S(p_off)."""

        def pull(s: float) -> float:
            S, share = self._on(alpha, s)
            return self.m * S * share - self.strength(-s)

        high = 2 * alpha / self.m
        while pull(high) > 0:
            high *= 2
        return float(brentq(pull, 0.0, high, xtol=1e-18, rtol=1e-15))

    def _on(self, alpha: float, s: float) -> tuple[float, float]:
        """S(p_on), and the share of the class off in the odds of a class on."""
        m = self.m
        far = -alpha * (1 - 1 / m) - s
        q = float(np.logaddexp(math.log(m - 1) - alpha, far))
        return self.strength(math.log(m) - q), math.exp(far - q)


@printed
class PartialState(NamedTuple):
    """A critical point at which `on` classes form a simplex: a minimum within its family."""

    on: int
    objective: float
    margin: float  # alpha
    gap: float  # b_on - b_off
    tension: float  # of the pure simplex: the singular value of G along the contrast, over lam
    factors: _frames.Factors
    b: np.ndarray  # (K,)
    setting: Setting

    @property
    def pure(self) -> bool:
        """Whether it is a simplex alone, without a part of rank one."""
        return self.factors.rank == self.on - 1

    @property
    def params(self) -> Variables:
        """The point itself."""
        return _frames.minimiser(self.setting, self.factors, self.b)


@in_float64
def partial_states(prob: Problem, on: Iterable[int] | None = None) -> tuple[PartialState, ...]:
    """The lowest state of partial collapse of each size, without those that shrink to the origin.

    Args:
        prob: balanced, with a bias and a loss of the target probability alone.
        on: numbers of classes in the simplex, from 2 to K - 1; default: all of them.

    Raises:
        NoClosedForm: no bias, unequal counts, or a loss that depends on more than p.
        ValueError: a size out of range.

    Source: docs/theory.md, section 2.4.
    """
    need_free_factors(prob)
    s = setting(prob)
    if not s.bias or not is_of_p(s.loss, s.K):
        raise NoClosedForm(
            f"prob: expected a bias and a loss of the target probability alone, got {s.loss!r}, bias={s.bias}"
        )
    sizes = np.arange(2, s.K) if on is None else np.array([_size(m, s.K) for m in on])
    profile, jump = profile_of(s.loss, s.K), first_order_margins(s.loss, s.K)
    _, points = _partial.scan(profile, s, sizes, 1.0 if jump is None else jump[1])
    found = (_state(profile, s, int(m), y) for m, y in zip(sizes, points.T, strict=True))
    return tuple(state for state in found if state is not None)


def _size(m: int, K: int) -> int:
    m = _checks.integer("on", m, least=2)
    if m > K - 1:
        raise ValueError(f"on: expected at most K - 1 = {K - 1} classes, got {m}")
    return m


def _state(profile: ScalarProfile, s: Setting, on: int, y: np.ndarray) -> PartialState | None:
    best = _partial.polish(profile, s, on, y)
    if best is None:
        return None
    factors = _frames.partial(s.K, on, best.alpha, best.v)
    tension = _partial.tension(profile, s, on, y)
    return PartialState(on, best.value, best.alpha, float(np.ptp(best.b)), tension, factors, best.b, s)
