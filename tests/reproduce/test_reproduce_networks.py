"""Rows about trained networks: verdicts follow from records, synthetic ones here; incomplete grids say so."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ufm import reproduce
from ufm._cli import main
from ufm.deep import datasets, mini
from ufm.deep._mini_records import COMPARED, FIELDS, FORMAT
from ufm.reproduce import STATEMENTS, Finding, _last_layers, _networks, _runner, _section_4

E = mini.MINI
CELLS = E.cells
LARGE = CELLS[-1]


def record(loss, width, epochs, seed, **change):
    """A record in which the paper's claims are true: everything follows from a size between 0 and 1."""
    rank = CELLS.index((width, epochs)) / (len(CELLS) - 1)
    nth = E.losses.index(loss)
    time = np.linspace(0.1, 1, 10)
    nc1 = 4.0 * 10 ** (-(0.5 + 3.2 * rank) * (time - 0.1)) * (1 + 0.1 * nth)
    bent = 0.3 if loss == "mse" else 0.0  # the optimum of MSE is no simplex
    test = 0.5 + 0.2 * rank - (0.01 - 0.007 * rank) * nth / 3 + 0.001 * seed
    history = dict.fromkeys(FIELDS, [0.5] * 10) | {
        "epoch": [int(t * epochs) for t in time],
        "validation_accuracy": [None] * 10,
        "train_accuracy": list(0.6 + 0.4 * time * (0.8 + 0.2 * rank)),
        "test_accuracy": list(test * time),
        "nc1": list(nc1),
        "nc2": list(bent + 0.6 * (nc1 / 4) ** 0.3),
        "nc3": list(0.8 * (nc1 / 4) ** 0.4),
    }
    config = {
        "loss": loss, "width": width, "epochs": epochs, "seed": seed, "net": E.net, "preset": E.preset,
        "data": "cifar10-toy", "weight_decay": 5e-4, "max_train": None,
    }  # fmt: skip
    hardware = {"backend": "cpu", "processor": "Abacus", "cpus": 2}
    end = {name: (history | change)[name][-1] for name in ("nc1", "nc2")}
    layer = dict.fromkeys(COMPARED, 0.5) | end | {"optimal_nc2": bent}
    return {
        "format": FORMAT, "date": f"2026-01-0{1 + seed}", "status": "completed", "config": config,
        "source": "toys", "hardware": hardware, "history": history | change,
        "last_layer": {"free": layer, "nonnegative": layer},
    }  # fmt: skip


def grid(keep=lambda *_: True, change=lambda *_: {}):
    points = [(loss, *cell, seed) for loss in E.losses for cell in CELLS for seed in E.seeds]
    return mini.Grid(E, tuple(record(*p, **change(*p)) for p in points if keep(*p)))


def found(given):
    """The findings of the rows on a grid."""
    rows = _section_4.rows(lambda: given)
    return {
        row.id: Finding(row, tuple(_runner.measure(row, job) for job in row.jobs("quick"))) for row in rows
    }


def at_the_end(name, value):
    """The change of a record that gives one loss another last value in the largest networks."""

    def change(loss, width, epochs, seed):
        if (loss, width, epochs) != ("mse", *LARGE):
            return {}
        old = record(loss, width, epochs, seed)["history"][name]
        return {name: [*old[:-1], value]}

    return change


IDS = [row.id for row in _section_4.rows()]


def test_the_papers_claims_hold_where_the_records_are_as_the_paper_says():
    for finding in found(grid()).values():
        assert finding.verdict == "holds", finding.counterexample
        label = dict(finding.records[0].outcome.tables[-1].rows)
        assert label["runs"] == "72 of 72 runs"
        assert (label["data"], label["hardware"]) == ("cifar10-toy (toys)", "Abacus (2 cores)")
        assert label["date"] == "2026-01-01 to 2026-01-03"
        assert finding.instances
        assert finding.records[0].outcome.curves


