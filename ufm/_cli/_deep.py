"""`ufm train | figures`, and `ufm sweep --status`.

A list in an option of `ufm train` makes a sweep of networks, because a sweep has every option of a run;
`ufm sweep` is for problems of the UFM.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax

from ufm import _checks, _progress, deep, losses
from ufm import figures as shelf
from ufm._cli._group import Computing, Shown, need_device
from ufm._cli._options import HYPERPARAMETERS, Command, Output, figure_file, grid, parsed, users_of
from ufm._cli._output import tell
from ufm._sheet import dumps
from ufm.deep._mesh import of_cpu
from ufm.deep._options import Option
from ufm.deep._process import join, keep_freed_memory, make_cpu_devices
from ufm.deep._sweep import AXES, plan_sweep, sweep_status, train_sweep
from ufm.deep._sweep_folder import FILE
from ufm.deep._sweep_status import SweepStatus
from ufm.deep._train import OPTIONS

_FOLDER = click.Path(file_okay=False, path_type=Path)


def names(text: str) -> list[str]:
    """The losses in a list with commas; "all" is the paper's four."""
    given = [part.strip() for part in text.split(",") if part.strip()]
    return list(losses.PAPER) if given == ["all"] else given


def numbers(text: str) -> list[float]:
    """One or several numbers, as `grid` reads them."""
    return [float(value) for value in grid(text)]


def whole(text: str) -> list[int]:
    """The integers in one number, a list with commas, or start:stop without its end."""
    first, colon, last = text.partition(":")
    parts = [first, last] if colon else text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"expected an integer, a comma list or start:stop, got {text!r}")
    values = [int(part) for part in parts]
    return list(range(*values)) if colon else values


def _shelf(match: re.Match[str]) -> str:
    """The members of a shelf such as `nets.NETS`."""
    module = losses if match[1] == "losses" else getattr(deep, match[1])
    return ", ".join(getattr(module, match[2]))


def _help_of(option: Option) -> str:
    """The first sentence about an option of `deep.train`, and its default."""
    text = re.sub(r"`(\w+)\.([A-Z]+)`", _shelf, option.help)
    first = text.partition(". ")[0].rstrip(".")
    said = re.search(r"Default: (.*)\.", option.help)
    default = said[1] if option.default is None and said else option.default
    every = ", or all" if option.name == "loss" else ""
    return f"{first[0].upper()}{first[1:]}{every}." + (
        f"  [default: {default}]" if default is not None else ""
    )


#: how the values of an axis are read
_READERS = {"loss": names, "width": numbers, "epochs": whole, "seed": whole, "weight_decay": numbers}
_TYPES = {"int": int, "float": float, "str": str}


def _click_option(option: Option) -> Callable[[Command], Command]:
    flag = "--" + option.name.replace("_", "-")
    how: dict[str, Any] = {"help": _help_of(option), "default": None}
    if option.name in AXES:
        return click.option(flag, callback=parsed(_READERS[option.name]), metavar="LIST", **how)
    kind = option.type.split(" | ")[0]
    if kind == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", **how)
    return click.option(flag, type=_FOLDER if option.name == "data_dir" else _TYPES[kind], **how)


def _training_options(command: Command) -> Command:
    """Those of `deep.train`, and the hyperparameters of the losses."""
    hyperparameters = (click.option(f"--{name}", type=float, help=users_of(name)) for name in HYPERPARAMETERS)
    options = [*map(_click_option, OPTIONS.values()), *hyperparameters]
    return functools.reduce(lambda made, add: add(made), reversed(options), command)


@click.command(cls=Shown)
@_training_options
@click.option("--devices", type=int,
              help="Split each batch over this number of devices, which are created on a CPU.  "
                   "[default: on a CPU one a core, else one; with --distributed all]")  # fmt: skip
@click.option(
    "--out", type=_FOLDER, help="Folder for the record and checkpoints of a run, or for the runs of a sweep."
)
@click.option("--resume", type=click.Choice(["yes", "no", "changed"]), default="yes", show_default=True,
              help="Continue the run in --out; changed: also with other code or settings.")  # fmt: skip
@click.option(
    "--checkpoint-seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Minimum time between checkpoints.",
)
@click.option("--distributed", metavar="auto|HOST:PORT,i/n",
              help="Join the processes of a run: auto for a Slurm step (srun) or another cluster that JAX "
                   "detects, or the i-th of n processes that connect at this address.")  # fmt: skip
