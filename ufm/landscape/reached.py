"""Where a solver ends from random starts: the distinct points of any model, each with its inertia."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from ufm import _checks, theory
from ufm._problem import Problem, Variables
from ufm._sheet import Printed, Sheet
from ufm._sweep import solve_sweep
from ufm.hessian.inertia import Inertia, InertiaWarning, inertia
from ufm.landscape.widths import SAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Reached(NamedTuple):
    """One point that starts have led to."""

    objective: float
    hits: int
    inertia: Inertia  # (neg, zero, pos) of the variables that are free there
    params: Variables  # of the first start that ended here


@dataclasses.dataclass(frozen=True, repr=False)
class ReachedPoints(Printed):
    """The distinct points, the lowest first.  Prints itself; `.plot()` draws the spectrum at the lowest."""

    problem: Problem
    points: tuple[Reached, ...]
    starts: int
    optimum: float | None  # theory's, None where there is none

    @property
    def spurious(self) -> tuple[Reached, ...]:
        """Points without a direction down that lie above the lowest one, or above theory's optimum."""
        best = min([point.objective for point in self.points] + [self.optimum or np.inf])
        above = [p for p in self.points if p.objective > best + SAME * (1 + abs(best))]
        return tuple(point for point in above if point.inertia.neg == 0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the points themselves."""
        rows = [
            {"objective": p.objective, "hits": p.hits, "inertia": [int(x) for x in p.inertia]}
            for p in self.points
        ]
        known = {"starts": self.starts, "optimum": self.optimum, "spurious": len(self.spurious)}
        return {"problem": self.problem.to_dict(), **known, "points": rows}

    def sheet(self) -> Sheet:
        """A row for each point."""
        rows = []
        for point in self.points:
            excess = "" if self.optimum is None else f"{point.objective - self.optimum:.1e}"
            index, zeros, _ = point.inertia
            rows.append((f"{point.objective:.12g}", excess, str(point.hits), str(index), str(zeros)))
        lost = self.starts - sum(point.hits for point in self.points)
        notes = [self.problem.describe()] + [f"{lost} starts did not converge"] * bool(lost)
        return Sheet(
            f"Reached from {self.starts} starts",
            ("objective", "f - theory", "hits", "index", "zeros"),
            rows,
            notes,
        )

    def plot(self) -> Figure:
        """A matplotlib figure: all eigenvalues of the Hessian at the lowest point."""
        from ufm.hessian.spectrum import eigenvalues

        return eigenvalues(self.problem, self.points[0].params, which="all").plot()


def reached_points(
    prob: Problem, *, starts: int = 30, seed: int = 0, scale: float = 0.1, progress: bool | None = None
) -> ReachedPoints:
    """Solve from random starts and tell the points at which they end apart by their objectives.

    Unlike `critical_points` and `find_critical_points`, which know two free factors, this takes any model; it
    finds what Newton's method ends at, which are minima, and no saddles.

    Args:
        starts: how many seeds, from `seed` on.  scale: of the starts, as in `init`.

    Raises:
        ValueError: starts or seed that are no integers >= 1 and >= 0; scale <= 0.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=3, d=3, n=1, lam_W=0.01, lam_H=0.01, model="nonnegative")
    >>> found = ufm.landscape.reached_points(prob, starts=4)
    >>> [round(point.objective, 6) for point in found.points][0], found.points[0].inertia.neg
    (0.13203, 0)
    """
    starts = _checks.integer("starts", starts, least=1)
    seed = _checks.integer("seed", seed, least=0)
    sols = solve_sweep(prob, seeds=range(seed, seed + starts), scale=scale, progress=progress)
    values = np.where(np.asarray(sols.converged), np.asarray(sols.objective), np.nan)
    points, left = [], np.flatnonzero(np.isfinite(values))
    while left.size:
        lowest = left[np.argmin(values[left])]
        f = float(values[lowest])
        here = np.abs(values[left] - f) <= SAME * (1 + abs(f))
        params = jax.tree.map(lambda x, i=lowest: x[i], sols.params)
        points.append(Reached(f, int(here.sum()), _inertia(prob, params), params))
        left = left[~here]
    try:
        optimum = float(theory.global_optimum(prob).objective)
    except theory.NoClosedForm:
        optimum = None
    return ReachedPoints(prob, tuple(points), starts, optimum)


def _inertia(prob: Problem, params: Variables) -> Inertia:
    """Without its warning: what is near the tolerance is in the record, and `sheet` says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InertiaWarning)
        return inertia(prob, params)
