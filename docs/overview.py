"""Draw docs/overview.png, the picture of the README: `python docs/overview.py FOLDER-OF-RUNS`.

Features on their way from a random start to a simplex, the critical points of the same kind of problem, and
neural collapse in trained networks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ufm
from ufm import figures, landscape
from ufm.deep import figures as trained

COLOURS = (figures.BLUE, figures.RED, figures.GREEN)


def collapse(ax: Any) -> None:
    """K=3 classes in the plane: gradient descent from a random start to the equilateral triangle."""
    prob = ufm.Problem.balanced("ce", K=3, d=2, n=12, lam_W=5e-3, lam_H=5e-3 / 12)
    start = ufm.init(prob, seed=3, scale=0.7)
    rates = ufm.Params(0.1, 0.1 * prob.N, 0.1)  # a feature's gradient has the factor 1/N

    def step(params: Any, _: None) -> Any:
        return jax.tree.map(lambda x, rate, g: x - rate * g, params, rates, jax.grad(prob)(params)), params.H

    end, path = jax.lax.scan(step, start, None, length=20_000)
    assert ufm.metrics.of_params(end, prob.labels).nc1 < 1e-9
    for j, k in enumerate(np.asarray(prob.labels)):
        ax.plot(*np.asarray(path)[:, :, j].T, color=COLOURS[k], lw=0.5, alpha=0.6)
        ax.plot(*np.asarray(start.H)[:, j], ".", color=COLOURS[k], ms=3)
    for k, colour in enumerate(COLOURS):
        ax.plot(
            *np.asarray(end.H)[:, np.asarray(prob.labels) == k][:, 0],
            "o",
            color=colour,
            ms=6,
            label=f"class {k}",
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(y=0.25)
    ax.set(xlabel="$h_1$", ylabel="$h_2$", title="features collapse to a simplex")
    ax.legend(loc="lower right", handletextpad=0.1)


def points(ax: Any) -> None:
    """Objective against the number of ways down: Theorem 2 at K=4."""
    prob = ufm.Problem.balanced("ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    for point in landscape.find_critical_points(prob, starts=128):
        colour, marker = (figures.BLUE, "*") if point.is_minimum else (figures.RED, "o")
        ax.plot(point.index, point.objective, marker, color=colour, ms=11 if point.is_minimum else 5)
    ax.annotate(
        "neural collapse,\nthe only minimum", (0.4, 0.29), (3.2, 0.16), arrowprops={"arrowstyle": "-"}
    )
    ax.set(
        xlabel="negative eigenvalues of the Hessian", ylabel="objective f", ylim=(0.1, None),
        title="every other critical point is a saddle",
    )  # fmt: skip


def networks(ax: Any, folder: str) -> None:
    """NC1 against the epochs for the four losses, from records."""
    for run in trained.records(folder):
        title, colour, dashes, _ = trained.LOSSES[run.config["loss"]]
        ax.plot(run.epochs, run.history["nc1"], color=colour, ls=dashes, label=title)
    ax.set(xlabel="epoch", ylabel="NC1", yscale="log", title="and deep networks get there")
    ax.legend()


def main() -> None:
    with figures.style():
        figure = figures.new_figure(7.6, 2.5)
        left, middle, right = figure.subplots(1, 3)
        collapse(left)
        points(middle)
        networks(right, sys.argv[1])
        figure.savefig(Path(__file__).with_name("overview.png"), dpi=180)


if __name__ == "__main__":
    main()
