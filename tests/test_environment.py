"""The package's environment variables, and what importing it does to the process."""

import os
import subprocess
import sys
import warnings

import pytest

from ufm import _environment

WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


#: variables of this package, and those of JAX that decide where compiled programs are kept
OURS = ("UFM_", "JAX_ENABLE_X64", "JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


def python(code, **variables):
    """A fresh process without the variables of `OURS`, but for those given."""
    return subprocess.run(
        [sys.executable, "-c", code], env=PLAIN | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title, lambda word: f" {word} "])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("default", [False, True])
def test_a_switch_is_read_in_any_spelling(word, spelling, default, monkeypatch):
    monkeypatch.setenv("UFM_SOMETHING", spelling(word))
    assert _environment.switch("UFM_SOMETHING", default) is WORDS[word]


@pytest.mark.parametrize("value", [None, "", "   "])
@pytest.mark.parametrize("default", [False, True])
def test_a_switch_without_a_value_has_its_default(value, default, monkeypatch):
    monkeypatch.delenv("UFM_SOMETHING", raising=False)
    if value is not None:
        monkeypatch.setenv("UFM_SOMETHING", value)
    assert _environment.switch("UFM_SOMETHING", default) is default


@pytest.mark.parametrize("value", ["maybe", "2", "-1", "0.0", "flase", "/scratch"])
@pytest.mark.parametrize("default", [False, True])
def test_any_other_word_is_the_default_and_a_warning(value, default, monkeypatch):
    monkeypatch.setenv("UFM_SOMETHING", value)
    with pytest.warns(UserWarning, match="UFM_SOMETHING: expected one of 1, true") as caught:
        assert _environment.switch("UFM_SOMETHING", default) is default
    (warning,) = caught
    assert repr(value) in str(warning.message)
    assert (
        len(
            warnings.formatwarning(
                warning.message, UserWarning, warning.filename, warning.lineno
            ).splitlines()
        )
        == 1
    )


PRECISION = "import ufm, jax; print(jax.numpy.zeros(1).dtype)"


@pytest.mark.parametrize(
    ("value", "dtype"), [("false", "float32"), ("NO", "float32"), ("", "float64"), ("True", "float64")]
)
def test_the_precision_is_a_switch(value, dtype):
    result = python(PRECISION, UFM_ENABLE_X64=value)
    assert (result.stdout.strip(), result.stderr) == (dtype, "")


def test_a_misspelt_precision_is_told_in_one_line():
    result = python(PRECISION, UFM_ENABLE_X64="flase")
    assert result.stdout.strip() == "float64"
    (line,) = result.stderr.splitlines()
    assert "UFM_ENABLE_X64: expected one of" in line


def test_the_folder_of_data_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    from ufm.deep import _download

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UFM_DATA", "~/my data")
    assert _download.cache_dir() == tmp_path / "my data"


def test_the_folder_of_data_may_not_be_a_file(monkeypatch, tmp_path):
    from ufm.deep import _download

    (tmp_path / "file").touch()
    monkeypatch.setenv("UFM_DATA", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="UFM_DATA: expected a folder, got"):
        _download.cache_dir()


# --- the compilation cache ------------------------------------------------------------------------

SETTING = "import ufm, jax; print(jax.config.jax_compilation_cache_dir)"
SOLVE = (
    "import ufm; sol = ufm.solve_ufm('ce', K=4, d=6, n=3); print(repr(float(sol.objective)), sol.converged)"
)
#: several programs, so that what is told once has more than one occasion
SMALL = """
import ufm, jax
for i in range(3):
    print(float(jax.jit(lambda x: x * i)(1.0)) == i)
"""


def programs(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*-cache")}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "{tmp}/a b"}, "{tmp}/a b/ufm/xla/"),
        ({"XDG_CACHE_HOME": "", "HOME": "{tmp}"}, "{tmp}/.cache/ufm/xla/"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "{tmp}"}, "{tmp}/.cache/ufm/xla/"),
        ({"XDG_CACHE_HOME": "{tmp}", "UFM_CACHE": "off"}, "None"),
        ({"XDG_CACHE_HOME": "{tmp}", "JAX_COMPILATION_CACHE_DIR": "{tmp}/mine"}, "{tmp}/mine"),
    ],
)
def test_where_compiled_programs_are_kept(variables, expected, tmp_path):
    given = {name: value.format(tmp=tmp_path) for name, value in variables.items()}
    result = python(SETTING, **given)
    assert result.stderr == ""
    assert result.stdout.startswith(expected.format(tmp=tmp_path))
    assert list(tmp_path.iterdir()) == []  # nothing is made before something is compiled


def test_a_folder_that_the_process_has_set_is_left_alone(tmp_path):
    before = f"import jax; jax.config.update('jax_compilation_cache_dir', {str(tmp_path / 'mine')!r}); "
    result = python(before + SETTING, XDG_CACHE_HOME=str(tmp_path))
    assert result.stdout.strip() == str(tmp_path / "mine")


def test_the_library_s_second_process_compiles_nothing(tmp_path):
    first = python(SOLVE, XDG_CACHE_HOME=str(tmp_path))
    kept = programs(tmp_path)
    second = python(SOLVE, XDG_CACHE_HOME=str(tmp_path))
    assert any("_run" in name for name in kept)
    assert programs(tmp_path) == kept
    assert (first.stderr, second.stderr) == ("", "")
    assert first.stdout == second.stdout
    assert "True" in first.stdout


def told_once(result, *words):
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("True") == 3
    (line,) = result.stderr.splitlines()
    for word in ("ufm: a compiled program could not be kept", "UFM_CACHE=0", *words):
        assert word in line


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").touch()  # a folder cannot be made below a file, even by root
    told_once(python(SMALL, XDG_CACHE_HOME=str(tmp_path / "file")), "Not a directory")


def test_a_cache_that_is_full_is_done_without(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    told_once(python(limit + SMALL, XDG_CACHE_HOME=str(tmp_path)), "File too large")


@pytest.mark.parametrize("content", [b"", b"not a program", None])
def test_damaged_programs_are_compiled_and_kept_anew(content, tmp_path):
    python(SMALL, XDG_CACHE_HOME=str(tmp_path))
    files = list(tmp_path.rglob("*-cache"))
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    told_once(python(SMALL, XDG_CACHE_HOME=str(tmp_path)))
    assert python(SMALL, XDG_CACHE_HOME=str(tmp_path)).stderr == ""
    assert {file.name for file in files} == set(programs(tmp_path))


def test_processes_share_a_cache(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SOLVE], env=PLAIN | {"XDG_CACHE_HOME": str(tmp_path)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(set(answers)) == 1
    assert "True" in answers[0]


@pytest.mark.parametrize(
    "variables",
    [
        {"HOME": ""},
        {"HOME": "/dev/null/nowhere at all"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"COLUMNS": "40"},
    ],
)
def test_an_odd_environment_works(variables, tmp_path):
    code = "import ufm; print(ufm.solve_ufm('ce', K=3, d=4, n=2))"
    result = python(
        code, **({"XDG_CACHE_HOME": str(tmp_path)} if "HOME" not in variables else {}), **variables
    )
    assert result.returncode == 0, result.stderr
    assert "converged" in result.stdout
