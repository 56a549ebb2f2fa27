"""A deep linear classifier: the product of its factors, its balance, its optimum and its Hessian."""

import dataclasses

import numpy as np
import pytest
from numpy.linalg import norm

import ufm
from ufm import landscape, theory
from ufm.models import deep

K, D, N = 4, 5, 2
LABELS = np.array([2, 0, 3, 1, 3, 0, 2, 1])
UNEQUAL = np.array([2, 0, 3, 1, 3, 0, 2, 3])
LAM = (0.03, 0.012)
MODEL = deep(2, lam=LAM, widths=[6])


def problem(loss="ce", labels=LABELS, model=MODEL, **options):
    return ufm.Problem(loss, labels, K, D, **{"lam_W": 0.02, "lam_H": 0.006, "model": model, **options})


def at(C, q, K, n=N, d=D, loss="ce", **options):
    """A problem with (K - 1) c_q = C and unequal penalties."""
    c = C / (K - 1)
    lam = [c * n ** (-1 / q) * x for x in (2.0, 0.5, *[1.0] * (q - 2))]
    model = deep(q - 1, lam=lam[1:])
    labels = np.random.default_rng(1).permutation(np.tile(np.arange(K), n))
    return ufm.Problem(loss, labels, K, d, lam_W=1.0, lam_H=lam[0], model=model, **options)


@pytest.fixture(scope="module")
def solved():
    return ufm.solve(problem(lam_b=0.01), ufm.init(problem(), seed=1, scale=0.7), tol=1e-11)


# --- the problem ----------------------------------------------------------------------------------


def test_the_variables_are_the_factors_and_the_effective_classifier_is_their_product():
    prob = problem(model=deep(3, lam=[0.1, 0.2, 0.3], widths=[6, 7]), lam_b=0.05)
    params = ufm.init(prob, scale=1.0)._replace(b=np.array([1.0, 0.0, -2.0, 0.5]))
    assert params._fields == ("W1", "W2", "W3", "H", "b")
    W1, W2, W3, H, b = map(np.asarray, params)
    assert (W1.shape, W2.shape, W3.shape) == ((6, D), (7, 6), (K, 7))
    np.testing.assert_allclose(prob.logits(params), W3 @ W2 @ W1 @ H + b[:, None], rtol=1e-12, atol=1e-13)
    squares = [norm(x) ** 2 for x in (W1, W2, W3, H, b)]
    free = prob.replace(model=ufm.models.Free())
    fit = (
        free(prob.model.effective(prob, params))
        - free.model.penalty(free, prob.model.effective(prob, params)) / 2
    )
    penalty = np.dot([0.1, 0.2, 0.3, 0.006, 0.05], squares) / 2
    np.testing.assert_allclose(prob(params), fit + penalty, rtol=1e-13)


def test_one_layer_is_the_free_model():
    lam_W = 0.05
    prob, free = problem(model=deep(1, lam=lam_W), lam_W=0.7), problem(model="free", lam_W=lam_W)
    sol, other = ufm.solve(prob), ufm.solve(free)
    np.testing.assert_allclose(sol.objective, other.objective, rtol=1e-13)
    np.testing.assert_allclose(sol.W @ sol.W.T, other.W @ other.W.T, atol=1e-7)
    best = theory.global_optimum(prob)
    assert best.objective == theory.global_optimum(free).objective
    assert best.params._fields == ("W1", "H", "b")
    assert repr(prob).endswith(", lam_b=0, model=deep)")
    assert repr(free).endswith(", lam_b=0)")


def test_the_problems_penalty_is_that_of_each_layer_unless_given():
    params = ufm.init(problem(), scale=1.0)
    given = problem(model=deep(2, lam=[0.02, 0.02], widths=[6]))
    assert float(given(params)) == float(problem(model=deep(2, widths=[6]))(params))


def test_new_penalties_compile_nothing(compilations):
    ufm.solve(problem(), max_steps=3, escape=False)
    compilations()
    ufm.solve(problem(model=deep(2, lam=[0.001, 0.5], widths=[6])), max_steps=3, escape=False)
    assert compilations() == 0


# --- critical points ------------------------------------------------------------------------------


def test_factors_are_balanced_and_the_penalty_is_the_schatten_sum(solved):
    prob, (W1, W2, H, b) = solved.problem, map(np.asarray, solved.params)
    assert solved.converged
    assert norm(W2 @ W1) > 1
    np.testing.assert_allclose(LAM[0] * W1.T @ W1, 0.006 * H @ H.T, atol=1e-9)
    np.testing.assert_allclose(LAM[1] * W2.T @ W2, LAM[0] * W1 @ W1.T, atol=1e-9)
    sigma = np.linalg.svd(W2 @ W1 @ H, compute_uv=False)
    schatten = 3 / 2 * (0.006 * LAM[0] * LAM[1]) ** (1 / 3) * np.sum(sigma[:3] ** (2 / 3))
    penalty = prob.model.penalty(prob, solved.params) / 2 - 0.01 * norm(b) ** 2 / 2
    np.testing.assert_allclose(penalty, schatten, rtol=1e-6)
    report = ufm.verify(solved)
    assert report.passed
    for name in ("stationary_H", "stationary_b", "balance", "second_order"):
        assert report[name].verdict == "holds"
    assert report["objective"].verdict == "not applicable"


def test_a_point_out_of_balance_fails(solved):
    moved = solved.params._replace(W1=1.001 * solved.params.W1, W2=solved.params.W2 / 1.001)
    report = ufm.verify(dataclasses.replace(solved, params=moved))
    assert report["balance"].verdict == "fails"
    lower = dataclasses.replace(solved, params=solved.params._replace(H=1.001 * solved.params.H))
    assert ufm.verify(lower)["stationary_H"].verdict == "fails"


