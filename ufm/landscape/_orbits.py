"""When are two critical points the same, up to rotations of the features and permutations?

W H and b tell a critical point up to a rotation (lam_W W'W = lam_H H H' there), so logits are compared.
Classes may be exchanged where they have equally many samples and the loss treats them alike; samples of a
class always.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ufm import losses
from ufm._problem import Params, Problem
from ufm.theory._blocks import groups_of
from ufm.theory.profiles import is_symmetric

#: relative to 1 + |f|: what polished points of one orbit differ by is 1e-15; the smallest gap known between
#: two of them that differ is 2e-9 (focal loss, K = 24)
SAME_OBJECTIVE = 1e-11
#: relative to the largest logit: a gradient of 1e-15 over the flattest curvature met, 1e-6, with room
SAME_LOGITS = 1e-6
#: pairs of classes tried before two points with the same fingerprint are called the same
PATIENCE = 20_000


class Fingerprint(NamedTuple):
    """What no symmetry changes."""

    objective: float
    singular: np.ndarray  # (min(K, d),) of W H, in descending order
    bias: np.ndarray  # (K,) sorted, without the free shift

    def matches(self, other: Fingerprint) -> bool:
        """Whether the two may belong to one orbit."""
        if abs(self.objective - other.objective) > SAME_OBJECTIVE * (1 + abs(self.objective)):
            return False
        near = SAME_LOGITS * (1 + float(self.singular[0]) + float(np.abs(self.bias).max()))
        apart = np.abs(self.singular - other.singular).max(), np.abs(self.bias - other.bias).max()
        return max(apart) <= near


def fingerprint(prob: Problem, params: Params, objective: float) -> Fingerprint:
    """The invariants of a critical point; W H through the Gram matrices of its factors."""
    W, H = np.asarray(params.W), np.asarray(params.H)
    singular = np.linalg.svd(np.linalg.qr(H.T, mode="r") @ W.T, compute_uv=False)
    singular = np.pad(singular, (0, max(0, prob.K - len(singular))))[: prob.K]
    return Fingerprint(objective, singular, np.sort(_bias(prob, params)))


def _bias(prob: Problem, params: Params) -> np.ndarray:
    b = np.asarray(params.b)
    return b - b.mean() if prob.shift_is_free else b


def kinds(prob: Problem) -> np.ndarray:
    """(K,) of each class: those with equal numbers may be exchanged."""
    if not is_symmetric(losses.without_weights(prob.loss), prob.K):
        return np.arange(prob.K)
    return groups_of(prob.counts, prob.class_weights).of_class


class Logits(NamedTuple):
    """A critical point up to rotations, by class."""

    kinds: np.ndarray  # (K,)
    Z: np.ndarray  # (K, K) logits of the class means
    b: np.ndarray  # (K,)
    spread: np.ndarray  # (K, K) standard deviation of the logits within each class


def logits(prob: Problem, params: Params) -> Logits:
    """What `equivalent` compares."""
    labels, counts = np.asarray(prob.labels), prob.counts
    W, H, bias = (np.asarray(x) for x in params)
    Z = W @ H + (bias[:, None] if prob.bias else 0.0)
    order = np.argsort(labels, kind="stable")
    first = np.cumsum(counts) - counts
    mean = np.add.reduceat(Z[:, order], first, axis=1) / counts
    square = np.add.reduceat((Z - mean[:, labels])[:, order] ** 2, first, axis=1) / counts
    b = _bias(prob, params)
    shift = (b - bias)[:, None]
    return Logits(kinds(prob), mean + shift, b, np.sqrt(square))


def equivalent(one: Logits, two: Logits) -> bool:
    """Whether a permutation of the classes takes one into the other: a search with pruning by class."""
    K = len(one.b)
    near = 10 * SAME_LOGITS * (1 + float(np.abs(one.Z).max()))
    a, b = _signatures(one), _signatures(two)
    fits = (one.kinds[:, None] == two.kinds) & (np.abs(a[:, None] - b[None]).max(axis=2) <= near)
    order = np.argsort(fits.sum(axis=1))
    if not fits.any(axis=1).all():
        return False
    image = np.full(K, -1)
    left = [PATIENCE]

    def place(i: int) -> bool:
        if i == K:
            return True
        k = int(order[i])
        before, images = order[:i], image[order[:i]]
        for to in np.flatnonzero(fits[k]):
            if to in images or left[0] <= 0:
                continue
            left[0] -= 1
            rows = np.abs(one.Z[k, before] - two.Z[to, images]).max(initial=0.0)
            columns = np.abs(one.Z[before, k] - two.Z[images, to]).max(initial=0.0)
            if max(rows, columns) <= near:
                image[k] = to
                if place(i + 1):
                    return True
        return False

    return place(0) or left[0] <= 0


def _signatures(point: Logits) -> np.ndarray:
    """(K, 4K + 2): of each class what a permutation of the others does not change."""
    parts = [point.Z, point.Z.T, point.spread, point.spread.T]
    own = [np.diag(point.Z)[:, None], point.b[:, None]]
    return np.hstack([*own, *(np.sort(part, axis=1) for part in parts)])
