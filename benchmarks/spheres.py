"""Unit vectors: our Newton's method and pymanopt's Riemannian trust region, with the same derivatives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks.machine import Row, absent
from benchmarks.solving import TOL, Solve, ours
from ufm import solvers

OURS: dict[str, dict[str, Any]] = {
    "ufm newton": {},
    "ufm newton, features not turned": {"solver": solvers.Newton(rotate=False)},
    "ufm newton, nor norms balanced": {"solver": solvers.Newton(rotate=False, balance=False)},
}


def rows(quick: bool) -> Iterator[Row]:
    """Cross-entropy, K=10, d=64, to a Riemannian gradient of 1e-8: sides take turns on the same starts."""
    for n, scale in ((10, 4.0),) if quick else ((10, 4.0), (100, 4.0), (100, 16.0)):
        prob = ufm.Problem.balanced("ce", K=10, d=64, n=n, model=ufm.models.spheres(scale))
        sides: dict[str, Solve] = {name: ours(prob, **how) for name, how in OURS.items()}
        shape: Row = {"K": 10, "d": 64, "n": n, "scale": scale}
        missing = None
        try:
            sides["pymanopt trust regions"] = trust_regions(prob, TOL, 120.0)
        except ImportError as error:
            missing = shape | {"solver": "pymanopt trust regions"} | absent(error)
        for name, times, norms in _measured(prob, sides, 2 if quick else 7):
            row = shape | {"solver": name, "seconds": statistics.median(times), "reached": max(norms) <= TOL}
            yield row | {"worst |grad f|": max(norms), "seeds": len(times)}
        if missing is not None:
            yield missing


def _measured(
    prob: ufm.Problem, sides: dict[str, Solve], seeds: int
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Each side's times and gradient norms; they take turns, so that a busy machine is busy for all."""
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
        yield name, times[name], norms[name]


def trust_regions(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """pymanopt's trust region on the product of two oblique manifolds, of W' and H."""
    import pymanopt
    from pymanopt.manifolds import Oblique, Product
    from pymanopt.optimizers import TrustRegions

    f, gradient, product = _euclidean(prob)
    manifold = Product([Oblique(prob.d, prob.K), Oblique(prob.d, prob.columns)])

    @pymanopt.function.numpy(manifold)
    def cost(Wt: Any, H: Any) -> float:
        return float(f(Wt.T, H))

    @pymanopt.function.numpy(manifold)
    def slope(Wt: Any, H: Any) -> Any:
        return _turned(gradient(Wt.T, H))

    @pymanopt.function.numpy(manifold)
    def bend(Wt: Any, H: Any, dWt: Any, dH: Any) -> Any:
        return _turned(product(Wt.T, H, dWt.T, dH))

    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=slope, euclidean_hessian=bend)
    method = TrustRegions(min_gradient_norm=tol, max_iterations=1000, max_time=seconds, verbosity=0)

    def solve(start: Any) -> tuple[float, float]:
        point = [np.asarray(start.W).T.copy(), np.asarray(start.H).copy()]
        found = method.run(problem, initial_point=point)
        at = ufm.Params(jnp.asarray(found.point[0].T), jnp.asarray(found.point[1]), jnp.zeros(prob.K))
        g = prob.gradient(at)
        return float(jnp.sqrt(jnp.sum(g.W**2) + jnp.sum(g.H**2))), float(prob(at))

    solve(ufm.init(prob, seed=100))
    return solve


def _turned(pair: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(pair[0]).T, np.asarray(pair[1])


def _euclidean(prob: ufm.Problem) -> tuple[Callable[..., Any], ...]:
    """f of W and H, its gradient and its Hessian-vector product, jitted, without the spheres' terms."""
    labels, scale = jnp.asarray(prob.labels), float(prob.model.scale)  # type: ignore[attr-defined]

    def f(W: Any, H: Any) -> Any:
        return jnp.mean(jax.vmap(prob.loss)(scale * (H.T @ W.T), labels))

    gradient = jax.grad(f, (0, 1))

    def product(W: Any, H: Any, dW: Any, dH: Any) -> Any:
        return jax.jvp(gradient, (W, H), (dW, dH))[1]

    return jax.jit(f), jax.jit(gradient), jax.jit(product)
