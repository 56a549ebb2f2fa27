"""The stage records -> figures: solutions, sweeps and verifications, in one style.

Colours are Okabe and Ito's, told apart by the colour blind, and never the only mark. Styles hold inside
`style()` alone: matplotlib's global settings stay as they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ufm import theory
from ufm._problem import Problem
from ufm._report import facts, merged_axes, problem_at
from ufm._solve import Solution
from ufm._sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ufm._verify import Report

BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P")
_COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY)

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

_SYMBOLS = {
    "lam_W": r"$\lambda_W$", "lam_H": r"$\lambda_H$", "lam_b": r"$\lambda_b$", "alpha": r"$\alpha$",
    "gamma": r"$\gamma$", "kappa": r"$\kappa$", "beta": r"$\beta$",
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of every figure here, for the length of a `with` block."""
    import matplotlib as mpl

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


# --- a solution -----------------------------------------------------------------------------------


def plot_solution(sol: Solution) -> Figure:
    """Gram matrices of W and of the class means of H, singular values, and the trajectory if recorded."""
    with style():
        recorded = sol.history is not None
        figure = new_figure(WIDTH, 4.6 if recorded else 2.4)
        axes = figure.subplots(2 if recorded else 1, 3, squeeze=False)
        W, means = np.asarray(sol.W), _class_means(sol)
        _gram(axes[0, 0], W @ W.T, r"$W W^\top$, classes $k, l$")
        _gram(axes[0, 1], means @ means.T, r"$\bar H^\top \bar H$, classes $k, l$")
        _singular_values(axes[0, 2], sol)
        if recorded:
            _convergence(axes[1], sol)
        figure.suptitle(facts(sol.problem), fontsize=8)
        return figure


def _class_means(sol: Solution) -> np.ndarray:
    """(K, d)"""
    labels, H = np.asarray(sol.problem.labels), np.asarray(sol.H)
    member = labels[None, :] == np.arange(sol.problem.K)[:, None]
    means: np.ndarray = (member @ H.T) / sol.problem.counts[:, None]
    return means


def _gram(ax: Axes, gram: np.ndarray, title: str) -> None:
    """A Gram matrix, with how its angles compare with a simplex ETF's."""
    K = gram.shape[0]
    top = max(np.abs(gram).max(), TINY)
    image = ax.imshow(gram, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
    ax.set_title(title)
    if K <= 20:
        ax.set_xticks(range(0, K, 1 if K <= 10 else 5))
        ax.set_yticks(range(0, K, 1 if K <= 10 else 5))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel(_angles(gram))
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)


def _angles(gram: np.ndarray) -> str:
    """The range of the cosines off the diagonal."""
    K = gram.shape[0]
    norms = np.sqrt(np.diag(gram))
    if norms.min() <= max(1e-7 * norms.max(), TINY):
        return "a vector is zero: no angles"
    cosines = (gram / np.outer(norms, norms))[~np.eye(K, dtype=bool)]
    low, high = cosines.min(), cosines.max()
    spread = f"{low:.4f}" if high - low < 1e-4 else f"{low:.3f} to {high:.3f}"
    return f"cosines {spread};  ETF {-1 / (K - 1):.4f}"


def _singular_values(ax: Axes, sol: Solution) -> None:
    """Scaled by the roots of the penalties: equal where lam_W W'W = lam_H H H' (Lemma 5)."""
    prob = sol.problem
    count = min(prob.d, prob.N, prob.K + 2)
    factors = (
        ("W", "o", BLUE, sol.W, prob.lam_W, "none"),
        ("H", "x", RED, sol.H, prob.lam_H, RED),
    )
    for name, marker, colour, matrix, lam, face in factors:
        values = math.sqrt(float(lam)) * np.linalg.svd(np.asarray(matrix), compute_uv=False)[:count]
        label = rf"$\sqrt{{\lambda_{name}}}\ \sigma_i({name})$"
        ax.plot(np.arange(1, values.size + 1), values, marker, color=colour, mfc=face, ms=5, label=label)
    ax.axvline(prob.K - 0.5, color="0.6", lw=0.8, ls=":", label=f"$K - 1 = {prob.K - 1}$")
    ax.set_xlabel("index $i$")
    top = max(ax.dataLim.ymax, TINY)
    ax.set_ylim(-0.05 * top, 1.08 * top)
    ax.set_title("singular values")
    ax.legend()


