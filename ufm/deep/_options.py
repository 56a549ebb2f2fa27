"""The options of training: declared by the signature and the docstring of `train`, read from there by others.

`train_many`, `plan_sweep` and `ufm train` have the options of `train`. Name, type and default are those of
its signature. The help is its docstring's, whose first sentence `ufm train --help` shows, and whose words
"Default: ..." explain a default of None. The check is that of `plan` or of the field in `presets.Settings`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: parameters of `train` that say how it runs and not what: they do not change the result
EXECUTION = ("out", "resume", "checkpoint_seconds", "devices", "data_memory", "progress")


class Option(NamedTuple):
    """One option of a training run."""

    name: str
    type: str  # as in the signature, "int | None"
    default: object
    help: str


def options_of(train: Callable[..., object]) -> dict[str, Option]:
    """The options that determine a run, by name."""
    texts = _arguments(inspect.getdoc(train) or "")
    return {
        name: Option(name, inspect.formatannotation(p.annotation).strip("'"), p.default, texts.get(name, ""))
        for name, p in inspect.signature(train).parameters.items()
        if p.kind is not p.VAR_KEYWORD and name not in EXECUTION
    }


def _arguments(doc: str) -> dict[str, str]:
    """The section "Args:" of a docstring: name -> text."""
    section = doc.partition("\nArgs:\n")[2].split("\n\n")[0]
    entries = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def takes_options_of(
    train: Callable[..., object], *, without: Iterable[str], hyperparameters: bool = False, **defaults: object
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that adds the options of `train` to the signature of a function that takes **options.

    Args:
        without: options that the function has in another form.
        hyperparameters: whether it also takes those of the losses.
        defaults: that differ from those of `train`.
    """
    of_train = inspect.signature(train).parameters
    further = [p for p in of_train.values() if p.kind is p.VAR_KEYWORD and hyperparameters]

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        *own, _ = inspect.signature(function).parameters.values()
        declared = {*without, *(p.name for p in own)}
        shared = [
            of_train[name].replace(kind=inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, o.default))
            for name, o in options_of(train).items()
            if name not in declared
        ]
        signature = inspect.Signature([*own, *shared, *further])

        @functools.wraps(function)
        def with_options(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(*bound.args, **bound.kwargs)

        with_options.__signature__ = signature  # type: ignore[attr-defined]
        return with_options

    return decorate
