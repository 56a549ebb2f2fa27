"""The numerical search: it finds the families by itself, saddles of every index, known spurious minima."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tolerances import close

import ufm
from ufm import Params, Problem
from ufm.landscape import _levenberg, _orbits, _starts
from ufm.landscape.critical import CriticalPoints, critical_points
from ufm.landscape.search import _reduction, find_critical_points

UNEQUAL = {"lam_W": 4e-3, "lam_H": 9e-3}
#: shuffled labels; imbalanced ones
SHUFFLED = np.array([2, 0, 1, 1, 3, 2, 0, 3])
IMBALANCED = np.array([2, 0, 1, 1, 3, 0, 0, 3])
CE = Problem(loss="ce", labels=SHUFFLED, d=6, **UNEQUAL)


@cache
def searched() -> CriticalPoints:
    return find_critical_points(CE, known=False, starts=768)


def test_the_families_are_found_without_being_told() -> None:
    """K = 4, d = 6, n = 2: each family, with its index."""
    found = [(point.objective, int(point.index)) for point in searched()]
    known = critical_points(CE)
    assert len(known) >= 6
    for point in known:
        assert any(abs(f - point.objective) < 1e-12 and index == point.index for f, index in found), (
            point.family
        )
    assert len(found) > len(known)  # and there are others
    assert {point.family for point in searched()} == {"search"}


def test_theorem_2_over_all_that_is_found() -> None:
    """A convex loss, d >= K - 1: one minimum, certified; every other point a strict saddle, with its
    direction, and the smallest eigenvalue (lam_W + lam_H)/2 - sqrt(((lam_W - lam_H)/2)^2 + |G|_op^2).
    """
    first, *others = searched()
    assert (first.kind, first.index, first.proved) == ("global minimum", 0, True)
    mean, half = (CE.lam_W + CE.lam_H) / 2, (CE.lam_W - CE.lam_H) / 2
    for point in others:
        assert point.kind == "strict saddle"
        assert point.proved
        G = np.linalg.norm(np.asarray(CE.logit_gradient(point.params)), 2)
        close(point.smallest, mean - np.hypot(half, G), ulps=256, scale=1.0)


def test_every_point_is_critical_and_its_index_the_dense_one() -> None:
    _, unflatten = ravel_pytree(CE.zeros())
    curve = jax.jit(jax.hessian(lambda x: CE(unflatten(x))))
    slope = jax.jit(jax.grad(CE))
    for point in searched():
        assert np.linalg.norm(ravel_pytree(slope(point.params))[0]) <= 1e-12
        values = np.linalg.eigvalsh(np.asarray(curve(ravel_pytree(point.params)[0])))
        r = point.rank
        assert point.index == int((values < -1e-10).sum())
        assert point.zeros == int((np.abs(values) < 1e-10).sum()) == r * (r - 1) // 2 + r * (6 - r) + 1


def test_the_same_seed_finds_the_same(compilations: Any) -> None:
    compilations()
    again = find_critical_points(CE, known=False, starts=768)
    assert compilations() == 0
    for one, two in zip(searched(), again, strict=True):
        assert (one.objective, one.start, int(one.hits)) == (two.objective, two.start, int(two.hits))
        assert one.start.startswith("seed 0, start ")
        assert one.hits > 0
    other = CE.replace(lam_W=6e-3, lam_H=7e-3)  # penalties and seeds are leaves
    changed = find_critical_points(other, known=False, starts=64, seed=3)
    assert compilations() == 0
    assert all(point.start.startswith("seed 3") for point in changed)


def test_known_points_keep_their_names() -> None:
    found = find_critical_points(CE, starts=128)
    names = [point.family for point in found]
    for family in critical_points(CE):
        assert family.family in names
    assert "search" in names
    text = repr(found)
    assert "hits" in text
    assert "starts arrived" in text
    assert "36 unknowns" in text


def test_spurious_minima_below_d_k_minus_1() -> None:
    """docs/theory.md, section 5.3: K = 5, d = 2, two minima that are strict modulo rotations."""
    prob = Problem.balanced("ce", K=5, d=2, n=1, lam_W=0.02, lam_H=0.005)
    found = find_critical_points(prob, known=False, starts=1536)
    minima = found.where(index=0)
    close([point.objective for point in minima], [0.308543686679, 0.318778795422], ulps=1e4)
    assert [point.kind for point in minima] == ["local minimum"] * 2  # no certificate closes here
    assert all(point.accidental == 0 for point in minima)
    assert min(point.index for point in found if not point.is_minimum) == 1  # the pass between them


def test_manifolds_of_critical_points_count_once() -> None:
    """MSE, kappa = 1, no bias: any projector of rank r, a Grassmannian: docs/theory.md, section 4.5."""
    prob = Problem(loss=ufm.losses.mse(1.0, 2.0), labels=SHUFFLED, d=5, bias=False, **UNEQUAL)
    found = find_critical_points(prob, known=False, starts=192)
    assert [point.rank for point in found] == [4, 3, 2, 1, 0]
    assert [point.accidental for point in found] == [r * (4 - r) for r in (4, 3, 2, 1, 0)]
    assert [point.index for point in found] == [(4 - r) * (5 - r) for r in (4, 3, 2, 1, 0)]
    assert sum(int(point.hits) for point in found) > 100


def test_focal_searches_the_samples() -> None:
    prob = Problem(loss=ufm.losses.focal(3.0), labels=[2, 0, 1, 1, 2, 0], d=4, **UNEQUAL)
    found = find_critical_points(prob, known=False, starts=192)
    assert "samples" in found.remarks[0]
    values = [point.objective for point in found]
    for point in critical_points(prob):
        assert np.abs(np.array(values) - point.objective).min() < 1e-12, point.family
    assert _reduction(prob, None).shape.M == 6
    assert _reduction(prob, True).shape.M == _reduction(CE, None).shape.M - 1 == 3


def test_unequal_counts() -> None:
    prob = Problem(loss="ce", labels=IMBALANCED, d=6, lam_b=0.02, **UNEQUAL)
    found = find_critical_points(prob, starts=128)
    assert found[0].proved
    assert found[0].kind == "global minimum"
    assert {point.kind for point in found[1:]} == {"strict saddle"}
    assert found[-1].family == "origin"
    close(found[0].objective, float(ufm.solve(prob, ufm.init(prob)).objective), ulps=64, scale=1.0)


# --- the parts ------------------------------------------------------------------------------------


def point_of(prob: Problem, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    shapes = ((prob.K, prob.d), (prob.d, prob.N), (prob.K,))
    return Params(*(rng.normal(size=shape) for shape in shapes))


@pytest.mark.parametrize(("labels", "collapsed"), [(IMBALANCED, True), (SHUFFLED, False)])
def test_the_reduced_problem_is_the_problem(labels: np.ndarray, collapsed: bool) -> None:
    prob = Problem(loss="fl", labels=labels, d=3, lam_b=0.1, **UNEQUAL)
    red = _levenberg.reduction(prob, collapsed)
    x = np.random.default_rng(1).normal(size=red.shape.size)
    params = red.decode(x)
    reduced = jax.jit(jax.value_and_grad(_levenberg.objective, 2), static_argnums=1)
    value, slope = reduced(red.merged, red.shape, x)
    close(float(value), float(prob(Params(*map(jnp.asarray, params)))), ulps=64)
    V, F, b = red.split(np.asarray(slope))
    full = jax.jit(jax.grad(prob))(Params(*map(jnp.asarray, params)))
    close(V / 1.0, np.asarray(full.W) / red.ratio, ulps=256, scale=1.0)
    close(b, full.b, ulps=256, scale=1.0)
    close(np.linalg.norm(F), red.ratio * np.linalg.norm(np.asarray(full.H)), ulps=256, scale=1.0)
    again = red.decode(red.encode(params))
    close(again.W @ again.H, params.W @ params.H, ulps=256)


@pytest.mark.parametrize("labels", [SHUFFLED, IMBALANCED])
def test_one_orbit_is_one_point(labels: np.ndarray) -> None:
    """Rotations, exchanges of samples, the free shift, and of classes with equally many samples."""
    prob = Problem(loss="ce", labels=labels, d=5, **UNEQUAL)
    x, rng = point_of(prob), np.random.default_rng(2)
    Q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    classes = np.arange(4)
    pair = np.flatnonzero(prob.counts == prob.counts[1])[:2]
    classes[pair] = pair[::-1]
    order = np.empty(prob.N, dtype=int)
    for k in range(4):  # the samples of class k from those of its partner, shuffled
        order[labels == k] = rng.permutation(np.flatnonzero(labels == classes[k]))
    moved = Params(x.W[classes] @ Q, Q.T @ x.H[:, order], x.b[classes] + 3.0)
    f = float(prob(Params(*map(jnp.asarray, x))))
    one, two = _orbits.fingerprint(prob, x, f), _orbits.fingerprint(prob, moved, f)
    assert one.matches(two)
    close(one.singular, np.linalg.svd(x.W @ x.H, compute_uv=False), ulps=64)
    assert _orbits.equivalent(_orbits.logits(prob, x), _orbits.logits(prob, moved))
    other = Params(x.W, x.H * (1 + 1e-3 * (np.arange(prob.N) == 0)), x.b)
    assert not _orbits.equivalent(_orbits.logits(prob, x), _orbits.logits(prob, other))


def test_classes_of_unequal_size_are_not_exchanged() -> None:
    prob = Problem(loss="ce", labels=[0, 0, 1, 2], d=3, **UNEQUAL)
    Z = np.diag([1.0, 2.0, 3.0])
    H = Z[:, np.asarray(prob.labels)]
    x = Params(np.eye(3), H, np.zeros(3))
    swap = np.array([1, 0, 2])
    moved = Params(np.eye(3), Z[swap][:, swap][:, np.asarray(prob.labels)], np.zeros(3))
    assert not _orbits.equivalent(_orbits.logits(prob, x), _orbits.logits(prob, moved))
    fair = Problem(loss="ce", labels=[0, 1, 2], d=3, **UNEQUAL)
    cut = [H[:, [0, 2, 3]], moved.H[:, [0, 2, 3]]]
    one, two = (_orbits.logits(fair, Params(np.eye(3), h, np.zeros(3))) for h in cut)
    assert _orbits.equivalent(one, two)


@pytest.mark.parametrize("kind", _starts.FRESH)
def test_symmetries_of_a_start_survive_the_search(kind: Any) -> None:
    """Columns that are zero stay exactly zero: the rank never grows."""
    red = _levenberg.reduction(CE, True)
    rng = np.random.default_rng(3)
    x = np.stack([kind(red, rng, 1.0) for _ in range(64)])
    assert np.isfinite(x).all()
    ends, _, _ = _levenberg.run(red.merged, x, np.arange(64) % 2 == 0, np.int64(20), shape=red.shape)
    for start, end in zip(x, np.asarray(ends), strict=True):
        unused = ~np.concatenate(red.split(start)[:2]).any(axis=0)
        assert not np.concatenate(red.split(end)[:2])[:, unused].any()


@pytest.mark.parametrize("seed", range(8))
def test_symmetric_starts_are_symmetric(seed: int) -> None:
    red = _levenberg.reduction(CE, True)
    x = _starts.symmetric(red, np.random.default_rng(seed), 1.0)
    V, F, _ = red.split(x)
    Z = F @ V.T
    orders = np.array(list(np.ndindex(4, 4, 4, 4)))
    orders = orders[(np.sort(orders, axis=1) == np.arange(4)).all(axis=1)]
    same = [np.abs(Z[np.ix_(p, p)] - Z).max() < 1e-12 for p in orders]
    assert sum(same) > 1  # more than the identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": 0}, r"^starts: "),
        ({"seed": -1}, r"^seed: "),
        ({"known": 1}, r"^known: "),
        ({"collapsed": "yes"}, r"^collapsed: "),
        ({"tol": 0.0}, r"^tol: "),
    ],
)
def test_misuse_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_critical_points(CE, **change)


def test_too_large_a_problem_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^prob: expected at most 1000 unknowns.*collapsed=True"):
        find_critical_points(Problem.balanced("fl", K=10, d=20, n=50))
    with pytest.raises(ValueError, match=r"^prob: expected at most 1000 unknowns.*critical_points"):
        find_critical_points(Problem.balanced("ce", K=40, d=50, n=2))
    with pytest.raises(ValueError, match=r"^prob: expected one problem"):
        find_critical_points(CE.replace(lam_H=np.array([0.1, 0.2])))


def test_equal_signatures_are_not_enough() -> None:
    """Two triangles and a hexagon: every class sees the same logits, and no permutation exists."""
    ring, triangles = np.zeros((6, 6)), np.kron(np.eye(2), 1 - np.eye(3))
    for k in range(6):
        ring[k, (k + 1) % 6] = ring[(k + 1) % 6, k] = 1.0
    prob = Problem.balanced("ce", K=6, d=6, n=2, **UNEQUAL)
    points = [Params(np.eye(6), np.tile(Z, 2), np.zeros(6)) for Z in (ring, triangles)]
    one, two = (_orbits.logits(prob, x) for x in points)
    assert not _orbits.equivalent(one, two)
    order = np.random.default_rng(0).permutation(6)
    moved = Params(np.eye(6), np.tile(ring[np.ix_(order, order)], 2), np.zeros(6))
    assert _orbits.equivalent(one, _orbits.logits(prob, moved))
