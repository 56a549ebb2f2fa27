"""What of a sweep is done and what it will still cost, from the files in its folder alone.

out/sweep.json                      what all runs share, and each run with its cost
out/ce-w0.25-e100-s0/record.json    each run's own record, see `_checkpoint`
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm._sheet import Printed, Sheet
from ufm.deep import _feed, _run, _step
from ufm.deep._checkpoint import Folder
from ufm.deep._config import Plan
from ufm.deep._run import Status

FORMAT = "ufm sweep 1"
#: the sweep's file in its folder
FILE = "sweep.json"
#: steps that the rate is measured over where no run has been measured yet
STEPS = 3


class Operations(NamedTuple):
    """Floating-point operations of a run: two for each multiply-add."""

    training: int  # forward once, backward twice: 6 * multiply-adds * images * epochs
    metrics: int  # forward over all images at each measurement

    @property
    def total(self) -> int:
        """Both."""
        return self.training + self.metrics


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


class Row(NamedTuple):
    """A run and how far it has come, as its record has it."""

    point: Point
    status: str  # waiting, or a `Status`: running is one to continue
    message: str
    epoch: int  # epochs done
    seconds: float  # of them
    device: str  # that did them

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to train: completed, or stopped by a loss that is not finite."""
        return self.status in (Status.COMPLETED.value, Status.NON_FINITE.value)

    @property
    def left(self) -> float:
        """Operations still to do."""
        return 0.0 if self.finished else self.point.operations.total * (1 - self.epoch / self.point.epochs)

    @property
    def rate(self) -> float:
        """Operations a second, measured; NaN where nothing is."""
        done = self.point.operations.total * self.epoch / self.point.epochs
        return done / self.seconds if self.seconds > 0 else math.nan


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SweepStatus(Printed):
    """What of a sweep is done and what it will still cost.

    Attributes:
        out: its folder.
        settings: what the runs share.
        rows: a `Row` for each run.
        rates: operations a second by width, as measured.
        measured: by what.
        troubles: runs that were refused or passed over, with the reason.
    """

    out: Path
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    rates: dict[float, float]
    measured: str
    troubles: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether all runs are completed."""
        return all(row.status == Status.COMPLETED.value for row in self.rows)

    @property
    def operations_left(self) -> float:
        """Floating-point operations still to do."""
        return sum(row.left for row in self.rows)

    @property
    def hours_left(self) -> float | None:
        """At the rate measured at the nearest width; None where none is measured."""
        return _hours(self.rows, self.rates)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "out": str(self.out),
            "done": self.done,
            "settings": self.settings,
            "counts": _counts(self.rows),
            "operations": sum(row.point.operations.total for row in self.rows),
            "operations_left": self.operations_left,
            "hours_left": self.hours_left,
            "rates": [{"width": w, "operations_per_second": rate} for w, rate in self.rates.items()],
            "measured": self.measured,
            "troubles": list(self.troubles),
            "runs": [_row_dict(row) for row in self.rows],
        }

    def sheet(self) -> Sheet:
        """A row for each width and number of epochs."""
        cells = sorted({(row.point.width, row.point.epochs) for row in self.rows})
        lines = []
        for cell in cells:
            rows = [row for row in self.rows if (row.point.width, row.point.epochs) == cell]
            counts = _counts(rows)
            left = sum(row.left for row in rows)
            words = (f"{cell[0]:g}", str(cell[1]), *(str(n) for n in counts.values()))
            lines.append((*words, f"{left:.3g}", hours(_hours(rows, self.rates))))
        s = self.settings
        title = f"Sweep of {len(self.rows)} runs: {s['net']} on {s['data']}, preset {s['preset']}"
        header = ("width", "epochs", *_counts(()), "operations left", "time left")
        total = sum(row.point.operations.total for row in self.rows)
        metrics = sum(row.point.operations.metrics for row in self.rows)
        notes = [
            f"{self.operations_left:.3g} of {total:.3g} floating-point operations left "
            f"(all: {total - metrics:.3g} training, {metrics:.3g} measuring), "
            f"{hours(self.hours_left)} on one machine",
            self.measured,
            *(f"{row.point.name}: {row.message}" for row in self.rows if row.status == "non-finite"),
            *self.troubles,
        ]
        return Sheet(title, header, lines, notes)


# --- counting and measuring -----------------------------------------------------------------------


def operations(plan: Plan) -> Operations:
    """Floating-point operations of a run, those of convolutions and linear layers.

    6 operations a multiply-add, image and epoch in training, 2 in evaluation: over all images, after every
    `metrics_every` epochs and the last.
    """
    c, data = plan.config, plan.data
    macs = plan.net.flops(data.image_shape)
    train = len(plan.train_rows)
    every = train + len(plan.validation_rows) + len(data.test_images)
    return Operations(6 * macs * train * c.epochs, 2 * macs * every * -(-c.epochs // c.metrics_every))


def read(folder: Path) -> dict[str, Any]:
    """The sweep's file, {} where there is none."""
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
        valid = content["format"] == FORMAT and isinstance(content["settings"], dict)
        content["runs"] = [_point_of(entry) for entry in content["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ValueError(f"out: {file} is not the file of a sweep; choose another folder")
    return dict(content)


def _point_of(entry: dict[str, Any]) -> Point:
    return Point(**entry | {"operations": Operations(**entry["operations"])})


def row_of(out: Path, point: Point) -> Row:
    try:
        record = Folder(out / point.name).record
    except ValueError as error:
        return Row(point, "refused", str(error), 0, 0.0, "")
    if not record:
        return Row(point, "waiting", "not begun", 0, 0.0, "")
    history = record.get("history", {})
    epochs, seconds = history.get("epoch") or [0], history.get("seconds") or [0.0]
    device = str(record.get("hardware", {}).get("device", ""))
    if record["status"] == Status.COMPLETED.value:
        epochs = [point.epochs]
    return Row(point, record["status"], record.get("message", ""), epochs[-1], seconds[-1], device)


def measured_by(rows: Sequence[Row]) -> tuple[dict[float, float], str]:
    """Operations a second by width: those done over the seconds they took."""
    timed = [row for row in rows if not math.isnan(row.rate)]
    rates = {}
    for width in sorted({row.point.width for row in timed}):
        own = [row for row in timed if row.point.width == width]
        rates[width] = sum(row.rate * row.seconds for row in own) / sum(row.seconds for row in own)
    if not rates:
        return {}, "rate: no run has been measured yet"
    names = ", ".join(sorted({row.device for row in timed}))
    speeds = ", ".join(f"{rate:.3g}/s at width {width:g}" for width, rate in rates.items())
    return rates, f"rate: {speeds}, of {len(timed)} run{'s' * (len(timed) > 1)} on {names}"


def rate_of(plan: Plan, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations a second of the training step: some steps, timed once they are compiled."""
    batch, data = plan.config.batch, plan.data
    size = STEPS * batch
    rows = np.arange(size, dtype=np.int32) % min(size, len(data.train_images))
    few = dataclasses.replace(
        data, train_images=data.train_images[:size], train_labels=data.train_labels[:size],
        test_images=data.test_images[:1], test_labels=data.test_labels[:1],
    )  # fmt: skip
    key, hyper, recipe = _run.key_of(plan), _run.hyper_of(plan, 0), _run.recipe_of(plan)
    state, seconds = _step.start(plan.net, key, hyper), math.inf
    (chunk,) = _feed.Feed(few).chunks(jax.numpy.asarray(rows.reshape(STEPS, batch)))
    for _ in range(2):  # the first one compiles
        began = clock()
        state, totals = _step.run_steps(
            recipe, state, _step.no_totals(), hyper, key, chunk.data, chunk.order, (0, 0), lambda *_: None
        )
        jax.block_until_ready((state, totals))  # type: ignore[no-untyped-call]
        seconds = clock() - began
    return 6 * plan.net.flops(data.image_shape) * rows.size / seconds


_WORDS = {
    "completed": ("completed",),
    "to continue": ("running", "not saved"),
    "waiting": ("waiting",),
    "failed": ("non-finite", "refused"),
}


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    states = [row.status for row in rows]
    return {word: sum(states.count(status) for status in own) for word, own in _WORDS.items()}


def _hours(rows: Iterable[Row], rates: dict[float, float]) -> float | None:
    left = [row for row in rows if row.left > 0]
    if left and not rates:
        return None
    return sum(row.left / _nearest(rates, row.point.width) for row in left) / 3600


def _nearest(rates: dict[float, float], width: float) -> float:
    return rates[min(rates, key=lambda known: abs(math.log(known / width)))]


def hours(value: float | None) -> str:
    """As a person reads it."""
    if value is None:
        return "unknown"
    if value < 1:
        return f"{60 * value:.0f} min" if value > 1 / 60 else f"{3600 * value:.0f} s"
    return f"{value:.1f} h" if value < 100 else f"{value:.0f} h"


def _row_dict(row: Row) -> dict[str, Any]:
    point = row.point._asdict() | {"operations": row.point.operations.total}
    return point | {
        "status": row.status, "message": row.message, "epoch": row.epoch, "seconds": row.seconds,
        "operations_left": row.left, "device": row.device,
    }  # fmt: skip
