"""The official files of each data set, in miniature: same members, same order, same formats, fewer images."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_deep_data import cifar_batch, idx, random_images

from ufm.deep import _archives, datasets


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def any_checksum(monkeypatch):
    """Take every archive that is there for the official one."""

    def verified(archive, folder):
        assert (folder / archive.name).is_file()
        return folder / archive.name

    monkeypatch.setattr(datasets, "fetch", verified)


# --- pickles of Python 2 --------------------------------------------------------------------------


class Python2(pickle._Pickler):
    """Writes what cPickle of Python 2 and NumPy of 2009 wrote: byte strings, and integers for booleans."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, obj):
        text = obj.encode("latin-1") if isinstance(obj, str) else obj
        short = len(text) < 256
        self.write((b"U" + bytes([len(text)]) if short else b"T" + len(text).to_bytes(4, "little")) + text)
        self.memoize(obj)

    def save_flag(self, obj):
        self.save(int(obj))

    dispatch[bytes] = dispatch[str] = save_string
    dispatch[bool] = save_flag


def python2_pickle(content):
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump(content)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def test_the_pickles_of_the_tests_are_those_of_python_2():
    content = python2_pickle({"data": np.zeros((2, 3), np.uint8), "labels": [3, 1]})
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"U\x02u1" in content  # the name of the dtype, a byte string
    assert b"_codecs" not in content
    found = _archives.unpickle(io.BytesIO(content), "here")
    assert np.array_equal(found["data"], np.zeros((2, 3), np.uint8))
    assert found["labels"] == [3, 1]


# --- CIFAR ----------------------------------------------------------------------------------------

CIFAR10_ORDER = ("data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta", "data_batch_2",
                 "data_batch_5", "data_batch_1")  # fmt: skip
CIFAR10_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
README = b'<meta HTTP-EQUIV="REFRESH" content="0; url=http://www.cs.toronto.edu/~kriz/cifar.html">\n'


def cifar10_files():
    """The content of each member, and images and labels of each batch."""
    files, written = {"readme.html": README}, {}
    for seed, name in enumerate(CIFAR10_BATCHES):
        images, labels, batch = cifar_batch(4, seed)
        batch |= {b"filenames": [f"picture_s_{i:06d}.png".encode() for i in range(4)]}
        files[name], written[name] = python2_pickle(batch), (images, labels)
    names = [
        b"airplane",
        b"automobile",
        b"bird",
        b"cat",
        b"deer",
        b"dog",
        b"frog",
        b"horse",
        b"ship",
        b"truck",
    ]
    files["batches.meta"] = python2_pickle(
        {b"num_cases_per_batch": 10000, b"label_names": names, b"num_vis": 3072}
    )
    return files, written


def cifar100_files():
    files, written = {"file.txt~": b"dog_s_000001.png\n"}, {}
    for seed, name in enumerate(("train", "test")):
        images, labels, batch = cifar_batch(5, seed, b"fine_labels", 100)
        batch |= {b"coarse_labels": [7] * 5, b"filenames": [b"dog_s_000001.png"] * 5}
        files[name], written[name] = python2_pickle(batch), (images, labels)
    names = [f"fine_{i:03d}".encode() for i in range(100)]
    files["meta"] = python2_pickle({b"fine_label_names": names, b"coarse_label_names": [b"fish"] * 20})
    return files, written


def official_tar(path, folder, files, order):
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name in ("", *order):
            member = tarfile.TarInfo(f"{folder}/{name}" if name else folder)
            member.uname, member.gname, member.mtime = "aeon", "kriz", 1244183186
            member.type = tarfile.REGTYPE if name else tarfile.DIRTYPE
            content = files.get(name, b"")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def unpack(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("packed", [True, False])
def test_the_official_cifar10(tmp_path, any_checksum, packed):
    files, written = cifar10_files()
    if packed:
        official_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files, CIFAR10_ORDER)
    else:
        unpack(tmp_path / "cifar-10-batches-py", files)
    data = datasets.get("cifar10", data_dir=tmp_path)
    train = [written[name] for name in CIFAR10_BATCHES[:5]]
    assert np.array_equal(data.train_images, np.concatenate([images for images, _ in train]))
    assert data.train_labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(data.test_images, written["test_batch"][0])
    assert data.test_labels.tolist() == written["test_batch"][1]
    assert (data.classes[0], data.classes[9], data.K) == ("airplane", "truck", 10)


