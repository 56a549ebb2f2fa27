"""SHELF of data sets: a name, a folder, a tar or a zip -> one `Dataset` of uint8 images and labels.

The official files, and which of them are read:

- MNIST and Fashion-MNIST: four idx files each (`train-images-idx3-ubyte`, ...), see `mnist`.
- CIFAR-10 and CIFAR-100: a tar of pickles of Python 2 with other files between them, see `cifar10`.
- miniImageNet: pickles, csv files beside a folder of images, or class folders, see `miniimagenet`.
- Tiny ImageNet and all other folders of images: see `class_folders`.

Images stay uint8 until the training step, which crops, flips and normalises on the device. Decoded images
are kept in a cache folder, so that the second start takes a second.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ufm import _checks
from ufm.deep import _archives, _cifar, _class_folders, _miniimagenet
from ufm.deep._archives import Arrays
from ufm.deep._decoded_copies import cached
from ufm.deep._download import Archive, cache_dir, fetch

Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel, of pixels in [0, 1]

# The values of the paper's code (CIFAR-10, ImageNet) and the customary ones of the other sets.
CIFAR10: Constants = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100: Constants = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
IMAGENET: Constants = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MNIST: Constants = (0.1307,), (0.3081,)
FASHION_MNIST: Constants = (0.2860,), (0.3530,)

#: the seed of the validation images in the paper's code
SPLIT_SEED = 1
#: miniImageNet, per class: the first 500 images are for training, the last 100 for testing
MINI_TRAIN, MINI_TEST, MINI_SIZE = 500, 100, 84


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels for training and testing.

    Attributes:
        train_images, test_images: (N, h, w, c) uint8.  train_labels, test_labels: (N,) int32 in 0..K-1.
            Lists and arrays of other libraries are converted to arrays of NumPy.
        classes: the K names.
        mean, std: of each channel, for pixels in [0, 1]; pixels become (pixel - mean) / std.
        pad: number of zero pixels added on each side before a random crop; 0: no crop.
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
        object.__setattr__(self, "classes", tuple(self.classes))
        for part in ("train", "test"):
            images = _images(f"{part}_images", getattr(self, f"{part}_images"))
            labels = _labels(f"{part}_labels", getattr(self, f"{part}_labels"), len(images), self.K)
            object.__setattr__(self, f"{part}_images", images)
            object.__setattr__(self, f"{part}_labels", labels)
        if self.test_images.shape[1:] != self.image_shape:
            raise ValueError(
                f"test_images: expected images of {self._size}, the size of train_images, got "
                f"{'x'.join(map(str, self.test_images.shape[1:]))}; resize them first"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.image_shape[2]:
                got = getattr(self, name)
                raise ValueError(f"{name}: expected one a channel ({self.image_shape[2]}), got {got}")

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
        """A checksum of images and labels, which does not depend on how they were read."""
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return f"{functools.reduce(lambda crc, a: zlib.crc32(a.tobytes(), crc), arrays, 0):08x}"

    @property
    def _size(self) -> str:
        return "x".join(map(str, self.image_shape))

    def __repr__(self) -> str:
        N = f"{len(self.train_images):,} + {len(self.test_images):,}"
        return f"{self.name}: {N} images of {self._size}, {self.K} classes"


def _array(name: str, values: object, expected: str) -> np.ndarray:
    """An array of NumPy without a mask, from lists or arrays of other libraries too."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        count = int(np.ma.getmaskarray(values).sum())
        raise ValueError(f"{name}: expected {expected}, got {count} that are masked; take those samples out")
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # lists of different lengths, arrays on another device
        raise ValueError(f"{name}: expected {expected}, got {type(values).__name__} ({error})") from error


def _images(name: str, images: object) -> np.ndarray:
    expected = "uint8 images (N, height, width, channels)"
    array = _array(name, images, expected)
    if array.ndim != 4 or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"{name}: expected {expected}, got {array.dtype} {array.shape}")
    return array


