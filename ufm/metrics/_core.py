"""The pure core: class means, what they span, and the metrics that follow. Nothing is checked here."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from ufm.metrics.conventions import Convention, Facts, dot


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
    magnitude: Float[Array, ""]  # the largest |feature|: what rounding is relative to


class Span(NamedTuple):
    """Singular value decomposition of the centred class means, in units of the largest singular value."""

    M: Float[Array, "K d"]  # centred means h_k - h_G; zero where all are equal up to rounding
    mean: Float[Array, " d"]  # h_G
    axes: Float[Array, "r d"]  # right singular vectors over the largest singular value
    codes: Float[Array, "K r"]  # the class means along the axes
    stretch: Float[Array, " r"]  # singular values over the largest; zero where not counted


def where_valid(labels: Int[Array, " N"], mask: Bool[Array, " N"] | None, K: int) -> Bool[Array, " N"]:
    """Samples that count: inside the mask and of a class 0..K-1."""
    inside = (labels >= 0) & (labels < K)
    return inside if mask is None else inside & mask


def averages(
    Y: Float[Array, "N d"], labels: Int[Array, " N"], valid: Bool[Array, " N"], K: int
) -> tuple[Int[Array, " K"], Float[Array, "K d"]]:
    """Valid samples of each class, and their mean (zero for a class without); rows not valid must be zero."""
    member = (labels[:, None] == jnp.arange(K, dtype=labels.dtype)[None, :]) & valid[:, None]
    counts = jnp.sum(member, axis=0, dtype=jnp.int32)
    # a product with zeros and ones, not a scatter-add: the same sum in every run, on a GPU too
    return counts, dot(member.astype(Y.dtype).T, Y) / jnp.maximum(counts, 1).astype(Y.dtype)[:, None]


def class_means(
    X: Float[Array, "N d"], labels: Int[Array, " N"], valid: Bool[Array, " N"], K: int
) -> tuple[ClassMeans, Float[Array, "N d"]]:
    """Class means, and the samples relative to the origin (zero where not valid)."""
    first, N = X[jnp.argmax(valid)], jnp.maximum(jnp.sum(valid), 1).astype(X.dtype)
    # the mean of all, by way of one sample: rounding is then relative to the spread and not to the offset
    shift = jnp.sum(jnp.where(valid[:, None], (X - first[None, :]) / N, 0), axis=0)
    origin = jnp.where(jnp.any(valid), first + shift, 0)
    magnitude = jnp.max(jnp.where(valid[:, None], jnp.abs(X), 0))
    Y = jnp.where(valid[:, None], X - origin[None, :], 0)
    counts, means = averages(Y, labels, valid, K)
    return ClassMeans(counts, means, origin, magnitude), Y


def deviations(
    Y: Float[Array, "N d"], means: Float[Array, "K d"], labels: Int[Array, " N"], valid: Bool[Array, " N"]
) -> Float[Array, "N d"]:
    """Each sample minus its class mean, exactly zero for a class of one; zero where not valid."""
    return jnp.where(valid[:, None], Y - means[labels], 0)


def span_of(c: ClassMeans) -> Span:
    """What the class means span: at most K - 1 directions, cut where rounding alone could have made them."""
    K, d = c.means.shape
    n, present = c.counts.astype(c.means.dtype), c.counts > 0
    mean = dot(n, c.means) / jnp.maximum(jnp.sum(n), 1)
    M = jnp.where(present[:, None], c.means - mean[None, :], 0)
    _, s, V = jnp.linalg.svd(M, full_matrices=False)
    # what rounding makes of equal means: independent errors eps |h| have norm eps |h| (sqrt K + sqrt d)
    noise = np.finfo(s.dtype).eps * (K**0.5 + d**0.5) * jnp.maximum(c.magnitude, s[0])
    counted = (s > noise) & (jnp.arange(s.shape[0], dtype=jnp.int32) < jnp.sum(present, dtype=jnp.int32) - 1)
    distinct = counted[0]
    unit = jnp.where(distinct, s[0], 1)
    axes = jnp.where(distinct, V / unit, 0)
    stretch = jnp.where(counted, s / unit, 0)
    return Span(jnp.where(distinct, M, 0), c.origin + mean, axes, dot(c.means, axes.T), stretch)


def trace_ratio(span: Span, scatter: Float[Array, " r"], counts: Int[Array, " K"]) -> Float[Array, ""]:
    """tr(Sigma_W pinv(Sigma_B)) from N times the within-class scatter along each axis."""
    counted = span.stretch > 0
    ratio = jnp.where(counted, scatter / jnp.where(counted, span.stretch, 1) ** 2, 0)
    N, K = (jnp.sum(x).astype(scatter.dtype) for x in (counts, counts > 0))
    return jnp.where(counted[0], jnp.sum(ratio) * K / jnp.maximum(N, 1), jnp.inf)


def agreeing(
    P: Float[Array, "N r"], Z: Float[Array, "N K"], codes: Float[Array, "K r"], present: Bool[Array, " K"]
) -> Bool[Array, " N"]:
    """Whether the class of the largest logit Z is also that of the nearest mean, along the axes."""
    # |p - c|^2 = |p|^2 - 2 (p.c - |c|^2/2); across the axes every mean is equally far
    near = dot(P, codes.T) - jnp.sum(codes**2, axis=1)[None, :] / 2
    nearest, chosen = (
        jnp.argmax(jnp.where(present[None, :], score, -jnp.inf), axis=1) for score in (near, Z)
    )
    return nearest == chosen


def facts_of(
    span: Span,
    counts: Int[Array, " K"],
    scatter: Float[Array, " r"],
    W: Float[Array, "K d"],
    b: Float[Array, " K"],
) -> Facts:
    """What conventions read, from what a batch and a stream compute each in their way."""
    present = counts > 0
    return Facts(
        W=jnp.where(present[:, None], W, 0),
        M=span.M,
        present=present,
        trace=trace_ratio(span, scatter, counts),
        rank=jnp.sum(span.stretch > 0, dtype=jnp.int32),
        mean_logit_norm=jnp.linalg.norm(jnp.where(present, dot(W, span.mean) + b, 0)),
    )


@partial(jax.jit, static_argnames="convention")
def read(facts: Facts, nc4: Float[Array, ""] | None, convention: Convention) -> NeuralCollapse:
    """The metrics: a program of its own, so that another convention compiles no more than itself."""
    return NeuralCollapse(
        nc1=convention.nc1(facts),
        nc2=convention.nc2(facts),
        nc3=convention.nc3(facts),
        nc4=nc4,
        mean_logit_norm=facts.mean_logit_norm,
        rank=facts.rank,
        present=jnp.sum(facts.present, dtype=jnp.int32),
    )
