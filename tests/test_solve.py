"""The loop, its solvers and its sweeps, against closed forms, symmetries and each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

import ufm
from ufm import _solve, _view, losses, solvers, theory
from ufm._solution import Status

#: non-degenerate problems: K >= 3, n >= 2, d > K, lam_W != lam_H, shuffled labels
SHUFFLED = np.random.default_rng(5).permutation(np.tile(np.arange(4), 3))


def problem(loss="ce", **changes):
    given = {"K": 4, "d": 6, "lam_W": 4e-3, "lam_H": 1e-3, "lam_b": 0.0, "bias": True} | changes
    return ufm.Problem(losses.get(loss), SHUFFLED, **given)


def dense_grad_norm(prob, params):
    """|grad f| by autodiff of equation (7), no view, no balance."""
    leaves = jax.tree.leaves(jax.grad(prob)(ufm.Params(*params)))
    leaves = leaves if prob.bias else leaves[:2]
    return float(jnp.sqrt(sum(jnp.sum(g**2) for g in leaves)))


@pytest.mark.parametrize("loss", losses.PAPER)
@pytest.mark.parametrize(
    "changes",
    [{}, {"lam_b": 2e-2}, {"bias": False}, {"lam_W": 1e-3, "lam_H": 3e-2}, {"d": 4}, {"d": 3}],
    ids=str,
)
def test_newton_reaches_the_closed_form(loss, changes):
    prob = problem(loss, **changes)
    sol = ufm.solve(prob, ufm.init(prob, seed=1))
    assert sol.converged
    assert dense_grad_norm(prob, sol.params) <= 1e-10
    assert abs(dense_grad_norm(prob, sol.params) - float(sol.grad_norm)) <= 1e-12
    assert float(sol.objective) == pytest.approx(float(prob(sol.params)), rel=1e-14)
    try:
        best = theory.global_optimum(prob).objective
    except theory.NoClosedForm:
        assert prob.d < prob.K  # the closed form covers all else
        return
    assert abs(float(sol.objective) - best) <= 1e-12 * (1 + abs(best))


@pytest.mark.parametrize("closeness", [0.99, 0.999, 1.01])
@pytest.mark.parametrize("loss", losses.PAPER)
def test_newton_within_one_percent_of_the_threshold(loss, closeness):
    prob = problem(loss)
    c = closeness * theory.threshold(prob).c_thr
    prob = prob.replace(lam_W=np.float64(4 * c / 2 / prob.n**0.5), lam_H=np.float64(c / 2 / prob.n**0.5))
    best = theory.global_optimum(prob)
    assert (best.regime == "trivial") == (closeness > 1)
    sol = ufm.solve(prob, ufm.init(prob, seed=2))
    assert sol.converged
    assert abs(float(sol.objective) - best.objective) <= 1e-12 * (1 + abs(best.objective))


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("loss", losses.PAPER)
def test_every_solver_finds_the_same_optimum(solver, loss):
    prob = problem(loss, lam_W=2e-2, lam_H=1e-2)
    if loss == "mse":
        prob = prob.replace(loss=losses.mse(kappa=1.0, beta=2.0))
    sol = ufm.solve(prob, ufm.init(prob, seed=3), solver=solver, tol=1e-8)
    assert sol.converged, sol.status.message
    assert sol.solver.name == solver
    # f - f* <= |grad|^2 / (2 mu) with the smallest curvature some hundredths of the penalties
    assert abs(float(sol.objective) - theory.global_optimum(prob).objective) <= 1e-12


def test_newton_is_quadratic_in_spite_of_the_null_space():
    sol = ufm.solve_ufm("ce", K=5, d=12, n=3, lam_W=4e-3, lam_H=1e-3, record=True)
    norms = sol.history.grad_norm
    last = np.flatnonzero(norms > 1e-6)[-1]
    assert sol.steps - last <= 3  # from 1e-6 to below 1e-13
    assert norms[-1] <= 1e-13


def test_history_is_the_trajectory():
    prob = problem("ls")
    start = ufm.init(prob, seed=4)
    sol = ufm.solve(prob, start, record=True)
    plain = ufm.solve(prob, start)
    h = sol.history
    assert plain.history is None
    assert len(h.objective) == int(sol.steps) + 1 == len(h.nc1) == len(h.step)
    assert h.objective[0] == pytest.approx(float(prob(start)), rel=1e-14)
    assert h.grad_norm[0] == pytest.approx(dense_grad_norm(prob, start), rel=1e-12)
    assert h.objective[-1] == float(sol.objective)
    assert (np.diff(h.objective) <= 1e-15).all()
    nc = ufm.metrics.of_params(sol.params, prob.labels)
    np.testing.assert_allclose([h.nc1[-1], h.nc2[-1], h.nc3[-1]], [nc.nc1, nc.nc2, nc.nc3], atol=1e-14)
    np.testing.assert_allclose(sol.W, plain.W, atol=1e-12)


def test_long_histories_are_thinned():
    prob = problem("ce")
    sol = ufm.solve(prob, solver="gd", record=True, max_steps=25_000, tol=1e-14)
    assert np.array_equal(sol.history.step, np.arange(0, int(sol.steps) + 1, 3))


# --- the class-mean reduction ---------------------------------------------------------------------

#: as many samples as `SHUFFLED`, so that the programs are the same
IMBALANCED = np.random.default_rng(6).permutation(np.repeat(np.arange(4), [6, 1, 2, 3]))


@pytest.mark.parametrize("labels", [SHUFFLED, IMBALANCED], ids=["balanced", "imbalanced"])
@pytest.mark.parametrize("loss", [name for name in losses.PAPER if losses.get(name).convex])
@pytest.mark.parametrize("d", [2, 3, 4, 9])
def test_reduced_equals_full(loss, labels, d):
    prob = ufm.Problem(loss, labels, 4, d, lam_W=4e-3, lam_H=1e-3, lam_b=1e-2)
    start = ufm.init(prob, seed=7)
    reduced = ufm.solve(prob, start, reduced=True)
    assert reduced.converged
    assert dense_grad_norm(prob, reduced.params) <= 1e-10
    full = ufm.solve(prob, start)
    if d >= 4:  # below, several minima exist
        assert float(reduced.objective) == pytest.approx(float(full.objective), abs=1e-12)
        np.testing.assert_allclose(reduced.W @ reduced.H, full.W @ full.H, atol=1e-7)


def test_reduced_is_refused_where_it_is_not_valid():
    for loss in ("fl", lambda z, k: jax.nn.logsumexp(z) - z[k]):
        with pytest.raises(ValueError, match=r"reduced: expected a loss that is convex.*need not coincide"):
            ufm.solve(problem(losses.get(loss)), reduced=True)
    declared = losses.custom(lambda z, k: jax.nn.logsumexp(z) - z[k], convex=True, shift_invariant=True)
    assert ufm.solve(problem(declared), reduced=True).converged


def _bounded(z, k):
    """Flat far away from the target 10 e_k, hence not convex."""
    square = jnp.sum((z - 10.0 * (jnp.arange(z.shape[0]) == k)) ** 2)
    return square / (1 + square)


def test_a_false_promise_of_convexity_hides_the_critical_points_at_which_a_class_spreads():
    """The features of a class need not coincide at a minimum; the reduction cannot represent such a point.

    What it returns is critical for the full problem all the same.
    """
    sizes = {"labels": SHUFFLED, "K": 4, "d": 6, "lam_W": 1e-2, "lam_H": 5e-3}
    fitted = ufm.solve(ufm.Problem(losses.mse(beta=10.0), **sizes)).params
    first = np.unique(SHUFFLED, return_index=True)[1]
    start = fitted._replace(H=fitted.H.at[:, first].set(0.0))  # one sample a class where the loss is flat
    prob = ufm.Problem(losses.custom(_bounded, convex=True), **sizes)
    full, reduced = ufm.solve(prob, start), ufm.solve(prob, start, reduced=True)
    for sol in (full, reduced):
        assert sol.converged
        assert dense_grad_norm(prob, sol.params) <= 1e-10
    spread = [np.ptp(np.asarray(sol.H)[:, SHUFFLED == 0], axis=1).max() for sol in (full, reduced)]
    assert spread[0] > 1
    assert spread[1] == 0
    assert full.objective > 1.5 * reduced.objective  # a local minimum, which convexity excludes
    assert not full.certificate.is_global


def test_class_means_that_are_no_critical_point_of_the_full_problem_are_not_called_converged():
    """Class means weighted by other counts than the problem's: the check on all samples says so."""
    prob, start = problem("ce"), ufm.init(problem("ce"))
    options = _solve.Options(solvers.get("newton"), reduced=True, rows=0, stride=1)
    outcome, run = _solve.compiled_run(prob, start, None, _solve.Before(), 1e-10, 100, 100, options)
    assert outcome.status == Status.CONVERGED
    view, _ = _view.view_of(prob, outcome.params, options.solver, True)
    fewer = dataclasses.replace(prob, labels=IMBALANCED)
    for of, status in ((prob, Status.CONVERGED), (fewer, Status.NOT_EXPANDABLE)):
        assert _solve._outcome(of, view, run, 1e-10, True).status == status
    assert "reduced=False" in Status.NOT_EXPANDABLE.message


