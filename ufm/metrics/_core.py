"""The pure core: class means, what they span, and the metrics that follow. Nothing is checked here."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from ufm import _compile
from ufm.metrics.conventions import Convention, Facts, dot

#: rows of a block of features: at d = 2048 they stay in the cache, a third faster than all at once (measured)
ROWS = 512

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class NeuralCollapse(NamedTuple):
    """The metrics, scalars each (with leading axes under vmap)."""

    nc1: Float[Array, ""]  # within-class over between-class scatter; 0 = collapse, inf = means all equal
    nc2: Float[Array, ""]  # distance of the classifier's Gram matrix from a simplex ETF's
    nc3: Float[Array, ""]  # distance of classifier and class means from duality
    nc4: Float[Array, ""] | None  # agreement with the nearest mean; None: a stream without second pass
    mean_logit_norm: Float[Array, ""]  # |W h_G + b|
    rank: Int[Array, ""]  # directions that the class means span and NC1 counts, <= present - 1
    present: Int[Array, ""]  # classes with at least one sample


class ClassMeans(NamedTuple):
    """Counts and means of the classes, from an origin near the data so that an offset costs no digits."""

    counts: Int[Array, " K"]
    means: Float[Array, "K d"]  # h_k - origin; zero for a class without samples
    origin: Float[Array, " d"]
    noise: Float[
        Array, " d"
    ]  # what rounding makes of each coordinate: eps of the features' dtype, times max |h|


class Anchors(NamedTuple):
    """What is subtracted from the samples of each class, so that no offset of theirs costs digits."""

    sample: Float[Array, "K d"]  # the first sample of the class; zero for a class without
    shift: Float[Array, "K d"]  # from it to the mean of the class
    unit: Float[Array, " d"]  # what keeps float32 products in range: a power of two, at most max |h|; else 1


class Span(NamedTuple):
    """Singular value decomposition of the centred class means, in units of the largest singular value."""

    M: Float[Array, "K d"]  # centred means; zero where all are equal up to rounding
    mean: Float[Array, " d"]  # h_G, the mean of all samples
    axes: Float[Array, "r d"]  # right singular vectors over the largest singular value
    codes: Float[Array, "K r"]  # the class means along the axes
    stretch: Float[Array, " r"]  # singular values over the largest; zero where not counted


def in_float64(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """The function with 64 bits at hand inside, also where JAX's 64-bit mode is off and inside jit.

    What is subtracted and what is summed over samples is float64 whatever the features are.
    """

    @wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return run


def where_valid(labels: Int[Array, " N"], mask: Bool[Array, " N"] | None, K: int) -> Bool[Array, " N"]:
    """Samples that count: inside the mask and of a class 0..K-1."""
    inside = (labels >= 0) & (labels < K)
    return inside if mask is None else inside & mask


def members(labels: Int[Array, " N"], valid: Bool[Array, " N"], K: int) -> Bool[Array, "N K"]:
    """Which valid sample is of which class."""
    return (labels[:, None] == jnp.arange(K, dtype=labels.dtype)[None, :]) & valid[:, None]


def summed(term: Callable[..., Any], *rows: Array, valid: Bool[Array, " N"], size: int = ROWS) -> Any:
    """Sum over blocks of `size` rows of term(*block, valid), whose intermediate arrays stay in the cache."""
    N = valid.shape[0]
    if size >= N:
        return term(*rows, valid)

    def block(i: Array) -> Any:
        start = jnp.minimum(
            i * size, N - size
        )  # the last block overlaps the one before: seen rows are masked
        cut = [jax.lax.dynamic_slice_in_dim(x, start, size) for x in (*rows, valid)]
        return term(*cut[:-1], cut[-1] & (start + jnp.arange(size, dtype=jnp.int32) >= i * size))

    shapes = jax.eval_shape(block, jnp.int32(0))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda i, total: jax.tree.map(jnp.add, total, block(i))  # noqa: E731
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(-(-N // size)), add, zero)


def class_means(
    X: Float[Array, "N d"], labels: Int[Array, " N"], valid: Bool[Array, " N"], K: int, dtype: Any
) -> tuple[ClassMeans, Anchors]:
    """Class means of the features, by sums of blocks in `dtype`, and what to subtract from each sample."""
    member = members(labels, valid, K)
    counts = jnp.sum(member, axis=0, dtype=jnp.int64)
    size = jnp.max(jnp.where(valid[:, None], jnp.abs(X), 0), axis=0).astype(jnp.float64)
    sample = jnp.where((counts > 0)[:, None], X[jax.lax.argmax(member, 0, jnp.int32)], 0).astype(jnp.float64)
    unit = jnp.ones_like(size) if dtype == jnp.float64 else _power_of_two(size)
    anchors = Anchors(sample, jnp.zeros_like(sample), unit)

    def term(X: Array, labels: Array, valid: Array) -> Array:
        # a product with zeros and ones, not a scatter-add: the same sum in every run, on a GPU too
        one = members(labels, valid, K).astype(dtype)
        Y = (X.astype(jnp.float64) - anchors.sample[labels]) / anchors.unit[None, :]
        return dot(one.T, jnp.where(valid[:, None], Y, 0).astype(dtype)).astype(jnp.float64)

    n = counts.astype(jnp.float64)
    shift = summed(term, X, labels, valid=valid) / jnp.maximum(n, 1)[:, None] * anchors.unit[None, :]
    first = jnp.where(jnp.any(valid), X[jax.lax.argmax(valid, 0, jnp.int32)], 0).astype(jnp.float64)
    present = (counts > 0)[:, None]
    # the mean of all, by way of one sample: rounding is then relative to the spread and not to the offset
    away = jnp.where(present, (sample - first[None, :]) + shift, 0)
    origin = first + dot(n, away) / jnp.maximum(jnp.sum(n), 1)
    means = jnp.where(present, (sample - origin[None, :]) + shift, 0)
    noise = float(np.finfo(X.dtype).eps) * size
    return ClassMeans(counts, means, origin, noise), anchors._replace(shift=shift)


def _power_of_two(size: Float[Array, " d"]) -> Float[Array, " d"]:
    """The power of two at or below each size, so that a division by it rounds nothing; 1 for zero.

    The bits of the exponent alone. `jnp.frexp` says the same, but JAX 0.12 expands it where it compiles the
    program, and there 64 bits may be off.
    """
    exponent = jax.lax.bitcast_convert_type(size, jnp.uint64) & np.uint64(0x7FF0_0000_0000_0000)
    power = jax.lax.bitcast_convert_type(exponent, jnp.float64)
    return jnp.where((power > 0) & (power < jnp.inf), power, 1)


def deviations(
    X: Float[Array, "N d"], labels: Int[Array, " N"], valid: Bool[Array, " N"], anchors: Anchors, dtype: Any
) -> Float[Array, "N d"]:
    """Each sample minus its class mean, in units; exactly zero for a class of one; zero where not valid.

    The difference is taken in float64 and then rounded to `dtype`.
    """
    D = (X.astype(jnp.float64) - anchors.sample[labels]) - anchors.shift[labels]
    return jnp.where(valid[:, None], D / anchors.unit[None, :], 0).astype(dtype)


def span_of(c: ClassMeans, even: ArrayLike = False) -> Span:
    """What the class means span: at most K - 1 directions, cut where rounding alone could have made them.

    even: centred at the plain mean of the class means, else at the mean of all samples.
    """
    present = c.counts > 0
    n = c.counts.astype(c.means.dtype)
    weight = jnp.where(even, present.astype(n.dtype), n)
    mean, centre = (dot(w, c.means) / jnp.maximum(jnp.sum(w), 1) for w in (n, weight))
    M = jnp.where(present[:, None], c.means - centre[None, :], 0)
    _, s, V = jnp.linalg.svd(M, full_matrices=False)
    counted = _above_rounding(M, s, V, c.noise)
    counted &= jnp.arange(s.shape[0], dtype=jnp.int32) < jnp.sum(present, dtype=jnp.int32) - 1
    distinct = jnp.any(counted)
    unit = jnp.where(distinct, s[0], 1)
    axes = jnp.where(distinct, V / unit, 0)
    stretch = jnp.where(counted, s / unit, 0)
    return Span(jnp.where(distinct, M, 0), c.origin + mean, axes, dot(c.means, axes.T), stretch)


def _above_rounding(
    M: Float[Array, "K d"], s: Float[Array, " r"], V: Float[Array, "r d"], noise: Float[Array, " d"]
) -> Bool[Array, " r"]:
    """Which singular values of M rounding of the features alone cannot have made.

    Independent errors noise_j in coordinate j have norm (sqrt K + sqrt d) |noise * v| along v: a coordinate
    with a large offset, whose rounding is large too, then hides only the directions that it takes part in.
    """
    K, d = M.shape
    unit = jnp.where(s[0] > 0, s[0], 1)  # no square of the noise is then too large or too small for a float
    along = jnp.linalg.norm(V * (noise / unit)[None, :], axis=1)
    error = (K**0.5 + d**0.5) * jnp.maximum(along, np.finfo(s.dtype).eps)  # eps: the decomposition's own
    # means within two roundings in every coordinate are equal, however the errors go together
    return (s / unit > error) & jnp.any(jnp.abs(M) > 2 * noise[None, :])


def trace_ratio(span: Span, scatter: Float[Array, " r"], counts: Int[Array, " K"]) -> Float[Array, ""]:
    """tr(Sigma_W pinv(Sigma_B)) from N times the within-class scatter along each axis."""
    counted = span.stretch > 0
    ratio = jnp.where(counted, scatter / jnp.where(counted, span.stretch, 1) ** 2, 0)
    N, K = (jnp.sum(x).astype(scatter.dtype) for x in (counts, counts > 0))
    return jnp.where(jnp.any(counted), jnp.sum(ratio) * K / jnp.maximum(N, 1), jnp.inf)


def agreeing(
    P: Float[Array, "N r"], Z: Float[Array, "N K"], codes: Float[Array, "K r"], present: Bool[Array, " K"]
) -> Bool[Array, " N"]:
    """Whether the class of the largest logit Z is also that of the nearest mean, along the axes."""
    # |p - c|^2 = |p|^2 - 2 (p.c - |c|^2/2); across the axes every mean is equally far
    near = dot(P, codes.T) - jnp.sum(codes**2, axis=1)[None, :] / 2
    nearest, chosen = (_first_largest(jnp.where(present[None, :], score, -jnp.inf)) for score in (near, Z))
    return nearest == chosen


def _first_largest(score: Float[Array, "N K"]) -> Int[Array, " N"]:
    """The argmax of each row; XLA's own does not lower for float64 inside a jit where 64 bits are off."""
    place = jnp.arange(score.shape[1], dtype=jnp.int32)[None, :]
    largest = score == jnp.max(score, axis=1, keepdims=True)
    return jnp.min(jnp.where(largest, place, jnp.int32(score.shape[1])), axis=1)


