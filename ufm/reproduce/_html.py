"""report.json -> report.html: one file without a script or a network, for phones, screens and paper."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ufm.reproduce._formulas import mathml
from ufm.reproduce._prose import number, prose

#: The number of rows of a table that the page shows; report.json has them all.
SHOWN = 40
#: Each verdict's colour, a class of report.css, and its sign. The page always has the word as well.
_TONES = {
    "holds": ("good", "✓"),
    "holds with a correction": ("part", "≈"),
    "fails": ("bad", "✗"),
    "open": ("none", "?"),
    "error": ("bad", "!"),
    "unfinished": ("none", "…"),
}
#: Each part of the report: its name, its heading and what it is about.
_PARTS = (
    ("paper", "The paper", "The theorems, lemmas and figures of Zhou et al. 2022, and what we add to them."),
    (
        "beyond",
        "Beyond the paper",
        "What others state about this model and the models that extend it: unequal counts, a given or a deep "
        "classifier, features on a sphere or not negative, and fewer dimensions than classes.",
    ),
)
#: The objective in two parts, between which a narrow screen may break the line.
_OBJECTIVE = (
    r"f(W, H, b) = \frac{1}{N} \sum_j L(W h_j + b, y_j)",
    r"+ \frac{\lambda_W}{2} \|W\|^2 + \frac{\lambda_H}{2} \|H\|^2 + \frac{\lambda_b}{2} \|b\|^2",
)


def page(data: Mapping[str, Any], out: Path) -> str:
    """The report as one page, by the template report.html.jinja.

    Args:
        data: what report.json holds.
        out: the folder of the report, whose figures are embedded.
    """
    template = _environment(out).get_template("report.html.jinja")
    constants = {"objective": _OBJECTIVE, "parts": _PARTS, "shown": SHOWN}
    return template.render(data, again=data["command"], **constants) + "\n"


def _environment(out: Path) -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    made.filters["sign"] = lambda verdict: _TONES[verdict][1]
    made.filters["tone"] = lambda verdict: _TONES[verdict][0]
    made.filters["embedded"] = lambda png: _embedded(out / png)
    made.filters["facts"] = _facts
    made.filters["parts"] = _parts
    for markup in (mathml, number, prose):  # what these three return is not escaped again
        made.filters[markup.__name__] = lambda value, markup=markup: Markup(markup(value))
    return made


def _embedded(png: Path) -> str:
    """A figure as an address that contains it."""
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode('ascii')}"


def _parts(latex: str) -> list[str]:
    """The formulas that a comma and a wide space separate: a narrow screen may break the line there."""
    return latex.replace(r" , \quad ", " ,\n").split("\n")


def _facts(instance: dict[str, dict[str, object]]) -> str:
    """The configuration and the details of an instance."""
    return json.dumps(instance["config"] | instance["details"], indent=1, ensure_ascii=False)
