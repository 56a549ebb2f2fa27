"""The figure of a phase diagram: theory's phases beside the points where random starts end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ufm._figure import draw
from ufm.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    WIDTH,
    new_figure,
    style,
)
from ufm.landscape.phases import ENDS, PHASES, PhaseDiagram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: theory's lines: field, label, style
_LINES = (
    ("C_thr", r"$C_{thr}$", ":"), ("C_tie", r"$C_{tie}$", "--"), ("C_spin", r"$C_{spin}$", "-."),
    ("C_rank", r"rank $K \to K - 1$", "-"),
)  # fmt: skip


@draw.register(PhaseDiagram)
def plot_phases(diagram: PhaseDiagram) -> Figure:
    """Phases under theory's lines, hatched where spurious minima are known; beside it the starts' ends."""
    theory_panel, starts_panel = (_phase_map, _trapped_map) if diagram.axis else (_objectives, _stacked_ends)
    panels = [theory_panel, starts_panel] if diagram.starts else [theory_panel]
    with style():
        figure = new_figure(WIDTH, 3.4)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        marks = [mark for draw, ax in zip(panels, axes, strict=True) for mark in draw(ax, diagram)]
        for ax in axes:
            lines = _lines(ax, diagram)
            ax.set_xlabel(r"$C = (K-1)\,\sqrt{n\, \lambda_W \lambda_H}$")
        figure.legend(handles=[*marks, *lines], loc="outside lower center", ncols=5)
        figure.suptitle(f"{diagram.problem.loss.title}, {diagram.describe()}", fontsize=8)
        return figure


def _phase_map(ax: Axes, diagram: PhaseDiagram) -> list[Any]:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = (SKY, "0.85", ORANGE, GREEN, PINK, "white")  # in the order of PHASES
    options: dict[str, Any] = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(PHASES) - 0.5}
    ax.pcolormesh(diagram.C, diagram.values, diagram.phase, shading="nearest", **options)
    trap = np.ma.masked_where(~diagram.may_trap, diagram.may_trap.astype(float))
    ax.pcolor(diagram.C, diagram.values, trap, shading="nearest", hatch="////", alpha=0.0)
    ax.set_ylabel(_symbol(diagram))
    ax.set_title("global optimum, by theory")
    present = [i for i in range(len(PHASES)) if (diagram.phase == i).any()]
    patches = [Patch(facecolor=colours[i], edgecolor="0.5", label=PHASES[i]) for i in present]
    if diagram.may_trap.any():
        patches.append(Patch(facecolor="white", edgecolor="0", hatch="////", label="spurious minima known"))
    return list(patches)


def _symbol(diagram: PhaseDiagram) -> str:
    """A hyperparameter that has the name of a Greek letter, as that letter."""
    greek = diagram.axis in ("alpha", "beta", "gamma", "epsilon", "kappa")
    return rf"$\{diagram.axis}$" if greek else diagram.axis


def _trapped_map(ax: Axes, diagram: PhaseDiagram) -> list[Any]:
    options: dict[str, Any] = {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0, "shading": "nearest"}
    mesh = ax.pcolormesh(diagram.C, diagram.values, diagram.above, **options)
    ax.figure.colorbar(mesh, ax=ax)
    ax.set_ylabel(_symbol(diagram))
    ax.set_title(f"fraction of {diagram.starts} starts that end above the optimum")
    return []


def _objectives(ax: Axes, diagram: PhaseDiagram) -> list[Any]:
    """Relative to the trivial value, which is what the others are compared with."""
    zero = diagram.trivial[0]
    marks = [
        *ax.plot(diagram.C, diagram.collapse[0] - zero, color=BLUE, label="collapse"),
        *ax.plot(diagram.C, diagram.optimum[0] - zero, color=BLACK, lw=2.5, alpha=0.3, label="optimum"),
        *ax.plot(diagram.C, diagram.lowest[0] - zero, "o", color=RED, mfc="none", label="lowest found"),
    ]
    ax.set_ylabel("objective above the trivial point")
    return marks


def _stacked_ends(ax: Axes, diagram: PhaseDiagram) -> list[Any]:
    colours, hatches = (SKY, "0.85", ORANGE, GREEN, RED, BLACK), ("", "", "....", "xxxx", "////", "")
    present = [i for i in range(len(ENDS)) if (diagram.ends[..., i] > 0).any()]
    ax.set_title(f"where {diagram.starts} starts end")
    ax.set_ylabel("fraction of the starts")
    ax.set_ylim(0.0, 1.0)
    shares = [diagram.ends[0, :, i] for i in present]
    labels = [f"ends: {ENDS[i]}" for i in present]
    chosen = [colours[i] for i in present]
    bands = ax.stackplot(diagram.C, shares, labels=labels, colors=chosen, step="mid")
    for band, i in zip(bands, present, strict=True):
        band.set_hatch(hatches[i])
    return list(bands)


def _lines(ax: Axes, diagram: PhaseDiagram) -> list[Any]:
    """Theory's lines inside the grid; those of a second-order transition coincide and are drawn as one."""
    drawn: list[Any] = []
    one = np.array_equal(diagram.C_thr, diagram.C_spin, equal_nan=True)
    low, high = diagram.C[0], diagram.C[-1]
    for field, label, line in _LINES:
        values = getattr(diagram, field)
        at = np.where((values >= low) & (values <= high), values, np.nan)
        if np.isnan(at).all() or (one and field in ("C_tie", "C_spin")):
            continue
        options: dict[str, Any] = {"color": "0", "ls": line, "lw": 1.2}
        options["label"] = "transition" if one and field == "C_thr" else label
        drawn += ax.plot(at, diagram.values, **options) if diagram.axis else [ax.axvline(at[0], **options)]
    return drawn
