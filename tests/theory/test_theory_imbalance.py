"""Unequal class counts: the block form against the full problem, its solvers and its certificate."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tolerances import close

import ufm
from ufm import landscape, losses, theory
from ufm.theory import _blocks, _setting, imbalance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the solver's own deprecations are not ours to fix
    import cvxpy as cp

#: K = 7 in four groups, one of a single class; neither sorted nor contiguous
COUNTS = np.array([2, 7, 3, 7, 2, 3, 4])
#: name, its hyperparameters, and where the optimum is far from zero
LOSSES = (("ce", {}), ("ls", {"alpha": 0.2}), ("mse", {"kappa": 2.0, "beta": 1.5}), ("ova", {}))
REGIMES = {"free": (True, 0.0), "penalised": (True, 0.05), "absent": (False, 0.0)}
every_regime = pytest.mark.parametrize("regime", REGIMES)


def problem(loss="ce", hyper=None, regime="free", counts=COUNTS, strength=1.0, **changes) -> ufm.Problem:
    """Labels in random order, lam_W != lam_H."""
    bias, lam_b = REGIMES[regime]
    labels = np.random.default_rng(4).permutation(np.repeat(np.arange(len(counts)), counts))
    penalties = {"lam_W": 0.03 * strength, "lam_H": 0.01 * strength, "lam_b": lam_b}
    return ufm.Problem(
        losses.get(loss, **hyper or {}), labels, d=len(counts) + 1, bias=bias, **penalties | changes
    )


@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
@every_regime
@pytest.mark.parametrize("strength", [1.0, 40.0], ids=["small", "zero"])
def test_the_optimum_of_unequal_counts(loss, hyper, regime, strength):
    """No point is lower, by the dual bound, and `params` attains the value; balance and stationarity hold."""
    prob = problem(loss, hyper, regime, strength=strength)
    best = theory.global_optimum(prob)
    close(prob(best.params), best.objective, ulps=64)
    certificate = landscape.certificate(prob, best.params)
    assert certificate.is_global
    assert certificate.gap < 1e-13
    assert best.objective <= best.trivial + 1e-15
    assert (best.regime == "trivial") == (strength == 40.0)
    W, H, _ = best.params
    close(prob.lam_W * W.T @ W, prob.lam_H * H @ H.T, ulps=64, scale=1 + np.abs(W).max() ** 2)
    if strength == 1.0:
        rank = np.linalg.matrix_rank(W, tol=1e-9)
        assert rank >= 6
        assert best.structure == f"rank {rank}, simplex ETFs of 2 + 2 + 2 classes"
    close(best.logits[:, prob.labels], prob.logits(best.params), ulps=512, scale=10.0)


@every_regime
def test_the_solver_of_the_full_problem_ends_there(regime):
    prob = problem("ls", {"alpha": 0.2}, regime)
    sol = ufm.solve(prob, ufm.init(prob, seed=3))
    best = theory.global_optimum(prob)
    assert abs(float(sol.objective) - best.objective) < 1e-12
    Z = np.asarray(prob.logits(sol.params))
    expected = best.logits[:, np.asarray(prob.labels)]
    assert np.abs((Z - Z.mean(axis=0)) - (expected - expected.mean(axis=0))).max() < 1e-7


def test_against_a_solver_of_cones():
    """min over (Z, b) of the unstructured problem, without any symmetry, for K = 4."""
    counts = np.array([2, 6, 2, 5])
    prob = problem("ce", counts=counts, strength=2.0)
    Z, b = cp.Variable((4, 4)), cp.Variable(4)
    fits = [n * (cp.log_sum_exp(Z[:, k] + b) - Z[k, k] - b[k]) / counts.sum() for k, n in enumerate(counts)]
    size = float(prob.lam) * cp.normNuc(Z @ np.diag(np.sqrt(counts)))
    value = cp.Problem(cp.Minimize(cp.sum(cp.hstack(fits)) + size)).solve(solver=cp.CLARABEL)
    assert abs(value - theory.global_optimum(prob).objective) < 1e-7


def test_symmetries_of_the_optimum():
    """Renumbered classes permute the answer; sample size and penalties enter through N lam_W lam_H only."""
    prob = problem()
    best = theory.global_optimum(prob)
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    other = theory.global_optimum(prob.replace(labels=np.argsort(order)[np.asarray(prob.labels)]))
    close(other.objective, best.objective, ulps=64)
    close(other.logits, best.logits[np.ix_(order, order)], ulps=2**22)
    twice = theory.global_optimum(
        prob.replace(labels=np.repeat(np.asarray(prob.labels), 2), lam_W=prob.lam_W / 4, lam_H=prob.lam_H * 2)
    )
    close(twice.objective, best.objective, ulps=64)


def test_new_counts_and_penalties_compile_nothing(monkeypatch):
    traced = []
    plain = losses.LabelSmoothing.__call__
    monkeypatch.setattr(
        losses.LabelSmoothing, "__call__", lambda *args: (traced.append(args), plain(*args))[1]
    )
    theory.global_optimum(problem("ls", {"alpha": 0.2}, counts=COUNTS[:6]))
    assert traced
    traced.clear()
    theory.global_optimum(problem("ls", {"alpha": 0.3}, counts=COUNTS[:6] + 1, strength=1.3))
    assert not traced


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": losses.focal(2.0)}, "with unequal counts the optimum is known for convex losses"),
        ({"loss": losses.get("ww")}, "is not smooth"),
        ({"d": 5}, "rank 6.* needs d >= 6, got d=5"),
        ({"d": 2, "lam_W": 0.1}, "needs d >= "),
    ],
)
def test_what_the_block_form_refuses(changes, message):
    with pytest.raises(theory.NoClosedForm, match=message):
        theory.global_optimum(problem().replace(**changes))


def test_balanced_problems_agree_with_the_block_form():
    """One group of all classes: the closed form of balanced problems is a witness of the program."""
    for loss, hyper in LOSSES[::2]:
        for regime in REGIMES:
            prob = problem(loss, hyper, regime, counts=np.full(7, 4))
            s, groups = _setting.any_counts(prob), _blocks.groups_of(prob.counts)
            program = _blocks.program(s, groups)
            x, *_ = _blocks.minimiser(program, s, groups)
            close(_blocks.objective(program, x), theory.global_optimum(prob).objective, ulps=64)


@pytest.mark.parametrize(
    ("loss", "hyper", "regime"),
    [("ce", {}, "free"), ("ls", {"alpha": 0.2}, "absent"), ("mse", {"kappa": 2.0, "beta": 1.5}, "penalised")],
)
@pytest.mark.parametrize("strength", [0.02, 0.2])
def test_many_groups(loss, hyper, regime, strength):
    """Twelve groups, beyond which the Hessian is no matrix: the dual bound closes at the optimum."""
    counts = np.random.default_rng(2).permutation(np.append(np.arange(1, 13) ** 2, [4, 49]))
    prob = problem(loss, hyper, regime, counts=counts, strength=strength)
    best = theory.global_optimum(prob)
    assert len(_blocks.groups_of(counts).sizes) == 12
    assert landscape.certificate(prob, best.params).gap < 1e-13
    close(prob(best.params), best.objective, ulps=64)


TWO = np.array([2, 5, 5, 2, 5, 2, 2])
CLOSED = (
    ("ce", {}, "free", TWO),
    ("ls", {"alpha": 0.2}, "free", TWO),
    ("ls", {"alpha": 0.2}, "free", np.array([2, 2, 5, 2, 2, 2, 2])),
    ("ce", {}, "free", np.array([5, 5, 5, 2, 5, 5, 5])),
    ("ce", {}, "absent", TWO),
    ("ls", {"alpha": 0.2}, "absent", np.array([2, 2, 5, 2, 2, 2, 2])),
    ("ls", {"alpha": 0.2}, "penalised", TWO),
    ("mse", {"kappa": 2.0, "beta": 1.5}, "absent", COUNTS),
    ("mse", {"kappa": 1.0, "beta": 1.5}, "free", COUNTS),
)


@pytest.mark.parametrize(("loss", "hyper", "regime", "counts"), CLOSED)
@pytest.mark.parametrize("x", [0.3, 0.9, 1.05, 3.3])
def test_closed_forms_of_unequal_counts(loss, hyper, regime, counts, x):
    """In every phase: the dual bound closes at the closed form, and Newton's method ends at its logits."""
    prob = at(problem(loss, hyper, regime, counts=counts), x * (2.1 if loss == "mse" else 1.0))
    best = theory.global_optimum(prob)
    s, groups = _setting.any_counts(prob), _blocks.groups_of(prob.counts)
    known = s.loss.block_optimum(s, groups)
    assert best.theorem.endswith("in closed form") == (known is not None and best.regime != "trivial")
    assert landscape.certificate(prob, best.params).gap < 1e-14
    if known is not None and best.regime != "trivial":
        program = _blocks.program(s, groups)
        newton = _blocks.solve(program, _blocks.Parts(bias=s.bias))
        close(_blocks.objective(program, newton), best.objective, ulps=64)
        for ours, witness in ((known.T, newton.T), (known.t, newton.t)):
            close(ours, witness, ulps=2**24, scale=1 + np.abs(known.T).max())


