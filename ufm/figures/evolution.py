"""Quantities against the epochs: figures 1, 2 and 5."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ufm.figures import _style
from ufm.figures.records import (
    COLLAPSE,
    LOSSES,
    Cell,
    Made,
    Record,
    last,
    looks,
    number_of,
    runs_of,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def evolution(names: dict[str, str], runs: list[Record], of_paper: bool) -> Made:
    """Each quantity against the epochs, one line per loss: mean over the seeds, and their range shaded.

    A quantity that no run has measured, such as a validation accuracy where no images are set aside, has no
    panel.
    """
    cell = _fullest(runs)
    names = {name: label for name, label in names.items() if _measured(runs, cell, name)} or names
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _style.new_figure(_style.WIDTH, 0.8 + 2.0 * rows)
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    axes = panels[: len(names)]
    for unused in panels[len(names) :]:
        unused.remove()
    missing, numbers = [], []
    others = {run.config["loss"] for run in runs} - set(LOSSES)
    for ax, (name, label) in zip(axes, names.items(), strict=True):
        ax.set(xlabel="epoch", ylabel=label, yscale="log" if name in COLLAPSE else "linear")
    for loss, (title, *look) in looks(runs).items():
        own = runs_of(runs, loss, cell, completed=False)
        if not own:
            if of_paper or not others:
                missing.append(f"{title} at {words(cell)}")
            continue
        for ax, name in zip(axes, names, strict=True):
            _line(ax, own, name, title, look)
        for name, label in names.items():
            paper = 1.0 if of_paper and name == "train_accuracy" else None
            numbers.append(number_of(f"{label}, {title}, {words(cell)}", last(own, name), paper))
    _style.legend_below(figure, axes, title=words(cell))
    used = sum(run.cell == cell and bool(run.epochs.size) for run in runs)
    return Made(figure, used, tuple(missing), tuple(numbers))


def _fullest(runs: Iterable[Record]) -> Cell:
    """The cell (width, epochs) with most losses; of several the one with most runs, then the largest."""
    runs = list(runs)

    def rank(cell: Cell) -> tuple[int, int, int, float]:
        own = [run for run in runs if run.cell == cell and run.epochs.size]
        return len({run.config["loss"] for run in own}), len(own), cell[1], cell[0]

    return max((run.cell for run in runs), key=rank)


def _measured(runs: Iterable[Record], cell: Cell, name: str) -> bool:
    """Whether a run of the cell has a value of this quantity."""
    return any(np.isfinite(run.history[name]).any() for run in runs if run.cell == cell)


def _line(ax: Axes, runs: Sequence[Record], name: str, title: str, look: Sequence[Any]) -> None:
    colour, dashes, marker = look
    epochs = sorted({int(e) for run in runs for e in run.epochs})
    table = np.full((len(runs), len(epochs)), np.nan)
    for row, run in zip(table, runs, strict=True):
        values = run.history[name]
        row[np.searchsorted(epochs, run.epochs)] = np.where(np.isfinite(values), values, np.nan)
    known = ~np.isnan(table).all(axis=0)
    x, table = np.array(epochs)[known], table[:, known]
    mark = marker if len(x) <= 2 else None
    ax.plot(x, np.nanmean(table, axis=0), color=colour, ls=dashes, marker=mark, label=title)
    if len(runs) > 1:
        ax.fill_between(x, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=colour, alpha=0.2, lw=0)
