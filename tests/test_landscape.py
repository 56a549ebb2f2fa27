"""Hessian products, the decomposition, eigenvalues, inertia and escapes, against the dense Hessian."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.linalg import eigvalsh
from scipy.sparse.linalg import LinearOperator, eigsh
from tolerances import close

import ufm
from ufm import Params, Problem, landscape, losses, theory
from ufm.hessian import lanczos, spectrum
from ufm.hessian import product as hessian
from ufm.hessian.structure import structure
from ufm.landscape import saddles

REGIMES = {"free": {}, "penalised": {"lam_b": 0.05}, "absent": {"bias": False}}
HYPER = {"ce": {}, "ls": {"alpha": 0.2}, "fl": {"gamma": 3.0}, "mse": {"kappa": 2.0, "beta": 1.5}}
LABELS = [1, 0, 2, 3, 0, 1, 1, 2, 0, 0, 3]  # imbalanced and shuffled
SHAPES = [  # loss, regime, labels, d: d = K, d < K-1, d = 1, K = 2, one sample a class
    ("ce", "free", LABELS, 4),
    ("fl", "penalised", LABELS, 2),
    ("ls", "absent", [0, 1, 1, 0, 1], 1),
    ("fl", "free", [1, 0, 0], 3),
    ("mse", "penalised", [2, 0, 1], 5),
]
CASES = [(loss, regime, LABELS, 6) for loss in HYPER for regime in REGIMES] + SHAPES


@dataclasses.dataclass(frozen=True)
class Case:
    prob: Problem
    name: str
    params: Params

    @functools.cached_property
    def dense(self) -> np.ndarray:
        return landscape.dense(self.prob, self.params)

    @functools.cached_property
    def values(self) -> np.ndarray:
        return eigvalsh(self.dense)


def problem(loss: str, regime: str, labels: Any, d: int, **changes: Any) -> Problem:
    given = {"lam_W": 0.03, "lam_H": 0.012} | REGIMES[regime] | changes
    return Problem(losses.get(loss, **HYPER[loss]), labels, d=d, **given)


def random_point(prob: Problem, seed: int = 0, rank: int | None = None, collapse: int = 0) -> Params:
    """Gaussian; `rank` feature directions in use; the first `collapse` samples of each class coincide."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(prob.d, prob.d)))[0][:, : rank or prob.d]
    W, H = rng.normal(size=(prob.K, Q.shape[1])), rng.normal(size=(Q.shape[1], prob.N))
    for k in range(prob.K):
        same = np.flatnonzero(np.asarray(prob.labels) == k)[:collapse]
        H[:, same] = H[:, same[:1]]
    b = rng.normal(size=prob.K) if prob.bias else np.zeros(prob.K)
    return Params(jnp.asarray(W @ Q.T), jnp.asarray(Q @ H), jnp.asarray(b))


@functools.cache
def cases() -> tuple[Case, ...]:
    def each() -> Iterator[Case]:
        for loss, regime, labels, d in CASES:
            prob = problem(loss, regime, labels, d)
            name = f"{loss}-{regime}-K{prob.K}-d{d}"
            yield Case(prob, name + "-random", random_point(prob))
            partial = random_point(prob, 1, rank=max(1, d - 3), collapse=2)
            yield Case(prob, name + "-partial", partial)
            yield Case(prob, name + "-solved", ufm.solve(prob, random_point(prob, 2), tol=1e-10).params)

    return tuple(each())


CASE_IDS = [f"{c[0]}-{c[1]}-{len(c[2])}-{c[3]}-{p}" for c in CASES for p in ("random", "partial", "solved")]
every_case = pytest.mark.parametrize("i", range(len(CASE_IDS)), ids=CASE_IDS)


def accuracy(case: Case, error: float = 0.0) -> dict[str, float]:
    """Rounding of a dense eigenvalue solver, relative to the largest eigenvalue, and the error announced."""
    ulp = 200 * np.finfo(float).eps
    return {"ulps": 200.0, "scale": float(np.abs(case.values).max() + error / ulp)}


# --- products -------------------------------------------------------------------------------------------


