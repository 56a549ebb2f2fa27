"""The command line: `ufm solve | verify | sweep`."""

from __future__ import annotations

import inspect
import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import jax
import numpy as np

import ufm
from ufm import _report, losses, solvers

Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = ("png", "pdf", "svg")
HYPERPARAMETERS = tuple(dict.fromkeys(itertools.chain.from_iterable(losses.HYPERPARAMETERS.values())))
SWEPT = ("lam_W", "lam_H", "lam_b", *HYPERPARAMETERS)


# --- one line for misuse, and the exit status -------------------------------------------------------


class OneLine(click.Group):
    """A group whose commands return their exit status, and which tells misuse in one line, status 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            status = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            status = 2
        except click.ClickException as error:
            status = _misuse(error.format_message())
        except (ValueError, OSError) as error:
            status = _misuse(str(error))
        except (click.Abort, KeyboardInterrupt):
            click.echo("ufm: interrupted", err=True)
            status = 130
        sys.exit(status)


def _misuse(message: str) -> int:
    click.echo(f"ufm: {' '.join(message.split())}", err=True)
    return 2


# --- what a user types ------------------------------------------------------------------------------


def _parsed(read: Callable[[str], Any]) -> Callable[..., Any]:
    """A click callback from a function that reads a text or raises ValueError."""

    def callback(ctx: Any, param: Any, text: str | None) -> Any:
        try:
            return None if text is None else read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _grid(text: str) -> np.ndarray:
    """One number, a comma list, start:stop:count (geometric) or start:stop:count:linear."""
    if ":" not in text:
        return np.array([_number(part) for part in text.split(",") if part.strip()])
    start, stop, count, *how = text.split(":") if text.count(":") in (2, 3) else ("", "", "")
    if not count.isdigit() or int(count) < 1 or how not in ([], ["linear"]):
        raise ValueError(f"expected start:stop:count, with :linear or without, got {text!r}")
    low, high = _number(start), _number(stop)
    if how:
        return np.linspace(low, high, int(count))
    if not (low > 0 and high > 0):
        raise ValueError(f"a geometric grid needs start > 0 and stop > 0, got {text!r}; append :linear")
    return np.geomspace(low, high, int(count))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None


def _seeds(text: str) -> list[int]:
    """10 (the seeds 0 to 9), 5:10 (5 to 9) or a comma list."""
    parts = [part for part in text.replace(":", ",").split(",") if part.strip()]
    whole = all(part.strip().isdigit() for part in parts)
    if not whole or not parts or (":" in text and len(parts) != 2):
        raise ValueError(f"expected 10, 0:10 or 1,5,7, got {text!r}")
    numbers = [int(part) for part in parts]
    return numbers if "," in text else list(range(*numbers))


def _labels(path: str) -> np.ndarray:
    """The integers of a text file, separated by any white space."""
    words = Path(path).read_text().split()
    if not all(word.removeprefix("-").isdigit() for word in words):
        raise ValueError(f"expected a text file of integers, got {path!r}")
    return np.array(words, dtype=np.int64)


def _figure_file(text: str) -> Path:
    """Refused before the work, not after it."""
    path = Path(text)
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"expected a file name ending in {', '.join(FORMATS)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {str(path.parent)!r}")
    return path


def _default(name: str) -> Any:
    """The default that `ufm.solve_ufm` has: it lives there alone."""
    return inspect.signature(ufm.solve_ufm).parameters[name].default


def _help(text: str, name: str) -> str:
    return f"{text}  [default: {_default(name)}]"


def _shared_options(grids: bool) -> Callable[[Command], Command]:
    """The options of every command; where `grids`, penalties and hyperparameters take several values."""
    real: dict[str, Any] = {"callback": _parsed(_grid), "metavar": "GRID"} if grids else {"type": float}
    file = click.Path(exists=True, dir_okay=False)
    option = click.option
    options = [
        option("--K", "K", type=int, help="Classes.  [default: 10, or from the labels]"),
        option("--d", type=int, help=_help("Feature dimension.", "d")),
        option("--n", type=int, help="Samples per class.  [default: 10]"),
        option("--labels", type=file, callback=_parsed(_labels), help="Text file of integers, not --n."),
        option("--lam", **real, help="Sets --lam-W and --lam-H to the same value."),
        option("--lam-W", "lam_W", **real, help=_help("Penalty of W.", "lam_W")),
        option("--lam-H", "lam_H", **real, help=_help("Penalty of H.", "lam_H")),
        option("--lam-b", "lam_b", **real, help=_help("Penalty of b, 0: free.", "lam_b")),
        option("--no-bias", is_flag=True, help="Leave the bias out."),
        *(option(f"--{name}", **real, help=_users_of(name)) for name in HYPERPARAMETERS),
        option("--scale", type=float, help=_help("Size of the random start.", "scale")),
        option("--solver", help=_help(f"One of {', '.join(solvers.SOLVERS)}.", "solver")),
        option("--tol", type=float, help=_help("Bound on the gradient's norm.", "tol")),
        option("--max-steps", type=int, help="Steps at most.  [default: the solver's own]"),
        option("--reduced", is_flag=True, help="Solve for class means: exact for convex losses, and faster."),
        option("--json", "as_json", is_flag=True, help="Strict JSON on standard output and nothing else."),
        option("--plot", callback=_parsed(_figure_file), metavar="FILE",
               help=f"Write a figure ({', '.join(FORMATS)}, by the file's name)."),
        option("--out", type=click.Path(file_okay=False, path_type=Path),
               help="Folder for result.json, figure.png, figure.pdf and arrays.npz."),
    ]  # fmt: skip

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


def _users_of(name: str) -> str:
    users = [loss for loss, names in losses.HYPERPARAMETERS.items() if name in names]
    default = inspect.signature(losses.LOSSES[users[0]]).parameters[name].default
    return f"Hyperparameter of {', '.join(users)}.  [default: {default:g}]"


def _loss_option(extra: str = "") -> Callable[[Command], Command]:
    names = ", ".join(losses.LOSSES)
    return click.option("--loss", default="ce", show_default=True, help=f"One of {names}{extra}.")


class Output(NamedTuple):
    """Where the answer goes."""

    as_json: bool
    plot: Path | None
    out: Path | None
    began: float


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], Output]:
    """What was given, as arguments of `solve_ufm`, and where the answer goes."""
    output = Output(options.pop("as_json"), options.pop("plot"), options.pop("out"), time.perf_counter())
    if output.out is not None:
        output.out.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in options.items() if value is not None}
    given["bias"] = not given.pop("no_bias")
    lam = given.pop("lam", None)
    if lam is not None:
        for name in ("lam_W", "lam_H"):
            if name in given:
                raise ValueError(f"{name}: expected either --lam or --{name.replace('_', '-')}, got both")
        given |= {"lam_W": lam, "lam_H": lam}
    return given, output


# --- what is written --------------------------------------------------------------------------------


def _tell(output: Output, record: Any) -> None:
    """A record as a table, coloured where somebody looks."""
    from rich.console import Console

    console = Console()
    if output.as_json:
        return
    if console.is_terminal:
        console.print(record)
    else:
        click.echo(_report.as_text(record))


def _write(
    output: Output,
    make: Callable[[], dict[str, Any]],
    figure: Callable[[], Any] | None,
    arrays: dict[str, Any],
) -> None:
    """JSON on standard output, the figure, and the folder, as far as they were asked for."""
    data = make() if output.as_json or output.out else {}
    if output.as_json:
        click.echo(_report.dumps(data))
    files = [] if output.plot is None else [output.plot]
    if output.out is not None:
        files += [output.out / "figure.png", output.out / "figure.pdf"]
        (output.out / "result.json").write_text(_report.dumps(data | {"run": _run(output)}) + "\n")
        np.savez(output.out / "arrays.npz", **arrays)
    if files and figure is not None:
        from ufm import plotting

        plotting.save(figure, files)
    if not output.as_json:
        for file in files[:1] if output.out is None else [output.out]:
            click.echo(f"written: {file}")


def _run(output: Output) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    return {
        "command": ["ufm", *sys.argv[1:]],
        "ufm": ufm.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "backend": jax.default_backend(),
        "seconds": round(time.perf_counter() - output.began, 3),
    }


def _arrays(sol: ufm.Solution, prefix: str = "") -> dict[str, Any]:
    arrays = {"W": sol.W, "H": sol.H, "b": sol.b, "labels": sol.problem.labels}
    if sol.history is not None:
        arrays |= {f"history_{name}": values for name, values in sol.history._asdict().items()}
    return {prefix + name: np.asarray(value) for name, value in arrays.items()}


# --- the commands -----------------------------------------------------------------------------------


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ufm.__version__, prog_name="ufm")
def main() -> None:
    """The unconstrained feature model of neural collapse: solved, certified and measured.

    \b
    ufm verify --loss all                     every claim of Theorem 1, for every loss
    ufm solve --loss ls --K 10 --d 64         one problem
    ufm sweep --lam 1e-4:1e-1:20 --seeds 5    across the collapse threshold

    Exit status: 0 yes (converged, all claims hold), 1 no, 2 misuse.  Compiled programs are kept between
    runs in $JAX_COMPILATION_CACHE_DIR or the user's cache folder; UFM_CACHE=0 turns that off.
    """
    keep_compiled_programs()


@main.command()
@_loss_option()
@click.option("--seed", type=int, help=_help("Of the random start.", "seed"))
@click.option("--record", is_flag=True, help="Keep the trajectory (on with --plot and --out).")
@_shared_options(grids=False)
def solve(**options: Any) -> int:
    """Solve one problem and bound how far the answer is from the global minimum.

    \b
    ufm solve --loss ls --alpha 0.2 --K 10 --d 64 --n 10 --lam 5e-3
    ufm solve --loss fl --solver lbfgs --plot convergence.png
    ufm solve --labels labels.txt --d 20 --json
    ufm solve --K 100 --d 512 --n 100 --reduced

    Exit status: 0 converged, 1 not converged, 2 misuse.
    """
    given, output = _split(options)
    given["record"] |= bool(output.plot or output.out)
    sol = ufm.solve_ufm(**given)
    certificate = sol.certificate  # computed before the table, which shows it
    _tell(output, sol)

    def data() -> dict[str, Any]:
        return {
            "problem": _report.problem_dict(sol.problem),
            "start": {name: given.get(name, _default(name)) for name in ("seed", "scale")},
            "solution": _report.solution_dict(sol),
            "certificate": _report.certificate_dict(certificate),
            "theory": _report.theory_dict(sol.problem),
        }

    _write(output, data, sol.plot, _arrays(sol))
    return 0 if sol.converged else 1


@main.command()
@_loss_option(", or all")
@click.option("--seed", type=int, help=_help("Of the random start.", "seed"))
@_shared_options(grids=False)
def verify(**options: Any) -> int:
    """Solve, then measure every claim of Theorem 1 at the solution.

    \b
    ufm verify --loss all
    ufm verify --loss mse --kappa 5 --lam-b 0.01 --json
    ufm verify --loss fl --K 100 --d 128 --out report/

    With --loss all a hyperparameter goes to the losses that have it, and --json prints
    {"passed", "reports": [...]}.  Exit status: 0 no claim fails, 1 one fails, 2 misuse.
    """
    given, output = _split(options)
    every = given["loss"] == "all"
    names = list(losses.LOSSES) if every else [given["loss"]]
    arguments = {name: _for_loss(given, name) if every else given for name in names}
    reports = {}
    for name in names:
        reports[name] = ufm.verify(ufm.solve_ufm(**arguments[name]))
        _tell(output, reports[name])
        if every and not output.as_json:
            click.echo()
    passed = all(report.passed for report in reports.values())
    if every:
        _summary(output, list(reports.values()))
    arrays: dict[str, Any] = {}
    for name, report in reports.items():
        arrays |= _arrays(report.solution, f"{name}_" if every else "")

    def data() -> dict[str, Any]:
        each = [_report.report_dict(report) for report in reports.values()]
        return {"passed": passed, "reports": each} if every else each[0]

    _write(output, data, lambda: _plot_reports(list(reports.values())), arrays)
    return 0 if passed else 1


def _for_loss(given: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments for one of all losses: its own hyperparameters only, checked before any is solved."""
    own = losses.HYPERPARAMETERS[name]
    loss = losses.get(name, **{key: value for key, value in given.items() if key in own})
    rest = {key: value for key, value in given.items() if key not in HYPERPARAMETERS}
    return rest | {"loss": loss}


