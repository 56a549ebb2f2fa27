"""Metrics of shorter floats are those of float64 on the same numbers: offsets, scales, sums, 32-bit mode."""

import json
import os
import subprocess
import sys
from functools import reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm import Params
from ufm.metrics import CONVENTIONS, Stream, _core, neural_collapse, of_params

#: float32 products of float64 deviations: a few roundings of float32, accumulated over d terms
RTOL = 2e-6
SHORT = ("float32", "float16", "bfloat16")


def exact(X, y, W, b=None, *, convention="paper"):
    """The formulas in numpy's float64, deviations taken class by class; K - 1 directions."""
    X, W = (np.asarray(a, np.float64) for a in (X, W))
    b = np.zeros(len(W)) if b is None else np.asarray(b, np.float64)
    K, even = len(W), CONVENTIONS[convention].even
    lowest = np.array([X[y == k][0] for k in range(K)])
    D, means = np.empty_like(X), np.empty_like(lowest)
    for k in range(K):
        own = X[y == k] - lowest[k]
        D[y == k], means[k] = own - own.mean(axis=0), lowest[k] + own.mean(axis=0)
    weights = np.ones(K) if even else np.bincount(y, minlength=K)
    M = means - means[0]
    M -= weights @ M / weights.sum()
    _, s, V = np.linalg.svd(M, full_matrices=False)
    r = min(K - 1, X.shape[1])
    trace = K / len(X) * np.sum((D @ V[:r].T / s[:r]) ** 2)
    C = W - W.mean(axis=0) if convention == "nc_loss" else W
    etf = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    distance = lambda G: np.linalg.norm(G / np.linalg.norm(G) - etf)  # noqa: E731
    dual = np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2
    nearest = np.array([np.argmin(np.sum((x - means) ** 2, axis=1)) for x in X])
    chosen = np.argmax(X @ W.T + (b if CONVENTIONS[convention].bias else 0), axis=1)
    return (
        trace if convention == "papyan" else trace / K,
        distance(M @ M.T if convention == "rhubarbwu" else C @ C.T),
        dual if convention == "papyan" else distance(C @ M.T),
        np.mean(nearest == chosen),
    )


def batches(N, sizes=()):
    """Consecutive parts of the sizes given, and the rest."""
    return [slice(i, j) for i, j in pairwise([0, *np.cumsum(sizes), N]) if j > i]


def each_way(X, y, W, b=None, *, convention="paper", parts=None, dtype="float32"):
    """Name and metrics: of a batch, of `Params`, of a stream, and of streams of the parts, merged."""
    parts = batches(len(y), (7, 40)) if parts is None else parts
    options = {"convention": convention}
    yield "batch", neural_collapse(X, y, W, b, **options)
    bias = np.zeros(len(W), W.dtype) if b is None else b
    yield "params", of_params(Params(W, X.T, bias), y, **options)
    empty = Stream(len(W), X.shape[1], dtype=dtype)
    updated = reduce(lambda s, p: s.update(X[p], y[p]), parts, empty)
    merged = reduce(Stream.merge, [empty.update(X[p], y[p]) for p in parts[::-1]])
    for name, stream in (("stream", updated), ("merged", merged)):
        agreement = stream.second_pass(W, b, **options)
        agreement = reduce(lambda a, p: a.update(X[p]), parts, agreement)
        yield name, stream.result(W, b, agreement=agreement, **options)


def assert_exact(X, y, W, b=None, *, rtol=RTOL, **options):
    want = exact(X, y, W, b, convention=options.get("convention", "paper"))
    for name, nc in each_way(X, y, W, b, **options):
        np.testing.assert_allclose([float(x) for x in nc[:4]], want, rtol=rtol, atol=rtol / 10, err_msg=name)
        assert float(nc.nc1) == pytest.approx(want[0], rel=rtol), name


