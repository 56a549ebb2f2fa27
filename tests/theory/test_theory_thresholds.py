"""Thresholds, the kind of the transition, and where focal loss is convex."""

from __future__ import annotations

import itertools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from test_theory_contrastive import SAME, USER_LOSSES, exponential, one_vs_all
from test_theory_optima import BIASES, LOSSES, at_share, problem
from tolerances import close

import ufm
from ufm import losses, theory
from ufm.losses._profile import margin_of
from ufm.theory.profiles import scalar_profile

GAMMAS = [0.005, 0.03, 0.3, 1.0, 2.382, 3.0, 10.0, 300.0]

# --- probabilities of focal loss, by a sign change in decimals ----------------------------------------


def _convexity(p: Decimal, g: Decimal) -> Decimal:
    """-S'(p) up to a positive factor."""
    return (1 + 2 * g) * (1 - p) + g * (1 - (1 + g) * p) * p.ln()


def _slope(p: Decimal, g: Decimal) -> Decimal:
    return (g * (1 - p).ln()).exp() * (1 - p - g * p * p.ln())


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_probabilities_are_roots_to_the_last_digits(gamma):
    with localcontext() as context:
        context.prec = 250  # p_infl(0.005) is 1e-88
        width, g = Decimal("1e-15"), Decimal(gamma)
        p = Decimal(theory.p_infl(gamma))
        assert _convexity(p * (1 - width), g) < 0 < _convexity(p * (1 + width), g)
        p = Decimal(theory.p_unit(gamma))
        assert _slope(p * (1 - width), g) > 1 > _slope(p * (1 + width), g)
        assert theory.p_infl(gamma) < theory.p_unit(gamma)


def test_focal_probabilities_at_the_ends():
    for gamma in (0.0, 1e-320, 1e-4):
        assert theory.p_infl(gamma) == theory.p_unit(gamma) == 0.0
    assert 0 < theory.p_infl(1.4e-3) < 1e-300
    close(theory.p_infl(0.01), np.exp(-2 - 1 / 0.01), ulps=256)
    for function, gamma, largest in ((theory.p_infl, 2.382, 0.058444), (theory.p_unit, 2.672, 0.167533416)):
        found = minimize_scalar(lambda g, f=function: -f(g), bounds=(0.1, 20.0), method="bounded")
        assert abs(found.x - gamma) < 1e-3
        assert abs(-found.fun - largest) < 1e-6
    with pytest.raises(ValueError, match="gamma"):
        theory.p_infl(-1.0)


@jax.jit
def _hessian(loss: losses.Loss, z: jax.Array) -> jax.Array:
    return jax.hessian(lambda z: loss(z, 0))(z)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("K", [2, 3, 6])
def test_focal_loss_is_convex_exactly_above_p_infl(K, gamma):
    """lambda_min of the Hessian in z changes sign there, whatever the other logits."""
    loss = losses.focal(gamma)
    p = theory.convexity_region(loss, K).p_min
    rng = np.random.default_rng(1)
    for _ in range(5):
        others = rng.normal(size=K - 1)
        for side in (1 - 1e-6, 1 + 1e-6):
            q = p * side
            own = np.log(q) - np.log1p(-q) + np.log(np.exp(others).sum())
            values = np.linalg.eigvalsh(_hessian(loss, jnp.asarray([own, *others])))
            lowest = values[np.argmax(np.abs(values) > 1e-14)]  # the shift is the zero
            assert (lowest < 0) == (side < 1)


