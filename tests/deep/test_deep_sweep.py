"""Sweeps: what they cost, that nothing is trained twice, what shards do, and what is refused first."""

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_deep_train import same_run, tiny
from tolerances import HANG

from ufm import deep
from ufm.deep import _compile_time, _cost, _plan, _sweep, datasets, nets, presets
from ufm.deep._sweep_folder import Row
from ufm.deep._sweep_status import SweepStatus, hours

SMALL = {"net": "mlp", "widths": (0.125,), "epochs": (2,), "preset": "small", "batch": 16}


def planned(out, **how):
    return _sweep.plan_sweep(out, how.pop("data", tiny()), **SMALL | {"losses": ("ce", "mse")} | how)


def counts(status):
    return status.to_dict()["counts"]


def record(plan, i):
    return json.loads((plan.out / plan.points[i].name / "record.json").read_text())


# --- the cost -------------------------------------------------------------------------------------


def test_the_papers_grid_costs_what_the_protocol_says(tmp_path):
    """64 runs a seed, 2.84e19 operations for CIFAR-10 and three seeds."""
    images = np.zeros((50_000, 1, 1, 3), np.uint8)  # their number counts, their size is the network's
    labels = np.tile(np.arange(10), 5000)
    test = np.zeros((10_000, 1, 1, 3), np.uint8), np.tile(np.arange(10), 1000)
    data = datasets.Dataset("cifar10", images, labels, *test, tuple("0123456789"), *datasets.CIFAR10)
    total = metrics = 0
    for width, epochs in itertools.product((0.25, 0.5, 1.0, 2.0), (100, 200, 400, 800)):
        net = nets.wrn50(width=width)
        plan = _plan.plan_run(data, net="wrn50", loss="ce", preset="paper", width=width, epochs=epochs)
        found = plan._replace(net=FullSize(net)).operations
        total += 4 * 3 * found.training
        metrics += 4 * 3 * found.metrics
    assert total == pytest.approx(2.84e19, rel=2e-3)
    macs = sum(nets.wrn50(width=w).flops() for w in (0.25, 0.5, 1.0, 2.0))
    assert metrics == 2 * macs * 60_000 * 100 * 4 * 12  # a hundred measurements whatever the epochs


class FullSize:
    """A network asked for its cost at 32x32."""

    def __init__(self, net):
        self.flops = lambda shape: net.flops((32, 32, 3))


def test_the_cost_counts_measurements_to_the_last(tmp_path):
    (point,) = planned(tmp_path, losses=("ce",), epochs=(5,), metrics_every=2).points
    macs = 72 * 32 + 32 * 32 + 32 * 3
    assert point.operations == (6 * macs * 81 * 5, 2 * macs * 120 * 3)


def test_hours_are_operations_left_at_the_rate_of_the_nearest_width(tmp_path):
    plan = planned(tmp_path, widths=(0.125, 0.25, 1.0), losses=("ce",))
    waiting = [Row(point, "waiting", "", 0, 0.0, "") for point in plan.points]
    half = waiting[0]._replace(status="running", epoch=1, seconds=2.0, device="here")
    done = waiting[2]._replace(status="completed", epoch=2, seconds=5.0, device="there")
    rates = _cost.rates_of([half, waiting[1], done])
    text = _cost.rates_in_words([half, waiting[1], done], rates)
    cost = [point.operations.total for point in plan.points]
    assert rates == {0.125: (cost[0] / 2 / 2.0, 0.0), 1.0: (cost[2] / 5.0, 0.0)}
    assert "of 2 runs on here, there" in text
    status = SweepStatus(tmp_path, plan.settings, (half, waiting[1], done), rates, text)
    expected = (cost[0] / 2 + cost[1]) / rates[0.125].operations_per_second
    assert status.hours_left == pytest.approx(expected / 3600, rel=1e-12)
    assert status.operations_left == pytest.approx(cost[0] / 2 + cost[1], rel=1e-12)


