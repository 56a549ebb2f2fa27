"""Folders, tars and zips of class folders: the class and part of each image, and what is skipped or refused.

The rule: a folder at the first level is a class, and every image below it, however deep, is of that class.
Where the first level has folders of parts (`part_of`), the classes are the folders at the first level of each
part. Everything that is skipped is counted and reported. Folders whose meaning is ambiguous, so that reading
them could change the classes or the split unnoticed, are refused by name.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ufm._progress import Progress
from ufm.deep import _file_trees, _pixels
from ufm.deep._archives import Arrays
from ufm.deep._file_trees import Tree
from ufm.deep._pixels import IMAGES

#: folders that programs leave behind; like names that begin with a dot, they are skipped
JUNK = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)
#: without a test part, every sixth image of a class is for testing (the share of CIFAR)
TEST_EVERY = 6

#: why a file is skipped, for one and for several
_REASONS = {
    "hidden": ("hidden file", "hidden files"),
    "other": ("file that is not an image", "files that are not images"),
    "loop": ("link to a folder that holds it", "links to folders that hold them"),
    "unlabelled": ("image of test, which has no labels", "images of test, which has no labels"),
    "loose": ("image in no class folder", "images in no class folder"),
}

_PARTS = (("train", "train(ing)?"), ("test", "test(ing)?"), ("val", "val(id|idation)?"))
_PART_ENDING = "([ _-]?(set|data|dataset|images|imgs|split|part|folder))?"
#: words for parts, in names of folders that are not names of parts
_PART_WORDS = {
    "train": "train", "training": "train", "trn": "train", "test": "test", "testing": "test", "tst": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "dev", "eval": "eval", "evaluation": "eval",
    "holdout": "holdout",
}  # fmt: skip


def part_of(name: str) -> str:
    """The part that the name of a folder stands for: "train", "test" or "val", or "" for other names.

    Capitals do not matter, and "set", "data", "dataset", "images", "imgs", "split", "part" or "folder" may
    follow, after a space, a hyphen, an underscore or nothing.

    >>> [part_of(name) for name in ("Train", "training_set", "test-images", "valid", "seg_train", "trains")]
    ['train', 'train', 'test', 'val', '', '']
    """
    matching = (part for part, known in _PARTS if re.fullmatch(known + _PART_ENDING, name.strip().lower()))
    return next(matching, "")


class Placed(NamedTuple):
    """An image file, its part ("train", "test", "val", or "" where there are no parts) and its class."""

    part: str
    label: str
    path: PurePosixPath


class Picture(NamedTuple):
    """An image as read."""

    part: str
    label: str
    path: str
    pixels: np.ndarray  # (h, w, c) uint8, c = 1 or 3


# --- the content of the source --------------------------------------------------------------------


class _View:
    """A tree without hidden files: the folders in each folder, and the numbers of images in and below it."""

    def __init__(self, tree: Tree, source: Path) -> None:
        self.source, self.tree = source, tree
        visible = [path for path in tree.files if not _hidden(path)]
        self.images = [path for path in visible if path.suffix.lower() in IMAGES]
        self.others = [path for path in visible if path.suffix.lower() not in IMAGES]
        self.broken = [path for path in tree.broken if not _hidden(path)]
        self.inside = Counter(path.parent for path in self.images)
        self.below = Counter(parent for path in self.images for parent in path.parents)
        self._folders: dict[PurePosixPath, list[str]] = {}
        for path in tree.folders:
            if not _hidden(path):
                self._folders.setdefault(path.parent, []).append(path.name)
        self.skipped: Counter[str] = Counter(
            hidden=len(tree.files) - len(visible), other=len(self.others), loop=len(tree.loops)
        )

    def folders(self, folder: PurePosixPath) -> list[str]:
        """The names of the folders directly in a folder."""
        return self._folders.get(folder, [])

    def suffixes(self, folder: PurePosixPath) -> str:
        """The suffixes of the files below a folder that are not images, the most frequent first."""
        found = Counter(path.suffix.lower() or path.name for path in self.others if folder in path.parents)
        return ", ".join(suffix for suffix, _ in found.most_common(5))

    def holds_classes(self, folder: PurePosixPath) -> bool:
        """Whether any folder directly in it holds images."""
        return any(self.below[folder / name] for name in self.folders(folder))

    def error(self, message: str) -> ValueError:
        """An error about the source."""
        return ValueError(f"{self.source}: {message}")

    def said(self) -> str:
        """What was skipped, in words; empty if nothing was."""
        counts = [
            f"{count:,} {_REASONS[why][count > 1]}"
            + (f" ({self.suffixes(PurePosixPath())})" if why == "other" else "")
            for why, count in self.skipped.items()
            if count
        ]
        return f"skipped {', '.join(counts)}" if counts else ""


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part in JUNK for part in path.parts)


# --- the parts ------------------------------------------------------------------------------------


def _set_root(view: _View, packed: bool) -> PurePosixPath:
    """The folder that holds parts or classes: the source itself, or a lone folder in it that wraps them."""
    root = end = PurePosixPath()
    while len(view.folders(end)) == 1 and not view.inside[end] and not part_of(view.folders(end)[0]):
        end = end / view.folders(end)[0]
    within = view.folders(end)
    if end == root or any(part_of(name) for name in within):
        return end
    if len(within) < 2:
        return root
    if packed:  # a tar or zip of a folder has that folder's name in front of all others
        return end
    raise view.error(
        f"expected at least two class folders, got {end.parts[0]} alone, with {_some(within)} in {end}; pass "
        f"{view.source / end} if these are the classes"
    )


def _parts(view: _View, root: PurePosixPath) -> dict[str, PurePosixPath]:
    """The folder of each part, or the root as part "" if all folders are classes."""
    named = {name: part_of(name) for name in view.folders(root) if part_of(name)}
    others = [name for name in view.folders(root) if name not in named and view.below[root / name]]
    trains = len(named) == 1 and not any(view.holds_classes(root / name) for name in named)
    if not named or (others and trains):  # beside other classes, a class may be called "train"
        _refuse_parts_in_disguise(view, root)
        return {"": root}
    if others:
        raise view.error(
            f"expected the folders train and test (or val), or only classes, got {_some(others)} beside "
            f"{_some(named)}; move the classes into the parts, or take away what belongs to neither"
        )
    found: dict[str, PurePosixPath] = {}
    for name, part in named.items():
        if part in found:
            raise view.error(
                f"expected one folder of the part {part}, got {found[part].name} and {name}; merge or rename"
            )
        found[part] = root / name
    return {part: _innermost(view, folder) for part, folder in found.items()}


def _innermost(view: _View, folder: PurePosixPath) -> PurePosixPath:
    """The inner folder of training_set/training_set, as in some archives: one part."""
    within = view.folders(folder)
    again = len(within) == 1 and not view.inside[folder] and part_of(within[0]) == part_of(folder.name)
    return _innermost(view, folder / within[0]) if again else folder


def _refuse_parts_in_disguise(view: _View, root: PurePosixPath) -> None:
    """Refuse folders that the rule takes for classes although their names suggest parts."""
    names = view.folders(root)
    speaking = {name: word for name in names if (word := _part_word(name))}
    of_classes = all(view.holds_classes(root / name) for name in speaking)
    if len(set(speaking.values())) > 1 and (of_classes or len(speaking) == len(names)):
        raise view.error(
            f"expected parts that are called train and test (or val), got {_some(speaking)}, which would be "
            "taken for classes; rename them to train and test"
        )
    inner = {part: f"{name}/{n}" for name in names for n in view.folders(root / name) if (part := part_of(n))}
    if len(inner) > 1:
        raise view.error(
            f"expected parts above the classes (train/{names[0]}), got {_some(inner.values())}, whose images "
            "would be pooled; turn the folders round, or rename them if they are no parts"
        )


def _part_word(name: str) -> str:
    """The part that a word in a name suggests: "train" for seg_train and trainA2017."""
    words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    return next((_PART_WORDS[word] for word in words if word in _PART_WORDS), "")


def _some(names: Iterable[object]) -> str:
    """The first names of many."""
    given = [str(name) for name in names]
    return ", ".join(given[:4]) + (f" and {len(given) - 4:,} more" if len(given) > 4 else "")


# --- the classes ----------------------------------------------------------------------------------


def place(view: _View, packed: bool) -> list[Placed]:
    """Part and class of every image; images without them are counted.

    Raises:
        ValueError: no classes, a class without images, folders whose meaning is ambiguous.
    """
    if not view.images:
        raise view.error(
            "expected images in class folders (train/<class>/0001.png), got none"
            + (f"; {view.said()}" if view.said() else "")
        )
    root = _set_root(view, packed)
    parts = _parts(view, root)
    annotated = _annotated(view, parts)
    if annotated and "test" in parts and view.folders(parts["test"]) in ([], ["images"]):
        view.skipped["unlabelled"] = view.below[parts.pop("test")]
    _refuse_broken(view, {root, *parts.values()})
    placed = [
        image
        for part, folder in parts.items()
        for image in (annotated if annotated and part == "val" else _classes(view, part, folder))
    ]
    view.skipped["loose"] = len(view.images) - len(placed) - view.skipped["unlabelled"]
    return placed


def _refuse_broken(view: _View, holders: set[PurePosixPath]) -> None:
    """Refuse broken links in place of a class or a part."""
    for path in view.broken:
        if path.parent in holders:
            raise view.error(
                f"expected a class folder, got the link {path} to what does not exist; restore or remove it"
            )


def _classes(view: _View, part: str, folder: PurePosixPath) -> list[Placed]:
    names = view.folders(folder)
    if not names:
        raise view.error(
            f"expected class folders in {folder}, got none but {view.inside[folder]:,} images; make a folder "
            "of each class, or take the folder away"
        )
    empty = [folder / name for name in names if not view.below[folder / name]]
    if empty:
        got = view.suffixes(empty[0])
        raise view.error(
            f"expected images in every class folder, got {f'only {got}' if got else 'none'} in "
            f"{_some(empty)}; remove the folder or give it images ({', '.join(sorted(IMAGES))})"
        )
    depth = len(folder.parts)
    below = [p for p in view.images if p.parts[:depth] == folder.parts and len(p.parts) > depth + 1]
    return [Placed(part, _label(path.parts[depth]), path) for path in below]


def _label(name: str) -> str:
    """The name of a class in one Unicode form: macOS writes é as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def _annotated(view: _View, parts: dict[str, PurePosixPath]) -> list[Placed]:
    """The images of val in Tiny ImageNet, which has their classes in val/val_annotations.txt."""
    folder = parts.get("val", PurePosixPath())
    file = folder / "val_annotations.txt"
    if file not in view.tree.files or view.folders(folder) not in ([], ["images"]):
        return []
    lines = view.tree.read(view.tree.files[file]).decode("utf-8-sig").splitlines()
    label = {line.split("\t")[0]: line.split("\t")[1] for line in lines if "\t" in line}
    images = [path for path in view.images if folder in path.parents]
    for path in images:
        if path.name not in label:
            raise view.error(
                f"expected the class of every image in {file}, got none of {path.name}; download it again"
            )
    absent = label.keys() - {path.name for path in images}
    if absent:
        raise view.error(f"expected the images that {file} names, got no {min(absent)}; download it again")
    return [Placed("val", _label(label[path.name]), path) for path in images]


