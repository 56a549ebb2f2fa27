"""A solve ends at a second-order point from any start; a strict saddle is left or has its own status."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import _second_order, landscape, losses, solvers, theory
from ufm._solution import Status

#: non-degenerate problems: K >= 3, n >= 2, d > K, lam_W != lam_H, shuffled labels
SHUFFLED = np.random.default_rng(5).permutation(np.tile(np.arange(4), 3))
STRONG, WEAK = {"lam_W": 2e-2, "lam_H": 1e-2}, {"lam_W": 1e-4, "lam_H": 3e-5}

every_loss = pytest.mark.parametrize("loss", losses.PAPER)
every_solver = pytest.mark.parametrize("solver", solvers.SOLVERS)


def problem(loss="ce", **changes):
    given = {"K": 4, "d": 6} | STRONG | changes
    return ufm.Problem(losses.get(loss), SHUFFLED, **given)


def above(sol):
    """f - f*, relative to the scale of f."""
    best = theory.global_optimum(sol.problem).objective
    return abs(float(sol.objective) - best) / (1 + abs(best))


# --- starts of every scale ---------------------------------------------------------------------------------


def test_newton_is_not_thrown_to_the_origin_from_three_times_the_optimum():
    sol = ufm.solve_ufm("ce", K=10, d=64, n=10)
    again = ufm.solve(sol.problem, jax.tree.map(lambda x: 3 * x, sol.params))
    assert again.converged
    assert float(again.objective) == pytest.approx(0.721792, abs=1e-6)
    assert above(again) <= 1e-12


@every_loss
@pytest.mark.parametrize("penalties", [STRONG, WEAK], ids=["strong", "weak"])
def test_starts_of_every_scale_reach_the_optimum(loss, penalties):
    prob = problem(loss, **penalties)
    for solver in ("newton", "lbfgs"):
        for scale in np.geomspace(1e-3, 1e3, 7):
            for seed in (0, 1):
                sol = ufm.solve(prob, ufm.init(prob, seed=seed, scale=scale), solver=solver)
                assert sol.status in (Status.CONVERGED, Status.STALLED), (solver, scale, seed)
                assert above(sol) <= 1e-11, (solver, scale, seed)


@every_loss
def test_large_starts_of_the_issue(loss):
    prob = ufm.Problem.balanced(loss, K=10, d=64, n=10)
    sols = ufm.solve_sweep(prob, seeds=range(10), scale=100.0)
    assert sols.converged.all()
    best = theory.global_optimum(prob).objective
    np.testing.assert_allclose(sols.objective, best, rtol=1e-12)


@every_loss
@every_solver
def test_first_order_solvers_from_large_starts(loss, solver):
    prob = problem(loss)
    sol = ufm.solve(prob, ufm.init(prob, seed=3, scale=30.0), solver=solver, tol=1e-4)
    assert sol.converged
    assert above(sol) <= 1e-5


def test_the_bound_on_newtons_step_keeps_it_off_the_origin():
    """Without the bound the first full step lands on the saddle, which nothing but an escape then mends."""
    sol = ufm.solve_ufm("ce", K=10, d=64, n=10)
    start = jax.tree.map(lambda x: 3 * x, sol.params)
    assert above(ufm.solve(sol.problem, start, escape=False)) <= 1e-12
    unbounded = ufm.solve(sol.problem, start, escape=False, solver=solvers.Newton(keep=0.0))
    assert unbounded.status is Status.STRICT_SADDLE


def test_a_saturated_start_takes_no_more_steps_than_one_at_the_limit():
    """Label smoothing is piecewise linear at large logits: 1000 steps did not suffice from scale 100."""
    prob = ufm.Problem.balanced("ls", K=10, d=64, n=10, lam_W=1e-5, lam_H=1e-5)
    sol = ufm.solve(prob, ufm.init(prob, scale=100.0))
    assert sol.converged
    assert int(sol.steps) < 300  # 71 here; rounding may change how many


def test_a_saturated_start_is_shrunk_only_where_that_is_lower():
    """A target of 1000 makes large logits right: the start at the optimum stays there."""
    prob = problem(losses.mse(beta=1000.0))
    best = theory.global_optimum(prob)
    assert float(jnp.max(prob.logits(best.params))) > 100
    sol = ufm.solve(prob, best.params, max_steps=1)
    assert float(sol.objective) == pytest.approx(best.objective, rel=1e-12)


def test_the_collapsed_optimum_is_still_reached():
    prob = problem("ce", lam_W=0.3, lam_H=0.4)
    assert theory.global_optimum(prob).regime == "trivial"
    for scale in (1e-2, 1.0, 1e2):
        sol = ufm.solve(prob, ufm.init(prob, scale=scale))
        assert sol.converged
        assert above(sol) <= 1e-12


# --- saddles -----------------------------------------------------------------------------------------------


@every_loss
@every_solver
def test_every_solver_leaves_the_origin(loss, solver):
    prob = problem(loss)
    start = prob.zeros()
    if not prob.loss.shift_invariant:  # MSE: the bias has an optimum of its own at W = 0, H = 0
        start = start._replace(b=ufm.solve(prob, start, escape=False).b)
    stays = ufm.solve(prob, start, solver=solver, tol=1e-5, escape=False)
    assert stays.status is Status.STRICT_SADDLE
    assert not stays.converged
    sol = ufm.solve(prob, start, solver=solver, tol=1e-5)
    assert sol.converged
    assert above(sol) <= 1e-7


@every_loss
@pytest.mark.parametrize("changes", [{}, {"lam_b": 2e-2}], ids=str)
def test_known_saddles_are_left_for_the_optimum(loss, changes):
    prob = ufm.Problem.balanced(loss, K=4, d=6, n=3, **STRONG, **changes)
    points = landscape.critical_points(prob)
    saddles = [point for point in points if point.index > 0]
    assert len(saddles) >= 2
    for point in saddles:
        stays = ufm.solve(prob, point.params, escape=False)
        assert stays.status is Status.STRICT_SADDLE, point
        sol = ufm.solve(prob, point.params)
        assert sol.converged, point
        assert above(sol) <= 1e-12, point


def test_a_saddle_that_uses_every_feature_direction_is_left():
    """d = 2 < K - 1: a regular hexagon with a free bias is a saddle (docs/theory.md, section 5.3). The
    singular values of G do not show it, but the Hessian's smallest eigenvalue does."""
    prob = ufm.Problem.balanced("ce", K=6, d=2, n=2, lam_W=1e-3, lam_H=2e-3)
    angle = 2 * np.pi * np.arange(6) / 6
    hexagon = 2 * np.stack([np.cos(angle), np.sin(angle)])
    start = ufm.Params(hexagon.T, np.tile(hexagon, 2), np.zeros(6))
    stays = ufm.solve(prob, start, escape=False)
    assert stays.status is Status.STRICT_SADDLE
    assert landscape.inertia(prob, stays.params).neg > 0
    sol = ufm.solve(prob, start)
    assert sol.converged
    assert float(sol.objective) < float(stays.objective) - 1e-6
    assert landscape.inertia(prob, sol.params).neg == 0