def test_two_groups_have_a_closed_form_unless_their_means_vanish():
    names = ("rank 6, simplex ETFs of 3 + 4 classes", "rank 3, simplex ETF of 3 classes, 1 group merged")
    for x, closed, name in (
        (0.5, True, names[0]),
        (1.1, True, names[1]),
        (1.5, False, names[1].replace("3,", "2,")),
    ):
        prob = at(problem(counts=TWO), x * 2**0.5)
        found = theory.threshold(prob)
        assert (found.x < found.x_means) == closed
        best = theory.global_optimum(prob)
        assert (best.theorem.endswith("in closed form"), best.structure) == (closed, name)


# --- thresholds -----------------------------------------------------------------------------------


def at(prob: ufm.Problem, x: float) -> ufm.Problem:
    """The problem with N sqrt(lam_W lam_H) = x."""
    return prob.replace(lam_W=2 * x / prob.N, lam_H=x / 2 / prob.N)


@pytest.mark.parametrize(
    ("K_A", "K_B", "R", "x_A", "free", "none"),
    [
        (5, 5, 3, 1.7321, 1.166079, 1.257761),
        (5, 5, 10, 3.1623, 1.268431, 1.570626),
        (5, 5, 100, 10, 1.370295, 2.642943),
        (7, 3, 100, 10, 1.173265, 1.425148),
        (2, 3, 5, 2.2361, 1.348581, 1.749242),
        (3, 7, 100, 10, 1.748944, 6.685952),
    ],
)
def test_thresholds_of_two_groups(K_A, K_B, R, x_A, free, none):
    """Values of another program, in 40 digits; n_B = 1."""
    counts = [1] * K_B + [R] * K_A
    for bias, x_r in ((True, free), (False, none)):
        found = theory.threshold(at(ufm.Problem.from_counts("ce", counts=counts, bias=bias), 1.1))
        assert (found.counts.tolist(), found.sizes.tolist(), found.phase) == ([R, 1], [K_A, K_B], "II")
        close(found.x_merge, [R**0.5, 1.0])
        assert abs(found.x_means - x_r) < 1e-6
        assert abs(found.x_zero - x_A) < 1e-4
        close(found.x_vanish, [found.x_zero, found.x_means], ulps=64)
        assert found.x == pytest.approx(1.1, rel=1e-14)


