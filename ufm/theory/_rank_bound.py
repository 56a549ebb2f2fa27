"""A lower bound of equation (7) in fewer dimensions than the simplex ETF needs, d < K - 1.

For cross-entropy and label smoothing, equal counts and every bias, a global minimum has collapsed features,
1'Z = 0 for the logits Z = W H of the class means, and <Z, b 1'> = lam_b/lam_H |W'b|^2 >= 0. With
U = Z + b 1' (b centred) and rank Z <= d,

    T = tr U = tr Z <= ||Z||_*,    |U|_F^2 >= |Z|_F^2 >= ||Z||_*^2/d >= T^2/d    (T >= 0).

A column of U with target tau has other entries of mean -tau/(K-1); let r be the norm of their deviation from
it. With a = sqrt((K-1)(K-2)) and e = sqrt((K-2)/(K-1)), cross-entropy is at least

    psi(tau, r) = log(1 + e^(-tau K/(K-1)) ((K-2) e^(r/a) + e^(-r e))),

because no entry deviates by less than -r e, and the quadratic that touches exp at r/a and meets it at -r e is
below exp from there on. Label smoothing adds alpha tau. Hence f* >= log K, or, with u = c + alpha/K,

    f* >= min (1/K) sum_k psi(tau_k, r_k) + u T   subject to   sum_k q(tau_k, r_k) >= T^2/d, T = sum_k tau_k,

q(tau, r) = tau^2 K/(K-1) + r^2. The objective is convex and the simplex ETF violates the constraint, so that
equality holds at the minimum. To bound the minimum itself, let A = (tau_A, 0) be any state, and

    D(x) = psi(x) - psi(A) - (tau - tau_A) psi_tau(A) >= 0,    S(T) = T^2/d - 2 tau_A T K/(K-1) + K q(A).

Equality in the constraint says sum_k q(x_k - A) = S(T), so that no q(x_k - A) exceeds S(T), and therefore

    f* >= min over T and x with q(x - A) <= S(T) of
          psi(A) + u T + [psi_tau(A) (T - K tau_A) + S(T) D(x)/q(x - A)]/K.

For a given x this is a quadratic in T on two half-lines, whose minimum is explicit; a minimum over the two
numbers of x is left. Every tau_A gives a bound; the best one equals the minimum of the program where one
class differs from the others, which was the case in every program compared.

Source: docs/theory.md, section 5.4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from ufm._precision import in_float64
from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.theory import _truncation
from ufm.theory._setting import any_counts, setting

Grid = Float[np.ndarray, "..."]


@in_float64
def rank_lower_bound(prob: Problem) -> float:
    """A proved lower bound of equation (7) that takes rank W H <= d into account, for d < K - 1.

    Cross-entropy and label smoothing with equal counts and any bias: the program of docs/theory.md, section
    5.4. It lies above the optimum of d >= K - 1, and below every point in d dimensions.  MSE with kappa = 1
    and no bias or a free one, any counts: the optimum.

    Raises:
        NoClosedForm: another loss or model, unequal counts, d >= K - 1.
        ValueError: a batch of problems.

    Source: docs/theory.md, section 5.4.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=4, d=2, n=1, lam_W=0.01, lam_H=0.01)
    >>> round(ufm.theory.rank_lower_bound(prob), 9)
    0.182846827
    """
    if _truncation.applies(any_counts(prob)) and prob.model.bilinear:
        return _truncation.minimum(any_counts(prob), prob.counts).value
    s = setting(prob)
    if s.loss.smoothing() is None:
        raise NoClosedForm(f"loss: the bound is known for cross-entropy and label smoothing, got {s.loss!r}")
    if s.d >= s.K - 1:
        raise NoClosedForm(
            f"d: expected d < K - 1 = {s.K - 1}, got d={s.d}, where global_optimum has the optimum itself"
        )
    return of_rank(s.K, s.d, slope(s))


def slope(s: Setting) -> float:
    """u = c + alpha/K: what a unit of the sum of the margins costs, at balanced factors."""
    alpha = s.loss.smoothing()
    assert alpha is not None
    return s.c + alpha / s.K


@functools.lru_cache(maxsize=256)
def of_rank(K: int, d: int, u: float) -> float:
    """The bound for 1 <= d < K - 1, c + alpha/K = u; log K where the origin is optimal."""
    if u >= 1 / K:
        return math.log(K)
    top = math.log(1 / u - (K - 1)) * (K - 1) / K  # the target logit of the simplex ETF

    def at(tau: float) -> float:
        return _lowest(functools.partial(_bound_at, K, d, u, tau), K)

    grid = top * np.linspace(0.3, 1.2, 19)
    best = int(np.argmax([at(tau) for tau in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(lambda tau: -at(tau), bounds=ends, method="bounded", options={"xatol": 1e-9})
    simplex = -(K - 1) * u * math.log(u) - (1 - (K - 1) * u) * math.log1p(-(K - 1) * u)
    return min(max(-float(found.fun), simplex), math.log(K))


def _psi(K: int, tau: Grid, r: Grid) -> Grid:
    """The least cross-entropy of a sample with target tau and deviation r of the other logits."""
    low = r * math.sqrt((K - 2) / (K - 1))
    others = np.logaddexp(math.log(K - 2) + r / math.sqrt((K - 1) * (K - 2)), -low)
    return np.asarray(np.logaddexp(0.0, others - tau * K / (K - 1)))


def _bound_at(K: int, d: int, u: float, tau_A: float, size: Grid, angle: Grid) -> Grid:
    """The minimum over T at x = A + size (cos(angle) sqrt((K-1)/K), sin(angle)); 0 <= angle <= pi."""
    ratio = K / (K - 1)
    at_A = float(_psi(K, np.array(tau_A), np.array(0.0)))
    tilt = -ratio * -math.expm1(-at_A)  # psi_tau(A): minus the probability of the other classes, stretched
    step = size * np.cos(angle) / math.sqrt(ratio)
    D = np.maximum(_psi(K, tau_A + step, size * np.sin(angle)) - at_A - tilt * step, 0.0)
    curvature, linear = D / size**2 / K, u + tilt / K

    def S(T: Grid) -> Grid:
        return np.asarray(T**2 / d - 2 * tau_A * ratio * T + K * tau_A**2 * ratio)

    def value(T: Grid) -> Grid:
        return np.asarray(at_A - tilt * tau_A + linear * T + curvature * np.maximum(S(T), size**2))

    centre = tau_A * ratio * d
    half = np.sqrt(np.maximum(centre**2 - d * (K * tau_A**2 * ratio - size**2), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.maximum(centre - np.where(curvature > 0, linear * d / (2 * curvature), np.inf), 0.0)
    ends = np.minimum(value(centre + half), np.where(centre >= half, value(centre - half), np.inf))
    return np.where(np.isfinite(vertex) & (S(vertex) >= size**2), value(vertex), ends)


def _lowest(value: Callable[[Grid, Grid], Grid], K: int) -> float:
    """The minimum over the half-plane: a grid of log(size) and angle, then ever finer grids around each of
    its four lowest local minima.

    Beyond the last size the value exceeds log K; below the first D/q is constant to a percent.
    """
    sizes = np.linspace(math.log(1e-2), math.log(20 * K**2 * (1 + math.log(K))), 121)
    angles = np.linspace(0.0, np.pi, 61)
    V = value(np.exp(sizes)[:, None], angles)
    around = np.pad(V, 1, constant_values=np.inf)
    near = [around[i : i + len(sizes), j : j + len(angles)] for i in range(3) for j in range(3)]
    rows, columns = np.nonzero(np.equal(V, np.min(near, axis=0)))
    first = np.argsort(V[rows, columns])[:4]
    s, t = sizes[rows[first]], angles[columns[first]]
    step = np.linspace(-1.0, 1.0, 9)
    height, width = sizes[1] - sizes[0], angles[1] - angles[0]
    best = V.min()
    for _ in range(14):
        S, A = np.broadcast_arrays(
            s[:, None, None] + height * step[:, None], np.clip(t[:, None, None] + width * step, 0.0, np.pi)
        )
        fine = value(np.exp(S), A).reshape(len(s), -1)
        pick = np.arange(len(s)), fine.argmin(axis=1)
        best = min(best, fine.min())
        s, t = S.reshape(len(s), -1)[pick], A.reshape(len(s), -1)[pick]
        height, width = height / 3, width / 3
    return float(best)