def layer(K=10, d=256, n=12, *, scale=1e-2 / 64, noise=0.05, seed=0):
    """Unequal classes of about n samples, means `scale` apart in each coordinate; W is no classifier."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(max(n // 2, 2), 2 * n, K)
    y = rng.permutation(np.repeat(np.arange(K), counts))
    means = rng.standard_normal((K, d))
    X = scale * (means[y] + noise * rng.standard_normal((y.size, d)))
    W = rng.standard_normal((K, d))
    return X, y, W


# --- one large coordinate -------------------------------------------------------------------------


def test_a_large_constant_coordinate_among_4096():
    """The report: class means 1e-2/64 apart beside a constant 2500 gave NC1 = inf, NC3 = 1, NC4 = 0."""
    X, y, W = layer(d=4096, n=12)
    X[:, 0] = 2500
    X, W = X.astype(np.float32), W.astype(np.float32)
    want = exact(X, y, W)
    assert 1e-6 < want[0] < 1e-5  # as reported: 5.29e-6, 1.50, 0.1
    assert want[2] > 1.2
    assert 0 < want[3] < 0.3
    assert_exact(X, y, W)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("offset", [2500.0, -6e4])
def test_large_constant_coordinates(offset, dtype, convention):
    X, y, W = layer(scale=1e-4)
    X[:, [0, 17, 200]] = offset, offset / 3, -offset
    X, W = (np.asarray(jnp.asarray(a).astype(dtype)) for a in (X, W))
    X64, W64 = X.astype(np.float64), W.astype(np.float64)
    want = exact(X64, y, W64, convention=convention)
    for name, nc in each_way(X, y, W, convention=convention):
        assert nc.nc1.dtype == np.float32, name
        np.testing.assert_allclose([float(x) for x in nc[:4]], want, rtol=RTOL, err_msg=name)


def test_a_large_coordinate_that_rounds():
    """Its own rounding, 2.4e-4, exceeds the distance of the class means in the others."""
    X, y, W = layer()
    X[:, 3] = 2500 + 1e-3 * np.random.default_rng(1).standard_normal(len(y))
    assert_exact(X.astype(np.float32), y, W.astype(np.float32))


def test_a_coordinate_of_huge_scale():
    X, y, W = layer(scale=1.0)
    X[:, 5] *= 1e7
    W[:, 5] *= 1e-7
    assert_exact(X.astype(np.float32), y, W.astype(np.float32))


def test_classes_with_very_different_offsets():
    """One coordinate in which half the classes lie at 3e4 and the others spread by 1e-3 around 0."""
    X, y, W = layer(scale=1e-2)
    X[:, 9] = np.where(y % 2 == 1, 3e4, 0) + 1e-3 * np.random.default_rng(1).standard_normal(len(y))
    assert_exact(X.astype(np.float32), y, W.astype(np.float32))


def test_float64_has_the_same_kind():
    X, y, W = layer()
    X[:, 0] = 2500 * 2.0**29
    assert_exact(X, y, W, dtype="float64", rtol=1e-11)


def test_an_outlier_does_not_hide_the_class_means():
    X, y, W = layer(scale=1e-3)
    X[11, 4] = 1e6
    assert_exact(X.astype(np.float32), y, W.astype(np.float32))


def test_a_large_common_column_of_the_classifier():
    """NC2 and NC3 of "nc_loss" centre W: its columns' rounding is their own."""
    X, y, W = layer()
    W *= 1e-4
    W[:, 2] = 2500
    assert_exact(X.astype(np.float32), y, W.astype(np.float32), convention="nc_loss")


def test_rounding_of_a_large_coordinate_is_no_difference():
    """All class means equal up to each coordinate's own rounding, those of the large one included."""
    eps = np.finfo(np.float32).eps
    rng = np.random.default_rng(0)
    X = np.float32(rng.standard_normal(64)) * (1 + eps * rng.choice([-1, 0, 1], (90, 64)))
    X[:, 0] = 2500 * (1 + eps * rng.choice([-1, 0, 1], 90))
    y = rng.permutation(np.repeat(np.arange(3), 30))
    W = rng.standard_normal((3, 64)).astype(np.float32)
    for name, nc in each_way(X.astype(np.float32), y, W):
        assert (nc.nc1, nc.nc4, nc.rank) == (np.inf, 0, 0), name


