"""The figure of a sweep: curves over one swept axis or the seeds, maps over two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ufm import theory
from ufm._figure import draw
from ufm._problem import Problem
from ufm._sweep import Sweep
from ufm.figures._style import BLACK, BLUE, RED, SYMBOLS, WIDTH, legend_below, new_figure, style
from ufm.theory.thresholds import balanced_threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@draw.register(Sweep)
def plot_sweep(sweep: Sweep) -> Figure:
    """Objective, margin and gradient norm over the swept values, with theory's curves; maps for two axes.

    Raises:
        ValueError: a grid with more than two axes.
    """
    if len(sweep.shape) > 3:
        raise ValueError(f"sweep: expected a grid of at most two axes to plot, got shape {sweep.shape[1:]}")
    panels = (
        ("objective $f$", np.asarray(sweep.objective)),
        ("margin $a$", margins(sweep)),
        (r"gradient norm $\|\nabla f\|$", np.asarray(sweep.grad_norm)),
    )
    with style():
        figure = new_figure(WIDTH, 2.9)
        axes = figure.subplots(1, 3)
        if len(sweep.shape) == 3:
            _maps(axes, sweep, panels)
        else:
            _curves(axes, sweep, panels)
            legend_below(figure, axes)
        figure.suptitle(sweep.problem.describe(without=sweep.swept), fontsize=8)
        return figure


def margins(sweep: Sweep) -> np.ndarray:
    """The measured margin of each solution: target logit less the mean of the others, mean over samples."""
    labels, K = np.asarray(sweep.problem.labels), sweep.problem.K
    flat = [np.asarray(x).reshape(-1, *np.shape(x)[len(sweep.shape) :]) for x in sweep.params]
    own = np.arange(labels.size)
    found = []
    for W, H, b in zip(*flat, strict=True):
        Z = W @ H + b[:, None]
        target = Z[labels, own]
        found.append(np.mean(target - (Z.sum(axis=0) - target) / (K - 1)))
    return np.reshape(found, sweep.shape)


def _curves(axes: Sequence[Axes], sweep: Sweep, panels: Sequence[tuple[str, np.ndarray]]) -> None:
    """One swept axis, or none: then the seeds stand along x."""
    x, label, log = _axis(sweep)
    done = sweep.converged
    for ax, (title, values) in zip(axes, panels, strict=True):
        each = np.broadcast_to(x, values.shape)
        ax.plot(each[done], values[done], "o", color=BLUE, mfc="none", label="solved", zorder=2)
        if not done.all():
            ax.plot(each[~done], values[~done], "x", color=RED, ms=5, label="not converged", zorder=3)
        ax.set_xscale("log" if log else "linear")
        ax.set_xlabel(label)
        ax.set_title(title)
    _theory_curves(axes, sweep, log)
    axes[2].set_yscale("log")
    axes[2].axhline(float(sweep.tol), color=RED, lw=0.8, ls="--", label="tolerance")
    for ax in axes[:2]:
        _not_flat(ax)


def _not_flat(ax: Axes) -> None:
    """Values that differ by rounding look equal, at a scale of their size."""
    low, high = ax.dataLim.intervaly
    if high - low < 1e-6 * max(abs(high), 1e-6):
        ax.set_ylim(low - 0.1 * max(abs(low), 1.0), high + 0.1 * max(abs(high), 1.0))


def _axis(sweep: Sweep) -> tuple[np.ndarray, str, bool]:
    """Values, label and whether they are drawn on a logarithmic scale."""
    if len(sweep.shape) == 1:
        return np.ravel(sweep.seeds).astype(float), "seed", False
    name, values = next(iter(sweep.merged_axes().items()))
    label = " = ".join(SYMBOLS.get(part, part) for part in name.split(" = "))
    return values, label, _is_wide(values)


def _is_wide(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() >= 5 * values.min())


def _theory_curves(axes: Sequence[Axes], sweep: Sweep, log: bool) -> None:
    """Objective and margin of the optimum, and the collapse threshold, with points between the grid's."""
    if len(sweep.shape) == 1:
        optima, x = [_optimum(sweep.problem)] * 2, _axis(sweep)[0][[0, -1]]
    else:
        fine = {name: _refined(np.asarray(values), log) for name, values in sweep.swept.items()}
        x = _refined(_axis(sweep)[0], log)
        problems = [sweep.problem_at({k: v[i] for k, v in fine.items()}) for i in range(x.size)]
        optima = [_optimum(problem) for problem in problems]
        cross = _threshold(problems, x, log)
        for ax in axes:
            if cross is None:
                break
            ax.axvline(cross, color="0.5", lw=0.8, ls=":", label="collapse threshold")
    for ax, name in zip(axes, ("objective", "margin"), strict=False):
        y = [getattr(optimum, name, np.nan) for optimum in optima]
        if np.isfinite(y).any():
            ax.plot(x, y, color=BLACK, lw=1, label="theory", zorder=1)


