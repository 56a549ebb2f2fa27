"""Minimisers from the singular value decomposition of the class-mean logits."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._problem import Params
from ufm.losses._base import Setting
from ufm.models._fixed import helmert


class Factors(NamedTuple):
    """Zbar = U diag(sigma) V^T, the logits of the class means without bias."""

    U: np.ndarray  # (K, r), orthonormal columns
    sigma: np.ndarray  # (r,), positive
    V: np.ndarray  # (K, r), orthonormal columns

    @property
    def rank(self) -> int:
        """r."""
        return int(self.sigma.size)


def symmetric(K: int, a: float, m: float) -> Factors:
    """Zbar = a (I - 11^T/K) + m 11^T/K, any signs: the only class means that all permutations leave alone."""
    one = np.full((K, 1), K**-0.5)
    U = np.hstack([helmert(K), one])
    sigma = np.append(np.full(K - 1, abs(a)), abs(m))
    V = U * np.append(np.full(K - 1, np.sign(a)), np.sign(m))
    keep = sigma > 0
    return Factors(U[:, keep], sigma[keep], V[:, keep])


def partial(K: int, on: int, alpha: float, v: Float[np.ndarray, " 2"]) -> Factors:
    """alpha (I - 11^T/on) on the first `on` classes, plus the rank-one part u v^T between the two groups.

    u is the unit vector constant on each group and orthogonal to 1; v holds the coefficients on the two
    normalised group indicators.
    """
    off = K - on
    U = np.zeros((K, on - 1))
    U[:on] = helmert(on)
    sigma, V = np.full(on - 1, alpha), U
    size = float(np.hypot(v[0], v[1]))
    if size > 0:
        u = np.append(np.full(on, (off / on / K) ** 0.5), np.full(off, -((on / off / K) ** 0.5)))
        right = np.append(np.full(on, v[0] / size / on**0.5), np.full(off, v[1] / size / off**0.5))
        U, V = np.column_stack([U, u]), np.column_stack([V, right])
        sigma = np.append(sigma, size)
    return Factors(U, sigma, V)


def minimiser(s: Setting, factors: Factors, b: Float[np.ndarray, " K"]) -> Params:
    """W = (n lam_H/lam_W)^(1/4) U sqrt(sigma), h_j = (n lam_H/lam_W)^(-1/4) sqrt(sigma) V[y_j]: the balanced
    factorisation of Zbar, padded with zeros to d and with the column of H that each label asks for.
    """
    U, sigma, V = factors
    scale = (s.n * s.lam_H / s.lam_W) ** 0.25
    W, means = np.zeros((s.K, s.d)), np.zeros((s.d, s.K))
    W[:, : factors.rank] = scale * U * np.sqrt(sigma)
    means[: factors.rank] = (V * np.sqrt(sigma)).T / scale
    return Params(jnp.asarray(W), jnp.asarray(means[:, s.labels]), jnp.asarray(b))
