"""The rules of class folders: parts, classes, what is skipped and what is refused."""

import io
import os
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest
from class_folder_files import (
    as_folder,
    as_tar,
    as_zip,
    assert_holds,
    every_source,
    images,
    in_parts,
    own_cache,  # noqa: F401 (a fixture for every test here)
    pixels,
    png,
)

from ufm.deep import _class_folders, _decoded_copies, datasets

# --- parts and classes ----------------------------------------------------------------------------


@every_source
@pytest.mark.parametrize("below", ["", "/b1", "/images", "/2019/spring/raw"])
def test_the_first_folder_below_a_part_is_the_class(tmp_path, packed, below):
    files = in_parts(below=below)
    data = datasets.get(packed(tmp_path / "pets", files))
    assert data.classes == ("ant", "cat", "dog")
    for part in ("train", "test"):
        assert_holds(data, {n: c for n, c in files.items() if n.startswith(part)}, part, data.classes)


def test_images_at_several_depths_are_of_one_class(tmp_path):
    files = images("cat", "cat/b1", "cat/b2/close", count=3) | images("dog/images", count=7) | images("emu")
    data = datasets.get(as_folder(tmp_path / "pets", files))
    assert data.classes == ("cat", "dog", "emu")
    assert np.bincount(data.train_labels).tolist() == [8, 6, 5]
    assert np.bincount(data.test_labels).tolist() == [1, 1, 1]


@every_source
def test_nested_folders_without_parts(tmp_path, packed):
    files = images("cat/b1", "cat/b2", "dog/images", "emu/a/b/c")
    data = datasets.get(packed(tmp_path / "pets", files))
    assert data.classes == ("cat", "dog", "emu")
    assert np.bincount(data.train_labels).tolist() == [10, 5, 5]
    assert np.bincount(data.test_labels).tolist() == [2, 1, 1]


@every_source
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("Train", "Test"),
        ("TRAINING", "VALIDATION"),
        ("train", "valid"),
        ("training", "testing"),
        ("train-images", "val images"),
        ("train_data", "testset"),
        ("training_set/training_set", "test_set/test_set"),
    ],
)
def test_names_of_parts(tmp_path, packed, train, test):
    files = in_parts(train, test)
    data = datasets.get(packed(tmp_path / "pets", files))
    assert data.classes == ("ant", "cat", "dog")
    assert_holds(data, {n: c for n, c in files.items() if n.startswith(train)}, "train", data.classes)
    assert_holds(data, {n: c for n, c in files.items() if n.startswith(test)}, "test", data.classes)


def test_val_is_for_training_beside_test(tmp_path):
    files = in_parts() | images("val/ant", "val/cat", count=2)
    data = datasets.get(as_folder(tmp_path / "pets", files))
    assert np.bincount(data.train_labels).tolist() == [4, 4, 2]
    assert np.bincount(data.test_labels).tolist() == [2, 2, 2]


@every_source
def test_a_class_may_be_called_train(tmp_path, packed):
    files = images("bus", "car", "train")
    assert datasets.get(packed(tmp_path / "a", files)).classes == ("bus", "car", "train")
    files = in_parts(classes=("bus", "train", "test"))
    assert datasets.get(packed(tmp_path / "b", files)).classes == ("bus", "test", "train")


REFUSED = {
    "unknown part names": (in_parts("seg_train", "seg_test"), "seg_train.*rename them to train and test"),
    "with years": (in_parts("train2017", "val2017"), "train2017.*rename them"),
    "in camel case": (in_parts("trainA", "testA"), "trainA.*rename them"),
    "dev beside train": (in_parts("train", "dev"), "got dev beside train"),
    "three of them": (in_parts("a_train", "a_eval") | images("other/x"), "a_train.*rename"),
    "no classes in parts": (
        images("train", "test"),
        "expected class folders in .*test, got none but 6 images",
    ),
    "no classes in test": (
        in_parts() | images("val"),
        "expected class folders in .*val, got none but 6 images",
    ),
    "classes beside parts": (
        in_parts() | images("emu"),
        "expected the folders train and test.*got emu beside",
    ),
    "parts below classes": (
        images("cat/train", "cat/test", "dog/train", "dog/test"),
        "dog/test, dog/train.*pooled",
    ),
    "parts below classes, one each": (images("cat/train", "dog/val"), "cat/train, dog/val.*pooled"),
    "one part twice": (in_parts("train", "training"), "got train and training; merge"),
    "train alone": (images("train/cat", "train/dog"), "expected the folders train and test.*without test"),
    "test alone": (images("test/cat", "val/cat"), "without train"),
    "two trains": (in_parts() | images("Training/ant"), "got Training and train; merge or rename"),
    "a class more in train": (in_parts() | images("train/emu"), "got none of emu in one of them, test"),
    "a class more in test": (
        in_parts() | images("test/emu"),
        "got none of emu in one of them, train, but in test",
    ),
    "a class more in val": (
        in_parts() | images("val/emu"),
        "got none of emu in one of them, train, but in val",
    ),
    "other capitals": (in_parts() | images("test/Ant"), "got none of Ant in one of them, train"),
    "too few to split": (
        images("cat", "dog") | images("emu", count=5),
        "got none of emu in one of them, test",
    ),
    "only other suffixes": (
        images("cat", "dog") | {"emu/0.heic": b"x", "emu/1.heic": b"x"},
        r"got only \.heic in (pets/)?emu",
    ),
    "only other suffixes, in a part": (
        in_parts() | {"test/emu/a/0.avif": b"x"},
        r"got only \.avif in (pets/)?test/emu",
    ),
    "only hidden files": (images("cat", "dog") | {"emu/.0.png": png(0)}, "got none in (pets/)?emu"),
}


