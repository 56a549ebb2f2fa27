"""What a user types: options, how their texts are read, and where the answer goes."""

from __future__ import annotations

import codecs
import inspect
import itertools
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import numpy as np

import ufm
from ufm import _checks, losses, models, solvers

Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = ("png", "pdf", "svg")
HYPERPARAMETERS = tuple(dict.fromkeys(itertools.chain.from_iterable(losses.HYPERPARAMETERS.values())))
#: values of a grid: more are a slip of the finger, and fill the memory
MOST = 1_000_000
SWEPT = ("lam_W", "lam_H", "lam_b", *HYPERPARAMETERS)


def parsed(read: Callable[[str], Any]) -> Callable[..., Any]:
    """A click callback from a function that reads a text or raises ValueError."""

    def callback(ctx: Any, param: Any, text: str | None) -> Any:
        try:
            return None if text is None else read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def grid(text: str) -> np.ndarray:
    """One number, a comma list, start:stop:count (geometric) or start:stop:count:linear."""
    if ":" not in text:
        return np.array([number(part) for part in text.split(",") if part.strip()])
    start, stop, count, *how = text.split(":") if text.count(":") in (2, 3) else ("", "", "")
    if not count.isdecimal() or not 1 <= int(count) <= MOST or how not in ([], ["linear"]):
        raise ValueError(
            f"expected start:stop:count, with :linear or without and 1 <= count <= {MOST:,}, got {text!r}"
        )
    low, high = number(start), number(stop)
    if how:
        return np.linspace(low, high, int(count))
    if not (low > 0 and high > 0):
        raise ValueError(f"a geometric grid needs start > 0 and stop > 0, got {text!r}; append :linear")
    return np.geomspace(low, high, int(count))


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a number, got {text!r}")
    return value


def seeds(text: str) -> list[int]:
    """10 (the seeds 0 to 9), 5:10 (5 to 9) or a comma list."""
    parts = [part for part in text.replace(":", ",").split(",") if part.strip()]
    whole = all(part.strip().isdigit() for part in parts)
    if not whole or not parts or (":" in text and len(parts) != 2):
        raise ValueError(f"expected 10, 0:10 or 1,5,7, got {text!r}")
    numbers = [int(part) for part in parts]
    found = numbers if "," in text else list(range(*numbers))
    if not found:
        raise ValueError(f"expected at least one seed, got none in {text!r}; 10 or 0:10 are ten")
    return found


def labels_of(path: str) -> np.ndarray:
    """The integers of a text file, separated by commas, semicolons, white space or lines, but no table."""
    lines = [re.split(r"\s*[,;]\s*|\s+", line.strip().rstrip(",;").strip()) for line in _lines(path)]
    words = [word for line in lines for word in line]
    wrong = [word for word in words if not re.fullmatch(r"[+-]?[0-9]{1,18}", word)]
    if wrong or not words:
        got = f"{wrong[0][:40]!r} in " if wrong else "nothing in "
        raise ValueError(f"expected a text file of integers, got {got}{path!r}")
    columns = {len(line) for line in lines}
    if len(lines) > 1 and columns != {1} and len(columns) == 1:  # as many in each line: names or indices, too
        raise ValueError(
            f"expected one label a line, or all labels in one line, got {len(lines[0])} columns in {path!r}; "
            "keep the column of the labels only"
        )
    return np.array([int(word) for word in words], dtype=np.int64)


def counts(text: str) -> np.ndarray:
    """Samples of each class: 100x5,10x5 are five classes of 100 samples and five of 10."""
    parts = [re.fullmatch(r"\s*(\d{1,9})(?:x(\d{1,6}))?\s*", part) for part in text.split(",")]
    pairs = [(int(part[1]), int(part[2] or 1)) for part in parts if part is not None]
    if len(pairs) < len(parts) or any(0 in pair for pair in pairs):
        raise ValueError(f"expected samples x classes such as 100x5,10x5, got {text!r}")
    samples, classes = zip(*pairs, strict=True)
    if sum(n * K for n, K in pairs) > MOST:
        raise ValueError(f"expected at most {MOST:,} samples, got {text!r}")
    return np.repeat(samples, classes)


