"""The figures of the rows, drawn by `ufm.figures` from the curves that the jobs recorded, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ufm import figures
from ufm.figures import Curve, Panel
from ufm.figures import paper as shelf
from ufm.figures.paper import Drawing
from ufm.reproduce._records import Finding, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn(NamedTuple):
    """A figure on disk."""

    name: str  # of its files
    caption: str
    png: Path
    pdf: Path


def merged(finding: Finding) -> list[Curve]:
    """The curves of all jobs; those with the same panel, label and kind are joined."""
    found: dict[tuple[str, str, str], Curve] = {}
    for curve in (curve for record in finding.records for curve in record.outcome.curves):
        key = (curve.panel, curve.label, curve.kind)
        before = found.get(key, curve._replace(x=(), y=()))
        found[key] = curve._replace(x=[*before.x, *curve.x], y=[*before.y, *curve.y])
    return list(found.values())


def save(finding: Finding, folder: Path) -> Drawn | None:
    """Write the row's figure as PNG and PDF; None if the row has no panels or no curves."""
    if not finding.statement.panels or not merged(finding):
        return None
    name = finding.statement.id
    files = [folder / f"{name}.png", folder / f"{name}.pdf"]
    _save(lambda: _draw(finding.statement, merged(finding)), files)
    return Drawn(name, _caption(finding.statement.panels), *files)


def _draw(row: Row, curves: list[Curve]) -> Figure:
    return figures.plot_panels(row.panels, curves) if row.draw is None else row.draw(curves).figure


def _save(drawing: Callable[[], Figure], files: list[Path]) -> None:
    """Write a figure. An OSError names the file, which matplotlib's does not, and says what is kept."""
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        figures.save(drawing, files)
    except OSError as error:
        raise OSError(f"{files[0]}: {error.strerror or error}; what was measured is kept") from error


def _caption(panels: tuple[Panel, ...]) -> str:
    """The labels of the axes in a sentence."""
    return "; ".join(f"{panel.ylabel or panel.name} against {panel.xlabel}" for panel in panels) + "."


#: the figures that are also drawn for data sets that the paper does not use
_ANY_DATA = (1, 2, 3, 4)


def save_deep(runs: Path, folder: Path) -> list[Drawn]:
    """Write the paper's figures 1 to 8 from the runs in a folder, and 1 to 4 for other data sets found there.

    A figure without runs is left out. Figures 9 and 10, which need none, belong to rows of the report.

    Raises:
        ValueError: no such folder.
    """
    found = shelf.records(runs)
    paper = {number: kind.data for number, kind in shelf.FIGURES.items() if kind.data is not None}
    others = sorted({str(record.config["data"]) for record in found} - set(paper.values()))
    wanted = [(number, None) for number in paper] + [(n, data) for data in others for n in _ANY_DATA]
    made = [_save_one(shelf.draw(n, found, data=data), data, folder) for n, data in wanted]
    return [drawn for drawn in made if drawn is not None]


def _save_one(drawing: Drawing, data: str | None, folder: Path) -> Drawn | None:
    if not drawing.runs:
        return None
    name = "-".join(filter(None, ("deep", data, str(drawing.number))))
    files = [folder / f"{name}.png", folder / f"{name}.pdf"]
    _save(lambda: drawing.figure, files)
    lack = f"; {len(drawing.missing)} missing" if drawing.missing else ""
    return Drawn(name, f"Figure {drawing.number}: {drawing.title} (runs: {drawing.runs}{lack})", *files)
