"""A small subset of LaTeX as MathML, which browsers typeset without a network or a script."""

from __future__ import annotations

import html
import re

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?|\s+|.", re.DOTALL)

_LETTERS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "kappa": "κ", "lambda": "λ", "mu": "μ", "rho": "ρ",
    "sigma": "σ", "tau": "τ", "phi": "φ", "eta": "η", "Phi": "Φ", "Omega": "Ω", "infty": "∞", "ell": "ℓ",
    "top": "⊤", "nabla": "∇",
}  # fmt: skip
_OPERATORS = {
    "le": "≤", "ge": "≥", "ne": "≠", "in": "∈", "to": "→", "sum": "∑", "cdot": "·", "times": "×",
    "pm": "±", "ldots": "…", "forall": "∀", "Rightarrow": "⇒", "Leftrightarrow": "⇔",
    "approx": "≈", "succeq": "⪰", "prec": "≺", "ast": "∗", "{": "{", "}": "}", "notin": "∉",
}  # fmt: skip
_WORDS = ("min", "max", "log", "exp", "argmin", "rank", "inf", "tr")
_SPACES = {",": "0.17em", ";": "0.28em", "quad": "1em", "!": "0em"}
NO_BREAK = "\u00a0"  # MathML trims other spaces
#: take their scripts above and below
_UNDER = ("<mo>∑</mo>", "<mi>min</mi>", "<mi>max</mi>", "<mi>argmin</mi>")
#: what follows log, min, ... at a distance, unless it opens a bracket
_THIN = '<mspace width="0.17em"/>'
#: bars are fences on either side: as operators they would stand apart
_BAR = '<mo lspace="0" rspace="0" stretchy="false">{}</mo>'


def mathml(latex: str, *, block: bool = False) -> str:
    r"""LaTeX as a `<math>` element: letters, numbers, scripts, \frac, \sqrt, \bar, \hat, \text and symbols.

    Raises:
        ValueError: a command that is not known here.

    >>> mathml("x^2")
    '<math><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math>'
    """
    tokens = _TOKEN.findall(latex)
    tokens.reverse()
    inner, display = _row(tokens, None), ' display="block"' if block else ""
    return f"<math{display}>{inner}</math>"


def _row(tokens: list[str], end: str | None) -> str:
    parts = []
    while tokens:
        if tokens[-1] == end:
            tokens.pop()
            break
        if tokens[-1].isspace():
            tokens.pop()
            continue
        word = tokens[-1][1:] in _WORDS
        parts.append(_scripted(tokens) + (_THIN if word and not _opens(tokens) else ""))
    return f"<mrow>{''.join(parts)}</mrow>"


def _opens(tokens: list[str]) -> bool:
    """A bracket, a separator or nothing is next."""
    ahead = next((token for token in reversed(tokens) if not token.isspace()), "}")
    return ahead in ("(", ")", ",", "}", r"\left", r"\right")


def _scripted(tokens: list[str]) -> str:
    base = _atom(tokens)
    scripts: dict[str, str] = {}
    while tokens and tokens[-1] in ("_", "^"):
        mark = tokens.pop()
        scripts[mark] = _atom(tokens)
    if not scripts:
        return base
    under = base in _UNDER
    names = {"_": "munder", "^": "mover", "_^": "munderover"}
    if not under:
        names = {"_": "msub", "^": "msup", "_^": "msubsup"}
    kinds = "".join(sorted(scripts, reverse=False, key="_^".index))
    return f"<{names[kinds]}>{base}{''.join(scripts[k] for k in kinds)}</{names[kinds]}>"


def _atom(tokens: list[str]) -> str:
    while tokens and tokens[-1].isspace():
        tokens.pop()
    if not tokens:
        raise ValueError("latex: expected an expression, got the end")
    token = tokens.pop()
    if token == "{":
        return _row(tokens, "}")
    if token.startswith("\\"):
        return _command(token[1:], tokens)
    if token[0].isdigit():
        return f"<mn>{token}</mn>"
    if token == "|":
        return _BAR.format(token)
    if token.isalpha():
        return f"<mi>{token}</mi>"
    return f"<mo>{html.escape('′' if token == chr(39) else '−' if token == '-' else token)}</mo>"


def _command(name: str, tokens: list[str]) -> str:
    if name in _LETTERS:
        return f"<mi>{_LETTERS[name]}</mi>"
    if name == "|":
        return _BAR.format("‖")
    if name in _OPERATORS:
        return f"<mo>{_OPERATORS[name]}</mo>"
    if name in _WORDS:
        return f"<mi>{name}</mi>"
    if name in _SPACES:
        return f'<mspace width="{_SPACES[name]}"/>'
    if name in ("left", "right"):  # browsers stretch brackets by themselves
        return _atom(tokens)
    if name == "frac":
        return f"<mfrac>{_atom(tokens)}{_atom(tokens)}</mfrac>"
    if name == "sqrt":
        return f"<msqrt>{_atom(tokens)}</msqrt>"
    if name in ("bar", "hat"):
        return f"<mover>{_atom(tokens)}<mo>{'¯' if name == 'bar' else '^'}</mo></mover>"
    if name == "text":
        return f"<mtext>{html.escape(_text(tokens)).replace(' ', NO_BREAK)}</mtext>"
    raise ValueError(f"latex: expected a command that is known here, got \\{name}")


def _text(tokens: list[str]) -> str:
    if not tokens or tokens.pop() != "{":
        raise ValueError("latex: expected {...} after \\text")
    words = []
    while tokens and tokens[-1] != "}":
        words.append(tokens.pop())
    if tokens:
        tokens.pop()
    return "".join(words)
