"""How records are shown: each makes a `Sheet` of itself, which every medium renders in its own way.

Because all media start from the same sheet, a terminal, a notebook, a report and a doctest agree.
"""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:
    from rich.table import Table

R = TypeVar("R")

#: columns of plain text, which has no terminal to ask for its width
WIDTH = 110


class Sheet(NamedTuple):
    """A record in words: facts (name, value) if there is no header, else a table with that header."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str]


class Printed:
    """A record that shows itself: as text for `print`, as a rich table in terminals, as HTML in notebooks."""

    def sheet(self) -> Sheet:
        """The record as a table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(self.sheet())

    def __rich__(self) -> Table:
        return as_table(self.sheet())

    def _repr_html_(self) -> str:
        return as_html(self.sheet())


def printed(record: type[R]) -> type[R]:
    """Shows a named tuple as `Printed` does: a row for each number, array and word that it has itself."""

    def sheet(self: Any) -> Sheet:
        shown = {name: in_words(getattr(self, name)) for name in self._fields}
        rows = [(name, words) for name, words in shown.items() if words]
        return Sheet(record.__name__, (), rows, [])

    added = {"sheet": sheet} | {n: vars(Printed)[n] for n in ("__repr__", "__rich__", "_repr_html_")}
    for name, method in added.items():
        setattr(record, name, method)
    return record


def in_words(value: Any) -> str:
    """A number, an array of at most 16 columns, or a word, as text; "" for everything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, tuple) or (not hasattr(value, "__array__") and not isinstance(value, int | float)):
        return ""
    array = np.asarray(value)
    if array.ndim > 2 or array.size > 256 or array.dtype.kind not in "biuf":
        return ""
    return (
        f"{array[()]:.10g}" if array.ndim == 0 else np.array2string(array, precision=6, max_line_width=WIDTH)
    )


def digits(value: ArrayLike) -> str:
    """A number with all the decimal digits that its dtype can hold."""
    array = np.asarray(value)
    return f"{float(array):.{np.finfo(array.dtype).precision}g}"


# --- the formats ----------------------------------------------------------------------------------

_STYLES = {"holds": "green", "converged": "green", "fails": "bold red", "not applicable": "dim"}
_NUMERIC = frozenset(
    [
        *("measured", "tolerance", "objective", "spread", "f - theory", "|grad f|", "steps"),
        *("index", "zeros", "smallest", "rank", "hits"),
    ]
)


def _table(sheet: Sheet, ascii_only: bool) -> Table:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    rule = "--" if ascii_only else "──"
    blank = "    \n"
    lines = Box(blank * 2 + f" {rule} \n" + blank * 5, ascii=ascii_only)
    table = Table(
        title=Text(sheet.title, style="bold"),
        title_justify="left",
        caption=Text("\n".join(sheet.notes)) if sheet.notes else None,
        caption_justify="left",
        show_header=bool(sheet.header),
        box=lines if sheet.header else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if sheet.header else 2, 0, 0),
    )
    for name in sheet.header or ("", ""):
        right = name in _NUMERIC
        flexible = name in ("statement", "")
        table.add_column(name, justify="right" if right else "left", no_wrap=not flexible, overflow="fold")
    for row in sheet.rows:
        # `Text`, because a plain string is read as markup
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


def as_table(sheet: Sheet) -> Table:
    """For `rich.print`."""
    return _table(sheet, ascii_only=False)


def as_text(sheet: Sheet) -> str:
    """Plain ASCII lines without colours, for `print` and doctests."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(_table(sheet, ascii_only=True))
    lines = (line.rstrip() for line in captured.get().splitlines())
    return "\n".join(line for line in lines if line)


def as_html(sheet: Sheet) -> str:
    """An HTML table for notebooks and reports, without scripts or any style beyond alignment."""
    title, header, rows, notes = sheet
    head = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    lines = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f"<div><strong>{html.escape(title)}</strong><table>{top}<tbody>{body}</tbody></table>{lines}</div>"


def _cell(text: str) -> str:
    inner = html.escape(text).replace("\n", "<br>")
    inner = f"<strong>{inner}</strong>" if text == "fails" else inner
    return f"<td style='text-align:left'>{inner}</td>"


# --- JSON -----------------------------------------------------------------------------------------


def dumps(tree: Any) -> str:
    """Strict JSON. A NaN or infinity raises here, because JSON has no number for it."""
    return json.dumps(tree, allow_nan=False, indent=2)


def finite(value: ArrayLike | None) -> float | None:
    """`value` as a float, or None where it is not finite and JSON has no number for it."""
    number = float(np.asarray(value))
    return number if math.isfinite(number) else None
