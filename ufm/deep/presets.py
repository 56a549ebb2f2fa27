"""SHELF of presets: everything about a training run that is neither data, network, loss nor seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from ufm import _checks
from ufm.deep.datasets import CIFAR10, Constants, Dataset

T = TypeVar("T")


def _setting(default: T, check: Callable[[str, Any], T]) -> T:
    """A field with the function `check(name, value)` that returns the checked value or raises ValueError."""
    return dataclasses.field(default=default, metadata={"check": check})


def _count(name: str, value: object) -> int:
    return _checks.integer(name, value, least=1)


def _positive(name: str, value: object) -> float:
    return float(_checks.real(name, value, above=0.0))


def _nonnegative(name: str, value: object) -> float:
    return float(_checks.real(name, value, least=0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """SGD with momentum, its schedule, and how metrics are measured; the defaults are those of the paper.

    The gradient of `reduction` (loss over the batch) is clipped, then weight_decay times *all* parameters is
    added, then momentum, then the learning rate, which drops to a tenth after the `drops` (shares) of the
    epochs, `early` epochs sooner.

    A preset fixes these values, `train` may replace them, and the configuration of a run records them: a
    training option declared here reaches all three.
    """

    epochs: int = _setting(100, _count)
    batch: int = _setting(128, _count)
    reduction: str = "mean"  # over the batch: mean or sum
    mse_over_classes: str = "sum"  # of the rescaled MSE: equation (6) has the sum
    learning_rate: float = _setting(0.1, _positive)
    momentum: float = 0.9
    weight_decay: float = _setting(5e-4, _nonnegative)
    clip: float = 2.0  # global norm
    drops: tuple[float, ...] = (3 / 7, 5 / 7)
    early: int = 0
    augment: bool = _setting(True, _checks.boolean)
    augment_metrics: bool = False  # metrics on augmented training images
    convention: str = "paper"  # of `metrics.CONVENTIONS`
    validation: float = 0.1  # share of the training images

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if check := field.metadata.get("check"):
                object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))

    def settings(self) -> dict[str, Any]:
        """These values by name, without those that a subclass adds."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}


@dataclasses.dataclass(frozen=True)
class Preset(Settings):
    """Settings under a name, with a sentence `about` them."""

    about: str
    # The paper does not state CIFAR-100's normalisation; its code uses CIFAR-10's constants.
    cifar10_constants: bool = True
    points: int = 100  # measurements along a run, unless `metrics_every` is given

    def learning_rates(self, epochs: int, learning_rate: float | None = None) -> Float[np.ndarray, " E"]:
        """The learning rate of each epoch, dropped at int(3E/7) and int(5E/7).

        The first drop comes after one epoch at the earliest, which matters for E <= 2 (`early`: E <= 4).
        """
        base = self.learning_rate if learning_rate is None else learning_rate
        at = [max(1, int(_exact(epochs, share)) - self.early) for share in self.drops]
        passed = sum((np.arange(epochs) >= drop).astype(int) for drop in at)
        return base * 0.1 ** np.asarray(passed, np.float64)

    def constants(self, data: Dataset) -> Constants:
        """Mean and standard deviation by which the images are normalised."""
        return CIFAR10 if self.cifar10_constants and data.name == "cifar100" else (data.mean, data.std)


def _exact(epochs: int, share: float) -> float:
    """epochs * share without the rounding that makes 7 * (3/7) less than 3."""
    return round(epochs * share, 9)


_PAPER = Preset("the paper: mean loss + 5e-4/2 of the squared norm of all parameters, equation (2)")

#: The shelf: tests, the command line and the README iterate it.
PRESETS: dict[str, Preset] = {
    "paper": _PAPER,
    "paper-code": dataclasses.replace(
        _PAPER,
        about="the released code as it stands: MSE has an extra 1/K, rates drop an epoch early, metrics on "
        "augmented images with the classifier centred",
        batch=100,
        mse_over_classes="mean",
        early=1,
        augment_metrics=True,
        convention="nc_loss",
    ),
    "paper-code-sum": dataclasses.replace(
        _PAPER,
        about="the released code's earlier revision: losses summed over the batch, so that the effective "
        "decay is 5e-4/128 and the clip acts on the summed gradient",
        reduction="sum",
        early=1,
        augment_metrics=True,
        convention="nc_loss",
    ),
    "standard": dataclasses.replace(
        _PAPER, about="as paper, CIFAR-100 normalised by its own constants", cifar10_constants=False
    ),
    "small": dataclasses.replace(
        _PAPER,
        about="small networks on small sets, to the terminal phase in minutes on a CPU: no augmentation",
        batch=64,
        augment=False,
        cifar10_constants=False,
    ),
    "mini": dataclasses.replace(
        _PAPER,
        about="the paper's recipe for `ufm.deep.mini`: no validation images, and twenty measurements a run",
        validation=0.0,
        cifar10_constants=False,
        points=20,
    ),
}


def get(preset: str | Preset) -> tuple[str, Preset]:
    """Name and `Preset`.

    Raises:
        ValueError: an unknown name (the known are listed).
    """
    if isinstance(preset, Preset):
        known = (name for name, member in PRESETS.items() if member == preset)
        return next(known, "custom"), preset
    name = _checks.choice("preset", preset, PRESETS)
    return name, PRESETS[name]
