"""The stage grid -> folder of runs: losses x widths x epochs x seeds (x decays), with their cost."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ufm import _checks, _files
from ufm import losses as shelf
from ufm.deep import _config, _cost, _options, _sweep_folder, _train, datasets, nets, presets
from ufm.deep._checkpoint import Folder
from ufm.deep._history import Status
from ufm.deep._plan import Plan, plan_run
from ufm.deep._sweep_folder import FILE, FORMAT, Point, Row
from ufm.deep._sweep_status import SweepStatus
from ufm.deep._train import Execution
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net

#: the options of a run that are axes of a sweep, and the arguments of `plan_sweep` that they become
AXES = {
    "loss": "losses",
    "width": "widths",
    "epochs": "epochs",
    "seed": "seeds",
    "weight_decay": "weight_decays",
}
#: values in which the configurations of the runs of a sweep may differ
_OWN = (*AXES, "hyperparameters", "parameters", "features", "metrics_every")


@dataclasses.dataclass(frozen=True, eq=False)
class SweepPlan:
    """A sweep that has been checked and whose cost is known; nothing is written or trained yet."""

    out: Path
    settings: dict[str, object]  # what the runs share
    points: tuple[Point, ...]
    plans: tuple[Plan, ...]  # one per point

    def share(self, shard: str | tuple[int, int] | None) -> tuple[int, ...]:
        """Positions of the runs of shard "i/n", i = 1..n; None: all.

        The most expensive run is assigned first, each to the machine with the least work so far. The
        assignment depends on the plan alone and so is the same on every machine.

        Raises:
            ValueError: not i/n with 1 <= i <= n.
        """
        index, count = parse_shard(shard)
        return shares([point.operations.total for point in self.points], count)[index - 1]

    def all_points(self) -> tuple[Point, ...]:
        """The runs in the folder and those of this plan.

        Raises:
            ValueError: the folder holds something else, or a sweep with other settings.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: expected a folder, got the file {self.out}")
        if (self.out / "record.json").exists():
            raise ValueError(f"out: {self.out} holds a single run; choose another folder for a sweep")
        held = _sweep_folder.read(self.out)
        if held is None:
            return self.points
        settings, points = held
        known = {point.name: point for point in points}
        changes = _config.differences(settings, self.settings)
        for point in self.points:
            old = known.setdefault(point.name, point)
            changed = _config.differences(old._asdict(), point._asdict())
            changes += [f"{point.name}, {line}" for line in changed]
        if changes:
            raise ValueError(
                f"out: {self.out} holds another sweep ({'; '.join(changes[:3])}); choose another folder"
            )
        return tuple(known.values())

    def check_runs(self) -> None:
        """Refuse a folder that holds a run of another configuration under the name of one of these."""
        for point, own in zip(self.points, self.plans, strict=True):
            folder = Folder(self.out / point.name)
            if folder.record:
                folder.check_same(own.config.to_dict(), may_change=False)

    def write(self) -> None:
        """Write the file of the sweep, with the runs that the folder holds already."""
        points = self.all_points()
        if jax.process_index() != 0:
            return
        _checks.folder("out", self.out)
        runs = [point.to_dict() for point in points]
        _files.write_json(self.out / FILE, {"format": FORMAT, "settings": self.settings, "runs": runs})


# --- the plan -------------------------------------------------------------------------------------


