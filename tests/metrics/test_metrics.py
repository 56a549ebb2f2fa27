"""The metrics against dense numpy, closed forms and their symmetries."""

from collections.abc import Iterator
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_instances import NUMBERS, D, K, assert_close, etf, instance
from tolerances import close

from ufm import metrics
from ufm.metrics import CONVENTIONS, Stream, neural_collapse

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
