"""The metrics of one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from ufm import _compile
from ufm._problem import Params
from ufm.metrics import _core, _inputs
from ufm.metrics._core import NeuralCollapse
from ufm.metrics.conventions import Facts, dot

#: the least share of the scatter along an axis in what its coordinates have one by one: where less is left
#: after cancellation, float32 products would keep fewer than five digits
_CANCELLED = 1e-4


class _Given(NamedTuple):
    """What the metrics are measured of."""

    X: Float[Array, "N d"]
    labels: Int[Array, " N"]
    W: Float[Array, "K d"]
    b: Float[Array, " K"]
    bias: Float[Array, " K"]  # what the classifier of NC4 adds
    even: ArrayLike  # as in `Convention`


def _measured(given: _Given, dtype: Any, eps: float) -> tuple[Facts, Float[Array, ""]]:
    """Facts and NC4; `eps` is the rounding of W.

    Products are in `dtype`, which is twice as fast in float32, or in float64 where float32 is too short.
    """
    facts, nc4, sure = _passes(given, eps, dtype)
    if dtype == jnp.float64:
        return facts, nc4
    return jax.lax.cond(sure, lambda: (facts, nc4), lambda: _passes(given, eps, jnp.dtype("float64"))[:2])


_measure = jax.jit(_measured, static_argnames=("dtype", "eps"))
#: the same without optimisation, which is compiled in a fraction of the time
_measure_instantly = _compile.jit(_measured, static_argnames=("dtype", "eps"), options=_compile.INSTANT)
#: entries of features and classifier up to which that costs less than a millisecond
_SMALL = 20_000


def _passes(given: _Given, eps: float, dtype: Any) -> tuple[Facts, Float[Array, ""], Bool[Array, ""]]:
    """One pass for the class means and one for what is measured against them; whether `dtype` was enough."""
    X, labels, W, b, bias, even = given
    K = W.shape[0]
    valid = _core.where_valid(labels, None, K)
    classes, anchors = _core.class_means(X, labels, valid, K, dtype)
    span = _core.span_of(classes, even)
    r, present = span.stretch.shape[0], classes.counts > 0
    C = W - jnp.mean(W, axis=0, keepdims=True)  # the same choice, without what all logits have in common
    logits = dot(classes.means, C.T) + (dot(C, classes.origin) + bias)[None, :]  # of the class means
    axes = span.axes * anchors.unit[None, :]
    rows, size = _scaled(jnp.concatenate([axes, C * anchors.unit[None, :]]), dtype)

    def term(X: Array, labels: Array, valid: Array) -> tuple[Array, Array, Array]:
        D = _core.deviations(X, labels, valid, anchors, dtype)
        Q = dot(D, rows.T).astype(size.dtype) * size[None, :]  # one product for NC1 and NC4
        P, Z = Q[:, :r], Q[:, r:] + logits[labels]
        agree = valid & _core.agreeing(P + span.codes[labels], Z, span.codes, present)
        return jnp.sum(P**2, axis=0), jnp.sum(D**2, axis=0).astype(P.dtype), jnp.sum(agree, dtype=jnp.int32)

    scatter, each, agreed = _core.summed(term, X, labels, valid=valid)
    facts = _core.facts_of(span, classes.counts, scatter, W, b, eps)
    nc4 = agreed.astype(scatter.dtype) / jnp.maximum(jnp.sum(valid), 1).astype(scatter.dtype)
    sure = jnp.all((scatter >= _CANCELLED * dot(axes**2, each)) | (span.stretch == 0))
    return facts, jnp.where(facts.rank > 0, nc4, 0), sure


def _scaled(rows: Float[Array, "p d"], dtype: Any) -> tuple[Float[Array, "p d"], Float[Array, " p"]]:
    """Rows over their largest entry, which a shorter dtype can hold, and that entry."""
    size = jnp.max(jnp.abs(rows), axis=1)
    if dtype == rows.dtype:
        return rows, jnp.ones_like(size)
    size = jnp.where(size > 0, size, 1)
    return (rows / size[:, None]).astype(dtype), size


def neural_collapse(
    features: Any, labels: Any, W: Any, b: Any = None, *, convention: str = "paper"
) -> NeuralCollapse:
    """NC1-NC4 of features with a linear classifier; `help(ufm.metrics)` has the formulas and edge cases.

    Args:
        features: (N, d), one row a sample; jax, numpy or torch on any device, like every array here.
        labels: (N,) integers in 0..K-1, any order, any counts.
        W: (K, d) classifier, one row a class.  b: (K,) bias; None is zero.
        convention: a name of `CONVENTIONS`.  Default: the paper's formulas.

    The result has the widest dtype given, at least float32. Whatever is subtracted or summed over samples is
    float64, so that a coordinate with a large offset costs the others no digits. Class means count as equal
    where the rounding of the features' own dtype can have made the difference. A masked array is refused if
    anything in it is masked. Fit for jit and vmap: there shapes are checked and values are not, and a sample
    whose label is outside 0..K-1 counts nowhere.

    Raises:
        ValueError: wrong shapes; a label that is no integer or outside 0..K-1; features, W or b that are
            not floating or not finite; masked values; an unknown convention.

    Source: Zhou et al. 2022, Section 4; Papyan, Han & Donoho 2020; the others as `CONVENTIONS` says.

    >>> import numpy as np, ufm.metrics
    >>> etf = np.eye(3) - 1 / 3
    >>> nc = ufm.metrics.neural_collapse(np.tile(etf, (2, 1)), [0, 1, 2, 0, 1, 2], etf)
    >>> [round(abs(float(x)), 12) for x in (nc.nc1, nc.nc2, nc.nc3, nc.nc4)]
    [0.0, 0.0, 0.0, 1.0]
    """
    return _of_rows(features, labels, W, b, convention, jnp.result_type(float))


def of_params(params: Params, labels: Any, *, convention: str = "paper") -> NeuralCollapse:
    """`neural_collapse` of `Params(W, H, b)`, whose features are the columns of H (d, N)."""
    W, H, b = params
    rows = _core.in_float64(lambda: _inputs.array("H", H, "d", "N"))()
    transposed = rows.T if isinstance(rows, jax.core.Tracer) else np.asarray(rows).T
    return _of_rows(transposed, labels, W, b, convention, jnp.result_type(float))


@_core.in_float64
def _of_rows(features: Any, labels: Any, W: Any, b: Any, convention: str, own: Any) -> NeuralCollapse:
    """The metrics in the widest dtype given, or in JAX's `own` float where that is shorter."""
    rule = _inputs.convention(convention)
    X = _inputs.features(features)
    W, b = _inputs.classifier(W, b, X.shape[1])
    y = _inputs.labels(labels, X.shape[0], W.shape[0])
    dtype, eps = _inputs.widest(X, W, b), _inputs.eps(W)
    W, b = W.astype(jnp.float64), b.astype(jnp.float64)
    bias = b if rule.bias else jnp.zeros_like(b)
    given = _Given(X, y, W, b, bias, np.bool_(rule.even))
    small = X.size + W.size <= _SMALL and not any(isinstance(x, jax.core.Tracer) for x in given)
    measure, read = (_measure_instantly, _core.read_instantly) if small else (_measure, _core.read)
    facts, nc4 = measure(given, dtype, eps)
    return read(facts, nc4, rule, dtype if own == jnp.float64 else jnp.dtype("float32"))
