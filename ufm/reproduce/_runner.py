"""The stage statements -> records: each job once, kept in a file when done, so that any run can go on.

OUT/reproduce.json            whose folder this is: version, code, JAX
OUT/records/quick/ID/*.json   one file a finished job, written whole or not at all
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm import _compile, _files
from ufm._progress import Progress
from ufm.reproduce._records import Finding, Job, Level, Outcome, Record, Row

MANIFEST = "reproduce.json"
RECORDS = "records"
#: what a report of ours leaves in its folder
OURS = ("report.html", "report.json", "figures", RECORDS)


def plain(value: Any) -> Any:
    """`value` as JSON has it: numpy's numbers as Python's, tuples as lists, what is not finite as None."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def write_whole(file: Path, text: str) -> None:
    """Write a file in a folder that is made; a crash or a full disk leaves the old file.

    Raises:
        OSError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _files.write_text(file, text)
    except OSError as error:
        raise OSError(f"{file}: {error.strerror or error}; what was finished before is kept") from error


# --- whose folder -----------------------------------------------------------------------------------


@functools.cache  # the code that runs, whatever becomes of its files meanwhile
def fingerprint() -> dict[str, str]:
    """Version, a hash of the code that measures, JAX, and its precision: records of another are no use."""
    root, skipped = _files.SOURCES, ("deep", "_cli")
    files = [f for f in root.rglob("*.py") if f.relative_to(root).parts[0] not in skipped]
    found = _files.versions()
    precision = f"float{jax.numpy.result_type(float).itemsize * 8}"
    code = _files.source_digest(files)
    return {"ufm": found["ufm"], "code": code, "jax": found["jax"], "dtype": precision}


def open_folder(out: Path, *, fresh: bool = False) -> None:
    """Make the folder ours, or refuse it.

    Raises:
        ValueError: it cannot be written, or holds a report of another version.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"out: expected a folder that can be written, got {str(out)!r} ({why})") from None
    manifest, mine = out / MANIFEST, fingerprint()
    theirs = _read(manifest)
    if theirs == mine and not fresh:
        return
    taken = manifest.exists() or any((out / name).exists() for name in OURS)
    if taken and not fresh:
        differs = [k for k in mine if theirs.get(k) != mine[k]] if theirs else ["no record of its version"]
        raise ValueError(
            f"out: expected a new folder or a report of this version, got {str(out)!r} of another "
            f"({', '.join(differs)}); choose another folder, or --fresh to measure everything again"
        )
    if fresh and manifest.exists():  # only what a manifest says is ours is thrown away
        shutil.rmtree(out / RECORDS, ignore_errors=True)
    write_whole(manifest, json.dumps(mine, indent=2) + "\n")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- the jobs ---------------------------------------------------------------------------------------


def file_of(out: Path, level: Level, row: Row, job: Job) -> Path:
    """Where a job's record is."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", job.name).strip("-")
    mark = hashlib.sha256(job.name.encode()).hexdigest()[:6]  # two names may read alike
    return out / RECORDS / level / row.id / f"{words}-{mark}.json"


def kept(file: Path) -> Record | None:
    """A finished job's record, None where there is none, it crashed, or the file is damaged."""
    try:
        record = Record.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if record.error else record


def measure(row: Row, job: Job) -> Record:
    """Run a job; what it raises is its record's error."""
    began = time.perf_counter()
    try:
        outcome, error = job.measure(), ""
    except Exception:  # one claim that crashes must not take the others along
        outcome, error = Outcome(()), traceback.format_exc()
    record = Record(row.id, job.name, time.perf_counter() - began, outcome, error)
    return Record.from_dict(plain(record.to_dict()))  # what a resumed run reads


class Run(NamedTuple):
    """What the jobs found."""

    findings: tuple[Finding, ...]
    stopped: bool  # by Ctrl-C, before the last job


def run(out: Path, rows: Sequence[Row], level: Level, *, progress: bool | None = None) -> Run:
    """Every job of the rows that has no record yet, until the last one or Ctrl-C.

    Raises:
        OSError: a record cannot be written (a full disk); those before are kept.
    """
    plan = [(row, job) for row in rows for job in row.jobs(level)]
    found: dict[str, list[Record]] = {row.id: [] for row in rows}
    waiting = []
    for row, job in plan:
        record = kept(file_of(out, level, row, job))
        if record is None:
            waiting.append((row, job))
        else:
            found[row.id].append(record)
    clock, stopped = _Clock([job.cost for _, job in waiting]), False
    # at the quick level most of the time would go into optimising programs that run a few times
    compiled = _compile.instantly() if level == "quick" else contextlib.nullcontext()
    with Progress("reproduce", len(plan), progress, at_once=bool(waiting)) as bar, compiled:
        try:
            for i, (row, job) in enumerate(waiting):
                bar.update(len(plan) - len(waiting) + i, f"{clock.left(i)}  {row.id}: {job.name}")
                record = measure(row, job)
                text = json.dumps(plain(record.to_dict()), allow_nan=False)
                write_whole(file_of(out, level, row, job), text)
                found[row.id].append(record)
        except KeyboardInterrupt:
            stopped = True
    return Run(tuple(_finding(row, level, found[row.id]) for row in rows), stopped)


def _finding(row: Row, level: Level, records: list[Record]) -> Finding:
    """Records as the row lists its jobs, whatever was resumed."""
    by_name = {record.job: record for record in records}
    names = [job.name for job in row.jobs(level)]
    done = tuple(by_name[name] for name in names if name in by_name)
    return Finding(row, done, len(names) - len(done))


class _Clock:
    """The time left, from the jobs' costs and what the finished ones took."""

    def __init__(self, costs: list[float]) -> None:
        self._costs, self._began = costs, time.perf_counter()

    def left(self, done: int) -> str:
        """In words, before job `done`."""
        spent, ahead = sum(self._costs[:done]), sum(self._costs[done:])
        pace = (time.perf_counter() - self._began) / spent if spent > 2 else 1.0
        seconds = math.ceil(ahead * pace)
        return f"{seconds // 60}:{seconds % 60:02d} left"