@_options.takes_options_of(_train.train, without=AXES, hyperparameters=True)
def plan_sweep(
    out: str | Path,
    data: str | Path | Dataset = "digits",
    *,
    losses: Iterable[str] = shelf.PAPER,
    widths: Iterable[float] = (1.0,),
    epochs: Iterable[int] = (100,),
    seeds: Iterable[int] = (0,),
    weight_decays: Iterable[float | None] = (None,),
    **options: Any,
) -> SweepPlan:
    """Check every run of losses x widths x epochs x seeds x weight_decays, and count its operations.

    Args:
        out: the folder of the sweep, with one folder per run. Another plan for the same folder adds its runs
            to those that are there.
        losses: names of `ufm.losses.LOSSES`; a hyperparameter goes to the losses that have it.
        weight_decays: None is the preset's.
        options: those of `train`, see there.

    `sweep_status` reports progress and remaining cost, `train_sweep` trains.

    Raises:
        ValueError: as `train`, for any run, before one starts; an empty axis or a value that occurs twice; a
            folder that holds a single run, or a sweep with other settings (naming the difference).
    """
    given = (losses, widths, epochs, seeds, weight_decays)
    axes = {option: _axis(name, values) for (option, name), values in zip(AXES.items(), given, strict=True)}
    shared = {name: options.pop(name) for name in _train.OPTIONS if name in options}
    names = [_checks.choice("loss", name, shelf.LOSSES) for name in axes["loss"]]
    own = _own_hyperparameters(names, options)
    if isinstance(shared["net"], Net):
        raise ValueError(f"net: expected a name of {', '.join(nets.NETS)}, got {shared['net']!r}")
    _checks.choice("net", shared["net"], nets.NETS)
    presets.get(shared["preset"])
    axes["width"] = [float(_checks.real("width", width, above=0.0)) for width in axes["width"]]
    images = datasets.get(data, data_dir=shared.pop("data_dir"))
    plans = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        plans.append(plan_run(images, **point, **shared, hyperparameters=own[point["loss"]]))
    named_decay = axes["weight_decay"] != [None]
    points = tuple(_point(one, named_decay) for one in plans)
    if len({point.name for point in points}) < len(points):
        raise ValueError("weight_decays: expected different values, got the preset's own beside None")
    settings = {k: v for k, v in plans[0].config.to_dict().items() if k not in _OWN}
    found = SweepPlan(Path(out), settings, points, tuple(plans))
    found.all_points()  # refuses the folder of another sweep
    found.check_runs()
    return found


def _axis(name: str, values: Iterable[Any]) -> list[Any]:
    listed = [values] if isinstance(values, str | int | float) else list(values)
    if not listed:
        raise ValueError(f"{name}: expected at least one value, got none")
    twice = [value for value in listed if listed.count(value) > 1]
    if twice:
        raise ValueError(f"{name}: expected each value once, got {twice[0]!r} {listed.count(twice[0])} times")
    return listed


