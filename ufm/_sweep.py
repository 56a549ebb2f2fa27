"""The stage problems -> Sweep: seeds x penalties x hyperparameters in one compiled program."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import _checks, _compile, losses
from ufm._figure import plot
from ufm._precision import is_double
from ufm._problem import Params, Problem, Variables, check_penalties, init
from ufm._progress import Progress
from ufm._pytree import pytree_dataclass, static
from ufm._second_order import may_be_saddle
from ufm._sheet import Printed, Sheet, finite
from ufm._solution import Solution, Status
from ufm._solve import Options, Outcome, check_reduced, method_of, run_once, to_second_order
from ufm._view import traced_basis
from ufm.solvers import Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: a printed table shows this many rows from each end of the grid
ENDS = 15
#: problems that one call of the compiled program solves: enough to hide its dispatch, few enough to share
#: among the cores and to show progress
CHUNK = 32
_MEASURED = ("params", "objective", "grad_norm", "code", "steps")


@pytree_dataclass
class Sweep(Printed):
    """Solutions of a family of problems: every leaf has the leading axes `shape` = (seeds, *grid).

    `sweep[i, j]` is one `Solution`.
    """

    problem: Problem  # before its swept leaves are exchanged
    params: Variables  # of the problem's model
    objective: Any
    grad_norm: Any
    code: Any
    steps: Any
    tol: Any
    seeds: Any  # (seeds,)
    swept: dict[str, Any]  # name -> values, broadcast to the grid
    solver: Solver = static()
    reduced: bool = static()

    @property
    def shape(self) -> tuple[int, ...]:
        """(seeds, *grid)."""
        return tuple(np.shape(self.code))

    @property
    def effective(self) -> Params:
        """Classifiers, features and biases; where both factors are free, the variables themselves."""
        if self.problem.model.bilinear:
            return self.params
        effective = partial(self.problem.model.effective, self.problem)
        for _ in self.shape:
            effective = jax.vmap(effective)
        return effective(self.params)

    @property
    def W(self) -> Float[Array, "*sweep K d"]:
        """Classifiers."""
        return self.effective.W

    @property
    def H(self) -> Float[Array, "*sweep d N"]:
        """Features."""
        return self.effective.H

    @property
    def b(self) -> Float[Array, "*sweep K"]:
        """Biases."""
        return self.effective.b

    @property
    def status(self) -> np.ndarray:
        """The `Status` of each problem, as numbers."""
        return np.asarray(self.code)

    @property
    def converged(self) -> np.ndarray:
        """Which problems converged."""
        return self.status == Status.CONVERGED

    def __getitem__(self, index: Any) -> Solution:
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != len(self.shape):
            raise IndexError(f"expected {len(self.shape)} indices (seed and grid), got {index!r}")
        problem = with_leaves(self.problem, {k: np.asarray(v)[index[1:]] for k, v in self.swept.items()})
        fields = {name: getattr(self, name) for name in _MEASURED}
        picked = jax.tree.map(lambda x: x[index], fields)
        return Solution(
            problem=problem, tol=self.tol, history=None, solver=self.solver, reduced=self.reduced, **picked
        )

    def problem_at(self, values: Mapping[str, Any]) -> Problem:
        """The problem with these values of the swept leaves."""
        return with_leaves(self.problem, dict(values))

    def merged_axes(self) -> dict[str, np.ndarray]:
        """The swept values by name; those that agree everywhere share one name, "lam_W = lam_H"."""
        merged: dict[str, np.ndarray] = {}
        for name, values in self.swept.items():
            twin = next((other for other, v in merged.items() if np.array_equal(v, values)), None)
            if twin is not None:
                merged.pop(twin)
            merged[f"{twin} = {name}" if twin else name] = np.asarray(values)
        return merged

    def sheet(self) -> Sheet:
        """One row for each point of the grid: the best objective over the seeds, the worst gradient."""
        points = list(np.ndindex(self.shape[1:]))
        shown = points if len(points) <= 2 * ENDS else [*points[:ENDS], *points[-ENDS:]]
        axes = self.merged_axes()
        rows = [self._row(axes, point) for point in shown]
        if len(shown) < len(points):
            rows.insert(ENDS, ("...", *[""] * (len(rows[0]) - 1)))
        header = (*axes, "objective", "spread", "f - theory", "|grad f|", "steps", "converged")
        title = f"Sweep of {self.converged.size} problems, {int(self.converged.sum())} converged"
        count = np.size(self.seeds)
        fixed = self.problem.describe(without=self.swept)
        notes = [f"{count} seed{'s' * (count > 1)}, {self.solver.name}; {fixed}", *self._failures()]
        return Sheet(title, header, rows, notes)

    def _row(self, axes: dict[str, np.ndarray], point: tuple[int, ...]) -> tuple[str, ...]:
        each: Any = (slice(None), *point)
        f = np.asarray(self.objective)[each]
        best, converged = float(f.min()), self.converged[each]
        problem = self.problem_at({name: np.asarray(values)[point] for name, values in self.swept.items()})
        optimum = _theory_objective(problem)
        return (
            *(f"{values[point]:.6g}" for values in axes.values()),
            f"{best:.12g}",
            f"{float(f.max()) - best:.1e}",
            "-" if optimum is None else f"{best - optimum:.1e}",
            f"{np.asarray(self.grad_norm)[each].max():.1e}",
            f"{np.median(np.asarray(self.steps)[each]):g}",
            f"{int(converged.sum())}/{converged.size}",
        )

    def _failures(self) -> list[str]:
        """One line for each reason not to converge."""
        codes, counts = np.unique(self.status[~self.converged], return_counts=True)
        found = [(Status(int(code)), n) for code, n in zip(codes, counts, strict=True)]
        return [f"{n} {status.name.lower().replace('_', ' ')}: {status.message}" for status, n in found]

    def to_dict(self) -> dict[str, Any]:
        """The sweep as JSON: one record for every seed and point of the grid."""
        problem = self.problem.to_dict()
        return {
            "converged": bool(self.converged.all()),
            "problem": {name: value for name, value in problem.items() if name not in self.swept},
            "solver": self.solver.name,
            "reduced": self.reduced,
            "shape": list(self.shape),
            "records": [self._record(index) for index in np.ndindex(self.shape)],
        }

    def _record(self, index: tuple[int, ...]) -> dict[str, Any]:
        return {
            "seed": int(np.ravel(self.seeds)[index[0]]),
            **{name: float(np.asarray(values)[index[1:]]) for name, values in self.swept.items()},
            "objective": finite(np.asarray(self.objective)[index]),
            "grad_norm": finite(np.asarray(self.grad_norm)[index]),
            "steps": int(np.asarray(self.steps)[index]),
            "status": Status(int(self.status[index])).name.lower(),
        }

    def plot(self) -> Figure:
        """A matplotlib figure of objective and NC metrics over the grid."""
        return plot(self)


def _theory_objective(prob: Problem) -> float | None:
    """The optimum in closed form, or None where none is known."""
    from ufm import theory  # here, because it needs scipy, which `import ufm` does not

    try:
        return float(theory.global_optimum(prob).objective)
    except theory.NoClosedForm:
        return None


def with_leaves(prob: Problem, leaves: dict[str, Any]) -> Problem:
    """`prob` with some penalties (its own leaves) and hyperparameters (its loss's) exchanged."""
    own = {k: v for k, v in leaves.items() if k in _PENALTIES}
    hyper = {k: v for k, v in leaves.items() if k not in _PENALTIES}
    return prob.replace(loss=losses.exchanged(prob.loss, **hyper), **own)


_PENALTIES = ("lam_W", "lam_H", "lam_b")


def _grid(prob: Problem, axes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The axes, each value checked by the constructor that it is meant for, broadcast to one shape."""
    loss: Any = losses.without_weights(prob.loss)
    loss = loss.given if isinstance(loss, losses.Frozen) else loss
    known = (*_PENALTIES, *loss.hyperparameters)
    arrays = {}
    for name, values in axes.items():
        arrays[_checks.choice("axis", name, known)] = array = _axis(name, values)
        for value in array.ravel().tolist():
            if name in _PENALTIES:
                check_penalties(
                    **{k: value if k == name else getattr(prob, k) for k in _PENALTIES}, bias=prob.bias
                )
            else:
                dataclasses.replace(loss, **{name: value})
    try:
        broadcast = np.broadcast_arrays(*arrays.values())
    except ValueError:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in arrays.items())
        raise ValueError(
            f"{', '.join(arrays)}: expected axes that broadcast against each other, got {shapes}; add axes "
            "as in lam_W=grid[:, None], lam_H=grid[None, :] for a product"
        ) from None
    return dict(zip(arrays, broadcast, strict=True))


def _axis(name: str, values: Any) -> np.ndarray:
    """The numbers of one axis."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # rows of different lengths, a tracer
        array = np.array(None)
    if array.dtype.kind not in "fiu" and array.size:
        raise ValueError(
            f"{name}: expected an axis of numbers (an array, or nested lists of equal lengths), got "
            f"{values!r}"
        )
    if array.size == 0:
        raise ValueError(
            f"{name}: expected an axis of at least one value, got none (shape {array.shape}); leave {name} "
            "out to sweep without it"
        )
    return array.astype(np.float64)


def _seeds(values: Any) -> np.ndarray:
    """The seeds as a vector of integers."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim > 1:
        raise ValueError(f"seeds: expected a range or a vector of integers >= 0, got {values!r}")
    if array.size == 0:
        raise ValueError("seeds: expected at least one seed, got none; range(10) are ten")
    return np.array([_checks.seed("seeds", seed) for seed in array.ravel().tolist()])


def _workers() -> concurrent.futures.ThreadPoolExecutor:
    """One thread a core: the compiled program holds no lock. An accelerator runs one program at a time."""
    cores = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    return concurrent.futures.ThreadPoolExecutor(cores)


def _chunks(seeds: np.ndarray, flat: dict[str, np.ndarray]) -> Iterator[tuple[Any, Any]]:
    """Equal chunks (the last padded with its last problem), so that one program serves all."""
    size = min(CHUNK if jax.default_backend() == "cpu" else 32 * CHUNK, seeds.size)
    for start in range(0, seeds.size, size):
        index = np.minimum(np.arange(start, start + size), seeds.size - 1)
        yield seeds[index], {name: values[index] for name, values in flat.items()}


@partial(_compile.jit, static_argnames=("solver", "reduced", "together"))
def _program(
    prob: Problem, scale: Any, seeds: Any, leaves: dict[str, Any], *, tol: Any, last: Any, solver: Solver,
    reduced: bool, together: bool,
) -> Outcome:  # fmt: skip
    def drawn(seed: Array) -> tuple[Variables, Any]:
        start = init(prob, seed=seed, scale=scale)
        return start, traced_basis(prob, start, solver, reduced)

    def one(start: tuple[Variables, Any], leaf: dict[str, Any]) -> Outcome:
        return run_once(with_leaves(prob, leaf), *start, tol, last, solver, reduced)

    def after(before: tuple[Array, Any], each: tuple[Array, dict[str, Any]]) -> tuple[Any, Outcome]:
        """Neighbours on the grid mostly have one seed: its start is drawn once."""
        seed, leaf = each
        start = jax.lax.cond(seed == before[0], lambda: before[1], lambda: drawn(seed))
        return (seed, start), one(start, leaf)

    if together:
        return jax.vmap(lambda seed, leaf: one(drawn(seed), leaf))(seeds, leaves)
    return jax.lax.scan(after, (seeds[0], drawn(seeds[0])), (seeds, leaves))[1]


def solve_sweep(
    prob: Problem,
    *,
    seeds: ArrayLike | range = range(1),
    scale: float = 0.1,
    solver: str | Solver = "newton",
    tol: float = 1e-10,
    max_steps: int | None = None,
    reduced: bool = False,
    escape: bool = True,
    progress: bool | None = None,
    **axes: Any,
) -> Sweep:
    """Solve `prob` from every seed for every point of a grid of penalties and hyperparameters.

    `axes` are arrays named lam_W, lam_H, lam_b or a hyperparameter of the loss; they are broadcast against
    each other to the grid, as numpy does: equal shapes vary together, `lam_W=grid[:, None], lam_H=grid`
    makes a product. The result has the leading axes (seeds, *grid).

    One program is compiled for a shape of problem and serves every value. On a CPU problems run one after
    the other on each core (`lax.map`), on a GPU together (`vmap`): measured, a batch on a CPU waits for its
    slowest member and loses the matrix products' speed.

    Raises:
        ValueError: an unknown axis, one without values or with something that is not a number, a value
            outside its range, axes that do not broadcast, or no seeds.

    >>> import numpy as np, ufm
    >>> prob = ufm.Problem.balanced("ce", K=3, d=4, n=2)
    >>> sols = ufm.solve_sweep(prob, seeds=range(2), lam_W=np.array([1e-3, 1e-2, 1e-1]))
    >>> sols.shape, bool(sols.converged.all())
    ((2, 3), True)
    """
    method = method_of(prob, solver)
    tol = float(_checks.real("tol", tol, above=0.0))
    max_steps = method.max_steps if max_steps is None else _checks.integer("max_steps", max_steps, least=1)
    check_reduced(prob, reduced)
    seeds = _seeds(seeds)
    scale = _checks.real("scale", scale, above=0.0)
    grid = _grid(prob, axes)
    shape = (seeds.size, *np.shape(next(iter(grid.values()), 0.0)))
    flat = {name: np.broadcast_to(v, shape).ravel() for name, v in grid.items()}
    each = np.broadcast_to(seeds.reshape(-1, *[1] * (len(shape) - 1)), shape).ravel()
    program = partial(
        _program, prob, scale, tol=tol, last=max_steps, solver=method, reduced=reduced,
        together=jax.default_backend() != "cpu",
    )  # fmt: skip
    parts: list[Outcome] = []
    chunks, double = list(_chunks(each, flat)), is_double()

    def solved(chunk: tuple[Any, Any]) -> Any:
        with jax.enable_x64(double):  # a thread of its own does not have its caller's precision
            return jax.device_get(program(*chunk))

    with Progress("sweep", each.size, progress, even=True) as bar, _workers() as pool:
        bar.update(0, "compiling")
        for part in pool.map(solved, chunks):
            parts.append(part)
            bar.update(min(len(parts) * len(chunks[0][0]), each.size), "problems")
    joined = jax.tree.map(lambda *x: np.concatenate(x)[: each.size], *parts)
    options, silent = Options(method, reduced, 0, 1), Progress("", max_steps, False)
    for i in _suspects(prob, joined, flat):
        problem = with_leaves(prob, {name: values[i] for name, values in flat.items()})
        outcome = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), joined)
        outcome = to_second_order(problem, outcome, tol, max_steps, options, escape, silent)
        jax.tree.map(lambda x, y, i=i: x.__setitem__(i, y), joined, outcome)
    shaped = jax.tree.map(lambda x: jnp.asarray(x.reshape(*shape, *x.shape[1:])), joined)
    return Sweep(
        problem=prob, params=shaped.params, objective=shaped.objective, grad_norm=shaped.grad_norm,
        code=shaped.status, steps=shaped.steps, tol=tol, seeds=seeds, swept=grid, solver=method,
        reduced=reduced,
    )  # fmt: skip


def _suspects(prob: Problem, outcomes: Outcome, leaves: dict[str, np.ndarray]) -> np.ndarray:
    """Which of the problems may have ended at a strict saddle."""
    lam = np.sqrt(leaves.get("lam_W", prob.lam_W) * leaves.get("lam_H", prob.lam_H))
    stopped = np.isin(outcomes.status, (Status.CONVERGED, Status.STALLED))
    return np.flatnonzero(stopped & may_be_saddle(outcomes.evidence, lam, outcomes.grad_norm))
