"""`ufm landscape`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from ufm._cli._group import Computing
from ufm._cli._options import (
    SWEPT,
    Output,
    base_problem,
    grid,
    loss_option,
    parsed,
    shared_options,
    split,
)
from ufm._cli._output import tell, write
from ufm._problem import Problem


@click.command(cls=Computing)
@loss_option()
@click.option("--search", is_flag=True, help="Search numerically for others than those known analytically.")
@click.option(
    "--starts",
    type=int,
    help="Of the search [default: 1024], another model [30], a cell of the phase diagram [10].",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option("--phase-diagram", is_flag=True, help="Draw phases over --C and one hyperparameter.")
@click.option("--C", "C", callback=parsed(grid), metavar="GRID",
              help="(K-1) sqrt(n lam_W lam_H), for the phase diagram.")  # fmt: skip
@click.option("--table", is_flag=True, help="The lowest values known for K = 3..8 in d = 2, 3, 4.")
@click.option(
    "--recompute", is_flag=True, help="With --table: search them anew; goes on where --out has some."
)
@shared_options(grids=True, solving=False)
def landscape(**options: Any) -> int:
    """Critical points, their Hessians, and Theorem 2 measured over them.

    \b
    ufm landscape --loss ce --K 4 --d 6 --n 2 --lam 1e-2
    ufm landscape --loss ce --K 5 --d 2 --n 1 --lam 1e-2 --search
    ufm landscape --loss fl --K 20 --d 21 --n 1 --lam 0.0632147 --out counterexample/
    ufm landscape --phase-diagram --loss fl --K 20 --C 1.19:1.21:21 --gamma 2:4:5:linear --plot phases.png
    ufm landscape --model nonnegative --K 3 --d 3 --n 1 --lam 1e-2 --starts 50
    ufm landscape --table --K 8
    ufm landscape --table --recompute --starts 1000 --out table/

    For a --model other than two free factors: the minima that --starts [30] solutions end at. --plot draws
    the spectrum at the lowest point; --out also the road down from the origin and a slice.
    Exit status: 0 no claim fails (or the diagram is drawn), 1 one fails (or a recomputed value is another
    one), 2 misuse.
    """
    diagram, search = options.pop("phase_diagram"), options.pop("search")
    C, starts = options.pop("C"), options.pop("starts")
    table, recompute = options.pop("table"), options.pop("recompute")
    given, output = split(options)
    if table:
        return _table(given, output, recompute, starts)
    if recompute:
        raise ValueError("recompute: expected with --table only; drop it, or add --table")
    if diagram:
        return _phase_diagram(given, output, C, starts)
    if C is not None:
        raise ValueError("C: expected with --phase-diagram only; give --lam, or --lam-W and --lam-H")
    several = [name for name in SWEPT if np.size(given.get(name, 0)) > 1]
    if several:
        raise ValueError(f"{several[0]}: expected one value, got several; a grid is for --phase-diagram")
    seed = given.pop("seed")
    prob = base_problem({"K": 4, "d": 6, "n": 2} | given if "labels" not in given else given)
    if not prob.decomposes:
        return _reached(prob, output, search, starts, seed)
    return _points(prob, output, search, starts, seed)


def _table(given: dict[str, Any], output: Output, recompute: bool, starts: int | None) -> int:
    """The record, or its entries searched anew; --K, --d and --no-bias pick rows."""
    from ufm.landscape import best_known, recompute_best_known
    from ufm.landscape._best_known import STARTS

    other = [name for name in given if name not in ("loss", "seed", "bias", "K", "d")]
    other += ["loss"] * (given["loss"] != "ce") + ["plot"] * (output.plot is not None)
    if other:
        name = other[0]
        raise ValueError(f"{name}: expected --table with --K, --d and --no-bias at most; drop --{name}")
    if starts is not None and not recompute:
        raise ValueError("starts: expected with --table --recompute; drop it, or add --recompute")
    wanted: dict[str, Any] = {name: given[name] for name in ("K", "d") if name in given}
    wanted |= {} if given.get("bias", True) else {"bias": False}
    record = best_known().where(**wanted)
    found = record
    if recompute:
        keys = [entry.key for entry in record]
        found = recompute_best_known(keys=keys, starts=starts or STARTS, out=output.out)
    tell(output, found)
    write(output, found.to_dict, None, {})
    other_values = [
        f"K={new.K}, d={new.d}, bias {'free' if new.bias else 'none'}: {new.objective - old.objective:.1e}"
        for new, old in zip(found, record, strict=True)
        if abs(new.objective - old.objective) > 1e-12
    ]
    if other_values:
        click.echo(f"other than the record, new minus old: {'; '.join(other_values)}", err=True)
    return 1 if other_values else 0


def _reached(prob: Problem, output: Output, search: bool, starts: int | None, seed: int) -> int:
    """Where solutions of a model other than two free factors end."""
    from ufm.landscape import reached_points

    if search:
        raise ValueError(f"search: expected with two free factors, got model={prob.model!r}; drop --search")
    default = inspect.signature(reached_points).parameters["starts"].default
    found = reached_points(prob, seed=seed, starts=default if starts is None else starts)
    tell(output, found)
    named = {f"{name}_{i}": x for i, p in enumerate(found.points) for name, x in p.params._asdict().items()}
    write(output, found.to_dict, found.plot, {name: np.asarray(x) for name, x in named.items()})
    return 1 if found.spurious else 0


def _points(prob: Problem, output: Output, search: bool, starts: int | None, seed: int) -> int:
    from ufm.landscape import critical_points, find_critical_points
    from ufm.landscape.theorems import verify

    if starts is not None and not search:
        raise ValueError("starts: expected with --search, --phase-diagram or --table --recompute only")
    default = inspect.signature(find_critical_points).parameters["starts"].default
    starts = default if starts is None else starts
    points = find_critical_points(prob, seed=seed, starts=starts) if search else critical_points(prob)
    report = verify(points)
    tell(output, points)
    tell(output, report)
    figures = _figures(prob, points[0].params)
    write(output, report.to_dict, figures["spectrum"], _arrays(points))
    if output.out is not None:
        _more_figures(output.out, figures)
    return 0 if report.passed else 1


def _arrays(points: Any) -> dict[str, Any]:
    """Every point's W, H and b: what reproduces a counterexample."""
    named = {f"{name}_{i}": x for i, p in enumerate(points) for name, x in p.params._asdict().items()}
    return {name: np.asarray(x) for name, x in named.items()} | {"labels": np.asarray(points.problem.labels)}