@pytest.mark.parametrize("packed", [True, False])
def test_the_official_cifar100(tmp_path, any_checksum, packed):
    files, written = cifar100_files()
    if packed:
        order = ("file.txt~", "train", "test", "meta")
        official_tar(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", files, order)
    else:
        unpack(tmp_path / "cifar-100-python", files)
    data = datasets.get("cifar100", data_dir=tmp_path)
    for name, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        assert np.array_equal(images, written[name][0])
        assert labels.tolist() == written[name][1]
    assert (data.classes[3], data.K) == ("fine_003", 100)


def test_no_other_member_of_an_archive_is_unpickled(tmp_path, any_checksum, monkeypatch):
    files, _ = cifar10_files()
    order = (*CIFAR10_ORDER[:3], "nested/test_batch", *CIFAR10_ORDER[3:], "data_batch_6")
    files |= {"nested/test_batch": b"no pickle", "data_batch_6": pickle.dumps([1, 2])}
    official_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files, order)
    read, unpickle = [], _archives.unpickle
    monkeypatch.setattr(
        _archives, "unpickle", lambda stream, source: read.append(source) or unpickle(stream, source)
    )
    datasets.get("cifar10", data_dir=tmp_path)
    assert sorted(source.rsplit("/", 1)[1] for source in read) == sorted((*CIFAR10_BATCHES, "batches.meta"))


def test_a_cifar_archive_without_one_batch_names_it(tmp_path, any_checksum):
    files, _ = cifar10_files()
    order = [name for name in CIFAR10_ORDER if name != "data_batch_3"]
    official_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files, order)
    with pytest.raises(
        ValueError, match=r"cifar-10-python\.tar\.gz: expected data_batch_3 with data and labels"
    ):
        datasets.get("cifar10", data_dir=tmp_path)


# --- MNIST and Fashion-MNIST ----------------------------------------------------------------------

IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_files():
    files = {}
    for part, count in (("train", 30), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte"] = idx(random_images(count, (28, 28), seed=count))
        labels = np.random.default_rng(count).permutation(np.resize(np.arange(10, dtype=np.uint8), count))
        files[f"{part}-labels-idx1-ubyte"] = idx(labels)
    return files


def dotted(name):
    return name.replace("-idx", ".idx")


def zipped(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def lay_out(root, layout, files):
    """The four files as one of their publishers gives them."""
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    if layout == "one zip":
        zipped(root / "archive.zip", {f"{dotted(n)}": c for n, c in files.items()})
    if layout == "one zip of gz":
        zipped(root / "mnist.zip", {f"mnist/{n}": c for n, c in packed.items()})
    if layout == "four zips":
        for name, content in files.items():
            zipped(root / f"{name}.zip", {dotted(name): content})
    folders = {
        "gz": ("", packed),  # yann.lecun.com, zalandoresearch/fashion-mnist
        "unpacked": ("", files),
        "dots": ("", {dotted(n): c for n, c in files.items()}),
        "kaggle": ("", {f"{n}/{n}": c for n, c in files.items()} | {dotted(n): c for n, c in files.items()}),
        "folders": ("", {f"{n}/{n}": c for n, c in files.items()}),
        "raw": ("raw", files | packed),
        "torchvision": ("{set}/raw", files | packed),
    }
    inner, content = folders.get(layout, ("", {}))
    return inner, content


LAYOUTS = ("gz", "unpacked", "dots", "kaggle", "folders", "raw", "torchvision", "one zip", "one zip of gz",
           "four zips")  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "torchvision"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_idx_files_under_each_published_name(tmp_path, any_checksum, layout, name, torchvision):
    inner, content = lay_out(tmp_path, layout, idx_files())
    for file, raw in content.items():
        path = tmp_path / inner.replace("{set}", torchvision) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    data = datasets.get(name, data_dir=tmp_path)
    assert np.array_equal(data.train_images[..., 0], random_images(30, (28, 28), seed=30))
    assert np.array_equal(data.test_images[..., 0], random_images(10, (28, 28), seed=10))
    assert np.bincount(data.train_labels).tolist() == [3] * 10
    assert data.classes[5] == ("5" if name == "mnist" else "Sandal")


def test_gzipped_files_of_one_set_are_not_taken_for_another(tmp_path):
    for file, content in idx_files().items():
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(content))
    for name, md5 in (("mnist", "f68b3c2dcbea"), ("fashionmnist", "8d4fb7e6c68d")):
        with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte\.gz: expected md5 {md5}"):
            datasets.get(name, data_dir=tmp_path)


def test_broken_zips_of_idx_files_are_refused(tmp_path):
    zipped(tmp_path / "archive.zip", idx_files())
    content = (tmp_path / "archive.zip").read_bytes()
    (tmp_path / "archive.zip").write_bytes(content[:-50])
    with pytest.raises(
        ValueError, match=r"archive\.zip: expected a zip of idx files, got .*download it again"
    ):
        datasets.get("mnist", data_dir=tmp_path)
    zipped(tmp_path / "archive.zip", idx_files() | {"train-images-idx3-ubyte": b"\0\0\x08\x03short"})
    with pytest.raises(ValueError, match=r"archive\.zip, train-images-idx3-ubyte: expected an idx file"):
        datasets.get("mnist", data_dir=tmp_path)


# --- miniImageNet ---------------------------------------------------------------------------------


@pytest.fixture
def mini(monkeypatch):
    for name, value in (("MINI_TRAIN", 5), ("MINI_TEST", 2)):
        monkeypatch.setattr(datasets, name, value)


WNIDS = {"train": ("n01532829", "n01558993"), "val": ("n01855672",), "test": ("n01930112",)}


def mini_images(name):
    return random_images(7, (84, 84, 3), seed=int(name[1:]))


def assert_mini(data):
    names = sorted(name for part in WNIDS.values() for name in part)
    assert data.classes == tuple(names)
    assert np.array_equal(data.train_images, np.concatenate([mini_images(name)[:5] for name in names]))
    assert np.array_equal(data.test_images, np.concatenate([mini_images(name)[5:] for name in names]))


def test_mini_imagenet_from_its_cache_files(tmp_path, mini):
    for part, names in WNIDS.items():
        content = {
            "image_data": np.concatenate([mini_images(name) for name in names]),
            "class_dict": {name: list(range(7 * i, 7 * i + 7)) for i, name in enumerate(names)},
        }
        (tmp_path / f"mini-imagenet-cache-{part}.pkl").write_bytes(python2_pickle(content))
    assert_mini(datasets.get("miniimagenet", data_dir=tmp_path))


def write_mini_csv(root):
    (root / "images").mkdir(parents=True)
    for part, names in WNIDS.items():
        lines = ["filename,label"]
        for name in names:
            for i, image in enumerate(mini_images(name)):
                file = f"{name}{i + 1:08d}.jpg"
                stream = io.BytesIO()
                Image.fromarray(image).save(stream, "png")  # lossless under the official name
                (root / "images" / file).write_bytes(stream.getvalue())
                lines.append(f"{file},{name}")
        (root / f"{part}.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")


def test_mini_imagenet_from_its_csv_files(tmp_path, mini):
    write_mini_csv(tmp_path)
    for _ in ("read", "its decoded copy"):
        assert_mini(datasets.get("miniimagenet", data_dir=tmp_path))
    (tmp_path / "images" / "n0153282900000003.jpg").unlink()
    with pytest.raises(ValueError, match=r"n0153282900000003\.jpg: expected the image that train\.csv names"):
        datasets.get("miniimagenet", data_dir=tmp_path)
    (tmp_path / "val.csv").unlink()
    with pytest.raises(ValueError, match=r"val\.csv: expected all three csv files"):
        datasets.get("miniimagenet", data_dir=tmp_path)


# --- Tiny ImageNet --------------------------------------------------------------------------------

TINY = ("n01443537", "n01629819", "n01641577")


def jpeg(seed, grey=False):
    pixels = random_images(1, (64, 64) if grey else (64, 64, 3), seed)[0]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=95)
    return stream.getvalue()


