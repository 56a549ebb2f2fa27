"""The Hessian of layers: its decomposition against the dense matrix, and what `verify` says of it."""

import dataclasses
import warnings

import numpy as np
import pytest

import ufm
from ufm import landscape
from ufm.models import deep

K, D = 4, 5
LABELS = np.array([2, 0, 3, 1, 3, 0, 2, 1])
UNEQUAL = np.array([2, 0, 3, 1, 3, 0, 2, 3])
LAM = (0.03, 0.012)


def problem(loss="ce", labels=LABELS, widths=(6,), layers=2, **options):
    model = deep(layers, lam=(*LAM, 0.01)[:layers], widths=widths)
    return ufm.Problem(loss, labels, K, D, lam_W=0.02, lam_H=0.006, model=model, **options)


CASES = [
    problem(bias=False),
    problem("fl", widths=(3,), lam_b=0.01),
    problem(labels=UNEQUAL, layers=3, widths=(6, 5)),
]


def solved(prob):
    return ufm.solve(prob, ufm.init(prob, seed=1, scale=0.8), tol=1e-12)


@pytest.mark.parametrize("prob", CASES)
def test_the_decomposition_has_the_eigenvalues_of_the_dense_matrix(prob):
    sol = solved(prob)
    assert np.linalg.norm(sol.W) > 1
    ev = landscape.eigenvalues(prob, sol.params, which="all")
    assert ev.method == "core of the layers"
    dense = np.linalg.eigvalsh(landscape.dense(prob, sol.params))
    np.testing.assert_allclose(ev.expand(), dense, atol=1e-11 * dense[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", landscape.InertiaWarning)
        inertia = landscape.inertia(prob, sol.params)
    r = np.linalg.matrix_rank(sol.W, tol=1e-6)
    dims = prob.model.inner(prob)
    assert inertia.zero == sum(r * (r - 1) // 2 + r * (d - r) for d in dims) + prob.shift_is_free
    assert (inertia.neg, sum(inertia)) == (0, prob.size)


@pytest.mark.parametrize("options", [{"bias": False}, {"lam_b": 0.02}, {}])
def test_at_the_origin_every_factor_has_its_penalty(options):
    prob = problem(layers=3, widths=(6, 5), labels=UNEQUAL, bias=True) if not options else problem(**options)
    sol = ufm.solve(prob, prob.zeros())
    dense = np.linalg.eigvalsh(landscape.dense(prob, sol.params))
    ev = landscape.eigenvalues(prob, sol.params, which="all")
    assert ev.method == "core of the layers"
    np.testing.assert_allclose(ev.expand(), dense, atol=1e-14)
    assert landscape.inertia(prob, sol.params).neg == 0


def test_a_point_that_is_not_critical_has_no_core():
    prob = problem(bias=False)
    assert landscape.eigenvalues(prob, ufm.init(prob, scale=0.8), which="all").method == "dense matrix"


def test_a_hessian_that_no_memory_holds_is_counted():
    """14,000 unknowns; the sum of all eigenvalues is the trace, which a few products estimate."""
    prob = ufm.Problem.balanced("ce", K=4, d=64, n=40, lam_W=0.01, lam_H=5e-4, model=deep(2))
    best = ufm.theory.global_optimum(prob)
    ev = landscape.eigenvalues(prob, best.params, which="all")
    inertia = landscape.inertia(prob, best.params)
    r = best.rank
    assert sum(inertia) == int(ev.multiplicities.sum()) == prob.size > 14_000
    assert (inertia.neg, inertia.zero) == (0, 2 * (r * (r - 1) // 2 + r * (64 - r)) + 1)
    top = landscape.eigenvalues(prob, best.params, k=1, which="largest", method="lanczos").values[-1]
    np.testing.assert_allclose(ev.values[-1], top, rtol=1e-7)


def test_verify_measures_it():
    sol = solved(problem(lam_b=0.01))
    names = ("balance", "schatten", "layer_pairs", "null_directions", "zero_modes", "second_order")
    report = ufm.verify(sol)
    assert [report[name].verdict for name in names] == ["holds"] * 6
    assert "only known to be at most" in report["objective"].why
    assert " f is " in report["objective"].why
    zero = ufm.verify(ufm.solve(sol.problem, sol.problem.zeros()))
    assert "no active direction" in zero["schatten"].why
    assert zero["null_directions"].verdict == "holds"
    off = sol.params._replace(W1=1.001 * sol.params.W1, H=sol.params.H / 1.001)
    moved = ufm.verify(dataclasses.replace(sol, params=off))
    assert "no critical point" in moved["zero_modes"].why
    assert moved["balance"].verdict == "fails"
    free = ufm.verify(ufm.solve_ufm("ce", K=3, d=4, n=2))
    assert "zero_modes" not in [claim.name for claim in free.claims]


def test_each_statement_fails_where_its_formula_is_wrong(monkeypatch):
    """The measures themselves, with a penalty that is off by 1e-6."""
    from ufm.claims import Facts, _layers

    facts = Facts(solved(problem(lam_b=0.01)))
    measures = (_layers.schatten, _layers.pairs, _layers.null_directions)
    assert all(measure(facts) <= _layers.tolerance(facts) for measure in measures)
    chain = facts.chain
    monkeypatch.setattr(facts, "chain", [(lam * (1 + 1e-6), A) for lam, A in chain])
    assert all(measure(facts) > _layers.tolerance(facts) for measure in measures)