def _refined(values: np.ndarray, log: bool, between: int = 4) -> np.ndarray:
    """`values` with points between them, evenly spaced on the axis as drawn."""
    at = np.log(values) if log else values
    places = np.linspace(0, values.size - 1, (values.size - 1) * (between + 1) + 1)
    fine = np.interp(places, np.arange(values.size), at)
    return np.exp(fine) if log else fine


def _optimum(prob: Problem) -> theory.Optimum | None:
    try:
        return theory.global_optimum(prob)
    except theory.NoClosedForm:
        return None


def _excess(problems: Sequence[Problem]) -> np.ndarray | None:
    """log of C = (K-1) c over its value at the tie of collapse and origin, None where it is not known."""
    try:
        found = [balanced_threshold(problem) for problem in problems]
    except theory.NoClosedForm:
        return None
    return np.log([t.C / t.C_tie for t in found])


def _threshold(problems: Sequence[Problem], x: np.ndarray, log: bool) -> float | None:
    """Where the optimum turns into the origin: the first change of sign of `_excess` along x."""
    excess = _excess(problems)
    if excess is None or (excess < 0).all() or (excess >= 0).all():
        return None
    i = int(np.flatnonzero(np.diff(np.sign(excess)))[0])
    share = excess[i] / (excess[i] - excess[i + 1])
    return float(x[i] * (x[i + 1] / x[i]) ** share if log else x[i] + share * (x[i + 1] - x[i]))


def _maps(axes: Sequence[Axes], sweep: Sweep, panels: Sequence[tuple[str, np.ndarray]]) -> None:
    """Two swept axes: the lowest objective over the seeds with its margin, and the largest gradient."""
    from matplotlib.colors import LogNorm

    best = np.asarray(sweep.objective).argmin(axis=0)[None]
    rows, columns = _map_axes(sweep)
    flat = {name: np.ravel(values) for name, values in sweep.swept.items()}
    size = math.prod(sweep.shape[1:])
    excess = _excess([sweep.problem_at({k: v[i] for k, v in flat.items()}) for i in range(size)])
    for i, (ax, (title, values)) in enumerate(zip(axes, panels, strict=True)):
        grid = values.max(axis=0) if i == 2 else np.take_along_axis(values, best, axis=0)[0]
        norm = LogNorm() if i == 2 and grid.min() > 0 else None
        mesh = ax.pcolormesh(columns[1], rows[1], grid, cmap="viridis", norm=norm, shading="nearest")
        ax.figure.colorbar(mesh, ax=ax, shrink=0.9)
        if excess is not None and excess.min() < 0 < excess.max():
            level = excess.reshape(grid.shape)
            ax.contour(columns[1], rows[1], level, [0.0], colors=RED, linewidths=1, linestyles="--")
            ax.plot([], [], color=RED, lw=1, ls="--", label="collapse threshold")
        ax.set_xscale("log" if _is_wide(columns[1]) else "linear")
        ax.set_yscale("log" if _is_wide(rows[1]) else "linear")
        ax.set_xlabel(SYMBOLS.get(columns[0], columns[0]))
        ax.set_ylabel(SYMBOLS.get(rows[0], rows[0]))
        ax.set_title(title)
    if axes[0].get_legend_handles_labels()[1]:
        legend_below(axes[0].get_figure(), axes)  # type: ignore[arg-type]


def _map_axes(sweep: Sweep) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
    """Name and values along the grid's rows and columns; positions where nothing varies along one alone."""
    found = [("row", np.arange(sweep.shape[1], dtype=float)), ("column", np.arange(sweep.shape[2]) * 1.0)]
    for name, values in sweep.merged_axes().items():
        if (values == values[:, :1]).all():
            found[0] = (name, values[:, 0])
        elif (values == values[:1]).all():
            found[1] = (name, values[0])
    return found[0], found[1]