def tiny_files():
    """Names and contents in the order of the official zip: words, wnids, then the parts."""
    files = {"words.txt": b"n00001740\tentity\n", "wnids.txt": "\n".join(TINY[::-1]).encode() + b"\n"}
    for c, wnid in enumerate(TINY):
        names = [f"{wnid}_{i}.JPEG" for i in range(4)]
        files |= {f"train/{wnid}/images/{n}": jpeg(10 * c + i, c + i == 0) for i, n in enumerate(names)}
        files[f"train/{wnid}/{wnid}_boxes.txt"] = "".join(f"{n}\t0\t10\t63\t58\n" for n in names).encode()
    files |= {f"val/images/val_{i}.JPEG": jpeg(100 + i) for i in range(6)}
    lines = [f"val_{i}.JPEG\t{TINY[(2 * i + 1) % 3]}\t0\t32\t44\t62\n" for i in range(6)]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files | {f"test/images/test_{i}.JPEG": jpeg(200 + i) for i in range(5)}


def pixels_of(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet(tmp_path, capsys, packed):
    files, root = tiny_files(), tmp_path / "tiny-imagenet-200"
    source = tmp_path / "tiny-imagenet-200.zip" if packed else root
    if packed:
        zipped(source, {"tiny-imagenet-200/": b""} | {f"tiny-imagenet-200/{n}": c for n, c in files.items()})
    else:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    data = datasets.get(source)
    assert data.classes == TINY
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    train = [files[f"train/{w}/images/{w}_{i}.JPEG"] for w in TINY for i in range(4)]
    assert np.array_equal(data.train_images, [pixels_of(content) for content in train])
    order = [1, 4, 0, 3, 2, 5]  # the val images of class 0, 1 and 2, of classes 1, 0, 2, 1, 0, 2
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(data.test_images, [pixels_of(files[f"val/images/val_{i}.JPEG"]) for i in order])
    said = capsys.readouterr().err
    assert said.count("skipped") == 1
    assert "5 images of test, which has no labels" in said
    assert "6 files that are not images (.txt)" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"val/images/val_9.JPEG": jpeg(1)},
            r"class of every image in val/val_annotations\.txt, got none of val_9",
        ),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn01443537\n"}, r"got none of val_[1-5]\.JPEG"),
        ({"val/val_annotations.txt": None}, "got none of images in one of them, train, but in test"),
    ],
)
def test_tiny_imagenet_whose_annotations_do_not_fit_is_refused(tmp_path, change, message):
    files = {name: content for name, content in (tiny_files() | change).items() if content is not None}
    zipped(tmp_path / "tiny.zip", files)
    with pytest.raises(ValueError, match=message):
        datasets.get(tmp_path / "tiny.zip")


def test_tiny_imagenet_with_val_sorted_into_classes_and_test_removed(tmp_path):
    files = {n: c for n, c in tiny_files().items() if not n.startswith("test/")}
    for i in range(6):
        files[f"val/{TINY[(2 * i + 1) % 3]}/images/val_{i}.JPEG"] = files.pop(f"val/images/val_{i}.JPEG")
    zipped(tmp_path / "tiny.zip", files)
    assert datasets.get(tmp_path / "tiny.zip").test_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_checksum_of_the_archives_of_these_tests_is_refused(tmp_path):
    files, _ = cifar10_files()
    path = tmp_path / "cifar-10-python.tar.gz"
    official_tar(path, "cifar-10-batches-py", files, CIFAR10_ORDER)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"expected md5 c58f30108f718f92721af3b95e74349a, got {md5}"):
        datasets.get("cifar10", data_dir=tmp_path)
