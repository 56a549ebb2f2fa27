"""Families of critical points and `polish` against autodiff, the dense Hessian and closed forms.

The closed forms are those of docs/theory.md, sections 2.4, 4.3 and 4.5.
"""

from __future__ import annotations

import json
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from tolerances import close, eps

import ufm
from ufm import Params, Problem, landscape
from ufm.landscape import _polish, families
from ufm.landscape._polish import polish
from ufm.landscape.critical import CriticalPoints, classify, critical_points

QUICK = {"xla_backend_optimization_level": 0}


def problem(loss: str, *, labels: Any = None, **kw: Any) -> Problem:
    """Unequal penalties, shuffled labels."""
    names = ("K", "d", "n", "lam_W", "lam_H", "lam_b", "bias")
    given = {"lam_W": 4e-3, "lam_H": 9e-3} | {k: kw.pop(k) for k in names if k in kw}
    prob = Problem.balanced(loss, **given, **kw)
    order = np.random.default_rng(5).permutation(prob.N) if labels is None else labels
    return prob.replace(labels=prob.labels[order])


#: every loss, every regime of the bias; d > K, d = K, d = K - 1, d < K - 1; n > 1
TABLE = {
    "ce free": problem("ce", K=4, d=6, n=2),
    "ce penalised": problem("ce", K=4, d=4, n=3, lam_b=0.05),
    "ce small d": problem("ce", K=4, d=2, n=2),
    "ls absent": problem("ls", K=4, d=3, n=2, bias=False, alpha=0.2),
    "fl free": problem("fl", K=4, d=6, n=2, gamma=2.0),
    "mse free": problem("mse", K=4, d=6, n=2, beta=2.0),
    "mse penalised": problem("mse", K=4, d=6, n=2, beta=2.0, kappa=3.0, lam_b=0.1),
    "mse absent": problem("mse", K=4, d=6, n=2, beta=2.0, bias=False),
}
every_problem = pytest.mark.parametrize("name", TABLE)


@cache
def families_of(name: str) -> CriticalPoints:
    return critical_points(TABLE[name])


@jax.jit
def gradient(prob: Problem, params: Params) -> Params:
    return jax.grad(prob)(params)


def grad_norm(prob: Problem, params: Params) -> float:
    """|grad f| by automatic differentiation."""
    g = gradient(prob, params)
    return float(np.sqrt(sum(np.vdot(x, x) for x in (g if prob.bias else g[:2]))))


@partial(jax.jit, compiler_options=QUICK)
def hessian(prob: Problem, params: Params) -> jax.Array:
    x, unflatten = ravel_pytree(params)
    full = jax.hessian(lambda x: prob(unflatten(x)))(x)
    return full if prob.bias else full[: prob.size, : prob.size]


# --- every family ---------------------------------------------------------------------------------


@every_problem
def test_each_is_critical_to_rounding(name: str) -> None:
    prob = TABLE[name]
    for point in families_of(name):
        assert grad_norm(prob, point.params) <= 1e-12
        assert point.grad_norm <= 1e-12
        close(point.objective, float(prob(point.params)), ulps=64, scale=1.0)
        W, H, b = point.params
        close(prob.lam_W * W.T @ W, prob.lam_H * H @ H.T, ulps=1e5, scale=1.0)  # true at every critical point
        if prob.lam_b == 0 and prob.loss.shift_invariant:
            close(float(jnp.sum(b)), 0.0, ulps=64, scale=1.0)


@every_problem
def test_the_constructions_need_no_polish(name: str) -> None:
    """The scalar equations are those of the problem, not only close to them."""
    prob = TABLE[name]
    for family in families.FAMILIES[1:]:
        for label, params in () if family.reason(prob) else family.members(prob):
            assert grad_norm(prob, params) <= 1e-11, (family.name, label)


@every_problem
def test_the_index_is_that_of_the_dense_hessian(name: str) -> None:
    prob = TABLE[name]
    for point in families_of(name):
        values = np.linalg.eigvalsh(np.asarray(hessian(prob, point.params)))
        zero = np.abs(values) < 1e-10 * np.abs(values).max()
        assert point.index == int(((values < 0) & ~zero).sum()), point
        assert point.zeros == int(zero.sum()), point
        close(point.smallest, values[0], ulps=1e3, scale=np.abs(values).max())
        r, d = point.rank, prob.d
        shift = prob.bias and prob.lam_b == 0 and prob.loss.shift_invariant
        assert point.zeros - point.accidental == r * (r - 1) // 2 + r * (d - r) + shift
        assert point.rank == np.linalg.matrix_rank(point.params.W, tol=1e-8)