def _own_hyperparameters(names: list[str], given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The hyperparameters of each loss; the first loss refuses those that no loss has."""
    for key in given:
        if not any(key in shelf.HYPERPARAMETERS[name] for name in names):
            shelf.get(names[0], **{key: given[key]})
    return {name: {k: v for k, v in given.items() if k in shelf.HYPERPARAMETERS[name]} for name in names}


def _point(plan: Plan, named_decay: bool) -> Point:
    c = plan.config
    decay = f"-wd{c.weight_decay:g}" if named_decay else ""
    return Point(
        name=f"{c.loss}-w{c.width:g}-e{c.epochs}-s{c.seed}{decay}",
        loss=c.loss,
        hyperparameters=c.hyperparameters,
        width=c.width,
        epochs=c.epochs,
        seed=c.seed,
        weight_decay=c.weight_decay,
        metrics_every=c.metrics_every,
        operations=plan.operations,
    )


# --- shards ---------------------------------------------------------------------------------------


def parse_shard(shard: str | tuple[int, int] | None) -> tuple[int, int]:
    """(i, n) of "i/n"; (1, 1) of None."""
    if shard is None:
        return 1, 1
    parts = shard.split("/") if isinstance(shard, str) else [str(part) for part in shard]
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"shard: expected i/n such as 1/4, got {shard!r}")
    index, count = (int(part) for part in parts)
    if not 1 <= index <= count:
        raise ValueError(f"shard: expected i/n with 1 <= i <= n, got {shard!r}")
    return index, count


def shares(costs: Sequence[float], count: int) -> tuple[tuple[int, ...], ...]:
    """Positions for each of `count` machines: the most expensive first, each to the one with the least work.

    The work of two machines differs by one run at most.
    """
    own: list[list[int]] = [[] for _ in range(count)]
    load = [0.0] * count
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(count), key=lambda j: load[j])
        own[least].append(i)
        load[least] += costs[i]
    return tuple(tuple(sorted(positions)) for positions in own)


# --- training -------------------------------------------------------------------------------------


def train_sweep(
    plan: SweepPlan,
    *,
    shard: str | tuple[int, int] | None = None,
    resume: bool | str = True,
    checkpoint_seconds: float = 60.0,
    devices: int | None = None,
    data_memory: int | None = None,
    progress: bool | None = None,
) -> SweepStatus:
    """Train the unfinished runs of a sweep one after the other, each as `train` would.

    Args:
        shard: "i/n" trains the i-th of n shares of about equal cost, which depend on the plan alone.
        resume: "changed" continues interrupted runs of other code or configuration.
        Everything else as in `train`.

    Returns: the `SweepStatus` afterwards. A run that is refused is listed in its `troubles`, and the others
    go on; a full disk ends the sweep. A run that another process is training is left out.

    Raises:
        ValueError: an invalid shard; a folder that holds a run of another configuration.
    """
    chosen = plan.share(shard)
    if resume != "changed":
        plan.check_runs()
    how = (resume, checkpoint_seconds, devices, data_memory, progress)
    Execution.checked(None, *how)
    plan.write()
    troubles: list[str] = []
    for i in chosen:
        point, place = plan.points[i], plan.out / plan.points[i].name
        with _alone(place) as free:
            if not free:
                troubles.append(f"{point.name}: another process is training it")
                continue
            if Row.read(plan.out, point).finished:
                continue
            try:
                run = _train.train_plan(plan.plans[i], Execution.checked(place, *how))
            except (ValueError, OSError) as error:
                troubles.append(f"{point.name}: {error}")
                continue
        if run.status is Status.NOT_SAVED:
            troubles.append(f"{point.name}: {run.message}")
            break
    return dataclasses.replace(sweep_status(plan.out, measure=False), troubles=tuple(troubles))


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Whether no other process trains in this folder: a lock, which ends with the process."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not on this system; `shard` separates machines
        yield True
        return
    handle, free = os.open(place, os.O_RDONLY), True
    try:
        if jax.process_count() == 1:  # several processes of one run share its folder
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError:
                pass  # the file system has no locks
        yield free
    finally:
        os.close(handle)


def sweep_status(sweep: str | Path | SweepPlan, *, measure: bool = True) -> SweepStatus:
    """The progress of a sweep, and what it will still cost.

    Args:
        sweep: a plan, or the folder of a sweep that was begun.
        measure: before the first measurement of a run, time some steps of the smallest network and their
            compilation (of a plan only: a folder has no images).

    Operations are counted, see `Plan.operations`. Hours are those at the rate of the sweep's own runs, taken
    from the nearest width, and for compiling each pair of width and loss once more.

    Raises:
        ValueError: a folder without a sweep.
    """
    if isinstance(sweep, SweepPlan):
        out, settings, points = sweep.out, sweep.settings, sweep.all_points()
    else:
        out, held = Path(sweep), _sweep_folder.read(Path(sweep))
        if held is None:
            raise ValueError(f"out: expected the folder of a sweep, got {str(out)!r} without {FILE}")
        settings, points = held
    rows = tuple(Row.read(out, point) for point in points)
    rates = _cost.rates_of(rows)
    text = _cost.rates_in_words(rows, rates)
    if not rates and measure and isinstance(sweep, SweepPlan):
        smallest = min(sweep.plans, key=lambda one: one.operations.total)
        width, rate = smallest.config.width, _cost.measure_rate(smallest)
        rates = {width: rate}
        where = f"at width {width:g} on {jax.devices()[0].device_kind}"
        text = f"rate: {_cost.STEPS} steps {where}, just now, after {rate.compile_seconds:.1f} s to compile"
    return SweepStatus(out, settings, rows, rates, text)
