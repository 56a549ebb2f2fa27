"""A last layer at the UFM's optimum, moved and noisy, beside the theory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ufm
from ufm import deep
from ufm.deep import _last_layer, _refit, presets


@pytest.mark.parametrize("loss", ["ce", "ls", "mse"])
def test_the_optimum_is_recognised_whatever_its_origin(loss):
    prob = ufm.Problem.balanced(loss=loss, K=4, d=6, n=5, lam_W=3e-3, lam_H=7e-4, lam_b=0.0)
    best = ufm.theory.global_optimum(prob)
    W, H, b = (np.asarray(x) for x in best.params)
    order = np.random.default_rng(0).permutation(20)
    labels, shift = np.asarray(prob.labels)[order], np.random.default_rng(1).standard_normal(6)
    moved = H.T[order] + shift
    found = _last_layer.compare(moved, labels, W, b - W @ shift, prob.loss, lam_W=3e-3, lam_b=0.0)
    assert found.lam_H == pytest.approx(7e-4, rel=1e-6)
    assert found.gap == pytest.approx(0, abs=1e-9)
    assert found.objective == pytest.approx(best.objective, rel=1e-9)
    assert found.margin == pytest.approx(best.margin, rel=1e-6)
    assert found.angle == pytest.approx(-1 / 3, abs=1e-6)
    assert max(found.angle_spread, found.norm_spread, found.duality) < 1e-6
    noise = 0.1 * np.random.default_rng(2).standard_normal(moved.shape)
    worse = _last_layer.compare(moved + noise, labels, W, b - W @ shift, prob.loss, lam_W=3e-3, lam_b=0.0)
    assert worse.gap > 1e-4
    assert worse.angle_spread > 1e-3
    assert "UFM (lam_W=3.00e-03" in repr(worse)


@pytest.mark.parametrize(
    ("loss", "counts"), [("ce", (5, 5, 5, 5)), ("mse", (5, 5, 5, 5)), ("ls", (2, 7, 4, 3))]
)
def test_the_optimum_of_features_that_are_not_negative_is_recognised_where_it_is(loss, counts):
    """The witness is the solver on all samples, from a start of its own."""
    penalties = {"lam_W": 3e-3, "lam_H": 7e-4, "lam_b": 2e-3}
    prob = ufm.Problem.from_counts(loss, counts=counts, d=6, model="nonnegative", **penalties)
    sol = ufm.solve(prob)
    W, H, b = (np.asarray(x) for x in (sol.W, sol.H, sol.b))
    given = H.T, np.asarray(prob.labels), W, b, prob.loss
    found = _last_layer.compare(*given, lam_W=3e-3, lam_b=2e-3, model="nonnegative")
    assert found.lam_H == pytest.approx(7e-4, rel=1e-6)
    assert found.gap == pytest.approx(0, abs=1e-8)
    for name in ("margin", "norm_W", "norm_M", "norm_b", "alignment", "raw_angle", "raw_duality"):
        assert getattr(found, name) == pytest.approx(getattr(found, f"optimal_{name}"), abs=1e-5)
    assert found.raw_angle == pytest.approx(0, abs=1e-6)  # orthogonal, while the free model's is -1/3
    worse = _last_layer.compare(H.T + 0.1, *given[1:], lam_W=3e-3, lam_b=2e-3, model="nonnegative")
    assert worse.gap > 1e-4
    assert "nonnegative features" in repr(worse)
    with pytest.raises(ValueError, match="features: expected none below 0"):
        _last_layer.compare(H.T - 0.1, *given[1:], lam_W=3e-3, lam_b=2e-3, model="nonnegative")
    with pytest.raises(ValueError, match="model"):
        _last_layer.compare(*given, lam_W=3e-3, lam_b=2e-3, model="fixed")


@pytest.mark.parametrize(("preset", "loss"), [("paper-code-sum", "ls"), ("paper-code", "mse")])
def test_the_effective_penalty_is_that_of_the_step(preset, loss):
    """The first step changes W by the rate times the gradient of scale (mean L + lam_W/2 |W|^2)."""
    preset = dataclasses.replace(presets.PRESETS[preset], clip=1e9, augment=False, validation=0.0)
    how = {"net": "mlp", "width": 0.25, "epochs": 1, "batch": 64, "max_train": 64}
    run = deep.train("digits", loss=loss, preset=preset, weight_decay=0.5, learning_rate=1e-3, **how)
    start = dataclasses.replace(run, state=run.plan.initial_state())
    H, labels, W, b = (jnp.asarray(x) for x in start.features())
    mean = jax.grad(lambda W: jnp.mean(jax.vmap(run.plan.loss)(H @ W.T + b, jnp.asarray(labels, int))))
    step = (W - run.plan.net.classifier(run.params)[0]) / 1e-3
    lam_W = run.compare_with_ufm().lam_W
    scale = jnp.vdot(step, mean(W) + lam_W * W) / jnp.linalg.norm(mean(W) + lam_W * W) ** 2
    np.testing.assert_allclose(step, scale * (mean(W) + lam_W * W), atol=2e-3 * float(jnp.abs(step).max()))
    assert lam_W * scale == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize(("loss", "lam_b"), [("ce", 2e-3), ("mse", 2e-3), ("ls", 1e-2)])
def test_a_refitted_layer_is_the_minimum_at_its_features(loss, lam_b):
    """The witness is scipy, from another start; classes of different sizes."""
    rng = np.random.default_rng(3)
    y = rng.permutation(np.repeat(np.arange(4), (9, 5, 7, 4)))
    H = np.abs(rng.standard_normal((25, 3)) + 2 * rng.standard_normal((4, 3))[y])
    own, weights = ufm.losses.get(loss), np.full(25, 1 / 25)
    start = rng.standard_normal((4, 3)), rng.standard_normal(4)
    W, b = _refit.refitted(H, y, weights, *start, own, lam_W=3e-3, lam_b=lam_b)

    def by_scipy(features):
        @jax.value_and_grad
        def objective(x):
            each = jax.vmap(own)(features @ x[:12].reshape(4, 3).T + x[12:], y)
            return jnp.mean(each) + 3e-3 / 2 * jnp.sum(x[:12] ** 2) + lam_b / 2 * jnp.sum(x[12:] ** 2)

        return scipy.optimize.minimize(jax.jit(objective), np.zeros(16), jac=True, method="BFGS", tol=1e-9).x

    def nc2(x):
        return float(ufm.metrics.neural_collapse(H, y, x[:12].reshape(4, 3), x[12:]).nc2)

    best = by_scipy(H)
    np.testing.assert_allclose(np.append(W, b), best, atol=1e-5 * np.abs(best).max())
    found = _last_layer.compare(H, y, *start, own, lam_W=3e-3, lam_b=lam_b, refit=True)
    assert found.nc2 == pytest.approx(nc2(np.concatenate([x.ravel() for x in start])), rel=1e-9)
    assert found.refitted_nc2 == pytest.approx(nc2(best), rel=1e-4)
    means = np.stack([H[y == k].mean(axis=0) for k in range(4)])[y]  # each as often as its class
    assert found.means_nc2 == pytest.approx(nc2(by_scipy(means)), rel=1e-4)


def test_the_distance_from_a_simplex_is_divided_by_its_causes():
    """A decayed bias bends the optimum of MSE; noise in W, then in the features, adds to it."""
    penalties = {"lam_W": 3e-3, "lam_b": 2e-3}
    prob = ufm.Problem.from_counts("mse", counts=(6,) * 4, d=6, lam_H=7e-4, model="nonnegative", **penalties)
    sol = ufm.solve(prob)
    W, H, b = (np.asarray(x) for x in (sol.W, sol.H, sol.b))
    how = penalties | {"model": "nonnegative", "refit": True}
    rng, y = np.random.default_rng(4), np.asarray(prob.labels)

    def parts(features, W):
        found = _last_layer.compare(features, y, W, b, prob.loss, **how)
        return np.array([found.nc2, found.refitted_nc2, found.means_nc2, found.optimal_nc2])

    at_the_optimum = parts(H.T, W)
    np.testing.assert_allclose(at_the_optimum, at_the_optimum[0], atol=1e-6)
    assert at_the_optimum[0] > 0.02  # no simplex
    unfinished = parts(H.T, W + 0.3 * rng.standard_normal(W.shape))
    np.testing.assert_allclose(unfinished[1:3], at_the_optimum[0], atol=1e-6)  # the effective lam_H changed
    assert unfinished[0] > at_the_optimum[0] + 0.02
    noise = np.abs(rng.standard_normal(H.shape))
    varied = parts((H + 0.5 * noise).T, W)
    assert abs(varied[1] - varied[2]) > 0.01
    assert "of W refitted to the class means" in repr(_last_layer.compare(H.T, y, W, b, prob.loss, **how))
