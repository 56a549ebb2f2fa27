"""Proofs of negative curvature, and of values below neural collapse."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import jax
import mpmath as mp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from rigour_instances import (
    DPS,
    QUICK,
    as_jax,
    balanced,
    contains,
    every_loss,
    every_regime,
    moved,
    optimal_value,
    optimum,
    stationary,
    sub_etf,
    sub_etf_value,
)
from tolerances import close

import ufm
from ufm import Params, Problem, losses, theory

flint = pytest.importorskip("flint")

from ufm.rigour import balls, minimum  # noqa: E402
from ufm.rigour import proofs as rigour  # noqa: E402
from ufm.rigour.proofs import prove_below, prove_critical_point, prove_negative_curvature  # noqa: E402

# --- negative curvature ---------------------------------------------------------------------------------


@partial(jax.jit, compiler_options=QUICK)
def _dense(prob: Problem, params: Params) -> jax.Array:
    x, unflatten = ravel_pytree(params)
    return jax.hessian(lambda x: prob(unflatten(x)))(x)


def _lowest(prob: Problem, params: Params) -> tuple[float, Params]:
    """Smallest eigenpair of the dense Hessian."""
    values, vectors = np.linalg.eigh(_dense(prob, as_jax(params)))
    return float(values[0]), ravel_pytree(as_jax(params))[1](vectors[:, 0])


@every_loss
@every_regime
def test_the_origin_is_proved_to_be_a_strict_saddle(name: str, regime: str) -> None:
    """The direction and the eigenvalue of docs/theory.md, section 4.2, from the top singular pair of G."""
    prob = balanced(name, regime, K=3)
    x = prob.zeros()
    if name == "mse" and prob.bias:
        kappa, beta = 2.0, 1.5
        x = x._replace(b=x.b + 2 * kappa * beta / (2 * kappa + 4 + float(prob.lam_b) * 3))
    U, s, Vt = np.linalg.svd(np.asarray(prob.logit_gradient(x)))
    small = np.array([[prob.lam_W, s[0]], [s[0], prob.lam_H]])
    values, vectors = np.linalg.eigh(small)
    axis = np.eye(prob.d)[0]
    v = Params(np.outer(U[:, 0], axis) * vectors[0, 0], np.outer(axis, Vt[0]) * vectors[1, 0], np.zeros(3))
    proof = prove_negative_curvature(prob, x, Params(*(3.0 * leaf for leaf in v)))
    assert proof.proved, proof
    close(float(proof.bound("curvature").upper), values[0], ulps=64, scale=1.0)
    assert Fraction(proof.bound("curvature").lower) <= Fraction(proof.bound("curvature").upper) < 0


def test_a_saddle_of_rank_two() -> None:
    """Columns of the direction differ within a class; the bound holds over a ball, so it is not a point."""
    prob = balanced("fl")
    guess = sub_etf(prob, 3, *stationary(prob, 3))
    x = Params(*(leaf.astype(float) for leaf in prove_critical_point(prob, guess, eps=1e-5).point))
    value, v = _lowest(prob, x)
    v = moved(v, 1e-3)
    proof = prove_negative_curvature(prob, x, v, eps=1e-12)
    assert proof.proved
    y, H = np.asarray(ravel_pytree(as_jax(v))[0]), np.asarray(_dense(prob, as_jax(x)))
    close(float(proof.bound("curvature").upper), y @ H @ y / (y @ y), ulps=256, scale=1.0)
    assert value < float(proof.bound("curvature").upper) < 0
    wide = prove_negative_curvature(prob, moved(x, 1e-6), v, eps=1e-4)
    spread = Fraction(wide.bound("curvature").upper) - Fraction(wide.bound("curvature").lower)
    assert spread > Fraction(wide.bound("distance").upper) / 100
    assert wide.proved


def test_no_negative_curvature_where_there_is_none() -> None:
    prob = balanced("ce", K=3)
    x = optimum(prob)
    flat = prove_negative_curvature(prob, x, _lowest(prob, x)[1])
    assert not flat.proved
    assert "not proved negative" in flat.why
    up = prove_negative_curvature(prob, x, x)
    assert not up.proved
    assert Fraction(up.bound("curvature").lower) > 0
    nowhere = prove_negative_curvature(prob, ufm.init(prob), _lowest(prob, prob.zeros())[1])
    assert not nowhere.proved
    assert nowhere.claim == "negative curvature"
    assert "no critical point" in nowhere.why


# --- below neural collapse ------------------------------------------------------------------------------


def _exact_value(prob: Problem, params: Params) -> Any:
    """f of focal loss with a free bias, of the floats as they are, in mpmath's working precision."""
    exact = np.vectorize(lambda x: mp.mpf(float(x)), otypes=[object])
    W, H, b = (exact(x) for x in params)
    value, gamma = mp.mpf(0), exact(prob.loss.gamma)
    for k, z in zip(np.asarray(prob.labels), (W @ H + b[:, None]).T, strict=True):
        p = 1 / sum(mp.exp(x - z[k]) for x in z)
        value -= (1 - p) ** gamma * mp.log(p) / prob.N
    return value + (exact(prob.lam_W) * np.sum(W * W) + exact(prob.lam_H) * np.sum(H * H)) / 2


