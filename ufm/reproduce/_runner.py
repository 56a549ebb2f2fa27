"""The stage statements -> records: each job runs once and leaves a file; an interrupted run continues there.

OUT/reproduce.json            the version, source code and JAX that the records belong to
OUT/records/quick/ID/*.json   one file for each finished job, complete or absent
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
#: the names that a report writes in its folder
OURS = ("report.html", "report.json", "figures", RECORDS)


def plain(value: object) -> Any:
    """`value` in the types of JSON: Python's numbers, lists for tuples, None for NaN and infinity."""
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
    """Write a file, and make its folder; after a crash or on a full disk the old file is still there.

    Raises:
        OSError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _files.write_text(file, text)
    except OSError as error:
        raise OSError(f"{file}: {error.strerror or error}; what was finished before is kept") from error


# --- the folder -------------------------------------------------------------------------------------


@functools.cache  # of the code that is running, even if its files change meanwhile
def fingerprint() -> dict[str, str]:
    """What records are valid for: the version, a hash of the code that measures, JAX and its precision."""
    root, skipped = _files.SOURCES, ("deep", "_cli")
    files = [f for f in root.rglob("*.py") if f.relative_to(root).parts[0] not in skipped]
    found = _files.versions()
    precision = f"float{jax.numpy.result_type(float).itemsize * 8}"
    code = _files.source_digest(files)
    return {"ufm": found["ufm"], "code": code, "jax": found["jax"], "dtype": precision}


def open_folder(out: Path, *, fresh: bool = False) -> None:
    """Claim the folder for reports of this version, or refuse it.

    Raises:
        ValueError: the folder cannot be written, or it holds a report of another version.
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
    if fresh and manifest.exists():  # records are deleted only where a manifest shows that they are records
        shutil.rmtree(out / RECORDS, ignore_errors=True)
    write_whole(manifest, json.dumps(mine, indent=2) + "\n")


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- the jobs ---------------------------------------------------------------------------------------


def file_of(out: Path, level: Level, row: Row, job: Job) -> Path:
    """The file of a job's record."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", job.name).strip("-")
    mark = hashlib.sha256(job.name.encode()).hexdigest()[:6]  # two names may have the same words
    return out / RECORDS / level / row.id / f"{words}-{mark}.json"


def kept(file: Path) -> Record | None:
    """The record of a finished job; None if there is none, the job crashed, or the file is damaged."""
    try:
        record = Record.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if record.error else record


def measure(row: Row, job: Job) -> Record:
    """Run a job; an exception becomes the error of its record."""
    began = time.perf_counter()
    try:
        outcome, error = job.measure(), ""
    except Exception:  # the other jobs still run
        outcome, error = Outcome(()), traceback.format_exc()
    record = Record(row.id, job.name, time.perf_counter() - began, outcome, error)
    return Record.from_dict(plain(record.to_dict()))  # as a resumed run reads it


class Run(NamedTuple):
    """The findings of a run."""

    findings: tuple[Finding, ...]
    stopped: bool  # by Ctrl-C before the last job finished


def run(out: Path, rows: Sequence[Row], level: Level, *, progress: bool | None = None) -> Run:
    """Run every job that has no record yet, until the last one or Ctrl-C.

    Raises:
        OSError: a record cannot be written, as on a full disk; earlier records are kept.
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
    # each program runs a few times at this level, and optimising it would take most of the time
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
    """The records in the order in which the row lists its jobs."""
    by_name = {record.job: record for record in records}
    names = [job.name for job in row.jobs(level)]
    done = tuple(by_name[name] for name in names if name in by_name)
    return Finding(row, done, len(names) - len(done))


class _Clock:
    """Estimates the time left from the costs of the jobs and the pace of the finished ones."""

    def __init__(self, costs: list[float]) -> None:
        self._costs, self._began = costs, time.perf_counter()

    def left(self, done: int) -> str:
        """The estimate in words, when `done` jobs are finished."""
        spent, ahead = sum(self._costs[:done]), sum(self._costs[done:])
        pace = (time.perf_counter() - self._began) / spent if spent > 2 else 1.0
        seconds = math.ceil(ahead * pace)
        return f"{seconds // 60}:{seconds % 60:02d} left"
