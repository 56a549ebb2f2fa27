"""A trained last layer compared with the UFM's optimum at its effective penalties."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import _checks, losses, metrics, theory
from ufm._problem import Problem
from ufm._sheet import Printed, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(Printed):
    """Measurements of a last layer, and the values at the UFM's global minimiser (None: no closed form).

    M (K, d) are the class means minus their mean.
    """

    lam_W: float  # effective penalties
    lam_H: float
    lam_b: float
    objective: float  # equation (7) at the effective penalties, each class of the same weight
    optimum: float | None
    margin: float  # mean of z_y - z_j over samples and j != y
    optimal_margin: float | None
    norm_W: float  # |W|_F
    optimal_norm_W: float | None
    norm_M: float  # |M|_F
    optimal_norm_M: float | None
    angle: float  # mean cosine between two centred class means; -1/(K-1) at a simplex
    angle_spread: float  # their standard deviation; 0 at a simplex
    norm_spread: float  # standard deviation over mean of the norms of the centred class means
    duality: float  # NC3
    alignment: float  # mean cosine between w_k and its class mean; 1 at self-duality
    optimal_alignment: float | None
    within: float  # share of |H|^2 within the classes; 0 at collapse
    regime: str  # of the optimum, or why there is no closed form
    angles: Float[np.ndarray, "K K"]  # cosines between centred class means
    dual_angles: Float[np.ndarray, "K K"]  # between w_k and centred class means
    margins: Float[np.ndarray, " N"]  # of each sample

    @property
    def gap(self) -> float | None:
        """Relative excess of the objective over the UFM's minimum, >= 0."""
        return None if self.optimum is None else self.objective / self.optimum - 1

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON, without the arrays."""
        arrays = ("angles", "dual_angles", "margins")
        facts = {name: value for name, value in vars(self).items() if name not in arrays}
        return facts | {"gap": self.gap}

    def sheet(self) -> Sheet:
        """A row for each quantity: measured, at the UFM's optimum, and their ratio."""

        K = len(self.angles)
        simplex = None if self.optimal_alignment is None else -1 / (K - 1)
        rows = [
            _row("objective", self.objective, self.optimum),
            _row("margin", self.margin, self.optimal_margin),
            _row("|W|", self.norm_W, self.optimal_norm_W),
            _row("|class means|", self.norm_M, self.optimal_norm_M),
            _row("cosine of class means", self.angle, simplex),
            _row("  spread", self.angle_spread, 0.0),
            _row("norms of means, spread", self.norm_spread, 0.0),
            _row("cosine of w_k and mean k", self.alignment, self.optimal_alignment),
            _row("NC3", self.duality, 0.0),
            _row("|H|^2 within classes", self.within, 0.0),
        ]
        penalties = f"lam_W={self.lam_W:.2e}, lam_H={self.lam_H:.2e}, lam_b={self.lam_b:.2e}"
        excess = f"objective {self.gap:.2%} above the optimum" if self.gap is not None else "no closed form"
        header = ("last layer", "measured", f"UFM ({penalties})", "ratio")
        return Sheet("Trained last layer and the UFM", header, rows, [f"{excess}; {self.regime}"])

    def plot(self) -> Figure:
        """Cosines of the class means and of classifier and means, and margins, beside the optimum's."""
        from ufm.figures.last_layer import plot_last_layer

        above = "" if self.gap is None else f"objective {self.gap:.2%} above the UFM's minimum, "
        return plot_last_layer(
            self.angles,
            self.dual_angles,
            self.margins,
            margin=self.margin,
            optimal_margin=self.optimal_margin,
            title=rf"{above}$\lambda_W$ = {self.lam_W:.2g}, $\lambda_H$ = {self.lam_H:.2g}",
        )


def _row(name: str, got: float, wanted: float | None) -> tuple[str, ...]:
    ratio = "" if not wanted else f"{got / wanted:.3f}"
    return name, f"{got:.4g}", "-" if wanted is None else f"{wanted:.4g}", ratio


class _Layer(NamedTuple):
    """A last layer in float64, features centred at the mean of the class means: the same logits."""

    y: np.ndarray  # (N,)
    W: np.ndarray  # (K, d)
    b: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    weight: np.ndarray  # (N,) 1 where the classes are equal: each class weighs N/K samples
    square: float  # |H|^2, so weighted
    Z: np.ndarray  # (N, K)


def _layer(features: ArrayLike, labels: ArrayLike, W: ArrayLike, b: ArrayLike) -> _Layer:
    H, y = np.asarray(features, np.float64), np.asarray(labels)
    weights, bias = np.asarray(W, np.float64), np.asarray(b, np.float64)
    (K, N), counts = (len(weights), len(H)), np.bincount(y, minlength=len(weights))
    if not counts.all():
        raise ValueError(f"labels: expected every class 0..{K - 1}, got none of class {np.argmin(counts)}")
    means = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    centre = means.mean(axis=0)
    largest = np.max(np.abs(H))
    H, means, bias = H - centre, means - centre, bias + weights @ centre
    if np.linalg.norm(means, axis=1).min() <= 1e-12 * largest:
        raise ValueError("features: expected class means that differ, got one at the mean of all; train on")
    share = N / (K * counts[y])
    square = float(share @ np.sum(H**2, axis=1))
    return _Layer(y, weights, bias, means, share, square, H @ weights.T + bias)