# --- statuses -------------------------------------------------------------------------------------


def test_max_steps_is_a_status_and_a_run_goes_on_from_it():
    prob = problem("ce")
    cut = ufm.solve(prob, ufm.init(prob), max_steps=3)
    assert cut.status is Status.MAX_STEPS
    assert not cut.converged
    assert int(cut.steps) == 3
    assert "raise it" in cut.status.message
    assert ufm.solve(prob, cut.params).converged


def test_the_rounding_floor_is_a_status():
    sol = ufm.solve(problem("ce"), tol=1e-30)
    assert sol.status is Status.STALLED
    assert sol.grad_norm < 1e-9
    assert "rounding" in sol.status.message


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_a_loss_without_finite_values_is_a_status_and_the_point_is_kept(solver):
    wall = losses.custom(lambda z, k: jnp.where(jnp.max(jnp.abs(z)) > 1e3, jnp.nan, jnp.sum(z**2) - z[k]))
    prob = problem(wall)
    start = ufm.init(prob, scale=100.0)
    sol = ufm.solve(prob, start, solver=solver)
    assert sol.status is Status.NON_FINITE
    assert "scale" in sol.status.message
    assert all(bool(jnp.isfinite(x).all()) for x in sol.params)


def test_the_origin_is_a_strict_saddle_that_is_left_unless_the_user_says_so():
    prob = problem("ce")
    stays = ufm.solve(prob, prob.zeros(), escape=False)
    assert stays.status is Status.STRICT_SADDLE
    assert not stays.converged
    assert int(stays.steps) == 0
    assert not stays.certificate.is_global
    assert "escape=True" in stays.status.message
    assert ufm.solve(prob, prob.zeros()).certificate.is_global