def test_the_time_left_counts_each_compilation_of_the_remaining_runs(tmp_path):
    plan = planned(tmp_path, widths=(0.125, 1.0), seeds=(0, 1))
    cost = [point.operations.total for point in plan.points]
    rows = [Row(point, "waiting", "", 0, 0.0, "") for point in plan.points]
    by_name = {row.point.name: i for i, row in enumerate(rows)}
    first, second = by_name["ce-w0.125-e2-s0"], by_name["ce-w0.125-e2-s1"]
    rows[first] = rows[first]._replace(status="completed", epoch=2, seconds=9.0, compile_seconds=7.0)
    rows[second] = rows[second]._replace(status="running", epoch=1, seconds=1.0, compile_seconds=0.0)
    rates = _cost.rates_of(rows)
    speed = 1.5 * cost[first] / (2.0 + 1.0)
    assert rates == {0.125: (speed, 7.0)}
    status = SweepStatus(tmp_path, plan.settings, tuple(rows), rates, "")
    left = sum(cost) - 1.5 * cost[first]
    # ce at 0.125 for the run to continue, mse at 0.125, both at 1.0: in a new process each compiles once
    assert 3600 * status.hours_left == pytest.approx(left / speed + 4 * 7.0, rel=1e-12)
    rows[second] = rows[second]._replace(status="completed", epoch=2)
    status = SweepStatus(tmp_path, plan.settings, tuple(rows), rates, "")
    assert 3600 * status.hours_left == pytest.approx((left - cost[first] / 2) / speed + 3 * 7.0, rel=1e-12)


def test_a_record_says_how_long_its_run_compiled(tmp_path):
    plan = planned(tmp_path, losses=("fl",), seeds=(0, 1), gamma=2.5, batch=17)
    status = _sweep.train_sweep(plan)
    first, second = (record(plan, i) for i in (0, 1))
    assert 0 < first["compile_seconds"] < first["last"]["seconds"]
    assert second["compile_seconds"] == 0  # the same programs in the same process
    (rate,) = status.rates.values()
    assert rate.compile_seconds == first["compile_seconds"]


def test_compilations_within_others_count_once(monkeypatch):
    clock = iter([1.0, 2.0, 3.0, 10.0])
    monkeypatch.setattr(_compile_time, "_intervals", [])
    monkeypatch.setattr(_compile_time.time, "perf_counter", lambda: next(clock))
    _compile_time._record("/jax/core/compile/a", 0.5)  # 0.5 to 1.0
    _compile_time._record("/jax/core/compile/b", 0.5)  # 1.5 to 2.0, within the next one
    _compile_time._record("/jax/core/compile/c", 1.75)  # 1.25 to 3.0
    assert _compile_time.compile_seconds() == 0.5 + 1.75
    _compile_time._record("/jax/compilation_cache/x", 4.0)  # not a compilation
    assert _compile_time.compile_seconds() == 0.5 + 1.75


def test_without_a_rate_the_time_is_unknown_and_otherwise_measured(tmp_path):
    plan = planned(tmp_path)
    blind = _sweep.sweep_status(plan, measure=False)
    assert blind.hours_left is None
    assert "unknown" in repr(blind)
    seen = _sweep.sweep_status(plan)
    assert seen.hours_left > 0
    assert "3 steps at width 0.125" in repr(seen)
    compiling = seen.rates[0.125].compile_seconds
    assert compiling > 0
    assert 3600 * seen.hours_left > 2 * compiling  # two losses: nothing is compiled yet
    assert not list(tmp_path.iterdir())  # nothing is written before it starts


def test_the_measured_rate_is_of_the_steps_alone():
    how = {"net": "mlp", "width": 0.125, "loss": "ce", "preset": "small"}
    plan = _plan.plan_run(tiny(), epochs=1, batch=16, **how)
    ticks = iter([0.0, 100.0, 100.0, 104.0])  # the first time is compilation
    macs = 72 * 32 + 32 * 32 + 32 * 3
    rate = _cost.measure_rate(plan, lambda: next(ticks))
    assert rate.operations_per_second == 6 * macs * 3 * 16 / 4
    assert rate.compile_seconds > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0.005, "18 s"), (0.5, "30 min"), (2.25, "2.2 h"), (1234.5, "1234 h")],
)
def test_times_as_a_person_reads_them(value, text):
    assert hours(value) == text


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shards_are_disjoint_complete_and_even(count):
    costs = np.random.default_rng(count).pareto(1.0, 60) + 0.1
    own = _sweep.shares(costs.tolist(), count)
    assert sorted(itertools.chain(*own)) == list(range(60))
    loads = [costs[list(positions)].sum() for positions in own]
    assert max(loads) - min(loads) <= costs.max() + 1e-9
    assert own == _sweep.shares(costs.tolist(), count)


def test_equal_costs_give_equal_shares_and_more_machines_than_runs_idle():
    assert _sweep.shares([1.0] * 5, 2) == ((0, 2, 4), (1, 3))
    assert _sweep.shares([1.0], 3) == ((0,), (), ())


def test_the_dearest_run_goes_first():
    assert _sweep.shares([1.0, 1.0, 2.0], 2) == ((2,), (0, 1))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/2", "1/2/3", "-1/2", (0, 1), "1/0"])
