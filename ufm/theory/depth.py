"""A deep linear classifier in numbers: its thresholds, the Schatten sum, and what small penalties prefer.

With q = layers + 1 factors and c = (n lam_H lam_1 ... lam_M)^(1/q), neural collapse of margin a costs
l(a) + (q/2) C a^(2/q), C = (K-1) c. It is stationary where T(a) = -l'(a) a^(1-2/q) = C. As T(0) = 0, the
origin is a local minimum for every C, and the transition is of first order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._sheet import Printed, Sheet, digits, printed
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.models import Deep, Free
from ufm.theory import thresholds
from ufm.theory._deep import depth_of
from ufm.theory._setting import any_counts
from ufm.theory.profiles import facts_of, profile_of
from ufm.theory.thresholds import Threshold

# --- thresholds -----------------------------------------------------------------------------------


class _Transition(NamedTuple):
    """Of the scalar problem min over a of l(a) + (q/2) C a^(2/q)."""

    C_tie: float
    C_spin: float
    a_tie: float
    a_spin: float
    form: str


@dataclasses.dataclass(frozen=True, repr=False)
class DepthThreshold(Printed):
    """Where neural collapse of a deep classifier ties with the origin and where it ends, in C = rank * c."""

    q: int  # factors: one more than layers
    rank: int  # of neural collapse: K - 1, or K for MSE without a bias
    c: float  # of the problem: (n lam_H lam_1 ... lam_M)^(1/q)
    C_tie: float  # above it the origin is lower than neural collapse
    C_spin: float  # above it no critical point has neural collapse
    a_tie: float  # the margin of neural collapse at C_tie: the jump
    a_spin: float  # its margin at C_spin, where it ends
    form: str  # how the numbers are known
    global_tie: bool  # whether the global optimum jumps at C_tie; else states of lower rank cross before

    kind = "first order"

    @property
    def C(self) -> float:
        """rank * c, of the problem."""
        return self.rank * self.c

    @property
    def c_tie(self) -> float:
        """C_tie / rank."""
        return self.C_tie / self.rank

    @property
    def c_spin(self) -> float:
        """C_spin / rank."""
        return self.C_spin / self.rank

    @property
    def collapses(self) -> bool:
        """Whether neural collapse is lower than the origin."""
        return self.C_tie > self.C

    @property
    def phase(self) -> str:
        """ "I": neural collapse is lower than the origin.  "II": it is a higher critical point.  "III": there
        is none. The origin is a strict local minimum in all of them.
        """
        return "I" if self.collapses else "II" if self.C_spin > self.C else "III"

    def sheet(self) -> Sheet:
        """The thresholds and the phase."""
        words = {
            "I": "neural collapse is lower than the origin",
            "II": "the origin is lower",
            "III": "no collapse",
        }
        jump = (
            "is the global optimum's"
            if self.global_tie
            else "is not the global optimum's: theory.global_optimum"
        )
        rows = [
            ("C", digits(self.C)),
            ("C_tie", f"{digits(self.C_tie)}, margin {self.a_tie:.6g}"),
            ("C_spin", f"{digits(self.C_spin)}, margin {self.a_spin:.6g}"),
            ("phase", f"{self.phase}: {words[self.phase]}"),
        ]
        rows += [("known by", self.form), ("transition", f"first order, {jump}")]
        return Sheet(f"{self.q - 1} layers, C = {self.rank} (n Lam)^(1/{self.q})", (), rows, [])


def threshold_of(prob: Problem) -> DepthThreshold | Threshold:
    """`theory.threshold` of a deep classifier; one layer has that of two free factors.

    Cross-entropy, th = 1 - 2/q: a_spin = th + W(th (K-1) e^-th) with Lambert's W, C_spin = (1 - th/a) a^th.
    MSE, kappa <= 1 without a bias or kappa = 1 with a free one: a_tie = beta (q-2)/(q-1) and
    a_spin = beta th/(1 + th). Other losses: the maximum of T(a) = -l'(a) a^th, which is assumed to rise and
    fall once (checked on a grid), and the root of l(a) - (q/2) a l'(a) = l(0) beyond it.

    Raises:
        NoClosedForm: unequal counts or weights, a loss without a scalar problem, or a layer that is narrower
            than the rank of neural collapse.

    Source: docs/theory.md, section 6.2.
    """
    s, model = any_counts(prob), prob.model
    assert isinstance(model, Deep)
    if prob.n is None:
        raise NoClosedForm(
            "labels, class_weights: with a deep classifier thresholds are known for equal counts and no "
            f"weights, got {prob.unequal}"
        )
    depth = depth_of(prob)
    if model.layers == 1:
        return thresholds.balanced_threshold(prob.replace(model=Free(), lam_W=float(depth.lam[1])))
    squares = s.loss.squares()
    rank = s.K - 1 if squares is None or s.bias else s.K
    if depth.width < rank:
        raise NoClosedForm(
            f"d, widths: expected none below {rank}, the rank of neural collapse, got {depth.width}"
        )
    found = _of_differences(s, depth.q) if squares is None else _of_squares(s, depth.q, *squares)
    return DepthThreshold(depth.q, rank, depth.c, *found, global_tie=squares is not None or s.K == 2)


def _of_squares(s: Setting, q: int, kappa: float, beta: float) -> _Transition:
    """l(a) = kappa (beta - a)^2 without a bias, (K-1)/K (beta - a)^2 with a free one."""
    if not (kappa == 1 and s.bias and s.lam_b == 0) and (s.bias or kappa > 1):
        raise NoClosedForm(
            "loss: with a deep classifier MSE has known thresholds for kappa <= 1 and no bias, or kappa = 1 "
            f"and a free one, got {s.loss!r}, bias={s.bias}, lam_b={s.lam_b:g}"
        )
    th, scale = 1 - 2 / q, 2 * (kappa * (s.K - 1) / s.K if s.bias else kappa)

    def weight(a: float) -> float:
        return scale * (beta - a) * a**th

    a_tie, a_spin = beta * (q - 2) / (q - 1), beta * th / (1 + th)
    return _Transition(weight(a_tie), weight(a_spin), a_tie, a_spin, "closed form of MSE")


def _of_differences(s: Setting, q: int) -> _Transition:
    facts = facts_of(s.loss, s.K)
    if not (facts.symmetric and facts.shift_invariant and facts.averages):
        raise NoClosedForm(f"loss: {s.loss!r} has no scalar problem: see theory.contrastive_property")
    profile, th = profile_of(s.loss, s.K), 1 - 2 / q

    def rise(a: Any) -> Any:
        """The derivative of log T(a), with the sign of T'."""
        return -th * profile.slope(a) - a * profile.curvature(a)

    grid = np.geomspace(1e-3, 200.0, 2000)
    signs = np.asarray(rise(grid)) > 0
    turns = np.flatnonzero(signs[:-1] != signs[1:])
    if len(turns) == 0 or not signs[0] or signs[turns[0] + 1 :].any():
        raise NoClosedForm(f"loss: -l'(a) a^(1-2/q) of {s.loss!r} does not rise and fall once")
    a_spin = _root(lambda a: -float(rise(a)), grid[turns[0]], grid[turns[0] + 1])
    start = float(profile.value(0.0))

    def excess(a: float) -> float:
        return start - float(profile.value(a)) + q / 2 * a * float(profile.slope(a))

    outer = 2 * a_spin
    while excess(outer) < 0:
        outer *= 2
    a_tie = _root(excess, a_spin, outer)
    C_tie, C_spin = (-float(profile.slope(a)) * a**th for a in (a_tie, a_spin))
    lambert = "; a_spin = th + W(th (K-1) e^-th), th = 1 - 2/q" if s.loss.name == "ce" else ""
    return _Transition(C_tie, C_spin, a_tie, a_spin, f"roots of the scalar profile{lambert}")


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(f, low, high, xtol=1e-18, rtol=1e-15, maxiter=500))


