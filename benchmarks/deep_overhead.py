"""The cost of data, augmentation and metrics over the bare step: `python -m benchmarks.deep_overhead`.

- *bare step*: forward, backward, clipping, decay, momentum on one batch that is stored, normalised, on the
  device.
- *full step*: the library's step: rows gathered from the uint8 images on the device, cropped, flipped,
  normalised, the bare step, the guard against values that are not finite, sums of loss and accuracy.
- *bare forward*: the network in evaluation mode on batches that are stored, normalised, on the device, to
  logits and features: the least that the metrics after every E/100 epochs require
  (docs/protocol.md, section 4).
- *measuring*: the library's pass: the same forward with gathering, normalising, losses, accuracies, the
  streamed NC1-NC3 and the second pass of NC4.

The images are random, compilation is excluded, and the rounds are interleaved. Shown are medians, and
medians of the ratios taken round by round. *together* is the cost of data, augmentation and metrics for
each training image, relative to the bare step, if metrics are taken after every epoch (E = 100) over
`--evaluated` images for each training image (CIFAR-10: 60,000/45,000). `--clock cpu` counts processor time
instead of wall time, which is the better measure on a busy machine.

Tried for the forward pass of wrn18(0.25) on a CPU: folding batch norm into the kernels gains 1-2 %, and
batches of 64 to 512 images cost the same per image. Neither is used."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.deep_step import Row, show
from ufm import losses
from ufm.deep import _feed, _measure, _step, datasets, nets
from ufm.deep._process import keep_freed_memory
from ufm.deep._step import Hyper, Recipe, State

CLASSES = 10
SHAPES = {"small_resnet": (28, 28, 1)}
MEAN, STD = 0.5, 0.25


def hyper() -> Hyper:
    """The paper's."""
    values = (1.0, 0.1, 5e-4, 0.9, 2.0)
    return Hyper(losses.get("ce"), *(jnp.asarray(value, jnp.float32) for value in values))