def test_convexity_regions():
    found = theory.convexity_region("fl", 10)
    close(found.p_min, 0.05749690817821817, ulps=2)
    assert found.proved == "proved"
    assert found.paper is not None
    close(np.log(found.paper) + 2 * (1 - found.paper), 0.0, scale=1.0)
    assert "0.21" in found.reason
    for name in ("ce", "ls", "mse"):
        assert theory.convexity_region(name, 7).p_min == 0.0
    # S(p) by hand: p^q (1-p), a(1-p) + 4 b p(1-p), p(1-p)(2-p), 2p(1-p), (1-p)(1+eps p)
    for name, p in (
        ("generalised ce", 0.7 / 1.7),
        ("symmetric ce", (4 - 0.1) / 8),
        ("taylor-2", 1 - 3**-0.5),
        ("mean absolute error", 0.5),
        ("poly-1, 1", 0.0),
        ("poly-1, 2", 0.25),
    ):
        numeric = theory.convexity_region(USER_LOSSES[name].function, 5)
        assert abs(numeric.p_min - p) < 1e-12
        assert numeric.proved == "numerical"
        stated = theory.convexity_region(SAME[name], 5)
        assert abs(stated.p_min - p) < 1e-15
        assert stated.proved == "proved"
    assert theory.convexity_region(losses.custom(one_vs_all, convex=True), 4).p_min == 0.0
    with pytest.raises(theory.NoClosedForm, match="no question of p_k"):
        theory.convexity_region(one_vs_all, 4)


# --- the scalar profile ------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
@pytest.mark.parametrize("K", [2, 50])
def test_the_profile_is_the_loss_along_the_margin(K, loss, hyper):
    loss = losses.get(loss, **hyper)
    profile = scalar_profile(loss, K)
    a = np.array([-30.0, -2.0, 0.0, 0.3, 4.0, 50.0])
    shift = 0.0
    if loss.name == "mse":  # minimised out
        kappa, beta = float(loss.kappa), float(loss.beta)
        shift = (kappa * (beta - a) / (kappa + K - 1))[:, None]

    def along(x):
        z = x * (jnp.arange(K) == 0)
        return loss(z, 0)

    logits = a[:, None] * (np.arange(K) == 0) + shift
    close(profile.value(a), jax.vmap(lambda z: loss(z, 0))(jnp.asarray(logits)), ulps=32, name="value")
    close(profile.phi(-(K - 1) * a), profile.value(a), ulps=8)
    if loss.name != "mse":
        slope = jax.grad(along)
        witness = jax.jit(jax.vmap(lambda x: (slope(x), jax.grad(slope)(x))))(jnp.asarray(a))
        close(profile.slope(a), witness[0], ulps=64)
        close(profile.curvature(a), witness[1], ulps=64)
    else:
        steps = profile.value(a + 0.5) - profile.value(a - 0.5)
        close(profile.slope(a), steps, ulps=64)
        close(profile.curvature(a), np.full(a.size, profile.slope(1.0) - profile.slope(0.0)), ulps=64)


def test_a_loss_without_shift_invariance_has_no_profile():
    with pytest.raises(theory.NoClosedForm, match="not shift-invariant"):
        theory.scalar_profile(one_vs_all, 4)


# --- thresholds --------------------------------------------------------------------------------------


def _flattest(prob: ufm.Problem) -> float:
    """lam - |G|_op at the best point with Z = 0: its sign is that of the smallest Hessian eigenvalue."""
    b0 = theory.global_optimum(prob.replace(lam_W=1e4, lam_H=1e4, d=1)).bias
    return float(prob.lam - np.linalg.norm(_logit_gradient(prob, b0), 2))


@jax.jit
def _logit_gradient(prob: ufm.Problem, b0: float) -> jax.Array:
    return jax.vmap(jax.grad(prob.loss))(jnp.full((prob.N, prob.K), b0), prob.labels) / prob.N


@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
@pytest.mark.parametrize("bias", BIASES)
def test_the_origin_is_stable_above_c_thr_and_not_below(loss, hyper, bias):
    for K in (2, 30):
        at = theory.threshold(problem(loss, (K, 4, 2), 1.0, hyper=hyper, **bias))
        assert at.C_thr <= at.C_tie <= at.C_spin
        for side in (-1, 1):
            lam = at.c_thr * (1 + side * 1e-9) / 2**0.5
            assert np.sign(_flattest(problem(loss, (K, 4, 2), lam, hyper=hyper, **bias))) == side
        first = loss == "fl" and theory.p_infl(hyper["gamma"]) * K > 1
        assert (at.kind == "first order") == first == (at.C_thr < at.C_spin)
        assert (at.a_tie > at.a_spin > 0) == first


