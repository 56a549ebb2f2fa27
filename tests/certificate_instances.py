"""Problems with their optima, in closed form and by other solvers: the witnesses of certificates."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from ufm import Params, Problem, losses
from ufm.hessian import certificate as certificates
from ufm.landscape import Bounds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the solver's own deprecations are not ours to fix
    import cvxpy as cp


REGIMES = {"free": (True, 0.0), "penalised": (True, 0.05), "absent": (False, 0.0)}
SIZES = {("mse", "penalised"): (5, 14), ("ls", "absent"): (3, 9)}  # K and N, else 4 and 12: few compilations
CONVEX = {"ce": {}, "ls": {"alpha": 0.2}, "mse": {"kappa": 2.0, "beta": 1.5}}
every_regime = pytest.mark.parametrize("regime", REGIMES)
every_convex = pytest.mark.parametrize("name", CONVEX)


QUICK = {"xla_backend_optimization_level": 0}  # the helpers below compile often and run briefly

# --- instances ----------------------------------------------------------------------------------------


def critical_c(name: str, K: int) -> float:
    """Where the balanced problem without bias collapses to zero: c = sqrt(n lam_W lam_H)."""
    if name == "mse":
        return 2 * CONVEX["mse"]["kappa"] * CONVEX["mse"]["beta"] / K
    return (1 - CONVEX[name].get("alpha", 0.0)) / K


def imbalanced(name: str, regime: str, strength: float, seed: int, **changes: Any) -> Problem:
    """Shuffled labels, every class at least once, lam_W != lam_H, c = strength times the critical one."""
    rng = np.random.default_rng(seed)
    K, N = SIZES.get((name, regime), (4, 12))
    labels = rng.permutation(np.concatenate([np.arange(K), np.arange(K), rng.integers(K, size=N - 2 * K)]))
    lam = strength * critical_c(name, K) / np.sqrt(N / K)
    bias, lam_b = REGIMES[regime]
    given = {"K": K, "d": K + 1, "lam_W": 3 * lam, "lam_H": lam / 3, "lam_b": lam_b, "bias": bias}
    return Problem(losses.get(name, **CONVEX[name]), labels, **(given | changes))


def balanced(name: str, regime: str, K: int = 4, n: int = 3, c: float = 0.05, **changes: Any) -> Problem:
    bias, lam_b = REGIMES[regime]
    lam = c / np.sqrt(n)
    prob = Problem.balanced(
        name, K=K, d=K + 1, n=n, lam_W=2 * lam, lam_H=lam / 2, lam_b=lam_b, bias=bias, **CONVEX.get(name, {})
    )
    return prob.replace(labels=np.random.default_rng(5).permutation(prob.labels), **changes)


def perturbed(params: Params, size: float, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    return Params(*(np.asarray(x) + size * rng.normal(size=x.shape) for x in params))


def factored(prob: Problem, means: np.ndarray, b: float = 0.0) -> Params:
    """Params with W h_j = means[:, label j] (columns), balanced as at a critical point."""
    U, s, Vt = np.linalg.svd(means)
    s = np.where(s > 1e-13 * s[0], s, 0.0)
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(prob.d, prob.K)))[0]
    ratio = (prob.n * prob.lam_H / prob.lam_W) ** 0.25
    W = ratio * U * np.sqrt(s) @ Q.T
    H = (Q * np.sqrt(s) @ Vt / ratio)[:, prob.labels]
    return Params(jnp.asarray(W), jnp.asarray(H), jnp.full(prob.K, b))


def collapsed(prob: Problem) -> tuple[Params, float]:
    """Zhou et al. 2022, Theorem 1 in closed form: the neural-collapse minimiser and its value."""
    K, c = prob.K, float(np.sqrt(prob.n) * prob.lam)
    P = np.eye(K) - 1 / K
    h = {key: float(value) for key, value in prob.loss.hyperparameters.items()}
    if prob.loss.name != "mse":
        s = c + h.get("alpha", 0.0) / K
        value = -(1 - (K - 1) * s) * np.log(1 - (K - 1) * s) - (K - 1) * s * np.log(s)
        return factored(prob, np.log(1 / s - (K - 1)) * P), value
    kappa, beta = h["kappa"], h["beta"]
    if not prob.bias:  # an orthogonal frame
        a = beta - c * K / (2 * kappa)
        return factored(prob, a * np.eye(K)), c * K * beta - (c * K) ** 2 / (4 * kappa)
    a, mu = beta - c * (kappa + K - 1) / (2 * kappa), kappa * (K - 1) / (kappa + K - 1)
    value = (K - 1) * c * beta - (c * (K - 1)) ** 2 / (4 * mu)
    return factored(prob, a * P, b=a / K + c / 2), value


def convex_optimum(prob: Problem) -> float:
    """min_{Z, b} g(Z + b 1') + lam |Z|_* + lam_b/2 |b|^2 by an interior-point solver, over all N columns."""
    K, N = prob.K, prob.N
    member = np.eye(K)[:, prob.labels]
    Z, b = cp.Variable((K, N)), cp.Variable((K, 1))
    X = Z + b @ np.ones((1, N)) if prob.bias else Z
    h = {key: float(value) for key, value in prob.loss.hyperparameters.items()}
    if prob.loss.name == "mse":
        weight = h["kappa"] * member + 1 - member
        fit = cp.sum(cp.multiply(weight, cp.square(X - h["beta"] * member)))
    else:
        alpha = h.get("alpha", 0.0)
        target = (1 - alpha) * member + alpha / K
        fit = cp.sum(cp.log_sum_exp(X, axis=0)) - cp.sum(cp.multiply(target, X))
    objective = fit / N + float(prob.lam) * cp.normNuc(Z)
    if prob.bias:
        objective += float(prob.lam_b) / 2 * cp.sum_squares(b)
    found = cp.Problem(cp.Minimize(objective))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert found.status == cp.OPTIMAL
    return float(found.value)


def descend(prob: Problem, start: Params, steps: int = 5000) -> list[Params]:
    """The trajectory of scipy's L-BFGS-B, ending at a point that it cannot improve."""
    ends = np.cumsum([leaf.size for leaf in start])[:-1]
    path = [np.concatenate([np.ravel(leaf) for leaf in start])]

    def unflatten(x: np.ndarray) -> Params:
        return Params(*(v.reshape(leaf.shape) for v, leaf in zip(np.split(x, ends), start, strict=True)))

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = jet(prob, unflatten(x))
        return float(value), np.concatenate([np.ravel(leaf) for leaf in slope])

    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 0.0, "gtol": 1e-9, "maxcor": 15}
    last = scipy.optimize.minimize(
        value_and_slope,
        path[0],
        jac=True,
        method="L-BFGS-B",
        callback=lambda x: path.append(x.copy()),
        options=options,
    )
    return [unflatten(x) for x in (*path, last.x)]


jet = jax.jit(lambda prob, params: jax.value_and_grad(prob)(params), compiler_options=QUICK)


def measured(prob: Problem, params: Params) -> Bounds:
    """`bounds` through the compilation that `certificate` uses."""
    return jax.device_get(certificates._compiled_quickly(*certificates._as_leaves((prob, params))))
