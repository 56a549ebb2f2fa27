"""The coordinates in which a solver runs on layers: they change neither the problem nor its solution."""

import jax
import numpy as np
import pytest
from numpy.linalg import norm

import ufm
from ufm import _layers, landscape, solvers
from ufm.models import deep

K, D = 3, 5
LABELS = np.array([2, 0, 1, 1, 0, 2, 1])
NEWTON = solvers.get("newton")


def problem(widths=(7, 4), **options):
    model = deep(3, lam=[0.02, 0.005, 0.03], widths=widths)
    return ufm.Problem("ce", LABELS, K, D, **{"lam_H": 0.004, "lam_b": 0.01, "model": model, **options})


def sizes(prob, reduced=False):
    view, _ = _layers.layers_of(prob, ufm.init(prob, scale=1.0), NEWTON, reduced)
    return view.problem.d, view.problem.model.widths


def test_no_layer_is_wider_than_the_classes():
    assert sizes(problem()) == (3, (3, 3))
    assert sizes(problem(widths=(2, 4))) == (2, (2, 3))
    assert sizes(problem().replace(d=2)) == (2, (3, 3))
    assert sizes(problem(), reduced=True) == (3, (3, 3))


@pytest.mark.parametrize("widths", [(7, 4), (2, 4)])
def test_logits_stay_and_what_nobody_reads_is_left_out(widths):
    prob = problem(widths)
    start = ufm.init(prob, seed=1, scale=0.8)._replace(b=np.array([0.3, -1.0, 0.2]))
    view, y = _layers.layers_of(prob, start, NEWTON, reduced=False)
    np.testing.assert_allclose(
        view.problem.logits(view.params(y)), prob.logits(start), rtol=1e-12, atol=1e-13
    )
    back = view.expanded(prob, y, reduced=False)
    np.testing.assert_allclose(prob.logits(back), prob.logits(start), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(prob(back), view.objective(y), rtol=1e-13)
    assert float(prob(back)) < float(prob(start)) - 1e-3
    np.testing.assert_array_equal(view.coordinates(view.params(y)).H, y.H)


def test_the_gradient_norm_is_that_of_the_problem_as_it_was_given():
    prob = problem()
    start = ufm.init(prob, seed=2, scale=0.8)
    view, y = _layers.layers_of(prob, start, NEWTON, reduced=False)
    given = prob.gradient(view.expanded(prob, y, reduced=False))
    np.testing.assert_allclose(
        view.residual(y, jax.grad(view.objective)(y)), norm([norm(x) for x in given]), rtol=1e-12
    )


@pytest.mark.parametrize("rank", [2, 4])
def test_rows_of_low_rank_stay_in_the_basis_where_the_means_lie_in_it(rank):
    """At a critical point W = A B' and the class means are B C: nothing but rounding is orthogonal to B."""
    rng = np.random.default_rng(rank)
    W = rng.normal(size=(6, rank)) @ rng.normal(size=(rank, 11))
    means = rng.normal(size=(6, 6)) @ W
    for xp in (np, jax.numpy):
        Q = np.asarray(_layers.row_space(W, means, xp))
        np.testing.assert_allclose(Q.T @ Q, np.eye(6), atol=1e-14)
        np.testing.assert_allclose(W @ Q @ Q.T, W, atol=1e-13 * norm(W))


def test_numpy_finds_the_same_subspaces():
    prob = problem()
    start = ufm.init(prob, seed=3, scale=0.8)
    known = _layers.bases(prob, start, NEWTON, reduced=False)
    view, _ = _layers.layers_of(prob, start, NEWTON, reduced=False)
    for Q, P in zip(known, view.bases, strict=True):
        np.testing.assert_allclose(Q @ Q.T, P @ P.T, atol=1e-12)


def test_class_means_and_all_samples_and_the_given_widths_end_at_one_point():
    prob = problem()
    start = ufm.init(prob, seed=0, scale=0.8)
    solutions = [
        ufm.solve(prob, start, tol=1e-11),
        ufm.solve(prob, start, tol=1e-11, reduced=True),
        ufm.solve(prob, start, tol=1e-11, solver=solvers.Newton(rotate=False, balance=False)),
    ]
    for sol in solutions:
        assert sol.converged
        assert norm([norm(x) for x in prob.gradient(sol.params)]) < 1e-10
        np.testing.assert_allclose(sol.objective, solutions[0].objective, rtol=1e-12)
        assert norm(sol.W @ sol.H) > 1
    spread = solutions[0].H[:, LABELS == 1]
    np.testing.assert_allclose(spread, spread[:, :1] * np.ones(3), atol=1e-8)


def test_a_strict_saddle_is_left_through_the_narrow_coordinates():
    """Two pairs of classes on a line: either pair may part along it."""
    prob = ufm.Problem.balanced("ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.01, bias=False, model=deep(2))
    u, v = np.array([1.0, -1.0, 1.0, -1.0]), np.eye(6)[0]
    start = prob.zeros()._replace(
        W2=np.outer(u, v), W1=np.outer(v, v), H=np.outer(v, u[np.asarray(prob.labels)])
    )
    saddle, left = ufm.solve(prob, start, escape=False), ufm.solve(prob, start)
    assert saddle.status == ufm.Status.STRICT_SADDLE
    assert landscape.inertia(prob, saddle.params).neg == 2
    assert left.converged
    assert float(left.objective) < float(saddle.objective) - 0.1
