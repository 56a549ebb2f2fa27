"""Phase diagrams: which point is the global optimum over (C, a hyperparameter), and where random starts end.

C = (K - 1) sqrt(n lam_W lam_H) is the weight of the margin in the scalar problem min over a of l(a) + C a.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from ufm import _checks, _progress, losses, theory
from ufm._figure import plot
from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._pytree import pytree_dataclass, static
from ufm._sweep import solve_sweep
from ufm.losses import Loss
from ufm.solvers import Solver
from ufm.theory.thresholds import balanced_threshold

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What the global optimum is: the values of `PhaseDiagram.phase`.
PHASES = (
    "neural collapse", "trivial", "partial collapse", "orthogonal frame", "frame of rank K", "not known",
)  # fmt: skip
COLLAPSE, TRIVIAL, PARTIAL, ORTHOGONAL, MIXED, UNKNOWN = range(len(PHASES))

#: Where a start ends: the last axis of `PhaseDiagram.ends`.
ENDS = (
    "collapse",  # at neural collapse (MSE: the symmetric frame), global or not
    "trivial",  # at the point with Z = 0, global or not
    "below",  # below both: partial collapse
    "lowest",  # where theory has no optimum: at the lowest objective found in the cell
    "spurious",  # converged elsewhere: from a random start a spurious minimum, but for chance
    "unfinished",  # not converged
)

#: objectives are equal within this, relative to 1 + |f|: a gradient of 1e-10 leaves less, and the smallest
#: gap between neural collapse and partial collapse (focal loss, gamma = 1, K = 24) is 2.4e-9
EQUAL = 1e-11


@pytree_dataclass
class PhaseDiagram:
    """Theory and experiment over a grid of a hyperparameter (rows, R) and C (columns, M); S starts a cell."""

    C: Float[np.ndarray, " M"]
    values: Float[np.ndarray, " R"]  # of the hyperparameter; one, nan, where none is swept
    phase: Int[np.ndarray, "R M"]  # index into PHASES
    proved: Bool[np.ndarray, "R M"]  # whether theory proves that phase
    optimum: Float[np.ndarray, "R M"]  # its objective, nan where not known
    collapse: Float[
        np.ndarray, "R M"
    ]  # of neural collapse, a local minimum or better; nan where there is none
    trivial: Float[np.ndarray, "R M"]  # of the best point with Z = 0
    may_trap: Bool[np.ndarray, "R M"]  # spurious strict minima are known to occur in this regime
    C_thr: Float[np.ndarray, " R"]  # above it the trivial point is stable
    C_tie: Float[np.ndarray, " R"]  # above it the trivial point is below neural collapse
    C_spin: Float[np.ndarray, " R"]  # above it there is no neural collapse
    C_rank: Float[np.ndarray, " R"]  # MSE, lam_b > 0: above it the rank is K - 1 instead of K; else nan
    ends: Float[np.ndarray, "R M E"]  # fraction of the starts at each of ENDS; nan without starts
    lowest: Float[np.ndarray, "R M"]  # lowest objective found
    above: Float[np.ndarray, "R M"]  # fraction of the starts that converged above the lowest value known
    problem: Problem  # of which penalties and one hyperparameter are swept
    axis: str = static()  # name of the hyperparameter, "" where none is swept
    starts: int = static()  # S
    seed: int = static()
    scale: float = static()

    def fraction(self, end: str) -> Float[np.ndarray, "R M"]:
        """Fraction of the starts that end at one of ENDS."""
        return np.asarray(self.ends)[..., ENDS.index(_checks.choice("end", end, ENDS))]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: phases by name, nan as None."""
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
        found: dict[str, Any] = {name: _without_nan(values.tolist()) for name, values in arrays.items()}
        return found | {
            "problem": repr(self.problem),
            "axis": self.axis,
            "phase": [[PHASES[i] for i in row] for row in self.phase.tolist()],
            "proved": self.proved.tolist(),
            "may_trap": self.may_trap.tolist(),
            "end_names": list(ENDS),
            "starts": self.starts,
            "seed": self.seed,
            "scale": self.scale,
        }

    def __repr__(self) -> str:
        if not isinstance(self.phase, np.ndarray):  # JAX rebuilds records around tracers and placeholders
            return f"PhaseDiagram({self.axis or 'C'}, {self.starts} starts)"
        return "\n".join([f"Phase diagram of {self.problem.loss.title}, {self.describe()}", *_summary(self)])

    def describe(self) -> str:
        """The problem and the ranges of the grid in a line."""
        prob, C = self.problem, self.C
        bias = f"lam_b={float(prob.lam_b):g}" if prob.bias else "no bias"
        rows = f"{self.axis} {self.values[0]:g}..{self.values[-1]:g} ({self.values.size}) x "
        return (
            f"K={prob.K}, d={prob.d}, n={prob.n}, {bias}: {rows if self.axis else ''}"
            f"C {C[0]:.6g}..{C[-1]:.6g} ({C.size})"
        )

    def plot(self) -> Figure:
        """A matplotlib figure: the phases with theory's transition lines, and where the starts end."""
        return plot(self)


