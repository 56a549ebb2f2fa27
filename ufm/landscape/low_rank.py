"""The low-rank bias of depth: which geometry is the lowest known, over penalties and classes or layers.

The penalties enter through C = (K - 1) (n lam_H lam_1 ... lam_M)^(1/q) alone, here in units of C_tie, at
which neural collapse and the origin are equally low. Neural collapse is the lowest up to the share C1, a
state of lower rank from there to C0, and the origin beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.optimize import brentq

from ufm import _checks, _progress, losses, theory
from ufm._figure import plot
from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._pytree import pytree_dataclass, static
from ufm._sheet import Printed, Sheet
from ufm.losses import Loss
from ufm.models import deep
from ufm.theory import _deep
from ufm.theory._minima import Level, Minimum, follow, lowest
from ufm.theory._setting import any_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: objectives are equal within this: a descent ends within rounding
EQUAL = 1e-12
#: structures that may take over between two values of the grid
AGAIN = 5


@pytree_dataclass
class LowRankDiagram(Printed):
    """The lowest structures over C/C_tie (columns, M) and the classes or the layers (rows, R)."""

    share: Float[np.ndarray, " M"]  # C/C_tie
    K: Int[np.ndarray, " R"]
    layers: Int[np.ndarray, " R"]
    rank: Int[np.ndarray, "R M"]  # of the lowest structure; 0: the origin
    optimum: Float[np.ndarray, "R M"]  # its objective, an upper bound of f*
    collapse: Float[np.ndarray, "R M"]  # that of neural collapse, or of the origin where there is none
    C_tie: Float[np.ndarray, " R"]
    C1: Float[np.ndarray, " R"]  # shares where neural collapse stops being the lowest; nan: off the grid
    C0: Float[np.ndarray, " R"]  # and from which on the origin is the lowest; nan: off the grid
    names: tuple[tuple[str, ...], ...] = static()  # (R, M) of the structures
    problem: Problem  # of which K, layers and penalties are swept

    @property
    def axis(self) -> str:
        """What the rows are: "K" or "layers"."""
        return "layers" if len(set(self.layers.tolist())) > 1 else "K"

    def describe(self) -> str:
        """The loss, the bias and what is not swept, in a line."""
        bias = f"lam_b={float(self.problem.lam_b):g}" if self.problem.bias else "no bias"
        fixed = f"{self.layers[0]} layers" if self.axis == "K" else f"K={self.K[0]}"
        return f"rank of the lowest structure known, {self.problem.loss.title}, {fixed}, {bias}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON; nan becomes null."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        found: dict[str, Any] = {name: _plain(value) for name, value in arrays.items()}
        return found | {"names": self.names, "problem": self.problem.describe()}

    def sheet(self) -> Sheet:
        """Of each row: where neural collapse ends, where all structure ends, and what is between."""
        rows = [
            (str(K), str(M), f"{tie:.8g}", _short(c1), _short(c0), "; ".join(_between(names)))
            for K, M, tie, c1, c0, names in zip(
                self.K.tolist(), self.layers.tolist(), self.C_tie, self.C1, self.C0, self.names, strict=True
            )
        ]
        header = ("K", "layers", "C_tie", "C1/C_tie", "C0/C_tie", "")
        bias = f"lam_b={float(self.problem.lam_b):g}" if self.problem.bias else "no bias"
        grid = f"the lowest as C rises, for C/C_tie from {self.share[0]:g} to {self.share[-1]:g}"
        note = "among known structures: upper bounds of f*"
        return Sheet(f"Low-rank bias of {self.problem.loss.title}, {bias}", header, rows, [grid, note])

    def plot(self) -> Figure:
        """A matplotlib figure: the rank of the lowest structure, with C1 and C0."""
        return plot(self)


def _plain(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return [_plain(row) for row in values.tolist()]
    if isinstance(values, list):
        return [_plain(row) for row in values]
    return values if math.isfinite(values) else None


def _short(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.8f}"


def _between(names: tuple[str, ...]) -> list[str]:
    """The structures in their order, each once."""
    return list(dict.fromkeys(names))


@in_float64
def low_rank_diagram(
    loss: str | Loss = "ce",
    *,
    K: int | Sequence[int] = (3, 4, 5, 6),
    layers: int | Sequence[int] = 2,
    share: ArrayLike | None = None,
    bias: bool = False,
    lam_b: float = 0.0,
    progress: bool | None = None,
    **hyperparameters: Any,
) -> LowRankDiagram:
    """Which structure of a deep classifier is the lowest known, over C/C_tie and K or the number of layers.

    Theory alone: each structure of docs/theory.md, section 6.2, at its best margins. The crossings C1 and C0
    are roots of differences of objectives, to rounding; a better structure that is not known would lower C1
    and raise C0.

    Args:
        loss: a name or a `Loss` of differences of logits.
        K, layers: numbers of classes and of layers >= 2; one of them may be a sequence, the rows.
        share: (M,) increasing, > 0: C/C_tie.  Default: 0.02 to 1.5.
        bias, lam_b: of the problem.
        hyperparameters: of the loss.

    Raises:
        ValueError: two sequences, K < 3, layers < 2, or a share that does not increase or is not positive.
        NoClosedForm: a loss for which no structures or thresholds are known.

    >>> import ufm
    >>> found = ufm.landscape.low_rank_diagram("ce", K=[3], share=[0.5, 1.0, 1.2])
    >>> found.rank.tolist(), [round(float(x[0]), 6) for x in (found.C1, found.C0)]
    ([[2, 1, 0]], [0.933523, 1.044924])
    """
    pairs = _pairs(K, layers)
    shares = _checks.increasing("share", np.geomspace(0.02, 1.5, 40) if share is None else share, above=0.0)
    function = losses.get(loss, **hyperparameters)
    probs = [_at_the_tie(function, *pair, bias, lam_b) for pair in pairs]
    rows = _progress.each("structures, row", range(len(pairs)), progress, lambda i: f"K, layers {pairs[i]}")
    found = [_row(probs[i], shares) for i in rows]
    fields = [name for name in _Row._fields if name != "names"]
    columns = {name: np.array([getattr(row, name) for row in found]) for name in fields}
    numbers = dict(zip(("K", "layers"), np.array(pairs).T, strict=True))
    return LowRankDiagram(
        share=shares, **numbers, **columns, names=tuple(row.names for row in found), problem=probs[0]
    )


def _pairs(K: Any, layers: Any) -> list[tuple[int, int]]:
    """(K, layers) of each row."""
    several = [np.atleast_1d(np.asarray(x)).tolist() for x in (K, layers)]
    if min(map(len, several)) != 1:
        raise ValueError(f"K, layers: expected a sequence for one of them at most, got {K!r} and {layers!r}")
    checked = [
        [_checks.integer(name, x, least=least) for x in values]
        for name, values, least in zip(("K", "layers"), several, (3, 2), strict=True)
    ]
    return [(k, m) for k in checked[0] for m in checked[1]]


def _at_the_tie(loss: Loss, K: int, layers: int, bias: bool, lam_b: float) -> Problem:
    """The problem at C_tie."""
    prob = Problem.balanced(
        loss, K=K, d=K, n=1, lam_W=1.0, lam_H=1.0, bias=bias, lam_b=lam_b, model=deep(layers)
    )
    if not prob.loss.shift_invariant:
        raise theory.NoClosedForm(f"loss: expected one of differences of logits, got {loss!r}")
    c = theory.threshold(prob).c_tie
    return prob.replace(lam_W=c, lam_H=c)


class _Row(NamedTuple):
    """The fields of a row of `LowRankDiagram`."""

    rank: list[int]
    optimum: list[float]
    collapse: list[float]
    C_tie: float
    C1: float
    C0: float
    names: tuple[str, ...]


class _Ladder(NamedTuple):
    """A problem at its tie, of which the penalties are scaled."""

    prob: Problem

    def level(self, share: float) -> Level:
        depth = _deep.depth_of(self.prob)
        s = any_counts(self.prob)
        return Level(s.loss, depth.q, share * depth.c, s.lam_b)

    def cell(self, share: float) -> tuple[Minimum, Minimum, Minimum]:
        """Neural collapse, the lowest other structure, and the origin."""
        lam = self.prob.lam_W * share
        at = self.prob.replace(lam_W=lam, lam_H=lam)
        first, *others, zero = _deep.structures(any_counts(at), _deep.depth_of(at))
        return first, lowest(others), zero

    def crossing(self, low: float, high: float, upper: Minimum, lower: Minimum) -> float:
        """The share between at which two branches are equal, `lower` being the lower one at `low`."""

        def above(share: float) -> float:
            level = self.level(share)
            return follow(level, upper).value - follow(level, lower).value

        while above(high) > 0:
            high *= 1.02
        return float(brentq(above, low, high, xtol=1e-13, rtol=1e-13))


def _row(prob: Problem, shares: np.ndarray) -> _Row:
    ladder = _Ladder(prob)
    cells = [ladder.cell(share) for share in shares]
    best = [lowest([zero, collapse, other]) for collapse, other, zero in cells]
    return _Row(
        rank=[rank(x) for x in best],
        optimum=[x.value for x in best],
        collapse=[min(collapse.value, zero.value) for collapse, _, zero in cells],
        C_tie=(prob.K - 1) * float(prob.lam_W),
        C1=_end_of_collapse(ladder, shares, cells),
        C0=_end_of_structure(ladder, shares, best, cells[-1][2]),
        names=tuple(x.name for x in best),
    )


def rank(found: Minimum) -> int:
    """Of the class logits."""
    return int(np.linalg.matrix_rank(found.Zbar, tol=1e-6))


def _end_of_collapse(ladder: _Ladder, shares: np.ndarray, cells: list[Any]) -> float:
    """Where neural collapse meets the first structure that is lower; again, if another one was before it."""
    lower = [lowest([zero, other]).value < collapse.value - EQUAL for collapse, other, zero in cells]
    first = int(np.argmax(lower))
    if first == 0:
        return math.nan
    low, high = float(shares[first - 1]), float(shares[first])
    collapse, other = cells[first - 1][0], lowest(list(cells[first][1:]))
    for _ in range(AGAIN):
        high = ladder.crossing(low, high, other, collapse)
        now, other, _ = ladder.cell(high)
        if other.value >= now.value - EQUAL:
            break
    return high


def _end_of_structure(ladder: _Ladder, shares: np.ndarray, best: list[Minimum], zero: Minimum) -> float:
    """Where the last structure meets the origin; again, if another one is still below it there."""
    ranks = [rank(x) for x in best]
    last = int(np.flatnonzero(ranks)[-1]) if any(ranks) else -1
    if last in (-1, len(shares) - 1):
        return math.nan
    share, structure = float(shares[last]), best[last]
    for _ in range(AGAIN):
        share = ladder.crossing(share, share * 1.01, zero, structure)
        collapse, other, zero = ladder.cell(share)
        structure = lowest([collapse, other])
        if structure.value >= zero.value - EQUAL:
            break
    return share
