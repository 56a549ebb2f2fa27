"""The stage Plan -> Run: epochs of SGD with measurements between them, continued after interruptions."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from ufm import _checks
from ufm._progress import Progress
from ufm.deep import _measure, _mesh, _options, _step
from ufm.deep._checkpoint import Folder
from ufm.deep._compile_time import compile_seconds
from ufm.deep._feed import Feed
from ufm.deep._history import Status
from ufm.deep._plan import AUGMENT, METRICS, SHUFFLE, Plan, plan_run
from ufm.deep._resume import Position, start_or_continue
from ufm.deep._step import State, Totals
from ufm.deep._trained_run import Run
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net
from ufm.deep.presets import Preset
from ufm.losses import Loss

#: seconds between updates of the progress bar, each of which waits for the device
UPDATE_SECONDS = 0.25


def train(
    data: str | Path | Dataset = "digits",
    *,
    data_dir: str | Path | None = None,
    net: str | Net = "small_resnet",
    width: float | None = None,
    loss: str | Loss | Callable[..., Array] = "ce",
    preset: str | Preset = "paper",
    epochs: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    augment: bool | None = None,
    seed: int = 0,
    max_train: int | None = None,
    metrics_every: int | None = None,
    dtype: str = "float32",
    out: str | Path | None = None,
    resume: bool | str = True,
    checkpoint_seconds: float = 60.0,
    devices: int | None = None,
    data_memory: int | None = None,
    progress: bool | None = None,
    **hyperparameters: ArrayLike,
) -> Run:
    """Train a network with SGD and measure neural collapse along the way.

    Args:
        data: one of `datasets.DATASETS`, or the path of a folder, tar or zip of class folders. Also a
            `Dataset`.
        data_dir: folder with the files of the data set, or for its download. Default: the user's cache.
        net: one of `nets.NETS`. Also a `Net`.
        width: factor of the number of channels of a net given by name. Default: 1.
        loss: one of `losses.LOSSES`. Its hyperparameters are further keywords, as in `solve_ufm`. Also a
            `Loss` or a function loss(z, k) of one logit vector.
        preset: one of `presets.PRESETS`. Also a `Preset`.
        epochs: number of epochs. Default: the preset's.
        batch: images per step. Default: the preset's.
        learning_rate: learning rate of the first epochs. Default: the preset's.
        weight_decay: penalty of all parameters. Default: the preset's.
        augment: random crops and flips of the training images. Default: the preset's.
        seed: seed of the parameters, of the order of the images and of their augmentation.
        max_train: maximum number of training images. They are the first ones of the shuffled split.
            Default: all.
        metrics_every: epochs between measurements. Default: epochs / 100, as in the paper.
        dtype: type in which the network computes: float32 or bfloat16. Parameters, statistics, loss and
            metrics are float32 in either case.
        out: folder for the record and the checkpoints. A finished run that it holds is returned. An
            interrupted one is continued: on the same machine the result is bit by bit that of a run without
            interruption.
        resume: False refuses a folder that holds a run; "changed" continues one of another configuration or
            code with the new values, which its notes then list.
        checkpoint_seconds: minimum time between checkpoints, which are written in the background at the end
            of an epoch; 0 writes one after every epoch.
        devices: number of devices among which each batch is split, of all processes that `jax.distributed`
            knows. Batch norm uses the statistics of the whole batch. If there are several processes, each
            calls `train` with the same arguments, and `out` is a folder that all can read and the first one
            writes. Default: one. On a CPU a convolution uses one core, so that one device a core is faster
            (`jax.config.update("jax_num_cpu_devices", ...)` makes them; the command `ufm train` does this).
            Sums over devices are rounded otherwise than on one.
        data_memory: bytes of the device's memory for images; further images are sent in chunks. Default:
            40 % of the memory.
        progress: whether to show a progress bar. Default: in an interactive session, after some seconds.

    The last images of a shuffle that do not fill a batch are left out of that epoch. If the loss is not
    finite, or a checkpoint cannot be written, the run ends with its last good state, and `status` and
    `message` say so.

    Raises:
        ValueError: an argument is misspelt or out of range, the data set is damaged, the batch is larger
            than the data, or the folder holds another run (naming the difference).
        OSError: `out` cannot be written, or the data cannot be downloaded.

    Source: Zhou et al. 2022, Section 4 and appendices A.1-A.3; see `presets`.

    >>> from ufm import deep
    >>> run = deep.train("digits", net="mlp", width=0.25, loss="mse", epochs=2, preset="small")
    >>> run.status.value, run.history.epoch.tolist()
    ('completed', [1, 2])
    """
    given = locals()  # the arguments by name
    execution = Execution.checked(**{name: given[name] for name in _options.EXECUTION})
    options = {name: given[name] for name in OPTIONS}
    return train_plan(plan_run(**options, hyperparameters=hyperparameters), execution)


#: the options that `train`, `train_many`, `plan_sweep` and `ufm train` share
OPTIONS = _options.options_of(train)


class Execution(NamedTuple):
    """How a run is executed, which does not change its result."""

    folder: Folder | None
    resume: bool | str
    pause: float  # seconds between checkpoints
    devices: int | None
    memory: int | None  # bytes for images
    progress: bool | None

    @classmethod
    def checked(
        cls,
        out: str | Path | None = None,
        resume: bool | str = True,
        checkpoint_seconds: float = 60.0,
        devices: int | None = None,
        data_memory: int | None = None,
        progress: bool | None = None,
    ) -> Execution:
        """From the arguments of `train`, checked."""
        if resume not in (True, False, "changed"):
            raise ValueError(f"resume: expected True, False or 'changed', got {resume!r}")
        pause = float(_checks.real("checkpoint_seconds", checkpoint_seconds, least=0.0))
        memory = None if data_memory is None else _checks.integer("data_memory", data_memory, least=1)
        folder = None if out is None else Folder(Path(out))
        return cls(folder, resume, pause, devices, memory, progress)


def train_plan(plan: Plan, execution: Execution) -> Run:
    """Train what is planned, or continue it."""
    mesh = _mesh.mesh_of(execution.devices, plan.config.batch)
    _mesh.wait_for_all("folder read")  # before the first process writes
    position = start_or_continue(plan, execution.folder, execution.resume)
    _mesh.wait_for_all("checkpoint read")
    if position.status is not Status.RUNNING:
        return position.run(plan, execution.folder)
    return _Trainer(plan, execution, mesh).run(position)


# --- the loop -------------------------------------------------------------------------------------


class _Trainer:
    """Epoch after epoch: steps, measurement, checkpoint."""

    def __init__(self, plan: Plan, how: Execution, mesh: Mesh | None) -> None:
        self.plan, self.folder, self.pause = plan, how.folder, how.pause
        self.recipe = plan.recipe._replace(mesh=mesh)
        self.feed = Feed(plan.data, how.memory, mesh)
        self.rows = jnp.asarray(plan.rows("train"), jnp.int32)
        self.batches = plan.batches(1 if mesh is None else mesh.size)
        self.steps = plan.steps
        c = plan.config
        self.bar = Progress(f"{c.net} {c.loss}", self.steps * c.epochs, how.progress)
        self.saved = time.perf_counter()

    def run(self, position: Position) -> Run:
        """Train to the last epoch, or to a failure."""
        position = position._replace(state=_mesh.replicate(self.recipe.mesh, position.state))
        try:
            with self.bar:
                while position.status is Status.RUNNING:
                    position = self._saved(self._epoch(position))
        finally:
            if self.folder is not None:
                self.folder.close()
        return position.run(self.plan)

    def _epoch(self, p: Position) -> Position:
        """The next epoch, with the measurement if one is due."""
        began, compiled = time.perf_counter(), compile_seconds()
        state, totals = self._steps(p)
        step_loss, seen = float(totals.loss) / self.steps, int(totals.seen)
        speed = seen / (time.perf_counter() - began)
        self._show(p, self.steps, step_loss, speed)
        if (failed := int(state.failed)) >= 0:
            seconds = p.seconds + time.perf_counter() - began
            message = self.plan.non_finite_message(failed)
            return p._replace(state=state, status=Status.NON_FINITE, message=message, seconds=seconds)
        p = p._replace(epoch=p.epoch + 1, state=state)
        row: dict[str, float] = {}
        if self.plan.measured(p.epoch):
            row = self._measure(p, totals, speed)
        seconds = p.seconds + time.perf_counter() - began
        if row:
            p = p._replace(history=p.history.extended(row | {"seconds": seconds}))
        if p.epoch == self.plan.config.epochs:
            message = f"completed {p.epoch} epochs"
            p = p._replace(status=Status.COMPLETED, message=message)
        return p._replace(seconds=seconds, compile_seconds=p.compile_seconds + compile_seconds() - compiled)

    def _steps(self, p: Position) -> tuple[State, Totals]:
        key = jax.random.fold_in(p.key, p.epoch + 1)  # 0 made the parameters
        shuffle, augment = (jax.random.fold_in(key, which) for which in (SHUFFLE, AUGMENT))
        order = _step.shuffled(shuffle, self.rows, batch=self.plan.config.batch)
        given = self.plan.hyper(p.epoch), augment, order
        hyper, augment, order = _mesh.replicate(self.recipe.mesh, given)
        totals = _mesh.replicate(self.recipe.mesh, _step.zero_totals())
        state = p.state  # the first step overwrites its buffers
        tick = self._ticker(p)
        for data, part, first in self.feed.chunks(order):
            place = (first, p.epoch * self.steps + first)
            state, totals = _step.run_steps(
                self.recipe, state, totals, hyper, augment, data, part, place, tick
            )
        return jax.block_until_ready((state, totals))  # type: ignore[no-untyped-call]

    def _measure(self, p: Position, totals: Totals, speed: float) -> dict[str, float]:
        c, loss = self.plan.config, self.plan.current_loss()
        key = jax.random.fold_in(jax.random.fold_in(p.key, p.epoch), METRICS) if c.augment_metrics else None
        scores, nc = _measure.measure(
            self.recipe, p.state, loss, self.feed, self.batches, key=key, convention=c.convention
        )
        return self.plan.history_row(p.epoch, scores, nc, totals) | {"images_per_second": speed}

    # --- progress and checkpoints -----------------------------------------------------------------

    def _ticker(self, p: Position) -> Callable[[int, Totals], None]:
        """A function that updates the bar a few times a second, waiting for the device each time."""
        began = last = time.perf_counter()

        def tick(done: int, totals: Totals) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last < UPDATE_SECONDS:
                return
            last = now
            loss = float(totals.loss) / done
            self._show(p, done, loss, done * self.plan.config.batch / (time.perf_counter() - began))

        return tick

    def _show(self, p: Position, done: int, loss: float, speed: float) -> None:
        c, h = self.plan.config, p.history
        ahead = (self.steps * (c.epochs - p.epoch) - done) * c.batch / speed
        words = [f"loss {loss:.3g}"]
        if len(h.epoch):
            words += [f"test {100 * h.test_accuracy[-1]:.1f} %"]
            words += [f"NC1-3 {h.nc1[-1]:.1e} {h.nc2[-1]:.1e} {h.nc3[-1]:.1e}"]
        words += [f"{speed:.0f} images/s", f"{datetime.timedelta(seconds=int(ahead))} left"]
        self.bar.update(p.epoch * self.steps + done, "  ".join(words))

    def _saved(self, p: Position) -> Position:
        """Write a checkpoint if one is due; its failure becomes the status, in every process."""
        if self.folder is None:
            return p
        failure = self._failure_to_save(p, self.folder) if self.folder.writes else ""
        if _mesh.broadcast_from_first(bool(failure)):
            failure = failure or f"epoch {p.epoch} could not be saved by the first process, which says why"
            return p._replace(status=Status.NOT_SAVED, message=failure)
        return p

    def _failure_to_save(self, p: Position, folder: Folder) -> str:
        last = p.status is not Status.RUNNING
        due = time.perf_counter() - self.saved >= self.pause and not (self.pause and folder.saving)
        try:
            if last or due:
                self.saved = time.perf_counter()
                folder.save(p.checkpoint(), p.run(self.plan).to_dict())
            if last:
                folder.wait()
        except OSError as error:
            return (
                f"epoch {p.epoch} could not be saved ({error}); what was saved before in {folder.path} is as "
                "it was: free some space and call again to continue from there"
            )
        return ""
