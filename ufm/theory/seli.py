"""Cross-entropy with unequal counts as the penalties vanish: a matrix of directions, offsets and a slow rate.

With x = N sqrt(lam_W lam_H) -> 0 the margins z_kk - z_jk of the optimum grow like log(1/x), and

    z_kk - z_jk = log(1/x) + log(w_k sqrt(n_k)/|F_jk|) + O(1/log(1/x)),

where F = U V' is the polar factor of M D^(1/2), D = diag(n_k), and M is the limit of Zbar/log(1/x): at the
optimum the gradient in the class means is -lam F D^(1/2), and off its diagonal it is (w_k n_k/N) p_jk.

    no bias, or lam_b > 0:  M = P = I - 11'/K (the SELI geometry), F = D^(-1/2) (D^(1/2) P D^(1/2))^(1/2), so
                            that w_k sqrt(n_k)/|F_jk| = w_k sqrt(n_j n_k)/|(D^(1/2) P D^(1/2))^(1/2)_jk|
    free bias:              M = P (I - pi 1'), pi = n/N, and b/log(1/x) -> P pi

Source: Thrampoulidis et al. 2022 for M without a bias; docs/theory.md, section 1.7.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ufm import losses
from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._sheet import printed
from ufm.losses._closed import NoClosedForm, Proof
from ufm.theory._setting import any_counts, need_free_factors, need_rank


@printed
class VanishingPenalties(NamedTuple):
    """The optimum of cross-entropy as x = N sqrt(lam_W lam_H) -> 0."""

    direction: Float[np.ndarray, "K K"]  # M: Zbar/log(1/x) tends to it
    bias: Float[np.ndarray, " K"]  # b/log(1/x) tends to it
    offsets: Float[np.ndarray, "K K"]  # (j, k): z_kk - z_jk - log(1/x) tends to it; zero on the diagonal
    gram_W: Float[np.ndarray, "K K"]  # W W'/log(1/x) tends to it
    gram_H: Float[np.ndarray, "K K"]  # of the class means: H'H/log(1/x) tends to it
    proved: Proof  # "numerical": that the entries of F off the diagonal are negative was computed, not proved

    def margins(self, x: float) -> Float[np.ndarray, "K K"]:
        """z_kk - z_jk up to O(1/log(1/x))."""
        off = ~np.eye(len(self.bias), dtype=bool)
        return np.asarray(np.where(off, np.log(1 / x) + self.offsets, 0.0))


@in_float64
def vanishing_penalties(prob: Problem) -> VanishingPenalties:
    """The limit of the optimum of cross-entropy as lam_W and lam_H vanish, for any counts and class weights.

    The direction is approached only like 1/log(1/x): with counts from 1 to 8 the offsets, which depend on the
    counts, still are a tenth of the margins at x = 1e-9.

    Args:
        prob: cross-entropy with two free factors; of the penalties only lam_W/lam_H and whether lam_b = 0
            matter.

    Raises:
        NoClosedForm: another loss, whose margins grow otherwise or stay bounded; another model; d < K - 1.

    Source: docs/theory.md, section 1.7.

    >>> import ufm
    >>> prob = ufm.Problem.from_counts("ce", counts=[8, 8, 1, 1], d=4, bias=False)
    >>> ufm.theory.vanishing_penalties(prob).direction[0].round(2).tolist()
    [0.75, -0.25, -0.25, -0.25]
    """
    need_free_factors(prob)
    if not isinstance(losses.without_weights(prob.loss), losses.CrossEntropy):
        raise NoClosedForm(
            f"loss: the limit of vanishing penalties is known for cross-entropy, got {prob.loss!r}; "
            "theory.global_optimum takes convex losses at any penalty"
        )
    s = any_counts(prob)
    need_rank(s, s.K - 1, "limit of vanishing penalties")
    free = s.bias and s.lam_b == 0
    n, centred = prob.counts.astype(float), np.eye(s.K) - 1 / s.K
    share = n / n.sum()
    M = centred - np.outer(centred @ share, np.ones(s.K)) if free else centred
    U, sigma, Vt = (part[..., : s.K - 1] for part in _svd(M * np.sqrt(n)))
    F = U @ Vt.T
    off = ~np.eye(s.K, dtype=bool)
    if not (F[off] < 0).all():
        raise NoClosedForm("labels: the dual frame of these counts has an entry of the other sign")
    weights = np.ones(s.K) if prob.class_weights is None else np.asarray(prob.class_weights)
    factor = np.where(off, np.abs(F), 1.0)
    scale = np.sqrt(s.lam_H / s.lam_W)
    half = Vt / np.sqrt(n)[:, None]
    return VanishingPenalties(
        direction=M,
        bias=centred @ share if free else np.zeros(s.K),
        offsets=np.where(off, np.log(weights * np.sqrt(n) / factor), 0.0),
        gram_W=scale * (U * sigma) @ U.T,
        gram_H=(half * sigma) @ half.T / scale,
        proved="numerical" if free and len(np.unique(n)) > 2 else "proved",
    )


def _svd(M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, the singular values and V, the largest first."""
    U, sigma, Vt = np.linalg.svd(M)
    return U, sigma, Vt.T