@every_case
def test_product_is_the_dense_matrix(i):
    case = cases()[i]
    rng = np.random.default_rng(i)
    flat, unravel = ravel_pytree(case.params)
    x = rng.normal(size=flat.size)
    x[case.prob.size :] = 0.0
    image = ravel_pytree(landscape.hvp(case.prob, case.params, unravel(x)))[0]
    expected = np.zeros(flat.size)
    expected[: case.prob.size] = case.dense @ x[: case.prob.size]
    close(image, expected, ulps=200, scale=np.abs(case.values).max() * np.linalg.norm(x))


def test_product_is_the_derivative_of_the_gradient():
    prob = problem("fl", "penalised", LABELS, 6)
    at, direction = random_point(prob), random_point(prob, 3)
    t = 1e-5
    ahead, behind = (
        jax.grad(prob)(Params(*(x + s * t * y for x, y in zip(at, direction, strict=True)))) for s in (1, -1)
    )
    for got, up, down in zip(landscape.hvp(prob, at, direction), ahead, behind, strict=True):
        np.testing.assert_allclose(got, (up - down) / (2 * t), atol=1e-8)  # central differences: t^2


def test_products_come_in_batches_and_compile_once(compilations):
    prob = problem("ls", "free", LABELS, 6)
    at = random_point(prob)
    rows = [random_point(prob, s) for s in range(3)]
    batch = Params(*(jnp.stack(x) for x in zip(*rows, strict=True)))
    many = landscape.hvp(prob, at, batch)
    for i, row in enumerate(rows):
        one = landscape.hvp(prob, at, row)
        for got, expected in zip(many, one, strict=True):
            close(got[i], expected, ulps=64)
    compilations()
    other = prob.replace(lam_W=np.float64(0.5), loss=losses.get("ls", alpha=0.3))
    landscape.hvp(other, at, rows[1])
    landscape.hvp(other, at, batch)
    assert compilations() == 0


@pytest.mark.parametrize(("relative", "critical"), [(1e-5, False), (1e-7, True)])
def test_critical_is_a_gradient_small_against_its_parts(relative, critical):
    """The parts that cancel are written out here; the bound between the two values is 1e-6."""
    prob = Problem.balanced("ls", K=4, d=6, n=3, lam_W=0.02, lam_H=0.005)
    optimum, step = theory.global_optimum(prob).params, random_point(prob, 2)

    def moved(t: float) -> tuple[Params, float]:
        at = Params(*(x + t * y for x, y in zip(optimum, step, strict=True)))
        G = np.asarray(prob.logit_gradient(at))
        parts = (G @ at.H.T, 0.02 * at.W, at.W.T @ G, 0.005 * at.H)
        grad = np.hypot.reduce([np.linalg.norm(x) for x in jax.grad(prob)(at)])
        return at, grad / sum(np.linalg.norm(x) for x in parts)

    at, got = moved(1e-5 * relative / moved(1e-5)[1])  # the gradient grows linearly
    assert got == pytest.approx(relative, rel=1e-2)
    assert hessian.is_critical(prob, at)[0] == critical
    if critical:
        assert hessian.check_critical(prob, at) > 0
    else:
        with pytest.raises(ValueError, match="expected a critical point"):
            landscape.escape_direction(prob, at)


# --- the whole spectrum -------------------------------------------------------------------------------


@every_case
def test_all_eigenvalues(i):
    case = cases()[i]
    ev = landscape.eigenvalues(case.prob, case.params, which="all")
    assert ev.multiplicities.sum() == ev.dimension == case.prob.size
    close(ev.expand(), case.values, **accuracy(case, ev.error))


@every_case
def test_decomposition_finds_what_coincides(i):
    case = cases()[i]
    at = structure(case.prob, case.params)
    if case.name.endswith("partial"):
        assert at.M < case.prob.N or case.prob.N == case.prob.K
        assert at.r == max(1, case.prob.d - 3)
    if case.name.endswith("solved") and case.prob.loss.convex:
        assert at.M == case.prob.K  # strict convexity in h
        assert at.r <= min(case.prob.d, case.prob.K)
    assert at.moved < 1e-9
    assert np.array_equal(np.sort(np.bincount(at.cluster)), np.sort(at.sizes))
    features = np.asarray(case.params.H).T
    assert np.abs(features - (at.h @ at.Q.T)[at.cluster]).max() < 1e-9


