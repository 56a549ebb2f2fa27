"""LaTeX formulas as MathML, which browsers typeset without a script: latex2mathml with a few corrections."""

from __future__ import annotations

import re
from typing import Literal

from latex2mathml.converter import convert
from latex2mathml.exceptions import (
    DenominatorNotFoundError,
    ExtraLeftOrMissingRightError,
    MissingSuperScriptOrSubscriptError,
    NoAvailableTokensError,
)

#: In a displayed formula TeX sets subscripts below these operators; the converter needs `\limits` to do so.
_LIMITS = re.compile(r"\\(argmin|min|max|sup|inf|sum)_")
#: Operators that the converter marks as identifiers, so that no space would be set around them.
_OPERATORS = re.compile(r"<mi>(&#x000B1;|&#x02AB0;)</mi>")  # \pm, \succeq
#: A prime as a superscript. Its character is raised already.
_PRIME = re.compile(r"<msup>(<mi>[^<]*</mi>)<mi>&#x02032;</mi></msup>")
#: A function's name and an argument without brackets, between which TeX sets a thin space.
_FUNCTIONS = re.compile(r"(<mi>(?:log|exp|det|dim|ker)</mi>)(?=<m(?:i|n|sub|sup|subsup|frac|sqrt)>)")
_MALFORMED = (
    *(DenominatorNotFoundError, ExtraLeftOrMissingRightError),
    *(MissingSuperScriptOrSubscriptError, NoAvailableTokensError),
)


def mathml(latex: str, display: Literal["inline", "block"] = "block") -> str:
    r"""A LaTeX formula as a `<math>` element.

    Bars that enclose an expression have to be written `\left| t \right|`: a bare `|` is set as a relation,
    with space on either side.

    Raises:
        ValueError: a formula that is malformed, or has a command that the converter does not know.

    >>> mathml(r"\min_a x^2")[71:-14]
    '<munder><mo>min</mo><mi>a</mi></munder><msup><mi>x</mi><mn>2</mn></msup>'
    """
    spelled = _LIMITS.sub(r"\\\1\\limits_", latex) if display == "block" else latex
    try:
        found = convert(spelled, display=display)
    except _MALFORMED as error:
        reason = type(error).__name__
        raise ValueError(f"latex: expected a well-formed formula, got {latex!r} ({reason})") from error
    unknown = re.search(r"\\[A-Za-z]+", found)
    if unknown:
        raise ValueError(f"latex: expected commands that latex2mathml knows, got {unknown[0]} in {latex!r}")
    found = _PRIME.sub(r"\1<mo>&#x02032;</mo>", found)
    found = _OPERATORS.sub(r"<mo>\1</mo>", found).replace("&#x0002A;", "&#x02217;")  # an asterisk, not raised
    return _FUNCTIONS.sub(r'\1<mspace width="0.167em" />', found)
