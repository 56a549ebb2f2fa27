"""Partial collapse: `on` classes form a simplex ETF, the others sit at the origin, apart by the bias alone.

With a bias, a scalar profile that is concave at the origin and c near the tie, such a point lies below both
neural collapse and the origin: Theorem 1 of Zhou et al. 2022 is false there (focal loss, K >= 18).

Coordinates x = (alpha, s_on, s_off, s): alpha is the margin inside the group, s = b_on - b_off, and s_on
(s_off) is the logit difference between the groups that the columns of an on (off) class see. Where
s_on = s_off = s the features of the two groups do not depend on each other; else Zbar has one more, rank-one,
part u v^T with |v|^2 = (on (s_on - s)^2 + off (s_off - s)^2) on off/K. The objective is

    F(x) = on/K l(L - q_on) + off/K l(L - q_off) + c ((on-1) alpha + |v|) + lam_b/2 s^2 on off/K,
    q_on = log((on-1) e^-alpha + off e^-(alpha (1 - 1/on) + s_on)),
    q_off = log(off-1 + on e^s_off),  L = log(K-1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.losses._base import Setting
from ufm.losses._profile import ScalarProfile


class Partial(NamedTuple):
    """A critical point of the family."""

    value: float
    on: int  # classes in the simplex
    alpha: float
    v: np.ndarray  # (2,) the rank-one part between the groups; zero for most
    b: np.ndarray  # (K,)


def _odds(K: int, on: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """q_on, q_off and the softmax weights of the other group, pi and rho; x (4, ...), on (...)."""
    alpha, s_on, s_off, _ = x
    near = np.log(on - 1.0) - alpha
    far = np.log(K - on) - alpha * (1 - 1 / on) - s_on
    with np.errstate(divide="ignore"):
        rest = np.log(K - on - 1.0)  # -inf with one class off
    q_on, q_off = np.logaddexp(near, far), np.logaddexp(rest, np.log(on) + s_off)
    return q_on, q_off, np.exp(far - q_on), np.exp(np.log(on) + s_off - q_off)


def _between(K: int, on: np.ndarray) -> np.ndarray:
    """v = w (s_on - s, s_off - s): the weights w (2, ...)."""
    return np.sqrt(on * (K - on) / K) * np.sqrt(np.stack([on, K - on]))


def objective(profile: ScalarProfile, s: Setting, on: np.ndarray, x: np.ndarray) -> np.ndarray:
    """F at any number of points; x (4, ...), on (...)."""
    K, top = s.K, profile.odds(0.0)
    q_on, q_off, _, _ = _odds(K, on, x)
    fit = (on * profile.value(top - q_on) + (K - on) * profile.value(top - q_off)) / K
    v = _between(K, on) * (x[1:3] - x[3])
    norm = (on - 1) * np.abs(x[0]) + np.hypot(v[0], v[1])
    return np.asarray(fit + s.c * norm + s.lam_b / 2 * x[3] ** 2 * on * (K - on) / K)


def derivatives(
    profile: ScalarProfile, s: Setting, on: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (M, 4) and Hessian (M, 4, 4) of F, without c |v| where v = 0; x (4, M), on (M,)."""
    K, top = s.K, profile.odds(0.0)
    q_on, q_off, pi, rho = _odds(K, on, x)
    zero = np.zeros_like(pi)
    to_on = np.stack([pi / on - 1, -pi, zero, zero], -1)  # gradient of q_on
    to_off = np.stack([zero, zero, rho, zero], -1)
    tilt = np.stack([1 / on, zero - 1, zero, zero], -1) * np.sqrt(pi * (1 - pi))[:, None]
    side = np.stack([zero, zero, zero + 1, zero], -1) * np.sqrt(rho * (1 - rho))[:, None]
    gradient, hessian = _rank_one(s, on, x)
    for weight, q, first, second in ((on / K, q_on, to_on, tilt), (1 - on / K, q_off, to_off, side)):
        slope, curve = -weight * profile.slope(top - q), weight * profile.curvature(top - q)
        gradient += slope[:, None] * first
        hessian += curve[:, None, None] * first[:, :, None] * first[:, None]
        hessian += slope[:, None, None] * second[:, :, None] * second[:, None]
    spread = s.lam_b * on * (K - on) / K
    gradient[:, 0] += s.c * (on - 1)
    gradient[:, 3] += spread * x[3]
    hessian[:, 3, 3] += spread
    return gradient, hessian


