"""The low-rank bias of depth: crossings against mpmath and published numbers, the record and its figure."""

import json

import mpmath
import numpy as np
import pytest

import ufm
from ufm import figures, landscape, theory


@pytest.fixture(scope="module")
def diagram():
    return landscape.low_rank_diagram("ce", K=[3, 4], share=[0.05, 0.6, 0.9, 1.0, 1.2])


def _branch(loss, singular, margin, c, q=3):
    """The lowest value on a branch t -> loss(t) + (q/2) c sum singular (t scaled)^(2/q), near a margin."""

    def slope(t):
        return mpmath.diff(loss, t) + c * singular * t ** (mpmath.mpf(2) / q - 1)

    t = mpmath.findroot(slope, margin)
    return loss(t) + mpmath.mpf(q) / 2 * c * singular * t ** (mpmath.mpf(2) / q)


def _crossing(K):
    """C1 of cross-entropy with two layers: of the simplex with a pair (K = 3) or with two pairs (K = 4)."""
    log, exp = mpmath.log, mpmath.exp

    def simplex(t):
        return log(1 + (K - 1) * exp(-t))

    def pair(t):
        return mpmath.mpf(2) / 3 * log(1 + exp(-t) + exp(-t / 2)) + log(3) / 3

    def square(t):
        return log(1 + exp(-t) + 2 * exp(-t / 2))

    other, rank = (pair, 1) if K == 3 else (square, 2)
    prob = ufm.Problem.balanced("ce", K=K, d=K, n=1, bias=False, model=ufm.models.deep(2))
    tie = theory.threshold(prob).C_tie
    low, high = (0.93, 0.935) if K == 3 else (0.078, 0.081)

    def start(share):
        c = share * tie / (K - 1)
        return theory.global_optimum(prob.replace(lam_W=c, lam_H=c)).margin

    margins = start(low), 2 * start(high)  # of figures of pairs the margin to the other classes is t/2

    def difference(share):
        c = share * mpmath.mpf(tie) / (K - 1)
        return _branch(simplex, K - 1, margins[0], c) - _branch(other, rank, margins[1], c)

    return float(mpmath.findroot(difference, (low, high), tol=1e-22))


@pytest.mark.parametrize("row", [0, 1])
def test_neural_collapse_ends_where_two_branches_cross(diagram, row):
    with mpmath.workdps(25):
        np.testing.assert_allclose(diagram.C1[row], _crossing(int(diagram.K[row])), rtol=1e-11)


def test_the_published_crossings(diagram):
    """C1 and C0 to six digits; with four classes the last state is one of unequal steps on a line."""
    np.testing.assert_allclose(diagram.C1, [0.933523, 0.079315], atol=6e-7)
    np.testing.assert_allclose(diagram.C0, [1.044924, 1.081054], atol=6e-7)
    deeper = landscape.low_rank_diagram("ce", K=4, layers=[3, 4], share=[0.5, 1.1, 1.3])
    assert np.isnan(deeper.C1).all()
    np.testing.assert_allclose(deeper.C0, [1.161382, 1.222922], atol=6e-7)
    assert deeper.axis == "layers"
    free = landscape.low_rank_diagram("ce", K=3, share=[0.5, 1.0, 1.2], bias=True)
    np.testing.assert_allclose([free.C1[0], free.C0[0]], [0.867176, 1.060284], atol=6e-7)


def test_cells_are_the_optimum_of_theory(diagram):
    np.testing.assert_array_equal(diagram.rank, [[2, 2, 2, 1, 0], [3, 2, 2, 2, 0]])
    prob = diagram.problem
    c = diagram.C_tie[0] / 2 * diagram.share[3]
    best = theory.global_optimum(prob.replace(lam_W=c, lam_H=c))
    np.testing.assert_allclose(diagram.optimum[0, 3], best.objective, rtol=1e-14)
    assert diagram.names[0][3] == best.structure
    assert np.all(diagram.optimum <= diagram.collapse + 1e-14)
    np.testing.assert_allclose(diagram.collapse[:, -1], np.log([3, 4]), rtol=1e-15)


def test_it_prints_draws_and_is_json(diagram):
    text = repr(diagram)
    assert "0.93352" in text
    assert "2 simplex ETFs of 2 classes" in text
    data = json.loads(json.dumps(diagram.to_dict(), allow_nan=False))
    assert data["rank"] == diagram.rank.tolist()
    figure = diagram.plot()
    numbers = [t.get_text() for t in figure.axes[0].texts]
    assert numbers == ["2", "1", "0", "3", "2", "0"]
    assert figures.plot_low_rank(diagram) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"K": [3, 4], "layers": [2, 3]}, "K, layers: expected a sequence for one of them at most"),
        ({"K": 2}, "K: expected an integer >= 3, got 2"),
        ({"layers": 1}, "layers: expected an integer >= 2, got 1"),
        ({"share": [0.5, 0.4]}, "share: expected a vector of finite, increasing numbers"),
        ({"share": [0.0, 0.4]}, "share: expected numbers > 0"),
        ({"loss": "mse"}, "loss: expected one of differences of logits"),
    ],
)
def test_what_has_no_diagram_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        landscape.low_rank_diagram(**arguments)