def random_data(count: int, shape: tuple[int, int, int]) -> datasets.Dataset:
    """Random images, the last hundredth of them for testing."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels, cut = rng.permutation(np.arange(count) % CLASSES), count - max(1, count // 100)
    constants = {"mean": (MEAN,) * shape[2], "std": (STD,) * shape[2]}
    return datasets.Dataset(
        "random", images[:cut], labels[:cut], images[cut:], labels[cut:],
        classes=tuple(map(str, range(CLASSES))), **constants,
    )  # fmt: skip


class Case(NamedTuple):
    """A network, its images on the device, and how they are used."""

    recipe: Recipe
    feed: _feed.Feed
    batch: int
    steps: int  # of a round


def case(name: str, width: float, *, batch: int, steps: int, images: int, dtype: str | None = None) -> Case:
    """Augmented as CIFAR is: shifts by up to 4 pixels, and mirrored."""
    shape = SHAPES.get(name, (32, 32, 3))
    net = nets.get(name, width=width, num_classes=CLASSES, image_shape=shape, compute_dtype=dtype)
    recipe = Recipe(net, (MEAN,) * shape[2], (STD,) * shape[2], pad=4, flip=True)
    return Case(recipe, _feed.Feed(random_data(images, shape)), batch, steps)


# --- the sides: each makes a function that does a round and waits for it ---------------------------


def full_step(c: Case) -> Callable[[], None]:
    key, given = jax.random.key(1), hyper()
    state, totals = _step.initial_state(c.recipe.net, key, given), _step.zero_totals()
    rows = np.random.default_rng(1).integers(len(c.feed.labels), size=(c.steps, c.batch))
    (chunk,) = c.feed.chunks(jnp.asarray(rows, jnp.int32))

    def run() -> None:
        nonlocal state, totals
        state, totals = _step.run_steps(
            c.recipe, state, totals, given, key, chunk.data, chunk.order, (0, 0), lambda *_: None
        )
        jax.block_until_ready((state, totals))

    return run


def bare_step(c: Case) -> Callable[[], None]:
    given, net = hyper(), c.recipe.net
    optimiser = _step.optimiser(given)
    x, labels = _batches(c, 1, c.batch)[0]

    def step(state: State, _: Any) -> tuple[State, None]:
        def objective(params: Any) -> Any:
            logits, _, statistics = net.apply(params, state.statistics, x, train=True)
            return jnp.mean(_step.loss_per_sample(given.loss, logits, labels)), statistics

        slope, statistics = jax.grad(objective, has_aux=True)(state.params)
        updates, momentum = optimiser.update(slope, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, statistics=statistics, optimiser=momentum), None

    state = _step.initial_state(net, jax.random.key(1), given)
    one = jax.jit(lambda state: step(state, None)[0], donate_argnums=0)
    scanned = jax.jit(lambda state: jax.lax.scan(step, state, length=c.steps)[0], donate_argnums=0)

    def run() -> None:
        nonlocal state
        if jax.default_backend() != "cpu":  # as the library does: see `_step.run_steps`
            state = scanned(state)
        else:
            for _ in range(c.steps):
                state = one(state)
        jax.block_until_ready(state)

    return run


def measuring(c: Case) -> Callable[[], None]:
    state = _step.initial_state(c.recipe.net, jax.random.key(1), hyper())
    rows = np.arange(c.steps * _measure.BATCH) % len(c.feed.labels)
    asked = _measure.batches(rows, np.full(len(rows), _measure.TRAIN))
    return lambda: (
        jax.block_until_ready(_measure.measure(c.recipe, state, hyper().loss, c.feed, asked)) and None
    )


def bare_forward(c: Case) -> Callable[[], None]:
    net = c.recipe.net
    state = _step.initial_state(net, jax.random.key(1), hyper())
    xs = [x for x, _ in _batches(c, min(c.steps, 4), _measure.BATCH)]
    one = jax.jit(lambda state, x: net.apply(state.params, state.statistics, x, train=False)[:2])
    stacked = jnp.stack(xs)
    scanned = jax.jit(
        lambda state: jax.lax.scan(
            lambda carry, i: (carry, one(state, stacked[i % len(stacked)])), 0, jnp.arange(c.steps)
        )
    )

    def run() -> None:
        if jax.default_backend() != "cpu":
            jax.block_until_ready(scanned(state))
        else:
            jax.block_until_ready([one(state, xs[i % len(xs)]) for i in range(c.steps)])

    return run


def _batches(c: Case, count: int, size: int) -> list[tuple[jax.Array, jax.Array]]:
    rows = np.arange(count * size, dtype=np.int32).reshape(count, size) % len(c.feed.labels)
    (chunk,) = c.feed.chunks(rows)
    normalised = jax.jit(partial(_step.network_input, c.recipe, None))
    return [(normalised(chunk.data.images[own]), chunk.data.labels[own]) for own in rows]


SIDES = {
    "bare step": bare_step,
    "full step": full_step,
    "bare forward": bare_forward,
    "measuring": measuring,
}

# --- the table ------------------------------------------------------------------------------------


def overhead(
    c: Case, *, rounds: int, evaluated: float, clock: Callable[[], float] = time.perf_counter
) -> Row:
    """Microseconds an image of each side, and what the library adds to the bare step."""
    sides = {name: make(c) for name, make in SIDES.items()}
    images = {name: c.steps * (c.batch if "step" in name else _measure.BATCH) for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()  # compiles
        run()
    for _ in range(rounds):
        for name, run in sides.items():
            began = clock()
            run()
            times[name].append((clock() - began) / images[name])
    bare, full, forward, whole = (np.array(times[name]) for name in SIDES)
    data, metrics, forward = ((part / bare) for part in (full - bare, whole - forward, forward))
    net = c.recipe.net
    return {
        "net": f"{net.name}({net.width:g})",
        "batch": c.batch,
        **{f"{name} us/image": 1e6 * statistics.median(taken) for name, taken in times.items()},
        "data, augmentation %": 100 * float(np.median(data)),
        "metrics %": 100 * evaluated * float(np.median(metrics)),
        "together %": 100 * float(np.median(data + evaluated * metrics)),
        "forward of all images %": 100 * evaluated * float(np.median(forward)),
    }


@click.command(help=__doc__.splitlines()[0])
@click.option("--net", "names", multiple=True, default=("wrn18:0.25", "small_resnet:1"), help="NAME:WIDTH.")
@click.option("--batch", default=128, show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--steps", default=4, show_default=True, help="Steps, and batches of evaluation, a round.")
@click.option("--images", default=10_000, show_default=True, help="Images on the device.")
@click.option("--evaluated", default=60 / 45, show_default=True, help="Images measured for one trained on.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    names: tuple[str, ...],
    batch: int,
    rounds: int,
    steps: int,
    images: int,
    evaluated: float,
    clock: str,
    as_json: bool,
) -> None:
    keep_freed_memory()  # as `ufm train` does
    rows, now = [], time.perf_counter if clock == "wall" else time.process_time
    for name, _, width in (given.partition(":") for given in names):
        made = case(name, float(width or 1), batch=batch, steps=steps, images=images)
        rows.append(overhead(made, rounds=rounds, evaluated=evaluated, clock=now))
    return print(json.dumps(rows, indent=1)) if as_json else show(rows)


if __name__ == "__main__":
    main()