def facts_of(
    span: Span,
    counts: Int[Array, " K"],
    scatter: Float[Array, " r"],
    W: Float[Array, "K d"],
    b: Float[Array, " K"],
    eps: float,
) -> Facts:
    """What conventions read, from what a batch and a stream compute each in their way; `eps` is that of W."""
    present = counts > 0
    return Facts(
        W=jnp.where(present[:, None], W, 0),
        noise=eps * jnp.max(jnp.where(present[:, None], jnp.abs(W), 0), axis=0),
        M=span.M,
        present=present,
        trace=trace_ratio(span, scatter, counts),
        rank=jnp.sum(span.stretch > 0, dtype=jnp.int32),
        mean_logit_norm=jnp.linalg.norm(jnp.where(present, dot(W, span.mean) + b, 0)),
    )


def _read(facts: Facts, nc4: Float[Array, ""] | None, convention: Convention, dtype: Any) -> NeuralCollapse:
    """The metrics: a program of its own, so that another convention compiles no more than itself."""
    nc1, nc2, nc3 = (rule(facts).astype(dtype) for rule in (convention.nc1, convention.nc2, convention.nc3))
    return NeuralCollapse(
        nc1=nc1,
        nc2=nc2,
        nc3=nc3,
        nc4=None if nc4 is None else nc4.astype(dtype),
        mean_logit_norm=facts.mean_logit_norm.astype(dtype),
        rank=facts.rank,
        present=jnp.sum(facts.present, dtype=jnp.int32),
    )


read = jax.jit(_read, static_argnames=("convention", "dtype"))
read_instantly = _compile.jit(_read, static_argnames=("convention", "dtype"), options=_compile.INSTANT)
