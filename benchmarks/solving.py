"""What solving costs and how exact it is: each function measures one table and returns its rows."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks.peers import PEERS, Run
from ufm import losses, solvers, theory
from ufm._solve import _compiled_run, _Options

Row = dict[str, Any]

NEWTON = solvers.get("newton")


def penalties(case: str, K: int, n: int) -> dict[str, float]:
    """Case A: balanced, a fifth of the collapse threshold; case B: small and unequal."""
    lam = 0.2 / (K * n**0.5)
    return {"A": {"lam_W": lam, "lam_H": lam}, "B": {"lam_W": 5e-3, "lam_H": 1e-5}}[case]


# --- accuracy -------------------------------------------------------------------------------------


def accuracy(seeds: int) -> Iterator[Row]:
    """100 seeds at K=10, d=64, n=10: how many converge, and the worst of each number."""
    for loss in losses.LOSSES:
        for lam in (5e-3, 5e-4):
            prob = ufm.Problem.balanced(loss, K=10, d=64, n=10, lam_W=lam, lam_H=lam)
            best = theory.global_optimum(prob)
            sweep = ufm.solve_sweep(prob, seeds=range(seeds), progress=False)
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


# --- time to a gradient norm ----------------------------------------------------------------------


def _ours(prob: ufm.Problem, start: ufm.Params, tol: float, **how: Any) -> Run:
    def run() -> tuple[float, float]:
        sol = ufm.solve(prob, start, tol=tol, progress=False, **how)
        jax.block_until_ready(sol.params)
        return float(sol.grad_norm), float(sol.objective)

    return run


OURS: dict[str, dict[str, Any]] = {
    "ufm newton": {},
    "ufm newton, features not rotated": {"solver": solvers.Newton(rotate=False)},
    "ufm newton, nor penalties balanced": {"solver": solvers.Newton(rotate=False, balance=False)},
    "ufm lbfgs": {"solver": "lbfgs"},
    "ufm newton, class means (reduced)": {"reduced": True},
}


def _seconds(run: Run, enough: float) -> tuple[float, float]:
    """The best of some repetitions (one where that takes longer than `enough`), and |grad f| reached."""
    times, norm, spent = [], np.inf, 0.0
    while not times or (spent < enough and len(times) < 20):
        began = time.perf_counter()
        norm, _ = run()
        times.append(time.perf_counter() - began)
        spent += times[-1]
    return min(times), norm


def time_to_tolerance(
    K: int, d: int, n: int, case: str, seeds: int, cap: float, names: Callable[[str], bool] = lambda _: True
) -> Iterator[Row]:
    """Cross-entropy to |grad f| <= 1e-8 from the same starts, compilation excluded."""
    tol = 1e-8
    prob = ufm.Problem.balanced("ce", K=K, d=d, n=n, **penalties(case, K, n))
    for name in filter(names, (*OURS, *PEERS)):
        times, norms = [], []
        for seed in range(seeds):
            start = ufm.init(prob, seed=seed)
            run = (
                _ours(prob, start, tol, **OURS[name]) if name in OURS else PEERS[name](prob, start, tol, cap)
            )
            if name in OURS and seed == 0:
                run()
            seconds, norm = _seconds(run, 0.3)
            times.append(seconds)
            norms.append(norm)
        yield {
            "K": K, "d": d, "n": n, "case": case, "solver": name, "seconds": statistics.median(times),
            "reached": max(norms) <= tol, "worst |grad f|": max(norms), "seeds": seeds,
        }  # fmt: skip


# --- sweeps ---------------------------------------------------------------------------------------


def sweeps(problems: int) -> Iterator[Row]:
    """Seeds x penalties at K=10, d=64, n=10, after compilation."""
    prob = ufm.Problem.balanced("ce", K=10, d=64, n=10)
    grid = np.geomspace(1e-4, 2e-2, 10)
    for reduced in (True, False):
        times = []
        for offset in (0, 1, 2, 3):
            seeds = range(offset * 1000, offset * 1000 + problems // 10)
            began = time.perf_counter()
            sweep = ufm.solve_sweep(
                prob, seeds=seeds, lam_W=grid, lam_H=grid, reduced=reduced, progress=False
            )
            times.append(time.perf_counter() - began)
        yield {
            "formulation": "class means (reduced)" if reduced else "full",
            "problems": sweep.converged.size,
            "converged": float(sweep.converged.mean()),
            "seconds": min(times[1:]),
            "solved per second": sweep.converged.size / min(times[1:]),
            "first call, with compilation": times[0],
        }


# --- a large problem, in a process of its own -----------------------------------------------------

_LARGE = """
import json, resource, time
from benchmarks.solving import large_here
print(json.dumps(large_here({K}, {d}, {n}, {case!r}, {reduced})))
"""


def large_here(K: int, d: int, n: int, case: str, reduced: bool) -> Row:
    """One solve, with what it did: for the floor, and for the peak memory of a process."""
    prob = ufm.Problem.balanced("ce", K=K, d=d, n=n, **penalties(case, K, n))
    start = ufm.init(prob)
    best = np.inf
    for _ in range(5 if reduced else 1):
        # the first call of the full problem includes some two seconds of compilation: compile on one step
        ufm.solve(prob, start, tol=1e-8, max_steps=1, reduced=reduced, progress=False)
        began = time.perf_counter()
        sol = ufm.solve(prob, start, tol=1e-8, reduced=reduced, progress=False)
        jax.block_until_ready(sol.params)
        best = min(best, time.perf_counter() - began)
    return {
        "seconds": best,
        "steps": int(sol.steps),
        "converged": sol.converged,
        "|grad f|": float(sol.grad_norm),
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def large(case: str, cap: float) -> Iterator[Row]:
    """K=100, d=512, n=100, 5.2 million unknowns."""
    K, d, n = 100, 512, 100
    for reduced in (False, True):
        code = _LARGE.format(K=K, d=d, n=n, case=case, reduced=reduced)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        name = "ufm newton, class means (reduced)" if reduced else "ufm newton"
        yield {"case": case, "solver": name, **json.loads(out.stdout.splitlines()[-1])}
    prob = ufm.Problem.balanced("ce", K=K, d=d, n=n, **penalties(case, K, n))
    for name, peer in PEERS.items():
        run = peer(prob, ufm.init(prob), 1e-8, cap)
        began = time.perf_counter()
        norm, _ = run()
        seconds = time.perf_counter() - began
        yield {"case": case, "solver": name, "seconds": seconds, "converged": norm <= 1e-8, "|grad f|": norm}


# --- the floor ------------------------------------------------------------------------------------


def floor(K: int, d: int, n: int, case: str) -> Row:
    """Operations of a Newton solve at the measured matrix peak, against the time it took."""
    prob = ufm.Problem.balanced("ce", K=K, d=d, n=n, **penalties(case, K, n))
    start = ufm.init(prob)
    options = _Options(NEWTON, False, 0, 1)
    arguments = (prob, start, None, 1e-8, 1000, 1000, options)
    jax.block_until_ready(_compiled_run(*arguments))
    began = time.perf_counter()
    outcome, run = jax.block_until_ready(_compiled_run(*arguments))
    seconds = time.perf_counter() - began
    products, steps = int(run.memory.products), int(outcome.steps)
    # in the row space of W a product costs 12 K r N operations, a gradient 6, and a step takes two gradients;
    # turning the features there and back costs 4 K d N
    r = min(d, K)
    operations = 12 * K * r * prob.N * (products + steps) + 4 * K * d * prob.N
    return {
        "K": K, "d": d, "n": n, "case": case, "products": products, "steps": steps, "seconds": seconds,
        "operations": operations, "reached GFLOP/s": operations / seconds / 1e9,
    }  # fmt: skip


def matrix_peak() -> float:
    """Operations per second of a 2000 x 2000 float64 product: what the floor divides by."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 2000)))
    product = jax.jit(lambda a: a @ a)
    return 2 * 2000**3 / _seconds(lambda: (float(product(a)[0, 0]), 0.0), 1.0)[0]


# --- the first answer -----------------------------------------------------------------------------


def first_answer() -> Iterator[Row]:
    """A process that imports, solves once and ends: with an empty and with a warm compilation cache."""
    code = "import ufm; ufm.solve_ufm(loss='ls', K=10, d=64)"
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for kind, environment, runs in (("cold", {}, 3), ("fill", cache, 1), ("warm", cache, 5)):
            times = []
            for _ in range(runs):
                began = time.perf_counter()
                subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)
                times.append(time.perf_counter() - began)
            if kind != "fill":
                yield {"compilation cache": kind, "seconds": statistics.median(times), "runs": runs}
