"""The machine: its description, its measured peaks, and the time that a function takes on it."""

from __future__ import annotations

import datetime
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]

_ALWAYS = ("ufm", "jax", "jaxlib", "optax", "numpy", "scipy")
_PEERS = ("torch", "cvxpy", "curvlinops-for-pytorch", "pyhessian")


def hardware() -> Row:
    """The hardware and the versions that a table was measured with; an absent peer has no version."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    versions = {name: _version(name) for name in (*_ALWAYS, *_PEERS)}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": cores(),
        "device": str(jax.devices()[0]),
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores() -> int:
    return os.cpu_count() or 1


def absent(error: ImportError) -> Row:
    """The row of a peer that is not installed."""
    return {"remark": f"{error.name} is not installed"}


# --- time -----------------------------------------------------------------------------------------


def timed(
    run: Callable[[], Any], *, warm: bool = True, enough: float = 1.0, most: int = 5
) -> tuple[float, Any]:
    """Median seconds of at most `most` runs (fewer once `enough` seconds are spent), and the last answer.

    `warm`: an uncounted run before these, which compiles.
    """
    if warm:
        run()
    times: list[float] = []
    while not times or (sum(times) < enough and len(times) < most):
        began = time.perf_counter()
        answer = run()
        times.append(time.perf_counter() - began)
    return statistics.median(times), answer


# --- the floor ------------------------------------------------------------------------------------


class Peaks(NamedTuple):
    """The highest rates measured on this machine."""

    float64: float  # operations per second of a 2000 x 2000 matrix product
    float32: float
    bandwidth: float  # bytes per second of a triad that no cache holds
    cache: int  # bytes of the largest cache of a core


@functools.cache
def peaks() -> Peaks:
    return Peaks(_matrix_peak("float64"), _matrix_peak("float32"), _bandwidth(), _cache())


def _best(run: Callable[[], Any], runs: int = 8) -> float:
    """The shortest time: a peak is the best run, not the median."""
    run()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _matrix_peak(dtype: str) -> float:
    """The rate of the faster of JAX's and PyTorch's matrix product."""
    n = 2000
    values = np.random.default_rng(0).normal(size=(n, n)).astype(dtype)
    a = jnp.asarray(values)
    product = jax.jit(lambda a: a @ a)
    seconds = [_best(lambda: product(a).block_until_ready())]
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(cores())
        t = torch.tensor(values)
        seconds.append(_best(lambda: t @ t))
    return 2 * n**3 / min(seconds)


def _bandwidth() -> float:
    """a <- b + 3 a in place: two arrays read and one written, 256 MB each."""
    size = 2**25
    triad = jax.jit(lambda a, b: b + 3.0 * a, donate_argnums=0)
    a, b = jnp.zeros(size), jnp.ones(size)

    def run() -> None:
        nonlocal a
        a = triad(a, b).block_until_ready()

    return 3 * 8 * size / _best(run)


def _cache() -> int:
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [x.read_text().strip() for x in folder.glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(x[:-1]) * units.get(x[-1], 1) for x in sizes), default=32 * 2**20)


def floor(seconds: float, operations: float, moved: float, held: float, dtype: str = "float64") -> Row:
    """`seconds` as a multiple of the least time that the operations and bytes take at the measured peaks.

    `moved` counts bytes between memory and cores as if no cache kept anything, `held` what is in use at a
    time: where the largest cache holds it, bytes bound nothing.
    """
    best = peaks()
    by_operations, by_bytes = operations / getattr(best, dtype), moved / best.bandwidth
    least = max(by_operations, by_bytes) if held > best.cache else by_operations
    return {
        "GFLOP": operations / 1e9,
        "GB moved": moved / 1e9,
        "MiB in use": held / 2**20,
        "peak GFLOP/s": getattr(best, dtype) / 1e9,
        "peak GB/s": best.bandwidth / 1e9,
        "reached GFLOP/s": operations / seconds / 1e9,
        "floor, operations": by_operations,
        "floor, bytes": by_bytes if held > best.cache else "in cache",
        "times the floor": seconds / least,
    }


# --- processes ------------------------------------------------------------------------------------


def alone(task: str, /, *, limit: float = 300.0, threads: int = 1, **arguments: Any) -> Row:
    """`module:function(**arguments)` in a process of its own, and the memory that process took.

    The function returns a row; `peak GiB` (the whole process) is added. Out of time, out of memory and a
    missing peer are rows with a remark. `threads` are OpenBLAS's: numpy's products and LAPACK.
    """
    code = f"from benchmarks.machine import answer; answer({task!r}, {arguments!r})"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    try:
        out = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"remark": f"not in {limit:g} s"}
    if out.returncode < 0:
        return {"remark": f"ended by signal {-out.returncode}"}
    if out.returncode:
        raise RuntimeError(f"{task}({arguments}):\n{out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def answer(task: str, arguments: Row) -> None:
    """What the process that `alone` starts runs."""
    module, _, name = task.partition(":")
    try:
        row = getattr(importlib.import_module(module), name)(**arguments)
        row["peak GiB"] = peak_memory()
    except ImportError as error:
        row = absent(error)
    print(json.dumps(row))


def peak_memory() -> float:
    """The peak memory of this process in GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's maximum is inherited from the process that started this one
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