@click.option(
    "--shard", metavar="i/n", help="Train the i-th of n shares of a sweep, which cost about the same."
)
@click.option(
    "--status", is_flag=True, help="Print the progress and remaining cost of a sweep; train nothing."
)
@click.option("--compare", is_flag=True, help="Compare the last layer with the UFM's optimum.")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on standard output and nothing else.")
@click.option("--plot", callback=parsed(figure_file), metavar="FILE", help="Write a figure of the run.")
def train(**options: Any) -> int:
    """Train a network, or a sweep of them, and measure neural collapse along the way.

    \b
    ufm train --data digits --net mlp --preset small --epochs 100 --plot run.png
    ufm train --data cifar10 --net wrn50 --width 0.25 --loss ls --out runs/ls
    ufm train --data cifar10 --net wrn50 --width 0.25,2 --loss all --epochs 100,800 --seed 0:3 --out sweep

    Several values of --loss, --width, --epochs, --seed or --weight-decay make a sweep, a folder of runs in
    --out: progress and remaining cost are printed first, finished runs are skipped, interrupted ones
    continue.  `ufm sweep --status FOLDER` prints the progress at any time.

    Exit status: 0 completed (with --status: printed), 1 not completed, 2 misuse.
    """
    as_json, plot, out = (options.pop(name) for name in ("as_json", "plot", "out"))
    output = Output(as_json, plot, out, time.perf_counter())
    keep_freed_memory()
    follows = _follows(options)
    need_device()  # after `_follows`, which connects processes and creates devices
    if follows:
        _progress.hush()
    if options["devices"] is None:
        preset = deep.presets.get(options["preset"] or str(OPTIONS["preset"].default))[1]
        options["devices"] = of_cpu(options["batch"] or preset.batch)
    options["resume"] = {"yes": True, "no": False}.get(options["resume"], "changed")
    given = {name: value for name, value in options.items() if value is not None}
    axes = {name: given.pop(name) for name in AXES if name in given}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"{name}: expected at least one value, got none")
    axes.setdefault("loss", [OPTIONS["loss"].default])  # the default of `plan_sweep` is all four losses
    several = any(len(values) > 1 for values in axes.values())
    held = out is not None and (out / FILE).exists()
    # only the first process writes to standard output
    with contextlib.redirect_stdout(io.StringIO()) if follows else contextlib.nullcontext():
        return _sweep(axes, given, output) if several or held else _train(axes, given, output)


def _follows(options: dict[str, Any]) -> bool:
    """Set up the requested devices and processes; whether this process is not the first of them."""
    place = options.pop("distributed")
    if place is None:
        make_cpu_devices(options["devices"])
        return False
    sys.stdout.flush()
    # Gloo, which connects CPUs, prints to standard output, where --json allows nothing else
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    join(place)
    options["devices"] = options["devices"] or jax.device_count()
    return jax.process_index() > 0


def _train(axes: dict[str, Any], given: dict[str, Any], output: Output) -> int:
    if "shard" in given or given["status"]:
        name = "shard" if "shard" in given else "status"
        raise ValueError(f"{name}: expected with a sweep only: several losses, widths, epochs or seeds")
    given.pop("status")
    compare = given.pop("compare")
    run = deep.train(**{name: values[0] for name, values in axes.items()}, **given, out=output.out)
    tell(output, run)
    found = run.compare_with_ufm() if compare else None
    if found is not None and not output.as_json:
        click.echo()
        tell(output, found)
    if output.as_json:
        click.echo(dumps(run.to_dict() | ({} if found is None else {"ufm": found.to_dict()})))
    files = [] if output.plot is None else [output.plot]
    if output.out is not None:
        files += [output.out / "figure.png", output.out / "figure.pdf"]
    if files and len(run.history.epoch) and jax.process_index() == 0:
        shelf.save(run.plot, files)
    if not output.as_json and (output.plot or output.out):
        click.echo(f"written: {output.out or output.plot}")
    return 0 if run.status is deep.Status.COMPLETED else 1


