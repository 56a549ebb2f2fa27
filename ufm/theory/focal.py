"""Focal loss: the bound of the objective that no parameters can beat."""

from __future__ import annotations

from ufm._precision import in_float64
from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._focal_branch import p_infl as p_infl
from ufm.losses._focal_branch import p_unit as p_unit
from ufm.theory import covering
from ufm.theory._setting import setting


@in_float64
def focal_lower_bound(prob: Problem) -> float:
    """A rigorous lower bound of the objective over all (W, H, b) for focal loss, at any d, n and lam_b.

    Without a bias it is the scalar optimum min_a l(a) + C a, C = (K-1) c, hence attained where d >= K-1. With
    a bias it is the best of two bounds. First min_a l**(a) + C |a|, l** the convex hull of the profile:
    ||Z||_* >= (1/K) sum_k |t_k| with t_k = sum_j (z_jk - z_kk), then Jensen for l**, which equals l where
    p >= p_unit and has slope -1 below. Second, the loss is Lipschitz in the logits with sqrt(2) max S, so the
    origin is optimal if c >= sqrt(2/K) max S. Where the certificate of docs/theory.md, section 2.6, closes,
    the bound is the value of neural collapse.

    Raises:
        ValueError: another loss.
        NoClosedForm: imbalanced classes.

    Source: docs/theory.md, section 2.2; it replaces Lemma 8 of Zhou et al. 2022, whose bound is below what is
    claimed (cross-entropy, K = 3, c = 0.05: 0.377157 < 0.394398).
    """
    if not prob.loss.has_lower_bound:
        raise ValueError(f"prob: expected a problem with focal loss, got {prob.loss!r}")
    s = setting(prob)
    best = s.loss.optimum(s) if certified(s) else None
    return s.loss.lower_bound(s) if best is None else float(best.objective)


def certified(s: Setting) -> bool:
    """Whether s is focal loss for which the certificate of a single C closes, `covering.certifies`."""
    if not (s.loss.has_lower_bound and s.bias and s.C > 1 and s.K > 1):
        return False
    gamma = float(s.loss.hyperparameters["gamma"])
    return gamma > 0 and covering.certifies(gamma, s.K, float(s.C))
