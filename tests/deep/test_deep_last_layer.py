"""A last layer at the UFM's optimum, moved and noisy, beside the theory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import deep
from ufm.deep import _last_layer, presets


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
