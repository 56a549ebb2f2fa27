"""Records of training runs, read from their files, selected and averaged for a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ufm import losses
from ufm.figures import _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = (
    (_style.BLUE, "-", "o"),
    (_style.GREEN, "--", "^"),
    (_style.RED, "-.", "s"),
    (_style.PINK, ":", "D"),
)
#: the paper's losses by name: title, colour, dashes and marker
LOSSES = {name: (name.upper(), *look) for name, look in zip(losses.PAPER, _LOOKS, strict=True)}
#: the looks of losses that the paper does not have
_OTHERS = (
    (_style.ORANGE, (0, (6, 1))),
    (_style.SKY, (0, (1, 1))),
    (_style.BLACK, (0, (3, 1, 1, 1, 1, 1))),
)
#: the paper's grid
WIDTHS, EPOCHS = (0.25, 0.5, 1.0, 2.0), (100, 200, 400, 800)
SMALLEST, LARGEST = (WIDTHS[0], EPOCHS[0]), (WIDTHS[-1], EPOCHS[-1])

#: fields of a run's history, and their labels
COLLAPSE = {"nc1": "NC1", "nc2": "NC2", "nc3": "NC3"}
ACCURACY = {f"{part}_accuracy": f"{part} accuracy" for part in ("train", "validation", "test")}
#: values in which the configurations of the runs of one figure may differ
_OWN = (
    *("loss", "hyperparameters", "width", "parameters", "features"),
    *("epochs", "metrics_every", "seed"),
)

Cell = tuple[float, int]  # width, epochs


class Record(NamedTuple):
    """The part of a run's record that figures need."""

    source: Path
    config: dict[str, Any]
    status: str
    history: dict[str, np.ndarray]  # `epoch` and the fields of COLLAPSE and ACCURACY: T values each

    @property
    def epochs(self) -> np.ndarray:
        """The epochs that were measured."""
        return self.history["epoch"]

    @property
    def cell(self) -> Cell:
        """(width, epochs)."""
        return self.config["width"], self.config["epochs"]

    @property
    def completed(self) -> bool:
        """Whether all epochs are done."""
        return self.status == "completed"


class Number(NamedTuple):
    """A number of a figure beside the paper's."""

    name: str
    mean: float | None  # over the seeds; None: the runs are missing
    spread: float | None  # their standard deviation; None for fewer than two
    seeds: int
    paper: float | None  # None: it gives none


class Made(NamedTuple):
    """What the function of a figure returns."""

    figure: Figure
    runs: int = 0
    missing: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()


def records(*places: str | Path) -> list[Record]:
    """The records of all runs in these folders, whatever the names of their files; a file is one record.

    Raises:
        ValueError: a place that does not exist, or a file that is not the record of a run.
    """
    found: list[Record] = []
    for place in map(Path, places):
        if not place.exists():
            raise ValueError(
                f"runs: expected a folder with records of runs, got no such place {str(place)!r}"
            )
        files = [place] if place.is_file() else sorted(place.rglob("*.json"))
        read = [record for record in map(_read, files) if record is not None]
        if place.is_file() and not read:
            raise ValueError(f"runs: expected the record of a run, got {str(place)!r}, which is none")
        found += read
    return found


def _read(path: Path) -> Record | None:
    try:
        tree = json.loads(path.read_bytes())
        if not {"config", "history", "status"} <= set(tree):
            return None
        fields = ("epoch", *COLLAPSE, *ACCURACY)
        history = {name: np.array(tree["history"][name], dtype=np.float64) for name in fields}
        config = tree["config"]
        float(config["width"]), int(config["epochs"]), int(config["seed"]), config["net"], config["loss"]
        return Record(path, dict(config), str(tree["status"]), history)
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError):
        return None


def looks(runs: Iterable[Record]) -> dict[str, tuple[str, str, Any, str]]:
    """`LOSSES`, and after them the other losses of these runs: title, colour, dashes and marker."""
    others = sorted({run.config["loss"] for run in runs} - set(LOSSES))
    more = {loss: (loss, *_OTHERS[i % len(_OTHERS)], "v") for i, loss in enumerate(others)}
    return {**LOSSES, **more}


def family(runs: Sequence[Record], data: str, net: str | None) -> tuple[list[Record], str]:
    """The largest set of runs that differ only in loss, width, epochs and seed, and what is left out.

    If the paper has a network for this data, its runs come first and losses that it does not have are left
    out. The second value says in words how many runs are not drawn.
    """
    own = [run for run in runs if _is_of(run.config["data"], data)]
    own = [run for run in own if net is None or run.config["loss"] in LOSSES]
    pool = [run for run in own if run.config["net"] == net] or own
    groups: dict[str, list[Record]] = {}
    for run in pool:
        shared = {name: value for name, value in run.config.items() if name not in _OWN}
        groups.setdefault(json.dumps(shared, sort_keys=True, default=str), []).append(run)
    if not groups:
        return [], ""
    chosen = max(groups.values(), key=lambda g: (sum(run.completed for run in g), len(g)))
    rest = len(own) - len(chosen)
    return _once(chosen), f"{rest} runs of other settings are not drawn" if rest else ""


def _is_of(name: str, data: str) -> bool:
    """Whether a run's data are this set, or a version of it by name: cifar10-jpeg of cifar10."""
    return name == data or name.startswith(f"{data}-")


def _once(runs: Iterable[Record]) -> list[Record]:
    """One run for each loss, cell and seed: the one with the most measurements."""
    best: dict[Any, Record] = {}
    for run in runs:
        key = (run.config["loss"], *run.cell, run.config["seed"])
        if key not in best or run.epochs.size > best[key].epochs.size:
            best[key] = run
    return list(best.values())


def runs_of(runs: Iterable[Record], loss: str, cell: Cell, completed: bool = True) -> list[Record]:
    """The runs of a loss in a cell."""
    mine = [run for run in runs if run.config["loss"] == loss and run.cell == cell and run.epochs.size]
    return [run for run in mine if run.completed] if completed else mine


def number_of(name: str, values: Sequence[float], paper: float | None = None) -> Number:
    """Mean and spread of the finite values."""
    good = [v for v in values if math.isfinite(v)]
    spread = float(np.std(good, ddof=1)) if len(good) > 1 else None
    return Number(name, float(np.mean(good)) if good else None, spread, len(good), paper)


def last(runs: Iterable[Record], name: str) -> list[float]:
    """The last value of a field in each run."""
    return [float(run.history[name][-1]) for run in runs]


def words(cell: Cell) -> str:
    """The name of a cell in figures."""
    return f"width {cell[0]:g}, {cell[1]} epochs"
