"""Data sets: the record, the split, files of one format and downloads, and every broken one."""

import gzip
import hashlib
import http.server
import pickle
import tarfile
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from ufm.deep import _archives, _download, datasets
from ufm.deep.datasets import Dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path_factory.mktemp("cache")))


def random_images(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


# --- the record and the split ---------------------------------------------------------------------


def test_the_split_is_the_papers():
    train, validation = datasets.validation_split(50_000)
    assert validation[:8].tolist() == [26247, 35067, 34590, 16668, 12196, 2600, 9047, 2206]
    assert train[:4].tolist() == [45573, 39021, 36044, 45885]
    assert (len(validation), int(validation.sum())) == (5000, 122_592_196)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(50_000))


def test_the_default_set_needs_no_files():
    data = datasets.get("digits")
    assert data.train_images.shape == (1438, 8, 8, 1)
    assert data.test_images.shape == (359, 8, 8, 1)
    pixels = data.train_images / 255
    assert np.allclose(data.mean, pixels.mean())
    assert np.allclose(data.std, pixels.std())
    assert set(data.train_labels) == set(data.test_labels) == set(range(10))
    assert data.digest == datasets.digits().digest


def test_the_digest_sees_every_pixel_and_label():
    data = small()
    images, labels = data.train_images.copy(), data.train_labels.copy()
    images[3, 1, 2, 0] ^= 1
    labels[0] = 1 - labels[0]
    digests = {data.digest, small(train_images=images).digest, small(train_labels=labels).digest}
    assert len(digests) == 3


def small(**changes):
    values = {
        "name": "small",
        "train_images": random_images(6, (5, 4, 3)),
        "train_labels": np.array([0, 1, 0, 1, 1, 0]),
        "test_images": random_images(2, (5, 4, 3), seed=1),
        "test_labels": np.array([1, 0]),
        "classes": ("a", "b"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
    }
    return Dataset(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_labels": np.array([0, 1, 0, 2, 1, 0])},
            r"train_labels: expected classes in 0\.\.1, got 2 at",
        ),
        ({"test_labels": np.array([-1, 0])}, r"test_labels: expected classes in 0\.\.1, got -1 at image 0"),
        ({"train_labels": np.array([0, 1])}, "train_labels: expected 6 integers"),
        ({"train_labels": np.zeros(6)}, "train_labels: expected 6 integers, one an image, got float64"),
        ({"train_images": np.zeros((6, 5, 4, 3))}, "train_images: expected uint8 images"),
        ({"test_images": random_images(2, (4, 4, 3))}, "test_images: expected images of 5x4x3, .* got 4x4x3"),
        ({"mean": (0.5,)}, r"mean: expected one a channel \(3\)"),
    ],
)
def test_a_wrong_record_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize("kind", [list, tuple, np.uint8, ">i8", "jax"])
def test_labels_may_be_any_sequence_of_integers(kind):
    labels = np.array([0, 1, 0, 1, 1, 0])
    if kind == "jax":
        given = jnp.asarray(labels)
    else:
        given = kind(labels.tolist()) if kind in (list, tuple) else labels.astype(kind)
    data = small(train_labels=given, classes=["a", "b"])
    assert data.train_labels.dtype == np.int32
    assert data.train_labels.tolist() == labels.tolist()
    assert data.classes == ("a", "b")
    assert data.digest == small().digest


