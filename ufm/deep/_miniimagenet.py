"""The pickles or csv files of miniImageNet -> the images of each class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ufm.deep import _archives, _pixels


def read_pickles(paths: list[Path]) -> dict[str, np.ndarray]:
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


def read_tables(paths: list[Path]) -> dict[str, np.ndarray]:
    """Images of each class, in the order of the csv files."""
    found: dict[str, list[np.ndarray]] = {}
    for path in paths:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            if not {"filename", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{path}: expected the columns filename and label, got {rows.fieldnames}")
            for row in rows:
                image = path.parent / "images" / row["filename"]
                if not image.is_file():
                    raise ValueError(f"{image}: expected the image that {path.name} names, got no such file")
                found.setdefault(row["label"], []).append(_pixels.decode(image.read_bytes(), str(image)))
    return {label: _one_size(images, label, paths[0].parent) for label, images in found.items()}


def _one_size(images: list[np.ndarray], label: str, source: Path) -> np.ndarray:
    colour = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    shapes = sorted({image.shape for image in colour})
    if len(shapes) > 1:
        raise ValueError(
            f"{source}: expected images of one size in class {label}, got {shapes[0]} and "
            f"{shapes[-1]}; resize them first"
        )
    return np.stack(colour)