def class_weights(text: str) -> np.ndarray:
    """Weight of each class: 0.5x5,2x5 are five classes of weight 0.5 and five of weight 2."""
    parts = [re.fullmatch(r"\s*([^x\s]+?)(?:x(\d{1,6}))?\s*", part) for part in text.split(",")]
    pairs = [(number(part[1]), int(part[2] or 1)) for part in parts if part is not None]
    if len(pairs) < len(parts) or any(classes == 0 for _, classes in pairs):
        raise ValueError(f"expected weights x classes such as 0.5x5,2x5, got {text!r}")
    weights, classes = zip(*pairs, strict=True)
    return np.repeat(weights, classes)


def _lines(path: str) -> list[str]:
    """The lines that are not empty, without the byte-order mark that Windows programs write."""
    raw = Path(path).read_bytes()
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"expected a text file of integers, got {path!r}, which is no text") from None
    return [line for line in text.splitlines() if line.strip()]


def figure_file(text: str) -> Path:
    """Refused before the work, not after it."""
    path = Path(text)
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"expected a file name ending in {', '.join(FORMATS)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"expected a folder that can be written, got {str(path.parent)!r}")
    return path


def default_of(name: str) -> Any:
    """The default that `ufm.solve_ufm` has: it lives there alone."""
    return inspect.signature(ufm.solve_ufm).parameters[name].default


def help_of(text: str, name: str) -> str:
    return f"{text}  [default: {default_of(name)}]"


def shared_options(grids: bool, solving: bool = True) -> Callable[[Command], Command]:
    """The options of every command; where `grids`, penalties and hyperparameters take several values; where
    `solving`, also those of the solver."""
    real: dict[str, Any] = {"callback": parsed(grid), "metavar": "GRID"} if grids else {"type": float}
    file = click.Path(exists=True, dir_okay=False)
    option = click.option
    options = [
        option("--K", "K", type=int, help="Classes.  [default: 10, or from the labels]"),
        option("--d", type=int, help=help_of("Feature dimension.", "d")),
        option("--n", type=int, help="Samples per class.  [default: 10]"),
        option("--labels", type=file, callback=parsed(labels_of), help="Text file of integers, not --n."),
        option("--counts", callback=parsed(counts), metavar="COUNTS",
               help="Samples x classes, not --n: 100x5,10x5 are five classes of 100 and five of 10."),
        option("--class-weights", callback=parsed(class_weights), metavar="WEIGHTS",
               help="Factors of the classes' losses: 0.5x5,2x5 are 0.5 for five classes and 2 for five."),
        option("--lam", **real, help="Sets --lam-W and --lam-H to the same value."),
        option("--lam-W", "lam_W", **real, help=help_of("Penalty of W.", "lam_W")),
        option("--lam-H", "lam_H", **real, help=help_of("Penalty of H.", "lam_H")),
        option("--lam-b", "lam_b", **real, help=help_of("Penalty of b, 0: free.", "lam_b")),
        option("--no-bias", is_flag=True, help="Leave the bias out."),
        option("--model", help=help_of(f"{', '.join(models.MODELS)}; or spheres:scale=8.", "model")),
        *(option(f"--{name}", **real, help=users_of(name)) for name in HYPERPARAMETERS),
    ]  # fmt: skip
    solver = [
        option("--scale", type=float, help=help_of("Size of the random start.", "scale")),
        option("--solver", help=help_of(f"One of {', '.join(solvers.SOLVERS)}.", "solver")),
        option("--tol", type=float, help=help_of("Bound on the gradient's norm.", "tol")),
        option("--max-steps", type=int, help="Steps at most.  [default: the solver's own]"),
        option("--reduced", is_flag=True, help="Solve for class means: exact for convex losses, and faster."),
    ]
    answer = [
        option("--json", "as_json", is_flag=True, help="Strict JSON on standard output and nothing else."),
        option("--plot", callback=parsed(figure_file), metavar="FILE",
               help=f"Write a figure ({', '.join(FORMATS)}, by the file's name)."),
        option("--out", type=click.Path(file_okay=False, path_type=Path),
               help="Folder for result.json, figure.png, figure.pdf and arrays.npz."),
    ]  # fmt: skip

    def decorate(command: Command) -> Command:
        for add in reversed([*options, *(solver if solving else []), *answer]):
            command = add(command)
        return command

    return decorate