def test_a_shard_that_is_none_is_refused(shard, tmp_path):
    with pytest.raises(ValueError, match="shard: expected i/n"):
        planned(tmp_path).share(shard)


# --- training -------------------------------------------------------------------------------------


def test_shards_together_train_every_run_once_as_train_would(tmp_path):
    plan = planned(tmp_path, seeds=(0, 1))
    first = _sweep.train_sweep(plan, shard="1/2")
    assert counts(first) == {"completed": 2, "to continue": 0, "waiting": 2, "failed": 0}
    assert not first.done
    trained = {i: record(plan, i) for i in plan.share("1/2")}
    second = _sweep.train_sweep(plan, shard=(2, 2))
    assert second.done
    assert second.operations_left == second.hours_left == 0
    for i, before in trained.items():
        assert record(plan, i) == before  # times included: it was not touched
    run = deep.load(plan.out / "mse-w0.125-e2-s1", data=tiny())
    alone = deep.train(tiny(), net="mlp", width=0.125, loss="mse", epochs=2, preset="small", batch=16, seed=1)
    assert same_run(run, alone)
    found = record(plan, 0)
    assert {"config", "code", "hardware", "seed", "history"} <= set(found)
    assert json.loads((tmp_path / "sweep.json").read_text())["settings"]["preset"] == "small"


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    plan = planned(tmp_path, losses=("ce",))
    _sweep.train_sweep(plan)
    monkeypatch.setattr(_sweep._train, "train_plan", lambda *_, **__: pytest.fail("it was"))
    assert _sweep.train_sweep(planned(tmp_path, losses=("ce",))).done


def test_another_plan_adds_its_runs(tmp_path):
    _sweep.train_sweep(planned(tmp_path, losses=("ce",)))
    more = _sweep.train_sweep(planned(tmp_path, losses=("mse",), weight_decays=(1e-3, 1e-4)))
    names = [row.point.name for row in more.rows]
    assert names == ["ce-w0.125-e2-s0", "mse-w0.125-e2-s0-wd0.001", "mse-w0.125-e2-s0-wd0.0001"]
    assert more.done
    assert _sweep.sweep_status(tmp_path).to_dict() == more.to_dict()


