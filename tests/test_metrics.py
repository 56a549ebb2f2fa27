"""The metrics against dense numpy, closed forms, their symmetries and their degenerate inputs."""

from collections.abc import Iterator
from functools import reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from ufm import Params, metrics
from ufm.metrics import CONVENTIONS, Stream, _batch, _core, neural_collapse, of_params

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


# --- witness: the formulas word by word, with d x d matrices --------------------------------------


class Dense:
    """Counts, means and scatter as every source has them; `even` is Papyan's and rhubarbwu's centre."""

    def __init__(self, X, y, W, b=None, *, even=False):
        X, W = np.asarray(X, np.float64), np.asarray(W, np.float64)
        self.X, self.y, self.W, self.K = X, y, W, len(W)
        self.b = np.zeros(self.K) if b is None else np.asarray(b, np.float64)
        self.means = np.array([X[y == k].mean(axis=0) for k in range(self.K)])
        self.mean = X.mean(axis=0)
        self.centred = self.means - (self.means.mean(axis=0) if even else self.mean)
        self.mean_logit_norm = np.linalg.norm(W @ self.mean + self.b)

    def trace(self):
        d = self.X.shape[1]
        within, between = np.zeros((d, d)), np.zeros((d, d))
        for x, k in zip(self.X, self.y, strict=True):
            within += np.outer(x - self.means[k], x - self.means[k]) / len(self.X)
        for m in self.centred:
            between += np.outer(m, m) / self.K
        return np.trace(within @ np.linalg.pinv(between, rcond=1e-11))

    def etf_distance(self, G):
        return np.linalg.norm(G / np.linalg.norm(G) - etf(self.K) / np.sqrt(self.K - 1))

    def agreement(self, b):
        hits = 0
        for x in self.X:
            nearest = np.argmin([np.linalg.norm(x - m) for m in self.means])
            hits += nearest == np.argmax(self.W @ x + b)
        return hits / len(self.X)


def paper(X, y, W, b):
    """Zhou et al. 2022, Section 4: h_G is the mean of all samples."""
    w = Dense(X, y, W, b)
    return (
        w.trace() / w.K,
        w.etf_distance(w.W @ w.W.T),
        w.etf_distance(w.W @ w.centred.T),
        w.agreement(w.b),
    )


def nc_loss(X, y, W, b):
    """evaluate.py: mu_G is the sum of all features over their number; W minus its mean over classes."""
    w = Dense(X, y, W, b)
    C = w.W - w.W.mean(axis=0)
    return w.trace() / w.K, w.etf_distance(C @ C.T), w.etf_distance(C @ w.centred.T), w.agreement(w.b)


def papyan(X, y, W, b):
    """The notebook's `analysis`: muG is the mean of M's columns; NC1 by the C - 1 leading eigenvalues."""
    w = Dense(X, y, W, b, even=True)
    values, vectors = np.linalg.eigh(w.centred.T @ w.centred / w.K)
    r = min(w.K - 1, len(values))
    inverse = vectors[:, -r:] / values[-r:] @ vectors[:, -r:].T
    D = w.X - w.means[w.y]
    aligned = w.W / np.linalg.norm(w.W) - w.centred / np.linalg.norm(w.centred)
    nc2 = w.etf_distance(w.W @ w.W.T)  # the notebook has several numbers and none of this form: the paper's
    return np.trace(D.T @ D / len(D) @ inverse), nc2, np.linalg.norm(aligned) ** 2, w.agreement(w.b)


def rhubarbwu(X, y, W, b):
    """accumulate.py and measure.py: m_G is the mean of the class means, unless `weighted` is asked for."""
    w = Dense(X, y, W, even=True)
    return (
        w.trace() / w.K,
        w.etf_distance(w.centred @ w.centred.T),
        w.etf_distance(w.W @ w.centred.T),
        w.agreement(0),
    )


WITNESS = {"paper": paper, "nc_loss": nc_loss, "papyan": papyan, "rhubarbwu": rhubarbwu}


def assert_witnessed(nc, convention, X, y, W, b):
    values = dict(zip(NUMBERS, WITNESS[convention](X, y, W, b), strict=True))
    want = nc._replace(**values, mean_logit_norm=Dense(X, y, W, b).mean_logit_norm)
    assert_close(nc, want)


