"""The bridge: a trained last layer beside the UFM's optimum at its effective penalties."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm import losses, metrics, theory
from ufm._problem import Problem


class Comparison(NamedTuple):
    """Measured values of a last layer, and those of the UFM's global minimiser (None: no closed form)."""

    lam_W: float  # effective penalties
    lam_H: float
    lam_b: float
    objective: float
    optimum: float | None
    margin: float  # mean of z_y - z_j over samples and j != y
    optimal_margin: float | None
    angle: float  # mean cosine between two centred class means; -1/(K-1) at a simplex
    angle_spread: float  # their standard deviation; 0 at a simplex
    norm_spread: float  # standard deviation over mean of the norms of the centred class means
    duality: float  # NC3
    regime: str

    @property
    def gap(self) -> float | None:
        """Relative excess of the objective over the UFM's minimum."""
        return None if self.optimum is None else self.objective / self.optimum - 1

    def __repr__(self) -> str:
        def shown(value: float | None) -> str:
            return "-" if value is None else f"{value:.4g}"

        pairs = (
            ("objective", self.objective, self.optimum),
            ("margin", self.margin, self.optimal_margin),
            ("cosine", self.angle, None),
            ("spread", self.angle_spread, 0.0),
            ("norms", self.norm_spread, 0.0),
            ("NC3", self.duality, 0.0),
        )
        rows = [f"{name:<12}{shown(got):<14}{shown(want)}" for name, got, want in pairs]
        penalties = f"lam_W={self.lam_W:.2e}, lam_H={self.lam_H:.2e}, lam_b={self.lam_b:.2e}"
        return "\n".join([f"{'':<12}{'measured':<14}UFM ({penalties})", *rows])


def compare(
    features: Any, labels: Any, W: Any, b: Any, loss: losses.Loss, *, lam_W: float, lam_b: float
) -> Comparison:
    """A last layer beside the UFM with lam_W, lam_b and the effective lam_H = lam_W |W|^2 / |H|^2.

    The network penalises the weights that make H and not H. At every critical point of the UFM
    lam_W |W|^2 = lam_H |H|^2, which gives the lam_H that the trained layer behaves as if it had. H is
    centred, with b changed to b + W h_G: the same logits, and the origin that the UFM would choose.

    Source: the balance of the penalties, grad_W f W^T = H^T grad_H f (paper, appendix on critical points).
    """
    H, y = np.asarray(features, np.float64), np.asarray(labels)
    W, b = np.asarray(W, np.float64), np.asarray(b, np.float64)
    K, N = len(W), len(H)
    centre = np.stack([H[y == k].mean(axis=0) for k in range(K)]).mean(axis=0)
    H, b = H - centre, b + W @ centre
    lam_H = float(lam_W * np.sum(W**2) / np.sum(H**2))
    Z = H @ W.T + b
    each = jax.vmap(loss)(jnp.asarray(Z), jnp.asarray(y, jnp.result_type(int)))
    penalty = lam_W * np.sum(W**2) + lam_H * np.sum(H**2) + lam_b * np.sum(b**2)
    means = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    norms = np.linalg.norm(means, axis=1)
    cosines = (means @ means.T / np.outer(norms, norms))[~np.eye(K, dtype=bool)]
    optimum, margin, regime = _optimum(loss, y, K, lam_W, lam_H, lam_b)
    return Comparison(
        lam_W=float(lam_W),
        lam_H=lam_H,
        lam_b=float(lam_b),
        objective=float(np.mean(each) + penalty / 2),
        optimum=optimum,
        margin=float(np.mean((K * Z[np.arange(N), y] - Z.sum(axis=1)) / (K - 1))),
        optimal_margin=margin,
        angle=float(cosines.mean()),
        angle_spread=float(cosines.std()),
        norm_spread=float(norms.std() / norms.mean()),
        duality=float(metrics.neural_collapse(H, y, W, b).nc3),
        regime=regime,
    )


def _optimum(
    loss: losses.Loss, labels: np.ndarray, K: int, lam_W: float, lam_H: float, lam_b: float
) -> tuple[float | None, float | None, str]:
    """Objective, margin and regime in closed form; classes that differ a little in size count as equal."""
    n = len(labels) / K
    # n enters through n lam_H alone: one sample a class with n lam_H is the same problem
    prob = Problem(loss, np.arange(K), K=K, d=K, lam_W=lam_W, lam_H=lam_H * n, lam_b=lam_b)
    try:
        best = theory.global_optimum(prob)
    except theory.NoClosedForm as error:
        return None, None, str(error)
    margin = None if best.margin is None else float(best.margin)
    return float(best.objective), margin, str(best.regime)
