"""Features that are not negative: optima and thresholds against formulas, KKT conditions and supports."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from tolerances import close

import ufm
from ufm import theory
from ufm.theory import NoClosedForm, _copositive, _gamma

BIASES = {"none": {"bias": False}, "free": {}, "penalised": {"lam_b": 0.05}}


def balanced(loss, K=4, d=6, n=3, lam=0.02, **options):
    given = {"lam_W": 2 * lam, "lam_H": lam / 2, "model": "nonnegative"} | options
    return ufm.Problem.balanced(loss, K=K, d=d, n=n, **given)


def unequal(loss, counts=(3, 1, 2, 2), lam=0.03, d=6, **options):
    given = {"lam_W": 2 * lam, "lam_H": lam / 2, "model": "nonnegative"} | options
    return ufm.Problem.from_counts(loss, counts=list(counts), d=d, **given)


def violation(prob, params):
    """The largest violation of the conditions of a minimum, by automatic differentiation."""
    g = jax.grad(prob)(params)
    H, gH = np.asarray(params.H), np.asarray(g.H)
    free = [np.asarray(g.W), np.asarray(g.b) * prob.bias]
    return max(*(np.abs(x).max() for x in free), -H.min(), -gH.min(), np.abs(H * gH).max())


def norm_over_supports(prob, params):
    """max |G h| over h >= 0, |h| = 1, in class-mean coordinates, by all supports one after the other."""
    G = np.asarray(prob.logit_gradient(params))
    labels = np.asarray(prob.labels)
    G = np.stack(
        [G[:, labels == k].sum(axis=1) / np.sqrt((labels == k).sum()) for k in range(prob.K)], axis=1
    )
    best = 0.0
    for size in range(1, prob.K + 1):
        for S in map(list, itertools.combinations(range(prob.K), size)):
            values, vectors = np.linalg.eigh(G[:, S].T @ G[:, S])
            if np.all(vectors[:, -1] >= -1e-9) or np.all(vectors[:, -1] <= 1e-9):
                best = max(best, values[-1])
    return best**0.5


def proves(prob, best):
    """A minimum of a convex loss: the conditions hold, and |G h| <= lam |h| for all h >= 0."""
    size = max(1.0, abs(best.objective))
    close(prob(best.params), best.objective, ulps=64, scale=size)
    assert violation(prob, best.params) <= 1e-12 * size
    assert norm_over_supports(prob, best.params) <= float(prob.lam) * (1 + 1e-8)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("ratio", [0.3, 0.995, 1.005])
@pytest.mark.parametrize("loss", ["ce", "ls"])
def test_equal_counts_pay_sqrt_of_K_over_K_minus_1(loss, ratio, bias):
    K, alpha = 4, 0.1 if loss == "ls" else 0.0
    threshold = (1 - alpha) * (K - 1) ** 0.5 / K**1.5
    prob = balanced(loss, lam=ratio * threshold / 3**0.5, **BIASES[bias])
    best = theory.global_optimum(prob)
    off = ratio * threshold * (K / (K - 1)) ** 0.5 + alpha / K  # the probability of each other class
    if ratio < 1:
        close(best.margin, math.log(1 / off - (K - 1)), ulps=1e5)
        own = 1 - (K - 1) * off
        close(best.objective, -own * math.log(own) - (K - 1) * off * math.log(off))
        proves(prob, best)
    else:
        assert (best.margin, best.regime) == (0.0, "trivial")
        close(best.objective, math.log(K))
    found = theory.threshold(prob)
    close(found.c_thr, threshold)
    assert found.collapses == (ratio < 1)


@pytest.mark.parametrize("lam", [0.02, 1.5])
def test_mse_with_a_penalised_bias_is_a_root_of_one_angle(lam):
    K, kappa, beta, lam_b = 4, 1.3, 15.0, 0.05
    prob = balanced("mse", lam=lam, lam_b=lam_b, kappa=kappa)
    c = float(prob.lam) * 3**0.5

    def parts(angle):
        b0 = c * K**0.5 * math.sin(angle) / lam_b
        y = c * K**0.5 / 2 * (math.cos(angle) / (K - 1) ** 0.5 - math.sin(angle))
        x = (2 * y - c * K**1.5 * math.cos(angle) / (K - 1) ** 0.5) / (2 * kappa)
        return beta + x - y, beta + x + (K - 1) * y - K * b0, b0

    def mismatch(angle):
        a, m, _ = parts(angle)
        return a * (K - 1) ** 0.5 * math.sin(angle) - m * math.cos(angle)

    a, m, b0 = parts(brentq(mismatch, 0.0, math.atan((K - 1) ** -0.5), xtol=1e-16))
    best = theory.global_optimum(prob)
    for got, wanted in ((best.margin, a), (best.mean_eigenvalue, m), (best.bias, b0)):
        close(got, wanted, ulps=256, scale=beta)
    proves(prob, best)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("loss", ["mse", "ova"])
def test_other_convex_losses_pay_gamma(loss, bias):
    """Against a direct search over (a, m, b0), and by the conditions at the point."""
    prob = balanced(loss, K=5, d=7, n=2, lam=0.04, **BIASES[bias])
    K, c, lam_b = 5, float(prob.lam) * 2**0.5, float(prob.lam_b)

    def value(x):
        a, m, b0 = x[0], x[1], x[2] * prob.bias
        z = (m - a) / K + b0 + a * np.eye(K)[0]
        return float(prob.loss(z, 0)) + c * _gamma.norm(K, a, m) + lam_b * K * b0**2 / 2

    best = theory.global_optimum(prob)
    found = min(
        minimize(
            value,
            [1.0, m, 0.1],
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000},
        ).fun
        for m in (-1.0, 1.0)
    )
    assert best.objective <= found + 1e-12 * (1 + found)
    assert best.objective >= found - 1e-6 * (1 + found)
    proves(prob, best)
    if loss == "mse" and bias == "none":
        free = theory.global_optimum(prob.replace(model=ufm.models.Free()))
        close(best.objective, free.objective)
    ratio = 1.01 * theory.threshold(prob).c_thr / c
    beyond = prob.replace(lam_W=prob.lam_W * ratio, lam_H=prob.lam_H * ratio)
    above = theory.global_optimum(beyond)
    close(above.objective, above.trivial)
    ratio *= 0.99 / 1.01
    below = theory.global_optimum(prob.replace(lam_W=prob.lam_W * ratio, lam_H=prob.lam_H * ratio))
    assert below.objective < below.trivial * (1 - 1e-9)


@pytest.mark.parametrize("loss", ["ce", "ls", "mse"])
@pytest.mark.parametrize("place", [0.2, 0.995, 1.005])
def test_classes_vanish_one_by_one_without_a_bias(loss, place):
    counts = np.array([3, 1, 2, 6])
    slope = {"ce": 3**0.5 / 2, "ls": 0.9 * 3**0.5 / 2, "mse": 30.0}[loss]
    x = place * slope * 2**0.5  # near where the classes of two samples vanish
    prob = unequal(loss, counts, lam=x / 12, bias=False)
    best, found = theory.global_optimum(prob), theory.threshold(prob)
    close(found.x_vanish, slope * np.sqrt(np.sort(counts)[::-1]))
    gone = x >= slope * np.sqrt(counts)
    np.testing.assert_array_equal(np.linalg.norm(best.logits, axis=0) == 0, gone)
    assert found.active == best.rank == 4 - gone.sum()
    assert found.phase == best.structure
    if loss != "mse":
        C, alpha = x / np.sqrt(counts) * (3 / 4) ** 0.5, 0.1 if loss == "ls" else 0.0
        p = np.diag(np.exp(best.logits) / np.exp(best.logits).sum(axis=0))
        close((1 - p)[~gone], (C + alpha * 3 / 4)[~gone], ulps=256)
    else:
        close(np.diag(best.logits), np.maximum(15 - x / (2 * np.sqrt(counts)), 0.0), ulps=256, scale=15.0)
    proves(prob, best)


@pytest.mark.parametrize("bias", ["free", "penalised"])
@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_unequal_counts_with_a_bias(loss, bias):
    prob = unequal(loss, (3, 1, 2, 2), **BIASES[bias])
    proves(prob, theory.global_optimum(prob))
    weighted = unequal(loss, (3, 1, 2, 2), class_weights=[1.0, 2.0, 1.3, 1.1], **BIASES[bias])
    best = theory.global_optimum(weighted)
    close(weighted(best.params), best.objective, ulps=64, scale=1.0)
    assert violation(weighted, best.params) <= 1e-12
    frame = theory.orthogonal_frame(prob)
    assert frame.optimal
    close(frame.objective, theory.global_optimum(prob).objective, ulps=64)


def test_class_weights_shift_the_thresholds():
    prob = unequal("ce", (3, 1, 2, 6), bias=False, class_weights=[1.0, 4.0, 1.0, 0.5])
    found = theory.threshold(prob)
    wanted = 3**0.5 / 2 * np.array([0.5 * 6**0.5, 3**0.5, 2**0.5, 4.0])
    close(found.x_vanish, wanted)
    best = theory.global_optimum(prob)
    assert violation(prob, best.params) <= 1e-12


def test_beyond_half_of_the_samples_a_free_bias_breaks_the_frame():
    """The largest class at the origin is lower than any orthogonal frame: the frame of n = (40, 1, 1, 1)."""
    prob = unequal("ce", (40, 1, 1, 1), lam=0.02, lam_W=0.02, lam_H=0.02)
    frame = theory.orthogonal_frame(prob)
    assert not frame.optimal
    assert frame.share > 0.5
    close(frame.objective, prob(frame.params), ulps=64)
    assert violation(prob, frame.params) > 1e-3  # features off the frame lower f
    close(frame.largest, norm_over_supports(prob, frame.params), ulps=1e4)
    with pytest.raises(NoClosedForm, match=r"class 0 holds 40 of 43.*theory.orthogonal_frame"):
        theory.global_optimum(prob)
    below = ufm.solve_sweep(prob, seeds=range(4), reduced=True, escape=False)
    best = int(np.argmin(below.objective))
    assert float(below.objective[best]) == pytest.approx(0.2545965372, abs=1e-9)
    assert frame.objective == pytest.approx(0.2727398354, abs=1e-9)
    H = np.asarray(below.H[best])
    assert np.abs(H[:, :40]).max() < 1e-12
    others = H[:, 40:].T @ H[:, 40:]
    assert others[np.triu_indices(3, 1)].min() > 1e-3
    at = unequal("ce", (3, 1, 1, 1), lam=0.01)
    assert theory.orthogonal_frame(at).optimal  # exactly half: R = K - 1
    beyond = unequal("ce", (4, 1, 1, 1), lam=0.01)
    assert not theory.orthogonal_frame(beyond).optimal
    assert theory.orthogonal_frame(unequal("ce", (4, 1, 1, 1), lam=0.01, bias=False)).optimal


def test_what_is_not_known_is_named():
    with pytest.raises(NoClosedForm, match="d: the optimum needs d >= 4"):
        theory.global_optimum(balanced("ce", d=3))
    with pytest.raises(NoClosedForm, match="not declared convex"):
        theory.global_optimum(unequal("fl"))
    with pytest.raises(NoClosedForm, match="bias: with unequal counts"):
        theory.threshold(unequal("ce"))
    assert theory.global_optimum(balanced("fl", bias=False)).proved == "proved"
    focal = theory.global_optimum(balanced("fl", lam=0.001))
    assert focal.proved == "proved"
    assert focal.objective == pytest.approx(float(balanced("fl", lam=0.001)(focal.params)), rel=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_of_G_h_over_non_negative_h(seed):
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(4, 5)) + 0.3 * seed
    size, h = _copositive.largest(G)
    assert h.min() >= 0
    close(np.linalg.norm(h), 1.0)
    close(np.linalg.norm(G @ h), size)
    x = np.abs(rng.normal(size=(200_000, 5)))
    sampled = (np.linalg.norm(x @ G.T, axis=1) / np.linalg.norm(x, axis=1)).max()
    assert sampled <= size * (1 + 1e-12)
    assert sampled >= size * (1 - 3e-2)
    assert size <= _copositive.upper_bound(G) * (1 + 1e-12)
    assert _copositive.is_at_most(G, size)
    assert not _copositive.is_at_most(G, size * (1 - 1e-6))
    values = [value for value, _ in _copositive.ascents(G)]
    close(max(values), size**2, ulps=1e4)