def test_the_problem_s_own_c():
    prob = problem("ce", (5, 4, 3), 0.07)
    at = theory.threshold(prob)
    close([at.c, at.C], [3**0.5 * 0.07, 4 * 3**0.5 * 0.07], ulps=4)
    close([at.c_thr, at.C_thr], [0.2, 0.8], ulps=2)
    assert at.collapses
    assert not theory.threshold(problem("ce", (5, 4, 3), 0.12)).collapses


@pytest.mark.parametrize("lam_b", [1e-6, 0.3, 1e6])
def test_mse_loses_a_rank_at_c_rank(lam_b):
    """lam_b -> infinity is no bias, lam_b -> 0 a free one."""
    hyper = {"kappa": 3.0, "beta": 2.0}
    at = theory.threshold(problem("mse", (4, 5, 2), 1.0, hyper=hyper, lam_b=lam_b))
    assert at.c_rank is not None
    assert at.c_rank < at.c_thr
    for side, rank in ((-1e-9, 4), (1e-9, 3)):
        prob = problem("mse", (4, 5, 2), at.c_rank * (1 + side) / 2**0.5, hyper=hyper, lam_b=lam_b)
        assert theory.global_optimum(prob).rank == rank
    free = theory.threshold(problem("mse", (4, 5, 2), 1.0, hyper=hyper))
    none = theory.threshold(problem("mse", (4, 5, 2), 1.0, hyper=hyper, bias=False))
    assert free.c_rank is None
    assert none.c_rank is None
    assert free.c_thr <= at.c_thr <= none.c_thr
    assert abs(at.c_thr - (none if lam_b > 1 else free).c_thr) < (1.0 if lam_b == 0.3 else 1e-5)


@pytest.mark.parametrize(
    ("gamma", "K"), [(1.0, 24), (3.0, 18), (3.0, 20), (3.0, 100), (10.0, 30), (3.0, 1000)]
)
def test_a_first_order_transition(gamma, K):
    """At the tie both minimisers have one value; at the spinodal the second derivative vanishes."""
    prob = problem("fl", (K, K, 1), 1.0, hyper={"gamma": gamma})
    at, profile = theory.threshold(prob), scalar_profile(prob.loss, K)
    close(profile.value(at.a_tie) + at.C_tie * at.a_tie, profile.value(0.0), ulps=8)
    close([at.C_thr, at.C_tie, at.C_spin], [-profile.slope(a) for a in (0.0, at.a_tie, at.a_spin)], ulps=8)
    close(profile.curvature(at.a_spin), 0.0, ulps=64, scale=1.0)
    close(at.a_spin, margin_of(theory.p_infl(gamma), K), ulps=4)
    a = np.linspace(0.0, 3 * at.a_tie, 20_001)
    assert (-profile.slope(a)).max() <= at.C_spin * (1 + 1e-12)
    assert (profile.value(a) + at.C_tie * a).min() >= profile.value(0.0) - 1e-14
    # the margin of the tie does not cancel: its tangent through (0, l(0)) in extended precision
    with localcontext() as context:
        context.prec = 60
        g = Decimal(gamma)

        def excess(a: Decimal) -> Decimal:
            p = a.exp() / (a.exp() + K - 1)
            h = -((g * (1 - p).ln()).exp()) * p.ln()
            h0 = -((g * (1 - 1 / Decimal(K)).ln()).exp()) * (1 / Decimal(K)).ln()
            return h0 - h - a * _slope(p, g)

        a_tie = Decimal(at.a_tie)
        width = Decimal("1e-12")
        assert excess(a_tie * (1 - width)) < 0 < excess(a_tie * (1 + width))