@pytest.mark.parametrize(("bias", "lam_b"), [(True, 0.0), (False, 0.0)])
@pytest.mark.parametrize("weights", [None, np.array([0.4, 1.3, 1.3, 0.4, 1.3, 0.4, 0.4])])
def test_where_the_means_of_two_groups_vanish(bias, lam_b, weights):
    """The closed form against the slope of the program, by bisection."""
    prob = ufm.Problem.from_counts("ls", counts=TWO, bias=bias, lam_b=lam_b, class_weights=weights, alpha=0.3)
    s, groups = _setting.any_counts(prob), _blocks.groups_of(TWO, weights)
    program = _blocks.program(s, groups)
    zero = _blocks.slopes(program, _blocks.from_zero(program, s.bias))
    parts = _blocks.Parts(mean=False, bias=bias)
    witness = imbalance._root(program, parts, lambda slopes: slopes.mean, zero.largest, zero)
    close(theory.threshold(prob).x_means, prob.N * witness, ulps=2**10)


def test_where_the_means_vanish_with_a_distance_as_the_loss():
    """kappa = 1, free bias: the largest singular value of beta D^(1/2)(I - s s') on the means is x/2."""
    prob = problem("mse", {"kappa": 1.0, "beta": 1.5})
    centred = np.eye(7) - np.sqrt(np.outer(COUNTS, COUNTS)) / COUNTS.sum()
    member = (np.unique(-COUNTS)[:, None] == -COUNTS).astype(float)
    member /= np.sqrt(member.sum(axis=1, keepdims=True))
    M = member @ np.diag(np.sqrt(COUNTS)) @ centred @ member.T
    close(theory.threshold(prob).x_means, 3.0 * np.linalg.norm(M, 2), ulps=64)


