"""Eigenvalues of the Hessian, with multiplicities: all of them, or those at one end.

The exact decomposition of `_structure` leaves one block that is not tiny, the core. It is diagonalised where
it is small; sliced by inertia (below) where only its Schur complement is; and where neither is, Lanczos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy.linalg import eigh

from ufm import _checks
from ufm._figure import plot
from ufm._precision import in_float64
from ufm._problem import Params, Problem, Variables
from ufm.hessian import lanczos, layers
from ufm.hessian.product import check_dense, dimension, finite_dense, in_all_variables, is_critical
from ufm.hessian.structure import Structure, as_params, split, structure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ufm.theory import Spectrum

Which = Literal["smallest", "largest", "all"]
Method = Literal["auto", "exact", "lanczos"]

#: a core up to this size is diagonalised whole (2000: about 1 s on 2 cores)
DENSE_CORE = 2000
#: a whole Hessian up to this size is diagonalised for its lowest eigenvalue
DENSE_LOWEST = 600
#: a Schur complement up to this size is diagonalised at every slice
SLICED_HEAD = 1200
#: eigenvalues closer than this, relative to the largest, are one: the dense oracle's rounding, and what the
#: features' rounding moves them
EQUAL = 1e-11


class Eigenvalues(NamedTuple):
    """Distinct eigenvalues in ascending order, each with its multiplicity."""

    values: np.ndarray  # (m,)
    multiplicities: np.ndarray  # (m,)
    dimension: int  # of the Hessian
    method: str  # how they were found
    error: float  # how far the point was moved to make features coincide; of Lanczos, the residual

    def expand(self) -> np.ndarray:
        """One flat ascending array, every value repeated."""
        return np.repeat(self.values, self.multiplicities)

    @property
    def smallest_positive(self) -> float:
        """The flattest curvature that is not a symmetry; NaN where none is here."""
        noise = 1e-9 * float(np.abs(self.values).max(initial=0.0))
        positive = self.values[self.values > noise]
        return float(positive.min()) if positive.size else float("nan")

    def plot(self, closed_form: Spectrum | None = None) -> Figure:
        """A matplotlib figure: eigenvalues against multiplicities, a closed-form spectrum drawn over them."""
        return plot(self, closed_form=closed_form)

    def __repr__(self) -> str:
        shown = [f"{v:.6g} x{m}" for v, m in zip(self.values, self.multiplicities, strict=True)]
        if len(shown) > 12:
            shown = [*shown[:6], "...", *shown[-6:]]
        return (
            f"Eigenvalues({', '.join(shown)}; {int(self.multiplicities.sum())} of {self.dimension}, "
            f"{self.method}, error <= {self.error:.0e})"
        )


@in_float64
def eigenvalues(
    prob: Problem,
    params: Any,
    k: int = 5,
    which: Which = "smallest",
    *,
    method: Method = "auto",
    tol: float = 1e-8,
) -> Eigenvalues:
    """Eigenvalues of the Hessian of f in (W, H, b) at any point.

    Args:
        params: the point, `Params(W, H, b)`.
        k: how many distinct eigenvalues (not with which="all"); each comes with its whole multiplicity.
        which: "smallest" or "largest" (algebraically), or "all".
        method: "exact": by the decomposition, whatever it costs; "lanczos": no structure is used, `k` values
            by a three-term recurrence, those found deflated, to a residual of `tol` |largest value| (an
            eigenvalue of large multiplicity is found as often as k allows); "auto": exact where the
            core of the decomposition or its Schur complement is small, else through the singular values of
            G (k = 1 at a critical point of a convex loss, docs/theory.md, section 4.3; the
            multiplicity is that of the unused directions), else Lanczos.
        tol: of Lanczos.

    Where variables have bounds (`models.nonnegative`) the Hessian is that of the variables that are off their
    bounds: it decides whether f has a way down that keeps the others at zero, and says nothing of ways that
    let go of one whose gradient is zero, as in an idle neuron.

    The decomposition is exact at every point; it pays where features within a class coincide (at every
    critical point of a loss that is convex in z) or W and H leave feature directions unused (at every
    critical point with d > K). What coincides within 1e-10 is taken to coincide, and `error` says how far
    that moved the point.

    Raises:
        ValueError: a wrong shape or value, a Hessian that is not finite, k out of range, an unknown `which`
            or `method`, or more memory than a dense core may take.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.01)
    >>> ev = eigenvalues(prob, prob.zeros(), which="all")
    >>> (ev.values.round(6) + 0).tolist(), ev.multiplicities.tolist()
    ([-0.166777, 0.0, 0.01, 0.186777, 0.25], [18, 1, 36, 18, 3])
    """
    params = prob.check_params(params)
    _checks.choice("which", which, ("smallest", "largest", "all"))
    _checks.choice("method", method, ("auto", "exact", "lanczos"))
    k = _checks.integer("k", k, least=1)
    if which != "all" and k > prob.size:
        raise ValueError(f"k: expected at most the dimension {prob.size}, got {k}")
    tol = float(_checks.real("tol", tol, above=0.0, below=1.0))
    if method == "lanczos":
        if which == "all":
            raise ValueError("which: expected 'smallest' or 'largest' with method='lanczos', got 'all'")
        return _by_lanczos(prob, params, k, which, tol)
    if not prob.decomposes:
        parts = layers.spectrum(prob, params) if method == "auto" else None
        if parts is not None:
            return _of_parts(prob, *parts, k, which)
        if method == "auto" and which != "all" and prob.size > DENSE_CORE:
            return _by_lanczos(prob, params, k, which, tol)
        return _by_dense(prob, params, k, which)
    return of_structure(structure(prob, params), params, k, which, method, tol)


def of_structure(
    at: Structure, params: Params, k: int, which: Which, method: Method = "auto", tol: float = 1e-8
) -> Eigenvalues:
    """`eigenvalues` at a point that has been decomposed."""
    prob = at.prob
    if which == "all":
        check_dense(at.core_size, "ask for which='smallest' or 'largest'")
    if which == "all" or at.core_size <= DENSE_CORE:
        return _gather(at, np.linalg.eigvalsh(at.core()), None, k, which, "decomposition")
    if k == 1 and which == "smallest" and _theorem_applies(prob, params, at) and method == "auto":
        return _through_G(at)
    if method == "exact" or (prob.K * (at.r + 1) <= SLICED_HEAD and _couplings_fit(at)):
        check_dense(prob.K * (at.r + 1), "use method='lanczos'")
        core, times = slices(at, k, which)
        return _gather(at, core, times, k, which, "decomposition, sliced")
    return _by_lanczos(prob, params, k, which, tol)


def _by_dense(prob: Problem, params: Variables, k: int, which: Which) -> Eigenvalues:
    """From the whole matrix, where nothing is known about its structure."""
    found = np.linalg.eigvalsh(finite_dense(prob, params))
    values, weights = merge(found, np.ones(len(found), np.int64))
    values, weights = _chosen(values, weights, k, which)
    rounding = len(found) * float(np.finfo(float).eps * np.abs(found).max(initial=0.0))
    return Eigenvalues(values, weights, len(found), "dense matrix", rounding)


def _of_parts(prob: Problem, found: np.ndarray, times: np.ndarray, k: int, which: Which) -> Eigenvalues:
    """From the core of a product of layers, and the rest."""
    present = times > 0
    values, weights = _chosen(*merge(found[present], times[present]), k, which)
    rounding = len(found) * float(np.finfo(float).eps * np.abs(found).max(initial=0.0))
    return Eigenvalues(values, weights, prob.size, "core of the layers", rounding)


def _chosen(values: np.ndarray, weights: np.ndarray, k: int, which: Which) -> tuple[np.ndarray, np.ndarray]:
    """The k at the end that was asked for, or all."""
    if which == "all":
        return values, weights
    end = slice(None, k) if which == "smallest" else slice(-k, None)
    return values[end], weights[end]


def _couplings_fit(at: Structure) -> bool:
    """Whether the couplings of the clusters to (W, b) fit into a quarter of a gigabyte."""
    return at.M * at.r * at.prob.K * (at.r + 1) <= 2**25


def _gather(
    at: Structure, core: np.ndarray, times: np.ndarray | None, k: int, which: Which, method: str
) -> Eigenvalues:
    """The core's eigenvalues with the explicit ones, equal ones together."""
    fluctuations, repeats = at.inner_fluctuations()
    outer, copies = at.outer()
    values = np.concatenate([core, fluctuations, outer])
    times = np.ones(len(core), np.int64) if times is None else times
    weights = np.concatenate([times, repeats, copies]).astype(np.int64)
    values, weights = _chosen(*merge(values[weights > 0], weights[weights > 0]), k, which)
    return Eigenvalues(values, weights, at.prob.size, method, max(at.moved, 1e-15))


