"""The stage Plan -> Run: epochs of SGD, measured along the way, continued after any interruption."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ufm import _checks
from ufm._progress import Progress
from ufm.deep import _config, _measure, _mesh, _step
from ufm.deep._checkpoint import Folder
from ufm.deep._config import Plan
from ufm.deep._feed import Feed
from ufm.deep._resume import Position, begin, checkpoint_of, run_at
from ufm.deep._run import (
    AUGMENT,
    METRICS,
    SHUFFLE,
    Run,
    Status,
    advice_of,
    batches_of,
    hyper_of,
    loss_of,
    recipe_of,
    row_of,
    rows_of,
)
from ufm.deep._step import State, Totals
from ufm.deep.datasets import Dataset
from ufm.deep.nets import Net
from ufm.deep.presets import Preset
from ufm.losses import Loss

#: seconds between looks at the device for the progress bar, where Python runs the steps
GLANCE = 0.25


def train(
    data: str | Path | Dataset = "digits",
    *,
    net: str | Net = "small_resnet",
    width: float | None = None,
    loss: str | Loss | Callable[..., Any] = "ce",
    epochs: int | None = None,
    preset: str | Preset = "paper",
    batch: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    augment: bool | None = None,
    seed: int = 0,
    max_train: int | None = None,
    metrics_every: int | None = None,
    dtype: str = "float32",
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool | str = True,
    checkpoint_seconds: float = 60.0,
    devices: int | None = None,
    data_memory: int | None = None,
    progress: bool | None = None,
    **hyperparameters: Any,
) -> Run:
    """Train a network with SGD and measure neural collapse along the way.

    Args:
        data: a name of `datasets.DATASETS`, the path of a folder, tar or zip of class folders, or a
            `Dataset`.
        net: a name of `nets.NETS`, with `width`, or a `Net`.
        loss: as in `solve_ufm`: a name, with its hyperparameters as keywords, a `Loss` or a function.
        preset: a name of `presets.PRESETS`, or a `Preset`; epochs, batch, learning_rate, weight_decay and
            augment replace its values.
        seed: of the parameters, the order of the images and their augmentation.
        max_train: train on so many images only, the first of the (shuffled) split.
        metrics_every: epochs between measurements.  Default: epochs / 100, as in the paper.
        dtype: "float32", or "bfloat16": what the network computes in; parameters, statistics, loss and
            metrics stay float32.
        data_dir: where the data set's files are, or are downloaded to.
        out: a folder for the record and the checkpoints. A finished run that is there is returned, an
            interrupted one continued, on the same machine bit by bit as if it had not been interrupted.
        resume: False refuses a folder that holds a run; "changed" continues one of another configuration or
            code with the new values, which its notes then tell.
        checkpoint_seconds: at least so long between checkpoints, which are written in the background at the
            end of an epoch; 0: after every epoch.
        devices: split each batch over so many devices, of all processes that `jax.distributed` knows; batch
            norm's statistics are those of the whole batch. Of several processes each calls with the same
            arguments, and `out` is a folder that all see and the first writes.  Default: one.
        data_memory: bytes of the device's memory for images; more are sent in chunks.  Default: 40 % of it.
        progress: whether to show a bar; None: where a person looks and it takes seconds.

    The last images of a shuffle that fill no batch sit that epoch out. A loss that is not finite, and a
    checkpoint that cannot be written, end the run with the last good state and `status` and `message`.

    Raises:
        ValueError: anything misspelt or out of range, a broken data set, a batch larger than the data, a
            folder that holds another run (naming the difference).  OSError: `out` cannot be written at all,
            or no download.

    Source: PROTOCOL of the paper's Section 4 and appendices A.1-A.3; see `presets`.

    >>> from ufm import deep
    >>> run = deep.train("digits", net="mlp", width=0.25, loss="mse", epochs=2, preset="small")
    >>> run.status.value, run.history.epoch.tolist()
    ('completed', [1, 2])
    """
    if resume not in (True, False, "changed"):
        raise ValueError(f"resume: expected True, False or 'changed', got {resume!r}")
    pause = float(_checks.real("checkpoint_seconds", checkpoint_seconds, least=0.0))
    memory = None if data_memory is None else _checks.integer("data_memory", data_memory, least=1)
    folder = None if out is None else Folder(Path(out))
    plan = _config.plan(
        data,
        net,
        loss,
        preset,
        width=width,
        data_dir=data_dir,
        dtype=dtype,
        seed=seed,
        max_train=max_train,
        metrics_every=metrics_every,
        hyperparameters=hyperparameters,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        augment=augment,
    )
    mesh = _mesh.mesh_of(devices, plan.config.batch)
    _mesh.meet("folder read")  # before the first process writes
    position = begin(plan, folder, resume)
    _mesh.meet("checkpoint read")
    if position.status is not Status.RUNNING:
        return run_at(plan, position, folder)
    return _Trainer(plan, folder, memory, pause, progress, mesh).run(position)


# --- the loop -------------------------------------------------------------------------------------


class _Trainer:
    """Epoch after epoch: steps, measurement, checkpoint."""

    def __init__(
        self,
        plan: Plan,
        folder: Folder | None,
        memory: int | None,
        pause: float,
        progress: bool | None,
        mesh: Mesh | None,
    ) -> None:
        self.plan, self.folder, self.pause = plan, folder, pause
        self.recipe = recipe_of(plan)._replace(mesh=mesh)
        self.feed = Feed(plan.data, memory, mesh)
        self.rows = jnp.asarray(rows_of(plan, "train"), jnp.int32)
        self.asked = batches_of(plan, 1 if mesh is None else mesh.size)
        self.steps = len(self.rows) // plan.config.batch
        c = plan.config
        self.bar = Progress(f"{c.net} {c.loss}", self.steps * c.epochs, progress)
        self.saved = time.perf_counter()

    def run(self, position: Position) -> Run:
        """To the last epoch, or to what stops it."""
        position = position._replace(state=_mesh.everywhere(self.recipe.mesh, position.state))
        try:
            with self.bar:
                while position.status is Status.RUNNING:
                    position = self._saved(self._epoch(position))
        finally:
            if self.folder is not None:
                self.folder.close()
        return run_at(self.plan, position, None)

    def _epoch(self, p: Position) -> Position:
        """One epoch more, measured if it is its turn."""
        began = time.perf_counter()
        state, totals = self._steps(p)
        step_loss, seen = float(totals.loss) / self.steps, int(totals.seen)
        speed = seen / (time.perf_counter() - began)
        self._show(p, self.steps, step_loss, speed)
        if (failed := int(state.failed)) >= 0:
            seconds = p.seconds + time.perf_counter() - began
            message = advice_of(self.plan, failed)
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
        return p._replace(seconds=seconds)

    def _steps(self, p: Position) -> tuple[State, Totals]:
        key = jax.random.fold_in(p.key, p.epoch + 1)  # 0 made the parameters
        shuffle, augment = (jax.random.fold_in(key, which) for which in (SHUFFLE, AUGMENT))
        order = _step.shuffled(shuffle, self.rows, batch=self.plan.config.batch)
        given = hyper_of(self.plan, p.epoch), augment, order
        hyper, augment, order = _mesh.everywhere(self.recipe.mesh, given)
        state, totals = (
            p.state,
            _mesh.everywhere(self.recipe.mesh, _step.no_totals()),
        )  # the first step overwrites them
        tick = self._ticker(p)
        for data, part, first in self.feed.chunks(order):
            place = (first, p.epoch * self.steps + first)
            state, totals = _step.run_steps(
                self.recipe, state, totals, hyper, augment, data, part, place, tick
            )
        return jax.block_until_ready((state, totals))  # type: ignore[no-untyped-call]

    def _measure(self, p: Position, totals: Totals, speed: float) -> dict[str, float]:
        c, loss = self.plan.config, loss_of(self.plan)
        key = jax.random.fold_in(jax.random.fold_in(p.key, p.epoch), METRICS) if c.augment_metrics else None
        scores, nc = _measure.measure(
            self.recipe, p.state, loss, self.feed, self.asked, key=key, convention=c.convention
        )
        return row_of(self.plan, p.epoch, scores, nc, totals) | {"images_per_second": speed}

    # --- progress and checkpoints -----------------------------------------------------------------

    def _ticker(self, p: Position) -> Callable[[int, Totals], None]:
        """Looks at the device a few times a second, which also keeps the queue of steps short."""
        began = last = time.perf_counter()

        def tick(done: int, totals: Totals) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last < GLANCE:
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
        """After a checkpoint where one is due, with its failure as the status, in every process."""
        if self.folder is None:
            return p
        failure = self._failure_to_save(p, self.folder) if self.folder.writes else ""
        if _mesh.first_process_says(bool(failure)):
            failure = failure or f"epoch {p.epoch} could not be saved by the first process, which says why"
            return p._replace(status=Status.NOT_SAVED, message=failure)
        return p

    def _failure_to_save(self, p: Position, folder: Folder) -> str:
        last = p.status is not Status.RUNNING
        due = time.perf_counter() - self.saved >= self.pause and not (self.pause and folder.saving)
        try:
            if last or due:
                self.saved = time.perf_counter()
                folder.save(checkpoint_of(p), run_at(self.plan, p, None).to_dict())
            if last:
                folder.wait()
        except OSError as error:
            return (
                f"epoch {p.epoch} could not be saved ({error}); what was saved before in {folder.path} is as "
                "it was: free some space and call again to continue from there"
            )
        return ""
