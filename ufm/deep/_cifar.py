"""The python archives of CIFAR-10 and CIFAR-100, packed or unpacked -> arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufm.deep import _archives
from ufm.deep._archives import Arrays


class Layout(NamedTuple):
    """The files and keys of an archive of CIFAR."""

    folder: str
    batches: tuple[str, ...]  # those for training, then that for testing
    meta: str
    labels: str  # key of the labels in a batch
    names: str  # key of the classes' names in meta
    K: int


def read_tar(path: Path, files: Layout) -> Arrays:
    """The pickles of the packed archive, without unpacking it."""
    wanted = [f"{files.folder}/{name}" for name in (*files.batches, files.meta)]
    return _stack(_archives.read_members(path, wanted), path, files)


def read_folder(place: Path, files: Layout) -> Arrays:
    content = {}
    for name in (*files.batches, files.meta):
        path = place / name
        if path.is_file():
            with path.open("rb") as stream:
                content[name] = _archives.unpickle(stream, str(path))
    return _stack(content, place, files)


def _stack(content: dict[str, Any], source: Path, files: Layout) -> Arrays:
    images, labels = [], []
    for name in files.batches:
        batch = content.get(name)
        if batch is None or "data" not in batch or files.labels not in batch:
            raise ValueError(
                f"{source}: expected {name} with data and {files.labels}, got none; download it again"
            )
        rows = np.asarray(batch["data"])
        if rows.ndim != 2 or rows.shape[1] != 3072 or rows.dtype != np.uint8:
            raise ValueError(
                f"{source}: expected rows of 3072 bytes (3x32x32) in {name}, got {rows.dtype} {rows.shape}"
            )
        images.append(np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))
        labels.append(np.asarray(batch[files.labels], np.int32))
    names = content.get(files.meta, {}).get(files.names, map(str, range(files.K)))
    return Arrays(
        np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1],
        _archives.words(names),
    )  # fmt: skip