def _labels(name: str, labels: object, N: int, K: int) -> np.ndarray:
    expected = f"{N} integers, one an image"
    array = _array(name, labels, expected)
    if array.shape != (N,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: expected {expected}, got {array.dtype} {array.shape}")
    wrong = np.flatnonzero((array < 0) | (array >= K))
    if wrong.size:
        at = wrong[0]
        raise ValueError(f"{name}: expected classes in 0..{K - 1}, got {array[at]} at image {at}")
    return array.astype(np.int32)


def validation_split(N: int, fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation: a shuffle of range(N), its first part for validation.

    Generator and seed are those of the paper's code, so that the split of CIFAR is the paper's image by
    image (docs/protocol.md, section 2). It is not stratified: the classes of the training part differ in
    size.

    >>> from ufm.deep import datasets
    >>> train, validation = datasets.validation_split(50_000)
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
    train, test = validation_split(len(images), 0.2)
    constants = measured(images[train])
    return Dataset(
        "digits", images[train], labels[train], images[test], labels[test], _digit_names(), *constants,
        source="scikit-learn's digits (UCI optical recognition of handwritten digits, test part)",
    )  # fmt: skip


def _digit_names() -> tuple[str, ...]:
    return tuple("0123456789")


_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
_MNIST_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_FASHION_FILES = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}


def _idx_file(name: str, folder: Path, archive: Archive, torchvision: str) -> np.ndarray:
    """An idx file in the folder, under any of its names, or downloaded to it."""
    # Kaggle's copy has folders with the names of the files, torchvision uses <set>/raw
    inner = (*_archives.idx_names(name), "raw", f"{torchvision}/raw")
    places = [folder, *(folder / each for each in inner)]
    found = _archives.find_idx(name, places)
    if found is not None:
        return found
    packed = next((place for place in places if (place / archive.name).is_file()), folder)
    return _archives.read_idx(fetch(archive, packed))


def _idx_part(part: str, name: str, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    url, checksums, torchvision = {
        "mnist": (_MNIST_URL, _MNIST_FILES, "MNIST"),
        "fashionmnist": (_FASHION_URL, _FASHION_FILES, "FashionMNIST"),
    }[name]
    folder = data_dir or cache_dir() / name
    images, labels = (
        _idx_file(file, folder, Archive(f"{url}/{file}.gz", checksums[file]), torchvision)
        for file in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder}: expected one label an image in {part}-labels-idx1-ubyte, got {labels.shape} for "
            f"{len(images)} images; download both again"
        )
    return images[..., None], labels.astype(np.int32)


def mnist(data_dir: Path | None = None) -> Dataset:
    """MNIST, 60,000 + 10,000 digits of 28x28 pixels, from its four idx files.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`. Each is read from `data_dir` gzipped as published (checked by its checksum),
    unpacked, under the name `train-images.idx3-ubyte` that some programs unpack it to, in a folder of its own
    name (Kaggle's copy), in `raw` or `MNIST/raw` (torchvision's), or in a zip of the folder. EMNIST's
    files, of other names, are not read: its images are transposed.

    Source: LeCun, Cortes, Burges, The MNIST database; the checksums are torchvision's.
    """
    train, test = _idx_part("train", "mnist", data_dir), _idx_part("t10k", "mnist", data_dir)
    return Dataset("mnist", *train, *test, _digit_names(), *MNIST, source="MNIST (official idx files)")


def fashionmnist(data_dir: Path | None = None) -> Dataset:
    """Fashion-MNIST, 60,000 + 10,000 garments of 28x28 pixels; its files have the names of `mnist`'s.

    Source: Xiao, Rasul, Vollgraf, arXiv:1708.07747; the checksums are torchvision's.
    """
    train = _idx_part("train", "fashionmnist", data_dir)
    test = _idx_part("t10k", "fashionmnist", data_dir)
    classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
               "Ankle boot")  # fmt: skip
    return Dataset(
        "fashionmnist", *train, *test, classes, *FASHION_MNIST, flip=True,
        source="Fashion-MNIST (official idx files)",
    )  # fmt: skip


