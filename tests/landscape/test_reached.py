"""Points that a solver reaches, for models other than two free factors."""

import numpy as np
import pytest

import ufm
from ufm import landscape, models


def test_features_that_are_not_negative_have_a_spurious_minimum():
    """Three classes and three neurons: one class at the origin, which is the optimum of two neurons."""
    prob = ufm.Problem.balanced("ce", K=3, d=3, n=1, lam_W=0.01, lam_H=0.01, model="nonnegative")
    found = landscape.reached_points(prob, starts=12)
    assert sum(point.hits for point in found.points) == 12
    assert found.points[0].objective == pytest.approx(found.optimum, abs=1e-10)
    assert found.points[1].objective == pytest.approx(0.1419861841, abs=1e-9)
    assert found.spurious == found.points[1:]
    for point in found.points:
        assert point.inertia.neg == 0
        assert float(prob(point.params)) == pytest.approx(point.objective, abs=1e-12)
    assert "f - theory" in repr(found)
    assert found.to_dict()["spurious"] == 1


def test_without_a_closed_form_the_lowest_point_is_the_reference():
    penalties = {"lam_W": 0.05, "lam_H": 0.03}
    prob = ufm.Problem.from_counts("ce", counts=[1, 6, 2], d=5, model="nonnegative", **penalties)
    found = landscape.reached_points(prob, starts=3)
    with pytest.raises(ufm.theory.NoClosedForm):
        ufm.theory.global_optimum(prob)
    assert found.optimum is None
    assert found.points[0] not in found.spurious
    assert np.all(np.diff([point.objective for point in found.points]) > 0)


@pytest.mark.parametrize(("wrong", "match"), [({"starts": 0}, "starts"), ({"seed": -1}, "seed")])
def test_numbers_of_starts_are_checked(wrong, match):
    prob = ufm.Problem.balanced("ce", K=3, d=3, n=1, model=models.spheres(2.0))
    with pytest.raises(ValueError, match=match):
        landscape.reached_points(prob, **wrong)
