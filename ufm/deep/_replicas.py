"""The stage Plans -> Runs: replicas of a small network, trained together in one program by vmap."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ufm import losses as shelf
from ufm._progress import Progress
from ufm._pytree import pytree_dataclass
from ufm.deep import _measure, _options, _step
from ufm.deep._feed import Feed
from ufm.deep._history import History, Status
from ufm.deep._plan import AUGMENT, METRICS, SHUFFLE, Plan, plan_run
from ufm.deep._step import Hyper, Images, Recipe, State, Totals
from ufm.deep._train import train
from ufm.deep._trained_run import Run
from ufm.deep.datasets import Dataset
from ufm.losses import Loss
from ufm.metrics import NeuralCollapse


@pytree_dataclass
class Switch(Loss):
    """One of several losses, chosen by a leaf: under vmap every replica evaluates all and keeps its own.

    A loss is K numbers per sample, so the others cost nothing compared with the network.
    """

    which: Array
    members: tuple[Loss, ...]

    name = "switch"
    title = "one of several losses"

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return jax.lax.switch(self.which, self.members, z, k)


#: the axes of `train_many`, which replace options of one run
_AXES = ("loss", "seed", "learning_rate", "weight_decay")


@_options.takes_options_of(train, without=_AXES, net="mlp", preset="small")
def train_many(
    data: str | Path | Dataset = "digits",
    *,
    losses: Sequence[str | Loss | Callable[..., Array]] = shelf.PAPER,
    seeds: Sequence[int] = (0,),
    learning_rates: Sequence[float | None] = (None,),
    weight_decays: Sequence[float | None] = (None,),
    progress: bool | None = None,
    **options: Any,
) -> list[Run]:
    """Train losses x seeds x learning_rates x weight_decays of one network in one program.

    Each `Run` is, up to rounding, what `train` would have given; they come in the order of the product. One
    program is compiled for all of them, because they differ in leaves only. A replica whose loss is not
    finite keeps its last good state while the others go on. Nothing is written: for folders and checkpoints
    use `train`.

    On a GPU, one small network leaves most of the device idle, and many together cost little more than one.
    On a CPU, use it for perceptrons only: convolutions with a kernel per replica are slow there, and one run
    after the other is faster.

    Args:
        losses: names, `Loss`es or functions.
        learning_rates, weight_decays: None is the preset's.
        options: those of `train`, see there.

    Raises:
        ValueError: as `train`; an empty sequence; images that do not fit the device's memory.

    >>> from ufm import deep
    >>> runs = deep.train_many("digits", losses=("ce", "mse"), seeds=(0, 1), width=0.25, epochs=2)
    >>> [(run.config.loss, run.config.seed) for run in runs]
    [('ce', 0), ('ce', 1), ('mse', 0), ('mse', 1)]
    """
    given = (list(losses), list(seeds), list(learning_rates), list(weight_decays))
    axes: dict[str, list[Any]] = dict(zip(_AXES, given, strict=True))
    for name, values in axes.items():
        if not values:
            raise ValueError(f"{name}: expected at least one value, got none")
    axes["loss"] = [shelf.get(loss) for loss in axes["loss"]]  # one object each, compared by identity
    plans: list[Plan] = []
    for point in itertools.product(*axes.values()):
        plans.append(plan_run(data, **dict(zip(axes, point, strict=True)), **options))
        data = plans[0].data  # read once
    return _Replicas(plans, progress).run()


class _Trained(NamedTuple):
    """State and totals of all replicas, along a leading axis."""

    state: State
    totals: Totals


def _hyper(plans: list[Plan], epoch: int) -> Hyper:
    """The values of the replicas, stacked."""
    now = {id(plan.loss): plan.current_loss() for plan in plans}
    members = tuple(now.values())
    if len({jax.tree.structure(m) for m in members}) > 1:
        index = {given: i for i, given in enumerate(now)}
        chosen: list[Loss] = [Switch(jnp.int32(index[id(plan.loss)]), members) for plan in plans]
    else:
        chosen = [now[id(plan.loss)] for plan in plans]
    each = [plan.hyper(epoch)._replace(loss=loss) for plan, loss in zip(plans, chosen, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *each)


_shared_data = (0, 0, 0, 0, None, 0, None)  # the axes of `_step.step_on_rows`'s arguments after the recipe


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _one_step(
    recipe: Recipe,
    state: State,
    totals: Totals,
    hyper: Hyper,
    key: Array,
    data: Images,
    rows: Array,
    place: tuple[_step.Step, _step.Step],
) -> tuple[State, Totals]:
    own = jax.vmap(partial(_step.step_on_rows, recipe), in_axes=_shared_data)
    return own(state, totals, hyper, key, data, rows, place)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _scanned(
    recipe: Recipe,
    state: State,
    totals: Totals,
    hyper: Hyper,
    key: Array,
    data: Images,
    order: Array,
    first: _step.Step,
) -> tuple[State, Totals]:
    own = jax.vmap(partial(_step.step_on_rows, recipe), in_axes=_shared_data)

    def body(carry: tuple[State, Totals], x: tuple[Array, Array]) -> tuple[tuple[State, Totals], None]:
        return own(*carry, hyper, key, data, x[1], (x[0], first + x[0])), None

    steps = jnp.arange(order.shape[1], dtype=jnp.int32)
    carry, _ = jax.lax.scan(body, (state, totals), (steps, jnp.swapaxes(order, 0, 1)))
    return carry


@partial(jax.jit, static_argnums=(0, 6))
def _measured(
    recipe: Recipe,
    state: State,
    loss: Loss,
    key: Array | None,
    data: Images,
    asked: tuple[Array, Array],
    convention: str,
) -> tuple[_measure.Tally, NeuralCollapse]:
    """Tallies and neural collapse of all replicas: a perceptron's evaluation is small enough to scan."""

    def of_one(state: State, loss: Loss, key: Array | None) -> tuple[_measure.Tally, NeuralCollapse]:
        return _measure.measure_inside_jit(recipe, state, loss, key, data, asked, convention)

    return jax.vmap(of_one)(state, loss, key)


