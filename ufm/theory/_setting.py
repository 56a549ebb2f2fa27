"""A problem as the plain numbers that the theorems use, and what they refuse."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ufm import losses
from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm, number


def setting(prob: Problem) -> Setting:
    """The numbers of one balanced problem.

    Raises:
        ValueError: a batch of problems, or a problem inside `jit` or `vmap`.
        NoClosedForm: the classes are not balanced, or have weights.
    """
    need_free_factors(prob)
    if prob.n is None:
        raise NoClosedForm(
            "labels, class_weights: the theorems assume equally many samples in every class and no weights, "
            f"got {prob.unequal}; global_optimum, threshold, the certificate and the solvers take any"
        )
    return any_counts(prob)


def need_free_factors(prob: Problem) -> None:
    """Refuse a model for which a closed form is not known.

    Raises:
        NoClosedForm: it is not that of two free factors.
    """
    if not prob.model.bilinear:
        raise NoClosedForm(f"model: closed forms are known for two free factors, got model={prob.model!r}")


def any_counts(prob: Problem) -> Setting:
    """The numbers of a problem of any model, with the mean count N/K as `n` where the counts differ.

    Raises:
        ValueError: a batch of problems, or a problem inside `jit` or `vmap`.
        NoClosedForm: the penalties overflow.
    """
    n = prob.n or Fraction(prob.N, prob.K)
    lam_W, lam_H, lam_b = (number(name, getattr(prob, name)) for name in ("lam_W", "lam_H", "lam_b"))
    if max(lam_W, lam_H) > 1e150:
        raise NoClosedForm(
            f"lam_W, lam_H: expected at most 1e150, got {lam_W:g} and {lam_H:g}; c^2 overflows"
        )
    return Setting(
        loss=losses.frozen(prob.loss, prob.K),
        labels=np.asarray(prob.labels),
        K=int(prob.K),
        d=int(prob.d),
        n=n,
        lam_W=lam_W,
        lam_H=lam_H,
        lam_b=lam_b if prob.bias else 0.0,
        bias=bool(prob.bias),
        c_squared=n * Fraction(lam_W) * Fraction(lam_H),
    )


def need_rank(s: Setting, rank: int, structure: str) -> None:
    """Refuse a feature space that cannot hold the structure.

    Raises:
        NoClosedForm: d < rank.
    """
    if s.d < rank:
        raise NoClosedForm(
            f"d: the {structure} has rank {rank} and needs d >= {rank}, got d={s.d} with K={s.K}; below that "
            "the optimum is another one and spurious minima are known"
        )
