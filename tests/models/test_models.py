"""Models are rooms of their own: what fast paths ask for, and the generic paths where the answer is no."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import landscape, models
from ufm._pytree import pytree_dataclass
from ufm.models import Params

K, D = 3, 5
LABELS = np.array([2, 0, 0, 1, 2, 2, 0, 2, 1])
PENALTIES = {"lam_W": 0.02, "lam_H": 0.006, "lam_b": 0.01}


def problem(loss: Any = "ce", **options: Any) -> ufm.Problem:
    return ufm.Problem(loss, LABELS, K, D, **{**PENALTIES, **options})


@pytree_dataclass
class Scaled(models.Model):
    """Z = s W H + b 1'. With W' = s W this is the free model at the penalty lam_W/s^2: a witness."""

    s: Any = 2.0

    name = "scaled"

    def shapes(self, prob):
        return models.Free().shapes(prob)

    def logits(self, prob, params):
        return models.Free().logits(prob, params._replace(W=self.s * params.W))

    def penalty(self, prob, params):
        return models.Free().penalty(prob, params)

    def effective(self, prob, params):
        return params._replace(W=self.s * params.W)


def collapsed(prob: ufm.Problem, seed: int = 0) -> tuple[Params, Params]:
    """A point of the class means, and the same point with a column for each sample."""
    rng = np.random.default_rng(seed)
    W, M, b = rng.normal(size=(K, D)), rng.normal(size=(D, K)), rng.normal(size=K)
    means = Params(*map(jnp.asarray, (W, M, b)))
    return means, means._replace(H=means.H[:, LABELS])


# --- class means ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ls", "fl", "mse"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_problem_of_the_class_means_is_f_where_features_coincide(loss, bias):
    prob = problem(loss, bias=bias, lam_b=0.01 * bias)
    means, full = collapsed(prob)
    small = prob.means()
    assert (small.columns, small.N, small.counts.tolist()) == (K, prob.N, prob.counts.tolist())
    np.testing.assert_allclose(small(means), prob(full), rtol=1e-14)
    np.testing.assert_allclose(prob.class_means(full.H), means.H, rtol=1e-14)
    # the gradient of a mean is the sum over its samples
    g, G = small.gradient(means), prob.gradient(full)
    np.testing.assert_allclose(g.W, G.W, atol=1e-15)
    sums = np.stack([np.asarray(G.H)[:, k == LABELS].sum(axis=1) for k in range(K)], axis=1)
    np.testing.assert_allclose(g.H, sums, atol=1e-15)


def test_gradients_of_loss_and_penalty_are_those_of_the_text_and_add_up_to_autodiff():
    prob = problem()
    params = ufm.init(prob, scale=1.0)
    fit, penalty = prob.gradients(params)
    G = np.asarray(prob.logit_gradient(params))
    for got, wanted in zip(fit, (G @ params.H.T, params.W.T @ G, G.sum(axis=1)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-15)
    for got, wanted, lam in zip(penalty, params, PENALTIES.values(), strict=True):
        np.testing.assert_allclose(got, lam * wanted, atol=1e-15)
    for got, wanted in zip(prob.gradient(params), jax.grad(prob)(params), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-15)


def test_a_reduction_is_itself_a_problem_that_is_solved_expanded_and_certified():
    prob = problem()
    sol = ufm.solve(prob.means())
    every, params = prob.means().expanded(sol.params)
    assert sol.converged
    np.testing.assert_array_equal(np.sort(LABELS), every.labels)
    np.testing.assert_allclose(every(params), ufm.solve(prob).objective, rtol=1e-12)
    assert sol.certificate.is_global
    report = ufm.verify(sol)
    assert report.passed
    assert report["balance"].verdict == report["singular_pairs"].verdict == "holds"


@pytest.mark.parametrize("k", [1, 4])
def test_a_hessian_that_does_not_decompose_is_taken_whole_or_by_products(k):
    prob = problem().means()
    means, _ = collapsed(prob)
    dense = landscape.dense(prob, means)
    whole = np.linalg.eigvalsh(dense)
    v = np.random.default_rng(1).normal(size=dense.shape[0])
    _, unravel = jax.flatten_util.ravel_pytree(means)
    image = jax.flatten_util.ravel_pytree(landscape.hvp(prob, means, unravel(jnp.asarray(v))))[0]
    np.testing.assert_allclose(image, dense @ v, atol=1e-13)
    np.testing.assert_allclose(landscape.eigenvalues(prob, means, k).expand()[:k], whole[:k], atol=1e-12)
    by_products = landscape.eigenvalues(prob, means, k, method="lanczos").expand()
    np.testing.assert_allclose(by_products[:k], whole[:k], atol=1e-7)
    inertia = landscape.inertia(prob, means)
    assert (inertia.neg, inertia.pos) == (int((whole < 0).sum()), int((whole > 0).sum()))


def test_the_zeros_of_the_symmetries_are_known_without_the_decomposition():
    small, prob = problem(lam_b=0.0).means(), problem(lam_b=0.0)
    sol = ufm.solve(small, tol=1e-12)
    counted = landscape.inertia(small, sol.params, tol=1e-7)
    full = landscape.inertia(prob, sol.params._replace(H=sol.H[:, LABELS]))
    assert counted.neg == full.neg == 0
    assert (counted.zero, counted.symmetry) == (full.zero, full.symmetry)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([1, 2], r"samples: expected \(9,\) numbers"),
        (np.zeros(9), "samples: expected whole numbers >= 1"),
        (np.full(9, 1.5), "samples: expected whole numbers >= 1"),
        (["a"] * 9, r"samples: expected \(9,\) numbers"),
    ],
)
def test_samples_are_whole_numbers_one_for_each_label(samples, message):
    with pytest.raises(ValueError, match=message):
        problem(samples=samples)


# --- another model --------------------------------------------------------------------------------


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"model: expected one of free.*got 'fre'; did you mean 'free'"):
        problem(model="fre")


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("loss", ["ce", "fl"])
def test_a_model_in_a_file_of_its_own_is_solved_like_any_other(loss, solver):
    s = 1.7
    other = problem(loss, model=Scaled(s))
    free = ufm.solve(problem(loss, lam_W=PENALTIES["lam_W"] / s**2))
    sol = ufm.solve(other, solver=solver, tol=1e-9)
    assert sol.converged
    np.testing.assert_allclose(sol.objective, free.objective, rtol=1e-12)
    np.testing.assert_allclose(other(sol.params), sol.objective, rtol=1e-14)
    np.testing.assert_allclose(sol.W @ sol.W.T, free.W @ free.W.T, atol=1e-6)
    assert float(sol.metrics.nc1) < 1e-6


def test_a_leaf_of_a_model_compiles_nothing(compilations):
    ufm.solve(problem(model=Scaled(1.5)))
    compilations()
    ufm.solve(problem(model=Scaled(1.9)))
    assert compilations() == 0


def test_the_hessian_of_a_model_by_products_and_whole():
    prob = problem(model=Scaled(1.7))
    params = ufm.init(prob, scale=1.0)
    whole = np.linalg.eigvalsh(landscape.dense(prob, params))
    np.testing.assert_allclose(landscape.eigenvalues(prob, params, which="all").expand(), whole, atol=1e-11)
    lanczos = landscape.eigenvalues(prob, params, 1, method="lanczos")
    np.testing.assert_allclose(lanczos.values[0], whole[0], atol=1e-7)
    assert landscape.inertia(prob, params).neg == int((whole < 0).sum())


def test_the_origin_of_a_model_is_left_as_a_strict_saddle():
    prob = problem(model=Scaled(1.7))
    start = prob.zeros()._replace(b=jnp.asarray(ufm.solve(prob.replace(lam_W=1e3)).b))
    sol = ufm.solve(prob, start)
    assert sol.converged
    np.testing.assert_allclose(sol.objective, ufm.solve(prob).objective, rtol=1e-10)


def test_what_is_not_known_for_a_model_says_so():
    prob = problem(model=Scaled(1.7))
    sol = ufm.solve(prob)
    with pytest.raises(ufm.theory.NoClosedForm, match=r"model: .*got model=scaled"):
        ufm.theory.global_optimum(prob)
    for ask in (landscape.polish, landscape.escape_direction, landscape.descend):
        with pytest.raises(ValueError, match=r"model: .* known for two free factors, got model=scaled"):
            ask(prob, sol.params)
    with pytest.raises(ValueError, match=r"model: .* known for two free factors"):
        landscape.critical_points(prob)
    with pytest.raises(ValueError, match="reduced: expected free factors, got model=scaled"):
        ufm.solve(prob, reduced=True)
    cert = sol.certificate
    assert cert.verdict == "not certified"
    assert "no better bound is known for the model scaled" in cert.why
    np.testing.assert_allclose(cert.gap, sol.objective, rtol=1e-14)
    report = ufm.verify(sol)
    assert report["objective"].verdict == "not applicable"
    assert report["second_order"].verdict == "holds"


def test_a_name_takes_the_arguments_of_its_model():
    assert repr(models.get("spheres:scale=8")) == repr(models.spheres(8))
    assert models.get("deep:layers=2, lam=0.01").layers == 2
    assert models.get("fixed:features=sphere,scale=2").features == "sphere"
    for wrong, match in (
        ("sphere", "did you mean 'spheres'"),
        ("spheres:scal=8", "did you mean 'scale'"),
        ("spheres:8", "expected name=value"),
        ("spheres:scale=-1", "scale: expected"),
        ("free:x=1", "expected no arguments"),
        (3, "expected one of free"),
    ):
        with pytest.raises(ValueError, match=match):
            models.get(wrong)