def test_samples_that_only_seem_to_coincide_stay_apart():
    """Two features of one class with the same random projection: neighbours when sorted, yet different."""
    prob = problem("ce", "free", LABELS, 6)
    along = np.random.default_rng(0).normal(size=6)  # the projection that `_clusters` sorts by
    H = np.array(random_point(prob, 7).H)
    apart = np.cross(along[:3], [1.0, 2.0, 3.0])
    H[:, 4] = H[:, 1] + np.concatenate([apart, np.zeros(3)])  # both of class 0
    assert along @ H[:, 4] == pytest.approx(along @ H[:, 1], abs=1e-12)
    case = Case(prob, "seeming", random_point(prob, 7)._replace(H=jnp.asarray(H)))
    assert LABELS[1] == LABELS[4] == 0
    assert structure(prob, case.params).M == prob.N
    ev = landscape.eigenvalues(prob, case.params, which="all")
    close(ev.expand(), case.values, **accuracy(case))


@pytest.mark.parametrize("name", ["ce", "ls", "fl", "mse"])
@pytest.mark.parametrize("regime", REGIMES)
def test_closed_form_is_found_at_the_optimum(name, regime):
    prob = Problem.balanced(name, K=5, d=8, n=3, lam_W=0.02, lam_H=0.004, **REGIMES[regime], **HYPER[name])
    closed = theory.hessian_spectrum(prob)
    ev = landscape.eigenvalues(prob, theory.global_optimum(prob).params, which="all")
    close(ev.expand(), np.sort(closed.expand()), ulps=500)
    assert ev.multiplicities[np.abs(ev.values) < 1e-12].sum() == closed.nullity
    np.testing.assert_allclose(ev.smallest_positive, closed.smallest_positive, rtol=1e-10)


@every_case
def test_eigenvalues_at_the_ends(i):
    case = cases()[i]
    whole = landscape.eigenvalues(case.prob, case.params, which="all")
    at = structure(case.prob, case.params)
    for which, part in (("smallest", slice(None, 3)), ("largest", slice(-3, None))):
        ev = landscape.eigenvalues(case.prob, case.params, 3, which)
        close(ev.values, whole.values[part], **accuracy(case))
        assert np.array_equal(ev.multiplicities, whole.multiplicities[part])
        core, times = spectrum.slices(at, 3, which)
        sliced = spectrum._gather(at, core, times, 3, which, "sliced")
        close(sliced.values, whole.values[part], ulps=2000, scale=np.abs(case.values).max())
        assert np.array_equal(sliced.multiplicities, whole.multiplicities[part])


@pytest.mark.parametrize("which", ["smallest", "largest"])
def test_a_slice_converges_cubically(which, monkeypatch):
    """Bisection alone would take fifty decompositions an eigenvalue; two more count its multiplicity."""
    prob = problem("ce", "free", LABELS, 6)
    at = structure(prob, random_point(prob))
    calls = []
    once = spectrum._Slicer.__call__
    monkeypatch.setattr(spectrum._Slicer, "__call__", lambda self, mu: calls.append(mu) or once(self, mu))
    values, _ = spectrum.slices(at, 4, which)
    assert len(values) == 4
    assert len(calls) <= 4 * (18 + 2)


@pytest.mark.parametrize("which", ["smallest", "largest"])
@pytest.mark.parametrize("j", [0, 7, 14])  # random ce, partial ls, solved fl
def test_lanczos_needs_no_structure(which, j):
    case = cases()[{0: 0, 7: 10, 14: 20}[j]]
    ev = landscape.eigenvalues(case.prob, case.params, 4, which, method="lanczos", tol=1e-9)
    scale = np.abs(case.values).max()
    expected = case.values[:4] if which == "smallest" else case.values[-4:]
    assert np.abs(ev.expand() - expected).max() <= max(ev.error, 1e-12 * scale)
    assert ev.error <= 1e-8 * scale * 10


