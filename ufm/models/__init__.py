"""SHELF of models: what is free, how logits follow from it, what it costs, and what is known about it.

The default is the model of equation (7), two free factors. A model is one file here; `Problem(model=...)`
takes its name or an object of it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from ufm import _checks
from ufm.models._base import Model, Params, Sizes, Variables, at_least, by_part, unbound
from ufm.models._deep import Deep, deep
from ufm.models._fixed import Fixed, fixed
from ufm.models._nonnegative import NonNegative, nonnegative
from ufm.models._norms import NormConstrained, norm_constrained
from ufm.models._spheres import Spheres, spheres
from ufm.models.free import Free

#: The shelf: the command line lists it.
MODELS: dict[str, Callable[..., Model]] = {
    "free": Free,
    "nonnegative": nonnegative,
    "deep": deep,
    "spheres": spheres,
    "norm_constrained": norm_constrained,
    "fixed": fixed,
}


def get(model: str | Model) -> Model:
    """A `Model` from a name of the shelf, with arguments after a colon, or a `Model`.

    Raises:
        ValueError: an unknown name or argument (the nearest is suggested), a value that the model refuses, or
            something that is not a model.

    >>> get("spheres:scale=8"), get("deep:layers=2,lam=0.01").layers
    (spheres(scale=8), 2)
    """
    if isinstance(model, Model):
        return model
    name, _, given = str(model).partition(":")
    make = MODELS[_checks.choice("model", name if isinstance(model, str) else model, MODELS)]
    known = inspect.signature(make).parameters
    if given and not known:
        raise ValueError(f"model: expected no arguments, which {name!r} does not take, got {given!r}")
    arguments = {}
    for part in filter(None, given.split(",")):
        argument, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"model: expected name=value after the colon, got {part!r}; for one, scale=8")
        arguments[_checks.choice(f"model {name}", argument.strip(), known)] = _value(value.strip())
    return make(**arguments)


def _value(text: str) -> Any:
    """A number or a truth value where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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