# --- the images -----------------------------------------------------------------------------------


def _pictures(source: Path) -> tuple[list[Picture], str]:
    """Every image that belongs to a class, of one size and number of channels, and what was skipped."""
    with _file_trees.opened(source) as tree:
        view = _View(tree, source)
        placed = place(view, packed=not source.is_dir())
        said = view.said()
        if said:
            print(f"{source.name}: {said}", file=sys.stderr)
        placed.sort(key=lambda image: tree.place(tree.files[image.path]))
        pixels = []
        with Progress(f"decode {source.name}", len(placed)) as bar:
            for image in placed:
                pixels.append(_decoded(tree, image.path))
                bar.update(len(pixels))
    for image, p in zip(placed, pixels, strict=True):
        if p.shape[:2] != pixels[0].shape[:2]:
            raise view.error(
                f"expected images of one size, got {_size(placed[0], pixels[0])} and {_size(image, p)}; "
                "resize them first"
            )
    found = zip(placed, _pixels.alike(pixels), strict=True)
    return [Picture(image.part, image.label, str(image.path), p) for image, p in found], said


def _decoded(tree: Tree, path: PurePosixPath) -> np.ndarray:
    try:
        content = tree.read(tree.files[path])
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected an image, got a link to what does not exist; restore or remove it"
        ) from None
    return _pixels.decode(content, str(path))