def _rank_one(s: Setting, on: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of c |v|, zero where v = 0."""
    w = _between(s.K, on)
    v = w * (x[1:3] - x[3])
    size = np.hypot(v[0], v[1])
    inverse = np.divide(s.c, size, out=np.zeros_like(size), where=size > 0)
    B = np.zeros((on.size, 2, 4))
    B[:, 0, 1], B[:, 1, 2], B[:, 0, 3], B[:, 1, 3] = w[0], w[1], -w[0], -w[1]
    unit = np.divide(v, size, out=np.zeros_like(v), where=size > 0).T
    across = np.eye(2) - unit[:, :, None] * unit[:, None]
    hessian = np.einsum("m,mai,mab,mbj->mij", inverse, B, across, B)
    return s.c * np.einsum("ma,mai->mi", unit, B), hessian


TIED = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])  # (alpha, s) -> (alpha, s, s, s)
FREE = np.eye(4)


def newton(
    profile: ScalarProfile, s: Setting, on: np.ndarray, T: np.ndarray, y: np.ndarray, *, steps: int
) -> np.ndarray:
    """Minimise F(T y) by damped Newton with |Hessian|, from M starts y (r, M) at once."""
    value, damping = objective(profile, s, on, T @ y), np.full(on.size, 1e-6)
    last = np.full(on.size, np.inf)
    for _ in range(steps):
        gradient, hessian = derivatives(profile, s, on, T @ y)
        w, Q = np.linalg.eigh(T.T @ hessian @ T)
        inverse = 1 / (np.abs(w) + damping[:, None] + 1e-300)
        trial = y - np.einsum("mij,mj,mkj,mk->im", Q, inverse, Q, gradient @ T)
        trial[0] = np.maximum(trial[0], 0.0)
        new, size = objective(profile, s, on, T @ trial), np.abs(trial - y).max(0)
        # at round-off the value cannot tell any more: trust a step while it shrinks
        tiny = size < 1e-7
        good = (new <= value) | tiny
        y, value = np.where(good, trial, y), np.where(good, new, value)
        if np.all(tiny & (size >= last / 2)):
            break
        last = np.where(good, size, np.inf)
        damping = np.where(good, damping / 100, np.maximum(damping, 1e-8) * 10)
    return y


# --- the search -----------------------------------------------------------------------------------


def scan(profile: ScalarProfile, s: Setting, sizes: np.ndarray, hint: float) -> tuple[np.ndarray, np.ndarray]:
    """For each number of classes on: the best (alpha, s) found. Values (M,), points (2, M).

    Newton from the best point of a grid, and from s = alpha/on at alpha = hint (a margin near neural
    collapse, where the gain can be 1e-9 and no grid would see it). The grid reaches to where the penalty, or
    the loss of the classes left out, alone exceeds the value at the origin; 24 points a side, denser at small
    alpha and s (96 points a side find the same minima).
    """
    on = sizes.astype(float)
    near = [np.stack([np.full(on.size, share * hint), share * hint / on]) for share in (1.0, 0.7)]
    found = []
    for start in (_grid_start(profile, s, on), *near):
        y = newton(profile, s, on, TIED, start, steps=25)
        found.append((objective(profile, s, on, TIED @ y), y))
    values, points = np.stack([f[0] for f in found]), np.stack([f[1] for f in found])
    best, rows = np.argmin(values, axis=0), np.arange(on.size)
    return values[best, rows], points[best, :, rows].T


def _grid_start(profile: ScalarProfile, s: Setting, on: np.ndarray) -> np.ndarray:
    unit, rows = np.linspace(0.04, 1.0, 24), np.arange(on.size)
    alpha_max = np.minimum(float(profile.value(0.0)) / (s.c * (on - 1)), 60.0)
    gap_max = np.minimum(s.K * np.log(s.K) / (s.K - on), 40.0)
    alpha, gap = np.broadcast_arrays(
        alpha_max[:, None, None] * unit[:, None] ** 2, gap_max[:, None, None] * unit**3
    )
    values = objective(profile, s, on[:, None, None], np.stack([alpha, gap, gap, gap])).reshape(on.size, -1)
    best = np.argmin(values, axis=1)
    return np.stack([alpha.reshape(on.size, -1)[rows, best], gap.reshape(on.size, -1)[rows, best]])


def best_partial(profile: ScalarProfile, s: Setting, hint: float) -> Partial | None:
    """The lowest point found with 2 <= on <= K-1 classes in the simplex, polished; None if it is the origin.

    Up to 48 sizes are scanned at once; for larger K the neighbours of the best are scanned afterwards.
    """
    if s.K < 3:
        return None
    sizes = np.unique(np.linspace(2, s.K - 1, min(48, s.K - 2)).round().astype(int))
    values, points = scan(profile, s, sizes, hint)
    best = int(np.argmin(values))
    if sizes.size < s.K - 2:
        low, high = sizes[max(best - 1, 0)], sizes[min(best + 1, sizes.size - 1)]
        near = np.unique(np.linspace(low, high, min(48, int(high - low) + 1)).round().astype(int))
        start = np.repeat(points[:, best : best + 1], near.size, axis=1)
        points = newton(profile, s, near.astype(float), TIED, start, steps=25)
        best, sizes = int(np.argmin(objective(profile, s, near.astype(float), TIED @ points))), near
    if points[0, best] < FLAT:
        return None
    return polish(profile, s, int(sizes[best]), points[:, best])


FLAT = 1e-6  # a margin below this is the origin, left to the scalar problem


def polish(profile: ScalarProfile, s: Setting, on: int, y: Float[np.ndarray, " 2"]) -> Partial | None:
    """Newton to round-off; the rank-one part enters where the gradient between the groups exceeds c."""
    tied, pull = _pure(profile, s, on, y)
    size, candidates = np.array([float(on)]), [tied]
    if np.linalg.norm(pull) > s.c:
        start = tied.copy()
        start[1:3] -= 1e-2 * pull / np.linalg.norm(pull) / _between(s.K, size)
        candidates.append(newton(profile, s, size, FREE, start, steps=200))
    points = [_record(profile, s, on, x[:, 0]) for x in candidates if x[0, 0] > FLAT]
    return min(points, key=lambda point: point.value, default=None)


def _pure(
    profile: ScalarProfile, s: Setting, on: int, y: Float[np.ndarray, " 2"]
) -> tuple[np.ndarray, np.ndarray]:
    """The simplex alone, and the gradient in v there, which c |v| holds at zero while it is not above c."""
    size = np.array([float(on)])
    tied = TIED @ newton(profile, s, size, TIED, y[:, None], steps=100)
    return tied, derivatives(profile, s, size, tied)[0][:, 1:3].T / _between(s.K, size)


def tension(profile: ScalarProfile, s: Setting, on: int, y: Float[np.ndarray, " 2"]) -> float:
    """The gradient between the groups at the simplex alone, over c: above 1 it is not a minimum."""
    return float(np.linalg.norm(_pure(profile, s, on, y)[1])) / s.c


def _record(profile: ScalarProfile, s: Setting, on: int, x: Float[np.ndarray, " 4"]) -> Partial:
    size, gap, off = np.array([float(on)]), float(x[3]), s.K - on
    v = _between(s.K, size)[:, 0] * (x[1:3] - gap)
    b = np.append(np.full(on, gap * off / s.K), np.full(off, -gap * on / s.K))
    return Partial(float(objective(profile, s, size, x[:, None])[0]), on, float(x[0]), v, b)
