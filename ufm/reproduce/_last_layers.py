"""What separates a trained classifier from a simplex: last layers of a grid of runs beside their optima."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.stats

from ufm.deep.mini import Grid
from ufm.figures import Curve
from ufm.figures.records import Cell, number_of, words
from ufm.reproduce._networks import ROUNDING, power, shown, title
from ufm.reproduce._records import Instance, Outcome, Table, compared

#: NC2 of W in steps, each of which removes one cause: its name, the model of the optimum, the field
STEPS = (
    ("as trained", "nonnegative", "nc2"),
    ("trained on, features fixed", "nonnegative", "refitted_nc2"),
    ("the same, class means alone", "nonnegative", "means_nc2"),
    ("optimum, H >= 0", "nonnegative", "optimal_nc2"),
    ("optimum, H free", "free", "optimal_nc2"),
)
#: measured beside the optimum of the non-negative model: the name, the field, and that of the optimum
BESIDE = (
    ("cosine of raw class means", "raw_angle", "optimal_raw_angle"),
    ("NC3 of raw class means", "raw_duality", "optimal_raw_duality"),
    ("margin", "margin", "optimal_margin"),
    ("|W|", "norm_W", "optimal_norm_W"),
    ("|b|", "norm_b", "optimal_norm_b"),
)
#: an optimum that is no simplex has at least this NC2; a network has reached it up to this share of it
BENT, NEAR = 0.02, 0.25
#: rank correlation over all runs from which on the rest of NC2 goes with NC1
TOGETHER = 0.5


def causes(grid: Grid) -> Outcome:
    """NC2 of W at the largest cell step by step; over all runs, its rest beside NC1."""
    cell = shown(grid)
    instances = list(_judged(grid, cell)) if grid.complete(grid.experiment.cells[-1]) else []
    return Outcome(tuple(instances), (_steps(grid, cell), _beside(grid, cell)), tuple(_curves(grid, cell)))


def _means(grid: Grid, model: str, name: str, cell: Cell) -> dict[str, float]:
    """The mean over the seeds for each loss that has runs."""
    values = {loss: grid.last_layers(model, name, loss, cell) for loss in grid.experiment.losses}
    return {loss: float(np.mean(own)) for loss, own in values.items() if own}


def _rest(grid: Grid, loss: str) -> Iterator[tuple[float, float]]:
    """(NC1, NC2 of W less that of the optimum) of each run of a loss."""
    for cell in grid.experiment.cells:
        own = (grid.last_layers("nonnegative", name, loss, cell) for name in ("nc1", "nc2", "optimal_nc2"))
        yield from ((nc1, nc2 - best) for nc1, nc2, best in zip(*own, strict=True))


def _judged(grid: Grid, cell: Cell) -> Iterator[Instance]:
    ends, optima = (_means(grid, "nonnegative", name, cell) for name in ("nc2", "optimal_nc2"))
    for loss, best in optima.items():
        if best > BENT:
            what = f"{title(loss)}, whose optimum is no simplex: NC2 of W, relative to the optimum's"
            config = {"loss": loss, "width": cell[0], "epochs": cell[1]}
            yield compared(what, config, abs(ends[loss] / best - 1), NEAR, about="ours",
                           details={"NC2": ends[loss], "optimum": best})  # fmt: skip
    runs = [run for loss in grid.experiment.losses for run in _rest(grid, loss)]
    nc1, rest = zip(*runs, strict=True)
    rank = float(scipy.stats.spearmanr(nc1, rest)[0])
    what = "the rest of NC2 goes with NC1 over all runs: 1 less their rank correlation"
    yield compared(what, {"runs": len(runs)}, 1 - rank, 1 - TOGETHER, about="ours")


def _steps(grid: Grid, cell: Cell) -> Table:
    rows = [
        (title(loss), *(power(number_of("", grid.last_layers(model, name, loss, cell)))
                        for _, model, name in (("", "free", "nc1"), *STEPS)))
        for loss in grid.experiment.losses
    ]  # fmt: skip
    header = ("loss", "NC1", *(f"NC2 of W: {step}" if i == 0 else step for i, (step, *_) in enumerate(STEPS)))
    return Table(f"What is left of NC2, {words(cell)}: mean +- spread (seeds)", header, tuple(rows))


def _beside(grid: Grid, cell: Cell) -> Table:
    def both(loss: str, measured: str, optimal: str) -> str:
        own, best = (grid.last_layers("nonnegative", name, loss, cell) for name in (measured, optimal))
        return f"{_short(own)} ({_short(best)})" if own else "no run"

    rows = [(title(loss), *(both(loss, *names) for _, *names in BESIDE)) for loss in grid.experiment.losses]
    name = f"Measured, and in brackets the optimum of features that are not negative, {words(cell)}"
    return Table(name, ("loss", *(name for name, *_ in BESIDE)), tuple(rows))


def _short(values: list[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean if abs(mean) > ROUNDING else 0:.3g}"


def _curves(grid: Grid, cell: Cell) -> Iterator[Curve]:
    for step, model, name in STEPS:
        found = _means(grid, model, name, cell)
        yield Curve("causes", step, list(found.values()), [title(loss) for loss in found], "points")
    for loss in grid.experiment.losses:
        if runs := list(_rest(grid, loss)):
            nc1, rest = (list(values) for values in zip(*runs, strict=True))
            yield Curve("rest", title(loss), nc1, rest, "points")
