"""The peers: each solves equation (7) from the same start to the same gradient norm.

A peer is a function (prob, tol, seconds) -> a function that solves once from a start and returns
(|grad f|, f). Everything that compiles has compiled, and a step size is tuned, before that one is timed.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree

import ufm
from benchmarks.machine import cores

Solve = Callable[[ufm.Params], tuple[float, float]]

#: steps from which the best step size is chosen
TRIAL = 300


class Peer(NamedTuple):
    """How a peer is constructed, and its time limit in seconds."""

    make: Callable[[ufm.Problem, float, float], Solve]
    cap: float


class _Done(Exception):  # noqa: N818 - it does not signal an error
    """Raised once the gradient is small enough or the time limit is reached."""


# --- scipy ----------------------------------------------------------------------------------------


class _Flat:
    """Equation (7) on one vector, jitted, with the stopping rule that all scipy peers share."""

    def __init__(self, prob: ufm.Problem, tol: float, seconds: float) -> None:
        x0, unravel = ravel_pytree(prob.zeros())
        self._both = jax.jit(jax.value_and_grad(lambda x: prob(unravel(x))))
        self._product = jax.jit(lambda x, v: jax.jvp(jax.grad(lambda y: prob(unravel(y))), (x,), (v,))[1])
        self.tol, self.seconds = tol, seconds
        self.value_and_grad(np.asarray(x0))
        self.product(np.asarray(x0), np.asarray(x0))

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        f, g = self._both(x)
        return float(f), np.asarray(g)

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray(self._product(x, v))

    def solve(self, start: ufm.Params, **how: Any) -> tuple[float, float]:
        best, began = [np.inf, np.inf], time.perf_counter()

        def watched(x: np.ndarray) -> tuple[float, np.ndarray]:
            f, g = self.value_and_grad(x)
            best[:] = min(best, [float(np.linalg.norm(g)), f])
            if best[0] <= self.tol or time.perf_counter() - began > self.seconds:
                raise _Done
            return f, g

        with contextlib.suppress(_Done):
            scipy.optimize.minimize(watched, np.asarray(ravel_pytree(start)[0]), jac=True, **how)
        return best[0], best[1]


def scipy_lbfgsb(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """scipy's L-BFGS-B, 20 pairs, with our jitted gradient."""
    flat = _Flat(prob, tol, seconds)
    options = {"maxcor": 20, "maxiter": 10**6, "maxfun": 10**7, "ftol": 0.0, "gtol": 0.0}
    return lambda start: flat.solve(start, method="L-BFGS-B", options=options)


