"""The figure of spurious minima by width: how many starts reach the optimum, and where the others end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ufm._figure import draw
from ufm.figures._style import BLUE, ORANGE, WIDTH, new_figure, style
from ufm.landscape.widths import SAME, MinimaByWidth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@draw.register(MinimaByWidth)
def plot_widths(found: MinimaByWidth) -> Figure:
    """The share of starts at the optimum, and the heights above it at which the others end."""
    with style():
        figure = new_figure(WIDTH, 2.3)
        left, right = figure.subplots(1, 2)
        left.plot(found.widths, found.share, "o-", color=BLUE)
        left.set(ylim=(-0.03, 1.03), ylabel="share of starts at $f^*$")
        _heights(right, found)
        for ax in (left, right):
            ax.set_xlabel("feature dimension $d$")
            ax.set_xticks(found.widths.tolist())
        figure.suptitle(found.problem.describe(without=("d",)), fontsize=8)
        return figure


def _heights(ax: Axes, found: MinimaByWidth) -> None:
    for i, d in enumerate(found.widths.tolist()):
        above = [(f - found.best[i], times) for f, times in found.minima(i)]
        spurious = [(h, times) for h, times in above if h > SAME * (1 + abs(found.best[i]))]
        for height, times in spurious:
            ax.plot(d, height, "o", color=ORANGE, markersize=2 + 2 * np.log2(1 + times))
    ax.set_yscale("log")
    ax.set_ylabel("$f - f^*$ of the others")
