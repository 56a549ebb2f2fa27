"""The paper's deep networks at full scale on one GPU: `python -m benchmarks.deep_paper`.

Each part runs in a separate process, so that none holds the card's memory while another one runs. Parts
already in `deep_gpu.json` are not measured again (unless `--again`), and training continues where it was
interrupted. `--part` chooses among

- `peak`: the peak rates of the card, from a bfloat16 matrix product and from an addition that reads and
  writes memory.
- `speed`: images/s of the bfloat16 training step of wrn50(1) on CIFAR-size images in the library's scanned
  epoch (gathered, cropped, flipped, guarded), and its share of the peak, with 6 operations per multiply-add
  and 1.298 G multiply-adds per image. For comparison, the bare step in PyTorch on one batch on the card:
  channels_last, autocast to bfloat16, torch.compile.
- `memory`: the peak memory of a step of wrn50(2) at batch 128, in float32 and bfloat16: the allocator's
  peak on a GPU, otherwise the compiler's estimate.
- `overhead`: the cost of data, augmentation and metrics relative to the bare step, see `deep_overhead`.
- `train`: four losses, 200 epochs of wrn50(1) on CIFAR-10, preset `paper`, in `--out` as `ufm train` writes
  them, with figures 1 and 2.

The script needs the extras `deep` and `bench`, JAX with CUDA (`pip install 'jax[cuda12]'`), a CUDA build of
PyTorch, and CIFAR-10 (downloaded, or in `--data-dir`). `--toy` runs a small version of every part on any
machine in one to three minutes, to check that the script works: it writes to another file, and its numbers
are not results."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.deep_step import Row, show

FOLDER = Path(__file__).parent
TOY = "toy: the script works; these numbers are not results"


class Scale(NamedTuple):
    """How large everything is."""

    net: str
    width: float
    wide: float  # of the network whose memory is measured
    batch: int
    steps: int  # of a round
    rounds: int
    images: int  # on the device
    matrix: int
    vector: int
    data: str
    epochs: int


PAPER = Scale("wrn50", 1.0, 2.0, 128, 100, 7, 60_000, 8192, 1 << 29, "cifar10", 200)
SMALL = Scale("small_resnet", 0.5, 1.0, 16, 2, 3, 600, 256, 1 << 20, "digits", 2)


# --- parts, each in a process of its own -----------------------------------------------------------


def best(run: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest of `rounds` rounds, after two that compile and warm up."""
    taken = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken[2:])


