"""Downloads of archives: checksum and cache by pooch, and interrupted downloads are continued."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from ufm import _environment
from ufm._progress import Progress
from ufm.deep import _archives

#: bytes per block; an incomplete block of an interrupted download is lost
CHUNK = 1 << 16
#: seconds to wait for an answer
PATIENCE = 30.0


class Archive(NamedTuple):
    """A published file."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rsplit("/", 1)[-1]


def cache_dir() -> Path:
    """The folder for downloads and decoded copies: UFM_DATA, or the system's cache folder.

    Raises:
        ValueError: UFM_DATA names a file.
    """
    import pooch

    return _environment.folder("UFM_DATA") or Path(pooch.os_cache("ufm"))


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in `folder`, downloaded if it is missing, with its checksum verified.

    Raises:
        ValueError: a file with another checksum.  ConnectionError: the download failed; its part is kept as
            `.part` and continued by the next call.
    """
    path = folder / archive.name
    if path.exists():
        got = _archives.md5(path)
        if got != archive.md5:
            raise ValueError(
                f"{path}: expected md5 {archive.md5}, got {got}: truncated, or not the official archive; "
                f"delete it to download it again, or replace it by {archive.url}"
            )
        return path
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        found = pooch.retrieve(
            archive.url, f"md5:{archive.md5}", archive.name, folder, downloader=_Resuming(folder)
        )
    except requests.RequestException as error:
        raise ConnectionError(
            f"{archive.url}: no download ({type(error).__name__}); call again to continue it, "
            f"or put the file into {folder} (or pass data_dir, the folder that holds it)"
        ) from error
    return Path(found)


class _Resuming:
    """A downloader for pooch that requests only the missing bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, url: str, output_file: Any, _: Any) -> None:
        import requests

        part = self._folder / f"{url.rsplit('/', 1)[-1]}.part"
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
            if answer.status_code != requests.codes.range_not_satisfiable:  # 416: it is complete already
                answer.raise_for_status()
                resumed = answer.status_code == requests.codes.partial_content
                _write(part, answer, have if resumed else 0)
        os.replace(part, output_file)


def _write(part: Path, answer: Any, have: int) -> None:
    total = have + int(answer.headers.get("Content-Length", 0))
    title = f"download {part.stem} (MB)"
    with part.open("ab" if have else "wb") as stream, Progress(title, total >> 20) as bar:
        for block in answer.iter_content(CHUNK):
            stream.write(block)
            have += len(block)
            bar.update(have >> 20)
    if have < total:  # requests does not report a connection that closes early
        import requests

        raise requests.ConnectionError(f"{have} of {total} bytes")
