"""Time and memory over the number of samples N, of classes K and of feature dimensions d.

Every point runs in a separate process, so that its peak memory can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import ufm
from benchmarks.machine import Row, alone, timed
from benchmarks.peers import torch_leaves, torch_objective
from benchmarks.solving import TOL, compile_solve, problem
from ufm import landscape, metrics, theory

#: sizes in ascending order; what is not varied is fixed as the axis says
AXES: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "N": ({"K": 10, "d": 64}, (100, 1_000, 10_000, 100_000, 1_000_000)),
    "K": ({"d": 512, "n": 10}, (10, 30, 100, 300)),
    "d": ({"K": 10, "n": 100}, (64, 512, 4096)),
}
#: slopes are fitted to the largest sizes: below, dispatch and the interpreter count
FITTED = 3
#: differences in memory below this many GiB are noise of the allocator
NOISE = 2.0**-7


class Task(NamedTuple):
    """prepare(prob) -> what is timed; axes on which it is not measured at all sizes."""

    prepare: Callable[[ufm.Problem], Callable[[], Any]]
    largest: dict[str, int] = {}  # noqa: RUF012 - never changed


def _solve(reduced: bool) -> Callable[[ufm.Problem], Callable[[], Any]]:
    def prepare(prob: ufm.Problem) -> Callable[[], Any]:
        start = ufm.init(prob)
        compile_solve(prob, start, reduced)

        def run() -> Any:
            sol = ufm.solve(prob, start, tol=TOL, reduced=reduced, progress=False)
            if not sol.converged:
                raise RuntimeError(sol.status.message)
            return jax.block_until_ready(sol.params)

        return run

    return prepare


def _gradient(prob: ufm.Problem) -> Callable[[], Any]:
    both, at = jax.jit(jax.value_and_grad(lambda prob, at: prob(at), argnums=1)), ufm.init(prob)
    return lambda: jax.block_until_ready(both(prob, at))


def _torch_gradient(prob: ufm.Problem) -> Callable[[], Any]:
    import torch

    objective, leaves = torch_objective(prob), torch_leaves(ufm.init(prob))
    return lambda: torch.autograd.grad(objective(leaves), leaves)


def _metrics(prob: ufm.Problem) -> Callable[[], Any]:
    at = ufm.init(prob, scale=1.0)
    return lambda: jax.block_until_ready(metrics.of_params(at, prob.labels))


def _all_eigenvalues(prob: ufm.Problem) -> Callable[[], Any]:
    at = theory.global_optimum(prob).params
    return lambda: landscape.eigenvalues(prob, at, which="all")


def _largest_eigenvalue(prob: ufm.Problem) -> Callable[[], Any]:
    at = ufm.init(prob, scale=1.0)
    return lambda: landscape.eigenvalues(prob, at, 1, "largest", method="lanczos", tol=1e-4)


#: by what is measured: by whom, if not by us
TASKS = {
    "solve": Task(_solve(False)),
    "solve, class means": Task(_solve(True)),
    "objective and gradient": Task(_gradient),
    "objective and gradient: torch": Task(_torch_gradient),
    "NC1-NC4": Task(_metrics),
    # its core has 2 K^2 rows, diagonalised whole
    "all eigenvalues at the optimum": Task(_all_eigenvalues, {"K": 30}),
    "largest eigenvalue, random point": Task(_largest_eigenvalue),
}


def measure(task: str, K: int, d: int, n: int) -> Row:
    """Measures one point; runs in a separate process."""
    run = TASKS[task].prepare(problem(K, d, n))
    # the solves have compiled by now, and a whole one more may take long
    seconds, _ = timed(run, warm=not task.startswith("solve"), enough=0.5)
    return {"seconds": seconds}


def rows(quick: bool) -> Iterator[Row]:
    for axis, (fixed, sizes) in list(AXES.items())[: 1 if quick else None]:
        for task, (_, largest) in TASKS.items():
            for size in sizes[: 2 if quick else None]:
                if size > largest.get(axis, size):
                    continue
                shape = dict(fixed)
                if axis == "N":
                    shape["n"] = size // fixed["K"]
                else:
                    shape[axis] = size
                what, _, side = task.partition(": ")
                row: Row = {"over": axis, "task": what, "side": side or "ufm", "N": shape["K"] * shape["n"]}
                # a point larger than its predecessors would only wait longer
                point = alone("benchmarks.scaling:measure", limit=180.0, task=task, **shape)
                yield row | shape | point
                if "remark" in point:
                    break


# --- slopes ---------------------------------------------------------------------------------------


def curve(rows: list[Row], axis: str, task: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and what was measured; of memory, what exceeds the smallest size's, mostly the compiler's."""
    quantity, _, side = task.partition(": ")
    asked = (axis, quantity, side or "ufm")
    points = [(r[axis], r[what]) for r in rows if (r["over"], r["task"], r["side"]) == asked and what in r]
    x, y = np.array(sorted(points), dtype=float).reshape(-1, 2).T
    if what == "seconds" or not x.size:
        return x, y
    above = y - y[0]
    return x[above > NOISE], above[above > NOISE]


def slope(x: np.ndarray, y: np.ndarray) -> float | None:
    """The exponent p of y ~ x^p over the largest sizes, by least squares; None for fewer than two."""
    x, y = x[-FITTED:], y[-FITTED:]
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if x.size > 1 else None


def slopes(rows: list[Row]) -> list[Row]:
    """A row per axis and task: exponents, and the largest point."""
    out = []
    for axis in AXES:
        for task in TASKS:
            x, y = curve(rows, axis, task, "seconds")
            if not x.size:
                continue
            memory = curve(rows, axis, task, "peak GiB")
            row: Row = {"over": axis, "task": task, "time ~": _power(axis, slope(x, y))}
            row["memory ~"] = _power(axis, slope(*memory)) if memory[0].size else ""
            row |= {f"largest {axis} measured": f"{int(x[-1]):,}", "seconds there": float(y[-1])}
            out.append(row | {"GiB there": float(memory[1][-1]) if memory[0].size else ""})
    return out


def _power(axis: str, exponent: float | None) -> str:
    return "" if exponent is None else f"{axis}^{exponent:.2f}"