# --- the Schatten sum -----------------------------------------------------------------------------


@in_float64
def schatten_penalty(prob: Problem, Z: Float[np.ndarray, "K N"]) -> float:
    """The least that layers with the product Z cost: (q/2) (lam_H lam_1 ... lam_M)^(1/q) sum sigma^(2/q).

    Every critical point has it: its factors are balanced. With one layer (q = 2) it is
    sqrt(lam_W lam_H) |Z|_*.

    Args:
        prob: of free factors or a deep classifier, with one column for each sample.
        Z: W_M ... W_1 H, without the bias.

    Raises:
        ValueError: another model; a wrong shape; a rank above the widths, which no layers have.

    Source: docs/theory.md, section 6.2.
    """
    chain = prob.model.chain(prob, prob.zeros())
    if not chain or prob.samples is not None:
        raise ValueError(f"prob: expected free factors and a column for each sample, got {prob!r}")
    array = np.asarray(_checks.array_like("Z", Z), np.float64)
    if array.shape != (prob.K, prob.columns):
        raise ValueError(f"Z: expected shape {(prob.K, prob.columns)}, got {array.shape}")
    sigma = np.linalg.svd(array, compute_uv=False)
    sigma = sigma[sigma > 1e-12 * max(sigma[0], 1e-300)]  # a root would enlarge the rounding of zeros
    width = min(prob.model.inner(prob))
    if len(sigma) > width:
        raise ValueError(f"Z: expected a rank of at most {width}, the narrowest layer, got {len(sigma)}")
    q, lam = len(chain), np.array([float(lam) for lam, _ in chain])
    return float(q / 2 * np.exp(np.log(lam).mean()) * np.sum(sigma ** (2 / q)))


