"""Critical points as records: where each lies, its index, and what it is; and those known analytically."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Params, Problem
from ufm._progress import Progress, each
from ufm._pytree import pytree_dataclass, replace, static
from ufm._sheet import Printed, Sheet
from ufm.hessian.certificate import SADDLE, _as_leaves
from ufm.hessian.point import Analysis
from ufm.landscape import _orbits, families
from ufm.landscape._polish import Polished, polish
from ufm.theory import NoClosedForm, global_optimum

GLOBAL, LOCAL, STRICT, DEGENERATE = "global minimum", "local minimum", "strict saddle", "degenerate"
PLURALS = {GLOBAL: "global minima", LOCAL: "local minima", STRICT: "strict saddles", DEGENERATE: DEGENERATE}


@pytree_dataclass
class CriticalPoint:
    """A critical point with its Hessian's signature.

    Kinds:
        "global minimum": certified (`proved`), or equal to the optimum of `ufm.theory`.
        "strict saddle": at least one negative eigenvalue.  Proved where an explicit direction shows it.
        "degenerate": no negative eigenvalue, but zeros that no symmetry explains; may be either.
        "local minimum": every eigenvalue positive but those of the symmetries, and not known to be global.
    """

    params: Params
    objective: Any
    grad_norm: Any
    smallest: Any  # the smallest eigenvalue of the Hessian
    index: Any  # number of negative eigenvalues
    zeros: Any  # number of zero ones
    accidental: Any  # those of them that no symmetry explains
    rank: Any  # of W and H
    hits: Any  # starts of a search that ended here (or on its orbit); 0: constructed
    family: str = static()  # "sub-ETF m=3", ..., or "search"
    kind: str = static()
    proved: bool = static()  # the kind follows from a rigorous bound, up to rounding
    why: str = static()
    start: str = static(default="")  # of the search: the start that found it first

    @property
    def is_minimum(self) -> bool:
        """A global or local minimum."""
        return self.kind in (GLOBAL, LOCAL)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without its arrays."""
        numbers = {name: float(getattr(self, name)) for name in ("objective", "grad_norm", "smallest")}
        names = ("index", "zeros", "accidental", "rank", "hits")
        counts = {name: int(getattr(self, name)) for name in names}
        words = {name: getattr(self, name) for name in ("family", "kind", "proved", "why", "start")}
        return numbers | counts | words

    def __repr__(self) -> str:
        if np.ndim(self.objective) or not isinstance(self.objective, float):
            return f"CriticalPoint({self.family}: {self.kind})"
        zeros = f"{self.zeros} zeros" + (f" ({self.accidental} accidental)" if self.accidental else "")
        return (
            f"CriticalPoint({self.family}: {self.kind}, f = {self.objective:.12g}, index {self.index}, "
            f"{zeros}, smallest {self.smallest:.3e}, rank {self.rank}, |grad f| = {self.grad_norm:.0e})"
        )


@pytree_dataclass
class CriticalPoints(Printed, Sequence[CriticalPoint]):
    """Critical points of one problem in ascending order of the objective, one of each orbit."""

    problem: Problem
    points: tuple[CriticalPoint, ...]
    missing: tuple[tuple[str, str], ...] = static(default=())  # (family, why it has no member here)
    remarks: tuple[str, ...] = static(default=())  # how they were found

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        """One point, or those of a slice as `CriticalPoints`."""
        picked = self.points[index]
        return replace(self, points=picked) if isinstance(index, slice) else picked

    def where(self, **wanted: Any) -> CriticalPoints:
        """Those whose attributes have these values: `points.where(kind="strict saddle", rank=2)`."""
        keep = tuple(p for p in self.points if all(getattr(p, name) == v for name, v in wanted.items()))
        return replace(self, points=keep)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "problem": self.problem.to_dict(),
            "points": [point.to_dict() for point in self.points],
            "missing": dict(self.missing),
            "remarks": list(self.remarks),
        }

    def sheet(self) -> Sheet:
        """The table that `print` and notebooks show."""
        header = ("family", "objective", "index", "zeros", "smallest", "rank", "|grad f|", "kind")
        searched = any(point.hits for point in self.points)
        rows = [_row(point, searched) for point in self.points]
        kinds = Counter(point.kind for point in self.points)
        tally = ", ".join(f"{n} {PLURALS[kind] if n > 1 else kind}" for kind, n in kinds.items())
        if any(point.accidental for point in self.points):
            tally += "; zeros: by symmetry + accidental"
        title = f"{len(self)} critical point{'s' * (len(self) != 1)}: {self.problem.describe()}"
        reasons: dict[str, list[str]] = {}
        for name, why in self.missing:
            reasons.setdefault(why, []).append(name)
        notes = [tally, *self.remarks, *(f"no {', '.join(names)}: {why}" for why, names in reasons.items())]
        return Sheet(title, header + ("hits",) * searched, rows, [note for note in notes if note])

    def __repr__(self) -> str:
        if not all(isinstance(point.objective, float) for point in self.points):
            return f"CriticalPoints({len(self.points)})"
        return super().__repr__()