def test_one_rounding_of_a_whole_class_is_no_difference():
    X = np.full((30, 400), 3.0, np.float32)
    y = np.repeat(np.arange(3), 10)
    X[y == 1] = np.nextafter(X[0], np.float32(4))
    for name, nc in each_way(X, y, np.eye(3, 400, dtype=np.float32)):
        assert (nc.nc1, nc.rank) == (np.inf, 0), name


# --- scale, collapse, many samples, order -----------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_scale_costs_float32_nothing(scale):
    X, y, W = layer(scale=1.0, d=40)
    X[:, 3] += 50
    X = (scale * X).astype(np.float32)
    assert_exact(X, y, W.astype(np.float32))
    assert_exact(X, y, (W / scale).astype(np.float32))


def test_coordinates_of_opposite_scales():
    X, y, W = layer(scale=1.0, d=40)
    X[:, ::2] *= 1e-22
    X[:, 1::2] *= 1e22
    X = X.astype(np.float32)
    W = W.astype(np.float32)
    want = exact(X * 1e-22, y, W)  # a common factor keeps numpy's squares finite
    for name, nc in each_way(X, y, W):
        np.testing.assert_allclose(float(nc.nc1), want[0], rtol=RTOL, err_msg=name)


@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_extreme_collapse_in_float32(noise):
    """Scatter near the rounding of the features: what the projections round to is relative to the scatter."""
    X, y, W = layer(scale=1.0, noise=noise)
    assert_exact(X.astype(np.float32), y, W.astype(np.float32))


def test_scatter_along_the_means_far_below_the_rest():
    """Each coordinate's scatter cancels along the axes of the means: float32 products would be too short."""
    X, y, W = layer(scale=1.0, noise=1e-2)
    rng = np.random.default_rng(2)
    X += np.outer(rng.standard_normal(len(y)), rng.standard_normal(X.shape[1]))
    assert_exact(X.astype(np.float32), y, W.astype(np.float32))


def test_many_samples():
    """Class means a hundred thousandth of the spread apart: a float32 sum of 10^5 terms would lose them."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((60_000, 4)).astype(np.float32)
    y = np.tile(rng.integers(0, 3, len(half)), 2)
    X = np.concatenate([half, -half])  # the means of this are zero
    X[:, 1] += np.float32(1000)
    means = rng.standard_normal((3, 4))
    X += (1e-3 * means[y]).astype(np.float32)
    order = rng.permutation(len(y))
    X, y, W = X[order], y[order], rng.standard_normal((3, 4)).astype(np.float32)
    parts = batches(len(y), [900] * 60 + [30_000])
    want = exact(X, y, W)
    for name, nc in each_way(X, y, W, parts=parts):
        np.testing.assert_allclose(float(nc.nc1), want[0], rtol=1e-4, err_msg=name)  # float32 sums: 1e-3
        np.testing.assert_allclose(float(nc.nc3), want[2], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("first", [1, 30])
def test_a_first_batch_far_from_the_mean(first):
    X, y, W = layer(scale=1.0)
    X[:first] += 1e5  # an unusual batch, not a rounding: it is part of the result
    assert_exact(X.astype(np.float32), y, W.astype(np.float32), parts=batches(len(y), (first, 20, 20)))


def test_blocks_of_rows_are_seen_once():
    """More rows than a block, no multiple of it: NC4 counts samples."""
    X, y, W = layer(K=3, d=5, n=1500, scale=1.0, noise=1.0)
    assert len(y) > 1024
    for dtype in (np.float32, np.float64):
        assert_exact(X.astype(dtype), y, W.astype(dtype), dtype=dtype, parts=batches(len(y), (1000,)))


def test_float64_features_in_a_float32_stream():
    """The difference is taken before anything rounds."""
    X, y, W = layer(scale=1e-3)
    X += 1e4
    stream = Stream(*W.shape, dtype="float32").update(X, y)
    np.testing.assert_allclose(float(stream.result(W).nc1), exact(X, y, W)[0], rtol=RTOL)


# --- JAX's 32-bit mode ------------------------------------------------------------------------------

PROGRAM = """
import json, sys
sys.path.insert(0, {here!r})
import jax, jax.numpy as jnp, numpy as np
from ufm import Params
from ufm.metrics import Stream, neural_collapse, of_params
from test_metrics_precision import each_way, layer
assert not jax.config.jax_enable_x64

