"""SHELF of optima of models other than two free factors; `theory.global_optimum` asks it first."""

from __future__ import annotations

from collections.abc import Callable

from ufm._problem import Problem
from ufm.theory import _deep, _fixed
from ufm.theory.optima import Optimum

#: by the name of the model
MODELS: dict[str, Callable[[Problem], Optimum]] = {"fixed": _fixed.optimum, "deep": _deep.optimum}
