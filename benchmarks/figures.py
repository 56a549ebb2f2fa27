"""The scaling figure: time and memory over N, K and d, log-log, slopes in the legends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import scaling
from benchmarks.machine import Row
from ufm import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = ("scaling.png", "scaling.pdf")
LABELS = {
    "N": "samples $N$  ($K=10$, $d=64$)",
    "K": "classes $K$  ($d=512$, $n=10$)",
    "d": "feature dimension $d$  ($K=10$, $n=100$)",
}
MEASURED = {"seconds": "time [s]", "peak GiB": "peak memory above the smallest size's [GiB]"}
_COLOURS = (
    figures.BLUE,
    figures.SKY,
    figures.GREEN,
    figures.BLACK,
    figures.PINK,
    figures.RED,
    figures.ORANGE,
)
_MARKERS = ("o", "s", "^", "x", "D", "v", "P")


def draw(rows: list[Row]) -> Figure:
    """One column an axis, one row a quantity."""
    figure = figures.new_figure(figures.WIDTH, 7.6)
    grid: Any = figure.subplots(len(MEASURED), len(scaling.AXES), sharex="col", sharey="row", squeeze=False)
    for line, (what, title) in zip(grid, MEASURED.items(), strict=True):
        for ax, axis in zip(line, scaling.AXES, strict=True):
            _curves(ax, rows, axis, what)
            ax.set_xlabel(LABELS[axis])
            ax.tick_params(labelbottom=True)  # the legend stands between the rows
        line[0].set_ylabel(title)
    figure.suptitle(f"Cross-entropy; legend: slope over the {scaling.FITTED} largest sizes", fontsize=8)
    return figure


def _curves(ax: Axes, rows: list[Row], axis: str, what: str) -> None:
    for task, colour, marker in zip(scaling.TASKS, _COLOURS, _MARKERS, strict=True):
        x, y = scaling.curve(rows, axis, task, what)
        if not x.size:
            continue
        power = scaling.slope(x, y)
        label = task if power is None else f"{task}: {power:.2f}"
        ax.plot(x, y, marker=marker, color=colour, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    if ax.lines:
        # under the panel: curves fill it
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=6, handlelength=1.5)


def save(rows: list[Row], folder: Path) -> None:
    figures.save(lambda: draw(rows), [folder / name for name in FILES])
