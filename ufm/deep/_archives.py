"""Files of images -> uint8 arrays (N, h, w, c) and labels: idx, pickles, folders and tars of classes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import lzma
import os
import pickle
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ufm._progress import Progress

#: part of the key of a decoded copy: raised when the decoding changes
VERSION = 2
IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: folder names above the classes: what a data set calls its parts
PARTS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
#: where a data set has no test part, every sixth image of a class is kept for testing (CIFAR's share)
TEST_EVERY = 6
#: what reading a broken archive may raise
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pickle.UnpicklingError)


class Arrays(NamedTuple):
    """A data set as read, before its name and constants are known."""

    train_images: np.ndarray  # (N, h, w, c) uint8
    train_labels: np.ndarray  # (N,) int32
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


# --- pickles and idx ------------------------------------------------------------------------------


class _Plain(pickle.Unpickler):
    """A reader of numbers and names only: a pickle from the internet may otherwise run any program."""

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
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no data")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def unpickle(stream: Any, source: str) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3, its keys as text.

    Raises:
        ValueError: truncated, not a pickle, or one that holds more than data.
    """
    try:
        content = _Plain(stream, encoding="bytes").load()
        return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in content.items()}
    except (*BROKEN, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(
            f"{source}: expected a pickled dictionary of arrays, got {error}; fetch it anew"
        ) from error


def words(names: Iterable[Any]) -> tuple[str, ...]:
    """Names that Python 2 pickled as bytes."""
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file of unsigned bytes, gzipped or not.

    Raises:
        ValueError: truncated or not an idx file.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (*BROKEN, OSError) as error:
        raise ValueError(f"{path}: expected a gzipped idx file, got {error}; fetch it anew") from error
    rank = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    shape = tuple(np.frombuffer(raw, ">u4", rank, 4).tolist()) if len(raw) >= 4 + 4 * rank else ()
    values = np.frombuffer(raw, np.uint8, offset=min(4 + 4 * rank, len(raw)))
    if not rank or values.size != int(np.prod(shape)):
        raise ValueError(
            f"{path}: expected an idx file of {shape or 'unsigned bytes'}, got {len(raw)} bytes; "
            "fetch it anew"
        )
    return values.reshape(shape)


# --- class folders --------------------------------------------------------------------------------


class Picture(NamedTuple):
    """One image file: which part and class it belongs to."""

    part: str  # "train", "test", "val" or ""
    label: str
    path: str
    pixels: np.ndarray  # (h, w, c) uint8


def read_class_folders(source: Path) -> Arrays:
    """`<part>/<class>/<image>` or `<class>/<image>` in a folder or tar; classes in alphabetical order.

    Parts are train and test; `val` is the test part where there is no other, and training data otherwise.
    Where there are no parts, every sixth image of a class is for testing.

    Raises:
        ValueError: no images, a file that is no image, images of different sizes, a part without a class.
    """
    pictures = _checked_pictures(source)
    parts = _parts(pictures, source)
    classes = tuple(sorted({p.label for p in pictures}))
    arrays: list[np.ndarray] = []
    for part in parts:
        absent = set(classes) - {p.label for p in part}
        if absent:
            raise ValueError(
                f"{source}: expected every class in train and in test, got none of {min(absent)} in one"
            )
        arrays += [
            np.stack([p.pixels for p in part]),
            np.array([classes.index(p.label) for p in part], np.int32),
        ]
    return Arrays(arrays[0], arrays[1], arrays[2], arrays[3], classes)


def read_classes(source: Path) -> dict[str, np.ndarray]:
    """Images of each class in a folder or tar of class folders, in the order of their paths, parts merged.

    Raises:
        ValueError: no images, a file that is no image, images of different sizes.
    """
    found: dict[str, list[Picture]] = {}
    for p in sorted(_checked_pictures(source), key=lambda p: p.path):
        found.setdefault(p.label, []).append(p)
    return {label: np.stack([p.pixels for p in pictures]) for label, pictures in found.items()}


def _checked_pictures(source: Path) -> list[Picture]:
    pictures = list(_pictures(source))
    if not pictures:
        raise ValueError(f"{source}: expected images in class folders (train/<class>/0001.png), got none")
    first = pictures[0]
    for p in pictures:
        if p.pixels.shape != first.pixels.shape:
            raise ValueError(
                f"{source}: expected images of one size, got {_size(first)} and {_size(p)}; resize them first"
            )
    return pictures


def _size(p: Picture) -> str:
    return f"{p.path} of {'x'.join(map(str, p.pixels.shape))}"


def _parts(pictures: list[Picture], source: Path) -> tuple[list[Picture], list[Picture]]:
    """Training and test pictures, each in the order of their paths."""
    found = {p.part for p in pictures}
    ordered = sorted(pictures, key=lambda p: (p.label, p.path))
    if found == {""}:
        count: dict[str, int] = {}
        parts: tuple[list[Picture], list[Picture]] = [], []
        for p in ordered:
            count[p.label] = count.get(p.label, 0) + 1
            parts[count[p.label] % TEST_EVERY == 0].append(p)
        return parts
    test = "test" if "test" in found else "val"
    if "" in found or not {"train", test} <= found:
        got = ", ".join(sorted(part or "<class>" for part in found))
        raise ValueError(
            f"{source}: expected the folders train and test (or val), or only classes, got {got}"
        )
    return [p for p in ordered if p.part != test], [p for p in ordered if p.part == test]


def _pictures(source: Path) -> Iterator[Picture]:
    grey: bool | None = None
    with Progress(f"decode {source.name}", 0) as bar:
        for done, (path, content) in enumerate(_files(source)):
            pixels, grey = _decode(content, str(path), grey)
            part = PARTS.get(path.parts[-3].lower(), "") if len(path.parts) > 2 else ""
            yield Picture(part, path.parts[-2], str(path), pixels)
            bar.update(0, f"{done + 1:,} images")


def _is_picture(path: PurePosixPath) -> bool:
    return path.suffix.lower() in IMAGES and not path.name.startswith(".") and len(path.parts) > 1


def _files(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Name and content of every image file of a folder or tar, in the order in which they lie there."""
    if source.is_dir():
        for file in sorted(source.rglob("*")):
            path = PurePosixPath(file.relative_to(source).as_posix())
            if file.is_file() and _is_picture(path):
                yield path, file.read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                stream = archive.extractfile(member) if member.isfile() and _is_picture(path) else None
                if stream is not None:
                    yield path, stream.read()
    except (*BROKEN, OSError) as error:
        raise ValueError(f"{source}: expected a tar of class folders, got {error}; fetch it anew") from error


def _decode(content: bytes, name: str, grey: bool | None) -> tuple[np.ndarray, bool]:
    """Pixels (h, w, c); the first image decides whether the set is grey (c = 1) or in colour (c = 3)."""
    from PIL import Image, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        deep = image.mode.startswith("I;16")
        grey = deep or image.mode in ("1", "L") if grey is None else grey
        if image.mode in ("I", "F"):
            raise ValueError("32 bits a pixel, which have no scale")
        if deep:  # Pillow would cut values off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except UnidentifiedImageError:
        raise ValueError(
            f"{name}: expected an image, got a file of no known format; remove the file or fetch it anew"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name}: expected an image, got {error}; remove the file or fetch it anew"
        ) from error
    return (pixels[:, :, None] if grey else pixels), grey


# --- decoded copies -------------------------------------------------------------------------------


def md5(path: Path) -> str:
    """The checksum that the sources publish."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fingerprint(source: Path) -> str:
    """What tells one state of a file or folder from another: names, sizes and times."""
    listed = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    digest = hashlib.sha256(f"{VERSION} {source.resolve()}".encode())
    for path in listed:
        facts = path.stat()
        digest.update(f"{path} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def cached(source: Path, cache: Path, read: Callable[[Path], Arrays]) -> Arrays:
    """`read(source)`, or its decoded copy from the last time; a broken copy is made anew."""
    copy = cache / "decoded" / f"{source.name.split('.')[0]}-{fingerprint(source)}.npz"
    with contextlib.suppress(Exception):  # a broken file may raise anything
        with copy.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            arrays = [held[name] for name in Arrays._fields]
        return Arrays(arrays[0], arrays[1], arrays[2], arrays[3], tuple(map(str, arrays[4])))
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
