"""Sentences and numbers as HTML: lam_W with a subscript, >= as one sign, 3e-16 as a power of ten."""

from __future__ import annotations

import html
import re

_GREEK = {
    "lam": "λ", "gamma": "γ", "phi": "ϕ", "alpha": "α", "beta": "β", "kappa": "κ", "tau": "τ", "rho": "ρ",
    "sigma": "σ", "sqrt": "√",
}  # fmt: skip
_SIGNS = {
    "&gt;=": "≥", "&lt;=": "≤", "!=": "≠", "^2": "²", "^-1": "⁻¹", " - ": " − ",
    "|_*": "|<sub>*</sub>", "|_F^2": "|<sub>F</sub>²",
}  # fmt: skip
_NAMES = "|".join(_GREEK)
_BASES = _GREEK | {"sum": "∑"}  # an operator only where it has a subscript
#: a letter or a Greek name with a subscript or a superscript: h_{k,i}, lam_W, c_thr, w^k
_SCRIPT = re.compile(
    rf"(?<![A-Za-z_])({_NAMES}|sum|[A-Za-z])([_^])(?:\{{([^}}]*)\}}|([A-Za-z]+|[0-9]+))(?![A-Za-z_])"
)
_NAME = re.compile(rf"(?<![A-Za-z_])({_NAMES})(?![A-Za-z_])")
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))


def prose(words: str) -> str:
    """A sentence whose plain-text mathematics is written with HTML signs and scripts.

    >>> prose("sqrt(lam_W lam_H) >= c_thr")
    '√(λ<sub>W</sub> λ<sub>H</sub>) ≥ c<sub>thr</sub>'
    """
    escaped = html.escape(words, quote=False)
    signed = _SIGN.sub(lambda found: _SIGNS[found[0]], escaped)
    return _NAME.sub(lambda found: _GREEK[found[1]], _SCRIPT.sub(_script, signed))


def _script(found: re.Match[str]) -> str:
    base, mark, braced, plain = found.groups()
    tag = "sub" if mark == "_" else "sup"
    return f"{_BASES.get(base, base)}<{tag}>{braced or plain}</{tag}>"


def number(value: float | None) -> str:
    """Two digits, with a power of ten for small and large numbers, and without line breaks.

    >>> number(3.4e-16), number(0.19), number(1e-12), number(0.0)
    ('<span class="n">3.4 · 10<sup>−16</sup></span>', '<span class="n">0.19</span>', \
'<span class="n">10<sup>−12</sup></span>', '<span class="n">0</span>')
    """
    if value is None:
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f'<span class="n">{value:{".2g" if abs(value) < 100 else ".0f"}}</span>'
    digits, power = f"{value:.1e}".split("e")
    factor = "" if digits == "1.0" else f"{digits} · "
    return f'<span class="n">{factor}10<sup>{int(power)}</sup></span>'.replace("-", "−")
