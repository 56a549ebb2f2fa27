"""The paper's grid in miniature (`ufm.deep.mini`), trained: `python -m benchmarks.deep_mini`.

    python -m benchmarks.deep_mini --out runs                    train, or continue; may be killed any time
    python -m benchmarks.deep_mini --out runs --status           how far it is
    python -m benchmarks.deep_mini --out runs --collect          finished runs become records of the package
    python -m benchmarks.deep_mini --out runs --skip-shipped     only the runs that the package's records lack
    python -m benchmarks.deep_mini --out runs --replicas         cost of seeds in one program; trains nothing

On several cores start one process for each core with `taskset -c 0`, `taskset -c 1`, ...: each takes the next
run that no other process is training. The images are CIFAR-10, downloaded, or in `--data-dir`; `--data` takes
a folder or tar of class folders. The script needs the extra `deep`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from ufm import deep
from ufm.deep import _process, _replicas, _step, mini
from ufm.deep._feed import Feed
from ufm.deep._plan import plan_run
from ufm.reproduce import STATEMENTS, Finding, _runner

_PATH = click.Path(path_type=Path)


#: seeds that `--replicas` trains in one program, and its steps of a round
SEEDS, STEPS = 3, 8


def replicas(data: str, data_dir: Path | None) -> None:
    """Processor time for each image of one network alone, and of three seeds of it in one program."""
    images = mini.dataset(data, data_dir=data_dir)
    rows = np.arange(STEPS * 64, dtype=np.int32).reshape(STEPS, 64)
    for width in mini.MINI.widths:
        plan = plan_run(images, net=mini.MINI.net, loss="ce", preset=mini.MINI.preset, width=width)
        data_on_device = next(iter(Feed(images).chunks(rows))).data
        state, hyper, totals = plan.initial_state(), plan.hyper(0), _step.zero_totals()
        alone = _seconds(
            lambda s, t, i, of=(plan, hyper, data_on_device): _step._one_step(
                of[0].recipe, s, t, of[1], of[0].key, of[2], rows[i], (np.int32(i), np.int32(i))
            ),
            state, totals,
        )  # fmt: skip
        several = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), (plan.initial_state(), _step.zero_totals()))
        many = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), hyper)
        keys, own = jnp.stack([plan.key] * SEEDS), np.stack([rows] * SEEDS, 1)
        together = _seconds(
            lambda s, t, i, of=(plan, many, data_on_device, keys, own): _replicas._one_step(
                of[0].recipe, s, t, of[1], of[3], of[2], of[4][i], (np.int32(i), np.int32(i))
            ),
            *several,
        )
        print(f"width {width:g}: alone {1e6 * alone:.0f} us an image, {SEEDS} in one program "
              f"{1e6 * together / SEEDS:.0f} us, {together / SEEDS / alone:.2f} times")  # fmt: skip


def _seconds(step: Callable[..., Any], state: Any, totals: Any) -> float:
    """Processor seconds for each image of the fastest of three rounds, after one that compiles."""
    found = []
    for _ in range(4):
        began = time.process_time()
        for i in range(STEPS):
            state, totals = step(state, totals, i)
        jax.block_until_ready((state, totals))
        found.append((time.process_time() - began) / (64 * STEPS))
    return min(found[1:])


def collected(out: Path, into: Path, data: str, data_dir: Path | None) -> None:
    """Compare last layers, copy the records of what is finished, and say what the report says of them."""
    mini.compare_last_layers(out, mini.dataset(data, data_dir=data_dir))
    new = mini.collect(out, into)
    print(f"{len(new)} new records in {into}: {mini.read(into).progress}")
    for row in STATEMENTS:
        if row.id.startswith("networks-"):
            found = Finding(row, tuple(_runner.measure(row, job) for job in row.jobs("full")))
            odd = f"; expected {row.known!r}: change ufm/reproduce/_section_4.py and the README"
            odd = "" if found.consistent else odd
            print(f"{row.id}: {found.verdict}{odd}")


@click.command(help=__doc__.splitlines()[0])
@click.option("--out", type=_PATH, required=True, help="Folder of the runs.")
@click.option("--data", default="cifar10", show_default=True, help="cifar10, or class folders of its images.")
@click.option("--data-dir", type=_PATH, help="Folder of CIFAR-10, or for its download.")
@click.option("--skip-shipped", is_flag=True, help="Leave out the runs that the package's records contain.")
@click.option("--status", is_flag=True, help="Print the progress; train nothing.")
@click.option("--collect", is_flag=True, help="Write finished runs as records of the package; train nothing.")
@click.option("--replicas", "cost", is_flag=True, help="Cost of seeds in one program; trains nothing.")
@click.option("--changed", is_flag=True, help="Continue interrupted runs that other code began.")
def main(
    out: Path,
    data: str,
    data_dir: Path | None,
    skip_shipped: bool,
    status: bool,
    collect: bool,
    cost: bool,
    changed: bool,
) -> None:
    if status:
        print(deep.sweep_status(out))
        return
    if collect:
        collected(out, mini.SHIPPED, data, data_dir)
        return
    _process.keep_freed_memory()  # as `ufm train` does
    _process.make_cpu_devices()
    if cost:
        replicas(data, data_dir)
        return
    made = mini.plan(out, data, data_dir=data_dir, skip_shipped=skip_shipped)
    print(mini.train(made, resume="changed" if changed else True))


if __name__ == "__main__":
    main()
