"""Unequal class counts: solving a large problem, and the optimum of a few groups in the block form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import ufm
from benchmarks.machine import Row, alone, timed
from benchmarks.solving import TOL, compile_solve, peers_of
from ufm import losses, theory

#: names, hyperparameters and penalties of the bias of the problems whose optimum is timed
_LOSSES: tuple[tuple[str, dict[str, float]], ...] = (
    ("ce", {}),
    ("ls", {"alpha": 0.1}),
    ("mse", {"kappa": 1.0}),
    ("mse", {"kappa": 5.0}),
)


def problem(K: int, d: int, most: int, least: int) -> ufm.Problem:
    """Cross-entropy with shuffled counts that fall geometrically; case A's penalties at the mean count."""
    counts = np.random.default_rng(0).permutation(np.geomspace(most, least, K).round().astype(int))
    lam = 0.2 / (K * counts.mean() ** 0.5)
    return ufm.Problem.from_counts("ce", counts=counts, d=d, lam_W=lam, lam_H=lam)


def large_here(K: int, d: int, most: int, least: int, reduced: bool) -> Row:
    """Solves one problem; runs in a separate process."""
    prob = problem(K, d, most, least)
    start = ufm.init(prob)
    compile_solve(prob, start, reduced)

    def solve() -> ufm.Solution:
        return jax.block_until_ready(ufm.solve(prob, start, tol=TOL, reduced=reduced, progress=False))

    seconds, sol = timed(solve, warm=False, enough=10.0)
    row: Row = {"seconds": seconds, "steps": int(sol.steps), "reached": sol.converged}
    return row | {"|grad f|": float(sol.grad_norm), "gap": float(sol.certificate.gap)}


def large(quick: bool) -> Iterator[Row]:
    """K=100, d=512, counts from 500 to 5: about as many samples as in the balanced table."""
    shape = {"K": 100, "d": 512, "most": 50 if quick else 500, "least": 5}
    for reduced in (False, True):
        name = "ufm newton, class means (reduced)" if reduced else "ufm newton"
        yield {**shape, "solver": name} | alone("benchmarks.imbalance:large_here", **shape, reduced=reduced)
    yield from peers_of(problem(**shape), shape, 5.0 if quick else 90.0)


def optima(quick: bool) -> Iterator[Row]:
    """`global_optimum` of three groups, K=100, against the class-mean solve of the same problem."""
    counts = np.repeat([500, 60, 5], [30, 40, 30])
    lam = 0.2 / (100 * counts.mean() ** 0.5)
    regimes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("free", {}), ("penalised", {"lam_b": 0.01}), ("none", {"bias": False}),
    )  # fmt: skip
    for loss, hyper in _LOSSES[:1] if quick else _LOSSES:
        for bias, options in regimes:
            function = losses.get(loss, **hyper)
            penalties = {"lam_W": 2 * lam, "lam_H": lam} | options
            prob = ufm.Problem.from_counts(function, counts=counts, d=100, **penalties)
            seconds, best = timed(lambda prob=prob: theory.global_optimum(prob), most=20)
            sol = ufm.solve(prob, reduced=True, progress=False)
            yield {
                "loss": repr(function),
                "bias": bias,
                "seconds": seconds,
                "f - f* of the solver": float(sol.objective) - best.objective,
                "structure": best.structure,
            }
