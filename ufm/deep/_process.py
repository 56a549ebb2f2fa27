"""Set-up of a process before it trains: its memory, its devices, and the other processes of the run."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

import jax

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory; returns whether it can.

    Every step frees its activations and allocates them again. By default the C library returns them to the
    system, which then provides zeroed pages: a fifth of the processor time of a step of wrn18 on a CPU. The
    price is that the process keeps the largest size that it has reached.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    # one arena, because the arenas of threads cannot hold large blocks and map each of them
    return all(mallopt(*pair) for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))


def make_cpu_devices(count: int | None = None) -> None:
    """Create this number of devices if JAX computes on the CPU, where a convolution uses only one core.

    None: one for each core that this process may use.
    """
    if count is None:
        affinity = getattr(os, "sched_getaffinity", None)  # not on every system
        count = len(affinity(0)) if affinity else os.cpu_count() or 1
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has initialised its devices already
        _update("jax_num_cpu_devices", count)


def join(place: str) -> None:
    """Join the processes of a run: "auto" asks the cluster, "HOST:PORT,i/n" is the i-th of n processes.

    Raises:
        ValueError: another text, no cluster that JAX detects, or the processes do not find each other.
    """
    if jax.distributed.is_initialized():
        return
    given = {} if place == "auto" else _place(place)
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"distributed: expected processes that find each other, got {error}; auto is for clusters that "
            "JAX detects (Slurm, Open MPI, Kubernetes, TPU), HOST:PORT,i/n for others"
        ) from error


def _place(text: str) -> dict[str, Any]:
    address, _, share = text.rpartition(",")
    index, _, count = share.partition("/")
    host, _, port = address.rpartition(":")
    if not (host and all(part.isdigit() for part in (port, index, count)) and 1 <= int(index) <= int(count)):
        raise ValueError(f"distributed: expected auto, or HOST:PORT,i/n with 1 <= i <= n, got {text!r}")
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index) - 1}


_update: Any = jax.config.update
