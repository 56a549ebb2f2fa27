"""Inertia and escapes, against the dense Hessian."""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hessian_cases import HYPER, LABELS, REGIMES, cases, every_case, problem, random_point
from scipy.linalg import eigvalsh
from tolerances import close

import ufm
from ufm import Params, Problem, landscape, losses, theory
from ufm.hessian import product as hessian
from ufm.hessian.structure import structure
from ufm.landscape import saddles

# --- inertia ------------------------------------------------------------------------------------------


@every_case
def test_inertia_counts_the_dense_eigenvalues(i):
    case = cases()[i]
    got = landscape.inertia(case.prob, case.params)
    noise = 1e-10 * np.abs(case.values).max()
    expected = (
        (case.values < -noise).sum(),
        (np.abs(case.values) <= noise).sum(),
        (case.values > noise).sum(),
    )
    assert tuple(got) == expected
    assert sum(got) == case.prob.size
    assert got.accidental == 0


def test_inertia_where_blocks_of_samples_are_singular():
    """Focal loss has negative curvature: lam_H is chosen so that a sample's block is exactly singular."""
    prob = Problem(losses.get("fl", gamma=3.0), LABELS, d=5, lam_W=0.03, lam_H=0.012)
    at = random_point(prob, 4, rank=3)
    H = np.array(at.H)
    H[:, 0] = -3 * np.asarray(at.W)[1]  # p_k near 0: the loss is concave there
    at = at._replace(H=jnp.asarray(H))
    curvature = np.linalg.eigvalsh(structure(prob, at).fluctuations - 0.012 * np.eye(3))
    singular = prob.replace(lam_H=np.float64(-curvature.min()))
    assert curvature.min() < -1e-4
    values = eigvalsh(landscape.dense(singular, at))
    assert np.abs(np.linalg.eigvalsh(structure(singular, at).fluctuations)).min() < 1e-15
    assert np.sort(np.abs(values))[1] > 1e-5  # the one zero is the bias's shift
    assert tuple(landscape.inertia(singular, at)) == ((values < -1e-9).sum(), 1, (values > 1e-9).sum())


@pytest.mark.parametrize("share", [-5e-4, 5e-4])
def test_inertia_where_a_block_of_samples_is_nearly_singular(share):
    """Stiff weights hardly couple: a block's small eigenvalue is one of the Hessian, with its sign."""
    prob = Problem(losses.get("fl", gamma=3.0), LABELS, d=5, lam_W=1e4, lam_H=1.0, bias=False)
    at = random_point(prob, 4, rank=3)
    W = 10 * np.asarray(at.W)
    H = np.array(at.H) / 10
    H[:, 0] = -0.03 * W[1] / 10  # p_k near 0: the loss is concave there
    at = Params(jnp.asarray(W), jnp.asarray(H), at.b)
    curvature = np.linalg.eigvalsh(structure(prob, at).fluctuations - np.eye(3)).min()
    nearly = prob.replace(lam_H=np.float64(-curvature / (1 - share)))
    block = np.linalg.eigvalsh(structure(nearly, at).fluctuations)
    assert block.min() == pytest.approx(share * float(nearly.lam_H), rel=1e-6)
    values = eigvalsh(landscape.dense(nearly, at))
    assert np.abs(values).min() > 1e-6
    assert tuple(landscape.inertia(nearly, at)) == ((values < 0).sum(), 0, (values > 0).sum())


@pytest.mark.parametrize("regime", REGIMES)
def test_accidental_zeros_are_told_from_symmetry(regime):
    """MSE with kappa = 1: truncations are a Grassmannian of critical points (docs/theory.md, section 4.5)."""
    K, d, n, r = 4, 6, 2, 2
    given = {"K": K, "d": d, "n": n, "lam_W": 0.02, "lam_H": 0.01, "kappa": 1.0, "beta": 1.0}
    prob = Problem.balanced("mse", **given, **REGIMES[regime])
    start, equal = prob.zeros(), K  # as many singular values of the optimal logits are equal
    if prob.bias:  # it fits the targets' mean (docs/theory.md, section 1.6): the logits lack a direction
        start, equal = start._replace(b=jnp.full(K, 2.0 / (2 * K + float(prob.lam_b) * K))), K - 1
    stop = landscape.descend(prob, start).stops[r]
    got = landscape.inertia(prob, stop.params)
    assert got.neg == (equal - r) * (d - r)
    assert got.symmetry == r * (r - 1) // 2 + r * (d - r)
    assert got.accidental == r * (equal - r)


