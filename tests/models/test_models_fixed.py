"""A given classifier: the convex problem in features and bias, its optimum, and its certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import ufm
from ufm import landscape, theory
from ufm.models import fixed
from ufm.models._fixed import Features

K, D = 3, 5
LABELS = np.array([2, 0, 0, 1, 2, 2, 0, 2, 1])
EQUAL = LABELS.copy()
EQUAL[-2] = 1  # three of each class
OMEGA = 1.5


def problem(loss="ce", labels=LABELS, **options):
    options = {"model": fixed("etf", scale=OMEGA), "lam_W": 0.02, "lam_H": 0.006, **options}
    return ufm.Problem(loss, labels, K, D, **options)


def some_W(seed=0):
    return np.random.default_rng(seed).normal(size=(K, D))


# --- the problem ----------------------------------------------------------------------------------


def test_logits_and_penalty_are_those_of_the_free_model_less_the_classifiers_penalty():
    W = some_W()
    prob = problem(model=fixed(W, scale=1.7), lam_b=0.01)
    params = ufm.init(prob, scale=1.0)._replace(b=jnp.asarray([0.3, -1.0, 0.2]))
    free = prob.replace(model=ufm.models.Free())
    point = prob.model.effective(prob, params)
    np.testing.assert_allclose(point.W, 1.7 * W, rtol=1e-15)
    np.testing.assert_allclose(prob(params), free(point) - 0.01 * np.sum((1.7 * W) ** 2), rtol=1e-13)
    np.testing.assert_allclose(prob.logits(params), free.logits(point), rtol=1e-14)
    assert prob.size == D * len(LABELS) + K


@pytest.mark.parametrize("bias", [True, False])
def test_the_solution_is_that_of_another_solver(bias):
    prob = problem("ls", model=fixed(some_W()), bias=bias)
    sol = ufm.solve(prob)
    start, unravel = jax.flatten_util.ravel_pytree(prob.zeros())
    f = jax.jit(jax.value_and_grad(lambda x: prob(unravel(x))))
    other = minimize(lambda x: [np.asarray(y) for y in f(x)], start, jac=True, method="BFGS", tol=1e-9)
    assert sol.converged
    np.testing.assert_allclose(sol.objective, other.fun, rtol=1e-11)
    assert float(sol.metrics.nc1) < 1e-20


def test_a_new_classifier_and_a_new_scale_compile_nothing(compilations):
    ufm.solve(problem(model=fixed(some_W())))
    compilations()
    ufm.solve(problem(model=fixed(some_W(1), scale=0.7)))
    ufm.solve(problem())
    assert compilations() == 0


def test_the_simplex_is_one_and_fits_where_d_is_at_least_K_minus_1():
    for d in (2, 3, D):
        prob = ufm.Problem("ce", LABELS, K, d, model=fixed("etf", scale=OMEGA))
        W = np.asarray(prob.model.classifier)
        np.testing.assert_allclose(W @ W.T, OMEGA**2 * (np.eye(K) - 1 / K), atol=1e-15)


def test_the_hessian_is_that_of_each_sample():
    prob = problem(bias=False)
    params = ufm.init(prob, scale=1.0)
    W = np.asarray(prob.model.classifier)
    P = np.exp(W @ np.asarray(params.H))
    P /= P.sum(axis=0)
    blocks = [W.T @ (np.diag(p) - np.outer(p, p)) @ W / len(LABELS) + 0.006 * np.eye(D) for p in P.T]
    whole = np.sort(np.concatenate([np.linalg.eigvalsh(block) for block in blocks]))
    np.testing.assert_allclose(
        landscape.eigenvalues(prob, params, which="all").expand(), whole, rtol=1e-12, atol=1e-15
    )
    inertia = landscape.inertia(prob, params)
    assert (inertia.neg, inertia.zero, inertia.pos) == (0, 0, prob.size)


# --- the optimum ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "ls", "mse", "fl", "ova"])
@pytest.mark.parametrize("labels", [LABELS, EQUAL], ids=["unequal", "equal"])
def test_the_optimum_without_a_bias_is_the_solvers_for_any_counts(loss, labels):
    prob = problem(loss, labels, bias=False)
    sol, best = ufm.solve(prob), theory.global_optimum(prob)
    np.testing.assert_allclose(sol.objective, best.objective, rtol=1e-12)
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=1e-12)
    np.testing.assert_allclose(sol.H, best.params.H, atol=1e-8 * np.abs(sol.H).max())
    np.testing.assert_allclose(prob.logits(best.params), best.logits[:, labels], atol=1e-12 * best.margin)
    assert best.proved == "proved"
    assert sol.certificate.is_global


def test_the_optimum_depends_on_the_number_of_samples_alone():
    first, second = (theory.global_optimum(problem(labels=x, bias=False)) for x in (LABELS, EQUAL))
    assert (first.objective, first.margin) == (second.objective, second.margin)


def test_the_margin_of_mse_is_its_formula():
    loss, lam_H, N = ufm.losses.get("mse", kappa=2.5, beta=4.0), 0.006, len(LABELS)
    best = theory.global_optimum(problem(loss, bias=False))
    a = 2.5 * 4.0 / ((2.5 * (K - 1) + 1) / K + N * lam_H / (2 * OMEGA**2))
    np.testing.assert_allclose(best.margin, a, rtol=1e-12)


@pytest.mark.parametrize("lam_b", [0.0, 0.01])
def test_equal_counts_need_no_bias(lam_b):
    prob = problem("ls", EQUAL, lam_b=lam_b)
    best = theory.global_optimum(prob)
    np.testing.assert_allclose(ufm.solve(prob).objective, best.objective, rtol=1e-12)
    assert best.objective == theory.global_optimum(prob.replace(bias=False, lam_b=0.0)).objective


def test_the_smallest_of_all_scales_is_the_balanced_optimum():
    """With lam_W |W|^2/2 added, the minimum over the scale is that of two free factors."""
    free = ufm.Problem("ce", EQUAL, K, D, lam_W=0.02, lam_H=0.006)
    best = theory.global_optimum(free)
    square = best.margin * np.sqrt(free.n * 0.006 / 0.02)  # |w_k|^2 = square (K-1)/K
    given = theory.global_optimum(problem(labels=EQUAL, model=fixed("etf", scale=square**0.5)))
    np.testing.assert_allclose(given.objective + 0.02 * square * (K - 1) / 2, best.objective, rtol=1e-13)
    np.testing.assert_allclose(given.margin, best.margin, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss": "fl"}, "bias: .* equal counts"),
        ({"loss": "fl", "labels": EQUAL}, "bias: .* convex and shift-invariant"),
        ({"loss": "fl", "bias": False, "model": fixed(some_W())}, "W: the optimum is known for a simplex"),
        ({"model": fixed(features="sphere")}, "bias: .* equal counts"),
    ],
)
def test_where_no_closed_form_is_known_the_reason_is_named(options, reason):
    with pytest.raises(theory.NoClosedForm, match=reason):
        theory.global_optimum(problem(**options))


@pytest.mark.parametrize(
    ("loss", "lam_b", "bias"),
    [("ce", 0.0, True), ("ls", 0.05, True), ("ova", 0.0, False), ("ce", 0.0, False)],
)
@pytest.mark.parametrize("rank", [1, K])
def test_any_classifier_has_its_optimum(loss, lam_b, bias, rank):
    """Against the solver and the dual bound, also where W has a smaller rank; counts 3, 2, 4."""
    W = some_W()[:, :rank] @ np.random.default_rng(5).normal(size=(rank, D))
    prob = problem(loss, model=fixed(W), lam_b=lam_b, bias=bias)
    best = theory.global_optimum(prob)
    assert best.proved == "proved"
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=1e-14)
    np.testing.assert_allclose(ufm.solve(prob).objective, best.objective, rtol=1e-13)
    assert landscape.certificate(prob, best.params).gap < 1e-20
    expected = W @ np.asarray(prob.class_means(best.params.H)) + np.asarray(best.params.b)[:, None]
    np.testing.assert_allclose(best.logits, expected, atol=1e-12)


@pytest.mark.parametrize("lam_b", [0.0, 0.05])
def test_squared_error_is_ridge_regression(lam_b):
    """h_k = (W'D_k W + N lam_H/2)^-1 W'D_k (beta e_k - b), and one linear system for the bias."""
    W, kappa, beta = some_W(3), 2.5, 1.7
    prob = problem(ufm.losses.mse(kappa=kappa, beta=beta), model=fixed(W), lam_b=lam_b)
    N, system, right, ridge = prob.N, lam_b * np.eye(K), np.zeros(K), []
    for k, n in enumerate(prob.counts):
        weights = np.diag(np.where(np.arange(K) == k, kappa, 1.0))
        ridge.append(np.linalg.solve(W.T @ weights @ W + N * prob.lam_H / 2 * np.eye(D), W.T @ weights))
        rest = 2 * n / N * weights @ (np.eye(K) - W @ ridge[k])  # the gradient in b is rest (b - beta e_k)
        system, right = system + rest, right + beta * rest[:, k]
    b = np.linalg.solve(system, right)
    best = theory.global_optimum(prob)
    np.testing.assert_allclose(best.b, b, rtol=1e-11)
    H = np.column_stack([ridge[k] @ (beta * np.eye(K)[k] - b) for k in range(K)])
    np.testing.assert_allclose(prob.class_means(best.params.H), H, atol=1e-11)
    sol = ufm.solve(prob)
    np.testing.assert_allclose(sol.objective, best.objective, rtol=1e-13)


def test_a_bias_tells_the_counts_apart():
    """Cross-entropy, counts 5, 3, 1, 1: with a bias the features of the small classes are the longest."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [5, 3, 1, 1]))
    prob = ufm.Problem("ce", labels, 4, D, lam_W=0.3, lam_H=0.01, model=fixed("etf", scale=2**0.5))
    sol = ufm.solve(prob)
    lengths = np.linalg.norm(np.asarray(prob.class_means(sol.H)), axis=0)
    np.testing.assert_allclose(lengths, [1.2145, 1.7953, 2.6085, 2.6085], atol=5e-5)
    best = theory.global_optimum(prob)
    np.testing.assert_allclose(best.objective, sol.objective, rtol=1e-13)
    np.testing.assert_allclose(prob.class_means(best.params.H) @ prob.counts, np.zeros(D), atol=1e-12)
    np.testing.assert_allclose(sol.objective, 0.257673, atol=5e-7)
    assert sol.certificate.is_global
    without = theory.global_optimum(prob.replace(bias=False))
    np.testing.assert_allclose(without.objective, 0.306922, atol=5e-7)


# --- features on a sphere -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "radius"), [("ce", 1.3), ("ls", 1.8), ("ls", 1.82), ("fl", 1.3), ("mse", 1.3)]
)
def test_features_on_a_sphere_point_along_the_classifier_whatever_the_counts(loss, radius):
    """Label smoothing is lowest at the margin log(3/.1 - 2), reached at radius 1.814; beyond, they tilt."""
    prob = problem(loss, bias=False, model=fixed("etf", scale=OMEGA, features="sphere", radius=radius))
    sol, best = ufm.solve(prob), theory.global_optimum(prob)
    assert sol.converged
    np.testing.assert_allclose(sol.objective, best.objective, rtol=1e-12)
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(sol.H, axis=0), radius, rtol=1e-14)
    W = np.asarray(prob.model.classifier)
    along = (radius * W / np.linalg.norm(W, axis=1, keepdims=True)).T[:, LABELS]
    assert (np.abs(sol.H - along).max() < 1e-6) == (radius < 1.814)
    assert sol.certificate.is_global
    assert ufm.verify(sol).passed