class _Replicas:
    """The loop of `_train` for all replicas at once, without folders."""

    def __init__(self, plans: list[Plan], progress: bool | None) -> None:
        self.plans, self.first = plans, plans[0]
        self.recipe, self.batches = self.first.recipe, self.first.batches()
        feed = Feed(self.first.data)
        if not feed.resident:
            raise ValueError(
                "data: expected images that fit the device's memory; use train, one run at a time"
            )
        (chunk,) = feed.chunks(self.batches.order)
        self.data: Images = chunk.data
        self.rows = jnp.asarray(self.first.rows("train"), jnp.int32)
        self.steps = self.first.steps
        self.bar = Progress(f"{len(plans)} x {self.first.config.net}", self.first.config.epochs, progress)

    def run(self) -> list[Run]:
        """Train all epochs; the run of each replica."""
        keys = jnp.stack([plan.key for plan in self.plans])
        hyper = _hyper(self.plans, 0)
        begin = jax.vmap(partial(_step.initial_state, self.first.net))
        state = begin(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), hyper)
        empty = History.empty()
        runs = [Run(plan, Status.RUNNING, "still running", 0, state, empty) for plan in self.plans]
        seconds, config = 0.0, self.first.config
        with self.bar:
            for epoch in range(config.epochs):
                began = time.perf_counter()
                now = self._epoch(state, keys, epoch)
                state, totals = now
                speed = int(np.sum(totals.seen)) / (time.perf_counter() - began)
                rows: list[dict[str, float]] = [{} for _ in runs]
                if self.first.measured(epoch + 1):
                    rows = self._measure(now, keys, epoch, speed)
                seconds += time.perf_counter() - began
                runs = [
                    self._advanced(run, row, int(failed), epoch, seconds)
                    for run, row, failed in zip(runs, rows, state.failed, strict=True)
                ]
                self.bar.update(epoch + 1, f"loss {float(np.nanmean(totals.loss)) / self.steps:.3g}")
        return [self._finished(run, jax.tree.map(lambda x, i=i: x[i], state)) for i, run in enumerate(runs)]

    def _epoch(self, state: State, keys: Array, epoch: int) -> _Trained:
        own = jax.vmap(lambda key: jax.random.fold_in(key, epoch + 1))(keys)
        shuffle, augment = (
            jax.vmap(lambda key, which=which: jax.random.fold_in(key, which))(own)
            for which in (SHUFFLE, AUGMENT)
        )
        batch = self.first.config.batch
        order = jax.vmap(lambda key: _step.shuffled(key, self.rows, batch=batch))(shuffle)
        hyper = _hyper(self.plans, epoch)
        totals = jax.tree.map(lambda x: jnp.zeros((len(self.plans), *x.shape), x.dtype), _step.zero_totals())
        if jax.default_backend() != "cpu":
            first = np.int32(epoch * self.steps)
            done = _scanned(self.recipe, state, totals, hyper, augment, self.data, order, first)
            return _Trained(*jax.block_until_ready(done))  # type: ignore[no-untyped-call]
        host = np.asarray(order)
        for i in range(self.steps):  # see `_step.run_steps`
            place = (np.int32(i), np.int32(epoch * self.steps + i))
            state, totals = _one_step(
                self.recipe, state, totals, hyper, augment, self.data, host[:, i], place
            )
        return _Trained(*jax.block_until_ready((state, totals)))  # type: ignore[no-untyped-call]

    def _measure(self, now: _Trained, keys: Array, epoch: int, speed: float) -> list[dict[str, float]]:
        config, key = self.first.config, None
        if config.augment_metrics:
            own = jax.vmap(lambda key: jax.random.fold_in(key, epoch + 1))(keys)
            key = jax.vmap(lambda key: jax.random.fold_in(key, METRICS))(own)
        asked = jnp.asarray(self.batches.order), jnp.asarray(self.batches.part)
        loss = _hyper(self.plans, epoch).loss
        tally, nc = _measured(self.recipe, now.state, loss, key, self.data, asked, config.convention)
        rows = []
        for i, plan in enumerate(self.plans):
            mine, own_nc, sums = jax.tree.map(lambda x, i=i: np.asarray(x)[i], (tally, nc, now.totals))
            row = plan.history_row(epoch + 1, _measure.scores_of(mine), own_nc, sums)
            rows.append(row | {"images_per_second": speed})
        return rows

    def _advanced(self, run: Run, row: dict[str, float], failed: int, epoch: int, seconds: float) -> Run:
        if failed >= 0:
            return run
        history = run.history.extended(row | {"seconds": seconds}) if row else run.history
        return dataclasses.replace(run, epoch=epoch + 1, history=history)

    def _finished(self, run: Run, state: State) -> Run:
        failed = int(state.failed)
        status = Status.COMPLETED if failed < 0 else Status.NON_FINITE
        message = f"completed {run.epoch} epochs"
        if failed >= 0:
            message = run.plan.non_finite_message(failed)
        return dataclasses.replace(run, state=state, status=status, message=message)
