"""The figure of the low-rank bias: the rank of the lowest structure over penalties and classes or layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ufm._figure import draw
from ufm.figures._style import BLACK, WIDTH, new_figure, style
from ufm.landscape.low_rank import LowRankDiagram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@draw.register(LowRankDiagram)
def plot_low_rank(diagram: LowRankDiagram) -> Figure:
    """A band for each row: its rank as a colour and a number, hatched where it is neural collapse."""
    with style():
        figure = new_figure(WIDTH, 1.4 + 0.35 * len(diagram.K))
        ax = figure.subplots()
        _bands(ax, diagram)
        marks = _crossings(ax, diagram)
        marks.append(ax.axvline(1.0, color=BLACK, ls=":", label="neural collapse and the origin tie"))
        ax.set_xlim(diagram.share[0], diagram.share[-1])
        ax.set_xlabel(r"$C/C_{tie}$")
        rows = getattr(diagram, diagram.axis)
        ax.set_yticks(range(len(rows)), labels=[str(x) for x in rows.tolist()])
        ax.set_ylabel("classes $K$" if diagram.axis == "K" else "layers")
        figure.legend(handles=marks, loc="outside lower center", ncols=3)
        figure.suptitle(diagram.describe(), fontsize=8)
        return figure


def _bands(ax: Axes, diagram: LowRankDiagram) -> None:
    import matplotlib

    colours, highest = matplotlib.colormaps["viridis_r"], max(int(diagram.rank.max()), 1)
    edges = _edges(diagram.share)
    for i, (ranks, K) in enumerate(zip(diagram.rank, diagram.K.tolist(), strict=True)):
        for first, last in _runs(ranks):
            r, low, high = int(ranks[first]), edges[first], edges[last + 1]
            colour: Any = colours(0.1 + 0.6 * r / highest) if r else "0.9"
            hatch = "////" if r == K - 1 else None
            ax.barh(i, high - low, left=low, height=0.8, color=colour, hatch=hatch, edgecolor="white")
            ax.text((low + high) / 2, i, str(r), ha="center", va="center", clip_on=True)


def _edges(share: np.ndarray) -> np.ndarray:
    """Between neighbours, and the ends of the grid."""
    return np.concatenate([share[:1], (share[1:] + share[:-1]) / 2, share[-1:]])


def _runs(ranks: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of neighbours with the same rank."""
    starts = np.flatnonzero(np.append(True, np.diff(ranks) != 0))
    return list(zip(starts.tolist(), [*(starts[1:] - 1).tolist(), len(ranks) - 1], strict=True))


def _crossings(ax: Axes, diagram: LowRankDiagram) -> list[Any]:
    rows = np.arange(len(diagram.K))
    marks = []
    for values, marker, label in (
        (diagram.C1, "o", "$C_1$: neural collapse stops being the lowest"),
        (diagram.C0, "s", "$C_0$: the origin becomes the lowest"),
    ):
        marks += ax.plot(values, rows, marker, color=BLACK, mfc="white", label=label)
    return marks
