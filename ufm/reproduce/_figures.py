"""Figures of the rows: every panel is filled by the curves that the row's jobs recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ufm import figures
from ufm.figures import Curve, Panel
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
    """Curves of all jobs; those of one panel, label and kind as one."""
    found: dict[tuple[str, str, str], Curve] = {}
    for curve in (curve for record in finding.records for curve in record.outcome.curves):
        key = (curve.panel, curve.label, curve.kind)
        before = found.get(key, curve._replace(x=(), y=()))
        found[key] = curve._replace(x=[*before.x, *curve.x], y=[*before.y, *curve.y])
    return list(found.values())


def save(finding: Finding, folder: Path) -> Drawn | None:
    """The row's figure as PNG and PDF; None where it has no panel or nothing to draw."""
    if not finding.statement.panels or not merged(finding):
        return None
    name = finding.statement.id
    files = [folder / f"{name}.png", folder / f"{name}.pdf"]
    _save(lambda: _draw(finding.statement, merged(finding)), files)
    return Drawn(name, _caption(finding.statement.panels), *files)


def _draw(row: Row, curves: list[Curve]) -> Figure:
    return figures.plot_panels(row.panels, curves) if row.draw is None else row.draw(curves).figure


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
    from ufm.figures import paper as shelf

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
