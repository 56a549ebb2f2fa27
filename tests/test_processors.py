"""The lanes of `.ci/processors`: what runs in them, and that it computes as on an older processor."""

import json
import subprocess
import sys
from pathlib import Path

import processors
import pytest

SCRIPT = Path(processors.__file__)
NEW = {"baseline": ["X86_V2"], "found": ["X86_V3", "X86_V4", "AVX512_ICL"]}
OLD = {
    "baseline": ["SSE", "SSE2", "SSE3"],
    "found": ["SSSE3", "SSE41", "POPCNT", "SSE42", "AVX", "F16C", "FMA3", "AVX2", "AVX512F", "AVX512_SKX"],
}
TELL = """
import json, os, numpy as np, scipy.linalg, threadpoolctl
found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
blas = [one["architecture"] for one in threadpoolctl.threadpool_info() if one["internal_api"] == "openblas"]
print(json.dumps([found, blas, os.environ["XLA_FLAGS"], os.environ["XDG_CACHE_HOME"]]))
"""


@pytest.mark.parametrize(
    ("features", "name", "left_out"),
    [
        (NEW, "AVX2", "X86_V4 AVX512_ICL"),
        (NEW, "SSE4_2", "X86_V3 X86_V4 AVX512_ICL"),
        (OLD, "AVX2", "AVX512F AVX512_SKX"),
        (OLD, "SSE4_2", "AVX F16C FMA3 AVX2 AVX512F AVX512_SKX"),
    ],
    ids=["new-AVX2", "new-SSE4_2", "old-AVX2", "old-SSE4_2"],
)
def test_numpy_does_without_what_the_processor_lacks(features, name, left_out, monkeypatch):
    monkeypatch.setattr(processors, "numpy_features", features.get)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "ours")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    changed = processors.environment(name, "cache")
    assert processors.reached(name)
    assert changed["NPY_DISABLE_CPU_FEATURES"] == left_out
    assert changed["XLA_FLAGS"] == f"--xla_dump_to=x --xla_cpu_max_isa={name}"
    assert changed["XDG_CACHE_HOME"] == "cache"
    assert "JAX_COMPILATION_CACHE_DIR" not in changed


@pytest.mark.parametrize("name", processors.PROCESSORS)
def test_a_process_computes_as_on_the_older_processor(name):
    if not processors.reached(name):
        pytest.skip("this machine has fewer instructions")
    pytest.importorskip("threadpoolctl")
    command = [sys.executable, str(SCRIPT), name, sys.executable, "-W", "error", "-c", TELL]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    found, blas, flags, cache = json.loads(told.stdout)
    assert set(found) <= processors.PROCESSORS[name].numpy
    assert set(blas) <= {processors.PROCESSORS[name].openblas}
    assert f"--xla_cpu_max_isa={name}" in flags
    assert not Path(cache).exists()  # it was this process's alone, and went with it


def test_the_command_s_exit_status_is_the_lane_s():
    name = next(iter(processors.PROCESSORS))
    if not processors.reached(name):
        pytest.skip("this machine has fewer instructions")
    assert processors.main(name, sys.executable, "-c", "raise SystemExit(3)") == 3


def test_a_machine_with_fewer_instructions_says_that_nothing_was_run(monkeypatch, capsys):
    monkeypatch.setattr(processors, "numpy_features", {"baseline": ["ASIMD"], "found": ["SVE"]}.get)
    for name in processors.PROCESSORS:
        assert processors.main(name, "no such command") == 0
        assert f"{name}: not run" in capsys.readouterr().out


def test_an_unknown_processor_is_refused():
    with pytest.raises(SystemExit, match="processor: expected one of AVX2, SSE4_2, got 'AVX3'"):
        processors.main("AVX3")


def test_the_first_cases_of_a_few_tests_and_those_marked_by_hand_run_again():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "processor",
    ]
    files = [str(SCRIPT.parent / name) for name in ("rigour/test_rigour_saddles.py", "test_processors.py")]
    told = subprocess.run(
        [*command, *files], capture_output=True, text=True, check=True, cwd=SCRIPT.parent.parent
    )
    chosen = [line for line in told.stdout.splitlines() if "::" in line]
    names = {line.partition("[")[0] for line in chosen}
    by_hand = "tests/rigour/test_rigour_saddles.py::test_the_counterexample_of_20_classes"
    assert {name.partition("::")[0] for name in names} == {"tests/rigour/test_rigour_saddles.py"}
    assert by_hand in names
    assert len(names) == len(chosen) == 1 + processors.AGAIN  # one case of each test, and of few tests
