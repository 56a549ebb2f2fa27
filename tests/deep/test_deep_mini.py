"""The grid in miniature: its images, its order, its small records, and what is refused before training."""

import json

import numpy as np
import pytest
from test_deep_train import tiny

from ufm.deep import datasets, load, mini
from ufm.deep._mini_records import COMPARED, FORMAT, LAST_LAYER, name_of

#: two losses of a perceptron, minutes of a laptop made milliseconds
EXPERIMENT = mini.Experiment(
    net="mlp", losses=("ce", "mse"), widths=(0.0625,), epochs=(1, 2, 3), seeds=(0, 1), per_class=16
)


def colour(train=400, name="cifar10-tiny", per_class=None):
    """Images in colour; classes of different sizes, in shuffled order."""
    rng = np.random.default_rng(1)
    labels = rng.choice(8, train + 20, p=np.array([8, 7, 7, 7, 6, 6, 6, 6]) / 53).astype(np.int32)
    images = rng.integers(0, 255, (train + 20, 4, 4, 3)).astype(np.uint8)
    parts = images[:train], labels[:train], images[train:], labels[train:]
    return datasets.Dataset(name, *parts, tuple("abcdefgh"), (0.5,) * 3, (0.2,) * 3, source="noise")


def planned(out, **how):
    return mini.plan(out, how.pop("data", colour()), experiment=EXPERIMENT, **how)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The trained grid in its folder."""
    out = tmp_path_factory.mktemp("mini") / "runs"
    done = mini.train(planned(out), progress=False)
    assert done.done
    return out


def last(folder):
    """The last row of a run's own record."""
    return json.loads((folder / "record.json").read_text())["last"]


def test_the_images_are_the_first_of_each_class():
    data = colour()
    found = mini.dataset(data, experiment=EXPERIMENT)
    assert np.bincount(found.train_labels).tolist() == [16] * 8
    for k in range(8):
        own = data.train_images[data.train_labels == k][:16]
        np.testing.assert_array_equal(found.train_images[found.train_labels == k], own)
    np.testing.assert_array_equal(found.test_images, data.test_images)
    assert (found.mean, found.std) == datasets.CIFAR10
    assert (found.pad, found.flip, found.name) == (1, True, "cifar10-tiny-mini")
    assert found.source == "noise; the first 16 training images of each class, crops by 1"


def test_complete_comparisons_come_first(tmp_path):
    points = planned(tmp_path / "runs").points
    assert len(points) == EXPERIMENT.size == 12
    order = [(p.seed, p.epochs, p.width, EXPERIMENT.losses.index(p.loss)) for p in points]
    assert order == sorted(order)


def test_finished_runs_become_records_once(runs, tmp_path):
    into = tmp_path / "records"
    new = mini.collect(runs, into, EXPERIMENT)
    assert sorted(file.stem for file in new) == sorted(p.name for p in planned(runs).points)
    assert max(file.stat().st_size for file in new) < 5000
    assert mini.collect(runs, into, EXPERIMENT) == []
    kept, whole = mini.read(into, EXPERIMENT), mini.read(runs, EXPERIMENT)
    assert kept == whole
    assert kept.digest == whole.digest
    assert kept.progress == "12 of 12 runs"
    assert set(kept.label()) == {"runs", "network", "data", "hardware", "date"}
    (value,) = [run.history["nc1"][-1] for run in kept.of("mse", (0.0625, 2)) if run.config["seed"] == 1]
    assert value == pytest.approx(last(runs / "mse-w0.0625-e2-s1")["nc1"], rel=1e-5)
    assert kept.last("test_accuracy", "ce", (0.0625, 1)) == pytest.approx(
        [last(runs / f"ce-w0.0625-e1-s{seed}")["test_accuracy"] for seed in (0, 1)], rel=1e-5
    )
    new[0].unlink()
    assert mini.read(into, EXPERIMENT).progress == "11 of 12 runs"
    assert kept.complete((0.0625, 2))
    few = mini.Grid(
        EXPERIMENT, tuple(r for r in kept.records if not name_of(r["config"]).startswith("mse-w0.0625-e3"))
    )
    assert not few.complete((0.0625, 3))
    assert few.complete((0.0625, 2))
    assert [file.name for file in mini.collect(runs, into, EXPERIMENT)] == [new[0].name]


