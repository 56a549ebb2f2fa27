"""Cost and accuracy of the landscape tools: each function measures one table and yields its rows."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import jax
import numpy as np
from scipy.linalg import eigvalsh
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

import ufm
from benchmarks.machine import Row, absent, alone, cores, timed
from benchmarks.spectra_peers import PEERS, End, ours_as_operator
from ufm import landscape, theory
from ufm.hessian import lanczos
from ufm.landscape import families

#: the accuracy that every side of the table `smallest` must reach, relative to the largest |eigenvalue|
ACCURACY = 1e-5
#: the tolerances a side is tried with, the loosest first
TOLERANCES = tuple(10.0**-k for k in range(1, 11))
#: seconds for the tries of one side
CAP = 60.0


def problem(K: int, d: int, n: int) -> ufm.Problem:
    """Cross-entropy with unequal penalties at a fifth of the collapse threshold."""
    lam = 0.2 / (K * n**0.5)
    return ufm.Problem.balanced("ce", K=K, d=d, n=n, lam_W=2 * lam, lam_H=lam / 2)


@functools.cache
def saddle(K: int, d: int, n: int, rank: int) -> tuple[ufm.Problem, ufm.Params]:
    """A strict saddle of this rank, reached by following escapes from the origin."""
    prob = problem(K, d, n)
    return prob, landscape.descend(prob, prob.zeros(), max_stops=rank + 1, progress=False).params


def grouped(K: int, d: int, n: int, M: int) -> tuple[ufm.Problem, ufm.Params]:
    """A strict saddle: a simplex ETF of M groups of classes (rank M - 1)."""
    prob = problem(K, d, n)
    family = next(f for f in families.FAMILIES if f.name == "grouped ETF")
    built = next(params for label, params in family.members(prob) if label == f"{M}x{K // M}")
    return prob, landscape.polish(prob, built).params


def _point(n: int, where: str) -> tuple[ufm.Problem, ufm.Params]:
    prob, at_saddle = saddle(10, 64, n, 5)
    return prob, at_saddle if where == "saddle" else theory.global_optimum(prob).params


def dense(n: int, where: str) -> Row:
    """Every eigenvalue by LAPACK, the autodiff Hessian included."""
    prob, params = _point(n, where)
    seconds, values = timed(lambda: eigvalsh(landscape.dense(prob, params)), warm=False, most=1)
    return {"seconds": seconds, "values": values.tolist()}


def all_eigenvalues(quick: bool) -> Iterator[Row]:
    """Every eigenvalue at the optimum and at a saddle, against the closed form and the dense matrix."""
    for n in (10,) if quick else (10, 100, 1000):
        for where in ("optimum", "saddle"):
            prob, params = _point(n, where)

            def run(prob: ufm.Problem = prob, params: ufm.Params = params) -> landscape.Eigenvalues:
                return landscape.eigenvalues(prob, params, which="all")

            seconds, ev = timed(run)
            row: Row = {"K": 10, "d": 64, "n": n, "dimension": prob.size, "where": where}
            beside = row | {"method": "LAPACK, dense"}
            row |= {"method": "ufm", "seconds": seconds, "distinct": len(ev.values)}
            if where == "optimum":
                closed = theory.hessian_spectrum(prob)
                row["largest error against the closed form"] = float(
                    np.abs(ev.expand() - np.sort(closed.expand())).max()
                )
                flattest = abs(ev.smallest_positive / closed.smallest_positive - 1)
                row["relative error of the smallest positive"] = float(flattest)
            if n == 10 and not quick:
                # a process of its own, where LAPACK has every core
                lapack = alone("benchmarks.spectra:dense", threads=cores(), n=n, where=where)
                values = np.array(lapack.pop("values"))
                row["largest error against dense"] = float(np.abs(ev.expand() - values).max())
                yield beside | lapack
            yield row


def inertias(quick: bool) -> Iterator[Row]:
    """Inertia where all features of a class differ: low rank is the only structure, or there is none."""
    for n in (2,) if quick else (2, 10, 100):
        for rank in (10, 64):
            prob = problem(10, 64, n)
            rng = np.random.default_rng(0)
            Q = np.linalg.qr(rng.normal(size=(64, 64)))[0][:, :rank]
            params = ufm.Params(
                *(jax.numpy.asarray(x) for x in (rng.normal(size=(10, rank)) @ Q.T,
                  Q @ rng.normal(size=(rank, prob.N)), rng.normal(size=10)))
            )  # fmt: skip
            seconds, got = timed(lambda prob=prob, params=params: landscape.inertia(prob, params), most=3)
            row: Row = {"dimension": prob.size, "rank of the features": rank, "distinct samples": prob.N}
            row |= {"seconds": seconds, "inertia": str(tuple(got))}
            if n == 2:
                values = eigvalsh(landscape.dense(prob, params))
                noise = 1e-10 * values[-1]
                counts = ((values < -noise).sum(), (abs(values) <= noise).sum(), (values > noise).sum())
                row["dense"] = str(tuple(int(x) for x in counts))
            yield row


# --- one end of the spectrum, against the peers ---------------------------------------------------


def smallest(quick: bool) -> Iterator[Row]:
    """One end of the spectrum: at a large strict saddle through G, and anywhere by Lanczos."""
    K, n, M = (20, 5, 5) if quick else (100, 108, 50)
    prob, params = grouped(K, 64, n, M)
    seconds, ev = timed(lambda: landscape.eigenvalues(prob, params, 1))
    exact, where = float(ev.values[0]), f"saddle, K={K}"
    row: Row = {"where": where, "dimension": prob.size, "which": "smallest"}
    yield row | {"method": f"ufm ({ev.method})", "seconds": seconds, "value": exact, "relative error": 0.0}
    yield from _sides(prob, params, where, "smallest", exact)

    prob = problem(10, 64, 10 if quick else 100)
    params = ufm.init(prob, seed=0, scale=1.0)
    for which in ("smallest", "largest"):
        value = landscape.eigenvalues(prob, params, 1, which, method="exact").values[0]
        yield from _sides(prob, params, "random point", which, float(value))


def our_lanczos(prob: ufm.Problem, params: ufm.Params, which: str) -> End:
    """Our eigenvalue without its eigenvector, which no peer computes either."""
    sign = 1.0 if which == "smallest" else -1.0
    return lambda tol: sign * lanczos.lowest_value(prob, params, sign=sign, tol=tol)[0]


def _sides(prob: ufm.Problem, params: ufm.Params, where: str, which: str, exact: float) -> Iterator[Row]:
    """Each method at the loosest tolerance at which it is accurate enough."""
    scale = abs(landscape.eigenvalues(prob, params, 1, "largest", method="lanczos", tol=1e-4).values[-1])
    for name, make in {"ufm (Lanczos)": our_lanczos, **PEERS}.items():
        row: Row = {"where": where, "dimension": prob.size, "which": which, "method": name}
        try:
            end = make(prob, params, which)
        except ImportError as error:
            yield row | absent(error)
            continue
        if end is not None:
            yield row | _equally_accurate(end, exact, float(scale))


def _equally_accurate(end: End, exact: float, scale: float) -> Row:
    began = time.perf_counter()
    for tol in TOLERANCES:
        error = abs(end(tol) - exact) / scale
        if error <= ACCURACY:
            seconds, value = timed(lambda tol=tol: end(tol), warm=False, enough=2.0)
            return {"seconds": seconds, "value": value, "relative error": error, "tolerance": tol}
        if time.perf_counter() - began > CAP:
            break
    return {"relative error": error, "tolerance": tol, "remark": "not so accurate at any tolerance tried"}


def smallest_positive(quick: bool) -> Iterator[Row]:
    """The flattest direction at the optimum, next to the null space of the rotations."""
    prob = problem(10, 64, 10)
    params = theory.global_optimum(prob).params
    closed = theory.hessian_spectrum(prob)
    seconds, ev = timed(lambda: landscape.eigenvalues(prob, params, which="all"))
    exact = closed.smallest_positive
    yield {"method": "ufm", "seconds": seconds, "value": ev.smallest_positive, "closed form": exact,
           "relative error": abs(ev.smallest_positive / exact - 1)}  # fmt: skip
    if quick:
        return
    operator = ours_as_operator(prob, params)
    k = closed.nullity + 1  # all zeros must be found before it
    began = time.perf_counter()
    try:
        values = eigsh(operator, k=k, which="SA", return_eigenvectors=False, tol=1e-10, maxiter=5)
        value, remark = float(np.sort(values)[-1]), ""
    except ArpackNoConvergence as failure:
        value, remark = None, f"not converged after 5 restarts: {len(failure.eigenvalues)} of {k}"
    row: Row = {"method": f"scipy eigsh, k = {k} {remark}".strip(), "seconds": time.perf_counter() - began}
    error = {} if value is None else {"value": value, "relative error": abs(value / exact - 1)}
    yield row | {"closed form": exact} | error


def critical_points(quick: bool) -> Iterator[Row]:
    """The search at K=4, d=6, n=2, against the analytically known families."""
    prob = ufm.Problem.balanced("ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    known = landscape.critical_points(prob)
    began = time.perf_counter()
    found = landscape.find_critical_points(prob, starts=64 if quick else 1024, known=False, progress=False)
    seconds = time.perf_counter() - began
    for point in found:
        names = [
            p.family for p in known if abs(p.objective - point.objective) < 1e-9 and p.index == point.index
        ]
        yield {"objective": point.objective, "index": point.index, "smallest": point.smallest,
               "kind": point.kind, "hits": point.hits, "known as": ", ".join(names) or "-",
               "seconds of the whole search": seconds}  # fmt: skip