def test_the_hessian_of_features_on_a_sphere_is_that_of_each_sample():
    prob = problem(model=fixed("etf", scale=OMEGA, features="sphere", radius=1.3), bias=False)
    params = ufm.init(prob)
    W, H = np.asarray(prob.model.classifier), np.asarray(params.H)
    P = np.exp(W @ H)
    P /= P.sum(axis=0)
    values = []
    for h, p, k in zip(H.T, P.T, LABELS, strict=True):
        plane = np.linalg.svd(h[None])[2][1:].T
        euclidean = W.T @ (np.diag(p) - np.outer(p, p)) @ W
        values.append(
            np.linalg.eigvalsh(
                plane.T @ euclidean @ plane - h @ W.T @ (p - np.eye(K)[k]) / 1.3**2 * np.eye(D - 1)
            )
        )
    whole = np.sort(np.concatenate(values)) / len(LABELS)
    found = landscape.eigenvalues(prob, params, which="all").expand()
    np.testing.assert_allclose(found, whole, atol=1e-14)
    assert len(found) == prob.size == len(LABELS) * (D - 1)


# --- the certificate ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "lam_b", "bias"), [("ce", 0.0, True), ("ce", 0.01, True), ("ova", 0.0, False)]
)
def test_the_certificate_bounds_the_gap_and_closes(loss, lam_b, bias):
    prob = problem(loss, lam_b=lam_b, bias=bias, model=fixed(some_W()))
    sol = ufm.solve(prob)
    assert sol.certificate.is_global
    rng, gaps = np.random.default_rng(3), []
    for t in (1.0, 1e-3):
        point = jax.tree.map(lambda x, t=t: x + t * rng.normal(size=x.shape), sol.params)
        point = point if bias else point._replace(b=jnp.zeros(K))
        cert, above = landscape.certificate(prob, point), float(prob(point) - sol.objective)
        assert above <= cert.gap + cert.rounding
        gaps.append(cert.gap / above)
    assert gaps[-1] < 1e3  # of the order of f - f*, which falls like |grad f|^2