@every_problem
def test_one_of_each_orbit_in_ascending_order(name: str) -> None:
    points = families_of(name)
    values = np.array([point.objective for point in points])
    assert (np.diff(values) > -1e-12).all()
    same = np.flatnonzero(np.diff(values) < 1e-9)  # without a bias sub-ETF m=2 and grouped 2x2 share a value
    assert all(points[int(i)].index != points[int(i) + 1].index for i in same)
    assert same.size == (name == "ls absent")
    assert points[-1].family == "origin"
    assert {point.kind for point in points[1:]} == {"strict saddle"}


@every_problem
def test_theorem_2_over_the_families(name: str) -> None:
    """Convex loss, d >= K - 1 (K for MSE), or focal inside its region: the optimum, else a strict saddle."""
    prob, points = TABLE[name], families_of(name)
    if name == "ce small d":
        lowest = (points[0].family, points[0].kind)
        assert lowest == ("codes polygon 4", "local minimum")  # not known to be global
        assert "optimum" in dict(points.missing)
        assert max(point.rank for point in points) <= 2
        return
    assert points[0].kind == "global minimum"
    assert points[0].proved
    close(points[0].objective, ufm.theory.global_optimum(prob).objective, ulps=32, scale=1.0)
    for point in points[1:]:
        assert point.proved, point  # an explicit direction, found through a null vector of W
        assert point.smallest < -1e-6


@every_problem
def test_the_smallest_eigenvalue_is_that_of_theory(name: str) -> None:
    """(lam_W + lam_H)/2 - sqrt(((lam_W - lam_H)/2)^2 + |G|_op^2): docs/theory.md, section 4.3."""
    prob = TABLE[name]
    for point in families_of(name):
        if not prob.loss.convex or point.rank == prob.d or point.index == 0:
            continue
        G = np.linalg.norm(np.asarray(prob.logit_gradient(point.params)), 2)
        mean, half = (prob.lam_W + prob.lam_H) / 2, (prob.lam_W - prob.lam_H) / 2
        close(point.smallest, mean - np.hypot(half, G), ulps=256, scale=1.0)


# --- closed forms ---------------------------------------------------------------------------------


def named(name: str, family: str) -> Any:
    return next(point for point in families_of(name) if point.family == family)


def c_of(prob: Problem) -> float:
    return float(np.sqrt(prob.N / prob.K * prob.lam_W * prob.lam_H))


def entropy(p: Any) -> float:
    p = np.asarray(p)
    return float(-np.sum(p * np.log(p)))


@pytest.mark.parametrize(("name", "m"), [("ce free", 2), ("ce free", 3), ("ce penalised", 3), ("fl free", 3)])
def test_sub_etf_against_its_scalar_objective(name: str, m: int) -> None:
    """F(m, alpha, s) of docs/theory.md, section 2.4, minimised by scipy (one stationary point only)."""
    prob = TABLE[name]
    K, c, gamma = prob.K, c_of(prob), float(getattr(prob.loss, "gamma", 0.0))

    def h(p: float) -> float:
        return -((1 - p) ** gamma) * np.log(p)

    def objective(x: np.ndarray) -> float:
        a, s = x
        on = 1 / (1 + (m - 1) * np.exp(-a) + (K - m) * np.exp(-(a * (1 - 1 / m) + s)))
        off = 1 / (K - m + m * np.exp(s))
        penalty = c * (m - 1) * a + float(prob.lam_b) / 2 * s**2 * m * (K - m) / K
        return float(m / K * h(on) + (K - m) / K * h(off) + penalty)

    best = minimize(objective, [2.0, 0.0], tol=1e-14)
    point = named(name, f"sub-ETF m={m}")
    close(point.objective, best.fun, ulps=1e5)
    close(np.ptp(np.asarray(point.params.b)), abs(best.x[1]), ulps=1e9)
    assert point.rank == m - 1
    collapsed = np.linalg.norm(np.asarray(point.params.W), axis=1) < 1e-12
    assert collapsed.sum() == K - m


