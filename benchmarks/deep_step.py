"""Images per second of the training step (or the evaluation) on a CPU, here and in PyTorch.

Measures the full step of docs/protocol.md, section 3.1 (forward, backward, clipping, decay, momentum), in
float32 on CIFAR-size images in memory, without compilation. Every implementation runs in a separate process
with all cores and sleeps while another one runs; rounds are interleaved (A B C A B C), and medians are
compared. CPU seconds are those of the process (user + system), which other work on the machine disturbs
less than wall time. Our processes keep freed memory as `ufm train` does; "kept" marks peers that do so too.

Optimisations that were tried on two cores of an AMD EPYC (AVX-512), batch 128, width 0.25, XLA of jax
0.10.2. Gains refer to the whole step where the optimisation is kept, otherwise to the operation:

| trick | gain | kept |
|---|---|---|
| 1x1 convolutions as matrix products, forward and backward | 4-5x on wrn50: `lax.conv` runs them at 8-30 GFLOP/s, a product at 30-250 | yes |
| their weight gradient with the narrow factor on the left, behind a barrier | 3-7x on that product | yes |
| batch norm's backward pass by hand | 8-15 % on wrn18 | yes |
| stride 2 as a 2x2 convolution of space-to-depth | input gradient 2.9x, weight gradient 0.4x: none in sum | no |
| 3x3 weight gradient from shifted products or patches | 0.1-1.0x (stem of 64 planes alone: 2.4x) | no |
| splitting the long contraction of a 1x1 weight gradient into 2-64 parts | 0.2-1.3x | no |
| freed memory stays with the process (`keep_freed_memory`) | 59,000 page faults a step -> 0, system time 90 -> 2 ms of a 470 ms step; evaluation of small_resnet 2x | yes |
| transparent huge pages (GLIBC_TUNABLES=glibc.malloc.hugetlb=1) | system time 90 -> 20 ms, user time 5 % less | --huge-pages |
| XLA's flags: concurrency-optimised scheduler, YNNPACK convolutions, oneDNN, no Eigen threads | none: the same 200 GFLOP/s on the same one core | no |
| 3x3 convolutions by Winograd's F(2x2, 3x3), 16 products in a batch | forward 0.5-1.0x, input gradient 0.2-0.6x, weight gradient 0.6-0.8x (processor time) | no |
| a 3x3 convolution as two of half the batch in one program | none: they run one after the other | no |
| 4-8 virtual devices, batch sharded over them | 1.4-2x: 3x3 convolutions are at 200 GFLOP/s a core, one core at work | `--devices` of `ufm train` |
"""  # noqa: E501

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

SIDES = (
    *("torch channels_last", "torch default", "torch channels_last kept"),
    *("ufm", "ufm, 4 devices", "ufm, 8 devices"),
)
WIDTH, CLASSES = 0.25, 10
Row = dict[str, Any]


def images(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images of CIFAR's size and their labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 32, 32, 3)).astype(np.float32)
    return x, rng.integers(CLASSES, size=batch)


# --- the sides: each makes a function that takes one step and waits for it ------------------------


def ours(name: str, batch: int, devices: int, evaluate: bool = False) -> Callable[[], None]:
    import jax

    jax.config.update("jax_num_cpu_devices", devices)  # type: ignore[no-untyped-call]
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from ufm.deep import nets

    net = nets.get(name, width=WIDTH, num_classes=CLASSES)
    optimizer = optax.chain(
        optax.clip_by_global_norm(2.0), optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9)
    )

    def loss(params: Any, state: Any, x: Any, y: Any) -> Any:
        logits, _, state = net.apply(params, state, x, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    def update(train: Any, x: Any, y: Any) -> Any:
        params, state, memory = train
        (value, state), slopes = jax.value_and_grad(loss, has_aux=True)(params, state, x, y)
        updates, memory = optimizer.update(slopes, memory, params)
        return (optax.apply_updates(params, updates), state, memory), value

    params, state = net.init(jax.random.key(0))
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    train = jax.device_put((params, state, optimizer.init(params)), whole)
    x, y = jax.device_put(tuple(map(jnp.asarray, images(batch))), rows)
    compiled = jax.jit(update, donate_argnums=0)
    forward = jax.jit(lambda params, state, x: net.apply(params, state, x, train=False)[:2])

    def step() -> None:
        nonlocal train
        train, value = compiled(train, x, y)
        jax.block_until_ready((train, value))

    def evaluation() -> None:
        jax.block_until_ready(forward(*train[:2], x))

    return evaluation if evaluate else step


def theirs(name: str, batch: int, layout: str, evaluate: bool = False) -> Callable[[], None]:
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch_nets

    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    module = torch_nets.NETS[name](WIDTH, CLASSES, (32, 32, 3)).to(memory_format=memory).train()
    optimizer = torch_nets.sgd(module)
    x, y = images(batch)
    x, y = torch_nets.images(x).contiguous(memory_format=memory), torch.tensor(y)
    if evaluate:
        forward = torch.no_grad()(module.eval())
        return lambda: float(forward(x)[0][0, 0])
    return lambda: float(torch_nets.step(module, optimizer, x, y)[0])


def make(side: str, name: str, batch: int, evaluate: bool = False) -> Callable[[], None]:
    library, _, how = side.replace(",", "").partition(" ")
    if library == "torch":
        return theirs(name, batch, how.split()[0], evaluate)
    return ours(name, batch, int(how[:1] or 1), evaluate)


# --- processes ------------------------------------------------------------------------------------


def worker(side: str, name: str, batch: int, evaluate: bool) -> None:
    """Take as many steps as each line of the input asks for, and answer with seconds and CPU seconds."""
    if side.startswith("ufm") or side.endswith("kept"):
        from ufm.deep._process import keep_freed_memory

        keep_freed_memory()
    step = make(side, name, batch, evaluate)
    for line in sys.stdin:
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(int(line)):
            step()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps([time.perf_counter() - began, cpu]), flush=True)