def test_one_class_in_the_majority():
    """x_r^2 = N K pi_A pi_B with a free bias and (n_A K_B + n_B K_A)/K without one, pi_B of one class."""
    n_A, n_B, K_B = 6, 2, 4
    counts, N = [n_B] * 2 + [n_A] + [n_B] * 2, n_A + K_B * n_B
    for bias, square in ((True, 5 * n_A * n_B / N), (False, (n_A * K_B + n_B) / 5)):
        found = theory.threshold(ufm.Problem.from_counts("ls", counts=counts, bias=bias, alpha=0.25))
        close(found.x_means, 0.75 * square**0.5, ulps=64)
        close(found.x_zero, found.x_means, ulps=64)
        assert np.isnan(found.x_merge[0])
        assert np.isnan(found.x_merge).sum() == 1


def test_thresholds_of_mse_without_a_bias():
    """Class k vanishes at N lam = 2 kappa beta sqrt(n_k), on its own."""
    found = theory.threshold(problem("mse", {"kappa": 2.0, "beta": 1.5}, "absent"))
    close(found.x_vanish, 6.0 * np.sqrt([7, 4, 3, 2]))
    assert found.proved == "proved"


@pytest.mark.parametrize(
    ("loss", "hyper", "regime"),
    [
        ("ls", {"alpha": 0.2}, "free"),
        ("ce", {}, "absent"),
        ("mse", {"kappa": 2.0, "beta": 1.5}, "penalised"),
        ("mse", {"kappa": 1.0, "beta": 1.5}, "free"),
        ("ova", {}, "free"),
    ],
)
def test_the_optimum_changes_at_each_threshold(loss, hyper, regime):
    """Two per cent below and above: classes that part, group means that leave zero, everything."""
    prob = problem(loss, hyper, regime)
    found = theory.threshold(prob)
    groups = [np.flatnonzero(prob.counts == n) for n in found.counts]

    def features(x: float) -> np.ndarray:
        best = theory.global_optimum(at(prob, x))
        assert (best.regime == "trivial") == (x >= found.x_zero)
        return np.asarray(prob.class_means(best.params.H))

    for x, group in zip(found.x_merge, groups, strict=True):
        if len(group) > 1:
            below, above = (np.ptp(features(share * x)[:, group], axis=1).max() for share in (0.98, 1.02))
            assert (below > 1e-3, above < 1e-9) == (True, True)
    means = [
        max(np.abs(h[:, group].mean(axis=1)).max() for group in groups)
        for h in (features(0.98 * found.x_means), features(1.02 * found.x_means))
    ]
    assert means[0] > 1e-3
    assert means[1] < 1e-9
    assert theory.threshold(at(prob, 1.02 * found.x_zero)).phase == "IV"
    assert theory.threshold(at(prob, 0.98 * np.nanmin(found.x_merge))).phase == "I"
    assert found.collapses


@pytest.mark.parametrize(("loss", "hyper"), LOSSES[1:3])
@every_regime
def test_the_optimum_at_a_threshold(loss, hyper, regime):
    """At and within a millionth of each threshold, where f is as flat as a fourth power."""
    prob = problem(loss, hyper, regime)
    found = theory.threshold(prob)
    for x in (found.x_merge[0], np.nanmin(found.x_merge), found.x_means, found.x_zero):
        for share in (1 - 1e-6, 1.0, 1 + 1e-6):
            near = at(prob, share * x)
            best = theory.global_optimum(near)
            assert landscape.certificate(near, best.params).gap < 1e-12 * (1 + best.objective)
