"""The time that the remaining runs of a sweep need: operations at a measured rate, and compilation."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ufm.deep import _feed, _measure, _step
from ufm.deep._compile_time import compile_seconds
from ufm.deep._plan import Plan
from ufm.deep._sweep_folder import Row

#: training steps over which the rate is measured before the first run
STEPS = 3


class Rate(NamedTuple):
    """What was measured of runs of one width."""

    operations_per_second: float  # without compilation
    compile_seconds: float  # of the programs for one loss


def rates_of(rows: Sequence[Row]) -> dict[float, Rate]:
    """The rates of runs by width: operations done, over the seconds that they took without compilation.

    A run compiles nothing if an earlier run of the same process had the same width and loss: the compilation
    of a loss is that of the run which compiled most.
    """
    timed = [row for row in rows if row.operations_done and row.seconds > 0]
    found = {}
    for width in sorted({row.point.width for row in timed}):
        own = [row for row in timed if row.point.width == width]
        compiling: dict[tuple[float, str], float] = {}
        for row in own:
            compiling[row.program] = max(compiling.get(row.program, 0.0), row.compile_seconds)
        seconds = sum(_without_compilation(row) for row in own)
        rate = sum(row.operations_done for row in own) / seconds
        found[width] = Rate(rate, sum(compiling.values()) / len(compiling))
    return found


def _without_compilation(row: Row) -> float:
    """Seconds; all of them where the compilation exceeds those of the epochs that were measured."""
    running = row.seconds - row.compile_seconds
    return running if running > 0 else row.seconds


def rates_in_words(rows: Sequence[Row], rates: Mapping[float, Rate]) -> str:
    """What `rates_of` found, and on which devices."""
    if not rates:
        return "rate: no run has been measured yet"
    timed = [row for row in rows if row.operations_done and row.seconds > 0]
    names = ", ".join(sorted({row.device for row in timed}))
    speeds = ", ".join(
        f"{speed:.3g}/s at width {width:g}, after {compiling:.1f} s to compile"
        for width, (speed, compiling) in rates.items()
    )
    return f"rate: {speeds}, of {len(timed)} run{'s' * (len(timed) > 1)} on {names}"


def seconds_left(rows: Sequence[Row], rates: Mapping[float, Rate]) -> list[float]:
    """Seconds of each row: its operations and, for the first row of each program, the compilation.

    Programs that an earlier process compiled are compiled again, or read from the compilation cache.
    """
    compiled: set[tuple[float, str]] = set()
    found = []
    for row in rows:
        if not (row.operations_left and rates):
            found.append(0.0)
            continue
        rate = rates[min(rates, key=lambda known: abs(math.log(known / row.point.width)))]
        compiling = 0.0 if row.program in compiled else rate.compile_seconds
        compiled.add(row.program)
        found.append(row.operations_left / rate.operations_per_second + compiling)
    return found


def measure_rate(plan: Plan, clock: Callable[[], float] = time.perf_counter) -> Rate:
    """Time some training steps once they are compiled, and the compilation of step and evaluation."""
    batch, data = plan.config.batch, plan.data
    size = STEPS * batch
    rows = np.arange(size, dtype=np.int32) % min(size, len(data.train_images))
    few = dataclasses.replace(
        data, train_images=data.train_images[:size], train_labels=data.train_labels[:size],
        test_images=data.test_images[:1], test_labels=data.test_labels[:1],
    )  # fmt: skip
    recipe, hyper, feed = plan.recipe, plan.hyper(0), _feed.Feed(few)
    state, seconds, compiled = plan.initial_state(), math.inf, compile_seconds()
    (chunk,) = feed.chunks(jax.numpy.asarray(rows.reshape(STEPS, batch)))
    for _ in range(2):  # the first pass compiles
        began = clock()
        state, totals = _step.run_steps(
            recipe,
            state,
            _step.zero_totals(),
            hyper,
            plan.key,
            chunk.data,
            chunk.order,
            (0, 0),
            lambda *_: None,
        )
        jax.block_until_ready((state, totals))  # type: ignore[no-untyped-call]
        seconds = clock() - began
    evaluated = _measure.batches(rows, np.full(size, _measure.TRAIN))
    _measure.measure(recipe, state, hyper.loss, feed, evaluated, convention=plan.config.convention)
    operations = 6 * plan.net.flops(data.image_shape) * rows.size
    # an earlier call has compiled these programs, but those of the runs are of other shapes
    _compiling[recipe] = max(_compiling.get(recipe, 0.0), compile_seconds() - compiled)
    return Rate(operations / seconds, _compiling[recipe])


#: the largest compilation that was measured by `measure_rate`
_compiling: dict[_step.Recipe, float] = {}