@every_source
@pytest.mark.parametrize("what", REFUSED)
def test_what_would_change_classes_or_split_is_refused(tmp_path, packed, what):
    files, message = REFUSED[what]
    source = packed(tmp_path / "pets", files)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.get(source)
    assert str(caught.value).startswith(f"{source}: ")


@pytest.mark.parametrize("place", ["emu", "train/emu"])
def test_an_empty_class_folder_is_refused_also_after_a_first_reading(tmp_path, place):
    root = as_folder(tmp_path / "pets", images("cat", "dog") if place == "emu" else in_parts())
    datasets.get(root)
    (root / place).mkdir()
    with pytest.raises(
        ValueError, match=f"expected images in every class folder, got none in {place}; remove"
    ):
        datasets.get(root)
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(root, "pets")
    with pytest.raises(ValueError, match=f"got none in pets/{place}; remove"):
        datasets.get(tmp_path / "pets.tar")


def test_a_lone_folder_around_the_classes(tmp_path):
    root = as_folder(tmp_path / "outer", {f"pets/{name}": c for name, c in images("cat", "dog").items()})
    with pytest.raises(ValueError, match=r"got pets alone, with cat, dog in pets; pass .*outer/pets if"):
        datasets.get(root)
    assert datasets.get(root / "pets").classes == ("cat", "dog")
    root = as_folder(tmp_path / "other", {f"pets/{name}": c for name, c in in_parts().items()})
    assert datasets.get(root).classes == ("ant", "cat", "dog")
    assert datasets.get(as_tar(tmp_path / "home", {f"me/pets/{n}": c for n, c in in_parts().items()})).K == 3


# --- what is skipped ------------------------------------------------------------------------------


@every_source
def test_what_is_skipped_is_counted_and_said_once(tmp_path, capsys, packed):
    files = in_parts()
    junk = {
        **images(".ipynb_checkpoints/ant", "train/.ipynb_checkpoints", "train/cat/.cache", count=1),
        "__MACOSX/pets/train/cat/._0.png": b"x",
        "train/cat/._0.png": b"x",
        "train/cat/Thumbs.db": b"x",
        "train/cat/notes.txt": b"x",
        "README": b"x",
        "docs/index.html": b"x",
        "preview.png": png(99),
        "train/montage.png": png(98),
    }
    source = packed(tmp_path / "pets", files | junk)
    data = datasets.get(source)
    assert data.classes == ("ant", "cat", "dog")
    assert_holds(data, {n: c for n, c in files.items() if n.startswith("train")}, "train", data.classes)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"{source.name}: skipped ")
    for words in (
        "5 hidden files",
        "4 files that are not images (",
        "2 images in no class folder",
        ".db",
        "README",
    ):
        assert words in line
        assert words in data.source
    assert datasets.get(source).source == data.source  # the decoded copy knows, too
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_nothing_is_skipped(tmp_path, capsys):
    assert "skipped" not in datasets.get(as_folder(tmp_path / "pets", in_parts())).source
    assert capsys.readouterr().err == ""


# --- links ----------------------------------------------------------------------------------------


def test_class_folders_and_images_behind_links(tmp_path):
    as_folder(tmp_path / "store", images("a/deep", "b"))
    root = as_folder(tmp_path / "pets", images("cat"))
    (root / "dog").symlink_to(tmp_path / "store" / "a")
    (root / "emu").mkdir()
    for i in range(6):
        (root / "emu" / f"{i}.png").symlink_to(tmp_path / "store" / "b" / f"{i}.png")
    data = datasets.get(root)
    assert data.classes == ("cat", "dog", "emu")
    assert np.bincount(data.train_labels).tolist() == [5, 5, 5]
    first = data.digest
    changed = png(77)
    (tmp_path / "store" / "a" / "deep" / "0.png").write_bytes(changed)  # behind the link
    assert datasets.get(root).digest != first
    assert np.array_equal(datasets.get(root).train_images[5], pixels(changed))


def test_links_to_nothing_are_refused(tmp_path):
    root = as_folder(tmp_path / "pets", images("cat", "dog"))
    (root / "dog" / "link.png").symlink_to("nowhere.png")
    with pytest.raises(
        ValueError, match=r"dog/link\.png: expected an image, got a link to what does not exist"
    ):
        datasets.get(root)
    (root / "dog" / "link.png").unlink()
    (root / "emu").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got the link emu to what does not exist; restore"):
        datasets.get(root)


