"""The figure of verifications: the deviation of each claim beside its tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ufm import losses
from ufm._verify import Report
from ufm.figures._style import BLACK, COLOURS, MARKERS, WIDTH, legend_below, new_figure, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: where an exact zero is drawn
EXACT = 1e-19


def plot_report(*reports: Report) -> Figure:
    """Each claim's measured deviation beside its tolerance, one mark a report."""
    names = [claim.name for claim in reports[0].claims]
    with style():
        figure = new_figure(WIDTH, 1.0 + 0.2 * len(names))
        ax = figure.subplots()
        for i, report in enumerate(reports):
            shift = 0.0 if len(reports) == 1 else 0.5 * (i / (len(reports) - 1) - 0.5)
            _claims(ax, report, shift, i)
        ax.plot([], [], "|", color=BLACK, ms=6, mew=1.2, label="tolerance")
        if not all(report.passed for report in reports):
            ax.plot([], [], "o", color=BLACK, mfc="none", ms=8, label="fails")
        ax.set_xscale("log")
        _not_applicable(ax, reports)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(f"deviation measured (zero is drawn at {EXACT:.0e})")
        ax.grid(axis="y", color="0.92", lw=0.6)
        ax.set_axisbelow(True)
        legend_below(figure, [ax])
        return figure


def _claims(ax: Axes, report: Report, shift: float, index: int) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    for y, claim in enumerate(report.claims):
        if claim.value is None or claim.tolerance is None:
            continue
        value = max(claim.value, EXACT)
        ax.plot(claim.tolerance, y + shift, "|", color=BLACK, ms=6, mew=1.2)
        ax.plot(value, y + shift, marker, color=colour, ms=4)
        if claim.verdict == "fails":
            ax.plot(value, y + shift, "o", color=BLACK, mfc="none", ms=8)
    word = "passed" if report.passed else "FAILED"
    ax.plot([], [], marker, color=colour, ms=4, label=f"{report.solution.problem.loss.title}: {word}")


def _not_applicable(ax: Axes, reports: Sequence[Report]) -> None:
    """In words, at the right of each row."""
    for y in range(len(reports[0].claims)):
        absent = [r.solution.problem.loss for r in reports if r.claims[y].verdict == "not applicable"]
        names = [losses.known_as(loss) for loss in absent]
        if names:
            which = f" to {', '.join(names)}" if len(names) < len(reports) else ""
            at: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "left", "va": "center"}
            ax.text(1.01, y, f"not applicable{which}", color="0.4", fontsize=6, **at)