# --- symmetries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
def test_rotations_and_permutations_commute_with_the_solver(solver):
    prob = problem("ls")
    start = ufm.init(prob, seed=8)
    sol = ufm.solve(prob, start, solver=solver, max_steps=4)
    rng = np.random.default_rng(9)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    turned = ufm.solve(prob, ufm.Params(start.W @ Q, Q.T @ start.H, start.b), solver=solver, max_steps=4)
    np.testing.assert_allclose(turned.W, sol.W @ Q, atol=1e-10)
    order = rng.permutation(prob.N)
    moved = ufm.Problem(prob.loss, prob.labels[order], 4, 6, prob.lam_W, prob.lam_H)
    swapped = ufm.solve(moved, start._replace(H=start.H[:, order]), solver=solver, max_steps=4)
    np.testing.assert_allclose(swapped.H, sol.H[:, order], atol=1e-10)
    classes = rng.permutation(4)
    renamed = ufm.Problem(prob.loss, np.argsort(classes)[prob.labels], 4, 6, prob.lam_W, prob.lam_H)
    named = ufm.solve(
        renamed, ufm.Params(start.W[classes], start.H, start.b[classes]), solver=solver, max_steps=4
    )
    np.testing.assert_allclose(named.W, sol.W[classes], atol=1e-10)


# --- compilation ----------------------------------------------------------------------------------