class Side:
    """A worker process: `steps(k)` gives seconds and CPU seconds a step."""

    def __init__(self, side: str, name: str, batch: int, environment: dict[str, str], evaluate: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.deep_step", "--worker", side, "--net", name]
        command += ["--evaluate"] * evaluate
        self._process = subprocess.Popen(
            [*command, "--batch", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def steps(self, count: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(count, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self._process.wait()}")
        seconds, cpu = json.loads(line)
        return seconds / count, cpu / count

    def close(self) -> None:
        self._process.communicate()


def compare(
    name: str,
    *,
    batch: int,
    rounds: int,
    steps: int,
    sides: tuple[str, ...],
    environment: dict[str, str],
    evaluate: bool = False,
) -> list[Row]:
    """One row a side: images/s and its ratio to the first side, round by round (median)."""
    workers = {side: Side(side, name, batch, environment, evaluate) for side in sides}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    try:
        for process in workers.values():
            process.steps(2)  # compiles, and settles the allocator
        for _ in range(rounds):
            for side, process in workers.items():
                times[side].append(process.steps(steps))
    finally:
        for process in workers.values():
            process.close()
    rows = []
    for side, taken in times.items():
        ratios = [first[0] / own[0] for first, own in zip(times[sides[0]], taken, strict=True)]
        rows.append(
            {
                "net": f"{name}({WIDTH:g})",
                "side": side,
                "images/s": batch / statistics.median(t for t, _ in taken),
                "best images/s": batch / min(t for t, _ in taken),
                f"x {sides[0]}": statistics.median(ratios),
                "CPU s/step": statistics.median(c for _, c in taken),
            }
        )
    return rows


def show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


@click.command(help=__doc__.splitlines()[0])
@click.option("--net", "names", multiple=True, default=("wrn18", "wrn50"), help="Networks of ufm.deep.nets.")
@click.option("--batch", default=128, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--steps", default=2, show_default=True, help="Steps a round.")
@click.option("--side", "sides", multiple=True, type=click.Choice(SIDES), default=(*SIDES[:2], "ufm"))
@click.option("--huge-pages", is_flag=True, help="Every side with GLIBC_TUNABLES=glibc.malloc.hugetlb=1.")
@click.option("--evaluate", is_flag=True, help="The forward pass in evaluation mode in place of the step.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--worker", "alone", hidden=True)
def main(
    names: tuple[str, ...],
    batch: int,
    rounds: int,
    steps: int,
    sides: tuple[str, ...],
    huge_pages: bool,
    evaluate: bool,
    as_json: bool,
    alone: str | None,
) -> None:
    if alone:
        return worker(alone, names[0], batch, evaluate)
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {}
    how: Any = {"batch": batch, "rounds": rounds, "steps": steps, "sides": sides}
    how |= {"environment": environment, "evaluate": evaluate}
    rows = [row for name in names for row in compare(name, **how)]
    return print(json.dumps(rows, indent=1)) if as_json else show(rows)


if __name__ == "__main__":
    main()
