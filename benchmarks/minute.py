"""The first minute: what a new user waits for, with an empty and with a filled compilation cache."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.machine import Row

_UFM = str(Path(sys.executable).with_name("ufm"))
_SECOND = """
import time, ufm
ufm.solve_ufm("ls", K=10, d=64)
began = time.perf_counter()
ufm.solve_ufm("fl", K=10, d=64)
print(time.perf_counter() - began)
"""

#: what is run, as arguments of a process; {out} is a new folder
COMMANDS: dict[str, Sequence[str]] = {
    "ufm.solve_ufm('ls', K=10, d=64) in a script": (
        sys.executable, "-c", "import ufm; ufm.solve_ufm('ls', K=10, d=64)",
    ),
    "ufm verify --loss all": (_UFM, "verify", "--loss", "all"),
    "ufm reproduce --quick": (_UFM, "reproduce", "--quick", "--out", "{out}"),
}  # fmt: skip


def rows(quick: bool) -> Iterator[Row]:
    """Medians over processes. Where the cache is cold, each run has an empty one."""
    runs = 1 if quick else 5
    yield {"what": "import ufm, after import jax", "compilation cache": "none"} | _imports(runs)
    for what, command in COMMANDS.items():
        with tempfile.TemporaryDirectory() as kept:
            _seconds(command, kept)
            for cache, folder in (("cold", None), ("warm", kept)):
                times = [_seconds(command, folder) for _ in range(runs)]
                yield {"what": what, "compilation cache": cache} | _median(times)
    what = "another loss at the same shapes, in the same process"
    yield {"what": what, "compilation cache": "cold"} | _median([_second_loss() for _ in range(runs)])


def _median(times: list[float]) -> Row:
    return {"seconds": statistics.median(times), "runs": len(times)}


def _run(command: Sequence[str], cache: str) -> str:
    with tempfile.TemporaryDirectory() as out:
        words = [word.format(out=out) for word in command]
        env = os.environ | {"XDG_CACHE_HOME": cache}
        return subprocess.run(words, env=env, cwd=out, capture_output=True, text=True, check=True).stdout


def _seconds(command: Sequence[str], cache: str | None) -> float:
    with tempfile.TemporaryDirectory() as empty:
        began = time.perf_counter()
        _run(command, cache or empty)
        return time.perf_counter() - began


def _second_loss() -> float:
    with tempfile.TemporaryDirectory() as empty:
        return float(_run((sys.executable, "-c", _SECOND), empty))


def _imports(runs: int) -> Row:
    """The two are timed in turn, because a machine's speed drifts by more than their difference."""
    both = {"import jax": [0.0], "import jax, ufm": [0.0]}
    for _ in range(3 * runs):
        for code, times in both.items():
            times.append(_seconds((sys.executable, "-c", code), None))
    without, with_ufm = (statistics.median(times[1:]) for times in both.values())
    return {"seconds": with_ufm - without, "runs": 3 * runs}
