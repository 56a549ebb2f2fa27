"""Theorem 2, Corollary 1 and Lemmas 5 and 7, measured over critical points of every index."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

import ufm
from ufm import losses, theory
from ufm.figures import Curve
from ufm.landscape import CriticalPoints
from ufm.landscape.theorems import LandscapeReport
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import About, Instance, Job, Level, Outcome, Table, compared
from ufm.reproduce._witness import Shape, shown


class Case(NamedTuple):
    """A problem whose critical points are known."""

    loss: str
    shape: Shape
    lam_W: float = 0.01
    lam_H: float = 0.02
    lam_b: float = 0.0
    bias: bool = True

    @property
    def name(self) -> str:
        """The name of its jobs."""
        K, d, n = self.shape
        regime = f"lam_b{self.lam_b:g}" if self.bias else "no-bias"
        return f"{self.loss}-K{K}-d{d}-n{n}-lam{self.lam_W:g}-{regime}"

    @property
    def config(self) -> dict[str, object]:
        """The configuration that reproduces it."""
        return self._asdict() | {"shape": dict(self.shape._asdict()), "loss": shown(self.loss)}

    def problem(self) -> ufm.Problem:
        """The problem itself."""
        rest = {"lam_W": self.lam_W, "lam_H": self.lam_H, "lam_b": self.lam_b, "bias": self.bias}
        return ufm.Problem.balanced(self.loss, **self.shape._asdict(), **rest)  # type: ignore[arg-type]


SHAPE = Shape(4, 6, 2)


@lru_cache(maxsize=32)
def _points(case: Case) -> CriticalPoints:
    return ufm.landscape.critical_points(case.problem())


@lru_cache(maxsize=32)
def _report(case: Case) -> LandscapeReport:
    return ufm.landscape.verify(_points(case))


def cases(level: Level, *names: str) -> Iterator[Case]:
    """One problem for each loss; the full grid has more sizes, penalties and bias regimes."""
    for name in names:
        yield Case(name, SHAPE, lam_b=0.05)
        if level == "full":
            yield Case(name, SHAPE)
            yield Case(name, SHAPE, bias=False)
            yield Case(name, SHAPE, lam_W=0.001, lam_H=0.0005)
            yield Case(name, Shape(5, 7, 3), lam_b=0.02)
            yield Case(name, Shape(6, 6, 2))


def claims(case: Case, names: tuple[str, ...], about: About = "paper") -> Outcome:
    """The named claims of `ufm.landscape.verify` that apply at the problem's known critical points."""
    report = _report(case)
    config = case.config | {"critical points": len(report.points)}
    return Outcome(_applicable(report, names, config, about))


def _applicable(
    report: LandscapeReport, names: tuple[str, ...], config: dict[str, object], about: About = "paper"
) -> tuple[Instance, ...]:
    found = (report[name] for name in names)
    return tuple(Instance(claim, config, about, {}) for claim in found if claim.verdict != "not applicable")


# --- Theorem 2 and Corollary 1 --------------------------------------------------------------------

_THEOREM_2 = (
    *("critical", "theorem_2", "no_spurious_minimum", "saddle_curvature"),
    *("proof_direction", "flat_directions"),
)


def theorem_2(level: Level) -> Iterator[Job]:
    """Convex losses. The full grid adds d = K - 1, which the paper omits, and d <= K - 2, where it fails."""
    for case in cases(level, "ce", "ls", "mse"):
        yield Job(case.name, partial(claims, case, _THEOREM_2), 6.0)
    if level == "full":
        for name in ("ce", "ls"):
            case = Case(name, Shape(4, 3, 2))
            yield Job(case.name, partial(claims, case, _THEOREM_2, "ours"), 5.0)
        for name in ("ce", "ls", "mse"):
            yield Job(f"search-{name}", partial(_searched, name), 20.0)
        yield Job("small-d", _small_d, 15.0)


def _searched(name: str) -> Outcome:
    case = Case(name, Shape(4, 4, 2), lam_b=0.02)
    found = ufm.landscape.find_critical_points(case.problem(), starts=512, progress=False)
    config = case.config | {"critical points found": len(found), "starts": 512}
    return Outcome(_applicable(ufm.landscape.verify(found), ("theorem_2", "saddle_curvature"), config))


