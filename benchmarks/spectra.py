"""What the landscape costs and how exact it is: each function measures one table and returns its rows.

Peers get the same point of the same problem: scipy's eigsh on our jitted product, and on curvlinops' product
in torch; PyHessian's power iteration; LAPACK on the dense matrix.
"""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
from jax.flatten_util import ravel_pytree
from scipy.linalg import eigvalsh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

import ufm
from ufm import landscape, theory
from ufm.landscape import _lanczos, families
from ufm.landscape.hessian import product

Row = dict[str, Any]


def timed(run: Callable[[], Any], repeats: int = 5) -> tuple[float, Any]:
    """Median seconds after one run that compiles, and what it returned."""
    result, seconds = run(), []
    for _ in range(repeats):
        began = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def problem(K: int, d: int, n: int) -> ufm.Problem:
    """Cross-entropy with unequal penalties at a fifth of the collapse threshold."""
    lam = 0.2 / (K * n**0.5)
    return ufm.Problem.balanced("ce", K=K, d=d, n=n, lam_W=2 * lam, lam_H=lam / 2)


@functools.cache
def saddle(K: int, d: int, n: int, rank: int) -> tuple[ufm.Problem, ufm.Params]:
    """A strict saddle of that rank, by following escapes from the origin."""
    prob = problem(K, d, n)
    return prob, landscape.descend(prob, prob.zeros(), max_stops=rank + 1, progress=False).params


def grouped(K: int, d: int, n: int, M: int) -> tuple[ufm.Problem, ufm.Params]:
    """A strict saddle: a simplex ETF of M groups of classes (rank M - 1)."""
    prob = problem(K, d, n)
    family = next(f for f in families.FAMILIES if f.name == "grouped ETF")
    built = next(params for label, params in family.members(prob) if label == f"{M}x{K // M}")
    return prob, landscape.polish(prob, built).params


def all_eigenvalues(quick: bool) -> Iterator[Row]:
    """Every eigenvalue at the optimum and at a saddle, against the closed form and the dense matrix."""
    for n in (10,) if quick else (10, 100, 1000):
        prob, at_saddle = saddle(10, 64, n, 5)
        for where, params in (("optimum", theory.global_optimum(prob).params), ("saddle", at_saddle)):

            def run(prob: ufm.Problem = prob, params: ufm.Params = params) -> landscape.Eigenvalues:
                return landscape.eigenvalues(prob, params, which="all")

            seconds, ev = timed(run)
            row: Row = {"K": 10, "d": 64, "n": n, "dimension": prob.size, "where": where}
            row |= {"seconds": seconds, "distinct": len(ev.values)}
            if where == "optimum":
                closed = theory.hessian_spectrum(prob)
                row["largest error against the closed form"] = float(
                    np.abs(ev.expand() - np.sort(closed.expand())).max()
                )
                flattest = abs(ev.smallest_positive / closed.smallest_positive - 1)
                row["relative error of the smallest positive"] = float(flattest)
            if n == 10 and not quick:
                began = time.perf_counter()
                dense = eigvalsh(landscape.dense(prob, params))
                row["dense seconds"] = time.perf_counter() - began
                row["largest error against dense"] = float(np.abs(ev.expand() - dense).max())
            yield row


def inertias(quick: bool) -> Iterator[Row]:
    """Inertia where the features of a class all differ: no structure but the rank, or none at all."""
    for n in (2,) if quick else (2, 10, 100):
        for rank in (10, 64):
            prob = problem(10, 64, n)
            rng = np.random.default_rng(0)
            Q = np.linalg.qr(rng.normal(size=(64, 64)))[0][:, :rank]
            params = ufm.Params(
                *(jax.numpy.asarray(x) for x in (rng.normal(size=(10, rank)) @ Q.T,
                  Q @ rng.normal(size=(rank, prob.N)), rng.normal(size=10)))
            )  # fmt: skip
            seconds, got = timed(lambda prob=prob, params=params: landscape.inertia(prob, params), 3)
            row: Row = {"dimension": prob.size, "rank of the features": rank, "distinct samples": prob.N}
            row |= {"seconds": seconds, "inertia": str(tuple(got))}
            if n == 2:
                values = eigvalsh(landscape.dense(prob, params))
                noise = 1e-10 * values[-1]
                counts = ((values < -noise).sum(), (abs(values) <= noise).sum(), (values > noise).sum())
                row["dense"] = str(tuple(int(x) for x in counts))
            yield row


# --- the smallest eigenvalue, against the peers ---------------------------------------------------------


def ours_as_operator(prob: ufm.Problem, params: ufm.Params) -> LinearOperator:
    """Our jitted product on flat vectors, for scipy."""
    _, unravel = ravel_pytree(params)

    @jax.jit
    def flat(prob: ufm.Problem, params: ufm.Params, x: jax.Array) -> jax.Array:
        return ravel_pytree(product(prob, params)(unravel(x)))[0]

    flat(prob, params, np.zeros(prob.size)).block_until_ready()
    return LinearOperator(
        (prob.size, prob.size), matvec=lambda x: np.asarray(flat(prob, params, x.ravel())), dtype=float
    )


