"""Features that are not negative: our projected Newton's method and scipy's L-BFGS-B with bounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import ufm
from benchmarks.machine import Row
from benchmarks.solving import TOL, Solve, ours, penalties

OURS: dict[str, dict[str, Any]] = {"ufm newton": {}, "ufm newton, class means (reduced)": {"reduced": True}}
#: seconds that scipy gets
CAP = 60.0


def rows(quick: bool) -> Iterator[Row]:
    """Cross-entropy, K=10, d=64, to a KKT residual of 1e-8: sides take turns on the same starts."""
    for n in (10,) if quick else (10, 100):
        for case in "AB":
            prob = ufm.Problem.balanced("ce", K=10, d=64, n=n, model="nonnegative", **penalties(case, 10, n))
            sides: dict[str, Solve] = {name: ours(prob, **how) for name, how in OURS.items()}
            sides["scipy L-BFGS-B, bounds"] = lbfgsb(prob, TOL, 5.0 if quick else CAP)
            shape: Row = {"K": 10, "d": 64, "n": n, "case": case}
            yield from (shape | row for row in _measured(prob, sides, 1 if quick else 5))


def _measured(prob: ufm.Problem, sides: dict[str, Solve], seeds: int) -> Iterator[Row]:
    """Each side's times and residuals; they take turns, so that a busy machine is busy for all."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    norms: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(seeds):
        start = ufm.init(prob, seed=seed)
        for name, solve in sides.items():
            began = time.perf_counter()
            norm, _ = solve(start)
            times[name].append(time.perf_counter() - began)
            norms[name].append(norm)
    for name in sides:
        row = {"solver": name, "seconds": statistics.median(times[name]), "reached": max(norms[name]) <= TOL}
        yield row | {"worst residual": max(norms[name]), "seeds": seeds}


def lbfgsb(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """scipy's L-BFGS-B with H >= 0, 20 pairs and our jitted objective and gradient."""
    x, unravel = ravel_pytree(ufm.init(prob))
    bounded, _ = ravel_pytree(prob.zeros()._replace(H=jnp.ones_like(prob.zeros().H)))
    bounds = [(0.0, None) if at else (None, None) for at in np.asarray(bounded)]
    derivatives = jax.jit(lambda y: jax.value_and_grad(lambda v: prob(unravel(v)))(y))
    jax.block_until_ready(derivatives(x))
    options = {"maxcor": 20, "maxiter": 10**6, "maxfun": 10**7, "ftol": 0.0, "gtol": 0.0}

    def residual(y: Any) -> float:
        at = unravel(jnp.asarray(y))
        held = prob.unbound(at, prob.gradient(at))
        return float(np.sqrt(sum(float(jnp.vdot(part, part)) for part in held)))

    def solve(start: Any) -> tuple[float, float]:
        began, last = time.perf_counter(), np.asarray(ravel_pytree(start)[0])
        slope = np.zeros_like(last)

        def evaluate(y: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal slope
            value, gradient = derivatives(y)
            slope = np.asarray(gradient, np.float64)
            return float(value), slope

        def watch(y: np.ndarray) -> None:
            nonlocal last
            last = y.copy()
            held = np.where(np.asarray(bounded) > 0, y - np.maximum(y - slope, 0.0), slope)
            if np.linalg.norm(held) <= tol or time.perf_counter() - began > seconds:
                raise StopIteration

        minimize(evaluate, last, jac=True, method="L-BFGS-B", bounds=bounds, callback=watch, options=options)
        return residual(last), float(prob(unravel(jnp.asarray(last))))

    return solve
