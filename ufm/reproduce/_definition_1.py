"""Definition 1: which losses have the contrastive property."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ufm import losses, theory
from ufm.losses import Loss
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import Instance, Job, Level, Outcome, Table, compared
from ufm.reproduce._witness import Point, Shape, shown
from ufm.theory.contrastive import STRICT, Check

# --- Definition 1 ---------------------------------------------------------------------------------


def definition_1(level: Level) -> Iterator[Job]:
    """ce, ls, fl and mse, K up to 17: beyond, focal loss has ties (their own row)."""
    for K in (10,) if level == "quick" else (2, 3, 5, 10, 17):
        for name in losses.PAPER:
            yield Job(f"{name}-K{K}", partial(_definition_1, name, K), 0.8)


def _definition_1(name: str, K: int) -> Outcome:
    loss = losses.get(name)
    found = theory.contrastive_property(loss, K)
    config = {"loss": shown(loss), "K": K}
    instances = [_test(c, config, must_fail=c.name in loss.fails) for c in found.tests[:5]]
    if loss.shift_invariant:
        instances += [_letter(loss, K, config), _sign(loss, K, config)]
    return Outcome(tuple(instances), (_tests_table(shown(loss) + f", K={K}", found),))


def _test(check: Check, config: dict[str, object], *, must_fail: bool = False) -> Instance:
    """A test as a claim of ours. T4 passes above its bound; a test in the loss's `fails` must fail."""
    what = f"{check.name}: {check.statement}"
    if must_fail:
        return compared(f"{what} - must fail", config, float(check.passed), 0.0, "ours")
    if check.name == "T4":
        below = max(0.0, STRICT - min(check.value, 1.0))
        return compared(what, config, below, 0.0, "ours", {"strictness": min(check.value, 1e300)})
    return compared(what, config, float(check.value), float(check.tolerance), "ours")


def _letter(loss: Loss, K: int, config: dict[str, object]) -> Instance:
    """Definition 1 as the paper writes it: t* < 0 for every c > 0."""
    c = np.geomspace(1e-3, 1.0, 40)
    grid = np.append(0.0, np.geomspace(1e-3, 30.0, 255))
    values = witness.profile(loss, K, grid)[0]
    best = np.argmin(values + (K - 1) * c[:, None] * grid, axis=1)
    at_zero = c[best == 0]
    what = "values of c in [0.001, 1] at which phi(t) + c |t| is smallest at t* = 0, not below"
    return compared(what, config, float(at_zero.size), 0.0, "paper", {"smallest such c": float(at_zero[0])})


def _sign(loss: Loss, K: int, config: dict[str, object]) -> Instance:
    """The correction: t* < 0 exactly below the threshold."""
    c_thr = witness.collapse_threshold(loss, Shape(K, K + 1, 1))
    wrong = 0
    for c in c_thr * np.array([0.2, 0.9, 1.1, 3.0]):
        a, _ = witness.lowest(loss, K, (K - 1) * c)
        wrong += (a > 0) != (c < c_thr)
    return compared("t* < 0 exactly where c < c_thr (count of exceptions)", config, float(wrong), 0.0, "ours")


def _tests_table(name: str, found: theory.ContrastiveProperty) -> Table:
    marks = ("passes" if check.passed else "fails" for check in found.tests)
    header = ("loss", *(check.name for check in found.tests), "Theorem 1")
    row = (name, *marks, _conclusion(found))
    return Table("The tests of Definition 1", header, (row,))


def _conclusion(found: theory.ContrastiveProperty) -> str:
    if found.holds_with_bias:
        return "proved with any bias"
    return "proved without a bias" if found.holds or _only_ties(found) else "not by this route"


def _only_ties(found: theory.ContrastiveProperty) -> bool:
    """Without a bias a tie breaks uniqueness at a single value of c."""
    return {check.name for check in found.tests if not check.passed} <= {"T5", "T6"}


# --- other losses ---------------------------------------------------------------------------------

OTHERS_K = 5


def other_losses(level: Level) -> Iterator[Job]:
    """The losses of other papers at K = 5; the full grid also minimises f for those with a known optimum."""
    others = [losses.get(name) for name in losses.LOSSES if name not in losses.PAPER]
    others.append(losses.poly1(epsilon=2.0))  # ties, other than with epsilon = 1
    for loss in others:
        yield Job(shown(loss), partial(_other_loss, loss), 1.2)
    for loss in others if level == "full" else ():
        if loss.smooth and "T3" not in loss.fails:
            yield Job(f"{shown(loss)}, solved", partial(_other_solved, loss), 6.0)


def _other_loss(loss: Loss) -> Outcome:
    found = theory.contrastive_property(loss, OTHERS_K)
    failed = {check.name for check in found.tests if not check.passed}
    config = {"loss": shown(loss), "K": OTHERS_K}
    differ = failed ^ set(loss.fails)
    what = "tests of Definition 1 whose result differs from what the loss states"
    instances = [compared(what, config, float(len(differ)), 0.0, "ours", {"fails": sorted(failed)})]
    for tie in found.ties if loss.smooth else ():
        (low, high), slopes = (x for x in witness.profile(loss, OTHERS_K, [tie.low, tie.high])[:2])
        at = config | {"margins": [tie.low, tie.high], "C": tie.C}
        apart = abs(low + tie.C * tie.low - high - tie.C * tie.high)
        instances.append(compared("two margins tie: l(0) = l(a) + C a", at, float(apart), 1e-10, "ours"))
        flat = abs(float(slopes[1]) + tie.C)
        instances.append(compared("and the second is stationary: l'(a) = -C", at, flat, 1e-8, "ours"))
    ties = "; ".join(f"a = {tie.high:.6g} at C = {tie.C:.8g}" for tie in found.ties) or "none"
    marks = ("passes" if check.passed else "fails" for check in found.tests)
    row = (shown(loss), *marks, ties, _conclusion(found), loss.source)
    header = ("loss", *(check.name for check in found.tests), "tie with the origin", "Theorem 1", "source")
    return Outcome(tuple(instances), (Table("Losses of other papers, K = 5", header, (row,)),))


def _other_solved(loss: Loss) -> Outcome:
    shape, found = Shape(OTHERS_K, 7, 2), []
    for bias, lam_b in ((True, 0.0), (True, 0.01), (False, 0.0)):
        c = 0.01 * 2**0.5
        points = [Point(c, lam_b, seed) for seed in range(4)]
        optimum = theory.global_optimum(witness.problem(loss, shape, c, lam_b=lam_b, bias=bias)).objective
        lowest = min(float(sol.objective) for sol in witness.solve(loss, shape, points, bias=bias, scale=1.0))
        config = {"loss": shown(loss), **shape._asdict(), "c": c, "lam_b": lam_b, "bias": bias}
        what = "lowest f found from four starts against the scalar problem's value"
        gap = abs(lowest - optimum) / (1 + abs(optimum))
        found.append(compared(what, config, gap, 1e-9, "ours"))
    return Outcome(tuple(found))
