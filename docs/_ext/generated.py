"""Writes the pages and parts of pages that are derived from the package, so that nothing is written twice."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import click

#: the modules that have a page in the reference
MODULES = (
    "ufm",
    "ufm.losses",
    "ufm.models",
    "ufm.solvers",
    "ufm.theory",
    "ufm.landscape",
    "ufm.metrics",
    "ufm.claims",
    "ufm.figures",
    "ufm.reproduce",
    "ufm.deep",
    "ufm.deep.nets",
    "ufm.deep.layers",
    "ufm.deep.datasets",
    "ufm.deep.augment",
    "ufm.deep.presets",
    "ufm.deep.figures",
)

#: the page to which a link to a file of the root leads
LINKS = {
    "benchmarks/results.md": "/peers.md",
    "README.md": "/index.md",
    "CONTRIBUTING.md": "/contributing.md",
    "CHANGELOG.md": "/changelog.md",
}


def write(root: Path, docs: Path) -> None:
    """Writes the notebooks, the parts of the README, the statements, the command line and the reference."""
    parts, pages, notebooks = docs / "_generated", docs / "api", docs / "notebooks"
    for folder in (parts, pages, notebooks):
        folder.mkdir(exist_ok=True)
    there = {notebooks / path.name: path.read_text() for path in (root / "notebooks").glob("*.ipynb")}
    there |= {pages / f"{module}.md": _page(module) for module in MODULES}
    for stale in {*notebooks.glob("*.ipynb"), *pages.glob("*.md")} - set(there):
        stale.unlink()
    for path, text in there.items():
        _update(path, text)
    for name, text in _sections(root / "README.md").items():
        _update(parts / f"readme-{name}.md", text)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        _update(parts / name, _relinked((root / name).read_text()))
    measured = root / "benchmarks"
    results = (measured / "results.md").read_text().removeprefix("# Benchmarks\n").replace("\n## ", "\n### ")
    for picture in re.findall(r"!\[.*?\]\((\w+\.png)\)", results):
        shutil.copy(measured / picture, parts)
    _update(parts / "results.md", re.sub(r"\]\((\w+\.png)\)", r"](/_generated/\1)", results))
    for part in ("paper", "beyond"):
        _update(parts / f"statements-{part}.md", _statements(part))
    _update(parts / "cli.md", _help())
    _update(parts / "modules.md", _modules())


def _update(path: Path, text: str) -> None:
    """Writes a file only if it changed, so that pages that depend on it are not rebuilt."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _relinked(text: str) -> str:
    text = re.sub(r"\]\((notebooks/[\w./-]+)\)", r"](/\1)", text)
    text = re.sub(r"\]\(docs/([\w./-]+)\)", r"](/\1)", text)
    return re.sub(r"\]\(([\w./-]+)\)", lambda m: f"]({LINKS.get(m[1], m[1])})", text)


def _sections(readme: Path) -> dict[str, str]:
    """The sections of the README by the name of their heading; "top" is the text before the first."""
    text = re.sub(r"<!--.*?-->\n", "", readme.read_text())
    text = _relinked(re.sub(r"\n\[CONTRIBUTING\.md\].*\n$", "\n", text))  # the links of its foot
    top, *rest = re.split(r"^## ", text, flags=re.M)
    parts = {"top": top.split("\n", 1)[1]}
    for part in rest:
        heading, body = part.split("\n", 1)
        parts[re.sub(r"\W+", "-", heading.lower()).strip("-")] = body
    return parts


def _statements(part: str) -> str:
    """Every statement of a part with its verdict, as `ufm reproduce` measures it."""
    from ufm.reproduce import STATEMENTS

    lines = []
    for row in (row for row in STATEMENTS if row.part == part):
        lines += [f"### {row.title}", "", f"*{row.section}* · **{row.known}** · `--only {row.id}`", ""]
        lines += [f"The {'paper' if part == 'paper' else 'claim'}: {_plain(row.paper)}", ""]
        for formula in row.formulas:
            lines += [f"$$\n{formula}\n$$", ""]
        lines += [f"Measured: {_plain(row.measured)}", ""]
        if row.correction:
            lines += [f"**Correction.** {_plain(row.correction)}", ""]
        if row.undecided:
            lines += [f"**Undecided.** {_plain(row.undecided)}", ""]
        if row.remark:
            lines += [f"{_plain(row.remark)}", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text with the special characters of Markdown escaped."""
    return re.sub(r"([*_|<>$\[\]`\\])", r"\\\1", text)


def _help() -> str:
    """The help of every command, as the terminal shows it."""
    from ufm._cli import main

    context = click.Context(main, info_name="ufm", terminal_width=100, **main.context_settings)
    parts = [f"```text\n{main.get_help(context)}\n```\n"]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, terminal_width=100)
        parts.append(f"## ufm {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def _modules() -> str:
    rows = ["| module | what it is |", "|---|---|"]
    rows += [
        f"| {{doc}}`{name} <api/{name}>` | {_sentence(importlib.import_module(name))} |" for name in MODULES
    ]
    return "\n".join(rows) + "\n"


def _sentence(thing: Any) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    parts = re.split(r"(`+[^`]+`+)", re.split(r"(?<=\.)\s", text)[0])
    return "".join(part if i % 2 else _plain(part) for i, part in enumerate(parts))


def names(module: str) -> list[str]:
    """The public names of a module: its `__all__`, otherwise what it defines, without modules."""
    there = importlib.import_module(module)
    own = (
        name
        for name, thing in vars(there).items()
        if not name.startswith("_") and (getattr(thing, "__module__", None) == module or name.isupper())
    )
    every = getattr(there, "__all__", None) or own
    return [name for name in every if not isinstance(getattr(there, name), ModuleType)]


def fields(thing: Any) -> list[str]:
    """The names of the fields of a record."""
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing)]
    return list(getattr(thing, "_fields", ()))


def _page(module: str) -> str:
    """The reference page of a module: its docstring, a table, and every name."""
    there = importlib.import_module(module)
    kinds: dict[str, list[str]] = {"function": [], "class": [], "data": []}
    for name in names(module):
        thing = getattr(there, name)
        kinds["class" if inspect.isclass(thing) else "function" if callable(thing) else "data"].append(name)
    lines = [
        f"# {module}",
        "",
        "```{eval-rst}",
        f".. automodule:: {module}",
        "```",
        "",
        "| name | what it is |",
        "|---|---|",
    ]
    for name in (*kinds["function"], *kinds["class"]):
        lines.append(
            f"| {{py:obj}}`{name} <{_home(module, name)}.{name}>` | {_sentence(getattr(there, name))} |"
        )
    lines += ["", "```{eval-rst}"]
    for kind, found in kinds.items():
        for name in found:
            if _home(module, name) == module:
                lines += [f".. auto{kind}:: {module}.{name}", *_options(kind, getattr(there, name)), ""]
    return "\n".join([*lines, "```", ""])


def _home(module: str, name: str) -> str:
    """The module on whose page a class is described: the first of those that offer it."""
    thing = getattr(importlib.import_module(module), name)
    if not inspect.isclass(thing):
        return module
    offered = (place for place in MODULES if name in names(place))
    return next(place for place in offered if getattr(importlib.import_module(place), name) is thing)


def _options(kind: str, thing: Any) -> list[str]:
    if kind != "class":
        return ["   :no-value:"] if kind == "data" else []
    hidden = ", ".join(fields(thing))
    call = ["   :special-members: __call__"] if "__call__" in vars(thing) else []
    return ["   :members:", *call, *([f"   :exclude-members: {hidden}"] if hidden else [])]
