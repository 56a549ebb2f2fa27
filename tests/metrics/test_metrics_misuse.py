"""What the metrics refuse, and what they say."""

import jax
import numpy as np
import pytest
from metric_instances import D, K, instance

from ufm import Params
from ufm.metrics import Stream, neural_collapse, of_params

# --- misuse ---------------------------------------------------------------------------------------


def spoil(a, index, value):
    a = a.copy()
    a[index] = value
    return a


MISUSE = {
    "features one-dimensional": (
        lambda X, y, W, b: (X[0], y, W, b),
        r"features: expected shape \(N, d\), got \(7,\)",
    ),
    "features empty": (lambda X, y, W, b: (X[:0], y[:0], W, b), r"features: expected shape .* got \(0, 7\)"),
    "features integer": (lambda X, y, W, b: (X.astype(int), y, W, b), r"features: .*floating.* got int64"),
    "features complex": (lambda X, y, W, b: (X * 1j, y, W, b), r"features: .*floating.* got complex128"),
    "features ragged": (lambda X, y, W, b: ([[1.0], [1.0, 2.0]], y, W, b), r"features: expected an array"),
    "features NaN": (
        lambda X, y, W, b: (spoil(X, (3, 2), np.nan), y, W, b),
        r"features: expected finite values, got nan at \[3, 2\]",
    ),
    "features inf": (
        lambda X, y, W, b: (spoil(X, (3, 2), -np.inf), y, W, b),
        r"features: expected finite values, got -inf at \[3, 2\]",
    ),
    "labels short": (lambda X, y, W, b: (X, y[1:], W, b), r"labels: expected shape \(40,\).* got \(39,\)"),
    "labels one-hot": (lambda X, y, W, b: (X, np.eye(K)[y], W, b), r"labels: .* got \(40, 4\)"),
    "labels float": (lambda X, y, W, b: (X, y * 1.0, W, b), r"labels: expected integers, got dtype float64"),
    "labels bool": (lambda X, y, W, b: (X, y > 1, W, b), r"labels: expected integers, got dtype bool"),
    "labels large": (
        lambda X, y, W, b: (X, y + 1, W, b),
        r"labels: expected classes in 0\.\.3 \(K=4\), got 4",
    ),
    "labels negative": (lambda X, y, W, b: (X, y - 1, W, b), r"labels: expected classes in 0\.\.3 .* got -1"),
    "labels huge": (lambda X, y, W, b: (X, y + 2**32, W, b), r"labels: expected classes in 0\.\.3"),
    "W transposed": (lambda X, y, W, b: (X, y, W.T, b), r"W: expected shape \(K >= 2, 7\), got \(7, 4\)"),
    "W one class": (
        lambda X, y, W, b: (X, 0 * y, W[:1], b[:1]),
        r"W: expected shape \(K >= 2, 7\), got \(1, 7\)",
    ),
    "W NaN": (lambda X, y, W, b: (X, y, spoil(W, (1, 0), np.nan), b), r"W: .* got nan at \[1, 0\]"),
    "W None": (lambda X, y, W, b: (X, y, None, b), r"W: expected"),
    "b long": (lambda X, y, W, b: (X, y, W, np.zeros(5)), r"b: expected shape \(4,\), got \(5,\)"),
    "b inf": (
        lambda X, y, W, b: (X, y, W, spoil(b, 2, np.inf)),
        r"b: expected finite values, got inf at \[2\]",
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse(case):
    make, message = MISUSE[case]
    with pytest.raises(ValueError, match=message):
        neural_collapse(*make(*instance()))


STREAM_MISUSE = {
    "K": (lambda s, X, y, W, b: Stream(1, D), r"K: expected an integer >= 2, got 1"),
    "d": (lambda s, X, y, W, b: Stream(K, 0), r"d: expected an integer >= 1, got 0"),
    "dtype": (lambda s, X, y, W, b: Stream(K, D, dtype="float16"), r"dtype: .* got 'float16'"),
    "d of update": (lambda s, X, y, W, b: s.update(X[:, :6], y), r"features: expected shape \(N, 7\)"),
    "labels": (lambda s, X, y, W, b: s.update(X, y + 1), r"labels: expected classes in 0\.\.3"),
    "NaN": (lambda s, X, y, W, b: s.update(X * np.nan, y), r"features: expected finite .* \[0, 0\]"),
    "mask dtype": (lambda s, X, y, W, b: s.update(X, y, mask=y), r"mask: expected booleans .* got int64"),
    "mask shape": (
        lambda s, X, y, W, b: s.update(X, y, mask=y[1:] > 0),
        r"mask: .*\(40,\), got bool \(39,\)",
    ),
    "NaN inside the mask": (
        lambda s, X, y, W, b: s.update(spoil(X, [1, 5], np.nan), y, mask=np.arange(40) > 3),
        r"features: expected finite .* \[5, 0\]",
    ),
    "merge": (
        lambda s, X, y, W, b: s.merge(Stream(K, 8)),
        r"other: .*\(4, 7, 'float64'\), got \(4, 8, 'float64'\)",
    ),
    "merge dtype": (lambda s, X, y, W, b: s.merge(Stream(K, D, dtype="float32")), r"other: .*'float32'"),
    "no sample": (lambda s, X, y, W, b: Stream(K, D).result(W), r"stream: expected at least one sample"),
    "K of W": (lambda s, X, y, W, b: s.result(W[:3]), r"W: expected shape \(4, 7\), got \(3, 7\)"),
    "d of W": (lambda s, X, y, W, b: s.second_pass(W[:, 1:]), r"W: expected shape \(4, 7\), got \(4, 6\)"),
    "d of second pass": (
        lambda s, X, y, W, b: s.second_pass(W).update(X[:, 1:]),
        r"features: expected shape",
    ),
    "NaN in second pass": (lambda s, X, y, W, b: s.second_pass(W).update(X * np.nan), r"features: .*finite"),
    "convention": (
        lambda s, X, y, W, b: s.result(W, convention="papan"),
        r"convention: .*did you mean 'papyan'",
    ),
    "convention of second pass": (
        lambda s, X, y, W, b: s.second_pass(W, convention="x"),
        r"convention: expected",
    ),
    "convention of batch": (
        lambda s, X, y, W, b: neural_collapse(X, y, W, convention=""),
        r"convention: expected one",
    ),
    "H": (lambda s, X, y, W, b: of_params(Params(W, X[0], b), y), r"H: expected shape \(d, N\), got \(7,\)"),
}


@pytest.mark.parametrize("case", STREAM_MISUSE)
def test_misuse_of_streams(case):
    act, message = STREAM_MISUSE[case]
    X, y, W, b = instance()
    with pytest.raises(ValueError, match=message):
        act(Stream(K, D).update(X, y), X, y, W, b)


def test_shapes_are_checked_inside_jit():
    X, y, W, b = instance()
    with pytest.raises(ValueError, match=r"labels: expected shape \(40,\)"):
        jax.jit(neural_collapse)(X, y[1:], W, b)