def test_sweeps_end_at_second_order_points_too():
    prob = ufm.Problem.balanced("ce", K=6, d=2, n=2, lam_W=1e-3, lam_H=2e-3)
    sols = ufm.solve_sweep(prob, seeds=range(6), lam_W=np.array([1e-3, 2e-3]), scale=30.0)
    assert sols.converged.all()
    for i in range(6):
        one = sols[i, 1]
        assert landscape.inertia(one.problem, one.params).neg == 0
        assert float(one.objective) == pytest.approx(float(one.problem(one.params)), rel=1e-13)


def test_unequal_counts_and_the_reduced_problem():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [1, 2, 4, 5]))
    prob = ufm.Problem("ls", labels, K=4, d=6, lam_W=2e-3, lam_H=1e-3)
    for reduced in (False, True):
        start = ufm.solve(prob, prob.zeros(), escape=False, reduced=reduced)
        sol = ufm.solve(prob, start.params, reduced=reduced)
        assert sol.converged
        assert landscape.certificate(prob, sol.params).is_global


def test_max_steps_counts_the_steps_before_an_escape():
    prob = problem("ce")
    sol = ufm.solve(prob, prob.zeros(), max_steps=3)
    assert int(sol.steps) == 3
    assert sol.status is Status.MAX_STEPS
    recorded = ufm.solve(prob, prob.zeros(), record=True)
    assert len(recorded.history.step) == int(recorded.steps) + 1
    assert np.isfinite(recorded.history.objective).all()
    assert (np.diff(recorded.history.objective) <= 1e-12).all()


