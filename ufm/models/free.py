"""The model of equation (7): two free factors."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ufm._pytree import pytree_dataclass
from ufm.models._base import Model, Params, Sizes


@pytree_dataclass
class Free(Model):
    """W, H and b free, Z = W H + b 1', with the penalties lam_W |W|^2 + lam_H |H|^2 + lam_b |b|^2."""

    name = "free"
    two_factors = True
    bilinear = True
    isotropic = True

    def shapes(self, prob: Sizes) -> dict[str, tuple[int, ...]]:
        """W (K, d), H (d, columns), b (K,)."""
        return {"W": (prob.K, prob.d), "H": (prob.d, prob.columns), "b": (prob.K,)}

    def logits(self, prob: Sizes, params: Params) -> Float[Array, "K N"]:
        """W H + b 1'."""
        W, H, b = params
        Z = W @ H
        return Z + b[:, None] if prob.bias else Z

    def penalty(self, prob: Sizes, params: Params) -> Float[Array, ""]:
        """lam_W |W|^2 + lam_H sum_j samples_j |h_j|^2 + lam_b |b|^2."""
        W, H, b = params
        square = H * H if prob.samples is None else prob.samples * (H * H)
        total = prob.lam_W * jnp.sum(W * W) + prob.lam_H * jnp.sum(square)
        return jnp.asarray(total + prob.lam_b * jnp.sum(b * b) if prob.bias else total)

    def chain(self, prob: Sizes, params: Params) -> tuple[tuple[Any, Array], ...]:
        """H and W."""
        return (prob.lam_H, params.H), (prob.lam_W, params.W)

    def effective(self, prob: Sizes, params: Params) -> Params:
        """The variables themselves."""
        return params
