"""What is measured, as plain records: the outcome of a job, a claim at one configuration, a row's verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from ufm import _claim
from ufm._claim import Claim
from ufm.figures import Curve, Panel
from ufm.figures.records import Made

Level = Literal["quick", "full"]
#: Where the rows about trained networks come from: the package, or a training of the grid of that name.
Deep = Literal["shipped", "mini"]
#: A row's verdict, which follows from the verdicts of all its claims.
RowVerdict = Literal["holds", "holds with a correction", "fails", "open", "error", "unfinished"]
#: The two parts of the report: the paper itself, and statements of other papers about the same models.
Part = Literal["paper", "beyond"]
#: Whose claim it is: the cited paper's to the letter, or one of ours, a correction or evidence for one.
About = Literal["paper", "ours"]

#: Plain data: text, numbers, lists and dictionaries of them.
Config: TypeAlias = Mapping[str, object]


class Instance(NamedTuple):
    """A claim, measured at one configuration."""

    claim: Claim
    config: Config  # what reproduces it
    about: About
    details: Config

    @property
    def what(self) -> str:
        """What was compared with what."""
        return f"{self.claim.name}: {self.claim.statement}".removeprefix(": ")

    @property
    def deviation(self) -> float:
        """The measured deviation; infinite where it is not a finite number."""
        value = self.claim.value
        return value if value is not None and math.isfinite(value) else math.inf

    @property
    def tolerance(self) -> float:
        """The largest deviation at which the claim holds."""
        return self.claim.tolerance or 0.0

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.claim.verdict == "holds"

    @property
    def excess(self) -> float:
        """Deviation over tolerance; infinite for any deviation where the tolerance is zero."""
        if self.tolerance > 0:
            return self.deviation / self.tolerance
        return math.inf if self.deviation > 0 else 0.0

    def to_dict(self) -> dict[str, object]:
        """As JSON, in which a deviation that is not finite is null."""
        return {
            "what": self.what,
            "config": self.config,
            "deviation": None if math.isinf(self.deviation) else self.deviation,
            "tolerance": self.tolerance,
            "about": self.about,
            "details": self.details,
            "holds": self.holds,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Instance:
        """The inverse of `to_dict`; the verdict is decided again from the numbers."""
        deviation = math.nan if data["deviation"] is None else data["deviation"]
        rest = data["about"], data["details"]
        return compared(data["what"], data["config"], deviation, data["tolerance"], *rest)


def compared(
    what: str,
    config: Config,
    deviation: float,
    tolerance: float,
    about: About = "paper",
    details: Config | None = None,
) -> Instance:
    """A deviation that was measured, judged as every claim of the package is."""
    row = _claim.Statement[None]("", what, lambda _: deviation, lambda _: tolerance)
    return Instance(row.claim(None), config, about, details or {})


class Table(NamedTuple):
    """Rows of words for a section; tables with one title are joined."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Outcome(NamedTuple):
    """What a job has measured."""

    instances: tuple[Instance, ...]
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()


class Job(NamedTuple):
    """A part of a row that is measured at once; an interrupted run repeats at most one."""

    name: str  # unique in its row, the same in every run
    measure: Callable[[], Outcome]
    cost: float = 1.0  # seconds on two cores, for the time left


class Row(NamedTuple):
    """A statement: what its source says, how it is measured, and the verdict to expect."""

    id: str
    title: str
    section: str  # theorem, equation or figure of the paper; beyond it, authors and year
    paper: str  # what the source says, in our words
    formulas: tuple[str, ...]  # LaTeX
    measured: str  # what is compared with what
    known: RowVerdict  # the verdict that this package expects
    jobs: Callable[[Level], Iterator[Job]]
    correction: str = ""  # what makes the statement true; empty where it is true or cannot be corrected
    remark: str = ""
    panels: tuple[Panel, ...] = ()  # of its figure
    draw: Callable[[Sequence[Curve]], Made] | None = None  # where the figure is one of the paper's
    undecided: str = ""  # what no proof and no counterexample decides; empty where the statement is decided
    part: Part = "paper"


class Unmeasured(NamedTuple):
    """A part of the paper that no row measures."""

    what: str
    why: str


class Record(NamedTuple):
    """A finished job."""

    row: str
    job: str
    seconds: float
    outcome: Outcome
    error: str = ""  # a traceback, where the job crashed

    def to_dict(self) -> dict[str, object]:
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
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The inverse of `to_dict`."""
        tables = (Table(t["title"], tuple(t["header"]), tuple(map(tuple, t["rows"]))) for t in data["tables"])
        outcome = Outcome(
            tuple(Instance.from_dict(instance) for instance in data["instances"]),
            tuple(tables),
            tuple(Curve(**curve) for curve in data["curves"]),
        )
        return cls(data["row"], data["job"], data["seconds"], outcome, data["error"])


class Finding(NamedTuple):
    """A row with everything that was measured of it."""

    statement: Row
    records: tuple[Record, ...]
    missing: int = 0  # jobs that an interrupted run did not reach

    @property
    def instances(self) -> list[Instance]:
        """Of all jobs."""
        return [instance for record in self.records for instance in record.outcome.instances]

    @property
    def errors(self) -> list[Record]:
        """Jobs that crashed."""
        return [record for record in self.records if record.error]

    def failing(self, about: About) -> list[Instance]:
        """Instances that contradict, worst first."""
        bad = [i for i in self.instances if i.about == about and not i.holds]
        return sorted(bad, key=lambda i: (-i.excess, -i.deviation))

    @property
    def verdict(self) -> RowVerdict:
        """From the numbers alone; the verdict that the package expects does not enter."""
        if self.failing("ours"):
            return "fails"
        contradicted = bool(self.failing("paper"))
        if contradicted and not self.statement.correction:
            return "fails"  # one counterexample is enough, whatever is still to come
        if self.missing:
            return "unfinished"
        if contradicted:
            return "holds with a correction"
        if self.errors:
            return "error"
        if not self.instances:  # a table alone is a grid of networks that lacks the runs to compare
            shown = any(record.outcome.tables for record in self.records)
            return "unfinished" if shown else "error"
        return "open" if self.statement.undecided else "holds"

    @property
    def consistent(self) -> bool:
        """Whether the verdict is the expected one, no job crashed and none of our own claims fails."""
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
