"""Masked arrays of numpy: masked values are refused wherever an array is accepted."""

import numpy as np
import pytest
from test_metrics import D, K, assert_close, each_way, instance

from ufm import Params, Problem
from ufm.metrics import Stream, neural_collapse, of_params


def masked(a, *index):
    """The array with one entry masked, under which lies a wrong value."""
    a = np.ma.array(a, copy=True)
    a[index] = np.ma.masked
    return a


GIVEN = ("features", "labels", "W", "b")


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("form", ["array", "list", "hard"])
def test_masked_values_are_refused(name, form):
    given = dict(zip(GIVEN, instance(), strict=True))
    array = masked(given[name], 3)
    if form == "hard":
        array.harden_mask()
    given[name] = list(array) if form == "list" and array.ndim == 2 else array
    with pytest.raises(ValueError, match=rf"{name}: .*without masked values, got .* masked of \d+; leave"):
        neural_collapse(*given.values())


MASKED = {
    "update, features": ("features", lambda s, X, y, W, b: s.update(masked(X, 1, 2), y)),
    "update, labels": ("labels", lambda s, X, y, W, b: s.update(X, masked(y, 0))),
    "update, mask": ("mask", lambda s, X, y, W, b: s.update(X, y, mask=masked(y >= 0, 0))),
    "second pass, W": ("W", lambda s, X, y, W, b: s.second_pass(masked(W, 0, 0))),
    "second pass, b": ("b", lambda s, X, y, W, b: s.second_pass(W, masked(b, 0))),
    "counter, features": ("features", lambda s, X, y, W, b: s.second_pass(W, b).update(masked(X, 5))),
    "result, W": ("W", lambda s, X, y, W, b: s.result(masked(W, 1))),
    "params, H": ("H", lambda s, X, y, W, b: of_params(Params(W, masked(X.T, 0, 0), b), y)),
    "params, labels": ("labels", lambda s, X, y, W, b: of_params(Params(W, X.T, b), masked(y, 1))),
    "params, W": ("W", lambda s, X, y, W, b: of_params(Params(masked(W, 1), X.T, b), y)),
    "problem": ("labels", lambda s, X, y, W, b: Problem("ce", masked(y, 2), d=D)),
    "problem, list": ("labels", lambda s, X, y, W, b: Problem("ce", [*y, np.ma.masked], d=D)),
}


@pytest.mark.parametrize("case", MASKED)
def test_masked_values_are_refused_everywhere(case):
    name, act = MASKED[case]
    X, y, W, b = instance()
    with pytest.raises(ValueError, match=rf"^{name}: expected an array without masked values.*[^\n]$"):
        act(Stream(K, D).update(X, y), X, y, W, b)


def test_a_masked_array_without_masked_values_is_an_array():
    X, y, W, b = instance()
    want = neural_collapse(X, y, W, b)
    for mask in (np.ma.nomask, False):
        given = [np.ma.array(a, mask=mask) for a in (X, y, W, b)]
        assert_close(neural_collapse(*given), want)
        assert_close(next(iter(each_way(*given))), want)
        stream = Stream(K, D).update(*given[:2], mask=np.ma.array(y >= 0, mask=mask))
        assert_close(stream.result(*given[2:]), want._replace(nc4=None))
        assert_close(of_params(Params(given[2], given[0].T, given[3]), given[1]), want)
        assert_close(neural_collapse(list(given[0]), *given[1:]), want)
        assert np.array_equal(Problem("ce", given[1], d=D).labels, y)
