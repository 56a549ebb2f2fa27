"""`ufm train`, its sweeps, `ufm sweep --status`, `ufm figures`: the library's answers, misuse in one line."""

import json

import numpy as np
import pytest
from test_cli import answer, run

from ufm import deep, losses
from ufm._cli import _deep, _options
from ufm.deep import figures

SMALL = ("--net", "mlp", "--width", "0.125", "--preset", "small")
TINY = (*SMALL, "--epochs", "2", "--max-train", "128")


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("UFM_CACHE", "0")
    monkeypatch.setattr(_deep, "keep_freed_memory", lambda: True)  # for processes that train alone


def train(*args):
    return run("train", *TINY, *args)


# --- one run --------------------------------------------------------------------------------------


def test_train_gives_what_the_library_trains(tmp_path):
    result = train(
        "--loss", "mse", "--beta", 12, "--seed", 3, "--json", "--compare", "--out", tmp_path / "run"
    )
    found = answer(result)
    assert result.exit_code == 0
    how = {"net": "mlp", "width": 0.125, "preset": "small", "epochs": 2, "max_train": 128}
    own = deep.train("digits", loss="mse", beta=12, seed=3, **how)
    expected = own.to_dict()
    assert found["config"] == expected["config"]
    for name in ("train_loss", "test_accuracy", "nc1", "nc2", "nc3"):
        assert found["history"][name] == expected["history"][name]
    assert found["ufm"]["gap"] == own.compare_with_ufm().gap
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"record.json", "checkpoints", "figure.png", "figure.pdf"}
    # records are published: nothing of the machine's folders is in them
    assert str(tmp_path) not in (tmp_path / "run" / "record.json").read_text()


def test_train_tells_the_run_and_the_comparison(tmp_path):
    result = train("--compare", "--plot", tmp_path / "run.png")
    assert result.exit_code == 0
    assert "completed 2 epochs" in result.stdout
    assert "NC1 NC2 NC3" in result.stdout
    assert "cosine of class means" in result.stdout
    assert "\x1b" not in result.stdout
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_a_run_goes_on_and_refuses_other_settings_in_one_line(tmp_path):
    out = ("--out", tmp_path)
    assert train(*out).exit_code == 0
    before = (tmp_path / "record.json").read_bytes()
    assert train(*out).exit_code == 0
    assert (tmp_path / "record.json").read_bytes() == before
    refused(train(*out, "--batch", 32), r"holds another run (batch: 64 -> 32)")
    refused(train(*out, "--resume", "no"), "holds a run already")
    more = run("train", *SMALL, "--max-train", 128, "--epochs", 3, *out, "--resume", "changed", "--json")
    assert answer(more)["epoch"] == 3


def test_a_loss_that_is_not_finite_is_status_one():
    result = train("--loss", "mse", "--learning-rate", 1e30)
    assert result.exit_code == 1
    assert "try a learning rate below" in " ".join(result.stdout.split())


# --- sweeps ---------------------------------------------------------------------------------------


def test_lists_make_a_sweep_and_status_tells_of_it_anywhere(tmp_path):
    sweep = ("--loss", "ce,mse", "--seed", "0:2", "--out", tmp_path / "sweep")
    before = train(*sweep, "--status")
    assert before.exit_code == 0
    assert "Sweep of 4 runs: mlp on digits" in before.stdout
    assert "operations left" in before.stdout
    assert not (tmp_path / "sweep").exists()
    first = train(*sweep, "--shard", "1/2", "--json")
    assert first.exit_code == 0
    assert answer(first)["counts"] == {"completed": 2, "to continue": 0, "waiting": 2, "failed": 0}
    told = answer(run("sweep", "--status", tmp_path / "sweep", "--json"))
    assert told == answer(first)
    assert "rate: " in run("sweep", "--status", tmp_path / "sweep").stdout
    second = train(*sweep)
    assert second.exit_code == 0
    assert second.stdout.count("Sweep of 4 runs") == 2  # what it will cost, and what is done
    assert answer(run("sweep", "--status", tmp_path / "sweep", "--json"))["done"] is True
    records = figures.records(tmp_path / "sweep")
    assert {(r.config["loss"], r.config["seed"]) for r in records} == {
        ("ce", 0), ("ce", 1), ("mse", 0), ("mse", 1)
    }  # fmt: skip


def test_a_sweep_with_a_run_that_fails_is_status_one(tmp_path):
    result = train("--loss", "mse,ce", "--learning-rate", 1e30, "--out", tmp_path, "--json")
    assert result.exit_code == 1
    assert answer(result)["done"] is False


def test_all_is_every_loss(tmp_path):
    told = answer(train("--loss", "all", "--out", tmp_path / "sweep", "--status", "--json"))
    assert [r["loss"] for r in told["runs"]] == list(losses.PAPER)


def test_sweeps_of_the_ufm_are_what_they_were():
    found = answer(run("sweep", "--K", 4, "--d", 6, "--n", 3, "--lam", "1e-3,1e-2", "--json"))
    assert found["converged"] is True
    assert len(found["records"]) == 2


# --- figures --------------------------------------------------------------------------------------


