"""The paper's figures (`ufm.figures.paper`), and figures of runs and last layers of your own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ufm.deep._last_layer import Comparison
from ufm.deep._trained_run import Run
from ufm.figures.paper import (
    CLASSES,
    EPOCHS,
    FIGURES,
    LARGEST,
    LOSSES,
    MINI,
    SMALLEST,
    WIDTHS,
    Drawing,
    Kind,
    Made,
    Number,
    Record,
    draw,
    records,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CLASSES",
    "EPOCHS",
    "FIGURES",
    "LARGEST",
    "LOSSES",
    "MINI",
    "SMALLEST",
    "WIDTHS",
    "Drawing",
    "Kind",
    "Made",
    "Number",
    "Record",
    "draw",
    "plot_comparison",
    "plot_runs",
    "records",
]


def plot_comparison(found: Comparison) -> Figure:
    """Cosines of the class means and of classifier and means, and margins, beside the UFM's optimum."""
    return found.plot()


def plot_runs(runs: Iterable[Run]) -> Figure:
    """NC1, NC2, NC3 and the accuracies of runs in memory, a line per loss: figure 5 of your own data.

    Raises:
        ValueError: no runs.
    """
    given = [Record(Path(), r.config.to_dict(), r.status.value, r.history._asdict()) for r in runs]
    if not given:
        raise ValueError("runs: expected at least one, got none")
    return draw(5, given, data=given[0].config["data"], title="Neural collapse and accuracies").figure