def test_a_new_penalty_seed_or_hyperparameter_compiles_nothing(compilations):
    def run(alpha, lam, seed, tol, max_steps):
        given = {"lam_W": lam, "lam_H": 2 * lam, "lam_b": lam / 2}
        return ufm.solve_ufm(
            "ls", K=3, d=5, n=2, alpha=alpha, seed=seed, tol=tol, max_steps=max_steps, **given
        )

    run(0.1, 1e-3, 0, 1e-10, 100)
    assert compilations() > 0
    run(0.2, 3e-3, 7, 1e-9, 50)
    run(0, 1, 2, 1e-6, 33)  # Python integers too
    assert compilations() == 0


@pytest.mark.parametrize("loss", losses.PAPER)
def test_a_sweep_of_values_compiles_nothing(loss, compilations):
    prob = ufm.Problem.balanced(loss, K=3, d=5, n=2)
    axes = {name: np.array([0.2, 0.4]) for name in prob.loss.hyperparameters}
    ufm.solve_sweep(prob, seeds=range(2), lam_W=np.array([1e-3, 1e-2]), **axes)
    assert compilations() > 0
    axes = {name: values / 2 for name, values in axes.items()}
    ufm.solve_sweep(prob.replace(lam_H=np.float64(0.1)), seeds=[5, 6], lam_W=np.array([2e-3, 3e-2]), **axes)
    assert compilations() == 0


# --- sweeps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduced", [False, True])
def test_a_sweep_is_its_solutions(reduced):
    prob = problem("ls")
    lam_W, alpha = np.array([[1e-3], [1e-2], [3e-2]]), np.array([0.05, 0.3])
    sweep = ufm.solve_sweep(prob, seeds=[3, 11], lam_W=lam_W, alpha=alpha, reduced=reduced)
    assert sweep.shape == (2, 3, 2)
    assert sweep.W.shape == (2, 3, 2, 4, 6)
    assert sweep.converged.all()
    one = sweep[1, 2, 0]
    assert (float(one.problem.lam_W), float(one.problem.loss.alpha)) == (3e-2, 0.05)
    assert float(prob.loss.alpha) == pytest.approx(0.1)  # the sweep leaves its template alone
    alone = ufm.solve(one.problem, ufm.init(prob, seed=11), reduced=reduced)
    np.testing.assert_allclose(one.W, alone.W, atol=1e-12)
    assert int(one.steps) == int(alone.steps)
    best = theory.global_optimum(one.problem).objective
    assert float(one.objective) == pytest.approx(best, abs=1e-12)


def test_a_sweep_in_many_chunks_keeps_its_order():
    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_H=2e-3)
    grid = np.geomspace(1e-4, 1e-1, 71)
    sweep = ufm.solve_sweep(prob, seeds=range(2), lam_W=grid, reduced=True)
    best = [theory.global_optimum(prob.replace(lam_W=lam)).objective for lam in grid]
    np.testing.assert_allclose(sweep.objective, np.stack([best, best]), atol=1e-12)


def test_vmap_and_jit_over_problems():
    """A batch of objectives through the problem's leaves."""
    prob = problem("fl")
    params = ufm.init(prob)
    lam = jnp.array([1e-3, 1e-2])
    values = jax.jit(jax.vmap(lambda x: prob.replace(lam_W=x)(params)))(lam)
    np.testing.assert_allclose(values, [prob.replace(lam_W=x)(params) for x in lam], rtol=1e-14)


# --- bad input ------------------------------------------------------------------------------------