def _figures(prob: Problem, lowest: Any) -> dict[str, Callable[[], Any]]:
    from ufm.figures import plot_slice
    from ufm.landscape import descend, eigenvalues

    def spectrum() -> Any:
        return eigenvalues(prob, lowest, which="all").plot(_closed_form(prob))

    return {
        "spectrum": spectrum,
        "descent": lambda: descend(prob, prob.zeros()).plot(),
        "slice": lambda: plot_slice(prob, prob.zeros(), lowest),
    }


def _closed_form(prob: Problem) -> Any:
    from ufm import theory

    try:
        return theory.hessian_spectrum(prob) if prob.n is not None else None
    except theory.NoClosedForm:
        return None


def _more_figures(folder: Path, figures: dict[str, Callable[[], Any]]) -> None:
    """The road and the slice, where the origin is a critical point to start from."""
    from ufm import figures as shelf

    for name in ("descent", "slice"):
        try:
            shelf.save(figures[name], [folder / f"{name}.png", folder / f"{name}.pdf"])
        except ValueError as reason:  # the origin is no critical point of this problem
            click.echo(f"no {name}: {reason}", err=True)


def _phase_diagram(given: dict[str, Any], output: Output, C: Any, starts: int | None) -> int:
    from ufm.landscape import phase_diagram

    if C is None:
        raise ValueError("C: expected a grid such as --C 0.2:2:20 with --phase-diagram, got nothing")
    for name in ("lam_W", "lam_H", "labels"):
        if name in given:
            raise ValueError(f"{name}: expected without --phase-diagram, whose penalties follow from --C")
    for name in SWEPT:
        if name in given and np.size(given[name]) == 1:
            given[name] = float(given[name][0])
    if starts is not None:
        given["starts"] = starts
    diagram = phase_diagram(given.pop("loss"), C=C, **given)
    tell(output, diagram)
    write(output, diagram.to_dict, diagram.plot, {"C": C})
    return 0
