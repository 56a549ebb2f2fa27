"""What a solver returns: where it stopped, why, and the trajectory if it was recorded."""

from __future__ import annotations

import enum
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ufm import metrics, solvers
from ufm._figure import plot
from ufm._problem import Params, Problem, Variables
from ufm._pytree import pytree_dataclass, static
from ufm._sheet import Printed, Sheet, digits, finite
from ufm.solvers import Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ufm.hessian.certificate import Certificate


class Status(enum.IntEnum):
    """Why a solver stopped."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    STALLED = solvers.STALLED
    NON_FINITE = 4
    NOT_EXPANDABLE = 5
    STRICT_SADDLE = 6

    @property
    def message(self) -> str:
        """Cause and remedy."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "the gradient norm is within tol",
    Status.MAX_STEPS: "max_steps was reached; raise it, start from this solution, or try solver='newton'",
    Status.STALLED: "no step improves: the gradient is at its rounding floor; loosen tol (or, in "
    "float32, use float64)",
    Status.NON_FINITE: "the objective or gradient is not finite; the last finite point is kept: try a "
    "smaller scale of the start, or check the loss at large logits",
    Status.NOT_EXPANDABLE: "the class-mean solution, expanded, is no critical point of the full problem; "
    "solve with reduced=False",
    Status.STRICT_SADDLE: "the gradient is within tol, but the Hessian has a negative eigenvalue: this is a "
    "strict saddle and no minimum; solve with escape=True and more max_steps",
}


class History(NamedTuple):
    """A trajectory, one row every `stride` steps (rows: T)."""

    step: Int[Array, "*sweep T"]
    objective: Float[Array, "*sweep T"]
    grad_norm: Float[Array, "*sweep T"]  # of (W, H, b) in the problem's own coordinates
    nc1: Float[Array, "*sweep T"]
    nc2: Float[Array, "*sweep T"]
    nc3: Float[Array, "*sweep T"]


@pytree_dataclass
class Solution(Printed):
    """Where a solver stopped, why, and the problem it stands for.  Prints and plots itself."""

    problem: Problem
    params: Variables  # of the problem's model
    objective: Any  # f
    grad_norm: Any  # |grad f|, Euclidean over (W, H, b), less what bounds hold back
    code: Any  # the `Status` as a number
    steps: Any
    tol: Any
    history: History | None
    solver: Solver = static()
    reduced: bool = static()
    projected: bool = static(default=False)  # the start was infeasible; the nearest feasible point was taken

    @property
    def effective(self) -> Params:
        """Classifier, features and bias; where both factors are free these are the variables themselves."""
        return self.problem.model.effective(self.problem, self.params)

    @property
    def W(self) -> Float[Array, "K d"]:
        """Classifier, one row a class."""
        return self.effective.W

    @property
    def H(self) -> Float[Array, "d N"]:
        """Features, one column a sample."""
        return self.effective.H

    @property
    def b(self) -> Float[Array, " K"]:
        """Bias."""
        return self.effective.b

    @property
    def status(self) -> Status:
        """Why the solver stopped; `status.message` has cause and remedy."""
        return Status(int(self.code))

    @property
    def converged(self) -> bool:
        """The gradient norm is within `tol`."""
        return self.status is Status.CONVERGED

    @functools.cached_property
    def metrics(self) -> metrics.NeuralCollapse:
        """NC1-NC4 of the solution, as the paper defines them."""
        return metrics.of_params(self.effective, self.problem.labels)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """A rigorous upper bound on f - f* here (`landscape.certificate`)."""
        from ufm.hessian.certificate import certificate

        return certificate(self.problem, self.params)

    def sheet(self, certificate: Certificate | None = None) -> Sheet:
        """Problem, objective, gradient norm, status with its remedy, NC1-NC3, and a certificate if given."""
        if not self._is_concrete():
            return Sheet("Solution of a batch of problems, or inside a JAX transformation", (), [], [])
        name, nc = self.status.name.lower().replace("_", " "), self.metrics
        rows = [
            ("problem", self.problem.describe()),
            ("objective", digits(self.objective)),
            ("|grad f|", f"{float(self.grad_norm):.1e}  (tol {float(self.tol):.0e})"),
            ("status", name if self.converged else f"{name}: {self.status.message}"),
            *([("start", "infeasible: the nearest feasible point was taken")] * self.projected),
            ("steps", f"{int(self.steps)} of {self.solver.name}" + ", reduced to class means" * self.reduced),
            ("NC1 NC2 NC3", "  ".join(f"{float(x):.1e}" for x in (nc.nc1, nc.nc2, nc.nc3))),
            ("certificate", "sol.certificate bounds f - f*" if certificate is None else certificate.brief()),
        ]
        return Sheet("Solution", (), rows, [])

    def _is_concrete(self) -> bool:
        leaves = (self.code, self.objective, self.problem.lam_W)
        return all(np.ndim(x) == 0 and not isinstance(x, jax.core.Tracer) for x in leaves)

    def to_dict(self) -> dict[str, Any]:
        """The solution as JSON, without its arrays; `why` gives the reason of each null."""
        nc = self.metrics
        numbers = {"objective": self.objective, "grad_norm": self.grad_norm}
        measured = {"nc1": nc.nc1, "nc2": nc.nc2, "nc3": nc.nc3, "nc4": nc.nc4}
        data: dict[str, Any] = {name: finite(value) for name, value in numbers.items()}
        data |= {
            "tol": float(self.tol),
            "converged": self.converged,
            "status": self.status.name.lower(),
            "message": self.status.message,
            "steps": int(self.steps),
            "solver": self.solver.name,
            "reduced": self.reduced,
        } | ({"projected": True} if self.projected else {})
        data |= {name: finite(value) for name, value in measured.items()}
        why = {n: _why_null(n, x) for n, x in (numbers | measured).items() if data[n] is None}
        return data | ({"why": why} if why else {})

    def plot(self) -> Figure:
        """A matplotlib figure: Gram matrices of W and H, singular values, and the trajectory if recorded."""
        return plot(self)


def _why_null(name: str, value: Any) -> str:
    if name == "nc1" and float(value) == math.inf:
        return "infinite: the class means are all equal up to rounding"
    return f"not finite: {float(value)}"