def test_the_certificate_with_a_penalised_bias_is_strong_convexity():
    loss = ufm.losses.custom(lambda z, k: jax.nn.logsumexp(z) - z[k], convex=True)
    prob = problem(loss, lam_b=0.01, model=fixed(some_W()))
    point = ufm.solve(problem(lam_b=0.01, model=fixed(some_W())), tol=1e-3, max_steps=4).params
    g = prob.gradient(point)
    strong = float(np.sum(np.square(g.H)) / (2 * 0.006) + np.sum(np.square(g.b)) / (2 * 0.01))
    np.testing.assert_allclose(landscape.certificate(prob, point).gap, strong, rtol=1e-9)
    assert 1e-12 < strong < float(prob(point))


def test_verify_measures_what_is_about_any_model():
    report = ufm.verify(ufm.solve(problem(bias=False)))
    assert report.passed
    for name in ("stationary_H", "objective", "certificate", "second_order"):
        assert report[name].verdict == "holds"
    assert report["etf"].verdict == report["balance"].verdict == "not applicable"


def test_a_sweep_over_penalties_is_as_many_solves():
    prob = problem(bias=False)
    values = np.array([0.003, 0.05])
    sweep = ufm.solve_sweep(prob, lam_H=values)
    wanted = [theory.global_optimum(prob.replace(lam_H=value)).objective for value in values]
    np.testing.assert_allclose(sweep.objective, [wanted], rtol=1e-11)
    assert (sweep.W.shape, sweep.H.shape, sweep.b.shape) == ((1, 2, K, D), (1, 2, D, 9), (1, 2, K))
    np.testing.assert_array_equal(sweep.W[0, 1], prob.model.classifier)
    np.testing.assert_array_equal(sweep.H[0, 1], sweep[0, 1].H)


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: fixed("eft"), r"W: expected one of etf, got 'eft'; did you mean 'etf'"),
        (lambda: fixed("etf", scale=0.0), r"scale: expected a finite number > 0, got 0.0"),
        (lambda: fixed(features="sphere", radius=-1.0), r"radius: expected a finite number > 0, got -1.0"),
        (lambda: fixed(features="spheres"), r"features: expected one of .*, got 'spheres'"),
        (lambda: fixed(np.ones((D, K))), r"W: expected the shape \(K, d\) = \(3, 5\), got \(5, 3\)"),
        (lambda: fixed(np.full((K, D), np.nan)), r"W: expected finite real numbers, got NaN or infinity"),
        (lambda: fixed(np.ones((K, D)) * 1j), r"W: expected finite real numbers, got the dtype complex128"),
    ],
)
def test_a_classifier_that_is_none_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        problem(model=model())


def test_a_simplex_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"W: expected d >= K - 1 = 4 .* got d=3"):
        ufm.Problem("ce", np.arange(5), 5, 3, model=fixed())


def test_a_start_has_the_fields_of_the_model():
    with pytest.raises(ValueError, match=r"params: expected Features\(H, b\), got Params"):
        ufm.solve(problem(), ufm.Params(jnp.ones((K, D)), jnp.ones((D, 9)), jnp.zeros(K)))
    assert isinstance(ufm.solve(problem()).params, Features)
