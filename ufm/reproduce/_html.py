"""report.json -> report.html: one file without a script or a network, for phones, screens and paper."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from ufm.reproduce._mathml import mathml

#: rows of a table that the page shows; the rest is in report.json
SHOWN = 40

_CSS = Path(__file__).with_name("report.css")
_TONES = {"holds": "good", "holds with a correction": "part", "fails": "bad", "error": "bad"}
#: an empty icon: a browser asks for none
_ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


def page(data: dict[str, Any], out: Path) -> str:
    """The report as one page; figures are read from `out` and embedded."""
    sections = "".join(_section(row, out) for row in data["rows"])
    style = _CSS.read_text(encoding="utf-8")
    body = _head(data) + _opening(data) + sections + _deep(data, out) + _foot(data)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="{_ICON}"><title>ufm reproduce</title>\n<style>{style}</style></head>\n'
        f'<body id="top">{body}</body></html>\n'
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _badge(verdict: str) -> str:
    return f'<span class="badge {_TONES[verdict]}">{_text(verdict)}</span>'


def _number(value: float | None) -> str:
    return "not finite" if value is None else ("0" if value == 0 else f"{value:.1e}")


def _head(data: dict[str, Any]) -> str:
    total = sum(row["count"] for row in data["rows"])
    tally = ", ".join(f"{n} {_text(name)}" for name, n in data["counts"].items() if n)
    odd = [row["id"] for row in data["rows"] if not row["consistent"]]
    note = ""
    if odd:
        links = ", ".join(f'<a href="#{_text(i)}">{_text(i)}</a>' for i in odd)
        note = f'<p class="note bad">Not what this package stands for: {links}.</p>'
    return (
        "<header><h1>Neural collapse in the unconstrained feature model, measured</h1>"
        "<p>Statements of Zhou et al., <em>Are All Losses Created Equal: A Neural Collapse Perspective</em> "
        f"(NeurIPS 2022), on this machine: {tally}; {total} instances.</p>"
        f'<div class="formula">{mathml(_OBJECTIVE, block=True)}</div>'
        '<p class="soft">Every verdict follows from the numbers below it: a statement holds if each '
        "deviation is within its tolerance.</p>"
        f"{note}</header>"
    )


_OBJECTIVE = (
    r"f(W, H, b) = \frac{1}{N} \sum_j L(W h_j + b, y_j) + \frac{\lambda_W}{2} \|W\|^2 "
    r"+ \frac{\lambda_H}{2} \|H\|^2 + \frac{\lambda_b}{2} \|b\|^2"
)


def _opening(data: dict[str, Any]) -> str:
    names = ("statement", "measured", "instances", "worst deviation", "verdict")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_opening_row(row) for row in data["rows"])
    return f'<table class="top"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _opening_row(row: dict[str, Any]) -> str:
    worst, counter = row["worst"], row["counterexample"]
    deviation = "-" if worst is None else f"{_number(worst['deviation'])} (of {_number(worst['tolerance'])})"
    against = "" if counter is None else f"; contradicted by {_number(counter['deviation'])}"
    cells = (
        f'<td><a href="#{row["id"]}">{_text(row["title"])}</a><br>'
        f'<span class="soft">{_text(row["section"])}</span></td>',
        f"<td>{_text(row['measured'])}</td>",
        f'<td class="num" data-name="instances">{row["count"]}</td>',
        f'<td data-name="worst deviation">{deviation}{against}</td>',
        f"<td>{_badge(row['verdict'])}</td>",
    )
    return f"<tr>{''.join(cells)}</tr>"


def _section(row: dict[str, Any], out: Path) -> str:
    formulas = "".join(f'<div class="formula">{mathml(f, block=True)}</div>' for f in row["formulas"])
    parts = [
        f'<section id="{row["id"]}"><h2>{_text(row["title"])}</h2>',
        f'<p>{_badge(row["verdict"])} <span class="soft">{_text(row["section"])}</span></p>',
        f"<p><strong>The paper.</strong> {_text(row['paper'])}</p>{formulas}",
        f"<p><strong>Measured.</strong> {_text(row['measured'])}</p>",
    ]
    if row["correction"]:
        parts.append(f'<p class="note part"><strong>Corrected.</strong> {_text(row["correction"])}</p>')
    if row["remark"]:
        parts.append(f"<p><strong>Remark.</strong> {_text(row['remark'])}</p>")
    parts += [_counterexample(row), _worst(row), _errors(row)]
    parts += [_figure(figure, out) for figure in row["figures"]]
    parts += [_table(table) for table in row["tables"]]
    parts.append(
        f"<h3>This row alone</h3><pre><code>{_text(row['command'])}</code></pre>"
        f'<p class="soft">{row["count"]} instances, {row["seconds"]:.1f} s. '
        '<a class="up" href="#top">Back to the table</a></p></section>'
    )
    return "".join(parts)


def _counterexample(row: dict[str, Any]) -> str:
    found = row["counterexample"]
    if found is None:
        return ""
    whose = "The paper's words" if found["about"] == "paper" else "Our own evidence"
    return (
        f'<div class="note bad"><strong>Counterexample.</strong> {whose}: {_text(found["what"])} = '
        f"{_number(found['deviation'])}, allowed {_number(found['tolerance'])}.{_facts(found)}</div>"
    )


def _worst(row: dict[str, Any]) -> str:
    found = row["worst"]
    if found is None:
        return ""
    return (
        '<div class="note"><strong>Nearest to its tolerance, of those that hold.</strong> '
        f"{_text(found['what'])}: {_number(found['deviation'])}, allowed {_number(found['tolerance'])}."
        f"{_facts(found)}</div>"
    )


def _facts(instance: dict[str, Any]) -> str:
    facts = json.dumps(instance["config"] | instance["details"], indent=1, ensure_ascii=False)
    return f"<details><summary>where</summary><pre><code>{_text(facts)}</code></pre></details>"


def _errors(row: dict[str, Any]) -> str:
    return "".join(
        f'<details class="note bad"><summary>{_text(error["job"])} crashed</summary>'
        f"<pre><code>{_text(error['traceback'])}</code></pre></details>"
        for error in row["errors"]
    )


def _figure(figure: dict[str, Any], out: Path) -> str:
    picture = base64.b64encode((out / figure["png"]).read_bytes()).decode("ascii")
    caption = _text(figure["caption"])
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: dict[str, Any]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table["header"])
    shown = table["rows"][:SHOWN]
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in shown)
    more = len(table["rows"]) - len(shown)
    rest = f'<p class="soft">{more} rows more are in report.json.</p>' if more else ""
    return (
        f'<h3>{_text(table["title"])}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{rest}"
    )


def _deep(data: dict[str, Any], out: Path) -> str:
    if not data["deep"]:
        return ""
    figures = "".join(_figure(figure, out) for figure in data["deep"])
    return f'<section id="deep"><h2>Trained networks</h2>{figures}</section>'


def _foot(data: dict[str, Any]) -> str:
    facts = ", ".join(f"{_text(name)} {_text(value)}" for name, value in data["machine"].items())
    return (
        f"<footer><hr><p>{_text(data['command'])}: {data['level']} grid, {data['seconds']:.0f} s, "
        f"{_text(data['created'])}. {facts}. All instances: report.json.</p></footer>"
    )
