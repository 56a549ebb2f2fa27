"""Depth: thresholds against mpmath, the structures against a search that knows nothing of them."""

import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import ufm
from ufm import theory
from ufm.models import deep
from ufm.theory import _structures

N = 2


def at(C, q, K, loss="ce", rank=None, d=None, widths=None, **options):
    """A problem with rank c_q = C (default: rank K - 1) and unequal penalties."""
    c = C / (rank or K - 1)
    lam = [c * N ** (-1 / q) * x for x in (2.0, 0.5, *[1.0] * (q - 2))]
    model = deep(q - 1, lam=lam[1:], widths=widths)
    labels = np.random.default_rng(1).permutation(np.tile(np.arange(K), N))
    loss = ufm.losses.get(loss, **{k: options.pop(k) for k in ("kappa", "gamma") if k in options})
    return ufm.Problem(loss, labels, K, d or K + 1, lam_W=1.0, lam_H=lam[0], model=model, **options)


# --- thresholds -----------------------------------------------------------------------------------


def by_mpmath(K, q):
    """C_tie, C_spin of cross-entropy to 30 digits: Lambert's W, and a root."""
    with mpmath.workdps(30):
        th = 1 - mpmath.mpf(2) / q
        a = th + mpmath.lambertw(th * (K - 1) * mpmath.exp(-th)).real
        spin = (1 - th / a) * a**th

        def excess(a):
            return (
                mpmath.log(1 + (K - 1) * mpmath.exp(-a))
                + a * (K - 1) * q / 2 / (mpmath.exp(a) + K - 1)
                - mpmath.log(K)
            )

        tie = mpmath.findroot(excess, (1.05 * a, 6 * a), solver="anderson")
        return float((K - 1) / (mpmath.exp(tie) + K - 1) * tie**th), float(spin), float(tie), float(a)


@pytest.mark.parametrize(("K", "q"), [(3, 3), (4, 3), (10, 3), (4, 4), (10, 5), (2, 3), (100, 12)])
def test_thresholds_of_cross_entropy(K, q):
    t = theory.threshold(at(0.1, q, K))
    np.testing.assert_allclose((t.C_tie, t.C_spin, t.a_tie, t.a_spin), by_mpmath(K, q), rtol=1e-13)
    if q == K:
        np.testing.assert_allclose(
            (t.a_tie, t.C_tie), (2 * np.log(K - 1), (2 * np.log(K - 1)) ** (1 - 2 / K) / K)
        )
    assert t.global_tie == (K == 2)
    assert t.kind == "first order"


def test_the_published_table():
    """C_spin and C_tie of (K, q) = (3, 3), (4, 3), (10, 3), (4, 4), (10, 5) to eight digits."""
    table = {
        (3, 3): (0.44258286, 0.37167547),
        (4, 3): (0.53297971, 0.44482696),
        (10, 3): (0.77634798, 0.63499257),
        (4, 4): (0.52484865, 0.37057595),
        (10, 5): (0.85552965, 0.50020770),
    }
    for (K, q), (spin, tie) in table.items():
        t = theory.threshold(at(0.1, q, K))
        np.testing.assert_allclose((t.C_spin, t.C_tie), (spin, tie), atol=6e-9)


LOSSES = [
    ("ls", {}, {}),
    ("fl", {}, {"gamma": 2.0}),
    ("mse", {"bias": False}, {"kappa": 0.7}),
    ("mse", {}, {}),
]


@pytest.mark.parametrize(("loss", "options", "hyper"), LOSSES)
def test_thresholds_are_where_the_branch_ties_and_where_it_ends(loss, options, hyper):
    """Against a minimisation of l(a) + (q/2) C a^(2/q) that knows no slope."""
    K, q = 4, 3
    t = theory.threshold(at(0.1, q, K, loss, **options, **hyper))
    profile = theory.scalar_profile(ufm.losses.get(loss, **hyper), K) if loss != "mse" else None
    kappa, share = hyper.get("kappa", 1.0), 1 if options else (K - 1) / K

    def l(a):  # noqa: E743
        return float(profile.value(a)) if profile else kappa * share * (15.0 - a) ** 2

    def lowest(C):
        return -scipy.optimize.minimize_scalar(
            lambda a: l(a) + q / 2 * C * a ** (2 / q),
            bounds=(t.a_spin, 3 * t.a_tie),
            options={"xatol": 1e-12},
        ).fun

    assert -lowest(t.C_tie) == pytest.approx(l(0.0), rel=1e-12)
    a = np.linspace(0.5, 1.5, 2001) * t.a_spin
    slope = np.gradient([l(x) for x in a], a, edge_order=2)
    assert np.max(-slope * a ** (1 - 2 / q)) == pytest.approx(t.C_spin, rel=1e-5)


