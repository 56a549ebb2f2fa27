"""A row of the shelf of statements: what all of them say where they fail."""

from __future__ import annotations

import functools

from ufm._claim import Statement
from ufm.claims._measures import Facts, tol_objective


def failure(f: Facts, tolerance: float) -> str:
    """What is known of the reason why a statement fails."""
    if not f.sol.converged:
        return f"the solver did not converge: {f.sol.status.message}"
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
    return f"the deviation exceeds {tolerance:.1e}"


#: a row, with this reason for a failure
Row = functools.partial(Statement[Facts], failure=failure)
