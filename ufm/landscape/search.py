"""A numerical search for critical points of every index: saddles as well as minima, one of each orbit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Problem
from ufm._progress import Progress
from ufm.landscape import _levenberg, _starts
from ufm.landscape._levenberg import Reduction
from ufm.landscape._polish import polish
from ufm.landscape.critical import Collection, CriticalPoints, collect_families, families_named, one_problem

#: starts that run at once, where the Hessians are small: what one call takes is what its slowest start takes
CHUNK = 64
#: unknowns of the reduced problem that a search takes (its Hessian is factored at every step of every start)
LARGEST = 1000
#: of Levenberg-Marquardt, and of Newton on f: nine starts in ten arrive within 40, hardly one after 100
#: (K=4, ce and fl)
STEPS = 120
#: share of the starts that begin from what the others have found
DERIVED_SHARE = 0.5


@in_float64
def find_critical_points(
    prob: Problem,
    *,
    starts: int = 1024,
    seed: int = 0,
    known: bool = True,
    collapsed: bool | None = None,
    tol: float = 1e-12,
    progress: bool | None = None,
) -> CriticalPoints:
    """Search for critical points of every index; polish, deduplicate and classify what is found.

    Half of the starts minimise |grad f|^2 (Levenberg-Marquardt, drawn to saddles of every index), half
    minimise f. Starts are Gaussian of every rank, aligned, or symmetric under a random cyclic group: both
    methods keep the rank and the symmetry, and a saddle is a minimum among points that share them. The second
    half of the starts begins near, and between, the points found by the first. Orbits under rotations, under
    permutations of samples, and of classes where those are symmetries, count once; so do manifolds of
    critical points. Nothing says that all have been found: `hits` tells how often each was.

    For a convex loss features of a class coincide at every critical point (h -> L(W h + b, k) + lam_H/2 |h|^2
    is strictly convex), so the search over class means is exact, and its cost does not depend on n. For
    others the samples are free, unless `collapsed`.

    Args:
        starts: how many; 1024 take seconds for K = 4.
        seed: of all random choices: the same call finds the same points.
        known: also collect the families of `critical_points`, which then give points their names. Without it
            every point is "search".
        collapsed: search only points whose features coincide within classes.  Default: for convex losses.
        tol: the |grad f| to which each is polished.
        progress: True shows a bar, False none; None shows one in a terminal or notebook.

    Returns: `CriticalPoints`, by objective. `start` of each says which start of which seed found it.

    Raises:
        ValueError: a problem with more than 1000 reduced unknowns (K + M) min(d, K) + K, M = K class means or
            M = N samples; starts < 1; a batch of problems.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=3, d=3, n=2, lam_W=0.01, lam_H=0.02)
    >>> found = ufm.landscape.find_critical_points(prob, starts=128)
    >>> sum(point.is_minimum for point in found), min(point.hits for point in found) > 0
    (1, True)
    """
    starts = _checks.integer("starts", starts, least=1)
    seed = _checks.integer("seed", seed, least=0)
    known = _checks.boolean("known", known)
    tol = float(_checks.real("tol", tol, above=0.0))
    prob = one_problem(prob)
    red = _reduction(prob, collapsed)
    found = Collection(prob)
    missing = collect_families(prob, found, families_named(None), tol, progress) if known else ()
    search = _Search(prob, red, found, seed, tol, starts, progress)
    return CriticalPoints(prob, found.classified(progress), missing, search.remarks())


def _reduction(prob: Problem, collapsed: bool | None) -> Reduction:
    """The reduced problem, if it is small enough."""
    means = prob.collapses if collapsed is None else _checks.boolean("collapsed", collapsed)
    red = _levenberg.reduction(prob, means or prob.N == prob.K)
    if red.shape.size > LARGEST:
        what = "" if means else "; collapsed=True searches class means only"
        raise ValueError(
            f"prob: expected at most {LARGEST} unknowns (K + M) min(d, K) + K to search in, got "
            f"{red.shape.size} with K={prob.K}, M={red.shape.M}, d={prob.d}{what}; critical_points has the "
            "families that are known"
        )
    return red


class _Search:
    """The starts, run in chunks, and what becomes of them."""

    def __init__(
        self,
        prob: Problem,
        red: Reduction,
        found: Collection,
        seed: int,
        tol: float,
        starts: int,
        progress: bool | None,
    ) -> None:
        self._prob, self._red, self._found, self._seed, self._tol = prob, red, found, seed, tol
        self._starts, self._arrived, self._done = starts, 0, 0
        self._scale = self._typical_size()
        fresh = starts - int(DERIVED_SHARE * starts)
        width = max(1, min(CHUNK, int(4e6 / red.shape.size**2)))
        with Progress("critical points", starts, progress) as bar:
            for first in range(0, starts, width):
                indices = range(first, min(first + width, starts))
                self._run(indices, fresh, width)
                bar.update(indices.stop, f"{len(found)} found")

    def remarks(self) -> tuple[str, ...]:
        """What the table's notes say."""
        how = "class means" if self._red.shape.M == self._prob.K else "samples"
        return (
            f"seed {self._seed}: {self._arrived} of {self._starts} starts arrived at a critical point "
            f"(search over {how}, {self._red.shape.size} unknowns)",
        )

    def _typical_size(self) -> float:
        """Root mean square of the unknowns at the lowest of eight quick minima."""
        rng = np.random.default_rng([self._seed, 1])
        x = np.zeros((CHUNK, self._red.shape.size))
        x[:8] = 0.5 * rng.normal(size=(8, self._red.shape.size))
        ends, _, _ = self._descend(x, np.ones(CHUNK, dtype=bool), 100)
        return float(np.clip(np.sqrt(np.mean(ends[:8] ** 2, axis=1)).max(), 0.1, 10.0))

    def _descend(self, x: np.ndarray, minimise: np.ndarray, limit: int) -> list[np.ndarray]:
        """Ends, f and |grad f|."""
        out = _levenberg.run(self._red.merged, x, minimise, np.int64(limit), shape=self._red.shape)
        return [np.asarray(part) for part in out]

    def _run(self, indices: Sequence[int], fresh: int, width: int) -> None:
        x = np.zeros(
            (width, self._red.shape.size)
        )  # rows without a start stay at zero: one shape, one program
        minimise = np.zeros(width, dtype=bool)
        names = []
        known = [self._red.encode(params) for params in self._found.points()]
        for row, i in enumerate(indices):
            rng = np.random.default_rng([self._seed, 2, i])
            kind: str
            if i < fresh or not known:
                make = _starts.FRESH[i % len(_starts.FRESH)]
                x[row], kind = make(self._red, rng, self._scale), make.__name__
            else:
                derive = _starts.DERIVED[i % len(_starts.DERIVED)]
                x[row], kind = derive(self._red, rng, known), derive.__name__
            minimise[row] = (i // 6) % 2 == 0
            how = "minimised" if minimise[row] else "root"
            names.append(f"seed {self._seed}, start {i}: {kind}, {how}")
        for end, f, norm, name in zip(*self._descend(x, minimise, STEPS), names, strict=False):
            self._collect(end, float(f), float(norm), name)

    def _collect(self, x: np.ndarray, f: float, norm: float, name: str) -> None:
        allowed = _levenberg.ARRIVED * float(self._red.merged.lam) * (1 + float(np.linalg.norm(x)))
        if not norm <= 1e4 * allowed:
            return
        params = self._red.decode(x)
        if norm <= allowed and self._found.recognise(params, f):
            self._arrived += 1
            return
        at = polish(self._prob, params, tol=self._tol)
        if at.converged:
            self._arrived += 1
            self._found.add(at, "search", name, hit=True)
