"""The peers, each on equation (7) as it stands: the same start, stopped at the same gradient norm.

A peer is a function (prob, start, tol, seconds) -> a function that runs it once and returns (|grad f|, f).
Everything that compiles has compiled before that function is timed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree

import ufm

Run = Callable[[], tuple[float, float]]


class _Done(Exception):  # noqa: N818 - it is no error
    """The gradient is small enough, or time is up."""


class _Flat:
    """Equation (7) on one vector, jitted, with the stopping rule that all scipy peers share."""

    def __init__(self, prob: ufm.Problem, start: ufm.Params, tol: float, seconds: float) -> None:
        self.x0, unravel = ravel_pytree(start)
        self._both = jax.jit(jax.value_and_grad(lambda x: prob(unravel(x))))
        self._product = jax.jit(lambda x, v: jax.jvp(jax.grad(lambda y: prob(unravel(y))), (x,), (v,))[1])
        self.tol, self.seconds = tol, seconds
        self.value_and_grad(np.asarray(self.x0))
        self.product(np.asarray(self.x0), np.asarray(self.x0))

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        f, g = self._both(x)
        return float(f), np.asarray(g)

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray(self._product(x, v))

    def run(self, **how: object) -> tuple[float, float]:
        best, began = [np.inf, np.inf], time.perf_counter()

        def watched(x: np.ndarray) -> tuple[float, np.ndarray]:
            f, g = self.value_and_grad(x)
            best[:] = min(best, [float(np.linalg.norm(g)), f])
            if best[0] <= self.tol or time.perf_counter() - began > self.seconds:
                raise _Done
            return f, g

        with contextlib.suppress(_Done):
            scipy.optimize.minimize(watched, np.asarray(self.x0), jac=True, **how)  # type: ignore[call-overload]
        return best[0], best[1]


def scipy_lbfgsb(prob: ufm.Problem, start: ufm.Params, tol: float, seconds: float) -> Run:
    """scipy's L-BFGS-B, 20 pairs, with our jitted gradient."""
    flat = _Flat(prob, start, tol, seconds)
    options = {"maxcor": 20, "maxiter": 10**6, "maxfun": 10**7, "ftol": 0.0, "gtol": 0.0}
    return lambda: flat.run(method="L-BFGS-B", options=options)


def scipy_trust_ncg(prob: ufm.Problem, start: ufm.Params, tol: float, seconds: float) -> Run:
    """scipy's trust-region Newton-CG with our jitted gradient and Hessian-vector product."""
    flat = _Flat(prob, start, tol, seconds)
    return lambda: flat.run(method="trust-ncg", hessp=flat.product, options={"gtol": tol, "maxiter": 10**5})


def optax_lbfgs(prob: ufm.Problem, start: ufm.Params, tol: float, seconds: float) -> Run:
    """optax's L-BFGS (20 pairs, zoom line search), its whole loop compiled."""
    transform = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(prob)

    def step(carry):  # type: ignore[no-untyped-def]
        params, state, _ = carry
        f, g = value_and_grad(params, state=state)
        updates, state = transform.update(g, state, params, value=f, grad=g, value_fn=prob)
        return optax.apply_updates(params, updates), state, optax.tree.norm(g)

    @jax.jit
    def loop(carry, limit):  # type: ignore[no-untyped-def]
        def going(c):  # type: ignore[no-untyped-def]
            return (c[0][2] > tol) & (c[1] < limit)

        return jax.lax.while_loop(going, lambda c: (step(c[0]), c[1] + 1), (carry, 0))

    fresh = (start, transform.init(start), jnp.asarray(jnp.inf))
    jax.block_until_ready(loop(fresh, 1))
    # looks at the clock some ten times a second, whatever a step costs
    began = time.perf_counter()
    jax.block_until_ready(loop(fresh, 3))
    chunk = max(1, int(0.3 / (time.perf_counter() - began)))

    def run() -> tuple[float, float]:
        carry, began = fresh, time.perf_counter()
        while float(carry[2]) > tol and time.perf_counter() - began < seconds:
            carry, _ = loop(carry, 100 * chunk if carry is fresh and chunk > 100 else chunk)
        return float(carry[2]), float(prob(carry[0]))

    return run


def torch_lbfgs(prob: ufm.Problem, start: ufm.Params, tol: float, seconds: float) -> Run:
    """torch's L-BFGS (20 pairs, strong Wolfe) on equation (7) written in torch."""
    import torch

    torch.set_num_threads(1 if prob.size < 100_000 else os.cpu_count() or 1)  # what is faster, at each size
    labels = torch.tensor(np.asarray(prob.labels), dtype=torch.int64)
    lam_W, lam_H, lam_b = float(prob.lam_W), float(prob.lam_H), float(prob.lam_b)

    def run() -> tuple[float, float]:
        leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in start]
        W, H, b = leaves
        how = {
            "history_size": 20,
            "line_search_fn": "strong_wolfe",
            "tolerance_grad": 0,
            "tolerance_change": 0,
        }
        optimiser = torch.optim.LBFGS(leaves, max_iter=20, **how)
        best, began = [np.inf, np.inf], time.perf_counter()

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            fit = torch.nn.functional.cross_entropy((W @ H).T + b, labels)
            f = fit + lam_W / 2 * (W * W).sum() + lam_H / 2 * (H * H).sum() + lam_b / 2 * (b * b).sum()
            f.backward()
            norm = torch.sqrt(sum((x.grad * x.grad).sum() for x in leaves)).item()
            best[:] = min(best, [norm, f.item()])
            if norm <= tol or time.perf_counter() - began > seconds:
                raise _Done
            return f

        try:
            while True:
                optimiser.step(closure)
        except _Done:
            return best[0], best[1]

    return run


PEERS = {
    "scipy trust-ncg": scipy_trust_ncg,
    "optax L-BFGS": optax_lbfgs,
    "scipy L-BFGS-B": scipy_lbfgsb,
    "torch L-BFGS": torch_lbfgs,
}
