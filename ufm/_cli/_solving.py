"""`ufm solve | verify | sweep`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

import ufm
from ufm import _progress, losses
from ufm._claim import tally
from ufm._cli._group import Computing
from ufm._cli._options import (
    HYPERPARAMETERS,
    SWEPT,
    Output,
    base_problem,
    default_of,
    help_of,
    loss_option,
    parsed,
    seeds,
    shared_options,
    split,
)
from ufm._cli._output import arrays_of, tell, write


@click.command(cls=Computing)
@loss_option()
@click.option("--seed", type=int, help=help_of("Of the random start.", "seed"))
@click.option("--record", is_flag=True, help="Keep the trajectory (on with --plot and --out).")
@shared_options(grids=False)
def solve(**options: Any) -> int:
    """Solve one problem and bound how far the answer is from the global minimum.

    \b
    ufm solve --loss ls --alpha 0.2 --K 10 --d 64 --n 10 --lam 5e-3
    ufm solve --loss fl --solver lbfgs --plot convergence.png
    ufm solve --labels labels.txt --d 20 --json
    ufm solve --K 100 --d 512 --n 100 --reduced

    Exit status: 0 converged, 1 not converged, 2 misuse.
    """
    given, output = split(options)
    given["record"] |= bool(output.plot or output.out)
    sol = ufm.solve_ufm(**given)
    certificate = sol.certificate
    tell(output, sol.sheet(certificate))

    def data() -> dict[str, Any]:
        return {
            "problem": sol.problem.to_dict(),
            "start": {name: given.get(name, default_of(name)) for name in ("seed", "scale")},
            "solution": sol.to_dict(),
            "certificate": certificate.to_dict(),
            "theory": _theory(sol.problem),
        }

    write(output, data, sol.plot, arrays_of(sol))
    return 0 if sol.converged else 1


def _theory(prob: ufm.Problem) -> dict[str, Any]:
    """The optimum in closed form as JSON, or nulls and the reason why none is known."""
    try:
        return ufm.theory.global_optimum(prob).to_dict()
    except ufm.theory.NoClosedForm as error:
        return {"objective": None, "why": str(error)}


@click.command(cls=Computing)
@loss_option(f", or all: {', '.join(losses.PAPER)}")
@click.option("--seed", type=int, help=help_of("Of the random start.", "seed"))
@shared_options(grids=False)
def verify(**options: Any) -> int:
    """Solve, then measure every claim of Theorem 1 at the solution.

    \b
    ufm verify --loss all
    ufm verify --loss mse --kappa 5 --lam-b 0.01 --json
    ufm verify --loss fl --K 100 --d 128 --out report/

    With --loss all a hyperparameter goes to the losses that have it, and --json prints
    {"passed", "reports": [...]}.  Exit status: 0 no claim fails, 1 one fails, 2 misuse.
    """
    given, output = split(options)
    every = given["loss"] == "all"
    names = list(losses.PAPER) if every else [given["loss"]]
    arguments = {name: _for_loss(given, name) if every else given for name in names}
    reports = {}
    for name in _progress.each("losses", names) if every else names:
        reports[name] = ufm.verify(ufm.solve_ufm(**arguments[name]))
        tell(output, reports[name])
        if every and not output.as_json:
            click.echo()
    passed = all(report.passed for report in reports.values())
    if every:
        _summary(output, list(reports.values()))
    arrays: dict[str, Any] = {}
    for name, report in reports.items():
        arrays |= arrays_of(report.solution, f"{name}_" if every else "")

    def data() -> dict[str, Any]:
        each = [report.to_dict() for report in reports.values()]
        return {"passed": passed, "reports": each} if every else each[0]

    write(output, data, lambda: _plot_reports(list(reports.values())), arrays)
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
        f"{passed} of {len(reports)} losses pass; claims: {tally(reports)} ({seconds:.1f} s, float"
        f"{jax.numpy.result_type(float).itemsize * 8}, {jax.default_backend()})"
    )


def _plot_reports(reports: Sequence[ufm.Report]) -> Any:
    from ufm import figures

    return figures.plot_report(*reports)


@click.command(cls=Computing)
@loss_option()
@click.option("--seeds", callback=parsed(seeds), default="1", show_default=True,
              help="10 (the seeds 0 to 9), 5:10 (5 to 9) or 1,5,7.")  # fmt: skip
@click.option("--status", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Of a sweep of networks (ufm train): what is done, what it will still cost.")  # fmt: skip
@shared_options(grids=True)
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
    folder = options.pop("status")
    if folder is not None:
        from ufm._cli._deep import print_status

        return print_status(folder, options["as_json"])
    given, output = split(options)
    axes = {name: given[name] for name in SWEPT if np.size(given.get(name, 0)) > 1}
    both = axes.get("lam_W") is not None and axes.get("lam_W") is axes.get("lam_H")
    prob, grid = base_problem(given), _product(axes, together=both)
    if output.plot and any(np.ndim(values) > 2 for values in grid.values()):
        raise ValueError(f"plot: expected at most two grids for a figure, got {len(axes)}: {', '.join(axes)}")
    result = ufm.solve_sweep(prob, **given, **grid)
    tell(output, result)
    swept = {f"axis_{name}": values for name, values in result.swept.items()}
    arrays = {name: getattr(result, name) for name in ("W", "H", "b", "objective", "grad_norm", "steps")}
    arrays |= swept | {"status": result.status, "seeds": result.seeds, "labels": result.problem.labels}
    figure = result.plot if len(result.shape) <= 3 else None
    write(output, result.to_dict, figure, arrays)
    return 0 if bool(result.converged.all()) else 1


def _product(axes: dict[str, np.ndarray], together: bool) -> dict[str, Any]:
    """Each grid along an axis of its own; lam_W and lam_H share one where `together`."""
    places = [name for name in axes if not (together and name == "lam_H")]
    shaped = {}
    for name, values in axes.items():
        at = places.index("lam_W" if together and name == "lam_H" else name)
        shaped[name] = values.reshape(-1, *[1] * (len(places) - 1 - at))
    return shaped
