"""The figure of a solution: Gram matrices, singular values, and the trajectory if it was recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ufm import theory
from ufm._figure import draw
from ufm._solution import Solution
from ufm.figures._style import BLUE, COLOURS, MARKERS, RED, TINY, WIDTH, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@draw.register(Solution)
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
        figure.suptitle(sol.problem.describe(), fontsize=8)
        return figure


def _class_means(sol: Solution) -> np.ndarray:
    """(K, d)"""
    return np.asarray(sol.problem.class_means(sol.H)).T


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
            marker=MARKERS[i] if mark else "",
            color=COLOURS[i],
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