def _assert_collapse(prob: Problem, proof: rigour.Proof) -> None:
    """The ball of neural collapse's least value contains it, as found by Newton's method at 60 digits."""
    low, high = (float(x) for x in proof.bound("margin")[2:])
    with mp.workdps(DPS):
        assert contains(proof.bound("collapse"), optimal_value(prob, margin=(low + high) / 2))


@pytest.mark.processor
def test_the_counterexample_of_20_classes() -> None:
    """Sub-ETFs of 17 and of 18 classes below neural collapse, which is at 2.568462507026."""
    lam = 1.20108 / 19
    prob = Problem.balanced("fl", gamma=3.0, K=20, d=21, n=1, lam_W=lam, lam_H=lam)
    for m, objective in ((17, 2.56846193600930), (18, 2.56846160185465)):
        guess = sub_etf(prob, m, *stationary(prob, m, (0.25, 0.01)))
        proof = prove_below(prob, guess)
        assert proof.proved, proof
        _assert_collapse(prob, proof)
        close(float(proof.bound("collapse").lower), 2.568462507025976)
        with mp.workdps(DPS):
            assert contains(proof.bound("objective"), _exact_value(prob, guess))
        # where the guess stops depends on the processor; its value does to second order alone
        close(float(proof.bound("objective").upper), objective, ulps=32)
        gap = float(proof.bound("collapse").lower) - float(proof.bound("objective").upper)
        close(float(proof.bound("gap").lower), gap, ulps=16, scale=2.6)
    assert not prove_below(prob, prob.zeros()).proved


def test_the_counterexample_in_the_paper_s_setting() -> None:
    """K = 100, n = 500, gamma = 3 and all penalties 5.255e-4: 50,000 samples, 100 of them distinct."""
    lam = 5.255e-4
    prob = Problem.balanced("fl", gamma=3.0, K=100, d=101, n=500, lam_W=lam, lam_H=lam, lam_b=lam)
    found = stationary(prob, 59, (2.4, 0.08))
    proof = prove_below(prob, sub_etf(prob, 59, *found))
    assert proof.proved, proof
    _assert_collapse(prob, proof)
    close(float(proof.bound("collapse").lower), 4.46802112099175)
    close(float(proof.bound("objective").lower), sub_etf_value(prob, 59, *found), ulps=64)
    close(float(proof.bound("objective").lower), 4.4673167496062, ulps=100)  # as many digits as are given
    assert 7.0437e-4 < float(proof.bound("gap").lower) < 7.0438e-4


@pytest.mark.parametrize("name", ["ce", "ls", "fl"])
@pytest.mark.parametrize("strength", [1e-4, 0.3, 0.999, 1.5])
def test_the_scalar_minimum_is_theory_s(name: str, strength: float) -> None:
    """Below, near and above the threshold; where Theorem 1 holds nothing is proved to be below."""
    prob = balanced(name, K=6, n=2)
    lam = strength * theory.threshold(prob).c_thr / np.sqrt(2)
    prob = prob.replace(lam_W=np.float64(2 * lam), lam_H=np.float64(lam / 2))
    best = theory.global_optimum(prob)
    proof = prove_below(prob, best.params)
    assert not proof.proved
    with mp.workdps(DPS):
        value = mp.log(6) if name == "ce" else None
        if strength < 1 and name != "fl":
            value = optimal_value(prob)
        if value is not None:
            assert contains(proof.bound("collapse"), value)
    close(float(proof.bound("collapse").lower), best.objective, ulps=32)
    low, high = (float(x) for x in proof.bound("margin")[2:])
    assert low - 1e-9 <= best.margin <= high + 1e-9


def test_a_profile_with_two_minima() -> None:
    """At the tie of K = 50, gamma = 3 both are kept; on either side one of them is."""
    loss, limits = balls.loss_in_balls(losses.focal(3.0)), []
    for C in (1.1834333967 * 0.999, 1.1834333967 * 1.001):
        with rigour._precision(30):
            found = minimum.scalar_minimum(loss, 50, balls.ball(C), 30)
        limits.append((float(found.left), float(found.right)))
        grid = theory.scalar_profile(losses.focal(3.0), 50)
        a = np.linspace(0, 6, 600_001)
        lowest = np.min(grid.value(a) + C * a)
        assert -1e-13 <= lowest - float(found.value) < 1e-9
    assert limits[0][0] > 1.5
    assert limits[1][0] == 0
    assert limits[1][1] < 0.3