def _row(point: CriticalPoint, searched: bool) -> tuple[str, ...]:
    zeros = f"{point.zeros - point.accidental}" + (f"+{point.accidental}" if point.accidental else "")
    numbers = (f"{point.objective:.12f}", f"{point.index}", zeros, f"{point.smallest:.4e}")
    hits = (f"{point.hits}",) if searched else ()
    return (point.family, *numbers, f"{point.rank}", f"{point.grad_norm:.0e}", point.kind, *hits)


# --- from a point to its record -------------------------------------------------------------------


def classify(prob: Problem, at: Polished, family: str, *, hits: int = 0, start: str = "") -> CriticalPoint:
    """The record of a polished critical point."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        point = Analysis(prob, at.params)
        counts, lowest = point.inertia, point.smallest
    objective = float(_objective(prob, at.params))
    kind, proved, why = _kind(point, objective, counts.neg, counts.accidental)
    doubts = {str(w.message) for w in caught}
    return CriticalPoint(
        params=at.params,
        objective=objective,
        grad_norm=at.grad_norm,
        smallest=lowest,
        index=counts.neg,
        zeros=counts.zero,
        accidental=counts.accidental,
        rank=_rank(prob, at.params),
        hits=hits,
        family=family,
        kind=kind,
        proved=proved,
        why="; ".join([why, *sorted(doubts)]),
        start=start,
    )


@jax.jit
def _objective(prob: Problem, params: Params) -> Array:
    return prob(params)


def _rank(prob: Problem, params: Params) -> int:
    s = _orbits.fingerprint(prob, params, 0.0).singular
    return int((s > 1e-9 * s[0]).sum()) if s[0] > 1e-14 else 0


def _kind(point: Analysis, f: float, index: int, accidental: int) -> tuple[str, bool, str]:
    cert = point.certificate
    if index > 0:
        shown = cert.verdict == SADDLE
        return STRICT, shown, cert.why if shown else f"{index} negative eigenvalues (inertia)"
    if cert.is_global:
        return GLOBAL, True, f"certificate: f - f* <= {float(cert.gap):.0e}"
    best = _theory(point.prob)
    if best is not None and best.proved != "upper bound" and f <= best.objective + 1e-11 * (1 + abs(f)):
        return GLOBAL, best.proved == "proved", f"the optimum of theory ({best.proved}): {best.theorem}"
    if best is not None and f > best.objective + 1e-11 * (1 + abs(f)):
        above = f"{f - best.objective:.3e} above {best.structure}"
    else:
        above = f"not certified: {cert.why}"
    return (DEGENERATE if accidental else LOCAL), False, above


def _theory(prob: Problem) -> Any:
    try:
        return global_optimum(prob)
    except NoClosedForm:
        return None


# --- collecting them ------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A polished point before it is classified."""

    at: Polished
    family: str
    start: str
    mark: _orbits.Fingerprint
    logits: _orbits.Logits


class Collection:
    """One representative of each orbit, in the order of arrival."""

    def __init__(self, prob: Problem) -> None:
        self._prob = prob
        self._groups: list[list[_Found]] = []  # points of one fingerprint that no permutation identifies
        self._hits: Counter[tuple[int, int]] = Counter()

    def _place(self, mark: _orbits.Fingerprint, logits: _orbits.Logits) -> tuple[int, int]:
        """Group and member that a point belongs to; each may be one past the end: a new one."""
        close = (g for g, group in enumerate(self._groups) if group[0].mark.matches(mark))
        g = next(close, len(self._groups))
        if g == len(self._groups):
            return g, 0
        same = (i for i, x in enumerate(self._groups[g]) if _orbits.equivalent(x.logits, logits))
        return g, next(same, len(self._groups[g]))

    def recognise(self, params: Params, f: float) -> bool:
        """Whether a point, polished or nearly so, is here already; then it counts as a hit."""
        g, i = self._place(_orbits.fingerprint(self._prob, params, f), _orbits.logits(self._prob, params))
        if g == len(self._groups) or i == len(self._groups[g]) < MEMBERS:
            return False
        self._hits[g, min(i, MEMBERS - 1)] += 1
        return True

    def add(self, at: Polished, family: str, start: str = "", *, hit: bool = False) -> None:
        """Put a polished point where it belongs."""
        objective = float(_objective(self._prob, at.params))
        mark = _orbits.fingerprint(self._prob, at.params, objective)
        logits = _orbits.logits(self._prob, at.params)
        g, i = self._place(mark, logits)
        if g == len(self._groups):
            self._groups.append([])
        if i == len(self._groups[g]) < MEMBERS:
            self._groups[g].append(_Found(at, family, start, mark, logits))
        self._hits[g, min(i, MEMBERS - 1)] += hit

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def points(self) -> list[Params]:
        """The representatives."""
        return [found.at.params for group in self._groups for found in group]

    def classified(self, progress: bool | None = None) -> tuple[CriticalPoint, ...]:
        """The records, by objective. A group on one critical manifold (accidental zeros) is one point."""
        records = []
        groups = range(len(self._groups))
        for g in each("Hessians, point", groups, progress, lambda g: self._groups[g][0].family):
            group = self._groups[g]
            for i, found in enumerate(group):
                record = classify(
                    self._prob, found.at, found.family, hits=self._hits[g, i], start=found.start
                )
                if i == 0 and record.accidental:
                    everyone = sum(self._hits[g, j] for j in range(len(group)))
                    records.append(replace(record, hits=everyone))
                    break
                records.append(record)
        return tuple(sorted(records, key=lambda record: record.objective))