class _Model(torch.nn.Module):
    """Logits W H + b of the samples asked for: equation (7) as a network whose features are parameters."""

    def __init__(self, params: ufm.Params) -> None:
        super().__init__()
        W, H, b = (torch.tensor(np.asarray(x)) for x in params)
        self.W, self.F, self.b = (torch.nn.Parameter(x.contiguous()) for x in (W, H.T, b))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.F[index] @ self.W.T + self.b


def _torch_data(prob: ufm.Problem) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(prob.N), torch.tensor(np.asarray(prob.labels), dtype=torch.int64)


def curvlinops_operator(prob: ufm.Problem, params: ufm.Params) -> LinearOperator:
    """curvlinops' Hessian of the mean cross-entropy, the penalties added on the diagonal."""
    from curvlinops import HessianLinearOperator

    model = _Model(params)
    variables = list(model.parameters())
    operator = HessianLinearOperator(
        model, torch.nn.CrossEntropyLoss(), variables, [_torch_data(prob)], check_deterministic=False
    )
    inner = operator.to_scipy(dtype=np.float64)
    sizes = [p.numel() for p in variables]
    shift = np.repeat([float(prob.lam_W), float(prob.lam_H), 0.0], sizes)
    return LinearOperator(
        inner.shape, matvec=lambda x: inner.matvec(x.ravel()) + shift * x.ravel(), dtype=np.float64
    )


def pyhessian_top(prob: ufm.Problem, params: ufm.Params, tol: float) -> float:
    """PyHessian's eigenvalue of largest modulus (its power iteration finds no other)."""
    from pyhessian import hessian

    model = _Model(params)
    labels = _torch_data(prob)
    lam_W, lam_H = float(prob.lam_W), float(prob.lam_H)

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        penalty = lam_W / 2 * (model.W**2).sum() + lam_H / 2 * (model.F**2).sum()
        return torch.nn.functional.cross_entropy(logits, target) + penalty

    computer = hessian(model, loss, data=labels, cuda=False)
    return float(computer.eigenvalues(maxIter=1000, tol=tol, top_n=1)[0][0])


def _eigsh(operator: LinearOperator, which: str, tol: float) -> tuple[float, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = eigsh(operator, k=1, which=which, return_eigenvectors=False, tol=tol, maxiter=20_000)
    except ArpackNoConvergence:
        return float("nan"), "not converged"
    return float(values[0]), ""


def smallest(quick: bool) -> Iterator[Row]:
    """One end of the spectrum: at a large strict saddle through G, and anywhere by Lanczos."""
    K, n, M = (20, 5, 5) if quick else (100, 108, 50)
    prob, params = grouped(K, 64, n, M)
    seconds, ev = timed(lambda: landscape.eigenvalues(prob, params, 1))
    where = f"saddle, K={K}"
    yield _row(prob, where, "smallest", f"ufm ({ev.method})", seconds, ev.values[0], ev.values[0])
    yield from _peers(prob, params, where, "smallest", float(ev.values[0]), 1 if not quick else 2)

    prob = problem(10, 64, 10 if quick else 100)
    params = ufm.init(prob, seed=0, scale=1.0)
    exact = {
        which: float(landscape.eigenvalues(prob, params, 1, which, method="exact").values[0])
        for which in ("smallest", "largest")
    }
    for which in ("smallest", "largest"):
        yield from _peers(prob, params, "random point", which, exact[which], 3)


def _peers(
    prob: ufm.Problem, params: ufm.Params, where: str, which: str, exact: float, repeats: int
) -> Iterator[Row]:
    sign = 1.0 if which == "smallest" else -1.0
    tol = 1e-6
    seconds, (value, _, products) = timed(
        lambda: _lanczos.lowest_value(prob, params, sign=sign, tol=tol), repeats
    )
    yield _row(prob, where, which, f"ufm (Lanczos, {products} products)", seconds, sign * value, exact)
    end = "SA" if which == "smallest" else "LA"
    for name, make in (
        ("scipy eigsh, our product", ours_as_operator),
        ("curvlinops + eigsh", curvlinops_operator),
    ):
        operator = make(prob, params)
        began = time.perf_counter()
        value, remark = _eigsh(operator, end, tol)
        yield _row(prob, where, which, f"{name} {remark}".strip(), time.perf_counter() - began, value, exact)
    if which == "largest":
        began = time.perf_counter()
        value = pyhessian_top(prob, params, tol)
        yield _row(prob, where, which, "PyHessian", time.perf_counter() - began, value, exact)


def _row(
    prob: ufm.Problem, where: str, which: str, method: str, seconds: float, value: float, exact: float
) -> Row:
    error = abs(float(value) - exact)
    return {"where": where, "dimension": prob.size, "which": which, "method": method, "seconds": seconds,
            "value": float(value), "error": error}  # fmt: skip


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
