"""Minimisers from the singular value decomposition of the class-mean logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ufm._problem import Params
from ufm.losses._base import Setting
from ufm.models._fixed import helmert


class Factors(NamedTuple):
    """Zbar = U diag(sigma) V^T diag(stretch), the logits of the class means without bias."""

    U: np.ndarray  # (K, r), orthonormal columns
    sigma: np.ndarray  # (r,), positive
    V: np.ndarray  # (K, r), orthonormal columns
    stretch: Any = 1.0  # sqrt(n/n_k) (K,), n the mean count, where the counts differ

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


def blocks(
    of_class: Int[np.ndarray, " K"],
    counts: Float[np.ndarray, " K"],
    T: Float[np.ndarray, "G G"],
    t: Float[np.ndarray, " G"],
) -> Factors:
    """Zbar diag(sqrt n_k) = E T E^T + t_g (I - 11^T/K_g) in each group g, E the normalised indicators.

    What is below 1e-11 of the largest singular value is the rounding of a zero.
    """
    K, member = len(of_class), np.eye(len(t))[of_class]
    E = member / np.sqrt(member.sum(axis=0))
    P, sigma, Qt = np.linalg.svd(T)
    U, V, sizes = [E @ P], [E @ Qt.T], [sigma]
    for g, spread in enumerate(t):
        inside = np.flatnonzero(of_class == g)
        basis = np.zeros((K, len(inside) - 1))
        basis[inside] = helmert(len(inside))
        U, V = [*U, basis], [*V, np.sign(spread) * basis]
        sizes = [*sizes, np.full(len(inside) - 1, abs(spread))]
    sigma = np.concatenate(sizes)
    keep = sigma > 1e-11 * sigma.max()
    n = counts.mean()
    size, stretch = sigma[keep] / np.sqrt(n), np.sqrt(n / counts)
    return Factors(np.hstack(U)[:, keep], size, np.hstack(V)[:, keep], stretch)


def minimiser(s: Setting, factors: Factors, b: Float[np.ndarray, " K"]) -> Params:
    """W = (n lam_H/lam_W)^(1/4) U sqrt(sigma), h_j = (n lam_H/lam_W)^(-1/4) sqrt(sigma) V[y_j] stretch[y_j]:
    the balanced factorisation of Zbar diag(sqrt n_k), padded with zeros to d and with the column of H that
    each label asks for.
    """
    U, sigma, V, stretch = factors
    scale = (s.n * s.lam_H / s.lam_W) ** 0.25
    W, means = np.zeros((s.K, s.d)), np.zeros((s.d, s.K))
    W[:, : factors.rank] = scale * U * np.sqrt(sigma)
    means[: factors.rank] = (V * np.sqrt(sigma)).T / scale * stretch
    return Params(jnp.asarray(W), jnp.asarray(means[:, s.labels]), jnp.asarray(b))
