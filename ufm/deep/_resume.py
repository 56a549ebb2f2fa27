"""The stage folder -> Position: where a run starts or continues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _files
from ufm.deep import _checkpoint, _config
from ufm.deep._checkpoint import Checkpoint, Folder
from ufm.deep._config import Config
from ufm.deep._history import History, Status
from ufm.deep._plan import Plan, plan_run
from ufm.deep._step import State
from ufm.deep._trained_run import Run
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net
from ufm.deep.presets import Preset
from ufm.losses import Loss


class Position(NamedTuple):
    """The progress of a run: everything that its next epoch depends on."""

    epoch: int  # epochs done
    state: State
    key: Array
    history: History
    seconds: float
    notes: tuple[str, ...]
    status: Status
    message: str
    compile_seconds: float = 0.0  # part of `seconds`

    @classmethod
    def start(cls, plan: Plan) -> Position:
        """Before the first epoch."""
        state, message = plan.initial_state(), "still running"
        return cls(0, state, plan.key, History.empty(), 0.0, (), Status.RUNNING, message)

    @classmethod
    def restored(cls, plan: Plan, checkpoint: Checkpoint, folder: Folder, refused: list[str]) -> Position:
        """The position of a checkpoint; `refused`: why newer ones cannot be read.

        Raises:
            ValueError: the arrays of the checkpoint are not those of the plan.
        """
        shapes = jax.eval_shape(plan.initial_state)
        arrays, facts = checkpoint.arrays, checkpoint.facts
        try:
            state = _checkpoint.restored(shapes, arrays, "state")
            key = jax.random.wrap_key_data(jnp.asarray(arrays["key"]))
            history = History(*(arrays[f"history/{name}"] for name in History._fields))
        except (_checkpoint.RefusedError, KeyError) as error:
            raise ValueError(
                f"out: the checkpoint of epoch {checkpoint.epoch} in {folder.path}: {error}"
            ) from error
        return cls(
            checkpoint.epoch,
            state,
            key,
            history,
            facts["seconds"],
            (*facts["notes"], *(f"refused: {why}" for why in refused)),
            Status(facts["status"]),
            facts["message"],
            facts.get("compile_seconds", 0.0),
        )

    def checkpoint(self) -> Checkpoint:
        """What `restored` reads."""
        arrays = _checkpoint.named(self.state, "state") | _checkpoint.named(self.history, "history")
        arrays["key"] = np.asarray(jax.random.key_data(self.key))
        facts = {
            "status": self.status.value,
            "message": self.message,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "notes": list(self.notes),
        }
        return Checkpoint(self.epoch, arrays, facts)

    def run(self, plan: Plan, folder: Folder | None = None) -> Run:
        """The record of this position; a `folder` that is only read keeps its code and hardware."""
        record = {} if folder is None else folder.record
        made: dict[str, Any] = {name: record[name] for name in ("code", "hardware") if name in record}
        # several processes: arrays that each can use by itself
        state = self.state if jax.process_count() == 1 else jax.tree.map(np.asarray, self.state)
        made["compile_seconds"] = self.compile_seconds
        return Run(plan, self.status, self.message, self.epoch, state, self.history, self.notes, **made)


def start_or_continue(plan: Plan, folder: Folder | None, resume: bool | str) -> Position:
    """The start of a run, or the position of the run in the folder.

    Raises:
        ValueError: the folder holds a run that must not be continued; see `train`.
    """
    if folder is None:
        return Position.start(plan)
    if not folder.record:
        position = Position.start(plan)
        folder.open(position.run(plan).to_dict())
        return position
    if resume is False:
        raise ValueError(
            f"out: {folder.path} holds a run already; choose another folder, or drop resume=False "
            "(--resume no)"
        )
    changes = folder.check_same(plan.config.to_dict(), may_change=resume == "changed")
    checkpoint, refused = folder.newest()
    if checkpoint is None:
        position = Position.start(plan)
    else:
        position = Position.restored(plan, checkpoint, folder, refused)
    # notes of a process that was killed before its first checkpoint are in the record alone
    unsaved = tuple(note for note in folder.record.get("notes", ()) if note not in position.notes)
    if position.status is not Status.RUNNING and not (changes or unsaved):
        return position
    changes += folder.check_code(may_change=resume == "changed")
    if position.epoch > plan.config.epochs or (
        position.epoch == plan.config.epochs and position.status is Status.COMPLETED
    ):
        raise ValueError(
            f"epochs: expected more than the {position.epoch} that {folder.path} has done, got "
            f"{plan.config.epochs}"
        )
    changes += _config.differences(folder.record.get("hardware", {}), _files.hardware())
    notes = tuple(f"changed after epoch {position.epoch}: {change}" for change in changes)
    state = position.state._replace(failed=jnp.full((), -1, jnp.int32))
    position = position._replace(
        state=state, notes=position.notes + unsaved + notes, status=Status.RUNNING, message="still running"
    )
    folder.open(position.run(plan).to_dict())
    return position


def load(
    out: str | Path,
    *,
    data: str | Path | Dataset | None = None,
    data_dir: str | Path | None = None,
    net: str | Net | None = None,
    loss: str | Loss | Callable[..., Array] | None = None,
) -> Run:
    """Read the run in a folder, finished or not, without training.

    Args:
        data, net, loss: needed where the record's names do not suffice: class folders, a net or a loss of
            your own.

    Raises:
        ValueError: the folder holds no run, or one of other data.
    """
    folder = Folder(Path(out))
    if not folder.record:
        raise ValueError(f"out: expected the folder of a run, got {str(out)!r} without record.json")
    c = Config.from_dict(folder.record["config"])
    named = net is None or isinstance(net, str)
    found = plan_run(
        c.data if data is None else data,
        net=c.net if net is None else net,
        loss=c.loss if loss is None else loss,
        preset=Preset("as recorded", cifar10_constants=False, **c.settings()),
        width=c.width if named else None,
        data_dir=data_dir,
        dtype=c.dtype,
        seed=c.seed,
        max_train=c.max_train,
        metrics_every=c.metrics_every,
        hyperparameters=c.hyperparameters if loss is None else {},
    )
    folder.check_shapes(found.config.to_dict())
    found = found._replace(config=c)
    checkpoint, refused = folder.newest()
    if checkpoint is None:
        raise ValueError(f"out: {folder.path} holds a run that has no checkpoint yet")
    return Position.restored(found, checkpoint, folder, refused).run(found, folder)
