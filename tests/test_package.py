"""What a release says of itself agrees (version, Pythons, changelog, citation), and none of it is missing."""

import ast
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import ufm
from ufm._cli import main

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def numbers(version):
    return tuple(map(int, version.split(".")))


def test_the_version_has_one_home_and_its_copies_agree():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "ufm/_version.py"
    assert re.findall(r"^version: (.*)$", CITATION, re.M) == [ufm.__version__]


def test_the_command_line_tells_the_version():
    assert CliRunner().invoke(main, ["--version"]).output == f"ufm, version {ufm.__version__}\n"


def test_the_readme_names_the_wheel():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"ufm-([\d.]+)-py3-none-any\.whl", readme) == [ufm.__version__]


def test_the_readme_has_a_row_for_each_dependency():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("\n| needs | for |\n")[1].split("\n\n")[0]
    needed = {re.match(r"[\w-]+", entry)[0] for entry in PROJECT["project"]["dependencies"]}
    first = ", ".join(row.split("|")[1] for row in table.splitlines())
    assert needed == set(re.findall(r"[a-z][\w-]*", first))


def test_the_changelog_leads_to_the_version():
    """What is unreleased stands first; the released versions are older, or the last one is this one."""
    sections = re.findall(r"^## \[(.*?)\]", CHANGELOG, re.M)
    released = [numbers(section) for section in sections[1:]]
    assert sections[0] == "Unreleased"
    assert released == sorted(released, reverse=True)
    assert released[0] <= numbers(ufm.__version__)


def test_the_pythons_that_are_declared_are_those_that_are_tried():
    from benchmarks import versions

    named = re.findall(r"Python :: (\d\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert named == list(dict.fromkeys(python for python, _ in versions.CASES))
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"


#: Parts with an underscore of libraries that we build on, and parts of JAX that may change at any time. Of
#: `jax.extend`, JAX's place for libraries that read programs, only the module of programs is used.
PRIVATE = re.compile(
    r"(jax|jnp|jaxlib|optax|np|numpy|scipy|matplotlib|plt|click|rich|flint)(\.\w+)*\._[a-z]"
    r"|jax\.(interpreters|lib)\b|jax\.extend\b(?!\.core\b)|jax\.core\.(?!Tracer\b)"
)


def names(source):
    """What is imported or read from something, with its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize(
    "line",
    ["import jax._src.core", "from jax._src import api", "from jax import _src", "jax.core.eval_jaxpr(j)",
     "x = np._core.umath", "from jax.interpreters import xla", "optax._src.base.scale()", "import jax.lib"],
)  # fmt: skip
def test_a_private_name_is_told(line):
    assert any(map(PRIVATE.match, names(line)))


@pytest.mark.parametrize("folder", ["ufm", "benchmarks", "docs", "tests"])
def test_no_private_names_of_other_libraries(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert not list(filter(PRIVATE.match, names(path.read_text("utf-8")))), path.name


def contents():
    spec = importlib.util.spec_from_file_location("contents", ROOT / ".ci" / "contents.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder, names, sources=None):
    """A wheel and a source distribution of empty files with these names."""
    with zipfile.ZipFile(folder / "ufm-1-py3-none-any.whl", "w") as wheel:
        for name in (*names, "ufm-1.dist-info/METADATA"):
            wheel.writestr(name, "")
    with tarfile.open(folder / "ufm-1.tar.gz", "w:gz") as archive:
        for name in names if sources is None else sources:
            archive.addfile(tarfile.TarInfo(f"ufm-1/{name}"))


def test_the_data_files_are_part_of_the_package():
    found = contents().package()
    data = {f"ufm/reproduce/{name}" for name in ("report.css", "report.html.jinja", "report.schema.json")}
    assert {"ufm/py.typed", "ufm/__init__.py"} | data <= found
    assert not [name for name in found if "__pycache__" in name]


@pytest.mark.parametrize("lost", ["ufm/py.typed", "ufm/reproduce/report.html.jinja", "ufm/_solve.py"])
def test_a_file_that_is_not_in_the_wheel_is_named(tmp_path, lost):
    check = contents()
    whole = check.package() | check.SOURCES
    build(tmp_path, check.package(), whole)
    check.main(tmp_path)
    build(tmp_path, check.package() - {lost}, whole)
    with pytest.raises(SystemExit, match=rf"missing in the wheel: {lost}$"):
        check.main(tmp_path)
    build(tmp_path, check.package(), whole - {lost, "LICENSE"})
    with pytest.raises(SystemExit, match=r"missing in the source distribution: LICENSE"):
        check.main(tmp_path)


def test_what_the_wheel_would_put_beside_the_package_is_named(tmp_path):
    check = contents()
    build(tmp_path, check.package() | {"tests/conftest.py"}, check.package() | check.SOURCES)
    with pytest.raises(SystemExit, match=r"wheel: tests/conftest\.py\?"):
        check.main(tmp_path)


def test_the_import_does_not_need_scipys_optimisers():
    """They take three times as long as everything else of `import ufm` beyond JAX's own import."""
    slow = ("scipy.optimize", "rich", "matplotlib")
    code = f"import sys, ufm; print([m for m in sys.modules if m.startswith({slow})])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