def peak(s: Scale) -> list[Row]:
    """The peak rates of the device."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (s.matrix, s.matrix), jnp.bfloat16)
    x = jnp.ones(s.vector, jnp.float32)

    # chained, so that launching is not what is timed
    @jax.jit
    def products(a: Any) -> Any:
        return jax.lax.fori_loop(0, 10, lambda _, b: (a @ b) * jnp.bfloat16(1 / s.matrix), a)

    @jax.jit
    def additions(x: Any) -> Any:
        return jax.lax.fori_loop(0, 10, lambda _, y: y + 1, x)

    product = best(lambda: products(a).block_until_ready(), s.rounds) / 10
    addition = best(lambda: additions(x).block_until_ready(), s.rounds) / 10
    return [{"bfloat16 TFLOP/s": 2e-12 * s.matrix**3 / product, "memory GB/s": 8e-9 * s.vector / addition}]


def speed(s: Scale) -> list[Row]:
    """Our step, in the scanned epoch."""
    from benchmarks import deep_overhead

    case = functools.partial(deep_overhead.case, s.net, s.width, batch=s.batch, steps=s.steps)
    made = case(images=s.images, dtype="bfloat16")
    rate = s.batch * s.steps / best(deep_overhead.full_step(made), s.rounds)
    return [_speed("ufm, bfloat16, scanned epoch", rate, 6 * made.recipe.net.flops())]


def speed_of_pytorch(s: Scale) -> list[Row]:
    """The bare step of the same network in PyTorch."""
    import torch

    sys.path.insert(0, str(FOLDER.parent / "tests"))
    import torch_nets

    from benchmarks.deep_overhead import CLASSES, SHAPES
    from ufm.deep import nets

    shape = SHAPES.get(s.net, (32, 32, 3))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    how: Any = {"device": device, "memory_format": torch.channels_last}
    module = torch_nets.NETS[s.net](s.width, CLASSES, shape).to(**how).train()
    forward = torch.compile(module) if cuda else module  # without a GPU it would want a C++ compiler
    optimizer = torch_nets.sgd(module)
    x = torch.randn(s.batch, shape[2], *shape[:2]).to(**how)
    y = torch.randint(CLASSES, (s.batch,), device=device)

    def steps() -> None:
        for _ in range(s.steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(forward(x)[0], y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 2.0)
            optimizer.step()
        loss.item()  # waits

    rate = s.batch * s.steps / best(steps, s.rounds)
    flops = nets.get(s.net, width=s.width, num_classes=CLASSES, image_shape=shape).flops()
    compiled = ", compiled" if cuda else ""
    return [_speed(f"PyTorch, autocast, channels_last{compiled}", rate, 6 * flops)]


def _speed(side: str, rate: float, operations: float) -> Row:
    return {"side": side, "images/s": rate, "TFLOP/s": 1e-12 * operations * rate}


def memory(s: Scale, dtype: str) -> list[Row]:
    """The peak of a training step of the wide network."""
    import jax

    from benchmarks import deep_overhead
    from ufm.deep import _step

    compute = None if dtype == "float32" else dtype
    c = deep_overhead.case(s.net, s.wide, batch=s.batch, steps=2, images=4 * s.batch, dtype=compute)
    deep_overhead.full_step(c)()
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    given, key = deep_overhead.hyper(), jax.random.key(0)
    state = _step.initial_state(c.recipe.net, key, given)
    rows = jax.numpy.zeros(s.batch, jax.numpy.int32)
    (chunk,) = c.feed.chunks(rows[None])
    lowered = jax.jit(_step.step_on_rows, static_argnums=0, donate_argnums=(1, 2)).lower(
        c.recipe, state, _step.zero_totals(), given, key, chunk.data, rows, (rows[0], rows[0])
    )
    found = lowered.compile().memory_analysis()
    size = found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes
    row = {"dtype": dtype, "compiler's GiB": (size - found.alias_size_in_bytes) / 2**30}
    return [row | ({"allocator's peak GiB": stats["peak_bytes_in_use"] / 2**30} if stats else {})]


def overhead(s: Scale) -> list[Row]:
    """Data, augmentation and metrics beside the bare step."""
    from benchmarks import deep_overhead

    steps = max(2, s.steps // 2)
    case = functools.partial(deep_overhead.case, s.net, s.width, batch=s.batch, steps=steps)
    made = case(images=s.images, dtype="bfloat16")
    return [deep_overhead.overhead(made, rounds=s.rounds, evaluated=60 / 45)]


def train(s: Scale, out: Path, data_dir: Path | None) -> list[Row]:
    """Trains the four losses to the end and draws their figures."""
    from ufm import deep, figures

    how: Any = {"widths": (s.width,), "epochs": (s.epochs,), "data_dir": data_dir, "dtype": "bfloat16"}
    plan = deep.plan_sweep(out, s.data, net=s.net, **how)
    done = deep.train_sweep(plan)
    for trouble in done.troubles:
        print(trouble, file=sys.stderr)
    found = deep.figures.records(out)
    for number in (1, 2):
        drawing = deep.figures.draw(number, found, data=None if s.data == "cifar10" else s.data)
        figures.save(lambda d=drawing: d.figure, [out / f"figure{number}.{kind}" for kind in ("png", "pdf")])
    return [_trained(record) for record in found]


def _trained(record: Any) -> Row:
    history = json.loads(record.source.read_text())["history"]
    last = {name: values[-1] for name, values in history.items()}
    names = ("epoch", "train_accuracy", "test_accuracy", "nc1", "nc2", "nc3")
    row = {"loss": record.config["loss"], **{name: float(last[name]) for name in names}}
    rate = statistics.median(history["images_per_second"])
    return row | {"images/s": float(rate), "minutes": float(last["seconds"]) / 60}


#: the shelf: the processes of each part
PARTS: dict[str, dict[str, Callable[..., list[Row]]]] = {
    "peak": {"peak": peak},
    "speed": {"speed": speed, "speed_of_pytorch": speed_of_pytorch},
    "memory": {name: functools.partial(memory, dtype=name) for name in ("float32", "bfloat16")},
    "overhead": {"overhead": overhead},
    "train": {"train": train},
}

# --- the record -----------------------------------------------------------------------------------


def _alone(name: str, s: Scale, out: Path, data_dir: Path | None) -> None:
    """What a part's process prints: its rows and what it ran on."""
    from benchmarks.machine import hardware
    from ufm.deep import _process

    _process.keep_freed_memory()  # as `ufm train` does
    run = next(own[name] for own in PARTS.values() if name in own)
    rows = run(s, out, data_dir) if name == "train" else run(s)
    import jax

    print(json.dumps({"rows": rows, "on": hardware() | {"device": jax.devices()[0].device_kind}}))


def _measured(name: str, toy: bool, out: Path, data_dir: Path | None) -> Row:
    command = [sys.executable, "-m", "benchmarks.deep_paper", "--alone", name, "--out", str(out)]
    command += ["--toy"] * toy + (["--data-dir", str(data_dir)] if data_dir else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _with_shares(held: Row) -> None:
    """Operations over the measured peak, where both are there."""
    if {"peak", "speed"} <= set(held):
        top = held["peak"]["rows"][0]["bfloat16 TFLOP/s"]
        for row in held["speed"]["rows"]:
            row["of the peak"] = row["TFLOP/s"] / top


@click.command(help=__doc__.splitlines()[0])
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="[default: all]")
@click.option("--again", is_flag=True, help="Measure what has been measured.")
@click.option("--toy", is_flag=True, help="Small, on any machine: not results.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the runs.  [default: a folder beside --file]"
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where CIFAR-10 is.")
@click.option("--file", type=click.Path(path_type=Path), help="[default: benchmarks/deep_gpu.json]")
@click.option("--alone", hidden=True)
def main(
    parts: tuple[str, ...],
    again: bool,
    toy: bool,
    out: Path | None,
    data_dir: Path | None,
    file: Path | None,
    alone: str | None,
) -> None:
    file = file or FOLDER / ("deep_toy.json" if toy else "deep_gpu.json")
    out = out or file.with_suffix("")
    if alone:
        _alone(alone, SMALL if toy else PAPER, out, data_dir)
        return
    held = json.loads(file.read_text()) if file.exists() else {}
    if toy:
        held = {"note": TOY} | held
    for part in parts or PARTS:
        if part in held and not again:
            continue
        found = [_measured(name, toy, out, data_dir) for name in PARTS[part]]
        held[part] = {"rows": [row for one in found for row in one["rows"]], "on": found[0]["on"]}
        _with_shares(held)
        file.write_text(json.dumps(held, indent=1) + "\n")
    for part in PARTS:
        if part in held:
            print(f"{part}, on {held[part]['on']['device']}" + (f" ({TOY})" if toy else ""))
            show(held[part]["rows"])


if __name__ == "__main__":
    main()
