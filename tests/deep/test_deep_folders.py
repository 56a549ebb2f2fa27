"""Class folders, plain and in tars, and miniImageNet."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from test_deep_data import random_images

from ufm.deep import datasets


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path_factory.mktemp("cache")))


# --- class folders --------------------------------------------------------------------------------


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folders(root, parts, per_class=7, shape=(6, 5, 3)):
    """PNG files, so that what is read must be what was written; returns images by part and class."""
    written = {}
    for p, part in enumerate(parts):
        for c, label in enumerate(("dog", "ant", "cat")):
            images = random_images(per_class, shape, seed=10 * p + c)
            written[part, label] = images
            for i, image in enumerate(images):
                write_image(root / part / label / f"{i:03d}.png", image)
    return written


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("test_part", ["test", "val"])
def test_class_folders(tmp_path, packed, test_part):
    root = tmp_path / "pets"
    written = write_folders(root, ("train", test_part))
    (root / "train" / "readme.txt").write_text("no image")
    source = root
    if packed:
        source = tmp_path / "pets.tar.xz"
        with tarfile.open(source, "w:xz") as archive:
            archive.add(root, "pets")
    data = datasets.get(str(source))
    assert data.classes == ("ant", "cat", "dog")
    assert data.name == "pets"
    assert str(tmp_path) not in data.source  # it stands in published records
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        (test_part, data.test_images, data.test_labels),
    ):
        assert labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
        assert np.array_equal(images, np.concatenate([written[part, label] for label in data.classes]))
    assert np.allclose(data.mean, data.train_images.mean(axis=(0, 1, 2)) / 255)
    again = datasets.get(source)
    assert again.digest == data.digest
    assert again.classes == data.classes


def test_class_folders_without_parts_keep_every_sixth_image_for_testing(tmp_path):
    written = write_folders(tmp_path / "pets", ("",), per_class=13, shape=(4, 4))
    data = datasets.get(tmp_path / "pets")
    assert data.image_shape == (4, 4, 1)
    ant = written["", "ant"]
    assert np.array_equal(data.test_images[:2, ..., 0], ant[[5, 11]])
    assert np.array_equal(data.train_images[:11, ..., 0], np.delete(ant, [5, 11], axis=0))


def broken_folders(root, kind):
    write_folders(root, ("train", "test"))
    if kind == "size":
        write_image(root / "train" / "cat" / "z.png", random_images(1, (7, 5, 3))[0])
    if kind == "truncated":
        path = root / "train" / "cat" / "000.png"
        path.write_bytes(path.read_bytes()[:60])
    if kind == "text":
        (root / "train" / "cat" / "000.png").write_text("no image")
    if kind == "bomb":  # a header that claims 2^40 pixels
        Image.new("L", (1, 1)).save(root / "train" / "cat" / "z.bmp")
        content = bytearray((root / "train" / "cat" / "z.bmp").read_bytes())
        content[18:26] = np.array([1 << 20, 1 << 20], "<u4").tobytes()
        (root / "train" / "cat" / "z.bmp").write_bytes(content)
    if kind == "float":
        Image.fromarray(np.ones((6, 5), np.float32)).save(root / "train" / "cat" / "z.tif")
    if kind == "class":
        write_image(root / "train" / "emu" / "0.png", random_images(1, (6, 5, 3))[0])
    if kind == "part":
        write_image(root / "emu" / "0.png", random_images(1, (6, 5, 3))[0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", r"images of one size, got .*6x5x3 and .*z.png of 7x5x3; resize"),
        ("truncated", "000.png: expected an image"),
        ("text", "000.png: expected an image, got a file of no known format; remove"),
        ("bomb", "z.bmp: expected an image, got Image size"),
        ("float", "z.tif: expected an image, got 32 bits a pixel"),
        ("class", "got none of emu in one"),
        ("part", "expected the folders train and test"),
    ],
)
def test_broken_class_folders_are_refused(tmp_path, kind, message):
    broken_folders(tmp_path / "pets", kind)
    with pytest.raises(ValueError, match=message):
        datasets.get(tmp_path / "pets")


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_a_pixel_keep_their_scale(tmp_path, kind):
    values = np.arange(30, dtype=np.uint16).reshape(6, 5)
    for part in ("train", "test"):
        path = tmp_path / "grey" / part / "a" / f"0.{kind}"
        write_image(path, values * 2000)
        with Image.open(path) as image:
            assert image.mode.startswith("I;16")
    data = datasets.get(tmp_path / "grey")
    assert np.array_equal(data.train_images[0, ..., 0], values * 2000 // 256)


def test_no_images_and_no_tar(tmp_path):
    with pytest.raises(ValueError, match="expected images in class folders"):
        datasets.get(tmp_path)
    path = tmp_path / "x.tar"
    path.write_bytes(b"no tar")
    with pytest.raises(ValueError, match="expected a tar of class folders"):
        datasets.get(path)
    stream = io.BytesIO()
    write_folders(tmp_path / "pets", ("train", "test"), per_class=40)
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:
        archive.add(tmp_path / "pets", "pets")
    path.write_bytes(stream.getvalue()[:-2000])
    with pytest.raises(ValueError, match=r"expected a tar of class folders.*download it again"):
        datasets.get(path)


# --- miniImageNet ---------------------------------------------------------------------------------


@pytest.fixture
def mini(monkeypatch):
    """Fewer and smaller images."""
    for name, value in (("MINI_TRAIN", 5), ("MINI_TEST", 2), ("MINI_SIZE", 6)):
        monkeypatch.setattr(datasets, name, value)


def mini_images():
    return {name: random_images(7, (6, 6, 3), seed) for seed, name in enumerate(("n03", "n01", "n02"))}


def assert_mini(data):
    images = mini_images()
    assert data.classes == ("n01", "n02", "n03")
    assert np.array_equal(data.train_images, np.concatenate([images[c][:5] for c in data.classes]))
    assert np.array_equal(data.test_images, np.concatenate([images[c][5:] for c in data.classes]))
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("text", [str, str.encode])
def test_mini_imagenet_from_pickles(tmp_path, mini, text):
    for part, (name, images) in zip(("train", "val", "test"), mini_images().items(), strict=True):
        rows = np.random.default_rng(0).permutation(7)  # class_dict gives the order
        content = {
            text("image_data"): images[np.argsort(rows)],
            text("class_dict"): {text(name): rows.tolist()},
        }
        (tmp_path / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert_mini(datasets.get("miniimagenet", data_dir=tmp_path))
    (tmp_path / "mini-imagenet-cache-val.pkl").unlink()
    with pytest.raises(ValueError, match="expected all three pickles"):
        datasets.get("miniimagenet", data_dir=tmp_path)


@pytest.mark.parametrize("parts", [("", "", ""), ("train", "val", "test")])
def test_mini_imagenet_from_folders(tmp_path, mini, parts):
    for part, (name, images) in zip(parts, mini_images().items(), strict=True):
        for i, image in enumerate(images):
            write_image(tmp_path / part / name / f"{name}{i:04d}.png", image)
    assert_mini(datasets.get("miniimagenet", data_dir=tmp_path))
    (tmp_path / parts[0] / "n03" / "n030003.png").unlink()
    with pytest.raises(ValueError, match="expected 7 images of 6x6x3 in class n03"):
        datasets.get("miniimagenet", data_dir=tmp_path)


def test_mini_imagenet_is_not_downloaded():
    with pytest.raises(
        ValueError, match=r"mini-imagenet-cache-train\.pkl.*no official download: pass data_dir"
    ):
        datasets.get("miniimagenet")