def _sweep(axes: dict[str, Any], given: dict[str, Any], output: Output) -> int:
    if output.out is None:
        raise ValueError("out: expected the folder of the sweep's runs with --out, got nothing")
    for name, wanted in (("compare", given.pop("compare")), ("plot", output.plot)):
        if wanted:
            raise ValueError(f"{name}: expected with a single run only; see ufm figures for a sweep")
    if given["resume"] is False:
        raise ValueError("resume: expected yes or changed with a sweep, got no; choose another folder")
    status = given.pop("status")
    how = {name: given.pop(name) for name in _HOW if name in given}
    if "epochs" not in axes:  # as for a single run: the preset's
        preset = given.get("preset", OPTIONS["preset"].default)
        axes["epochs"] = [deep.presets.get(preset)[1].epochs]
    plan = plan_sweep(output.out, **{AXES[name]: values for name, values in axes.items()}, **given)
    plan.share(how.get("shard"))  # an invalid shard is refused before anything is measured
    if not status:
        _checks.folder("out", plan.out)
    found = sweep_status(plan)
    if status:
        return _print_status(found, output)
    tell(output, found)
    done = train_sweep(plan, **how)
    if not output.as_json:
        click.echo()
    _print_status(done, output)
    mine = {plan.points[i].name for i in plan.share(how.get("shard"))}
    rows = [row for row in done.rows if row.point.name in mine]
    return 0 if all(row.status == deep.Status.COMPLETED.value for row in rows) else 1


#: options of `train_sweep`
_HOW = ("shard", "resume", "checkpoint_seconds", "devices")


def _print_status(found: SweepStatus, output: Output) -> int:
    tell(output, found)
    if output.as_json:
        click.echo(dumps(found.to_dict()))
    return 0


def print_status(folder: Path, as_json: bool) -> int:
    """Print the progress and remaining cost of a folder of runs: `ufm sweep --status`."""
    return _print_status(sweep_status(folder), Output(as_json, None, None, time.perf_counter()))


@click.command(cls=Computing)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out", type=_FOLDER, default=Path("figures"), show_default=True, help="Folder for PNG and PDF."
)
@click.option(
    "--figure",
    callback=parsed(whole),
    metavar="LIST",
    help="Figures to draw; 1:5 are 1 to 4.  [default: all]",
)
@click.option("--data", help="Draw figures 1 to 8 for this data set instead of the paper's.")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on standard output and nothing else.")
def figures(
    runs: tuple[Path, ...], out: Path, figure: list[int] | None, data: str | None, as_json: bool
) -> int:
    """Draw the paper's figures from the records in folders of RUNS, with the paper's numbers for comparison.

    \b
    ufm figures sweep --out figures
    ufm figures runs --data mnist10k --figure 1,2
    ufm figures --figure 9,10

    Each figure names the runs that it lacks.  Exit status: 0 drawn, 2 misuse.
    """
    from ufm.figures import paper

    theory = [number for number, kind in paper.FIGURES.items() if kind.data is None]
    every = [number for number in paper.FIGURES if data is None or number not in theory]
    chosen = every if figure is None else figure
    for number in chosen:
        if number not in paper.FIGURES:
            raise ValueError(f"figure: expected one of {', '.join(map(str, paper.FIGURES))}, got {number}")
    found = paper.records(*runs)
    _checks.folder("out", out)
    drawings = []
    for number in _progress.each("figures", chosen):
        drawing = paper.draw(number, found, data=data)
        files = [out / f"figure{number}.{kind}" for kind in ("png", "pdf")]
        _save(drawing.figure, files)
        drawings.append(drawing.to_dict() | {"files": [str(file) for file in files]})
        if not as_json:
            _say(drawing)
    if as_json:
        click.echo(dumps({"records": len(found), "figures": drawings}))
        return 0
    click.echo(f"written: {out}")
    others = sorted({run.config["data"] for run in found})
    if others and not any(drawing["runs"] for drawing in drawings):
        click.echo(f"the runs are of {', '.join(others)}: add --data {others[0]} to draw them")
    return 0


def _save(figure: Any, files: list[Path]) -> None:
    shelf.save(lambda: figure, files)


def _say(drawing: Any) -> None:
    missing = len(drawing.missing)
    lack = f", {missing} missing: {drawing.missing[0]}{' ...' if missing > 1 else ''}" if missing else ""
    click.echo(f"figure {drawing.number:<3}{drawing.title}: {drawing.runs} runs{lack}")
    for number in drawing.numbers:
        if number.paper is not None and number.mean is not None:
            spread = "" if number.spread is None else f" +- {number.spread:.2g}"
            click.echo(f"    {number.name}: {number.mean:.4g}{spread}, paper {number.paper:g}")
