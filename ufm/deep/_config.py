"""The configuration of a run in plain values, how two of them differ, and the code that a run depends on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ufm import _files
from ufm.deep.presets import Settings

#: values that determine shapes of arrays or the data: a checkpoint cannot be continued with other ones
FIXED = ("net", "width", "parameters", "features", "data", "digest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """A run in plain values: runs of equal configuration, code and hardware are equal bit by bit."""

    data: str
    digest: str  # of images and labels
    net: str
    width: float
    parameters: int
    features: int
    loss: str
    hyperparameters: dict[str, float]
    preset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics_every: int
    max_train: int | None
    seed: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON."""
        listed = dataclasses.asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in listed}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """The values in which two records differ, one line each: "name: old -> new"."""
    names = dict.fromkeys((*old, *new))
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)
    ]


#: the modules on which the numbers of a run depend
_NUMBERS = (
    "_config", "_feed", "_history", "_measure", "_mesh", "_plan", "_step", "_train",
    "augment", "datasets", "layers", "nets", "presets",
)  # fmt: skip


def sources() -> list[Path]:
    """The files with the code on which the numbers of a run depend."""
    root = _files.SOURCES
    shared = [*root.glob("losses/*.py"), *root.glob("metrics/*.py")]
    return [*shared, *(root / "deep" / f"{name}.py" for name in _NUMBERS)]


@functools.cache
def code_version() -> dict[str, str]:
    """Versions of package and JAX, and a digest of `sources`."""
    return _files.versions() | {"source": _files.source_digest(sources())}
