"""Focal loss, for which Theorem 1 fails with a bias: partial collapse, the tie, and spurious minima."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np

import ufm
from ufm import losses, theory
from ufm.figures import Curve
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import Job, Level, Outcome, Table, compared
from ufm.reproduce._witness import Shape

# --- partial collapse: Theorem 1 is false for focal loss with a bias -------------------------------

_CASES = ((3.0, 20), (3.0, 50), (2.0, 18), (3.0, 100))
_MORE = ((3.0, 18), (1.0, 24), (5.0, 22), (10.0, 30))


def _focal(gamma: float, K: int, C: float, *, bias: bool = True, lam_b: float = 0.0) -> ufm.Problem:
    shape = Shape(K, K + 1, 1)
    return witness.problem(losses.focal(gamma), shape, C / (K - 1), bias=bias, lam_b=lam_b)


@lru_cache(maxsize=64)
def _tie(gamma: float, K: int) -> theory.Threshold:
    return witness.threshold(_focal(gamma, K, 1.0))


def partial_collapse(level: Level) -> Iterator[Job]:
    """Where neural collapse and the origin tie, a point below both."""
    for gamma, K in _CASES if level == "quick" else _CASES + _MORE:
        yield Job(f"gamma{gamma:g}-K{K}", partial(_partial, gamma, K), 1.0)
    yield Job("window-K20", partial(_window, 3.0, 20, 21 if level == "quick" else 81), 2.0)
    if level == "full":
        yield Job("strict-K20", _strict_minimum, 8.0)
        yield Job("ball-arithmetic-K20", _proof, 8.0)


def _collapsed(gamma: float, K: int, C: float) -> float:
    """The lower of the objectives at neural collapse and at the origin, by `witness.lowest`."""
    return witness.lowest(losses.focal(gamma), K, C)[1]


def _partial(gamma: float, K: int) -> Outcome:
    C = _tie(gamma, K).C_tie
    prob = _focal(gamma, K, C)
    best = theory.global_optimum(prob)
    f, collapsed = witness.objective(prob, best.params), _collapsed(gamma, K, C)
    config = {"loss": "fl", "gamma": gamma, "K": K, "d": K + 1, "n": 1, "C": C, "lam_b": 0.0}
    alone = theory.global_optimum(prob.replace(bias=False))
    instances = (
        compared("neural collapse (or origin) less f at an explicit (W, H, b)", config, collapsed - f, 1e-12,
                 "paper", {"structure": best.structure, "f": f, "collapsed": collapsed}),
        compared("f of the closed form against f(W, H, b)", config, abs(best.objective - f), 1e-12, "ours"),
        compared("without a bias: theory's optimum against the scalar problem", config | {"bias": False},
                 abs(alone.objective - collapsed), 1e-12, "ours"),
    )  # fmt: skip
    numbers = (f"{gamma:g}", f"{K}", f"{C:.8f}", f"{collapsed:.12f}", f"{f:.12f}", f"{collapsed - f:.3e}")
    row = (*numbers, best.structure)
    header = ("gamma", "K", "C", "neural collapse", "f found", "lower by", "structure")
    return Outcome(instances, (Table("Below neural collapse, free bias, at the tie", header, (row,)),))


def _window(gamma: float, K: int, count: int) -> Outcome:
    tie = _tie(gamma, K).C_tie
    C = tie + np.linspace(-1.5e-4, 1.0e-4, count)
    gaps = []
    for value in C:
        f = theory.global_optimum(_focal(gamma, K, float(value))).objective
        gaps.append(_collapsed(gamma, K, float(value)) - f)
    worst = int(np.argmax(gaps))
    below = int(np.sum(np.array(gaps) > 1e-12))
    config = {"gamma": gamma, "K": K, "C": float(C[worst]), "values of C": count, "of them below": below}
    what = "largest gap below neural collapse over a window of C"
    curves = (
        Curve("window", f"K = {K}, gamma = {gamma:g}", C.tolist(), gaps),
        Curve("window", "tie", [tie], [0.0], "vertical"),
    )
    return Outcome((compared(what, config, float(gaps[worst]), 1e-12),), curves=curves)


def _strict_minimum() -> Outcome:
    """Below neural collapse lies a minimum: no negative eigenvalue, and zeros only by symmetry."""
    prob = _focal(3.0, 20, 1.20108)
    points = ufm.landscape.critical_points(prob, families=["optimum"])
    counts = ufm.landscape.inertia(prob, points[0].params)
    config = {"gamma": 3.0, "K": 20, "d": 21, "n": 1, "C": 1.20108}
    bad = float(counts.neg + counts.accidental)
    details = {"negative": int(counts.neg), "zero": int(counts.zero), "positive": int(counts.pos)}
    what = "negative and unexplained zero eigenvalues at the lower point"
    return Outcome((compared(what, config, bad, 0.0, "ours", details),))


def _proof() -> Outcome:
    """The same, proved in ball arithmetic if python-flint is installed."""
    prob = _focal(3.0, 20, 1.20108)
    config = {"gamma": 3.0, "K": 20, "d": 21, "n": 1, "C": 1.20108}
    try:
        proof = ufm.landscape.prove_below(prob, theory.global_optimum(prob).params)
    except ImportError as reason:
        return Outcome((), (Table("Proof in ball arithmetic", ("not run",), ((str(reason),),)),))
    what = "f is below neural collapse: proved in ball arithmetic (0: yes)"
    bounds = {bound.name: str(bound) for bound in proof.bounds}
    rows = tuple((name, text) for name, text in bounds.items())
    instance = compared(what, config, float(not proof.proved), 0.0, "ours", bounds)
    return Outcome((instance,), (Table("Proof in ball arithmetic", ("bound", "value"), rows),))


# --- the tie --------------------------------------------------------------------------------------


def tie(level: Level) -> Iterator[Job]:
    """Focal loss has two minimisers at C_tie, and Theorem 1 fails on an open set around it."""
    for gamma, K in _CASES if level == "quick" else _CASES + _MORE:
        yield Job(f"gamma{gamma:g}-K{K}", partial(_two_minima, gamma, K), 0.5)


def _two_minima(gamma: float, K: int) -> Outcome:
    found = _tie(gamma, K)
    value, slope, bend, _ = witness.profile(losses.focal(gamma), K, [0.0, found.a_tie])
    config = {"gamma": gamma, "K": K, "C_tie": found.C_tie, "a_tie": found.a_tie}
    apart = abs(float(value[0] - value[1]) - found.C_tie * found.a_tie)
    step = abs(float(slope[1]) + found.C_tie) / float(bend[1]) / found.a_tie
    instances = [
        compared("l(0) = l(a_tie) + C_tie a_tie", config, apart, 1e-12, "ours"),
        compared("l'(a_tie) = -C_tie, as a relative error of a_tie", config, step, 1e-8, "ours"),
    ]
    for share in (-0.2, 0.05):  # inside the window, off the tie
        C = found.C_tie + share * (found.C_tie - found.C_thr) * (0.05 if K < 30 else 0.1)
        gap = _collapsed(gamma, K, C) - theory.global_optimum(_focal(gamma, K, C)).objective
        what = "off the tie, free bias: neural collapse less the lowest f known"
        instances.append(compared(what, config | {"C": C}, float(gap), 1e-12))
    return Outcome(tuple(instances))


# --- spurious minima ------------------------------------------------------------------------------


def spurious(level: Level) -> Iterator[Job]:
    """Focal loss: random starts below C_thr, just below it, and in the strip above it."""
    starts = 8 if level == "quick" else 16
    yield Job("fl-K20", partial(_spurious, 20, starts), 8.0)
    if level == "full":
        yield Job("fl-K30", partial(_spurious, 30, starts), 25.0)


def _spurious(K: int, starts: int) -> Outcome:
    found = _tie(3.0, K)
    middle = (found.C_thr + found.C_spin) / 2
    close = 0.9998 * found.C_thr  # at 0.9995 no start of 16 was trapped, K = 20
    C = np.array([0.5 * found.C_thr, 0.95 * found.C_thr, close, middle])
    diagram = ufm.landscape.phase_diagram("fl", K=K, C=C, starts=starts, gamma=3.0, progress=False)
    instances = []
    for value, share in zip(C, diagram.above[0], strict=True):
        config = {"loss": "fl", "gamma": 3.0, "K": K, "C": float(value), "starts": starts}
        if value < close:
            what = "at most 0.95 C_thr: share of the starts that end above the optimum"
            instances.append(compared(what, config, float(share), 0.0))
            continue
        where = "between C_thr and C_spin" if value > found.C_thr else "0.02 % below C_thr"
        details = {"share of the starts": float(share)}
        what = f"{where}: a spurious minimum is found (0: yes)"
        instances.append(compared(what, config, float(share == 0), 0.0, "ours", details))
    curves = (
        Curve("ends", f"K = {K}", C.tolist(), diagram.above[0].tolist(), "points"),
        Curve("ends", f"C_thr, K = {K}", [found.C_thr], [0.0], "vertical"),
    )
    return Outcome(tuple(instances), curves=curves)