def _small_d() -> Outcome:
    """K = 5, d = 2: some starts end in a spurious minimum, a square with one class at the origin."""
    case = Case("ce", Shape(5, 2, 1), lam_W=0.01, lam_H=0.01)
    found = ufm.landscape.find_critical_points(case.problem(), starts=64, seed=3, known=False, progress=False)
    minima = [float(p.objective) for p in found if p.is_minimum]
    what = "d <= K - 2: a strict local minimum above the lowest is found (0: yes)"
    lacking = float(len(minima) < 2)
    instance = compared(what, case.config, lacking, 0.0, "ours", {"minima": minima})
    return Outcome((instance,))


def corollary_1(level: Level) -> Iterator[Job]:
    """Convexity in the logits, and what follows at critical points."""
    for case in cases(level, "ce", "ls", "mse"):
        yield Job(case.name, partial(claims, case, ("corollary_1", "theorem_2")), 3.0)


def global_minima(level: Level) -> Iterator[Job]:
    """The spectral norm of G distinguishes global minima from saddles."""
    names = ("ce", "mse") if level == "quick" else ("ce", "ls", "mse")
    for case in cases(level, *names):
        yield Job(case.name, partial(_global_minima, case), 2.0)


def _global_minima(case: Case) -> Outcome:
    points, prob = _points(case), case.problem()
    lowest = float(theory.global_optimum(prob).objective)
    low_but_large = small_but_high = stable = 0
    rows = []
    for point in points:
        size = float(np.linalg.norm(witness.logit_gradient(prob, point.params), 2)) / float(prob.lam)
        values = witness.hessian_eigenvalues(prob, point.params)
        above = witness.objective(prob, point.params) - lowest
        small = size <= 1 + 1e-8
        low_but_large += above <= 1e-12 and not small
        small_but_high += small and abs(above) > 1e-12
        stable += not small and bool(values[0] > -1e-9 * (case.lam_W + case.lam_H))
        rows.append((case.loss, point.family, f"{size:.9f}", f"{above:.3e}", f"{values[0]:.3e}"))
    config = case.config | {"critical points": len(points)}
    header = ("loss", "critical point", "|G| / lam", "f - f*", "smallest eigenvalue")
    return Outcome(
        (
            compared("critical points with |G| <= lam whose f is not f*", config, float(small_but_high), 0.0),
            compared("critical points with f = f* and |G| > lam", config, float(low_but_large), 0.0),
            compared("critical points with |G| > lam whose dense Hessian has no negative eigenvalue", config,
                     float(stable), 0.0),
        ),
        (Table("The gradient in the logits, lam = sqrt(lam_W lam_H)", header, tuple(rows)),),
    )  # fmt: skip


# --- the table of critical points, and spectra ----------------------------------------------------


def critical_points(level: Level) -> Iterator[Job]:
    """Every analytically known point against the dense Hessian by autodiff."""
    names = ("ce", "fl") if level == "quick" else tuple(losses.PAPER)
    for case in cases(level, *names):
        yield Job(case.name, partial(_dense, case), 6.0)


def _dense(case: Case) -> Outcome:
    instances, rows, index, height = [], [], [], []
    points = _points(case)
    scale = case.lam_W + case.lam_H
    for point in points:
        config = case.config | {"family": point.family}
        values = witness.hessian_eigenvalues(points.problem, point.params)
        wrong = abs(int((values < -1e-9 * scale).sum()) - int(point.index))
        instances.append(compared("index against the dense Hessian (difference)", config, float(wrong), 0.0))
        apart = abs(float(point.smallest) - float(values[0])) / scale
        instances.append(compared("smallest eigenvalue against the dense Hessian", config, apart, 1e-10))
        f = witness.objective(points.problem, point.params)
        gap = abs(float(point.objective) - f)
        instances.append(compared("objective against f(W, H, b)", config, gap, 1e-12))
        rows.append(
            (case.loss, point.family, f"{float(point.objective):.9f}", f"{int(point.index)}",
             f"{int(point.zeros)}", f"{float(point.smallest):.3e}", f"{int(point.rank)}", point.kind)
        )  # fmt: skip
        index.append(float(point.index))
        height.append(float(point.objective))
    header = ("loss", "family", "objective", "index", "zeros", "smallest", "rank", "kind")
    size = f"K={case.shape.K}, d={case.shape.d}, n={case.shape.n}"
    table = Table(f"Critical points, {size}", header, tuple(rows))
    main = case == Case(case.loss, SHAPE, lam_b=0.05) and losses.get(case.loss).shift_invariant
    curves = (Curve("points", shown(case.loss), index, height, "points"),) if main else ()
    return Outcome(tuple(instances), (table,), curves)


