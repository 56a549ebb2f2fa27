"""The stage records -> something to read: plain text, rich tables, HTML, and dictionaries for JSON.

Every record becomes a `Sheet` first, which each format draws in its own way, so that a terminal, a notebook
and a doctest say the same.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from ufm import losses
from ufm._problem import Problem
from ufm._solve import Solution, Status
from ufm._sweep import Sweep, with_leaves

if TYPE_CHECKING:
    from rich.table import Table

    from ufm._verify import Claim, Claims, Report
    from ufm.landscape import Certificate

#: a sweep's table shows this many rows from each end
ENDS = 15
#: columns of plain text, where no terminal tells its own
WIDTH = 110


class Sheet(NamedTuple):
    """A record as words: facts (name, value) without a header, or a table with one."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str]


# --- the records as sheets ------------------------------------------------------------------------


def solution_sheet(sol: Solution) -> Sheet:
    """Problem, objective, gradient, status with its remedy, NC1-NC4, and the certificate if there is one."""
    if not _is_concrete(sol):
        return Sheet("Solution of a batch of problems, or inside a JAX transformation", (), [], [])
    nc = sol.metrics
    name = sol.status.name.lower().replace("_", " ")
    rows = [
        ("problem", facts(sol.problem)),
        ("objective", _digits(sol.objective)),
        ("|grad f|", f"{float(sol.grad_norm):.1e}  (tol {float(sol.tol):.0e})"),
        ("status", name if sol.converged else f"{name}: {sol.status.message}"),
        ("steps", f"{int(sol.steps)} of {sol.solver.name}" + (", reduced to class means" * sol.reduced)),
        ("NC1 NC2 NC3", "  ".join(f"{float(x):.1e}" for x in (nc.nc1, nc.nc2, nc.nc3))),
        ("certificate", _certificate(sol)),
    ]
    return Sheet("Solution", (), rows, [])


def _is_concrete(sol: Solution) -> bool:
    leaves = (sol.code, sol.objective, sol.problem.lam_W)
    return all(np.ndim(x) == 0 and not isinstance(x, jax.core.Tracer) for x in leaves)


def _digits(value: Any) -> str:
    """The digits that the dtype holds."""
    array = np.asarray(value)
    return f"{float(array):.{np.finfo(array.dtype).precision}g}"


def _certificate(sol: Solution) -> str:
    found = vars(sol).get("certificate")  # a cached property: printing computes nothing
    if found is None:
        return "not computed; sol.certificate bounds f - f*"
    return f"{found.verdict}, f - f* <= {float(found.gap):.1e}"


def sweep_sheet(sweep: Sweep) -> Sheet:
    """One row a point of the grid: the best objective over the seeds, the worst gradient, who converged."""
    points = list(np.ndindex(sweep.shape[1:]))
    shown = points if len(points) <= 2 * ENDS else [*points[:ENDS], *points[-ENDS:]]
    axes = merged_axes(sweep)
    rows = [_sweep_row(sweep, axes, point) for point in shown]
    if len(shown) < len(points):
        rows.insert(ENDS, ("...", *[""] * (len(rows[0]) - 1)))
    header = (*axes, "objective", "spread", "f - theory", "|grad f|", "steps", "converged")
    done = int(sweep.converged.sum())
    title = f"Sweep of {sweep.converged.size} problems, {done} converged"
    count = np.size(sweep.seeds)
    notes = [
        f"{count} seed{'s' * (count > 1)}, {sweep.solver.name}; {facts(sweep.problem, without=sweep.swept)}"
    ]
    return Sheet(title, header, rows, notes + _failures(sweep))


def problem_at(sweep: Sweep, values: dict[str, Any]) -> Problem:
    """The problem of a sweep with those of its swept values."""
    return with_leaves(sweep.problem, values)


def merged_axes(sweep: Sweep) -> dict[str, np.ndarray]:
    """The swept values by name; those that are equal everywhere under one name, "lam_W = lam_H"."""
    merged: dict[str, np.ndarray] = {}
    for name, values in sweep.swept.items():
        twin = next((other for other, v in merged.items() if np.array_equal(v, values)), None)
        if twin is not None:
            merged.pop(twin)
        merged[f"{twin} = {name}" if twin else name] = np.asarray(values)
    return merged


def _sweep_row(sweep: Sweep, axes: dict[str, np.ndarray], point: tuple[int, ...]) -> tuple[str, ...]:
    each: Any = (slice(None), *point)
    f = np.asarray(sweep.objective)[each]
    best, converged = float(f.min()), sweep.converged[each]
    optimum = theory_objective(problem_at(sweep, {k: np.asarray(v)[point] for k, v in sweep.swept.items()}))
    return (
        *(f"{values[point]:.6g}" for values in axes.values()),
        f"{best:.12g}",
        f"{float(f.max()) - best:.1e}",
        "-" if optimum is None else f"{best - optimum:.1e}",
        f"{np.asarray(sweep.grad_norm)[each].max():.1e}",
        f"{np.median(np.asarray(sweep.steps)[each]):g}",
        f"{int(converged.sum())}/{converged.size}",
    )


