"""Checks of what a user gives: each raises before any compute and says what to do."""

from __future__ import annotations

import difflib
import math
import operator
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def integer(name: str, value: Any, *, least: int) -> int:
    """`value` as an int >= `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    return number


def seed(name: str, value: Any) -> int:
    """`value` as an int >= 0 that an integer of JAX holds."""
    number, most = integer(name, value, least=0), int(np.iinfo(jax.numpy.result_type(int)).max)
    if number > most:
        raise ValueError(f"{name}: expected an integer >= 0 and <= {most}, got {value!r}")
    return number


def boolean(name: str, value: Any) -> bool:
    """`value` as a bool; a word or a number is more likely a mistake."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    why: str = "",
) -> Any:
    """`value` as a float64 scalar inside an interval; a JAX tracer passes unread."""
    if isinstance(value, jax.core.Tracer):
        return value
    allowed = "a finite number"
    allowed += f" > {above:g}" if above is not None else ""
    allowed += f" >= {least:g}" if least is not None else ""
    allowed += f" and < {below:g}" if below is not None else ""
    try:
        scalar = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu"
        number = float(np.asarray(value, dtype=np.float64)) if scalar else math.nan
    except (TypeError, ValueError):
        number = math.nan
    outside = (
        not math.isfinite(number)
        or (above is not None and number <= above)
        or (least is not None and number < least)
        or (below is not None and number >= below)
    )
    if outside:
        raise ValueError(f"{name}: expected {allowed}, got {value!r}{'; ' + why if why else ''}")
    return np.float64(number)


def choice(name: str, value: Any, known: Iterable[str], also: Mapping[str, str] | None = None) -> str:
    """`value` as one of the `known` names, else the nearest one is suggested.

    `also`: other spellings to compare with, each with the name it stands for.
    """
    names = list(known)
    if value in names:
        return str(value)
    spellings = {name: name for name in names} | dict(also or {})
    near = difflib.get_close_matches(str(value).lower(), spellings, n=1, cutoff=0.4)
    hint = f"; did you mean {spellings[near[0]]!r}?" if near else ""
    raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}{hint}")


def unmasked(name: str, value: Any) -> Any:
    """`value`, which may be a masked array of numpy or a list of them as long as nothing is masked.

    A plain array made of one would hold whatever lies under its mask.
    """
    if isinstance(value, np.ma.MaskedArray):
        hidden = int(np.sum(np.ma.getmaskarray(value)))
        if hidden:
            raise ValueError(
                f"{name}: expected an array without masked values, got {hidden} masked of {value.size}; "
                "leave their samples out, or put values there with .filled(...)"
            )
        return np.ma.getdata(value)
    if isinstance(value, list | tuple):
        for part in value:
            unmasked(name, part)
    return value


def array_like(name: str, value: Any) -> jax.Array | np.ndarray:
    """`value` as a jax or numpy array. Torch's tensors are recognised by their methods, without an import."""
    if isinstance(value, jax.Array):
        return value
    value = unmasked(name, value)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value  # numpy has no such dtype
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array (jax, numpy or torch), got {value!r}") from error


def folder(name: str, path: Path) -> None:
    """Make a folder, and sure that it can be written to.

    Raises:
        OSError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(
            f"{name}: expected a folder that can be written, got {str(path)!r} ({error.strerror or error}); "
            "choose another folder"
        ) from error


def samples(samples: Any, columns: int) -> np.ndarray | None:
    """How many samples each column stands for, (columns,) whole numbers, or None."""
    if samples is None:
        return None
    array = np.asarray(array_like("samples", samples))
    if array.shape != (columns,) or array.dtype.kind not in "iuf":
        raise ValueError(
            f"samples: expected ({columns},) numbers, one for each label, got {array.dtype} {array.shape}"
        )
    if not (np.isfinite(array).all() and (array >= 1).all() and (array == np.round(array)).all()):
        raise ValueError(f"samples: expected whole numbers >= 1, got {samples!r}")
    return array.astype(np.float64)


def labels(labels: Any) -> np.ndarray:
    """`labels` as a vector (N,) of integers."""
    labels = unmasked("labels", labels)
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"labels: expected a vector (N,) of integers, got {labels!r}") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"labels: expected a vector (N,) with N >= 1, got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got dtype {array.dtype}")
    return array


def classes(labels: np.ndarray, K: int) -> np.ndarray:
    """`labels` whose classes are 0..K-1, each at least once."""
    if labels.min() < 0 or labels.max() >= K:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"labels: expected classes in 0..{K - 1} (K={K}), got {wrong}")
    present = np.unique(labels)  # not a count per class: K may be absurd
    if present.size < K:
        empty = int(np.argmax(np.append(present, -1) != np.arange(present.size + 1)))
        raise ValueError(
            f"labels: expected every class 0..{K - 1} at least once, got none of class {empty}; "
            "lower K or renumber the classes"
        )
    return labels.astype(np.int32)


def counts(counts: Any) -> np.ndarray:
    """`counts` as a vector (K,) of integers >= 1."""
    try:
        array = np.asarray(unmasked("counts", counts))
    except ValueError as error:
        raise ValueError(f"counts: expected a vector (K,) of integers >= 1, got {counts!r}") from error
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"counts: expected a vector (K,) with K >= 2, got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"counts: expected integers, got dtype {array.dtype}")
    if array.min() < 1:
        k = int(array.argmin())
        raise ValueError(f"counts: expected integers >= 1, got {array[k]} of class {k}; leave the class out")
    return array.astype(np.int64)


def increasing(name: str, values: Any, *, above: float = -math.inf) -> np.ndarray:
    """`values` as a vector of finite, increasing float64 numbers above a bound."""
    array = np.atleast_1d(np.asarray(values))
    wrong = array.ndim != 1 or array.size == 0 or array.dtype.kind not in "fiu"
    if wrong or not np.isfinite(array).all() or (np.diff(array) <= 0).any():
        raise ValueError(f"{name}: expected a vector of finite, increasing numbers, got {values!r}")
    if array[0] <= above:
        raise ValueError(f"{name}: expected numbers > {above:g}, got {array[0]}")
    return array.astype(np.float64)