def test_a_run_that_cannot_go_on_does_not_stop_the_others(tmp_path):
    plan = planned(tmp_path)
    broken = tmp_path / plan.points[0].name / "checkpoints"
    broken.mkdir(parents=True)
    (broken.parent / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the record of a run"):
        _sweep.train_sweep(plan)
    (broken.parent / "record.json").unlink()
    _sweep.train_sweep(plan)
    for file in broken.glob("*.npz"):
        file.write_bytes(b"broken")
    path = broken.parent / "record.json"
    path.write_text(path.read_text().replace('"completed"', '"running"'))
    status = _sweep.train_sweep(plan)
    assert counts(status) == {"completed": 1, "to continue": 1, "waiting": 0, "failed": 0}
    assert "no checkpoint can be read" in status.troubles[0]
    assert "no checkpoint can be read" in " ".join(repr(status).split())


def test_a_loss_that_is_not_finite_is_told_and_not_tried_again(tmp_path, monkeypatch):
    plan = planned(tmp_path, losses=("mse",), learning_rate=1e30)
    status = _sweep.train_sweep(plan)
    assert counts(status)["failed"] == 1
    assert "was not finite" in " ".join(repr(status).split())
    assert status.operations_left == 0
    monkeypatch.setattr(_sweep._train, "train_plan", lambda *_, **__: pytest.fail("it was"))
    _sweep.train_sweep(plan)


def test_a_run_that_another_process_trains_is_passed_over(tmp_path):
    plan = planned(tmp_path)
    place = tmp_path / plan.points[0].name
    place.mkdir()
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    status = _sweep.train_sweep(plan)
    assert counts(status) == {"completed": 1, "to continue": 0, "waiting": 1, "failed": 0}
    assert "another process" in status.troubles[0]
    os.close(handle)
    assert _sweep.train_sweep(plan).done


KILLED = """
import sys
from test_deep_sweep import planned
from ufm.deep import _sweep
_sweep.train_sweep(planned(sys.argv[1], epochs=(300,), metrics_every=50), checkpoint_seconds=0)
"""


def test_a_sweep_that_was_killed_goes_on_to_the_same_end(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=env)
    plan = planned(tmp_path, epochs=(300,), metrics_every=50)
    path = tmp_path / plan.points[0].name / "checkpoints"
    began = time.monotonic()
    while len(list(path.glob("*.npz"))) < 2 and time.monotonic() - began < HANG:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = _sweep.sweep_status(tmp_path)
    assert counts(before)["completed"] < 2
    after = _sweep.train_sweep(plan)
    assert after.done
    run = deep.load(tmp_path / plan.points[0].name, data=tiny())
    how = {"net": "mlp", "width": 0.125, "epochs": 300, "preset": "small", "batch": 16, "metrics_every": 50}
    assert same_run(run, deep.train(tiny(), loss="ce", **how))


def test_hyperparameters_go_to_the_losses_that_have_them(tmp_path):
    points = planned(tmp_path, losses=("ce", "ls", "fl"), gamma=2.0).points
    assert [point.hyperparameters for point in points] == [{}, {"alpha": 0.1}, {"gamma": 2.0}]


def test_a_sweep_takes_a_preset_of_ones_own(tmp_path):
    preset = presets.Preset("mine", batch=8, weight_decay=1e-3, augment=False)
    plan = planned(tmp_path, losses=("ce",), preset=preset, batch=16)
    status = _sweep.train_sweep(plan)
    assert status.done
    assert status.rows[0].point.weight_decay == 1e-3
    config = record(plan, 0)["config"]
    assert (config["batch"], config["preset"], config["weight_decay"]) == (16, "custom", 1e-3)


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"losses": ()}, "losses: expected at least one value"),
        ({"losses": ("ce", "xe")}, "loss: expected one of"),
        ({"seeds": (1, 1)}, "seeds: expected each value once, got 1 2 times"),
        ({"seeds": (-1,)}, "seed: expected an integer >= 0"),
        ({"widths": (0.001,)}, "width: expected at least"),
        ({"widths": (0.25, 0.0)}, "width: expected a finite number > 0"),
        ({"epochs": (2, 0)}, "epochs: expected an integer >= 1"),
        ({"weight_decays": (None, 5e-4)}, "weight_decays: expected different values"),
        ({"weight_decays": (-1.0,)}, "weight_decay: expected a finite number >= 0"),
        ({"net": "mpl"}, "net: expected one of .* did you mean 'mlp'"),
        ({"net": nets.mlp()}, "net: expected a name"),
        ({"preset": "papper"}, "preset: expected one of"),
        ({"batch": 82}, "batch: expected at most the 81 training images"),
        ({"gamma": 2.0}, "gamma: expected a hyperparameter of loss 'ce'"),
        ({"losses": ("ls",), "alpha": 2.0}, "alpha: expected"),
        ({"data": "cifar"}, "data: expected one of"),
    ],
)
def test_every_run_is_checked_before_one_starts(how, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path / "sweep", **how)
    assert not (tmp_path / "sweep").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    _sweep.train_sweep(planned(tmp_path / "a", losses=("ce",), epochs=(1,)))
    with pytest.raises(ValueError, match=r"holds another sweep \(batch: 16 -> 8"):
        planned(tmp_path / "a", batch=8)
    with pytest.raises(ValueError, match=r"holds another sweep \(digest"):
        planned(tmp_path / "a", data=tiny(seed=1))
    planned(tmp_path / "a", losses=("ls",), epochs=(1,)).write()
    with pytest.raises(ValueError, match=r"another sweep \(ls-w0.125-e1-s0, hyperparameters"):
        planned(tmp_path / "a", losses=("ls",), epochs=(1,), alpha=0.3)
    run = tmp_path / "a" / "ce-w0.125-e1-s0"
    with pytest.raises(ValueError, match="holds a single run"):
        planned(run)
    with pytest.raises(ValueError, match=r"expected the folder of a sweep, got .* without sweep\.json"):
        _sweep.sweep_status(run)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a folder, got the file"):
        planned(tmp_path / "file")
    (tmp_path / "a" / "sweep.json").write_text('{"format": "ufm sweep 1"}')
    with pytest.raises(ValueError, match="is not the file of a sweep"):
        _sweep.sweep_status(tmp_path / "a")


def test_a_run_of_other_settings_in_the_sweeps_folder_is_refused(tmp_path):
    how = {"net": "mlp", "width": 0.125, "epochs": 1, "preset": "small", "batch": 16}
    deep.train(tiny(), loss="ce", learning_rate=0.01, out=tmp_path / "ce-w0.125-e1-s0", **how)
    with pytest.raises(ValueError, match=r"holds another run \(learning_rate: 0.01 -> 0.1"):
        planned(tmp_path, epochs=(1,))
