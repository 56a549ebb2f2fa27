"""Progress: a bar in a terminal, a line a step where a command is piped, else silence; no real time."""

import functools
import io
import sys

import pytest
from click.testing import CliRunner

import ufm
from ufm import _cli, _progress
from ufm._progress import Progress


class Clock:
    """Time that passes when it is told to, and what was to be called by then."""

    def __init__(self):
        self.now, self.waiting = 100.0, []

    def later(self, seconds, call):
        entry = [self.now + seconds, call, False]
        self.waiting.append(entry)

        class Handle:
            def cancel(self):
                entry[2] = True

        return Handle()

    def passes(self, seconds):
        self.now += seconds
        due, self.waiting = self.waiting, []
        for entry in due:
            if entry[0] > self.now:
                self.waiting.append(entry)
            elif not entry[2]:
                entry[1]()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_progress, "_now", lambda: clock.now)
    monkeypatch.setattr(_progress, "_later", clock.later)
    return clock


def into_pipe(monkeypatch):
    """Standard error as that of a process into a pipe; what is written there, by line.

    In the test itself: pytest sets its own between a fixture and the test.
    """
    return _replaced(monkeypatch, io.StringIO())


def in_terminal(monkeypatch):
    """Standard error as that of a process in a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return _replaced(monkeypatch, Terminal())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _replaced(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "__stderr__", stream)
    return lambda: stream.getvalue().splitlines()


def test_the_bounds_are_what_is_promised():
    assert max(_progress.PATIENCE, _progress.LINES_AFTER) <= 3


def test_a_piped_command_writes_a_line_a_step(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False), Progress("dig", 4) as bar:
        for step in range(4):
            bar.update(step, f"hole {step}")
            for _ in range(4):
                clock.passes(1)
    assert [line.rpartition(": ")[2] for line in piped()] == [f"hole {step}" for step in range(4)]


def test_a_first_step_that_lasts_is_shown_while_it_does(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False), Progress("dig", 9):
        clock.passes(2.9)
        assert piped() == []
        clock.passes(0.2)
        assert len(piped()) == 1


def test_short_work_is_silent(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False), Progress("dig", 2) as bar:
        clock.passes(1)
        bar.update(1)
        clock.passes(1)
    clock.passes(100)
    assert piped() == []


def test_phases_that_are_short_each_are_told_once_they_are_long_together(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False):
        for phase in ("dig", "sow", "reap"):
            with Progress(phase, 1):
                clock.passes(1.6)
    assert [line.split()[1] for line in piped()] == ["sow", "reap"]


def test_a_command_without_steps_is_shown_by_its_name(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False):
        clock.passes(3.5)
        assert len(piped()) == 1
        assert piped()[0].startswith("ufm: work")


def test_work_inside_other_work_is_not_shown(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False), Progress("outer", 2) as outer:
        for step in range(2):
            outer.update(step, "outer step")
            with Progress("inner", 5) as inner:
                clock.passes(5)
                inner.update(3, "inner step")
    assert piped()
    assert not any("inner" in line for line in piped())


def test_quiet_is_quiet(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=True), Progress("dig", 2, True) as bar:
        clock.passes(50)
        bar.update(1)
    assert piped() == []


def test_the_library_is_silent_in_a_pipe_unless_asked(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    for show, lines in ((None, 0), (False, 0), (True, 1)):
        with Progress("dig", 2, show):
            clock.passes(50)
        assert len(piped()) == lines


def test_who_replaced_standard_error_is_not_written_to(clock, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with _progress.command("work", quiet=False), Progress("dig", 2):
        clock.passes(50)
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_within_three_seconds(clock, monkeypatch):
    terminal = in_terminal(monkeypatch)
    with _progress.command("work", quiet=False), Progress("dig", 3):
        clock.passes(2.5)
        assert any("dig" in line and "0/3" in line for line in terminal())


def test_work_that_is_known_to_last_has_it_at_once(clock, monkeypatch):
    terminal = in_terminal(monkeypatch)
    with _progress.command("work", quiet=False), Progress("dig", 3, at_once=True) as bar:
        bar.update(0, "hole 0")
        assert any("dig" in line for line in terminal())


def test_a_terminal_s_quiet_command_has_none(clock, monkeypatch):
    terminal = in_terminal(monkeypatch)
    with _progress.command("work", quiet=True), Progress("dig", 3, at_once=True):
        clock.passes(9)
    assert terminal() == []


def test_lines_grow_rarer(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False), Progress("dig", 36_000) as bar:
        for step in range(36_000):
            clock.passes(0.1)
            bar.update(step)
    assert 100 < len(piped()) < 400


def test_the_time_left_leaves_out_the_first_step_which_compiles(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    with _progress.command("work", quiet=False), Progress("sweep", 100, even=True) as bar:
        bar.update(0, "compiling")
        clock.passes(60)
        for done in (10, 20, 30):
            bar.update(done)
            clock.passes(2)
    assert piped()[0].endswith("compiling")
    assert [line.partition(" s: ")[2] for line in piped()[1:]] == ["0:16 left", "0:14 left"]  # 5 a second


def test_what_fails_leaves_nothing_running(clock, monkeypatch):
    piped = into_pipe(monkeypatch)
    for _ in range(2):
        with pytest.raises(KeyError), _progress.command("work", quiet=False), Progress("dig", 2):
            raise KeyError
    assert _progress._running == []
    assert _progress._command is None
    clock.passes(100)
    assert piped() == []


# --- who uses it ----------------------------------------------------------------------------------


def steps_of(monkeypatch, call):
    """The titles and notes of all progress that a call makes."""
    seen = []
    real = Progress.update

    def update(self, done, note=""):
        seen.append((self._title, note))
        real(self, done, note)

    monkeypatch.setattr(Progress, "update", update)
    call()
    return seen


def test_the_landscape_tells_every_family_point_and_statement(monkeypatch):
    from ufm.landscape import theorems
    from ufm.landscape.families import NAMES

    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_W=0.01, lam_H=0.02)
    seen = steps_of(monkeypatch, lambda: ufm.landscape.verify(prob))
    notes = {title: [note for t, note in seen if t == title] for title, _ in seen}
    assert set(NAMES) <= set(notes["critical points, family"])
    assert len(notes["Hessians, point"]) == len(notes["ways down, point"]) == 4
    assert notes["statements"] == [row.name for row in theorems.STATEMENTS]


def test_a_sweep_tells_that_it_compiles(monkeypatch):
    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2)
    seen = steps_of(monkeypatch, lambda: ufm.solve_sweep(prob, lam_W=[1e-3, 1e-2], max_steps=2))
    assert seen[0] == ("sweep", "compiling")


@pytest.mark.parametrize("command", _cli.COMMANDS)
def test_every_command_may_be_quiet(command):
    result = CliRunner().invoke(_cli.main, [command, "--help"])
    assert "--quiet" in result.output


@pytest.mark.parametrize("quiet", [False, True])
def test_a_command_is_quiet_if_it_is_told_to_be(quiet, monkeypatch, clock):
    piped = into_pipe(monkeypatch)
    sizes = ["--K", "3", "--d", "4", "--n", "2", "--max-steps", "1"]
    real = ufm.solve_ufm

    @functools.wraps(real)
    def slow(**given):
        clock.passes(9)
        return real(**given)

    monkeypatch.setattr(ufm, "solve_ufm", slow)
    with pytest.raises(SystemExit):
        _cli.main(["solve", *sizes, "--json", *["--quiet"] * quiet])
    assert bool(piped()) is not quiet
    assert all(line.startswith("ufm: ") for line in piped())
