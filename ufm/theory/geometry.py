"""Norms and angles of the classifier and the class means of groups of classes, in numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._sheet import finite, printed
from ufm.losses._closed import Groups
from ufm.theory._blocks import groups_of
from ufm.theory._setting import need_free_factors
from ufm.theory.optima import global_optimum


@printed
class GroupGeometry(NamedTuple):
    """Means over the classes of G groups of equal count and weight, the largest count first."""

    counts: Int[np.ndarray, " G"]
    sizes: Int[np.ndarray, " G"]  # classes
    w_norm: Float[np.ndarray, " G"]  # root of the mean |w_k|^2
    h_norm: Float[np.ndarray, " G"]  # the same of the class means
    w_cosine: Float[np.ndarray, "G G"]  # of two different classes of these groups; nan: none, or zero vectors
    h_cosine: Float[np.ndarray, "G G"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; nan becomes null."""
        whole = {"counts": self.counts.tolist(), "sizes": self.sizes.tolist()}
        return whole | {name: _plain(getattr(self, name).tolist()) for name in self._fields[2:]}

    def lines(self) -> list[str]:
        """In words, a line a group."""
        found = []
        for g, (n, K) in enumerate(zip(self.counts, self.sizes, strict=True)):
            text = (
                f"{K} of {n} samples: |w| = {self.w_norm[g]:.4g}, |h| = {self.h_norm[g]:.4g}, cosines of w "
            )
            found.append(text + f"{_row(self.w_cosine[g])}, of h {_row(self.h_cosine[g])}")
        return found


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list) else finite(value)


def _row(cosines: np.ndarray) -> str:
    return " ".join("-" if np.isnan(x) else f"{x:.4f}" for x in cosines)


def measured_geometry(prob: Problem, params: Any) -> GroupGeometry:
    """At any point with a classifier W and features H."""
    groups = groups_of(prob.counts, prob.class_weights)
    w, h = (_norms_and_cosines(groups, x) for x in (params.W, prob.class_means(np.asarray(params.H)).T))
    return GroupGeometry(groups.counts, groups.sizes, w[0], h[0], w[1], h[1])


@in_float64
def group_geometry(prob: Problem) -> GroupGeometry:
    """At the global optimum, which determines W W' and the Gram matrix of the class means.

    For two groups of cross-entropy or label smoothing, sigma = sqrt(q (N_A rho_A^2 + N_B rho_B^2)) and up to
    a factor sqrt(lam_H/lam_W) and its inverse:

        |w_A|^2 = alpha_A sqrt(n_A) (1 - 1/K_A) + sigma K_B/(K K_A),   <w_A, w_B> = -sigma/K,
        |h_A|^2 = alpha_A/sqrt(n_A) (1 - 1/K_A) + q rho_A^2/sigma,     <h_A, h_B> = -q rho_A rho_B/sigma,

    and within a group alpha (1 - 1/K_A) gives way to -alpha/K_A.

    Raises:
        NoClosedForm: as `theory.global_optimum`.

    Source: docs/theory.md, section 1.7.

    >>> import ufm
    >>> prob = ufm.Problem.from_counts("ce", counts=[9, 9, 9, 2, 2], d=5, lam_W=0.01, lam_H=0.01)
    >>> ufm.theory.group_geometry(prob).w_cosine.round(3).tolist()
    [[-0.341, -0.218], [-0.218, -0.101]]
    """
    need_free_factors(prob)
    return measured_geometry(prob, global_optimum(prob).params)


def _norms_and_cosines(groups: Groups, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(rows, np.float64)
    gram, member = rows @ rows.T, np.eye(len(groups.sizes))[groups.of_class]
    square = member.T @ np.diag(gram)
    pairs = np.outer(groups.sizes, groups.sizes) - np.diag(groups.sizes)
    inner = member.T @ gram @ member - np.diag(square)
    norm = np.sqrt(square / groups.sizes)
    size = np.outer(norm, norm) * pairs
    least = 1e-10 * norm.max()
    known = (size > 0) & np.outer(norm > least, norm > least)
    return norm, np.where(known, inner / np.where(known, size, 1.0), np.nan)
