"""Runs that are killed, corrupted or changed: nothing is lost, nothing is mixed up."""

import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ufm import _files, deep
from ufm.deep import _checkpoint, _config, _resume, _train

HOW = {"net": "mlp", "width": 0.25, "epochs": 6, "preset": "small", "max_train": 128, "checkpoint_seconds": 0}
TIMES = ("images_per_second", "seconds")


def train(out, **how):
    return deep.train("digits", out=out, **(HOW | how))


def bits(run):
    """State and history without its times."""
    history = run.history._replace(**dict.fromkeys(TIMES, 0.0))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((run.state, history))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happens to; its folder is read by many tests and written by none."""
    return train(tmp_path_factory.mktemp("whole"))


class StopError(Exception):
    pass


def interrupt(out, monkeypatch, after=4, **how):
    """A run that is stopped after so many epochs, its checkpoints written."""
    epoch = _train._Trainer._epoch

    def stopping(self, position):
        if position.epoch == after:
            self.folder.wait()
            raise StopError
        return epoch(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(_train._Trainer, "_epoch", stopping)
        with pytest.raises(StopError):
            train(out, **how)


# --- killed ---------------------------------------------------------------------------------------

CHILD = """
import sys
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from ufm import _files, deep
deep.train("digits", net="mlp", width=0.5, epochs=60, preset="paper", metrics_every=7, out=sys.argv[1],
           checkpoint_seconds=0)
