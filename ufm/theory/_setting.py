"""What the theorems see of a problem, and what they refuse."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm import losses
from ufm._problem import Problem
from ufm.losses import Loss


class NoClosedForm(ValueError):  # noqa: N818 (a name of the public contract)
    """No closed form is known here; the message names the assumption that fails."""


class Setting(NamedTuple):
    """A balanced problem as plain numbers."""

    loss: Loss
    labels: np.ndarray  # (N,)
    K: int
    d: int
    n: int  # samples per class
    lam_W: float
    lam_H: float
    lam_b: float
    bias: bool
    c_squared: Fraction  # n lam_W lam_H, exact

    @property
    def c(self) -> float:
        """sqrt(n lam_W lam_H), from the exact product."""
        return math.sqrt(self.c_squared)

    @property
    def C(self) -> float:
        """(K - 1) c, the weight of the margin in the scalar problem."""
        return (self.K - 1) * self.c

    @property
    def N(self) -> int:
        """Number of samples."""
        return self.n * self.K

    def below(self, threshold: Fraction) -> float:
        """threshold - c in full relative accuracy, however close the two are.

        From (threshold^2 - c^2) / (threshold + c): the difference of squares is rational, hence exact.
        """
        if threshold <= 0:
            return float(threshold) - self.c
        return float(threshold**2 - self.c_squared) / (float(threshold) + self.c)


def setting(prob: Problem) -> Setting:
    """The numbers of one balanced problem.

    Raises:
        ValueError: a batch of problems, or a problem inside `jit` or `vmap`.
        NoClosedForm: the classes are not balanced.
    """
    if not prob.model.bilinear:
        raise NoClosedForm(f"model: closed forms are known for two free factors, got model={prob.model!r}")
    if prob.n is None:
        counts = prob.counts
        raise NoClosedForm(
            f"labels: the theorems assume equally many samples in every class, got {counts.min()} to "
            f"{counts.max()}; the certificate and the solvers work for any counts"
        )
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
        n=prob.n,
        lam_W=lam_W,
        lam_H=lam_H,
        lam_b=lam_b if prob.bias else 0.0,
        bias=bool(prob.bias),
        c_squared=prob.n * Fraction(lam_W) * Fraction(lam_H),
    )


def number(name: str, value: Any) -> float:
    """One concrete number.

    Raises:
        ValueError: an array (a batch of problems) or a tracer.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"{name}: expected a concrete number, got a tracer; call the theory outside jit")
    if np.ndim(value) != 0:
        raise ValueError(
            f"{name}: expected one number, got shape {np.shape(value)}; take one problem of the batch"
        )
    return float(value)


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