def compare(
    features: ArrayLike,
    labels: ArrayLike,
    W: ArrayLike,
    b: ArrayLike,
    loss: losses.Loss,
    *,
    lam_W: float,
    lam_b: float,
) -> Comparison:
    """Compare a last layer with the UFM of lam_W, lam_b and an effective lam_H.

    lam_W and lam_b are the weight decay divided by the factor of the mean loss. A network penalises the
    weights that produce H rather than H itself, so lam_H has to be inferred. At every critical point of the
    UFM lam_W W'W = lam_H H H' (Lemma 5), and its trace defines the effective penalty

        lam_H = lam_W |W|^2 / |H|^2,

    which makes the ratios of |W| and of |H| to their optima equal. H is centred at the mean h_G of the class
    means and b replaced by b + W h_G: the logits stay the same, and the origin is that of the UFM's optimum.
    Every class has the weight of N/K samples whatever its size, so that the objective is never below the
    minimum of the balanced UFM.

    Args:
        features: (N, d).  labels: (N,) in 0..K-1, every class at least once.  W: (K, d).  b: (K,).

    Raises:
        ValueError: arrays that do not fit, a class without samples, class means that are all equal,
            lam_W <= 0.

    Source: Zhou et al. 2022, equation (7) and Lemma 5.
    """
    lam_W = float(_checks.real("lam_W", lam_W, above=0.0, why="train with weight decay"))
    lam_b = float(_checks.real("lam_b", lam_b, least=0.0))
    nc = metrics.neural_collapse(features, labels, W, b)  # checks the arrays
    at = _layer(features, labels, W, b)
    K, N = len(at.W), len(at.y)
    norms = np.linalg.norm(at.means, axis=1)
    lam_H = float(lam_W * np.sum(at.W**2) / at.square)
    each = np.asarray(jax.vmap(loss)(jnp.asarray(at.Z), jnp.asarray(at.y, jnp.result_type(int))))
    penalty = lam_W * np.sum(at.W**2) + lam_H * at.square + lam_b * np.sum(at.b**2)
    margins = (K * at.Z[np.arange(N), at.y] - at.Z.sum(axis=1)) / (K - 1)
    angles, dual = _cosines(at.means, at.means), _cosines(at.W, at.means)
    off = angles[~np.eye(K, dtype=bool)]
    best, regime = _optimum(loss, K, lam_W, lam_H * N / K, lam_b)
    return Comparison(
        lam_W=lam_W,
        lam_H=lam_H,
        lam_b=lam_b,
        objective=float(at.weight @ each / N + penalty / 2),
        optimum=None if best is None else float(best.objective),
        margin=float(at.weight @ margins / N),
        optimal_margin=None if best is None else float(best.margin),
        norm_W=float(np.linalg.norm(at.W)),
        optimal_norm_W=None if best is None else float(np.linalg.norm(best.params.W)),
        norm_M=float(np.linalg.norm(at.means)),
        optimal_norm_M=None if best is None else float(np.linalg.norm(_centred(best.params.H.T))),
        angle=float(off.mean()),
        angle_spread=float(off.std()),
        norm_spread=float(norms.std() / norms.mean()),
        duality=float(nc.nc3),
        alignment=float(np.diag(dual).mean()),
        optimal_alignment=_alignment(best),
        within=max(0.0, 1 - N / K * float(np.sum(at.means**2)) / at.square),
        regime=regime,
        angles=angles,
        dual_angles=dual,
        margins=margins,
    )


def _centred(rows: ArrayLike) -> np.ndarray:
    rows = np.asarray(rows)
    return np.asarray(rows - rows.mean(axis=0))


def _cosines(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Between the rows of A and of B; 0 for a row of zeros."""
    tiny = np.finfo(float).tiny
    lengths = [np.maximum(np.linalg.norm(X, axis=1), tiny) for X in (A, B)]
    return np.asarray(A @ B.T / np.outer(*lengths))


def _alignment(best: theory.Optimum | None) -> float | None:
    """Of the optimum; None where it has no features."""
    if best is None or best.rank == 0:
        return None
    return float(np.diag(_cosines(np.asarray(best.params.W), _centred(best.params.H.T))).mean())


def _optimum(
    loss: losses.Loss, K: int, lam_W: float, n_lam_H: float, lam_b: float
) -> tuple[theory.Optimum | None, str]:
    """The global minimum and its regime, or None and why it is unknown.

    n enters through n lam_H alone: one sample a class with n lam_H is the same problem.
    """
    prob = Problem(loss, np.arange(K), K=K, d=K, lam_W=lam_W, lam_H=n_lam_H, lam_b=lam_b)
    try:
        best = theory.global_optimum(prob)
    except theory.NoClosedForm as error:
        return None, str(error)
    return best, f"at its optimum: {best.regime}, {best.structure}"
