"""Points whose Hessian is small enough to be written out: the witness of products, spectra and counts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigvalsh

import ufm
from ufm import Params, Problem, landscape, losses

REGIMES = {"free": {}, "penalised": {"lam_b": 0.05}, "absent": {"bias": False}}
HYPER = {"ce": {}, "ls": {"alpha": 0.2}, "fl": {"gamma": 3.0}, "mse": {"kappa": 2.0, "beta": 1.5}}
LABELS = [1, 0, 2, 3, 0, 1, 1, 2, 0, 0, 3]  # imbalanced and shuffled
SHAPES = [  # loss, regime, labels, d: d = K, d < K-1, d = 1, K = 2, one sample a class
    ("ce", "free", LABELS, 4),
    ("fl", "penalised", LABELS, 2),
    ("ls", "absent", [0, 1, 1, 0, 1], 1),
    ("fl", "free", [1, 0, 0], 3),
    ("mse", "penalised", [2, 0, 1], 5),
]
CASES = [(loss, regime, LABELS, 6) for loss in HYPER for regime in REGIMES] + SHAPES


@dataclasses.dataclass(frozen=True)
class Case:
    prob: Problem
    name: str
    params: Params

    @functools.cached_property
    def dense(self) -> np.ndarray:
        return landscape.dense(self.prob, self.params)

    @functools.cached_property
    def values(self) -> np.ndarray:
        return eigvalsh(self.dense)


def problem(loss: str, regime: str, labels: Any, d: int, **changes: Any) -> Problem:
    given = {"lam_W": 0.03, "lam_H": 0.012} | REGIMES[regime] | changes
    return Problem(losses.get(loss, **HYPER[loss]), labels, d=d, **given)


def random_point(prob: Problem, seed: int = 0, rank: int | None = None, collapse: int = 0) -> Params:
    """Gaussian; `rank` feature directions in use; the first `collapse` samples of each class coincide."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(prob.d, prob.d)))[0][:, : rank or prob.d]
    W, H = rng.normal(size=(prob.K, Q.shape[1])), rng.normal(size=(Q.shape[1], prob.N))
    for k in range(prob.K):
        same = np.flatnonzero(np.asarray(prob.labels) == k)[:collapse]
        H[:, same] = H[:, same[:1]]
    b = rng.normal(size=prob.K) if prob.bias else np.zeros(prob.K)
    return Params(jnp.asarray(W @ Q.T), jnp.asarray(Q @ H), jnp.asarray(b))


@functools.cache
def cases() -> tuple[Case, ...]:
    def each() -> Iterator[Case]:
        for loss, regime, labels, d in CASES:
            prob = problem(loss, regime, labels, d)
            name = f"{loss}-{regime}-K{prob.K}-d{d}"
            yield Case(prob, name + "-random", random_point(prob))
            partial = random_point(prob, 1, rank=max(1, d - 3), collapse=2)
            yield Case(prob, name + "-partial", partial)
            yield Case(prob, name + "-solved", ufm.solve(prob, random_point(prob, 2), tol=1e-10).params)

    return tuple(each())


CASE_IDS = [f"{c[0]}-{c[1]}-{len(c[2])}-{c[3]}-{p}" for c in CASES for p in ("random", "partial", "solved")]
every_case = pytest.mark.parametrize("i", range(len(CASE_IDS)), ids=CASE_IDS)


def accuracy(case: Case, error: float = 0.0) -> dict[str, float]:
    """Rounding of a dense eigenvalue solver, relative to the largest eigenvalue, and the error announced."""
    ulp = 200 * np.finfo(float).eps
    return {"ulps": 200.0, "scale": float(np.abs(case.values).max() + error / ulp)}