START = ufm.init(problem("ce"))
BAD = [
    (lambda: ufm.solve_ufm(K=1), r"K: expected an integer >= 2, got 1"),
    (lambda: ufm.solve_ufm(d=0), r"d: expected an integer >= 1, got 0"),
    (lambda: ufm.solve_ufm(n=0), r"n: expected an integer >= 1, got 0"),
    (lambda: ufm.solve_ufm(n=2.5), r"n: expected an integer"),
    (lambda: ufm.solve_ufm(lam_W=-1e-3), r"lam_W: expected a finite number > 0"),
    (lambda: ufm.solve_ufm(lam_W=0), r"lam_W: .*infimum is not attained"),
    (lambda: ufm.solve_ufm(lam_H=np.inf), r"lam_H: expected a finite number > 0"),
    (lambda: ufm.solve_ufm(lam_b=-1.0), r"lam_b: expected a finite number >= 0"),
    (lambda: ufm.solve_ufm("ls", alpha=1.0), r"alpha: expected .* < 1, got 1"),
    (lambda: ufm.solve_ufm("fl", gamma=-1), r"gamma: expected .* >= 0, got -1"),
    (lambda: ufm.solve_ufm("mse", kappa=0), r"kappa: expected .* > 0"),
    (lambda: ufm.solve_ufm("mse", beta=float("nan")), r"beta: expected"),
    (lambda: ufm.solve_ufm("ce", alpha=0.1), r"alpha: expected a hyperparameter of loss 'ce'"),
    (lambda: ufm.solve_ufm("focus"), r"loss: expected one of ce, ls, fl, mse, .*got 'focus'"),
    (lambda: ufm.solve_ufm(lambda z, k: z), r"loss: expected a real scalar"),
    (lambda: ufm.solve_ufm(lambda z, k: jnp.nan * z[k]), r"loss: expected a finite value"),
    (lambda: ufm.solve_ufm(lambda z, k: float(z[k])), r"loss: .*failed when traced"),
    (lambda: ufm.solve_ufm(n=3, labels=[0, 1, 2]), r"n: expected either n or labels, got both"),
    (lambda: ufm.solve_ufm(labels=[0, 1, 3], K=3), r"labels: expected classes in 0..2"),
    (lambda: ufm.solve_ufm(labels=[0, 2], K=3), r"labels: .*got none of class 1"),
    (lambda: ufm.solve_ufm(labels=[0.0, 1.0]), r"labels: expected integers"),
    (lambda: ufm.solve_ufm(bias=False, lam_b=1e-2), r"lam_b: expected 0 where bias=False"),
    (lambda: ufm.solve_ufm(solver="newtn"), r"solver: expected one of .*did you mean 'newton'"),
    (lambda: ufm.solve_ufm(solver=3), r"solver: expected a name"),
    (lambda: ufm.solve_ufm(tol=0.0), r"tol: expected a finite number > 0"),
    (lambda: ufm.solve_ufm(max_steps=0), r"max_steps: expected an integer >= 1"),
    (lambda: ufm.solve_ufm(seed=-1), r"seed: expected an integer >= 0"),
    (lambda: ufm.solve_ufm(scale=0), r"scale: expected a finite number > 0"),
    (lambda: ufm.solve(problem(), START._replace(W=START.W.T)), r"W: expected shape \(4, 6\)"),
    (lambda: ufm.solve(problem(), START._replace(b=jnp.zeros(4, int))), r"b: expected a floating dtype"),
    (lambda: ufm.solve(problem(), START._replace(H=START.H * jnp.nan)), r"H: expected finite values"),
    (lambda: ufm.solve(problem(), 3), r"params: expected Params"),
    (lambda: ufm.solve(problem(bias=False), START._replace(b=jnp.ones(4))), r"b: expected zeros"),
    (lambda: ufm.solve_sweep(problem(), lam=[1]), r"axis: expected one of lam_W"),
    (lambda: ufm.solve_sweep(problem(), lam_W=[1, 0]), r"lam_W: expected a finite number > 0, got .*0"),
    (lambda: ufm.solve_sweep(problem(), seeds=[2**63]), r"seeds: expected an integer >= 0 and <= 9"),
    (lambda: ufm.solve_sweep(problem(), seeds=[]), r"seeds: expected at least one"),
    (lambda: ufm.solve_sweep(problem(), seeds=range(0)), r"seeds: expected at least one seed, got none"),
    (lambda: ufm.solve_sweep(problem(), seeds=[[0, 1], [2, 3]]), r"seeds: expected a range or a vector"),
    (lambda: ufm.solve_sweep(problem(), seeds=[[0], [1, 2]]), r"seeds: expected a range or a vector"),
    (lambda: ufm.solve_sweep(problem(), seeds="abc"), r"seeds: expected an integer >= 0, got 'abc'"),
    (lambda: ufm.solve_sweep(problem(), seeds=[1.5]), r"seeds: expected an integer >= 0, got 1.5"),
    (
        lambda: ufm.solve_sweep(problem(), lam_W=[]),
        r"lam_W: expected an axis of at least one value, got none",
    ),
    (lambda: ufm.solve_sweep(problem(), lam_b=np.ones((0, 3))), r"lam_b: .*got none \(shape \(0, 3\)\)"),
    (lambda: ufm.solve_sweep(problem(loss="fl"), gamma=()), r"gamma: expected an axis of at least one value"),
    (lambda: ufm.solve_sweep(problem(), lam_W=[1, 2], lam_H=[]), r"lam_H: expected an axis of at least one"),
    (
        lambda: ufm.solve_sweep(problem(), lam_W=[1e-2, np.nan]),
        r"lam_W: expected a finite number > 0, got nan",
    ),
    (lambda: ufm.solve_sweep(problem(), lam_W=["a", "b"]), r"lam_W: expected an axis of numbers .*'a'"),
    (lambda: ufm.solve_sweep(problem(), lam_W="0.01"), r"lam_W: expected an axis of numbers .*'0.01'"),
    (lambda: ufm.solve_sweep(problem(), lam_W=None), r"lam_W: expected an axis of numbers .*None"),
    (lambda: ufm.solve_sweep(problem(), lam_W=[True, False]), r"lam_W: expected an axis of numbers"),
    (lambda: ufm.solve_sweep(problem(), lam_W=[1e-2 + 1j]), r"lam_W: expected an axis of numbers"),
    (lambda: ufm.solve_sweep(problem(), lam_W=[[1e-2], [1e-2, 2e-2]]), r"lam_W: expected an axis of numbers"),
    (lambda: ufm.solve_sweep(problem(), lam_W=iter([1e-2])), r"lam_W: expected an axis of numbers"),
    (lambda: ufm.solve_sweep(problem(), lam_W=[1, 2], lam_H=[1, 2, 3]), r"lam_W, lam_H: expected axes that"),
    (lambda: ufm.solve_sweep(problem(bias=False), lam_b=[1e-2]), r"lam_b: expected 0 where bias=False"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input_is_met_before_any_compute(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_solver_of_ones_own_needs_two_functions():
    @dataclasses.dataclass(frozen=True)
    class SignDescent:
        name = "sign"
        balance = False
        rotate = False
        polish = False
        max_steps = 20_000

        def init(self, f, at):
            return jnp.asarray(0.1)

        def step(self, f, at, rate):
            y = jax.tree.map(lambda x, g: x - rate * jnp.sign(g), at.y, at.g)
            return solvers.evaluate(f, y), rate * 0.995, jnp.asarray(0)

    sol = ufm.solve(problem("ce"), solver=SignDescent(), tol=1e-4)
    assert sol.converged


# --- the rotation into the row space of W -------------------------------------------------------------


def _starts(prob):
    rng = np.random.default_rng(0)
    W, H, b = rng.normal(size=(prob.K, prob.d)), rng.normal(size=(prob.d, prob.N)), np.zeros(prob.K)
    thin = np.outer(W[:, 0], W[0])
    parts = {"W = 0": (0 * W, H), "H = 0": (W, 0 * H), "rank one": (thin, H), "full": (W, H)}
    return {name: ufm.Params(*map(jnp.asarray, (*pair, b))) for name, pair in parts.items()}


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("start", ["W = 0", "H = 0", "rank one", "full"])
def test_the_rotation_loses_no_direction_in_which_W_grows(start, reduced):
    prob = problem("ce", d=9)
    sol = ufm.solve(prob, _starts(prob)[start], reduced=reduced)
    assert sol.converged
    assert dense_grad_norm(prob, sol.params) <= 2e-10
    assert sol.certificate.is_global  # not the saddle at the origin


def test_the_rotation_changes_no_answer_and_turns_nothing():
    prob = problem("fl", d=9)
    start = _starts(prob)["full"]
    plain = ufm.solve(prob, start, solver=solvers.Newton(rotate=False))
    rotated = ufm.solve(prob, start)
    close(rotated.objective, plain.objective, ulps=64)
    again = ufm.solve(prob, rotated.params)  # a solution is returned as it is
    assert int(again.steps) == 0
    for x, y in zip(again.params, rotated.params, strict=True):
        close(x, y, ulps=256, scale=1.0)


def test_the_rotated_gradient_norm_is_that_of_the_problem():
    prob = problem("ls", d=9)
    sol = ufm.solve(prob, _starts(prob)["full"], max_steps=2)
    assert float(sol.grad_norm) > 1e-4
    assert float(sol.grad_norm) == pytest.approx(dense_grad_norm(prob, sol.params), rel=1e-10)
