"""The stage arguments -> Plan: a configuration with its data, network and loss, all checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ufm import _checks, losses
from ufm.deep import _measure, _step, datasets, nets, presets
from ufm.deep._config import Config
from ufm.deep._step import Hyper, Recipe, State, Totals
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net
from ufm.deep.presets import Preset
from ufm.losses import Loss
from ufm.metrics import NeuralCollapse

DTYPES = ("float32", "bfloat16")
#: what an epoch's key is folded with: for its shuffle, its augmentation, the augmentation of its metrics
SHUFFLE, AUGMENT, METRICS = range(3)


class Operations(NamedTuple):
    """Floating-point operations of a run, those of convolutions and linear layers."""

    training: int  # forward once, backward twice: 6 * multiply-adds * images * epochs
    metrics: int  # forward over all images at each measurement

    @property
    def total(self) -> int:
        """The operations of training and of metrics."""
        return self.training + self.metrics


class Plan(NamedTuple):
    """A configuration and the objects that it names."""

    config: Config
    preset: Preset
    data: Dataset
    net: Net
    loss: Loss

    # --- the images -------------------------------------------------------------------------------

    def rows(self, split: str) -> Int[np.ndarray, " N"]:
        """Indices of a split among all images; those for testing follow those for training."""
        if split == "test":
            first = len(self.data.train_images)
            return np.arange(first, first + len(self.data.test_images))
        train, validation = datasets.validation_split(len(self.data.train_images), self.config.validation)
        return train[: self.config.max_train] if split == "train" else validation

    def batches(self, devices: int = 1) -> _measure.Batches:
        """All images in batches for evaluation."""
        rows = [self.rows(part) for part in _measure.PARTS]
        part = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        return _measure.batches(np.concatenate(rows), part, devices)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.rows("train")) // self.config.batch

    def measured(self, epoch: int) -> bool:
        """Whether metrics are measured once this many epochs are done."""
        return epoch % self.config.metrics_every == 0 or epoch == self.config.epochs

    @property
    def operations(self) -> Operations:
        """What the run costs: 6 operations per multiply-add, image and epoch in training, 2 in evaluation.

        All images are evaluated after every `metrics_every` epochs and after the last.
        """
        c = self.config
        macs = self.net.flops(self.data.image_shape)
        train, validation, test = (len(self.rows(part)) for part in _measure.PARTS)
        measurements = -(-c.epochs // c.metrics_every)
        return Operations(6 * macs * train * c.epochs, 2 * macs * (train + validation + test) * measurements)

    # --- the step ---------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The static arguments of the compiled step; a field with the name of a setting has its value."""
        config, data = self.config, self.data
        pad, flip = (data.pad, data.flip) if config.augment else (0, False)
        return Recipe(self.net, config.mean, config.std, pad, flip, **self._settings(Recipe._fields))

    @property
    def key(self) -> Array:
        """The key of the run, from which every other key is folded."""
        return jax.random.key(self.config.seed)

    @property
    def scale(self) -> float:
        """The factor of the batch's mean loss: how a preset reduces."""
        mean_of_classes = self.config.mse_over_classes == "mean" and self.loss.sums_classes
        total = self.config.batch if self.config.reduction == "sum" else 1
        return total / (self.data.K if mean_of_classes else 1)

    @property
    def learning_rates(self) -> Float[np.ndarray, " epochs"]:
        """The learning rate of each epoch."""
        return self.preset.learning_rates(self.config.epochs, self.config.learning_rate)

    def current_loss(self) -> Loss:
        """The loss with the present values of the variables that a user's function reads."""
        return losses.frozen(self.loss, self.data.K, jnp.float32)

    def hyper(self, epoch: int) -> Hyper:
        """The values of the step in this epoch that may change without compiling again.

        A field with the name of a setting has its value, except for the learning rate, which has a schedule.
        """
        values = self._settings(Hyper._fields)
        values |= {"scale": self.scale, "learning_rate": self.learning_rates[epoch]}
        arrays = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
        return Hyper(self.current_loss(), **arrays)

    def _settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The settings among these names."""
        return {name: value for name, value in self.config.settings().items() if name in names}

    def initial_state(self) -> State:
        """Parameters and running statistics of the seed, momentum zero."""
        return _step.initial_state(self.net, jax.random.fold_in(self.key, 0), self.hyper(0))

    # --- the history ------------------------------------------------------------------------------

    def history_row(
        self, epoch: int, scores: list[_measure.Score], nc: NeuralCollapse, totals: Totals
    ) -> dict[str, float]:
        """A row of the history after this many epochs, without its times."""
        row = {
            "epoch": epoch,
            "learning_rate": float(self.learning_rates[epoch - 1]),
            "step_loss": float(totals.loss) * self.config.batch / int(totals.seen),
            "step_accuracy": int(totals.right) / int(totals.seen),
        }
        for part, score in zip(_measure.PARTS, scores, strict=True):
            row |= {f"{part}_loss": score.loss, f"{part}_accuracy": score.accuracy}
        row |= {name: float(getattr(nc, name)) for name in ("nc1", "nc2", "nc3")}
        return row | {"nc4": math.nan if nc.nc4 is None else float(nc.nc4)}

    def non_finite_message(self, step: int) -> str:
        """Where the loss or its gradient was not finite, and what to do; `step` counts from the start."""
        summed = (
            ", or preset='paper', which averages over the batch" if self.config.reduction == "sum" else ""
        )
        return (
            f"the loss or its gradient was not finite in step {step % self.steps + 1} of epoch "
            f"{step // self.steps + 1}; the state before it is kept: try a learning rate below "
            f"{self.config.learning_rate:g}{summed}"
        )


def plan_run(
    data: str | Path | Dataset,
    *,
    net: str | Net,
    loss: str | Loss | Callable[..., Array],
    preset: str | Preset,
    width: float | None = None,
    seed: int = 0,
    max_train: int | None = None,
    metrics_every: int | None = None,
    dtype: str = "float32",
    data_dir: str | Path | None = None,
    hyperparameters: Mapping[str, ArrayLike] | None = None,
    **settings: float | bool | None,
) -> Plan:
    """Check everything before anything is computed.

    Args:
        settings: values in place of the preset's, see `presets.Settings`; None keeps the preset's.

    Raises:
        ValueError: see `train`.
    """
    name, chosen = presets.get(preset)
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    chosen = dataclasses.replace(chosen, **given)
    dtype = _checks.choice("dtype", dtype, DTYPES)
    seed = _checks.seed("seed", seed)
    function = losses.get(loss, **(hyperparameters or {}))
    if not isinstance(net, Net):
        _checks.choice("net", net, nets.NETS)  # before a data set is read or downloaded
    images = datasets.get(data, data_dir=data_dir)
    network = _network(net, width, images, dtype)
    losses.check(function, images.K)
    rows = len(datasets.validation_split(len(images.train_images), chosen.validation)[0])
    if max_train is not None:
        rows = min(rows, _checks.integer("max_train", max_train, least=1))
    if chosen.batch > rows:
        raise ValueError(f"batch: expected at most the {rows} training images, got {chosen.batch}; lower it")
    default = max(1, chosen.epochs // chosen.points)
    every = default if metrics_every is None else _checks.integer("metrics_every", metrics_every, least=1)
    mean, std = chosen.constants(images)
    config = Config(
        **chosen.settings(),
        data=images.name,
        digest=images.digest,
        net=network.name,
        width=network.width,
        parameters=network.size,
        features=network.features,
        loss=repr(function) if losses.known_as(function) == "custom" else function.name,
        hyperparameters={
            key: float(value) for key, value in function.hyperparameters.items() if np.ndim(value) == 0
        },
        preset=name,
        mean=mean,
        std=std,
        metrics_every=every,
        max_train=max_train,
        seed=seed,
        dtype=dtype,
    )
    return Plan(config, chosen, images, network, function)


def _network(net: str | Net, width: float | None, data: Dataset, dtype: str) -> Net:
    compute = None if dtype == "float32" else dtype
    if not isinstance(net, Net):
        options = {} if width is None else {"width": width}
        return nets.get(
            net, **options, num_classes=data.K, image_shape=data.image_shape, compute_dtype=compute
        )
    if width is not None:
        raise ValueError(f"width: goes with a net given by name, got net={net!r}")
    if (net.num_classes, net.image_shape) != (data.K, data.image_shape):
        raise ValueError(
            f"net: expected num_classes={data.K}, image_shape={data.image_shape} for {data.name}, got "
            f"num_classes={net.num_classes}, image_shape={net.image_shape}"
        )
    return dataclasses.replace(net, compute_dtype=compute)
