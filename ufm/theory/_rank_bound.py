"""A lower bound of equation (7) in fewer dimensions than the simplex ETF needs, d < K - 1.

For cross-entropy and label smoothing, equal counts and every bias, a global minimum has collapsed features,
1'Z = 0 for the logits Z = W H of the class means, and <Z, b 1'> = lam_b/(n lam_H) |W'b|^2 >= 0. With
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
from typing import Any, NamedTuple

import numpy as np

from ufm._precision import in_float64
from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.theory import _truncation
from ufm.theory._setting import any_counts, setting

Grid = np.ndarray  # of any shape, the same for all arguments of a function


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
    r = top * math.sqrt(K**2 / d - K**2 / (K - 1))
    psi = _psi(K, np.full(2, top), np.array([0.0, r]))  # one class alone fulfils the constraint
    program = Program(K, d, u, float(((K - 1) * psi[0] + psi[1]) / K + u * K * top))
    simplex = -(K - 1) * u * math.log(u) - (1 - (K - 1) * u) * math.log1p(-(K - 1) * u)
    return min(max(_best_state(program, top), simplex), math.log(K))


def _best_state(p: Program, top: float) -> float:
    """The bound at a tau_A where it is nearly largest.

    The minima over x are followed from those found at another tau_A; at the end they are searched anew, and
    if one was missed, it joins them. What is returned is the result of such a search.
    """
    grid = top * np.linspace(0.3, 1.2, 10)
    coarse = [_search(p, tau) for tau in grid]
    best = int(np.argmax([value for value, _ in coarse]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    known, value = coarse[best][1], coarse[best][0]
    for _ in range(4):
        tau, promised = _golden(functools.partial(_refined, p, known), *ends)
        found, starts = _search(p, tau)
        value = max(value, found)
        if found >= promised - 1e-10:
            break
        known = [
            x._replace(x=np.append(x.x, y.x), y=np.append(x.y, y.y), dx=np.append(x.dx, y.dx))
            for x, y in zip(known, starts, strict=True)
        ]
    return value


class Program(NamedTuple):
    """The program of the module's docstring, with a value of its objective at some point."""

    K: int
    d: int
    u: float
    ceiling: float  # at the minimum neither psi(x)/K nor u T exceeds it