def spectrum(level: Level) -> Iterator[Job]:
    """The closed-form spectrum at the optimum against the dense Hessian."""
    for case in cases(level, *losses.PAPER):
        yield Job(case.name, partial(_spectrum, case), 2.0)


def _spectrum(case: Case) -> Outcome:
    prob = case.problem()
    closed = theory.hessian_spectrum(prob)
    dense = witness.hessian_eigenvalues(prob, theory.global_optimum(prob).params)
    values = np.sort(closed.expand())
    same = values.size == dense.size
    apart = float(np.abs(values - dense).max() / np.abs(dense).max()) if same else np.inf
    config = case.config | {"eigenvalues": int(dense.size), "distinct": int(closed.values.size)}
    instance = compared("closed form against the dense Hessian, relative", config, apart, 1e-10)
    curves: tuple[Curve, ...] = ()
    if case == Case("ce", SHAPE, lam_b=0.05):
        steps = np.arange(dense.size, dtype=float)
        curves = (
            Curve("spectrum", "dense Hessian, autodiff", steps.tolist(), dense.tolist(), "points"),
            Curve("spectrum", "closed form", steps.tolist(), values.tolist()),
        )
    return Outcome((instance,), curves=curves)


# --- Lemmas 5 and 7 -------------------------------------------------------------------------------


def lemma_5(level: Level) -> Iterator[Job]:
    """Balance, at every critical point."""
    names = ("ce", "fl") if level == "quick" else tuple(losses.PAPER)
    for case in cases(level, *names):
        yield Job(case.name, partial(_balance, case), 2.0)


def _balance(case: Case) -> Outcome:
    instances = []
    for point in _points(case):
        W, H, _ = (np.asarray(x) for x in point.params)
        left, right = case.lam_W * W.T @ W, case.lam_H * H @ H.T
        apart = float(np.linalg.norm(left - right)) / (1e-2 + float(np.linalg.norm(left)))
        config = case.config | {"family": point.family, "index": int(point.index)}
        instances.append(compared("|lam_W W'W - lam_H H H'|, relative", config, apart, 1e-9))
    return Outcome(tuple(instances))


def lemma_7(level: Level) -> Iterator[Job]:
    """Whether b = tau 1: true at the optimum, false at frames of fewer than K classes."""
    names = ("ce",) if level == "quick" else ("ce", "ls", "fl")
    shapes = (SHAPE,) if level == "quick" else (SHAPE, Shape(5, 7, 2))
    for name in names:
        for shape in shapes:
            case = Case(name, shape, lam_b=0.05)
            yield Job(case.name, partial(_bias, case), 3.0)


def _bias(case: Case) -> Outcome:
    points = _points(case)
    rows = []
    instances = []
    for point in points:
        b = np.asarray(point.params.b)
        spread = float(np.ptp(b))
        config = case.config | {"family": point.family, "b": [float(f"{x:.12g}") for x in b]}
        details = {"|grad f|": float(point.grad_norm), "index": int(point.index)}
        what = "max b - min b at a critical point"
        instances.append(compared(what, config, spread, 1e-9, "paper", details))
        rows.append((case.loss, point.family, f"{spread:.6f}", f"{float(point.grad_norm):.0e}", point.kind))
    best = points[0]
    spread = float(np.ptp(np.asarray(best.params.b)))
    what = "max b - min b at the global minimum"
    instances.append(compared(what, case.config, spread, 1e-9, "ours"))
    gradient = max(float(point.grad_norm) for point in points)
    instances.append(compared("|grad f| at all of them", case.config, gradient, 1e-10, "ours"))
    header = ("loss", "critical point", "max b - min b", "|grad f|", "kind")
    title = f"The bias at critical points, K={case.shape.K}, lam_b={case.lam_b:g}"
    return Outcome(tuple(instances), (Table(title, header, tuple(rows)),))
