"""Certificates against an interior-point solver, closed forms and their own promises."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from certificate_instances import (
    CONVEX,
    QUICK,
    balanced,
    collapsed,
    convex_optimum,
    critical_c,
    descend,
    every_convex,
    every_regime,
    factored,
    imbalanced,
    jet,
    measured,
    perturbed,
)
from jax.flatten_util import ravel_pytree
from tolerances import Traced, close, eps

import ufm
from ufm import Params, Problem, landscape, losses
from ufm.hessian import certificate as certificates
from ufm.hessian import dual

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the solver's own deprecations are not ours to fix


# --- the promise: gap >= f - f* at any point ----------------------------------------------------------


@pytest.mark.parametrize("strength", [0.03, 0.4, 0.97])  # a third of them near the threshold
@every_regime
@every_convex
def test_the_gap_bounds_the_distance_to_the_optimum(name: str, regime: str, strength: float) -> None:
    prob = imbalanced(name, regime, strength, seed=round(100 * strength))
    optimum = convex_optimum(prob)
    path = descend(prob, ufm.init(prob, seed=1, scale=0.7))
    best = float(jet(prob, path[-1])[0])
    close(optimum, best, ulps=1e6, scale=1 + best)  # two solvers agree to 2e-10
    points = path[:: max(1, len(path) // 12)] + path[-3:]
    points += [perturbed(path[-1], size, seed) for seed, size in enumerate((1.0, 0.1, 1e-2, 1e-4, 1e-6))]
    points += [prob.zeros(), perturbed(prob.zeros(), 30.0)]
    for x in points:
        cert = landscape.certificate(prob, x)
        # f* <= best, so this is the stronger of the two statements where both can be told apart
        assert cert.gap >= cert.objective - best - cert.rounding
        assert cert.lower_bound <= optimum + 1e-9 * (1 + best)  # the solver's accuracy
        assert cert.gap >= 0
    last = landscape.certificate(prob, path[-1])
    assert last.verdict == "global minimum", last
    assert last.gap <= 1e-12
    far = landscape.certificate(prob, path[0])
    assert far.gap <= 2 * (far.objective - best)  # measured: 1.00 to 1.2; a bound of f - 0 would be no bound


dual_point = jax.jit(
    lambda prob, params: dual.dual_point(prob, dual.evaluate(prob, params))[0], compiler_options=QUICK
)


@every_regime
@every_convex
def test_the_dual_point_is_feasible_and_the_gap_is_f_minus_d(name: str, regime: str) -> None:
    """Conjugates, operator norm and Y 1 written down once more, in numpy, on all N columns."""
    prob = imbalanced(name, regime, 0.3, seed=3)
    h = {key: float(value) for key, value in prob.loss.hyperparameters.items()}
    member = np.eye(prob.K)[prob.labels]
    for seed, scale in enumerate((1e-3, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 20.0)):
        x = perturbed(prob.zeros(), scale, seed)
        x = x._replace(b=x.b * prob.bias)
        u = np.asarray(dual_point(prob, x))[prob.labels]  # (N, K): N times the columns of Y
        assert np.linalg.norm(u / prob.N, 2) <= float(prob.lam) * (1 + 16 * eps())
        if name == "mse":
            own = np.sum(member * u, axis=1)
            conjugate = own * h["beta"] + own**2 / (4 * h["kappa"]) + np.sum((1 - member) * u**2, axis=1) / 4
        else:
            alpha = h.get("alpha", 0.0)
            shares = u + (1 - alpha) * member + alpha / prob.K
            assert shares.min() >= -4 * eps()
            close(shares.sum(axis=1), np.ones(prob.N))
            conjugate = np.sum(scipy.special.xlogy(shares, np.maximum(shares, 1e-300)), axis=1)
        value = -conjugate.mean()
        if prob.bias and prob.lam_b == 0:
            close(u.mean(axis=0), np.zeros(prob.K), ulps=64, scale=np.abs(u).mean())
        elif prob.bias:
            value -= np.sum(u.mean(axis=0) ** 2) / (2 * float(prob.lam_b))
        found = measured(prob, x)
        size = found.objective + abs(value)  # the difference below cancels, the gap itself does not
        close(found.gap, found.objective - max(value, prob.loss.infimum), ulps=64, scale=size)


@pytest.mark.parametrize("c", [0.02, 0.1])
@every_regime
@every_convex
def test_the_gap_vanishes_at_the_closed_form_optimum(name: str, regime: str, c: float) -> None:
    if (name, regime) == ("mse", "penalised"):
        regime = "free"  # with lam_b > 0 the frame interpolates: covered by the solvers above
    prob = balanced(name, regime, c=c)
    params, value = collapsed(prob)
    cert = landscape.certificate(prob, params)
    close(cert.objective, value, ulps=32, scale=1 + value)
    assert cert.gap <= 1e-14 * (1 + value)
    assert cert.verdict == "global minimum"
    assert cert.is_global
    close(cert.operator_norm, cert.lam, ulps=32, scale=1 / np.sqrt(prob.N))  # differences of numbers so large
    for size in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9):
        near = measured(prob, perturbed(params, size))
        assert near.gap >= near.objective - value - near.rounding


@every_regime
@every_convex
def test_cert_b_is_quadratic_and_cert_a_linear_in_the_gradient(name: str, regime: str) -> None:
    prob = imbalanced(name, regime, 0.3, seed=3)
    optimum = descend(prob, ufm.init(prob, seed=1, scale=0.5))[-1]
    direction = perturbed(jax.tree.map(jnp.zeros_like, optimum), 1.0, seed=4)
    best = float(jet(prob, optimum)[0])
    quadratic, linear, ratios = [], [], []
    for size in (1e-3, 1e-4, 1e-5):
        near = measured(prob, jax.tree.map(lambda x, v, s=size: x + s * v, optimum, direction))
        quadratic.append(near.gap / near.grad_norm**2)
        linear.append(near.linear_gap / near.grad_norm)
        ratios.append(near.gap / (near.objective - best))
    assert max(quadratic) < 1.5 * min(quadratic)
    assert max(linear) < 1.5 * min(linear)
    assert near.linear_gap > 100 * near.gap
    assert min(ratios) > 1 - 1e-4
    assert max(ratios) < 40  # measured: 1.0 to 5


@every_convex
def test_a_tiny_penalty_of_the_bias_behaves_like_none(name: str) -> None:
    free = imbalanced(name, "free", 0.3, seed=3)
    near = perturbed(descend(free, ufm.init(free, seed=1, scale=0.5))[-1], 1e-5)
    gaps = [measured(free.replace(lam_b=lam_b), near).gap for lam_b in (0.0, 1e-300, 1e-30, 1e-16)]
    close(gaps, np.full(4, gaps[0]), scale=1.0)  # the best dual point is chosen to the rounding of f
    assert gaps[0] < 1e-7


# --- points that are not global -----------------------------------------------------------------------


@every_regime
@every_convex
def test_the_origin_is_a_strict_saddle_below_the_threshold_and_optimal_above(name: str, regime: str) -> None:
    prob = balanced(name, regime, c=0.05)
    b = jnp.zeros(4)
    if name == "mse" and prob.bias:
        h = CONVEX["mse"]
        b += 2 * h["kappa"] * h["beta"] / (2 * h["kappa"] + 2 * 3 + float(prob.lam_b) * 4)
    origin = prob.zeros()._replace(b=b)
    cert = landscape.certificate(prob, origin)
    assert cert.verdict == "not global: strict saddle direction"
    assert cert.operator_norm > cert.lam
    assert cert.grad_norm <= 8 * eps()
    assert (
        cert.gap >= cert.objective - collapsed(balanced(name, "absent", c=0.05))[1] - cert.rounding
        or prob.bias
    )
    close(cert.curvature, smallest_eigenvalue(prob, origin), ulps=64, scale=1.0)
    above = balanced(name, regime, c=1.01 * critical_c(name, 4))
    assert landscape.certificate(above, origin).verdict == "global minimum"


@every_regime
@pytest.mark.parametrize("name", ["ce", "ls"])
def test_a_grouped_frame_is_a_strict_saddle(name: str, regime: str) -> None:
    """Two groups of two classes in a simplex frame of rank 1: critical, and each group could still split."""
    prob = balanced(name, regime, c=0.05)
    groups = np.kron(np.eye(2), np.ones((2, 2)))
    s = 2 * 0.05 + CONVEX[name].get("alpha", 0.0) / 2
    saddle = factored(prob, np.log(1 / s - 1) * (groups - 0.5))
    cert = landscape.certificate(prob, saddle)
    assert cert.grad_norm <= 64 * eps()
    assert cert.verdict == "not global: strict saddle direction"
    close(cert.operator_norm, critical_c(name, 4) / np.sqrt(prob.n), ulps=64)
    close(cert.curvature, smallest_eigenvalue(prob, saddle), ulps=256, scale=1.0)
    assert cert.gap >= cert.objective - collapsed(prob)[1]
    assert "null vector" in cert.why


@partial(jax.jit, compiler_options=QUICK)
def smallest_eigenvalue(prob: Problem, params: Params) -> jax.Array:
    """From the dense Hessian of all unknowns."""
    x, unflatten = ravel_pytree(params)
    return jnp.linalg.eigvalsh(jax.hessian(lambda x: prob(unflatten(x)))(x))[0]


def test_the_bound_is_valid_where_d_is_too_small() -> None:
    """Unequal counts: the bound that takes the rank into account is for equal ones."""
    prob = imbalanced("ce", "free", 0.2, seed=7, d=2)
    assert prob.n is None
    optimum = convex_optimum(prob)  # of the relaxation, which d = 3 would reach
    stuck = descend(prob, ufm.init(prob, seed=2))[-1]
    cert = landscape.certificate(prob, stuck)
    assert cert.lower_bound <= optimum + 1e-9
    assert cert.gap >= cert.objective - optimum - 1e-9
    assert cert.objective - optimum > 1e-3
    assert cert.verdict == "not certified"
    assert "d = 2 < 3" in cert.why


def test_a_point_that_is_not_critical_is_not_called_a_saddle() -> None:
    prob = imbalanced("ce", "free", 0.3, seed=3)
    x = ufm.init(prob, scale=1.0)._replace(b=jnp.arange(4.0))
    cert = landscape.certificate(prob, x)
    slope = jet(prob, x)[1]
    close(cert.grad_norm, np.sqrt(sum(float(jnp.vdot(g, g)) for g in slope)))
    assert cert.verdict == "not certified"
    assert "|grad f|" in cert.why


# --- other losses -------------------------------------------------------------------------------------


def _ce(z: jax.Array, k: Any) -> jax.Array:
    return -jax.nn.log_softmax(z)[k]


def _squared_hinge(z: jax.Array, k: Any) -> jax.Array:
    return jnp.sum(jnp.where(jnp.arange(z.shape[0]) == k, 0.0, jnp.maximum(1 + z - z[k], 0.0) ** 2))


@pytest.mark.parametrize("regime", ["free", "penalised", "absent"])
def test_a_convex_loss_without_a_conjugate(regime: str) -> None:
    """The same loss as a user's function: the bound comes from gradients and is quadratic as well."""
    prob = imbalanced("ce", regime, 0.3, seed=3)
    path = descend(prob, ufm.init(prob, seed=1, scale=0.7))
    best = float(jet(prob, path[-1])[0])
    custom = prob.replace(loss=losses.custom(_ce, convex=True, shift_invariant=True))
    for x in [*path[:: len(path) // 8], prob.zeros(), perturbed(path[-1], 1e-2), perturbed(path[-1], 1e-4)]:
        cert, own = landscape.certificate(custom, x), landscape.certificate(prob, x)
        assert cert.gap >= cert.objective - best - cert.rounding
        assert cert.gap <= 4 * own.gap + 1e-14  # measured: 1.2 at most
    cert = landscape.certificate(custom, path[-1])
    assert cert.verdict == "global minimum"
    assert cert.gap <= 1e-12
    assert "no conjugate" in cert.method


@pytest.mark.parametrize("regime", ["free", "penalised"])
def test_a_convex_loss_with_flat_parts(regime: str) -> None:
    loss = losses.custom(_squared_hinge, convex=True, shift_invariant=True)  # zero Hessian beyond margin 1
    prob = imbalanced("ce", regime, 0.03, seed=7).replace(loss=loss)
    path = descend(prob, ufm.init(prob, seed=1, scale=0.7))
    best = float(jet(prob, path[-1])[0])
    for x in [*path[:: len(path) // 8], perturbed(path[-1], 1e-3), perturbed(path[-1], 10.0)]:
        cert = landscape.certificate(prob, x)
        assert cert.gap >= cert.objective - best - cert.rounding
    assert landscape.certificate(prob, path[-1]).verdict == "global minimum"


def test_a_loss_not_declared_convex_has_its_infimum_only() -> None:
    prob = balanced("ce", "free").replace(loss=losses.custom(_ce, infimum=-0.5))
    cert = landscape.certificate(prob, ufm.init(prob))
    close(cert.gap, cert.objective + 0.5)
    close(cert.lower_bound, -0.5, ulps=32)
    assert cert.method == "infimum of the loss"
    assert "not declared convex" in cert.why


def test_a_broken_promise_about_the_infimum_is_reported() -> None:
    prob = balanced("ce", "free").replace(loss=losses.custom(_ce, infimum=5.0))
    with pytest.raises(ValueError, match=r"^loss: the objective .* below infimum=5.0"):
        landscape.certificate(prob, prob.zeros())


@pytest.mark.parametrize(("K", "C", "regime"), [(3, 0.4, "free"), (8, 1.1, "free"), (8, 1.1, "absent")])
def test_focal_loss(K: int, C: float, regime: str) -> None:
    """The bound closes at neural collapse, also with a free bias and C > 1."""
    prob = balanced("fl", regime, K=K, n=2, c=C / (K - 1))
    path = descend(prob, ufm.init(prob, seed=0, scale=1.0))
    best = float(jet(prob, path[-1])[0])
    for x in path[:: len(path) // 8]:
        cert = landscape.certificate(prob, x)
        assert cert.gap >= cert.objective - best - cert.rounding
    last = landscape.certificate(prob, path[-1])
    assert last.method == "scalar lower bound of focal loss"
    assert last.verdict == "global minimum"


def test_focal_loss_above_its_window_is_not_certified() -> None:
    prob = balanced("fl", "free", K=20, n=2, c=1.25 / 19)
    last = landscape.certificate(prob, prob.zeros())
    assert last.verdict == "not certified"
    assert "not known to be attained" in last.why
    assert 0 < last.gap < 0.2  # a number, and a rigorous one


def test_focal_loss_with_unequal_counts_falls_back() -> None:
    prob = imbalanced("ce", "free", 0.2, seed=3).replace(loss=losses.focal(2.0))
    cert = landscape.certificate(prob, ufm.init(prob))
    assert cert.verdict == "not certified"
    close(cert.gap, cert.objective)
    assert "no closed-form bound" in cert.why


# --- behaviour ----------------------------------------------------------------------------------------


def test_penalties_labels_and_hyperparameters_do_not_compile_anew(compilations: Any) -> None:
    prob = imbalanced("ls", "free", 0.3, seed=3)
    x = ufm.init(prob, seed=1)
    penalties = (0.1, np.float64(0.2), jnp.asarray(0.3))  # made here: JAX compiles the conversion
    landscape.certificate(prob, x)
    compilations()
    found = [landscape.certificate(prob.replace(lam_W=lam), x).gap for lam in penalties]
    found += [landscape.certificate(prob.replace(lam_b=lam), x).gap for lam in (0.1, 1)]
    found += [landscape.certificate(imbalanced("ls", "free", 0.1, seed=4), x).gap]
    found += [landscape.certificate(prob.replace(loss=losses.label_smoothing(0.4)), x).gap]
    assert len(set(found)) == len(found)
    assert compilations() == 0


def test_a_sweep_is_one_call() -> None:
    prob = imbalanced("ce", "penalised", 0.3, seed=3)
    starts = [ufm.init(prob, seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    grid = jnp.asarray([0.01, 0.1, 0.5])
    f = Traced(jax.vmap(lambda lam, x: landscape.bounds(prob.replace(lam_W=lam), x)))
    together = f(grid, stacked)
    for i, (lam, x) in enumerate(zip(grid, starts, strict=True)):
        alone = landscape.certificate(prob.replace(lam_W=lam), x)
        close(together.gap[i], alone.gap, ulps=64)
        close(together.curvature[i], alone.curvature, ulps=64, scale=1.0)
        close(together.operator_norm[i], alone.operator_norm)
    f(grid[::-1], stacked)
    assert f.count == 1


def test_both_compilations_agree() -> None:
    prob = imbalanced("mse", "absent", 0.3, seed=3)
    arguments = certificates._as_leaves((prob, ufm.init(prob)))
    for a, b in zip(
        certificates._compiled(*arguments), certificates._compiled_quickly(*arguments), strict=True
    ):
        close(a, b, ulps=64)


def test_huge_and_overflowing_points() -> None:
    prob = imbalanced("ce", "free", 0.3, seed=3)
    huge = landscape.certificate(prob, jax.tree.map(lambda x: 1e3 * x, ufm.init(prob, scale=1.0)))
    assert huge.objective > 1e4
    assert huge.objective - 2 < huge.gap < np.inf
    over = landscape.certificate(prob, jax.tree.map(lambda x: 1e200 * x, ufm.init(prob, scale=1.0)))
    assert (over.gap, over.lower_bound, over.verdict) == (np.inf, 0.0, "not certified")
    assert "overflow" in over.why


def test_float32_params_are_evaluated_in_float64() -> None:
    prob = imbalanced("ce", "free", 0.3, seed=3)
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), ufm.init(prob))
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), narrow)
    close(landscape.certificate(prob, narrow).gap, landscape.certificate(prob, wide).gap, ulps=0)


def test_a_certificate_prints_and_is_a_pytree() -> None:
    prob = balanced("ce", "free")
    cert = landscape.certificate(prob, collapsed(prob)[0])
    text = str(cert)
    for word in ("global minimum", "f - f*", "|G|_op", "lam =", "why", "Fenchel dual"):
        assert word in text
    close(cert.lower_bound, cert.objective - cert.gap, ulps=2)
    assert str(jax.tree.map(lambda x: x, cert)) == text
    assert "global minimum" in str(jax.tree.map(lambda _: None, cert))
    with pytest.raises(AttributeError):
        cert.gap = 0.0


@pytest.mark.parametrize("tol", [0.0, -1e-10, np.nan, np.inf, "small"])
def test_a_wrong_tolerance_is_refused(tol: Any) -> None:
    prob = balanced("ce", "free")
    with pytest.raises(ValueError, match=r"^tol: "):
        landscape.certificate(prob, prob.zeros(), tol=tol)


def test_the_tolerance_decides_the_verdict() -> None:
    prob = balanced("ce", "free")
    near = perturbed(collapsed(prob)[0], 1e-4)
    assert landscape.certificate(prob, near, tol=1e-4).is_global
    assert not landscape.certificate(prob, near, tol=1e-9).is_global
    exact = landscape.certificate(prob, collapsed(prob)[0], tol=1e-17)
    assert exact.verdict == "not certified"  # rounding alone is larger
    assert "rounding" in exact.why


def test_wrong_params_are_refused() -> None:
    prob = balanced("ce", "free")
    W, H, b = prob.zeros()
    with pytest.raises(ValueError, match=r"^W: expected shape"):
        landscape.certificate(prob, Params(W.T, H, b))
    with pytest.raises(ValueError, match=r"^H: expected finite"):
        landscape.certificate(prob, Params(W, H + jnp.nan, b))