def test_records_keep_the_last_layer_beside_its_optima(runs, tmp_path):
    grid = mini.read(runs, EXPERIMENT)
    images = mini.dataset(colour(), experiment=EXPERIMENT)
    assert mini.compare_last_layers(runs, images) == []  # training has written all of them
    run = load(runs / "mse-w0.0625-e2-s1", data=images)
    for model in ("free", "nonnegative"):
        own = run.compare_with_ufm(model=model, refit=True).to_dict()
        for name in COMPARED:
            values = grid.last_layers(model, name, "mse", (0.0625, 2))
            assert len(values) == 2
            assert values[1] == pytest.approx(own[name], rel=1e-4)
    without = tuple({k: v for k, v in r.items() if k != "last_layer"} for r in grid.records)
    into = tmp_path / "records"
    into.mkdir()
    for record in without[:3]:  # as before their last layers were compared
        (into / f"{name_of(record['config'])}.json").write_text(json.dumps(record))
    assert len(mini.collect(runs, into, EXPERIMENT)) == 12
    assert mini.read(into, EXPERIMENT) == grid
    file = runs / "ce-w0.0625-e1-s0" / LAST_LAYER
    held = json.loads(file.read_bytes())
    file.unlink()
    assert mini.compare_last_layers(runs, images) == [file]
    for damaged in ("{", "null", json.dumps(held | {"free": {}})):  # or of another version
        file.write_text(damaged)
        assert mini.compare_last_layers(runs, images) == [file]
        assert json.loads(file.read_bytes()) == held
    assert mini.Grid(EXPERIMENT, without).last_layers("free", "nc2", "ce", (0.0625, 1)) == []


def test_shipped_runs_are_left_out(runs, tmp_path, monkeypatch):
    grid = mini.read(runs, EXPERIMENT)
    few = mini.Grid(EXPERIMENT, grid.records[3:])
    monkeypatch.setattr(mini, "shipped", lambda: few)
    left = {p.name for p in planned(tmp_path / "new", skip_shipped=True).points}
    assert left == {name_of(record["config"]) for record in grid.records[:3]}
    assert len(planned(tmp_path / "new", data=colour(380), skip_shipped=True).points) == 12  # other images
    joined = mini.Grid(EXPERIMENT, grid.records[:3]).joined(few)
    assert sorted(map(name_of, joined.configurations())) == sorted(map(name_of, grid.configurations()))
    monkeypatch.setattr(mini, "shipped", lambda: grid)
    with pytest.raises(ValueError, match="skip_shipped: expected a run that the package's records lack"):
        planned(tmp_path / "new", skip_shipped=True)


def test_the_shipped_records_are_of_the_experiment():
    grid = mini.shipped()
    for record in grid.records:
        assert record["format"] == FORMAT
        assert not mini.MINI.strange(record["config"])
        assert len(json.dumps(record)) < 6000
    assert len(grid.records) <= mini.MINI.size


# --- bad input ------------------------------------------------------------------------------------


def test_images_that_do_not_do():
    with pytest.raises(
        ValueError, match=r"data: expected at least 60 training images of each class, got \d+ of "
    ):
        mini.dataset(colour(), experiment=mini.Experiment(per_class=60))
    with pytest.raises(ValueError, match="data: expected images in colour, got tiny"):
        mini.dataset(tiny(), experiment=mini.Experiment(per_class=2))


def test_no_images_say_where_to_put_them(monkeypatch, tmp_path):
    def fails(*_, **__):
        raise ConnectionError("https://x/cifar-10-python.tar.gz: no download; put the file into /data")

    monkeypatch.setattr(datasets, "get", fails)
    with pytest.raises(
        OSError, match=r"put the file into /data; or pass a folder.* the records that the package"
    ):
        mini.plan(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_another_experiments_folder_is_refused_before_training(runs, tmp_path):
    with pytest.raises(ValueError, match=r"out: .* holds another sweep \(digest: "):
        planned(runs, data=colour(380))
    with pytest.raises(ValueError, match=r"holds another experiment \(ce-w0.0625-e1-s0 has net='mlp'\)"):
        mini.read(runs)
    with pytest.raises(ValueError, match="runs: expected a folder of records, got"):
        mini.read(tmp_path / "none", EXPERIMENT)


def test_another_schema_is_refused_by_name(runs, tmp_path):
    into = tmp_path / "records"
    file = mini.collect(runs, into, EXPERIMENT)[0]
    good = file.read_text()
    changes = ({"format": "ufm mini record 9"}, {"last_layer": {"free": {}}})
    for bad in (*(json.dumps(json.loads(good) | change) for change in changes), "{", "[]", '{"history": 3}'):
        file.write_text(bad)
        with pytest.raises(ValueError, match=rf"{file.name} is not a record that this version reads"):
            mini.read(into, EXPERIMENT)
    other = json.loads(good)
    other["config"]["digest"] = "0"
    file.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="expected runs of one experiment, got two"):
        mini.read(into, EXPERIMENT)
