"""The files in a folder, a tar or a zip by their names; symbolic links are followed in all three."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from ufm.deep import _archives

#: longest chain of links that is followed, as on Linux
MAX_LINKS = 40


class Tree(NamedTuple):
    """Files and folders by their names relative to the source, in the order of the names."""

    files: dict[PurePosixPath, Any]  # what `read` takes
    folders: list[PurePosixPath]  # including empty ones
    broken: list[PurePosixPath]  # links to files that do not exist, which are in `files` as well
    loops: list[PurePosixPath]  # links to a folder that contains them; not followed
    read: Callable[[Any], bytes]
    place: Callable[[Any], int]  # position of a file: in this order a packed tar is read only once


class _Store(Protocol):
    """A folder on the disk or the members of an archive; a key identifies one file or folder."""

    def names(self, folder: Any) -> list[str]:
        """The names directly in a folder."""

    def look(self, folder: Any, name: str) -> tuple[str, Any]:
        """ "folder", "file", "broken" or "other", and the key of the target of a name in a folder."""

    def read(self, key: Any) -> bytes:
        """The content of a file."""

    def place(self, key: Any) -> int:
        """The position of a file in the archive."""


class _Disk:
    """A folder on the disk; keys are paths, those of folders without links."""

    def names(self, folder: Path) -> list[str]:
        return os.listdir(folder)

    def look(self, folder: Path, name: str) -> tuple[str, Path]:
        path = folder / name
        if path.is_dir():
            return "folder", path.resolve()
        if path.is_file():
            return "file", path
        return ("broken" if path.is_symlink() else "other"), path

    def read(self, key: Path) -> bytes:
        return key.read_bytes()

    def place(self, key: Path) -> int:
        return 0


class _Member(NamedTuple):
    kind: str  # "folder", "file", "link" or "other"
    key: Any = None  # for reading it from the archive
    target: PurePosixPath = PurePosixPath()  # of a link


class _Members:
    """The members of an archive; keys are the names of folders, and `_Member.key` of files."""

    def __init__(
        self,
        members: dict[PurePosixPath, _Member],
        read: Callable[[Any], bytes],
        place: Callable[[Any], int],
    ) -> None:
        self._members = {PurePosixPath(): _Member("folder")}
        for path in members:
            self._members |= {parent: _Member("folder") for parent in path.parents}
        self._members |= members
        self._names: dict[PurePosixPath, list[str]] = {}
        for path in self._members:
            if path.name:
                self._names.setdefault(path.parent, []).append(path.name)
        self._read, self._place = read, place

    def names(self, folder: PurePosixPath) -> list[str]:
        return self._names.get(folder, [])

    def look(self, folder: PurePosixPath, name: str) -> tuple[str, Any]:
        path = folder / name
        for _ in range(MAX_LINKS):
            member = self._members.get(path, _Member("broken"))
            if member.kind != "link":
                return member.kind, path if member.kind == "folder" else member.key
            path = member.target
        return "broken", None

    def read(self, key: Any) -> bytes:
        if key is None:
            raise FileNotFoundError("a link to what the archive does not hold")
        return self._read(key)

    def place(self, key: Any) -> int:
        return 0 if key is None else self._place(key)


def is_zip(source: Path) -> bool:
    """Whether a file begins like a zip; a tar of zips only ends like one."""
    with source.open("rb") as stream:
        return stream.read(4) in (b"PK\3\4", b"PK\5\6")


@contextlib.contextmanager
def opened(source: Path) -> Iterator[Tree]:
    """The tree of a folder, tar or zip, which is closed at the end of the context.

    Raises:
        ValueError: not an archive, or a damaged one.
    """
    if source.is_dir():
        yield _listed(_Disk(), source.resolve())
        return
    try:
        with contextlib.ExitStack() as stack:
            if is_zip(source):
                store = _zip(stack.enter_context(zipfile.ZipFile(source)))
            else:
                store = _tar(stack.enter_context(tarfile.open(source)))
            yield _listed(store, PurePosixPath())
    except (*_archives.BROKEN, OSError) as error:
        raise ValueError(
            f"{source}: expected a tar of class folders or a zip of them, got {error}; download it again"
        ) from error


def listed(folder: Path) -> Tree:
    """The tree of a folder."""
    return _listed(_Disk(), folder.resolve())


def _listed(store: _Store, root: Any) -> Tree:
    tree = Tree({}, [], [], [], store.read, store.place)
    _add(tree, store, root, PurePosixPath(), (root,))
    return tree


def _add(tree: Tree, store: _Store, folder: Any, at: PurePosixPath, above: tuple[Any, ...]) -> None:
    """Add what lies below a folder; `above`: the folders that contain it, for detecting loops of links."""
    for name in sorted(store.names(folder)):
        kind, key = store.look(folder, name)
        path = at / name
        if kind == "folder" and key in above:
            tree.loops.append(path)
        elif kind == "folder":
            tree.folders.append(path)
            _add(tree, store, key, path, (*above, key))
        elif kind in ("file", "broken"):
            tree.files[path] = key
            if kind == "broken":
                tree.broken.append(path)


def _plain(name: str) -> PurePosixPath:
    """A name without a leading slash, `.` and `..`."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return PurePosixPath(*parts)


def _tar(archive: tarfile.TarFile) -> _Members:
    def read(info: tarfile.TarInfo) -> bytes:
        stream = archive.extractfile(info)
        return b"" if stream is None else stream.read()

    members = {}
    for info in archive:  # of members with one name the last counts, as when a tar is unpacked
        if info.issym():
            found = _Member("link", target=_plain(f"{PurePosixPath(info.name).parent}/{info.linkname}"))
        elif info.islnk():  # the second name of a file; its content lies at the first
            found = _Member("link", target=_plain(info.linkname))
        else:
            found = _Member("folder" if info.isdir() else "file" if info.isfile() else "other", info)
        members[_plain(info.name)] = found
    return _Members(members, read, lambda info: info.offset_data)


def _zip(archive: zipfile.ZipFile) -> _Members:
    def read(info: zipfile.ZipInfo) -> bytes:
        try:
            return archive.read(info)
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or of an unknown compression
            raise zipfile.BadZipFile(str(error)) from error

    members = {}
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")  # some programs write the separators of Windows
        if stat.S_ISLNK(info.external_attr >> 16):
            target = f"{PurePosixPath(name).parent}/{os.fsdecode(read(info))}"
            found = _Member("link", target=_plain(target))
        else:
            found = _Member("folder" if name.endswith("/") else "file", info)
        members[_plain(name)] = found
    return _Members(members, read, lambda info: info.header_offset)