def merge(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending distinct values: neighbours within `EQUAL` of the largest become their weighted mean."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    gap = EQUAL * float(np.abs(values).max(initial=0.0))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values) > gap]))
    total = np.add.reduceat(weights, starts)
    return np.add.reduceat(values * weights, starts) / total, total


# --- through the singular values of G -------------------------------------------------------------------


def _theorem_applies(prob: Problem, params: Params, at: Structure) -> bool:
    strict = at.sigma[0] > float(prob.lam) * (1 + 1e-9)
    return bool(prob.loss.convex and at.unused > 0 and strict and is_critical(prob, params)[0])


def _through_G(at: Structure) -> Eigenvalues:
    """The smallest eigenvalue from G's block alone, at rank < d: docs/theory.md, section 4.3."""
    low, _ = split(at.sigma, at.lam_W, at.lam_H)
    values, weights = merge(low, np.full(len(low), at.unused))
    return Eigenvalues(values[:1], weights[:1], at.prob.size, "singular values of G", max(at.moved, 1e-15))


# --- slicing ------------------------------------------------------------------------------------------------


class _Slicer:
    """Counts the core's eigenvalues below mu, and improves mu: In(core - mu) = In(D - mu) + In(S(mu))."""

    def __init__(self, at: Structure) -> None:
        self.head = at.head()
        D, V = np.linalg.eigh(at.fluctuations)
        C = np.einsum("mpq,mpx->mqx", V, at.couplings(), optimize=True)
        self.D, self.C = D.ravel(), C.reshape(D.size, len(self.head))
        norms = np.sqrt(np.square(self.C).sum())
        self.scale = float(max(np.abs(self.D).max(initial=0.0), np.linalg.norm(self.head, 2)) + norms)
        self.size = at.core_size

    def __call__(self, mu: float) -> tuple[int, np.ndarray, np.ndarray]:
        """(#D < mu, eigenvalues of S(mu), their slopes -d theta/d mu = 1 + |(D - mu)^-1 C x|^2)."""
        gap = self.D - mu
        floor = 1e-14 * self.scale  # a pole is met with probability zero; keep off it
        gap = np.where(np.abs(gap) < floor, np.copysign(floor, gap), gap)
        ratio = self.C / gap[:, None]
        S = self.head - mu * np.eye(len(self.head)) - self.C.T @ ratio
        theta, X = np.linalg.eigh(S)
        return int((gap < 0).sum()), theta, 1 + np.square(ratio @ X).sum(axis=0)


def slices(at: Structure, k: int, which: Which) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest or largest distinct eigenvalues of the core and their multiplicities, by slicing.

    The i-th eigenvalue is bracketed by counts; inside, mu + theta/slope is the Rayleigh quotient of the
    eigenvector that S(mu) suggests, which converges cubically.
    """
    slicer = _Slicer(at)
    found: list[float] = []
    times: list[int] = []
    taken = 0
    while len(found) < k and taken < slicer.size:
        index = taken if which == "smallest" else slicer.size - 1 - taken
        value = _root(slicer, index)
        margin = max(EQUAL * slicer.scale, 1e-13)
        below, above = (_below(slicer(value + side * margin)) for side in (-1, 1))
        multiplicity = above - index if which == "smallest" else index + 1 - below
        found.append(value)
        times.append(max(multiplicity, 1))
        taken += times[-1]
    return np.array(found), np.array(times, np.int64)


def _below(slice_: tuple[int, np.ndarray, np.ndarray]) -> int:
    poles, theta, _ = slice_
    return poles + int((theta < 0).sum())


def _root(slicer: _Slicer, index: int) -> float:
    """The eigenvalue of that index (from 0, ascending)."""
    low, high = -slicer.scale, slicer.scale
    mu = min(0.0, float(slicer.D.min(initial=0.0))) - 1e-3 * slicer.scale
    for _ in range(200):
        poles, theta, slope = slicer(mu)
        i = index - poles
        if poles + int((theta < 0).sum()) > index:
            high = min(high, mu)
        else:
            low = max(low, mu)
        inside = 0 <= i < len(theta)
        step = float(theta[i] / slope[i]) if inside else np.inf
        if inside and abs(step) <= 1e-15 * slicer.scale:
            return mu + step
        mu = mu + step if low < mu + step < high else (low + high) / 2
        if high - low <= 1e-15 * slicer.scale:
            break
    return (low + high) / 2


# --- the lowest eigenpair -----------------------------------------------------------------------------------


class Lowest(NamedTuple):
    """The smallest eigenvalue of the Hessian."""

    value: float
    direction: Variables  # a unit eigenvector
    where: str  # "unused features", "active features", "within a class", or "all variables"


def lowest_without_structure(prob: Problem, params: Variables) -> Lowest:
    """The smallest eigenvalue of a problem whose Hessian is not known to decompose."""
    if prob.size <= DENSE_LOWEST:
        values, vectors = eigh(finite_dense(prob, params), subset_by_index=(0, 0))
        return Lowest(float(values[0]), in_all_variables(prob, params, vectors[:, 0]), "all variables")
    pair = lanczos.lowest(prob, params, 1)[0]
    return Lowest(pair.value, pair.vector, "all variables")


def exceeds(prob: Problem, params: Variables, least: float) -> bool:
    """Whether all eigenvalues are above `least`, by a Cholesky factorisation: in a fifth of an `eigvalsh`."""
    matrix = finite_dense(prob, params)
    shifted = matrix - least * np.eye(len(matrix))
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True


def lowest_pair(at: Structure, params: Params, critical: bool) -> Lowest:
    """The smallest eigenvalue at a point that has been decomposed."""
    prob = at.prob
    choices: list[tuple[float, str]] = []
    if at.unused:
        choices.append((float(split(at.sigma, at.lam_W, at.lam_H)[0][0]), "unused features"))
    several = np.flatnonzero(at.sizes > 1)
    if at.r and len(several):
        D, V = np.linalg.eigh(at.fluctuations[several])
        choices.append((float(D[:, 0].min()), "within a class"))
    theorem = critical and at.unused > 0 and prob.loss.convex and at.sigma[0] >= float(prob.lam)
    if at.core_size and not theorem:
        value, vector = _core_lowest(prob, params, at)
        choices.append((value, "active features"))
    value, where = min(choices)
    if where == "unused features":
        return Lowest(value, unused_vector(at, *block_vector(at)), where)
    if where == "within a class":
        m = int(np.argmin(D[:, 0]))
        i, j = np.flatnonzero(at.cluster == several[m])[:2]
        dH = np.zeros((prob.d, prob.columns))
        dH[:, i] = at.Q @ V[m, :, 0] / np.sqrt(2)
        dH[:, j] = -dH[:, i]
        return Lowest(value, as_params(np.zeros((prob.K, prob.d)), dH, np.zeros(prob.K)), where)
    return Lowest(value, vector, where)


def block_vector(at: Structure) -> tuple[float, float]:
    """The lower eigenvector (alpha, beta) of [[lam_W, sigma], [sigma, lam_H]], sigma = |G|_op."""
    _, vectors = np.linalg.eigh([[at.lam_W, at.sigma[0]], [at.sigma[0], at.lam_H]])
    return float(vectors[0, 0]), float(vectors[1, 0])


def unused_vector(at: Structure, alpha: float, beta: float) -> Params:
    """(alpha u x', beta x v') with G v = sigma u and x orthogonal to all features in use."""
    U, _, Vt = at.top
    x = at.unused_direction()
    v = (Vt[0] / np.sqrt(at.sizes))[at.cluster]
    return as_params(alpha * np.outer(U[:, 0], x), beta * np.outer(x, v), np.zeros(at.prob.K))


def _core_lowest(prob: Problem, params: Params, at: Structure) -> tuple[float, Params]:
    K, r, m = prob.K, at.r, prob.K * at.r
    if at.core_size <= DENSE_CORE:
        values, vectors = eigh(at.core(), subset_by_index=(0, 0))
        x, head = vectors[:, 0], m + (K if prob.bias else 0)
        db = x[m:head] if prob.bias else None
        return float(values[0]), at.params_of(x[:m].reshape(K, r), x[head:].reshape(at.M, r), db)
    pair = lanczos.lowest(prob, params, 1)[0]
    return pair.value, pair.vector


# --- Lanczos ------------------------------------------------------------------------------------------------


def _by_lanczos(prob: Problem, params: Params, k: int, which: Which, tol: float) -> Eigenvalues:
    sign = 1.0 if which == "smallest" else -1.0
    pairs = lanczos.lowest(prob, params, k, sign=sign, tol=tol)
    values = np.array([sign * pair.value for pair in pairs])
    values, weights = merge(values, np.ones(len(values), np.int64))
    method = "Lanczos (each as often as found)"
    size = dimension(prob, params)
    return Eigenvalues(values, weights, size, method, max(pair.residual for pair in pairs))
