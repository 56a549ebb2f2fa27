"""Proofs against closed forms at 60 digits, autodiff, and points where there is nothing to prove."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from rigour_instances import (
    DPS,
    HYPER,
    QUICK,
    as_jax,
    balanced,
    contains,
    every_loss,
    every_regime,
    moved,
    optimal_value,
    optimum,
    stationary,
    sub_etf,
)
from tolerances import close

import ufm
from ufm import Params, Problem, losses

flint = pytest.importorskip("flint")

from ufm.rigour import balls, exact, newton  # noqa: E402
from ufm.rigour import proofs as rigour  # noqa: E402
from ufm.rigour.proofs import prove_below, prove_critical_point, prove_negative_curvature  # noqa: E402

# --- ball arithmetic --------------------------------------------------------------------------------


@every_loss
def test_losses_in_balls_enclose_value_gradient_and_hessian(name: str) -> None:
    """Against autodiff in float64, and the value at 60 digits."""
    loss = losses.get(name, **HYPER[name])
    enclosed, rng = balls.loss_in_balls(loss), np.random.default_rng(0)
    for scale in (0.1, 1.0, 6.0):
        z, k = scale * rng.normal(size=5), int(rng.integers(5))
        with flint.ctx.workprec(200):
            at = balls.vector(z)
            value, slope, curve = enclosed.value(at, k), enclosed.gradient(at, k), enclosed.hessian(at, k)
            inside = [x + flint.arb(0, 1e-3) for x in at]
            assert all(a.contains(b) for a, b in zip(enclosed.gradient(inside, k), slope, strict=True))
            assert enclosed.value(inside, k).contains(value)
        expected = _jet(loss, z, k)
        close(float(value), expected[0], ulps=32)
        close(balls.middle(slope), expected[1], ulps=64)
        close(balls.middle(np.array(curve)), expected[2], ulps=256)
        with mp.workdps(DPS):
            assert mp.almosteq(mp.mpf(value.str(45, radius=False)), _loss_by_hand(name, z, k), 1e-40)


@partial(jax.jit, compiler_options=QUICK)
def _jet(f: Any, x: jax.Array, *rest: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    return f(x, *rest), jax.grad(f)(x, *rest), jax.hessian(f)(x, *rest)


def _loss_by_hand(name: str, z: np.ndarray, k: int) -> Any:
    with mp.workdps(DPS):
        z = [mp.mpf(x) for x in z.tolist()]
        log_p = [x - mp.log(mp.fsum(mp.exp(y) for y in z)) for x in z]
        if name == "mse":
            return 2 * (z[k] - mp.mpf(1.5)) ** 2 + mp.fsum(x**2 for j, x in enumerate(z) if j != k)
        if name == "ls":
            alpha = mp.mpf(0.2)
            return -(1 - alpha) * log_p[k] - alpha / len(z) * mp.fsum(log_p)
        return -((1 - mp.exp(log_p[k])) ** (mp.mpf(2.5) if name == "fl" else 0)) * log_p[k]


@pytest.mark.parametrize(
    ("name", "regime", "r"),
    [
        ("ce", "free", 2),
        ("ls", "penalised", 3),
        ("fl", "absent", 1),
        ("fl", "free", 0),
        ("mse", "penalised", 2),
    ],
)
def test_the_reduced_problem_has_the_derivatives_of_its_objective(name: str, regime: str, r: int) -> None:
    """Groups of 3, 1 and 2 samples of classes 1, 0 and 1, against the full problem through autodiff."""
    prob, weights = balanced(name, regime, K=3, d=r + 1), (3, 1, 2)
    prob = Problem(
        losses.get(name, **HYPER[name]), [1, 1, 1, 0, 2, 2], d=r or 1, lam_W=0.3, lam_H=0.2, lam_b=prob.lam_b,
        bias=prob.bias,
    )  # fmt: skip
    owner = np.repeat(np.arange(3), weights)
    lam_W, lam_H, lam_b = exact.penalties(prob)
    problem = newton.Reduced(
        balls.loss_in_balls(prob.loss), (1, 0, 2), weights, 3, r, lam_W, lam_H, lam_b, prob.bias,
        prob.bias and prob.lam_b == 0 and prob.loss.shift_invariant,
    )  # fmt: skip

    def full(x: jax.Array) -> jax.Array:
        A, B = x[: 3 * r].reshape(3, r), x[3 * r : 6 * r].reshape(3, r).T
        b = x[6 * r :] if prob.bias else jnp.zeros(3)
        if r == 0:
            A, B = jnp.zeros((3, 1)), jnp.zeros((1, 3))
        return prob(Params(A, B[:, owner], b))

    x = np.random.default_rng(1).normal(size=problem.size)
    at, expected = balls.vector(x), _jet(jax.tree_util.Partial(full), jnp.asarray(x))
    close(float(newton.objective(problem, at)), expected[0], ulps=64)
    close(balls.middle(newton.gradient(problem, at)), expected[1], ulps=64)
    close(balls.middle(newton.hessian(problem, at)), expected[2], ulps=256)
    T = np.asarray(newton.tangents(problem, x), dtype=float)
    assert T.shape == (problem.size, problem.gauge)
    close(np.asarray(expected[1]) @ T, np.zeros(problem.gauge), ulps=64, scale=10.0)


@pytest.mark.parametrize("digits", [4, 12, 30])
def test_decimals_enclose_outwards_and_tightly(digits: int) -> None:
    rng = np.random.default_rng(0)
    ends = [*rng.normal(size=20) * 10.0 ** rng.integers(-40, 40, size=20), 1.0, -1.0, 999.99999, 0.1, 1e-5]
    for x in ends:
        with flint.ctx.workprec(300):
            inner, wide = balls.ball(float(x)), balls.ball(float(x)) * (1 + flint.arb(0, 1e-10))
        for b in (inner, wide):
            low, high = (
                Fraction(balls.decimal_below(b, digits)),
                Fraction(balls.decimal_above(b, digits)),
            )
            assert low <= balls.fraction(b.lower()) <= balls.fraction(b.upper()) <= high
            width = balls.fraction(b.upper()) - balls.fraction(b.lower())
            assert high - low <= width + 2 * Fraction(10) ** (1 - digits) * abs(Fraction(float(x)))
    assert (balls.decimal_above(flint.arb(0), 4), balls.decimal_above(flint.arb("nan"), 4)) == ("0", "nan")


def test_what_is_not_finite_is_never_small() -> None:
    nan, inf = flint.arb("nan"), flint.arb.pos_inf()
    for bad in (nan, inf):
        assert not balls.below(bad, balls.ball(1))
        assert balls.largest([balls.ball(1), bad, balls.ball(2)]) == inf
        assert balls.row_sums(flint.arb_mat(1, 2, [bad, 0])) == inf


# --- critical points ----------------------------------------------------------------------------------


@every_loss
@every_regime
@pytest.mark.parametrize("K", [3, 5])
def test_the_optimum_is_proved(name: str, regime: str, K: int) -> None:
    prob = balanced(name, regime, K=K)
    proof = prove_critical_point(prob, optimum(prob), eps=1e-12)
    assert proof.proved, proof
    assert Fraction(proof.bound("distance").upper) < Fraction("1e-13")
    assert Fraction(proof.bound("radius").upper) < Fraction("1e-55")
    with mp.workdps(DPS):
        assert contains(proof.bound("objective"), optimal_value(prob))


def test_the_polished_point_is_critical_at_60_digits() -> None:
    """The gradient of the full problem, written out, at the exact rationals; and eps = 1e-30 around them."""
    prob = balanced("ce", "penalised", K=3)
    Q = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]  # a span that no floats span
    x = optimum(prob)._replace(W=optimum(prob).W @ Q, H=Q.T @ optimum(prob).H)
    proof = prove_critical_point(prob, x)
    W, H, b = proof.point
    labels, N = np.asarray(prob.labels), prob.N
    assert (W.shape, H.shape, b.shape) == ((3, 5), (5, 6), (3,))
    lam_W, lam_H, lam_b = (Fraction(float(x)) for x in (prob.lam_W, prob.lam_H, prob.lam_b))
    with mp.workdps(DPS):
        Z = [[_mpf(x) for x in row] for row in (W @ H + b[:, None]).tolist()]
        G = np.empty((3, N), dtype=object)
        for j in range(N):
            total = mp.fsum(mp.exp(Z[k][j]) for k in range(3))
            for k in range(3):
                G[k, j] = Fraction(mp.nstr((mp.exp(Z[k][j]) / total - int(labels[j] == k)) / N, DPS))
    slopes = [G @ H.T + lam_W * W, W.T @ G + lam_H * H, G.sum(axis=1) + lam_b * b]
    assert max(abs(x) for s in slopes for x in s.ravel()) < Fraction("1e-50")
    again = prove_critical_point(prob, proof.point, eps=1e-30)
    assert again.proved
    assert Fraction(again.bound("distance").upper) < Fraction("1e-50")
    assert not prove_critical_point(prob, x, eps=1e-30).proved  # floats are not that near


def _mpf(x: Fraction) -> Any:
    return mp.mpf(x.numerator) / x.denominator


@every_loss
def test_the_proof_does_not_depend_on_the_orbit(name: str) -> None:
    """Another rotation of the features, and a shift of the bias where nothing holds it."""
    prob = balanced(name)
    W, H, b = (np.asarray(x) for x in optimum(prob))
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(prob.d, prob.d)))[0]
    shift = 0.7 if prob.loss.shift_invariant else 0.0
    values = [prove_critical_point(prob, Params(*p)) for p in ((W, H, b), (W @ Q, Q.T @ H, b + shift))]
    assert all(proof.proved for proof in values)
    low, high = (Fraction(values[i].bound("objective")[i + 2]) for i in (0, 1))
    assert low <= high


def test_unequal_counts_and_a_solver_s_point() -> None:
    labels = np.random.default_rng(0).permutation([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3])
    prob = Problem("ls", labels, d=5, lam_W=0.02, lam_H=0.004, lam_b=0.01)
    sol = ufm.solve(prob, ufm.init(prob, seed=1), tol=1e-11)
    proof = prove_critical_point(prob, sol.params)
    assert proof.proved, proof
    assert abs(Fraction(proof.bound("objective").lower) - Fraction(float(sol.objective))) < Fraction("1e-13")


def test_features_that_do_not_coincide_are_all_unknowns() -> None:
    prob = balanced("ce", K=3)
    W, H, b = (np.asarray(x) for x in optimum(prob))
    inside = np.linalg.svd(W)[2][0]  # a unit vector of the row space
    sign = [1 if k not in prob.labels[:j] else -1 for j, k in enumerate(prob.labels)]
    H = H + 1.3e-9 * inside[:, None] * sign  # the two of a class apart by more than eps/(4 sqrt K)
    proof = prove_critical_point(prob, Params(W, H, b), eps=1e-8)
    assert "6 distinct features of rank 2" in proof.why
    assert proof.proved
    assert 1.3e-9 * np.sqrt(6) * 0.999 < float(proof.bound("distance").upper) < 1.3e-9 * np.sqrt(6) * 1.001


@every_regime
def test_saddles_are_proved(regime: str) -> None:
    """The origin; and three of four classes in a simplex, the other at zero, polished from a rough guess."""
    prob = balanced("fl", regime)
    assert prove_critical_point(prob, prob.zeros(), eps=1e-15).proved
    guess = sub_etf(prob, 3, *stationary(prob, 3))
    proof = prove_critical_point(prob, guess, eps=1e-5)
    assert proof.proved, proof
    assert "rank 2" in proof.why


def test_what_is_no_critical_point_is_not_proved() -> None:
    prob = balanced("ce")
    x = optimum(prob)
    near = prove_critical_point(prob, moved(x, 1e-5), eps=1e-7)
    assert not near.proved
    assert "no critical point is found within eps" in near.why
    assert prove_critical_point(prob, moved(x, 1e-5), eps=1e-3).proved
    far = prove_critical_point(prob, ufm.init(prob, seed=0, scale=1.0), eps=1e-2)
    assert not far.proved
    assert "|grad f| = " in far.why
    assert (far.bounds, far.point) == ((), None)
    edge = prove_critical_point(prob, moved(x, 1e-5), eps=5e-5)  # Newton stays near, the distance is larger
    assert not edge.proved


def test_degenerate_points_are_not_proved() -> None:
    """Two of four directions on: MSE with kappa = 1 has a Grassmannian of such points."""
    prob = Problem.balanced("mse", K=4, d=6, n=2, lam_W=0.02, lam_H=0.005, bias=False, kappa=1.0, beta=1.0)
    a, ratio = 1 - np.sqrt(2 * 0.02 * 0.005) * 4 / 2, (2 * 0.005 / 0.02) ** 0.25
    root = np.sqrt(a) * np.eye(6)[:, :2] @ np.eye(4)[:2]
    x = Params(ratio * root.T, (root / ratio)[:, prob.labels], np.zeros(4))
    slope = jax.grad(prob)(as_jax(x))
    assert max(float(jnp.abs(g).max()) for g in slope) < 1e-15
    proof = prove_critical_point(prob, x)
    assert not proof.proved
    assert "zero mode that no symmetry explains" in proof.why


def test_the_krawczyk_test_refuses_a_wrong_inverse() -> None:
    """The polished point is fine: only the preconditioner is turned away, and nothing may be claimed."""
    prob = balanced("ce", K=3)
    with rigour._precision(50):
        problem, _, _, start = exact.reduce(prob, exact.exact(prob, optimum(prob)), 1e-8)
        good = newton.polish(problem, start, reach=1e-6)
        assert newton.enclose(problem, good).why == ""
        assert "does not contract" in newton.enclose(problem, good._replace(inverse=good.inverse.T * 3)).why
        for share, proved in ((0.5, True), (0.1, False)):  # |I - C DPhi| = 0.5 and 0.9, rho = 4 residuals
            slow = newton.enclose(problem, good._replace(inverse=share * good.inverse))
            close(float(slow.contraction), 1 - share, ulps=1e5)
            assert (slow.why == "") == proved
        assert "not proved regular" in newton._verdict(good, True, False)
        turned = good._replace(frame=np.roll(good.frame, 1, axis=0) * 1e-3)
        assert newton.enclose(problem, turned).why != ""
        far = good._replace(x=[x + balls.ball(0.1) for x in good.x])
        assert newton.enclose(problem, far).why != ""


def test_a_frame_across_the_orbit_is_caught() -> None:
    """Where T(x)'T0 is singular the multipliers need not vanish."""
    prob = balanced("ce", "penalised", K=3)
    with rigour._precision(50):
        problem, _, _, start = exact.reduce(prob, exact.exact(prob, optimum(prob)), 1e-8)
        good = newton.polish(problem, start, reach=1e-6)
        T = newton.tangents(problem, np.array(balls.middle(good.x)))
        away = np.linalg.svd(T)[0][:, 1:2]  # orthogonal to the orbit
        cube = [flint.arb(x, 1e-12) for x in good.x]
        assert newton._gauge_defect(problem, cube, good.frame.astype(object)) < 1
        assert not newton._gauge_defect(problem, cube, away.astype(object)) < 1


