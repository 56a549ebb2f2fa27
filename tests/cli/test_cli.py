"""The command line: its answers are the library's, its exit status is the verdict, misuse is one line."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from click.testing import CliRunner

import ufm
from ufm import _cli, losses, solvers
from ufm._cli import _options

SIZES = ("--K", "4", "--d", "6", "--n", "3")
GIVEN = {"K": 4, "d": 6, "n": 3}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("UFM_CACHE", "0")


def run(*args):
    return CliRunner().invoke(_cli.main, [str(arg) for arg in args])


def refuse(constant):
    raise AssertionError(f"not strict JSON: {constant}")


def answer(result):
    """Standard output as strict JSON, with nothing else on it or on standard error."""
    assert result.stderr == ""
    return json.loads(result.stdout, parse_constant=refuse)


def stored(folder):
    with np.load(folder / "arrays.npz") as arrays:
        return dict(arrays)


# --- solve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", losses.PAPER)
def test_solve_prints_what_the_library_finds(loss):
    penalties = ("--lam-W", 4e-3, "--lam-H", 1e-3, "--lam-b", 0.02, "--seed", 3)
    result = run("solve", "--loss", loss, *SIZES, *penalties, "--json")
    found = answer(result)
    sol = ufm.solve_ufm(loss, **GIVEN, lam_W=4e-3, lam_H=1e-3, lam_b=0.02, seed=3)
    assert result.exit_code == 0
    assert found["solution"]["objective"] == float(sol.objective)
    assert found["theory"]["objective"] == pytest.approx(float(sol.objective), rel=1e-12)
    assert found["certificate"]["verdict"] == sol.certificate.verdict
    assert found["start"] == {"seed": 3, "scale": 0.1}
    assert (found["problem"]["lam_W"], found["problem"]["lam_b"]) == (4e-3, 0.02)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--alpha", "0.3", "--loss", "ls"), {"alpha": 0.3}),
        (("--kappa", "2", "--beta", "3", "--loss", "mse"), {"kappa": 2.0, "beta": 3.0}),
        (("--lam", "0.01"), {"lam_W": 0.01, "lam_H": 0.01}),
        (("--no-bias",), {"bias": False}),
        ((), {"K": 4, "d": 6, "n": 3, "lam_W": 5e-3, "lam_b": 0.0, "bias": True}),
    ],
)
def test_options_reach_the_problem(args, expected):
    found = answer(run("solve", *SIZES, *args, "--json", "--max-steps", 200))["problem"]
    assert {name: found[name] for name in expected} == expected


def test_solve_prints_a_table_with_the_certificate():
    result = run("solve", *SIZES)
    assert result.exit_code == 0
    assert "global minimum, f - f* <=" in result.stdout
    assert "\x1b" not in result.stdout


def test_another_model_is_swept():
    args = ("--K", 3, "--d", 4, "--n", 2, "--lam", "0.01,0.02", "--max-steps", 60)
    found = answer(run("sweep", "--model", "deep", *args, "--json"))
    wanted = ufm.solve_ufm(K=3, d=4, n=2, lam_W=0.01, lam_H=0.01, model="deep").objective
    assert found["problem"]["model"] == "deep"
    assert found["records"][0]["objective"] == pytest.approx(float(wanted), rel=1e-10)


def test_labels_come_from_a_file(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("2 0 1\n1 1\t0 2 2 0 1 3 0\n")
    found = answer(run("solve", "--labels", file, "--d", 6, "--json"))
    assert found["problem"]["counts"] == [4, 4, 3, 1]
    assert found["theory"]["objective"] == pytest.approx(found["solution"]["objective"], rel=1e-12)
    assert found["theory"]["why"] == "the classes are not balanced: no simplex ETF"


LABELS = [2, 0, 1, 1, 0, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"2\n0\n1\n1\n0\n2\n",
        b"\xef\xbb\xbf2\r\n0\r\n1\r\n1\r\n0\r\n2",  # Windows: a byte-order mark, carriage returns
        "2\n0\n1\n1\n0\n2\n".encode("utf-16"),  # PowerShell
        b"2,0,1,1,0,2",
        b"2, 0, 1, 1, 0, 2,\n",
        b"2;0;1;1;0;2\n",
        b"2\t0\t1\t1\t0\t2\n",
        b"\xef\xbb\xbf2,0,1,1,0,2\r\n",
        b"2,\n0,\n1,\n1,\n0,\n2\n",
        b"\n2\n0\n\n1\n1\n0\n+2\n\n",
        b"2 0 1 1\n0 2\n",
    ],
)
def test_labels_as_programs_write_them(tmp_path, content):
    (tmp_path / "labels.txt").write_bytes(content)
    assert _options.labels_of(str(tmp_path / "labels.txt")).tolist() == LABELS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"0 2\n1 0\n2 1\n",
            "one label a line, or all labels in one line, got 2 columns in .*keep the column",
        ),
        (b"0,2\n1,0\n2,1\n", "got 2 columns"),
        (b"0;2;9\n1;0;9\n", "got 3 columns"),
        (b"a.png,2\nb.png,0\n", "integers, got 'a.png'"),
        (b"label\n2\n0\n", "integers, got 'label'"),
        (b"2\n0.5\n", "integers, got '0.5'"),
        (b"2,,0", "integers, got ''"),
        ("2\n²\n".encode(), "integers, got '²'"),
        (b"99999999999999999999", "integers, got '99999999999999999999'"),
        (b"", "integers, got nothing"),
        (b"\xef\xbb\xbf\r\n", "integers, got nothing"),
        (b"\x93NUMPY\x01\xff\xfe", "which is no text"),
    ],
)
def test_label_files_that_are_something_else_are_refused(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _options.labels_of(str(tmp_path / "labels.txt"))


def test_not_converged_is_status_one():
    result = run("solve", *SIZES, "--max-steps", 1)
    assert result.exit_code == 1
    assert "max_steps was reached; raise it" in " ".join(result.stdout.split())


# --- verify ---------------------------------------------------------------------------------------


def test_verify_prints_the_contract_s_object():
    result = run("verify", *SIZES, "--json")
    found = answer(result)
    assert result.exit_code == 0
    assert list(found) == ["passed", "problem", "solution", "claims"]
    assert found["passed"] is True
    assert {"objective", "grad_norm"} <= set(found["solution"])
    for claim in found["claims"]:
        assert list(claim) == ["name", "statement", "value", "tolerance", "verdict", "why"]
        assert claim["verdict"] in ("holds", "fails", "not applicable")


def test_verify_all_covers_the_shelf_and_gives_hyperparameters_to_their_owners():
    result = run("verify", "--loss", "all", *SIZES, "--alpha", 0.3, "--gamma", 2, "--json")
    found = answer(result)
    assert result.exit_code == 0
    assert list(found) == ["passed", "reports"]
    problems = [report["problem"] for report in found["reports"]]
    assert [problem["loss"] for problem in problems] == list(losses.PAPER)
    assert [problem.get("alpha") for problem in problems if problem["loss"] == "ls"] == [0.3]
    assert [problem.get("gamma") for problem in problems if problem["loss"] == "fl"] == [2.0]


def test_verify_all_prints_a_table_for_each_loss_and_a_summary():
    result = run("verify", "--loss", "all", *SIZES)
    assert result.exit_code == 0
    for name in losses.PAPER:
        assert re.search(rf"^{losses.get(name).title}", result.stdout, re.M)
    assert f"{len(losses.PAPER)} of {len(losses.PAPER)} losses pass" in result.stdout.splitlines()[-1]


def test_a_claim_that_fails_is_status_one():
    result = run("verify", "--loss", "all", *SIZES, "--max-steps", 3)
    assert result.exit_code == 1
    assert f"0 of {len(losses.PAPER)} losses pass" in result.stdout
    assert answer(run("verify", *SIZES, "--max-steps", 3, "--json"))["passed"] is False


# --- sweep ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4:1e-1:4", [1e-4, 1e-3, 1e-2, 1e-1]),
        ("0:0.9:4:linear", [0, 0.3, 0.6, 0.9]),
        ("0.1,0.3", [0.1, 0.3]),
        ("0.2", [0.2]),
        ("1:2:1", [1]),
    ],
)
def test_a_grid(text, expected):
    np.testing.assert_allclose(_options.grid(text), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [0, 1, 2]), ("5:8", [5, 6, 7]), ("0:2", [0, 1]), ("4,2", [4, 2]), ("7,", [7])],
)
def test_seeds(text, expected):
    assert _options.seeds(text) == expected


def test_sweep_solves_the_grid():
    result = run("sweep", *SIZES, "--lam", "1e-3:0.5:3", "--seeds", 2, "--json")
    found = answer(result)
    assert result.exit_code == 0
    assert found["shape"] == [2, 3]
    for record in found["records"]:
        assert record["lam_W"] == record["lam_H"]
        sol = ufm.solve_ufm("ce", **GIVEN, lam_W=record["lam_W"], lam_H=record["lam_H"], seed=record["seed"])
        assert record["objective"] == pytest.approx(float(sol.objective), rel=1e-13)


def test_several_grids_make_a_product():
    args = ("--lam-W", "1e-3,1e-2,1e-1", "--lam-H", "1e-3,1e-2", "--lam-b", "0.1")
    found = answer(run("sweep", *SIZES, *args, "--json"))
    assert found["shape"] == [1, 3, 2]
    assert found["problem"]["lam_b"] == 0.1
    points = [(record["lam_W"], record["lam_H"]) for record in found["records"]]
    assert points == [(lam_W, lam_H) for lam_W in (1e-3, 1e-2, 1e-1) for lam_H in (1e-3, 1e-2)]


def test_a_sweep_that_does_not_converge_is_status_one():
    result = run("sweep", *SIZES, "--lam", "1e-3:0.5:3", "--seeds", 2, "--max-steps", 1)
    assert result.exit_code == 1
    assert "raise it" in result.stdout


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arrays"),
    [
        (("solve",), {"W", "H", "b", "labels", "history_nc1"}),
        (("verify",), {"W", "H", "b", "labels"}),
        (("verify", "--loss", "all"), {f"{loss}_{name}" for loss in losses.PAPER for name in "WHb"}),
        (("sweep", "--lam", "1e-3:0.5:3", "--seeds", 2), {"W", "objective", "status", "axis_lam_W", "seeds"}),
    ],
)
def test_a_folder_gets_everything(command, arrays, tmp_path):
    folder = tmp_path / "new" / "folder"
    result = run(*command, *SIZES, "--out", folder, "--json")
    found = answer(result)
    written = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    about = written.pop("run")
    assert written == found
    assert (about["ufm"], about["jax"]) == (ufm.__version__, jax.__version__)
    assert arrays <= set(stored(folder))
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_three_grids_have_a_folder_without_a_figure(tmp_path):
    grids = ("--lam-W", "1e-3,1e-2", "--lam-H", "1e-3,1e-2", "--lam-b", "0,0.1")
    assert answer(run("sweep", *SIZES, *grids, "--out", tmp_path, "--json"))["shape"] == [1, 2, 2, 2]
    assert {file.name for file in tmp_path.iterdir()} == {"result.json", "arrays.npz"}


def test_the_arrays_are_the_solution_s(tmp_path):
    run("solve", *SIZES, "--out", tmp_path, "--seed", 2)
    sol = ufm.solve_ufm("ce", **GIVEN, seed=2)
    arrays = stored(tmp_path)
    for name in "WHb":
        np.testing.assert_allclose(arrays[name], getattr(sol, name), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_figure_by_its_suffix(suffix, start, tmp_path):
    file = tmp_path / f"figure.{suffix}"
    result = run("verify", *SIZES, "--plot", file)
    assert f"written: {file}" in result.stdout
    assert file.read_bytes().startswith(start)


# --- misuse ---------------------------------------------------------------------------------------


MISUSE = [
    (("nothing",), "No such command"),
    (("solve", "--nothing", "1"), "--nothing"),
    (("solve", "--K", "four"), "four"),
    (("solve", "--loss", "cee"), "did you mean 'ce'"),
    (("solve", "--solver", "newtown"), "did you mean 'newton'"),
    (("solve", "--K", "1"), "K: expected an integer >= 2"),
    (("solve", "--lam", "0"), "lam_W: expected"),
    (("solve", "--lam", "nan"), "lam_W: expected"),
    (("solve", "--lam", "1", "--lam-H", "2"), "lam_H: expected either --lam or --lam-H"),
    (("solve", "--alpha", "0.1"), "alpha: expected a hyperparameter of loss 'ce'"),
    (("solve", "--loss", "fl", "--reduced"), "reduced: expected a loss that is convex"),
    (("solve", "--no-bias", "--lam-b", "1"), "lam_b: expected 0"),
    (("solve", "--model", "dep"), "did you mean 'deep'"),
    (("solve", "--tol", "0"), "tol: expected"),
    (("solve", "--seed", "-1"), "seed: expected"),
    (("solve", "--labels", "nowhere.txt"), "nowhere.txt"),
    (("solve", "--plot", "figure.gif"), "png, pdf, svg"),
    (("solve", "--plot", "nowhere/figure.png"), "no folder 'nowhere'"),
    (("verify", "--loss", "all", "--gamma", "-1"), "gamma: expected"),
    (("sweep", "--lam", "1:2"), "start:stop:count"),
    (("sweep", "--lam", "1:2:3:log"), "start:stop:count"),
    (("sweep", "--lam", "0:1:5"), "append :linear"),
    (("sweep", "--lam", "a,b"), "expected a number"),
    (("sweep", "--lam", ","), "lam_W: expected at least one value"),
    (("sweep", "--lam", ""), "lam_W: expected at least one value"),
    (("sweep", "--lam", "1e-3:1e-1:0"), "1 <= count"),
    (("sweep", "--lam", "1e-3:1e-1:99999999999"), "count <= 1,000,000"),
    (("sweep", "--lam", "inf:1:3"), "expected a number, got 'inf'"),
    (("sweep", "--lam", "1e-3:nan:3"), "expected a number, got 'nan'"),
    (("sweep", "--seeds", "0"), "expected at least one seed, got none in '0'"),
    (("sweep", "--seeds", "7:3"), "expected at least one seed, got none in '7:3'"),
    (("sweep", "--lam", "1e-3,-1"), "lam_W: expected"),
    (("sweep", "--gamma", "1,2"), "gamma: expected a hyperparameter of loss 'ce'"),
    (("sweep", "--lam-W", "1,2", "--lam-H", "1,2", "--lam-b", "1,2", "--plot", "a.png"), "at most two grids"),
    (("sweep", "--seeds", "1:2:3"), "0:10"),
    (("sweep", "--seeds", "x"), "0:10"),
    (("sweep", "--seeds", ","), "0:10"),
]


@pytest.mark.parametrize(("args", "words"), MISUSE, ids=[" ".join(args) for args, _ in MISUSE])
def test_misuse_is_one_line_and_status_two(args, words):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("ufm: ")
    assert words in line


@pytest.mark.parametrize("command", ["solve", "sweep"])
def test_labels_and_n_together_are_misuse(command, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("0 1 2")
    result = run(command, "--labels", file, "--n", 2)
    assert (result.exit_code, "got both" in result.stderr) == (2, True)
    file.write_text("0 1 x")
    result = run(command, "--labels", file)
    assert (result.exit_code, "integers" in result.stderr) == (2, True)


def test_a_folder_that_is_a_file_is_misuse(tmp_path):
    (tmp_path / "file").touch()
    result = run("solve", *SIZES, "--out", tmp_path / "file")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("command", ["solve", "verify", "sweep"])
def test_help_tells_the_shelves_and_gives_examples(command):
    text = run(command, "--help").stdout
    for name in (*losses.LOSSES, *solvers.SOLVERS, *(f"--{name}" for name in _options.HYPERPARAMETERS)):
        assert name in text
    assert f"ufm {command} --" in text
    assert "Exit status" in text


def test_no_command_prints_the_help():
    result = run()
    assert result.exit_code == 2
    assert "ufm verify --loss all" in result.stderr


# --- landscape ------------------------------------------------------------------------------------

SMALL = ("--K", 3, "--d", 4, "--n", 2, "--lam-W", 0.01, "--lam-H", 0.02)


def test_landscape_tells_every_known_point_and_theorem_2(tmp_path):
    result = run("landscape", *SMALL, "--json", "--out", tmp_path)
    found = answer(result)
    assert result.exit_code == 0
    assert found["passed"]
    assert [point["index"] for point in found["points"]] == [0, 3, 4, 8]
    assert {claim["verdict"] for claim in found["claims"]} == {"holds", "not applicable"}
    names = {"result.json", "arrays.npz"} | {
        f"{name}.{suffix}" for name in ("figure", "descent", "slice") for suffix in ("png", "pdf")
    }
    assert {path.name for path in tmp_path.iterdir()} == names
    prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_W=0.01, lam_H=0.02)
    arrays = stored(tmp_path)
    lowest = ufm.Params(*(jax.numpy.asarray(arrays[f"{name}_0"]) for name in "WHb"))
    assert float(prob(lowest)) == found["points"][0]["objective"]


def test_landscape_fails_where_a_spurious_minimum_is_found():
    result = run("landscape", "--K", 5, "--d", 2, "--n", 1, "--lam", 0.01, "--search", "--starts", 64)
    assert result.exit_code == 1
    assert "no_spurious_minimum" in result.stdout
    assert "0.318778795422" in result.stdout


def test_landscape_draws_phases(tmp_path):
    grid = ("--C", "0.3,0.9", "--K", 4, "--d", 5, "--n", 2, "--starts", 2)
    result = run(
        "landscape", "--phase-diagram", "--loss", "ce", *grid, "--json", "--plot", tmp_path / "p.png"
    )
    answer(result)
    assert result.exit_code == 0
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--C", "1,2"), "C: expected with --phase-diagram only"),
        (("--phase-diagram",), "C: expected a grid"),
        (("--phase-diagram", "--C", "1,2", "--lam", "0.1"), "lam_W: expected without --phase-diagram"),
        (("--lam", "0.1,0.2"), "lam_W: expected one value"),
        (("--starts", "5"), "starts: expected with --search"),
        (("--loss", "cee"), "did you mean"),
        (("--search", "--starts", "0"), "starts: expected an integer >= 1"),
    ],
)
def test_landscape_tells_misuse_in_a_line(args, words):
    result = run("landscape", *args)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert words in result.stderr


# --- the compilation cache ------------------------------------------------------------------------


def process(*args, **variables):
    env = {name: value for name, value in os.environ.items() if name != "UFM_CACHE"}
    command = [sys.executable, "-c", "from ufm._cli import main; main()", *args]
    return subprocess.run(command, env=env | variables, capture_output=True, text=True, check=False)


def test_a_second_start_compiles_nothing_and_says_nothing(tmp_path):
    args = ("solve", *SIZES, "--json", "--quiet")  # a busy machine may take the seconds that are told
    first = process(*args, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    kept = {file.name for file in tmp_path.iterdir() if file.name.endswith("-cache")}
    second = process(*args, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert kept == {file.name for file in tmp_path.iterdir() if file.name.endswith("-cache")}
    assert any("_run" in name for name in kept)
    assert (first.returncode, second.returncode) == (0, 0)
    assert (first.stderr, second.stderr) == ("", "")
    assert first.stdout == second.stdout
    assert json.loads(first.stdout)["solution"]["converged"] is True


def test_a_process_reports_misuse_in_one_line():
    result = process("solve", "--K", "1", UFM_CACHE="0")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "ufm: K: expected an integer >= 2, got 1\n"


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cdu", "cuda,tpu"])
def test_a_platform_without_a_device_is_misuse(platform):
    result = process("solve", *SIZES, JAX_PLATFORMS=platform, UFM_CACHE="0")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("ufm: JAX_PLATFORMS: expected a platform with a device on this machine, got")
    assert repr(platform) in line
    assert "set it to cpu" in line


@pytest.mark.parametrize("command", _cli.COMMANDS)
def test_every_command_tells_a_missing_device(command, monkeypatch):
    def no_device():
        raise RuntimeError("Unable to initialize backend 'cuda': why (set JAX_PLATFORMS='' to choose)")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", no_device)
    result = run(command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "ufm: JAX_PLATFORMS: expected a platform with a device on this machine, got 'cuda' (Unable to "
        "initialize backend 'cuda': why); unset it to take what there is, or set it to cpu\n"
    )
    assert run(command, "--help").exit_code == 0