def users_of(name: str) -> str:
    """The losses that have a hyperparameter of this name, and its default in each."""
    users = [loss for loss, names in losses.HYPERPARAMETERS.items() if name in names]
    defaults = [inspect.signature(losses.LOSSES[loss]).parameters[name].default for loss in users]
    shown = [f"{default:g}" for default in defaults]
    default = shown[0] if len(set(shown)) == 1 else ", ".join(shown)
    return f"Hyperparameter of {', '.join(users)}.  [default: {default}]"


def loss_option(extra: str = "") -> Callable[[Command], Command]:
    names = ", ".join(losses.LOSSES)
    return click.option("--loss", default="ce", show_default=True, help=f"One of {names}{extra}.")


class Output(NamedTuple):
    """Where the answer goes."""

    as_json: bool
    plot: Path | None
    out: Path | None
    began: float


def split(options: dict[str, Any]) -> tuple[dict[str, Any], Output]:
    """What was given, as arguments of `solve_ufm`, and where the answer goes."""
    output = Output(options.pop("as_json"), options.pop("plot"), options.pop("out"), time.perf_counter())
    if output.out is not None:
        _checks.folder("out", output.out)
    given = {name: value for name, value in options.items() if value is not None}
    if given.pop("no_bias"):
        given["bias"] = False
    if "counts" in given:
        given["labels"] = _labels_from(given.pop("counts"), given)
    lam = given.pop("lam", None)
    if lam is not None:
        for name in ("lam_W", "lam_H"):
            if name in given:
                raise ValueError(f"{name}: expected either --lam or --{name.replace('_', '-')}, got both")
        given |= {"lam_W": lam, "lam_H": lam}
    return given, output


def _labels_from(counts: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """The labels of `ufm.Problem.from_counts`, where nothing else in `given` fixes them."""
    for name in ("labels", "n"):
        if name in given:
            raise ValueError(f"counts: expected either --counts or --{name}, got both; leave one out")
    if given.get("K", len(counts)) != len(counts):
        raise ValueError(f"counts: expected K={given['K']} classes, got {len(counts)}; --K is not needed")
    return np.repeat(np.arange(len(counts)), counts)


def base_problem(given: dict[str, Any]) -> ufm.Problem:
    """Takes what makes a problem out of `given`; a swept value is represented by its first."""
    names = ("loss", "labels", "K", "d", "n", "bias", "model", "class_weights", *SWEPT)
    taken = {name: given.pop(name) for name in names if name in given}
    for name in SWEPT:
        if name in taken and np.size(taken[name]) == 0:
            raise ValueError(f"{name}: expected at least one value, got none")
    taken |= {name: float(taken[name][0]) for name in SWEPT if name in taken}
    if "labels" not in taken:
        return ufm.Problem.balanced(taken.pop("loss"), **taken)
    if "n" in taken:
        raise ValueError(f"n: expected either n or labels, got both (n={taken['n']}); labels fix the counts")
    hyperparameters = {name: taken.pop(name) for name in HYPERPARAMETERS if name in taken}
    taken.setdefault("d", default_of("d"))
    return ufm.Problem(losses.get(taken.pop("loss"), **hyperparameters), taken.pop("labels"), **taken)
