"""The figure of a trained last layer: cosines and margins, beside those of the UFM's optimum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ufm.figures import _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_last_layer(
    angles: Float[np.ndarray, "K K"],
    dual_angles: Float[np.ndarray, "K K"],
    margins: Float[np.ndarray, " N"],
    *,
    margin: float,
    optimal_margin: float | None,
    title: str,
) -> Figure:
    """Cosines of the class means, of classifier and class means, and margins beside the UFM's optimum.

    Args:
        angles: cosines between centred class means.
        dual_angles: cosines between the rows of W and centred class means.
        margins: of each sample; `margin` is their mean, `optimal_margin` the UFM's, None if unknown.
    """
    K = len(angles)
    with _style.style():
        figure = _style.new_figure(_style.WIDTH, 2.4)
        axes = figure.subplots(1, 3)
        panels = (("class means", angles), ("rows of $W$ and class means", dual_angles))
        for ax, (panel, cosines) in zip(axes, panels, strict=False):
            image = ax.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            off = cosines[~np.eye(K, dtype=bool)]
            ax.set_title(f"cosines: {panel}")
            text = f"off the diagonal {off.mean():.3f} ± {off.std():.3f}; ETF {-1 / (K - 1):.3f}"
            ax.set_xlabel(text, fontsize=6)
            ax.set(xticks=(), yticks=())
            ax.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes[1], shrink=0.8, pad=0.02).outline.set_visible(False)
        axes[2].hist(margins, bins=40, color=_style.SKY, label="samples")
        axes[2].axvline(margin, color=_style.BLUE, ls="--", label=f"mean {margin:.3g}")
        if optimal_margin is not None:
            label = f"UFM's optimum {optimal_margin:.3g}"
            axes[2].axvline(optimal_margin, color=_style.RED, label=label)
        axes[2].set(title="margins", xlabel="margin $a$", yticks=())
        axes[2].legend()
        figure.suptitle(title, fontsize=8)
    return figure
