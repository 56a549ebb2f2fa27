"""Blocks of the Hessian at a symmetric frame, for losses that feel a common shift of the logits.

The features are turned so that W and the class means are symmetric K x K matrices (rank K-1: on 1-perp). In
that gauge a permutation of the classes acts on rows and columns alike, and the vectors of one sector are

    trivial:  dW, Y in span(I, 11^T), db in span(1);
    standard: dW, Y in span(diag(v), v 1^T, 1 v^T), db in span(v), for any one v orthogonal to 1,

with Y the motion of the class means, scaled by sqrt(n) so that |dH| = |Y|.
"""

from __future__ import annotations

import math

import numpy as np

from ufm.losses._base import Setting
from ufm.losses._closed import Curvature
from ufm.theory.optima import Optimum

Move = tuple[np.ndarray, np.ndarray, np.ndarray]  # dW (K, K), Y (K, K), db (K,)


def trivial(s: Setting, opt: Optimum, curve: Curvature) -> np.ndarray:
    """Eigenvalues of the block of the trivial sector, 5 x 5 at rank K with a bias."""
    P, mean = _projectors(s.K)
    seeds = [P, mean] if opt.rank == s.K else [P]
    return _eigenvalues(s, opt, curve, seeds, seeds, np.ones(s.K))


def standard(s: Setting, opt: Optimum, curve: Curvature) -> np.ndarray:
    """Eigenvalues of the block of the standard sector, 7 x 7 at rank K with a bias."""
    K = s.K
    v, one = np.eye(K)[0] - 1 / K, np.ones(K)
    seeds = [np.diag(v), np.outer(v, one), np.outer(one, v)]
    if opt.rank == K:
        return _eigenvalues(s, opt, curve, seeds, seeds, v)
    P, _ = _projectors(K)
    return _eigenvalues(s, opt, curve, [seeds[0] @ P, seeds[2]], [P @ seeds[0], seeds[1]], v)


def _projectors(K: int) -> tuple[np.ndarray, np.ndarray]:
    mean = np.full((K, K), 1 / K)
    return np.eye(K) - mean, mean


def _eigenvalues(
    s: Setting,
    opt: Optimum,
    curve: Curvature,
    for_W: list[np.ndarray],
    for_Y: list[np.ndarray],
    for_b: np.ndarray,
) -> np.ndarray:
    """Of the Hessian on the span of the seeds; seeds may be dependent (K = 2)."""
    none, flat = np.zeros((s.K, s.K)), np.zeros(s.K)
    moves: list[Move] = [(x, none, flat) for x in for_W] + [(none, x, flat) for x in for_Y]
    if s.bias:
        moves.append((none, none, for_b))
    dW, Y, db = (np.stack(part) for part in zip(*moves, strict=True))
    gram = _inner(dW, dW) + _inner(Y, Y) + db @ db.T
    scale = np.sqrt(np.diag(gram))
    size, basis = np.linalg.eigh(gram / np.outer(scale, scale))
    keep = size > 1e-9
    basis = basis[:, keep] / np.sqrt(size[keep]) / scale[:, None]
    form = basis.T @ _form(s, opt, curve, dW, Y, db) @ basis
    return np.asarray(np.linalg.eigvalsh((form + form.T) / 2))


def _inner(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ikl,jkl->ij", x, y))


def _form(
    s: Setting, opt: Optimum, curve: Curvature, dW: np.ndarray, Y: np.ndarray, db: np.ndarray
) -> np.ndarray:
    """(1/K) sum_k dz_k^T Hess_k dz_k + (2/sqrt n) <Gbar, dW Y> + penalties, between all pairs of moves.

    dz_k = dW h_k + W y_k/sqrt(n) + db, Gbar = (1/K) [grad L(., 1) .. grad L(., K)].
    """
    P, mean = _projectors(s.K)
    a, m, scale = opt.margin, opt.mean_eigenvalue, (s.n * s.lam_H / s.lam_W) ** 0.25
    W = scale * (math.sqrt(abs(a)) * P + math.sqrt(abs(m)) * mean)
    means = (np.sign(a) * math.sqrt(abs(a)) * P + np.sign(m) * math.sqrt(abs(m)) * mean) / scale
    on_ones = -s.c * np.sign(m) if m != 0 else curve.mean_gradient(s.K)
    gradient = -s.c * np.sign(a) * P + on_ones * mean
    cross = _inner(np.einsum("kl,ilm->ikm", gradient, Y.transpose(0, 2, 1)), dW) / math.sqrt(s.n)
    form = _fit(s.K, curve, dW @ means + W @ Y / math.sqrt(s.n) + db[:, :, None]) + cross + cross.T
    return np.asarray(form + s.lam_W * _inner(dW, dW) + s.lam_H * _inner(Y, Y) + s.lam_b * db @ db.T)


def _fit(K: int, curve: Curvature, dz: np.ndarray) -> np.ndarray:
    """(1/K) sum_k dz_k^T Hess_k dz_k for all pairs of moves; dz (moves, K, K)."""
    own = np.einsum("ikk->ik", dz)
    others = (dz.sum(1) - own) / math.sqrt(K - 1)
    ((kk, kf), (_, ff)), rest = curve.block, curve.rest
    mixed = own @ others.T
    total = (kk - rest) * own @ own.T + kf * (mixed + mixed.T) + (ff - rest) * others @ others.T
    return np.asarray((total + rest * _inner(dz, dz)) / K)