def test_phases_and_what_is_printed():
    tie, spin, _, _ = by_mpmath(4, 3)
    phases = [
        theory.threshold(at(C, 3, 4)).phase
        for C in (0.3, tie * 0.999, tie * 1.001, spin * 0.999, spin * 1.001)
    ]
    assert phases == ["I", "I", "II", "II", "III"]
    text = repr(theory.threshold(at(tie * 1.001, 3, 4)))
    assert "2 layers" in text
    assert "0.444826961" in text
    assert "II: the origin is lower" in text
    mse = theory.threshold(at(0.3, 3, 4, "mse", rank=4, bias=False))
    assert (mse.rank, mse.global_tie) == (4, True)
    np.testing.assert_allclose(mse.c_tie, (2 / 4) * (15 / 2) * (15 / 2) ** (1 / 3), rtol=1e-14)
    np.testing.assert_allclose((mse.C, mse.C_spin / mse.c_spin), (0.3, 4), rtol=1e-14)


def test_one_layer_has_the_threshold_of_two_free_factors():
    prob = ufm.Problem.balanced("ce", K=4, d=5, n=2, lam_W=0.7, lam_H=0.02, model=deep(1, lam=0.05))
    free = prob.replace(model=ufm.models.Free(), lam_W=0.05)
    assert theory.threshold(prob) == theory.threshold(free)


@pytest.mark.parametrize(
    ("prob", "reason"),
    [
        (at(0.1, 3, 4, widths=[2]), "d, widths: expected none below 3"),
        (at(0.1, 3, 4, "mse", lam_b=0.1), "loss: .* MSE has known thresholds"),
        (at(0.1, 3, 4, "ova"), "loss: .* no scalar problem"),
        (
            at(0.1, 3, 4).replace(labels=np.array([0, 0, 0, 1, 1, 2, 2, 3])),
            "labels, class_weights: .*thresholds",
        ),
    ],
)
def test_where_no_threshold_is_known_the_reason_is_named(prob, reason):
    with pytest.raises(theory.NoClosedForm, match=reason):
        theory.threshold(prob)


# --- structures -----------------------------------------------------------------------------------


def _linear(K, bias=True):
    return [x for x in _structures.families(K, bias) if isinstance(x, _structures.Family)]


@pytest.mark.parametrize("K", [3, 4, 5, 6, 7, 8, 9, 12, 13, 40])
def test_parts_have_singular_values_one_and_orthogonal_ranges(K):
    for family in (*_linear(K), *_structures.frames(K, True)):
        values = np.random.default_rng(0).uniform(0.5, 2.0, len(family.parts))
        Z = np.tensordot(values, family.parts, 1)
        sigma = np.linalg.svd(Z, compute_uv=False)
        ties = {}
        for tie, rank, t in zip(family.ties, family.ranks, values, strict=True):
            ties.setdefault(tie, []).append((rank, t))
        expected = [np.hypot.reduce([t for _, t in g]) for g in ties.values() for _ in range(int(g[0][0]))]
        expected = np.sort(np.append(expected, np.zeros(K - len(expected))))[::-1]
        np.testing.assert_allclose(sigma, expected, atol=1e-13, err_msg=family.name)
        assert family.rank == np.count_nonzero(expected)
        assert len(family.parts) + len(family.bias) <= 6


def searched(prob, starts):
    """The lowest of random starts on the layers of the class means, by scipy and a gradient written out."""
    K, q, c = prob.K, prob.model.layers + 1, theory.threshold(prob).c
    rng = np.random.default_rng(0)

    def level(x):
        A, b = x[: q * K * K].reshape(q, K, K), x[q * K * K :]
        below = [np.eye(K)]
        for W in A:
            below.append(W @ below[-1])
        Z = below[-1] + (b[:, None] if prob.bias else 0.0)
        log_p = Z - scipy.special.logsumexp(Z, axis=0)
        p = np.exp(log_p)
        back, gradient = (p - np.eye(K)) / K, np.zeros_like(A)
        on_b = back.sum(axis=1) + float(prob.lam_b) * b if prob.bias else b
        for j in reversed(range(q)):
            gradient[j] = back @ below[j].T + c * A[j]
            back = A[j].T @ back
        f = -np.mean(np.diag(log_p)) + c / 2 * np.sum(A**2) + float(prob.lam_b) / 2 * b @ b
        return f, np.append(gradient, on_b)

    size = q * K * K + K * prob.bias
    found = [np.log(K)]
    for _ in range(starts):
        start = rng.normal(size=size) * rng.uniform(0.5, 1.2)
        start[q * K * K :] = 0
        options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
        found.append(scipy.optimize.minimize(level, start, jac=True, method="L-BFGS-B", options=options).fun)
    return min(found)