def test_figures_are_drawn_from_what_train_wrote(tmp_path):
    out = tmp_path / "run"
    train("--out", out)
    args = ("figures", out, "--data", "digits", "--figure", "1,3", "--out", tmp_path / "figures")
    found = answer(run(*args, "--json"))
    assert found["records"] == 1
    assert [f["number"] for f in found["figures"]] == [1, 3]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "figure1.png", "figure1.pdf", "figure3.png", "figure3.pdf"
    }  # fmt: skip
    (last,) = [n["mean"] for n in found["figures"][1]["numbers"] if n["mean"] is not None]
    assert last == json.loads((out / "record.json").read_text())["last"]["test_accuracy"]
    told = run(*args)
    assert "1 runs, 3 missing: " in told.stdout
    assert "--data" not in told.stdout
    assert "add --data digits to draw" in run("figures", out, "--figure", "1", "--out", tmp_path / "f").stdout


def test_without_runs_figures_are_drawn_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(figures.FIGURES, 9, figures.FIGURES[10])  # the tests of figure 9 draw it
    found = answer(run("figures", "--out", tmp_path, "--json"))
    assert [f["number"] for f in found["figures"]] == list(figures.FIGURES)
    assert len(list(tmp_path.iterdir())) == 2 * len(figures.FIGURES)


# --- misuse ---------------------------------------------------------------------------------------


def refused(result, message):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--loss", "xe"), "loss: expected one of ce, ls, fl, mse"),
        (("--loss", ","), "loss: expected at least one value"),
        (("--data", "cifar"), "data: expected one of digits"),
        (("--data", "cifar10", "--data-dir", "/nowhere"), "data_dir: expected a folder"),
        (("--net", "wrn51"), "did you mean 'wrn50'"),
        (("--preset", "papr"), "preset: expected one of"),
        (("--width", "0.001"), "width: expected at least"),
        (("--width", "a"), "expected a number, got 'a'"),
        (("--epochs", "0"), "epochs: expected an integer >= 1, got 0"),
        (("--epochs", "1.5"), "expected an integer, a comma list or start:stop, got '1.5'"),
        (("--seed", "3:1"), "seed: expected at least one value"),
        (("--batch", "200"), "batch: expected at most the 128 training images"),
        (("--gamma", "2"), "gamma: expected a hyperparameter of loss 'ce'"),
        (("--dtype", "float16"), "dtype: expected one of float32, bfloat16"),
        (("--devices", "1000"), "devices: expected at most"),
        (("--shard", "1/2"), "shard: expected with a sweep only"),
        (("--status",), "status: expected with a sweep only"),
        (("--resume", "perhaps"), "'perhaps' is not one of"),
        (("--checkpoint-seconds", "-1"), "checkpoint_seconds: expected a finite number >= 0"),
        (("--plot", "run.txt"), "expected a file name ending in"),
        (("--loss", "ce,ls"), "out: expected the folder of the sweep's runs"),
        (("--loss", "ce,ls", "--out", "OUT", "--compare"), "compare: expected with a single run only"),
        (("--loss", "ce,ls", "--out", "OUT", "--plot", "a.png"), "plot: expected with a single run only"),
        (("--loss", "ce,ls", "--out", "OUT", "--shard", "3/2"), "shard: expected i/n"),
        (("--loss", "ce,ls", "--out", "OUT", "--resume", "no"), "resume: expected yes or changed"),
        (("--loss", "ce,xe", "--out", "OUT"), "loss: expected one of ce"),
        (("--seed", "1,1", "--out", "OUT"), "seeds: expected each value once"),
    ],
)
def test_misuse_of_train_is_one_line(args, message, tmp_path):
    out = tmp_path / "out"
    refused(train(*(out if arg == "OUT" else arg for arg in args)), message)
    assert not out.exists()


@pytest.mark.parametrize(
    "args", [("train", *TINY), ("train", *TINY, "--loss", "ce,ls"), ("figures",), ("solve",)]
)
def test_an_out_that_cannot_be_made_is_named(args, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out"
    refused(run(*args, "--out", place), f"out: expected a folder that can be written, got {str(place)!r} (")


def test_a_figure_that_cannot_be_written_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(_options.os, "access", lambda *_: False)
    refused(train("--plot", tmp_path / "a.png"), "'--plot': expected a folder that can be written")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    assert train("--out", tmp_path / "run").exit_code == 0
    refused(train("--loss", "ce,ls", "--out", tmp_path / "run"), "holds a single run")
    refused(run("sweep", "--status", tmp_path / "run"), "without sweep.json")
    refused(run("sweep", "--status", tmp_path / "absent"), "without sweep.json")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("absent",), "no such place 'absent'"),
        (("--figure", "11"), "figure: expected one of 1, 2"),
        (("--figure", "9", "--data", "digits"), "data: expected with a figure of training"),
        (("--figure", "a"), "expected an integer, a comma list"),
    ],
)
def test_misuse_of_figures_is_one_line(args, message, tmp_path):
    refused(run("figures", *args, "--out", tmp_path / "out"), message)
    assert not list(tmp_path.glob("out/*"))


def test_the_help_names_the_members_of_every_shelf():
    text = " ".join(run("train", "--help").stdout.split())
    for shelf in (deep.nets.NETS, deep.presets.PRESETS, deep.datasets.DATASETS, losses.LOSSES):
        assert all(name in text for name in shelf)
    assert np.all([name in run("--help").stdout for name in ("train", "figures", "sweep")])
