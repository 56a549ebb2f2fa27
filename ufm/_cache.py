"""The compilation cache: what one process has compiled, the next one only reads.

JAX has such a cache and leaves it off. Importing `ufm` turns it on, in the user's cache folder, where the
user has not set one; nothing is read or made before the first compilation.
"""

from __future__ import annotations

import os
import platform
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ufm import _environment

_REMEDY = "another folder is set by JAX_COMPILATION_CACHE_DIR"


def default_folder() -> Path | None:
    """ufm/xla/PROCESSOR in the user's cache folder; None where there is no home folder to hold one."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    except RuntimeError:  # no HOME, and a user without an entry in the system's list
        return None
    return home / "ufm" / "xla" / _processor()


def _processor() -> str:
    """The architecture and a hash of its instruction sets.

    XLA compiles for the processor at hand and JAX's key does not name it: machines that share a home folder
    would read programs of one another, with instructions that they do not have.
    """
    kind = platform.machine() or "unknown"
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            sets = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        return kind
    return f"{kind}-{zlib.crc32(sets.encode()):08x}"


def keep_compiled_programs() -> None:
    """Keep compiled programs in `default_folder`, unless UFM_CACHE is off or JAX has a folder already."""
    folder = default_folder()
    if _folder() is not None or folder is None:
        return
    if not _environment.switch("UFM_CACHE", True, _REMEDY):
        return
    _update("jax_compilation_cache_dir", str(folder))
    keep_small_programs()


def keep_small_programs() -> None:
    """Keep programs of every size: many compile in less than JAX's threshold of a second, and they add up.

    If a file of the cache cannot be used, one line says so, once.
    """
    folder = _folder()
    done = any(isinstance(pattern, _Complaints) for _, pattern, *_ in warnings.filters)
    if folder is None or done or not _environment.switch("UFM_CACHE", True, _REMEDY):
        return
    _update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", "replaced below", UserWarning)
    action, _, category, module, line = warnings.filters[0]
    complaints: Any = _Complaints(Path(folder))  # a filter only asks its pattern whether it matches
    warnings.filters[0] = (action, complaints, category, module, line)  # type: ignore[index]


def _folder() -> str | None:
    """JAX's own, from its configuration or environment."""
    found: str | None = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (mypy does not see it)
    return found


def _update(name: str, value: Any) -> None:
    update: Callable[[str, Any], None] = jax.config.update
    update(name, value)


class _Complaints:
    """JAX's warnings about files of the cache, one for every program, in the place of a filter's pattern.

    JAX works on without the file. The first such warning becomes one line of our own, and all are suppressed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._told = folder, False

    def match(self, text: str) -> bool:
        """Whether the warning is one of these."""
        about, _, rest = text.partition(" persistent compilation cache entry for '")
        if about not in ("Error reading", "Error writing"):
            return False
        name, _, reason = rest.partition("'")
        if about == "Error reading":
            self._forget(name)
        if not self._told:
            self._told = True
            why = " ".join(reason.lstrip(": ").split())[:200]
            where = f"a compiled program could not be kept in or read from {str(self._folder)!r} ({why})"
            remedy = "delete the folder, name another in JAX_COMPILATION_CACHE_DIR, or set UFM_CACHE=0"
            print(f"ufm: {where}; going on without; {remedy}", file=sys.stderr)
        return True

    def _forget(self, name: str) -> None:
        """Remove the program's damaged files: JAX never writes over one, and would compile at every start."""
        for file in self._folder.glob(f"{name}-*-cache"):
            try:
                file.unlink()
            except OSError:
                return
