"""The figure of a training run: loss, accuracies and neural collapse against epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ufm.figures import _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METRICS = (("nc1", "NC1", _style.BLUE), ("nc2", "NC2", _style.RED), ("nc3", "NC3", _style.GREEN))
_PARTS = (("train", _style.BLUE), ("validation", _style.ORANGE), ("test", _style.RED))


def plot_history(history: Mapping[str, np.ndarray]) -> Figure:
    """Loss, accuracies and NC1-NC3 against epochs, in three panels.

    Args:
        history: arrays of T measurements each, by name: `epoch`; `train_loss`, `train_accuracy`, the same
            for `validation` and `test`; `nc1`, `nc2`, `nc3`.
    """
    with _style.style():
        figure = _style.new_figure(_style.WIDTH, 2.3)
        axes = figure.subplots(1, 3)
        for part, colour in _PARTS:
            for ax, what in zip(axes, ("loss", "accuracy"), strict=False):
                _line(ax, history, f"{part}_{what}", part, colour)
        for name, label, colour in _METRICS:
            _line(axes[2], history, name, label, colour)
        for ax, label, scale in zip(axes, ("loss", "accuracy", "neural collapse"), _SCALES, strict=True):
            ax.set(xlabel="epoch", ylabel=label, yscale=scale)
            ax.legend()
    return figure


_SCALES = ("log", "linear", "log")


def _line(ax: Axes, history: Mapping[str, np.ndarray], name: str, label: str, colour: str) -> None:
    shown = np.where(np.isfinite(history[name]), history[name], np.nan)
    ax.plot(history["epoch"], shown, color=colour, label=label, marker="o" if len(shown) == 1 else None)