def test_links_that_lead_back_end(tmp_path, capsys):
    root = as_folder(tmp_path / "pets", images("cat", "dog"))
    (root / "cat" / "all").symlink_to(root)
    (root / "dog" / "cats").symlink_to(root / "cat")
    (root / "dog" / "self").symlink_to(".")
    data = datasets.get(root)
    assert data.classes == ("cat", "dog")
    assert (np.bincount(data.train_labels) + np.bincount(data.test_labels)).tolist() == [6, 12]
    assert "3 links to folders that hold them" in capsys.readouterr().err


def test_links_in_archives(tmp_path):
    files = images("train/cat", "train/dog", "test/cat", "test/dog", "store/emu/deep", count=2)
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        for name, target in (("train/emu", "../.store/emu"), ("test/emu", "../train/emu")):
            link = tarfile.TarInfo(f"pets/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(f"pets/{name.replace('store', '.store')}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        hard = tarfile.TarInfo("pets/test/cat/hard.png")  # how tar stores a file with two names
        hard.type, hard.linkname = tarfile.LNKTYPE, "pets/test/dog/0.png"
        archive.addfile(hard)
    data = datasets.get(tmp_path / "pets.tar")
    assert data.classes == ("cat", "dog", "emu")
    assert np.bincount(data.train_labels).tolist() == [2, 2, 2]
    assert np.bincount(data.test_labels).tolist() == [3, 2, 2]
    assert np.array_equal(data.test_images[2], pixels(files["test/dog/0.png"]))
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for name, content in images("cat", "dog").items():
            archive.writestr(name, content)
        link = zipfile.ZipInfo("emu")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "cat")
    assert datasets.get(tmp_path / "pets.zip").classes == ("cat", "dog", "emu")


# --- names ----------------------------------------------------------------------------------------


@every_source
def test_names_in_other_alphabets_and_capitals(tmp_path, packed):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    files = {
        f"{part}/{label}/Bild {i} – ü.{kind}": png(i)
        for part, e in (("train", composed), ("test", apart))  # macOS writes the second
        for label in (f"caf{e}", "猫", "class 1.5")
        for i, kind in enumerate(("PNG", "png"))
    }
    data = datasets.get(packed(tmp_path / "pets", files))
    assert data.classes == (f"caf{composed}", "class 1.5", "猫")
    assert (len(data.train_labels), len(data.test_labels)) == (6, 6)
    assert datasets.get(packed(tmp_path / "pets", files)).classes == data.classes


def test_names_that_are_no_text(tmp_path):
    root = as_folder(tmp_path / "pets", images("cat", "dog"))
    os.rename(root / "cat", os.fsencode(root) + b"/caf\xe9")
    assert datasets.get(root).K == 2


def test_a_zip_that_is_encrypted_or_cut_is_refused(tmp_path):
    path = as_zip(tmp_path / "pets", in_parts())
    content = bytearray(path.read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-100])
    for at in range(len(content) - 4):  # set the flag of encryption in each header
        if content[at : at + 4] in (b"PK\1\2", b"PK\3\4"):
            content[at + (8 if content[at + 2] == 1 else 6)] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    for name in ("cut.zip", "locked.zip"):
        with pytest.raises(ValueError, match=f"{name}: expected a tar of class folders or a zip of them"):
            datasets.get(tmp_path / name)


# --- decoded copies -------------------------------------------------------------------------------


def test_decoded_copies_do_not_outlive_the_rules_or_the_files(tmp_path, monkeypatch):
    root = as_folder(tmp_path / "pets", images("cat", "dog"))
    first = datasets.get(root)
    reads, read = [], _class_folders.read_class_folders
    monkeypatch.setattr(
        _class_folders, "read_class_folders", lambda source: reads.append(source) or read(source)
    )
    assert datasets.get(root).digest == first.digest
    assert not reads
    monkeypatch.setattr(_decoded_copies, "VERSION", _decoded_copies.VERSION + 1)
    assert datasets.get(root).digest == first.digest
    assert len(reads) == 1
    path = root / "cat" / "0.png"
    facts = path.stat()
    path.write_bytes(png(1000))  # noise is not compressed: as many bytes
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # and the same time, as a copy may have
    assert path.stat().st_size == facts.st_size
    assert datasets.get(root).digest != first.digest
    assert len(reads) == 2


def test_one_folder_read_as_two_data_sets(tmp_path, monkeypatch):
    for name, value in (("MINI_TRAIN", 5), ("MINI_TEST", 2), ("MINI_SIZE", 6)):
        monkeypatch.setattr(datasets, name, value)
    files = {
        f"{label}/{i}.png": png(10 * k + i, (6, 6, 3))
        for k, label in enumerate(("n1", "n2"))
        for i in range(8)
    }
    root = as_folder(tmp_path / "mini", files)
    assert len(datasets.get(root).test_labels) == 2
    assert len(datasets.get("miniimagenet", data_dir=root).test_labels) == 4
