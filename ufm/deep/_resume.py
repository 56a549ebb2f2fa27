"""The stage folder -> Position: where a run begins, or goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm.deep import _checkpoint, _config, _step
from ufm.deep._checkpoint import Checkpoint, Folder
from ufm.deep._config import Plan
from ufm.deep._run import History, Run, Status, hyper_of, key_of
from ufm.deep._step import State
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net
from ufm.deep.presets import Preset
from ufm.losses import Loss


class Position(NamedTuple):
    """Where a run stands."""

    epoch: int  # epochs done
    state: State
    key: Array
    history: History
    seconds: float
    notes: tuple[str, ...]
    status: Status
    message: str


def begin(plan: Plan, folder: Folder | None, resume: bool | str) -> Position:
    """The start, or where the folder's run stands."""
    if folder is None:
        return _fresh(plan)
    if not folder.record:
        position = _fresh(plan)
        folder.open(run_at(plan, position, None).to_dict())
        return position
    if resume is False:
        raise ValueError(
            f"out: {folder.path} holds a run already; choose another folder, or drop resume=False "
            "(--resume no)"
        )
    changes = _checkpoint.check_same(folder, plan.config.to_dict(), may_change=resume == "changed")
    checkpoint, refused = folder.newest()
    position = _fresh(plan) if checkpoint is None else _restored(plan, checkpoint, folder, refused)
    # of a process that went on and was killed before its first checkpoint, the record alone tells
    told = tuple(note for note in folder.record.get("notes", ()) if note not in position.notes)
    if position.status is not Status.RUNNING and not (changes or told):
        return position
    changes += _other_code(folder, may_change=resume == "changed")
    if position.epoch > plan.config.epochs or (
        position.epoch == plan.config.epochs and position.status is Status.COMPLETED
    ):
        raise ValueError(
            f"epochs: expected more than the {position.epoch} that {folder.path} has done, got "
            f"{plan.config.epochs}"
        )
    changes += _config.difference(folder.record.get("hardware", {}), _config.hardware())
    notes = tuple(f"changed after epoch {position.epoch}: {change}" for change in changes)
    state = position.state._replace(failed=jnp.full((), -1, jnp.int32))
    position = position._replace(
        state=state, notes=position.notes + told + notes, status=Status.RUNNING, message="still running"
    )
    folder.open(run_at(plan, position, None).to_dict())
    return position


def _other_code(folder: Folder, *, may_change: bool) -> list[str]:
    changes = _config.difference(folder.record.get("code", {}), _config.code_version())
    if changes and not may_change:
        raise ValueError(
            f"out: {folder.path} was begun by other code ({'; '.join(changes)}) and would not end as it "
            "would have; finish it with that code, or pass resume='changed' (--resume changed)"
        )
    return [f"code, {change}" for change in changes]


def _fresh(plan: Plan) -> Position:
    key = key_of(plan)
    state = _step.start(plan.net, jax.random.fold_in(key, 0), hyper_of(plan, 0))
    return Position(0, state, key, History.empty(), 0.0, (), Status.RUNNING, "still running")


def _restored(plan: Plan, checkpoint: Checkpoint, folder: Folder, refused: list[str]) -> Position:
    shapes = jax.eval_shape(lambda: _step.start(plan.net, key_of(plan), hyper_of(plan, 0)))
    arrays, facts = checkpoint.arrays, checkpoint.facts
    try:
        state = _checkpoint.restored(shapes, arrays, "state")
        key = jax.random.wrap_key_data(jnp.asarray(arrays["key"]))
        history = History(*(arrays[f"history/{name}"] for name in History._fields))
    except (_checkpoint.RefusedError, KeyError) as error:
        raise ValueError(
            f"out: the checkpoint of epoch {checkpoint.epoch} in {folder.path}: {error}"
        ) from error
    notes = (*facts["notes"], *(f"refused: {why}" for why in refused))
    status = Status(facts["status"])
    return Position(checkpoint.epoch, state, key, history, facts["seconds"], notes, status, facts["message"])


def run_at(plan: Plan, p: Position, folder: Folder | None) -> Run:
    """The record of a position; that of a folder which is only read keeps its code and hardware."""
    made = {} if folder is None else {k: folder.record[k] for k in ("code", "hardware") if k in folder.record}
    # of several processes: what each can use by itself
    state = p.state if jax.process_count() == 1 else jax.tree.map(np.asarray, p.state)
    return Run(plan, p.status, p.message, p.epoch, state, p.history, p.notes, **made)


def checkpoint_of(p: Position) -> Checkpoint:
    arrays = _checkpoint.named(p.state, "state") | _checkpoint.named(p.history, "history")
    arrays["key"] = np.asarray(jax.random.key_data(p.key))
    facts = {"status": p.status.value, "message": p.message, "seconds": p.seconds, "notes": list(p.notes)}
    return Checkpoint(p.epoch, arrays, facts)


def load(
    out: str | Path,
    *,
    data: str | Path | Dataset | None = None,
    data_dir: str | Path | None = None,
    net: str | Net | None = None,
    loss: str | Loss | Callable[..., Any] | None = None,
) -> Run:
    """The run in a folder as far as it has come, without training.

    Args:
        data, net, loss: where the record's names are not enough: class folders, a net or a loss of one's own.

    Raises:
        ValueError: no run there, or one of other data.
    """
    folder = Folder(Path(out))
    if not folder.record:
        raise ValueError(f"out: expected the folder of a run, got {str(out)!r} without record.json")
    c = folder.record["config"]
    preset = Preset(
        "as recorded", **{k: c[k] for k in vars(Preset("")) if k in c} | {"cifar10_constants": False}
    )
    named = net is None or isinstance(net, str)
    plan = _config.plan(
        c["data"] if data is None else data,
        c["net"] if net is None else net,
        c["loss"] if loss is None else loss,
        preset,
        width=c["width"] if named else None,
        data_dir=data_dir,
        dtype=c["dtype"],
        seed=c["seed"],
        max_train=c["max_train"],
        metrics_every=c["metrics_every"],
        hyperparameters=c["hyperparameters"] if loss is None else {},
    )
    _checkpoint.check_shapes(folder, plan.config.to_dict())
    plan = plan._replace(config=_config.from_dict(c))
    checkpoint, refused = folder.newest()
    if checkpoint is None:
        raise ValueError(f"out: {folder.path} holds a run that has no checkpoint yet")
    return run_at(plan, _restored(plan, checkpoint, folder, refused), folder)