def _size(image: Placed, pixels: np.ndarray) -> str:
    return f"{image.path} of {'x'.join(map(str, pixels.shape))}"


def read_class_folders(source: Path) -> Arrays:
    """Read `<part>/<class>/.../<image>` or `<class>/.../<image>` in a folder, tar or zip.

    Classes are in alphabetical order. Parts are train and test; `val` is the test part if there is no other,
    and training data otherwise. Without parts, every sixth image of a class is for testing. The set is in
    colour if any image has colour. What is skipped is reported on standard error and in `Arrays.note`.

    Raises:
        ValueError: no images, a damaged image, images of different sizes, a class without images, a part
            with classes that train lacks, folders whose meaning is ambiguous.
    """
    pictures, note = _pictures(source)
    _check_parts(pictures, source)
    train, test = _split(pictures)
    _check_classes(train, test, source)
    classes = tuple(sorted({p.label for p in train}))
    index = {label: k for k, label in enumerate(classes)}
    images, labels = [], []
    for part in (train, test):
        images.append(np.stack([p.pixels for p in part]))
        labels.append(np.array([index[p.label] for p in part], np.int32))
    return Arrays(images[0], labels[0], images[1], labels[1], classes, note)


def read_classes(source: Path) -> tuple[dict[str, np.ndarray], str]:
    """The images of each class, in the order of their paths, with parts merged; and what was skipped.

    Raises:
        ValueError: as above, but the parts may be of different classes.
    """
    found: dict[str, list[Picture]] = {}
    pictures, note = _pictures(source)
    for p in sorted(pictures, key=lambda p: p.path):
        found.setdefault(p.label, []).append(p)
    return {label: np.stack([p.pixels for p in of_one]) for label, of_one in found.items()}, note


