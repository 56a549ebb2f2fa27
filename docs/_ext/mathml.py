"""Formulas as MathML, which browsers typeset by themselves."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

#: what the converter does not know
_SPELLED = {r"\argmin": r"\operatorname{argmin}"}
#: what stands under its operator where there is room
_UNDER = re.compile(r"\\(min|max|sup|inf)_(?:\{([^{}]*)\}|(\w))")


def _mathml(latex: str, display: str) -> str:
    for name, other in _SPELLED.items():
        latex = latex.replace(name, other)
    if display == "block":
        latex = _UNDER.sub(lambda m: rf"\underset{{{m[2] or m[3]}}}{{\{m[1]}}}", latex)
    return convert(latex, display=display)


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(_mathml(node.astext(), "block") + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
