"""The statements about a product of layers: what they measure, and how exact it must be."""

from __future__ import annotations

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from ufm import theory
from ufm.claims._measures import COARSEST, Facts, tol_gradient
from ufm.hessian import layers
from ufm.hessian.inertia import InertiaWarning
from ufm.hessian.product import hvp


def schatten(f: Facts) -> float:
    """The penalty of the factors against the least that their product costs."""
    penalty = sum(lam * float(np.sum(A**2)) for lam, A in f.chain) / 2
    return abs(penalty - theory.schatten_penalty(f.prob, f.W @ f.H)) / penalty


def pairs(f: Facts) -> float:
    """G V S^(1-2/q) = -lam U and U'G S^(1-2/q) = -lam V' where Z = W H = U S V', over lam."""
    q, lam = len(f.chain), _mean_penalty(f)
    Q, R = np.linalg.qr(f.H.T)
    U, S, Vt = np.linalg.svd(f.W @ R.T, full_matrices=False)
    r = layers.rank([A for _, A in f.chain])
    U, S, V = U[:, :r], S[:r] ** (1 - 2 / q), Q @ Vt[:r].T
    residual = max(np.linalg.norm(f.G @ V * S + lam * U), np.linalg.norm(f.G.T @ U * S + lam * V))
    return float(residual / lam)


def null_directions(f: Facts) -> float:
    """|Hess v - lam_j v|/lam_j for a direction v of each factor between what its neighbours leave out."""
    directions = _null_directions(f)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(v for _, v in directions))
    images = hvp(f.prob, f.sol.params, stacked)
    square = sum(
        np.sum((np.asarray(image) - _column(directions) * np.asarray(v)) ** 2, axis=(*range(1, np.ndim(v)),))
        for image, v in zip(images, stacked, strict=True)
    )
    return float(np.max(np.sqrt(square) / [lam for lam, _ in directions]))
