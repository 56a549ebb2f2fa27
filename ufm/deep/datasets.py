"""SHELF of data sets: a name, a folder or a tar -> one `Dataset` of uint8 images and labels.

Images stay uint8 until the training step, which crops, flips and normalises on the device. Everything that
is read from a file of images is kept decoded in a cache folder, so that the second start takes a second.
"""

from __future__ import annotations

import dataclasses
import functools
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ufm import _checks
from ufm.deep import _archives
from ufm.deep._archives import Arrays
from ufm.deep._download import Archive, cache_dir, fetch

Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel, of pixels in [0, 1]

# The values of the paper's code (CIFAR-10, ImageNet) and the usual ones of the other sets.
CIFAR10: Constants = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100: Constants = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
IMAGENET: Constants = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MNIST: Constants = (0.1307,), (0.3081,)

#: the seed of the paper's code for its validation images
SPLIT_SEED = 1
#: miniImageNet, per class: the first 500 images are for training, the last 100 for testing
MINI_TRAIN, MINI_TEST, MINI_SIZE = 500, 100, 84


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels for training and testing.

    Attributes:
        train_images, test_images: (N, h, w, c) uint8.  train_labels, test_labels: (N,) int32 in 0..K-1.
        classes: the K names.
        mean, std: of each channel, for pixels in [0, 1]; subtracted and divided by.
        pad: pixels of zeros around an image of which a random crop is taken; 0: no crop.
        flip: whether the mirror image of an image is of the same class.
        source: where the images come from, in words.

    Raises:
        ValueError: arrays of other shapes or dtypes, train and test images of different sizes, a label
            outside 0..K-1.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            _check_images(f"{part}_images", images)
            _check_labels(f"{part}_labels", labels, len(images), len(self.classes))
            object.__setattr__(self, f"{part}_labels", np.asarray(labels, np.int32))
        if self.test_images.shape[1:] != self.image_shape:
            raise ValueError(
                f"test_images: expected images of {self._size}, the size of train_images, got "
                f"{'x'.join(map(str, self.test_images.shape[1:]))}; resize them first"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.image_shape[2]:
                raise ValueError(f"{name}: expected one a channel ({self.image_shape[2]}), got {self.mean}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def K(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @functools.cached_property
    def digest(self) -> str:
        """A checksum of images and labels: the same data, wherever and however it was read."""
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return f"{functools.reduce(lambda crc, a: zlib.crc32(a.tobytes(), crc), arrays, 0):08x}"

    @property
    def _size(self) -> str:
        return "x".join(map(str, self.image_shape))

    def __repr__(self) -> str:
        N = f"{len(self.train_images):,} + {len(self.test_images):,}"
        return f"{self.name}: {N} images of {self._size}, {self.K} classes"


def _check_images(name: str, images: np.ndarray) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        got = f"{images.dtype} {images.shape}"
        raise ValueError(f"{name}: expected uint8 images (N, height, width, channels), got {got}")


def _check_labels(name: str, labels: np.ndarray, N: int, K: int) -> None:
    if labels.shape != (N,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name}: expected {N} integers, one an image, got {labels.dtype} {labels.shape}")
    wrong = np.flatnonzero((labels < 0) | (labels >= K))
    if wrong.size:
        at = wrong[0]
        raise ValueError(f"{name}: expected classes in 0..{K - 1}, got {labels[at]} at image {at}")


def split(N: int, fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation: a shuffle of range(N), its first part for validation.

    The generator and seed of the paper's code, so that the split of CIFAR is the paper's image by image. It
    is not stratified: the classes of the training part differ in size.

    >>> from ufm.deep import datasets
    >>> train, validation = datasets.split(50_000)
    >>> train[:3].tolist(), validation[:3].tolist(), int(validation.sum())
    ([45573, 39021, 36044], [26247, 35067, 34590], 122592196)
    """
    order = np.arange(N)
    np.random.RandomState(SPLIT_SEED).shuffle(order)  # the paper's generator
    count = int(fraction * N)
    return order[count:], order[:count]


def measured(images: np.ndarray) -> Constants:
    """Mean and std of each channel over all pixels, for pixels in [0, 1]."""
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])]
    values = np.arange(256) / 255
    mean = [float(np.average(values, weights=n)) for n in counts]
    spread = [np.average((values - m) ** 2, weights=n) ** 0.5 for m, n in zip(mean, counts, strict=True)]
    return tuple(mean), tuple(float(s) or 1.0 for s in spread)


# --- the sets -------------------------------------------------------------------------------------


def digits(data_dir: Path | None = None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; every fifth is for testing. No download."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = split(len(images), 0.2)
    constants = measured(images[train])
    return Dataset(
        "digits", images[train], labels[train], images[test], labels[test], _digit_names(), *constants,
        source="scikit-learn's digits (UCI optical recognition of handwritten digits, test part)",
    )  # fmt: skip


def _digit_names() -> tuple[str, ...]:
    return tuple("0123456789")


_MNIST_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"


def _mnist_file(name: str, folder: Path) -> np.ndarray:
    """An idx file, unpacked or gzipped, in the folder or downloaded to it."""
    unpacked = folder / name
    if unpacked.exists():
        return _archives.read_idx(unpacked)
    return _archives.read_idx(fetch(Archive(f"{_MNIST_URL}/{name}.gz", _MNIST_FILES[name]), folder))


def _mnist_part(part: str, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    folder = data_dir or cache_dir() / "mnist"
    images = _mnist_file(f"{part}-images-idx3-ubyte", folder)
    labels = _mnist_file(f"{part}-labels-idx1-ubyte", folder).astype(np.int32)
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder}: expected one label an image in {part}-labels-idx1-ubyte, got {labels.shape} for "
            f"{len(images)} images; fetch both anew"
        )
    return images[..., None], labels


def mnist(data_dir: Path | None = None) -> Dataset:
    """MNIST, 60,000 + 10,000 digits of 28x28 pixels, from its four idx files."""
    train, test = _mnist_part("train", data_dir), _mnist_part("t10k", data_dir)
    return Dataset("mnist", *train, *test, _digit_names(), *MNIST, source="MNIST (official idx files)")


def mnist10k(data_dir: Path | None = None) -> Dataset:
    """The 10,000 images of MNIST's test file alone, every fifth for testing: real images, 1.6 MB."""
    images, labels = _mnist_part("t10k", data_dir)
    train, test = split(len(images), 0.2)
    return Dataset(
        "mnist10k", images[train], labels[train], images[test], labels[test], _digit_names(), *MNIST,
        source="MNIST's 10,000-image test file, split 8,000 + 2,000",
    )  # fmt: skip


_CIFAR_URL = "https://www.cs.toronto.edu/~kriz"


def cifar10(data_dir: Path | None = None) -> Dataset:
    """CIFAR-10 from the official python archive, packed or unpacked."""
    archive = Archive(f"{_CIFAR_URL}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
    batches = tuple(f"data_batch_{i}" for i in range(1, 6))
    arrays = _cifar(archive, "cifar-10-batches-py", batches, "test_batch", "labels", data_dir)
    return Dataset("cifar10", *arrays, *CIFAR10, pad=4, flip=True, source="CIFAR-10 (official archive)")


def cifar100(data_dir: Path | None = None) -> Dataset:
    """CIFAR-100 with its 100 fine labels, from the official python archive, packed or unpacked."""
    archive = Archive(f"{_CIFAR_URL}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")
    arrays = _cifar(archive, "cifar-100-python", ("train",), "test", "fine_labels", data_dir)
    return Dataset("cifar100", *arrays, *CIFAR100, pad=4, flip=True, source="CIFAR-100 (official archive)")


def _cifar(
    archive: Archive, unpacked: str, train: tuple[str, ...], test: str, key: str, data_dir: Path | None
) -> Arrays:
    folder = data_dir or cache_dir()
    for place in (folder / unpacked, folder):
        if (place / test).is_file():
            return _cifar_arrays({name: place / name for name in (*train, test)}, place, key)
    return _archives.cached(
        fetch(archive, folder), cache_dir(), lambda path: _cifar_tar(path, (*train, test), key)
    )


def _cifar_tar(path: Path, names: tuple[str, ...], key: str) -> Arrays:
    """The pickles of the packed archive, without unpacking it."""
    content: dict[str, Any] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    content[Path(member.name).name] = _archives.unpickle(stream, f"{path}, {member.name}")
    except (*_archives.BROKEN, OSError) as error:
        raise ValueError(f"{path}: expected a tar of pickles, got {error}; fetch it anew") from error
    return _cifar_stack(content, names, path, key)


def _cifar_arrays(files: dict[str, Path], place: Path, key: str) -> Arrays:
    """The unpacked pickles."""
    content = {}
    for name in (*files, "batches.meta", "meta"):
        path = place / name
        if path.is_file():
            with path.open("rb") as stream:
                content[name] = _archives.unpickle(stream, str(path))
    return _cifar_stack(content, tuple(files), place, key)


def _cifar_stack(content: dict[str, Any], names: tuple[str, ...], source: Path, key: str) -> Arrays:
    images, labels = [], []
    for name in names:
        batch = content.get(name)
        if batch is None or "data" not in batch or key not in batch:
            raise ValueError(f"{source}: expected {name} with data and {key}, got none; fetch it anew")
        rows = np.asarray(batch["data"])
        if rows.ndim != 2 or rows.shape[1] != 3072 or rows.dtype != np.uint8:
            raise ValueError(
                f"{source}: expected rows of 3072 bytes (3x32x32) in {name}, got {rows.dtype} {rows.shape}"
            )
        images.append(np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))
        labels.append(np.asarray(batch[key], np.int32))
    K = 10 if key == "labels" else 100
    meta = content.get("batches.meta", content.get("meta", {}))
    classes = _archives.words(meta.get("label_names", meta.get("fine_label_names", map(str, range(K)))))
    return Arrays(np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1], classes)


def miniimagenet(data_dir: Path | None = None) -> Dataset:
    """miniImageNet: 100 classes, the 64 + 16 + 20 of its split merged; 500 + 100 images of each, 84x84.

    From the pickles mini-imagenet-cache-{train,val,test}.pkl or from folders of class folders (with or
    without train, val and test above them) in `data_dir`.
    """
    folder = data_dir or cache_dir() / "miniimagenet"
    pickles = [folder / f"mini-imagenet-cache-{part}.pkl" for part in ("train", "val", "test")]
    missing = [path for path in pickles if not path.is_file()]
    if len(missing) in (1, 2):
        raise ValueError(f"{missing[0]}: expected all three pickles of the split, got no such file")
    if missing and not folder.is_dir():
        raise ValueError(
            f"{folder}: expected mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl or class folders, got "
            "no such folder; there is no official download: pass data_dir, the folder that holds them"
        )
    arrays = (
        _mini_arrays(_mini_pickles(pickles), folder)
        if not missing
        else _archives.cached(
            folder, cache_dir(), lambda path: _mini_arrays(_archives.read_classes(path), path)
        )
    )
    return Dataset("miniimagenet", *arrays, *IMAGENET, pad=4, flip=True, source="miniImageNet")


def _mini_pickles(paths: list[Path]) -> dict[str, np.ndarray]:
    """Images of each class."""
    found: dict[str, np.ndarray] = {}
    for path in paths:
        with path.open("rb") as stream:
            content = _archives.unpickle(stream, str(path))
        if not {"image_data", "class_dict"} <= set(content):
            raise ValueError(f"{path}: expected image_data and class_dict, got {', '.join(content)}")
        images = np.asarray(content["image_data"])
        for name, rows in content["class_dict"].items():
            found[_archives.words([name])[0]] = images[np.asarray(rows)]
    return found


def _mini_arrays(found: dict[str, np.ndarray], source: Path) -> Arrays:
    least = MINI_TRAIN + MINI_TEST
    for name, images in found.items():
        if images.shape[1:] != (MINI_SIZE, MINI_SIZE, 3) or len(images) < least:
            raise ValueError(
                f"{source}: expected {least} images of {MINI_SIZE}x{MINI_SIZE}x3 in class {name}, "
                f"got {images.shape}"
            )
    classes = tuple(sorted(found))
    if len(classes) < 2:
        raise ValueError(f"{source}: expected class folders or pickles, got {len(classes)} classes")
    K = np.arange(len(classes), dtype=np.int32)
    return Arrays(
        np.concatenate([found[name][:MINI_TRAIN] for name in classes]), np.repeat(K, MINI_TRAIN),
        np.concatenate([found[name][-MINI_TEST:] for name in classes]), np.repeat(K, MINI_TEST), classes,
    )  # fmt: skip


def class_folders(source: Path) -> Dataset:
    """Any folder or tar of class folders; mean and std are measured on its training images."""
    arrays = _archives.cached(source, cache_dir(), _archives.read_class_folders)
    name = source.name.split(".")[0]
    constants = measured(arrays.train_images)
    return Dataset(name, *arrays, *constants, pad=4, flip=True, source=f"class folders {source.name}")


#: The shelf: tests, the command line and the README iterate it.
DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "mnist10k": mnist10k,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "miniimagenet": miniimagenet,
}


def get(data: str | Path | Dataset, *, data_dir: str | Path | None = None) -> Dataset:
    """A `Dataset` from a name of `DATASETS`, from the path of a folder or tar of class folders, or itself.

    Args:
        data_dir: the folder that holds the set's files, or to which they are downloaded.  Default: the
            folder UFM_DATA, or the system's cache folder.

    Raises:
        ValueError: an unknown name (the known are listed), a file that is truncated, of another checksum or
            format, a label out of range, images of different sizes.  ConnectionError: no download.
    """
    if isinstance(data, Dataset):
        return data
    folder = None if data_dir is None else Path(data_dir)
    try:
        name = _checks.choice("data", data, DATASETS)
    except ValueError as error:
        if isinstance(data, str | Path) and Path(data).exists():
            return class_folders(Path(data))
        raise ValueError(f"{error}; or the path of a folder or tar of class folders") from None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"data_dir: expected a folder, got {str(folder)!r}; make it, or leave data_dir out")
    return DATASETS[name](folder)