def test_every_convention_has_a_witness_and_a_source():
    assert set(WITNESS) == set(CONVENTIONS)
    for rule in CONVENTIONS.values():  # with unequal counts the two centres differ
        assert ("mean of the class means" if rule.even else "mean of all samples") in rule.source


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("b_scale", [0.0, 1.0])
def test_agrees_with_the_dense_formulas(convention, b_scale):
    X, y, W, b = instance(seed=3, spread=1.0, offset=0.5)
    b = b_scale * b
    nc = neural_collapse(X, y, W, b, convention=convention)
    assert 0.3 < nc.nc4 < 0.95  # a test of NC4 needs both outcomes
    assert_witnessed(nc, convention, X, y, W, b)
    assert (nc.rank, nc.present) == (K - 1, K)


def test_unequal_counts_by_hand():
    """Counts 2 and 4: class means (1, 0) and (0, 4), their mean (1/2, 2), that of the samples (1/3, 8/3)."""
    X = np.array([[0.0, 0], [2, 0], [0, 1], [0, 3], [0, 5], [0, 7]])
    y, W = np.array([0, 0, 1, 1, 1, 1]), np.eye(2)
    # Sigma_W = diag(1/3, 10/3) is 161/51 along the difference (-1, 4), whose square is 17; Sigma_B is
    # 17 (1/4 + 1/4)/2 about the mean of the means and 17 (4/9 + 1/9)/2 about that of the samples
    even, samples = 161 / 51 / (17 / 4), 161 / 51 / (85 / 18)
    gram = np.sqrt(2 - np.sqrt(2))  # of W = I: |I/sqrt 2 - (I - 11'/2)|
    want = {
        "paper": (samples / 2, gram, 0.61075),
        "nc_loss": (samples / 2, 0.0, 0.32036),
        "papyan": (even, gram, 0.78732),
        "rhubarbwu": (even / 2, 0.0, 0.53387),
    }
    np.testing.assert_allclose((samples / 2, even / 2), (0.33426, 0.37140), atol=5e-6)
    for convention, (nc1, nc2, nc3) in want.items():
        close(np.array(WITNESS[convention](X, y, W, np.zeros(2))[:2]), np.array([nc1, nc2]), scale=1)
        for nc in each_way(X, y, W, convention=convention):
            close(np.array(nc[:2]), np.array([nc1, nc2]), scale=1, name=convention)
            np.testing.assert_allclose(nc.nc3, nc3, atol=5e-6, err_msg=convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("counts", [(2, 3, 40), (60, 1, 4, 9), (1, 2, 3, 4, 5, 30)])
def test_unequal_counts_every_way(counts, convention):
    for seed in range(3):
        X, y, W, b = instance(seed=seed, counts=counts, d=8, spread=1.0, offset=3.0)
        for nc in each_way(X, y, W, b, convention):
            assert_witnessed(nc, convention, X, y, W, b)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_centre_matters_only_where_counts_differ(convention):
    X, y, W, b = instance(counts=(7, 7, 7, 7), spread=1.0)
    other = CONVENTIONS[convention]
    other = other._replace(even=not other.even)
    balanced, swapped = (_of_row(X, y, W, b, rule) for rule in (CONVENTIONS[convention], other))
    assert_close(balanced, swapped)
    X, y, W, b = instance(spread=1.0)
    unequal, swapped = (_of_row(X, y, W, b, rule) for rule in (CONVENTIONS[convention], other))
    assert abs(unequal.nc1 - swapped.nc1) > 1e-3
    assert unequal.mean_logit_norm == swapped.mean_logit_norm  # of the mean of all samples in each


def _of_row(X, y, W, b, row):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONVENTIONS, "row", row)
        return neural_collapse(X, y, W, b, convention="row")


def test_bias_defaults_to_zero():
    X, y, W, _ = instance()
    assert_close(neural_collapse(X, y, W), neural_collapse(X, y, W, np.zeros(K)))


def test_fewer_dimensions_than_class_means_span():
    X, y, W, b = instance(seed=1, counts=(4, 6, 5, 7, 8, 10), d=3, spread=1.0)
    nc = neural_collapse(X, y, W, b)
    assert_witnessed(nc, "paper", X, y, W, b)
    assert nc.rank == 3