@pytest.mark.parametrize(("K", "m", "loss"), [(4, 2, "ls"), (6, 2, "ce"), (6, 3, "ce")])
def test_grouped_etf_in_closed_form(K: int, m: int, loss: str) -> None:
    """docs/theory.md, section 4.5: s = m c + alpha/M, f = log m + H_M(s), and its inertia."""
    prob = problem(loss, K=K, d=7, n=2)
    M, c = K // m, c_of(prob)
    s = m * c + float(getattr(prob.loss, "alpha", 0.0)) / M
    points = critical_points(prob, families=["grouped ETF"])
    point = next(point for point in points if point.family == f"grouped ETF {M}x{m}")
    close(point.objective, np.log(m) + entropy([1 - (M - 1) * s, *[s] * (M - 1)]), ulps=64)
    assert (point.index, point.rank) == ((K - M) * prob.d, M - 1)


@pytest.mark.parametrize("name", ["mse free", "mse absent"])
def test_truncated_spectra_in_closed_form(name: str) -> None:
    """docs/theory.md, section 4.5: f_r, (R-r)(d-r) negative and r (R-r) accidental zeros."""
    prob = TABLE[name]
    K, c, beta = prob.K, c_of(prob), float(prob.loss.beta)
    directions = K - prob.bias
    gain = (beta / np.sqrt(K) - c * np.sqrt(K) / 2) ** 2
    by_rank = {point.rank: point for point in families_of(name)}
    assert sorted(by_rank) == list(range(directions + 1))
    for r, point in by_rank.items():
        close(point.objective, beta**2 * directions / K - r * gain, ulps=64, scale=beta**2)
        assert point.index == (directions - r) * (prob.d - r)
        assert point.accidental == r * (directions - r)


@pytest.mark.parametrize("name", ["ce free", "ls absent", "fl free", "mse absent"])
def test_the_origin(name: str) -> None:
    prob, point = TABLE[name], families_of(name)[-1]
    K, root = prob.K, np.sqrt(prob.N / prob.K)
    p, gamma = 1 / K, float(getattr(prob.loss, "gamma", 0.0))
    eta = (1 - p) ** gamma + gamma * p * (1 - p) ** (gamma - 1) * np.log(K) if gamma else 1.0
    top = {"ce": 1.0, "ls": 1 - float(getattr(prob.loss, "alpha", 0.0)), "fl": eta}.get(prob.loss.name)
    top = 2 * float(prob.loss.beta) if top is None else top
    G = np.linalg.norm(np.asarray(prob.logit_gradient(point.params)), 2)
    close(G, top / (K * root), ulps=64)
    assert point.index == prob.d * (K - prob.loss.shift_invariant)
    assert point.rank == 0


def test_the_origin_of_unequal_counts() -> None:
    labels = np.array([0, 1, 1, 2, 0, 0, 2, 0])
    prob = Problem(loss="ce", labels=labels, d=4, lam_W=0.02, lam_H=0.03)
    points = critical_points(prob)
    assert [point.family.split()[0] for point in points] == ["optimum", "origin"]
    assert points[0].kind == "global minimum"
    origin = points[1]
    prior = np.log(prob.counts / prob.N)
    close(origin.params.b, prior - prior.mean(), ulps=64)
    close(origin.objective, entropy(prob.counts / prob.N), ulps=32)
    missing = dict(points.missing)
    assert set(missing) == set(families.NAMES) - {"optimum", "origin"}
    assert "equally many samples" in missing["sub-ETF"]
    penalised = critical_points(prob.replace(lam_b=0.5), families=["origin"])[0]
    assert grad_norm(prob.replace(lam_b=0.5), penalised.params) <= 1e-14


def test_focal_minima_and_the_maximum_between() -> None:
    """C_thr < C < C_spin: two margins are stationary, the larger is a minimum; both solve S(p) = C."""
    K = 20
    prob = problem("fl", K=K, d=21, n=2, lam_W=0.05, lam_H=0.05 * (1.20108 / 19 / 0.05) ** 2 / 2, gamma=3.0)
    threshold = ufm.theory.threshold(prob)
    assert threshold.C_thr < threshold.C < threshold.C_spin
    points = critical_points(prob, families=["origin", "neural collapse"])
    origin, outer, inner = sorted(points, key=lambda point: (point.rank, point.objective))
    profile = ufm.theory.scalar_profile(prob.loss, K)
    for point in (outer, inner):
        margin = float(point.family.split("a=")[1])
        close(-float(profile.slope(margin)), threshold.C, ulps=1e11)  # the name carries six digits
        close(point.objective, float(profile.value(margin)) + threshold.C * margin, ulps=1e6)
    assert (outer.index, origin.index) == (0, 0)
    assert inner.index == K  # the margin itself, and the standard representation
    assert outer.kind == origin.kind == "local minimum"