def mnist10k(data_dir: Path | None = None) -> Dataset:
    """The 10,000 images of MNIST's test file, every fifth for testing: a download of 1.6 MB."""
    images, labels = _idx_part("t10k", "mnist", data_dir)
    train, test = validation_split(len(images), 0.2)
    return Dataset(
        "mnist10k", images[train], labels[train], images[test], labels[test], _digit_names(), *MNIST,
        source="MNIST's 10,000-image test file, split 8,000 + 2,000",
    )  # fmt: skip


_CIFAR_URL = "https://www.cs.toronto.edu/~kriz"


def cifar10(data_dir: Path | None = None) -> Dataset:
    """CIFAR-10 from the official python archive, packed or unpacked.

    `cifar-10-python.tar.gz` holds the folder `cifar-10-batches-py` with `data_batch_1` to `data_batch_5`,
    `test_batch`, `batches.meta` and `readme.html`. The batches are pickles of Python 2 with `data` (10,000
    rows of 3x32x32 bytes), `labels`, `filenames` and `batch_label`; `batches.meta` has `label_names`. Only
    these seven pickles are read.

    Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009; its page gives the
    checksum.
    """
    archive = Archive(f"{_CIFAR_URL}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
    batches = tuple(f"data_batch_{i}" for i in range(1, 6))
    files = _cifar.Layout(
        "cifar-10-batches-py", (*batches, "test_batch"), "batches.meta", "labels", "label_names", 10
    )
    arrays = _cifar_arrays(archive, files, data_dir)
    return _augmented("cifar10", arrays, CIFAR10, "CIFAR-10 (official archive)")


def cifar100(data_dir: Path | None = None) -> Dataset:
    """CIFAR-100 with its 100 fine labels, from the official python archive, packed or unpacked.

    `cifar-100-python.tar.gz` holds the folder `cifar-100-python` with the pickles `train`, `test` (`data`,
    `fine_labels`, `coarse_labels`, `filenames`, `batch_label`) and `meta` (`fine_label_names`,
    `coarse_label_names`), which are read, and an editor's backup `file.txt~`.

    Source: as `cifar10`.
    """
    archive = Archive(f"{_CIFAR_URL}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")
    files = _cifar.Layout(
        "cifar-100-python", ("train", "test"), "meta", "fine_labels", "fine_label_names", 100
    )
    arrays = _cifar_arrays(archive, files, data_dir)
    return _augmented("cifar100", arrays, CIFAR100, "CIFAR-100 (official archive)")


def _augmented(name: str, arrays: Arrays, constants: Constants, source: str) -> Dataset:
    """A data set of photographs, with random crops and flips."""
    mean, std = constants
    return Dataset(
        name, arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels,
        arrays.classes, mean, std, pad=4, flip=True, source="; ".join(filter(None, (source, arrays.note))),
    )  # fmt: skip


def _cifar_arrays(archive: Archive, files: _cifar.Layout, data_dir: Path | None) -> Arrays:
    folder = data_dir or cache_dir()
    for place in (folder / files.folder, folder):
        if (place / files.batches[-1]).is_file():
            return _cifar.read_folder(place, files)
    return cached(
        fetch(archive, folder), cache_dir(), files.folder, functools.partial(_cifar.read_tar, files=files)
    )


def miniimagenet(data_dir: Path | None = None) -> Dataset:
    """miniImageNet: 100 classes, the 64 + 16 + 20 of its split merged; 500 + 100 images of each, 84x84.

    There is no official archive. Three layouts are read from `data_dir`:

    - pickles `mini-imagenet-cache-train.pkl`, `-val.pkl` and `-test.pkl`, each with `image_data` (N, 84, 84,
      3) and `class_dict`, which gives the rows of each class (Ren et al., arXiv:1803.00676);
    - `train.csv`, `val.csv` and `test.csv` with the columns filename and label, and a folder `images` with
      those files (Ravi, Larochelle, Optimization as a model for few-shot learning, 2017);
    - class folders (see `class_folders`) with or without train, val and test above them.
    """
    folder = data_dir or cache_dir() / "miniimagenet"
    arrays = _mini_split(folder)
    return _augmented("miniimagenet", arrays, IMAGENET, "miniImageNet")


def _mini_split(folder: Path) -> Arrays:
    pickles = [folder / f"mini-imagenet-cache-{part}.pkl" for part in ("train", "val", "test")]
    tables = [folder / f"{part}.csv" for part in ("train", "val", "test")]
    for paths, what in ((pickles, "pickles"), (tables, "csv files")):
        missing = [path for path in paths if not path.is_file()]
        if len(missing) in (1, 2):
            raise ValueError(f"{missing[0]}: expected all three {what} of the split, got no such file")
    if pickles[0].is_file():
        return _mini_arrays(_miniimagenet.read_pickles(pickles), folder)
    if tables[0].is_file():
        return cached(
            folder,
            cache_dir(),
            "mini csv",
            lambda path: _mini_arrays(_miniimagenet.read_tables(tables), path),
        )
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl or class folders, got "
            "no such folder; there is no official download: pass data_dir, the folder that holds them"
        )
    return cached(folder, cache_dir(), "mini", _mini_folders)