#: gamma, K, C_thr, C_tie, C_spin, a_tie, as first computed.
TABLE = [
    (1.0, 24, 1.04530423, 1.0453260413, 1.04533339, 0.056457),
    (2.0, 18, 1.12888115, 1.1289574822, 1.12898322, 0.063982),
    (3.0, 20, 1.19977614, 1.2010957564, 1.20155277, 0.218427),
    (3.0, 100, 1.09464777, 1.1634594436, 1.20155277, 2.373138),
    (5.0, 22, 1.31316718, 1.3142387514, 1.31460539, 0.156077),
    (10.0, 30, 1.49647429, 1.4972624527, 1.49752963, 0.104955),
]


@pytest.mark.parametrize("row", TABLE)
def test_stored_values(row):
    gamma, K, *expected = row
    at = theory.threshold(problem("fl", (K, K, 1), 1.0, hyper={"gamma": gamma}))
    np.testing.assert_allclose([at.C_thr, at.C_tie, at.C_spin, at.a_tie], expected, rtol=1e-5)
    np.testing.assert_allclose(at.C_tie, expected[1], rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "K", "C_thr", "C_tie", "a_tie"),
    [
        ("generalised ce", 3, 0.3089753712, 0.314282606659, 0.5024655630),
        ("symmetric ce", 5, 0.72, 0.956495354469, 1.9655789560),
        ("taylor-2", 5, 0.288, 0.358389246752, 1.5919455755),
        ("mean absolute error", 3, 4 / 9, 0.485617778153, 1.0356584794),
        ("poly-1, 2", 5, 1.12, 1.1236767253, 0.42051374),
    ],
)
def test_a_user_s_loss_ties(name, K, C_thr, C_tie, a_tie):
    at = theory.threshold(ufm.Problem.balanced(USER_LOSSES[name].function, K=K, d=K, n=2))
    assert at.kind == "first order"
    np.testing.assert_allclose([at.C_thr, at.C_tie, at.a_tie], [C_thr, C_tie, a_tie], rtol=1e-8)


def test_convex_losses_of_the_user_by_their_slope_at_the_origin():
    for function, shift in ((exponential, True), (one_vs_all, False)):
        loss = losses.custom(function, convex=True, shift_invariant=shift)
        for bias, K in itertools.product(BIASES, (3, 8)):
            at = theory.threshold(problem(loss, (K, K, 2), 1.0, **bias))
            assert at.kind == "second order"
            for side in (-1, 1):
                prob = problem(loss, (K, K, 2), at.c_thr * (1 + side * 1e-9) / 2**0.5, **bias)
                assert np.sign(_flattest(prob)) == side
    with pytest.raises(theory.NoClosedForm, match="nor declared convex"):
        theory.threshold(problem(one_vs_all, (3, 3, 2), 1.0))
    with pytest.raises(theory.NoClosedForm, match="treats classes differently"):
        theory.threshold(problem(lambda z, k: losses.focal()(z, k) * (1.0 + k), (3, 3, 2), 1.0))


@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
def test_the_optimum_is_trivial_exactly_above_the_tie(loss, hyper):
    for bias in BIASES:
        for share in (1 - 1e-9, 1 + 1e-9):
            best = theory.global_optimum(at_share(loss, (5, 5, 2), share, hyper=hyper, **bias))
            assert (best.regime == "trivial") == (share > 1)


@pytest.mark.parametrize("K", [20, 100])
def test_without_a_bias_the_margin_jumps_at_the_tie(K):
    """Between C_tie and C_spin neural collapse is a local minimum above the origin."""
    for share in (1 - 1e-9, 1 + 1e-9, 1 + 2e-4):
        prob = at_share("fl", (K, K, 2), share, hyper={"gamma": 3.0}, bias=False)
        at, best = theory.threshold(prob), theory.global_optimum(prob)
        assert at.C_spin > at.C
        assert (best.margin == 0) == (share > 1)
        assert abs(best.margin - at.a_tie) < 1e-6 or share > 1
        close(best.objective, best.trivial, ulps=1e8)