def test_a_partial_collapse_below_neural_collapse() -> None:
    """docs/theory.md, section 2.4: K = 20, gamma = 3, C = 1.20108, checked with a dense 860 x 860 Hessian."""
    lam = 1.20108 / 19
    prob = Problem.balanced("fl", K=20, d=21, n=1, lam_W=lam, lam_H=lam, gamma=3.0)
    collapse = critical_points(prob, families=["neural collapse"])[0]
    close(collapse.objective, 2.568462507026, ulps=1e4)
    found = [polish(prob, params) for params in families.rank_one_beside(prob, 17)]
    values = [float(prob(at.params)) for at in found]
    close(min(values), 2.568461934958, ulps=1e4)
    state = classify(prob, found[int(np.argmin(values))], "ETF + rank one m=17")
    assert (state.index, state.zeros, state.accidental, state.rank) == (0, 205, 0, 17)
    assert state.kind == "local minimum"
    assert "above simplex ETF of 18 classes" in state.why
    assert grad_norm(prob, state.params) <= 1e-12
    spectrum = landscape.eigenvalues(prob, state.params, which="all")
    close(spectrum.smallest_positive, 4.02e-6, ulps=1e-3 / eps())  # docs/theory.md, section 2.4


def test_labels_in_any_order_have_the_same_points() -> None:
    prob = problem("ce", K=4, d=6, n=2, labels=np.arange(8))
    for one, two in zip(critical_points(prob), families_of("ce free"), strict=True):
        assert (one.family, one.index, one.zeros) == (two.family, two.index, two.zeros)
        close(one.objective, two.objective, ulps=32, scale=1.0)


# --- polish ---------------------------------------------------------------------------------------


def shaken(params: Params, size: float, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    return Params(*(x + size * rng.normal(size=x.shape) for x in params))


@pytest.mark.parametrize("size", [1e-3, 1e-6])
@every_problem
def test_polish_comes_back_to_any_of_them(name: str, size: float) -> None:
    prob = TABLE[name]
    for point in families_of(name):
        start = shaken(point.params, size, seed=3)
        start = start if prob.bias else start._replace(b=jnp.zeros(prob.K))
        back = polish(prob, start)
        assert back.converged
        assert grad_norm(prob, back.params) <= 1e-12
        close(float(prob(back.params)), point.objective, ulps=64, scale=1 + point.objective)


@pytest.mark.parametrize("name", ["ce penalised", "fl free", "mse absent"])
def test_large_problems_take_minres(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_polish, "SMALL", 0)
    monkeypatch.setattr(_polish, "DENSE", 0)
    prob = TABLE[name]
    for point in families_of(name):
        start = shaken(point.params, 1e-4, seed=4)
        back = polish(prob, start if prob.bias else start._replace(b=jnp.zeros(prob.K)))
        assert back.converged, back
        close(float(prob(back.params)), point.objective, ulps=64, scale=1 + point.objective)


def test_polish_reaches_a_degenerate_point() -> None:
    """At c = 1/K the origin turns stable: the objective is quartic there and Newton only linear."""
    prob = Problem.balanced("ce", K=3, d=4, n=2, lam_W=1 / 9, lam_H=0.5)
    back = polish(prob, shaken(prob.zeros(), 1e-2))
    assert back.converged
    assert back.steps > 10
    assert np.abs(np.asarray(back.params.W)).max() < 1e-3


def test_polish_keeps_what_it_cannot_reach() -> None:
    prob = TABLE["ce free"]
    far = polish(prob, shaken(prob.zeros(), 3.0), max_steps=2)
    assert not far.converged
    assert "nearer" in far.message
    assert "nearer" in repr(far)
    assert np.isfinite(far.grad_norm)
    close(far.grad_norm, grad_norm(prob, far.params), ulps=1e4)
    huge = polish(prob, shaken(prob.zeros(), 1e200))
    assert not huge.converged
    floor = polish(prob, families_of("ce free")[1].params, tol=1e-300)  # asks for less than rounding allows
    assert floor.converged
    assert "converged" in repr(floor)


def test_polish_costs_the_same_at_any_n_and_d() -> None:
    sizes = set()
    for n, d in ((2, 6), (40, 50)):
        prob = problem("ce", K=4, d=d, n=n)
        sizes.add(len(_polish._start(prob, shaken(prob.zeros(), 1e-3)).gradient))
    assert sizes == {4 * (4 + 4) + 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tol": 0.0}, r"^tol: "),
        ({"tol": "small"}, r"^tol: "),
        ({"max_steps": 0}, r"^max_steps: "),
    ],
)
def test_polish_refuses(change: dict[str, Any], message: str) -> None:
    prob = TABLE["ce free"]
    with pytest.raises(ValueError, match=message):
        polish(prob, prob.zeros(), **change)
    with pytest.raises(ValueError, match=r"^W: expected shape"):
        polish(prob, prob.zeros()._replace(W=jnp.zeros((6, 4))))
    with pytest.raises(ValueError, match=r"^H: expected finite"):
        polish(prob, prob.zeros()._replace(H=jnp.full((6, 8), jnp.nan)))


