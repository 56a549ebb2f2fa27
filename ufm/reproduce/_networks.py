"""Section 4 of the paper: its claims about trained networks, measured on the records of a grid of runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import scipy.stats

from ufm.deep.mini import Grid
from ufm.figures import Curve
from ufm.figures.grid import MINI as FIGURE_8
from ufm.figures.records import LARGEST, LOSSES, SMALLEST, Cell, Number, Record, number_of, words
from ufm.reproduce._records import Instance, Job, Level, Outcome, Table, compared

#: where a grid comes from: read when a job runs, and not when this module is imported
Source = Callable[[], Grid]
#: measures a claim on a grid
Measure = Callable[[Grid], Outcome]

#: NC1, NC2 and NC3 have fallen together if each has at most this share of its first value ...
FALLEN = 0.5
#: ... and each pair has at least this rank correlation over the measurements
TOGETHER = 0.5
#: a training accuracy of 100 %, up to five of 5,000 images
FITTED = 1e-3
#: the paper's largest difference between losses in test accuracy, at its smallest and largest cell
DIFFERENCE = {SMALLEST: 0.01037, LARGEST: 0.0036}
#: below this a number in a table is 0
ROUNDING = 1e-9
#: the paper's ratio of NC1 between these cells, and the factor up to which ours agrees with it
RATIO, FACTOR = 1000.0, 10.0


def jobs(measure: Measure, source: Source, level: Level) -> Iterator[Job]:
    """One job for a claim, whose name changes with the records: new records are measured again."""
    grid = source()
    yield Job(f"{grid.progress}, {grid.digest}", partial(_labelled, measure, grid), cost=0.2)


def _labelled(measure: Measure, grid: Grid) -> Outcome:
    """The outcome with a table that says what it was measured on."""
    label = Table("Measured on", ("", ""), tuple(grid.label().items()))
    found = measure(grid)
    return found._replace(tables=(*found.tables, label))


# --- numbers in words -----------------------------------------------------------------------------


def _percent(number: Number) -> str:
    return _spread(number, lambda value: f"{100 * value:.2f}")


def power(number: Number) -> str:
    """In two digits; what is rounding alone is 0."""
    return _spread(number, lambda value: f"{value if abs(value) > ROUNDING else 0:.2g}")


def _spread(number: Number, shown: Callable[[float], str]) -> str:
    """Mean and standard deviation over the seeds, and their number."""
    if number.mean is None:
        return "no run"
    spread = "" if number.spread is None else f" +- {shown(number.spread)}"
    return f"{shown(number.mean)}{spread} ({number.seeds})"


def title(loss: str) -> str:
    return LOSSES[loss][0]


def _ends(grid: Grid) -> tuple[Cell, Cell]:
    """The narrowest, shortest and the widest, longest cell."""
    return grid.experiment.cells[0], grid.experiment.cells[-1]


def _mean(grid: Grid, name: str, loss: str, cell: Cell) -> float:
    return float(np.mean(grid.last(name, loss, cell)))


def _difference(grid: Grid, cell: Cell) -> float:
    """The largest difference between losses in test accuracy, means over the seeds."""
    means = [_mean(grid, "test_accuracy", loss, cell) for loss in grid.experiment.losses]
    return max(means) - min(means)


# --- figures 1 and 5 ------------------------------------------------------------------------------


def collapse(grid: Grid) -> Outcome:
    """NC1, NC2 and NC3 fall together, for every loss, in the largest networks."""
    cell = shown(grid)
    found = [(loss, grid.of(loss, cell)) for loss in grid.experiment.losses]
    judged = grid.complete(_ends(grid)[1])
    instances = [one for loss, runs in found if judged for one in _falling(loss, cell, runs)]
    names = ("nc1", "nc2", "nc3", "nc4")
    rows = [(title(loss), *(_fall(runs, name) for name in names)) for loss, runs in found]
    name = f"First and last measurement, {words(cell)}: mean +- spread (seeds)"
    table = Table(name, ("loss", "NC1", "NC2", "NC3", "NC4"), tuple(rows))
    return Outcome(tuple(instances), (table,), _over_time(grid, cell, names[:3]))


def shown(grid: Grid) -> Cell:
    """The largest cell once it has every loss; before, the cell with most runs, of several the largest."""
    cells = grid.experiment.cells
    if grid.complete(cells[-1]):
        return cells[-1]
    count = {cell: sum(run.cell == cell for run in grid.runs) for cell in cells}
    return max(cells, key=lambda cell: (count[cell], cells.index(cell)))


def _over_time(grid: Grid, cell: Cell, names: Sequence[str]) -> tuple[Curve, ...]:
    """Fields of the history of each run in a cell."""
    return tuple(
        Curve(name, f"{title(loss)}, seed {run.config['seed']}", list(run.epochs), list(run.history[name]))
        for loss in grid.experiment.losses
        for run in grid.of(loss, cell)
        for name in names
    )


def _fall(runs: Sequence[Record], name: str) -> str:
    first, last = ([float(run.history[name][i]) for run in runs] for i in (0, -1))
    return f"{power(number_of('', first))} -> {power(number_of('', last))}" if runs else "no run"


def _falling(loss: str, cell: Cell, runs: Sequence[Record]) -> Iterator[Instance]:
    config = {"loss": loss, "width": cell[0], "epochs": cell[1], "seeds": len(runs)}
    for name in ("nc1", "nc2", "nc3"):
        share = float(np.mean([run.history[name][-1] / run.history[name][0] for run in runs]))
        details = {"last": [float(run.history[name][-1]) for run in runs]}
        what = f"{name.upper()} falls, {title(loss)}: its last value over its first"
        yield compared(what, config, share, FALLEN, details=details)
    for one, other in itertools.combinations(("nc1", "nc2", "nc3"), 2):
        rank = np.mean([scipy.stats.spearmanr(run.history[one], run.history[other])[0] for run in runs])
        what = (
            f"{one.upper()} and {other.upper()} fall together, {title(loss)}: 1 less their rank correlation"
        )
        yield compared(what, config, 1 - float(rank), 1 - TOGETHER)


# --- figures 2 and 6 ------------------------------------------------------------------------------


def accuracies(grid: Grid) -> Outcome:
    """Training accuracies reach 100 %, and test accuracies end alike, in the largest networks."""
    cell, names = shown(grid), ("train_accuracy", "test_accuracy")
    instances, rows = [], []
    judged = grid.complete(_ends(grid)[1])
    for loss in grid.experiment.losses:
        numbers = [number_of("", grid.last(name, loss, cell)) for name in names]
        rows.append((title(loss), *map(_percent, numbers)))
        if judged:
            config = {"loss": loss, "width": cell[0], "epochs": cell[1], "seeds": numbers[0].seeds}
            what = f"training accuracy 100 %, {title(loss)}: what is missing"
            instances.append(compared(what, config, 1 - _mean(grid, names[0], loss, cell), FITTED))
    instances += [_alike(grid, cell)] if judged else []
    name = f"Accuracies after the last epoch in %, {words(cell)}: mean +- spread (seeds)"
    table = Table(name, ("loss", "training", "test"), tuple(rows))
    return Outcome(tuple(instances), (table,), _over_time(grid, cell, names))


def _alike(grid: Grid, large: Cell) -> Instance:
    what = "test accuracies end alike: their largest difference, at most the paper's largest, 1.037 %"
    config = {"width": large[0], "epochs": large[1]}
    details = {"paper at its largest cell": DIFFERENCE[LARGEST]}
    return compared(what, config, _difference(grid, large), DIFFERENCE[SMALLEST], details=details)


# --- figures 3, 6 and 8 ---------------------------------------------------------------------------


def better(grid: Grid) -> Outcome:
    """More width and more epochs help every loss, and the losses then differ less."""
    small, large = _ends(grid)
    judged = grid.complete(small) and grid.complete(large)  # width alone says nothing of epochs
    instances = [one for loss in grid.experiment.losses for one in _helps(grid, loss)] if judged else []
    rows = [
        (f"largest difference between losses, {name}", _points(grid, own), f"{100 * DIFFERENCE[paper]:.4g}")
        for name, own, paper in (("narrow, short", small, SMALLEST), ("wide, long", large, LARGEST))
    ]
    if judged:
        ratio = _difference(grid, large) / _difference(grid, small)
        what = "the difference between losses shrinks: at the largest over at the smallest cell"
        details = {"paper": DIFFERENCE[LARGEST] / DIFFERENCE[SMALLEST]}
        instances.append(compared(what, {"cells": [list(small), list(large)]}, ratio, 1.0, details=details))
    beside = Table("Test accuracy in points, ours beside the paper's", ("", "ours", "paper"), tuple(rows))
    return Outcome(
        tuple(instances), (_cells(grid, "test_accuracy", _percent), beside), _lines(grid, "test_accuracy")
    )


def _points(grid: Grid, cell: Cell) -> str:
    return f"{100 * _difference(grid, cell):.2f}" if grid.complete(cell) else "unfinished"


def _helps(grid: Grid, loss: str) -> Iterator[Instance]:
    """The gain from the smallest to the largest value of an axis, for each value of the other."""
    e = grid.experiment
    widths = [((min(e.widths), n), (max(e.widths), n), f"width at {n} epochs") for n in e.epochs]
    epochs = [((w, min(e.epochs)), (w, max(e.epochs)), f"epochs at width {w:g}") for w in e.widths]
    for few, many, axis in (*widths, *epochs):
        if grid.complete(few) and grid.complete(many):
            gain = _mean(grid, "test_accuracy", loss, many) - _mean(grid, "test_accuracy", loss, few)
            what = f"more {axis} helps {title(loss)}: test accuracy lost"
            yield compared(
                what,
                {"loss": loss, "cells": [list(few), list(many)]},
                max(0.0, -gain),
                0.0,
                details={"gain": gain},
            )


def _cells(grid: Grid, name: str, shown: Callable[[Number], str]) -> Table:
    """The last values of a field, a row for each cell and a column for each loss."""
    e = grid.experiment
    rows = [
        (words(cell), *(shown(number_of("", grid.last(name, loss, cell))) for loss in e.losses))
        for cell in e.cells
    ]
    what = {"test_accuracy": "Test accuracy of the last epoch in %", "nc1": "NC1 of the last epoch"}[name]
    return Table(f"{what}: mean +- spread (seeds)", ("", *map(title, e.losses)), tuple(rows))


def _lines(grid: Grid, name: str) -> tuple[Curve, ...]:
    """The means over the seeds against the width, a curve for each loss and number of epochs."""
    e = grid.experiment
    made = []
    for loss, epochs in itertools.product(e.losses, e.epochs):
        known = [width for width in e.widths if grid.of(loss, (width, epochs))]
        values = [_mean(grid, name, loss, (width, epochs)) for width in known]
        made += [Curve(name, f"{title(loss)}, {epochs} epochs", known, values)] if known else []
    return tuple(made)


# --- figures 4 and 7 ------------------------------------------------------------------------------


def collapse_grid(grid: Grid) -> Outcome:
    """NC1 of narrow, short runs is about a thousand times that of wide, long ones."""
    small, large = _ends(grid)
    instances, rows, ratios = [], [], []
    for loss in grid.experiment.losses:
        if not (grid.of(loss, small) and grid.of(loss, large)):
            rows.append((title(loss), "no run", "about 1000"))
            continue
        ratio = _mean(grid, "nc1", loss, small) / _mean(grid, "nc1", loss, large)
        ratios.append(ratio)
        rows.append((title(loss), f"{ratio:.3g}", "about 1000"))
        config = {"loss": loss, "cells": [list(small), list(large)]}
        what = f"NC1 falls with width and epochs, {title(loss)}: at the largest over at the smallest cell"
        instances.append(compared(what, config, 1 / ratio, 1.0, about="ours"))
    if len(ratios) < len(grid.experiment.losses):
        instances = []
    else:
        mean = float(scipy.stats.gmean(ratios))
        what = "NC1 falls about a thousandfold: the factor between its mean fall and 1000"
        details = {"ratio": mean, "of each loss": ratios}
        instances.append(compared(what, {}, max(mean / RATIO, RATIO / mean), FACTOR, details=details))
    beside = Table(
        "NC1 of narrow, short runs over that of wide, long runs", ("loss", "ours", "paper"), tuple(rows)
    )
    return Outcome(tuple(instances), (_cells(grid, "nc1", power), beside), _lines(grid, "nc1"))


# --- figure 8 -------------------------------------------------------------------------------------


def two_ends(grid: Grid) -> Outcome:
    """Test accuracies at the two ends: every loss gains, and the losses end closer."""
    small, large = _ends(grid)
    losses = [loss for loss in grid.experiment.losses if grid.of(loss, small) and grid.of(loss, large)]
    rows, instances = [], []
    for loss in losses:
        ours = [_mean(grid, "test_accuracy", loss, cell) for cell in (small, large)]
        paper = [FIGURE_8[cell][loss] for cell in (SMALLEST, LARGEST)]
        rows.append((title(loss), *(f"{100 * value:.2f}" for value in (*ours, ours[1] - ours[0])),
                     *(f"{100 * value:.2f}" for value in (*paper, paper[1] - paper[0]))))  # fmt: skip
        what = f"{title(loss)} gains from the narrow, short to the wide, long end: test accuracy lost"
        lost = max(0.0, ours[0] - ours[1])
        instances.append(compared(what, {"loss": loss}, lost, 0.0, details={"ours": ours, "paper": paper}))
    complete = len(losses) == len(grid.experiment.losses)
    instances = [*instances, _closer(grid)] if complete else []
    header = ("loss", "narrow, short", "wide, long", "gain", "paper: narrow, short", "wide, long", "gain")
    name = "Test accuracy of the last epoch in %, beside the paper's on miniImageNet"
    return Outcome(tuple(instances), (Table(name, header, tuple(rows)),), _lines(grid, "test_accuracy"))


def _closer(grid: Grid) -> Instance:
    small, large = _ends(grid)
    spreads = {cell: max(own.values()) - min(own.values()) for cell, own in FIGURE_8.items()}
    ratio = _difference(grid, large) / _difference(grid, small)
    what = (
        "the losses end closer: their largest difference at the wide, long over that at the narrow, short end"
    )
    return compared(what, {}, ratio, 1.0, details={"paper": spreads[LARGEST] / spreads[SMALLEST]})
