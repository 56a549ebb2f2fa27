"""What a process sets up before it trains: its memory, its devices, the processes beside it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

import jax

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed; whether it can.

    A step frees its activations and takes them again. By default each of them goes back to the system and
    comes as new zeroed pages: a fifth of the processor time of a step of wrn18 on a CPU. The process then
    stays as large as it has once been.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    # one arena, because those of threads cannot hold large blocks and map them one by one
    return all(mallopt(*pair) for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))


def make_cpu_devices(count: int) -> None:
    """Where JAX computes on the CPU, so many devices of it: convolutions keep but one core each busy."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has looked for its devices already
        _update("jax_num_cpu_devices", count)


def join(place: str) -> None:
    """Become one of the processes of a run: "auto" asks the cluster, "HOST:PORT,i/n" is the i-th of n.

    Raises:
        ValueError: neither, no cluster that JAX knows, or processes that do not meet.
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
