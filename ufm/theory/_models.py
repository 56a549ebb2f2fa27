"""SHELF of optima of models other than two free factors; `theory.global_optimum` asks it first."""

from __future__ import annotations

from collections.abc import Callable

from ufm import models
from ufm._problem import Problem
from ufm.theory import _deep, _fixed
from ufm.theory.optima import Optimum

#: by the type of the model: a user's own model is never mistaken for another
OPTIMA: dict[type[models.Model], Callable[[Problem], Optimum]] = {
    models.Fixed: _fixed.optimum,
    models.Deep: _deep.optimum,
}
