"""Progress bars that appear only where something takes seconds, in terminals and notebooks (rich)."""

from __future__ import annotations

import importlib.util
import time
from types import TracebackType
from typing import Any

PATIENCE = 2.0  # seconds before a bar appears


class Progress:
    """A bar on standard error; silent where nobody looks (no terminal, no notebook) and for short work."""

    def __init__(self, title: str, total: int, show: bool | None = None) -> None:
        self._title, self._total, self._show = title, total, show
        self._start = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total, with a short note behind the bar."""
        if self._bar is None:
            if self._show is False or time.perf_counter() - self._start < PATIENCE:
                return
            self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        # without ipywidgets rich can only warn in a notebook
        notebook = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        if (console.is_jupyter and not notebook) or not (self._show or console.is_terminal or notebook):
            self._show = False
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = RichProgress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=self._total, note="")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
