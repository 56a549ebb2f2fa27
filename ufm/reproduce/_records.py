"""What is measured, as plain records: a job's outcome, an instance of a statement, and a row's verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

Level = Literal["quick", "full"]
Verdict = Literal["holds", "holds with a correction", "fails", "error", "unfinished"]

#: plain data: text, numbers, lists and dictionaries of them
Json = Any


class Instance(NamedTuple):
    """One comparison: the statement holds there if the deviation is within the tolerance."""

    what: str  # what was compared with what
    config: dict[str, Json]  # what reproduces it
    deviation: float
    tolerance: float
    about: Literal["paper", "ours"] = "paper"  # the paper to the letter; or our correction and evidence
    details: dict[str, Json] = {}  # noqa: RUF012 (never written to)

    @property
    def holds(self) -> bool:
        """Within its tolerance; a number that is not finite is not."""
        return math.isfinite(self.deviation) and self.deviation <= self.tolerance

    @property
    def excess(self) -> float:
        """Deviation over tolerance; where nothing is tolerated, infinite for any deviation."""
        if not math.isfinite(self.deviation):
            return math.inf
        if self.tolerance > 0:
            return self.deviation / self.tolerance
        return math.inf if self.deviation > 0 else 0.0

    def to_dict(self) -> dict[str, Json]:
        """As JSON; a deviation that is not finite is null."""
        shown = self.deviation if math.isfinite(self.deviation) else None
        return self._asdict() | {"deviation": shown, "holds": self.holds}

    @classmethod
    def from_dict(cls, data: dict[str, Json]) -> Instance:
        """The inverse of `to_dict`."""
        deviation = math.inf if data["deviation"] is None else data["deviation"]
        return cls(**{name: data[name] for name in cls._fields} | {"deviation": deviation})


class Table(NamedTuple):
    """Rows of words for a section; tables of one title are joined."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Curve(NamedTuple):
    """A line or points of a panel; y may be names."""

    panel: str
    label: str
    x: Sequence[float]
    y: Sequence[Any]
    kind: Literal["line", "points", "vertical"] = "line"


class Outcome(NamedTuple):
    """What a job brings home."""

    instances: tuple[Instance, ...]
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()


class Job(NamedTuple):
    """A piece of a row's work: small enough to lose when interrupted."""

    name: str  # unique in its row, the same in every run
    measure: Callable[[], Outcome]
    cost: float = 1.0  # seconds on two cores, for the time left


class Panel(NamedTuple):
    """Axes of a row's figure, filled by the curves of its name."""

    name: str
    xlabel: str
    ylabel: str
    xscale: str = "linear"
    yscale: str = "linear"


class Statement(NamedTuple):
    """A row of the shelf."""

    id: str
    title: str
    section: str  # theorem, equation or figure of the paper
    paper: str  # what the paper says, in our words
    formulas: tuple[str, ...]  # LaTeX
    measured: str  # what is compared with what
    known: Verdict  # the verdict that this package stands for
    jobs: Callable[[Level], Iterator[Job]]
    correction: str = ""  # what makes the statement true; empty where it is true, or false for good
    remark: str = ""
    panels: tuple[Panel, ...] = ()


class Unmeasured(NamedTuple):
    """What the paper has and no row measures."""

    what: str
    why: str


class Record(NamedTuple):
    """A finished job."""

    row: str
    job: str
    seconds: float
    outcome: Outcome
    error: str = ""  # a traceback, where the job crashed

    def to_dict(self) -> dict[str, Json]:
        """As JSON."""
        return {
            "row": self.row,
            "job": self.job,
            "seconds": self.seconds,
            "error": self.error,
            "instances": [instance.to_dict() for instance in self.outcome.instances],
            "tables": [table._asdict() for table in self.outcome.tables],
            "curves": [curve._asdict() for curve in self.outcome.curves],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Json]) -> Record:
        """The inverse of `to_dict`."""
        tables = (Table(t["title"], tuple(t["header"]), tuple(map(tuple, t["rows"]))) for t in data["tables"])
        outcome = Outcome(
            tuple(Instance.from_dict(instance) for instance in data["instances"]),
            tuple(tables),
            tuple(Curve(**curve) for curve in data["curves"]),
        )
        return cls(data["row"], data["job"], data["seconds"], outcome, data["error"])


class Finding(NamedTuple):
    """A statement with all that was measured of it."""

    statement: Statement
    records: tuple[Record, ...]
    missing: int = 0  # jobs that an interrupted run did not come to

    @property
    def instances(self) -> list[Instance]:
        """Of all jobs."""
        return [instance for record in self.records for instance in record.outcome.instances]

    @property
    def errors(self) -> list[Record]:
        """Jobs that crashed."""
        return [record for record in self.records if record.error]

    def failing(self, about: str) -> list[Instance]:
        """Instances that contradict, worst first."""
        bad = [i for i in self.instances if i.about == about and not i.holds]
        return sorted(bad, key=lambda i: (-i.excess, -i.deviation))

    @property
    def verdict(self) -> Verdict:
        """From the numbers alone: what the package stands for does not enter."""
        if self.failing("ours"):
            return "fails"
        contradicted = bool(self.failing("paper"))
        if contradicted and not self.statement.correction:
            return "fails"  # one counterexample is enough, whatever is still to come
        if self.missing:
            return "unfinished"
        if contradicted:
            return "holds with a correction"
        return "error" if self.errors or not self.instances else "holds"

    @property
    def consistent(self) -> bool:
        """The verdict that this package stands for, with every piece of its own evidence in order."""
        expected = self.verdict == self.statement.known and not self.missing
        return expected and not self.failing("ours") and not self.errors

    @property
    def counterexample(self) -> Instance | None:
        """The worst contradiction: of our own evidence if there is one, else of the paper's words."""
        found = self.failing("ours") or self.failing("paper")
        return found[0] if found else None

    @property
    def worst(self) -> Instance | None:
        """Of the instances that hold, the one nearest to its tolerance."""
        good = [instance for instance in self.instances if instance.holds]
        return max(good, key=lambda i: (i.excess, i.deviation), default=None)

    @property
    def seconds(self) -> float:
        """Time that the jobs took."""
        return sum(record.seconds for record in self.records)
