"""Tries versions of Python and of the libraries: `python -m benchmarks.versions`.

For each case the script creates an environment (with uv if it is on the path, otherwise with venv and pip)
and runs the tests marked `processor` in it, one of each file of numbers, with warnings as errors. The
libraries are the `oldest` that pyproject.toml allows, the `newest` that can be installed, or the newest
together with one version of JAX. The outcome is written to `versions.json` and, as a table, to
CONTRIBUTING.md. Cases whose interpreter is not on this machine keep their old outcome, so that several
machines can fill one table. The script uses only the standard library, so each of these Pythons can run it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "versions.json"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- versions: begin (from benchmarks/versions.json) -->", "<!-- versions: end -->"

#: Python, and the libraries: `oldest`, `newest`, or a version of JAX.
CASES = (
    ("3.11", "oldest"),
    ("3.11", "newest"),
    ("3.12", "0.11"),
    ("3.12", "newest"),
    ("3.13", "newest"),
    ("3.14", "newest"),
)
SHOWN = ("jax", "numpy", "scipy", "optax", "matplotlib")
EXTRAS = ("deep", "rigour")
#: What the tests import. PyTorch, the other implementation of the networks, is left out for its size.
TOOLS = (
    "pytest>=8", "pytest-xdist>=3.6", "beartype>=0.20", "mpmath>=1.3", "cvxpy>=1.6", "threadpoolctl>=3",
    "nbformat>=5.10",
)  # fmt: skip
WITH_TORCH = ("tests/torch_nets.py", "tests/deep/test_deep_nets.py")
TESTS = ("tests", "-m", "processor", *(f"--ignore={path}" for path in WITH_TORCH))

Outcome = dict[str, str]


# --- environments ---------------------------------------------------------------------------------


def interpreter(version: str) -> str | None:
    """A Python of this version that starts: this one, one on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    known = [
        sys.executable,
        shutil.which(f"python{version}"),
        *sorted(pyenv.glob(f"{version}.*/bin/python3")),
    ]
    code = "import sys, venv, ensurepip; print('.'.join(map(str, sys.version_info[:2])))"
    for path in filter(None, map(str, filter(None, known))):
        if _run(path, "-c", code).stdout.strip() == version:
            return path
    return None


def lower_bounds() -> Iterator[str]:
    """`jax>=0.10` of pyproject.toml as `jax==0.10`, of the dependencies and the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in (project["dependencies"], *(project["optional-dependencies"][name] for name in EXTRAS)):
        yield from (requirement.replace(">=", "==") for requirement in wanted)


def constraints(libraries: str) -> list[str]:
    if libraries == "oldest":  # of pyparsing, Matplotlib 3.9 calls names that 3.3 deprecates
        return [*lower_bounds(), "pyparsing<3.3"]
    return [] if libraries == "newest" else [f"jax=={libraries}.*", f"jaxlib=={libraries}.*"]


def install(python: str, folder: Path, libraries: str) -> str:
    """A new environment's interpreter; raises `subprocess.CalledProcessError` where pip finds no solution."""
    inside, pins = str(folder / "env" / "bin" / "python"), folder / "constraints.txt"
    pins.write_text("\n".join(constraints(libraries)))
    make, pip = (python, "-m", "venv"), (inside, "-m", "pip", "install")
    if uv := shutil.which("uv"):
        make, pip = (uv, "venv", "--python", python), (uv, "pip", "install", "--python", inside)
    _run(*make, str(folder / "env"), check=True)
    wanted = ("-e", f"{ROOT}[{','.join(EXTRAS)}]", *TOOLS)
    _run(*pip, "--quiet", "--constraint", str(pins), *wanted, check=True)
    return inside


def _run(*command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check)


# --- outcomes -------------------------------------------------------------------------------------


def attempt(python: str, libraries: str, log: Path, select: tuple[str, ...]) -> Outcome:
    """Versions and test counts of one case; pytest's whole output goes to `log`."""
    with tempfile.TemporaryDirectory(prefix="ufm-versions-") as folder:
        try:
            inside = install(python, Path(folder), libraries)
        except subprocess.CalledProcessError as error:
            return {"tests": f"not installed: {(error.stderr or '').strip().splitlines()[-1]}"}
        code = f"import sys, importlib.metadata as m; print(*(m.version(name) for name in {SHOWN!r}))"
        found = dict(zip(SHOWN, _run(inside, "-c", code, check=True).stdout.split(), strict=True))
        with log.open("w") as stream:
            command = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(select or TESTS)]
            subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, check=False)
        last = log.read_text().strip().splitlines()[-1]
        return found | {"tests": re.sub(r", \d+ deselected| in [\d.]+s.*", "", last).strip("= ")}


def table(record: dict[str, Outcome]) -> str:
    """The outcomes in the order of `CASES`; what was never tried says so."""
    lines = [
        "| Python | libraries | " + " | ".join(SHOWN) + " | tests | on |",
        "|---" * (len(SHOWN) + 4) + "|",
    ]
    for python, libraries in CASES:
        row = record.get(f"{python} {libraries}", {"tests": "not tried yet"})
        words = libraries if libraries in ("oldest", "newest") else f"JAX {libraries}"
        cells = [python, words, *(row.get(name, "") for name in (*SHOWN, "tests", "date"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(case: str, outcome: Outcome) -> None:
    """Into the record and the table as they are by now: another process may try other cases meanwhile."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[case] = outcome | {"date": datetime.date.today().isoformat()}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(record) + "\n" + END + rest.split(END)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases that contain this, such as 3.13 or oldest")
    parser.add_argument(
        "--logs", type=Path, default=Path(tempfile.gettempdir()), help="folder for pytest's output"
    )
    parser.add_argument(
        "select", nargs="*", help="other arguments of pytest; the outcome is then not recorded"
    )
    given = parser.parse_args()
    for version, libraries in CASES:
        case = f"{version} {libraries}"
        if given.only not in case:
            continue
        if (python := interpreter(version)) is None:
            print(f"{case}: no interpreter at hand", flush=True)
            continue
        log = given.logs / f"ufm-versions-{version}-{libraries}.log"
        outcome = attempt(python, libraries, log, tuple(given.select))
        print(f"{case}: {outcome}, {log}", flush=True)
        if not given.select:
            write(case, outcome)


if __name__ == "__main__":
    main()
