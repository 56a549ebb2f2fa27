"""The stage grid -> folder of runs: loss x width x epochs x seed (x decay), resumed, sharded, costed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ufm import _checks
from ufm import losses as shelf
from ufm.deep import _checkpoint, _config, _standing, _train, datasets, nets, presets
from ufm.deep._checkpoint import Folder
from ufm.deep._config import Plan
from ufm.deep._run import Status
from ufm.deep._standing import FILE, FORMAT, Point, SweepStatus
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net
from ufm.deep.presets import Preset

#: what differs between the runs of a sweep; everything else in their configurations is shared
_OWN = (
    *("loss", "hyperparameters", "width", "parameters", "features"),
    *("epochs", "metrics_every", "seed", "weight_decay"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class SweepPlan:
    """A sweep that has been checked and costs so much; nothing is written or trained yet."""

    out: Path
    settings: dict[str, Any]  # what the runs share
    points: tuple[Point, ...]
    plans: tuple[Plan, ...]  # one a point

    def share(self, shard: str | tuple[int, int] | None) -> tuple[int, ...]:
        """Positions of the runs of shard "i/n", i = 1..n; None: all.

        The dearest run goes first, each to the machine with the least to do so far: the same on every
        machine, whatever is done already.

        Raises:
            ValueError: not i/n with 1 <= i <= n.
        """
        index, count = parse_shard(shard)
        return shares([point.operations.total for point in self.points], count)[index - 1]


# --- the plan -------------------------------------------------------------------------------------


def plan_sweep(
    out: str | Path,
    data: str | Path | Dataset = "digits",
    *,
    net: str = "small_resnet",
    losses: Iterable[str] = shelf.PAPER,
    widths: Iterable[float] = (1.0,),
    epochs: Iterable[int] = (100,),
    seeds: Iterable[int] = (0,),
    weight_decays: Iterable[float | None] = (None,),
    preset: str | Preset = "paper",
    batch: int | None = None,
    learning_rate: float | None = None,
    augment: bool | None = None,
    max_train: int | None = None,
    metrics_every: int | None = None,
    dtype: str = "float32",
    data_dir: str | Path | None = None,
    **hyperparameters: Any,
) -> SweepPlan:
    """Check every run of losses x widths x epochs x seeds x weight_decays, and count what it costs.

    Args:
        out: the folder of the sweep, one folder a run inside. Another plan for the same folder adds its runs
            to those that are there.
        losses: names of `ufm.losses.LOSSES`; a hyperparameter goes to the losses that have it.
        weight_decays: None is the preset's.
        Everything else as in `train`.

    `sweep_status` tells what is done and left, `train_sweep` trains.

    Raises:
        ValueError: as `train`, for any run, before one starts; an empty axis or a value twice; a folder
            that holds a single run, or a sweep with other settings (naming the difference).
    """
    folder = Path(out)
    axes = {
        "loss": _axis("losses", losses),
        "width": _axis("widths", widths),
        "epochs": _axis("epochs", epochs),
        "seed": _axis("seeds", seeds),
        "weight_decay": _axis("weight_decays", weight_decays),
    }
    names = [_checks.choice("loss", name, shelf.LOSSES) for name in axes["loss"]]
    own = _own_hyperparameters(names, hyperparameters)
    if isinstance(net, Net):
        raise ValueError(f"net: expected a name of {', '.join(nets.NETS)}, got {net!r}")
    _checks.choice("net", net, nets.NETS)
    presets.get(preset)
    images = datasets.get(data, data_dir=data_dir)
    plans = [
        _config.plan(
            images, net, loss, preset, width=float(_checks.real("width", width, above=0.0)), data_dir=None,
            dtype=dtype, seed=seed, max_train=max_train, metrics_every=metrics_every,
            hyperparameters=own[loss], epochs=e, batch=batch, learning_rate=learning_rate,
            weight_decay=decay, augment=augment,
        )
        for loss, width, e, seed, decay in itertools.product(*axes.values())
    ]  # fmt: skip
    named_decay = axes["weight_decay"] != [None]
    points = tuple(_point(plan, named_decay) for plan in plans)
    if len({point.name for point in points}) < len(points):
        raise ValueError("weight_decays: expected different values, got the preset's own beside None")
    shared = {k: v for k, v in plans[0].config.to_dict().items() if k not in _OWN}
    found = SweepPlan(folder, shared, points, tuple(plans))
    _together(found)  # refuses another sweep's folder
    _check_runs(found)
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
    """For each loss those that it has; one that no loss has is refused as the loss would."""
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
        operations=_standing.operations(plan),
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
    """Positions for each of so many machines: the dearest first, each to the one with the least to do.

    No machine does more than the least busy one and one run.
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
    """Train the runs of a sweep that are not finished, one after the other, each as `train` would.

    Args:
        shard: "i/n" trains the i-th of n shares, of about equal cost, which depend on the plan alone.
        resume: "changed" continues interrupted runs of other code or configuration.
        Everything else as in `train`.

    Returns: the `SweepStatus` afterwards. A run that is refused is told in its `troubles`, and the others go
    on; a full disk ends the sweep. A run that another process is training is passed over.

    Raises:
        ValueError: a shard that is none; a folder that holds another configuration's run.
    """
    chosen = plan.share(shard)
    if resume != "changed":
        _check_runs(plan)
    _write(plan)
    troubles: list[str] = []
    for i in chosen:
        point, own = plan.points[i], plan.plans[i]
        place = plan.out / point.name
        with _alone(place) as free:
            if not free:
                troubles.append(f"{point.name}: another process is training it")
                continue
            if _standing.row_of(plan.out, point).finished:
                continue
            try:
                run = _train.train(
                    **_arguments(own), out=place, resume=resume, checkpoint_seconds=checkpoint_seconds,
                    devices=devices, data_memory=data_memory, progress=progress,
                )  # fmt: skip
            except (ValueError, OSError) as error:
                troubles.append(f"{point.name}: {error}")
                continue
        if run.status is Status.NOT_SAVED:
            troubles.append(f"{point.name}: {run.message}")
            break
    return dataclasses.replace(sweep_status(plan.out, measure=False), troubles=tuple(troubles))


