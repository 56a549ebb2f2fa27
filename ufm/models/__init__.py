"""SHELF of models: what is free, how logits follow from it, what it costs, and what is known about it.

The default is the model of equation (7), two free factors. A model is one file here; `Problem(model=...)`
takes its name or an object of it.
"""

from __future__ import annotations

from collections.abc import Callable

from ufm import _checks
from ufm.models._base import Model, Params, Sizes, Variables, at_least, by_part, unbound
from ufm.models._deep import Deep, deep
from ufm.models._fixed import Fixed, fixed
from ufm.models._nonnegative import NonNegative, nonnegative
from ufm.models._norms import NormConstrained, norm_constrained
from ufm.models._spheres import Spheres, spheres
from ufm.models.free import Free

#: The shelf: tests and the command line iterate it.
MODELS: dict[str, Callable[[], Model]] = {
    "free": Free,
    "nonnegative": NonNegative,
    "deep": Deep,
    "spheres": Spheres,
    "norm_constrained": NormConstrained,
}


def get(model: str | Model) -> Model:
    """A `Model` from a name of the shelf or a `Model`.

    Raises:
        ValueError: an unknown name (the nearest is suggested), or something that is not a model.
    """
    if isinstance(model, Model):
        return model
    return MODELS[_checks.choice("model", model, MODELS)]()


__all__ = [
    "MODELS",
    "Deep",
    "Fixed",
    "Free",
    "Model",
    "NonNegative",
    "NormConstrained",
    "Params",
    "Sizes",
    "Spheres",
    "Variables",
    "at_least",
    "by_part",
    "deep",
    "fixed",
    "get",
    "nonnegative",
    "norm_constrained",
    "spheres",
    "unbound",
]
