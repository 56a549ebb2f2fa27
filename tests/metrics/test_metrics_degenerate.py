"""The metrics where classes, samples or directions are missing, and as part of a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_instances import D, K, assert_close, instance
from test_metrics import assert_witnessed, each_way
from tolerances import close

from ufm import Params, metrics
from ufm.metrics import CONVENTIONS, Stream, _batch, _core, neural_collapse, of_params

# --- degenerate input -----------------------------------------------------------------------------


def assert_no_nan(nc):
    assert not any(np.isnan(x).any() for x in nc if x is not None)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_sample_a_class(convention):
    X, y, W, b = instance(counts=(1, 1, 1, 1), offset=1e3)
    for nc in each_way(X, y, W, b, convention):
        assert nc.nc1 == 0
        assert nc.rank == K - 1
        assert_witnessed(nc, convention, X, y, W, b)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_absent_classes_are_struck_out(convention):
    X, y, W, b = instance(seed=7, spread=0.7)
    y = np.where(y == 1, 2, y)
    keep = np.array([0, 2, 3])
    smaller = neural_collapse(X, y - (y > 1), W[keep], b[keep], convention=convention)
    assert smaller.present == 3
    for nc in each_way(X, y, W, b, convention):
        assert_close(nc, smaller)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_single_class(convention):
    X, y, W, b = instance()
    for nc in each_way(X, np.full_like(y, 2), W, b, convention):
        np.testing.assert_allclose(nc[:4], (np.inf, 1, 1, 0), rtol=1e-15)
        assert (nc.rank, nc.present) == (0, 1)


IDENTICAL = {  # features whose class means are equal, exactly or up to rounding
    "zero": lambda X, eps: np.zeros_like(X),
    "constant": lambda X, eps: np.ones_like(X) * X[0],
    "rounding": lambda X, eps: X[0] * (1 + eps * np.sign(X)),
    "rounding, large": lambda X, eps: 1e9 * X[0] * (1 + eps * np.sign(X)),
    "rounding, small": lambda X, eps: 1e-9 * X[0] * (1 + eps * np.sign(X)),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", IDENTICAL)
def test_equal_class_means(kind, dtype):
    X, y, W, b = instance(dtype=dtype)
    X = IDENTICAL[kind](X, np.finfo(dtype).eps).astype(dtype)
    for convention in CONVENTIONS:
        from_means = CONVENTIONS[convention].nc2 is CONVENTIONS["rhubarbwu"].nc2
        plain = neural_collapse(*instance(dtype=dtype), convention=convention)
        for nc in each_way(X, y, W, b, convention):
            assert (nc.nc1, nc.rank, nc.nc4) == (np.inf, 0, 0)
            np.testing.assert_allclose(nc.nc3, 1, rtol=1e-6)
            np.testing.assert_allclose(nc.nc2, 1 if from_means else plain.nc2, rtol=1e-6)
            assert_no_nan(nc)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equal_class_means_with_scatter(dtype):
    """x and -x in every class: no finite NC1, however the sums round."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((1000, D)).astype(dtype)
    X, y = np.concatenate([half, -half]), np.tile(rng.integers(0, K, 1000), 2)
    order = rng.permutation(2000)
    for nc in each_way(X[order], y[order], instance(dtype=dtype)[2]):
        assert (nc.nc1, nc.rank) == (np.inf, 0)


def test_equal_class_means_in_many_small_batches():
    """5000 updates in float32: sums round relative to the distance from the mean, not from a sample."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((10000, D)).astype(np.float32)
    X, y = np.concatenate([half, -half]), np.tile(rng.integers(0, K, 10000), 2)
    order = rng.permutation(20000)
    batches = jnp.asarray(X[order]).reshape(-1, 4, D), jnp.asarray(y[order]).reshape(-1, 4)
    step = lambda s, batch: (s.update(*batch), None)  # noqa: E731
    stream = jax.jit(lambda b: jax.lax.scan(step, Stream(K, D, dtype="float32"), b)[0])(batches)
    nc = stream.result(np.eye(K, D))
    assert (nc.nc1, nc.rank) == (np.inf, 0)


def test_no_direction_beyond_K_minus_one():
    """Means far from their record's origin: rounding alone makes a direction longer than the cut."""
    k, d = 100, 200
    rng = np.random.default_rng(0)
    means = jnp.asarray(1e3 * rng.standard_normal(d) + rng.standard_normal((k, d)))
    counts = jnp.asarray(rng.integers(1, 9, k), jnp.int32)
    noise = np.finfo(np.float64).eps * jnp.max(jnp.abs(means), axis=0)
    span = jax.jit(_core.span_of)(_core.ClassMeans(counts, means, jnp.zeros(d), noise))
    assert jnp.sum(span.stretch > 0) == k - 1


