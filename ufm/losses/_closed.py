"""Records in which a loss states what is known about it in closed form; they name no particular loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm.losses._profile import ScalarProfile

Proof = Literal["proved", "numerical", "upper bound"]
THEOREM_1 = "Zhou et al. 2022, Theorem 1"


class NoClosedForm(ValueError):  # noqa: N818 (a name of the public contract)
    """No closed form is known here; the message names the assumption that fails."""


def number(name: str, value: Any) -> float:
    """One concrete number.

    Raises:
        ValueError: an array (a batch of problems) or a tracer.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"{name}: expected a concrete number, got a tracer; call the theory outside jit")
    if np.ndim(value) != 0:
        raise ValueError(
            f"{name}: expected one number, got shape {np.shape(value)}; take one problem of the batch"
        )
    return float(value)


class SymmetricPoint(NamedTuple):
    """The lowest point that all permutations of the classes leave alone.

    Zbar = a (I - 11^T/K) + m 11^T/K and b = b0 1.
    """

    a: float
    objective: float
    trivial: float  # the objective at the best point with Z = 0
    m: float = 0.0
    b0: float = 0.0
    proved: Proof = "proved"  # to be the global optimum
    theorem: str = THEOREM_1
    remark: str = ""
    lower_bound: float | None = None  # None: the objective is one


class Groups(NamedTuple):
    """Classes of equal count and weight, the largest count first."""

    counts: Int[np.ndarray, " G"]  # n_g
    sizes: Int[np.ndarray, " G"]  # K_g
    of_class: Int[np.ndarray, " K"]  # g of each class
    weights: Float[np.ndarray, " G"]  # w_g, the factor of the loss

    @property
    def samples(self) -> Int[np.ndarray, " G"]:
        """N_g."""
        return self.counts * self.sizes

    @property
    def mean_scale(self) -> Float[np.ndarray, "G G"]:
        """sqrt(K_h N_g), the ratio of T to Theta."""
        return np.sqrt(np.outer(self.sizes, self.samples).astype(float))


class Block(NamedTuple):
    """A point that the permutations inside the groups leave alone (docs/theory.md, section 1.7)."""

    T: Any  # (G, G) the mean part
    t: Any  # (G,) the spread inside each group, zero for groups of one class
    b: Any  # (G,)


class ConvexityRegion(NamedTuple):
    """The loss is convex in z on {p_k >= p_min}, and for p_min > 0 on no larger set of this form."""

    p_min: float
    paper: float | None  # the paper's sufficient value, where it has one
    proved: Proof
    reason: str


def inflection(p_min: float) -> ConvexityRegion:
    """The region of h(p_k) of which -dh/da, as a function of p, rises up to p_min and falls from there."""
    return ConvexityRegion(p_min, None, "proved", "the inflection of the scalar profile, exact")


class Curvature(NamedTuple):
    """Derivatives of the loss in z at (own, other, .., other), which permutations of the others leave alone.

    In the orthonormal basis e_k, f = (1 - e_k)/sqrt(K-1) the Hessian is `block`; on the rest it is `rest`
    times the identity.
    """

    u: float  # dL/dz_k
    v: float  # dL/dz_j
    block: np.ndarray  # (2, 2)
    rest: float
    shift_invariant: bool

    def on_ones(self, K: int) -> float:
        """1^T Hess 1/K."""
        one = np.array([1.0, math.sqrt(K - 1)])
        return 0.0 if self.shift_invariant else float(one @ self.block @ one) / K

    def margin(self, K: int) -> float:
        """B1: the curvature along the unit vector of e_k - 1/K."""
        e = np.array([math.sqrt((K - 1) / K), -math.sqrt(1 / K)])
        return float(e @ self.block @ e)

    def mean_gradient(self, K: int) -> float:
        """Eigenvalue of (1/K)[grad L(., 1) .. grad L(., K)] on 1."""
        return 0.0 if self.shift_invariant else (self.u + (K - 1) * self.v) / K


def along_margin(profile: ScalarProfile, a: float, rest: float | None = None) -> Curvature:
    """The curvature of a shift-invariant loss at margin a: in the plane it is l''(a), whatever the loss.

    A function of the target probability alone has `rest` = -l'(a)/(K-1), the slope in the margin spread over
    K-1 classes, which is the default.
    """
    K, slope = profile.K, float(profile.slope(a))
    e = np.array([math.sqrt((K - 1) / K), -math.sqrt(1 / K)])
    block = float(profile.curvature(a)) * K / (K - 1) * np.outer(e, e)
    return Curvature(slope, -slope / (K - 1), block, -slope / (K - 1) if rest is None else rest, True)


# --- ball arithmetic ------------------------------------------------------------------------------

Ball = Any  # a number with a proven error bound, of a library that this floor does not import
Vector = list[Ball]
ToBall = Callable[[Any], Ball]  # the ball around an exact number


class BallLoss(NamedTuple):
    """A loss of one logit vector with two derivatives; the profile where it is shift-invariant."""

    value: Callable[[Vector, int], Ball]
    gradient: Callable[[Vector, int], Vector]
    hessian: Callable[[Vector, int], list[Vector]]
    profile: Callable[[Ball, int], tuple[Ball, Ball]] | None  # (l(a), l'(a)) at margin a among K classes
    tilt: Ball  # l(a) >= tilt (K-1)/K a


class Odds(NamedTuple):
    """h(p), eta(p) = p h'(p) and eta'(p), as functions of the odds against the target, o = (1-p)/p."""

    h: Callable[[Ball], Ball]
    eta: Callable[[Ball], Ball]
    eta_slope: Callable[[Ball], Ball]


def of_odds(f: Odds, tilt: Ball, ball: ToBall) -> BallLoss:
    """h(p_k) + tilt (z_k - mean z), with

    grad h = eta (e_k - p),   Hess h = eta' p_k (e_k - p)(e_k - p)' - eta (diag p - p p').
    """

    def softmax(z: Vector, k: int) -> tuple[Ball, Vector]:
        """The odds against class k, and the probabilities."""
        weights = [(x - z[k]).exp() if j != k else ball(0) for j, x in enumerate(z)]
        odds = sum(weights, ball(0))
        return odds, [w / (1 + odds) if j != k else 1 / (1 + odds) for j, w in enumerate(weights)]

    def value(z: Vector, k: int) -> Ball:
        return f.h(softmax(z, k)[0]) + tilt * (z[k] - sum(z, ball(0)) / len(z))

    def gradient(z: Vector, k: int) -> Vector:
        odds, p = softmax(z, k)
        eta, share = f.eta(odds), tilt / len(z)
        return [
            eta * odds / (1 + odds) + tilt - share if j == k else -eta * q - share for j, q in enumerate(p)
        ]

    def hessian(z: Vector, k: int) -> list[Vector]:
        odds, p = softmax(z, k)
        eta, bend = f.eta(odds), f.eta_slope(odds) * p[k]
        away = [odds / (1 + odds) if j == k else -q for j, q in enumerate(p)]  # e_k - p
        return [
            [
                bend * away[i] * away[j] - eta * (p[i] * (1 - p[i]) if i == j else -p[i] * p[j])
                for j in range(len(z))
            ]
            for i in range(len(z))
        ]

    def profile(a: Ball, K: int) -> tuple[Ball, Ball]:
        odds, lift = (K - 1) * (-a).exp(), tilt * (K - 1) / K
        return f.h(odds) + lift * a, f.eta(odds) * odds / (1 + odds) + lift

    return BallLoss(value, gradient, hessian, profile, tilt)
