"""Official files of data sets -> arrays: idx files and pickles, found by their names."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

#: exceptions that reading a damaged archive may raise
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
    pickle.UnpicklingError, struct.error, OverflowError,
)  # fmt: skip


class Arrays(NamedTuple):
    """A data set as read, before its name and constants are known."""

    train_images: np.ndarray  # (N, h, w, c) uint8
    train_labels: np.ndarray  # (N,) int32
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    note: str = ""  # what was skipped


def md5(path: Path) -> str:
    """The checksum that the sources publish."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# --- pickles --------------------------------------------------------------------------------------


def _dtype(kind: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    """Converts the 0 and 1 in pickles of old NumPy, such as the CIFAR files, of which NumPy 2.4 warns."""
    return np.dtype(kind, bool(align), bool(copy))


class _Plain(pickle.Unpickler):
    """Reads numbers and names only, because a pickle from the internet may run any program."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
            *(
                (f"numpy.{core}.multiarray", f)
                for core in ("core", "_core")
                for f in ("_reconstruct", "scalar")
            ),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, but only plain arrays are allowed")
        if name == "dtype":
            return _dtype
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def unpickle(stream: IO[bytes], source: str) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3, its keys as text.

    Raises:
        ValueError: truncated, not a pickle, or one that holds more than data.
    """
    try:
        content = _Plain(stream, encoding="bytes").load()
        return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in content.items()}
    except (*BROKEN, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(
            f"{source}: expected a pickled dictionary of arrays, got {error}; download it again"
        ) from error


def words(names: Iterable[object]) -> tuple[str, ...]:
    """Names as text, also those that Python 2 pickled as bytes."""
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def read_members(path: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The pickles of these names in a tar, by their file names; no other member is read.

    Raises:
        ValueError: not a tar, truncated, or with a pickle that is damaged or holds more than data.
    """
    wanted = {PurePosixPath(name) for name in names}
    content: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if PurePosixPath(member.name) in wanted else None
                if stream is not None:
                    name = PurePosixPath(member.name).name
                    content[name] = unpickle(stream, f"{path}, {member.name}")
    except (*BROKEN, OSError) as error:
        raise ValueError(f"{path}: expected a tar of pickles, got {error}; download it again") from error
    return content


# --- idx ------------------------------------------------------------------------------------------


def idx_names(name: str) -> tuple[str, ...]:
    """The names under which an unpacked idx file is found: some programs unpack `-idx3-` to `.idx3-`.

    >>> from ufm.deep import _archives
    >>> _archives.idx_names("t10k-labels-idx1-ubyte")
    ('t10k-labels-idx1-ubyte', 't10k-labels.idx1-ubyte')
    """
    return name, re.sub(r"-(idx\d-ubyte)$", r".\1", name)


def find_idx(name: str, places: Iterable[Path]) -> np.ndarray | None:
    """The array of an unpacked idx file or of one in a zip, in the first of the folders that has it.

    Raises:
        ValueError: truncated, not an idx file, or not a zip.
    """
    names = idx_names(name)
    for folder in places:
        for path in (folder / each for each in names):
            if path.is_file():
                return read_idx(path)
        for path in sorted(folder.glob("*.zip")):
            found = _idx_in_zip(path, {each + ending for each in names for ending in ("", ".gz")})
            if found is not None:
                return found
    return None


def _idx_in_zip(path: Path, names: set[str]) -> np.ndarray | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename.replace("\\", "/"))
                if name.name in names and not info.is_dir():
                    raw = archive.read(info)
                    raw = gzip.decompress(raw) if name.suffix == ".gz" else raw
                    return _idx(raw, f"{path}, {name}")
    except (*BROKEN, OSError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError(f"{path}: expected a zip of idx files, got {error}; download it again") from error
    return None


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file of unsigned bytes, gzipped or not.

    Raises:
        ValueError: truncated or not an idx file.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (*BROKEN, OSError) as error:
        raise ValueError(f"{path}: expected a gzipped idx file, got {error}; download it again") from error
    return _idx(raw, str(path))


def _idx(raw: bytes, source: str) -> np.ndarray:
    rank = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    shape = tuple(np.frombuffer(raw, ">u4", rank, 4).tolist()) if len(raw) >= 4 + 4 * rank else ()
    values = np.frombuffer(raw, np.uint8, offset=min(4 + 4 * rank, len(raw)))
    if not rank or values.size != int(np.prod(shape)):
        raise ValueError(
            f"{source}: expected an idx file of {shape or 'unsigned bytes'}, got {len(raw)} bytes; "
            "download it again"
        )
    return values.reshape(shape)
