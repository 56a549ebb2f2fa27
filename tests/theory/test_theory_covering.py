"""Where neural collapse is certified for focal loss, and where simplexes of fewer classes are minima."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tolerances import close

import ufm
from ufm import losses, theory
from ufm.theory import covering

# --- the certificate ------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "K"), [(0.3, 17), (1.0, 6), (2.382, 17), (3.0, 17), (20.0, 11)])
def test_up_to_seventeen_classes_every_C_is_certified(gamma, K):
    found = theory.certified_range(gamma, K)
    assert math.isinf(found.C)
    assert found.margin > 1e-5
    assert np.all(np.diff(found.ends) > 0)


def test_for_twenty_classes_the_certificate_ends_just_below_a_lower_point():
    """A published end is 1.2010019, on another grid of y; a lower point exists from 1.20101741 on."""
    found = theory.certified_range(3.0, 20)
    assert 1.2010 < found.C < 1.20101741
    assert found.margin > 0


def test_a_cost_with_no_bad_class_weight_is_the_entropy_of_the_good_ones():
    """y = 0 leaves the good classes alone: al log(g - 1), whatever the number of bad ones."""
    bad = np.arange(1, 7)
    al, be, constant = covering.weights(1.1, 8, bad, np.array(0.0))
    assert np.all(be == 0)
    good = 8 - bad
    close(al, 1.1 / 7 * 8 * (good - 1) / good)
    close(constant, al * (np.log(np.maximum(good - 1, 1)) - math.log(7)), scale=1.0)


@pytest.mark.parametrize(("K", "share", "proved"), [(10, 0.98, True), (17, 1.2, True), (20, 1.01, False)])
def test_the_optimum_and_its_bound_use_the_certificate(K, share, proved):
    """C = share C_thr > 1, a penalised bias: the bound meets the optimum where the certificate closes."""
    c = share * theory.threshold(ufm.Problem.balanced("fl", K=K, d=K, n=1)).c_thr
    prob = ufm.Problem.balanced("fl", K=K, d=K, n=2, lam_W=c, lam_H=c / 2, lam_b=0.03)
    best = theory.global_optimum(prob)
    assert (K - 1) * c > 1
    assert best.proved == ("proved" if proved else "numerical")
    assert (theory.focal_lower_bound(prob) == best.objective) == proved
    assert covering.certifies(3.0, K, 0.9)


@pytest.mark.parametrize(("arguments", "words"), [((0.0, 10), "gamma: "), ((3.0, 1), "K: ")])
def test_a_certificate_of_nothing_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        theory.certified_range(*arguments)


# --- spurious minima ------------------------------------------------------------------------------

#: gamma = 3, from roots in 40 digits: K -> C_start, alpha, b_on - b_off, f above neural collapse
STARTS = {
    18: (1.201408624, 0.076474, 0.004498, 4.3e-7),
    20: (1.199395849, 0.298407, 0.015706, 2.3e-5),
    25: (1.189571471, 0.720898, 0.030037, 2.4e-4),
    50: (1.140561383, 1.802922, 0.036794, 1.4e-3),
    100: (1.092976725, 2.708397, 0.027358, 1.8e-3),
}


@pytest.mark.parametrize("K", STARTS)
def test_spurious_minima_begin_where_the_table_says(K):
    found = theory.spurious_range(losses.focal(3.0), K)
    C, alpha, gap, excess = STARTS[K]
    assert found.C_start == pytest.approx(C, abs=1e-9)
    assert (found.margin, found.gap) == pytest.approx((alpha, gap), abs=1e-6)
    assert found.excess == pytest.approx(excess, rel=0.05)
    assert found.C_start < found.C_thr < found.C_fold
    assert 1.20155 < found.C_fold < 1.201585


def test_the_equal_slopes_of_the_start():
    found = theory.spurious_range(losses.focal(3.0), 20)
    slope = losses.focal(3.0).profile(20).slope
    close(-slope(found.margin), found.C_start)
    close(-slope(-found.margin / 19), found.C_start)


def test_a_transition_of_second_order_has_no_spurious_minimum():
    with pytest.raises(theory.NoClosedForm, match="second order at K=17"):
        theory.spurious_range(losses.focal(3.0), 17)
    with pytest.raises(theory.NoClosedForm, match="target probability alone"):
        theory.spurious_range(losses.mse(), 20)
    with pytest.raises(ValueError, match="K: "):
        theory.spurious_range(losses.focal(3.0), 2)


#: K = 20, gamma = 3, C = 1.20108, a free bias: m -> f, rank, pull of the contrast
STATES = {
    19: (2.568461790455, 18, 0.998655),
    18: (2.568461601855, 17, 0.999346),
    17: (2.568461934958, 17, 1.000032),
    16: (2.568462351847, 16, 1.000709),
    15: (2.568462652407, 15, 1.001375),
    14: (2.568462912501, 14, 1.002023),
}


def test_the_states_in_the_window():
    lam = 1.20108 / 19
    prob = ufm.Problem.balanced(losses.focal(3.0), K=20, d=21, n=1, lam_W=2 * lam, lam_H=lam / 2)
    states = {state.on: state for state in theory.partial_states(prob, STATES)}
    for m, (f, rank, pull) in STATES.items():
        state = states[m]
        assert state.objective == pytest.approx(f, abs=1e-12)
        assert (state.factors.rank, state.pure) == (rank, m >= 18)
        assert state.tension == pytest.approx(pull, abs=1e-6)
        close(float(prob(state.params)), state.objective)
    with pytest.raises(ValueError, match="on: expected at most K - 1 = 19"):
        theory.partial_states(prob, [20])
    with pytest.raises(theory.NoClosedForm, match="bias=False"):
        theory.partial_states(prob.replace(bias=False))
