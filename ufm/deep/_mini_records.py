"""The small records of an experiment: a few kB for each run, which the package contains, and their `Grid`."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ufm import _checks, _files
from ufm._progress import each
from ufm.deep import _checkpoint, _config
from ufm.deep._experiment import Cell, Experiment
from ufm.deep._history import Status
from ufm.deep._resume import load
from ufm.deep._sweep_folder import FILE
from ufm.deep._trained_run import Run
from ufm.deep.datasets import Dataset
from ufm.figures.records import Record

FORMAT = "ufm mini record 1"
#: the records that are a part of the package
SHIPPED = Path(__file__).with_name("records") / "mini"
#: what a small record keeps of a run's history
FIELDS = (
    "epoch", "learning_rate", "train_loss", "train_accuracy", "validation_accuracy", "test_loss",
    "test_accuracy", "nc1", "nc2", "nc3", "nc4", "seconds",
)  # fmt: skip
#: the file of a run's last layer beside its optima, in the folder of the run
LAST_LAYER = "last_layer.json"
#: with the optimum of which models
MODELS = ("free", "nonnegative")
#: what it keeps of each `Comparison`
COMPARED = (
    "lam_H", "gap", "margin", "optimal_margin", "norm_W", "optimal_norm_W", "norm_M", "optimal_norm_M",
    "norm_b", "optimal_norm_b", "angle", "angle_spread", "raw_angle", "optimal_raw_angle", "nc1", "nc2",
    "optimal_nc2", "refitted_nc2", "means_nc2", "duality", "raw_duality", "optimal_raw_duality", "within",
)  # fmt: skip
#: decimal digits of a number in a small record
DIGITS = 6
#: values in which the configurations of the runs of one grid may differ
_OWN = {"loss", "hyperparameters", "width", "parameters", "features", "epochs", "metrics_every", "seed"}


@dataclasses.dataclass(frozen=True)
class Grid:
    """The completed runs of an experiment."""

    experiment: Experiment
    records: tuple[dict[str, Any], ...]  # small records

    @functools.cached_property
    def runs(self) -> list[Record]:
        """The runs as figures take them."""
        return [_drawable(record) for record in self.records]

    @property
    def progress(self) -> str:
        """The number of runs: "24 of 72 runs"."""
        return f"{len(self.records)} of {self.experiment.size} runs"

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all records."""
        text = json.dumps(self.records, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def last(self, name: str, loss: str, cell: Cell) -> list[float]:
        """The last value of a field in each run of a loss in a cell, in the order of the seeds."""
        return [float(run.history[name][-1]) for run in self.of(loss, cell)]

    def last_layers(self, model: str, name: str, loss: str, cell: Cell) -> list[float]:
        """A field of the last layer beside the optimum of a model, in each run of a loss in a cell."""
        own = (
            record["last_layer"][model][name]
            for record in self.records
            if "last_layer" in record
            and (record["config"]["loss"], (record["config"]["width"], record["config"]["epochs"]))
            == (loss, cell)
        )
        return [float("nan") if value is None else value for value in own]

    def of(self, loss: str, cell: Cell) -> list[Record]:
        """The runs of a loss in a cell, in the order of the seeds."""
        own = [run for run in self.runs if (run.config["loss"], run.cell) == (loss, cell)]
        return sorted(own, key=lambda run: int(run.config["seed"]))

    def complete(self, cell: Cell) -> bool:
        """Whether a cell has a run of every loss."""
        return all(self.of(loss, cell) for loss in self.experiment.losses)

    def joined(self, other: Grid) -> Grid:
        """These runs, and those of the other grid that are not among them.

        Raises:
            ValueError: the runs are of different data or settings.
        """
        _check_alike((*self.records, *other.records))
        own = {name_of(config) for config in self.configurations()}
        more = (record for record in other.records if name_of(record["config"]) not in own)
        return Grid(self.experiment, (*self.records, *more))

    def configurations(self) -> list[dict[str, Any]]:
        """The configurations of the runs."""
        return [record["config"] for record in self.records]

    def label(self) -> dict[str, str]:
        """Data, hardware and dates in words."""
        if not self.records:
            return {"runs": self.progress}
        dates = sorted(record["date"] for record in self.records)
        first = self.records[0]
        machines = {_machine(record["hardware"]) for record in self.records}
        return {
            "runs": self.progress,
            "network": f"{first['config']['net']}, preset {first['config']['preset']}",
            "data": f"{first['config']['data']} ({first['source']})",
            "hardware": "; ".join(sorted(machines)),
            "date": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        }


def _machine(hardware: Mapping[str, Any]) -> str:
    name = hardware.get("processor") if hardware.get("backend") == "cpu" else hardware.get("device")
    return f"{name or hardware.get('device')} ({hardware.get('cpus')} cores)"


def _drawable(record: dict[str, Any]) -> Record:
    history = {name: np.array(values, np.float64) for name, values in record["history"].items()}
    return Record(Path(), record["config"], record["status"], history)


# --- small records --------------------------------------------------------------------------------


def small(record: Mapping[str, Any], date: str) -> dict[str, Any]:
    """The part of a run's record that the report needs, with the date on which it was completed."""
    kept = {
        name: record[name] for name in ("status", "message", "config", "source", "code", "hardware", "notes")
    }
    history = {name: [_short(value) for value in record["history"][name]] for name in FIELDS}
    return {"format": FORMAT, "date": date, **kept, "history": history}


def compare_last_layers(runs: Path, data: Dataset, progress: bool | None = None) -> list[Path]:
    """Write the file of the last layer of every completed run that lacks it; the new files."""
    lacking = [
        file.parent
        for file in sorted(runs.glob("*/record.json"))
        if (record := _read(file)) is not None and "last_layer" not in record
    ]
    new = []
    for folder in each("last layers", lacking, progress, lambda folder: folder.name):
        run = load(folder, data=data)
        found = {model: _compared(run, model) for model in MODELS}
        new.append(folder / LAST_LAYER)
        _files.write_json(new[-1], found, indent=None)
    return new


def _compared(run: Run, model: str) -> dict[str, float | None]:
    facts = run.compare_with_ufm(model=model, refit=True).to_dict()
    return {name: _short(facts[name]) for name in COMPARED}


def _short(value: float | None) -> float | int | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def name_of(config: Mapping[str, Any]) -> str:
    """The name of a run, as `train_sweep` names its folder."""
    return f"{config['loss']}-w{config['width']:g}-e{config['epochs']}-s{config['seed']}"


def collect(runs: Path, into: Path, experiment: Experiment) -> list[Path]:
    """Write the small records of completed runs that `into` lacks (or their last layers); the new files."""
    found = read(runs, experiment)
    held = read(into, experiment) if into.exists() else Grid(experiment, ())
    _check_alike((*held.records, *found.records))
    known = {(name_of(record["config"]), "last_layer" in record) for record in held.records}
    _checks.folder("into", into)
    new = []
    for record in found.records:
        name, compared = name_of(record["config"]), "last_layer" in record
        if not known & {(name, compared), (name, True)}:
            new.append(into / f"{name}.json")
            _files.write_json(new[-1], record, indent=None)
    return new


# --- reading --------------------------------------------------------------------------------------


def read(folder: Path, experiment: Experiment) -> Grid:
    """The grid of the records in a folder.

    Raises:
        ValueError: no such folder, a file of another format, runs of another experiment or of two.
    """
    if not folder.is_dir():
        raise ValueError(f"runs: expected a folder of records, got {str(folder)!r}; train them first")
    found = [record for file in sorted(folder.rglob("*.json")) if (record := _read(file)) is not None]
    for record in found:
        if strange := experiment.strange(record["config"]):
            raise ValueError(
                f"runs: {folder} holds another experiment ({name_of(record['config'])} has {strange}); "
                "choose another folder"
            )
    _check_alike(found)
    found.sort(key=lambda record: name_of(record["config"]))
    return Grid(experiment, tuple(found))


def _read(file: Path) -> dict[str, Any] | None:
    """A small record; None for a run that is not completed, and for files beside the records."""
    if file.name in (FILE, LAST_LAYER):
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_bytes())
        if record["format"] == _checkpoint.FORMAT:
            if record["status"] != Status.COMPLETED.value:
                return None
            stamp = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
            return small(record, stamp.date().isoformat()) | _last_layer(file.with_name(LAST_LAYER))
        format_ = record["format"]
        whole = set(FIELDS) <= set(record["history"])
        whole = whole and ("last_layer" not in record or _is_whole(record["last_layer"]))
        if format_ == FORMAT and whole and name_of(record["config"]):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        format_ = "none"
    raise ValueError(
        f"runs: {file} is not a record that this version reads (format {format_!r}, expected {FORMAT!r} or "
        f"{_checkpoint.FORMAT!r}); move it to another place, or use the version of ufm that wrote it"
    )


def _last_layer(file: Path) -> dict[str, Any]:
    """The part of a small record about the last layer; empty if it is to be compared, or compared anew."""
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {"last_layer": found} if _is_whole(found) else {}


def _is_whole(last_layer: Any) -> bool:
    """Whether a last layer has all that this version keeps of it."""
    return isinstance(last_layer, dict) and all(set(COMPARED) <= set(last_layer.get(m, ())) for m in MODELS)


def _check_alike(records: Iterable[Mapping[str, Any]]) -> None:
    """Refuse runs of different data or settings."""
    shared = [{k: v for k, v in record["config"].items() if k not in _OWN} for record in records]
    for one in shared:
        if changes := _config.differences(shared[0], one):
            raise ValueError(
                f"runs: expected runs of one experiment, got two ({'; '.join(changes[:3])}); keep them in "
                "different folders"
            )
