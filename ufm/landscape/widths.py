"""Spurious minima counted: where random starts end, by the number of feature dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from ufm import _checks, theory
from ufm._figure import plot
from ufm._problem import Problem
from ufm._sheet import Printed, Sheet
from ufm._sweep import solve_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: objectives this close, relative to 1 + |f|, are one minimum
SAME = 1e-9
#: distinct minima that a printed row names
NAMED = 3


@dataclasses.dataclass(frozen=True, repr=False)
class MinimaByWidth(Printed):
    """Where random starts end for each feature dimension.  Prints and plots itself."""

    problem: Problem
    widths: Int[np.ndarray, " M"]
    objectives: Float[np.ndarray, "M starts"]  # where the starts end, ascending; nan: not converged
    best: Float[np.ndarray, " M"]  # theory's f*, else the lowest that was found
    known: tuple[bool, ...]  # whether `best` is theory's

    @property
    def share(self) -> Float[np.ndarray, " M"]:
        """The share of the converged starts that end at `best`."""
        return np.array([self._at(row, f).sum() / max(len(row), 1) for row, f in self._ended()])

    def minima(self, i: int) -> list[tuple[float, int]]:
        """The distinct objectives at width i and how many starts end there, the lowest first."""
        row, found = self._ended()[i][0], []
        while len(row):
            here = self._at(row, row[0])
            found.append((float(row[0]), int(here.sum())))
            row = row[~here]
        return found

    def _ended(self) -> list[tuple[np.ndarray, float]]:
        """The objectives of the converged starts, and `best`, for each width."""
        pairs = zip(self.objectives, self.best.tolist(), strict=True)
        return [(row[np.isfinite(row)], f) for row, f in pairs]

    @staticmethod
    def _at(row: np.ndarray, f: float) -> np.ndarray:
        return np.asarray(np.abs(row - f) <= SAME * (1 + abs(f)))

    def sheet(self) -> Sheet:
        """One row for each width: the share at the optimum, and the lowest minima with their counts."""
        rows = []
        for i, d in enumerate(self.widths.tolist()):
            found = self.minima(i)
            named = ", ".join(f"{f:.9g} ({times})" for f, times in found[:NAMED])
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            source = "theory" if self.known[i] else "lowest found"
            rows.append((f"{d}", f"{self.share[i]:.2f}", f"{self.best[i]:.9g}", source, named + more))
        header = ("d", "share at f*", "f*", "from", "minima (starts)")
        title = f"Minima reached by {self.objectives.shape[1]} starts"
        return Sheet(title, header, rows, [self.problem.describe(without=("d",))])

    def plot(self) -> Figure:
        """A matplotlib figure: the share of starts at the optimum, and the heights of the other minima."""
        return plot(self)


def minima_by_width(
    prob: Problem,
    widths: Sequence[int],
    *,
    starts: int = 30,
    scale: float = 0.1,
    progress: bool | None = None,
) -> MinimaByWidth:
    """Solve from random starts for several feature dimensions, and count where they end.

    For features that are not negative spurious minima exist for every d that was tried, more rarely so for
    larger d. A loss that is convex is solved for its class means, where every such point lies.

    Args:
        prob: a problem of two factors; its d is exchanged for each of the `widths`.
        widths: integers >= 1.
        starts: how many seeds.  scale: of the starts, as in `init`.

    Raises:
        ValueError: another model than two factors; widths or starts that are no integers >= 1.

    Source: docs/theory.md, section 6.4.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=3, n=1, lam_W=0.01, lam_H=0.01, model="nonnegative")
    >>> found = ufm.landscape.minima_by_width(prob, [3], starts=4)
    >>> found.objectives.shape, found.known
    ((1, 4), (True,))
    """
    if not prob.model.two_factors:
        raise ValueError(f"model: expected two factors, whose d may change, got model={prob.model!r}")
    each = [_checks.integer("widths", d, least=1) for d in widths]
    starts = _checks.integer("starts", starts, least=1)
    ends = [_ends(prob.replace(d=d), starts, scale, progress) for d in each]
    optima = [_optimum(prob.replace(d=d), row) for d, row in zip(each, ends, strict=True)]
    best, known = np.array([f for f, _ in optima]), tuple(sure for _, sure in optima)
    return MinimaByWidth(prob, np.array(each), np.array(ends), best, known)


def _ends(prob: Problem, starts: int, scale: float, progress: bool | None) -> np.ndarray:
    options: dict[str, Any] = {"scale": scale, "reduced": prob.loss.convex, "progress": progress}
    sols = solve_sweep(prob, seeds=range(starts), **options)
    return np.sort(np.where(sols.converged, np.asarray(sols.objective), np.nan))


def _optimum(prob: Problem, ends: np.ndarray) -> tuple[float, bool]:
    try:
        return theory.global_optimum(prob).objective, True
    except theory.NoClosedForm:
        return float(np.nanmin(ends, initial=np.inf)), False
