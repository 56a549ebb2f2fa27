"""A trained last layer compared with the UFM's optimum at its effective penalties."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import _checks, losses, metrics, theory
from ufm._problem import Problem
from ufm._sheet import Printed, Sheet
from ufm._solve import solve
from ufm.deep._refit import refitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(Printed):
    """Measurements of a last layer, and the values at the UFM's minimiser (None: not known).

    M (K, d) are the class means minus their mean.
    """

    model: str  # of the UFM: "free" or "nonnegative"
    lam_W: float  # effective penalties
    lam_H: float
    lam_b: float
    objective: float  # equation (7) at the effective penalties, free: each class of the same weight
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
    nc1: float  # tr(Sigma_W Sigma_B^+)/K
    nc2: float  # of W
    optimal_nc2: float | None
    duality: float  # NC3
    alignment: float  # mean cosine between w_k and its class mean; 1 at self-duality
    optimal_alignment: float | None
    raw_angle: float  # mean cosine between two class means from the model's origin
    optimal_raw_angle: float | None
    raw_duality: float  # NC3 with these class means
    optimal_raw_duality: float | None
    norm_b: float
    optimal_norm_b: float | None
    within: float  # share of |H|^2 within the classes; 0 at collapse
    regime: str  # of the optimum, or why there is no closed form
    refitted_nc2: float | None  # of the W that minimises the objective at these features; None: not asked for
    means_nc2: float | None  # of the W that does if every feature is its class mean
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
            _row("NC1", self.nc1, 0.0),
            _row("NC2", self.nc2, self.optimal_nc2),
            *self._refitted_rows(),
            _row("NC3", self.duality, 0.0),
            _row("cosine of raw class means", self.raw_angle, self.optimal_raw_angle),
            _row("NC3 of raw class means", self.raw_duality, self.optimal_raw_duality),
            _row("|b|", self.norm_b, self.optimal_norm_b),
            _row("|H|^2 within classes", self.within, 0.0),
        ]
        penalties = f"lam_W={self.lam_W:.2e}, lam_H={self.lam_H:.2e}, lam_b={self.lam_b:.2e}"
        excess = f"objective {self.gap:.2%} above the optimum" if self.gap is not None else "no closed form"
        header = ("last layer", "measured", f"UFM ({penalties})", "ratio")
        title = "Trained last layer and the UFM" + (
            "" if self.model == "free" else f", {self.model} features"
        )
        return Sheet(title, header, rows, [f"{excess}; {self.regime}"])

    def _refitted_rows(self) -> list[tuple[str, ...]]:
        named = (
            ("  of W refitted to the features", self.refitted_nc2),
            ("  of W refitted to the class means", self.means_nc2),
        )
        return [_row(name, value, self.optimal_nc2) for name, value in named if value is not None]

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
    ratio = "" if wanted is None or abs(wanted) < 1e-9 else f"{got / wanted:.3f}"
    return name, f"{got:.4g}", "-" if wanted is None else f"{wanted:.4g}", ratio


class _Layer(NamedTuple):
    """A last layer in float64, with the origin of the features where the model has it: the same logits."""

    y: np.ndarray  # (N,)
    W: np.ndarray  # (K, d)
    b: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    weight: np.ndarray  # (N,) of the samples: ones, or such that each class weighs N/K samples
    square: float  # |H|^2, so weighted
    Z: np.ndarray  # (N, K)


def _layer(features: ArrayLike, labels: ArrayLike, W: ArrayLike, b: ArrayLike, free: bool) -> _Layer:
    """Free features: from the mean of the class means, and classes of equal weight. Else as they are."""
    H, y = np.asarray(features, np.float64), np.asarray(labels)
    weights, bias = np.asarray(W, np.float64), np.asarray(b, np.float64)
    (K, N), counts = (len(weights), len(H)), np.bincount(y, minlength=len(weights))
    if not counts.all():
        raise ValueError(f"labels: expected every class 0..{K - 1}, got none of class {np.argmin(counts)}")
    means = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    centre = means.mean(axis=0)
    if np.linalg.norm(means - centre, axis=1).min() <= 1e-12 * np.max(np.abs(H)):
        raise ValueError("features: expected class means that differ, got one at the mean of all; train on")
    if free:
        H, means, bias = H - centre, means - centre, bias + weights @ centre
    share = N / (K * counts[y]) if free else np.ones(N)
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
    model: str = "free",
    refit: bool = False,
) -> Comparison:
    """Compare a last layer with the UFM of lam_W, lam_b and an effective lam_H.

    lam_W and lam_b are the weight decay divided by the factor of the mean loss. A network penalises the
    weights that produce H rather than H itself, so lam_H has to be inferred. At every critical point of the
    UFM lam_W W'W = lam_H H H' (Lemma 5), and its trace defines the effective penalty

        lam_H = lam_W |W|^2 / |H|^2,

    which makes the ratios of |W| and of |H| to their optima equal.

    Free features have no origin of their own: H is centred at the mean h_G of the class means and b replaced
    by b + W h_G, which keeps the logits, and every class has the weight of N/K samples whatever its size, so
    that the objective is never below the minimum of the balanced UFM. Features after a rectifier have one:
    with the model "nonnegative", H and b stay as they are, and the optimum is that of the true counts.

    `refit` divides the distance of W from a simplex, NC2, by its causes. W and b are trained on to the
    minimum of the objective at the features as they are, and once more at their class means:

        NC2 of W        - refitted_nc2   the last layer is not at its minimum
        refitted_nc2    - means_nc2      the features vary within classes
        means_nc2       - optimal_nc2    the class means are not those of the optimum
        optimal_nc2                      the optimum itself is no simplex (a decayed bias, unequal counts)

    Args:
        features: (N, d).  labels: (N,) in 0..K-1, every class at least once.  W: (K, d).  b: (K,).
        model: "free" or "nonnegative".
        refit: whether to compute `refitted_nc2` and `means_nc2`.

    Raises:
        ValueError: arrays that do not fit, a class without samples, class means that are all equal,
            lam_W <= 0, another model, negative features for the model "nonnegative".

    Source: Zhou et al. 2022, equation (7) and Lemma 5.
    """
    lam_W = float(_checks.real("lam_W", lam_W, above=0.0, why="train with weight decay"))
    lam_b = float(_checks.real("lam_b", lam_b, least=0.0))
    free = _checks.choice("model", model, ("free", "nonnegative")) == "free"
    nc = metrics.neural_collapse(features, labels, W, b)  # checks the arrays
    if not free and np.min(features) < 0:
        raise ValueError(f"features: expected none below 0, got {np.min(features):.3g}; use model='free'")
    at = _layer(features, labels, W, b, free)
    K, N = at.W.shape[0], len(at.y)
    lam_H = float(lam_W * np.sum(at.W**2) / at.square)
    each = np.asarray(jax.vmap(loss)(jnp.asarray(at.Z), jnp.asarray(at.y, jnp.result_type(int))))
    penalty = lam_W * np.sum(at.W**2) + lam_H * at.square + lam_b * np.sum(at.b**2)
    counts = np.full(K, 1) if free else np.bincount(at.y)
    best = _optimum(loss, counts, lam_W, lam_H * N / K if free else lam_H, lam_b, model)
    given = np.asarray(features, np.float64), at.y, at.W, np.asarray(b, np.float64)
    own, of_means = _refitted(*given, loss, lam_W, lam_b) if refit else (None, None)
    return Comparison(
        model=model,
        lam_W=lam_W,
        lam_H=lam_H,
        lam_b=lam_b,
        objective=float(at.weight @ each / N + penalty / 2),
        nc1=float(nc.nc1),
        nc2=float(nc.nc2),
        refitted_nc2=own,
        means_nc2=of_means,
        duality=float(nc.nc3),
        **_measured(at),
        **_optimal(best),
    )


def _refitted(
    H: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, loss: losses.Loss, lam_W: float, lam_b: float
) -> tuple[float, float]:
    """NC2 of the W that is trained on to its minimum at these features, and at their class means."""
    K, counts = len(W), np.bincount(y)
    means = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    found = [
        refitted(features, labels, weights / len(y), W, b, loss, lam_W=lam_W, lam_b=lam_b)[0]
        for features, labels, weights in ((H, y, np.ones(len(y))), (means, np.arange(K), counts))
    ]
    return _from_simplex(found[0] @ found[0].T), _from_simplex(found[1] @ found[1].T)


def _measured(at: _Layer) -> dict[str, Any]:
    """What a `Comparison` holds of the layer itself."""
    K, N = at.W.shape[0], len(at.y)
    M = _centred(at.means)
    norms = np.linalg.norm(M, axis=1)
    angles, dual = _cosines(M, M), _cosines(at.W, M)
    off = angles[~np.eye(K, dtype=bool)]
    margins = (K * at.Z[np.arange(N), at.y] - at.Z.sum(axis=1)) / (K - 1)
    between = float(np.bincount(at.y, at.weight) @ np.sum(at.means**2, axis=1))
    return {
        "margin": float(at.weight @ margins / N),
        "norm_W": float(np.linalg.norm(at.W)),
        "norm_M": float(np.linalg.norm(M)),
        "norm_b": float(np.linalg.norm(at.b)),
        "angle": float(off.mean()),
        "angle_spread": float(off.std()),
        "norm_spread": float(norms.std() / norms.mean()),
        "alignment": float(np.diag(dual).mean()),
        "raw_angle": _mean_cosine(at.W, at.means),
        "raw_duality": _duality(at.W, at.means),
        "within": max(0.0, 1 - between / at.square),
        "angles": angles,
        "dual_angles": dual,
        "margins": margins,
    }


def _optimal(best: _Best) -> dict[str, Any]:
    """What a `Comparison` holds of the UFM's minimiser."""
    return {
        "regime": best.regime,
        "optimum": best.objective,
        "optimal_margin": best.margin,
        "optimal_norm_W": best.norm(best.W),
        "optimal_norm_M": best.norm(best.means, _centred),
        "optimal_norm_b": best.norm(best.b),
        "optimal_nc2": best.of_means(lambda W, _: _from_simplex(W @ W.T)),
        "optimal_alignment": best.of_means(lambda W, M: float(np.diag(_cosines(W, _centred(M))).mean())),
        "optimal_raw_angle": best.of_means(_mean_cosine),
        "optimal_raw_duality": best.of_means(_duality),
    }


