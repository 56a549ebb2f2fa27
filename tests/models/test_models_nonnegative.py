"""Features that are not negative: the projected Newton method against scipy with bounds, and symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from tolerances import close

import ufm
from ufm import landscape, solvers
from ufm._solution import Status

COUNTS = [2, 4, 1]
LABELS = np.array([2, 0, 0, 1, 1, 1, 1])
PENALTIES = {"lam_W": 0.02, "lam_H": 0.006}


def problem(loss="ce", **options):
    return ufm.Problem(loss, LABELS, 3, 5, **{**PENALTIES, "model": "nonnegative", **options})


def kkt(prob, params):
    """The three conditions by automatic differentiation: the largest violation of any."""
    g = jax.grad(prob)(params)
    free = max(float(jnp.abs(x).max()) for x in (g.W, g.b))
    H, gH = np.asarray(params.H), np.asarray(g.H)
    return max(free, float(-H.min()), float(-gH.min()), float(np.abs(H * gH).max()))


def by_scipy(prob, start):
    """L-BFGS-B with bounds from the same start."""
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    low = jax.flatten_util.ravel_pytree(
        start._replace(**{n: jnp.full_like(getattr(start, n), -jnp.inf) for n in "Wb"}, H=0 * start.H)
    )[0]
    fun = jax.jit(jax.value_and_grad(lambda x: prob(unravel(x))))
    found = minimize(
        lambda x: tuple(np.asarray(v, float) for v in fun(x)),
        flat,
        jac=True,
        method="L-BFGS-B",
        bounds=[(x if np.isfinite(x) else None, None) for x in np.asarray(low)],
        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 5000, "maxfun": 10000, "maxcor": 30},
    )
    return found.fun


@pytest.mark.parametrize(
    ("loss", "options"), [("ce", {}), ("ce", {"lam_b": 0.01}), ("mse", {}), ("fl", {"bias": False})], ids=str
)
def test_the_conditions_of_a_minimum_hold_and_scipy_finds_nothing_lower(loss, options):
    prob = problem(loss, **options)
    start = ufm.init(prob, seed=3)
    sol = ufm.solve(prob, start)
    assert sol.converged
    assert not sol.projected
    assert kkt(prob, sol.params) <= 1e-10
    assert float(sol.H.min()) == 0.0
    assert (np.asarray(sol.H) == 0).sum() > 5
    close(prob(sol.params), sol.objective)
    lowest = min(by_scipy(prob, ufm.init(prob, seed=seed)) for seed in range(3))
    best = min(float(ufm.solve(prob, ufm.init(prob, seed=seed)).objective) for seed in range(3))
    assert abs(best - lowest) <= 1e-7 * (1 + abs(best))


@pytest.mark.parametrize("loss", ["ls", "mse"])
def test_class_means_give_the_same_minimum(loss):
    prob = problem(loss)
    full = [ufm.solve(prob, ufm.init(prob, seed=seed)) for seed in range(3)]
    means = [ufm.solve(prob, ufm.init(prob, seed=seed), reduced=True) for seed in range(3)]
    assert all(sol.converged and kkt(prob, sol.params) <= 1e-10 for sol in means)
    best = min(float(sol.objective) for sol in means)
    assert abs(min(float(sol.objective) for sol in full) - best) <= 1e-12 * (1 + best)
    with pytest.raises(ValueError, match="reduced: expected a loss that is convex"):
        ufm.solve(problem("fl"), reduced=True)


def test_squared_error_needs_tens_of_steps_and_not_a_thousand():
    """Without further iterations on the variables off their bounds these took 1039, 676 and 876 steps."""
    penalties = {"lam_W": 3e-3, "lam_H": 7e-4, "lam_b": 2e-3}
    prob = ufm.Problem.from_counts("mse", counts=(5, 5, 5, 5), d=6, model="nonnegative", **penalties)
    optimum = ufm.theory.global_optimum(prob).objective
    for seed in range(3):
        sol = ufm.solve(prob, ufm.init(prob, seed=seed))
        assert sol.converged
        assert sol.objective == pytest.approx(optimum, rel=1e-10)
        assert sol.steps < 300


def test_the_residual_is_that_of_the_problem_as_it_was_given():
    """With unequal penalties the solver runs in other coordinates; the norm that it reports does not."""
    prob = problem("ls", lam_b=0.01)
    for reduced in (False, True):
        sol = ufm.solve(prob, ufm.init(prob, seed=1), max_steps=4, reduced=reduced)
        g = jax.grad(prob)(sol.params)
        held = [g.W, np.asarray(sol.H) - np.maximum(np.asarray(sol.H - g.H), 0.0), g.b]
        close(sol.grad_norm, np.sqrt(sum(float(np.sum(np.square(x))) for x in held)), ulps=64)
        assert float(sol.grad_norm) > 1e-6


def test_a_start_with_negative_features_is_projected_and_the_solution_says_so():
    prob = problem()
    start = ufm.init(prob, seed=2)
    bent = start._replace(H=start.H - 0.08)
    sol = ufm.solve(prob, bent)
    assert sol.converged
    assert sol.projected
    assert "infeasible: the nearest feasible point was taken" in str(sol)
    assert sol.to_dict()["projected"]
    again = ufm.solve(prob, start._replace(H=jnp.maximum(bent.H, 0.0)))
    np.testing.assert_array_equal(again.W, sol.W)
    assert not again.projected
    assert "projected" not in again.to_dict()
    far = ufm.solve(prob, ufm.Params(*(40 * x for x in start)))
    assert far.converged
    assert kkt(prob, far.params) <= 1e-10


def test_starts_are_not_negative_and_other_methods_are_refused():
    prob = problem()
    start, free = ufm.init(prob, seed=5), ufm.init(problem(model="free"), seed=5)
    np.testing.assert_array_equal(start.H, np.abs(free.H))
    np.testing.assert_array_equal(start.W, free.W)
    for solver in [name for name in solvers.SOLVERS if name != "newton"]:
        for verb in (ufm.solve, ufm.solve_sweep):
            with pytest.raises(ValueError, match=f"solver: expected 'newton'.*got '{solver}'"):
                verb(prob, solver=solver)


def test_idle_neurons_are_ways_down_and_a_new_penalty_compiles_nothing(compilations):
    prob = problem()
    best = min(float(ufm.solve(prob, ufm.init(prob, seed=seed)).objective) for seed in range(3))
    origin = prob.zeros()._replace(b=jnp.log(jnp.asarray(prob.counts / prob.N)))
    still = ufm.solve(prob, origin, escape=False)
    assert still.status is Status.STRICT_SADDLE
    sol = ufm.solve(prob, origin)
    assert sol.converged
    assert abs(float(sol.objective) - best) <= 1e-10
    compilations()
    ufm.solve(prob.replace(lam_W=np.float64(0.013), lam_H=np.float64(0.009)), origin)
    assert compilations() == 0


def test_the_way_out_of_a_saddle_keeps_to_the_bounds():
    prob = problem()
    origin = prob.zeros()._replace(b=jnp.log(jnp.asarray(prob.counts / prob.N)))
    out = landscape.escape_direction(prob, origin)
    assert out.strict
    assert out.where == "idle neurons"
    assert float(out.direction.H.min()) >= 0
    close(sum(float(jnp.vdot(x, x)) for x in out.direction), 1.0)
    t = 1e-3
    ahead = prob(jax.tree.map(lambda x, d: x + t * d, origin, out.direction))
    assert float(ahead - prob(origin)) == pytest.approx(t**2 / 2 * out.curvature, rel=1e-3)
    sol = ufm.solve(prob, ufm.init(prob, seed=3))
    assert not landscape.escape_direction(prob, sol.params).strict


def test_a_sweep_is_its_solutions():
    prob = problem("ls")
    sols = ufm.solve_sweep(prob, seeds=range(2), lam_W=np.array([4e-3, 2e-2]))
    assert sols.converged.all()
    one = ufm.solve(prob.replace(lam_W=np.float64(4e-3)), ufm.init(prob, seed=1))
    assert float(sols[1, 0].objective) == pytest.approx(float(one.objective), rel=1e-12)


def test_the_hessian_is_that_of_the_variables_off_their_bounds():
    prob = problem(lam_b=0.01)
    sol = ufm.solve(prob, ufm.init(prob, seed=3))
    off = np.concatenate([np.ones(15, bool), np.asarray(sol.H).ravel() > 0, np.ones(3, bool)])
    witness = np.linalg.eigvalsh(landscape.dense(prob, sol.params)[np.ix_(off, off)])
    ev = landscape.eigenvalues(prob, sol.params, which="all")
    assert ev.dimension == off.sum()
    np.testing.assert_allclose(ev.expand(), witness, atol=1e-12)
    lanczos = landscape.eigenvalues(prob, sol.params, 2, which="largest", method="lanczos")
    np.testing.assert_allclose(lanczos.expand()[-1], witness[-1], atol=1e-7)
    neg, zero, pos = landscape.inertia(prob, sol.params)
    assert (neg, zero + pos) == (0, off.sum())


@pytest.mark.parametrize("loss", ["ls", "mse", "fl"])
def test_a_given_classifier_with_features_that_are_not_negative(loss):
    model = ufm.models.fixed("etf", scale=1.4, features="nonnegative")
    prob = ufm.Problem(loss, LABELS, 3, 5, lam_H=0.02, bias=False, model=model)
    sol, best = ufm.solve(prob), ufm.theory.global_optimum(prob)
    assert sol.converged
    close(sol.objective, best.objective)
    close(prob(best.params), best.objective)
    np.testing.assert_allclose(sol.H, best.params.H, atol=1e-8)
    if loss != "fl":
        assert sol.certificate.is_global
    free = ufm.theory.global_optimum(prob.replace(model=ufm.models.fixed("etf", scale=1.4).fitted(3, 5)))
    assert best.objective > free.objective


def test_what_a_given_classifier_needs_for_features_that_are_not_negative():
    with pytest.raises(ValueError, match="features: expected one of free, nonnegative, sphere"):
        ufm.models.fixed("etf", features="positive")
    with pytest.raises(ValueError, match="W: expected d >= K = 3"):
        ufm.Problem("ce", LABELS, 3, 2, model=ufm.models.fixed(features="nonnegative"))
    W = ufm.models.fixed("etf").fitted(3, 5).W
    prob = ufm.Problem("ce", LABELS, 3, 5, bias=False, model=ufm.models.fixed(W, features="nonnegative"))
    with pytest.raises(ufm.theory.NoClosedForm, match=r"W: with features that are not negative"):
        ufm.theory.global_optimum(prob)
