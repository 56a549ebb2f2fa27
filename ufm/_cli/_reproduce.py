"""`ufm reproduce`."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import click

from ufm._cli._group import Shown, need_device
from ufm._cli._options import Output
from ufm._cli._output import tell
from ufm._sheet import dumps

_FOLDER = click.Path(path_type=Path)


@click.command(cls=Shown)
@click.option("--quick", is_flag=True, help="A small grid, about a minute; without it at most 15 minutes.")
@click.option("--out", type=_FOLDER, help="Folder of the report.  [default: reproduce, reproduce-quick, ...]")
@click.option(
    "--part",
    type=click.Choice(["all", "paper", "beyond"]),
    default="all",
    show_default=True,
    help="The paper, the statements of other papers beyond it, or both.",
)
@click.option("--only", metavar="LIST", default="", help="Comma list of rows, such as theorem-1,lemma-8.")
@click.option("--fresh", is_flag=True, help="Delete the folder's records first and measure everything again.")
@click.option("--runs", type=_FOLDER, help="Folder of runs of ufm train, to add their figures to the report.")
@click.option("--deep", type=click.Choice(["shipped", "mini"]), default="shipped", show_default=True,
              help="Networks: the package's own runs, or mini: train that grid anew, for hours.")  # fmt: skip
@click.option(
    "--data",
    metavar="DATA",
    help="With --deep mini: cifar10, or class folders of its images.  [default: cifar10]",
)
@click.option("--data-dir", type=_FOLDER, help="With --deep mini: folder of CIFAR-10, or for its download.")
@click.option("--skip-shipped", is_flag=True, help="With --deep mini: only the runs that the package lacks.")
@click.option("--list", "listed", is_flag=True, help="Print the rows and exit.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print report.json on standard output and nothing else."
)
def reproduce(
    quick: bool,
    out: Path | None,
    part: Literal["all", "paper", "beyond"],
    only: str,
    fresh: bool,
    runs: Path | None,
    listed: bool,
    as_json: bool,
    **networks: Any,
) -> int:
    """Measure every claim of the paper about the model, and of others beyond it, and write a report.

    \b
    ufm reproduce --quick                         about a minute
    ufm reproduce --out both                      the full grid
    ufm reproduce --part paper                    without the statements of other papers
    ufm reproduce --only theorem-1,lemma-8        two rows
    ufm reproduce --deep mini --out anew          also train the networks, for hours; needs CIFAR-10

    The folder receives report.html (one self-contained page), report.json and figures. If the command is
    interrupted, the report covers the finished jobs, and the same command continues from them.

    Exit status: 0 every verdict is the expected one, 1 a verdict is not, 2 misuse, 130 interrupted.
    """
    from ufm import reproduce as package
    from ufm.deep._process import keep_freed_memory, make_cpu_devices

    if listed:
        for row in package.STATEMENTS:
            if part in ("all", row.part):
                click.echo(f"{row.id:<21} {row.section}: {row.title}")
        return 0
    ids = tuple(name.strip() for name in only.split(",") if name.strip())
    folder = out or Path("-".join(["reproduce", *["quick"] * quick, *[part] * (part != "all"), *ids]))
    began = time.perf_counter()
    again = ["ufm", "reproduce", *["--quick"] * quick, "--out", str(folder)]
    again += ["--part", part] * (part != "all") + ["--only", only] * bool(only)
    again += ["--runs", str(runs)] * (runs is not None) + _again(networks)
    given = {name: value for name, value in networks.items() if value is not None}
    if networks["deep"] != "shipped":
        keep_freed_memory()
        make_cpu_devices()
    need_device()  # after the devices have been made
    with _stopped_kindly(folder, shlex.join(again)):
        made = package.reproduce(
            folder, level="quick" if quick else "full", part=part, only=ids, fresh=fresh, runs=runs, **given,
        )  # fmt: skip
    tell(Output(as_json, None, folder, began), made)
    if as_json:
        click.echo(dumps(made.to_dict()))
    return 0 if made.consistent else 1


def _again(networks: dict[str, Any]) -> list[str]:
    """The options about networks that a second call needs."""
    if networks["deep"] == "shipped":
        return []
    words = ["--deep", networks["deep"], *["--skip-shipped"] * networks["skip_shipped"]]
    for name in ("data", "data_dir"):
        words += [f"--{name.replace('_', '-')}", str(networks[name])] * (networks[name] is not None)
    return words


@contextmanager
def _stopped_kindly(folder: Path, again: str) -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and say after either how to continue."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"ufm: the finished jobs are kept in {folder}; to continue: {again}", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
