"""A last layer at the UFM's optimum, moved and noisy, beside the theory."""

import numpy as np
import pytest

import ufm
from ufm.deep import _last_layer


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


def test_a_run_is_compared_at_its_effective_penalties():
    from ufm import deep

    how = {"net": "mlp", "width": 0.25, "epochs": 2, "preset": "small"}
    run = deep.train("digits", loss="mse", **how)
    found = run.compare_with_ufm()
    assert found.lam_W == pytest.approx(5e-4)
    assert found.gap > 0