def test_a_count_that_depends_on_the_tolerance_is_said_to():
    """Just below the collapse threshold the flattest curvature, about 2 lam a/K, is as small as one likes."""
    K, n = 4, 2
    lam = (1 - 1e-6) / K / np.sqrt(n)
    prob = Problem.balanced("ce", K=K, d=6, n=n, lam_W=2 * lam, lam_H=lam / 2)
    optimum = theory.global_optimum(prob).params
    flattest = theory.hessian_spectrum(prob).smallest_positive
    assert flattest < 1e-5
    with pytest.warns(landscape.InertiaWarning, match="near the tolerance"):
        got = landscape.inertia(prob, optimum, tol=flattest * 1.01)
    assert got.accidental > 0
    assert got.near[0] == pytest.approx(flattest, rel=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert landscape.inertia(prob, optimum).accidental == 0


# --- escapes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ce", "ls", "fl", "mse"])
@pytest.mark.parametrize("regime", REGIMES)
def test_the_proofs_direction_and_the_smallest_eigenvalue(name, regime):
    prob = Problem.balanced(name, K=4, d=6, n=3, lam_W=0.02, lam_H=0.005, **REGIMES[regime], **HYPER[name])
    origin = prob.zeros()
    if name == "mse" and regime != "absent":
        kappa, beta, lam_b = 2.0, 1.5, float(prob.lam_b)
        b0 = 2 * kappa * beta / (2 * kappa + 2 * 3 + lam_b * 4)  # docs/theory.md, section 1.6
        origin = origin._replace(b=jnp.full(4, b0))
    esc = landscape.escape_direction(prob, origin)
    values = eigvalsh(landscape.dense(prob, origin))
    assert esc.strict
    close([esc.curvature, esc.eigenvalue], [values[0]] * 2, ulps=200, scale=values[-1])
    assert np.hypot.reduce([np.linalg.norm(x) for x in esc.direction]) == pytest.approx(1, abs=1e-12)
    close(esc.proof_curvature, esc.proof_formula, ulps=200)
    A = 0.025
    sigma = np.linalg.svd(np.asarray(prob.logit_gradient(origin)), compute_uv=False)[0]
    close(esc.eigenvalue, A / 2 - np.sqrt((0.015 / 2) ** 2 + sigma**2), ulps=200)
    assert sigma == pytest.approx(esc.operator_norm, rel=1e-13)


@pytest.mark.parametrize(("name", "d"), [("ce", 6), ("fl", 6), ("mse", 6), ("ls", 4), ("ce", 3)])
def test_descent_passes_a_saddle_of_every_rank(name, d):
    prob = Problem.balanced(name, K=4, d=d, n=2, lam_W=0.01, lam_H=0.02, bias=False, **HYPER[name])
    road = landscape.descend(prob, prob.zeros())
    rank = theory.global_optimum(prob).rank if d >= 4 else 3
    assert [stop.rank for stop in road.stops] == list(range(rank + 1))
    assert road.objectives == sorted(road.objectives, reverse=True)
    assert road.indices == sorted(road.indices, reverse=True)
    assert road.indices[-1] == 0
    if d >= 4:
        assert road.objectives[-1] == pytest.approx(theory.global_optimum(prob).objective, abs=1e-12)
    for stop in road.stops:
        values = eigvalsh(landscape.dense(prob, stop.params))
        assert stop.inertia.neg == (values < -1e-9).sum()
        close(stop.curvature, values[0], ulps=4000, scale=values[-1])


def test_the_road_is_solved_for_class_means_and_keeps_unused_directions_at_zero(monkeypatch):
    """Exactly zero: what rounding puts into them would grow, past the saddle."""
    prob = Problem.balanced("ce", K=4, d=7, n=3, lam_W=0.01, lam_H=0.02)
    solved = []

    def solve(*args: Any, **options: Any) -> Any:
        solved.append((args[1], ufm.solve(*args, **options)))
        return solved[-1][1]

    monkeypatch.setattr(saddles, "solve", solve)
    road = landscape.descend(prob, prob.zeros())
    assert [stop.rank for stop in road.stops] == [0, 1, 2, 3]
    assert len(solved) == 3
    for rank, (start, sol) in enumerate(solved, 1):
        assert sol.problem.columns == 4
        assert np.any(start.W[:, :rank])
        assert not np.any(sol.W[:, rank:])
        assert not np.any(sol.H[rank:])
        # one sample sqrt(n) h_k with n lam_H: the same objective
        assert float(sol.objective) == pytest.approx(road.objectives[rank], rel=1e-13)


def test_at_the_optimum_there_is_no_way_down():
    prob = Problem.balanced("ls", K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    esc = landscape.escape_direction(prob, theory.global_optimum(prob).params)
    assert not esc.strict
    assert abs(esc.curvature) < 1e-12


def test_descent_from_a_spurious_minimum_stays():
    """CE with K = 5, d = 2 < K - 1: a square with one class at the origin (docs/theory.md, section 5.3)."""
    prob = Problem.balanced("ce", K=5, d=2, n=1, lam_W=0.01, lam_H=0.01)
    sols = ufm.solve_sweep(prob, seeds=range(60))
    spurious = int(np.argmin(np.abs(np.asarray(sols.objective) - 0.318778795422)))
    assert sols.objective[spurious] == pytest.approx(0.318778795422, abs=1e-11)
    road = landscape.descend(prob, sols[spurious].params)
    assert len(road.stops) == 1
    assert road.indices == [0]
    assert not road.certificate.is_global


# --- misuse -------------------------------------------------------------------------------------------


def test_misuse_is_met_before_any_compute():
    prob = problem("ce", "free", LABELS, 6)
    at = random_point(prob)
    for call, words in (
        (lambda: landscape.escape_direction(prob, at), "critical point.*polish"),
        (lambda: landscape.descend(prob, at), "critical point.*polish"),
        (lambda: landscape.eigenvalues(prob, at, 0), "k: expected an integer >= 1"),
        (
            lambda: landscape.eigenvalues(prob, at, prob.size + 1),
            f"k: expected at most the dimension {prob.size}",
        ),
        (lambda: landscape.eigenvalues(prob, at, which="smalest"), "which.*smallest"),
        (lambda: landscape.eigenvalues(prob, at, method="magic"), "method.*lanczos"),
        (lambda: landscape.eigenvalues(prob, at, which="all", method="lanczos"), "which: expected"),
        (lambda: landscape.inertia(prob, at, tol=-1.0), "tol: expected"),
        (lambda: landscape.inertia(prob, at._replace(W=at.W * np.nan)), "W: expected finite values"),
        (lambda: landscape.hvp(prob, at, at._replace(b=at.b[1:])), "b: expected shape"),
        (lambda: landscape.eigenvalues(prob, (at.W, at.H)), "params: expected Params"),
        (lambda: landscape.descend(prob, at, max_stops=0), "max_stops: expected"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_dense_request_that_does_not_fit_is_refused():
    prob = Problem.balanced("ce", K=10, d=64, n=1000)
    at = ufm.init(prob)
    with pytest.raises(ValueError, match=r"640650 x 640650 Hessian takes .* GiB"):
        landscape.dense(prob, at)
    with pytest.raises(ValueError, match=r"GiB; ask for which='smallest'"):
        landscape.eigenvalues(prob, at, which="all")
    assert hessian.MEMORY_LIMIT == 8 * 2**30
