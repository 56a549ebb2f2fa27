"""The compilation cache: a second start compiles nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def keep_compiled_programs() -> None:
    """JAX's persistent cache in the user's cache folder, so that a second start compiles nothing."""
    if os.environ.get("UFM_CACHE", "1") == "0":
        return
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ufm" / "xla"
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return  # works without
    update: Callable[[str, Any], None] = jax.config.update
    update("jax_compilation_cache_dir", str(folder))
    update("jax_persistent_cache_min_compile_time_secs", 0.0)
    update("jax_persistent_cache_min_entry_size_bytes", -1)
