"""A trained last layer beside the UFM's optimum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ufm import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ufm.deep._last_layer import Comparison


def plot_comparison(found: Comparison) -> Figure:
    """Cosines of the class means, of classifier and class means, and margins with the UFM's optimum."""
    K = len(found.angles)
    with figures.style():
        figure = figures.new_figure(figures.WIDTH, 2.4)
        axes = figure.subplots(1, 3)
        panels = (("class means", found.angles), ("rows of $W$ and class means", found.dual_angles))
        for ax, (title, cosines) in zip(axes, panels, strict=False):
            image = ax.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            off = cosines[~np.eye(K, dtype=bool)]
            ax.set_title(f"cosines: {title}")
            text = f"off the diagonal {off.mean():.3f} ± {off.std():.3f}; ETF {-1 / (K - 1):.3f}"
            ax.set_xlabel(text, fontsize=6)
            ax.set(xticks=(), yticks=())
            ax.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes[1], shrink=0.8, pad=0.02).outline.set_visible(False)
        axes[2].hist(found.margins, bins=40, color=figures.SKY, label="samples")
        axes[2].axvline(found.margin, color=figures.BLUE, ls="--", label=f"mean {found.margin:.3g}")
        if found.optimal_margin is not None:
            label = f"UFM's optimum {found.optimal_margin:.3g}"
            axes[2].axvline(found.optimal_margin, color=figures.RED, label=label)
        axes[2].set(title="margins", xlabel="margin $a$", yticks=())
        axes[2].legend()
        above = "" if found.gap is None else f"objective {found.gap:.2%} above the UFM's minimum, "
        penalties = rf"$\lambda_W$ = {found.lam_W:.2g}, $\lambda_H$ = {found.lam_H:.2g}"
        figure.suptitle(f"{above}{penalties}", fontsize=8)
    return figure
