"""Bounds on the norms in place of penalties: the solver, the optimum for any counts, multipliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import NonlinearConstraint, minimize

import ufm
from ufm import landscape, theory
from ufm._pytree import replace
from ufm.claims import SPHERES, Facts
from ufm.models import norm_constrained
from ufm.models._norms import Bounded

K, D = 3, 4
LABELS = np.array([2, 0, 1, 1, 2, 0])
UNEQUAL = np.array([0, 2, 0, 1, 0, 2])


def problem(loss="ce", labels=LABELS, E_W=2.0, E_H=1.5, **options):
    options = {"d": D, "model": norm_constrained(E_W=E_W, E_H=E_H), **options}
    return ufm.Problem(loss, labels, int(max(labels)) + 1, **options)


# --- the problem and the solver -------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "bias"), [(LABELS, True), (UNEQUAL, False)], ids=["equal", "unequal"])
def test_the_solution_is_that_of_another_solver(labels, bias):
    """scipy minimises over the factors with the two bounds as constraints."""
    prob = problem("ls", labels, bias=bias, lam_b=0.02 * bias)
    free = prob.replace(model=ufm.models.Free(), lam_W=0.0, lam_H=0.0)
    start, unravel = jax.flatten_util.ravel_pytree(ufm.init(free, scale=0.5))
    f = jax.jit(jax.value_and_grad(lambda x: free(unravel(x))))
    m, n = K * D, D * len(labels)

    def squares(x):
        return np.array([np.sum(x[:m] ** 2) / K, np.sum(x[m : m + n] ** 2) / len(labels)])

    def slopes(x):
        rows = np.zeros((2, len(x)))
        rows[0, :m], rows[1, m : m + n] = 2 * x[:m] / K, 2 * x[m : m + n] / len(labels)
        return rows

    other = minimize(
        lambda x: [np.asarray(y, float) for y in f(x)],
        np.asarray(start),
        jac=True,
        method="SLSQP",
        constraints=NonlinearConstraint(squares, -np.inf, [2.0, 1.5], jac=slopes),
        options={"maxiter": 500, "ftol": 1e-14},
    )
    sol = ufm.solve(prob)
    assert sol.converged
    np.testing.assert_allclose(sol.objective, other.fun, rtol=1e-8)
    np.testing.assert_allclose(squares(np.concatenate([np.ravel(sol.W), np.ravel(sol.H)])), [2.0, 1.5])


def test_at_a_critical_point_the_multipliers_are_penalties_without_gradient():
    prob = problem("ls", UNEQUAL, bias=False)
    sol = ufm.solve(prob, tol=1e-12)
    found = landscape.multipliers(prob, sol.params)
    penalised = prob.replace(model=ufm.models.Free(), lam_W=float(found.W), lam_H=float(found.H))
    gradient = penalised.gradient(sol.effective)
    assert max(np.abs(x).max() for x in gradient[:2]) < 1e-10
    assert min(found.W, found.H) > 0
    np.testing.assert_allclose(found.W * 2.0 * K, found.H * 1.5 * len(UNEQUAL), rtol=1e-9)


def test_the_curvature_along_the_slack_is_the_multiplier():
    """At a slack of zero; where the multiplier is negative, the bound is left as a strict saddle."""
    prob = problem(E_W=30.0, E_H=20.0, loss="ls")
    start = theory.global_optimum(prob.replace(loss=ufm.losses.get("ce"))).params
    worst = landscape.multipliers(prob, start)
    along = Bounded(jnp.zeros((K, D)), jnp.zeros((D, 6)), jnp.array([1.0, 0.0]), jnp.zeros(K))
    image = landscape.hvp(prob, start, along)
    np.testing.assert_allclose(image.slack, [worst.W, 0.0], rtol=1e-9, atol=1e-15)
    assert worst.W < 0
    assert ufm.solve(prob, start, escape=False).status.name == "STRICT_SADDLE"
    inside = ufm.solve(prob, start)
    np.testing.assert_allclose(inside.objective, theory.global_optimum(prob).objective, rtol=1e-12)
    assert "inside the bounds" in theory.global_optimum(prob).structure


def test_starts_inside_the_bounds_are_kept_and_others_scaled():
    prob = problem()
    rng = np.random.default_rng(0)
    W, H = 0.1 * rng.normal(size=(K, D)), 0.1 * rng.normal(size=(D, 6))
    small = Bounded(W, H, np.zeros(2), np.zeros(K))
    point, projected = prob.model.feasible(prob, prob.check_params(small))
    assert not projected
    np.testing.assert_allclose(point.W, W, rtol=1e-15)
    used = np.array([np.sum(W**2), np.sum(H**2)])
    np.testing.assert_allclose(point.slack**2 + used, [K * 2.0, 6 * 1.5], rtol=1e-14)
    np.testing.assert_allclose(prob.model.effective(prob, point).H, H, rtol=1e-14)
    assert ufm.solve(prob, small._replace(H=100 * H)).projected
    assert not ufm.solve(prob, small).projected


def test_new_bounds_compile_nothing(compilations):
    ufm.solve(problem())
    compilations()
    ufm.solve(problem(E_W=1.0, E_H=3.0))
    assert compilations() == 0


# --- the optimum ----------------------------------------------------------------------------------

# label smoothing is lowest at the margin 3.332: the bounds reach it at E_W E_H = 4.935
OPTIMA = [
    ("ce", LABELS, 2.0, 1.5, {}),
    ("ce", LABELS, 2.0, 1.5, {"bias": False, "d": 2}),
    ("ls", LABELS, 4.9, 1.0, {}),
    ("ls", LABELS, 4.97, 1.0, {}),
    ("fl", LABELS, 3.0, 2.0, {}),
    ("ce", UNEQUAL, 2.0, 1.5, {}),
    ("mse", LABELS, 2.0, 1.5, {}),
]


@pytest.mark.parametrize(("loss", "labels", "E_W", "E_H", "options"), OPTIMA)
def test_the_optimum_is_the_solvers_and_certified(loss, labels, E_W, E_H, options):
    prob = problem(loss, labels, E_W, E_H, **options)
    best, sol = theory.global_optimum(prob), ufm.solve(prob)
    assert sol.converged
    assert best.proved == "proved"
    np.testing.assert_allclose(sol.objective, best.objective, rtol=1e-12)
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=1e-13)
    assert best.lower_bound <= best.objective * (1 + 1e-12)
    assert sol.certificate.is_global
    penalties, found = theory.equivalent_penalties(prob), landscape.multipliers(prob, sol.params)
    np.testing.assert_allclose([found.W, found.H], penalties[:2], rtol=1e-7, atol=1e-9)
    assert penalties.equivalent == (loss != "ls" or E_W < 4.935)


def test_the_equivalent_penalties_have_the_same_optimum():
    prob = problem(lam_b=0.01)
    found = theory.equivalent_penalties(prob)
    a = 3 / 2 * np.sqrt(3.0)
    c = 1 / (np.exp(a) + 2)
    np.testing.assert_allclose(found[:2], [c * np.sqrt(1.5 / 2.0), c / 2 * np.sqrt(2.0 / 1.5)], rtol=1e-13)
    penalised = theory.global_optimum(prob.replace(model=ufm.models.Free(), lam_W=found[0], lam_H=found[1]))
    np.testing.assert_allclose(penalised.margin, a, rtol=1e-12)
    np.testing.assert_allclose(np.sum(np.square(penalised.params.W)), K * 2.0, rtol=1e-12)
    same = ufm.solve(ufm.Problem("ce", LABELS, K, D, model=ufm.models.spheres(np.sqrt(3.0))))
    np.testing.assert_allclose(same.objective, theory.global_optimum(prob).objective, rtol=1e-13)


@pytest.mark.parametrize("share", [0.5, 0.99, 1.01])
def test_focal_loss_below_the_tie_has_no_equivalent_penalties(share):
    """K = 20, gamma = 3: neural collapse and zero tie at a margin a_tie > 0."""
    loss = ufm.losses.get("fl", gamma=3.0)
    profile = theory.scalar_profile(loss, 20)

    def excess(a):
        return profile.value(a) - a * profile.slope(a) - profile.value(0.0)

    low, high = 0.1, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) < 0 else (middle, high)
    scale = share * high * 19 / 20
    prob = problem(loss, np.arange(20), E_W=scale, E_H=scale, d=20)
    found = theory.equivalent_penalties(prob)
    assert found.equivalent == (share > 1)
    assert found.equivalent or "the optimum has" in found.why


def test_verify_measures_the_statements_about_bounds():
    sol = ufm.solve(problem(), tol=1e-12)
    names = ("fixed_norms", "riemannian_gradient", "features_coincide", "rows_simplex", "features_along_rows")
    names = (*names, "sphere_logits", "multipliers", "objective", "certificate", "second_order")
    report = ufm.verify(sol)
    assert report.passed
    assert {report[name].verdict for name in names} == {"holds"}
    W, H, slack, b = sol.params
    moved = replace(sol, params=Bounded(W.at[0].add(1e-3 * W[1]), H.at[:, 0].multiply(1 + 1e-4), slack, b))
    facts = Facts(moved)
    for row in SPHERES:
        expected = "not applicable" if row.name == "riemannian_spectrum" else "fails"
        if row.name != "features_along_rows":  # what is scaled still points there
            assert row.claim(facts).verdict == expected, row.name
    unequal = ufm.verify(ufm.solve(problem(labels=UNEQUAL), tol=1e-12))
    assert unequal.passed
    assert unequal["sphere_logits"].verdict == unequal["multipliers"].verdict == "holds"


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: norm_constrained(E_W=0.0), "E_W: expected a finite number > 0, got 0.0"),
        (lambda: problem(E_H=-1.0), "E_H: expected a finite number > 0, got -1.0"),
        (lambda: ufm.solve(problem().means()), "samples: expected one column for each sample"),
        (lambda: theory.global_optimum(problem(d=1)), "d: the simplex ETF has rank 2"),
        (lambda: theory.equivalent_penalties(problem(model="free")), "prob: expected model=models.norm"),
        (
            lambda: landscape.multipliers(problem(model="free"), problem(model="free").zeros()),
            "model: expected one with fixed norms",
        ),
        (lambda: ufm.solve(problem(), ufm.Params(*map(jnp.zeros, ((K, D), (D, 6), K)))), "expected Bounded"),
    ],
)
def test_what_does_not_fit_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