def _golden(value: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Where a function is largest that rises and then falls, perhaps with a kink between; its value there."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(26):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = value(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = value(left)
    return (left, at_left) if at_left > at_right else (right, at_right)


def _psi(K: int, tau: Grid, r: Grid) -> Grid:
    """The least cross-entropy of a sample with target tau and deviation r of the other logits."""
    low = r * math.sqrt((K - 2) / (K - 1))
    others = np.logaddexp(math.log(K - 2) + r / math.sqrt((K - 1) * (K - 2)), -low)
    return np.asarray(np.logaddexp(0.0, others - tau * K / (K - 1)))


class _State(NamedTuple):
    """The state A of the other classes."""

    program: Program
    tau: float
    psi: float
    tilt: float  # psi_tau


def _state(p: Program, tau: float) -> _State:
    psi = float(_psi(p.K, np.array(tau), np.array(0.0)))
    return _State(p, tau, psi, p.K / (p.K - 1) * math.expm1(-psi))


def _over_T(A: _State, q: Grid, share: Grid) -> Grid:
    """The minimum over T at a state x with q(x - A) = q and D(x)/q = share.

    S(T) = (T - centre)^2/d + rest, and T is at most the ceiling over u.
    """
    K, d, u, ceiling = A.program
    centre, rest = A.tau * K / (K - 1) * d, A.tau**2 * K / (K - 1) * (K - K / (K - 1) * d)
    curvature, linear, most = share / K, u + A.tilt / K, ceiling / u
    half = np.sqrt(np.maximum(d * (q - rest), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.clip(np.nan_to_num(centre - linear * d / (2 * curvature)), 0.0, most)
    S = (vertex - centre) ** 2 / d + rest
    low = np.where(centre >= half, linear * (centre - half), np.inf)
    high = np.where(centre + half <= most, linear * (centre + half), np.inf)
    value = np.where(q <= S, linear * vertex + curvature * S, np.minimum(low, high) + curvature * q)
    return np.asarray(A.psi - A.tilt * A.tau + value)


def _bound_at(A: _State, tau: Grid, r: Grid) -> Grid:
    """The minimum over T at the state x = (tau, r).

    Too near A to tell D from rounding it is left to `_beside`.
    """
    K = A.program.K
    psi, q = _psi(K, tau, r), K / (K - 1) * (tau - A.tau) ** 2 + r**2
    D, apart = np.maximum(psi - A.psi - A.tilt * (tau - A.tau), 0.0), q > 1e-9
    value = _over_T(A, q, D / np.where(apart, q, 1.0))
    return np.where(apart & (psi <= K * A.program.ceiling), value, np.inf)


def _beside(A: _State) -> float:
    """The limit of x -> A along the direction in which psi bends least."""
    K, rest = A.program.K, -math.expm1(-A.psi)  # probability of the other classes
    bend = min(K / (K - 1) * rest * (1 - rest), rest / (K - 1)) / 2
    return float(_over_T(A, np.zeros(()), np.array(bend)))


# --- the minimum over x -----------------------------------------------------------------------------


def _polar(A: _State, x: Grid, y: Grid) -> tuple[Grid, Grid]:
    """(tau, r) at the distance exp(x) from A and the angle y."""
    size = np.exp(x)
    K = A.program.K
    return A.tau + size * np.cos(y) * math.sqrt((K - 1) / K), size * np.abs(np.sin(y))


def _logistic(A: _State, x: Grid, y: Grid) -> tuple[Grid, Grid]:
    """(tau, r) at the log-odds x of the other classes and log r = y."""
    K, r = A.program.K, np.exp(y)
    return (math.log(K - 2) + r / math.sqrt((K - 1) * (K - 2)) - x) * (K - 1) / K, r


class _Starts(NamedTuple):
    """Local minima on the grid of a chart, with the width of their cells."""

    chart: Callable[[_State, Grid, Grid], tuple[Grid, Grid]]
    x: Grid
    y: Grid
    dx: Grid
    dy: float


#: each makes the cells of a grid four times finer
ZOOMS = 10


def _search(p: Program, tau_A: float) -> tuple[float, list[_Starts]]:
    """The minimum over x and where it was looked for: in polar coordinates around A, for states at its own
    scale, and by the log-odds, on the scale of 1 of which psi bends.

    q(x - A) <= S(T) and psi(x) <= K ceiling confine x.
    """
    far = 4 * p.ceiling / p.u + p.K * p.ceiling + 50
    small = math.log(1e-3 * min(abs(tau_A), 1.0))
    odds = np.append(np.arange(0.25, 20.0, 0.5), np.geomspace(20.0, far, 41))
    grids = (
        (_polar, np.linspace(small, math.log(far), 91), np.linspace(0.0, np.pi, 61)),
        (_logistic, np.append(-odds[::-1], odds), np.linspace(-3.0, math.log(far), 61)),
    )
    starts = [_local_minima(_state(p, tau_A), *grid) for grid in grids]
    return _refined(p, starts, tau_A), starts


def _local_minima(A: _State, chart: Any, x: Grid, y: Grid) -> _Starts:
    """The four lowest."""
    V = _bound_at(A, *chart(A, x[:, None], y))
    around = np.pad(V, 1, constant_values=np.inf)
    near = [around[i : i + len(x), j : j + len(y)] for i in range(3) for j in range(3)]
    rows, columns = np.nonzero(np.equal(V, np.min(near, axis=0)) & np.isfinite(V))
    first = np.argsort(V[rows, columns])[:4]
    rows, columns = rows[first], columns[first]
    return _Starts(chart, x[rows], y[columns], np.gradient(x)[rows], float(y[1] - y[0]))


def _refined(p: Program, starts: list[_Starts], tau_A: float) -> float:
    """The minimum over ever finer grids around the starts, and beside A."""
    A, step = _state(p, tau_A), np.linspace(-1.0, 1.0, 13)
    best = _beside(A)
    for chart, x, y, dx, dy in starts:
        each = np.arange(len(x))
        for scale in 0.25 ** np.arange(ZOOMS):
            X = x[:, None, None] + scale * dx[:, None, None] * step[:, None] + 0 * step
            Y = y[:, None, None] + scale * dy * step + 0 * step[:, None] + 0 * X
            fine = _bound_at(A, *chart(A, X, Y)).reshape(len(x), -1)
            pick = fine.argmin(axis=1)
            x, y = X.reshape(len(x), -1)[each, pick], Y.reshape(len(x), -1)[each, pick]
            best = min(best, float(fine.min()))
    return best
