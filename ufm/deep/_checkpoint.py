"""A run's folder: its record and its checkpoints, each file complete or absent whatever happens.

    out/record.json                 what the run is (configuration, identity) and how far it has come
    out/checkpoints/epoch-000012.npz    arrays by their path, and the metadata, after 12 epochs

A file is written beside its place, flushed to the disk and renamed. An npz is a zip, which holds a CRC-32 of
every array. (orbax-checkpoint 0.12.8 gave back wrong numbers without complaint for every bit flipped in its
data files, brought 100 MB of dependencies and takes ten files for a checkpoint.)
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm import _checks
from ufm.deep import _config

FORMAT = "ufm run 1"
#: checkpoints that are kept: the newest, and one to fall back on
KEEP = 2


class Checkpoint(NamedTuple):
    """Everything that a run continues from."""

    epoch: int  # epochs done
    arrays: dict[str, np.ndarray]  # by path
    facts: dict[str, Any]  # plain values


class RefusedError(ValueError):
    """A file that is no checkpoint of this run, with the reason."""


# --- trees as named arrays ------------------------------------------------------------------------


def named(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Copies on the host of a tree's leaves, by their path.

    Copies, because on a CPU a view would share the buffer that the next step is given to overwrite.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {f"{prefix}{_path(path)}": np.array(leaf) for path, leaf in leaves}


def restored(like: Any, arrays: Mapping[str, np.ndarray], prefix: str) -> Any:
    """The tree of `named` again; `like` has its structure, shapes and dtypes.

    Raises:
        RefusedError: an array is missing or has another shape or dtype.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    found = []
    for path, leaf in leaves:
        name = f"{prefix}{_path(path)}"
        array = arrays.get(name)
        wanted = f"{leaf.dtype} {leaf.shape}"
        if array is None or f"{array.dtype} {array.shape}" != wanted:
            got = "none" if array is None else f"{array.dtype} {array.shape}"
            raise RefusedError(f"expected {name} of {wanted}, got {got}")
        found.append(jax.numpy.array(array))  # a copy: steps overwrite their input
    return jax.tree_util.tree_unflatten(structure, found)


def _path(path: Any) -> str:
    return "".join(f"/{getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))}" for k in path)


# --- files ----------------------------------------------------------------------------------------


