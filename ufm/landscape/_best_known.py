"""The lowest values known in few dimensions: a record that comes with the package, and how it was made.

For d < K - 1 no optimum is proved. The record has, for each number of classes and dimensions and with a free
bias or none, the lowest end of many Newton runs, how many of them ended there, and the other minima found.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufm import _checks, _files
from ufm._precision import in_float64
from ufm._problem import Params, Problem
from ufm._progress import each
from ufm._sheet import Printed, Sheet
from ufm._sweep import solve_sweep
from ufm.landscape import _orbits
from ufm.theory import NoClosedForm, _codes, global_optimum, rank_lower_bound
from ufm.theory._setting import setting

#: where the record lies
RECORD = Path(__file__).with_name("best_known.json")
#: lam_W = lam_H of every entry, n = 1, cross-entropy: the values depend on c = sqrt(n lam_W lam_H) alone
LAM = 0.01
CLASSES, DIMENSIONS = range(3, 9), range(2, 5)
STARTS = 500
#: two values closer than this are one minimum: runs that end in the same one differ by 3e-16, the minima of
#: the record by at least 1e-4
SAME = 1e-11


class Key(NamedTuple):
    """Which entry of the record."""

    K: int
    d: int
    bias: bool  # free, or none

    @property
    def problem(self) -> Problem:
        """Cross-entropy, one sample a class."""
        return Problem.balanced("ce", K=self.K, d=self.d, n=1, lam_W=LAM, lam_H=LAM, bias=self.bias)


KEYS = tuple(Key(K, d, bias) for bias in (True, False) for K in CLASSES for d in DIMENSIONS)


class Entry(NamedTuple):
    """The lowest point known for one K, d and bias."""

    K: int
    d: int
    bias: bool
    objective: float
    structure: str  # of codes, or how many classes are alike
    lower_bound: float  # no point lies below; the objective itself where the optimum is proved
    starts: int  # of the search; 0: proved, no search
    hits: int  # starts that ended here
    minima: tuple[tuple[float, int], ...]  # every value found, ascending, with its hits
    seed: int  # the first start that ended here
    W: tuple[tuple[float, ...], ...]
    H: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    versions: dict[str, str]  # of the package and of JAX

    @property
    def key(self) -> Key:
        """K, d and bias."""
        return Key(self.K, self.d, self.bias)

    @property
    def proved(self) -> bool:
        """Whether this is the optimum."""
        return self.starts == 0

    @property
    def params(self) -> Params:
        """The point, for `.key.problem`."""
        arrays: Any = tuple(np.array(part) for part in (self.W, self.H, self.b))
        return Params(*arrays)


class BestKnown(Printed, Sequence[Entry]):
    """Entries by K, d and bias: `best_known().at(6, 4)`."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = tuple(sorted(entries, key=lambda entry: KEYS.index(entry.key)))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        """One entry, or those of a slice as `BestKnown`."""
        picked = self._entries[index]
        return BestKnown(picked) if isinstance(index, slice) else picked

    def at(self, K: int, d: int, bias: bool = True) -> Entry:
        """The entry of K classes in d dimensions, with a free bias or none.

        Raises:
            ValueError: the record has none.
        """
        return self.where(K=K, d=d, bias=bias)[0]

    def where(self, **wanted: Any) -> BestKnown:
        """Those whose attributes have these values: `best_known().where(K=8, bias=True)`.

        Raises:
            ValueError: there is none.
        """
        keep = [e for e in self if all(getattr(e, name) == value for name, value in wanted.items())]
        if not keep:
            raise ValueError(
                f"K, d: expected K in {_span(CLASSES)} and d in {_span(DIMENSIONS)}, got {wanted}; "
                "ufm.landscape.find_critical_points searches in any dimension"
            )
        return BestKnown(keep)

    def sheet(self) -> Sheet:
        """The table that `print` and notebooks show."""
        header = ("K", "d", "bias", "objective", "lower bound", "hits", "structure")
        kinds = sorted({f"{entry.starts} Newton runs from random starts" for entry in self if entry.starts})
        title = f"Lowest values known: cross-entropy, n = 1, lam_W = lam_H = {LAM:g}"
        notes = [f"hits: of {', '.join(kinds) or 'no runs'}; an entry without hits is the proved optimum"]
        return Sheet(title, header, [_row(entry) for entry in self], notes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what `best_known.json` holds."""
        return {"loss": "ce", "n": 1, "lam_W": LAM, "lam_H": LAM, "entries": [e._asdict() for e in self]}


def _span(values: range) -> str:
    return f"{values[0]}..{values[-1]}"


def _row(entry: Entry) -> tuple[str, ...]:
    bias, hits = "free" if entry.bias else "none", "" if entry.proved else f"{entry.hits}"
    values = f"{entry.objective:.15f}", f"{entry.lower_bound:.9f}"
    return (f"{entry.K}", f"{entry.d}", bias, *values, hits, entry.structure)


# --- reading and making it --------------------------------------------------------------------------