WINNERS = [
    (3, 3, 0.95, {"bias": False}, "simplex ETF of 2 classes and 1 class at the origin", 1),
    (3, 3, 0.95, {}, "simplex ETF of 2 classes and 1 class at the origin", 1),
    (4, 3, 0.2, {"bias": False}, "2 simplex ETFs of 2 classes", 2),
    (4, 4, 0.5, {"bias": False}, "2 simplex ETFs of 2 classes", 2),
    (5, 3, 0.6, {"bias": False}, "simplex ETF of 3 classes and simplex ETF of 2 classes", 3),
    (5, 3, 0.2, {"bias": False}, "pyramid over 2 simplex ETFs of 2 classes", 3),
    (5, 3, 0.95, {"lam_b": 0.02}, "regular polygon of 5 classes", 2),
    (5, 4, 0.3, {"bias": False}, "regular polygon of 5 classes", 2),
    (6, 3, 0.2, {"bias": False}, "3 simplex ETFs of 2 classes", 3),
    (6, 4, 0.95, {"bias": False}, "regular polygon of 6 classes", 2),
    (6, 4, 0.8, {}, "regular polygon of 5 classes and 1 class at the origin", 2),
    (7, 3, 0.6, {"bias": False}, "regular polygon of 5 classes and simplex ETF of 2 classes", 3),
    (8, 3, 0.95, {"bias": False}, "antiprism of 8 classes", 3),
]


@pytest.mark.parametrize(("K", "q", "share", "options", "name", "rank"), WINNERS)
def test_the_lowest_structure_is_what_a_search_finds(K, q, share, options, name, rank):
    prob = at(share * by_mpmath(K, q)[0], q, K, **options)
    best = theory.global_optimum(prob)
    assert (best.structure, best.rank) == (name, rank)
    assert best.proved == "upper bound"
    assert best.lower_bound < best.objective
    np.testing.assert_allclose(searched(prob, 12), best.objective, rtol=1e-9)
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=1e-13)
    assert max(np.abs(x).max() for x in prob.gradient(best.params)) < 1e-11


def test_ten_classes_and_three_layers_make_a_capped_antiprism():
    """The lowest of 40 solves at the default penalties, which knew nothing of it: 0.302405656068971."""
    prob = ufm.Problem.balanced("ce", K=10, d=12, n=10, model=deep(3))
    best = theory.global_optimum(prob)
    assert (best.structure, best.rank) == ("antiprism of 8 classes with 2 on its axis", 3)
    np.testing.assert_allclose(best.objective, 0.302405656068971, rtol=1e-13)
    assert max(np.abs(x).max() for x in prob.gradient(best.params)) < 1e-13
    assert np.ptp(best.b) > 2


def test_points_at_unequal_steps_on_a_line_are_lowest_near_the_end():
    """Of 60 starts of the search above one ends there, at 1.58776919907 (a free bias, K = 5)."""
    prob = at(1.1 * by_mpmath(5, 3)[0], 3, 5)
    best = theory.global_optimum(prob)
    assert (best.structure, best.rank) == ("5 points on a line", 1)
    np.testing.assert_allclose(best.objective, 1.5877691990657765, rtol=1e-12)
    assert max(np.abs(x).max() for x in prob.gradient(best.params)) < 1e-12
    steps = np.diff(np.sort(np.asarray(best.params.W2 @ best.params.W1)[:, 0]))
    assert steps.max() > 2 * steps.min()


@pytest.mark.parametrize(
    ("kappa", "share", "rank"), [(2.0, 0.5, 5), (2.0, 0.8, 4), (2.0, 0.99, 2), (20.0, 0.5, 1)]
)
def test_mse_with_a_heavy_target_loses_rank_near_the_tie(kappa, share, rank):
    """Against the value of equal-norm tight frames of each rank r and singular value x, without a bias:
    kappa beta^2 - 2 kappa beta x r/K + x^2/K (r + (kappa - 1) r^2/K) + (q/2) c r x^(2/q).
    """
    beta, q, K = 15.0, 3, 5
    c = share * kappa * 2 / K * (beta / 2) * (beta / 2) ** (1 / 3)
    best = theory.global_optimum(at(c * K, q, K, "mse", rank=K, bias=False, kappa=kappa))
    x = np.linspace(1.0, 2 * beta * kappa, 200_001)
    values = [
        np.min(
            kappa * beta**2
            - 2 * kappa * beta * x * r / K
            + x**2 / K * (r + (kappa - 1) * r**2 / K)
            + q / 2 * c * r * x ** (2 / q)
        )
        for r in range(1, K + 1)
    ]
    assert best.rank == rank == 1 + int(np.argmin(values))
    np.testing.assert_allclose(best.objective, min(values), rtol=1e-9)
    assert best.proved == "upper bound"


