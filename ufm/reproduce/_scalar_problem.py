"""The scalar problem, min over t of phi(t) + c |t|: figures 9 and 10, its constant, and its threshold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ufm import losses, theory
from ufm.figures import Curve, contrastive
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import Job, Level, Outcome, Table, compared
from ufm.reproduce._witness import SHAPE, Point, Shape, shown

#: margins at which profiles are compared
MARGINS = np.linspace(-4.0, 12.0, 65)
#: tolerance of identities between two ways to compute a loss, relative to 1 + |L|
ROUNDING = 1e-12

# --- figures 9 and 10 -----------------------------------------------------------------------------


def figure_9(level: Level) -> Iterator[Job]:
    """phi in closed form against the loss itself."""
    for K in (10,) if level == "quick" else (2, 5, 10, 50):
        for name in losses.PAPER:
            yield Job(f"{name}-K{K}", partial(_figure_9, name, K), 0.4)


def _figure_9(name: str, K: int) -> Outcome:
    loss = losses.get(name)
    closed = theory.scalar_profile(loss, K)
    if not loss.shift_invariant:
        direct = witness.least_over_shifts(loss, K, MARGINS)
    else:
        direct = witness.profile(loss, K, MARGINS)[0]
    value = np.asarray(closed.value(MARGINS))
    gap = np.abs(value - direct) / (1 + np.abs(direct))
    config = {"loss": shown(loss), "K": K, "margins": f"{MARGINS[0]:g}..{MARGINS[-1]:g}"}
    instances = [compared("phi in closed form against the loss", config, float(gap.max()), ROUNDING)]
    if loss.shift_invariant:
        slope = np.abs(np.asarray(closed.slope(MARGINS)) - witness.profile(loss, K, MARGINS)[1])
        instances.append(compared("its slope against autodiff", config, float(slope.max()), ROUNDING))
    curves = (_points(name, MARGINS, direct),) if K == contrastive.CLASSES else ()
    return Outcome(tuple(instances), curves=curves)


def _points(name: str, margins: np.ndarray, values: np.ndarray) -> Curve:
    """What figure 9 shows of the loss itself, within the range that it draws."""
    some = slice(4, None, 6)
    t = -(contrastive.CLASSES - 1) * margins[some]
    return Curve(name, "the loss itself", t.tolist(), values[some].tolist(), "points")


def figure_10(level: Level) -> Iterator[Job]:
    """The minimiser of phi(t) + c |t| against theory's margin."""
    shares = (0.1, 0.5, 1.5) if level == "quick" else (0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 1.01, 1.5)
    for K in (10,) if level == "quick" else (3, 10, 17):
        for name in ("ce", "ls", "fl"):
            yield Job(f"{name}-K{K}", partial(_figure_10, name, K, shares), 0.3)


def _figure_10(name: str, K: int, shares: tuple[float, ...]) -> Outcome:
    loss, instances = losses.get(name), []
    c_thr = witness.collapse_threshold(loss, Shape(K, K + 1, 1), bias=False)
    for share in shares:
        c = share * c_thr
        best = theory.global_optimum(witness.problem(loss, Shape(K, K + 1, 1), c, bias=False))
        a, value = witness.lowest(loss, K, (K - 1) * c)
        config = {"loss": shown(loss), "K": K, "c": c, "c/c_thr": share}
        gap = abs(a - best.margin) / (1 + a)
        instances.append(compared("margin a* in closed form against the minimiser", config, gap, 1e-10))
        apart = abs(value - best.objective)
        instances.append(compared("f* in closed form against the minimum", config, apart, ROUNDING))
    curves = (_minima(name, c_thr),) if K == contrastive.CLASSES else ()
    return Outcome(tuple(instances), curves=curves)


def _minima(name: str, c_thr: float) -> Curve:
    """What figure 10 shows of a search on the loss itself, at the weights that it draws."""
    K = contrastive.CLASSES
    found = [witness.lowest(losses.get(name), K, share * (K - 1) * c_thr) for share in contrastive.WEIGHTS]
    return Curve(name, "search", [a for a, _ in found], [value for _, value in found], "points")


# --- constants and thresholds ---------------------------------------------------------------------


