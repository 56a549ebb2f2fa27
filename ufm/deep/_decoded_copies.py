"""Decoded copies of data sets that take long to read, kept until their files or the reader change."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ufm import _files
from ufm.deep import _file_trees
from ufm.deep._archives import Arrays

#: part of the key of a decoded copy: raised when the reader changes
VERSION = 3


def fingerprint(source: Path, reader: str) -> str:
    """A hash that changes when a file or folder does, or when it is read in another way.

    It covers names, sizes and times of all files, links followed, and the names of folders, so that an
    empty class folder that is added later changes it.
    """
    tree = _file_trees.listed(source) if source.is_dir() else None
    files = {".": source} if tree is None else tree.files
    digest = hashlib.sha256(os.fsencode(f"{VERSION} {reader} {source.resolve()}\n"))
    for folder in [] if tree is None else tree.folders:
        digest.update(os.fsencode(f"{folder}/\n"))
    for path, file in files.items():
        facts = file.stat() if file.exists() else file.lstat()  # the second of a link to nothing
        digest.update(os.fsencode(f"{path} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}\n"))
    return digest.hexdigest()[:16]


def cached(source: Path, cache: Path, reader: str, read: Callable[[Path], Arrays]) -> Arrays:
    """`read(source)`, or the decoded copy of an earlier call; a broken copy is replaced.

    `reader` names the way of reading, because one folder may be read as more than one data set.
    """
    copy = cache / "decoded" / f"{source.name.split('.')[0]}-{fingerprint(source, reader)}.npz"
    with contextlib.suppress(Exception):  # a broken file may raise anything
        with copy.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            arrays = Arrays(*(held[name] for name in Arrays._fields))
        return arrays._replace(classes=tuple(map(str, arrays.classes)), note=str(arrays.note))
    arrays_read = read(source)
    # where no copy can be written, the next start decodes again
    with contextlib.suppress(OSError):
        _store(copy, arrays_read)
    return arrays_read


def _store(copy: Path, arrays: Arrays) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    named = arrays._asdict() | {"classes": np.array(arrays.classes)}
    _files.write_whole(copy, lambda stream: np.savez(stream, **named))
