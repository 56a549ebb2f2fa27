"""The stage Solution -> Report: every statement of `ufm.claims`, measured at a solution.

A statement whose assumption fails is "not applicable", with the reason, and never "holds".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ufm._claim import Claim, Claims
from ufm._pytree import replace
from ufm._sheet import digits
from ufm._solution import Solution
from ufm.claims import Facts, statements


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Claims):
    """Every claim of Theorem 1 at one solution.  Prints itself; `to_dict` is what `--json` writes."""

    solution: Solution
    claims: tuple[Claim, ...]

    def headline(self) -> tuple[str, str]:
        """The problem, and the solution in a line."""
        sol = self.solution
        measured = f"f = {digits(sol.objective)}, |grad f| = {float(sol.grad_norm):.1e}"
        return sol.problem.describe(), f"{measured}, {int(sol.steps)} steps"

    def to_dict(self) -> dict[str, Any]:
        """As JSON: passed, problem, solution, claims. This is what `ufm verify --json` prints."""
        return {
            "passed": self.passed,
            "problem": self.solution.problem.to_dict(),
            "solution": self.solution.to_dict(),
            "claims": [claim.to_dict() for claim in self.claims],
        }


def verify(sol: Solution) -> Report:
    """Measure every statement of Theorem 1 at a solution.

    Structure is compared with a relative tolerance of sqrt(eps), or ten times the distance |grad f|/mu to the
    nearest minimiser where that is larger (mu: the smallest positive curvature there), never above 1e-3.

    Raises:
        ValueError: no `Solution`, or a batch of them.  Where numbers are not finite every claim fails.

    Unequal class counts: Theorem 1's structure is not applicable, and what survives of it is measured instead
    (collapse within classes, simplexes inside the groups of classes of equal count, their orthogonality).

    Source: Zhou et al. 2022, Theorem 1, and docs/theory.md, section 1.7; the optimum from
    `theory.global_optimum`.

    >>> import ufm
    >>> report = ufm.verify(ufm.solve_ufm("ce", K=3, d=4, n=2))
    >>> report.passed, report["etf"].verdict, report["bias_zero"].verdict
    (True, 'holds', 'not applicable')
    """
    if not isinstance(sol, Solution):
        raise ValueError(f"sol: expected a Solution of solve or solve_ufm, got {type(sol).__name__}")
    if np.ndim(sol.objective) != 0:
        raise ValueError("sol: expected one solution, got a batch; index it first")
    rows = statements(sol.problem)
    if not all(np.isfinite(np.asarray(x)).all() for x in (sol.objective, *sol.params)):
        why = f"not finite: {sol.status.message}"
        return Report(sol, tuple(Claim(r.name, r.statement, None, None, "fails", why) for r in rows))
    facts = Facts(_of_all_samples(sol))
    return Report(sol, tuple(row.claim(facts) for row in rows))


def _of_all_samples(sol: Solution) -> Solution:
    """The solution with one column for each sample, which is what the statements are about."""
    if sol.problem.samples is None:
        return sol
    prob, params = sol.problem.expanded(sol.params)
    return replace(sol, problem=prob, params=params)
