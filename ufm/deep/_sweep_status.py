"""The progress and the remaining cost of a sweep, as a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ufm._sheet import Printed, Sheet
from ufm.deep._cost import Rate, seconds_left
from ufm.deep._history import Status
from ufm.deep._sweep_folder import Row


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SweepStatus(Printed):
    """The progress of a sweep and its remaining cost.

    Attributes:
        out: the folder of the sweep.
        settings: what the runs share.
        rows: a `Row` for each run.
        rates: measured `Rate` by width.
        measured: on what the rates were measured, in words.
        troubles: runs that were refused or left out, with the reason.
    """

    out: Path
    settings: dict[str, object]
    rows: tuple[Row, ...]
    rates: dict[float, Rate]
    measured: str
    troubles: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether all runs are completed."""
        return all(row.status == Status.COMPLETED.value for row in self.rows)

    @property
    def operations_left(self) -> float:
        """Floating-point operations still to do."""
        return sum(row.operations_left for row in self.rows)

    @property
    def hours_left(self) -> float | None:
        """Time left on one machine, compilation included; None before any rate is known.

        Each run takes its operations at the rate of the nearest measured width. Each pair of width and loss
        among the remaining runs is compiled once, in a process that starts now.
        """
        return self._hours(self.rows)

    def _hours(self, chosen: Sequence[Row]) -> float | None:
        """The share of `chosen` rows in the time left."""
        if not self.rates and any(row.operations_left for row in chosen):
            return None
        names = {row.point.name for row in chosen}
        seconds = zip(self.rows, seconds_left(self.rows, self.rates), strict=True)
        return sum(left for row, left in seconds if row.point.name in names) / 3600

    def to_dict(self) -> dict[str, Any]:
        """The status as JSON."""
        return {
            "out": str(self.out),
            "done": self.done,
            "settings": self.settings,
            "counts": _counts(self.rows),
            "operations": sum(row.point.operations.total for row in self.rows),
            "operations_left": self.operations_left,
            "hours_left": self.hours_left,
            "rates": [{"width": width} | rate._asdict() for width, rate in self.rates.items()],
            "measured": self.measured,
            "troubles": list(self.troubles),
            "runs": [row.to_dict() for row in self.rows],
        }

    def sheet(self) -> Sheet:
        """A row for each width and number of epochs."""
        cells = sorted({(row.point.width, row.point.epochs) for row in self.rows})
        lines = []
        for cell in cells:
            rows = [row for row in self.rows if (row.point.width, row.point.epochs) == cell]
            counts = _counts(rows)
            left = sum(row.operations_left for row in rows)
            words = (f"{cell[0]:g}", str(cell[1]), *(str(n) for n in counts.values()))
            lines.append((*words, f"{left:.3g}", hours(self._hours(rows))))
        s = self.settings
        title = f"Sweep of {len(self.rows)} runs: {s['net']} on {s['data']}, preset {s['preset']}"
        header = ("width", "epochs", *_counts(()), "operations left", "time left")
        total = sum(row.point.operations.total for row in self.rows)
        metrics = sum(row.point.operations.metrics for row in self.rows)
        notes = [
            f"{self.operations_left:.3g} of {total:.3g} floating-point operations left "
            f"(all: {total - metrics:.3g} training, {metrics:.3g} measuring), "
            f"{hours(self.hours_left)} on one machine, compilation included",
            self.measured,
            *(f"{row.point.name}: {row.message}" for row in self.rows if row.status == "non-finite"),
            *self.troubles,
        ]
        return Sheet(title, header, lines, notes)


_WORDS = {
    "completed": ("completed",),
    "to continue": ("running", "not saved"),
    "waiting": ("waiting",),
    "failed": ("non-finite", "refused"),
}


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    states = [row.status for row in rows]
    return {word: sum(states.count(status) for status in own) for word, own in _WORDS.items()}


def hours(value: float | None) -> str:
    """A duration in words: seconds, minutes or hours."""
    if value is None:
        return "unknown"
    if value < 1:
        return f"{60 * value:.0f} min" if value > 1 / 60 else f"{3600 * value:.0f} s"
    return f"{value:.1f} h" if value < 100 else f"{value:.0f} h"