def test_lanczos_repeats_a_degenerate_eigenvalue():
    prob = Problem.balanced("ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    ev = landscape.eigenvalues(prob, prob.zeros(), 5, method="lanczos")
    assert ev.values.shape == (1,)
    assert ev.multiplicities.tolist() == [5]  # of 18: as many as were asked for
    assert ev.values[0] == pytest.approx(-0.161847391838, abs=1e-9)  # A/2 - sqrt(...)


def test_lanczos_stays_orthogonal_to_what_is_deflated():
    """To any vector, not only to an eigenvector, from which rounding alone would lead back."""
    prob = problem("ce", "free", LABELS, 6)
    at, sign = random_point(prob), jnp.asarray(1.0)
    unit = lanczos._unit(random_point(prob, 9))
    locked = Params(*(x[None] for x in unit))
    start = lanczos._start(prob, at, locked, jnp.asarray(0))
    zero = jax.tree.map(jnp.zeros_like, start)
    state = lanczos._State(zero, start, jnp.zeros(()))
    basis, alphas, betas = [start], [], []
    for _ in range(6):
        state, alpha, beta = lanczos._advance(prob, at, locked, sign, state, steps=1)
        basis.append(state.new)
        alphas, betas = [*alphas, float(alpha[0])], [*betas, float(beta[0])]
    rows = np.stack([np.asarray(ravel_pytree(v)[0]) for v in basis])
    close(rows @ np.asarray(ravel_pytree(unit)[0]), np.zeros(7), ulps=64, scale=1.0)
    close(rows @ rows.T, np.eye(7), ulps=4096, scale=1.0)  # six steps lose few digits
    T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    size = prob.size
    H, V = landscape.dense(prob, at), rows[:6, :size]
    close(V @ H @ V.T, T, ulps=4096, scale=np.abs(alphas).max())
    # the second pass makes the same vectors: its sum with the weights s is the Ritz vector V' s
    s = np.linalg.eigh(T)[1][:, 0]
    weights = (jnp.asarray(alphas), jnp.asarray(betas), jnp.asarray(s))
    vector = lanczos._combine(prob, at, locked, sign, start, weights)[0]
    close(ravel_pytree(vector)[0][:size], s @ V, ulps=4096, scale=1.0)


def test_lanczos_agrees_with_arpack_on_the_same_product():
    prob = Problem.balanced("fl", K=5, d=8, n=6, lam_W=0.01, lam_H=0.02)
    at = random_point(prob)
    flat, unravel = ravel_pytree(at)
    operator = LinearOperator(
        (flat.size, flat.size),
        matvec=lambda x: np.asarray(ravel_pytree(landscape.hvp(prob, at, unravel(x)))[0]),
        dtype=np.float64,
    )
    expected = eigsh(operator, k=1, which="SA", return_eigenvectors=False, tol=1e-10)[0]
    value, residual, products = lanczos.lowest_value(prob, at, tol=1e-10)
    assert value == pytest.approx(expected, rel=1e-8)
    assert residual < 1e-7
    assert products < 2000


def test_singular_values_of_G_where_the_core_is_large(monkeypatch):
    prob = Problem.balanced("ce", K=6, d=9, n=2, lam_W=0.005, lam_H=0.01)
    saddle = landscape.descend(prob, prob.zeros()).stops[2].params
    whole = landscape.eigenvalues(prob, saddle, which="all")
    monkeypatch.setattr(spectrum, "DENSE_CORE", 0)
    ev = landscape.eigenvalues(prob, saddle, 1)
    assert ev.method == "singular values of G"
    close(ev.values, whole.values[:1], ulps=2000)
    assert ev.multiplicities[0] == whole.multiplicities[0]
    exact = landscape.eigenvalues(prob, saddle, 4, method="exact")
    close(exact.values, whole.values[:4], ulps=2000, scale=whole.values[-1])
    monkeypatch.setattr(spectrum, "SLICED_HEAD", 0)
    slow = landscape.eigenvalues(prob, saddle, 2)
    assert slow.method.startswith("Lanczos")
    assert slow.values[0] == pytest.approx(whole.values[0], abs=1e-8)


def test_rotations_and_permutations_leave_the_spectrum():
    prob = problem("fl", "free", LABELS, 6)
    at = random_point(prob, 5, rank=4, collapse=2)
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    turned = Params(at.W @ Q, Q.T @ at.H, at.b)
    order = rng.permutation(prob.N)
    shuffled = prob.replace(labels=np.asarray(prob.labels)[order])
    moved = Params(at.W, at.H[:, order], at.b + 2.5)  # a common shift of the bias, too
    expected = landscape.eigenvalues(prob, at, which="all")
    for p, x in ((prob, turned), (shuffled, moved)):
        ev = landscape.eigenvalues(p, x, which="all")
        close(ev.expand(), expected.expand(), ulps=500)
        assert tuple(landscape.inertia(p, x)) == tuple(landscape.inertia(prob, at))


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
    """MSE with kappa = 1: truncated spectra are a Grassmannian of critical points (THEORY, section 4)."""
    K, d, n, r = 4, 6, 2, 2
    prob = Problem.balanced("mse", K=K, d=d, n=n, lam_W=0.02, lam_H=0.01, kappa=1.0, beta=1.0, bias=False)
    stop = landscape.descend(prob, prob.zeros()).stops[r]
    got = landscape.inertia(prob, stop.params)
    assert got.neg == (K - r) * (d - r)
    assert got.symmetry == r * (r - 1) // 2 + r * (d - r)
    assert got.accidental == r * (K - r)


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
        b0 = 2 * kappa * beta / (2 * kappa + 2 * 3 + lam_b * 4)  # THEORY section 1, b0t
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
        assert sol.problem.N == 4
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
    """CE with K = 5, d = 2 < K - 1: a square with one class at the origin (THEORY, section 5)."""
    prob = Problem.balanced("ce", K=5, d=2, n=1, lam_W=0.01, lam_H=0.01)
    sols = ufm.solve_sweep(prob, seeds=range(60))
    spurious = int(np.argmin(np.abs(np.asarray(sols.objective) - 0.318778795422)))
    assert sols.objective[spurious] == pytest.approx(0.318778795422, abs=1e-11)
    road = landscape.descend(prob, sols[spurious].params)
    assert len(road.stops) == 1
    assert road.indices == [0]
    assert not road.certificate.is_global


# --- where the singular values of G do not have the smallest eigenvalue ---------------------------------


def steep(z, k):
    """Poly-1 with eps = 4: not convex where p_k < 3/8."""
    log_p = jax.nn.log_softmax(z)[k]
    return -log_p + 4 * (1 - jnp.exp(log_p))


@functools.cache
def beyond_G() -> dict[str, Case]:
    """Critical points at which an assumption of THEORY section 4 (iii) fails: a convex loss, |G| > lam."""
    loss = losses.custom(steep, shift_invariant=True)
    c = 0.97 * theory.threshold(Problem.balanced(loss, K=4, d=6, n=2)).C_tie / 3 / np.sqrt(2)
    concave = Problem.balanced(loss, K=4, d=6, n=2, lam_W=c / 1.4, lam_H=c * 1.4)
    saddles = landscape.critical_points(concave, families=["ETF + rank one"])
    saddle = next(p for p in saddles if np.linalg.matrix_rank(p.params.W, tol=1e-6) == 2)
    convex = Problem.balanced("ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    weak = convex.replace(lam_W=np.float64(0.4), lam_H=np.float64(0.3), lam_b=np.float64(1e-3))
    return {
        "convex": Case(concave, "convex", saddle.params),
        "|G| > lam": Case(weak, "|G| > lam", weak.zeros()),
        "|G| = lam": Case(convex, "|G| = lam", theory.global_optimum(convex).params),
    }


@pytest.mark.parametrize("assumption", ["convex", "|G| > lam", "|G| = lam"])
def test_the_smallest_eigenvalue_where_the_theorem_does_not_apply(assumption, monkeypatch):
    case = beyond_G()[assumption]
    at, values = structure(case.prob, case.params), case.values
    times = int((values < values[0] + 1e-9 * values[-1]).sum())
    wrong = spectrum._through_G(at)
    assert abs(wrong.values[0] - values[0]) > 1e-4 or wrong.multiplicities[0] != times
    lowest = spectrum.lowest_pair(case.prob, case.params, at, critical=True)[0]
    close(lowest, values[0], ulps=200, scale=values[-1])
    monkeypatch.setattr(spectrum, "DENSE_CORE", 0)  # as if the core were large
    ev = landscape.eigenvalues(case.prob, case.params, 1)
    close(ev.values, values[:1], ulps=2000, scale=values[-1])
    assert ev.multiplicities.tolist() == [times]


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
