"""Spurious minima counted by width, against the values of the known ones."""

import numpy as np
import pytest

import ufm
from ufm import landscape


@pytest.fixture(scope="module")
def found():
    prob = ufm.Problem.balanced("ce", K=3, n=1, lam_W=0.01, lam_H=0.01, model="nonnegative")
    return landscape.minima_by_width(prob, [2, 3], starts=8)


def test_the_spurious_minimum_is_the_optimum_of_one_dimension_less(found):
    assert found.known == (False, True)
    best, other = found.minima(1)[:2]
    assert best[0] == pytest.approx(found.best[1], rel=1e-12)
    assert best[0] == pytest.approx(0.132030, abs=5e-7)
    assert other[0] == pytest.approx(0.1419861841, abs=5e-11)
    assert found.minima(0)[0][0] == pytest.approx(other[0], rel=1e-10)
    assert found.share[1] == best[1] / 8
    assert 0 < found.share[1] < 1


def test_objectives_that_did_not_converge_do_not_count():
    objectives = np.array([[1.0, 1.0 + 1e-12, 2.0, np.nan]])
    prob = ufm.Problem.balanced("ce", K=3, n=1, model="nonnegative")
    record = landscape.MinimaByWidth(prob, np.array([5]), objectives, np.array([1.0]), (True,))
    assert record.share.tolist() == [2 / 3]
    assert record.minima(0) == [(1.0, 2), (2.0, 1)]


def test_it_prints_and_plots(found):
    text = repr(found)
    assert "share at f*" in text
    assert "lowest found" in text
    figure = found.plot()
    assert [ax.get_xlabel() for ax in figure.axes] == ["feature dimension $d$"] * 2


def test_bad_input():
    prob = ufm.Problem.balanced("ce", K=3, n=1, model="deep")
    with pytest.raises(ValueError, match="model: expected two factors"):
        landscape.minima_by_width(prob, [3])
    with pytest.raises(ValueError, match="widths: expected an integer >= 1"):
        landscape.minima_by_width(ufm.Problem.balanced("ce", K=3, n=1), [0])
