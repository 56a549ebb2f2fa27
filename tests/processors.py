"""Runs a command as on an older x86 processor: `python tests/processors.py AVX2 pytest -m processor`.

Results differ in their last digits between processors, because their vectors have different widths (sums are
added in another order) and only some fuse a product with an addition. A test that passes on one processor may
thus fail on another. Each library that computes is told by its own environment variable, which is read when a
process starts, to use no more than the given instructions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np


class Processor(NamedTuple):
    """What computes at most like this, in the words of each library."""

    needs: frozenset[
        str
    ]  # what this machine must have to compute like it, by numpy's names before and since 2.4
    numpy: frozenset[str]  # the features that numpy may choose when it runs, by the same names
    openblas: str
    torch: str
    onednn: str  # PyTorch's convolutions
    without: tuple[str, ...]  # glibc's names: its exp and log choose by processor, too


#: Tests of each file that run again as on an older processor; both lanes then take minutes, not a suite each.
AGAIN = 1

_SSE4_2 = frozenset({"SSE", "SSE2", "SSE3", "SSSE3", "SSE41", "POPCNT", "SSE42", "X86_V2"})
_AVX512 = ("AVX512F", "AVX512VL", "AVX512BW", "AVX512DQ")

#: By the names of XLA's flag `xla_cpu_max_isa`.
PROCESSORS = {
    "AVX2": Processor(
        needs=frozenset({"AVX2", "X86_V3"}),
        numpy=_SSE4_2 | {"AVX", "F16C", "FMA3", "AVX2", "X86_V3"},
        openblas="Haswell",
        torch="avx2",
        onednn="AVX2",
        without=_AVX512,
    ),
    "SSE4_2": Processor(
        needs=frozenset({"SSE42", "X86_V2"}),
        numpy=_SSE4_2,
        openblas="Nehalem",
        torch="default",
        onednn="SSE41",
        without=(*_AVX512, "AVX", "AVX2", "FMA", "FMA4"),
    ),
}


def numpy_features(kind: str) -> list[str]:
    """What numpy was built for ("baseline"), and what it "found" on this processor beyond that."""
    return list(np.show_config(mode="dicts")["SIMD Extensions"].get(kind, []))


def reached(name: str) -> bool:
    """Whether this machine has the instructions of the processor `name`; others can only be left out."""
    return bool(PROCESSORS[name].needs & {*numpy_features("baseline"), *numpy_features("found")})


def environment(name: str, cache: str) -> dict[str, str]:
    """This process's variables, changed so that another computes like the processor `name`.

    A program that was compiled for one processor must not run as another's, so `cache` is a folder that only
    this processor uses, and a compilation cache that the user has set is left out.
    """
    level = PROCESSORS[name]
    kept = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    return kept | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa={name}".strip(),
        "OPENBLAS_CORETYPE": level.openblas,
        "NPY_DISABLE_CPU_FEATURES": " ".join(f for f in numpy_features("found") if f not in level.numpy),
        "ATEN_CPU_CAPABILITY": level.torch,
        "ONEDNN_MAX_CPU_ISA": level.onednn,
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=" + ",".join(f"-{feature}" for feature in level.without),
        "XDG_CACHE_HOME": cache,
    }


def main(name: str, *command: str) -> int:
    if name not in PROCESSORS:
        raise SystemExit(f"processor: expected one of {', '.join(PROCESSORS)}, got {name!r}")
    if not reached(name):
        print(f"{name}: not run, because this machine cannot compute like it")
        return 0
    with tempfile.TemporaryDirectory(prefix=f"ufm-{name}-") as cache:
        return subprocess.run(command, env=environment(name, cache), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