def _summary(output: Output, reports: Sequence[ufm.Report]) -> None:
    if output.as_json:
        return
    passed = sum(report.passed for report in reports)
    seconds = time.perf_counter() - output.began
    click.echo(
        f"{passed} of {len(reports)} losses pass; claims: {_report.tally(reports)} ({seconds:.1f} s, float"
        f"{jax.numpy.result_type(float).itemsize * 8}, {jax.default_backend()})"
    )


def _plot_reports(reports: Sequence[ufm.Report]) -> Any:
    from ufm import plotting

    return plotting.plot_report(*reports)


@main.command()
@_loss_option()
@click.option("--seeds", callback=_parsed(_seeds), default="1", show_default=True,
              help="10 (the seeds 0 to 9), 5:10 (5 to 9) or 1,5,7.")  # fmt: skip
@_shared_options(grids=True)
def sweep(**options: Any) -> int:
    """Solve a grid of problems in one compiled program.

    Penalties and hyperparameters take one number, a comma list, start:stop:count (geometric) or
    start:stop:count:linear.  Several grids make a product, in the order of the options' list.

    \b
    ufm sweep --lam 1e-4:1e-1:20 --seeds 0:10
    ufm sweep --loss ls --alpha 0:0.9:10:linear --lam 1e-3,1e-2 --json
    ufm sweep --loss fl --K 20 --gamma 1,2,3 --lam 1e-3:5e-2:30 --plot sweep.png

    Exit status: 0 all converged, 1 not all, 2 misuse.
    """
    given, output = _split(options)
    axes = {name: given[name] for name in SWEPT if np.size(given.get(name, 0)) > 1}
    both = axes.get("lam_W") is not None and axes.get("lam_W") is axes.get("lam_H")
    prob, grid = _base_problem(given), _product(axes, together=both)
    if output.plot and any(np.ndim(values) > 2 for values in grid.values()):
        raise ValueError(f"plot: expected at most two grids for a figure, got {len(axes)}: {', '.join(axes)}")
    result = ufm.solve_sweep(prob, **given, **grid)
    _tell(output, result)
    swept = {f"axis_{name}": values for name, values in result.swept.items()}
    arrays = {name: getattr(result, name) for name in ("W", "H", "b", "objective", "grad_norm", "steps")}
    arrays |= swept | {"status": result.status, "seeds": result.seeds, "labels": result.problem.labels}
    figure = result.plot if len(result.shape) <= 3 else None
    _write(output, lambda: _report.sweep_dict(result), figure, arrays)
    return 0 if bool(result.converged.all()) else 1


