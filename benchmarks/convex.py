"""cvxpy on the convex reformulation: min over Z = W H and b of the mean loss + sqrt(lam_W lam_H) |Z|_*.

For d >= K it has the global minimum of equation (7) (Theorem 1's proof), but its nuclear norm costs a
semidefinite block of K + N rows: a small problem only. Through the class means the block has 2K rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks.machine import Row, absent, timed
from benchmarks.solving import ours, problem
from ufm import theory


def rows(quick: bool) -> Iterator[Row]:
    """The same two problems for both sides, as cvxpy could be given them."""
    for K, n, reduced in ((4, 3, False), (4, 3, True)) if quick else ((10, 3, False), (10, 10, True)):
        prob = problem(K, 2 * K, n)
        best = float(theory.global_optimum(prob).objective)
        row: Row = {"K": K, "d": 2 * K, "n": n, "formulation": "class means" if reduced else "every sample"}
        solve = ours(prob, reduced=reduced)
        start = ufm.init(prob)
        seconds, (norm, value) = timed(lambda solve=solve, start=start: solve(start), most=20)
        reached = {"seconds": seconds, "|f - f*|": abs(value - best), "|grad f|": norm}
        yield row | {"solver": "ufm newton"} | reached
        try:
            yield row | {"solver": "cvxpy, Clarabel"} | _cvxpy(prob, reduced, best, 1 if quick else 3)
        except ImportError as error:
            yield row | {"solver": "cvxpy, Clarabel"} | absent(error)


def program(prob: ufm.Problem, reduced: bool) -> tuple[Any, Any, Any]:
    """cvxpy's problem, Z and b; `reduced`: one column sqrt(n) z_k a class."""
    import cvxpy as cp

    K, N = prob.K, prob.N
    labels = np.arange(K) if reduced else np.asarray(prob.labels)
    stretch = (N / K) ** 0.5 if reduced else 1.0
    Z, b = cp.Variable((K, labels.size)), cp.Variable((K, 1))
    logits = Z / stretch + b @ np.ones((1, labels.size))
    chosen = cp.sum(cp.multiply(np.eye(K)[:, labels], logits))
    fit = (cp.sum(cp.log_sum_exp(logits, axis=0)) - chosen) / labels.size
    lam = float((prob.lam_W * prob.lam_H) ** 0.5)
    f = fit + lam * cp.normNuc(Z) + float(prob.lam_b) / 2 * cp.sum_squares(b)
    return cp.Problem(cp.Minimize(f)), Z, b


def _cvxpy(prob: ufm.Problem, reduced: bool, best: float, most: int) -> Row:
    convex, Z, b = program(prob, reduced)
    # the first run finds the canonical form, which the next ones reuse
    seconds, value = timed(lambda: convex.solve(solver="CLARABEL"), enough=20.0, most=most)
    params = factors(prob, np.asarray(Z.value), np.asarray(b.value)[:, 0], reduced)
    g = jax.grad(prob)(params)
    return {
        "seconds": seconds,
        "|f - f*|": abs(float(value) - best),
        "|grad f|": float(jnp.sqrt(sum(jnp.sum(x * x) for x in g))),
        "of it in the solver": convex.solver_stats.solve_time,
        "status": convex.status,
    }


def factors(prob: ufm.Problem, Z: np.ndarray, b: np.ndarray, reduced: bool) -> ufm.Params:
    """W and H of least penalty with W H = Z."""
    U, s, V = np.linalg.svd(Z, full_matrices=False)
    scale = float((prob.lam_H / prob.lam_W) ** 0.25)
    W, H = np.zeros((prob.K, prob.d)), np.zeros((prob.d, Z.shape[1]))
    W[:, : s.size], H[: s.size] = scale * U * np.sqrt(s), (np.sqrt(s)[:, None] * V) / scale
    if reduced:
        H = (H / (prob.N / prob.K) ** 0.5)[:, np.asarray(prob.labels)]
    return ufm.Params(jnp.asarray(W), jnp.asarray(H), jnp.asarray(b))