def _centred(rows: ArrayLike) -> np.ndarray:
    rows = np.asarray(rows)
    return np.asarray(rows - rows.mean(axis=0))


def _cosines(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Between the rows of A and of B; 0 for a row of zeros."""
    tiny = np.finfo(float).tiny
    lengths = [np.maximum(np.linalg.norm(X, axis=1), tiny) for X in (A, B)]
    return np.asarray(A @ B.T / np.outer(*lengths))


def _mean_cosine(W: np.ndarray, means: np.ndarray) -> float:
    """Between two different class means."""
    return float(_cosines(means, means)[~np.eye(len(means), dtype=bool)].mean())


def _duality(W: np.ndarray, means: np.ndarray) -> float:
    """NC3 with these class means."""
    return _from_simplex(W @ means.T)


def _from_simplex(product: np.ndarray) -> float:
    """|X/|X| - P/|P|| in Frobenius norms, P = I - 11'/K."""
    K = len(product)
    simplex = np.eye(K) - 1 / K
    size = max(float(np.linalg.norm(product)), np.finfo(float).tiny)
    return float(np.linalg.norm(product / size - simplex / np.sqrt(K - 1)))


class _Best(NamedTuple):
    """The UFM's minimiser, or None for what is not known."""

    regime: str
    objective: float | None = None
    margin: float | None = None
    W: np.ndarray | None = None
    means: np.ndarray | None = None  # (K, d) of the classes
    b: np.ndarray | None = None

    def norm(self, x: np.ndarray | None, change: Callable[[Any], Any] = np.asarray) -> float | None:
        """Of a part, or of what becomes of it."""
        return None if x is None else float(np.linalg.norm(change(x)))

    def of_means(self, f: Callable[[np.ndarray, np.ndarray], float]) -> float | None:
        """A function of W and the class means; None where the optimum has no features."""
        if self.W is None or self.means is None or not np.any(self.means):
            return None
        return f(self.W, self.means)


def _optimum(
    loss: losses.Loss, counts: np.ndarray, lam_W: float, lam_H: float, lam_b: float, model: str
) -> _Best:
    """By the theory, or where it has no closed form for non-negative features, by the solver.

    n enters through n lam_H alone: one sample a class with n lam_H is the same problem.
    """
    K = len(counts)
    penalties: dict[str, Any] = {"lam_W": lam_W, "lam_H": lam_H, "lam_b": lam_b, "model": model}
    prob = Problem.from_counts(loss, counts=counts, d=K, **penalties)
    prob = prob if np.all(counts == 1) else prob.means()
    try:
        best = theory.global_optimum(prob)
        known = f"at its optimum: {best.regime}, {best.structure}"
        params, value = best.params, float(best.objective)
    except theory.NoClosedForm as error:
        if model == "free":
            return _Best(str(error))
        found = solve(prob)
        known = "the UFM's values are those of a solution from one start, as there is no closed form"
        params, value = found.params, float(found.objective)
    W, means, b = (np.asarray(x) for x in (params.W, params.H.T, params.b))
    Z = means @ W.T + b
    margins = (K * np.diag(Z) - Z.sum(axis=1)) / (K - 1)
    return _Best(known, value, float(counts @ margins / counts.sum()), W, means, b)