#: inequivalent points with one fingerprint that are kept; more of them lie on a manifold of critical points
MEMBERS = 4


@in_float64
def critical_points(
    prob: Problem,
    *,
    families: Iterable[str] | None = None,
    tol: float = 1e-12,
    progress: bool | None = None,
) -> CriticalPoints:
    """The critical points that are known analytically, each polished, counted and classified.

    See `ufm.landscape.families.FAMILIES`: the origin, neural collapse (for focal loss with the local maximum
    between it and the origin), simplex frames of m < K classes, of M groups of m, truncated spectra (MSE,
    kappa = 1), orthogonal blocks of symmetric codes (d < K - 1), two groups of unequal size, frames with a
    rank-one part, and the optimum of `ufm.theory`.
    One point of each orbit under rotations and permutations; members that need more than d dimensions are
    left out, families that do not exist are named in `.missing` with the reason.

    Args:
        families: names of `FAMILIES`; default: all.
        tol: the |grad f| to which each is polished.
        progress: True shows it, False does not; None shows it in a terminal or notebook.

    Returns: `CriticalPoints`, by objective.

    Raises:
        ValueError: an unknown family; a batch of problems.

    Source: Zhou et al. 2022, Theorem 2; docs/theory.md, section 4.5.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=3, d=4, n=2, lam_W=0.01, lam_H=0.02)
    >>> [(point.family, int(point.index)) for point in ufm.landscape.critical_points(prob)]
    [('neural collapse', 0), ('sub-ETF m=2', 3), ('two groups 1|2', 4), ('origin', 8)]
    """
    names = families_named(families)
    tol = float(_checks.real("tol", tol, above=0.0))
    prob = one_problem(prob)
    found = Collection(prob)
    missing = collect_families(prob, found, names, tol, progress)
    return CriticalPoints(prob, found.classified(progress), missing)


def one_problem(prob: Problem) -> Problem:
    """The problem with leaves of one type: a Python number in a leaf would cause a new compilation."""
    prob.need_free_factors("the collection of critical points")
    if any(np.ndim(x) for x in (prob.lam_W, prob.lam_H, prob.lam_b)):
        raise ValueError("prob: expected one problem, got a batch; take one of its penalties")
    one: Problem = _as_leaves(prob)
    return one


def families_named(names: Iterable[str] | None) -> tuple[str, ...]:
    """Names of the shelf, checked."""
    if names is None:
        return families.NAMES
    if isinstance(names, str):
        names = (names,)
    return tuple(_checks.choice("families", name, families.NAMES) for name in names)


def collect_families(
    prob: Problem,
    found: Collection,
    names: tuple[str, ...],
    tol: float,
    progress: bool | None = None,
) -> tuple[tuple[str, str], ...]:
    """Put the members of the families into the collection; why some have none."""
    missing = []
    chosen = [family for family in families.FAMILIES if family.name in names]
    with Progress("critical points, family", len(chosen), progress) as bar:
        for i, family in enumerate(chosen):
            bar.update(i, family.name)
            why = family.reason(prob)
            members = 0
            for label, params in () if why else family.members(prob):
                members += 1
                name = f"{family.name} {label}".rstrip()
                bar.update(i, name)
                at = polish(prob, params, tol=tol)
                if at.converged:
                    found.add(at, name)
                else:
                    missing.append((name, at.message))
            if not members:
                missing.append(
                    (family.name, why or "its scalar equations have no solution at these penalties")
                )
    return tuple(missing)
