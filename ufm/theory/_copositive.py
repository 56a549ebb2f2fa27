"""The largest |G h| over unit vectors h >= 0, the dual norm of non-negative features.

With M = G'G it is the root of the largest h'M h. On the face of the h that live on a set S of coordinates
a maximiser in the interior is a top eigenvector of M_SS, because a quadratic form has no other local maximum
on a sphere: the largest top eigenvalue whose eigenvector is of one sign is the answer (Gaddum 1958).
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

#: coordinates up to which all supports are looked at (4095 of them)
ENUMERATED = 12
#: an eigenvector with entries above minus this counts as one of one sign; more faces only raise the answer
ROUNDING = 1e-9


def upper_bound(G: Float[np.ndarray, "r K"]) -> float:
    """The root of min lambda_max(G'G + E) over E = 0 and the E >= 0 that cancels every negative entry."""
    M = G.T @ G
    largest = (float(np.linalg.eigvalsh(A)[-1]) for A in (M, np.maximum(M, 0.0)))
    return float(max(min(largest), 0.0) ** 0.5)


def is_at_most(G: Float[np.ndarray, "r K"], lam: float) -> bool:
    """Whether |G h| <= lam |h| for all h >= 0, up to rounding; a "no" to many columns may be wrong."""
    least = lam * (1 + ROUNDING)
    return upper_bound(G) <= least or (G.shape[1] <= ENUMERATED and largest(G)[0] <= least)


def largest(G: Float[np.ndarray, "r K"]) -> tuple[float, Float[np.ndarray, " K"]]:
    """max |G h| over h >= 0 with |h| = 1, and a maximiser; beyond `ENUMERATED` columns a local maximum."""
    M = G.T @ G
    found = _over_supports(M) if len(M) <= ENUMERATED else ascents(G)[0]
    return float(max(found[0], 0.0) ** 0.5), found[1]


def _over_supports(M: np.ndarray) -> tuple[float, np.ndarray]:
    best, at = -np.inf, np.zeros(len(M))
    for size in range(1, len(M) + 1):
        supports = np.array(list(itertools.combinations(range(len(M)), size)))
        values, vectors = np.linalg.eigh(M[supports[:, :, None], supports[:, None, :]])
        top = vectors[:, :, -1]
        top = top * np.sign(np.take_along_axis(top, np.abs(top).argmax(axis=1)[:, None], axis=1))
        value = np.where(top.min(axis=1) >= -ROUNDING, values[:, -1], -np.inf)
        i = int(np.argmax(value))
        if value[i] > best:
            best, at = float(value[i]), np.zeros(len(M))
            at[supports[i]] = np.maximum(top[i], 0.0)
    return best, at


def ascents(G: Float[np.ndarray, "r K"], steps: int = 200) -> list[tuple[float, Float[np.ndarray, " K"]]]:
    """(h'M h, h) of the distinct local maxima reached from each unit vector and from 1, the highest first.

    h <- max(M h, 0)/|.| never lowers h'M h, which is convex in h.
    """
    M = G.T @ G
    h = np.vstack([np.eye(len(M)), np.full(len(M), len(M) ** -0.5)])
    for _ in range(steps):
        up = np.maximum(h @ M, 0.0)
        size = np.linalg.norm(up, axis=1, keepdims=True)
        h = np.where(size > 0, up / np.where(size > 0, size, 1.0), h)
    values = np.einsum("ij,jk,ik->i", h, M, h)
    kept: list[tuple[float, np.ndarray]] = []
    for i in np.argsort(-values, kind="stable").tolist():
        if all(h[i] @ other < 1 - 1e-6 for _, other in kept):
            kept.append((float(values[i]), h[i]))
    return kept
