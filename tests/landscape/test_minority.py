"""Minority collapse over imbalance and penalties: theory's curves, and the problems that were solved."""

import json

import numpy as np
import pytest
from tolerances import close

import ufm
from ufm.landscape import COLLAPSES, minority_diagram

R = [1.5, 5.0, 60.0]


@pytest.fixture(scope="module")
def diagram():
    return minority_diagram("ce", K_A=2, K_B=3, R=R, solved=3)


def test_the_curves_are_theory_s_thresholds(diagram):
    close(diagram.x_zero, np.sqrt(R))
    close(diagram.x_majority, np.sqrt(R))
    close(diagram.x_minority, np.ones(3))
    assert abs(diagram.x_means[1] - 1.348581) < 1e-6  # of another program
    counts = [120] * 2 + [2] * 3
    close(diagram.x_means[2] * 2**0.5, theory_of(counts).x_means, ulps=256)


def theory_of(counts, **options):
    return ufm.theory.threshold(ufm.Problem.from_counts("ce", counts=counts, **options))


def test_phases_change_at_the_curves(diagram):
    x = diagram.x[:, None]
    above = [x >= curve for curve in (diagram.x_minority, diagram.x_means, diagram.x_zero)]
    np.testing.assert_array_equal(diagram.phase, np.sum(above, axis=0))


def test_solved_problems_show_the_phase_of_theory(diagram):
    """In each phase, and one per cent on either side of every boundary."""
    solved = diagram.solved
    assert set(solved.expected) == {0, 1, 2, 3}
    np.testing.assert_array_equal(solved.phase, solved.expected)
    assert np.abs(solved.above).max() < 1e-12
    assert len(solved.x) >= 27


def test_weights_move_the_collapse_to_the_majority():
    """Inverse frequencies: w_k sqrt(n_k) is N/(K sqrt(n_k)), so that the majority merges at smaller x."""
    found = minority_diagram("ls", K_A=2, K_B=3, R=[5.0], bias=False, power=1.0, solved=1, alpha=0.2)
    weight = np.array([13.0 / 25.0, 13.0 / 5.0])
    close(found.x_majority, [0.8 * weight[0] * 5**0.5])
    close(found.x_minority, [0.8 * weight[1]])
    np.testing.assert_array_equal(found.solved.phase, found.solved.expected)
    equal = minority_diagram("ce", K_A=2, K_B=3, R=[5.0], x=[1.0], power=0.5, solved=0)
    close(equal.x_majority, equal.x_minority)


def test_the_figure_and_the_json(diagram):
    axes = diagram.plot().axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    close(lines["minority merges"], np.column_stack([R, np.ones(3)]))
    shown = sum(len(lines[f"solved, in phase {name}"]) for name in COLLAPSES)
    assert shown == len(diagram.solved.x)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "majority merges" not in lines  # it is where everything vanishes
    data = json.loads(json.dumps(diagram.to_dict(), allow_nan=False))
    assert data["solved"]["phase"] == data["solved"]["expected"]
    wrong = diagram.solved._replace(phase=diagram.solved.phase[::-1])
    labels = [line.get_label() for line in diagram._replace(solved=wrong).plot().axes[0].get_lines()]
    assert any("against theory" in label for label in labels)


def test_one_class_in_the_majority_has_no_merging():
    found = minority_diagram("ce", K_A=1, K_B=3, R=[4.0], solved=0)
    assert np.isnan(found.x_majority).all()
    close(found.x_zero, found.x_means, ulps=64)
    assert "III" not in {COLLAPSES[i] for i in np.ravel(found.phase)}
    assert found.to_dict()["x_majority"] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"R": [1.0, 2.0]}, "R: expected numbers > 1.0"),
        ({"R": [3.0, 2.0]}, "R: expected a vector of finite, increasing"),
        ({"x": [0.0, 1.0]}, "x: expected numbers > 0"),
        ({"K_A": 0}, "K_A: expected an integer >= 1"),
        ({"power": np.inf}, "power: expected a finite number"),
        ({"loss": "fl"}, "known for convex losses"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        minority_diagram(**{"loss": "ce", "R": [2.0], "solved": 0} | options)
