"""Hessian products, the decomposition and eigenvalues, against the dense Hessian."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hessian_cases import HYPER, LABELS, REGIMES, Case, accuracy, cases, every_case, problem, random_point
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh
from tolerances import close

import ufm
from ufm import Params, Problem, landscape, losses, theory
from ufm.hessian import lanczos, spectrum
from ufm.hessian import product as hessian
from ufm.hessian.structure import structure

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


# --- where the singular values of G do not have the smallest eigenvalue ---------------------------------


def steep(z, k):
    """Poly-1 with eps = 4: not convex where p_k < 3/8."""
    log_p = jax.nn.log_softmax(z)[k]
    return -log_p + 4 * (1 - jnp.exp(log_p))


@functools.cache
def beyond_G() -> dict[str, Case]:
    """Points at which an assumption of docs/theory.md, section 4.3, fails: a convex loss, |G| > lam."""
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
    lowest = spectrum.lowest_pair(at, case.params, critical=True).value
    close(lowest, values[0], ulps=200, scale=values[-1])
    monkeypatch.setattr(spectrum, "DENSE_CORE", 0)  # as if the core were large
    ev = landscape.eigenvalues(case.prob, case.params, 1)
    close(ev.values, values[:1], ulps=2000, scale=values[-1])
    assert ev.multiplicities.tolist() == [times]


@pytest.mark.parametrize(
    ("name", "model"), [("unit vectors", "spheres"), ("some features at their bound", "nonnegative")]
)
def test_the_lowest_eigenvector_without_structure_is_one_of_all_variables(name, model):
    """It has coordinates of its own, tangent to spheres or off the bounds."""
    model = ufm.models.spheres(scale=3.0) if model == "spheres" else model
    penalties = {"lam_W": 3e-2, "lam_H": 5e-3}
    prob = Problem.from_counts(
        "ce", counts=(3, 1, 2), d=4, **penalties, bias=name != "unit vectors", model=model
    )
    at = ufm.init(prob, seed=1, scale=1.0)
    if name != "unit vectors":
        at = at._replace(H=jnp.where(jnp.arange(24).reshape(4, 6) % 3 == 1, 0.0, at.H))
    found = spectrum.lowest_without_structure(prob, at)
    free = hessian.off_bounds(prob, at)
    v, image = (
        ravel_pytree(free(x))[0] for x in (found.direction, hessian.product(prob, at)(found.direction))
    )
    np.testing.assert_allclose(ravel_pytree(found.direction)[0], v)
    close(image, found.value * v, ulps=1e4, scale=np.linalg.norm(v))
    assert np.linalg.norm(v) > 0
