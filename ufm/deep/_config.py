"""The stage arguments -> Config: what a run is, in full, as plain values; and what made it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ufm
from ufm import _checks, losses
from ufm.deep import datasets, nets, presets
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net
from ufm.deep.presets import Preset

DTYPES = ("float32", "bfloat16")
#: another value of these makes arrays of other shapes: no checkpoint can be continued with it
SHAPES = ("net", "width", "parameters", "features", "data", "digest")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run in plain values: two runs with equal configurations, code and hardware are equal bit by bit."""

    data: str
    digest: str  # of images and labels
    net: str
    width: float
    parameters: int
    features: int
    loss: str
    hyperparameters: dict[str, float]
    preset: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    momentum: float
    clip: float
    reduction: str
    mse_over_classes: str
    drops: tuple[float, ...]
    early: int
    augment: bool
    augment_metrics: bool
    convention: str
    validation: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics_every: int
    max_train: int | None
    seed: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        listed = dataclasses.asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in listed}


class Plan(NamedTuple):
    """A configuration and the objects that it names."""

    config: Config
    preset: Preset
    data: Dataset
    net: Net
    loss: losses.Loss

    @property
    def train_rows(self) -> np.ndarray:
        """Indices of the training images."""
        return self._split[0][: self.config.max_train]

    @property
    def validation_rows(self) -> np.ndarray:
        """Indices, among the training images, of those for validation."""
        return self._split[1]

    @property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        return datasets.split(len(self.data.train_images), self.config.validation)

    @property
    def scale(self) -> float:
        """What the mean over the batch of the loss is multiplied by: how a preset reduces."""
        mean_of_classes = self.config.mse_over_classes == "mean" and self.loss.sums_classes
        total = self.config.batch if self.config.reduction == "sum" else 1
        return total / (self.data.K if mean_of_classes else 1)

    @property
    def learning_rates(self) -> np.ndarray:
        """Of each epoch."""
        return self.preset.learning_rates(self.config.epochs, self.config.learning_rate)

    def measured(self, epoch: int) -> bool:
        """Whether metrics are taken once this many epochs are done."""
        return epoch % self.config.metrics_every == 0 or epoch == self.config.epochs


def plan(
    data: Any,
    net: Any,
    loss: Any,
    preset: Any,
    *,
    width: float | None,
    data_dir: Any,
    dtype: str,
    seed: int,
    max_train: int | None,
    metrics_every: int | None,
    hyperparameters: dict[str, Any],
    **given: Any,
) -> Plan:
    """Everything checked before anything is computed; `given`: values that replace the preset's."""
    name, chosen = presets.get(preset)
    chosen = _replaced(chosen, given)
    dtype = _checks.choice("dtype", dtype, DTYPES)
    seed = _checks.seed("seed", seed)
    function = losses.get(loss, **hyperparameters)
    if not isinstance(net, Net):
        _checks.choice("net", net, nets.NETS)  # before a data set is read or downloaded
    images = datasets.get(data, data_dir=data_dir)
    network = _network(net, width, images, dtype)
    losses.check(function, images.K)
    rows = len(datasets.split(len(images.train_images), chosen.validation)[0])
    if max_train is not None:
        rows = min(rows, _checks.integer("max_train", max_train, least=1))
    if chosen.batch > rows:
        raise ValueError(f"batch: expected at most the {rows} training images, got {chosen.batch}; lower it")
    default = max(1, chosen.epochs // 100)  # the paper's hundred points along a run
    every = default if metrics_every is None else _checks.integer("metrics_every", metrics_every, least=1)
    mean, std = chosen.constants(images)
    fields = {f.name for f in dataclasses.fields(Config)}
    config = Config(
        **{key: value for key, value in vars(chosen).items() if key in fields},
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


def _replaced(preset: Preset, given: dict[str, Any]) -> Preset:
    """The preset with the values that are given, checked."""
    values = {name: value for name, value in given.items() if value is not None}
    for name in ("epochs", "batch"):
        if name in values:
            values[name] = _checks.integer(name, values[name], least=1)
    if "learning_rate" in values:
        values["learning_rate"] = float(_checks.real("learning_rate", values["learning_rate"], above=0.0))
    if "weight_decay" in values:
        values["weight_decay"] = float(_checks.real("weight_decay", values["weight_decay"], least=0.0))
    if "augment" in values:
        values["augment"] = _checks.boolean("augment", values["augment"])
    return dataclasses.replace(preset, **values)


def _network(net: Any, width: float | None, data: Dataset, dtype: str) -> Net:
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


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `Config.to_dict`."""
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Config(**plain)


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What tells two configurations apart, one line a value."""
    names = dict.fromkeys((*old, *new))
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)
    ]


# --- what made a run ------------------------------------------------------------------------------

#: the modules that a run's numbers depend on
_NUMBERS = (
    "_config", "_feed", "_measure", "_mesh", "_run", "_step", "_train",
    "augment", "datasets", "layers", "nets", "presets",
)  # fmt: skip


@functools.cache
def code_version() -> dict[str, str]:
    """Versions of package and JAX, and a digest of the sources that a run's numbers depend on."""
    root = Path(ufm.__file__).parent
    deep = (root / "deep" / f"{name}.py" for name in _NUMBERS)
    digest = hashlib.sha256()
    for path in (*sorted((root / "losses").glob("*.py")), *deep, *sorted((root / "metrics").glob("*.py"))):
        digest.update(path.read_bytes())
    return {
        "ufm": ufm.__version__,
        "source": digest.hexdigest()[:12],
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
    }


def hardware() -> dict[str, Any]:
    """What the run's times depend on."""
    devices = jax.devices()
    return {
        "device": devices[0].device_kind,
        "backend": devices[0].platform,
        "devices": len(devices),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
