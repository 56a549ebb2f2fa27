"""A training run split over devices, for `test_deep_devices.py` to start: OUT [PORT PROCESS]."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.append(str(Path(__file__).parent / "deep"))


def main(out, *place):
    if place:  # before JAX looks for its devices, which importing the package may make it do
        jax.distributed.initialize(f"localhost:{place[0]}", num_processes=2, process_id=int(place[1]))
    count = len(jax.devices())
    results = [run(count), run(count, f"{out}.run")] if place else [run(None), run(count)]
    if place:  # a finished run goes on, all processes reading what the first one wrote
        results.append(run(count, f"{out}.run", epochs=5))
    if jax.process_index() == 0:
        with open(out, "w") as stream:
            json.dump(results, stream)


def run(devices, out=None, epochs=3):
    from test_deep_train import micro, tiny

    from ufm import deep

    how = {"net": micro(), "batch": 16, "loss": "ls", "checkpoint_seconds": 0, "resume": "changed"}
    done = deep.train(tiny(pad=1, flip=True), devices=devices, out=out, epochs=epochs, **how)
    leaves = [np.asarray(x).ravel() for x in jax.tree.leaves((done.params, done.state.statistics))]
    values = np.concatenate(leaves).tolist()
    return {"history": done.to_dict()["history"], "values": values, "epochs": done.epoch}


if __name__ == "__main__":
    main(*sys.argv[1:])