# --- the cheap tests ---------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize(
    "penalties", [STRONG, WEAK, {"lam_W": 0.3, "lam_H": 0.4}], ids=["strong", "weak", "collapsed"]
)
def test_at_an_ordinary_solution_no_eigenvalue_is_computed(loss, penalties, monkeypatch):
    """The check costs a K x K matrix: everything dearer is left to points that the cheap tests suspect."""

    def dear(*_):
        raise AssertionError("the cheap tests did not decide")

    monkeypatch.setattr(_second_order, "way_down", dear)
    assert ufm.solve(problem(loss, **penalties)).converged


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0, 8.0])
def test_focal_loss_knows_where_it_is_convex(gamma):
    """Against the Hessian's eigenvalues by autodiff, and the threshold p_min of theory."""
    loss, rng = losses.focal(gamma), np.random.default_rng(3)
    p_min = theory.convexity_region(loss, 5).p_min
    Z = rng.normal(size=(200, 5)) * rng.uniform(0.1, 2, size=(200, 1))
    p = np.asarray(jax.nn.softmax(Z)[:, 2])
    clear = np.abs(p - p_min) > 1e-6
    known = np.asarray(jax.vmap(lambda z: loss.convex_at(z, 2))(Z))
    least = np.linalg.eigvalsh(jax.vmap(jax.hessian(lambda z: loss(z, 2)))(Z))[:, 0]
    np.testing.assert_array_equal(known[clear], (p > p_min)[clear])
    np.testing.assert_array_equal((least >= -1e-12)[clear], (p > p_min)[clear])


def test_the_resolution_is_that_of_an_approximate_second_order_point():
    assert _second_order.resolution(0.01, 0.0) == pytest.approx(1e-8)
    assert _second_order.resolution(0.01, 1e-4) == pytest.approx(1e-3)


def test_a_loose_tolerance_is_no_saddle():
    """At a point that is only roughly critical |G|_op exceeds lam by what is not converged yet."""
    for seed in range(5):
        prob = problem("ce", **WEAK)
        sol = ufm.solve(prob, ufm.init(prob, seed=seed), solver="lbfgs", tol=1e-3)
        assert sol.converged


# --- float32: the rounding floor ends a run ----------------------------------------------------------------

FLOAT32 = """
import ufm
prob = ufm.Problem.balanced("{loss}", K=4, d=6, n=3)
sol = ufm.solve(prob, solver="{solver}", tol=1e-9)
left = ufm.solve(prob, prob.zeros(), tol=1e-4)
best = ufm.theory.global_optimum(prob).objective
print(sol.status.name, int(sol.steps), abs(float(sol.objective) - best) < 1e-5 * (1 + abs(best)))
print(left.status.name, abs(float(left.objective) - best) < 1e-5 * (1 + abs(best)))
"""


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
def test_float32_stops_at_its_rounding_floor(solver):
    code = FLOAT32.format(loss="ce", solver=solver)
    environment = os.environ | {"UFM_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
        check=True,
    )
    first, second = done.stdout.splitlines()
    status, steps, right = first.split()
    assert status in ("CONVERGED", "STALLED")
    assert int(steps) < 2_000
    assert right == "True"
    assert second == "CONVERGED True"
