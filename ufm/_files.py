"""Writing files, and the provenance of what is written: versions, source code and hardware.

Every file appears under its name only when it is complete and on the disk, so that a crash or a full disk
leaves the previous version untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import jax

from ufm._version import __version__


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write(stream)` fill a temporary file beside `path`, flush it to the disk, and rename it.

    Raises:
        OSError: the file cannot be written; `path` is as it was before.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # also flush the new name, on systems that can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    write_whole(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path, tree: Any, indent: int | None = 1) -> None:
    """Write strict JSON: a NaN or an infinity raises ValueError and never reaches the file."""
    write_text(path, json.dumps(tree, allow_nan=False, indent=indent) + "\n")


# --- provenance -----------------------------------------------------------------------------------

#: the folder of the package's source code
SOURCES = Path(__file__).parent


def source_digest(files: Iterable[Path]) -> str:
    """A hash of source files, names included: equal digests mean equal code."""
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(SOURCES).as_posix()
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions of this package and of JAX, on which numbers depend."""
    jaxlib = importlib.metadata.version("jaxlib")
    return {"ufm": __version__, "jax": jax.__version__, "jaxlib": jaxlib}


def hardware() -> dict[str, str | int | None]:
    """The machine and the device that JAX computes on, on which times depend."""
    devices = jax.devices()
    return {
        "device": devices[0].device_kind,
        "backend": devices[0].platform,
        "devices": len(devices),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The name of the processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
