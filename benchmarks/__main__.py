"""`python -m benchmarks`: measure, and write `benchmarks/results.md` and `results.json`.

Each table can be measured alone (`--only accuracy time`); the others are kept from `results.json`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks import solving, spectra

Row = dict[str, Any]
FOLDER = Path(__file__).parent


def _time(quick: bool) -> Iterator[Row]:
    for n in (10, 100):
        for case in "AB":
            yield from solving.time_to_tolerance(10, 64, n, case, 1 if quick else 3, 5.0 if quick else 30.0)


def _large(quick: bool) -> Iterable[Row]:
    return solving.large("A", 5.0 if quick else 90.0)


def _floor(quick: bool) -> Iterator[Row]:
    peak = solving.matrix_peak()
    for shape in ((10, 64, 10), (10, 64, 100), *(() if quick else ((100, 512, 100),))):
        row = solving.floor(*shape, case="A")
        yield row | {
            "matrix peak GFLOP/s": peak / 1e9,
            "floor seconds": row["operations"] / peak,
            "times the floor": row["seconds"] * peak / row["operations"],
        }


TABLES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "accuracy": lambda quick: solving.accuracy(10 if quick else 100),
    "time": _time,
    "large": _large,
    "sweep": lambda quick: solving.sweeps(100 if quick else 1000),
    "first": lambda quick: solving.first_answer(),
    "floor": _floor,
    "eigenvalues": spectra.all_eigenvalues,
    "inertia": spectra.inertias,
    "smallest": spectra.smallest,
    "flattest": spectra.smallest_positive,
    "search": spectra.critical_points,
}

TEXT = {
    "accuracy": """## Accuracy
`solve_ufm` at K=10, d=64, n=10 with its default tolerance (1e-10), against the closed form f*.""",
    "time": """## Time to |grad f| <= 1e-8
Cross-entropy, K=10, d=64, same starts and stopping rule for all, compilation excluded; median over seeds of
the best repetition. Case A: lam_W = lam_H = 0.2/(K sqrt n); case B: lam_W = 5e-3, lam_H = 1e-5. Peers solve
equation (7) as it stands, scipy's with our jitted derivatives. `ufm newton` solves the full problem, every
sample free, after two changes of coordinates of its own: balanced penalties, and features turned into the
row space of W (K of d dimensions). The rows *not rotated* and *nor balanced* leave these out, as a peer could
be given them. The class-mean reduction uses that the loss is convex and stands in a row of its own.""",
    "large": """## A large problem
K=100, d=512, n=100: 5.2 million unknowns, cross-entropy, |grad f| <= 1e-8, one start. Ours in a process of
its own (peak memory: the whole process); compilation excluded for all.""",
    "sweep": """## Sweeps
Seeds x 10 penalties (1e-4 to 2e-2) at K=10, d=64, n=10, cross-entropy, default tolerance.""",
    "first": """## First answer
`python -c "import ufm; ufm.solve_ufm(loss='ls', K=10, d=64)"` as a process, median.""",
    "floor": """## Distance from the floor
A Hessian-vector product costs 12 K min(d, K) N operations, a gradient 6, turning the features 4 K d N. The
floor is these operations at the speed of a 2000 x 2000 float64 product on the same machine.""",
    "eigenvalues": """## All eigenvalues of the Hessian
Cross-entropy, K=10, d=64, at the optimum and at a strict saddle of rank 5 (two escapes from the origin apart
from it), median of five. Dense: LAPACK on the autodiff Hessian.""",
    "inertia": """## Inertia where nothing coincides
K=10, d=64; random points whose features all differ, in 10 of 64 directions or in all. Median of three.""",
    "smallest": """## One end of the spectrum
The strict saddle is a simplex ETF of 50 groups of two classes (K=100, d=64, rank 49). All get the same point;
eigsh and Lanczos ask for 1e-6; `error` is against the exact value (decomposition, or slicing by inertia).
PyHessian finds the eigenvalue of largest modulus only.""",
    "flattest": """## The flattest direction at the optimum
Cross-entropy, K=10, d=64, n=10: the smallest positive eigenvalue, beside the null space of rotations.""",
    "search": """## Critical points found
Cross-entropy, K=4, d=6, n=2, lam_W=0.01, lam_H=0.02: `find_critical_points` without the families it may
start from, against those known analytically.""",
}


def hardware() -> Row:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    names = ("ufm", "jax", "jaxlib", "optax", "numpy", "scipy", "torch")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "device": str(jax.devices()[0]),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def _ratios(rows: list[Row]) -> list[Row]:
    """Each of our rows over the strongest peer of its own problem, and over each peer."""
    out = []
    for row in rows:
        group = [r for r in rows if all(r.get(k) == row.get(k) for k in ("K", "n", "case"))]
        peers = {r["solver"]: r for r in group if not r["solver"].startswith("ufm")}
        reached = {k: r for k, r in peers.items() if r.get("reached", r.get("converged"))}
        ratios = {}
        if row["solver"].startswith("ufm"):
            if reached:
                ratios["against the strongest peer"] = (
                    f"{min(r['seconds'] for r in reached.values()) / row['seconds']:.1f}x"
                )
            for name in ("scipy L-BFGS-B", "torch L-BFGS"):
                if name in peers:
                    more = "" if name in reached else "> "
                    ratios[f"against {name}"] = f"{more}{peers[name]['seconds'] / row['seconds']:.1f}x"
        out.append(row | ratios)
    return out


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", r"\|")


def _markdown(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(k for row in rows for k in row))
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(k, "")) for k in columns) + " |" for row in rows]
    return "\n".join(lines)


def render(results: dict[str, Any]) -> str:
    parts = ["# Benchmarks", "Written by `python -m benchmarks`; not edited by hand."]
    for name in TABLES:
        if name in results:
            where = results[name]["hardware"]
            rows = results[name]["rows"]
            rows = _ratios(rows) if name in ("time", "large") else rows
            versions = ", ".join(
                f"{k} {v}" for k, v in where.items() if k not in ("date", "cpu", "cores", "device")
            )
            parts += [TEXT[name], _markdown(rows)]
            parts += [
                f"{where['date']}; {where['cpu']}, {where['cores']} cores, {where['device']}; {versions}."
            ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--quick", action="store_true", help="a minute or two, few seeds; writes nothing")
    options = parser.parse_args()
    stored = FOLDER / "results.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}
    for name in options.only:
        rows = []
        for row in TABLES[name](options.quick):
            print(name, {k: _cell(v) for k, v in row.items()}, flush=True)
            rows.append(row)
        results[name] = {"hardware": hardware(), "rows": rows}
        if not options.quick:
            stored.write_text(json.dumps(results, indent=1) + "\n")
            (FOLDER / "results.md").write_text(render(results))


if __name__ == "__main__":
    main()