def _arguments(plan: Plan) -> dict[str, Any]:
    """Those of `train` that give this plan."""
    c = plan.config
    # the name, because a preset with values exchanged has none
    preset = c.preset if c.preset in presets.PRESETS else plan.preset
    names = ("epochs", "batch", "learning_rate", "weight_decay", "augment", "seed", "max_train")
    given = {name: getattr(c, name) for name in (*names, "metrics_every", "dtype")}
    return given | {
        "data": plan.data, "net": c.net, "width": c.width, "loss": plan.loss, "preset": preset
    }  # fmt: skip


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Whether no other process trains in this folder; a lock that ends with the process."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # a system without; `shard` keeps machines apart
        yield True
        return
    handle, free = os.open(place, os.O_RDONLY), True
    try:
        if jax.process_count() == 1:  # the processes of one run share its folder
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError:
                pass  # a file system without locks
        yield free
    finally:
        os.close(handle)


# --- the folder -----------------------------------------------------------------------------------


def _together(plan: SweepPlan) -> tuple[Point, ...]:
    """The folder's runs and the plan's.

    Raises:
        ValueError: the folder is something else's.
    """
    if plan.out.exists() and not plan.out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {plan.out}")
    if (plan.out / "record.json").exists():
        raise ValueError(f"out: {plan.out} holds a single run; choose another folder for a sweep")
    held = _standing.read(plan.out)
    if not held:
        return plan.points
    known = {point.name: point for point in held["runs"]}
    changes = _config.difference(held["settings"], plan.settings)
    for point in plan.points:
        old = known.setdefault(point.name, point)
        changes += [f"{point.name}, {line}" for line in _config.difference(old._asdict(), point._asdict())]
    if changes:
        raise ValueError(
            f"out: {plan.out} holds another sweep ({'; '.join(changes[:3])}); choose another folder"
        )
    return tuple(known.values())


def _check_runs(plan: SweepPlan) -> None:
    """Refuse folders of runs that hold others'."""
    for point, own in zip(plan.points, plan.plans, strict=True):
        folder = Folder(plan.out / point.name)
        if folder.record:
            _checkpoint.check_same(folder, own.config.to_dict(), may_change=False)


def _write(plan: SweepPlan) -> None:
    points = _together(plan)
    if jax.process_index() != 0:
        return
    _checks.folder("out", plan.out)
    runs = [point._asdict() | {"operations": point.operations._asdict()} for point in points]
    _checkpoint.write_json(plan.out / FILE, {"format": FORMAT, "settings": plan.settings, "runs": runs})


def sweep_status(sweep: str | Path | SweepPlan, *, measure: bool = True) -> SweepStatus:
    """What of a sweep is done, and what it will still cost.

    Args:
        sweep: a plan, or the folder of a sweep that was begun.
        measure: where no run has been measured yet, time some steps of the smallest network (of a plan; a
            folder alone has no images).

    Operations are counted, see `operations`; hours are at the rate at which the sweep's own runs went, taken
    from the nearest width.

    Raises:
        ValueError: a folder without a sweep.
    """
    if isinstance(sweep, SweepPlan):
        out, settings, points = sweep.out, sweep.settings, _together(sweep)
    else:
        out, held = Path(sweep), _standing.read(Path(sweep))
        if not held:
            raise ValueError(f"out: expected the folder of a sweep, got {str(out)!r} without {FILE}")
        settings, points = held["settings"], tuple(held["runs"])
    rows = tuple(_standing.row_of(out, point) for point in points)
    rates, text = _standing.measured_by(rows)
    if not rates and measure and isinstance(sweep, SweepPlan):
        smallest = min(sweep.plans, key=lambda plan: _standing.operations(plan).total)
        rates = {smallest.config.width: _standing.rate_of(smallest)}
        device = jax.devices()[0].device_kind
        text = f"rate: {_standing.STEPS} steps at width {smallest.config.width:g} on {device}, just now"
    return SweepStatus(out, settings, rows, rates, text)
