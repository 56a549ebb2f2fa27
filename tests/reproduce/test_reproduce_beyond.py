"""The rows beyond the paper: their witnesses have the right gradients, and reach published values."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from ufm.reproduce import STATEMENTS, _depth, _features, _limits, _unequal
from ufm.reproduce import _direct as direct
from ufm.reproduce._direct import Layers

SMOOTHED = partial(direct.cross_entropy, smoothing=0.1)
SQUARES = partial(direct.squares, kappa=2.0, beta=1.5)
MERGED = partial(_limits._together, many=3)
CASES = {
    "two factors": Layers(direct.cross_entropy, (3, 1, 2), (4, 3), (0.02, 0.05), 0.1),
    "smoothed, free bias": Layers(SMOOTHED, (3, 1, 2), (2, 3), (0.02, 0.05), 0.0),
    "three layers": Layers(SQUARES, (1, 1, 2), (3, 4, 2, 3), (0.1, 0.2, 0.3, 0.4)),
    "ReLU": Layers(direct.squares, (1, 1, 1), (5, 4, 3), (0.1, 0.2, 0.3), relu=True),
    "other weights": Layers(direct.cross_entropy, (3.5, 1, 1), (3, 3), (0.1, 0.1), weights=(1, 2, 1)),
    "merged classes": Layers(MERGED, (4, 2, 3), (3, 3), (0.1, 0.1)),
}


def slopes_agree(f, x):
    direction = np.random.default_rng(1).normal(size=x.size)
    ahead, behind = f(x + 1e-6 * direction)[0], f(x - 1e-6 * direction)[0]
    return f(x)[1] @ direction == pytest.approx((ahead - behind) / 2e-6, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_layers_is_that_of_their_objective(name):
    P = CASES[name]
    assert slopes_agree(P.f, np.random.default_rng(0).normal(size=P.unknowns))


def test_the_gradient_of_unit_vectors_is_that_of_their_objective():
    x = np.random.default_rng(0).normal(size=24)
    assert slopes_agree(_features.on_spheres(3, 4, 5.0), x)
    assert slopes_agree(_features._in_angles(5.0), x[:6])


def test_a_given_classifier_leaves_the_gradient_of_the_rest():
    P = CASES["two factors"]
    x = np.random.default_rng(0).normal(size=P.unknowns)
    (_, W), _ = P.factors(x)
    rest = np.concatenate([x[:12], x[24:]])
    value, slope = P.given(W)(rest)
    assert value == P.f(x)[0]
    assert np.array_equal(slope, np.delete(P.f(x)[1], np.s_[12:24]))


def test_a_descent_with_bounds_meets_the_conditions_there():
    P = CASES["two factors"]
    nonnegative = np.arange(P.unknowns) < 12
    end = direct.within(P.f, np.random.default_rng(0).normal(size=P.unknowns), nonnegative)
    slope = P.f(end.x)[1]
    assert end.gradient < 1e-12
    assert (end.x[nonnegative] >= 0).all()
    assert np.abs(np.minimum(end.x, slope))[nonnegative].max() < 1e-12
    assert np.abs(slope[~nonnegative]).max() < 1e-12


def test_a_descent_ends_at_rounding():
    P = CASES["two factors"]
    assert direct.search(P.f, P.unknowns, [(0, 0.5)]).gradient < 1e-14


def found(outcome, words):
    """The instance that says these words."""
    (instance,) = (i for i in outcome.instances if words in i.what)
    return instance


def test_published_values():
    """To the digits in which they were found elsewhere."""
    square = found(_depth._below(4, 2, 0.2), "lower rank")
    assert square.details["f"] == pytest.approx(0.384942462, abs=1e-9)
    assert square.details["neural collapse"] == pytest.approx(0.389587914, abs=2e-9)
    free = found(_unequal._given((5, 3, 1, 1), 2.0, 0.01, True), "lengths")
    assert free.details["f"] == pytest.approx(0.257673, abs=1e-6)
    assert free.details["lengths"] == pytest.approx([1.2145, 1.7953, 2.6085, 2.6085], abs=1e-4)
    alone = found(_unequal._given((5, 3, 1, 1), 2.0, 0.01, False), "lengths")
    assert alone.details["f"] == pytest.approx(0.306922, abs=1e-6)
    minimum = found(_features._spurious(), "not above")
    assert minimum.details["f above the optimum"] == pytest.approx(0.461133, abs=1e-6)
    half = found(_features._half((40, 1, 1, 1), 0.02), "less f at a point")
    assert half.details["f"] == pytest.approx(0.254597, abs=1e-6)
    assert half.details["orthogonal frame"] == pytest.approx(0.272740, abs=1e-6)
    assert _limits._ratio(2, 2, 1.0).tables[0].rows[0][3] == "3.3804885"
    assert _limits._ratio(3, 7, 5.0).tables[0].rows[0][3].startswith("245.49693")
    assert _depth._ce(4, 3).tie()[0] == pytest.approx(0.44482696, abs=1e-8)
    assert _depth._ce(10, 5).strength(_depth._ce(10, 5).spin()) == pytest.approx(0.85552965, abs=1e-8)


def test_statements_beyond_the_paper_name_authors_and_a_year():
    beyond = [row for row in STATEMENTS if row.part == "beyond"]
    assert len(beyond) >= 10
    named = r"[A-Z]\w+ (et al\.|and [A-Z]\w+) 20\d\d|ours, beside"
    assert all(re.search(named, row.section) for row in beyond)
