"""Problems and points whose proofs are tested."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize

from ufm import Params, Problem, theory

flint = pytest.importorskip("flint")

from ufm.rigour import proofs as rigour  # noqa: E402

HYPER = {"ce": {}, "ls": {"alpha": 0.2}, "fl": {"gamma": 2.5}, "mse": {"kappa": 2.0, "beta": 1.5}}
REGIMES = {"free": (True, 0.0), "penalised": (True, 0.03), "absent": (False, 0.0)}
every_loss = pytest.mark.parametrize("name", HYPER)
every_regime = pytest.mark.parametrize("regime", REGIMES)
DPS = 60
QUICK = {"xla_backend_optimization_level": 0}  # compiled often, run once


def balanced(name: str, regime: str = "free", *, K: int = 4, n: int = 2, d: int | None = None) -> Problem:
    """lam_W = 4 lam_H and shuffled labels."""
    bias, lam_b = REGIMES[regime]
    prob = Problem.balanced(
        name, K=K, d=K + 2 if d is None else d, n=n, lam_W=0.02, lam_H=0.005, lam_b=lam_b, bias=bias,
        **HYPER[name],
    )  # fmt: skip
    return prob.replace(labels=np.random.default_rng(5).permutation(prob.labels))


def optimum(prob: Problem) -> Params:
    return theory.global_optimum(prob).params


def moved(params: Params, size: float, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    return Params(*(np.asarray(x) + size * rng.normal(size=np.shape(x)) for x in params))


def contains(bound: rigour.Bound, value: Any) -> bool:
    """Exactly: both ends and the value as rationals."""
    return Fraction(bound.lower) <= Fraction(mp.nstr(value, DPS - 5)) <= Fraction(bound.upper)


def optimal_value(prob: Problem, margin: float | None = None) -> Any:
    """The closed forms at 60 digits, from the exact penalties; focal loss starts at `margin`."""
    K, c = prob.K, mp.sqrt(prob.n * mp.mpf(float(prob.lam_W)) * mp.mpf(float(prob.lam_H)))
    h = {name: mp.mpf(float(value)) for name, value in prob.loss.hyperparameters.items()}
    if prob.loss.name in ("ce", "ls"):
        s = c + h.get("alpha", mp.mpf(0)) / K
        return -(1 - (K - 1) * s) * mp.log(1 - (K - 1) * s) - (K - 1) * s * mp.log(s)
    if prob.loss.name == "fl":

        def profile(a: Any) -> Any:
            p = 1 / (1 + (K - 1) * mp.exp(-a))
            return -((1 - p) ** h["gamma"]) * mp.log(p) + (K - 1) * c * a

        start = theory.global_optimum(prob).margin if margin is None else margin
        a = mp.findroot(lambda a: mp.diff(profile, a), start)
        return profile(a)
    kappa, beta, lam_b = h["kappa"], h["beta"], mp.mpf(float(prob.lam_b))
    if not prob.bias:
        return c * K * beta - (c * K) ** 2 / (4 * kappa)
    if lam_b == 0:
        mu = kappa * (K - 1) / (kappa + K - 1)
        return (K - 1) * c * beta - (c * (K - 1)) ** 2 / (4 * mu)
    if c < beta / K / (1 / (2 * kappa) + 1 / lam_b):  # phase A
        return c * K * beta - (c * K) ** 2 / (4 * kappa) - c**2 * K / (2 * lam_b)
    A1 = mp.mpf(K - 1) / (2 * K) + 1 / (2 * kappa * K)
    t = (c / lam_b + c / (2 * kappa) - beta / K) / (A1 + 1 / lam_b)
    a, b0 = beta - c * K / (2 * kappa) + t * (1 - kappa) / (2 * kappa), (c - t) / lam_b
    own, other = (K - 1) * a / K + b0, -a / K + b0
    fit = kappa * (own - beta) ** 2 + (K - 1) * other**2
    return fit + c * (K - 1) * a + lam_b * K * b0**2 / 2


def sub_etf(prob: Problem, m: int, alpha: float, s: float) -> Params:
    """Zbar = alpha (I_m - 11'/m) (+) 0, b_on - b_off = s: docs/theory.md, section 2.4."""
    K, n = prob.K, prob.n
    on = np.arange(K) < m
    Z = alpha * (np.eye(K) - on / m) * np.outer(on, on)
    U, sv, Vt = np.linalg.svd(Z)
    ratio, rank = float(n * prob.lam_H / prob.lam_W) ** 0.25, m - 1
    root = np.zeros((prob.d, rank))
    root[:rank] = np.eye(rank)
    W = ratio * (U[:, :rank] * np.sqrt(sv[:rank])) @ root.T
    H = (root * np.sqrt(sv[:rank])) @ Vt[:rank] / ratio
    return Params(W, H[:, prob.labels], np.where(on, s * (1 - m / K), -s * m / K) * prob.bias)


def sub_etf_value(prob: Problem, m: int, alpha: float, s: float) -> float:
    """F(m, alpha, s) of docs/theory.md, section 2.4, for focal loss."""
    K, g = prob.K, float(prob.loss.gamma)
    c = float(np.sqrt(prob.n * prob.lam_W * prob.lam_H))
    on = 1 / (1 + (m - 1) * np.exp(-alpha) + (K - m) * np.exp(-(alpha * (1 - 1 / m) + s)))
    off = 1 / ((K - m) + m * np.exp(s))
    h = [-((1 - p) ** g) * np.log(p) for p in (on, off)]
    spread = float(prob.lam_b) / 2 * s**2 * m * (K - m) / K
    return float((m * h[0] + (K - m) * h[1]) / K + c * (m - 1) * alpha + spread)


def stationary(prob: Problem, m: int, start: tuple[float, float] = (2.0, 0.1)) -> tuple[float, float]:
    if not prob.bias:
        found = scipy.optimize.minimize_scalar(
            lambda a: sub_etf_value(prob, m, a, 0.0), bracket=(0.5, 2.0, 9.0), tol=1e-9
        )
        return float(found.x), 0.0
    found = scipy.optimize.minimize(
        lambda x: sub_etf_value(prob, m, *x), start, method="BFGS", options={"gtol": 1e-11}
    )
    return float(found.x[0]), float(found.x[1])


def as_jax(params: Params) -> Params:
    return Params(*map(jnp.asarray, params))
