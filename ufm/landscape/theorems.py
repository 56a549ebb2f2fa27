"""SHELF of statements about the landscape, measured over critical points: Theorem 2 and its corollaries.

A statement is one row of `STATEMENTS`: what is measured over the points of a `CriticalPoints`, how far
rounding may move it, what it assumes, and which point contradicts it. Adding one is adding a row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import brentq

from ufm import _compile, losses, theory
from ufm._claim import Claim, Claims, Statement
from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._progress import each
from ufm.hessian.structure import split
from ufm.landscape.critical import GLOBAL, CriticalPoint, CriticalPoints, critical_points
from ufm.landscape.saddles import Escape, escape_direction
from ufm.losses import Loss
from ufm.theory import NoClosedForm


class Facts:
    """Critical points, and what is derived from them once for all statements."""

    def __init__(self, points: CriticalPoints, progress: bool | None = None) -> None:
        self.points, self._progress = points, progress
        self.prob: Problem = points.problem
        self.lam = float(self.prob.lam)

    @functools.cached_property
    def escapes(self) -> list[Escape]:
        """The way out of each point."""
        points = each("ways down, point", self.points, self._progress, lambda point: point.family)
        return [escape_direction(self.prob, point.params) for point in points]

    @functools.cached_property
    def p_min(self) -> float:
        """The loss is convex in z where p_k is at least this."""
        return float(theory.convexity_region(self.prob.loss, self.prob.K).p_min)

    @functools.cached_property
    def target_probabilities(self) -> list[float]:
        """The smallest p_k over the samples of each point."""
        labels = np.asarray(self.prob.labels)
        smallest = []
        for point in self.points:
            Z = np.asarray(self.prob.logits(point.params))
            p = jax.nn.softmax(jnp.asarray(Z), axis=0)
            smallest.append(float(np.asarray(p)[labels, np.arange(len(labels))].min()))
        return smallest

    @property
    def full_rank(self) -> int:
        """The rank that an unconstrained optimum may have."""
        return self.prob.full_rank

    def spurious(self, among: list[CriticalPoint]) -> list[CriticalPoint]:
        """Those without a negative eigenvalue that lie above the lowest of them: minima that trap."""
        if not among:
            return []
        lowest = min(float(point.objective) for point in among)
        above = lowest + 1e-11 * (1 + abs(lowest))
        return [p for p in among if not p.index and p.kind != GLOBAL and float(p.objective) > above]

    @functools.cached_property
    def traps(self) -> list[CriticalPoint]:
        """Spurious minima, lowest first."""
        return self.spurious(list(self.points))

    @functools.cached_property
    def inside(self) -> list[CriticalPoint]:
        """Points at which p_k >= p_min for every sample."""
        both = zip(self.points, self.target_probabilities, strict=True)
        return [point for point, p in both if p >= self.p_min]


# --- what is measured -----------------------------------------------------------------------------


def _gradient(f: Facts) -> float:
    return max(float(point.grad_norm) for point in f.points)


def _traps(f: Facts) -> float:
    return float(len(f.traps))


def _traps_inside(f: Facts) -> float:
    """The region is convex in Z, and there f is: a minimum of the region is the only one."""
    return float(len(f.spurious(f.inside)))


def _rank_deficient(f: Facts) -> list[tuple[CriticalPoint, Escape]]:
    pairs = zip(f.points, f.escapes, strict=True)
    return [(p, e) for p, e in pairs if p.rank < f.prob.d and e.operator_norm >= f.lam * (1 - 1e-9)]


def _saddle_curvature(f: Facts) -> float:
    lam_W, lam_H = float(f.prob.lam_W), float(f.prob.lam_H)
    errors = [
        abs(float(point.smallest) - float(split(np.array(escape.operator_norm), lam_W, lam_H)[0]))
        for point, escape in _rank_deficient(f)
    ]
    return float(max(errors)) / (lam_W + lam_H)


def _proof_curvature(f: Facts) -> float:
    errors = [abs(e.proof_curvature - e.proof_formula) for e in f.escapes if e.proof_direction is not None]
    return max(errors) / f.lam


def _accidental(f: Facts) -> float:
    return float(max(int(point.accidental) for point in f.points if point.kind == GLOBAL))


def _below_collapse(f: Facts) -> float:
    """How far the lowest point lies below neural collapse (or below the origin past the threshold)."""
    return max(0.0, _collapse(f.prob) - float(f.points[0].objective))


def _collapse(prob: Problem) -> float:
    from ufm.theory._setting import setting
    from ufm.theory.optima import collapsed_optimum

    return float(collapsed_optimum(setting(prob)).objective)


def _convexity(f: Facts) -> float:
    """The most negative curvature of the loss at random logits, relative to the largest."""
    values = _curvatures(losses.frozen(f.prob.loss, f.prob.K), f.prob.K)
    return max(0.0, -float(values.min()) / float(values.max()))


def _region(f: Facts) -> float:
    """|p_min - p|, p the target probability where the smallest curvature over random logits changes sign."""
    loss, K = losses.frozen(f.prob.loss, f.prob.K), f.prob.K
    root = float(brentq(lambda p: _at_probability(loss, K, p), 1e-3 * f.p_min, 0.5, xtol=1e-13))
    return abs(root - f.p_min)


def _paper_region(f: Facts) -> float:
    return max(0.0, f.p_min - 0.21)


def _hessian(loss: Loss, z: Array) -> Array:
    """The Hessian of the loss in the logits z (K,) of a sample of class 0."""
    return jnp.asarray(jax.hessian(loss)(z, 0))


def _spectrum(loss: Loss, z: Array) -> Array:
    return jnp.linalg.eigvalsh(_hessian(loss, z))


_hessians, _spectra = (
    _compile.jit(jax.vmap(f, in_axes=(None, 0)), options=_compile.USUAL) for f in (_hessian, _spectrum)
)


def _curvatures(loss: Loss, K: int) -> np.ndarray:
    Z = np.random.default_rng(0).normal(size=(256, K)) * np.logspace(-1, 1, 256)[:, None]
    return np.asarray(_spectra(loss, jnp.asarray(Z)))


def _at_probability(loss: Loss, K: int, p: float) -> float:
    """The smallest curvature at logits whose target probability is p, the others random.

    The eigenvalue 0 of a common shift is left out by weighting it up.
    """
    others = np.random.default_rng(1).normal(size=(16, K - 1))
    own = np.log(p / (1 - p)) + np.log(np.exp(others).sum(axis=1))
    Z = np.concatenate([own[:, None], others], axis=1)
    H = np.asarray(_hessians(loss, jnp.asarray(Z)))
    scale = np.abs(H).max(axis=(1, 2), keepdims=True)
    return float(np.linalg.eigvalsh(H / scale + np.full((K, K), 1.0))[:, 0].min())


# --- what it assumes: each returns the reason why not, or "" --------------------------------------


def _anything(f: Facts) -> str:
    return ""


def _theorem_2(f: Facts) -> str:
    if not f.prob.loss.convex:
        return f"{f.prob.loss!r} is not convex in z: Corollary 2 speaks of it"
    if f.prob.d < f.full_rank:
        return f"d = {f.prob.d} < {f.full_rank}: spurious minima may exist (Theorem 2 assumes d > K)"
    return ""


def _corollary_1(f: Facts) -> str:
    return "" if f.prob.loss.convex else f"{f.prob.loss!r} is not declared convex"


def _corollary_2(f: Facts) -> str:
    if f.prob.loss.convex:
        return "the loss is convex everywhere: Theorem 2 speaks of it"
    if f.prob.d < f.full_rank:
        return f"d = {f.prob.d} < {f.full_rank}"
    try:
        return "" if f.p_min > 0 else "p_min = 0"
    except NoClosedForm as reason:
        return str(reason)


def _focal(f: Facts) -> str:
    region = f.prob.loss.region()
    return "about focal loss" if region is None or region.paper is None else ""


def _deficient(f: Facts) -> str:
    if not f.prob.loss.convex:
        return "the formula is a lower bound for convex losses only"
    return "" if _rank_deficient(f) else "no critical point of rank < d with |G|_op >= lam is here"


def _has_proof_direction(f: Facts) -> str:
    return (
        "" if any(e.proof_direction is not None for e in f.escapes) else "no point leaves a direction unused"
    )


def _has_global(f: Facts) -> str:
    return "" if any(point.kind == GLOBAL for point in f.points) else "no point is known to be global"


def _has_collapse(f: Facts) -> str:
    try:
        _collapse(f.prob)
    except NoClosedForm as reason:
        return str(reason)
    return ""


# --- the table ------------------------------------------------------------------------------------


def _first_trap(f: Facts) -> CriticalPoint | None:
    return next(iter(f.traps), None)


def _first_trap_inside(f: Facts) -> CriticalPoint | None:
    return next(iter(f.spurious(f.inside)), None)


def _nothing(f: Facts) -> CriticalPoint | None:
    return None


def _statement(
    name: str,
    statement: str,
    measure: Callable[[Facts], float],
    tolerance: float,
    why_not: Callable[[Facts], str],
) -> Statement[Facts]:
    def failure(facts: Facts, tolerance: float) -> str:
        point = COUNTEREXAMPLES.get(name, _nothing)(facts)
        return f"the deviation exceeds {tolerance:.1e}" if point is None else _shown(point)

    return Statement(name, statement, measure, lambda facts: tolerance, why_not, failure=failure)


def _shown(point: CriticalPoint) -> str:
    """A counterexample in one line, with what reproduces it."""
    where = f"{point.family}{', ' + point.start if point.start else ''}"
    return f"{where}: {point.kind}, index {int(point.index)}, f = {float(point.objective):.12f}; {point.why}"


#: Which critical point contradicts a statement that fails.
COUNTEREXAMPLES: dict[str, Callable[[Facts], CriticalPoint | None]] = {
    "theorem_2": _first_trap,
    "corollary_2": _first_trap_inside,
    "no_spurious_minimum": _first_trap,
    "collapse_is_global": lambda f: f.points[0],
}

#: Theorem 2 of Zhou et al. 2022, its corollaries, and what they are proved with.
STATEMENTS = (
    _statement("critical", "grad f = 0 at every point here", _gradient, 1e-10, _anything),
    _statement(
        "theorem_2",
        "every critical point is a global minimum or a strict saddle (count of others)",
        _traps,
        0.0,
        _theorem_2,
    ),
    _statement("corollary_1", "the loss is convex in the logits", _convexity, 1e-12, _corollary_1),
    _statement(
        "corollary_2",
        "where p_k >= p_min: the region's minimum or a strict saddle (count of others)",
        _traps_inside,
        0.0,
        _corollary_2,
    ),
    _statement("region", "the loss is convex exactly where p_k >= p_min", _region, 1e-9, _corollary_2),
    _statement("paper_region", "the paper's 0.21 suffices: p_min <= 0.21", _paper_region, 0.0, _focal),
    _statement(
        "no_spurious_minimum",
        "no minimum but the global one is here (count of others)",
        _traps,
        0.0,
        _anything,
    ),
    _statement(
        "collapse_is_global",
        "nothing lies below neural collapse (Theorem 1)",
        _below_collapse,
        1e-12,
        _has_collapse,
    ),
    _statement(
        "saddle_curvature",
        "rank < d: smallest eigenvalue A/2 - sqrt((lam_W - lam_H)^2/4 + |G|^2)",
        _saddle_curvature,
        1e-9,
        _deficient,
    ),
    _statement(
        "proof_direction",
        "its curvature is -2 (|G| - lam)/(sqrt(lam_H/lam_W) + sqrt(lam_W/lam_H))",
        _proof_curvature,
        1e-9,
        _has_proof_direction,
    ),
    _statement(
        "flat_directions",
        "at a global minimum only symmetries are flat (count of others)",
        _accidental,
        0.0,
        _has_global,
    ),
)


@dataclasses.dataclass(frozen=True, repr=False)
class LandscapeReport(Claims):
    """Theorem 2 and its corollaries over critical points; each failure with the point that shows it."""

    points: CriticalPoints
    claims: tuple[Claim, ...]
    counterexamples: dict[str, CriticalPoint]

    def headline(self) -> tuple[str, str]:
        """The problem, and how many points there are."""
        return self.points.problem.describe(), f"over {len(self.points)} critical points"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "passed": self.passed,
            **self.points.to_dict(),
            "claims": [claim.to_dict() for claim in self.claims],
            "counterexamples": {name: point.to_dict() for name, point in self.counterexamples.items()},
        }


def verify(points: CriticalPoints | Problem, *, progress: bool | None = None) -> LandscapeReport:
    """Measure Theorem 2, Corollaries 1 and 2 and what they rest on, over critical points.

    Args:
        points: of `critical_points` or `find_critical_points`; a problem stands for its analytically known
            ones.
        progress: True shows it, False does not; None shows it in a terminal or notebook.

    Returns: a `LandscapeReport`; a statement that fails comes with the point that contradicts it, whose
        `start` or `family` reproduces it.

    Raises:
        ValueError: neither critical points nor a problem, or no point at all.

    Source: Zhou et al. 2022, Theorem 2, Corollaries 1 and 2; docs/theory.md, sections 2 to 5.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=3, d=4, n=2, lam_W=0.01, lam_H=0.02)
    >>> report = verify(prob)
    >>> report.passed, report["theorem_2"].verdict
    (True, 'holds')
    """
    if isinstance(points, Problem):
        points = critical_points(points, progress=progress)
    if not isinstance(points, CriticalPoints):
        raise ValueError(f"points: expected CriticalPoints or a Problem, got {type(points).__name__}")
    if len(points) == 0:
        raise ValueError("points: expected at least one critical point, got none; raise starts")
    facts = Facts(points, progress)
    claims = _measured(facts, progress)
    found = {
        claim.name: COUNTEREXAMPLES.get(claim.name, _nothing)(facts)
        for claim in claims
        if claim.verdict == "fails"
    }
    return LandscapeReport(points, claims, {name: at for name, at in found.items() if at is not None})


@in_float64
def _measured(facts: Facts, progress: bool | None) -> tuple[Claim, ...]:
    _ = facts.escapes  # first, because this takes nearly all of the time and shows its own progress
    return tuple(row.claim(facts) for row in each("statements", STATEMENTS, progress, lambda row: row.name))
