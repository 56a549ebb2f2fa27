"""report.json -> report.html: one file without a script or a network, for phones, screens and paper."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from ufm.reproduce._mathml import mathml
from ufm.reproduce._prose import number, prose, text

#: rows of a table that the page shows; the rest is in report.json
SHOWN = 40

_CSS = Path(__file__).with_name("report.css")
#: colour and sign of a verdict: the word is always there as well
_TONES = {
    "holds": ("good", "✓"),
    "holds with a correction": ("part", "≈"),
    "fails": ("bad", "✗"),
    "error": ("bad", "!"),
    "unfinished": ("none", "…"),
}
#: an empty icon: a browser asks for none
_ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


def page(data: dict[str, Any], out: Path) -> str:
    """The report as one page; figures are read from `out` and embedded."""
    sections = "".join(_section(row, out) for row in data["rows"])
    style = _CSS.read_text(encoding="utf-8")
    body = _head(data) + _opening(data) + _unmeasured(data) + sections + _deep(data, out) + _foot(data)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="{_ICON}"><title>ufm reproduce</title>\n<style>{style}</style></head>\n'
        f'<body id="top">{body}</body></html>\n'
    )


def _badge(verdict: str) -> str:
    tone, sign = _TONES[verdict]
    return f'<span class="badge {tone}"><span aria-hidden="true">{sign}</span> {text(verdict)}</span>'


def _formula(latex: str) -> str:
    """Pieces between a comma and a wide space may go on lines of their own: phones are narrow."""
    pieces = latex.split(r" , \quad ")
    maths = " ".join(mathml(piece + (" ," if i + 1 < len(pieces) else "")) for i, piece in enumerate(pieces))
    return f'<div class="formula">{maths}</div>'


def _command(words: str) -> str:
    """One click or tap marks the whole command."""
    return f'<pre class="command"><code>{text(words)}</code></pre>'


# --- the opening ------------------------------------------------------------------------------------

_OBJECTIVE = (
    r"f(W, H, b) = \frac{1}{N} \sum_j L(W h_j + b, y_j)",
    r"+ \frac{\lambda_W}{2} \|W\|^2 + \frac{\lambda_H}{2} \|H\|^2 + \frac{\lambda_b}{2} \|b\|^2",
)


def _head(data: dict[str, Any]) -> str:
    total = sum(row["count"] for row in data["rows"])
    formula = " ".join(mathml(piece) for piece in _OBJECTIVE)
    return (
        "<header><h1>Neural collapse in the unconstrained feature model, measured</h1>"
        '<p class="lead">What Zhou et al., <em>Are All Losses Created Equal: A Neural Collapse Perspective'
        "</em> (NeurIPS 2022), say about</p>"
        f'<div class="formula">{formula}</div>'
        f"{_tally(data)}"
        f'<p class="soft">{total} measurements on this machine. Every verdict follows from the numbers below '
        "it: a statement holds if each deviation is within its tolerance.</p>"
        f"{_warnings(data)}</header>"
    )


def _tally(data: dict[str, Any]) -> str:
    items = (
        f'<li class="{_TONES[name][0]}"><strong>{n}</strong> '
        f'<span aria-hidden="true">{_TONES[name][1]}</span> {text(name)}</li>'
        for name, n in data["counts"].items()
        if n
    )
    return f'<ul class="tally">{"".join(items)}</ul>'


def _warnings(data: dict[str, Any]) -> str:
    parts = []
    missing = sum(row["missing"] for row in data["rows"])
    if missing:
        parts.append(
            f'<div class="note bad"><strong>Interrupted.</strong> {missing} jobs are missing. '
            f"What is finished is kept; to go on:{_command(data['command'])}</div>"
        )
    odd = [row["id"] for row in data["rows"] if not row["consistent"] and not row["missing"]]
    if odd:
        links = ", ".join(f'<a href="#{text(i)}">{text(i)}</a>' for i in odd)
        parts.append(f'<p class="note bad">Not what this package stands for: {links}.</p>')
    return "".join(parts)


def _opening(data: dict[str, Any]) -> str:
    names = ("statement", "verdict", "how it is measured", "deviation ≤ tolerance")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_opening_row(row) for row in data["rows"])
    return f'<table class="top"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _opening_row(row: dict[str, Any]) -> str:
    worst, counter = row["worst"], row["counterexample"]
    lines = []
    if counter is not None:
        lines.append(f"contradicted by <strong>{number(counter['deviation'])}</strong>")
    if worst is not None:
        lines.append(f"worst {number(worst['deviation'])} ≤ {number(worst['tolerance'])}")
    lines.append(f'<span class="soft">{row["count"]} measurements</span>')
    cells = (
        f'<td><a href="#{row["id"]}">{prose(row["title"])}</a>'
        f'<span class="soft where">{prose(row["section"])}</span></td>',
        f"<td>{_badge(row['verdict'])}</td>",
        f"<td>{prose(row['measured'])}</td>",
        f'<td class="numbers">{"<br>".join(lines)}</td>',
    )
    return f'<tr class="{_TONES[row["verdict"]][0]}">{"".join(cells)}</tr>'


def _unmeasured(data: dict[str, Any]) -> str:
    items = "".join(
        f"<p><strong>Not measured: {prose(entry['what'])}.</strong> {prose(entry['why'])}</p>"
        for entry in data["unmeasured"]
    )
    return f'<div class="note" id="unmeasured">{items}</div>' if items else ""


# --- a row --------------------------------------------------------------------------------------------


def _section(row: dict[str, Any], out: Path) -> str:
    parts = [
        f'<section id="{row["id"]}"><h2>{prose(row["title"])}</h2>',
        f'<p>{_badge(row["verdict"])} <span class="soft">{prose(row["section"])}</span></p>',
        f"<p><strong>The paper.</strong> {prose(row['paper'])}</p>",
        *map(_formula, row["formulas"]),
        f"<p><strong>Measured.</strong> {prose(row['measured'])}</p>",
    ]
    if row["correction"]:
        parts.append(f'<p class="note part"><strong>Corrected.</strong> {prose(row["correction"])}</p>')
    if row["remark"]:
        parts.append(f"<p><strong>Remark.</strong> {prose(row['remark'])}</p>")
    if row["missing"]:
        parts.append(f'<p class="note"><strong>Unfinished.</strong> {row["missing"]} jobs are missing.</p>')
    parts += [_counterexample(row), _worst(row), _errors(row)]
    parts += [_figure(figure, out) for figure in row["figures"]]
    parts += [_table(table) for table in row["tables"]]
    parts.append(
        f"<h3>This row alone</h3>{_command(row['command'])}"
        f'<p class="soft">{row["count"]} measurements, {row["seconds"]:.1f} s. '
        '<a class="up" href="#top">Back to the table</a></p></section>'
    )
    return "".join(parts)


def _counterexample(row: dict[str, Any]) -> str:
    found = row["counterexample"]
    if found is None:
        return ""
    whose = "Against the paper's words" if found["about"] == "paper" else "Against our own evidence"
    return (
        f'<div class="note bad"><strong>Counterexample.</strong> {whose}: {prose(found["what"])}: '
        f"{number(found['deviation'])}; allowed is {number(found['tolerance'])}.{_facts(found)}</div>"
    )


def _worst(row: dict[str, Any]) -> str:
    found = row["worst"]
    if found is None:
        return ""
    return (
        '<div class="note"><strong>Nearest to its tolerance, of those that hold.</strong> '
        f"{prose(found['what'])}: {number(found['deviation'])}; allowed is {number(found['tolerance'])}."
        f"{_facts(found)}</div>"
    )


def _facts(instance: dict[str, Any]) -> str:
    facts = json.dumps(instance["config"] | instance["details"], indent=1, ensure_ascii=False)
    return f"<details><summary>where</summary><pre><code>{text(facts)}</code></pre></details>"


def _errors(row: dict[str, Any]) -> str:
    return "".join(
        f'<details class="note bad"><summary>{text(error["job"])} crashed</summary>'
        f"<pre><code>{text(error['traceback'])}</code></pre></details>"
        for error in row["errors"]
    )


def _figure(figure: dict[str, Any], out: Path) -> str:
    picture = base64.b64encode((out / figure["png"]).read_bytes()).decode("ascii")
    return (
        f'<figure><div class="scroll"><img alt="{text(figure["caption"])}" '
        f'src="data:image/png;base64,{picture}"></div>'
        f"<figcaption>{prose(figure['caption'])}</figcaption></figure>"
    )


def _table(table: dict[str, Any]) -> str:
    head = "".join(f'<th scope="col">{prose(name)}</th>' for name in table["header"])
    shown = table["rows"][:SHOWN]
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in shown)
    more = len(table["rows"]) - len(shown)
    rest = f'<p class="soft">{more} rows more are in report.json.</p>' if more else ""
    return (
        f'<h3>{prose(table["title"])}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{rest}"
    )


def _cell(words: str) -> str:
    """A number stays in one line; a sentence need not."""
    kind = ' class="long"' if len(words) > 20 else ""
    return f"<td{kind}>{prose(words)}</td>"


def _deep(data: dict[str, Any], out: Path) -> str:
    if not data["deep"]:
        return ""
    figures = "".join(_figure(figure, out) for figure in data["deep"])
    return f'<section id="deep"><h2>Trained networks</h2>{figures}</section>'


def _foot(data: dict[str, Any]) -> str:
    facts = ", ".join(f"{text(name)} {text(value)}" for name, value in data["machine"].items())
    return (
        f"<footer><hr><p>The {data['level']} grid in {data['seconds']:.0f} s, {text(data['created'])}. "
        f"{facts}. All measurements: report.json. To repeat them:</p>{_command(data['command'])}</footer>"
    )
