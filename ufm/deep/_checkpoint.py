"""The folder of a run: its record and its checkpoints.

    out/record.json                 configuration, identity and progress of the run
    out/checkpoints/epoch-000012.npz    arrays by their path, and the metadata, after 12 epochs

An npz is a zip, which holds a CRC-32 of every array, so that damage is noticed. (orbax-checkpoint 0.12.8
restored wrong numbers without an error for every bit flipped in its data files, has 100 MB of dependencies
and writes ten files per checkpoint.)
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import secrets
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from ufm import _checks, _files
from ufm.deep import _config

T = TypeVar("T")

FORMAT = "ufm run 1"
#: number of checkpoints that are kept: the newest and one to fall back on
KEEP = 2


class Checkpoint(NamedTuple):
    """Everything that is needed to continue a run."""

    epoch: int  # epochs done
    arrays: dict[str, np.ndarray]  # by path
    facts: dict[str, Any]  # plain values


class RefusedError(ValueError):
    """A file is not a valid checkpoint of this run; the message says why."""


# --- trees as named arrays ------------------------------------------------------------------------


def named(tree: PyTree, prefix: str) -> dict[str, np.ndarray]:
    """Copies of a tree's leaves in the memory of the host, by their path.

    On a CPU a view would share the buffer that the next step overwrites.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {f"{prefix}{_path(path)}": np.array(leaf) for path, leaf in leaves}


def restored(like: T, arrays: Mapping[str, np.ndarray], prefix: str) -> T:
    """The inverse of `named`; `like` has the structure, shapes and dtypes of the tree.

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
    tree: T = jax.tree_util.tree_unflatten(structure, found)
    return tree


def _path(path: Iterable[object]) -> str:
    return "".join(f"/{getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))}" for k in path)


# --- checkpoint files ----------------------------------------------------------------------------


def write(path: Path, checkpoint: Checkpoint, run: str) -> None:
    """Write a checkpoint of the run that has this identity."""
    # with the names: no checksum covers the directory of a zip, where a flipped bit may hide an array
    identity = {"format": FORMAT, "run": run, "epoch": checkpoint.epoch, "names": sorted(checkpoint.arrays)}
    facts = identity | checkpoint.facts
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    # no allow_pickle=False: numpy 2.0 would store it as one more array, and the checkpoint could not be read
    arrays: dict[str, Any] = {"facts": text} | checkpoint.arrays
    _files.write_whole(path, lambda stream: np.savez(stream, **arrays))


def read(path: Path, run: str) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        RefusedError: the file is truncated, a checksum differs, or it is the checkpoint of another run.
    """
    try:
        content = io.BytesIO(path.read_bytes())  # the bytes that are checked are those that are used
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
        # the name of the file and not its path, because records are published
        why = error.strerror if isinstance(error, OSError) else error
        raise RefusedError(f"{path.name}: broken or no checkpoint ({why})") from error
    if given[:2] != (FORMAT, run):
        raise RefusedError(f"{path.name}: a checkpoint of another run ({given[1]}, not {run})")
    return Checkpoint(given[2], arrays, facts)


# --- the folder -----------------------------------------------------------------------------------


class Folder:
    """The folder of one run.

    Attributes:
        path: of the folder.
        run: the identity that record and checkpoints share.
        record: the content of record.json when the folder was opened, {} for a new run.
        writes: whether this process writes; of several processes all read and only the first writes.
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
        """The checkpoint files, oldest first."""
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

    def open(self, record: Mapping[str, object]) -> None:
        """Make the folder and write the record, before anything is computed."""
        if not self.writes:
            return
        for made in (self.path, self.path / "checkpoints"):
            _checks.folder("out", made)
        for left in (*self.path.glob("*.part"), *(self.path / "checkpoints").glob("*.part")):
            left.unlink(missing_ok=True)  # left by a process that was killed
        self._write_record(record)

    def _write_record(self, record: Mapping[str, object]) -> None:
        _files.write_json(self.path / "record.json", {"format": FORMAT, "run": self.run, **record})

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest readable checkpoint (None if there are none), and why newer ones are unreadable.

        Raises:
            ValueError: there are checkpoints and none is readable.
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

    def save(self, checkpoint: Checkpoint, record: Mapping[str, object]) -> None:
        """Write in the background; the checkpoint must hold copies.

        Raises:
            OSError: the previous save failed.
        """
        if not self.writes:
            return
        self.wait()
        self._pending = self._background.submit(self._save, checkpoint, record)

    @property
    def saving(self) -> bool:
        """Whether a save is running."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Wait for the last save.

        Raises:
            OSError: it failed, for want of space or permission. Earlier files are unchanged.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last save and ignore whether it failed."""
        self._background.shutdown(wait=True)

    def _save(self, checkpoint: Checkpoint, record: Mapping[str, object]) -> None:
        path = self.path / "checkpoints" / f"epoch-{checkpoint.epoch:06d}.npz"
        write(path, checkpoint, self.run)
        self._write_record(record)
        for old in self.checkpoints[:-KEEP]:
            old.unlink(missing_ok=True)

    # --- the guard of resuming --------------------------------------------------------------------

    def check_same(self, config: Mapping[str, object], *, may_change: bool) -> list[str]:
        """The differences between the configuration of the folder and this one.

        Raises:
            ValueError: there are any, unless `may_change`; and then what `check_shapes` refuses.
        """
        changes = _config.differences(self.record["config"], config)
        if changes and not may_change:
            raise ValueError(
                f"out: {self.path} holds another run ({'; '.join(changes)}); choose another folder, or pass "
                "resume='changed' (--resume changed) to continue that run with the new values"
            )
        self.check_shapes(config)
        return changes

    def check_shapes(self, config: Mapping[str, object]) -> None:
        """Refuse a configuration with other data than the folder's, or with arrays of other shapes.

        Raises:
            ValueError: naming the differences.
        """
        changes = _config.differences(self.record["config"], config)
        fixed = [line for line in changes if line.split(":")[0] in _config.FIXED]
        if fixed:
            raise ValueError(
                f"out: {self.path} holds a run of other data or another network ({'; '.join(fixed)}); choose "
                "another folder"
            )

    def check_code(self, *, may_change: bool) -> list[str]:
        """The differences between the code that began the run and the present code.

        Raises:
            ValueError: there are any, unless `may_change`.
        """
        changes = _config.differences(self.record.get("code", {}), _config.code_version())
        if changes and not may_change:
            raise ValueError(
                f"out: {self.path} was begun by other code ({'; '.join(changes)}) and would not end as it "
                "would have; finish it with that code, or pass resume='changed' (--resume changed)"
            )
        return [f"code, {change}" for change in changes]