def test_means_that_differ_by_more_than_rounding_are_distinct():
    X, y, W, b = instance(spread=0.0)
    moved = 1.0 + 1e-12 * X  # 4500 times the rounding of 1
    for nc in each_way(moved, y, W, b):
        assert nc.rank >= 1
        assert np.isfinite(nc.nc1)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_zero_classifier(convention):
    X, y, W, b = instance()
    plain = neural_collapse(X, y, W, b, convention=convention)
    from_means = CONVENTIONS[convention].nc2 is CONVENTIONS["rhubarbwu"].nc2
    for nc in each_way(X, y, 0 * W, b, convention):
        np.testing.assert_allclose(nc.nc1, plain.nc1, rtol=1e-12)
        np.testing.assert_allclose((nc.nc2, nc.nc3), (plain.nc2 if from_means else 1, 1), rtol=1e-12)
        np.testing.assert_allclose(nc.mean_logit_norm, np.linalg.norm(b), rtol=1e-12)
    for nc in each_way(0 * X, y, 0 * W, 0 * b, convention):
        assert nc.nc1 == np.inf
        np.testing.assert_allclose((nc.nc2, nc.nc3, nc.nc4), (1, 1, 0), rtol=1e-12)


@pytest.mark.processor
def test_equal_rows_of_the_classifier_are_centred_to_zero():
    X, y, W, _ = instance()
    W = np.tile(W[0] / 3, (K, 1)) * (1 + np.finfo(np.float64).eps * np.sign(W))
    nc = neural_collapse(X, y, W, convention="nc_loss")
    close((nc.nc2, nc.nc3), (1.0, 1.0))  # 0.75 and 1.52 were the rounding not cut off


# --- as part of a program -------------------------------------------------------------------------


def test_params_in_columns():
    X, y, W, b = instance()
    params = Params(jnp.asarray(W), jnp.asarray(X.T), jnp.asarray(b))
    assert_close(of_params(params, y), neural_collapse(X, y, W, b))
    centred = of_params(params, y, convention="nc_loss")
    assert_close(centred, neural_collapse(X, y, W, b, convention="nc_loss"))


def test_jit_vmap_and_a_recorded_trajectory():
    X, y, W, b = instance()
    stack = Params(*(jnp.stack([a, 2 * a + 1, 0 * a]) for a in map(jnp.asarray, (W, X.T, b))))
    each = [of_params(Params(*(a[i] for a in stack)), y) for i in range(3)]
    want = jax.tree.map(lambda *x: jnp.stack(x), *each)
    assert_close(jax.jit(jax.vmap(lambda p: of_params(p, y)))(stack), want)
    trajectory = jax.jit(lambda s: jax.lax.scan(lambda c, p: (c, of_params(p, y)), 0, s)[1])(stack)
    assert_close(trajectory, want)
    assert trajectory.nc1.shape == (3,)


def test_traced_labels_outside_the_classes_count_nowhere():
    X, y, W, b = instance()
    traced = jax.jit(neural_collapse)
    outside = np.where(y == 1, -1, y)
    outside[y == 2] = K
    kept = (y != 1) & (y != 2)
    want = neural_collapse(X[kept], y[kept], W, b)
    assert_close(traced(jnp.asarray(X), jnp.asarray(outside), jnp.asarray(W), jnp.asarray(b)), want)


def test_no_square_matrix_of_features():
    X, y, W, b = instance(counts=(6, 7, 8), d=37)
    kind = jnp.dtype("float64")
    measure = jax.make_jaxpr(
        lambda *a: _batch._measure(_batch._Given(*a, a[-1], jnp.asarray(False)), kind, 1e-16)
    )
    text = str(measure(X, y.astype(np.int32), W, b))
    assert "f64[21,37]" in text
    assert "37,37" not in text


def test_values_and_conventions_cost_no_compilation(compilations):
    X, y, W, b = instance()
    stream = Stream(K, D).update(X, y)
    for convention in CONVENTIONS:
        neural_collapse(X, y, W, b, convention=convention)
        stream.result(W, b, convention=convention)
    compilations()
    for convention in CONVENTIONS:
        neural_collapse(2 * X, y[::-1].copy(), W - 1, b + 1, convention=convention)
        stream.update(X + 1, y[::-1].copy()).result(W - 1, b + 1, convention=convention)
    assert compilations() == 0
    metrics.neural_collapse(X[1:], y[1:], W, b)
    compiled = compilations()  # another shape: arrays, check, facts; the conventions know no samples
    for convention in CONVENTIONS:
        neural_collapse(X[1:], y[1:], W, b, convention=convention)
    assert 1 <= compiled <= 5
    assert compilations() == 0
