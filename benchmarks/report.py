"""Renders results.json as results.md and figures: every table, and a summary of the comparisons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import figures, scaling
from benchmarks.machine import Row
from benchmarks.tables import TABLES

Results = dict[str, Any]


# --- cells ----------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    """A value as text in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", r"\|")


def markdown(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(k for row in rows for k in row))
    lines = ["| " + " | ".join(map(cell, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(k, "")) for k in columns) + " |" for row in rows]
    return "\n".join(lines)


def _capped(row: Row) -> Row:
    """The seconds of a run that reached its time limit are shown as such, not as a time to the tolerance."""
    reached = row.get("reached", True)
    return row if reached or "seconds" not in row else row | {"seconds": f"not in {row['seconds']:.3g}"}


# --- ratios ---------------------------------------------------------------------------------------


class Match(NamedTuple):
    """Our row, the strongest alternative's, and how many times faster ours is."""

    ours: Row
    theirs: Row
    ratio: float
    reached: bool  # whether any alternative finished within its time limit


def strongest(ours: Row, rows: list[Row], table: str) -> Match | None:
    """Compares with the fastest alternative that reached the tolerance, else with the longest time limit."""
    spec = TABLES[table]
    rivals = [
        r for r in rows
        if not spec.is_ours(r) and "seconds" in r and all(r.get(k) == ours.get(k) for k in spec.group)
    ]  # fmt: skip
    there = [r for r in rivals if r.get("reached", True) and spec.valid(r)]
    if "seconds" not in ours or not rivals:
        return None
    best = min(there, key=lambda r: r["seconds"]) if there else max(rivals, key=lambda r: r["seconds"])
    return Match(ours, best, best["seconds"] / ours["seconds"], bool(there))


def _with_ratios(name: str, rows: list[Row]) -> list[Row]:
    """Our rows with their ratio to the strongest alternative."""
    out = []
    for row in rows:
        ratios = {}
        if TABLES[name].is_ours(row):
            match = strongest(row, rows, name)
            ratios = {"against the strongest": _times(match)} if match else {}
            for peer in TABLES[name].named:
                match = strongest(row, [r for r in rows if TABLES[name].side(r) == peer], name)
                ratios |= {f"against {peer}": _times(match)} if match else {}
        out.append(_capped(row) | ratios)
    return out


def _times(match: Match) -> str:
    return f"{'' if match.reached else '> '}{match.ratio:.{2 if match.ratio < 10 else 0}f}x"


# --- the summary ----------------------------------------------------------------------------------


def summary(results: Results) -> list[Row]:
    """A row per task of every table that has an alternative."""
    out = []
    for name, spec in TABLES.items():
        for match in _matches(name, results) if spec.task else ():
            side = {"ours": spec.side(match.ours), "the alternative": spec.side(match.theirs)}
            reached = match.reached and spec.valid(match.theirs)
            theirs = cell(match.theirs["seconds"]) if reached else f"not in {match.theirs['seconds']:.3g}"
            out.append(
                {
                    "task": spec.task(match.ours),
                    **side,
                    "ours, s": match.ours["seconds"],
                    "theirs, s": theirs,
                    "ratio": _times(match),
                    "verdict": "we win" if match.ratio > 1 else "**we lose**",
                    "times the floor": _floor(name, match.ours, results),
                }
            )
    return out


def _matches(name: str, results: Results) -> Iterator[Match]:
    rows = results.get(name, {}).get("rows", [])
    for row in filter(TABLES[name].is_ours, rows):
        match = strongest(row, rows, name) if TABLES[name].summarised(row) else None
        if match:
            yield match


def _floor(name: str, row: Row, results: Results) -> Any:
    """The multiple of the floor, from the row itself or from the same problem in the table of floors."""
    if "times the floor" in row:
        return row["times the floor"]
    if name not in ("time", "large") or TABLES[name].side(row) != "ufm newton":
        return ""
    keys = ("K", "d", "n", "case")
    same = [r for r in results.get("floor", {}).get("rows", []) if all(r[k] == row.get(k) for k in keys)]
    return same[0].get("times the floor", "") if same else ""


# --- the page -------------------------------------------------------------------------------------


def render(results: Results) -> str:
    """The text of results.md."""
    rows = summary(results)
    lost = sum(row["verdict"] != "we win" for row in rows)
    parts = [
        "# Benchmarks",
        "Written by `python -m benchmarks` from `results.json`; not edited by hand.",
        f"## Summary\nMedian seconds, ours against the strongest alternative in the same run: {len(rows)} "
        f"comparisons, {lost} lost. *Times the floor*: our time as a multiple of the least time that "
        "its operations and bytes take at the machine's measured peaks. The sections explain their rows.",
        markdown(rows) if rows else "Nothing is measured yet.",
    ]
    for name, table in TABLES.items():
        if name in results:
            parts += [table.text, *_body(name, results[name]["rows"]), _where(results[name]["hardware"])]
    return "\n\n".join(parts) + "\n"


def _body(name: str, rows: list[Row]) -> list[str]:
    if name != "scaling":
        return [markdown(_with_ratios(name, rows) if TABLES[name].group else rows)]
    broken = [r for r in rows if "remark" in r]
    remarks = [markdown(broken)] if broken else []
    return [
        f"![Time and memory over N, K and d]({figures.FILES[0]})",
        markdown(scaling.slopes(rows)),
        *remarks,
    ]


def _where(hardware: Row) -> str:
    machine = ("date", "cpu", "cores", "device")
    versions = ", ".join(f"{k} {v}" for k, v in hardware.items() if k not in machine)
    cpu, cores, device = (hardware[k] for k in machine[1:])
    return f"{hardware['date']}; {cpu}, {cores} cores, {device}; {versions}."


def write(results: Results, folder: Path) -> None:
    """Writes results.json, results.md and the figures, each file atomically."""
    _replace(folder / "results.json", json.dumps(results, indent=1) + "\n")
    _replace(folder / "results.md", render(results))
    if "scaling" in results:
        figures.save(results["scaling"]["rows"], folder)


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


def read(folder: Path) -> Results:
    file = folder / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}
