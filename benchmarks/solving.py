"""Cost and accuracy of solving: each function measures one table and yields its rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import ufm
from benchmarks.machine import Row, absent, alone, floor, timed
from benchmarks.peers import PEERS, SECOND_ORDER, Solve
from ufm import _solve, _view, losses, solvers, theory
from ufm._solve import Before, Options, optimised

#: what is timed are programs that run often, which the package optimises after some runs
_solve.WORTH_OPTIMISING = 0.0
NEWTON = solvers.get("newton")
#: what every side's gradient norm must reach
TOL = 1e-8


def penalties(case: str, K: int, n: int) -> dict[str, float]:
    """Case A: balanced, a fifth of the collapse threshold; case B: small and unequal."""
    lam = 0.2 / (K * n**0.5)
    return {"A": {"lam_W": lam, "lam_H": lam}, "B": {"lam_W": 5e-3, "lam_H": 1e-5}}[case]


def problem(K: int, d: int, n: int, case: str = "A") -> ufm.Problem:
    return ufm.Problem.balanced("ce", K=K, d=d, n=n, **penalties(case, K, n))


# --- accuracy -------------------------------------------------------------------------------------


def accuracy(quick: bool) -> Iterator[Row]:
    """100 seeds at K=10, d=64, n=10: how many converge, and the worst of each number."""
    for loss in losses.PAPER:
        for lam in (5e-3, 5e-4):
            prob = ufm.Problem.balanced(loss, K=10, d=64, n=10, lam_W=lam, lam_H=lam)
            best = theory.global_optimum(prob)
            sweep = ufm.solve_sweep(prob, seeds=range(10 if quick else 100), progress=False)
            nc = jax.vmap(lambda p, labels=prob.labels: ufm.metrics.of_params(p, labels))(sweep.params)
            yield {
                "loss": loss,
                "lam_W = lam_H": lam,
                "converged": float(sweep.converged.mean()),
                "worst |grad f|": float(sweep.grad_norm.max()),
                "worst |f - f*|": float(jnp.abs(sweep.objective - best.objective).max()),
                "worst NC1": float(nc.nc1.max()),
                "worst NC2": float(nc.nc2.max()),
                "worst NC3": float(nc.nc3.max()),
            }


# --- starts of every size -------------------------------------------------------------------------


def starts(quick: bool) -> Iterator[Row]:
    """The fraction of starts that end at the global minimum, for starts from tiny to saturated."""
    seeds = range(3 if quick else 20)
    for loss in losses.PAPER:
        for lam in (1e-2, 1e-5):
            prob = ufm.Problem.balanced(loss, K=10, d=64, n=10, lam_W=2 * lam, lam_H=lam / 2)
            best = theory.global_optimum(prob).objective
            fractions, steps = {}, 0
            for scale in (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0):
                sweep = ufm.solve_sweep(prob, seeds=seeds, scale=scale, progress=False)
                there = jnp.abs(sweep.objective - best) <= 1e-10 * (1 + abs(best))
                fractions[f"{scale:g}"] = float(jnp.mean(there & (sweep.status == ufm.Status.CONVERGED)))
                steps = max(steps, int(sweep.steps.max()))
            yield {"loss": loss, "lam": lam, "seeds": len(seeds)} | fractions | {"most steps": steps}


# --- time to a gradient norm ----------------------------------------------------------------------


def ours(prob: ufm.Problem, **how: Any) -> Solve:
    def solve(start: ufm.Params) -> tuple[float, float]:
        sol = ufm.solve(prob, start, tol=TOL, progress=False, **how)
        jax.block_until_ready(sol.params)
        return float(sol.grad_norm), float(sol.objective)

    solve(ufm.init(prob))
    return solve


OURS: dict[str, dict[str, Any]] = {
    "ufm newton": {},
    "ufm newton, features not rotated": {"solver": solvers.Newton(rotate=False)},
    "ufm newton, nor penalties balanced": {"solver": solvers.Newton(rotate=False, balance=False)},
    "ufm lbfgs": {"solver": "lbfgs"},
    "ufm newton, class means (reduced)": {"reduced": True},
}


def _made(name: str, prob: ufm.Problem, quick: bool) -> tuple[Solve, float]:
    """A solver, compiled and tuned, with its time limit."""
    if name in OURS:
        return ours(prob, **OURS[name]), float("inf")
    make, cap = PEERS[name]
    cap = min(cap, 3.0) if quick else cap
    return make(prob, TOL, cap), cap


def time_to_tolerance(
    K: int, d: int, n: int, case: str, quick: bool, names: Callable[[str], bool] = lambda _: True
) -> Iterator[Row]:
    """Cross-entropy to |grad f| <= 1e-8 from the same starts, compilation excluded."""
    prob = problem(K, d, n, case)
    for name in filter(names, (*OURS, *PEERS)):
        row: Row = {"K": K, "d": d, "n": n, "case": case, "solver": name}
        try:
            solve, cap = _made(name, prob, quick)
        except ImportError as error:
            yield row | absent(error)
            continue
        times, norms = [], []
        # further seeds would reach the time limit as well
        while len(times) < (1 if quick else 3) and max(norms, default=0.0) <= TOL:
            start = ufm.init(prob, seed=len(times))
            seconds, (norm, _) = timed(
                lambda solve=solve, start=start: solve(start), warm=False, enough=0.3, most=20
            )
            times.append(seconds)
            norms.append(norm)
        row |= {"seconds": statistics.median(times), "reached": max(norms) <= TOL}
        yield row | {"cap": cap if name in PEERS else "", "worst |grad f|": max(norms), "seeds": len(times)}


def times(quick: bool) -> Iterator[Row]:
    for n in (10, 100):
        for case in "AB":
            yield from time_to_tolerance(10, 64, n, case, quick)


def compile_solve(prob: ufm.Problem, start: ufm.Params, reduced: bool) -> None:
    """Compile without a whole solve: start and continuation are two programs, both run in three steps."""
    ufm.solve(prob, start, tol=TOL, max_steps=3, reduced=reduced, progress=False)


# --- a large problem ------------------------------------------------------------------------------


def large_here(K: int, d: int, n: int, case: str, reduced: bool) -> Row:
    """Solves one problem; runs in a separate process."""
    prob = problem(K, d, n, case)
    start = ufm.init(prob)
    compile_solve(prob, start, reduced)

    def solve() -> ufm.Solution:
        return jax.block_until_ready(ufm.solve(prob, start, tol=TOL, reduced=reduced, progress=False))

    seconds, sol = timed(solve, warm=False, enough=10.0)
    return {
        "seconds": seconds,
        "steps": int(sol.steps),
        "reached": sol.converged,
        "|grad f|": float(sol.grad_norm),
    }


def large(quick: bool) -> Iterator[Row]:
    """K=100, d=512, n=100, 5.2 million unknowns, case A."""
    shape = {"K": 100, "d": 512, "n": 10 if quick else 100, "case": "A"}
    for reduced in (False, True):
        name = "ufm newton, class means (reduced)" if reduced else "ufm newton"
        yield {**shape, "solver": name} | alone("benchmarks.solving:large_here", **shape, reduced=reduced)
    yield from peers_of(problem(**shape), shape, 5.0 if quick else 90.0)


def peers_of(prob: ufm.Problem, shape: Row, cap: float) -> Iterator[Row]:
    """One run of each second-order peer from the default start, ended after `cap` seconds."""
    start = ufm.init(prob)
    for name in SECOND_ORDER:
        row: Row = {**shape, "solver": name}
        try:
            solve = PEERS[name].make(prob, TOL, cap)
        except ImportError as error:
            yield row | absent(error)
            continue
        seconds, (norm, _) = timed(lambda solve=solve: solve(start), warm=False, most=1)
        yield row | {"seconds": seconds, "reached": norm <= TOL, "cap": cap, "|grad f|": norm}


# --- the floor ------------------------------------------------------------------------------------


def floors(quick: bool) -> Iterator[Row]:
    """What a Newton solve computes and moves, at the measured peaks, against the time it took."""
    for K, d, n in ((10, 64, 10), (10, 64, 100), *(() if quick else ((100, 512, 100),))):
        prob = problem(K, d, n)
        start, options = ufm.init(prob), Options(NEWTON, False, 0, 1)
        program, basis = optimised(prob, options), _view.basis(prob, start, NEWTON, False)
        arguments = (prob, start, None, Before(basis=basis), TOL, 1000, 1000, options)
        seconds, (outcome, run) = timed(
            lambda program=program, arguments=arguments: jax.block_until_ready(program(*arguments)), most=20
        )
        products, steps = int(run.memory.products), int(outcome.steps)
        row: Row = {"K": K, "d": d, "n": n, "case": "A", "products": products, "steps": steps}
        yield row | {"seconds": seconds} | floor(seconds, *_newton_cost(prob, products, steps))


def _newton_cost(prob: ufm.Problem, products: int, steps: int) -> tuple[float, float, float]:
    """Operations, bytes moved and bytes in use of a Newton solve in the row space of W (r dimensions).

    A product costs 12 K r N operations, a gradient 6, and a step takes two gradients; turning the features
    there and back costs 4 K d N. A product reads features, direction and probabilities and writes features;
    the conjugate gradients around it read and write five more vectors; a gradient reads features and
    writes features, logits' gradient and probabilities.
    """
    K, N, r = prob.K, prob.N, min(prob.d, prob.K)
    operations = 12 * K * r * N * (products + steps) + 4 * K * prob.d * N
    numbers = products * ((3 + 5) * r + K) * N + 2 * steps * (2 * r + 2 * K) * N + 2 * (prob.d + r) * N
    return operations, 8 * numbers, 8 * (5 * r + 2 * K) * N
