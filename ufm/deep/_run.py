"""The record of a run: its configuration, history and trained network."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ufm import _checks, losses
from ufm.deep import _config, _feed, _measure
from ufm.deep._config import Plan
from ufm.deep._step import Hyper, Recipe, State, Totals
from ufm.losses import Loss
from ufm.metrics import NeuralCollapse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ufm.deep._bridge import Comparison


#: folded into an epoch's key: for its shuffle, its augmentation, the augmentation of its metrics
SHUFFLE, AUGMENT, METRICS = range(3)


class Status(enum.Enum):
    """Why a run stopped."""

    RUNNING = "running"
    COMPLETED = "completed"
    NON_FINITE = "non-finite"
    NOT_SAVED = "not saved"


class History(NamedTuple):
    """A run's measurements, one row each (T rows); loss and accuracy in evaluation mode.

    Losses are the mean of L over the samples, whatever a preset's reduction, so that runs compare.
    """

    epoch: Int[np.ndarray, " T"]  # epochs done
    learning_rate: Float[np.ndarray, " T"]  # of the epoch just done
    step_loss: Float[np.ndarray, " T"]  # mean over that epoch's steps: training mode, augmented
    step_accuracy: Float[np.ndarray, " T"]
    train_loss: Float[np.ndarray, " T"]
    train_accuracy: Float[np.ndarray, " T"]
    validation_loss: Float[np.ndarray, " T"]  # NaN where there is no validation part
    validation_accuracy: Float[np.ndarray, " T"]
    test_loss: Float[np.ndarray, " T"]
    test_accuracy: Float[np.ndarray, " T"]
    nc1: Float[np.ndarray, " T"]
    nc2: Float[np.ndarray, " T"]
    nc3: Float[np.ndarray, " T"]
    nc4: Float[np.ndarray, " T"]  # NaN where the features did not fit the memory
    images_per_second: Float[np.ndarray, " T"]  # of that epoch's steps
    seconds: Float[np.ndarray, " T"]  # since the start, metrics included, interruptions not

    @classmethod
    def empty(cls) -> History:
        """Before the first measurement."""
        return cls(np.zeros(0, np.int64), *(np.zeros(0) for _ in cls._fields[1:]))

    def extended(self, row: dict[str, float]) -> History:
        """With a row more."""
        joined = (np.append(old, row[name]) for name, old in self._asdict().items())
        epoch, *others = joined
        return History(epoch.astype(np.int64), *others)


class Best(NamedTuple):
    """The measurement with the best validation accuracy (the first of equals)."""

    epoch: int
    validation_accuracy: float
    test_accuracy: float


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained network and how it got there.

    Attributes:
        plan: configuration, preset, data, network and loss.
        status: why it stopped.  message: cause and remedy.
        epoch: epochs done.
        state: parameters, running statistics and momentum after them (the last good ones).
        history: see `History`.
        notes: what happened on the way: refused checkpoints, changed values.
    """

    plan: Plan
    status: Status
    message: str
    epoch: int
    state: State
    history: History
    notes: tuple[str, ...] = ()
    code: dict[str, str] = dataclasses.field(default_factory=_config.code_version)
    hardware: dict[str, Any] = dataclasses.field(default_factory=_config.hardware)

    @property
    def config(self) -> _config.Config:
        """What the run is, in plain values."""
        return self.plan.config

    @property
    def params(self) -> dict[str, Any]:
        """The network's parameters."""
        return self.state.params

    @property
    def best(self) -> Best | None:
        """Best on validation; None without validation part or measurement."""
        accuracy = self.history.validation_accuracy
        if not len(accuracy) or np.isnan(accuracy).all():
            return None
        at = int(np.nanargmax(accuracy))
        return Best(int(self.history.epoch[at]), float(accuracy[at]), float(self.history.test_accuracy[at]))

    def features(
        self, split: str = "train"
    ) -> tuple[Float[np.ndarray, "N d"], Int[np.ndarray, " N"], Float[Array, "K d"], Float[Array, " K"]]:
        """(features, labels, W, b) of a split, in evaluation mode, without augmentation.

        Args:
            split: "train" (what was trained on), "validation" or "test".

        `ufm.metrics.neural_collapse(*run.features())` measures them.

        Raises:
            ValueError: an unknown split, or one without images.
        """
        rows = rows_of(self.plan, _checks.choice("split", split, _measure.PARTS))
        if not len(rows):
            raise ValueError(f"split: expected one with images, got {split!r}, which is empty in this run")
        feed = _feed.Feed(self.plan.data)
        found = _measure.features(recipe_of(self.plan), self.state, loss_of(self.plan), feed, rows)
        return found, feed.labels[rows], *self.plan.net.classifier(self.state.params)

    def compare_with_ufm(self, split: str = "train") -> Comparison:
        """The last layer beside the UFM's optimum at the run's effective penalties (`Comparison`).

        lam_W = lam_b = weight_decay / scale, where the objective is `scale` times the mean loss (1, or the
        batch where a preset sums); lam_H is the one that balances the norms of W and the features.

        Raises:
            ValueError: as `features`.
        """
        from ufm.deep._bridge import compare

        decay = self.config.weight_decay / self.plan.scale
        return compare(*self.features(split), self.plan.loss, lam_W=decay, lam_b=decay)

    def plot(self) -> Figure:
        """Loss and accuracies, NC1, NC2 and NC3 against epochs."""
        from ufm.deep._plot import plot_run

        return plot_run(self)

    def to_dict(self) -> dict[str, Any]:
        """The run's record as JSON: configuration, code, hardware, history, best and last."""
        return {
            "config": self.config.to_dict(),
            "status": self.status.value,
            "message": self.message,
            "epoch": self.epoch,
            "seed": self.config.seed,
            "source": self.plan.data.source,
            "code": self.code,
            "hardware": self.hardware,
            "notes": list(self.notes),
            "best": None if self.best is None else self.best._asdict(),
            "last": {name: _plain(v[-1]) for name, v in self.history._asdict().items() if len(v)},
            "history": {name: [_plain(v) for v in values] for name, values in self.history._asdict().items()},
        }

    record = to_dict

    def __repr__(self) -> str:
        rows = [("run", _title(self.config)), ("status", self.message)]
        if len(self.history.epoch):
            rows += self._measured()
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<12}{text}" for name, text in rows)

    def _measured(self) -> list[tuple[str, str]]:
        last = {name: values[-1] for name, values in self.history._asdict().items()}
        parts = [part for part in _measure.PARTS if not math.isnan(last[f"{part}_accuracy"])]
        accuracies = (f"{part} {100 * last[f'{part}_accuracy']:.2f} %" for part in parts)
        rows = [
            ("loss", "  ".join(f"{part} {last[f'{part}_loss']:.4g}" for part in parts)),
            ("accuracy", "  ".join(accuracies)),
            ("NC1 NC2 NC3", "  ".join(f"{last[name]:.2e}" for name in ("nc1", "nc2", "nc3"))),
            ("speed", f"{last['images_per_second']:.0f} images/s, {last['seconds']:.0f} s in all"),
        ]
        if (best := self.best) is not None:
            rows.append(("best", f"test {100 * best.test_accuracy:.2f} % at epoch {best.epoch} (validation)"))
        return rows


