"""Features, labels and classifiers of the tests of metrics, and how numbers of two results are compared."""

import numpy as np
from tolerances import close

K, D = 4, 7


COUNTS = (5, 9, 14, 12)
NUMBERS = ("nc1", "nc2", "nc3", "nc4")


def assert_close(got, want) -> None:
    """Every number of two results, up to 100 roundings of the coarser dtype; inf only where expected."""
    for name in got._fields:
        g, w = getattr(got, name), getattr(want, name)
        assert (g is None) == (w is None), name
        if g is None:
            continue
        g, w = np.asarray(g), np.asarray(w)
        finite = np.isfinite(w)
        np.testing.assert_array_equal(g[~finite], w[~finite], err_msg=name)
        close(g[finite], w[finite], ulps=100, scale=np.maximum(np.abs(w[finite]), 1), name=name)


def instance(seed=0, counts=COUNTS, d=D, spread=0.4, offset=0.0, dtype=np.float64):
    """Shuffled features of unequal classes around random means, and a classifier near the means."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = rng.standard_normal((len(counts), d)) + offset * rng.standard_normal(d)
    X = means[y] + spread * rng.standard_normal((y.size, d))
    W = means - means.mean(0) + 0.3 * rng.standard_normal(means.shape)
    b = 0.5 * rng.standard_normal(len(counts))
    return X.astype(dtype), y, W.astype(dtype), b.astype(dtype)


def etf(k: int) -> np.ndarray:
    """I - 11^T/k."""
    return np.eye(k) - 1 / k
