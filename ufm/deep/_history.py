"""The measurements of a training run over its epochs, and why it stopped."""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Status(enum.Enum):
    """Why a run stopped."""

    RUNNING = "running"
    COMPLETED = "completed"
    NON_FINITE = "non-finite"
    NOT_SAVED = "not saved"


class History(NamedTuple):
    """The measurements of a run, one row each (T rows); loss and accuracy are those in evaluation mode.

    A loss is the mean of L over the samples whatever the reduction of the preset, so that runs compare.
    """

    epoch: Int[np.ndarray, " T"]  # epochs done
    learning_rate: Float[np.ndarray, " T"]  # of the epoch just done
    step_loss: Float[np.ndarray, " T"]  # mean over that epoch's steps: training mode, augmented
    step_accuracy: Float[np.ndarray, " T"]
    train_loss: Float[np.ndarray, " T"]
    train_accuracy: Float[np.ndarray, " T"]
    validation_loss: Float[np.ndarray, " T"]  # NaN without validation images
    validation_accuracy: Float[np.ndarray, " T"]
    test_loss: Float[np.ndarray, " T"]
    test_accuracy: Float[np.ndarray, " T"]
    nc1: Float[np.ndarray, " T"]
    nc2: Float[np.ndarray, " T"]
    nc3: Float[np.ndarray, " T"]
    nc4: Float[np.ndarray, " T"]  # NaN where the features did not fit the memory
    images_per_second: Float[np.ndarray, " T"]  # of that epoch's steps
    seconds: Float[np.ndarray, " T"]  # of training and measuring since the start, without interruptions

    @classmethod
    def empty(cls) -> History:
        """The history before the first measurement."""
        return cls(np.zeros(0, np.int64), *(np.zeros(0) for _ in cls._fields[1:]))

    def extended(self, row: dict[str, float]) -> History:
        """The history with one more row."""
        joined = (np.append(old, row[name]) for name, old in self._asdict().items())
        epoch, *others = joined
        return History(epoch.astype(np.int64), *others)

    @property
    def best(self) -> Best | None:
        """The row of best validation accuracy; None without validation images or measurements."""
        accuracy = self.validation_accuracy
        if not len(accuracy) or np.isnan(accuracy).all():
            return None
        at = int(np.nanargmax(accuracy))
        return Best(int(self.epoch[at]), float(accuracy[at]), float(self.test_accuracy[at]))

    def last(self) -> dict[str, np.float64 | np.int64]:
        """The last row by the names of its values; {} before the first measurement."""
        return {name: values[-1] for name, values in self._asdict().items() if len(values)}

    def to_dict(self) -> dict[str, list[float | int | None]]:
        """The history as JSON."""
        return {name: [plain(value) for value in values] for name, values in self._asdict().items()}


class Best(NamedTuple):
    """The measurement with the best validation accuracy (the first of equals)."""

    epoch: int
    validation_accuracy: float
    test_accuracy: float


def plain(value: np.generic) -> float | int | None:
    """A number of NumPy as JSON; null where it is not finite."""
    number: float | int = value.item()
    return number if isinstance(number, int) or math.isfinite(number) else None