#: what is put into the largest MSE networks, and the rows that then fail
WRONG = {
    "nc2": (0.5, {"networks-collapse", "networks-last-layer"}),
    "train_accuracy": (0.998, {"networks-accuracy"}),
    "test_accuracy": (0.3, {"networks-accuracy", "networks-width-epochs", "networks-two-ends"}),
    "nc1": (50.0, {"networks-collapse", "networks-nc1"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_loss_that_differs_makes_a_row_fail(name):
    value, expected = WRONG[name]
    verdicts = {key: finding.verdict for key, finding in found(grid(change=at_the_end(name, value))).items()}
    assert {key for key, verdict in verdicts.items() if verdict != "holds"} == expected


def test_the_numbers_are_means_over_the_seeds():
    outcome = _networks.better(grid())
    ours = {rows[0]: rows[1:] for rows in outcome.tables[1].rows}
    assert ours["largest difference between losses, narrow, short"] == ("1.00", "1.037")
    assert ours["largest difference between losses, wide, long"] == ("0.30", "0.36")
    first = outcome.tables[0].rows[0]
    assert first[1] == "50.10 +- 0.10 (3)"  # CE: 0.5 + 0.001 seed
    (ratio,) = [i for i in _networks.collapse_grid(grid()).instances if "ratio" in i.details]
    assert ratio.details["ratio"] == pytest.approx(10 ** (3.2 * 0.9), rel=1e-9)
    assert ratio.deviation == pytest.approx(1000 / 10 ** (3.2 * 0.9), rel=1e-9)


def test_what_is_left_of_nc2_is_told_step_by_step():
    def change(loss, *_):
        return {"nc2": [0.42] * 10} if loss == "mse" else {}

    outcome = _last_layers.causes(grid(change=change))
    steps, beside = outcome.tables
    mse = steps.rows[E.losses.index("mse")]
    assert mse[2:] == ("0.42 +- 0 (3)", "0.5 +- 0 (3)", "0.5 +- 0 (3)", "0.3 +- 0 (3)", "0.3 +- 0 (3)")
    assert steps.rows[0][5] == "0 +- 0 (3)"
    assert beside.rows[0] == ("CE", *["0.5 (0.5)"] * 5)
    bent, together = outcome.instances
    assert bent.deviation == pytest.approx(0.4)
    assert together.config["runs"] == 72
    curves = {(curve.panel, curve.label): curve for curve in outcome.curves}
    assert dict(zip(curves["causes", "as trained"].y, curves["causes", "as trained"].x, strict=True))[
        "MSE"
    ] == pytest.approx(0.42)
    np.testing.assert_allclose(curves["rest", "MSE"].y, 0.12)
    reverse = grid(change=lambda *point: {"nc1": list(1 / np.array(record(*point)["history"]["nc1"]))})
    assert _last_layers.causes(reverse).instances[-1].deviation > 1  # falls where NC1 rises


def test_an_incomplete_grid_is_judged_by_what_is_there():
    small = found(grid(keep=lambda loss, width, epochs, seed: seed == 0 and epochs == E.epochs[0]))
    for finding in small.values():
        assert dict(finding.records[0].outcome.tables[-1].rows)["runs"] == "12 of 72 runs"
        assert finding.verdict == "unfinished"  # width alone says nothing of epochs
        assert not finding.errors
    for finding in found(grid(keep=lambda *_: False)).values():
        assert finding.verdict == "unfinished"
        assert not finding.errors
    for finding in found(grid(keep=lambda loss, *_: loss != "mse")).values():
        assert finding.verdict == "unfinished"  # a claim about every loss needs every loss
    more = grid(keep=lambda loss, width, epochs, seed: seed == 0 or epochs == E.epochs[0])
    assert _networks.shown(more) == LARGE  # though other cells have more seeds
    assert {finding.verdict for finding in found(more).values()} == {"holds"}


def test_new_records_are_measured_again():
    def names(given):
        return {job.name for row in _section_4.rows(lambda: given) for job in row.jobs("quick")}

    assert len(names(grid())) == 1
    assert not names(grid()) & names(grid(change=at_the_end("nc2", 0.03)))


def test_a_report_shows_the_shipped_records(tmp_path, monkeypatch):
    rows = _section_4.rows(lambda: grid())
    monkeypatch.setattr(reproduce.statements, "STATEMENTS", rows)
    done = reproduce.reproduce(tmp_path, only=("networks-collapse", "networks-two-ends"), progress=False)
    assert [finding.verdict for finding in done.findings] == ["holds", "holds"]
    assert set(done.figures) == {"networks-collapse", "networks-two-ends"}
    page = (tmp_path / "report.html").read_text()
    assert "72 of 72 runs" in page
    assert "Abacus" in page
    assert "71.95" in page  # the paper's numbers beside ours
    assert set(IDS) <= {row.id for row in STATEMENTS}


# --- training anew --------------------------------------------------------------------------------


TOY = mini.Experiment(net="mlp", losses=("ce",), widths=(0.0625,), epochs=(1,), seeds=(0,), per_class=32)


def toy_images(*_, **__):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (160, 4, 4, 3)).astype(np.uint8), np.arange(160, dtype=np.int32) % 4
    return datasets.Dataset(
        "toys", images[:140], labels[:140], images[140:], labels[140:], tuple("abcd"), (0.5,) * 3, (0.2,) * 3
    )


def test_training_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "MINI", TOY)
    monkeypatch.setattr(datasets, "get", toy_images)
    arguments = ["reproduce", "--quick", "--only", "networks-accuracy", "--deep", "mini", "--data", "x"]
    out = tmp_path / "report"
    done = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    assert done.exit_code in (0, 1), done.output
    data = json.loads((out / "report.json").read_text())
    (row,) = data["rows"]
    assert row["tables"][-1]["rows"][0] == ["runs", "1 of 1 runs"]
    files = sorted(out.glob("deep/*/record.json"))
    assert [file.parent.name for file in files] == ["ce-w0.0625-e1-s0"]
    before = [file.stat().st_mtime_ns for file in files]
    CliRunner().invoke(main, [*arguments, "--out", str(out)])  # goes on: nothing is trained again
    assert [file.stat().st_mtime_ns for file in files] == before


def test_what_cannot_be_trained_is_refused_before_the_folder_is_made(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ConnectionError("no download; put the file into /data")

    monkeypatch.setattr(datasets, "get", fails)
    refused = CliRunner().invoke(
        main, ["reproduce", "--quick", "--out", str(tmp_path / "new"), "--deep", "mini"]
    )
    assert refused.exit_code == 2
    assert "without training it shows the records that the package contains" in refused.output
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="deep: expected one of shipped, mini, got 'maxi'"):
        reproduce.reproduce(tmp_path / "new", deep="maxi")