def _mini_folders(folder: Path) -> Arrays:
    found, note = _class_folders.read_classes(folder)
    return _mini_arrays(found, folder)._replace(note=note)


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
    """Any folder, tar or zip of class folders; mean and std are measured on its training images.

    A folder at the first level is a class, and every image below it, however deep, is of that class:
    `<class>/.../<image>`. Where the first level has folders called train, test, val, validation and the like
    (training_set, Test, val_images: `_class_folders.part_of`), the classes are those of each part:
    `<part>/<class>/.../<image>`. Without test, val is for testing; beside test, val is training data; without
    parts, every sixth image of a class is for testing. A tar or zip may have one folder around all of that.
    Links to folders are followed.

    The set is in colour (c = 3) if any image has colour. The orientation of photographs is applied,
    transparency is dropped, and of 16 bits per pixel the upper 8 are kept.

    Hidden files (.ipynb_checkpoints, __MACOSX), files that are not images, and images in no class folder are
    skipped; their numbers are reported on standard error and in `Dataset.source`. Ambiguous folders are an
    error that names them: a class without images, a part whose classes are not those of train, two folders
    of one part, classes beside parts, parts below classes.

    Tiny ImageNet is tiny-imagenet-200.zip, or unpacked, with wnids.txt, words.txt,
    train/<wnid>/images/*.JPEG beside <wnid>_boxes.txt, val/images/*.JPEG with val/val_annotations.txt (file
    name, wnid and a box, between tabs) and test/images/*.JPEG without labels. It is read by the same rule,
    with the classes of val from val_annotations.txt; test is skipped.
    """
    arrays = cached(source, cache_dir(), "class folders", _class_folders.read_class_folders)
    name = Path(os.path.abspath(source)).name  # that of "." is empty
    constants = measured(arrays.train_images)
    return _augmented(name.split(".")[0] or name, arrays, constants, f"class folders {name}")


#: The shelf: tests, the command line and the README iterate it.
DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "mnist10k": mnist10k,
    "fashionmnist": fashionmnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "miniimagenet": miniimagenet,
}


def get(data: str | Path | Dataset, *, data_dir: str | Path | None = None) -> Dataset:
    """A `Dataset` from a name of `DATASETS`, the path of a folder, tar or zip of class folders, or itself.

    Args:
        data_dir: folder with the files of the data set, or for their download.  Default: the folder
            UFM_DATA, or the system's cache folder.

    Raises:
        ValueError: an unknown name (the known names are listed), a file that is truncated or has another
            checksum or format, a label out of range, images of different sizes.  ConnectionError: the
            download failed.
    """
    if isinstance(data, Dataset):
        return data
    folder = None if data_dir is None else Path(data_dir)
    try:
        name = _checks.choice("data", data, DATASETS)
    except ValueError as error:
        if isinstance(data, str | Path) and Path(data).exists():
            return class_folders(Path(data))
        raise ValueError(f"{error}; or the path of a folder, tar or zip of class folders") from None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"data_dir: expected a folder, got {str(folder)!r}; make it, or leave data_dir out")
    return DATASETS[name](folder)