def _base_problem(given: dict[str, Any]) -> ufm.Problem:
    """Takes what makes a problem out of `given`; a swept value is represented by its first."""
    names = ("loss", "labels", "K", "d", "n", "bias", *SWEPT)
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
    taken.setdefault("d", _default("d"))
    return ufm.Problem(losses.get(taken.pop("loss"), **hyperparameters), taken.pop("labels"), **taken)


def _product(axes: dict[str, np.ndarray], together: bool) -> dict[str, Any]:
    """Each grid along an axis of its own; lam_W and lam_H share one where `together`."""
    places = [name for name in axes if not (together and name == "lam_H")]
    shaped = {}
    for name, values in axes.items():
        at = places.index("lam_W" if together and name == "lam_H" else name)
        shaped[name] = values.reshape(-1, *[1] * (len(places) - 1 - at))
    return shaped


# --- the compilation cache --------------------------------------------------------------------------


def keep_compiled_programs() -> None:
    """JAX's persistent cache in the user's cache folder, so that a second start compiles nothing."""
    if os.environ.get("UFM_CACHE", "1") == "0":
        return
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ufm" / "xla"
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return  # works without
    update: Callable[[str, Any], None] = jax.config.update
    update("jax_compilation_cache_dir", str(folder))
    update("jax_persistent_cache_min_compile_time_secs", 0.0)
    update("jax_persistent_cache_min_entry_size_bytes", -1)
