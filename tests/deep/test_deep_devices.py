"""The same run on one device, on four, and in two processes with two each; many runs in one program; what a
process sets up."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_deep_train import flat, tiny
from tolerances import HANG

from ufm import deep
from ufm.deep import _mesh, _process

SCRIPT = Path(__file__).parents[1] / "deep_processes.py"


def start(devices, *arguments):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*children):
    for child in children:
        _, words = child.communicate(timeout=HANG)
        assert child.returncode == 0, words


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def assert_same(a, b):
    np.testing.assert_allclose(a["values"], b["values"], rtol=1e-5, atol=1e-5)
    for name, values in a["history"].items():
        if name not in ("seconds", "images_per_second"):
            np.testing.assert_allclose(values, b["history"][name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_several_devices_and_processes_give_the_run_of_one_device(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    finish(start(4, one))
    port = free_port()
    finish(*(start(2, two, port, process) for process in (0, 1)))
    alone, four = json.loads(one.read_text())
    processes, saved, continued = json.loads(two.read_text())
    for other in (four, processes, saved):
        assert_same(other, alone)
    assert continued["epochs"] == 5
    assert continued["history"]["nc1"][:3] == saved["history"]["nc1"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"devices": 3}, "devices: expected at most the 1 that JAX sees, got 3"),
        ({"devices": 0}, "devices: expected an integer >= 1"),
    ],
)
def test_devices_that_are_not_there(how, message):
    with pytest.raises(ValueError, match=message):
        deep.train(tiny(), net=flat(), batch=16, epochs=1, **how)


def test_replicas_are_the_runs_that_they_would_be_alone():
    data, how = tiny(pad=1, flip=True), {"net": flat(), "batch": 16, "epochs": 3, "preset": "paper-code"}
    axes = {
        "losses": ("ls", "mse"),
        "seeds": (0, 3),
        "learning_rates": (None, 0.02),
        "weight_decays": (1e-3,),
    }
    runs = deep.train_many(data, **axes, **how)
    assert len(runs) == 8
    for run in runs[0], runs[3], runs[6]:
        c = run.config
        values = {"learning_rate": c.learning_rate, "weight_decay": c.weight_decay, "seed": c.seed}
        alone = deep.train(data, loss=c.loss, **values, **how)
        assert alone.config == run.config
        assert (alone.status, alone.message, alone.epoch) == (run.status, run.message, run.epoch)
        for name, got in run.history._asdict().items():
            if name not in ("seconds", "images_per_second"):
                np.testing.assert_allclose(
                    got, getattr(alone.history, name), rtol=2e-4, atol=1e-5, err_msg=name
                )
        for got, want in zip(jax.tree.leaves(run.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    assert len({np.asarray(run.params["classifier"]["W"]).tobytes() for run in runs}) == 8


def test_a_replica_that_diverges_leaves_the_others_alone():
    rates = (0.1, 1e30)
    how = {"net": flat(), "batch": 16, "epochs": 2, "losses": ("ce",)}
    good, bad = deep.train_many(tiny(), learning_rates=rates, **how)
    assert good.status is deep.Status.COMPLETED
    assert good.history.epoch.tolist() == [1, 2]
    assert bad.status is deep.Status.NON_FINITE
    assert "learning rate below 1e+30" in bad.message
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bad.state))
    with pytest.raises(ValueError, match="seed: expected at least one value"):
        deep.train_many(tiny(), seeds=(), **how)


# --- what a process sets up -----------------------------------------------------------------------


def command(*arguments, **environment):
    """`ufm train` of two epochs in a process of its own."""
    small = ("--net", "mlp", "--width", "0.125", "--preset", "small", "--epochs", "2", "--max-train", "128")
    return subprocess.Popen(
        [sys.executable, "-c", "from ufm._cli import main; main()", "train", *small, "--json", *arguments],
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "UFM_CACHE": "0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(child):
    out, words = child.communicate(timeout=HANG)
    assert child.returncode == 0, words
    return out


def test_processes_of_a_cluster_and_others_meet_and_the_first_one_speaks(tmp_path):
    port, shared = free_port(), ("--compare", "--out", str(tmp_path / "run"))
    step = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": 0, "LOCALID": 0}
    slurm = {f"SLURM_{name}": str(value) for name, value in step.items()}
    first = command("--distributed", "auto", *shared, JAX_COORDINATOR_PORT=str(port), **slurm)
    second = command("--distributed", f"localhost:{port},2/2", *shared)
    found, silent, alone = (told(child) for child in (first, second, command("--devices", "2", "--compare")))
    assert silent == ""
    found, alone = json.loads(found), json.loads(alone)
    assert found["hardware"]["devices"] == alone["hardware"]["devices"] == 2
    for name in ("train_loss", "nc1"):
        np.testing.assert_allclose(found["history"][name], alone["history"][name], rtol=1e-5)
    np.testing.assert_allclose(found["ufm"]["gap"], alone["ufm"]["gap"], rtol=1e-4)
    assert (tmp_path / "run" / "figure.png").exists()


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system does not say which cores there are"
)
def test_a_cpu_has_a_device_for_each_core_of_the_process():
    own = os.sched_getaffinity(0)  # a worker of a test run has one core
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        cores, child = len(os.sched_getaffinity(0)), command()
    finally:
        os.sched_setaffinity(0, own)
    assert json.loads(told(child))["hardware"]["devices"] == min(cores, 2)  # of the preset's 64 images


@pytest.mark.parametrize(
    ("there", "batch", "split"),
    [(1, 128, 1), (2, 128, 2), (3, 128, 2), (64, 128, 4), (8, 100, 2), (4, 50, 1)],
)
def test_a_batch_is_split_evenly_and_not_too_far(monkeypatch, there, batch, split):
    monkeypatch.setattr(jax, "device_count", lambda: there)
    assert _mesh.of_cpu(batch) == split
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _mesh.of_cpu(batch) is None


@pytest.mark.parametrize("place", ["node", "node,1/2", "node:1,0/2", "node:1,3/2", "node:x,1/2", ":1,1/2"])
def test_a_place_among_processes_that_is_none(place):
    with pytest.raises(ValueError, match="distributed: expected auto, or HOST:PORT,i/n"):
        _process.join(place)


def test_no_cluster_is_told():
    child = command("--distributed", "auto")
    _, words = child.communicate(timeout=HANG)
    assert child.returncode == 2
    assert words.startswith("ufm: distributed: expected processes that find each other, got")


FAULTS = """
import resource, threading
from ufm.deep import _mesh, _process

def fill():
    global faults
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"1" * one  # numpy would ask for huge pages
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept, one = _process.keep_freed_memory(), 1 << 27
for _ in range(3):
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
print(faults if kept else -1)
"""


def test_freed_memory_is_taken_again_without_page_faults():
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=HANG).stdout
    if int(out) < 0:
        pytest.skip("a C library without mallopt")
    assert int(out) < 100  # 32,768 pages
