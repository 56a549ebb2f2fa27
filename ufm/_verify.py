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
from ufm.theory.geometry import GroupGeometry, measured_geometry


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Claims):
    """Every claim of Theorem 1 at one solution.  Prints itself; `to_dict` is what `--json` writes."""

    solution: Solution
    claims: tuple[Claim, ...]
    #: norms and angles of the groups of classes, measured and at the optimum, where counts or weights differ
    geometry: tuple[GroupGeometry, GroupGeometry] | None = None

    def headline(self) -> tuple[str, str]:
        """The problem, and the solution in a line."""
        sol = self.solution
        measured = f"f = {digits(sol.objective)}, |grad f| = {float(sol.grad_norm):.1e}"
        remark = f"{measured}, {int(sol.steps)} steps"
        if self.geometry is not None:
            here, best = (found.lines() for found in self.geometry)
            each = [f"  {line}\n  theory: {other}" for line, other in zip(here, best, strict=True)]
            remark = "\n".join([remark, "groups of classes:", *each])
        return sol.problem.describe(), remark

    def to_dict(self) -> dict[str, Any]:
        """As JSON: passed, problem, solution, claims. This is what `ufm verify --json` prints."""
        return {
            "passed": self.passed,
            "problem": self.solution.problem.to_dict(),
            "solution": self.solution.to_dict(),
            "claims": [claim.to_dict() for claim in self.claims],
        } | self._geometry_to_dict()

    def _geometry_to_dict(self) -> dict[str, Any]:
        if self.geometry is None:
            return {}
        here, best = (found.to_dict() for found in self.geometry)
        return {"geometry": {"measured": here, "theory": best}}


def verify(sol: Solution) -> Report:
    """Measure every statement of Theorem 1 at a solution.

    Structure is compared with a relative tolerance of sqrt(eps), or ten times the distance |grad f|/mu to the
    nearest minimiser where that is larger (mu: the smallest positive curvature there), never above 1e-3.

    Raises:
        ValueError: no `Solution`, or a batch of them.  Where numbers are not finite every claim fails.

    Unequal class counts: Theorem 1's structure is not applicable, and what survives of it is measured instead
    (collapse within classes, simplexes inside the groups of classes of equal count and weight, their
    orthogonality, norms and angles), with the geometry in numbers beside theory's in `.geometry`.

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
    return Report(sol, tuple(row.claim(facts) for row in rows), _geometry(facts))


def _geometry(facts: Facts) -> tuple[GroupGeometry, GroupGeometry] | None:
    """Measured and at the optimum, where the classes are not balanced and theory has an optimum."""
    prob, best = facts.prob, facts.optimum
    if prob.n is not None or best is None or not prob.model.bilinear or best.regime == "trivial":
        return None
    return facts.geometry, measured_geometry(prob, best.params)


def _of_all_samples(sol: Solution) -> Solution:
    """The solution with one column for each sample, which is what the statements are about."""
    if sol.problem.samples is None:
        return sol
    prob, params = sol.problem.expanded(sol.params)
    return replace(sol, problem=prob, params=params)