def _failures(sweep: Sweep) -> list[str]:
    """One line for each way of not converging."""
    codes, counts = np.unique(sweep.status[~sweep.converged], return_counts=True)
    pairs = zip(codes, counts, strict=True)
    return [
        f"{n} {Status(int(code)).name.lower().replace('_', ' ')}: {Status(int(code)).message}"
        for code, n in pairs
    ]


def report_sheet(report: Report) -> Sheet:
    """One row a claim that was measured; below, the reasons of those that fail or are not applicable."""
    sol = report.solution
    remark = f"f = {_digits(sol.objective)}, |grad f| = {float(sol.grad_norm):.1e}, {int(sol.steps)} steps"
    return claims_sheet(report, facts(sol.problem), remark)


def claims_sheet(report: Claims, title: str, remark: str) -> Sheet:
    """Claims as a table under a title, with a remark on what they were measured at."""
    rows = [
        (claim.name, claim.statement, _measured(claim.value), _measured(claim.tolerance), claim.verdict)
        for claim in report.claims
        if claim.verdict != "not applicable"
    ]
    notes = [
        *_reasons(report, "not applicable"),
        *_reasons(report, "fails"),
        remark,
        f"{'passed' if report.passed else 'FAILED'}: {tally([report])}",
    ]
    return Sheet(title, ("claim", "statement", "measured", "tolerance", "verdict"), rows, notes)


def _reasons(report: Claims, verdict: str) -> list[str]:
    """The claims of one verdict, those with the same reason together."""
    names: dict[str, list[str]] = {}
    for claim in report.claims:
        if claim.verdict == verdict:
            names.setdefault(claim.why, []).append(claim.name)
    return [f"{verdict}: {', '.join(those)} - {why}" for why, those in names.items()]


def tally(reports: Sequence[Claims]) -> str:
    """How many claims hold, fail and are not applicable."""
    verdicts: list[str] = [claim.verdict for report in reports for claim in report.claims]
    words = {"holds": "hold", "fails": "fail", "not applicable": "not applicable"}
    return ", ".join(f"{verdicts.count(verdict)} {word}" for verdict, word in words.items())


def facts(prob: Problem, without: Iterable[str] = ()) -> str:
    """The problem in a line, without the values of those names."""
    facts = repr(prob).removeprefix("Problem(").removesuffix(")")
    for name in without:
        facts = re.sub(rf"(, )?\b{name}=[^,)]*", "", facts)
    return facts.replace("()", "").replace("(, ", "(")


def _measured(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def theory_objective(prob: Problem) -> float | None:
    """The optimum in closed form, or None where none is known."""
    from ufm import theory

    try:
        return float(theory.global_optimum(prob).objective)
    except theory.NoClosedForm:
        return None


def sheet(record: Any) -> Sheet:
    """Any of the package's records as a sheet; those of the landscape make their own."""
    if hasattr(record, "sheet"):
        made: Sheet = record.sheet()
        return made
    if isinstance(record, Solution):
        return solution_sheet(record)
    return sweep_sheet(record) if isinstance(record, Sweep) else report_sheet(record)


# --- the formats ----------------------------------------------------------------------------------

_STYLES = {"holds": "green", "converged": "green", "fails": "bold red", "not applicable": "dim"}
_NUMERIC = frozenset(
    [
        *("measured", "tolerance", "objective", "spread", "f - theory", "|grad f|", "steps"),
        *("index", "zeros", "smallest", "rank", "hits"),
    ]
)


def _table(sheet: Sheet, ascii_only: bool) -> Table:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    rule = "--" if ascii_only else "──"
    blank = "    \n"
    lines = Box(blank * 2 + f" {rule} \n" + blank * 5, ascii=ascii_only)
    table = Table(
        title=Text(sheet.title, style="bold"),
        title_justify="left",
        caption=Text("\n".join(sheet.notes)) if sheet.notes else None,
        caption_justify="left",
        show_header=bool(sheet.header),
        box=lines if sheet.header else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if sheet.header else 2, 0, 0),
    )
    for name in sheet.header or ("", ""):
        right = name in _NUMERIC
        flexible = name in ("statement", "")
        table.add_column(name, justify="right" if right else "left", no_wrap=not flexible, overflow="fold")
    for row in sheet.rows:
        # `Text`, because a plain string is read as markup
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


def as_table(record: Any) -> Table:
    """Any record for `rich.print`."""
    return _table(sheet(record), ascii_only=False)


