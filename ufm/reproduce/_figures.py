"""Figures of the rows: every panel is filled by the curves that the row's jobs recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ufm import figures
from ufm.reproduce._records import Curve, Finding, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (figures.BLUE, figures.RED, figures.GREEN, figures.PINK, figures.ORANGE, figures.SKY)
_MARKS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", "-.", ":")


class Drawn(NamedTuple):
    """A figure on disk."""

    name: str  # of its files
    caption: str
    png: Path
    pdf: Path


def merged(finding: Finding) -> list[Curve]:
    """Curves of all jobs; those of one panel, label and kind as one."""
    found: dict[tuple[str, str, str], Curve] = {}
    for record in finding.records:
        for curve in record.outcome.curves:
            key = (curve.panel, curve.label, curve.kind)
            before = found.get(key)
            x, y = (
                (list(curve.x), list(curve.y))
                if before is None
                else ([*before.x, *curve.x], [*before.y, *curve.y])
            )
            found[key] = curve._replace(x=x, y=y)
    return list(found.values())


def draw(finding: Finding) -> Figure:
    """All panels of a row side by side."""
    panels, curves = finding.statement.panels, merged(finding)
    with figures.style():
        tall = 3.6 if any(isinstance(y, str) for curve in curves for y in curve.y) else 2.9
        figure = figures.new_figure(figures.WIDTH * (1.0 if len(panels) > 1 else 0.78), tall)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, panel in zip(axes, panels, strict=True):
            _fill(ax, panel, [curve for curve in curves if curve.panel == panel.name])
        if len(panels) > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
        else:
            axes[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
        return figure


def _fill(ax: Axes, panel: Panel, curves: list[Curve]) -> None:
    lines = [c for c in curves if c.kind == "line"]
    points = [c for c in curves if c.kind == "points"]
    # categories first take their order from what is plotted first
    for i, curve in enumerate(points):
        mark: dict[str, Any] = {"color": _COLOURS[i % 6], "marker": _MARKS[i % 6], "ls": "none"}
        ax.plot(curve.x, curve.y, label=curve.label, mfc="none", zorder=3, **mark)
    for i, curve in enumerate(lines):
        ax.plot(curve.x, curve.y, label=curve.label, color=_COLOURS[i % 6], ls=_LINES[i % 4])
    for curve in (c for c in curves if c.kind == "vertical"):
        for j, x in enumerate(sorted(set(curve.x))):
            ax.axvline(x, color="0.4", lw=0.9, ls=":", label=curve.label if j == 0 else None)
    if panel.xscale != "linear":
        ax.set_xscale(panel.xscale)
    if panel.yscale != "linear":  # setting "linear" would take the names off an axis of names
        ax.set_yscale(panel.yscale)
    ax.set_xlabel(panel.xlabel)
    ax.set_ylabel(panel.ylabel)
    if any(isinstance(y, str) for curve in curves for y in curve.y):
        ax.invert_yaxis()
        ax.grid(axis="y", color="0.92", lw=0.6)
        ax.set_axisbelow(True)


def save(finding: Finding, folder: Path) -> Drawn | None:
    """The row's figure as PNG and PDF; None where it has no panel or nothing to draw."""
    if not finding.statement.panels or not merged(finding):
        return None
    name = finding.statement.id
    files = [folder / f"{name}.png", folder / f"{name}.pdf"]
    _save(lambda: draw(finding), files)
    return Drawn(name, _caption(finding.statement.panels), *files)


def _save(drawing: Callable[[], Figure], files: list[Path]) -> None:
    """Raises OSError with words that say what is kept: matplotlib's has no file."""
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        figures.save(drawing, files)
    except OSError as error:
        raise OSError(f"{files[0]}: {error.strerror or error}; what was measured is kept") from error


def _caption(panels: tuple[Panel, ...]) -> str:
    """What is drawn against what."""
    return "; ".join(f"{panel.ylabel or panel.name} against {panel.xlabel}" for panel in panels) + "."


#: figures of training that are drawn of data sets which the paper does not have
_ANY_DATA = (1, 2, 3, 4)


def save_deep(runs: Path, folder: Path) -> list[Drawn]:
    """The paper's figures 1 to 8 from runs in a folder, and 1 to 4 of other data sets found there.

    A figure without any run is left out. Figures 9 and 10, theory's, have rows of their own.

    Raises:
        ValueError: no such folder.
    """
    from ufm.deep import figures as shelf

    found = shelf.records(runs)
    paper = {number: kind.data for number, kind in shelf.FIGURES.items() if kind.data is not None}
    others = sorted({str(record.config["data"]) for record in found} - set(paper.values()))
    wanted = [(number, None) for number in paper] + [(n, data) for data in others for n in _ANY_DATA]
    made = [_save_one(shelf.draw(n, found, data=data), data, folder) for n, data in wanted]
    return [drawn for drawn in made if drawn is not None]


def _save_one(drawing: Any, data: str | None, folder: Path) -> Drawn | None:
    if not drawing.runs:
        return None
    name = "-".join(filter(None, ("deep", data, str(drawing.number))))
    files = [folder / f"{name}.png", folder / f"{name}.pdf"]
    _save(lambda: drawing.figure, files)
    lack = f"; {len(drawing.missing)} missing" if drawing.missing else ""
    return Drawn(name, f"Figure {drawing.number}: {drawing.title} (runs: {drawing.runs}{lack})", *files)
