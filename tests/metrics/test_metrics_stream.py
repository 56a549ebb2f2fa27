"""Streams: the metrics of a whole from its parts."""

from functools import reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_instances import D, K, assert_close, instance
from test_metrics import collapsed

from ufm.metrics import CONVENTIONS, Stream, neural_collapse

# --- streams --------------------------------------------------------------------------------------


def cut(N: int, sizes) -> list[np.ndarray]:
    """Consecutive slices of the given sizes, and the rest."""
    ends = [0, *np.cumsum(sizes), N]
    return [np.arange(i, j) for i, j in pairwise(ends) if j > i]


def streamed(X, y, parts, dtype=np.float64) -> Stream:
    return reduce(lambda s, p: s.update(X[p], y[p]), parts, Stream(K, D, dtype=dtype))


SPLITS = {"ones": [1] * 39, "tens": [10, 10, 10], "uneven": [1, 10, 1, 10, 1], "whole": []}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_stream_is_the_batch(split, convention):
    X, y, W, b = instance(seed=4, spread=0.8, offset=10.0)
    want = neural_collapse(X, y, W, b, convention=convention)
    order = np.random.default_rng(1).permutation(40)
    parts = [order[p] for p in cut(40, SPLITS[split])]
    stream = streamed(X, y, parts)
    first = stream.result(W, b, convention=convention)
    assert first.nc4 is None
    assert_close(first, want._replace(nc4=None))
    agreement = stream.second_pass(W, b, convention=convention)
    agreement = reduce(lambda a, p: a.update(X[p]), parts[::-1], agreement)
    assert 0 < want.nc4 < 1
    assert_close(stream.result(W, b, agreement=agreement, convention=convention), want)


def test_rounding_leaves_no_negative_scatter():
    """Scatter outside the means' span only: the stream's square along an axis is a rounded zero."""
    for seed in range(6):
        X, y, P, _ = collapsed(K, D, across=50.0, seed=seed)
        nc = streamed(X, y, [np.arange(40)]).result(P)
        assert 0 <= nc.nc1 < 1e-12


def test_float32_stream():
    X, y, W, b = instance(seed=4, spread=0.8, dtype=np.float32)
    stream = streamed(X, y, cut(40, SPLITS["tens"]), dtype=np.float32)
    nc = stream.result(W.astype(np.float64), b)  # the stream's dtype decides
    assert nc.nc1.dtype == np.float32
    assert_close(nc, neural_collapse(X, y, W, b)._replace(nc4=None))
    assert Stream(K, D).dtype == np.float64
    wide = Stream(K, D, dtype=jnp.float32).update(X.astype(np.float64), y)
    assert (wide.dtype, wide.result(W).nc1.dtype) == (np.float32, np.float32)
    assert wide.scatter.dtype == stream.scatter.dtype == np.float64  # sums are float64


@pytest.mark.float32
def test_streams_merge_in_any_tree():
    X, y, W, b = instance(seed=6, spread=0.8, offset=10.0)
    order = np.argsort(y, kind="stable")  # so that parts miss classes
    parts = [order[p] for p in cut(40, [10, 10, 10])]
    want = neural_collapse(X, y, W, b)._replace(nc4=None)
    one, two, three, four = (Stream(K, D).update(X[p], y[p]) for p in parts)
    empty = Stream(K, D)
    trees = {
        "left": one.merge(two).merge(three).merge(four),
        "right": one.merge(two.merge(three.merge(four))),
        "crossed": four.merge(two).merge(one.merge(three)),
        "with empty": empty.merge(one.merge(empty)).merge(two).merge(three.merge(four)).merge(empty),
        "then update": one.merge(three).update(X[parts[1]], y[parts[1]]).merge(four),
    }
    for tree in trees.values():
        assert_close(tree.result(W, b), want)
        np.testing.assert_allclose(tree.scatter, trees["left"].scatter, rtol=1e-12, atol=1e-12)
    for name in ("counts", "means", "origin", "noise"):
        same = (getattr(s.classes, name) for s in (one, empty.merge(one), one.merge(empty)))
        a, b_, c = map(np.asarray, same)
        assert np.array_equal(a, b_)
        assert np.array_equal(a, c)


def test_agreements_merge():
    X, y, W, b = instance(seed=4, spread=0.8)
    start = Stream(K, D).update(X, y).second_pass(W, b)
    one, two = start.update(X[:10]), start.update(X[10:])
    assert start.value == 0
    assert (one.seen, two.seen) == (10, 30)
    assert one.merge(two).value == start.update(X).value == neural_collapse(X, y, W, b).nc4


@pytest.mark.float32
def test_masked_rows_are_padding():
    X, y, W, b = instance(seed=4, spread=0.8)
    padded = np.concatenate([np.full((3, D), np.nan), X, np.full((5, D), 1e30)])
    labels = np.concatenate([[-1, 99, 0], y, [2] * 5])
    mask = np.concatenate([np.zeros(3, bool), np.ones(40, bool), np.zeros(5, bool)])
    stream = Stream(K, D).update(padded, labels, mask=mask)
    agreement = stream.second_pass(W, b).update(padded, mask=mask)
    assert_close(stream.result(W, b, agreement=agreement), neural_collapse(X, y, W, b))
    none = np.zeros(48, bool)
    nothing = stream.update(padded, labels, mask=none)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(Stream(K, D).update(padded, labels, mask=none)))
    for a, b_ in zip(jax.tree.leaves(stream), jax.tree.leaves(nothing), strict=True):
        assert np.array_equal(a, b_)


@pytest.mark.float32
def test_stream_inside_scan_jit_and_vmap():
    X, y, W, b = instance(seed=4, spread=0.8)
    batches = jnp.asarray(X).reshape(4, 10, D), jnp.asarray(y).reshape(4, 10)

    @jax.jit
    def both_passes(batches):
        step = lambda s, batch: (s.update(*batch), None)  # noqa: E731
        stream = jax.lax.scan(step, Stream(K, D), batches)[0]
        count = lambda a, features: (a.update(features), None)  # noqa: E731
        agreement = jax.lax.scan(count, stream.second_pass(W, b), batches[0])[0]
        return stream.result(W, b, agreement=agreement)

    want = neural_collapse(X, y, W, b)
    assert_close(both_passes(batches), want)
    streams = jax.vmap(lambda X, y: Stream(K, D).update(X, y))(*batches)  # one a device
    parts = [jax.tree.map(lambda x, i=i: x[i], streams) for i in range(4)]
    assert_close(reduce(Stream.merge, parts).result(W, b), want._replace(nc4=None))


@pytest.mark.float32
def test_updates_leave_the_old_stream_alone():
    X, y, *_ = instance()
    stream = Stream(K, D)
    stream.update(X, y)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(stream))
    with pytest.raises(AttributeError):
        stream.scatter = 0