def scipy_trust_ncg(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """scipy's trust-region Newton-CG with our jitted gradient and Hessian-vector product."""
    flat = _Flat(prob, tol, seconds)
    options = {"gtol": tol, "maxiter": 10**5}
    return lambda start: flat.solve(start, method="trust-ncg", hessp=flat.product, options=options)


# --- optax ----------------------------------------------------------------------------------------


class _Loop:
    """An optax transformation of a step size on equation (7), its whole loop compiled.

    `slope` is (params, state) -> value and gradient.
    """

    def __init__(
        self, prob: ufm.Problem, transform: Callable[[Any], Any], slope: Callable[..., Any], tol: float
    ) -> None:
        self.tol, self._objective = tol, jax.jit(prob)
        self._init = jax.jit(lambda params: transform(1.0).init(params))

        def step(rate: Any, carry: Any) -> Any:
            params, state, _ = carry
            chain = optax.with_extra_args_support(transform(rate))
            f, g = slope(params, state=state)
            updates, state = chain.update(g, state, params, value=f, grad=g, value_fn=prob)
            return optax.apply_updates(params, updates), state, optax.tree.norm(g)

        @jax.jit
        def advance(rate: Any, carry: Any, limit: Any) -> Any:
            def going(c: Any) -> Any:
                return (c[0][2] > tol) & (c[1] < limit)

            return jax.lax.while_loop(going, lambda c: (step(rate, c[0]), c[1] + 1), (carry, 0))[0]

        self.advance = advance
        fresh = self.fresh(prob.zeros())
        jax.block_until_ready(advance(1.0, fresh, 1))
        self._objective(fresh[0])
        # looks at the clock some ten times a second, whatever a step costs
        began = time.perf_counter()
        jax.block_until_ready(advance(1.0, fresh, 3))
        self.chunk = max(1, int(0.3 / (time.perf_counter() - began)))

    def fresh(self, start: ufm.Params) -> Any:
        return start, self._init(start), jnp.asarray(jnp.inf)

    def solve(self, start: ufm.Params, rate: float, seconds: float) -> tuple[float, float]:
        carry, began = self.fresh(start), time.perf_counter()
        while float(carry[2]) > self.tol and time.perf_counter() - began < seconds:
            carry = self.advance(rate, carry, self.chunk)
        return float(carry[2]), float(self._objective(carry[0]))

    def after(self, start: ufm.Params, rate: float, steps: int) -> float:
        """f after this number of steps."""
        return float(self._objective(self.advance(rate, self.fresh(start), steps)[0]))


def optax_lbfgs(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """optax's L-BFGS (20 pairs, zoom line search)."""
    slope = optax.value_and_grad_from_state(prob)
    loop = _Loop(prob, lambda _: optax.lbfgs(memory_size=20), slope, tol)
    return lambda start: loop.solve(start, 1.0, seconds)


def optax_adam(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """optax's Adam on the full batch, with a constant step size, the best of a grid."""
    slope = jax.value_and_grad(prob)
    loop = _Loop(prob, optax.adam, lambda params, state: slope(params), tol)
    start = ufm.init(prob)
    rate = _tuned(np.logspace(-4, 0, 9), lambda rate: loop.after(start, rate, TRIAL))
    return lambda start: loop.solve(start, rate, seconds)


def _tuned(rates: np.ndarray, after: Callable[[float], float]) -> float:
    """The step size that reaches the lowest objective in a trial run."""
    values = np.nan_to_num([after(float(rate)) for rate in rates], nan=np.inf)
    return float(rates[np.argmin(values)])


# --- torch ----------------------------------------------------------------------------------------


def torch_threads(prob: ufm.Problem) -> None:
    """Uses one thread or all, whichever is faster at this size."""
    import torch

    torch.set_num_threads(1 if prob.size < 100_000 else cores())


def torch_objective(prob: ufm.Problem) -> Callable[[list[Any]], Any]:
    """Equation (7) with cross-entropy, written in torch."""
    import torch

    torch_threads(prob)
    labels = torch.tensor(np.asarray(prob.labels), dtype=torch.int64)
    lam_W, lam_H, lam_b = float(prob.lam_W), float(prob.lam_H), float(prob.lam_b)

    def objective(leaves: list[Any]) -> Any:
        W, H, b = leaves
        fit = torch.nn.functional.cross_entropy((W @ H).T + b, labels)
        return fit + lam_W / 2 * (W * W).sum() + lam_H / 2 * (H * H).sum() + lam_b / 2 * (b * b).sum()

    return objective


def torch_leaves(start: ufm.Params) -> list[Any]:
    import torch

    return [torch.tensor(np.asarray(x), requires_grad=True) for x in start]


class _Watched:
    """torch's closure: evaluates f and its gradient and stops once the tolerance is reached."""

    def __init__(self, objective: Any, leaves: list[Any], optimiser: Any, tol: float, seconds: float) -> None:
        self._objective, self._leaves, self._optimiser = objective, leaves, optimiser
        self._tol, self._until = tol, time.perf_counter() + seconds
        self.best = (np.inf, np.inf)

    def __call__(self) -> Any:
        self._optimiser.zero_grad()
        f = self._objective(self._leaves)
        f.backward()
        norm = sum((x.grad * x.grad).sum() for x in self._leaves).sqrt().item()
        self.best = min(self.best, (norm, f.item()))
        if norm <= self._tol or time.perf_counter() > self._until:
            raise _Done
        return f

    def run(self, steps: int | None = None) -> tuple[float, float]:
        with contextlib.suppress(_Done):
            for _ in itertools.count() if steps is None else range(steps):
                self._optimiser.step(self)
        return self.best


def torch_lbfgs(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """torch's L-BFGS (20 pairs, strong Wolfe)."""
    import torch

    objective = torch_objective(prob)

    def solve(start: ufm.Params, seconds: float = seconds) -> tuple[float, float]:
        leaves = torch_leaves(start)
        never = {"tolerance_grad": 0, "tolerance_change": 0}
        optimiser = torch.optim.LBFGS(
            leaves, max_iter=20, history_size=20, line_search_fn="strong_wolfe", **never
        )
        return _Watched(objective, leaves, optimiser, tol, seconds).run()

    solve(ufm.init(prob), 0.0)  # torch's first call loads what the next ones use
    return solve


def torch_sgd(prob: ufm.Problem, tol: float, seconds: float) -> Solve:
    """torch's SGD with momentum 0.9 on the full batch, its step size the best of a grid."""
    import torch

    objective = torch_objective(prob)

    def descend(
        start: ufm.Params, rate: float, seconds: float, steps: int | None = None
    ) -> tuple[tuple[float, float], float]:
        leaves = torch_leaves(start)
        optimiser = torch.optim.SGD(leaves, lr=rate, momentum=0.9)
        best = _Watched(objective, leaves, optimiser, tol, seconds).run(steps)
        return best, objective(leaves).item()

    first = ufm.init(prob)
    rate = _tuned(np.logspace(-1, 3, 9), lambda rate: descend(first, rate, seconds / 5, TRIAL)[1])
    return lambda start: descend(start, rate, seconds)[0]


PEERS = {
    "scipy trust-ncg": Peer(scipy_trust_ncg, 30.0),
    "optax L-BFGS": Peer(optax_lbfgs, 30.0),
    "scipy L-BFGS-B": Peer(scipy_lbfgsb, 30.0),
    "torch L-BFGS": Peer(torch_lbfgs, 30.0),
    "torch SGD, momentum": Peer(torch_sgd, 10.0),
    "optax Adam": Peer(optax_adam, 10.0),
}
#: those that a problem of millions of unknowns gets: a first-order method takes more of the same gradients
SECOND_ORDER = ("scipy trust-ncg", "optax L-BFGS", "scipy L-BFGS-B", "torch L-BFGS")
