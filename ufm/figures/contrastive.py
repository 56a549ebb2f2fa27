"""The contrastive property and the scalar problem: figures 9 and 10 of the paper, drawn from closed forms.

What was measured without closed forms can be drawn on top, as the report of `ufm reproduce` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ufm import losses, theory
from ufm._problem import Problem
from ufm.figures import _style
from ufm.figures.panels import Curve
from ufm.figures.records import LOSSES, Made
from ufm.theory.thresholds import balanced_threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: the classes of figures 9 and 10
CLASSES = 10
#: their titles
CONTRASTIVE = r"The contrastive property: $\phi(t)$ of Definition 1"
SCALAR = r"The scalar problem: $\ell(a) + C\,|a|$"
#: weights C of the margin in figure 10, over the threshold, and how each is drawn
WEIGHTS = {0.25: (_style.BLUE, "-"), 1.0: (_style.GREEN, "--"), 1.5: (_style.RED, ":")}


def phi(measured: Sequence[Curve] = ()) -> Made:
    """phi(t) of Definition 1, t = sum_{j != k} (z_j - z_k).

    Args:
        measured: values (t, phi) to draw as points; `panel` names the loss.
    """
    figure = _style.new_figure(_style.WIDTH, 2.6)
    axes = figure.subplots(1, 2)
    for loss, (title, colour, dashes, _) in LOSSES.items():
        invariant = losses.get(loss).shift_invariant  # these four pass the other tests (row definition-1)
        ax = axes[int(not invariant)]
        t = np.linspace(-120, 30, 241) if invariant else np.linspace(-300, 60, 241)
        values = theory.scalar_profile(loss, CLASSES).value(-t / (CLASSES - 1))
        word = "contrastive" if invariant else "contrastive up to a shift of the logits"
        ax.plot(t, values, color=colour, ls=dashes, label=f"{title}: {word}")
        _points(ax, [curve for curve in measured if curve.panel == loss])
    for ax in axes:
        ax.axvline(0, color="0.7", lw=0.8)
        ax.set(xlabel=r"$t = \sum_{j \neq k} (z_j - z_k)$", ylabel=r"$\phi(t)$", ylim=(0, None))
        ax.legend()
    figure.suptitle(f"{CONTRASTIVE}, K = {CLASSES}", fontsize=8)
    return Made(figure)


def profiles(measured: Sequence[Curve] = ()) -> Made:
    """l(a) + C a around the threshold, with its minimiser in closed form.

    Args:
        measured: minima (a, value) to draw as points; `panel` names the loss.
    """
    figure = _style.new_figure(_style.WIDTH, 2.3)
    axes = figure.subplots(1, len(LOSSES))
    for ax, (loss, (title, *_)) in zip(axes, LOSSES.items(), strict=True):
        threshold = balanced_threshold(Problem.balanced(loss, K=CLASSES, d=CLASSES, n=1)).C_thr
        _profile(ax, loss, threshold)
        _points(ax, [curve for curve in measured if curve.panel == loss])
        ax.set(title=f"{title}, $C_{{thr}}$ = {threshold:.3g}", xlabel="margin $a$")
    axes[0].set_ylabel(r"$\ell(a) + C\,|a|$")
    axes[0].legend()
    figure.suptitle(f"{SCALAR}, K = {CLASSES}; dots: the minimum in closed form", fontsize=8)
    return Made(figure)


def _profile(ax: Axes, loss: str, threshold: float) -> None:
    profile = theory.scalar_profile(loss, CLASSES)
    a = np.linspace(-2, 8 if losses.get(loss).shift_invariant else 24, 161)
    for factor, (colour, dashes) in WEIGHTS.items():
        c = factor * threshold / (CLASSES - 1)
        best = theory.global_optimum(Problem.balanced(loss, K=CLASSES, d=CLASSES, n=1, lam_W=c, lam_H=c))
        curve = np.asarray(profile.value(a)) + factor * threshold * np.abs(a)
        ax.plot(a, curve, color=colour, ls=dashes, label=rf"${factor:g}\,C_{{thr}}$")
        ax.plot(best.margin, best.objective, "o", color=colour)


def _points(ax: Axes, measured: Sequence[Curve]) -> None:
    drawn = ax.get_legend_handles_labels()[1]
    for curve in measured:
        label = None if curve.label in drawn else curve.label
        ax.plot(curve.x, curve.y, "o", ms=6, mfc="none", mec="0.3", mew=0.7, ls="none", label=label)
