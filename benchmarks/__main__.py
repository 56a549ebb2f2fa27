"""`python -m benchmarks` measures and writes `benchmarks/results.md`, `results.json` and the figures.

Each table can be measured alone (`--only accuracy time`); the others are taken from `results.json`. This
file is written after every table, so a run may be interrupted."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import report
from benchmarks.machine import hardware
from benchmarks.tables import TABLES

FOLDER = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--quick", action="store_true", help="some minutes, small and few; writes nothing")
    parser.add_argument("--render", action="store_true", help="measure nothing; write again what is stored")
    options = parser.parse_args()
    results = report.read(FOLDER)
    if options.render:
        report.write(results, FOLDER)
        return
    for name in options.only:
        began, rows = time.perf_counter(), []
        for row in TABLES[name].rows(options.quick):
            print(name, {k: report.cell(v) for k, v in row.items()}, flush=True)
            rows.append(row)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        results[name] = {"hardware": hardware(), "rows": rows}
        if not options.quick:
            report.write(results, FOLDER)


if __name__ == "__main__":
    main()