"""


def start(out, cache):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(cache)])


def finish(out, cache):
    assert start(out, cache).wait() == 0
    return deep.load(out)


@pytest.mark.long
def test_a_run_killed_at_random_times_ends_bit_for_bit_like_one_that_was_not(tmp_path):
    cache, out, rng = tmp_path / "cache", tmp_path / "killed", random.Random()
    expected = finish(tmp_path / "whole", cache)
    kills = []
    for _ in range(3):
        before = newest(out)
        child = start(out, cache)
        while newest(out) == before and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills.append(newest(out))
        for path in (out / "checkpoints").glob("epoch-*.npz"):
            _checkpoint.read(path, _checkpoint.Folder(out).run)
    assert 0 < min(kills) < 60, kills
    run = finish(out, cache)
    assert run.epoch == 60
    assert run.notes == ()
    assert bits(run) == bits(expected), kills


def newest(out):
    """Epochs of the newest checkpoint."""
    names = [path.stem for path in (out / "checkpoints").glob("epoch-*.npz")]
    return max((int(name.removeprefix("epoch-")) for name in names), default=0)


def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, monkeypatch, whole):
    interrupt(tmp_path, monkeypatch)
    assert deep.load(tmp_path).status is deep.Status.RUNNING
    assert bits(train(tmp_path)) == bits(whole)


def test_a_finished_run_is_returned_and_not_trained_again(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(out)
    monkeypatch.setattr(_train._Trainer, "run", None)
    monkeypatch.setattr(_config, "code_version", lambda: {"ufm": "other"})
    again = train(out)
    assert bits(again) == bits(whole)
    assert again.status is deep.Status.COMPLETED
    assert again.code == whole.code
    read = deep.load(out)
    assert bits(read) == bits(whole)
    assert read.config == whole.config
    assert np.array_equal(read.features("test")[0], whole.features("test")[0])
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "epoch-000005.npz",
        "epoch-000006.npz",
    ]


# --- broken and foreign checkpoints ---------------------------------------------------------------


def test_a_flipped_bit_or_a_cut_is_refused_or_harmless(tmp_path, whole):
    key = jax.random.key(0)
    checkpoint = _resume.Position(6, whole.state, key, whole.history, 1.0, (), whole.status, "").checkpoint()
    path = tmp_path / "epoch-000006.npz"
    _checkpoint.write(path, checkpoint, "me")
    good, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        bad = bytearray(good)
        if rng.random() < 0.3:
            bad = bad[: rng.integers(len(bad))]
        else:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            read = _checkpoint.read(path, "me")
        except _checkpoint.RefusedError:
            refused += 1
            continue
        assert read.facts == checkpoint.facts
        assert all(np.array_equal(read.arrays[k], a, equal_nan=True) for k, a in checkpoint.arrays.items())
    assert refused > 50
    path.write_bytes(good)
    with pytest.raises(_checkpoint.RefusedError, match="of another run"):
        _checkpoint.read(path, "you")


@pytest.mark.parametrize("kind", ["corrupt", "foreign"])
def test_the_older_checkpoint_is_tried(tmp_path, monkeypatch, whole, kind):
    out = tmp_path / "run"
    interrupt(out, monkeypatch)
    latest = out / "checkpoints" / "epoch-000004.npz"
    if kind == "corrupt":
        content = bytearray(latest.read_bytes())
        content[len(content) // 2] ^= 8
        latest.write_bytes(content)
    else:
        train(tmp_path / "other", seed=1)
        shutil.copy(tmp_path / "other" / "checkpoints" / "epoch-000006.npz", latest)
    run = train(out)
    assert bits(run) == bits(whole)
    (note,) = run.notes
    assert "refused" in note
    assert str(tmp_path) not in note  # records are published
    assert "epoch-000004.npz" in note
    assert ("another run" in note) == (kind == "foreign")


def test_without_a_readable_checkpoint_nothing_is_started_over(tmp_path, monkeypatch):
    interrupt(tmp_path, monkeypatch)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"no checkpoint can be read: .*000004\.npz: broken.*000003\.npz"):
        train(tmp_path)


def test_a_folder_that_is_no_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out: expected a folder"):
        train(tmp_path / "file")
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the record of a run"):
        train(tmp_path)
    with pytest.raises(ValueError, match=r"without record\.json"):
        deep.load(tmp_path / "none")
    interrupt(tmp_path / "run", monkeypatch, after=1)
    (tmp_path / "run" / "record.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints and no record\.json"):
        train(tmp_path / "run")


# --- changed runs ---------------------------------------------------------------------------------


def test_another_configuration_is_refused_with_the_difference(tmp_path, monkeypatch, whole):
    interrupt(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"holds another run \(learning_rate: 0\.1 -> 0\.02\).*'changed'"):
        train(tmp_path, learning_rate=0.02)
    with pytest.raises(ValueError, match="holds a run already"):
        train(tmp_path, resume=False)
    for how, name in (({"width": 0.5}, "width"), ({"net": "small_resnet"}, "net")):
        with pytest.raises(ValueError, match=f"other data or another network .*{name}: "):
            train(tmp_path, resume="changed", **how)
    with pytest.raises(ValueError, match="epochs: expected more than the 4"):
        train(tmp_path, epochs=3, resume="changed")
    run = train(tmp_path, learning_rate=0.02, resume="changed")
    assert run.notes == ("changed after epoch 4: learning_rate: 0.1 -> 0.02",)
    assert np.allclose(run.history.learning_rate, [0.1, 0.1, 0.01, 0.01, 0.0002, 0.0002])
    assert bits(run) != bits(whole)
    assert deep.load(tmp_path).config.learning_rate == 0.02


def test_a_finished_run_goes_on_for_more_epochs(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match="epochs: 6 -> 8"):
        train(tmp_path, epochs=8)
    run = train(tmp_path, epochs=8, resume="changed")
    assert run.epoch == 8
    assert run.history.epoch.tolist() == list(range(1, 9))


@pytest.mark.parametrize("kind", ["killed", "corrupt"])
def test_a_finished_run_that_went_on_goes_on_again(tmp_path, monkeypatch, kind):
    how = {"epochs": 8, "checkpoint_seconds": 3600}
    for folder in ("one", "two"):
        train(tmp_path / folder)
    wanted = train(tmp_path / "one", resume="changed", **how)
    if kind == "killed":  # before its first checkpoint
        interrupt(tmp_path / "two", monkeypatch, after=6, resume="changed", **how)
    else:
        train(tmp_path / "two", resume="changed", **how)
        (tmp_path / "two" / "checkpoints" / "epoch-000008.npz").write_bytes(b"")
    run = train(tmp_path / "two", **how)
    assert (run.status, run.epoch) == (deep.Status.COMPLETED, 8)
    assert bits(run) == bits(wanted)
    assert [note for note in run.notes if "refused" not in note] == list(wanted.notes)


def test_a_change_is_told_though_the_next_process_is_killed_at_once(tmp_path, monkeypatch):
    interrupt(tmp_path, monkeypatch)
    interrupt(tmp_path, monkeypatch, learning_rate=0.02, resume="changed")
    assert train(tmp_path, learning_rate=0.02).notes == ("changed after epoch 4: learning_rate: 0.1 -> 0.02",)


def test_other_code_is_refused(tmp_path, monkeypatch, whole):
    interrupt(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(_config, "code_version", lambda: whole.code | {"source": "other"})
        with pytest.raises(ValueError, match=r"begun by other code \(source: '\w+' -> 'other'\).*'changed'"):
            train(tmp_path)
        run = train(tmp_path, resume="changed")
    assert bits(run) == bits(whole)
    assert [note.split(":")[1] for note in run.notes] == [" code, source"]


def test_other_data_are_refused_even_as_a_change(tmp_path, monkeypatch):
    interrupt(tmp_path, monkeypatch)
    data = deep.datasets.get("digits")
    labels = data.train_labels.copy()
    labels[-1] = (labels[-1] + 1) % 10
    other = dataclasses.replace(data, train_labels=labels)
    with pytest.raises(ValueError, match=r"holds another run \(digest: '\w+' -> '\w+'\)"):
        deep.train(other, out=tmp_path, **HOW)
    with pytest.raises(ValueError, match=r"a run of other data or another network \(digest: "):
        deep.train(other, out=tmp_path, resume="changed", **HOW)
    with pytest.raises(ValueError, match=r"a run of other data or another network \(digest: "):
        deep.load(tmp_path, data=other)


NUMBERS = ("train", "plan", "step", "measure", "feed", "mesh", "config", "history")
CODE = (
    *(f"deep/_{name}.py" for name in NUMBERS),
    *(f"deep/{name}.py" for name in ("nets", "layers", "augment", "datasets", "presets")),
)


@pytest.mark.parametrize("module", CODE)
def test_the_guard_sees_a_change_of_every_module_that_numbers_depend_on(tmp_path, monkeypatch, module):
    sources = tmp_path / "ufm"
    shutil.copytree(_files.SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_files, "SOURCES", sources)
    version = _config.code_version.__wrapped__
    before = version()
    assert before == version()
    with (sources / module).open("a") as stream:
        stream.write("#")
    assert [line.split(":")[0] for line in _config.differences(before, version())] == ["source"]
    (sources / module).write_text((_files.SOURCES / module).read_text()[:-1])
    (sources / "deep" / "_sweep.py").write_text("")
    assert version() == before


def test_the_guard_covers_the_metrics_and_the_losses():
    covered = {path.relative_to(_files.SOURCES).parts[0] for path in _config.sources()}
    assert {"metrics", "deep"} <= covered
    assert {"losses", "losses.py"} & covered


# --- what goes wrong on the way -------------------------------------------------------------------


@pytest.mark.parametrize("at", [3, 6])
def test_a_full_disk_stops_with_what_was_saved(tmp_path, monkeypatch, whole, at):
    write = _checkpoint.write

    def full(path, checkpoint, run):
        if checkpoint.epoch >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, checkpoint, run)

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint, "write", full)
        run = train(tmp_path)
    assert run.status is deep.Status.NOT_SAVED
    for words in ("No space left on device", "free some space and call again"):
        assert words in run.message
    assert newest(tmp_path) == at - 1
    assert not list(tmp_path.rglob("*.part"))
    assert bits(train(tmp_path)) == bits(whole)


def test_a_failing_write_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "x"
    _files.write_whole(path, lambda stream: stream.write(b"old"))

    def fails(stream):
        stream.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        _files.write_whole(path, fails)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_run_that_diverged_is_kept_and_can_go_on_with_other_values(tmp_path):
    first = train(tmp_path, learning_rate=1e30)
    assert first.status is deep.Status.NON_FINITE
    again = train(tmp_path, learning_rate=1e30)
    assert (again.status, again.message) == (first.status, first.message)
    assert bits(again) == bits(first)
    run = train(tmp_path, learning_rate=1e-3, resume="changed")
    assert run.status in (deep.Status.COMPLETED, deep.Status.NON_FINITE)
    assert "learning_rate: 1e+30 -> 0.001" in run.notes[0]


def test_what_is_saved_is_a_copy():
    """On a CPU a view would share the buffer that the next step overwrites."""
    x = jax.numpy.arange(64.0)
    assert _checkpoint.named({"a": x}, "s")["s/a"].flags.owndata
