"""A deep linear classifier: time to a gradient norm, and where random starts end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

import ufm
from benchmarks.machine import Row, timed
from benchmarks.peers import PEERS, Solve
from benchmarks.solving import TOL, ours
from ufm import theory
from ufm.models import deep

#: starts of this size do not fall into the origin, which is a local minimum
SCALE = 0.3
OURS: dict[str, dict[str, Any]] = {
    "ufm newton": {},
    "ufm newton, in the given widths": {"solver": ufm.solvers.Newton(rotate=False, balance=False)},
    "ufm lbfgs": {"solver": "lbfgs"},
    "ufm newton, class means (reduced)": {"reduced": True},
}
_PEERS = ("scipy trust-ncg", "optax L-BFGS", "scipy L-BFGS-B")


def problem(layers: int, n: int, case: str) -> ufm.Problem:
    """K=10, all widths 64. Case A: equal penalties with c_q = 0.2/K; case B: 5e-3 of each layer and 1e-5."""
    K, q = 10, layers + 1
    equal = 0.2 / K * n ** (-1 / q)
    lam_W, lam_H = {"A": (equal, equal), "B": (5e-3, 1e-5)}[case]
    return ufm.Problem.balanced("ce", K=K, d=64, n=n, lam_W=lam_W, lam_H=lam_H, model=deep(layers))


def _made(name: str, prob: ufm.Problem, quick: bool) -> tuple[Solve, float]:
    if name in OURS:
        return ours(prob, **OURS[name]), float("inf")
    cap = 3.0 if quick else 30.0
    return PEERS[name].make(prob, TOL, cap), cap


def times(quick: bool) -> Iterator[Row]:
    """Cross-entropy to |grad f| <= 1e-8 from the same starts, compilation excluded."""
    for case in "AB":
        prob = problem(3, 100, case)
        for name in (*OURS, *_PEERS):
            solve, cap = _made(name, prob, quick)
            seconds, norms, values = [], [], []
            while len(seconds) < (1 if quick else 3) and max(norms, default=0.0) <= TOL:
                start = ufm.init(prob, seed=len(seconds), scale=SCALE)
                each, (norm, value) = timed(
                    lambda solve=solve, start=start: solve(start), warm=False, enough=0.3, most=20
                )
                seconds.append(each)
                norms.append(norm)
                values.append(value)
            row: Row = {"layers": 3, "K": 10, "d": 64, "n": 100, "case": case, "solver": name}
            row |= {"seconds": statistics.median(seconds), "reached": max(norms) <= TOL}
            row |= {"cap": cap if name in PEERS else "", "worst |grad f|": max(norms), "seeds": len(seconds)}
            yield row | {"lowest f": min(values)}


def ends(quick: bool) -> Iterator[Row]:
    """Gaussian starts at K=10, d=64, n=10: how many converge, and at which ranks."""
    seeds = range(10 if quick else 100)
    for layers in (2, 3):
        for scale in (0.1, SCALE):
            prob = ufm.Problem.balanced("ce", K=10, d=64, n=10, model=deep(layers))
            best = theory.global_optimum(prob)
            sols = [ufm.solve(prob, ufm.init(prob, seed=s, scale=scale), progress=False) for s in seeds]
            f = np.array([float(sol.objective) for sol in sols])
            norms = np.array([float(sol.grad_norm) for sol in sols])
            ranks = [int(np.linalg.matrix_rank(sol.W, tol=1e-6)) for sol in sols]
            yield {
                "layers": layers,
                "scale of the start": scale,
                "seeds": len(sols),
                "converged": float(np.mean([sol.converged for sol in sols])),
                "worst |grad f|": float(norms.max()),
                "lowest known f": best.objective,
                "structure": best.structure,
                "reach it": float(np.mean(f <= best.objective + 1e-10)),
                "lowest found - known": float(f.min() - best.objective),
                "at the origin": float(np.mean(np.array(ranks) == 0)),
                "ranks": ", ".join(f"{r}: {ranks.count(r)}" for r in sorted(set(ranks))),
            }
