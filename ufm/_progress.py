"""Progress on standard error: a bar in terminals and notebooks, and for a piped command a line a step."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

PATIENCE = 2.0  # seconds before a bar appears
LINES_AFTER = 3.0  # seconds before the first line is written
MOMENT = 0.2  # seconds
#: seconds between two lines: at least one, and of a long run a sixtieth, so that an hour writes some hundreds
BETWEEN, SHARE = 1.0, 1 / 60


class _Command(NamedTuple):
    """A command of the command line that runs."""

    began: float
    quiet: bool


_command: _Command | None = None
_running: list[Progress] = []  # the outermost first; one of them is shown


@contextlib.contextmanager
def command(name: str, quiet: bool) -> Iterator[None]:
    """While a command runs: lines where standard error is piped; nothing at all with `quiet`.

    What takes long without steps of its own is shown by the command's name.
    """
    global _command
    before, _command = _command, _Command(_now(), quiet)
    try:
        with Progress(name, 0, background=True):
            yield
    finally:
        _command = before


def hush() -> None:
    """No more progress from this command: another process shows it."""
    global _command
    _command = None if _command is None else _command._replace(quiet=True)


class Progress:
    """Steps of one piece of work, shown once it has taken some seconds, also while its first step lasts.

    Inside another one it stays silent: one is shown at a time.

    Args:
        title: what is done.
        total: steps; 0: not known.
        show: True shows it, False does not; None: in a terminal, a notebook, and in a command.
        even: the steps cost about the same, so that the time left can be estimated. It is counted
            from the end of the first step, which compiles.
        at_once: do not wait for those seconds.
        background: leave the place to others while there are any.
    """

    def __init__(
        self,
        title: str,
        total: int,
        show: bool | None = None,
        *,
        even: bool = False,
        at_once: bool = False,
        background: bool = False,
    ) -> None:
        self._title, self._total, self._show, self._even = title, total, show, even
        self._at_once, self._background = at_once, background
        self._done, self._note = 0, ""
        self._first: tuple[float, int] | None = None  # when the first step was over, and where
        self._view: _View | None = None
        self._due: tuple[float, Callable[[str, int, float], _View]] | None = None  # when and how it is shown
        self._timer: Any = None
        self._lock = threading.RLock()

    def __enter__(self) -> Progress:
        others = [one for one in _running if not one._background]
        _running.append(self)
        self._began = _now()
        if not others:
            for one in _running[:-1]:
                one._leave()
            self._wait(self._began if _command is None else _command.began)
        return self

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total, with a short note on what comes now."""
        with self._lock:
            if self._first is None and done > self._done:
                self._first = _now(), done
            self._done, self._note = done, note
            if self._view is not None:
                self._view.show(self._done, self._words())
            else:
                self._open(_now())

    def _wait(self, since: float) -> None:
        """Show it some seconds after `since`: the start of the command, if one runs."""
        make = _view_for(self._show)
        if make is None:
            return
        patience = LINES_AFTER if make is _Lines else PATIENCE
        due = _now() if self._at_once else since + patience
        self._due = due, make
        # where it is overdue the first update opens it, which has a note: a moment for that to come
        self._timer = _later(max(due - _now(), MOMENT), lambda: self._open(due))

    def _open(self, now: float) -> None:
        """Show it, if it still runs and it is time."""
        with self._lock:
            if self._due is None or self._view is not None or now < self._due[0]:
                return
            began = self._began if _command is None else _command.began
            self._view = self._due[1](self._title, self._total, began)
            self._view.show(self._done, self._words())

    def _words(self) -> str:
        """The note, and the time left."""
        if not self._even or self._first is None or self._done <= self._first[1]:
            return self._note
        at, done = self._first
        seconds = round((_now() - at) / (self._done - done) * (self._total - self._done))
        left = f"{seconds // 60}:{seconds % 60:02d} left"
        return f"{left}, {self._note}" if self._note else left

    def _leave(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._view is not None:
                self._view.close()
            self._timer = self._view = self._due = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shown = self._due is not None
        _running.remove(self)
        self._leave()
        if shown and _running:
            _running[-1]._wait(_now())


def each(
    title: str, items: Sequence[T], show: bool | None = None, words: Callable[[T], str] = str
) -> Iterator[T]:
    """The items one by one, each a step, named before it is worked on."""
    with Progress(title, len(items), show) as bar:
        for i, item in enumerate(items):
            bar.update(i, words(item))
            yield item


def _now() -> float:
    return time.monotonic()


def _later(seconds: float, call: Callable[[], None]) -> Any:
    """Calls from a thread of its own, unless it is cancelled before."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer


# --- how it is shown ------------------------------------------------------------------------------


class _View(Protocol):
    def show(self, done: int, words: str) -> None: ...

    def close(self) -> None: ...


def _view_for(show: bool | None) -> Callable[[str, int, float], _View] | None:
    """A bar, lines, or None in a session that is not interactive."""
    if show is False or (_command is not None and _command.quiet):
        return None
    if _is_terminal() or hasattr(builtins, "get_ipython"):  # IPython's mark
        return _Bar
    # who has put something else in the place of standard error reads it with a program
    in_command = _command is not None and sys.stderr is sys.__stderr__
    return _Lines if show or in_command else None


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False


class _Lines:
    """A line a step, rarer the longer it takes."""

    def __init__(self, title: str, total: int, began: float) -> None:
        self._title, self._total, self._began = title, total, began
        self._last: float | None = None

    def show(self, done: int, words: str) -> None:
        """Write a line, unless the last one is too fresh."""
        now = _now()
        seconds = now - self._began
        if self._last is not None and now - self._last < max(BETWEEN, SHARE * seconds):
            return
        self._last = now
        of = f" {done}/{self._total}" if self._total else ""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # its reader is gone
            print(
                f"ufm: {self._title}{of}, {seconds:.0f} s: {words or 'running'}", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        """Nothing is left open."""


class _Bar:
    """rich's bar."""

    def __init__(self, title: str, total: int, began: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        # without ipywidgets rich can only warn in a notebook
        mute = console.is_jupyter and importlib.util.find_spec("ipywidgets") is None
        count = (MofNCompleteColumn(),) if total else ()
        columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeElapsedColumn())
        self._bar = RichProgress(
            *columns, TextColumn("{task.fields[note]}"), console=console, transient=True, disable=mute
        )
        self._bar.start()
        self._task = self._bar.add_task(title, total=total or None, note="")

    def show(self, done: int, words: str) -> None:
        """Move it."""
        self._bar.update(self._task, completed=done, note=words)

    def close(self) -> None:
        """Take it away."""
        self._bar.stop()
