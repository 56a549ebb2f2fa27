"""Renders the package's docstrings, which are plain text and formulas, written first for a terminal.

Before napoleon reads a docstring, characters with a meaning in markup are escaped, `names` of the package and
citations of its pages become links, and indented formulas and lines that end early keep their layout. After
napoleon, the fields of a record are listed with the comments next to them in the source.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache
from typing import Any

from docutils import nodes
from generated import MODULES, fields, names
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

#: a line that had room for the next word within this many characters was ended there on purpose
WIDTH = 94
#: stands for a colon that napoleon must not see
COLON = "\ue000"
_DOCTEST = re.compile(r"\s*>>> ")
_SECTION = re.compile(r"\s*(Args|Attributes|Raises|Returns):$")
_ITEM = re.compile(r"\s*([-*]|\d+\.) ")


@cache
def public() -> dict[str, str]:
    """Where an object is documented, by the place of its definition, its full name, and its suffixes."""
    places: dict[str, str] = {}
    for module in MODULES:
        for name in names(module):
            thing, place = getattr(importlib.import_module(module), name), f"{module}.{name}"
            if hasattr(thing, "__qualname__"):
                places.setdefault(f"{thing.__module__}.{thing.__qualname__}", place)
            parts = place.split(".")
            for start in range(len(parts)):
                places.setdefault(".".join(parts[start:]), place)
    return places


def _before(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("attribute", "property"):  # napoleon would read the text before a colon as the type
        lines[:] = [line.replace(":", COLON) for line in lines]
    out: list[str] = []
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    for block in blocks:
        rows = block.split("\n")
        indent = len(rows[0]) - len(rows[0].lstrip())
        if _DOCTEST.match(rows[0]):
            out += rows
        elif indent >= 4 and not _ITEM.match(rows[0]) and not _in_section(out):
            out += [" " * (indent - 4) + "::", "", *rows]
        elif any(_SECTION.match(row) for row in rows):
            out += _section(rows)
        elif any(_ITEM.match(row) for row in rows):
            out += [_escaped(row) for row in rows]
        else:
            out += _lines(rows)
        out.append("")
    lines[:] = out


def _in_section(out: list[str]) -> bool:
    """Whether the last line without indentation is the heading of a section."""
    heads = [row for row in out if row and not row.startswith(" ")]
    return bool(heads) and bool(_SECTION.match(heads[-1]))


def _section(rows: list[str]) -> list[str]:
    """The entries of a section, followed by the text that belongs to no single entry."""
    head = next(i for i, row in enumerate(rows) if _SECTION.match(row))
    indent = rows[head + 1][: len(rows[head + 1]) - len(rows[head + 1].lstrip())]
    entries, said = rows[: head + 1], [""]
    target = entries
    split = re.compile(r"(?<=[.;])  (?!Default:)(?=[A-Za-z_][\w, ]*: )")  # entries that share a line
    parted = [indent * (i > 0) + part for row in rows[head + 1 :] for i, part in enumerate(split.split(row))]
    for row in parted:
        if row.startswith(indent) and not row.startswith(indent + " "):
            target = entries if ":" in row else said
        target.append(row if target is entries else row.strip())
    return [_escaped(row) for row in (*entries, *(said if len(said) > 1 else ()))]


def _lines(rows: list[str]) -> list[str]:
    """A paragraph, as separate lines if a line was ended on purpose."""
    joined = [rows[0].strip()]
    last, broken = rows[0], False
    for row in rows[1:]:
        if len(last) + 1 + len(row.split()[0]) <= WIDTH or row.startswith(" ") != last.startswith(" "):
            joined.append(row.strip())
            broken = True
        else:
            joined[-1] += " " + row.strip()
        last = row
    joined = [_escaped(row) for row in joined]
    return [f"| {row}" for row in joined] if broken else joined


def _escaped(row: str) -> str:
    parts = re.split(r"(`+[^`]+`+)", row)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = _code(part.strip("`")) + (
                "\\ " if re.match(r"\w", "".join(parts[i + 1 : i + 2])) else ""
            )
        else:
            part = re.sub(r"(?<!\\)([|*])", r"\\\1", part)
            part = re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)
            parts[i] = re.sub(r"docs/(theory|protocol)\.md", r":doc:`docs/\1.md </\1>`", part)
    return "".join(parts)


def _code(text: str) -> str:
    place = public().get(text.removeprefix("ufm.").split("(")[0])
    return f":py:obj:`{text} <{place}>`" if place else f"``{text}``"


def _after(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]
    text = inspect.getdoc(obj) or ""
    if what != "class" or not fields(obj) or re.search(r"^(Args|Attributes):$", text, re.M):
        return
    rows = _described(obj)
    if rows:
        lines += ["", ".. rubric:: Fields", ""]
        for field, annotation, comment in rows:
            lines += [
                f"``{field}``: ``{annotation}``",
                f"    {_escaped(comment)}" if comment else "    \\ ",
                "",
            ]


@cache
def _described(cls: type) -> list[tuple[str, str, str]]:
    """(name, annotation, comment) of the fields in a class's source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return []
    comments = {
        token.start[0]: (token.start[1], token.string.lstrip("#: "))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    rows, body = [], ast.parse(source).body[0].body  # type: ignore[attr-defined]
    taken = {line for node in body for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = comments.get(node.end_lineno or 0, (0, ""))[1]
            after = (node.end_lineno or 0) + 1
            column = comments.get(node.end_lineno or 0, (0, ""))[0]
            while said and after not in taken and comments.get(after, (0, ""))[0] == column:  # continued
                said, after = f"{said} {comments[after][1]}", after + 1
            if not node.target.id.startswith("_") and node.target.id in fields(cls):
                said = re.sub(r"\s*\(never written to\)|noqa\S*.*", "", said)
                rows.append((node.target.id, ast.unparse(node.annotation), said))
    return rows


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, result: str | None
) -> tuple[str | None, str | None] | None:
    """The signature of a record: names only, because users do not construct it and its fields follow."""
    if what == "class" and hasattr(obj, "_fields"):
        return f"({', '.join(obj._fields)})", None
    return None


def _find(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> Any:
    """Resolves an annotation, which names the module that defines a class, to the page of the class."""
    place = public().get(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or place is None or place == node["reftarget"]:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", place, node, content)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _before, priority=400)
    app.connect("autodoc-process-docstring", _after, priority=600)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _find)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
