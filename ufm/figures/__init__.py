"""Every figure of the package, in one style; the records' `.plot()` reaches them through `ufm._figure`."""

from ufm.figures._style import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    MARKERS,
    ORANGE,
    PINK,
    RED,
    SKY,
    WIDTH,
    legend_below,
    new_figure,
    save,
    style,
)
from ufm.figures.claims import plot_report
from ufm.figures.low_rank import plot_low_rank
from ufm.figures.minority import plot_minority
from ufm.figures.panels import Curve, Panel, plot_panels
from ufm.figures.phases import plot_phases
from ufm.figures.points import plot_descent, plot_slice, plot_spectrum
from ufm.figures.solution import plot_solution
from ufm.figures.sweep import plot_sweep
from ufm.figures.widths import plot_widths

__all__ = [
    "BLACK",
    "BLUE",
    "COLOURS",
    "GREEN",
    "MARKERS",
    "ORANGE",
    "PINK",
    "RED",
    "SKY",
    "WIDTH",
    "Curve",
    "Panel",
    "legend_below",
    "new_figure",
    "plot_descent",
    "plot_low_rank",
    "plot_minority",
    "plot_panels",
    "plot_phases",
    "plot_report",
    "plot_slice",
    "plot_solution",
    "plot_spectrum",
    "plot_sweep",
    "plot_widths",
    "save",
    "style",
]