def write_file(path: Path, write: Callable[[Any], object]) -> None:
    """`write(stream)` into a file that appears under its name only when it is complete and on the disk."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # the name itself; not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, tree: Any) -> None:
    """Strict JSON, complete or absent."""
    text = json.dumps(tree, allow_nan=False, indent=1)
    write_file(path, lambda stream: stream.write(text.encode()))


def write(path: Path, checkpoint: Checkpoint, run: str) -> None:
    """A checkpoint of the run of this identity."""
    # the names too: a flipped bit in a zip's directory may hide an entry, which no checksum covers
    identity = {"format": FORMAT, "run": run, "epoch": checkpoint.epoch, "names": sorted(checkpoint.arrays)}
    facts = identity | checkpoint.facts
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    # no allow_pickle=False: numpy 2.0 would store it as one more array, and the checkpoint could not be read
    arrays: dict[str, Any] = {"facts": text} | checkpoint.arrays
    write_file(path, lambda stream: np.savez(stream, **arrays))


def read(path: Path, run: str) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        RefusedError: broken (truncated, a checksum that does not fit), not a checkpoint, or another run's.
    """
    try:
        content = io.BytesIO(path.read_bytes())  # read as a whole: what is checked is what is used
        with zipfile.ZipFile(content) as checked:
            if (bad := checked.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {bad}")
        content.seek(0)
        with np.load(content, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        given = facts.pop("format"), facts.pop("run"), int(facts.pop("epoch"))
        if facts.pop("names") != sorted(arrays):
            raise ValueError("arrays are missing")
    except Exception as error:  # a flipped bit may surface as any of a dozen
        # names, not paths: this goes into records, which are published
        why = error.strerror if isinstance(error, OSError) else error
        raise RefusedError(f"{path.name}: broken or no checkpoint ({why})") from error
    if given[:2] != (FORMAT, run):
        raise RefusedError(f"{path.name}: a checkpoint of another run ({given[1]}, not {run})")
    return Checkpoint(given[2], arrays, facts)


# --- the folder -----------------------------------------------------------------------------------


class Folder:
    """The folder of one run.

    Attributes:
        path: where.
        run: the identity that record and checkpoints share.
        record: what record.json held when it was opened, {} for a new run.
        writes: whether this process does; of several, all read and the first writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = self._read_record()
        self.writes = jax.process_index() == 0
        self.run: str = self.record.get("run") or secrets.token_hex(8)
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future[None] | None = None

    @property
    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoints").glob("epoch-*.npz"))

    def _read_record(self) -> dict[str, Any]:
        file = self.path / "record.json"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out: expected a folder, got the file {self.path}")
        if not file.exists():
            if self.checkpoints:
                raise ValueError(
                    f"out: {self.path} has checkpoints and no record.json; choose another folder"
                )
            return {}
        try:
            record = json.loads(file.read_bytes())
            valid = record["format"] == FORMAT and {"run", "config", "status"} <= set(record)
        except (OSError, ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise ValueError(f"out: {file} is not the record of a run; choose another folder")
        return dict(record)

    def open(self, record: dict[str, Any]) -> None:
        """Make the folder and say what it is for, before anything is computed."""
        if not self.writes:
            return
        for made in (self.path, self.path / "checkpoints"):
            _checks.folder("out", made)
        for left in (*self.path.glob("*.part"), *(self.path / "checkpoints").glob("*.part")):
            left.unlink(missing_ok=True)  # of a process that was killed
        self._write_record(record)

    def _write_record(self, record: dict[str, Any]) -> None:
        write_json(self.path / "record.json", {"format": FORMAT, "run": self.run, **record})

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be read (None where there is none), and why newer ones cannot.

        Raises:
            ValueError: there are checkpoints and none can be read.
        """
        refused: list[str] = []
        for path in reversed(self.checkpoints):
            try:
                return read(path, self.run), refused
            except RefusedError as error:
                refused.append(str(error))
        if refused:
            raise ValueError(
                f"out: no checkpoint can be read: {'; '.join(refused)}; restore one of them, or start "
                "over in another folder"
            )
        return None, refused

    def save(self, checkpoint: Checkpoint, record: dict[str, Any]) -> None:
        """Write in the background; the checkpoint must hold copies. Raises what the last save ran into."""
        if not self.writes:
            return
        self.wait()
        self._pending = self._background.submit(self._save, checkpoint, record)

    @property
    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Until the last save is done.

        Raises:
            OSError: it failed: no space, no permission. The files before it are as they were.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let the last save end, whatever becomes of it."""
        self._background.shutdown(wait=True)

    def _save(self, checkpoint: Checkpoint, record: dict[str, Any]) -> None:
        path = self.path / "checkpoints" / f"epoch-{checkpoint.epoch:06d}.npz"
        write(path, checkpoint, self.run)
        self._write_record(record)
        for old in self.checkpoints[:-KEEP]:
            old.unlink(missing_ok=True)


def check_same(folder: Folder, config: dict[str, Any], *, may_change: bool) -> list[str]:
    """What differs between the folder's configuration and this one.

    Raises:
        ValueError: anything does, unless `may_change`; and then what `check_shapes` refuses.
    """
    changes = _config.difference(folder.record["config"], config)
    if changes and not may_change:
        raise ValueError(
            f"out: {folder.path} holds another run ({'; '.join(changes)}); choose another folder, or pass "
            "resume='changed' (--resume changed) to continue that run with the new values"
        )
    check_shapes(folder, config)
    return changes


def check_shapes(folder: Folder, config: dict[str, Any]) -> None:
    """Refuse a configuration that makes arrays of other shapes, or takes other data, than the folder's.

    Raises:
        ValueError: telling the difference.
    """
    changes = _config.difference(folder.record["config"], config)
    fixed = [line for line in changes if line.split(":")[0] in _config.SHAPES]
    if fixed:
        raise ValueError(
            f"out: {folder.path} holds a run of other data or another network ({'; '.join(fixed)}); choose "
            "another folder"
        )