def as_text(record: Any) -> str:
    """A record as plain ASCII lines, without colours, for `print` and doctests."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(_table(sheet(record), ascii_only=True))
    lines = (line.rstrip() for line in captured.get().splitlines())
    return "\n".join(line for line in lines if line)


def as_html(record: Any) -> str:
    """A record as an HTML table, for notebooks and reports; no script, no style beyond alignment."""
    title, header, rows, notes = sheet(record)
    head = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    lines = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f"<div><strong>{html.escape(title)}</strong><table>{top}<tbody>{body}</tbody></table>{lines}</div>"


def _cell(text: str) -> str:
    inner = html.escape(text).replace("\n", "<br>")
    inner = f"<strong>{inner}</strong>" if text == "fails" else inner
    return f"<td style='text-align:left'>{inner}</td>"


# --- JSON -----------------------------------------------------------------------------------------


def dumps(tree: Any) -> str:
    """Strict JSON: a NaN or infinity that slipped through is an error here and never a file."""
    return json.dumps(tree, allow_nan=False, indent=2)


def finite(value: Any) -> float | None:
    """`value` as a float, or None where JSON has no number for it."""
    number = float(value)
    return number if math.isfinite(number) else None


def problem_dict(prob: Problem) -> dict[str, Any]:
    """A problem as JSON: `n` is null and `counts` are given where the classes are not balanced."""
    facts: dict[str, Any] = {"loss": losses.known_as(prob.loss)}
    if facts["loss"] == "custom":
        facts["function"] = repr(prob.loss)
    facts |= {name: finite(value) for name, value in prob.loss.hyperparameters.items()}
    facts |= {"K": prob.K, "d": prob.d, "N": prob.N, "n": prob.n}
    if prob.n is None:
        facts["counts"] = prob.counts.tolist()
    return facts | {
        "lam_W": finite(prob.lam_W),
        "lam_H": finite(prob.lam_H),
        "lam_b": finite(prob.lam_b),
        "bias": prob.bias,
    }


def solution_dict(sol: Solution) -> dict[str, Any]:
    """A solution as JSON, without its arrays; `why` gives the reason of each null."""
    nc = sol.metrics
    numbers = {"objective": sol.objective, "grad_norm": sol.grad_norm}
    metrics = {"nc1": nc.nc1, "nc2": nc.nc2, "nc3": nc.nc3, "nc4": nc.nc4}
    facts: dict[str, Any] = {name: finite(value) for name, value in numbers.items()}
    facts |= {
        "tol": float(sol.tol),
        "converged": sol.converged,
        "status": sol.status.name.lower(),
        "message": sol.status.message,
        "steps": int(sol.steps),
        "solver": sol.solver.name,
        "reduced": sol.reduced,
    }
    facts |= {name: finite(value) for name, value in metrics.items()}
    reasons = {
        name: _reason(name, value) for name, value in (numbers | metrics).items() if facts[name] is None
    }
    return facts | ({"why": reasons} if reasons else {})


def _reason(name: str, value: Any) -> str:
    if name == "nc1" and float(value) == math.inf:
        return "infinite: the class means are all equal up to rounding"
    return f"not finite: {float(value)}"


def certificate_dict(cert: Certificate) -> dict[str, Any]:
    """A certificate as JSON."""
    return {
        "verdict": cert.verdict,
        "gap": finite(cert.gap),
        "lower_bound": finite(cert.lower_bound),
        "method": cert.method,
        "why": cert.why,
    }


def theory_dict(prob: Problem) -> dict[str, Any]:
    """The optimum in closed form as JSON; nulls and the reason where none is known."""
    from ufm import theory

    try:
        best = theory.global_optimum(prob)
    except theory.NoClosedForm as error:
        return {"objective": None, "why": str(error)}
    return {
        "objective": best.objective,
        "margin": best.margin,
        "regime": best.regime,
        "structure": best.structure,
        "proved": best.proved,
        "theorem": best.theorem,
        "why": best.remark,
    }


def report_dict(report: Report) -> dict[str, Any]:
    """A verification as JSON: what `ufm verify --json` prints."""
    return {
        "passed": report.passed,
        "problem": problem_dict(report.solution.problem),
        "solution": solution_dict(report.solution),
        "claims": [claim_dict(claim) for claim in report.claims],
    }


def claim_dict(claim: Claim) -> dict[str, Any]:
    facts = claim._asdict()
    for name in ("value", "tolerance"):
        number = facts[name]
        if number is not None and finite(number) is None:
            facts |= {name: None, "why": f"{claim.why}; {name} is {number}".removeprefix("; ")}
    return facts


def sweep_dict(sweep: Sweep) -> dict[str, Any]:
    """A sweep as JSON: one record for every seed and point of the grid, with the theory's optimum."""
    base = problem_dict(sweep.problem)
    return {
        "converged": bool(sweep.converged.all()),
        "problem": {name: value for name, value in base.items() if name not in sweep.swept},
        "solver": sweep.solver.name,
        "reduced": sweep.reduced,
        "shape": list(sweep.shape),
        "records": [_sweep_record(sweep, index) for index in np.ndindex(sweep.shape)],
    }


def _sweep_record(sweep: Sweep, index: tuple[int, ...]) -> dict[str, Any]:
    seed = int(np.ravel(sweep.seeds)[index[0]])
    values = {name: float(np.asarray(v)[index[1:]]) for name, v in sweep.swept.items()}
    return {
        "seed": seed,
        **values,
        "objective": finite(np.asarray(sweep.objective)[index]),
        "grad_norm": finite(np.asarray(sweep.grad_norm)[index]),
        "steps": int(np.asarray(sweep.steps)[index]),
        "status": Status(int(sweep.status[index])).name.lower(),
    }
