"""SHELF of conventions: what each source means by NC1, NC2, NC3 and NC4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

# a GPU would otherwise multiply float32 matrices with 10 mantissa bits
dot = partial(jnp.matmul, precision="highest")


class Facts(NamedTuple):
    """What a convention reads, in float64; rows of absent classes are zero."""

    W: Float[Array, "K d"]
    noise: Float[Array, " d"]  # what rounding makes of each column of W: eps of its dtype, times max |W|
    M: Float[
        Array, "K d"
    ]  # class means minus the convention's centre; zero where all are equal up to rounding
    present: Bool[Array, " K"]
    trace: Float[Array, ""]  # tr(Sigma_W pinv(M'M / K)); inf where all means are equal
    rank: Int[Array, ""]  # of M
    mean_logit_norm: Float[Array, ""]  # |W h_G + b|, h_G the mean of all samples


class Convention(NamedTuple):
    """How one source reads the names NC1-NC4.

    Sources that agree on balanced classes differ in the centre of the class means where counts are unequal:
    the mean of all samples, sum_k n_k h_k / N, or the plain mean of the class means, sum_k h_k / K. Sigma_W
    weighs every sample the same, 1/N, in all of them.
    """

    source: str
    nc1: Callable[[Facts], Array]
    nc2: Callable[[Facts], Array]
    nc3: Callable[[Facts], Array]
    bias: bool = True  # whether the classifier of NC4 adds b
    even: bool = False  # whether the centre is the plain mean of the class means


def unit(X: Float[Array, "p q"]) -> Float[Array, "p q"]:
    """X / |X|_F without overflow or underflow; zero stays zero."""
    size = jnp.max(jnp.abs(X))
    X = X / jnp.where(size > 0, size, 1)
    return X / jnp.maximum(jnp.linalg.norm(X), 1)  # the largest entry is 1 now, so the norm is >= 1


def centred_classifier(f: Facts) -> Float[Array, "K d"]:
    """W minus the mean of its rows; zero where the rows are equal up to rounding."""
    K = jnp.maximum(jnp.sum(f.present.astype(f.W.dtype)), 1)
    C = jnp.where(f.present[:, None], f.W - jnp.sum(f.W, axis=0, keepdims=True) / K, 0)
    # column by column: one with a large common entry hides nothing in the others
    noise = 2 * f.noise + np.finfo(C.dtype).eps * K * jnp.max(jnp.abs(f.W), axis=0)
    return jnp.where(jnp.any(jnp.abs(C) > noise[None, :]), C, 0)


def distance_from_etf(A: Float[Array, "K d"], B: Float[Array, "K d"], f: Facts) -> Float[Array, ""]:
    """| A B^T / |A B^T|_F - (I - 11^T/K) / sqrt(K - 1) |_F over the classes present."""
    one = f.present.astype(A.dtype)
    K = jnp.maximum(jnp.sum(one), 2)
    target = (jnp.diag(one) - jnp.outer(one, one) / K) / jnp.sqrt(K - 1)
    distance = jnp.linalg.norm(unit(dot(unit(A), unit(B).T)) - target)
    return jnp.where(jnp.sum(one) > 1, distance, 1)


def distance_from_dual(f: Facts) -> Float[Array, ""]:
    """| W / |W|_F - M / |M|_F |_F^2; 1 where both vanish or one class is present."""
    distance = jnp.sum((unit(f.W) - unit(f.M)) ** 2)
    return jnp.where(jnp.any(f.W != 0) | jnp.any(f.M != 0), distance, 1)


_PAPER = Convention(
    "Zhou et al., NeurIPS 2022, Section 4: the formulas at the head of ufm.metrics; class means centred at "
    "the mean of all samples",
    nc1=lambda f: f.trace / jnp.maximum(jnp.sum(f.present.astype(f.trace.dtype)), 1),
    nc2=lambda f: distance_from_etf(f.W, f.W, f),
    nc3=lambda f: distance_from_etf(f.W, f.M, f),
)

#: The shelf: one row for each source, described by its differences from the paper.
CONVENTIONS: dict[str, Convention] = {
    "paper": _PAPER,
    "nc_loss": _PAPER._replace(
        source="the paper's released code, jinxinzhou/nc_loss: W centred over classes in NC2 and NC3; class "
        "means centred at the mean of all samples (its fourth metric is the field mean_logit_norm, whatever "
        "the convention)",
        nc2=lambda f: distance_from_etf(centred_classifier(f), centred_classifier(f), f),
        nc3=lambda f: distance_from_etf(centred_classifier(f), f.M, f),
    ),
    "papyan": _PAPER._replace(
        source="Papyan, Han & Donoho, PNAS 2020, as in the authors' notebook neuralcollapse/neuralcollapse: "
        "class means centred at the plain mean of the class means M; NC1 not divided by K, "
        "NC3 = |W/|W|_F - M/|M|_F|_F^2; NC2 as the paper's",
        nc1=lambda f: f.trace,
        nc3=distance_from_dual,
        even=True,
    ),
    "rhubarbwu": _PAPER._replace(
        source="the package rhubarbwu/neural-collapse: class means centred at the plain mean of the class "
        "means; NC2 of the centred means, NC4 without bias",
        nc2=lambda f: distance_from_etf(f.M, f.M, f),
        bias=False,
        even=True,
    ),
}