def test_a_convention_is_one_row(monkeypatch):
    X, y, W, b = instance()
    plain = neural_collapse(X, y, W, b)
    row = CONVENTIONS["paper"]._replace(source="a test", nc3=lambda f: 7 * CONVENTIONS["paper"].nc3(f))
    monkeypatch.setitem(CONVENTIONS, "mine", row)
    nc = neural_collapse(X, y, W, b, convention="mine")
    stream = Stream(K, D).update(X, y)
    streamed = stream.result(W, b, agreement=stream.second_pass(W, b).update(X), convention="mine")
    assert_close(nc, plain._replace(nc3=7 * plain.nc3))
    assert_close(streamed, nc)


# --- closed forms ---------------------------------------------------------------------------------


def collapsed(k=4, d=7, n=5, *, scale=2.0, noise=0.0, across=0.0, seed=0):
    """Means scale (I - 11^T/k) Q^T; samples at +-noise inside their span and +-across outside."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0].T
    P = etf(k) @ Q[:k]
    inside = rng.standard_normal(k) @ P
    outside = rng.standard_normal(d - k) @ Q[k:]
    step = noise * inside / np.linalg.norm(inside) + across * outside / np.linalg.norm(outside)
    y = rng.permutation(np.tile(np.arange(k), 2 * n))
    sign = np.zeros(y.size)
    for c in range(k):
        sign[y == c] = rng.permutation(np.repeat([1.0, -1.0], n))
    return scale * P[y] + sign[:, None] * step, y, P, rng


def test_exact_collapse():
    X, y, P, _ = collapsed()
    for convention in CONVENTIONS:
        nc = neural_collapse(X, y, 3 * P, convention=convention)
        assert_close(nc, nc._replace(nc1=0.0, nc2=0.0, nc3=0.0, nc4=1.0, mean_logit_norm=0.0))
        assert nc.nc1 < 1e-28


@pytest.mark.parametrize("noise", [1e-7, 0.3])
def test_known_noise_on_a_known_etf(noise):
    # Sigma_B = (scale^2/K) P and Sigma_W = noise^2 u u^T with |u| = 1 in P's range: NC1 = noise^2 / scale^2;
    # scatter outside the range counts nothing
    X, y, P, _ = collapsed(scale=2.0, noise=noise, across=0.5)
    nc = neural_collapse(X, y, P)
    np.testing.assert_allclose(nc.nc1, noise**2 / 4, rtol=1e-12 / noise)
    papyan = neural_collapse(X, y, P, convention="papyan")
    np.testing.assert_allclose(papyan.nc1, 4 * nc.nc1, rtol=1e-12 / noise)  # another centre rounds otherwise


def test_uncentred_classifier_of_the_protocol():
    """An ETF with 1 % noise and a common offset: 1.209 uncentred, 0.038 centred."""
    k, d, offset = 10, 16, 1.035
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((d, k + 1)))[0].T
    P, v = etf(k) @ Q[:k], offset * Q[k]
    X, y = np.tile(P, (12, 1)), np.tile(np.arange(k), 12)
    # W W^T = P + |v|^2 11^T, so <W W^T, P> = k - 1 and |W W^T|_F^2 = (k - 1) + k^2 |v|^4
    exact = np.sqrt(2 - 2 / np.sqrt(1 + (k * offset**2) ** 2 / (k - 1)))
    np.testing.assert_allclose(neural_collapse(X, y, P + v).nc2, exact, rtol=1e-12)
    W = P + v + 0.01 * rng.standard_normal((k, d))
    paper, centred = (neural_collapse(X, y, W, convention=c).nc2 for c in ("paper", "nc_loss"))
    assert abs(paper - 1.209) < 5e-3
    assert abs(centred - 0.038) < 0.01


def test_the_bias_belongs_to_the_classifier_of_nc4():
    """An offset in the features, undone by the bias: agreement 1 with it, 1/K without."""
    k, d = 10, 16
    X, y, P, rng = collapsed(k, d, n=6, noise=0.05)
    offset, W = 100 * rng.standard_normal(d), P + 0.3 * rng.standard_normal((k, d))
    b = -W @ offset
    assert neural_collapse(X + offset, y, W, b).nc4 == 1
    assert neural_collapse(X + offset, y, W, b, convention="rhubarbwu").nc4 == 0.1
    np.testing.assert_allclose(neural_collapse(X, y, W, b).mean_logit_norm, np.linalg.norm(b), rtol=1e-10)
    np.testing.assert_allclose(neural_collapse(X + offset, y, W, b).mean_logit_norm, 0, atol=1e-10)


def stretched(stretch, noise, k=5, d=9, n=3, seed=0):
    """Balanced classes whose centred means have singular values `stretch`; noise_i along the ith axis."""
    rng = np.random.default_rng(seed)
    basis = np.column_stack([np.ones(k), rng.standard_normal((k, k - 1))])
    U = np.linalg.qr(basis)[0][:, 1:]  # orthogonal to 1
    V = np.linalg.qr(rng.standard_normal((d, k - 1)))[0]
    y = np.tile(np.arange(k), 2 * (k - 1) * n)
    i = np.repeat(np.arange(2 * (k - 1) * n), k) % (2 * (k - 1))  # axis and sign of each sample
    sign = 1.0 - 2.0 * (i % 2)
    X = (U * stretch @ V.T)[y] + (sign * np.asarray(noise)[i // 2])[:, None] * V.T[i // 2]
    p = rng.permutation(y.size)
    return X[p], y[p], U @ V.T


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-8])
def test_nearly_dependent_class_means(smallest):
    # NC1 = sum_i noise_i^2 / stretch_i^2 / (K - 1): the share 1/(K - 1) of the samples moves along each axis.
    # pinv's default cut-off is relative 1e-15 on stretch^2 and would drop or invent directions here.
    stretch = np.array([1.0, 0.3, 10 * smallest, smallest])
    noise = np.array([0.1, 0.2, 0.01, 0.5]) * stretch
    X, y, W = stretched(stretch, noise)
    exact = np.sum(noise**2 / stretch**2) / 4
    nc = neural_collapse(X, y, W)
    assert nc.rank == 4
    bound = 1e-14 / smallest
    np.testing.assert_allclose(nc.nc1, exact, rtol=bound)
    # the stream keeps d x d squares: its digits end at the square
    if smallest > 1e-6:
        np.testing.assert_allclose(Stream(5, 9).update(X, y).result(W).nc1, exact, rtol=1e-13 / smallest**2)


def test_dependent_class_means_are_counted_as_the_pseudoinverse_does():
    # two axes only: scatter along the other axes counts nothing
    stretch, noise = np.array([1.0, 0.5, 0.0, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    X, y, W = stretched(stretch, noise)
    nc = neural_collapse(X, y, W)
    assert nc.rank == 2
    np.testing.assert_allclose(nc.nc1, (0.1**2 + 0.4**2) / 4, rtol=1e-12)


# --- symmetries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_symmetries(convention):
    X, y, W, b = instance(seed=5, spread=0.8, offset=1.0)
    rng = np.random.default_rng(0)
    want = neural_collapse(X, y, W, b, convention=convention)
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0]
    assert_close(neural_collapse(X @ turn, y, W @ turn, b, convention=convention), want)
    order = rng.permutation(len(y))
    assert_close(neural_collapse(X[order], y[order], W, b, convention=convention), want)
    rename = rng.permutation(K)  # class k becomes rename[k]
    back = np.argsort(rename)
    assert_close(neural_collapse(X, rename[y], W[back], b[back], convention=convention), want)
    scaled = neural_collapse(3 * X, y, W / 3, b, convention=convention)
    assert_close(scaled, want)
    moved = neural_collapse(X + 5.0, y, W, b - 5.0 * W.sum(axis=1), convention=convention)
    assert_close(moved, want._replace(nc4=want.nc4 if CONVENTIONS[convention].bias else moved.nc4))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_scale_costs_no_digits(size):
    X, y, W, _ = instance(seed=5)
    want = neural_collapse(X, y, W)
    assert_close(
        neural_collapse(size * X, y, W)._replace(mean_logit_norm=0), want._replace(mean_logit_norm=0)
    )
    assert_close(
        neural_collapse(X, y, size * W)._replace(mean_logit_norm=0), want._replace(mean_logit_norm=0)
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_common_offset_costs_no_digits(dtype):
    # in float32 the offset rounds the features to 1/16: the witness gets the rounded ones, in float64
    X, y, W, b = instance(seed=2, spread=0.3)
    X = (X + 1e6).astype(dtype)
    W, b = W.astype(dtype), b.astype(dtype)
    dense = Dense(X.astype(np.longdouble) - 1e6, y, W)
    want = [dense.trace() / K, dense.etf_distance(W @ W.T), dense.etf_distance(W @ dense.centred.T)]
    stream = reduce(lambda s, i: s.update(X[i], y[i]), np.split(np.arange(40), 4), Stream(K, D, dtype=dtype))
    for nc in (neural_collapse(X, y, W), stream.result(W)):
        close(np.array(nc[:3]), np.array(want, dtype), ulps=64, scale=1)


# --- libraries and dtypes -------------------------------------------------------------------------


def test_jax_numpy_torch_and_lists_agree():
    torch = pytest.importorskip("torch")
    X, y, W, b = instance(dtype=np.float32)
    want = neural_collapse(X, y, W, b)
    inputs = {
        "jax": tuple(map(jnp.asarray, (X, y, W, b))),
        "torch": (torch.tensor(X, requires_grad=True), *map(torch.from_numpy, (y, W, b))),
        "mixed": (torch.from_numpy(X), jnp.asarray(y), W, torch.nn.Parameter(torch.from_numpy(b))),
    }
    for given in inputs.values():
        got = neural_collapse(*given)
        assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
    as_lists = neural_collapse(X.tolist(), y.tolist(), W.tolist(), b.tolist())
    assert as_lists.nc1.dtype == np.float64
    assert_close(as_lists, want)
    half = neural_collapse(torch.from_numpy(X).bfloat16(), y, W, b)
    rounded = neural_collapse(torch.from_numpy(X).bfloat16().float(), y, W, b)
    assert all(np.array_equal(g, w) for g, w in zip(half, rounded, strict=True))


@pytest.mark.parametrize(
    ("given", "computed"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")],
)
def test_dtypes(given, computed):
    try:
        jnp.ones(1, given).astype(computed).block_until_ready()
    except jax.errors.JaxRuntimeError:  # "Symbols not found: [ __extendhfsf2 ]"
        assert given == "float16"
        pytest.skip("XLA cannot convert float16 on a processor without F16C")
    X, y, W, b = instance()
    nc = neural_collapse(*(jnp.asarray(a).astype(given) if a is not y else y for a in (X, y, W, b)))
    assert {str(x.dtype) for x in nc[:5]} == {computed}
    rounded = (np.asarray(jnp.asarray(a).astype(given).astype("float64")) for a in (X, W, b))
    X, W, b = rounded
    assert_witnessed(nc, "paper", X, y, W, b)
    assert neural_collapse(X.astype(np.float32), y, W).nc1.dtype == np.float64  # mixed: the widest


def test_strict_promotion():
    X, y, W, b = instance()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for convention in CONVENTIONS:
            nc = neural_collapse(X, y.astype(np.int8), W, b, convention=convention)
            stream = Stream(K, D).update(X, y, mask=y < 9).merge(Stream(K, D))
            agreement = stream.second_pass(W, b, convention=convention).update(X, mask=y < 9)
            streamed = stream.result(W, b, agreement=agreement, convention=convention)
            assert_close(streamed, nc)


# --- degenerate input -----------------------------------------------------------------------------


def assert_no_nan(nc):
    assert not any(np.isnan(x).any() for x in nc if x is not None)


def each_way(X, y, W, b=None, convention="paper") -> Iterator[metrics.NeuralCollapse]:
    """The metrics of a batch, and of a stream in four batches."""
    yield neural_collapse(X, y, W, b, convention=convention)
    parts = [p for p in np.array_split(np.arange(len(y)), 4) if p.size]
    dtype = np.result_type(X, W)
    stream = reduce(lambda s, p: s.update(X[p], y[p]), parts, Stream(len(W), X.shape[1], dtype=dtype))
    agreement = stream.second_pass(W, b, convention=convention)
    agreement = reduce(lambda a, p: a.update(X[p]), parts, agreement)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((stream, agreement)))
    yield stream.result(W, b, agreement=agreement, convention=convention)


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
    measure = jax.make_jaxpr(lambda *a: _batch._measure(*a, a[-1], jnp.asarray(False), kind, 1e-16))
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


def test_updates_leave_the_old_stream_alone():
    X, y, *_ = instance()
    stream = Stream(K, D)
    stream.update(X, y)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(stream))
    with pytest.raises(AttributeError):
        stream.scatter = 0


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