# --- the records ----------------------------------------------------------------------------------


def test_the_table_prints_and_exports() -> None:
    points = families_of("mse free")
    text = repr(points)
    for word in ("family", "objective", "index", "origin", "strict saddles", "by symmetry + accidental"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 110
    exported = json.loads(json.dumps(points.to_dict(), allow_nan=False))
    assert len(exported["points"]) == len(points)
    assert exported["points"][0]["kind"] == "global minimum"
    assert "truncated" not in exported["missing"]
    assert len(points.where(kind="strict saddle")) == len(points) - 1
    assert len(points[1:]) == len(points) - 1
    assert isinstance(points[:1], CriticalPoints)
    assert points[0].is_minimum
    assert not points[-1].is_minimum
    assert points.where(index=0)[0] is points[0]
    assert type(points.__rich__()).__name__ == "Table"


def test_records_are_pytrees() -> None:
    points = families_of("ce free")
    same = jax.tree.map(lambda x: x, points)
    assert repr(same) == repr(points)
    assert "CriticalPoint" in repr(jax.tree.map(lambda _: None, points))
    assert "sub-ETF" in repr(jax.tree.map(lambda _: None, points[1]))
    assert "sub-ETF m=3: strict saddle" in repr(points[1])
    with pytest.raises(AttributeError):
        points[0].objective = 0.0


def test_families_are_chosen_by_name() -> None:
    prob = TABLE["ce free"]
    assert [p.family for p in critical_points(prob, families="origin")] == ["origin"]
    with pytest.raises(ValueError, match=r"^families: .*did you mean 'sub-ETF'"):
        critical_points(prob, families=["sub-etf"])
    with pytest.raises(ValueError, match=r"^tol: "):
        critical_points(prob, tol=-1.0)
    with pytest.raises(ValueError, match=r"^prob: expected one problem"):
        critical_points(prob.replace(lam_W=np.array([0.1, 0.2])))


def test_nothing_but_the_origin_at_strong_penalties() -> None:
    prob = problem("ce", K=4, d=5, n=2, lam_W=0.5, lam_H=0.3)
    points = critical_points(prob)
    assert [(point.family, point.kind) for point in points] == [("origin", "global minimum")]
    assert "no solution" in dict(points.missing)["sub-ETF"]


def test_a_loss_of_ones_own() -> None:
    def tempered(z: jax.Array, k: Any) -> jax.Array:
        return -jax.nn.log_softmax(2.0 * z)[k]

    loss = ufm.losses.custom(tempered, convex=True, shift_invariant=True)
    prob = Problem.balanced(loss, K=3, d=4, n=2, lam_W=0.02, lam_H=0.03)
    points = critical_points(prob, families=["origin", "neural collapse", "sub-ETF"])
    assert [point.index for point in points] == [0, 3, 8]
    assert all(grad_norm(prob, point.params) <= 1e-12 for point in points)

    def lopsided(z: jax.Array, k: Any) -> jax.Array:
        return -jax.nn.log_softmax(z * (1 + jnp.arange(z.shape[0])))[k]

    biased = prob.replace(loss=ufm.losses.custom(lopsided, convex=True))
    reasons = [family.reason(biased) for family in families.FAMILIES]
    assert reasons[0] == ""  # the origin
    assert sum("classes differently" in why for why in reasons) >= 4
