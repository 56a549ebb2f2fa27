"""SHELF of solvers: each is two pure functions on pytrees, run by the one loop of `ufm._solve`.

    memory = solver.init(f, at)                      what the method remembers, at the start
    at, memory, flag = solver.step(f, at, memory)    one step from the point `at` = (y, f(y), grad f(y))

`f` maps a pytree of arrays to a scalar. A flag other than 0 says that the method cannot go on.
Solvers are frozen dataclasses of plain numbers: hashable, so that one configuration compiles once. One may
also have `patience`, the number of steps without progress beyond rounding after which the loop gives up.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from ufm import _checks
from ufm.solvers._base import (
    STALLED,
    Objective,
    OnSpheres,
    Point,
    Solver,
    Tree,
    WithDerivatives,
    axpy,
    dot,
    evaluate,
    noise,
    scale,
)
from ufm.solvers._first_order import FirstOrder, of_optax
from ufm.solvers._lbfgs import LBFGS
from ufm.solvers._newton import Newton
from ufm.solvers._projected import Bounded, ProjectedNewton

#: The shelf: tests, benchmarks and the command line iterate it.
SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Newton(),
        LBFGS(),
        FirstOrder("gd", partial(of_optax, "identity"), monotone=True),
        FirstOrder("momentum", partial(of_optax, "trace", 0.9)),
        FirstOrder("adam", partial(of_optax, "scale_by_adam"), learning_rate=1e-2, half_life=5000.0),
    )
}


def get(solver: str | Solver) -> Solver:
    """A solver from its name, or the solver itself.

    Raises:
        ValueError: an unknown name (the known ones are listed, the nearest suggested) or no solver.
    """
    if isinstance(solver, str):
        return SOLVERS[_checks.choice("solver", solver, SOLVERS)]
    if not (hasattr(solver, "init") and hasattr(solver, "step")):
        raise ValueError(
            f"solver: expected a name ({', '.join(SOLVERS)}) or an object with init and step, got {solver!r}"
        )
    return solver


def for_bounds(solver: str | Solver) -> Solver:
    """The solver for variables with lower bounds: Newton's method is projected, another must know bounds.

    Raises:
        ValueError: an unknown name, no solver, or one that does not know bounds.
    """
    method = get(solver)
    if type(method) is Newton:
        return ProjectedNewton(**dataclasses.asdict(method))
    if not getattr(method, "bounds", False):
        raise ValueError(
            f"solver: expected 'newton' where variables have bounds, got {method.name!r}, whose steps leave "
            "them; use solver='newton', or an object with bounds = True whose f is a solvers.Bounded"
        )
    return method


__all__ = [
    "LBFGS",
    "SOLVERS",
    "STALLED",
    "Bounded",
    "FirstOrder",
    "Newton",
    "Objective",
    "OnSpheres",
    "Point",
    "ProjectedNewton",
    "Solver",
    "Tree",
    "WithDerivatives",
    "axpy",
    "dot",
    "evaluate",
    "for_bounds",
    "get",
    "noise",
    "scale",
]
