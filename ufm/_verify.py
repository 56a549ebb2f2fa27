"""The stage Solution -> Report: every statement of `ufm.claims`, measured at a solution.

A statement whose assumption fails is "not applicable", with the reason, and never "holds".
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np

from ufm._printed import Printed
from ufm._solve import Solution
from ufm.claims import STATEMENTS, Facts, Statement, tol_objective

Verdict = Literal["holds", "fails", "not applicable"]


class Claim(NamedTuple):
    """One statement, measured."""

    name: str
    statement: str
    value: float | None  # a deviation, zero where the statement is exact
    tolerance: float | None
    verdict: Verdict
    why: str  # what decided


class Claims(Printed):
    """What every report of claims can do; a final class adds what they were measured on."""

    claims: tuple[Claim, ...]

    @property
    def passed(self) -> bool:
        """No claim fails."""
        return all(claim.verdict != "fails" for claim in self.claims)

    def __getitem__(self, name: str) -> Claim:
        """The claim of that name."""
        return {claim.name: claim for claim in self.claims}[name]


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Claims):
    """Every claim of Theorem 1 at one solution.  Prints itself; `to_dict` is what `--json` writes."""

    solution: Solution
    claims: tuple[Claim, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: passed, problem, solution, claims."""
        from ufm._report import report_dict

        return report_dict(self)


def verify(sol: Solution) -> Report:
    """Measure every statement of Theorem 1 at a solution.

    Structure is compared with a relative tolerance of sqrt(eps), or ten times the distance |grad f|/mu to the
    nearest minimiser where that is larger (mu: the smallest positive curvature there), never above 1e-3.

    Raises:
        ValueError: no `Solution`, or a batch of them.  Where numbers are not finite every claim fails.

    Source: Zhou et al. 2022, Theorem 1; the optimum from `theory.global_optimum`.

    >>> import ufm
    >>> report = ufm.verify(ufm.solve_ufm("ce", K=3, d=4, n=2))
    >>> report.passed, report["etf"].verdict, report["bias_zero"].verdict
    (True, 'holds', 'not applicable')
    """
    if not isinstance(sol, Solution):
        raise ValueError(f"sol: expected a Solution of solve or solve_ufm, got {type(sol).__name__}")
    if np.ndim(sol.objective) != 0:
        raise ValueError("sol: expected one solution, got a batch; index it first")
    if not all(np.isfinite(np.asarray(x)).all() for x in (sol.objective, *sol.params)):
        why = f"not finite: {sol.status.message}"
        return Report(sol, tuple(Claim(r.name, r.statement, None, None, "fails", why) for r in STATEMENTS))
    facts = Facts(sol)
    return Report(sol, tuple(_claim(row, facts) for row in STATEMENTS))


def _claim(row: Statement, facts: Facts) -> Claim:
    why_not = row.why_not(facts)
    if why_not:
        return Claim(row.name, row.statement, None, None, "not applicable", why_not)
    value, tolerance = row.measure(facts), row.tolerance(facts)
    if value <= tolerance:
        return Claim(row.name, row.statement, value, tolerance, "holds", _reason(row, facts))
    return Claim(row.name, row.statement, value, tolerance, "fails", _failure(row, facts))


def _reason(row: Statement, f: Facts) -> str:
    if row.name == "certificate":
        return str(f.sol.certificate.method)
    if row.name == "objective":
        return f"f* = {f.best.objective:.15g}: {f.best.structure} ({f.best.theorem}; {f.best.proved})"
    return ""


def _failure(row: Statement, f: Facts) -> str:
    """What is known about why."""
    if not f.sol.converged:
        return f"the solver did not converge: {f.sol.status.message}"
    if row.name == "certificate":
        return str(f.sol.certificate.why)
    best = f.optimum
    if best is not None and f.objective > best.objective + tol_objective(f):
        return (
            f"f = {f.objective:.15g} is {f.objective - best.objective:.3e} above {best.structure} "
            f"({best.proved}), which theory.global_optimum(prob).params attains"
        )
    if best is not None and f.objective < best.objective - tol_objective(f):
        below = best.objective - f.objective
        return f"f is {below:.3e} below theory's optimum: a counterexample; please report it"
    if best is not None and best.regime == "partial":
        return f"Theorem 1 is false here: the lowest point known is {best.structure} ({best.proved})"
    return f"the deviation exceeds {row.tolerance(f):.1e}"
