"""Decoded copies of what took long to read, kept until the files or the rules of reading change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ufm.deep import _trees
from ufm.deep._archives import Arrays

#: part of the key of a decoded copy: raised when the rules of reading change
VERSION = 3


def fingerprint(source: Path, reader: str) -> str:
    """What tells one state of a file or folder from another, and one way to read it from another.

    Names, sizes and times of all files, those behind links too, and the names of folders: an empty class
    folder, added later, is to be seen.
    """
    tree = _trees.listed(source) if source.is_dir() else None
    files = {".": source} if tree is None else tree.files
    digest = hashlib.sha256(os.fsencode(f"{VERSION} {reader} {source.resolve()}\n"))
    for folder in [] if tree is None else tree.folders:
        digest.update(os.fsencode(f"{folder}/\n"))
    for path, file in files.items():
        facts = file.stat() if file.exists() else file.lstat()  # the second of a link to nothing
        digest.update(os.fsencode(f"{path} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}\n"))
    return digest.hexdigest()[:16]


def cached(source: Path, cache: Path, reader: str, read: Callable[[Path], Arrays]) -> Arrays:
    """`read(source)`, or its decoded copy from the last time; a broken copy is made anew.

    `reader` names the way of reading: one folder may be read as more than one data set.
    """
    copy = cache / "decoded" / f"{source.name.split('.')[0]}-{fingerprint(source, reader)}.npz"
    with contextlib.suppress(Exception):  # a broken file may raise anything
        with copy.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            arrays = Arrays(*(held[name] for name in Arrays._fields))
        return arrays._replace(classes=tuple(map(str, arrays.classes)), note=str(arrays.note))
    arrays_read = read(source)
    # no copy where none can be written: the next start decodes again
    with contextlib.suppress(OSError):
        _store(copy, arrays_read)
    return arrays_read


def _store(copy: Path, arrays: Arrays) -> None:
    """Written beside its place and renamed: whoever reads sees all of it or nothing."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=copy.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **(arrays._asdict() | {"classes": np.array(arrays.classes)}))
        os.replace(name, copy)
    finally:
        Path(name).unlink(missing_ok=True)
