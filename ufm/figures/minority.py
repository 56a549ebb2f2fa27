"""The figure of minority collapse: phases over imbalance and penalties, and the solved problems on top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ufm._figure import draw
from ufm.figures._style import BLACK, BLUE, GREEN, ORANGE, RED, SKY, WIDTH, new_figure, style
from ufm.landscape.minority import COLLAPSES, MinorityDiagram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: in the order of COLLAPSES: colour, marker, and what it means
_LOOKS = (
    (SKY, "o", "I: all classes apart"),
    (ORANGE, "s", "II: the classes of one group coincide"),
    (GREEN, "^", "III: one group is zero"),
    ("0.8", "D", "IV: everything is zero"),
)
_CURVES = (
    ("x_minority", "minority merges", "-"),
    ("x_majority", "majority merges", "-."),
    ("x_means", "means of the groups vanish", "--"),
    ("x_zero", "everything vanishes", ":"),
)


@draw.register(MinorityDiagram)
def plot_minority(diagram: MinorityDiagram) -> Figure:
    """Theory's phases and boundaries; each solved problem has the marker of the phase that it shows.

    A red edge marks one whose phase is not theory's.
    """
    with style():
        figure = new_figure(WIDTH, 4.2)
        ax = figure.subplots()
        marks = [*_phases(ax, diagram), *_boundaries(ax, diagram), *_points(ax, diagram)]
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(r"imbalance $R = n_A/n_B$")
        ax.set_ylabel(r"$N\,\sqrt{\lambda_W \lambda_H}\;/\,\sqrt{n_B}$")
        figure.legend(handles=marks, loc="outside lower center", ncols=3)
        figure.suptitle(diagram.describe(), fontsize=8)
        return figure


def _phases(ax: Axes, diagram: MinorityDiagram) -> list[Any]:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = [colour for colour, _, _ in _LOOKS]
    options: dict[str, Any] = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(_LOOKS) - 0.5}
    ax.pcolormesh(diagram.R, diagram.x, diagram.phase, shading="nearest", alpha=0.45, **options)
    present = [i for i in range(len(COLLAPSES)) if (diagram.phase == i).any()]
    return [Patch(color=_LOOKS[i][0], alpha=0.45, label=_LOOKS[i][2]) for i in present]


def _boundaries(ax: Axes, diagram: MinorityDiagram) -> list[Any]:
    """Those inside the map; a boundary that coincides with the outermost is drawn once."""
    drawn: list[Any] = []
    for field, label, line in _CURVES:
        values = getattr(diagram, field)
        outer = field != "x_zero" and np.allclose(values, diagram.x_zero, rtol=1e-9, equal_nan=True)
        inside = (values >= diagram.x[0]) & (values <= diagram.x[-1])
        if inside.any() and not outer:
            at = np.where(inside, values, np.nan)
            drawn += ax.plot(diagram.R, at, ls=line, color=BLACK, label=label)
    return drawn


def _points(ax: Axes, diagram: MinorityDiagram) -> list[Any]:
    solved, drawn = diagram.solved, []
    for i, (_, marker, _) in enumerate(_LOOKS):
        for agrees, edge in ((True, BLUE), (False, RED)):
            these = (solved.phase == i) & ((solved.phase == solved.expected) == agrees)
            if not these.any():
                continue
            label = f"solved, in phase {COLLAPSES[i]}" + ("" if agrees else " against theory")
            options: dict[str, Any] = {"color": edge, "mfc": _LOOKS[i][0], "ls": "", "label": label}
            drawn += ax.plot(solved.R[these], solved.x[these], marker, **options)
    return drawn
