"""A run -> figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ufm import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ufm.deep._trained_run import Run

_METRICS = (("nc1", "NC1", figures.BLUE), ("nc2", "NC2", figures.RED), ("nc3", "NC3", figures.GREEN))
_PARTS = (("train", figures.BLUE), ("validation", figures.ORANGE), ("test", figures.RED))


def plot_run(run: Run) -> Figure:
    """Loss, accuracies and NC1-NC3 against epochs, three panels."""
    with figures.style():
        figure = figures.new_figure(figures.WIDTH, 2.3)
        axes = figure.subplots(1, 3)
        for part, colour in _PARTS:
            for ax, what in zip(axes, ("loss", "accuracy"), strict=False):
                _line(ax, run, f"{part}_{what}", part, colour)
        for name, label, colour in _METRICS:
            _line(axes[2], run, name, label, colour)
        for ax, label, scale in zip(axes, ("loss", "accuracy", "neural collapse"), _SCALES, strict=True):
            ax.set(xlabel="epoch", ylabel=label, yscale=scale)
            ax.legend()
    return figure


_SCALES = ("log", "linear", "log")


def _line(ax: Axes, run: Run, name: str, label: str, colour: str) -> None:
    values = getattr(run.history, name)
    shown = np.where(np.isfinite(values), values, np.nan)
    ax.plot(run.history.epoch, shown, color=colour, label=label, marker="o" if len(values) == 1 else None)
