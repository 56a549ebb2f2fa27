"""Formulas and words of the report's page have the structure that a browser needs to typeset them."""

from __future__ import annotations

import html
import re

import pytest

from ufm.reproduce import STATEMENTS
from ufm.reproduce._formulas import mathml
from ufm.reproduce._prose import prose


def test_words_as_mathematics():
    for words, shown in (
        ("the sum of p_k >= 0.21", "the sum of p<sub>k</sub> ≥ 0.21"),
        ("|Z|_F^2 < sum_k h_{k,i} w^k", "|Z|<sub>F</sub>² &lt; ∑<sub>k</sub> h<sub>k,i</sub> w<sup>k</sup>"),
        ("row_norms of the paper's alphabet", "row_norms of the paper's alphabet"),
    ):
        assert prose(words) == shown


@pytest.mark.parametrize(
    ("latex", "shown"),
    [
        (r"K^{-1}", "<msup><mi>K</mi><mrow><mo>−</mo><mn>1</mn></mrow></msup>"),
        (r"\frac{1}{2}", "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>"),
        (r"x^2_k", "<msubsup><mi>x</mi><mi>k</mi><mn>2</mn></msubsup>"),
        (r"\sum_j x", "<munder><mo>∑</mo><mi>j</mi></munder><mi>x</mi>"),
        (r"\min_t x", "<munder><mo>min</mo><mi>t</mi></munder><mi>x</mi>"),
        (r"a < b", "<mi>a</mi><mo><</mo><mi>b</mi>"),
        (r"a \pm b", "<mi>a</mi><mo>±</mo><mi>b</mi>"),
        (r"A \succeq 0", "<mi>A</mi><mo>⪰</mo><mn>0</mn>"),
        (r"\left( \sum_j x \right)", "<munder><mo>∑</mo><mi>j</mi></munder><mi>x</mi>"),
        (r"\ell'(a)", "<mi>ℓ</mi><mo>′</mo>"),
        (r"f^\ast", "<msup><mi>f</mi><mo>∗</mo></msup>"),
        (r"\log p", '<mi>log</mi><mspace width="0.167em" /><mi>p</mi>'),
        (r"\log ( p )", '<mi>log</mi><mo stretchy="false">(</mo><mi>p</mi><mo stretchy="false">)</mo>'),
        (r"\text{for } k", "<mtext>for\xa0</mtext><mi>k</mi>"),
    ],
)
def test_a_formula_has_the_structure_that_tex_gives_it(latex, shown):
    assert shown in html.unescape(mathml(latex))


def test_a_formula_that_cannot_be_typeset_is_refused():
    with pytest.raises(ValueError, match=r"got \\unknown in"):
        mathml(r"\unknown")
    for malformed in (r"x_", r"\left( x", "{"):
        with pytest.raises(ValueError, match="expected a well-formed formula"):
            mathml(malformed)


def test_bars_of_the_statements_are_brackets():
    """A bare | is typeset as a relation, with space on either side."""
    for row in STATEMENTS:
        for formula in row.formulas:
            assert not re.search(r"(?<!\\)(?<!left)(?<!right)\|", formula)
