"""The paper's grid in miniature: small networks on CIFAR-10, trained on any computer overnight.

    images -> plan -> folder of runs -> small records (`collect`) -> `Grid`, from which the report is made

The records of our own runs are a part of the package (`shipped`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ufm import _checks
from ufm import losses as shelf
from ufm.deep import _mesh, _mini_records, _sweep, datasets
from ufm.deep._experiment import MINI, Experiment
from ufm.deep._mini_records import SHIPPED, Grid
from ufm.deep._plan import Plan
from ufm.deep._sweep import SweepPlan
from ufm.deep._sweep_folder import Point
from ufm.deep._sweep_status import SweepStatus
from ufm.deep.datasets import Dataset

__all__ = [
    "MINI",
    "SHIPPED",
    "Experiment",
    "Grid",
    "collect",
    "compare_last_layers",
    "dataset",
    "plan",
    "read",
    "shipped",
    "train",
]


def dataset(
    data: str | Path | Dataset = "cifar10",
    *,
    data_dir: str | Path | None = None,
    experiment: Experiment = MINI,
) -> Dataset:
    """The first `per_class` training images of each class, and all test images.

    They are normalised by CIFAR-10's constants and flipped as in the paper. Crops move them by up to `pad`
    pixels.

    Raises:
        ValueError: a class with fewer images, or images without colour.
        OSError: there are no images and none can be downloaded; the message says where to put them.
    """
    per_class = _checks.integer("per_class", experiment.per_class, least=1)
    try:
        whole = datasets.get(data, data_dir=data_dir)
    except OSError as error:
        raise type(error)(
            f"data: {error}; or pass a folder, tar or zip of class folders. The report needs no images: "
            "without training it shows the records that the package contains"
        ) from error
    if whole.image_shape[2] != 3:
        raise ValueError(f"data: expected images in colour, got {whole!r}; use CIFAR-10 or a version of it")
    rows = [np.flatnonzero(whole.train_labels == k)[:per_class] for k in range(whole.K)]
    short = [(len(own), name) for own, name in zip(rows, whole.classes, strict=True) if len(own) < per_class]
    if short:
        raise ValueError(
            f"data: expected at least {per_class} training images of each class, got {short[0][0]} of "
            f"{short[0][1]} in {whole.name}; use the whole data set, or another `per_class`"
        )
    chosen = np.sort(np.concatenate(rows))
    mean, std = datasets.CIFAR10
    return dataclasses.replace(
        whole, name=f"{whole.name}-mini", train_images=whole.train_images[chosen],
        train_labels=whole.train_labels[chosen], mean=mean, std=std, pad=experiment.pad, flip=True,
        source=f"{whole.source}; the first {per_class} training images of each class, "
        f"crops by {experiment.pad}",
    )  # fmt: skip


def plan(
    out: str | Path,
    data: str | Path | Dataset = "cifar10",
    *,
    data_dir: str | Path | None = None,
    experiment: Experiment = MINI,
    skip_shipped: bool = False,
) -> SweepPlan:
    """Check every run of the experiment, in the order in which complete comparisons come first.

    The order is by seed, then by epochs, then by width. A run of seed 0 of the short, narrow networks comes
    first, and after each group of runs all losses can be compared.

    Args:
        out: the folder of the runs, as of `plan_sweep`.
        data, data_dir: as of `dataset`.
        skip_shipped: whether to leave out runs that the package's records contain.

    Raises:
        ValueError, OSError: as `dataset` and `plan_sweep`: a folder with other runs is refused by name.
    """
    e = experiment
    made = _sweep.plan_sweep(
        out, dataset(data, data_dir=data_dir, experiment=e), net=e.net, preset=e.preset,
        losses=e.losses, widths=e.widths, epochs=e.epochs, seeds=e.seeds,
    )  # fmt: skip
    held = shipped().configurations() if skip_shipped else []
    pairs = [
        pair for pair in zip(made.points, made.plans, strict=True) if pair[1].config.to_dict() not in held
    ]
    if not pairs:
        raise ValueError(
            "skip_shipped: expected a run that the package's records lack, got none; all are there"
        )
    pairs.sort(key=_rank)
    points, plans = zip(*pairs, strict=True)
    return dataclasses.replace(made, points=points, plans=plans)


def _rank(pair: tuple[Point, Plan]) -> tuple[float, ...]:
    point = pair[0]
    return point.seed, point.epochs, point.width, shelf.PAPER.index(point.loss)


def train(made: SweepPlan, **execution: Any) -> SweepStatus:
    """Train the runs of a plan that are not finished, as `train_sweep` does, and compare their last layers.

    Several processes may train the same plan: each takes the next run that no other process is training. Each
    batch is split over the CPU devices that JAX has, where `devices` does not say otherwise.
    """
    if execution.get("devices") is None:
        execution["devices"] = _mesh.of_cpu(made.plans[0].config.batch)
    done = _sweep.train_sweep(made, **execution)
    compare_last_layers(made.out, made.plans[0].data, progress=execution.get("progress"))
    return done


def compare_last_layers(runs: str | Path, data: Dataset, *, progress: bool | None = None) -> list[Path]:
    """Compare the last layer of each completed run with the optima of the free and the non-negative model.

    A small file in the folder of the run keeps the numbers (`Run.compare_with_ufm`, with `refit`).

    Args:
        data: the images of the runs, see `dataset`.

    Returns: the new files; a run that has one is left out.

    Raises:
        ValueError: the runs are of other images.
    """
    return _mini_records.compare_last_layers(Path(runs), data, progress)


# --- records --------------------------------------------------------------------------------------


def collect(runs: str | Path, into: str | Path, experiment: Experiment = MINI) -> list[Path]:
    """Write the small record of every completed run in a folder of runs; the new files.

    Raises:
        ValueError: no such folder; a record there is of other data or settings than those in `into`.
    """
    return _mini_records.collect(Path(runs), Path(into), experiment)


def read(folder: str | Path, experiment: Experiment = MINI) -> Grid:
    """The small records in a folder, or those of the completed runs in a folder of runs.

    Raises:
        ValueError: no such folder; a file of another format; runs of another experiment.
    """
    return _mini_records.read(Path(folder), experiment)


def shipped() -> Grid:
    """The records that are a part of the package."""
    return read(SHIPPED)
