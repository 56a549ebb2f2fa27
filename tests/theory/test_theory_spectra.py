"""The closed-form Hessian spectrum against the dense one, multiplicities included."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_theory_contrastive import exponential, one_vs_all
from test_theory_optima import at_share, problem
from tolerances import close

import ufm
from ufm import losses, theory
from ufm.theory import _sectors, optima, spectra
from ufm.theory._curvature import curvature
from ufm.theory._setting import setting

CUSTOM = {
    "one-vs-all": losses.custom(one_vs_all, convex=True),
    "exponential": losses.custom(exponential, convex=True, shift_invariant=True),
}
LOSSES: list[tuple[Any, dict[str, float]]] = [
    ("ce", {}),
    ("ls", {"alpha": 0.2}),
    ("fl", {"gamma": 3.0}),
    ("mse", {"kappa": 1.0, "beta": 2.0}),
    ("mse", {"kappa": 5.0, "beta": 2.0}),
    ("mse", {"kappa": 0.3, "beta": 1.0}),
    ("one-vs-all", {}),
    ("exponential", {}),
]
BIASES = [{"lam_b": 0.0}, {"lam_b": 0.03}, {"bias": False}]
SHARES = [0.3, 0.995, 1.3]
#: K = 2, 3, 4, 5 and d = K-1 .. K+2, n >= 2
SIZES = {"ce": [(4, 6, 2), (2, 1, 3), (5, 4, 2)], "mse": [(4, 5, 2), (2, 2, 3), (3, 3, 2)], "fl": [(3, 4, 2)]}
DEFAULT = [(3, 5, 2)]


@jax.jit
def _hessian(prob: ufm.Problem, params: ufm.Params) -> jax.Array:
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda x: prob(unravel(x)))(flat)


def _dense(prob: ufm.Problem, params: ufm.Params) -> np.ndarray:
    """Without a bias: the block of W and H (b comes last), which saves a compilation."""
    return np.asarray(_hessian(prob.replace(bias=True), params))[: prob.size, : prob.size]


def _instances() -> list[Any]:
    cases = []
    for (loss, hyper), bias in itertools.product(LOSSES, BIASES):
        for size, share in itertools.product(SIZES.get(loss, DEFAULT), SHARES):
            cases.append(
                pytest.param(loss, hyper, bias, size, share, id=f"{loss}-{hyper}-{bias}-{size}-{share}")
            )
    return cases


@pytest.mark.parametrize(("loss", "hyper", "bias", "size", "share"), _instances())
def test_the_closed_form_is_the_dense_spectrum(loss, hyper, bias, size, share):
    prob = at_share(CUSTOM.get(loss, loss), size, share, hyper=hyper, **bias)
    spectrum, best = theory.hessian_spectrum(prob), theory.global_optimum(prob)
    assert best.regime != "partial"
    assert spectrum.multiplicities.sum() == prob.size
    assert (spectrum.multiplicities > 0).all()
    dense = np.linalg.eigvalsh(_dense(prob, best.params))
    close(spectrum.expand(), dense, ulps=64, name="spectrum")
    assert spectrum.at == ("origin" if share > 1 else "neural collapse")
    assert len(spectrum.values) == len(spectrum.sectors) == len(spectrum.multiplicities)
    # the null space: rotations of the r used directions in d, a free common bias
    r, gauge = best.rank, prob.bias and float(prob.lam_b) == 0 and prob.loss.shift_invariant
    assert spectrum.nullity == r * (r - 1) // 2 + r * (prob.d - r) + gauge
    assert (dense > 1e-9).sum() == prob.size - spectrum.nullity
    close(spectrum.smallest_positive, dense[spectrum.nullity], ulps=64, scale=np.abs(dense).max())


@pytest.mark.parametrize("loss", ["ce", "ls", "fl"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("size", [(2, 3, 2), (3, 4, 3), (7, 9, 2)])
def test_equivariant_blocks_agree_with_the_scalar_formulas(loss, bias, size):
    """Two derivations of the trivial and the standard sector."""
    s = setting(at_share(loss, size, 0.8, **bias))
    best = optima.collapsed_optimum(s)
    curve = curvature(s, best)
    closed = {name: [] for name in ("trivial", "standard")}
    for name, value, _ in spectra._closed_blocks(s, best, curve):
        if name in closed:
            closed[name].append(value)
    close(sorted(closed["trivial"]), _sectors.trivial(s, best, curve), ulps=64)
    if size[0] > 2:
        close(sorted(closed["standard"]), _sectors.standard(s, best, curve), ulps=64)


@pytest.mark.parametrize("K", [3, 6])
def test_mse_without_a_bias_reduces_to_scalars(K):
    """kappa = 1, rho = 2a/(Kc): mu+-(rho) K(K+1)/2 times, 0 and (lam_W + lam_H)(1 + rho) K(K-1)/2 times."""
    prob = at_share("mse", (K, K + 2, 3), 0.4, hyper={"kappa": 1.0, "beta": 2.0}, bias=False)
    s = setting(prob)
    rho, total = 2 * theory.global_optimum(prob).margin / (K * s.c), s.lam_W + s.lam_H
    root = np.sqrt(total**2 * (1 + rho) ** 2 - 16 * rho * s.lam_W * s.lam_H)
    expected = np.concatenate([
        np.repeat((total * (1 + rho) + np.array([-root, root])) / 2, K * (K + 1) // 2),
        np.repeat([0.0, total * (1 + rho)], K * (K - 1) // 2),
        np.full((s.n - 1) * K**2, s.lam_H * (1 + rho)),
        np.repeat([0.0, total], (s.d - K) * K),
        np.full((s.d - K) * (s.N - K), s.lam_H),
    ])  # fmt: skip
    close(theory.hessian_spectrum(prob).expand(), np.sort(expected), ulps=64)


@pytest.mark.parametrize("K", [4, 9])
def test_cross_entropy_near_its_threshold_is_flat_along_mu_minus(K):
    """lam_W = lam_H = lam, moderate lam: mu-(rho2) = 2 lam min(1, a/K), from the symmetric sector."""
    prob = ufm.Problem.balanced("ce", K=K, d=K, n=2)
    prob = prob.replace(lam_W=0.999 / K / 2**0.5, lam_H=0.999 / K / 2**0.5)
    a, spectrum = theory.global_optimum(prob).margin, theory.hessian_spectrum(prob)
    symmetric = [v for v, name in zip(spectrum.values, spectrum.sectors, strict=True) if name == "symmetric"]
    close(min(symmetric), 2 * prob.lam_W * a / K, ulps=16)


def test_the_origin_turns_unstable_at_the_threshold():
    for loss, bias in itertools.product(("ce", "ls", "fl", "mse"), BIASES):
        above = theory.hessian_spectrum(at_share(loss, (4, 5, 2), 1 + 1e-9, **bias))
        assert above.at == "origin"
        assert 0 < above.values[above.values > 0].min() < 1e-8


def test_a_large_problem_takes_no_dense_work():
    prob = ufm.Problem.balanced("mse", K=100, d=512, n=100, lam_W=1e-4, lam_H=1e-5, lam_b=1e-2)
    spectrum = theory.hessian_spectrum(prob)
    assert spectrum.multiplicities.sum() == prob.size
    assert spectrum.nullity == 100 * 99 // 2 + 100 * (512 - 100)


def test_partial_collapse_leaves_the_spectrum_at_neural_collapse():
    prob = at_share("fl", (18, 18, 2), 1 - 1e-6, hyper={"gamma": 3.0})
    assert theory.global_optimum(prob).regime == "partial"
    spectrum = theory.hessian_spectrum(prob)
    assert spectrum.at == "neural collapse"
    assert spectrum.values.min() == 0  # a strict local minimum modulo symmetry
    assert spectrum.nullity == 17 * 16 // 2 + 17 + 1
    assert spectrum.margin == pytest.approx(theory.threshold(prob).a_tie, rel=1e-2)


def test_a_frame_of_rank_one_is_refused():
    prob = problem(CUSTOM["one-vs-all"], (8, 9, 2), 0.2, bias=False)
    assert theory.global_optimum(prob).structure.startswith("rank one")
    with pytest.raises(theory.NoClosedForm, match="rank one"):
        theory.hessian_spectrum(prob)


# --- what the spectrum says of gradient descent ---------------------------------------------------------


@jax.jit
def _descend(prob: ufm.Problem, start: ufm.Params, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradient norms of plain gradient descent, written here."""

    def one(params, _):
        g = jax.grad(prob)(params)
        norm = sum(jax.numpy.sum(x * x) for x in g) ** 0.5
        return ufm.Params(*(x - step * y for x, y in zip(params, g, strict=True))), norm

    return jax.lax.scan(one, start, length=1500)[1]


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
@pytest.mark.parametrize(("loss", "hyper", "bias"), [("ce", {}, {"lam_b": 0.03}), ("mse", {"beta": 2.0}, {})])
def test_gradient_descent_shrinks_the_gradient_at_the_predicted_rate(loss, hyper, bias, factor):
    prob = ufm.Problem.balanced(loss, K=4, d=6, n=2, lam_W=0.06, lam_H=0.03, **hyper, **bias)
    spectrum = theory.hessian_spectrum(prob)
    assert spectrum.condition_number == pytest.approx(spectrum.values.max() / spectrum.smallest_positive)
    step = factor * 2 / (spectrum.smallest_positive + spectrum.values.max())
    rate = spectrum.linear_rate(step)
    noise = ufm.init(prob, seed=3, scale=1e-3 if rate < 1 else 1e-9)
    start = ufm.Params(*(x + y for x, y in zip(theory.global_optimum(prob).params, noise, strict=True)))
    norms = np.asarray(_descend(prob, start, step))
    # the last decades before rounding, or before it has left the neighbourhood
    passed = (norms < 1e-8, norms < 1e-12) if rate < 1 else (norms > 1e-7, norms > 1e-5)
    first, last = (int(np.argmax(x)) for x in passed)
    assert 0 < first < last
    measured = (norms[last] / norms[first]) ** (1 / (last - first))
    assert measured == pytest.approx(rate, abs=2e-4 if rate < 1 else 2e-3)  # few steps where it leaves


def test_the_best_step_has_the_rate_of_the_condition_number():
    spectrum = theory.hessian_spectrum(ufm.Problem.balanced("fl", K=5, d=7, n=3, lam_W=0.02, lam_H=0.01))
    kappa = spectrum.condition_number
    assert spectrum.linear_rate() == pytest.approx((kappa - 1) / (kappa + 1), rel=1e-12)
    assert (
        spectrum.linear_rate(0.9 * 2 / (spectrum.values.max() + spectrum.smallest_positive))
        > spectrum.linear_rate()
    )
    with pytest.raises(ValueError, match="step: expected a finite number > 0"):
        spectrum.linear_rate(0.0)
