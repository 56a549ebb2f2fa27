"""The contrastive property and the scalar problem: figures 9 and 10."""

from __future__ import annotations

import numpy as np

from ufm import losses
from ufm.figures import _style
from ufm.figures.records import LOSSES, Made

#: the classes of figures 9 and 10
CLASSES = 10
#: their titles
CONTRASTIVE = r"The contrastive property: $\phi(t)$ of Definition 1"
SCALAR = r"The scalar problem: $\ell(a) + C\,|a|$"


def phi() -> Made:
    """phi(t) of Definition 1, t = sum_{j != k} (z_j - z_k)."""
    from ufm import theory

    figure = _style.new_figure(_style.WIDTH, 2.6)
    axes = figure.subplots(1, 2)
    for loss, (title, colour, dashes, _) in LOSSES.items():
        shifted = losses.get(loss).shift_invariant
        ax = axes[int(not shifted)]
        found = theory.contrastive_property(loss, CLASSES)
        t = np.linspace(-120, 30, 241) if shifted else np.linspace(-300, 60, 241)
        word = "contrastive" if found.holds else "contrastive up to a shift of the logits"
        ax.plot(t, found.phi(t), color=colour, ls=dashes, label=f"{title}: {word}")
    for ax in axes:
        ax.axvline(0, color="0.7", lw=0.8)
        ax.set(xlabel=r"$t = \sum_{j \neq k} (z_j - z_k)$", ylabel=r"$\phi(t)$", ylim=(0, None))
        ax.legend()
    figure.suptitle(f"{CONTRASTIVE}, K = {CLASSES}", fontsize=8)
    return Made(figure)


def profiles() -> Made:
    """l(a) + C |a| for C around the threshold, with the minimiser in closed form."""
    from ufm import theory
    from ufm._problem import Problem

    figure = _style.new_figure(_style.WIDTH, 2.3)
    axes = figure.subplots(1, len(LOSSES))
    for ax, (loss, (title, *_)) in zip(axes, LOSSES.items(), strict=True):
        profile = theory.scalar_profile(loss, CLASSES)
        prob = Problem.balanced(loss, K=CLASSES, d=CLASSES, n=1)
        threshold = theory.threshold(prob).C_thr
        a = np.linspace(-2, 8 if losses.get(loss).shift_invariant else 24, 161)
        styles = ((0.25, _style.BLUE, "-"), (1.0, _style.GREEN, "--"), (1.5, _style.RED, ":"))
        for factor, colour, dashes in styles:
            c = factor * threshold / (CLASSES - 1)
            best = theory.global_optimum(Problem.balanced(loss, K=CLASSES, d=CLASSES, n=1, lam_W=c, lam_H=c))
            curve = np.asarray(profile.value(a)) + factor * threshold * np.abs(a)
            ax.plot(a, curve, color=colour, ls=dashes, label=rf"${factor:g}\,C_{{thr}}$")
            ax.plot(best.margin, best.objective, "o", color=colour)
        ax.set(title=f"{title}, $C_{{thr}}$ = {threshold:.3g}", xlabel="margin $a$")
    axes[0].set_ylabel(r"$\ell(a) + C\,|a|$")
    axes[0].legend()
    figure.suptitle(f"{SCALAR}, K = {CLASSES}; dots: the minimum in closed form", fontsize=8)
    return Made(figure)
