"""Rescaled mean squared error, whose optimum is known in closed form for every bias.

By convexity the class means can be averaged over all permutations: Zbar = a (I - 11^T/K) + m 11^T/K and
b = b0 1, which leaves f = kappa (z_k - beta)^2 + (K-1) z_j^2 + c ((K-1)|a| + |m|) + lam_b K b0^2/2, convex in
(a, m, b0), with z_k = ((K-1) a + m)/K + b0 and z_j = (m - a)/K + b0. Each phase in c is one linear system.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

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
    Block,
    Curvature,
    Groups,
    SymmetricPoint,
    ToBall,
    Vector,
    number,
)
from ufm.losses._logits import own
from ufm.losses._profile import ScalarProfile


@pytree_dataclass
class RescaledMSE(Loss, pure=True, by_column=True):
    """L = kappa (z_k - beta)^2 + sum_{j != k} z_j^2.  Convex, not shift-invariant.  Paper, equation (6)."""

    kappa: Any = 1.0  # the paper's values (Section 4)
    beta: Any = 15.0

    name = "mse"
    title = "rescaled MSE"
    formula = r"\kappa (z_k - \beta)^2 + \sum_{j \ne k} z_j^2"
    source = "Zhou et al. 2022"
    convex = True
    symmetric = True
    of_p = False
    sums_classes = True
    fails = ("T1",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kappa", _checks.real("kappa", self.kappa, above=0.0))
        object.__setattr__(self, "beta", _checks.real("beta", self.beta, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        kappa, beta = jnp.asarray(self.kappa, z.dtype), jnp.asarray(self.beta, z.dtype)
        return jnp.sum(jnp.where(own(z, k), kappa * (z - beta) ** 2, z**2), axis=0)

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        kappa, beta = jnp.asarray(self.kappa, u.dtype), jnp.asarray(self.beta, u.dtype)
        return jnp.sum(jnp.where(own(u, k), u * beta + u**2 / (4 * kappa), u**2 / 4))

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        kappa, beta = jnp.asarray(self.kappa, u.dtype), jnp.asarray(self.beta, u.dtype)
        return jnp.sum(jnp.where(own(u, k), kappa * (z - beta - u / (2 * kappa)) ** 2, (z - u / 2) ** 2))

    @property
    def _numbers(self) -> tuple[float, float]:
        return number("kappa", self.kappa), number("beta", self.beta)

    def profile(self, K: int) -> ScalarProfile:
        """The shift that minimises leaves mu (a - beta)^2 with 1/mu = 1/kappa + 1/(K-1)."""
        kappa, beta = self._numbers
        mu = kappa * (K - 1) / (kappa + K - 1)
        return ScalarProfile(
            lambda a: mu * (beta - a) ** 2,
            lambda a: -2 * mu * (beta - a),
            lambda a: 2 * mu + 0.0 * np.asarray(a),
            K,
        )

    def optimum(self, setting: Setting) -> SymmetricPoint:
        kappa, beta = self._numbers
        phase, a, m, b0 = minimiser(setting, Fraction(kappa), Fraction(beta))
        trivial = float(trivial_bias(setting, Fraction(kappa), Fraction(beta)))
        return SymmetricPoint(
            a,
            value(setting, kappa, beta, a, m, b0),
            value(setting, kappa, beta, 0.0, 0.0, trivial),
            m=m,
            b0=b0,
            theorem=f"averaging over the permutations of the classes (convex loss), phase {phase}",
            remark=REMARKS[phase],
        )

    def threshold(self, setting: Setting) -> tuple[float, float | None]:
        full, origin = phases(setting, *map(Fraction, self._numbers))
        return float(origin), float(full) if setting.bias and setting.lam_b > 0 else None

    def block_optimum(self, setting: Setting, groups: Groups) -> Block | None:
        kappa, beta = self._numbers
        if not setting.bias:
            return diagonal(setting, groups, kappa, beta)
        return thresholded(setting, groups, beta) if self._is_distance(setting, groups) else None

    def _is_distance(self, setting: Setting, groups: Groups) -> bool:
        """A free bias, and the loss a squared distance of one weight."""
        free = setting.bias and setting.lam_b == 0
        return bool(free and self._numbers[0] == 1 and np.ptp(groups.weights) == 0)

    def parting(self, setting: Setting, groups: Groups) -> float | None:
        if not self._is_distance(setting, groups):
            return None
        sigma = np.linalg.svd(_means(setting, groups, self._numbers[1]), compute_uv=False)
        return float(2 * groups.weights[0] * sigma[0])

    def merging(self, bias: bool) -> float | None:
        """Without a bias the logits are diagonal; with kappa = 1 the loss is a distance, which splits."""
        kappa, beta = self._numbers
        return 2 * kappa * beta if kappa == 1 or not bias else None

    def curvature(self, K: int, a: float, m: float, b0: float) -> Curvature:
        kappa, beta = self._numbers
        other = (m - a) / K + b0
        u = 2 * kappa * (other + a - beta)
        return Curvature(u, 2 * other, np.diag([2 * kappa, 2.0]), 2.0, False)

    def in_balls(self, ball: ToBall) -> BallLoss:
        kappa, beta = map(ball, self._numbers)

        def weight(j: int, k: int) -> Ball:
            return kappa if j == k else ball(1)

        def residuals(z: Vector, k: int) -> Vector:
            return [x - beta if j == k else x for j, x in enumerate(z)]

        def value(z: Vector, k: int) -> Ball:
            return sum((weight(j, k) * x * x for j, x in enumerate(residuals(z, k))), ball(0))

        def gradient(z: Vector, k: int) -> Vector:
            return [2 * weight(j, k) * x for j, x in enumerate(residuals(z, k))]

        def hessian(z: Vector, k: int) -> list[Vector]:
            return [[2 * weight(j, k) if i == j else ball(0) for j in range(len(z))] for i in range(len(z))]

        return BallLoss(value, gradient, hessian, None, ball(0))

    def typical_margin(self) -> float:
        return self._numbers[1]

    def squares(self) -> tuple[float, float] | None:
        return self._numbers


def mse(kappa: ArrayLike = 1.0, beta: ArrayLike = 15.0) -> RescaledMSE:
    """Rescaled mean squared error, L = kappa (z_k - beta)^2 + sum_{j != k} z_j^2.

    Target `beta` > 0, weight of the target `kappa` > 0.  Paper, equation (6).
    """
    return RescaledMSE(kappa, beta)


# --- its phases -----------------------------------------------------------------------------------

REMARKS = {
    "A": "no simplex ETF: MSE is not a function of logit differences, and here the mean of the logits is not "
    "left to the bias",
    "B": "a simplex ETF because the bias takes the mean of the logits",
    "C": "at this c features and classifier are zero",
}


class Phases(NamedTuple):
    """Thresholds in c, exact: rank K below `full`, rank K-1 up to `origin`, then zero."""

    full: Fraction
    origin: Fraction


def phases(s: Setting, kappa: Fraction, beta: Fraction) -> Phases:
    """c at which the mean eigenvalue m, and then the margin a, reaches zero."""
    if not s.bias:
        return Phases(2 * kappa * beta / s.K, 2 * kappa * beta / s.K)
    lam_b, b0 = Fraction(s.lam_b), trivial_bias(s, kappa, beta)
    full = beta / s.K * lam_b / (1 + lam_b / (2 * kappa))
    return Phases(full, Fraction(2, s.K) * (kappa * (beta - b0) + b0))


def trivial_bias(s: Setting, kappa: Fraction, beta: Fraction) -> Fraction:
    """argmin over b0 of kappa (b0 - beta)^2 + (K-1) b0^2 + lam_b K b0^2/2."""
    if not s.bias:
        return Fraction(0)
    return 2 * kappa * beta / (2 * kappa + 2 * (s.K - 1) + Fraction(s.lam_b) * s.K)


def minimiser(s: Setting, kappa: Fraction, beta: Fraction) -> tuple[str, float, float, float]:
    """Phase ("A" rank K, "B" rank K-1, "C" zero), a, m and b0.

    Margins and m are slopes times exact distances to their thresholds.
    """
    full, origin = phases(s, kappa, beta)
    above, below, lam_b = s.below(origin), s.below(full), Fraction(s.lam_b)
    if above <= 0:
        return "C", 0.0, 0.0, float(trivial_bias(s, kappa, beta))
    if not s.bias:
        a = float(s.K / (2 * kappa)) * above
        return "A", a, a, 0.0
    if below > 0:
        m = float(s.K * (1 / (2 * kappa) + 1 / lam_b)) * below
        return "A", float(s.K / (2 * kappa)) * s.below(2 * kappa * beta / s.K), m, s.c / s.lam_b
    A1 = Fraction(s.K - 1, 2 * s.K) + 1 / (2 * kappa * s.K)
    shared = (1 + lam_b / (2 * kappa)) / (1 + A1 * lam_b)
    slope = float(s.K / (2 * kappa) - (1 - kappa) / (2 * kappa) * shared)
    tilt = float(Fraction(s.K - 1, 2) * (1 - 1 / kappa))
    return "B", slope * above, 0.0, (float(beta) + s.c * tilt) / float(s.K * (1 + A1 * lam_b))


def value(s: Setting, kappa: float, beta: float, a: float, m: float, b0: float) -> float:
    """The objective at a point of the symmetric family: a sum of terms >= 0."""
    K = s.K
    target, other = ((K - 1) * a + m) / K + b0, (m - a) / K + b0
    fit = kappa * (target - beta) ** 2 + (K - 1) * other**2
    return fit + s.c * ((K - 1) * abs(a) + abs(m)) + s.lam_b * K * b0**2 / 2


# --- unequal counts -------------------------------------------------------------------------------


def diagonal(s: Setting, groups: Groups, kappa: float, beta: float) -> Block:
    """No bias: Zbar is diagonal, z_kk = (beta - N lam/(2 kappa w_k sqrt n_k))_+, classes vanish one by one.

    Source: docs/theory.md, section 1.7.
    """
    spread = np.maximum(0.0, beta * np.sqrt(groups.counts) - _lam_N(s) / (2 * kappa) / groups.weights)
    return Block(np.diag(spread), np.where(groups.sizes > 1, spread, 0.0), np.zeros(len(spread)))


def thresholded(s: Setting, groups: Groups, beta: float) -> Block:
    """kappa = 1, free bias: the singular values of beta D^(1/2) (I - s s') lose N lam/2, s = sqrt(n_k/N).

    A weight w that all classes share divides N lam.

    Source: docs/theory.md, section 1.7.
    """
    root, share, least = np.sqrt(groups.counts), groups.samples / s.N, _lam_N(s) / 2 / groups.weights[0]
    U, sigma, Vt = np.linalg.svd(_means(s, groups, beta))
    T = (U * np.maximum(0.0, sigma - least)) @ Vt
    t = np.where(groups.sizes > 1, np.maximum(0.0, beta * root - least), 0.0)
    return Block(T, t, beta * groups.counts / s.N - (T / groups.mean_scale) @ share)


def _means(s: Setting, groups: Groups, beta: float) -> np.ndarray:
    """(G, G): beta D^(1/2) (I - s s') on the means of the groups."""
    share = groups.samples / s.N
    centred = np.eye(len(share)) - np.sqrt(np.outer(share, share))
    return np.asarray(beta * np.sqrt(groups.counts)[:, None] * centred)


def _lam_N(s: Setting) -> float:
    """N sqrt(lam_W lam_H)."""
    return s.N * float(s.c_squared / s.n) ** 0.5
