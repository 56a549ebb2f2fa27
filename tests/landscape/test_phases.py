"""Phase diagrams: known transitions, known counts of spurious minima, and what the figure shows."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
from tolerances import close

import ufm
from ufm import Params, losses
from ufm.landscape import phases
from ufm.landscape.phases import ENDS, PHASES, PhaseDiagram, phase_diagram


def names(diagram: PhaseDiagram) -> list[list[str]]:
    return [[PHASES[i] for i in row] for row in diagram.phase]


@pytest.fixture(scope="module")
def smoothing() -> PhaseDiagram:
    """alpha = 0 is cross-entropy; C is 3 c, the transition at 3 (1 - alpha)/4."""
    return phase_diagram(
        "ls", K=4, d=5, n=2, ratio=4.0, alpha=np.array([0.0, 0.2, 0.4]), C=np.array([0.1, 0.5, 0.7, 0.9]),
        starts=3, seed=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def focal() -> PhaseDiagram:
    """K = 20: gamma = 0 is cross-entropy; gamma = 3 jumps between C_thr and C_spin."""
    C = np.array([0.9, 1.19, 1.2002, 1.20108, 1.2013, 1.25])
    return phase_diagram("fl", K=20, gamma=np.array([0.0, 3.0]), C=C, starts=10)


# --- convex losses ------------------------------------------------------------------------------------


def test_convex_losses_collapse_below_the_threshold_and_vanish_above(smoothing: PhaseDiagram) -> None:
    full, none = "neural collapse", "trivial"
    assert names(smoothing) == [[full] * 3 + [none], [full] * 2 + [none] * 2, [full] + [none] * 3]
    assert smoothing.proved.all()
    for line in (smoothing.C_thr, smoothing.C_tie, smoothing.C_spin):
        close(line, 0.75 * (1 - smoothing.values))
    below = smoothing.phase == phases.COLLAPSE
    assert (smoothing.fraction("collapse") == below).all()
    assert (smoothing.fraction("trivial") == ~below).all()
    assert not smoothing.above.any()
    assert not smoothing.may_trap.any()
    close(smoothing.ends.sum(axis=2), np.ones(below.shape))


def test_the_lowest_objective_is_an_entropy(smoothing: PhaseDiagram) -> None:
    """H(1 - 3 s, s, s, s), s = c + alpha/4, at most log 4; theory's and the solver's."""
    s = np.minimum(smoothing.C / 3 + smoothing.values[:, None] / 4, 0.25)
    p = np.stack([1 - 3 * s, s, s, s])
    expected = -(p * np.log(p)).sum(axis=0)
    close(smoothing.optimum, expected, ulps=64)
    close(smoothing.lowest, expected, ulps=2**10)
    close(smoothing.trivial, np.full(s.shape, np.log(4)))
    assert (np.isnan(smoothing.collapse) == (smoothing.phase == phases.TRIVIAL)).all()
    probs = smoothing.problem
    close(probs.lam_W / probs.lam_H, 4.0)
    close(3 * np.sqrt(2 * probs.lam_W * probs.lam_H), 0.1)


@pytest.fixture(scope="module")
def frames() -> PhaseDiagram:
    C = np.array([0.1, 0.5, 1.0, 1.6])
    return phase_diagram("mse", K=3, n=2, ratio=0.25, kappa=1.0, beta=1.0, lam_b=1.0, C=C, starts=3)


def test_mse_goes_through_its_frames(frames: PhaseDiagram) -> None:
    """beta = kappa = 1, K = 3: rank K below c_AB = (1/3)/(1/2 + 1/lam_b), rank 2 up to c_BC, then zero."""
    found = frames
    assert names(found) == [["frame of rank K", "neural collapse", "neural collapse", "trivial"]]
    close(found.C_rank, [4 / 9])
    b0 = 2 / (2 + 4 + 3)
    close(found.C_thr, [2 * 2 / 3 * (1 - b0 + b0)])
    assert (found.fraction("collapse") == [[1, 1, 1, 0]]).all()
    assert found.fraction("trivial")[0, 3] == 1
    close(found.lowest, found.optimum, ulps=2**10)
    absent = phase_diagram("mse", K=3, kappa=2.0, beta=np.array([1.0]), C=[0.1, 9.0], bias=False, starts=0)
    assert names(absent) == [["orthogonal frame", "trivial"]]
    assert np.isnan(absent.ends).all()
    assert np.isnan(absent.C_rank).all()


# --- focal loss -------------------------------------------------------------------------------------------


def test_the_transition_lines_of_focal_loss() -> None:
    """The table of docs/theory.md, section 2.3."""
    table = {
        18: {2.0: (1.12888115, 1.1289574822, 1.12898322), 3.0: (1.20143832, 1.2015239588, 1.20155277)},
        50: {3.0: (1.14328605, 1.1834333967, 1.20155277)},
    }
    for K, rows in table.items():
        found = phase_diagram("fl", K=K, gamma=np.array(list(rows)), C=[0.5], starts=0)
        for i, line in enumerate((found.C_thr, found.C_tie, found.C_spin)):
            np.testing.assert_allclose(line, [row[i] for row in rows.values()], rtol=0, atol=5e-9)


def test_focal_loss_with_a_bias(focal: PhaseDiagram) -> None:
    """Partial collapse in [1.20101741, 1.20110223], minima up to C_spin: docs/theory.md, section 2.3."""
    full, none = "neural collapse", "trivial"
    assert names(focal)[1] == [full, full, full, "partial collapse", none, none]
    assert names(focal)[0] == [full] + [none] * 5
    assert focal.may_trap.tolist() == [[False] * 6, [False, False, True, True, True, False]]
    assert focal.proved[0].all()
    assert focal.proved[1].tolist() == [True] * 3 + [False] * 3  # certified up to 1.2010020
    below, spurious = focal.fraction("below"), focal.fraction("spurious")
    assert not below[0].any()
    assert 0 < below[1, 3] < 1
    assert not np.delete(below[1], 3).any()
    assert not spurious[0].any()
    assert (spurious[1] > 0).tolist() == [False, False, True, True, True, False]
    assert spurious[1, 2] > 0.5
    assert (focal.above[1, [0, 1, 5]] == 0).all()
    assert (focal.above[1, 2:5] > 0.5).all()
    assert focal.above[1, 2] == spurious[1, 2]  # measured from the optimum, which no start may find
    close(focal.collapse[1, 3], 2.568462507026, ulps=1e4)
    close(focal.trivial, np.full((2, 6), 1.0) * [[np.log(20)], [2.568465958038]], ulps=1e4)
    assert (focal.lowest >= focal.optimum - 1e-6).all()


def test_an_end_is_told_by_its_objective_and_size(focal: PhaseDiagram) -> None:
    close(focal.ends.sum(axis=2), np.ones((2, 6)))
    assert focal.fraction("collapse")[1, :2].tolist() == [1, 1]
    assert focal.fraction("trivial")[1, 5] == 1
    assert not focal.fraction("unfinished").any()
    assert not focal.fraction("lowest").any()


def test_at_the_tie_collapse_and_the_origin_have_one_objective() -> None:
    """Told apart by the nuclear norm of Z: ends at either, made by hand."""
    f = np.array([[1.0], [1.0], [1.0], [0.9], [1.2], [1.0]])
    size, done = np.array([[0.0], [2.0], [1e-4], [3.0], [1.0], [2.0]]), np.ones((6, 1), dtype=bool)
    done[5] = False
    kinds = phases.classify(f, size, done, _row(trivial=1.0, collapse=1.0, size=2.0, phase=phases.COLLAPSE))
    assert [ENDS[i] for i in kinds[:, 0]] == [
        "trivial", "collapse", "trivial", "below", "spurious", "unfinished",
    ]  # fmt: skip
    kinds = phases.classify(
        f, size, done, _row(trivial=2.0, collapse=np.nan, size=np.nan, phase=phases.UNKNOWN)
    )
    assert [ENDS[i] for i in kinds[:, 0]] == ["spurious"] * 3 + ["lowest", "spurious", "unfinished"]


def _row(**fields: Any) -> phases._Row:
    arrays = {name: np.array([value]) for name, value in fields.items()}
    given = dict.fromkeys(phases._Row._fields, np.array([np.nan])) | arrays
    return phases._Row(**given)


def test_without_a_bias_there_is_no_partial_collapse() -> None:
    C = np.array([1.2002, 1.20108, 1.2013])
    found = phase_diagram("fl", K=20, gamma=3.0, C=C, bias=False, starts=0)
    assert names(found) == [["neural collapse"] * 2 + ["trivial"]]
    assert found.proved.all()
    assert found.may_trap.all()  # minima that trap are known without a bias as well
    assert (found.collapse[0, 2] > found.trivial[0, 2]) & np.isfinite(found.collapse[0, 2])


def test_a_loss_of_one_s_own() -> None:
    """GCE with q = 0.7 and K = 5 has a first-order transition: docs/theory.md, section 2.3."""

    def gce(z: jax.Array, k: Any) -> jax.Array:
        return (1 - jax.nn.softmax(z)[k] ** 0.7) / 0.7

    loss = losses.custom(gce, shift_invariant=True)
    found = phase_diagram(loss, K=5, C=np.array([0.1, 0.3006, 0.4]), starts=0)
    close(found.C_tie, [0.300681486080], ulps=1e5)
    close(found.C_thr, [0.2593050555], ulps=1e6)
    assert names(found) == [["neural collapse", "partial collapse", "trivial"]]
    assert not found.proved.any()


# --- few dimensions -----------------------------------------------------------------------------------------


def test_spurious_minima_in_two_dimensions() -> None:
    """docs/theory.md, section 5.3: K = 8, d = 2, lam = 0.01; half of the starts end above."""
    C = np.array([7 * 0.01, 7 * 0.2])
    found = phase_diagram("ce", K=8, d=2, C=C, starts=40, ratio=4.0)
    assert names(found) == [["not known", "trivial"]]
    assert found.may_trap.tolist() == [[True, False]]
    np.testing.assert_allclose(found.lowest[0, 0], 0.653153497954, atol=5e-13)
    assert np.isnan(found.collapse[0, 0])
    assert np.isnan(found.optimum[0, 0])
    assert 0.3 < found.fraction("spurious")[0, 0] < 0.7
    assert found.fraction("lowest")[0, 0] == 1 - found.fraction("spurious")[0, 0]
    assert found.above[0, 0] == found.fraction("spurious")[0, 0]
    assert found.fraction("trivial")[0, 1] == 1
    enough = phase_diagram("ce", K=8, d=7, C=C, starts=0)
    assert names(enough) == [["neural collapse", "trivial"]]
    assert not enough.may_trap.any()


# --- the record ---------------------------------------------------------------------------------------------


def test_one_program_serves_every_cell(smoothing: PhaseDiagram, compilations: Any) -> None:
    def again(**changes: Any) -> PhaseDiagram:
        return phase_diagram("ls", **({"K": 4, "d": 5, "n": 2, "starts": 3} | changes))

    compilations()
    again(alpha=np.array([0.1, 0.3, 0.5, 0.6]), C=np.array([0.2, 0.3, 0.4, 0.5]), lam_b=0.1, scale=0.5)
    assert compilations() == 0
    again(alpha=np.array([0.0, 0.2, 0.4]), C=np.array([0.1, 0.5, 0.7, 0.9]), ratio=4.0, seed=5)
    assert compilations() == 0


def test_the_same_seeds_give_the_same_diagram(smoothing: PhaseDiagram) -> None:
    again = phase_diagram("ls", K=4, d=5, n=2, ratio=4.0, alpha=[0.2], C=smoothing.C, starts=3, seed=5)
    close(again.lowest[0], smoothing.lowest[1], ulps=4)
    assert (again.ends[0] == smoothing.ends[1]).all()


def test_a_diagram_prints_and_is_json(focal: PhaseDiagram) -> None:
    text = str(focal)
    for word in (
        "focal loss, K=20",
        "gamma 0..3 (2)",
        "partial collapse",
        "10 Gaussian starts",
        "spurious",
        "C = ",
    ):
        assert word in text
    found = json.loads(json.dumps(focal.to_dict()))
    assert found["phase"] == names(focal)
    assert found["collapse"][0][5] is None
    assert found["end_names"] == list(ENDS)
    assert np.shape(found["ends"]) == (2, 6, len(ENDS))
    assert "PhaseDiagram" in str(jax.tree.map(lambda _: None, focal))
    with pytest.raises(AttributeError):
        focal.starts = 3
    with pytest.raises(ValueError, match=r"^end: .*did you mean 'spurious'"):
        focal.fraction("spurius")


def test_the_figures(focal: PhaseDiagram, frames: PhaseDiagram) -> None:
    """Lines stand where theory has them; every region and end is in the legend; axes have names."""
    two = focal.plot()
    left, right, _ = two.axes
    words = {text.get_text() for text in two.legends[0].get_texts()}
    assert {"neural collapse", "trivial", "partial collapse", "spurious minima known", "$C_{tie}$"} <= words
    for ax in (left, right):
        assert "sqrt" in ax.get_xlabel()
        assert ax.get_ylabel() == r"$\gamma$"
        drawn = {line.get_label(): np.asarray(line.get_xdata()) for line in ax.get_lines()}
        close(drawn["$C_{tie}$"][1], focal.C_tie[1])
        assert list(drawn) == ["$C_{thr}$", "$C_{tie}$", "$C_{spin}$"]
    close(np.asarray(right.collections[0].get_array()), focal.above)
    close(np.asarray(left.collections[0].get_array()), focal.phase)
    one = frames.plot()
    words = {text.get_text() for text in one.legends[0].get_texts()}
    assert {"collapse", "optimum", "lowest found", "ends: collapse", "ends: trivial", "transition"} <= words
    assert len(one.axes) == 2
    alone = phase_diagram("mse", K=3, kappa=[1.0, 2.0], beta=1.0, lam_b=1.0, C=[0.1, 0.3, 1.6], starts=0)
    figure = alone.plot()
    assert len(figure.axes) == 1
    assert r"rank $K \to K - 1$" in {text.get_text() for text in figure.legends[0].get_texts()}
    for each in (two, one, figure):
        each.canvas.draw()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"C": [0.2, 0.1]}, r"^C: expected a vector of finite, increasing"),
        ({"C": [[0.1]]}, r"^C: expected a vector"),
        ({"C": []}, r"^C: expected a vector"),
        ({"C": ["a"]}, r"^C: expected a vector"),
        ({"C": [0.0, 0.1]}, r"^C: expected numbers > 0"),
        ({"C": [0.1, np.nan]}, r"^C: expected a vector of finite"),
        ({"alpha": [0.1, 0.1]}, r"^alpha: expected a vector of finite, increasing"),
        ({"alpha": [0.1, 1.5]}, r"^alpha: expected a finite number >= 0 and < 1, got 1.5"),
        ({"gamma": [1.0, 2.0]}, r"^gamma: expected a hyperparameter of loss 'ls'"),
        ({"alpha": [0.1], "gamma": [1.0]}, r"^alpha, gamma: expected at most one array"),
        ({"starts": -1}, r"^starts: "),
        ({"seed": -1}, r"^seed: "),
        ({"scale": 0.0}, r"^scale: "),
        ({"ratio": -1.0}, r"^ratio: "),
        ({"K": 1}, r"^K: "),
        ({"d": 0}, r"^d: "),
        ({"lam_b": -1.0}, r"^lam_b: "),
        ({"loss": "lss"}, r"^loss: .*did you mean 'ls'"),
        ({"solver": "newtn"}, r"^solver: "),
    ],
)
def test_misuse_is_refused(given: dict[str, Any], message: str) -> None:
    fine: dict[str, Any] = {"loss": "ls", "K": 4, "C": [0.1, 0.2], "starts": 1}
    with pytest.raises(ValueError, match=message):
        phase_diagram(**(fine | given))


def test_a_problem_without_a_closed_form_is_not_known() -> None:
    """A loss that treats classes differently."""

    def uneven(z: jax.Array, k: Any) -> jax.Array:
        return -(1.0 + (k == 0)) * jax.nn.log_softmax(z)[k]

    found = phase_diagram(losses.custom(uneven, convex=True, shift_invariant=True), K=3, C=[0.2], starts=0)
    assert names(found) == [["not known"]]
    assert np.isnan(found.C_tie).all()
    assert "no theorem" in str(found)
    found.plot()


def test_the_nuclear_norm_of_the_logits_comes_from_the_classifier() -> None:
    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_W=0.06, lam_H=0.01)
    W, H, _ = Params(*map(np.asarray, ufm.theory.global_optimum(prob).params))
    lam = np.array([[0.06], [0.01]])
    close(phases.nuclear_norm(lam, W[None, None]), [[np.linalg.svd(W @ H)[1].sum()]], ulps=64)