def _without_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return values if math.isfinite(values) else None


def _summary(diagram: PhaseDiagram) -> Iterator[str]:
    for i, name in enumerate(PHASES):
        cells = diagram.phase == i
        if cells.any():
            proof = f"proved in {diagram.proved[cells].mean():.0%} of them" if i != UNKNOWN else "no theorem"
            yield f"  {name:<17} is the optimum in {cells.mean():6.1%} of the cells, {proof}"
    yield f"  spurious strict minima are known in the regime of {diagram.may_trap.mean():.1%} of the cells"
    if not diagram.starts:
        return
    seeds = f"scale {diagram.scale:g}, seeds from {diagram.seed}"
    yield f"  {diagram.starts} Gaussian starts a cell ({seeds}) end"
    for i, name in enumerate(ENDS):
        share = diagram.ends[..., i]
        if share.any():
            r, m = np.unravel_index(np.argmax(share), share.shape)
            where = f"{diagram.axis} = {diagram.values[r]:g}, " if diagram.axis else ""
            at = f"{where}C = {diagram.C[m]:.6g}"
            yield f"    {name:<11} {share.mean():6.1%} on average, at most {share[r, m]:.0%} ({at})"


# --- the computation ------------------------------------------------------------------------------


@in_float64
def phase_diagram(
    loss: str | Loss = "fl",
    *,
    K: int = 20,
    C: ArrayLike,
    d: int | None = None,
    n: int = 1,
    bias: bool = True,
    lam_b: float = 0.0,
    ratio: float = 1.0,
    starts: int = 10,
    seed: int = 0,
    scale: float = 1.0,
    solver: str | Solver = "newton",
    tol: float = 1e-10,
    progress: bool | None = None,
    **hyperparameters: Any,
) -> PhaseDiagram:
    """Which phase is the global optimum, and where Gaussian starts end, over C and a hyperparameter.

    Theory: `theory.global_optimum` and `theory.threshold` in every cell. Spurious strict minima are known for
    a loss with a first-order transition in C_thr < C < C_spin, and for small d (below K - 1; K for losses
    that are not shift-invariant) with C < C_thr; focal loss has some a little below C_thr as well (K = 20,
    gamma = 3: from 0.9998 C_thr), which no theory gives. Experiment: `solve_sweep`, one compiled program.

    Args:
        loss: a name or a `Loss`.
        K, d, n: sizes; d = K + 1 by default. By theory n enters through C alone.
        C: (M,) increasing, positive: (K - 1) sqrt(n lam_W lam_H).
        lam_b, bias: of the problem. ratio: lam_W/lam_H.
        starts: Gaussian starts a cell; 0 draws theory alone.
        seed, scale: of the starts (`ufm.init`). The default scale 1 makes logits of order sqrt(d): from 0.1
            all starts are drawn to the trivial point wherever it is stable.
        hyperparameters: of the loss; at most one of them an array (R,), increasing: the rows.

    Raises:
        ValueError: C or a hyperparameter that does not increase or is outside its range, or two arrays.

    >>> import numpy as np, ufm
    >>> diagram = ufm.landscape.phase_diagram("ce", K=4, C=np.array([0.3, 0.9]), starts=2)
    >>> [ufm.landscape.PHASES[i] for i in diagram.phase[0]]
    ['neural collapse', 'trivial']
    """
    K, n = _checks.integer("K", K, least=2), _checks.integer("n", n, least=1)
    C, ratio = _checks.increasing("C", C, above=0.0), _checks.real("ratio", ratio, above=0.0)
    starts, seed = _checks.integer("starts", starts, least=0), _checks.integer("seed", seed, least=0)
    scale = float(_checks.real("scale", scale, above=0.0))
    lam = np.sqrt([[ratio], [1 / ratio]]) * C / (K - 1) / n**0.5
    axis, values = _rows(hyperparameters)
    sizes: dict[str, Any] = {"K": K, "d": K + 1 if d is None else d, "n": n, "bias": bias, "lam_b": lam_b}
    each = [hyperparameters | ({axis: float(value)} if axis else {}) for value in values]
    probs = [
        Problem.balanced(losses.get(loss, **hyper), lam_W=lam[0, 0], lam_H=lam[1, 0], **sizes)
        for hyper in each
    ]
    name = axis or "C"
    rows = _progress.each("theory, row", range(len(probs)), progress, lambda i: f"{name} {values[i]:g}")
    theories = [_row(probs[i], C, lam) for i in rows]
    seeds = range(seed, seed + starts)
    options: dict[str, Any] = {"scale": scale, "solver": solver, "tol": tol, "progress": progress}
    if axis:  # else the one sweep shows its own
        rows = _progress.each("starts, row", range(len(probs)), progress, lambda i: f"{name} {values[i]:g}")
    else:
        rows = iter([0])
    found = [_ends(probs[i], axis, lam, theories[i], seeds, options) for i in rows]
    shared = {name: np.stack([getattr(row, name) for row in theories]) for name in _SHARED}
    measured = {name: np.stack([getattr(row, name) for row in found]) for name in _Found._fields}
    return PhaseDiagram(
        C=C, values=values, problem=probs[0], axis=axis, starts=starts, seed=seed, scale=scale, **shared,
        **measured,
    )  # fmt: skip


