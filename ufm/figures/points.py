"""Figures of the landscape: spectra, roads down, and slices through saddles and minima."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm._figure import draw
from ufm._problem import Params, Problem, Variables
from ufm.figures._style import BLACK, BLUE, GREEN, ORANGE, RED, WIDTH, new_figure, style
from ufm.hessian.spectrum import Eigenvalues, merge
from ufm.hessian.structure import as_params
from ufm.landscape.saddles import Descent, escape_direction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ufm.theory import Spectrum


@draw.register(Eigenvalues)
def plot_spectrum(ev: Eigenvalues, closed_form: Spectrum | None = None) -> Figure:
    """Each distinct eigenvalue as a stem of the height of its multiplicity; the closed form drawn over it."""
    with style():
        figure = new_figure(WIDTH, 2.8)
        axes = figure.subplots()
        noise = 1e-9 * float(np.abs(ev.values).max(initial=0.0))
        for name, colour, chosen in (
            ("negative", RED, ev.values < -noise),
            ("zero", BLACK, np.abs(ev.values) <= noise),
            ("positive", BLUE, ev.values > noise),
        ):
            if chosen.any():
                total = int(ev.multiplicities[chosen].sum())
                axes.vlines(ev.values[chosen], 0.7, ev.multiplicities[chosen], color=colour, lw=1)
                label = f"{name}: {total}"
                axes.plot(ev.values[chosen], ev.multiplicities[chosen], "o", color=colour, label=label)
        if closed_form is not None:
            label = f"closed form: {int(closed_form.multiplicities.sum())}"
            values, times = _together(closed_form)
            axes.plot(values, times, "o", ms=8, mfc="none", color=ORANGE, label=label)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        _signed_log(axes, ev.values)
        axes.set_xlabel("eigenvalue of the Hessian in $(W, H, b)$")
        axes.set_ylabel("multiplicity")
        axes.set_title(
            f"{int(ev.multiplicities.sum())} of {ev.dimension} eigenvalues ({ev.method})", loc="left"
        )
        axes.legend(loc="best")
    return figure


def _together(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Equal eigenvalues of different sectors as one."""
    order = np.argsort(spectrum.values)
    return merge(spectrum.values[order], spectrum.multiplicities[order])


def _signed_log(axes: Axes, values: np.ndarray) -> None:
    """A scale that is logarithmic on both sides of zero where the eigenvalues span decades."""
    nonzero = np.abs(values[np.abs(values) > 1e-9 * np.abs(values).max(initial=0.0)])
    if nonzero.size and nonzero.max() > 30 * nonzero.min():
        axes.set_xscale("symlog", linthresh=float(nonzero.min()) / 2)
    axes.axvline(0.0, color=BLACK, lw=0.5)


@draw.register(Descent)
def plot_descent(road: Descent) -> Figure:
    """Objective and index of the saddles on the road, and the objective on each straight way out."""
    with style():
        figure = new_figure(WIDTH, 2.8)
        left, right = figure.subplots(1, 2)
        stops = np.arange(len(road.stops))
        left.plot(stops, road.objectives, "o-", color=BLUE)
        for i, stop in enumerate(road.stops):
            left.annotate(
                f"{stop.inertia.neg}",
                (i, stop.objective),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
            )
        left.set_xlabel("stop (beside it: its index, the number of negative eigenvalues)")
        left.set_ylabel("objective $f$")
        left.set_title("saddle to saddle", loc="left")
        left.xaxis.get_major_locator().set_params(integer=True)
        for i, (ts, heights) in enumerate(road.climb):
            near = np.abs(ts) <= 4 * abs(ts[int(np.argmin(heights))])
            colour = (BLUE, RED, GREEN, ORANGE)[i % 4]
            right.plot(ts[near], heights[near] - road.stops[i].objective, color=colour, label=f"stop {i}")
        right.axhline(0.0, color=BLACK, lw=0.5)
        right.set_xlabel("$t$ along the unit direction of smallest curvature")
        right.set_ylabel("$f(x + t v) - f(x)$")
        right.set_title("the way out", loc="left")
        if 0 < len(road.climb) <= 10:
            right.legend(loc="best")
    return figure


@jax.jit
def _grid(prob: Problem, origin: Params, u: Params, v: Params, s: Array, t: Array) -> Array:
    def row(a: Array) -> Array:
        def height(b: Array) -> Array:
            return prob(Params(*(x + a * y + b * z for x, y, z in zip(origin, u, v, strict=True))))

        return jax.lax.map(height, t)

    return jax.lax.map(row, s)


def plot_slice(prob: Problem, saddle: Variables, minimum: Variables, *, points: int = 81) -> Figure:
    """f on the plane through a saddle and a minimum, with the saddle's direction of smallest curvature.

    The minimum is turned in feature space so that it is as near to the saddle as its orbit comes.

    Args:
        saddle: a critical point.
        minimum: another, lower one.
        points: of the grid, along each axis.

    Raises:
        ValueError: `saddle` is not a critical point, or a wrong shape.
    """
    saddle, minimum = prob.check_params(saddle), _turned(prob, prob.check_params(minimum), saddle)
    escape = escape_direction(prob, saddle)
    u = Params(*(y - x for x, y in zip(saddle, minimum, strict=True)))
    length = np.sqrt(sum(float(jnp.vdot(x, x)) for x in u))
    u = Params(*(x / length for x in u))
    along = sum(float(jnp.vdot(x, y)) for x, y in zip(u, escape.direction, strict=True))
    v = Params(*(y - along * x for x, y in zip(u, escape.direction, strict=True)))
    size = np.sqrt(sum(float(jnp.vdot(x, x)) for x in v))
    v = Params(*(x / size for x in v))
    s = np.linspace(-0.4 * length, 1.4 * length, points)
    t = np.linspace(-0.8 * length, 0.8 * length, points)
    heights = np.asarray(_grid(prob, saddle, u, v, jnp.asarray(s), jnp.asarray(t)))
    with style():
        figure = new_figure(WIDTH / 2 + 0.6, 3.0)
        axes = figure.subplots()
        low = float(prob(minimum))
        levels = low + (float(heights.max()) - low) * np.linspace(0.0, 1.0, 24) ** 2
        filled = axes.contourf(s, t, heights.T, levels=levels, cmap="cividis")
        axes.contour(s, t, heights.T, levels=[float(prob(saddle))], colors=[RED], linewidths=1)
        axes.plot(0, 0, "X", color=RED, ms=7, label=f"saddle, $f$ = {float(prob(saddle)):.6g}")
        axes.plot(length, 0, "o", color="white", mec=BLACK, ms=6, label=f"minimum, $f$ = {low:.6g}")
        axes.set_xlabel("distance from the saddle towards the minimum")
        axes.set_ylabel("along the escape direction")
        axes.legend(loc="upper right", frameon=True, framealpha=0.8)
        figure.colorbar(filled, ax=axes, label="objective $f$", format="%.3g")
    return figure


def _turned(prob: Problem, params: Params, to: Params) -> Params:
    """Procrustes: the rotation of `params` nearest to `to`, in the balanced metric."""
    ratio = float(prob.lam_W / prob.lam_H) ** 0.5
    cross = ratio * np.asarray(params.W).T @ to.W + np.asarray(params.H) @ np.asarray(to.H).T / ratio
    U, _, Vt = np.linalg.svd(cross)
    Q = U @ Vt
    return as_params(np.asarray(params.W) @ Q, Q.T @ np.asarray(params.H), np.asarray(params.b))
