"""Folders, tars and zips of class folders for the tests of reading them."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_deep_data import random_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path_factory.mktemp("cache")))


def png(seed, shape=(6, 5, 3)):
    return encoded(Image.fromarray(random_images(1, shape, seed)[0]), "png")


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def images(*folders, count=6):
    """PNG files in each folder, all different."""
    names = [f"{folder}/{i}.png" for folder in folders for i in range(count)]
    return {name: png(seed) for seed, name in enumerate(names)}


def in_parts(train="train", test="test", classes=("ant", "cat", "dog"), count=2, below=""):
    return images(*(f"{part}/{c}{below}" for part in (train, test) for c in classes), count=count)


def as_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def as_tar(root, files):
    path = root.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{root.name}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def as_zip(root, files, separator="/"):
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = f"{root.name}/{name}".replace("/", separator)
            archive.writestr(info, content)
    return path


def as_windows_zip(root, files):
    return as_zip(root, files, "\\")


SOURCES = (as_folder, as_tar, as_zip, as_windows_zip)
every_source = pytest.mark.parametrize("packed", SOURCES)


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def assert_holds(data, files, part, classes):
    """The images of a part of the data are those of the files, class by class."""
    labels, found = getattr(data, f"{part}_labels"), getattr(data, f"{part}_images")
    for k, label in enumerate(classes):
        expected = [pixels(c) for name, c in sorted(files.items()) if f"{label}/" in name]
        assert np.array_equal(found[labels == k], expected)
