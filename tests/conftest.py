"""Shapes are checked and warnings are errors: set before the package is imported."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one process a core already
os.environ["UFM_CACHE"] = "0"  # what is tested does not depend on what was compiled before
sys.path.insert(0, str(Path(__file__).parent))

import jax
import processors
import pytest
from jaxtyping import install_import_hook

install_import_hook("ufm", "shapes.check")


def pytest_configure(config: pytest.Config) -> None:
    """Files in order: by default those with few tests come last, and the notebooks have few and take long."""
    if hasattr(config.option, "loadscopereorder"):  # xdist's
        config.option.loadscopereorder = False


#: Files that test words, files and processes, not numbers.
PROSE = (
    "benchmarks", "cli", "deep_cli", "deep_data", "deep_devices", "deep_figures", "deep_folders",
    "deep_sweep", "docs", "notebooks", "package", "processors", "report", "reproduce",
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


_COMPILED: list[str] = []


def _listen(event: str, duration: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compilations():
    """A function that tells how many programs XLA has compiled since it was last called."""
    seen = [len(_COMPILED)]

    def since() -> int:
        new = len(_COMPILED) - seen[0]
        seen[0] = len(_COMPILED)
        return new

    return since


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """A compiled program takes several memory maps; past 65,530 of them Linux ends the process."""
    yield
    jax.clear_caches()
