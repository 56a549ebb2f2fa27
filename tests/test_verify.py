"""Verdicts: each statement holds where the theorem says so, fails when its own structure is broken, and is
not applicable where an assumption fails.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from tolerances import close

import ufm
from ufm import losses, theory
from ufm._pytree import replace
from ufm.claims import STATEMENTS, UNEQUAL, Facts

SHUFFLED = np.random.default_rng(3).permutation(np.tile(np.arange(4), 3))
NAMES = [row.name for row in STATEMENTS]


def solution(loss="ce", **changes):
    given = {"K": 4, "d": 6, "lam_W": 4e-3, "lam_H": 1e-3, "lam_b": 0.0, "bias": True} | changes
    labels = given.pop("labels", SHUFFLED)
    prob = ufm.Problem(losses.get(loss) if isinstance(loss, str) else loss, labels, **given)
    return ufm.solve(prob, ufm.init(prob, seed=1))


def first_order():
    """Focal loss between C_thr and C_tie: collapse is the lowest known, the origin a strict minimum."""
    c = 1.2005 / 19
    prob = ufm.Problem.balanced("fl", K=20, d=21, n=2, lam_W=c, lam_H=c / 2, gamma=3.0)
    return ufm.solve(prob, ufm.theory.global_optimum(prob).params)


SOLVED = {
    "ce": solution(lam_b=2e-2),
    "mse": solution("mse", lam_b=2e-2),
    "mse free bias": solution("mse"),
    "trivial": solution(lam_W=0.4, lam_H=0.3),
    "first order": first_order(),
}


@pytest.mark.parametrize("lam_b", [0.0, 2e-2])
@pytest.mark.parametrize("loss", losses.PAPER)
def test_every_claim_of_theorem_1_holds(loss, lam_b):
    report = ufm.verify(solution(loss, lam_b=lam_b))
    assert report.passed
    assert [claim.name for claim in report.claims] == NAMES
    verdicts = {claim.name: claim.verdict for claim in report.claims}
    etf = losses.get(loss).shift_invariant or lam_b == 0
    for name in ("row_norms", "self_duality", "zero_mean", "etf"):
        assert verdicts[name] == ("holds" if etf else "not applicable")
    for name in ("objective", "certificate", "balance", "singular_pairs", "logits", "bias_constant"):
        assert verdicts[name] == "holds"
    shift = losses.get(loss).shift_invariant
    assert verdicts["bias_zero"] == ("holds" if shift and lam_b > 0 else "not applicable")
    assert verdicts["own_frame"] == ("not applicable" if shift else "holds")
    for claim in report.claims:
        assert (claim.value is None) == (claim.verdict == "not applicable")
        assert claim.why or claim.verdict == "holds"


def _rotate(p):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    return p._replace(H=Q @ p.H)


def _one_feature(p):
    return p._replace(H=p.H.at[:, 5].multiply(1.001))


BROKEN = {
    "stationary_W": ("ce", lambda p: p._replace(W=1.001 * p.W)),
    "stationary_H": ("ce", _one_feature),
    "stationary_b": ("ce", lambda p: p._replace(b=p.b + jnp.array([1e-3, 0, 0, -1e-3]))),
    "singular_pairs": ("ce", lambda p: p._replace(W=1.001 * p.W, H=1.001 * p.H)),
    "balance": ("ce", lambda p: p._replace(W=1.001 * p.W, H=p.H / 1.001)),
    "objective": ("ce", _one_feature),
    "certificate": ("ce", _one_feature),
    "row_norms": ("ce", lambda p: p._replace(W=p.W.at[0].multiply(1.001))),
    "self_duality": ("ce", _rotate),
    "zero_mean": ("ce", lambda p: p._replace(H=p.H + 1e-3)),
    "etf": ("ce", lambda p: p._replace(W=p.W + 1e-2)),
    "logits": ("mse", lambda p: p._replace(W=1.001 * p.W)),
    "bias_constant": ("ce", lambda p: p._replace(b=p.b.at[1].add(1e-3))),
    "bias_zero": ("ce", lambda p: p._replace(b=p.b + 1e-3)),
    "own_frame": ("mse", lambda p: p._replace(W=1.001 * p.W)),
    "own_bias": ("mse free bias", lambda p: p._replace(b=p.b + 1e-3)),
    "trivial": ("trivial", lambda p: p._replace(W=p.W + 1e-3)),
    "second_order": ("ce", lambda p: type(p)(*(0 * x for x in p))),  # the origin: a strict saddle
    "theorem_2": ("first order", lambda p: type(p)(*(0 * x for x in p))),  # here a spurious minimum
    "corollary_2": ("first order", lambda p: type(p)(*(0 * x for x in p))),  # p_k = 1/20 < 0.0575
}


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_structure_fails_its_own_claim(name):
    which, change = BROKEN[name]
    sol = SOLVED[which]
    assert ufm.verify(sol)[name].verdict == "holds"
    report = ufm.verify(replace(sol, params=change(sol.params)))
    assert report[name].verdict == "fails"
    assert report[name].value > report[name].tolerance
    assert not report.passed


BALANCED = (
    "row_norms",
    "self_duality",
    "zero_mean",
    "etf",
    "bias_constant",
    "bias_zero",
    "own_frame",
    "own_bias",
)
STRUCTURE = ("row_norms", "self_duality", "zero_mean", "etf", "logits", "bias_constant", "bias_zero")


@pytest.mark.parametrize("loss", ["ce", "fl", "mse"])
def test_unequal_counts_keep_what_does_not_need_balance(loss):
    report = ufm.verify(solution(loss, lam_b=2e-2, labels=[0, 0, 1, 2, 3, 3, 3]))
    assert report.passed
    for name in BALANCED:
        assert report[name].verdict == "not applicable"
        assert "equally many samples" in report[name].why
    for name in ("objective", "logits"):
        assert report[name].verdict == ("not applicable" if loss == "fl" else "holds")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"d": 2}, "needs d >= 3"),
        ({"d": 3}, "assumes d >= K"),
        ({"lam_W": 0.4, "lam_H": 0.3}, "over-regularised"),
    ],
    ids=["d = K - 2", "d = K - 1", "over-regularised"],
)
@pytest.mark.parametrize("loss", ["ce", "fl"])
def test_not_applicable_where_an_assumption_fails(loss, changes, reason):
    report = ufm.verify(solution(loss, lam_b=2e-2, **changes))
    for name in STRUCTURE:
        assert report[name].verdict == "not applicable"
        assert reason in report[name].why
    assert report.passed


def test_a_solution_that_did_not_converge_fails():
    prob = SOLVED["ce"].problem
    report = ufm.verify(ufm.solve(prob, ufm.init(prob), max_steps=4))
    assert not report.passed
    assert "max_steps" in report["stationary_W"].why


def test_a_saddle_fails():
    prob = SOLVED["ce"].problem
    report = ufm.verify(ufm.solve(prob, prob.zeros(), escape=False))
    assert report["objective"].verdict == report["certificate"].verdict == "fails"
    assert "strict saddle" in report["objective"].why


def neural_collapse(prob, a):
    """The neural-collapse point of margin a, from its formula."""
    K, n = prob.K, prob.n
    P = np.eye(K) - 1 / K
    s = (n * float(prob.lam_H) / float(prob.lam_W)) ** 0.25
    W, M = np.zeros((K, prob.d)), np.zeros((prob.d, K))
    W[:, :K], M[:K] = s * np.sqrt(a) * P, np.sqrt(a) / s * P
    return ufm.Params(jnp.asarray(W), jnp.asarray(M[:, prob.labels]), jnp.zeros(K))


def test_theorem_1_is_false_for_focal_loss_near_its_tie():
    """K = 20, gamma = 3, C = 1.20108: neural collapse is a minimum, 17 classes of 20 lie lower."""
    K, n, C = 20, 2, 1.20108
    lam = C / (K - 1) / n**0.5
    prob = ufm.Problem.balanced("fl", K=K, d=21, n=n, lam_W=2 * lam, lam_H=lam / 2, gamma=3.0)

    def slope(a):
        p = 1 / (1 + (K - 1) * np.exp(-a))
        return (1 - p) ** 3 * (1 - p - 3 * p * np.log(p)) - C

    collapse = ufm.solve(prob, neural_collapse(prob, brentq(slope, 0.2, 1.0)))
    assert collapse.converged
    assert float(collapse.objective) == pytest.approx(2.568462507026, abs=2e-12)
    report = ufm.verify(collapse)
    assert report["etf"].verdict == report["balance"].verdict == "holds"
    assert report["objective"].verdict == "fails"
    lower = ufm.theory.global_optimum(prob)
    assert lower.regime == "partial"
    assert lower.objective <= 2.568461934958 + 1e-12
    assert report["certificate"].verdict == "not applicable"
    partial = ufm.verify(ufm.solve(prob, lower.params))
    assert partial["objective"].verdict == "holds"
    assert partial["etf"].verdict == "fails"
    assert "Theorem 1 is false here" in partial["etf"].why


def test_the_report_is_strict_json():
    data = ufm.verify(SOLVED["mse"]).to_dict()
    assert set(data) == {"passed", "problem", "solution", "claims"}
    assert set(data["claims"][0]) == {"name", "statement", "value", "tolerance", "verdict", "why"}
    assert {"objective", "grad_norm"} <= set(data["solution"])
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_bad_input():
    with pytest.raises(ValueError, match="sol: expected a Solution"):
        ufm.verify(3)
    sweep = ufm.solve_sweep(SOLVED["ce"].problem, seeds=range(2))
    with pytest.raises(ValueError, match="sol: expected a Solution"):
        ufm.verify(sweep)


def test_numbers_that_are_not_finite_fail_every_claim():
    broken = replace(SOLVED["ce"], params=SOLVED["ce"].params._replace(b=jnp.full(4, jnp.nan)))
    report = ufm.verify(broken)
    assert {claim.verdict for claim in report.claims} == {"fails"}
    assert not report.passed
    assert "not finite" in repr(report)


# --- unequal counts -------------------------------------------------------------------------------

#: counts 3, 1, 3, 2, 1 of the classes: two groups of two classes, and a class alone
UNEQUAL_LABELS = [2, 0, 1, 0, 2, 3, 4, 3, 2, 0]


def unequal(loss="ce", **changes):
    return solution(loss, K=5, lam_W=0.03, lam_H=0.01, labels=UNEQUAL_LABELS, **changes)


@pytest.mark.parametrize("loss", ["ce", "ls", "mse"])
def test_what_survives_of_collapse_with_unequal_counts(loss):
    report = ufm.verify(unequal(loss))
    assert report.passed
    for row in UNEQUAL:
        if (row.name, loss) != ("group_gain", "mse"):
            assert report[row.name].verdict == "holds"
    if loss == "mse":
        assert "about cross-entropy and label smoothing" in report["group_gain"].why


BROKEN_UNEQUAL = {
    "within_class": lambda p: p._replace(H=p.H.at[:, 4].multiply(1 + 1e-6)),
    "sample_mean": lambda p: p._replace(H=p.H + 1e-6),
    "group_etf": lambda p: p._replace(W=p.W.at[0].multiply(1 + 1e-6)),
    "group_duality": lambda p: p._replace(W=(1 + 1e-6) * p.W),
    "group_gain": lambda p: p._replace(H=(1 + 1e-6) * p.H),
    "group_geometry": lambda p: p._replace(W=(1 + 1e-6) * p.W),
    "groups_orthogonal": lambda p: p._replace(W=p.W.at[0].add(1e-6 * p.W[1])),
}


@pytest.mark.parametrize("row", UNEQUAL, ids=lambda row: row.name)
def test_a_change_by_1e_6_fails_its_claim_about_unequal_counts(row):
    sol = unequal()
    facts = Facts(replace(sol, params=BROKEN_UNEQUAL[row.name](sol.params)))
    assert row.measure(Facts(sol)) <= row.tolerance(Facts(sol)) < row.measure(facts)


def test_the_geometry_of_groups_is_reported_beside_theory_s():
    """|w|^2 = alpha sqrt(n)(1 - 1/K) + sigma K_h/(K K_g), <w_A, w_B> = -sigma/K, and so for the means."""
    prob = ufm.Problem.from_counts("ls", counts=[2, 6, 6, 2, 6], d=6, lam_W=0.02, lam_H=0.01)
    report = ufm.verify(ufm.solve(prob, reduced=True))
    Z = theory.global_optimum(prob).logits
    Zbar = Z - theory.global_optimum(prob).b[:, None]
    n, K, q = np.array([6.0, 2.0]), np.array([3, 2]), 6 / 5
    alpha = np.array([Z[1, 1] - Z[2, 1], Z[0, 0] - Z[3, 0]])
    rho = np.array([Zbar[[1, 2, 4], 1].mean() - Zbar[0, 1], Zbar[[0, 3], 0].mean() - Zbar[1, 0]])
    sigma, factor = np.sqrt(q * np.sum(K * n * rho**2)), 2**-0.5
    w = factor * (alpha * np.sqrt(n) * (1 - 1 / K) + sigma * K[::-1] / (5 * K))
    h = (alpha / np.sqrt(n) * (1 - 1 / K) + q * rho**2 / sigma) / factor
    for found in report.geometry:
        close(found.w_norm**2, w, ulps=2**24)
        close(found.h_norm**2, h, ulps=2**24)
        close(found.w_cosine[0, 1], -factor * sigma / 5 / np.sqrt(w.prod()), ulps=2**24)
        close(found.h_cosine[0, 1], -q * rho.prod() / sigma / factor / np.sqrt(h.prod()), ulps=2**24)
        close(found.w_cosine[0, 0] * w[0], factor * (-alpha[0] * 6**0.5 / 3 + sigma * 2 / 15), ulps=2**24)
    data = report.to_dict()["geometry"]
    assert data["theory"]["counts"] == [6, 2]
    assert f"3 of 6 samples: |w| = {w[0] ** 0.5:.4g}" in repr(report)
    assert "geometry" not in ufm.verify(SOLVED["ce"]).to_dict()


def test_claims_about_unequal_counts_say_why_they_do_not_apply():
    report = ufm.verify(unequal("fl", lam_b=2e-2))
    assert "not declared convex" in report["within_class"].why
    assert "the bias is penalised" in report["sample_mean"].why
    assert "known for convex losses" in report["group_etf"].why
    report = ufm.verify(unequal(bias=False))
    assert "no bias" in report["sample_mean"].why
    report = ufm.verify(solution(labels=[0, 0, 0, 1, 2, 3, 3], lam_W=0.03, lam_H=0.01))
    assert "only one group" in report["groups_orthogonal"].why
    assert report["group_etf"].verdict == "holds"
    report = ufm.verify(solution(labels=[0, 0, 0, 1, 2, 2, 3, 3, 3, 3], lam_W=0.3, lam_H=0.3))
    assert report["trivial"].verdict == "holds"
    assert "over-regularised" in report["group_etf"].why
    assert "within_class" not in {claim.name for claim in ufm.verify(SOLVED["ce"]).claims}
