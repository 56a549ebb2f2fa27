"""Output of the commands: tables in a terminal, JSON, figures and folders."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

import ufm
from ufm import _files
from ufm._cli._options import Output
from ufm._sheet import Sheet, as_table, as_text, dumps


def tell(output: Output, record: object) -> None:
    """Print a record or a sheet, with colours in a terminal."""
    from rich.console import Console

    console = Console()
    if output.as_json:
        return
    if console.is_terminal:
        console.print(as_table(record) if isinstance(record, Sheet) else record)
    else:
        click.echo(as_text(record) if isinstance(record, Sheet) else str(record))


def write(
    output: Output,
    make: Callable[[], dict[str, Any]],
    figure: Callable[[], Any] | None,
    arrays: dict[str, Any],
) -> None:
    """Write what was requested: JSON on standard output, the figure, the folder."""
    data = make() if output.as_json or output.out else {}
    if output.as_json:
        click.echo(dumps(data))
    files = [] if output.plot is None else [output.plot]
    if output.out is not None:
        files += [output.out / "figure.png", output.out / "figure.pdf"]
        _files.write_json(output.out / "result.json", data | {"run": provenance(output)}, indent=2)
        _files.write_whole(output.out / "arrays.npz", lambda stream: np.savez(stream, **arrays))
    if files and figure is not None:
        from ufm import figures

        figures.save(figure, files)
    if not output.as_json:
        for file in files[:1] if output.out is None else [output.out]:
            click.echo(f"written: {file}")


def provenance(output: Output) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    versions, machine = _files.versions(), _files.hardware()
    return {
        "command": ["ufm", *sys.argv[1:]],
        "ufm": versions["ufm"],
        "jax": versions["jax"],
        "python": machine["python"],
        "machine": f"{machine['system']} {machine['machine']}, {machine['cpus']} cores",
        "backend": machine["backend"],
        "seconds": round(time.perf_counter() - output.began, 3),
    }


def arrays_of(sol: ufm.Solution, prefix: str = "") -> dict[str, Any]:
    arrays = {"W": sol.W, "H": sol.H, "b": sol.b, "labels": sol.problem.labels}
    if sol.history is not None:
        arrays |= {f"history_{name}": values for name, values in sol.history._asdict().items()}
    return {prefix + name: np.asarray(value) for name, value in arrays.items()}
