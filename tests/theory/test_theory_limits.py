"""Cross-entropy with vanishing penalties, and the layer-peeled model's minority collapse, against solvers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tolerances import close

import ufm
from ufm import theory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the solver's own deprecations are not ours to fix
    import cvxpy as cp

#: K = 5; neither sorted nor balanced
COUNTS = {"two groups": [8, 1, 8, 1, 8], "four groups": [2, 7, 3, 7, 20]}
REGIMES = {"free": {"lam_b": 0.0}, "penalised": {"lam_b": 0.05}, "absent": {"bias": False}}


def at(prob: ufm.Problem, x: float) -> ufm.Problem:
    return prob.replace(lam_W=2 * x / prob.N, lam_H=x / 2 / prob.N)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 1.5, 0.7]], ids=["plain", "weighted"])
def test_the_margins_approach_their_limit_like_one_over_the_logarithm(counts, regime, weights):
    """Solved at falling penalties: every error times log(1/x) stays bounded while log(1/x) grows."""
    prob = at(
        ufm.Problem.from_counts("ce", counts=counts, d=5, class_weights=weights, **REGIMES[regime]), 1.0
    )
    limit, errors = theory.vanishing_penalties(prob), []
    for x in (1e-4, 1e-8):
        best, size = theory.global_optimum(at(prob, x)), np.log(1 / x)
        Z = best.logits
        offset = np.abs(np.diag(Z) - Z - limit.margins(x)).max()
        direction = np.abs((Z - best.b[:, None]) / size - limit.direction).max()
        bias = np.abs(best.b / size - limit.bias).max()
        W, H = np.asarray(best.params.W), np.asarray(prob.class_means(best.params.H))
        grams = [
            np.abs(M / size - expected).max() / np.abs(expected).max()
            for M, expected in ((W @ W.T, limit.gram_W), (H.T @ H, limit.gram_H))
        ]
        errors.append(size * np.array([offset, direction, bias, *grams]))
    assert np.max(errors) < 4
    assert (errors[1] < 1.6 * errors[0] + 1e-3).all()
    assert errors[1][0] > 0.05 or regime == "free"  # the rate is attained: the offsets are no more exact


def test_the_limit_without_a_bias_has_the_roots_of_the_counts():
    """sqrt(n_j n_k)/|A^(1/2)_jk| with A = D^(1/2) P D^(1/2), by the eigenvalues of A."""
    counts = np.array(COUNTS["four groups"], float)
    limit = theory.vanishing_penalties(
        ufm.Problem.from_counts("ce", counts=COUNTS["four groups"], d=5, bias=False)
    )
    values, vectors = np.linalg.eigh(np.sqrt(np.outer(counts, counts)) * (np.eye(5) - 0.2))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    off = ~np.eye(5, dtype=bool)
    close(limit.offsets[off], np.log(np.sqrt(np.outer(counts, counts)) / np.abs(root))[off], ulps=2**10)
    assert (root[off] < 0).all()
    assert limit.proved == "proved"


@pytest.mark.parametrize(
    ("prob", "message"),
    [
        (ufm.Problem.from_counts("ls", counts=[1, 2, 3], d=4), "cross-entropy"),
        (ufm.Problem.from_counts("fl", counts=[1, 2, 3], d=4), "cross-entropy.*global_optimum takes convex"),
        (ufm.Problem.from_counts("ce", counts=[1, 2, 3, 3], d=2), "needs d >= 3"),
        (ufm.Problem.from_counts("ce", counts=[1, 2, 3], d=4, model="deep"), "model"),
    ],
)
def test_what_has_no_known_limit(prob, message):
    with pytest.raises(theory.NoClosedForm, match=message):
        theory.vanishing_penalties(prob)


# --- the layer-peeled model -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K_A", "K_B", "E_W", "E_H", "ratio"),
    [
        (5, 5, 1.0, 5.0, 12.192447),
        (3, 7, 0.5, 10.0, 245.49693),
        (7, 3, 5.0, 1.0, 4.0004667),
        (2, 2, 1.0, 1.0, 3.3804885),
        (2, 2, 1.0, 4.0, 27.735391),
    ],
)
def test_the_ratio_at_which_the_minority_collapses(K_A, K_B, E_W, E_H, ratio):
    """Values of another program."""
    assert theory.collapse_ratio(K_A, K_B, E_W=E_W, E_H=E_H).ratio == pytest.approx(ratio, rel=1e-7)


def test_the_minority_collapses_at_that_ratio():
    """A solver of cones: the minority's logits are apart just below R_0 and not above."""
    found = theory.collapse_ratio(2, 2, E_W=1.0, E_H=1.0)
    spread = []
    for R in (0.98 * found.ratio, 1.02 * found.ratio):
        share = np.array([1, R, 1, R]) / (2 + 2 * R)
        Z = cp.Variable((4, 4))
        fits = [share[k] * (cp.log_sum_exp(Z[:, k]) - Z[k, k]) for k in range(4)]
        cp.Problem(cp.Minimize(cp.sum(cp.hstack(fits))), [cp.normNuc(Z) <= 4.0]).solve(solver=cp.CLARABEL)
        spread.append(abs(Z.value[0, 0] - Z.value[2, 0]))
    assert spread[0] > 1e-2
    assert spread[1] < 1e-4


@pytest.mark.parametrize(
    ("sizes", "bounds", "message"),
    [
        ((0, 2), (1.0, 1.0), "K_A: expected an integer >= 1"),
        ((2, 1), (1.0, 1.0), "K_B: expected an integer >= 2"),
        ((2, 2), (0.0, 1.0), "E_W: expected a finite number > 0"),
        ((2, 2), (1.0, np.nan), "E_H: expected a finite number > 0"),
    ],
)
def test_sizes_and_bounds_of_the_layer_peeled_model(sizes, bounds, message):
    with pytest.raises(ValueError, match=message):
        theory.collapse_ratio(*sizes, E_W=bounds[0], E_H=bounds[1])