def test_the_zeros_of_the_hessian_are_those_of_the_rotations(solved):
    r = np.linalg.matrix_rank(solved.W, tol=1e-8)
    inertia = landscape.inertia(solved.problem, solved.params, tol=1e-7)
    assert (inertia.neg, inertia.accidental) == (0, 0)
    assert inertia.zero == sum(r * (r - 1) // 2 + r * (d - r) for d in (D, 6))


def test_the_origin_is_a_local_minimum_from_two_layers_on():
    prob = problem(bias=False)
    values = landscape.eigenvalues(prob, prob.zeros(), which="all").expand()
    sizes = {0.006: D * len(LABELS), LAM[1]: K * 6, LAM[0]: 6 * D}
    np.testing.assert_allclose(values, np.repeat(list(sizes), list(sizes.values())), atol=1e-15)
    sol = ufm.solve(prob, prob.zeros())
    assert sol.converged
    assert not np.any(sol.W)


# --- the optimum ----------------------------------------------------------------------------------

PROVED = [
    at(0.3, 3, 2),
    at(0.3, 4, 2, bias=False),
    at(4.0, 3, 4),
    at(0.2, 3, 4, loss="mse", bias=False),
    at(0.2, 4, 3, loss="mse"),
]


@pytest.mark.parametrize("prob", PROVED)
def test_what_is_proved_is_attained_and_reached(prob):
    best = theory.global_optimum(prob)
    assert best.proved == "proved"
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=1e-12)
    assert norm([norm(x) for x in prob.gradient(best.params)]) < 1e-11
    starts = [ufm.init(prob, seed=seed, scale=0.7) for seed in range(3)]
    found = [float(ufm.solve(prob, start).objective) for start in starts]
    assert min(found) > best.objective - 1e-12
    np.testing.assert_allclose(min(found), best.objective, rtol=1e-11)


def test_the_simplex_and_the_origin_tie_at_the_known_weight():
    """MSE, kappa = 1, no bias: c_tie = (2/K) (beta/(q-1)) (beta (q-2)/(q-1))^(1-2/q)."""
    q, beta = 4, 15.0
    tie = (2 / K) * (beta / (q - 1)) * (beta * (q - 2) / (q - 1)) ** (1 - 2 / q)
    below, above = (
        theory.global_optimum(at((K - 1) * tie * x, q, K, loss="mse", bias=False))
        for x in (1 - 1e-6, 1 + 1e-6)
    )
    assert (below.regime, above.regime) == ("non-trivial", "trivial")
    np.testing.assert_allclose(below.margin, beta * (q - 2) / (q - 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("K", "crossing", "tie", "other"),
    [(3, 0.933523, 0.37167547, "simplex ETF of 2"), (4, 0.079315, 0.44482696, "2 simplex ETFs of 2")],
)
def test_a_structure_of_lower_rank_beats_the_simplex_from_a_known_weight_on(K, crossing, tie, other):
    """Cross-entropy, q = 3, no bias, in units of the weight at which simplex and origin tie."""
    below, above = (
        theory.global_optimum(at(crossing * tie * x, 3, K, bias=False)) for x in (1 - 1e-4, 1 + 1e-4)
    )
    assert below.structure == "simplex ETF"
    assert above.structure.startswith(other)
    assert above.proved == "upper bound"
    assert above.lower_bound < above.objective


def test_the_square_is_below_neural_collapse():
    prob = at(0.2 * 0.44482696, 3, 4, bias=False)
    best = theory.global_optimum(prob)
    np.testing.assert_allclose(best.objective, 0.384942462, atol=5e-10)
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=1e-13)
    assert best.rank == 2
    narrow = prob.replace(model=deep(2, lam=prob.model.lam, widths=[1]))
    assert theory.global_optimum(narrow).rank <= 1


@pytest.mark.parametrize(
    ("prob", "reason"),
    [
        (problem(labels=UNEQUAL), "labels, class_weights: .* equal counts"),
        (problem("ova"), "loss: .* losses of differences of logits and for MSE"),
    ],
)
def test_where_no_closed_form_is_known_the_reason_is_named(prob, reason):
    with pytest.raises(theory.NoClosedForm, match=reason):
        theory.global_optimum(prob)


@pytest.mark.parametrize("prob", PROVED[1:4:2])
def test_a_proved_optimum_is_certified(prob):
    best = theory.global_optimum(prob)
    cert = landscape.certificate(prob, best.params)
    assert cert.is_global
    moved = best.params._replace(W1=1.1 * best.params.W1 + 0.1)
    gap = landscape.certificate(prob, moved).gap
    np.testing.assert_allclose(gap, float(prob(moved)) - best.objective, rtol=1e-9)
    assert gap > 1e-3


def test_elsewhere_the_certificate_is_the_lower_bound(solved):
    best = theory.global_optimum(solved.problem)
    assert solved.certificate.verdict == "not certified"
    assert "between the two nothing is proved" in solved.certificate.why
    np.testing.assert_allclose(solved.certificate.lower_bound, best.lower_bound, rtol=1e-12)
    assert float(solved.objective) <= best.objective + 1e-12


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, r"layers: expected an integer >= 1, got 0"),
        ({"layers": 2, "lam": [0.1, 0.2, 0.3]}, r"lam: expected one penalty or 2, .* got the shape \(3,\)"),
        ({"layers": 2, "lam": [0.1, 0.0]}, r"lam: expected a finite number > 0, got 0.0"),
        (
            {"layers": 3, "widths": [4]},
            r"widths: expected 2, one for each inner layer of layers=3, got \[4\]",
        ),
        ({"layers": 2, "widths": [0]}, r"widths: expected an integer >= 1, got 0"),
    ],
)
def test_a_depth_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        deep(**arguments)