def test_images_may_be_a_list_of_arrays():
    data = small(train_images=list(random_images(6, (5, 4, 3))))
    assert data.digest == small().digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": [0, 1]}, r"train_labels: expected 6 integers, one an image, got int64 \(2,\)"),
        ({"train_labels": [0, 1, 0, 2, 1, 0]}, r"train_labels: expected classes in 0\.\.1, got 2 at image 3"),
        ({"train_labels": [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]}, "train_labels: expected 6 integers.*float64"),
        ({"train_labels": ["a", "b", "a", "b", "b", "a"]}, "train_labels: expected 6 integers.*<U1"),
        ({"train_labels": [[0], [1, 0]]}, "train_labels: expected 6 integers, one an image, got list"),
        ({"train_labels": [True, False] * 3}, "train_labels: expected 6 integers.*bool"),
        ({"train_labels": None}, "train_labels: expected 6 integers"),
        ({"test_labels": np.ma.array([1, 0], mask=[0, 1])}, "test_labels: .*got 1 that are masked; take"),
        ({"train_images": [[1, 2], [3]]}, "train_images: expected uint8 images .*, got list"),
        ({"train_images": random_images(6, (5, 4, 3)).tolist()}, r"train_images: .*got int64 \(6, 5, 4, 3\)"),
        ({"std": (0.5,)}, r"std: expected one a channel \(3\), got \(0\.5,\)"),
    ],
)
def test_what_is_no_labels_or_images_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_unknown_names_list_the_known():
    with pytest.raises(
        ValueError, match=r"data: expected one of digits, mnist, .*did you mean 'cifar10'.*path"
    ):
        datasets.get("cifar-10")
    with pytest.raises(ValueError, match="data_dir: expected a folder"):
        datasets.get("mnist", data_dir="/no/such/folder")


# --- idx ------------------------------------------------------------------------------------------


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder, train=30, test=10):
    rng = np.random.default_rng(3)
    for part, count in (("train", train), ("t10k", test)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(random_images(count, (28, 28), seed=count)))
        labels = rng.permutation(np.resize(np.arange(10, dtype=np.uint8), count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def test_mnist_from_idx_files(tmp_path):
    write_mnist(tmp_path)
    data = datasets.get("mnist", data_dir=tmp_path)
    assert np.array_equal(data.train_images[..., 0], random_images(30, (28, 28), seed=30))
    assert np.array_equal(data.test_images[..., 0], random_images(10, (28, 28), seed=10))
    assert np.bincount(data.train_labels).tolist() == [3] * 10
    part = datasets.get("mnist10k", data_dir=tmp_path)
    both = np.concatenate([part.train_images, part.test_images])[..., 0]
    assert (len(part.train_images), len(part.test_images)) == (8, 2)
    assert {image.tobytes() for image in both} == {i.tobytes() for i in random_images(10, (28, 28), seed=10)}


def test_mnist_labels_that_are_not_one_an_image_are_refused(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, np.uint8)))
    for name in ("mnist", "mnist10k"):
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte, got \(7,\) for 10 images; download"):
            datasets.get(name, data_dir=tmp_path)


@pytest.mark.parametrize("cut", [3, 10, 100, -1])
@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_idx_file_is_refused(tmp_path, cut, packed):
    content = idx(random_images(4, (28, 28)))
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(content)[:cut] if packed else content[:cut])
    with pytest.raises(ValueError, match=r"x(\.gz)?: expected an? (gzipped )?idx file.*download it again"):
        _archives.read_idx(path)


# --- CIFAR ----------------------------------------------------------------------------------------


def cifar_batch(count, seed, key=b"labels", K=10):
    images = random_images(count, (32, 32, 3), seed)
    labels = np.random.default_rng(seed).integers(0, K, count).tolist()
    rows = images.transpose(0, 3, 1, 2).reshape(count, 3072)
    return images, labels, {b"data": rows, key: labels, b"batch_label": b"some batch"}


def write_cifar10(folder):
    """The official layout, with 4 images in each file."""
    folder.mkdir()
    expected = []
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images, labels, batch = cifar_batch(4, seed)
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        expected.append((images, labels))
    names = [b"airplane", b"automobile", *(f"c{i}".encode() for i in range(8))]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return expected


