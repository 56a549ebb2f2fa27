"""A run: its configuration, its history, and the trained network."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ufm import _checks, _files
from ufm.deep import _config, _feed, _measure
from ufm.deep._history import Best, History, Status, plain
from ufm.deep._last_layer import Comparison, compare
from ufm.deep._plan import Plan
from ufm.deep._step import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained network and its history.

    Attributes:
        plan: configuration, preset, data, network and loss.
        status: why the run stopped.  message: cause and remedy.
        epoch: epochs done.
        state: parameters, running statistics and momentum after them (the last finite ones).
        history: see `History`.
        notes: events on the way: checkpoints that were refused, values that were changed.
        code, hardware: provenance.
        compile_seconds: time spent compiling, a part of `history.seconds`.
    """

    plan: Plan
    status: Status
    message: str
    epoch: int
    state: State
    history: History
    notes: tuple[str, ...] = ()
    code: dict[str, str] = dataclasses.field(default_factory=_config.code_version)
    hardware: dict[str, str | int | None] = dataclasses.field(default_factory=_files.hardware)
    compile_seconds: float = 0.0

    @property
    def config(self) -> _config.Config:
        """The configuration in plain values."""
        return self.plan.config

    @property
    def params(self) -> dict[str, Any]:
        """The network's parameters."""
        return self.state.params

    @property
    def best(self) -> Best | None:
        """The measurement of best validation accuracy; None without validation images or measurements."""
        return self.history.best

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
        rows = self.plan.rows(_checks.choice("split", split, _measure.PARTS))
        if not len(rows):
            raise ValueError(f"split: expected one with images, got {split!r}, which is empty in this run")
        feed, loss = _feed.Feed(self.plan.data), self.plan.current_loss()
        found = _measure.features(self.plan.recipe, self.state, loss, feed, rows)
        return found, feed.labels[rows], *self.plan.net.classifier(self.state.params)

    def compare_with_ufm(
        self, split: str = "train", *, model: str = "free", refit: bool = False
    ) -> Comparison:
        """Compare the last layer with the UFM's optimum at the effective penalties of the run.

        lam_W = lam_b = weight_decay / scale, where the objective is `scale` times the mean loss (1, or the
        size of the batch where a preset sums); lam_H is the value that balances the norms of W and of the
        features, see `Comparison`. Features of a residual network have passed a rectifier and a mean, so that
        the model "nonnegative" has the same constraint as they. `refit` trains the last layer on to its
        minimum at these features, which divides the distance of W from a simplex by its causes.

        Raises:
            ValueError: as `features`, and as `Comparison`'s function for another model.
        """
        decay = self.config.weight_decay / self.plan.scale
        penalties = {"lam_W": decay, "lam_b": decay}
        return compare(*self.features(split), self.plan.loss, **penalties, model=model, refit=refit)

    def plot(self) -> Figure:
        """Loss and accuracies, NC1, NC2 and NC3 against epochs."""
        from ufm.figures.history import plot_history

        return plot_history(self.history._asdict())

    def to_dict(self) -> dict[str, Any]:
        """The record of the run as JSON: configuration, code, hardware, history, best and last."""
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
            "compile_seconds": self.compile_seconds,
            "last": {name: plain(value) for name, value in self.history.last().items()},
            "history": self.history.to_dict(),
        }

    record = to_dict

    def __repr__(self) -> str:
        rows = [("run", _title(self.config)), ("status", self.message)]
        if len(self.history.epoch):
            rows += self._measured()
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<12}{text}" for name, text in rows)

    def _measured(self) -> list[tuple[str, str]]:
        last = self.history.last()
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