def constants(level: Level) -> Iterator[Job]:
    """The weight of |t| is c and of the margin (K-1) c; the paper's K sqrt(n lam_W lam_H) is neither."""
    values = (0.05, 0.02) if level == "quick" else (0.08, 0.05, 0.02, 0.01, 0.005)
    for name in ("ce", "ls", "fl"):
        yield Job(name, partial(_constants, name, values), 3.0)


def _constants(name: str, values: tuple[float, ...]) -> Outcome:
    loss, K, instances = losses.get(name), SHAPE.K, []
    solved = witness.solve(name, SHAPE, [Point(c, seed=seed) for c in values for seed in (0, 1)])
    rows = []
    for i, c in enumerate(values):
        f = min(float(sol.objective) for sol in solved[2 * i : 2 * i + 2])
        _, ours = witness.lowest(loss, K, (K - 1) * c)
        _, theirs = witness.lowest(loss, K, (K - 1) * K * c)
        config = {"loss": shown(loss), **SHAPE._asdict(), "c": c, "lam_b": 0.0, "seeds": "0, 1"}
        instances += [
            compared("min of phi(t) + K c |t| against the solved f", config, abs(theirs - f), 1e-9),
            compared("min of phi(t) + c |t| against the solved f", config, abs(ours - f), 1e-9, "ours"),
        ]
        closed = theory.global_optimum(solved[2 * i].problem).objective
        gap = abs(closed - f)
        instances.append(compared("f* in closed form against the solved f", config, gap, 1e-9, "ours"))
        rows.append((shown(loss), f"{c:g}", f"{f:.9f}", f"{ours:.9f}", f"{theirs:.9f}"))
    header = ("loss", "c", "f solved", "min with c", "min with K c")
    return Outcome(tuple(instances), (Table(f"The constant, K = {K}", header, tuple(rows)),))


def thresholds(level: Level) -> Iterator[Job]:
    """The penalty at which the solution becomes zero."""
    count = 8 if level == "quick" else 24
    for name in ("ce", "ls", "fl"):
        yield Job(name, partial(_thresholds, name, count), 3.0)


def _thresholds(name: str, count: int) -> Outcome:
    loss, K = losses.get(name), SHAPE.K
    config = {"loss": shown(loss), **SHAPE._asdict()}
    c_thr = witness.collapse_threshold(loss, SHAPE)
    _, slope, _, _ = witness.profile(loss, K, np.zeros(1))
    gap = abs(-float(slope[0]) / (K - 1) / c_thr - 1)
    what = "c_thr in closed form against -l'(0)/(K-1) by autodiff"
    instances = [compared(what, config | {"c_thr": c_thr}, gap, ROUNDING, "ours")]
    shares = np.linspace(0.3, 1.4, count)
    solved = witness.solve(name, SHAPE, [Point(float(share * c_thr)) for share in shares])
    margins = []
    for share, sol in zip(shares, solved, strict=True):
        best, at = theory.global_optimum(sol.problem), config | {"c/c_thr": float(share)}
        a = _margin(np.asarray(sol.W @ sol.H), K)
        margins.append(a)
        wrong = abs(a - best.margin) / (1 + best.margin)
        instances.append(compared("margin of the solution against theory's", at, wrong, 1e-6, "ours"))
        if share > 1:
            lacking = float(not a > 1e-3)
            what = "neural collapse at this c (1: the solution is W = 0, H = 0)"
            instances.append(compared(what, at, lacking, 0.0))
    fine = np.linspace(0.3, 1.4, 111)
    curve = [witness.problem(loss, SHAPE, float(share * c_thr)) for share in fine]
    line = [theory.global_optimum(prob).margin for prob in curve]
    curves = (
        Curve("margin", shown(loss), fine.tolist(), line),
        Curve("margin", f"{name}: solved", shares.tolist(), margins, "points"),
    )
    return Outcome(tuple(instances), curves=curves)


def _margin(Z: np.ndarray, K: int) -> float:
    """Mean of z_k - z_j over samples and other classes, the samples in the paper's order."""
    own = Z[np.arange(Z.shape[1]) % K, np.arange(Z.shape[1])]
    return float((own - (Z.sum(axis=0) - own) / (K - 1)).mean())
