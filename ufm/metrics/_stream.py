"""The metrics of features that come in batches: one state, updated, merged, read."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from ufm import _checks
from ufm._pytree import pytree_dataclass, replace, static
from ufm.metrics import _core, _inputs
from ufm.metrics._core import ClassMeans, NeuralCollapse
from ufm.metrics.conventions import Facts, dot

#: rows of one product for the scatter: its d x d sum is written once for this many rows
BLOCK = 4096


@pytree_dataclass
class Stream:
    """NC1-NC3 of features that come in batches, in O(d^2 + K d) memory, and NC4 by a second pass.

        stream = ufm.metrics.Stream(K, d)
        for features, labels in batches:
            stream = stream.update(features, labels)
        agreement = stream.second_pass(W, b)
        for features, labels in batches:
            agreement = agreement.update(features)
        nc = stream.result(W, b, agreement=agreement)

    The state is a pytree of counts, class means and within-class scatter; `update` returns a new one and may
    stand inside jit or scan. Streams over parts of the data (devices, workers) are joined by `merge`. Order
    and size of the batches change the result by rounding only.

    Args:
        K: classes, >= 2.  d: feature dimension.
        dtype: float32 or float64, of the result.  Default: JAX's own float (float64 where 64 bits are
            enabled). The state is float64 in both: a square of float32 ends at half its digits.

    Source: the pairwise update of Chan, Golub & LeVeque 1983, class by class.

    >>> import numpy as np, ufm.metrics
    >>> etf = np.eye(3) - 1 / 3
    >>> stream = ufm.metrics.Stream(3, 3).update(etf, [0, 1, 2]).update(2 * etf, [0, 1, 2])
    >>> round(float(stream.result(etf).nc1), 12)  # within-class 1/4 a class, between (3/2)^2
    0.074074074074
    """

    classes: ClassMeans
    scatter: Float[Array, "d d"]  # sum over samples of (h - h_k)(h - h_k)^T = N Sigma_W
    dtype: Any = static()

    def __init__(self, K: int, d: int, *, dtype: Any = None) -> None:
        K, d = _checks.integer("K", K, least=2), _checks.integer("d", d, least=1)
        state = (*_nothing(K, d), _inputs.dtype(dtype))
        for name, value in zip(("classes", "scatter", "dtype"), state, strict=True):
            object.__setattr__(self, name, value)

    @property
    def K(self) -> int:
        """Number of classes."""
        return int(self.classes.means.shape[0])

    @property
    def d(self) -> int:
        """Feature dimension."""
        return int(self.classes.means.shape[1])

    @_core.in_float64
    def update(self, features: Any, labels: Any, *, mask: Any = None) -> Stream:
        """The stream with a batch more.

        Args:
            features: (N, d), one row a sample.  labels: (N,) integers in 0..K-1.
            mask: (N,) booleans; False marks padding, whose feature and label are not read.

        Raises:
            ValueError: wrong shapes, labels outside 0..K-1, features not finite (values are not read in jit).
        """
        X, valid = _inputs.batch(features, mask, self.d)
        return _update(self, X, _inputs.labels(labels, X.shape[0], self.K, valid), valid)

    @_core.in_float64
    def merge(self, other: Stream) -> Stream:
        """The stream of both streams' samples.

        Raises:
            ValueError: the other has another K, d or dtype.
        """
        mine, theirs = ((s.K, s.d, str(s.dtype)) for s in (self, other))
        if mine != theirs:
            raise ValueError(f"other: expected a stream with (K, d, dtype) = {mine}, got {theirs}")
        return _merge(self, other)

    @_core.in_float64
    def second_pass(self, W: Any, b: Any = None, *, convention: str = "paper") -> Agreement:
        """A counter for NC4 against the class means of this stream, to be run over the samples once more.

        Raises:
            ValueError: as `result`.
        """
        rule = _inputs.convention(convention)
        W, b = _inputs.classifier(W, b, self.d, self.K)
        W, b = W.astype(jnp.float64), b.astype(jnp.float64)
        return _second_pass(self, W, b if rule.bias else jnp.zeros_like(b), np.bool_(rule.even))

    @_core.in_float64
    def result(
        self, W: Any, b: Any = None, *, agreement: Agreement | None = None, convention: str = "paper"
    ) -> NeuralCollapse:
        """The metrics of all samples so far; nc4 is that of `agreement`, None without.

        Args:
            W: (K, d) classifier.  b: (K,) bias; None is zero.
            agreement: the counter of `second_pass`, run.
            convention: a name of `CONVENTIONS`.

        Raises:
            ValueError: no sample yet, wrong shapes, values that are not finite, an unknown convention.
        """
        rule = _inputs.convention(convention)
        W, b = _inputs.classifier(W, b, self.d, self.K)
        counts = self.classes.counts
        if not isinstance(counts, jax.core.Tracer) and not np.asarray(counts).any():
            raise ValueError("stream: expected at least one sample, got none; call update first")
        eps, even = _inputs.eps(W), np.bool_(rule.even)
        facts = _facts(self, W.astype(jnp.float64), b.astype(jnp.float64), even, eps)
        return _core.read(facts, None if agreement is None else agreement.value, rule, self.dtype)


@_core.in_float64
def _nothing(K: int, d: int) -> tuple[ClassMeans, Float[Array, "d d"]]:
    """The state before the first sample."""
    zero = jnp.zeros(d, jnp.float64)
    classes = ClassMeans(jnp.zeros(K, jnp.int64), jnp.zeros((K, d), jnp.float64), zero, zero)
    return classes, jnp.zeros((d, d), jnp.float64)


def _merge_means(p: ClassMeans, q: ClassMeans) -> tuple[ClassMeans, Float[Array, "K d"]]:
    """The means of two sets of samples, and the K rows whose outer products the scatter gains."""
    origin = jnp.where(jnp.any(p.counts > 0), p.origin, q.origin)
    mine, theirs = (
        jnp.where((c.counts > 0)[:, None], c.means + (c.origin - origin)[None, :], 0) for c in (p, q)
    )
    n, m = (c.counts.astype(mine.dtype)[:, None] for c in (p, q))
    share = m / jnp.maximum(n + m, 1)  # 1 where p has no sample: q's mean comes through unrounded
    delta = theirs - mine
    noise = jnp.maximum(p.noise, q.noise)
    merged = ClassMeans(p.counts + q.counts, mine + share * delta, origin, noise)
    return merged, jnp.sqrt(n * share) * delta


@jax.jit
def _merge(p: Stream, q: Stream) -> Stream:
    classes, rows = _merge_means(p.classes, q.classes)
    return replace(p, classes=classes, scatter=p.scatter + q.scatter + dot(rows.T, rows))


@jax.jit
def _update(
    stream: Stream, X: Float[Array, "N d"], labels: Int[Array, " N"], mask: Bool[Array, " N"] | None
) -> Stream:
    valid = _core.where_valid(labels, mask, stream.K)
    batch, anchors = _core.class_means(X, labels, valid, stream.K, jnp.float64)
    classes, rows = _merge_means(stream.classes, batch)

    def term(X: Array, labels: Array, valid: Array) -> Array:
        D = _core.deviations(X, labels, valid, anchors, jnp.float64)
        return dot(D.T, D)

    if len(X) > BLOCK:
        more = _core.summed(term, X, labels, valid=valid, size=BLOCK) + dot(rows.T, rows)
    else:  # one product for both: the batch's own scatter, and that of its means against the stream's
        D = jnp.concatenate([_core.deviations(X, labels, valid, anchors, jnp.float64), rows])
        more = dot(D.T, D)
    return replace(stream, classes=classes, scatter=stream.scatter + more)


@partial(jax.jit, static_argnames="eps")
def _facts(
    stream: Stream, W: Float[Array, "K d"], b: Float[Array, " K"], even: ArrayLike, eps: float
) -> Facts:
    span = _core.span_of(stream.classes, even)
    along = jnp.sum(dot(span.axes, stream.scatter) * span.axes, axis=1)
    # rounding may leave a square just below zero
    return _core.facts_of(span, stream.classes.counts, jnp.maximum(along, 0), W, b, eps)


@pytree_dataclass
class Agreement:
    """NC4 counted: samples whose nearest class mean is the classifier's choice (`Stream.second_pass`)."""

    origin: Float[Array, " d"]
    rows: Float[Array, "r_and_K d"]  # the axes that the class means span, then the classifier
    shift: Float[Array, " K"]  # logits at the origin
    codes: Float[Array, "K r"]  # the class means along the axes
    present: Bool[Array, " K"]  # classes with samples; none where all means are equal
    agreed: Int[Array, ""]
    seen: Int[Array, ""]
    dtype: Any = static()

    @_core.in_float64
    def update(self, features: Any, *, mask: Any = None) -> Agreement:
        """The counter with a batch more: features (N, d); rows where mask (N,) is False are padding.

        Raises:
            ValueError: wrong shapes or features that are not finite (values are not read in jit).
        """
        X, valid = _inputs.batch(features, mask, self.origin.shape[0])
        return _count(self, X, valid)

    @_core.in_float64
    def merge(self, other: Agreement) -> Agreement:
        """The counter of both parts of the data; both must come from one `second_pass`."""
        return replace(self, agreed=self.agreed + other.agreed, seen=self.seen + other.seen)

    @property
    @_core.in_float64
    def value(self) -> Float[Array, ""]:
        """NC4 over the samples seen; 0 before the first."""
        agreed, seen = (n.astype(jnp.float64) for n in (self.agreed, self.seen))
        return (agreed / jnp.maximum(seen, 1)).astype(self.dtype)