def test_small_penalties_prefer_groups_and_polygons():
    def fails(layers, **options):
        return [K for K in range(3, 11) if theory.small_penalties(K, layers, **options).neural_collapse_fails]

    assert fails(1) == []
    assert fails(2) == [6, 7, 8, 9, 10]
    assert fails(3) == list(range(4, 11))
    assert fails(3, free_bias=True) == list(range(3, 11))
    constants = theory.small_penalties(5, 3).constants
    assert constants["neural collapse"] == 4
    np.testing.assert_allclose(constants["regular polygon"], 3.804, atol=5e-4)
    np.testing.assert_allclose(
        theory.small_penalties(7, 2).constants["2 groups of 2 and 1 group of 3"], 5.7955, atol=5e-5
    )
    np.testing.assert_allclose(
        theory.small_penalties(9, 3).constants["words of 2 letters out of 3"], 4 * 3**0.5
    )


@pytest.mark.parametrize(("K", "layers"), [(6, 2), (5, 3), (7, 3), (9, 4)])
def test_the_constants_are_those_of_margin_one(K, layers):
    """The least R is the least Schatten sum of the families with equal parts, scaled to margin 1."""
    p, least = 2 / (layers + 1), np.inf
    for family in _linear(K, False):
        for weights in ([1.0, 1.0, 1.0], [1.0, 4 / 3, 4 / 3]):  # 4/3: a triangle's margin to a pair's classes
            t = np.array(weights[: len(family.parts)])
            Z = np.tensordot(t, family.parts, 1)
            margin = np.min(np.diag(Z) - np.where(np.eye(K) > 0, -np.inf, Z).max(axis=0))
            if margin > 1e-9 and len(set(family.ties)) == len(family.ties):
                least = min(least, np.sum(family.ranks * (t / margin) ** p))
    np.testing.assert_allclose(least, min(theory.small_penalties(K, layers).constants.values()), rtol=1e-12)


def test_points_on_a_line_with_a_bias_have_margin_one():
    K, layers = 5, 4
    u = np.arange(K) - (K - 1) / 2
    X, b = 2 * np.outer(u, u), -(u**2)
    margins = np.diag(X) + b - (X + b[:, None])
    assert margins[np.eye(K) == 0].min() == 1
    R = np.sum(np.linalg.svd(X, compute_uv=False)[:1] ** (2 / (layers + 1)))
    line = theory.small_penalties(K, layers, free_bias=True).constants["points on a line"]
    np.testing.assert_allclose(line, R, rtol=1e-12)


# --- the Schatten sum -----------------------------------------------------------------------------


def test_the_schatten_sum_is_the_least_that_layers_cost():
    """Attained by balanced factors, and a lower bound for all others."""
    prob = at(0.2, 4, 3, lam_b=0.3)
    rng = np.random.default_rng(0)
    best = theory.global_optimum(at(0.2, 4, 3)).params
    Z = np.asarray(prob.model.classifier(best) @ best.H)
    penalty = float(prob.model.penalty(prob, best)) / 2 - 0.15 * float(best.b @ best.b)
    np.testing.assert_allclose(theory.schatten_penalty(prob, Z), penalty, rtol=1e-9)
    for seed in range(5):
        params = ufm.init(prob, seed=seed, scale=rng.uniform(0.5, 1.5))
        Z = np.asarray(prob.model.classifier(params) @ params.H)
        assert theory.schatten_penalty(prob, Z) < float(prob.model.penalty(prob, params)) / 2
    free = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_W=0.02, lam_H=0.005)
    np.testing.assert_allclose(theory.schatten_penalty(free, Z), 0.01 * np.linalg.norm(Z, "nuc"), rtol=1e-12)


def test_a_product_that_no_layers_have_is_refused():
    prob = at(0.2, 3, 4, widths=[2])
    with pytest.raises(ValueError, match="Z: expected a rank of at most 2, the narrowest layer, got 4"):
        theory.schatten_penalty(prob, np.eye(4, 8))
    with pytest.raises(ValueError, match=r"Z: expected shape \(4, 8\), got \(4, 4\)"):
        theory.schatten_penalty(prob, np.eye(4))
    fixed = ufm.Problem.balanced("ce", K=3, d=4, n=2, model=ufm.models.fixed(np.eye(3, 4)))
    with pytest.raises(ValueError, match="prob: expected free factors"):
        theory.schatten_penalty(fixed, np.eye(3, 6))
