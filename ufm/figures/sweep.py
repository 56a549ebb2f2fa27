"""The figure of a sweep: curves over one swept axis or the seeds, maps over two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ufm import theory
from ufm._figure import draw
from ufm._problem import Problem
from ufm._sweep import Sweep
from ufm.figures._style import BLACK, BLUE, RED, SYMBOLS, WIDTH, legend_below, new_figure, style
from ufm.theory._blocks import groups_of
from ufm.theory._setting import any_counts, need_free_factors
from ufm.theory.imbalance import levels
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
        for name, excess in _excess(problems).items():
            cross = _crossing(excess, x, log)
            if cross is None:
                continue
            for ax in axes:
                ax.axvline(cross, color="0.5", lw=0.8, ls=_LINES[name == COLLAPSE], label=name)
    for ax, of in zip(axes, (_objective, _margin), strict=False):
        y = [np.nan if optimum is None else of(optimum) for optimum in optima]
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


def _objective(optimum: theory.Optimum) -> float:
    return optimum.objective


def _margin(optimum: theory.Optimum) -> float:
    """What `margins` measures: of unequal classes the mean over the samples."""
    if not np.isnan(optimum.mean_eigenvalue):
        return optimum.margin
    Z, labels = optimum.logits, optimum.setting.labels
    target = np.diag(Z)
    return float(np.mean((target - (Z.sum(axis=0) - target) / (len(Z) - 1))[labels]))


COLLAPSE = "collapse threshold"
#: of the points where groups merge, and of the collapse threshold
_LINES, _MAP_LINES = ("-.", ":"), ("-.", "--")


def _excess(problems: Sequence[Problem]) -> dict[str, np.ndarray]:
    """By the name of each threshold the logarithm of the penalties over it; empty where none is known.

    Balanced classes: C = (K-1) c over its value at the tie of collapse and origin.
    """
    try:
        found = [_excesses(problem) for problem in problems]
    except theory.NoClosedForm:
        return {}
    names = [name for name in found[0] if all(name in each for each in found)]
    return {name: np.array([each[name] for each in found]) for name in names}


def _excesses(prob: Problem) -> dict[str, float]:
    if prob.n is not None:
        t = balanced_threshold(prob)
        return {COLLAPSE: math.log(t.C / t.C_tie)}
    need_free_factors(prob)
    level = levels(any_counts(prob), groups_of(prob.counts, prob.class_weights))
    found = {COLLAPSE: math.log(level.x / level.x_zero)}
    for n, w, x in zip(level.groups.counts, level.groups.weights, level.x_merge, strict=True):
        if x < level.x_zero * (1 - 1e-12):
            weight = "" if prob.class_weights is None else f", $w_k$ = {w:.3g}"
            found[f"$n_k$ = {n}{weight}: classes merge"] = math.log(level.x / x)
    return found


def _crossing(excess: np.ndarray, x: np.ndarray, log: bool) -> float | None:
    """Where a threshold is crossed: the first change of sign along x."""
    if (excess < 0).all() or (excess >= 0).all():
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
    excesses = _excess([sweep.problem_at({k: v[i] for k, v in flat.items()}) for i in range(size)])
    for i, (ax, (title, values)) in enumerate(zip(axes, panels, strict=True)):
        grid = values.max(axis=0) if i == 2 else np.take_along_axis(values, best, axis=0)[0]
        norm = LogNorm() if i == 2 and grid.min() > 0 else None
        mesh = ax.pcolormesh(columns[1], rows[1], grid, cmap="viridis", norm=norm, shading="nearest")
        ax.figure.colorbar(mesh, ax=ax, shrink=0.9)
        for name, excess in excesses.items():
            if not excess.min() < 0 < excess.max():
                continue
            line: dict[str, Any] = {"linestyles": _MAP_LINES[name == COLLAPSE]}
            ax.contour(
                columns[1], rows[1], excess.reshape(grid.shape), [0.0], colors=RED, linewidths=1, **line
            )
            ax.plot([], [], color=RED, lw=1, ls=line["linestyles"], label=name)
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
