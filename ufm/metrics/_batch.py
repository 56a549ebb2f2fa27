"""The metrics of one batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ufm._problem import Params
from ufm.metrics import _core, _inputs
from ufm.metrics._core import NeuralCollapse
from ufm.metrics.conventions import Facts, dot


@jax.jit
def _measure(
    X: Float[Array, "N d"],
    labels: Int[Array, " N"],
    W: Float[Array, "K d"],
    b: Float[Array, " K"],
    bias: Float[Array, " K"],
) -> tuple[Facts, Float[Array, ""]]:
    """Facts and NC4, whose classifier adds `bias`."""
    K = W.shape[0]
    valid = _core.where_valid(labels, None, K)
    classes, Y = _core.class_means(X, labels, valid, K)
    span = _core.span_of(classes)
    r = span.stretch.shape[0]
    Q = dot(Y, jnp.concatenate([span.axes, W]).T)  # one pass over the data for NC1 and NC4
    P, Z = Q[:, :r], Q[:, r:] + (dot(W, classes.origin) + bias)[None, :]
    # the means of the projections, not the projected means: they cancel to the last digit
    D = _core.deviations(P, _core.averages(P, labels, valid, K)[1], labels, valid)
    facts = _core.facts_of(span, classes.counts, jnp.sum(D**2, axis=0), W, b)
    agree = valid & _core.agreeing(P, Z, span.codes, classes.counts > 0)
    nc4 = jnp.sum(agree).astype(X.dtype) / jnp.maximum(jnp.sum(valid), 1).astype(X.dtype)
    return facts, jnp.where(facts.rank > 0, nc4, 0)


def neural_collapse(
    features: Any, labels: Any, W: Any, b: Any = None, *, convention: str = "paper"
) -> NeuralCollapse:
    """NC1-NC4 of features with a linear classifier; `help(ufm.metrics)` has the formulas and edge cases.

    Args:
        features: (N, d), one row a sample; jax, numpy or torch on any device, like every array here.
        labels: (N,) integers in 0..K-1, any order, any counts.
        W: (K, d) classifier, one row a class.  b: (K,) bias; None is zero.
        convention: a name of `CONVENTIONS`.  Default: the paper's formulas.

    float64 is computed in float64 and float32 in float32; half precisions are raised to float32, and mixed
    input to its widest. Fit for jit and vmap: there shapes are checked and values are not, and a sample
    whose label is outside 0..K-1 counts nowhere.

    Raises:
        ValueError: wrong shapes; a label that is no integer or outside 0..K-1; features, W or b that are
            not floating or not finite; an unknown convention.

    Source: Zhou et al. 2022, Section 4; Papyan, Han & Donoho 2020; the others as `CONVENTIONS` says.

    >>> import numpy as np, ufm.metrics
    >>> etf = np.eye(3) - 1 / 3
    >>> nc = ufm.metrics.neural_collapse(np.tile(etf, (2, 1)), [0, 1, 2, 0, 1, 2], etf)
    >>> [round(abs(float(x)), 12) for x in (nc.nc1, nc.nc2, nc.nc3, nc.nc4)]
    [0.0, 0.0, 0.0, 1.0]
    """
    rule = _inputs.convention(convention)
    X = _inputs.features(features)
    W, b = _inputs.classifier(W, b, X.shape[1])
    y = _inputs.labels(labels, X.shape[0], W.shape[0])
    dtype = _inputs.widest(X, W, b)
    X, W, b = X.astype(dtype), W.astype(dtype), b.astype(dtype)
    facts, nc4 = _measure(X, y, W, b, b if rule.bias else jnp.zeros_like(b))
    return _core.read(facts, nc4, rule)


def of_params(params: Params, labels: Any, *, convention: str = "paper") -> NeuralCollapse:
    """`neural_collapse` of `Params(W, H, b)`, whose features are the columns of H (d, N)."""
    W, H, b = params
    return neural_collapse(_inputs.array("H", H, "d", "N").T, labels, W, b, convention=convention)
