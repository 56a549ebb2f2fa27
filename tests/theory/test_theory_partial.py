"""Partial collapse: where the global minimum of focal loss is not neural collapse (Theorem 1 is false)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_theory_contrastive import USER_LOSSES
from test_theory_optima import at_share, problem, search, value_and_gradient
from tolerances import close

import ufm
from ufm import theory
from ufm.theory import _frames, optima
from ufm.theory.profiles import scalar_profile

#: gamma, K, C_tie, size of the simplex, gap below neural collapse: stored values of an exhaustive search.
WINDOWS = [
    (1.0, 24, 1.0453260413, 23, 2.4412e-09),
    (2.0, 18, 1.1289574822, 17, 1.8121e-08),
    (3.0, 18, 1.2015239588, 17, 1.7351e-08),
    (3.0, 20, 1.2010957564, 18, 1.2646e-06),
    (3.0, 50, 1.1834333967, 31, 4.1756e-04),
    (3.0, 100, 1.1634594436, 54, 9.1709e-04),
    (5.0, 22, 1.3142387514, 19, 6.7250e-07),
    (10.0, 30, 1.4972624527, 26, 2.5905e-07),
]


@pytest.mark.parametrize(("gamma", "K", "C_tie", "size", "gap"), WINDOWS)
def test_focal_loss_with_a_bias_beats_neural_collapse_at_the_tie(gamma, K, C_tie, size, gap):
    prob = at_share("fl", (K, K, 2), 1.0, hyper={"gamma": gamma})
    at_tie = theory.threshold(prob)
    close(at_tie.C, C_tie, ulps=1e6)
    best = theory.global_optimum(prob)
    if K in (20, 50):
        value, gradient = value_and_gradient(prob, best.params)
        close(value, best.objective)
        assert max(float(jnp.abs(g).max()) for g in gradient) < 2e-15
    assert (best.regime, best.proved) == ("partial", "upper bound")
    assert best.structure.startswith(f"simplex ETF of {size} classes")
    assert abs((best.trivial - best.objective) / gap - 1) < 1e-3
    # the explicit point of the disproof: K-1 classes on, margin a_tie, bias a_tie/(K-1)
    profile, a = scalar_profile(prob.loss, K), at_tie.a_tie
    explicit = (at_tie.C / (K - 1) * a - (profile.value(-a / (K - 1)) - profile.value(0.0))) / K
    assert 0 < explicit <= (best.trivial - best.objective) * (1 + 1e-4)
    assert best.lower_bound <= best.objective
    # without a bias Theorem 1 is true
    plain = theory.global_optimum(prob.replace(bias=False, lam_b=0.0))
    assert plain.proved == "proved"
    close(plain.objective, best.trivial, ulps=64)


@pytest.mark.parametrize(
    ("K", "low", "high", "lam_b"),
    [(20, 1.20101741, 1.20110223, 1.394e-2), (100, 1.16184205, 1.16442040, 1.305e-1)],
)
def test_the_window_ends_where_the_search_found_them(K, low, high, lam_b):
    """Stored ends in C, and the penalty of the bias that closes the window at the tie."""

    def is_partial(C, lam_b=0.0):
        prob = problem("fl", (K, K, 1), C / (K - 1), hyper={"gamma": 3.0}, lam_b=lam_b)
        return theory.global_optimum(prob).regime == "partial"

    edge = 5e-3 * (high - low)
    assert [is_partial(low + s * edge) for s in (-1, 1)] == [False, True]
    assert [is_partial(high + s * edge) for s in (-1, 1)] == [True, False]
    tie = theory.threshold(problem("fl", (K, K, 1), 1.0, hyper={"gamma": 3.0})).C_tie
    assert [is_partial(tie, lam_b * share) for share in (0.99, 1.01)] == [True, False]


def test_a_second_group_can_carry_a_rank_one_part():
    """K = 20, 17 classes on: the point found by an unstructured search, a strict minimum modulo symmetry."""
    prob = problem("fl", (20, 20, 1), 1.20108 / 19, hyper={"gamma": 3.0})
    s = theory.global_optimum(prob).setting
    profile = scalar_profile(prob.loss, 20)
    found = optima._partial.polish(profile, s, 17, np.array([0.22, 0.013]))
    assert found is not None
    assert abs(found.value - 2.568461934958) < 1e-12
    assert 5e-4 < np.linalg.norm(found.v) < 2e-3
    factors = _frames.partial(20, 17, found.alpha, found.v)
    value, gradient = value_and_gradient(prob, _frames.minimiser(s, factors, found.b))
    close(value, found.value)
    assert max(float(jnp.abs(g).max()) for g in gradient) < 2e-15
    without = optima._partial.objective(
        profile, s, np.array([17.0]), np.array([found.alpha, *3 * [found.b[0] - found.b[-1]]])[:, None]
    )
    assert found.value < without[0] - 1e-10


def test_the_paper_s_penalties_lie_inside_the_window():
    """K = 100, n = 500, gamma = 3, weight decay 5.255e-4 on all three: stored value of a longdouble run."""
    lam = 5.255e-4
    prob = ufm.Problem.balanced("fl", K=100, d=100, n=500, lam_W=lam, lam_H=lam, lam_b=lam)
    best = theory.global_optimum(prob)
    assert best.regime == "partial"
    assert abs(best.objective - 4.467316749606) < 1e-12
    assert abs(best.trivial - 4.468392026294) < 1e-12
    collapsed = optima.collapsed_optimum(best.setting)
    assert abs(collapsed.objective - 4.468021120992) < 1e-12


@pytest.mark.parametrize("name", ["generalised ce", "symmetric ce"])
def test_partial_collapse_of_bounded_losses_is_a_minimum(name):
    prob = at_share(USER_LOSSES[name].function, (3, 3, 2), 1.0, lam_b=1e-3)
    best = theory.global_optimum(prob)
    assert (best.regime, best.proved) == ("partial", "upper bound")
    _, gradient = value_and_gradient(prob, best.params)
    assert max(float(jnp.abs(g).max()) for g in gradient) < 2e-15
    flat, unravel = ravel_pytree(best.params)
    assert np.linalg.eigvalsh(jax.jit(jax.hessian(lambda x: prob(unravel(x))))(flat))[0] > -1e-14
    assert search(prob, 2).min() > best.objective - 1e-12


def test_below_the_window_the_optimum_is_certified_and_above_it_the_claim_is_numerical():
    for share, expected in ((0.97, ("non-trivial", "proved")), (1.05, ("trivial", "numerical"))):
        best = theory.global_optimum(at_share("fl", (20, 20, 2), share, hyper={"gamma": 3.0}))
        assert (best.regime, best.proved) == expected
    far = theory.global_optimum(problem("fl", (20, 1, 2), 3.0))
    assert (far.regime, far.proved) == ("trivial", "proved")
