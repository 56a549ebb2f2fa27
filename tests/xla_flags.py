"""The flags of XLA with which the tests compile. XLA ends a process at a flag that its version lacks."""

import importlib.metadata
import re


def flags(optimisation: int, *more: str) -> str:
    """XLA_FLAGS for a level of LLVM's optimisation, without the fusion emitters: they are slow to compile."""
    version = importlib.metadata.version("jaxlib")
    emitters_are_a_choice = tuple(map(int, re.findall(r"\d+", version)[:3])) < (0, 11, 1)
    without = ["--xla_cpu_use_fusion_emitters=false"] if emitters_are_a_choice else []
    return " ".join([f"--xla_backend_optimization_level={optimisation}", *without, *more])
