"""Figures of plain data: panels side by side, filled by curves that name their panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ufm.figures._style import COLOURS, MARKERS, WIDTH, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scale = Literal["linear", "log"]
_DASHES = ("-", "--", "-.", ":")


class Panel(NamedTuple):
    """A pair of axes."""

    name: str
    xlabel: str
    ylabel: str
    xscale: Scale = "linear"
    yscale: Scale = "linear"


class Curve(NamedTuple):
    """A line, points, or vertical lines at the values of x."""

    panel: str  # the panel's name
    label: str
    x: Sequence[float]
    y: Sequence[float | str]  # names make an axis of categories
    kind: Literal["line", "points", "vertical"] = "line"


def plot_panels(panels: Sequence[Panel], curves: Sequence[Curve]) -> Figure:
    """The panels side by side, each with its curves; one legend for all where they name the same curves."""
    with style():
        figure = new_figure(WIDTH * (1.0 if len(panels) > 1 else 0.78), 3.6 if _named(curves) else 2.9)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, panel in zip(axes, panels, strict=True):
            _fill(ax, panel, [curve for curve in curves if curve.panel == panel.name])
        _legends(figure, axes)
        return figure


def _legends(figure: Figure, axes: Sequence[Axes]) -> None:
    entries = [ax.get_legend_handles_labels() for ax in axes]
    if len(axes) == 1:
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    elif all(labels == entries[0][1] for _, labels in entries):
        figure.legend(*entries[0], loc="outside lower center", ncols=4)
    else:
        for ax in axes:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def _named(curves: Sequence[Curve]) -> bool:
    """Whether the y axis has names in place of numbers."""
    return any(isinstance(y, str) for curve in curves for y in curve.y)


def plot_points(ax: Axes, curve: Curve, index: int) -> None:
    """Hollow markers, so that a line below them can be seen."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    ax.plot(curve.x, curve.y, marker, label=curve.label, color=colour, mfc="none", zorder=3)


def _fill(ax: Axes, panel: Panel, curves: Sequence[Curve]) -> None:
    lines = [curve for curve in curves if curve.kind == "line"]
    points = [curve for curve in curves if curve.kind == "points"]
    for i, curve in enumerate(points):  # first, because categories are ordered as they are plotted
        plot_points(ax, curve, i)
    for i, curve in enumerate(lines):
        dashes = _DASHES[i % len(_DASHES)]
        ax.plot(curve.x, curve.y, label=curve.label, color=COLOURS[i % len(COLOURS)], ls=dashes)
    for curve in (curve for curve in curves if curve.kind == "vertical"):
        for j, x in enumerate(sorted(set(curve.x))):
            ax.axvline(x, color="0.4", lw=0.9, ls=":", label=curve.label if j == 0 else None)
    if panel.xscale != "linear":
        ax.set_xscale(panel.xscale)
    if panel.yscale != "linear":  # to set "linear" would remove the names from an axis of categories
        ax.set_yscale(panel.yscale)
    ax.set_xlabel(panel.xlabel)
    ax.set_ylabel(panel.ylabel)
    if _named(curves):
        ax.invert_yaxis()
        ax.grid(axis="y", color="0.92", lw=0.6)
        ax.set_axisbelow(True)
