"""The style of every figure.

Colours are those of Okabe and Ito, which people with colour blindness can tell apart, and they are never the
only mark. The style holds inside `style()` alone, so that matplotlib's global settings stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY)

#: the smallest scale that is drawn; below is rounding
TINY = 1e-12
#: inches: two columns of a paper
WIDTH = 6.9

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "savefig.dpi": 200,
}

#: names of penalties and hyperparameters as they are written in labels
SYMBOLS = {
    "lam_W": r"$\lambda_W$", "lam_H": r"$\lambda_H$", "lam_b": r"$\lambda_b$", "alpha": r"$\alpha$",
    "gamma": r"$\gamma$", "kappa": r"$\kappa$", "beta": r"$\beta$",
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of every figure here, for the length of a `with` block."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    # Loads the backend first. A notebook's would set itself up inside the block, whose end would undo this:
    # later figures of the notebook were not shown.
    plt.draw_if_interactive()  # type: ignore[no-untyped-call]
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure that `pyplot.show` shows where there are windows, and that nothing keeps alive elsewhere."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(width, height), layout="constrained")
    if getattr(figure.canvas, "required_interactive_framework", None) is None:
        plt.close(figure)  # no windows; a notebook would show it twice
    return figure


def save(draw: Callable[[], Figure], files: Sequence[Path]) -> None:
    """Draw once without a display and write each file, in the format of its suffix."""
    import matplotlib as mpl

    mpl.use("Agg")
    with style():
        figure = draw()
        for file in files:
            figure.savefig(file)


def legend_below(figure: Figure, axes: Sequence[Axes], title: str | None = None) -> None:
    """One legend for all panels, outside of them."""
    entries: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=len(entries), title=title,
        title_fontsize=7,
    )  # fmt: skip
