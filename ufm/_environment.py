"""The environment variables of this package, UFM_*: read in one place and by one rule."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def switch(name: str, default: bool, remedy: str = "") -> bool:
    """Whether the variable `name` is on: 1, true, yes, on or 0, false, no, off, in any case.

    Unset, empty and blank mean `default`. Anything else is a mistake in the user's environment, which must
    not keep `import ufm` from working: it means `default`, too, and one line of warning says so.
    """
    given = os.environ.get(name, "")
    word = given.strip().lower()
    if word in _ON or word in _OFF:
        return word in _ON
    if word:
        meant = f"taken as {int(default)}, the default{'; ' + remedy if remedy else ''}"
        warn(f"{name}: expected one of {', '.join(_ON)}, {', '.join(_OFF)}, got {given!r}; {meant}")
    return default


def folder(name: str) -> Path | None:
    """The folder that the variable `name` holds, with ~ expanded; None where it is unset, empty or blank.

    Raises:
        ValueError: it names a file.
    """
    given = os.environ.get(name, "")
    if not given.strip():
        return None
    path = Path(given).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"{name}: expected a folder, got {given!r}, which is a file; unset it or name a folder"
        )
    return path


def warn(message: str) -> None:
    """One line, without the line of source code that Python adds where it can find one."""
    warnings.warn_explicit(message, UserWarning, filename="ufm", lineno=1)
