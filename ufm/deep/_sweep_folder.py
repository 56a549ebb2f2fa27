"""The folder of a sweep: its file, its runs, and how far each has come.

out/sweep.json                      what all runs share, and each run with its cost
out/ce-w0.25-e100-s0/record.json    the record of each run, see `_checkpoint`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ufm.deep._checkpoint import Folder
from ufm.deep._history import Status
from ufm.deep._plan import Operations

FORMAT = "ufm sweep 1"
#: the file of a sweep in its folder
FILE = "sweep.json"


class Point(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder
    loss: str
    hyperparameters: dict[str, float]
    width: float
    epochs: int
    seed: int
    weight_decay: float
    metrics_every: int
    operations: Operations

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Point:
        """The inverse of `to_dict`."""
        return cls(**entry | {"operations": Operations(**entry["operations"])})

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON."""
        return self._asdict() | {"operations": self.operations._asdict()}


class Row(NamedTuple):
    """The progress of one run, from its record."""

    point: Point
    status: str  # waiting, refused, or a `Status`: "running" is a run to continue
    message: str
    epoch: int  # epochs done
    seconds: float  # that they took
    device: str  # on which
    compile_seconds: float = 0.0  # part of `seconds`

    @classmethod
    def read(cls, out: Path, point: Point) -> Row:
        """From the folder of the sweep."""
        try:
            record = Folder(out / point.name).record
        except ValueError as error:
            return cls(point, "refused", str(error), 0, 0.0, "")
        if not record:
            return cls(point, "waiting", "not begun", 0, 0.0, "")
        history = record.get("history", {})
        epochs, seconds = history.get("epoch") or [0], history.get("seconds") or [0.0]
        device = str(record.get("hardware", {}).get("device", ""))
        if record["status"] == Status.COMPLETED.value:
            epochs = [point.epochs]
        compiling = record.get("compile_seconds", 0.0)
        message = record.get("message", "")
        return cls(point, record["status"], message, epochs[-1], seconds[-1], device, compiling)

    @property
    def finished(self) -> bool:
        """Whether training has ended: completed, or stopped by a loss that is not finite."""
        return self.status in (Status.COMPLETED.value, Status.NON_FINITE.value)

    @property
    def program(self) -> tuple[float, str]:
        """Width and loss: runs that share them share their compiled programs."""
        return self.point.width, self.point.loss

    @property
    def operations_done(self) -> float:
        """Floating-point operations of the epochs done."""
        return self.point.operations.total * self.epoch / self.point.epochs

    @property
    def operations_left(self) -> float:
        """Floating-point operations still to do."""
        return 0.0 if self.finished else self.point.operations.total - self.operations_done

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        return self.point._asdict() | {
            "operations": self.point.operations.total,
            "status": self.status,
            "message": self.message,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "operations_left": self.operations_left,
            "device": self.device,
        }


def read(folder: Path) -> tuple[dict[str, Any], tuple[Point, ...]] | None:
    """The settings and runs in the file of a sweep; None if there is no such file.

    Raises:
        ValueError: the file is damaged, or something else.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_bytes())
        points = tuple(Point.from_dict(entry) for entry in content["runs"])
        valid = content["format"] == FORMAT and isinstance(content["settings"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ValueError(f"out: {file} is not the file of a sweep; choose another folder")
    return content["settings"], points