def _split(pictures: list[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Training and test pictures, each in the order of classes and paths."""
    found = {p.part for p in pictures}
    ordered = sorted(pictures, key=lambda p: (p.label, p.path))
    if found == {""}:
        count: Counter[str] = Counter()
        parts: tuple[list[Picture], list[Picture]] = [], []
        for p in ordered:
            count[p.label] += 1
            parts[count[p.label] % TEST_EVERY == 0].append(p)
        return parts
    test = "test" if "test" in found else "val"
    return [p for p in ordered if p.part != test], [p for p in ordered if p.part == test]


def _check_parts(pictures: list[Picture], source: Path) -> None:
    """Refuse a part without its counterpart, and a part with a class that train lacks."""
    classes: dict[str, set[str]] = {}
    for p in pictures:
        classes.setdefault(p.part, set()).add(p.label)
    if "" in classes:
        return
    if "train" not in classes or len(classes) == 1:
        raise ValueError(
            f"{source}: expected the folders train and test (or val), or only classes, got "
            f"{' and '.join(sorted(classes))} without {'test' if 'train' in classes else 'train'}; add that "
            "part, or pass a folder of classes"
        )
    for part in sorted(classes.keys() - {"train"}):
        absent = classes[part] - classes["train"]
        if absent:
            raise ValueError(
                f"{source}: expected every class in train and in test, got none of {min(absent)} in one of "
                f"them, train, but in {part}; add it to train or remove it from {part}"
            )


def _check_classes(train: list[Picture], test: list[Picture], source: Path) -> None:
    absent = {p.label for p in train} - {p.label for p in test}
    if absent:
        raise ValueError(
            f"{source}: expected every class in train and in test, got none of {min(absent)} in one of them, "
            f"test; add images (where there are no parts every {TEST_EVERY}th of a class is for testing), or "
            "remove the class"
        )