def best_known() -> BestKnown:
    """The record of the lowest values known for K = 3..8 classes in d = 2, 3, 4 dimensions.

    Cross-entropy, n = 1, lam_W = lam_H = 0.01, a free bias or none. `recompute_best_known` makes it anew.

    Source: docs/theory.md, section 5.3.

    >>> entry = best_known().at(8, 3)
    >>> round(entry.objective, 12), entry.hits > 450, entry.structure
    (0.490521014231, True, 'no code: 4 + 4 classes alike')
    """
    return _shipped()


@functools.lru_cache(maxsize=1)
def _shipped() -> BestKnown:
    return _read(RECORD)


def _read(path: Path) -> BestKnown:
    data = json.loads(path.read_text("utf-8"))
    return BestKnown(_entry(entry) for entry in data["entries"])


def _entry(data: dict[str, Any]) -> Entry:
    nested = {name: tuple(map(tuple, data[name])) for name in ("minima", "W", "H")}
    return Entry(**(data | nested | {"b": tuple(data["b"])}))


def recompute_best_known(
    *,
    keys: Iterable[Key] = KEYS,
    starts: int = STARTS,
    out: Path | str | None = None,
    progress: bool | None = None,
) -> BestKnown:
    """Search the entries anew: Newton's method from `starts` random starts each, seeds 0, 1, ...

    Args:
        keys: which entries, (K, d, bias).
        starts: for each; the record has 500.
        out: a folder.  Each entry is written to `best_known.json` in it as soon as it is there, and entries
            that are there already, with as many starts and the same versions, are not computed again.
        progress: True shows it, False does not; None shows it in a terminal or notebook.

    Raises:
        ValueError: starts < 1; an entry that the record does not have.
        OSError: a folder that cannot be written.
    """
    starts = _checks.integer("starts", starts, least=1)
    wanted = [_key(key) for key in keys]
    path = None if out is None else Path(out) / RECORD.name
    if path is not None:
        _checks.folder("out", path.parent)
    done = {entry.key: entry for entry in _read(path)} if path is not None and path.exists() else {}
    for key in each("entries", wanted, progress, str):
        if not _is_current(done.get(key), starts):
            done[key] = _searched(key, starts)
            if path is not None:
                _files.write_json(path, BestKnown(done.values()).to_dict())
    return BestKnown(done[key] for key in wanted)


def _key(given: Any) -> Key:
    key = Key(*given)
    if key not in KEYS:
        raise ValueError(
            f"keys: expected (K, d, bias) with K in {_span(CLASSES)} and d in {_span(DIMENSIONS)}, got "
            f"{tuple(key)}; ufm.landscape.find_critical_points searches in any dimension"
        )
    return key


def _is_current(entry: Entry | None, starts: int) -> bool:
    return entry is not None and entry.starts in (0, starts) and entry.versions == _files.versions()


@in_float64
def _searched(key: Key, starts: int) -> Entry:
    prob = key.problem
    if key.d >= key.K - 1:
        best = global_optimum(prob)
        return _made(key, best.objective, best.params, best.structure, best.lower_bound)
    sweep = solve_sweep(prob, seeds=range(starts), progress=False)
    values = np.where(sweep.converged, np.asarray(sweep.objective), np.inf)
    minima = _levels(values)
    first = int(np.flatnonzero(values <= minima[0][0] + SAME)[0])
    params = sweep[first].params
    search = {"starts": starts, "hits": minima[0][1], "minima": minima, "seed": first}
    return _made(
        key, minima[0][0], params, _structure(prob, params, minima[0][0]), rank_lower_bound(prob), **search
    )


def _made(key: Key, objective: float, params: Params, structure: str, bound: float, **search: Any) -> Entry:
    W, H, b = (np.asarray(part).tolist() for part in params)
    nothing: dict[str, Any] = {"starts": 0, "hits": 0, "minima": (), "seed": 0}
    return Entry(
        *key,
        objective=float(objective),
        structure=structure,
        lower_bound=float(bound),
        W=tuple(map(tuple, W)),
        H=tuple(map(tuple, H)),
        b=tuple(b),
        versions=_files.versions(),
        **(nothing | search),
    )


def _levels(values: np.ndarray) -> tuple[tuple[float, int], ...]:
    """The different values, ascending, with how often each occurs; what did not converge is left out."""
    ordered = np.sort(values[np.isfinite(values)])
    groups = np.split(ordered, np.flatnonzero(np.diff(ordered) > SAME) + 1)
    return tuple((float(group[0]), len(group)) for group in groups)


def _structure(prob: Problem, params: Params, objective: float) -> str:
    """The code that has this value, or how many classes no permutation-invariant tells apart."""
    try:
        codes = _codes.lowest(setting(prob), 5)
    except NoClosedForm:
        codes = []
    for found in codes:
        if abs(found.value - objective) < SAME:
            return _codes.named(found.codes)
    marks = _orbits._signatures(_orbits.logits(prob, params))
    near = np.abs(marks[:, None] - marks[None]).max(axis=2) < 1e-5 * (1 + np.abs(marks).max())
    alike = sorted(len(rows) for rows in {tuple(np.flatnonzero(row)) for row in near})
    return f"no code: {' + '.join(map(str, alike))} classes alike"
