"""What is shown runs: the notebooks, the README's Python, and the README's table of claims."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from tolerances import HANG
from xla_flags import flags

from ufm import claims, reproduce
from ufm.deep import figures

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
README = (ROOT / "README.md").read_text()


def section(heading):
    """The part of the README below this heading."""
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


# In a process of its own, because Jupyter's sockets outlive it; and in this interpreter, whatever kernels
# are registered on the machine.
EXECUTE = """
import sys
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

class Here(KernelSpecManager):
    def get_kernel_spec(self, name):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=name, language="python")

notebook = nbformat.read(sys.argv[1], as_version=4)
kernel, limit = AsyncKernelManager(kernel_spec_manager=Here()), int(sys.argv[2])
NotebookClient(notebook, km=kernel, timeout=limit, startup_timeout=limit).execute()
print(nbformat.writes(notebook))
"""


def execute(path):
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures are shown
    # training takes several times as long in code without any optimisation
    if re.search(r"\btrain(_many)?\(", path.read_text()):
        env["XLA_FLAGS"] = flags(1)
    command = [sys.executable, "-c", EXECUTE, str(path), str(HANG)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs(path):
    result = execute(path)
    assert result.returncode == 0, result.stderr
    for cell in nbformat.reads(result.stdout, as_version=4).cells:
        if cell.cell_type == "code":
            shown = "".join(str(output) for output in cell.outputs)
            assert "FAILED" not in shown
            draws = bool(re.search(r"\.plot\(|plot_\w+\(|\.imshow\(", cell.source))
            assert ("image/png" in shown) == draws, cell.source


def test_a_notebook_that_fails_is_noticed(tmp_path):
    path = tmp_path / "wrong.ipynb"
    cells = [nbformat.v4.new_code_cell("raise ValueError('as it should')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    result = execute(path)
    assert result.returncode != 0
    assert "as it should" in result.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_stored_notebook_is_short_small_and_tells_nothing_of_a_machine(path):
    text = path.read_text()
    assert len(text) < 400_000
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/|site-packages|Traceback", text)
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15
            assert cell.execution_count is not None, "stored without its output"


def test_the_python_of_the_readme_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "passed: " in capsys.readouterr().out
    assert names["sol"].converged
    assert names["sols"].converged.all()


def test_the_readme_lists_every_claim():
    shelves = (claims.STATEMENTS, claims.UNEQUAL, claims.LAYERS, claims.NON_NEGATIVE, claims.SPHERES)
    listed = set(re.findall(r"`(\w+)`", section("What is verified")))
    assert listed >= {row.name for shelf in shelves for row in shelf}


def test_the_readme_has_every_verdict_of_the_shelf():
    table = section("The paper on one page")
    for part in ("paper", "beyond"):
        those = [row for row in reproduce.STATEMENTS if row.part == part]
        rows = [f"| {row.section} | {row.title} | {row.known} |" for row in those]
        assert [line for line in table.splitlines() if line in rows] == rows


def test_the_readme_has_the_numbers_of_the_records():
    runs = figures.records(ROOT / "benchmarks" / "runs" / "mnist")
    assert {run.config["loss"] for run in runs} == set(figures.LOSSES)
    for run in runs:
        history, title = json.loads(run.source.read_text())["history"], figures.LOSSES[run.config["loss"]][0]
        last = {name: values[-1] for name, values in history.items()}
        assert (last["train_accuracy"], last["nc4"]) == (1, 1)
        assert last["nc1"] < 1e-2
        numbers = f"{last['test_accuracy']:.1%} | {last['nc1']:.1e} | {last['nc2']:.3f} | {last['nc3']:.3f}"
        assert f"| {title} | 100 % | {numbers.replace('%', ' %')} | 100 % |" in README


def test_the_readme_has_the_two_commands_that_ci_runs():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv ")]
    assert len(commands) == 2
    assert commands[0].endswith("ufm reproduce --quick")
    assert ".venv/bin/pytest" in commands[1]
