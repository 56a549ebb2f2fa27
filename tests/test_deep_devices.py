"""The same run on one device, on four, and in two processes with two each; and many runs in one program."""

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

from ufm import deep

SCRIPT = Path(__file__).parent / "deep_processes.py"


def start(devices, *arguments):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*children):
    for child in children:
        _, words = child.communicate(timeout=300)
        assert child.returncode == 0, words


def assert_same(a, b):
    np.testing.assert_allclose(a["values"], b["values"], rtol=1e-5, atol=1e-5)
    for name, values in a["history"].items():
        if name not in ("seconds", "images_per_second"):
            np.testing.assert_allclose(values, b["history"][name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_several_devices_and_processes_give_the_run_of_one_device(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    finish(start(4, one))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
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