def _convergence(axes: Sequence[Axes], sol: Solution) -> None:
    """Objective above the optimum, gradient norm and NC1-NC3 against the steps."""
    from matplotlib.ticker import MaxNLocator

    assert sol.history is not None
    history: Any = jax.tree.map(np.asarray, sol.history)
    optimum, name = _reference(sol)
    floor = np.finfo(history.objective.dtype).eps * max(abs(optimum), 1e-300)
    mark = "o" if history.step.size <= 60 else ""
    above = np.maximum(history.objective - optimum, floor)
    axes[0].plot(history.step, above, marker=mark, color=BLUE, label=rf"$f - {name}$")
    axes[0].axhline(floor, color="0.7", lw=0.8, ls=":", label="rounding of $f$")
    axes[0].set_title("objective above the optimum")
    axes[1].plot(history.step, history.grad_norm, marker=mark, color=BLUE, label=r"$\|\nabla f\|$")
    axes[1].axhline(float(sol.tol), color=RED, lw=0.8, ls="--", label="tolerance")
    axes[1].set_title("gradient norm")
    for i, values in enumerate((history.nc1, history.nc2, history.nc3)):
        positive = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        axes[2].plot(
            history.step,
            positive,
            marker=_MARKERS[i] if mark else "",
            color=_COLOURS[i],
            label=f"NC{i + 1}",
            ls="-" if i < 2 else "--",
        )
    axes[2].set_title("neural collapse metrics")
    for ax in axes:
        ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel(f"steps of {sol.solver.name}")
        ax.legend()


def _reference(sol: Solution) -> tuple[float, str]:
    """Theory's optimum, or the lowest objective seen where theory has none (or a higher one)."""
    assert sol.history is not None
    lowest = float(np.nanmin(np.asarray(sol.history.objective)))
    try:
        optimum = float(theory.global_optimum(sol.problem).objective)
    except theory.NoClosedForm:
        return lowest, r"\min f"
    return (optimum, "f^*") if optimum <= lowest + 1e-9 * (1 + abs(lowest)) else (lowest, r"\min f")


# --- a sweep --------------------------------------------------------------------------------------


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
            _legend_below(figure, axes)
        figure.suptitle(facts(sweep.problem, without=sweep.swept), fontsize=8)
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


def _legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels."""
    entries: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=len(entries))


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
    name, values = next(iter(merged_axes(sweep).items()))
    label = " = ".join(_SYMBOLS.get(part, part) for part in name.split(" = "))
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
        problems = [problem_at(sweep, {k: v[i] for k, v in fine.items()}) for i in range(x.size)]
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
        found = [theory.threshold(problem) for problem in problems]
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
    excess = _excess([problem_at(sweep, {k: v[i] for k, v in flat.items()}) for i in range(size)])
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
        ax.set_xlabel(_SYMBOLS.get(columns[0], columns[0]))
        ax.set_ylabel(_SYMBOLS.get(rows[0], rows[0]))
        ax.set_title(title)
    if axes[0].get_legend_handles_labels()[1]:
        _legend_below(axes[0].get_figure(), axes)  # type: ignore[arg-type]


def _map_axes(sweep: Sweep) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
    """Name and values along the grid's rows and columns; positions where nothing varies along one alone."""
    found = [("row", np.arange(sweep.shape[1], dtype=float)), ("column", np.arange(sweep.shape[2]) * 1.0)]
    for name, values in merged_axes(sweep).items():
        if (values == values[:, :1]).all():
            found[0] = (name, values[:, 0])
        elif (values == values[:1]).all():
            found[1] = (name, values[0])
    return found[0], found[1]


# --- verifications --------------------------------------------------------------------------------

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
        _legend_below(figure, [ax])
        return figure


def _claims(ax: Axes, report: Report, shift: float, index: int) -> None:
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
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
        names = [r.solution.problem.loss.name for r in reports if r.claims[y].verdict == "not applicable"]
        if names:
            which = f" to {', '.join(names)}" if len(names) < len(reports) else ""
            at: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "left", "va": "center"}
            ax.text(1.01, y, f"not applicable{which}", color="0.4", fontsize=6, **at)