def assert_cifar10(data, expected):
    train = np.concatenate([images for images, _ in expected[:5]])
    assert np.array_equal(data.train_images, train)
    assert data.train_labels.tolist() == [label for _, labels in expected[:5] for label in labels]
    assert np.array_equal(data.test_images, expected[5][0])
    assert data.test_labels.tolist() == expected[5][1]
    assert data.classes[:2] == ("airplane", "automobile")
    assert (data.mean, data.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def pack(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return hashlib.md5(path.read_bytes()).hexdigest()


def accept(monkeypatch, md5):
    """Take an archive of this checksum for the official one."""
    monkeypatch.setattr(datasets, "Archive", lambda url, _: _download.Archive(url, md5))


def test_cifar10_unpacked_and_packed(tmp_path, monkeypatch):
    expected = write_cifar10(tmp_path / "cifar-10-batches-py")
    assert_cifar10(datasets.get("cifar10", data_dir=tmp_path), expected)
    assert_cifar10(datasets.get("cifar10", data_dir=tmp_path / "cifar-10-batches-py"), expected)
    packed = tmp_path / "packed"
    packed.mkdir()
    archive = packed / "cifar-10-python.tar.gz"
    accept(monkeypatch, pack(tmp_path / "cifar-10-batches-py", archive))
    for _ in ("read", "read its decoded copy"):
        assert_cifar10(datasets.get("cifar10", data_dir=packed), expected)
    copy = next((_download.cache_dir() / "decoded").iterdir())
    copy.write_bytes(copy.read_bytes()[:-40])
    assert_cifar10(datasets.get("cifar10", data_dir=packed), expected)


def test_cifar100_reads_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        images, labels, batch = cifar_batch(5, seed, b"fine_labels", 100)
        (folder / name).write_bytes(pickle.dumps(batch | {b"coarse_labels": [0] * 5}, protocol=2))
    data = datasets.get("cifar100", data_dir=tmp_path)
    assert np.array_equal(data.test_images, images)
    assert data.test_labels.tolist() == labels
    assert data.K == 100


def test_an_archive_of_another_checksum_is_refused(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half an archive")
    with pytest.raises(
        ValueError, match=r"cifar-10-python.tar.gz: expected md5 c58f30108f71.*delete it.*https"
    ):
        datasets.get("cifar10", data_dir=tmp_path)
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half an archive")
    with pytest.raises(ValueError, match="expected md5 eb9058c3a382ffc7106e4002c42a8d85"):
        datasets.get("cifar100", data_dir=tmp_path)


def test_a_truncated_archive_is_refused(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    archive = tmp_path / "x" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    pack(tmp_path / "cifar-10-batches-py", archive)
    whole = archive.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 200):
        archive.write_bytes(whole[:length])
        accept(monkeypatch, hashlib.md5(whole[:length]).hexdigest())
        with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz.*expected .*download it again"):
            datasets.get("cifar10", data_dir=archive.parent)


class Program:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {b"data": Program(), b"labels": []},
            r"holds (__builtin__|builtins)\.print, but only plain arrays are allowed",
        ),
        ({b"data": np.zeros((4, 3000), np.uint8), b"labels": [0] * 4}, "expected rows of 3072 bytes"),
        ({b"labels": [0] * 4}, "expected data_batch_1 with data and labels"),
        ({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 10]}, r"classes in 0\.\.9, got 10"),
        ({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2]}, "expected 20 integers"),
        ([1, 2], "expected a pickled dictionary"),
    ],
)
def test_wrong_pickles_are_refused(tmp_path, capsys, content, message):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=message):
        datasets.get("cifar10", data_dir=tmp_path)
    assert "this ran" not in capsys.readouterr().out


# --- downloads ------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Breaks off in the middle until it is asked for the rest."""

    content = bytes(random_images(1, (3000, 7))) * 100
    asked: list[str | None]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        rest = self.content[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest if wanted else rest[: len(rest) // 3])

    def log_message(self, *_):
        pass


def test_a_download_that_breaks_off_is_continued(tmp_path):
    Server.asked = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/set.bin"
        archive = _download.Archive(url, hashlib.md5(Server.content).hexdigest())
        with pytest.raises(ConnectionError, match="call again to continue it, or put the file into"):
            _download.fetch(archive, tmp_path)
        came = (tmp_path / "set.bin.part").stat().st_size
        assert 0 < came < len(Server.content)
        assert _download.fetch(archive, tmp_path).read_bytes() == Server.content
        assert Server.asked == [None, f"bytes={came}-"]
        assert [path.name for path in tmp_path.iterdir()] == ["set.bin"]
        wrong = archive._replace(url=f"{url}2", md5="0" * 32)
        with pytest.raises(ConnectionError):
            _download.fetch(wrong, tmp_path)
        with pytest.raises(ValueError, match="hash"):
            _download.fetch(wrong, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["set.bin"]
    finally:
        server.shutdown()
        server.server_close()
