"""The settings of every test run; they are made before JAX and the package are imported.

Shapes are checked and warnings are errors. Most of a run's time is compilation, hence two measures:

The compiled programs of a run are kept in a folder that its workers share and that is removed at its end. No
result depends on what an earlier run has compiled.

LLVM does not optimise what it compiles, which takes a third to a tenth of the time. XLA's own passes on the
program, which decide what is computed and in which order, are those that a user has. `.ci/processors` runs
tests of each file with LLVM's optimisation: where XLA_FLAGS is set, it is left as it is.
"""

import gc
import os
import sys
import tempfile
from pathlib import Path

# what tests share is imported by its name, from whichever folder
sys.path.extend(str(path) for path in Path(__file__).parent.glob("**/") if path.name != "__pycache__")

from xla_flags import flags

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one process a core already
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", flags(0, "--xla_cpu_parallel_codegen_split_count=1"))
os.environ["UFM_CACHE"] = "0"  # the library's own cache, in the user's folder, is neither read nor written
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has the variables of the process that started it
    _programs = tempfile.TemporaryDirectory(prefix="ufm-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
elif hasattr(os, "sched_setaffinity"):
    # One core a worker, where there are no more: the threads of XLA would wait for each other, which costs a
    # tenth of the processor time.
    _cores, _worker = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER"][len("gw") :])
    if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) >= len(_cores):
        os.sched_setaffinity(0, {_cores[_worker % len(_cores)]})

import jax
import processors
import pytest
from jaxtyping import install_import_hook

# The modules that speak of shapes, and no others, because the hook slows every call in a module.
ROOT = Path(__file__).parents[1]
CHECKED = [path for path in ROOT.glob("ufm/**/*.py") if "from jaxtyping import" in path.read_text()]
install_import_hook(
    [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in CHECKED], "shapes.check"
)

from ufm import _solve  # noqa: E402

#: Files that test words, files and processes, not numbers.
PROSE = (
    "benchmarks", "cli", "cli_counts", "deep_cli", "deep_data", "deep_devices", "deep_figures",
    "deep_folders",
    "deep_sweep", "docs", "notebooks", "package", "processors", "report", "reproduce", "reproduce_formulas",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks `processor`, for `.ci/processors`: `processors.AGAIN` tests of each file of numbers, a case each.

    They are spread evenly over the file, so that what stands together because it is alike is seen once. The
    docstrings count as one file. More are marked by hand: what has once depended on rounding.
    """
    cases: dict[str, dict[str, pytest.Item]] = {}
    for item in items:
        file = item.path.stem if item.path.stem.startswith("test_") else "docstrings"
        if file.removeprefix("test_") not in PROSE and not item.get_closest_marker("long"):
            cases.setdefault(file, {}).setdefault(item.nodeid.partition("[")[0], item)
    for tests in map(list, map(dict.values, cases.values())):
        for i in range(min(processors.AGAIN, len(tests))):
            tests[i * len(tests) // min(processors.AGAIN, len(tests))].add_marker("processor")


#: one entry for each program
_COMPILED: list[str] = []


def _listen(event: str, duration: float, **_: object) -> None:
    # JAX reports it for a program read from the folder above, too: what counts is that one was asked for
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compilations():
    """A function that returns how many programs JAX has compiled, or read from disk, since its last call."""
    _solve._lost.clear()  # what has been solved before must not make a program be compiled again
    seen = [len(_COMPILED)]

    def since() -> int:
        new = len(_COMPILED) - seen[0]
        seen[0] = len(_COMPILED)
        return new

    return since


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """A compiled program takes several memory maps; past 65,530 of them Linux ends the process.

    Tracing makes many objects that live on in JAX's caches. Searching them for cycles takes Python a tenth of
    the time, so it is done seldom within a file and thoroughly after it.
    """
    gc.set_threshold(100_000, 20, 50)
    yield
    jax.clear_caches()
    gc.collect()