# --- small penalties ------------------------------------------------------------------------------


@printed
class SmallPenalties(NamedTuple):
    """R of each geometry for which it has a closed form; neural collapse has K - 1.

    For cross-entropy f* = (q/2) c R log(1/c)^(2/q) (1 + o(1)) as c -> 0, with the least R of all geometries.
    """

    K: int
    layers: int
    free_bias: bool
    constants: dict[str, float]

    @property
    def lowest(self) -> str:
        """The geometry with the least R of these."""
        return min(self.constants, key=lambda name: self.constants[name])

    @property
    def neural_collapse_fails(self) -> bool:
        """Whether neural collapse is proved not to be the global optimum for all small penalties.

        False means that none of these geometries has a smaller R, which proves nothing.
        """
        tie = self.K == 3 and self.layers == 3 and self.free_bias  # equal R: the prefactors 4/3 and 2 decide
        return tie or self.constants[self.lowest] < (self.K - 1) * (1 - 1e-12)


def small_penalties(K: int, layers: int, *, free_bias: bool = False) -> SmallPenalties:
    """What cross-entropy prefers as the penalties of a deep classifier vanish: R of the known geometries.

        R = min of sum sigma_i(X)^(2/q) over X and b with x_kk - x_jk + b_k - b_j >= 1 for j != k

    neural collapse: K - 1;  orthogonal simplexes of g_i classes: sum (g_i - 1) (g_i/(g_i - 1))^(2/q);
    regular polygon: 2 (K/(2 (1 - cos 2 pi/K)))^(2/q);  words of m letters out of s: m (s - 1) (K/s)^(2/q);
    with a free bias, K points on a line: (K (K^2 - 1)/6)^(2/q).

    Neural collapse is not the global optimum for all small penalties where another R is smaller: without a
    bias, for two layers from K = 6 on, and for three and more from K = 4 on.

    Raises:
        ValueError: K < 2 or layers < 1.

    Source: docs/theory.md, section 6.2.

    >>> import ufm
    >>> small = ufm.theory.small_penalties(K=6, layers=2)
    >>> small.lowest, round(small.constants[small.lowest], 3), small.neural_collapse_fails
    ('3 groups of 2', 4.762, True)
    """
    K, layers = _checks.integer("K", K, least=2), _checks.integer("layers", layers, least=1)
    p = 2 / (layers + 1)
    constants = {"neural collapse": K - 1.0}
    for m in range(2, K // 2 + 1):
        sizes = [K // m + (i < K % m) for i in range(m)]
        constants[_groups_name(sizes)] = float(sum((g - 1) * (g / (g - 1)) ** p for g in sizes))
    if K > 3:
        constants["regular polygon"] = 2 * (K / (2 * (1 - math.cos(2 * math.pi / K)))) ** p
    for s in range(2, math.isqrt(K) + 1):
        m = round(math.log(K, s))
        if s**m == K:
            constants[f"words of {m} letters out of {s}"] = m * (s - 1) * (K / s) ** p
    if free_bias and K > 2:
        constants["points on a line"] = (K * (K * K - 1) / 6) ** p
    return SmallPenalties(K, layers, free_bias, constants)


def _groups_name(sizes: list[int]) -> str:
    counted = [(sizes.count(g), g) for g in sorted(set(sizes))]
    return " and ".join(f"{times} group{'s' * (times > 1)} of {g}" for times, g in counted)


thresholds.OF_MODELS[Deep] = threshold_of