@jax.jit
def _second_pass(stream: Stream, W: Float[Array, "K d"], b: Float[Array, " K"], even: ArrayLike) -> Agreement:
    c, span = stream.classes, _core.span_of(stream.classes, even)
    return Agreement(
        origin=c.origin,
        rows=jnp.concatenate([span.axes, W]),
        shift=dot(W, c.origin) + b,
        codes=span.codes,
        present=(c.counts > 0) & jnp.any(span.stretch > 0),
        agreed=jnp.zeros((), jnp.int64),
        seen=jnp.zeros((), jnp.int64),
        dtype=stream.dtype,
    )


@jax.jit
def _count(a: Agreement, X: Float[Array, "N d"], mask: Bool[Array, " N"] | None) -> Agreement:
    r = a.codes.shape[1]
    valid = jnp.ones(X.shape[0], bool) if mask is None else mask

    def term(X: Array, valid: Array) -> Array:
        Q = dot(jnp.where(valid[:, None], X.astype(jnp.float64) - a.origin[None, :], 0), a.rows.T)
        agree = _core.agreeing(Q[:, :r], Q[:, r:] + a.shift[None, :], a.codes, a.present)
        return jnp.sum(agree & valid & jnp.any(a.present), dtype=jnp.int64)

    agreed = a.agreed + _core.summed(term, X, valid=valid)
    return replace(a, agreed=agreed, seen=a.seen + jnp.sum(valid, dtype=jnp.int64))
