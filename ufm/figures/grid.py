"""A quantity over width and epochs: figures 3, 4, 6 and 7; its smallest and largest cell: figure 8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ufm.figures import _style
from ufm.figures.records import (
    COLLAPSE,
    EPOCHS,
    LARGEST,
    LOSSES,
    SMALLEST,
    WIDTHS,
    Cell,
    Made,
    Number,
    Record,
    last,
    number_of,
    runs_of,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def grid(name: str, runs: list[Record], of_paper: bool) -> Made:
    """A map for each loss: mean and standard deviation over the seeds, and a cross if runs are missing."""
    from matplotlib.colors import LogNorm, Normalize

    widths, epochs = _axes(runs)
    cells = [(w, e) for w in widths for e in epochs]
    values = {
        (loss, cell): number_of(f"{label[0]}, {words(cell)}", last(runs_of(runs, loss, cell), name))
        for loss, label in LOSSES.items()
        for cell in cells
    }
    missing = [number.name for number in values.values() if number.mean is None]
    known = [number.mean for number in values.values() if number.mean is not None]
    low, high = (min(known), max(known)) if known else (0.1, 1.0)
    log = name in COLLAPSE and low > 0
    norm = LogNorm(low, max(high, 1.001 * low)) if log else Normalize(low, max(high, low + 1e-9))
    figure = _style.new_figure(_style.WIDTH, 1.6 + 0.6 * len(widths))
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for ax, loss in zip(axes.flat, LOSSES, strict=True):
        _map(ax, np.array([[values[loss, (w, e)].mean for e in epochs] for w in widths], float), norm)
        for i, j in np.ndindex(len(widths), len(epochs)):
            _entry(ax, values[loss, (widths[i], epochs[j])], (j, i), norm, log)
        ax.set_title(LOSSES[loss][0])
        ax.set_xticks(range(len(epochs)), [str(e) for e in epochs])
        ax.set_yticks(range(len(widths)), [f"{w:g}" for w in widths])
    for ax in axes[1]:
        ax.set_xlabel("epochs")
    for ax in axes[:, 0]:
        ax.set_ylabel("width")
    found = _extremes(name, values, of_paper)
    used = sum(number.seeds for number in values.values())
    return Made(figure, used, tuple(missing), (*values.values(), *found))


def _axes(runs: Iterable[Record]) -> tuple[list[float], list[int]]:
    """The paper's grid if it contains the runs, otherwise the grid of the runs."""
    widths, epochs = ({run.cell[i] for run in runs} for i in (0, 1))
    inside = widths <= set(WIDTHS) and epochs <= set(EPOCHS)
    if inside:
        return list(WIDTHS), list(EPOCHS)
    return sorted(widths), sorted(int(e) for e in epochs)


def _map(ax: Axes, table: np.ndarray, norm: Any) -> None:
    ax.imshow(np.ma.masked_invalid(table), cmap="viridis", norm=norm, aspect="auto")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _entry(ax: Axes, number: Number, at: tuple[int, int], norm: Any, log: bool) -> None:
    how: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6}
    if number.mean is None:
        ax.text(*at, "x", color=_style.RED, **how)
        return
    text = f"{number.mean:.1e}" if log else f"{100 * number.mean:.2f}"
    if number.spread is not None:
        text += f"\n± {number.spread:.0e}" if log else f"\n± {100 * number.spread:.2f}"
    ax.text(*at, text, color="white" if norm(number.mean) < 0.6 else "black", **how)


def _extremes(name: str, values: dict[tuple[str, Cell], Number], of_paper: bool) -> list[Number]:
    """Numbers that the paper states for its smallest and its largest configuration."""
    ends = {}
    for cell in (SMALLEST, LARGEST):
        means = [values[loss, cell].mean for loss in LOSSES if (loss, cell) in values]
        known = [mean for mean in means if mean is not None]
        ends[cell] = known if len(known) == len(LOSSES) else []
    if name == "nc1":
        few, many = ends[SMALLEST], ends[LARGEST]
        ratio = [float(np.mean(few) / np.mean(many))] if few and many else []
        text = f"NC1 at {words(SMALLEST)} over NC1 at {words(LARGEST)}"
        return [number_of(text, ratio, 1000.0 if of_paper else None)]
    paper = {SMALLEST: 0.01037, LARGEST: 0.0036}
    return [
        number_of(
            f"largest difference between losses, {words(cell)}",
            [max(own) - min(own)] if own else [],
            paper[cell] if of_paper else None,
        )
        for cell, own in ends.items()
    ]


# --- miniImageNet: figure 8 -----------------------------------------------------------------------

#: last-iteration test accuracies that the paper gives
MINI = {
    SMALLEST: {"ce": 0.7195, "mse": 0.6915, "fl": 0.7020, "ls": 0.7040},
    LARGEST: {"ce": 0.7930, "mse": 0.7962, "fl": 0.7932, "ls": 0.8020},
}


def ends(runs: list[Record], of_paper: bool) -> Made:
    """Test accuracy of the last epoch at the smallest and largest configuration, beside the paper's."""
    cells = list(MINI) if of_paper else sorted({min(run.cell for run in runs), max(run.cell for run in runs)})
    figure = _style.new_figure(_style.WIDTH, 2.6)
    axes = np.ravel(figure.subplots(1, len(cells), sharey=True, squeeze=False))
    missing, numbers = [], []
    for ax, cell in zip(axes, cells, strict=True):
        for x, (loss, (title, colour, _, marker)) in enumerate(LOSSES.items()):
            paper = MINI[cell][loss] if of_paper else None
            name = f"{title}, {words(cell)}"
            number = number_of(name, last(runs_of(runs, loss, cell), "test_accuracy"), paper)
            numbers.append(number)
            if number.mean is None:
                missing.append(name)
            else:
                ax.errorbar(x, number.mean, number.spread, color=colour, marker=marker, capsize=3, ls="none")
            if paper is not None:
                ax.plot(x, paper, "_", color=_style.BLACK, ms=14, label="paper" if x == 0 else None)
        ax.set_xticks(range(len(LOSSES)), [label[0] for label in LOSSES.values()])
        ax.set(title=words(cell), xlim=(-0.5, len(LOSSES) - 0.5))
    axes[0].set_ylabel("test accuracy, last epoch")
    if of_paper:
        axes[0].legend()
    return Made(figure, sum(n.seeds for n in numbers), tuple(missing), tuple(numbers))