# --- the record, and misuse -------------------------------------------------------------------------------


def test_a_proof_prints_and_is_json() -> None:
    prob = balanced("ls", K=3)
    proof = prove_critical_point(prob, optimum(prob), digits=20)
    text = str(proof)
    for word in ("critical point: proved", "|x - params| <=", "python-flint", "label smoothing", "Krawczyk"):
        assert word in text
    found = json.loads(json.dumps(proof.to_dict()))
    assert found["proved"] is True
    assert [b["name"] for b in found["bounds"]] == ["distance", "radius", "contraction", "objective"]
    assert len(proof.bound("objective").lower) == 22
    with pytest.raises(AttributeError):
        proof.proved = False
    with pytest.raises(ValueError, match=r"^name: .*did you mean 'radius'"):
        proof.bound("radios")
    assert "NOT proved" in str(prove_critical_point(prob, ufm.init(prob)))


def test_misuse_is_refused() -> None:
    prob = balanced("ce", K=3)
    x = optimum(prob)
    custom = prob.replace(loss=losses.custom(lambda z, k: -jax.nn.log_softmax(z)[k]))
    for prove in (prove_critical_point, prove_below):
        with pytest.raises(ValueError, match=r"^loss: expected one of ce, ls, fl, mse, .*user's function"):
            prove(custom, x)
        with pytest.raises(ValueError, match=r"^W: expected shape"):
            prove(prob, x._replace(W=x.W.T))
        with pytest.raises(ValueError, match=r"^H: expected finite"):
            prove(prob, x._replace(H=x.H * jnp.nan))
        with pytest.raises(ValueError, match=r"^digits: "):
            prove(prob, x, digits=3)
    for eps in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=r"^eps: "):
            prove_critical_point(prob, x, eps=eps)
    with pytest.raises(ValueError, match=r"^direction: expected at least one"):
        prove_negative_curvature(prob, x, prob.zeros())
    with pytest.raises(ValueError, match=r"^direction: W: expected shape"):
        prove_negative_curvature(prob, x, x._replace(W=x.W.T))
    with pytest.raises(ValueError, match=r"^loss: expected a function of logit differences"):
        prove_below(balanced("mse", K=3), x)
    with pytest.raises(ValueError, match=r"^labels: expected equally many"):
        prove_below(Problem("ce", [0, 0, 1, 2], d=5), Params(x.W, x.H[:, :4], x.b))
    with pytest.raises(ValueError, match=r"^lam_W: expected one number"):
        prove_critical_point(prob.replace(lam_W=jnp.ones(2)), x)
    rough = np.full(x.W.shape, "a", dtype=object)
    with pytest.raises(ValueError, match=r"^params: expected arrays of finite floats or Fractions"):
        prove_critical_point(prob, x._replace(W=rough))
    large = Problem.balanced("ce", K=40, d=40, n=1)
    with pytest.raises(ValueError, match=r"^params: expected at most 1500 unknowns .* got"):
        prove_critical_point(large, ufm.init(large, scale=1.0))


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    prob = balanced("ce", K=3)
    x = optimum(prob)
    balls.flint.cache_clear()
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(ImportError, match=r"pip install 'ufm\[rigour\]'"):
        prove_critical_point(prob, x)
    balls.flint.cache_clear()
