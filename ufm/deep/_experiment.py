"""The description of an experiment: a grid of runs of one network by one preset."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from ufm import losses as shelf

Cell = tuple[float, int]  # width, epochs


class Experiment(NamedTuple):
    """A grid of runs: losses x widths x epochs x seeds of one network by one preset."""

    net: str = "mini_resnet"
    preset: str = "mini"
    losses: tuple[str, ...] = shelf.PAPER
    widths: tuple[float, ...] = (0.5, 1.0, 2.0)
    epochs: tuple[int, ...] = (50, 200)
    seeds: tuple[int, ...] = (0, 1, 2)
    per_class: int = 500  # training images
    # The paper pads by 4. With 5,000 images that keeps networks of this size below 90 % training accuracy.
    pad: int = 1  # pixels by which a random crop moves an image

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The pairs of width and epochs, the smallest first and the largest last."""
        return tuple(itertools.product(sorted(self.widths), sorted(self.epochs)))

    @property
    def size(self) -> int:
        """The number of runs."""
        return len(self.cells) * len(self.losses) * len(self.seeds)

    def strange(self, config: dict[str, Any]) -> str:
        """The first value of a run's configuration that this experiment does not have; empty if none."""
        wanted = {
            "net": (self.net,), "preset": (self.preset,), "loss": self.losses, "width": self.widths,
            "epochs": self.epochs, "seed": self.seeds,
        }  # fmt: skip
        found = (
            f"{name}={config.get(name)!r}" for name, known in wanted.items() if config.get(name) not in known
        )
        return next(found, "")


#: the experiment of the report; docs/protocol.md, section 6, says how it was chosen
MINI = Experiment()
