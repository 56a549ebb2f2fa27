"""The stage records -> report: report.json, report.html and the figures."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import scipy

from ufm import _checks, _files
from ufm._sheet import Printed, Sheet
from ufm.deep.datasets import Dataset
from ufm.reproduce import _figures, _html, _runner, _schema, _section_4
from ufm.reproduce._figures import Drawn
from ufm.reproduce._records import Deep, Finding, Level, Part, RowVerdict, Table, Unmeasured
from ufm.reproduce.statements import UNMEASURED, chosen

#: Which part of the report to make.
Parts: TypeAlias = Literal["all", Part]
_TITLES: dict[Parts, str] = {
    "all": "Statements of the paper and beyond it, measured",
    "paper": "The paper's statements, measured",
    "beyond": "Statements beyond the paper, measured",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Reproduction(Printed):
    """The findings of a run and the folder of its report."""

    findings: tuple[Finding, ...]
    out: Path
    level: Level
    part: Parts
    seconds: float  # of this run, without jobs that an earlier run finished
    figures: dict[str, Drawn]
    deep: tuple[Drawn, ...]

    @property
    def complete(self) -> bool:
        """Whether no job is missing."""
        return not any(finding.missing for finding in self.findings)

    @property
    def unmeasured(self) -> tuple[Unmeasured, ...]:
        """The parts of the paper that this report does not cover, where it is about the paper."""
        return () if self.part == "beyond" else UNMEASURED

    @property
    def consistent(self) -> bool:
        """Whether every row has the expected verdict and no job crashed."""
        return all(finding.consistent for finding in self.findings)

    def sheet(self) -> Sheet:
        """The table that `print` and notebooks show."""
        rows = [_words(finding) for finding in self.findings]
        odd = [f"{f.statement.id}: expected {f.statement.known!r}" for f in self.findings if not f.consistent]
        tally = ", ".join(f"{n} {verdict}" for verdict, n in counts(self.findings).items() if n)
        notes = [*odd, f"{tally} ({self.seconds:.0f} s); report: {self.out / 'report.html'}"]
        header = ("statement", "section", "instances", "worst", "verdict")
        return Sheet(_TITLES[self.part], header, rows, notes)

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        data = {
            "schema": _schema.NAME,
            "version": _schema.VERSION,
            "level": self.level,
            "part": self.part,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(self.level, self.out, part=self.part),
            "seconds": round(self.seconds, 1),
            "complete": self.complete,
            "consistent": self.consistent,
            "counts": counts(self.findings),
            "machine": machine(),
            "rows": [row_dict(finding, self) for finding in self.findings],
            "deep": [_figure_dict(drawn, self.out) for drawn in self.deep],
            "unmeasured": [entry._asdict() for entry in self.unmeasured],
        }
        return dict(_runner.plain(data))


def _words(finding: Finding) -> tuple[str, ...]:
    shown = finding.counterexample or finding.worst
    worst = "-" if shown is None else f"{shown.deviation:.1e}"
    row = finding.statement
    return (row.title, row.section, f"{len(finding.instances)}", worst, finding.verdict)


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """The number of rows with each verdict."""
    found = Counter(finding.verdict for finding in findings)
    return {name: found[name] for name in get_args(RowVerdict)}


def command(level: Level, out: Path | None = None, row: str = "", part: Parts = "all") -> str:
    """The command that repeats the report, or one row of it."""
    which = f"--only {row}" if row else f"--part {part}" * (part != "all")
    words = ["ufm reproduce", "--quick" * (level == "quick"), which]
    return " ".join(filter(None, [*words, "" if out is None else f"--out {out.name or out}"]))


def machine() -> dict[str, str | int | None]:
    """Versions and hardware, with which a reader can compare results."""
    found = _files.hardware()
    return _runner.fingerprint() | {
        "python": found["python"],
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "system": f"{found['system']} {found['machine']}",
        "cores": found["cpus"],
        "backend": found["backend"],
    }


def row_dict(finding: Finding, of: Reproduction) -> dict[str, object]:
    """A row as JSON."""
    row, drawn = finding.statement, of.figures.get(finding.statement.id)
    words = ("id", "part", "title", "section", "paper", "formulas", "measured", "correction", "remark")
    shown = {"worst": finding.worst, "counterexample": finding.counterexample}
    return {
        **{name: getattr(row, name) for name in (*words, "undecided", "known")},
        "verdict": finding.verdict,
        "consistent": finding.consistent,
        "count": len(finding.instances),
        "missing": finding.missing,
        **{name: None if instance is None else instance.to_dict() for name, instance in shown.items()},
        "command": command(of.level, None, row.id),
        "seconds": round(finding.seconds, 2),
        "figures": [] if drawn is None else [_figure_dict(drawn, of.out)],
        "tables": [table._asdict() for table in joined(finding)],
        "errors": [{"job": record.job, "traceback": record.error} for record in finding.errors],
        "instances": [instance.to_dict() for instance in finding.instances],
    }


def _figure_dict(drawn: Drawn, out: Path) -> dict[str, str]:
    files = {"png": drawn.png, "pdf": drawn.pdf}
    return {"name": drawn.name, "caption": drawn.caption} | {
        k: str(f.relative_to(out)) for k, f in files.items()
    }


def joined(finding: Finding) -> list[Table]:
    """The tables of all jobs; those with the same title and header are joined."""
    found: dict[tuple[str, tuple[str, ...]], Table] = {}
    for record in finding.records:
        for table in record.outcome.tables:
            key = (table.title, table.header)
            before = found.get(key, table._replace(rows=()))
            found[key] = table._replace(rows=before.rows + table.rows)
    return list(found.values())


def reproduce(
    out: str | Path,
    *,
    level: Level = "quick",
    part: Parts = "all",
    only: Iterable[str] = (),
    fresh: bool = False,
    runs: str | Path | None = None,
    deep: Deep = "shipped",
    data: str | Path | Dataset = "cifar10",
    data_dir: str | Path | None = None,
    skip_shipped: bool = False,
    progress: bool | None = None,
) -> Reproduction:
    """Measure the statements of the paper, and of others beyond it, and write the report.

    Args:
        out: folder for report.html, report.json, figures/ and records/. An interrupted run continues from
            its records; jobs that crashed run again.
        level: "quick", about a minute, or "full", at most a quarter of an hour on two cores.
        part: "paper" for Zhou et al. 2022, "beyond" for the statements of other papers, or "all".
        only: ids of `STATEMENTS`; default: all of the part.
        fresh: whether to delete the folder's records first.
        runs: a folder of trained networks, from which figures 1 to 8 are added to the report.
        deep: where the rows about trained networks come from: "shipped", the records in the package, or
            "mini", which trains that grid anew in the folder `deep` of the report, for hours; an interrupted
            training continues there.
        data, data_dir, skip_shipped: with "mini", as of `ufm.deep.mini.plan`.
        progress: True shows a progress bar, False does not; None shows one in an interactive session.

    Returns: a `Reproduction`; `.consistent` tells whether every verdict is the expected one.

    Raises:
        ValueError: an unknown level, part or id; a folder that cannot be written or is of another version;
            what `ufm.deep.mini.plan` refuses.
        OSError: a file cannot be written, as on a full disk; finished jobs are kept. No images to train on.
        KeyboardInterrupt: Ctrl-C; the report of the finished jobs has been written.
    """
    began = time.perf_counter()
    _checks.choice("level", level, ("quick", "full"))
    _checks.choice("part", part, _TITLES)
    _checks.choice("deep", deep, get_args(Deep))
    rows = chosen((only,) if isinstance(only, str) else tuple(only), part)
    out = Path(out)
    if runs is not None and not Path(runs).is_dir():
        raise ValueError(f"runs: expected a folder of runs of ufm train, got {str(runs)!r}")
    plan = None if deep == "shipped" else _section_4.plan(out, data, data_dir, skip_shipped)
    _runner.open_folder(out, fresh=fresh)
    if plan is not None:
        rows = _section_4.trained(rows, plan, skip_shipped, progress)
    findings, stopped = _runner.run(out, rows, level, progress=progress)
    folder = out / "figures"
    whole = [finding for finding in findings if not finding.missing]
    drawn = {f.statement.id: figure for f in whole if (figure := _figures.save(f, folder)) is not None}
    theirs = () if runs is None or stopped else tuple(_figures.save_deep(Path(runs), folder))
    made = Reproduction(findings, out, level, part, time.perf_counter() - began, drawn, theirs)
    _write(made)
    if stopped:
        raise KeyboardInterrupt
    return made


def _write(made: Reproduction) -> None:
    data = made.to_dict()
    _schema.validate(data)
    _runner.write_whole(made.out / "report.json", json.dumps(data, allow_nan=False, indent=1) + "\n")
    _runner.write_whole(made.out / "report.html", _html.page(data, made.out))