def numbers(nc):
    assert all(x.dtype == np.float32 for x in nc[:5]), [x.dtype for x in nc[:5]]
    return [float(x) for x in nc[:4]]

X, y, W = layer()
X[:, 0] = 2500
found = {{"float64 given, " + name: numbers(nc) for name, nc in each_way(X, y, W)}}
X, W = X.astype(np.float32), W.astype(np.float32)
found |= {{name: numbers(nc) for name, nc in each_way(X, y, W)}}
params = Params(jnp.asarray(W), jnp.asarray(X.T), jnp.zeros(len(W)))
found["jit"] = numbers(jax.jit(lambda p: of_params(p, y))(params))
stack = jax.tree.map(lambda x: jnp.stack([x, x]), params)
pair = jax.jit(jax.vmap(lambda p: of_params(p, y)))(stack)
found["vmap"] = numbers(jax.tree.map(lambda x: x[1], pair))
rows = 8 * (len(y) // 8)
cut = jnp.asarray(X[:rows]).reshape(8, -1, X.shape[1]), jnp.asarray(y[:rows]).reshape(8, -1)

@jax.jit
def passes(cut):
    stream = jax.lax.scan(lambda s, x: (s.update(*x), None), Stream(*W.shape), cut)[0]
    count = jax.lax.scan(lambda a, h: (a.update(h), None), stream.second_pass(W), cut[0])[0]
    return stream.result(W, agreement=count)

found["scan"] = numbers(passes(cut))
assert not jax.config.jax_enable_x64
assert jnp.ones(1).dtype == np.float32
print(json.dumps(found))
"""


def test_units_are_powers_of_two_so_that_a_division_rounds_nothing():
    size = np.exp2(np.random.default_rng(0).uniform(-1000, 1000, 1000))
    units = np.asarray(jax.jit(_core._power_of_two)(size))
    np.testing.assert_array_equal(units, np.ldexp(1.0, np.frexp(size)[1] - 1))
    edges = jnp.array([0.0, 5e-324, 2.0**-1022, 0.75, 1.0, 4.0, np.finfo(float).max, np.inf, np.nan])
    assert _core._power_of_two(edges).tolist() == [1, 1, 2.0**-1022, 0.5, 1, 4, 2.0**1023, 1, 1]


@pytest.mark.processor  # and so on each version of JAX: 0.12 compiled some functions in 32 bits
def test_where_64_bits_are_off():
    """In a process of its own, since the mode is set when the package is imported."""
    here = os.path.dirname(__file__)
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(here=here)],
        env=os.environ | {"UFM_ENABLE_X64": "0", "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    X, y, W = layer()
    X[:, 0] = 2500
    wide, short = exact(X, y, W), exact(X.astype(np.float32), y, W.astype(np.float32))
    rows = 8 * (len(y) // 8)
    cut = exact(X.astype(np.float32)[:rows], y[:rows], W.astype(np.float32))
    for name, got in json.loads(done.stdout.splitlines()[-1]).items():
        want = wide if name.startswith("float64") else cut if name == "scan" else short
        np.testing.assert_allclose(got, want, rtol=RTOL, err_msg=name)


def test_the_mode_of_the_process_stays():
    before = jax.config.jax_enable_x64
    X, y, W = layer(d=8)
    neural_collapse(X, y, W)
    Stream(*W.shape).update(X, y).result(W)
    with pytest.raises(ValueError, match="labels"):
        neural_collapse(X, y[1:], W)
    assert jax.config.jax_enable_x64 == before