def _rows(hyperparameters: dict[str, Any]) -> tuple[str, np.ndarray]:
    """The name and values of the one hyperparameter that is an array."""
    arrays = [name for name, value in hyperparameters.items() if np.ndim(value) > 0]
    if len(arrays) > 1:
        raise ValueError(f"{', '.join(arrays)}: expected at most one array for the rows, got {len(arrays)}")
    if not arrays:
        return "", np.array([np.nan])
    return arrays[0], _checks.increasing(arrays[0], hyperparameters[arrays[0]])


class _Cell(NamedTuple):
    """What theory says of one problem."""

    phase: int
    proved: bool
    optimum: float
    collapse: float
    trivial: float
    size: float  # nuclear norm of Z at neural collapse


class _Row(NamedTuple):
    """What theory says of a row of cells; the fields of `PhaseDiagram`, (M,) or ()."""

    phase: np.ndarray
    proved: np.ndarray
    optimum: np.ndarray
    collapse: np.ndarray
    trivial: np.ndarray
    size: np.ndarray
    may_trap: np.ndarray
    C_thr: float
    C_tie: float
    C_spin: float
    C_rank: float


#: the fields of `_Row` that a diagram keeps
_SHARED = tuple(name for name in _Row._fields if name != "size")


def _row(prob: Problem, C: np.ndarray, lam: np.ndarray) -> _Row:
    cells = [_cell(prob.replace(lam_W=lam_W, lam_H=lam_H)) for lam_W, lam_H in lam.T]
    columns = {name: np.array([getattr(cell, name) for cell in cells]) for name in _Cell._fields}
    try:
        t = balanced_threshold(prob)
    except theory.NoClosedForm:
        nothing = np.zeros(C.size, dtype=bool)
        return _Row(**columns, may_trap=nothing, C_thr=np.nan, C_tie=np.nan, C_spin=np.nan, C_rank=np.nan)
    trap = (t.C_thr < C) & (t.C_spin > C)
    if prob.d < prob.full_rank:
        trap |= t.C_thr > C
    rank = np.nan if t.c_rank is None else (prob.K - 1) * t.c_rank
    return _Row(**columns, may_trap=trap, C_thr=t.C_thr, C_tie=t.C_tie, C_spin=t.C_spin, C_rank=rank)


