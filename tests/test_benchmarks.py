"""The benchmarks: every table can be rendered, and the peers solve the problem that we solve."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tolerances import close

import ufm

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import collapse, convex, figures, machine, nonnegative, peers, report, scaling, spheres
from benchmarks.tables import TABLES


@pytest.fixture(scope="module")
def prob():
    labels = np.array([0, 2, 1, 1, 0, 2, 2, 0, 1, 2])
    return ufm.Problem("ce", labels=labels, K=3, d=4, lam_W=0.02, lam_H=0.005)


@pytest.fixture(scope="module")
def solution(prob):
    return ufm.solve(prob, tol=1e-11, progress=False)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_title_a_text_and_the_stored_columns_and_sides_that_it_compares(name):
    table, rows = TABLES[name], report.read(Path(report.__file__).parent)[name]["rows"]
    title, *text = table.text.splitlines()
    assert re.match(r"## \w", title)
    assert text[-1].endswith(".")
    assert set(table.group) - {"none"} <= set().union(*rows)  # no row has "none": all are alternatives
    assert set(table.named) <= {table.side(row) for row in rows}


def test_stored_results_render(tmp_path):
    shutil.copy(Path(report.__file__).parent / "results.json", tmp_path)
    results = report.read(tmp_path)
    assert results
    report.write(results, tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert report.read(tmp_path) == results
    for name in results:
        assert TABLES[name].text in page
    assert "## Summary" in page
    assert page.count("| solve, K=10") >= 4


def test_a_loss_is_said():
    where = {"date": "", "cpu": "", "cores": 1, "device": ""}
    shape = {"K": 3, "d": 4, "n": 2, "case": "A"}
    rows = [
        shape | {"solver": "ufm newton", "seconds": 2.0, "reached": True},
        shape | {"solver": "fast but not there", "seconds": 0.5, "reached": False},
        shape | {"solver": "theirs", "seconds": 1.0, "reached": True},
        shape | {"solver": "absent", "remark": "not installed"},
    ]
    [line] = report.summary({"time": {"hardware": where, "rows": rows}})
    assert (line["the alternative"], line["ratio"], line["verdict"]) == ("theirs", "0.50x", "**we lose**")
    page = report.render({"time": {"hardware": where, "rows": rows}})
    assert "1 comparisons, 1 lost" in page
    assert "not in 0.5" in page


@pytest.mark.parametrize("name", [n for n in peers.PEERS if n.startswith("scipy")])
def test_scipy_peers_reach_our_optimum(name, prob, solution):
    _reaches(name, prob, solution)


@pytest.mark.parametrize("name", [n for n in peers.PEERS if n.startswith("optax")])
def test_optax_peers_reach_our_optimum(name, prob, solution):
    _reaches(name, prob, solution)


@pytest.mark.parametrize("name", [n for n in peers.PEERS if n.startswith("torch")])
def test_torch_peers_reach_our_optimum(name, prob, solution):
    pytest.importorskip("torch")
    _reaches(name, prob, solution)


def _reaches(name, prob, solution):
    norm, value = peers.PEERS[name].make(prob, 1e-6, 10.0)(ufm.init(prob))
    assert norm <= 1e-6
    # f - f* <= |grad|^2 / (2 x smallest curvature): far below 1e-9 here
    assert abs(value - float(solution.objective)) <= 1e-9


def test_torch_has_our_objective_and_gradient(prob):
    torch = pytest.importorskip("torch")
    at = ufm.init(prob, seed=1, scale=1.0)
    leaves = peers.torch_leaves(at)
    f = peers.torch_objective(prob)(leaves)
    close(f.item(), prob(at))
    for theirs, ours in zip(torch.autograd.grad(f, leaves), jax.grad(prob)(at), strict=True):
        close(theirs.numpy(), ours)


@pytest.mark.parametrize("reduced", [False, True])
def test_cvxpy_solves_our_problem(reduced):
    pytest.importorskip("cvxpy")
    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_W=0.02, lam_H=0.005)
    best = ufm.theory.global_optimum(prob).objective
    convex_prob, Z, b = convex.program(prob, reduced)
    assert abs(convex_prob.solve(solver="CLARABEL") - best) <= 1e-7
    at = convex.factors(prob, np.asarray(Z.value), np.asarray(b.value)[:, 0], reduced)
    assert abs(float(prob(at)) - best) <= 1e-7


def test_pymanopt_solves_our_problem_on_spheres():
    pytest.importorskip("pymanopt")
    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, model=ufm.models.spheres(2.0))
    norm, value = spheres.trust_regions(prob, 1e-8, 10.0)(ufm.init(prob))
    assert norm <= 1e-8
    assert abs(value - ufm.theory.global_optimum(prob).objective) <= 1e-12


def test_scipy_solves_our_problem_with_bounds():
    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_W=0.02, lam_H=0.005, model="nonnegative")
    ends = [nonnegative.lbfgsb(prob, 1e-8, 10.0)(ufm.init(prob, seed=seed)) for seed in range(2)]
    assert max(norm for norm, _ in ends) <= 1e-8
    assert min(value for _, value in ends) >= ufm.theory.global_optimum(prob).objective - 1e-12


@pytest.mark.parametrize("side", collapse.SIDES)
def test_metrics_of_all_sides_agree(side):
    if "torch" in side:
        pytest.importorskip("torch")
    # d < K - 1 leaves pinv no rounding to invert
    data = collapse.features(6, 4, 60, "float64")
    values = [float(x) for x in collapse.SIDES[side](data)]
    for value, ours in zip(values, collapse.ours(data), strict=True):
        assert value == pytest.approx(float(ours), rel=1e-9)


def test_the_witness_of_nc1():
    data = collapse.features(5, 12, 60, "float64")
    close(collapse.witness(data), collapse.ours(data)[0], ulps=1e4)


def test_slopes_and_the_figure(tmp_path):
    rows = [
        {"over": axis, "task": task.partition(": ")[0], "side": task.partition(": ")[2] or "ufm"}
        | dict.fromkeys(scaling.AXES, x)
        | {"seconds": 1e-6 * x**1.5, "peak GiB": 0.2 + 0.1 * (x - min(sizes))}
        for axis, (_, sizes) in scaling.AXES.items()
        for task in scaling.TASKS
        for x in sizes
    ]
    table = scaling.slopes(rows)
    assert len(table) == len(scaling.AXES) * len(scaling.TASKS)
    assert {row["time ~"] for row in table} == {f"{axis}^1.50" for axis in scaling.AXES}
    assert {row["memory ~"][:4] for row in table} <= {"N^1.", "K^1.", "d^1."}
    figures.save(rows, tmp_path)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in figures.FILES)


def test_a_missing_peer_is_a_remark(capsys):
    machine.answer("benchmarks.no_such_module:rows", {})
    assert "not installed" in capsys.readouterr().out