def _title(c: _config.Config) -> str:
    values = ", ".join(f"{name}={value:g}" for name, value in c.hyperparameters.items())
    loss = f"{c.loss}({values})" if values else c.loss
    return f"{c.net} x {c.width:g} on {c.data}, {loss}, {c.epochs} epochs, preset {c.preset}, seed {c.seed}"


def _plain(value: Any) -> float | int | None:
    """A number as JSON has it; null where it is not finite."""
    number = value.item()
    return number if isinstance(number, int) or math.isfinite(number) else None


def rows_of(plan: Plan, split: str) -> np.ndarray:
    """Indices of a split among all images, those for testing after those for training."""
    if split == "test":
        first = len(plan.data.train_images)
        return np.arange(first, first + len(plan.data.test_images))
    return plan.train_rows if split == "train" else plan.validation_rows


def batches_of(plan: Plan, devices: int = 1) -> _measure.Batches:
    """All images in batches for evaluation."""
    rows = [rows_of(plan, part) for part in _measure.PARTS]
    part = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    return _measure.batches(np.concatenate(rows), part, devices)


def recipe_of(plan: Plan) -> Recipe:
    """What the compiled step is made for."""
    config, data = plan.config, plan.data
    pad, flip = (data.pad, data.flip) if config.augment else (0, False)
    return Recipe(plan.net, config.mean, config.std, pad, flip)


def key_of(plan: Plan) -> Array:
    """The run's key, from which every other is folded."""
    return jax.random.key(plan.config.seed)


def loss_of(plan: Plan) -> Loss:
    """The loss as it is now: what is compiled must not outlive what a user's function reads."""
    return losses.frozen(plan.loss, plan.data.K, jnp.float32)


def hyper_of(plan: Plan, epoch: int) -> Hyper:
    """The leaves of the step in this epoch."""
    c = plan.config
    values = (plan.scale, plan.learning_rates[epoch], c.weight_decay, c.momentum, c.clip)
    return Hyper(loss_of(plan), *(jnp.asarray(value, jnp.float32) for value in values))


def row_of(
    plan: Plan, epoch: int, scores: list[_measure.Score], nc: NeuralCollapse, totals: Totals
) -> dict[str, float]:
    """A row of the history after this many epochs, without its times."""
    row = {
        "epoch": epoch,
        "learning_rate": float(plan.learning_rates[epoch - 1]),
        "step_loss": float(totals.loss) * plan.config.batch / int(totals.seen),
        "step_accuracy": int(totals.right) / int(totals.seen),
    }
    for part, score in zip(_measure.PARTS, scores, strict=True):
        row |= {f"{part}_loss": score.loss, f"{part}_accuracy": score.accuracy}
    row |= {name: float(getattr(nc, name)) for name in ("nc1", "nc2", "nc3")}
    return row | {"nc4": math.nan if nc.nc4 is None else float(nc.nc4)}


def advice_of(plan: Plan, failed: int) -> str:
    """What happened in the step that was not finite, and what to do."""
    c, steps = plan.config, len(plan.train_rows) // plan.config.batch
    summed = ", or preset='paper', which averages over the batch" if c.reduction == "sum" else ""
    return (
        f"the loss or its gradient was not finite in step {failed % steps + 1} of epoch "
        f"{failed // steps + 1}; the state before it is kept: try a learning rate below "
        f"{c.learning_rate:g}{summed}"
    )
