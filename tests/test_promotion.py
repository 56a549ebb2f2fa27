"""Nothing in the package relies on JAX's implicit conversions between dtypes: they are errors here.

A conversion that nobody has asked for may widen float32 or narrow an integer; with
`jax.numpy_dtype_promotion("strict")` JAX raises where one would happen. Every program is traced again in
this mode, because it is part of JAX's key.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import landscape, losses, theory
from ufm.solvers import SOLVERS

SIZES = {"K": 3, "d": 4, "n": 2, "lam_W": 4e-3, "lam_H": 9e-3}


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def ours(z: jax.Array, k: Any) -> jax.Array:
    return -jax.nn.log_softmax(0.7 * z)[k]


def problem(loss: Any) -> ufm.Problem:
    return ufm.Problem.balanced(loss, **SIZES)


def test_the_mode_is_on():
    with pytest.raises(ValueError, match="jax_numpy_dtype_promotion=strict"):
        jnp.zeros(2) * jnp.ones(2, bool)


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_and_their_derivatives(loss, dtype):
    z, k = jnp.arange(4, dtype=dtype), jnp.asarray(1, jnp.int32)
    f = losses.get(loss)
    for value in (f(z, k), jax.grad(f)(z, k), jax.hessian(f)(z, k)):
        assert value.dtype == dtype


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "adam"])  # optax's Adam promotes
def test_solvers(name):
    prob = problem("ce")
    sol = ufm.solve(prob, solver=name, max_steps=3, record=True)
    assert len(sol.history.step) == 4


def test_reduction_sweep_and_verdicts():
    prob = problem("ce")
    assert ufm.verify(ufm.solve(prob, reduced=True)).passed
    assert ufm.solve_sweep(prob, seeds=range(2), lam_W=[1e-2, 2e-2]).converged.all()


@pytest.mark.parametrize(
    "loss", [*losses.PAPER, losses.custom(ours, convex=True, shift_invariant=True)], ids=str
)
def test_theory(loss):
    prob = problem(loss)
    assert theory.global_optimum(prob).regime == "non-trivial"
    assert theory.threshold(prob).c_thr > 0
    assert len(theory.hessian_spectrum(prob).values) > 0
    theory.scalar_profile(prob.loss, prob.K)
    theory.contrastive_property(prob.loss, prob.K)
    theory.convexity_region(prob.loss, prob.K)


READERS = {
    "certificate": landscape.certificate,
    "inertia": landscape.inertia,
    "escape": landscape.escape_direction,
    "all": lambda prob, at: landscape.eigenvalues(prob, at, which="all"),
    "lanczos": lambda prob, at: landscape.eigenvalues(prob, at, method="lanczos"),
    "dense": landscape.dense,
    "product": lambda prob, at: landscape.hvp(prob, at, at),
    "polish": landscape.polish,
    "descend": landscape.descend,
}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_the_hessian(name):
    prob = problem("ls")
    assert READERS[name](prob, prob.zeros()) is not None


def test_critical_points_and_searches():
    prob = problem("ce")
    assert len(landscape.critical_points(prob)) > 1
    assert len(landscape.find_critical_points(prob, starts=8)) > 0
    assert landscape.phase_diagram("ce", K=3, C=np.array([0.3, 0.9]), starts=2).phase.shape == (1, 2)
