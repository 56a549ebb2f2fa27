"""What records say in words, JSON and figures is what they hold."""

import dataclasses
import json
import math
import re

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import ufm
from ufm import _sheet, figures, losses
from ufm._pytree import replace
from ufm.figures.sweep import margins

K, D, N = 4, 6, 3
SIZES = {"K": K, "d": D, "n": N}
SHUFFLED = np.random.default_rng(3).permutation([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
LAM = np.geomspace(1e-3, 0.5, 7)


def rearranged(sweep, change, **fields):
    """The same solutions as another sweep, without another compilation: `change` acts on every leaf."""
    leaves = (sweep.params, sweep.objective, sweep.grad_norm, sweep.code, sweep.steps)
    names = ("params", "objective", "grad_norm", "code", "steps")
    changed = jax.tree.map(lambda x: change(np.asarray(x)), leaves)
    return replace(sweep, **dict(zip(names, changed, strict=True)), **fields)


def refuse(constant):
    raise AssertionError(f"not strict JSON: {constant}")


def strict(tree):
    return json.loads(_sheet.dumps(tree), parse_constant=refuse)


@pytest.fixture(scope="module")
def sol():
    return ufm.solve_ufm("ce", **SIZES, lam_W=4e-3, lam_H=1e-3, record=True)


@pytest.fixture(scope="module")
def sweep():
    prob = ufm.Problem.balanced("ce", **SIZES)
    return ufm.solve_sweep(prob, seeds=range(2), lam_W=LAM, lam_H=LAM)


@pytest.fixture(scope="module")
def records(sol, sweep):
    imbalanced = ufm.solve(ufm.Problem("ce", SHUFFLED, K, D), max_steps=2)
    report = ufm.verify(sol)
    failing = ufm.verify(replace(sol, params=sol.params._replace(W=2 * sol.W)))
    long = rearranged(
        sweep, lambda x: np.concatenate([x] * 6, axis=1), swept={"lam_W": np.concatenate([LAM] * 6)}
    )
    return {
        "solution": (sol, ["converged", f"{float(sol.objective):.15g}", "K=4, d=6, n=3", "NC1"]),
        "not converged": (imbalanced, ["max steps", "raise it", "n_k=2..5"]),
        "batch": (replace(sol, objective=np.zeros(3), code=np.zeros(3)), ["batch"]),
        "sweep": (sweep, ["14 problems, 14 converged", "lam_W = lam_H", "0.5", "2/2", "f - theory"]),
        "long sweep": (long, ["..."]),
        "report": (report, ["self_duality", "holds", "not applicable: trivial", "passed: 15 hold, 0 fail"]),
        "failing": (failing, ["FAILED", "fails: ", "stationary_W"]),
    }


RECORDS = ("solution", "not converged", "batch", "sweep", "long sweep", "report", "failing")


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_prints_in_plain_ascii_and_in_html(records, name):
    record, expected = records[name]
    text = str(record)
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= _sheet.WIDTH
    joined = " ".join(text.split())
    markup = record._repr_html_()
    for words in expected:
        assert words in joined
        assert re.search(rf"{re.escape(words)}", re.sub("<[^>]*>", " ", markup))


def test_the_reason_of_a_failure_is_printed_once_for_all_claims_that_share_it(records):
    report, _ = records["failing"]
    lines = [line for line in str(report).splitlines() if line.startswith("fails: ")]
    failed = [claim for claim in report.claims if claim.verdict == "fails"]
    assert len(lines) == len({claim.why for claim in failed}) < len(failed)


def test_printing_does_not_compute_the_certificate():
    sol = ufm.solve_ufm("ce", **SIZES)
    before = str(sol)
    assert "certificate" not in vars(sol)
    assert sol.certificate.verdict in str(sol.sheet(sol.certificate))
    assert str(sol) == before  # what was computed in the meantime changes nothing


def test_markup_in_a_name_stays_text():
    loss = losses.custom(lambda z, k: -z[k] + z @ z)
    sol = ufm.solve_ufm(loss, **SIZES, max_steps=1)
    assert "&lt;lambda&gt;" in sol._repr_html_()
    assert "custom loss <lambda>" in str(sol)


def test_a_sweep_without_a_closed_form_says_so(sweep):
    header, _, row = str(replace(sweep, problem=ufm.Problem("fl", SHUFFLED, K, D))).splitlines()[1:4]
    assert row[header.index("f - theory") :].split()[0] == "-"


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", losses.PAPER)
def test_a_problem_can_be_built_again_from_its_json(loss):
    prob = ufm.Problem.balanced(loss, **SIZES, lam_W=4e-3, lam_H=1e-3, lam_b=0.02)
    facts = strict(prob.to_dict())
    assert facts.pop("N") == prob.N
    again = ufm.Problem.balanced(**facts)
    params = ufm.init(prob, seed=1, scale=1.0)
    assert float(again(params)) == float(prob(params))


def test_counts_stand_for_n_where_classes_are_not_balanced():
    facts = strict(ufm.Problem("ce", SHUFFLED, K, D, bias=False).to_dict())
    assert (facts["n"], facts["counts"], facts["bias"]) == (None, [5, 3, 2, 2], False)


def test_a_solution_in_json(sol):
    facts = strict(sol.to_dict())
    for name in ("objective", "grad_norm", "steps", "tol", "converged", "reduced"):
        assert facts[name] == getattr(sol, name)
    assert (facts["solver"], facts["status"]) == ("newton", "converged")
    assert facts["nc2"] == float(sol.metrics.nc2)
    assert "why" not in facts


def test_json_has_null_and_a_reason_where_a_number_is_not_finite():
    prob = ufm.Problem.balanced("ce", **SIZES)
    saddle = ufm.solve(prob, prob.zeros(), escape=False)  # a critical point with equal means
    facts = strict(saddle.to_dict())
    assert facts["nc1"] is None
    assert "equal" in facts["why"]["nc1"]
    assert list(facts["why"]) == ["nc1"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_never_written(value):
    with pytest.raises(ValueError, match="JSON"):
        _sheet.dumps({"value": value})


def test_a_report_in_json_has_the_contract_s_keys(sol):
    report = ufm.verify(sol)
    facts = strict(report.to_dict())
    assert list(facts) == ["passed", "problem", "solution", "claims"]
    assert facts["passed"] is True
    for claim, found in zip(report.claims, facts["claims"], strict=True):
        assert list(found) == ["name", "statement", "value", "tolerance", "verdict", "why"]
        assert found == claim._asdict()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_claim_that_is_not_finite_is_null_with_the_reason(sol, value):
    report = ufm.verify(sol)
    broken = report.claims[0]._replace(value=value, verdict="fails", why="because")
    facts = strict(dataclasses.replace(report, claims=(broken,)).to_dict())
    assert facts["passed"] is False
    assert facts["claims"][0]["value"] is None
    assert facts["claims"][0]["why"] == f"because; value is {value}"


def test_a_sweep_in_json_has_one_record_for_each_problem(sweep):
    facts = strict(sweep.to_dict())
    assert facts["shape"] == [2, LAM.size]
    assert not {"lam_W", "lam_H"} & set(facts["problem"])
    index = [(int(record["seed"]), int(np.searchsorted(LAM, record["lam_W"]))) for record in facts["records"]]
    assert index == list(np.ndindex(2, LAM.size))
    for at, record in zip(index, facts["records"], strict=True):
        assert record["lam_H"] == LAM[at[1]]
        assert record["objective"] == float(sweep.objective[at])
        assert record["status"] == "converged"


# --- figures --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _settings_stay():
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []  # nothing keeps a figure alive


def lines(ax):
    return {line.get_label(): line.get_xydata().T for line in ax.get_lines()}


def test_a_solution_s_figure_shows_its_matrices_and_its_trajectory(sol):
    grams, singular, *paths = np.split(np.array(sol.plot().axes[:6]), [2, 3, 4, 5])
    means = np.stack(
        [np.asarray(sol.H)[:, np.asarray(sol.problem.labels) == k].mean(axis=1) for k in range(K)]
    )
    for ax, expected in zip(grams, (sol.W @ sol.W.T, means @ means.T), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), expected, rtol=0, atol=1e-14)
        assert f"{-1 / (K - 1):.4f}" in ax.get_xlabel()
    drawn = list(lines(singular[0]).values())
    np.testing.assert_allclose(drawn[0][1], drawn[1][1][:K], rtol=0, atol=1e-9)  # the balance of Lemma 5
    assert drawn[0][1].max() > 0.05
    np.testing.assert_array_equal(lines(paths[1][0])[r"$\|\nabla f\|$"][1], sol.history.grad_norm)
    np.testing.assert_array_equal(lines(paths[2][0])["NC2"][1], sol.history.nc2)


def test_a_trajectory_without_a_closed_form_is_measured_from_its_lowest_point():
    sol = ufm.solve(ufm.Problem("fl", SHUFFLED, K, D), record=True)
    drawn = lines(sol.plot().axes[3])
    assert drawn[r"$f - \min f$"][1].min() < 1e-15


def test_a_zero_solution_has_a_figure():
    prob = ufm.Problem.balanced("ce", **SIZES)
    assert "zero" in ufm.solve(prob, prob.zeros(), escape=False).plot().axes[0].get_xlabel()


def test_a_sweep_s_figure_draws_theory_over_the_numbers(sweep):
    figure = sweep.plot()
    c = np.sqrt(N) * LAM
    expected = np.where(c < 1 / K, np.log(np.maximum(1 / c - (K - 1), 1)), 0.0)  # cross-entropy's margin
    np.testing.assert_allclose(margins(sweep), np.tile(expected, (2, 1)), atol=1e-9)
    margin = lines(figure.axes[1])
    np.testing.assert_allclose(margin["solved"][1], np.tile(expected, 2), atol=1e-9)
    np.testing.assert_allclose(np.interp(LAM, *margin["theory"]), expected, atol=1e-9)
    np.testing.assert_allclose(margin["collapse threshold"][0], 1 / (K * np.sqrt(N)), rtol=1e-12)
    np.testing.assert_array_equal(lines(figure.axes[0])["solved"][1], np.ravel(sweep.objective))
    assert figure.axes[0].get_xscale() == "log"


def test_a_sweep_s_figure_of_unequal_classes_draws_where_they_merge_and_vanish():
    counts, lam = np.array([9, 2, 2]), np.array([0.02, 0.08, 0.4])
    prob = ufm.Problem.from_counts("ce", counts=counts, d=4, class_weights=[1.0, 2.0, 2.0])
    optima = [ufm.theory.global_optimum(prob.replace(lam_W=x, lam_H=x)) for x in lam]
    result = ufm.solve_sweep(prob, lam_W=lam, lam_H=lam, seeds=[0])
    margin = lines(result.plot().axes[1])
    np.testing.assert_allclose(np.interp(lam, *margin["theory"]), margins(result)[0], atol=1e-7)
    np.testing.assert_allclose(
        margin["collapse threshold"][0], ufm.theory.threshold(prob).x_zero / 13, rtol=1e-9
    )
    np.testing.assert_allclose(margin["$n_k$ = 2, $w_k$ = 2: classes merge"][0], 2 * 2**0.5 / 13, rtol=1e-9)
    assert optima[-1].regime == "trivial"


def test_problems_that_did_not_converge_are_marked(sweep):
    stopped = replace(sweep, code=np.where(np.arange(LAM.size) < 2, ufm.Status.MAX_STEPS, sweep.code))
    drawn = lines(stopped.plot().axes[2])
    np.testing.assert_array_equal(drawn["not converged"][0], np.tile(LAM[:2], 2))
    np.testing.assert_array_equal(drawn["solved"][0], np.tile(LAM[2:], 2))
    assert "4 max steps: " in str(stopped)


@pytest.mark.parametrize("names", [("lam_W", "lam_b"), ("lam_b", "lam_W")])
def test_two_axes_make_maps(sweep, names):
    values = {"lam_W": LAM, "lam_b": np.array([0.0, 0.1])}
    rows, columns = (values[name] for name in names)
    swept = dict(zip(names, np.meshgrid(rows, columns, indexing="ij"), strict=True))
    axes = (0, 1) if names[0] == "lam_b" else (1, 0)
    two = rearranged(sweep, lambda x: x.transpose(*axes, *range(2, x.ndim))[None], swept=swept, seeds=[0])
    first = two.plot().axes[0]
    labels = {"lam_W": r"$\lambda_W$", "lam_b": r"$\lambda_b$"}
    assert (first.get_ylabel(), first.get_xlabel()) == tuple(labels[name] for name in names)
    np.testing.assert_array_equal(first.collections[0].get_array(), two.objective[0])


def test_more_axes_are_refused(sweep):
    three = replace(sweep, code=np.zeros((1, 2, 3, 4)))
    with pytest.raises(ValueError, match="at most two axes"):
        three.plot()


def test_seeds_alone_stand_along_x(sweep):
    fixed = sweep.problem.replace(lam_W=LAM[2], lam_H=LAM[2])
    seeds = rearranged(sweep, lambda x: x[:, 2], problem=fixed, swept={}, seeds=[5, 7])
    drawn = lines(seeds.plot().axes[0])
    assert drawn["solved"][0].tolist() == [5, 7]
    np.testing.assert_allclose(drawn["theory"][1], drawn["solved"][1], rtol=1e-12)


def test_a_report_s_figure_has_a_row_for_each_claim(records):
    passing, failing = records["report"][0], records["failing"][0]
    ax = figures.plot_report(passing, failing).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == [c.name for c in passing.claims]
    rings = [line for line in ax.get_lines() if line.get_markersize() == 8 and line.get_xdata().size]
    assert len(rings) == sum(claim.verdict == "fails" for claim in failing.claims)
    aside = [text.get_text() for text in ax.texts if text.get_text() == "not applicable"]
    assert len(aside) == sum(claim.verdict == "not applicable" for claim in passing.claims)


def test_a_named_tuple_prints_a_row_for_each_number_array_and_word():
    found = ufm.theory.threshold(ufm.Problem.from_counts("ce", counts=[3, 2, 2], d=4, lam_W=0.01, lam_H=0.02))
    text, html = repr(found), found._repr_html_()
    for name in found._fields:
        assert name in text
        assert name in html
    assert f"{found.x_zero:.10g}" in text
    assert "yes" in repr(found._replace(proved=True))
    optimum = repr(ufm.theory.global_optimum(ufm.Problem.balanced("ce", K=3, d=4, n=2)))
    assert "objective" in optimum
    assert "factors" not in optimum