def _cell(prob: Problem) -> _Cell:
    """The theory at large d: where d is below the rank of its optimum the phase is not known."""
    try:
        best = theory.global_optimum(prob.replace(d=max(prob.d, prob.K)))
    except theory.NoClosedForm:
        return _Cell(UNKNOWN, False, np.nan, np.nan, np.nan, np.nan)
    collapse, size, rank = _collapse(best)
    if prob.d < rank:
        collapse = size = np.nan
    if prob.d < best.rank:
        return _Cell(UNKNOWN, False, np.nan, collapse, best.trivial, size)
    return _Cell(_phase(best), best.proved == "proved", best.objective, collapse, best.trivial, size)


def _phase(best: theory.Optimum) -> int:
    if best.regime != "non-trivial":
        return TRIVIAL if best.regime == "trivial" else PARTIAL
    if best.mean_eigenvalue == 0:
        return COLLAPSE
    return ORTHOGONAL if best.mean_eigenvalue == best.margin else MIXED


def _collapse(best: theory.Optimum) -> tuple[float, float, int]:
    """Neural collapse (MSE: the frame), optimal or not: objective, nuclear norm of Z, and rank."""
    s, loss = best.setting, best.setting.loss
    a = loss.branch(s)
    if a is not None:
        value = float(theory.scalar_profile(loss, s.K).value(a)) + s.C * a
        return value, s.n**0.5 * (s.K - 1) * a, s.K - 1
    if best.regime == "non-trivial":
        return best.objective, s.n**0.5 * float(best.factors.sigma.sum()), best.rank
    return np.nan, np.nan, 0


class _Found(NamedTuple):
    """Where the starts of a row of cells end."""

    ends: np.ndarray  # (M, E)
    lowest: np.ndarray  # (M,)
    above: np.ndarray  # (M,)


def _ends(
    prob: Problem, axis: str, lam: np.ndarray, row: _Row, seeds: range, options: dict[str, Any]
) -> _Found:
    """Solve a row from every seed and tell the ends apart by objective and, at ties, by the size of Z."""
    cells = lam.shape[1]
    if not seeds:
        return _Found(np.full((cells, len(ENDS)), np.nan), np.full(cells, np.nan), np.full(cells, np.nan))
    if axis:  # a leaf of the program, so that every row uses the same one
        options = options | {axis: np.full(cells, prob.loss.hyperparameters[axis])}
    sweep = solve_sweep(prob, seeds=seeds, lam_W=lam[0], lam_H=lam[1], **options)
    f, done = np.asarray(sweep.objective), sweep.converged
    kinds, lowest = classify(f, nuclear_norm(lam, np.asarray(sweep.W)), done, row), _lowest(f, done)
    ends = np.mean(kinds[..., None] == np.arange(len(ENDS)), axis=0)
    return _Found(ends, lowest, np.mean(done & ~_equal(f, np.fmin(lowest, row.optimum)), axis=0))


def nuclear_norm(lam: np.ndarray, W: np.ndarray) -> np.ndarray:
    """|Z|_* (S, M) at critical points, where lam_W |W|^2 = sqrt(lam_W lam_H) |Z|_*."""
    return np.asarray(np.sqrt(lam[0] / lam[1]) * np.sum(W**2, axis=(-2, -1)))


def _lowest(f: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Of the starts that converged (M,); nan where none did."""
    lowest = np.min(np.where(done, f, np.inf), axis=0)
    return np.where(np.isfinite(lowest), lowest, np.nan)


def classify(f: np.ndarray, size: np.ndarray, done: np.ndarray, row: _Row) -> np.ndarray:
    """Index into ENDS of each start (S, M), from its objective, |Z|_* and whether it converged."""
    small = ~(size > row.size / 2)  # True where there is no collapse to mistake it for
    trivial = _equal(f, row.trivial) & small
    collapse = _equal(f, row.collapse) & ~trivial
    known, floor = row.phase != UNKNOWN, np.fmin(row.trivial, row.collapse)
    below = (f < floor) & known
    lowest = _equal(f, _lowest(f, done)) & ~known
    kinds = np.select([~done, collapse, trivial, below, lowest], [5, 0, 1, 2, 3], default=4)
    return np.asarray(kinds)


def _equal(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Within `EQUAL`; nowhere where g is nan."""
    return np.abs(f - g) <= EQUAL * (1 + np.abs(g))
