"""SHELF of losses: pure functions `loss(z, k)` of one logit vector z (K,) and its class k.

Each loss is a file that holds the function, the facts that theorems need about it, and what is known about
it in closed form. Everything else (batches, gradients, Hessian-vector products, a scalar profile that is not
stated) follows by `vmap` and autodiff. Hyperparameters are leaves of a pytree: a sweep compiles once.

>>> import ufm
>>> ufm.losses.get("poly1", epsilon=2.0)
Poly-1(epsilon=2)
>>> ufm.theory.contrastive_property("temperature", 5).holds_with_bias
True
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ufm import _checks
from ufm.losses._base import Loss
from ufm.losses._cross_entropy import CrossEntropy, cross_entropy
from ufm.losses._cs import CrammerSinger, crammer_singer
from ufm.losses._cs2 import SquaredCrammerSinger, squared_crammer_singer
from ufm.losses._custom import Custom, custom
from ufm.losses._exponential import Exponential, exponential
from ufm.losses._focal import Focal, focal
from ufm.losses._frozen import Frozen, check, exchanged, frozen
from ufm.losses._gce import GeneralisedCrossEntropy, generalised_cross_entropy
from ufm.losses._label_smoothing import LabelSmoothing, label_smoothing
from ufm.losses._logitnorm import LogitNorm, logit_norm
from ufm.losses._logits import log_odds
from ufm.losses._mae import MeanAbsoluteError, mean_absolute_error
from ufm.losses._margin import AdditiveMargin, additive_margin
from ufm.losses._mse import RescaledMSE, mse
from ufm.losses._ova import OneVersusAll, one_vs_all
from ufm.losses._poly1 import Poly1, poly1
from ufm.losses._sce import SymmetricCrossEntropy, symmetric_cross_entropy
from ufm.losses._taylor import TaylorCrossEntropy, taylor_cross_entropy
from ufm.losses._temperature import Temperature, temperature_cross_entropy
from ufm.losses._weighted import Weighted, weighted, weights_of, without_weights
from ufm.losses._ww import SquaredWestonWatkins, weston_watkins

#: The shelf: tests, the command line and the README iterate it. A new loss is a file and its lines here.
LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": cross_entropy,
    "ls": label_smoothing,
    "fl": focal,
    "mse": mse,
    "gce": generalised_cross_entropy,
    "sce": symmetric_cross_entropy,
    "poly1": poly1,
    "taylor": taylor_cross_entropy,
    "mae": mean_absolute_error,
    "margin": additive_margin,
    "temperature": temperature_cross_entropy,
    "logitnorm": logit_norm,
    "ova": one_vs_all,
    "exponential": exponential,
    "ww": weston_watkins,
    "cs2": squared_crammer_singer,
    "cs": crammer_singer,
}
#: The losses of Zhou et al. 2022: what sweeps over "all" losses and the reports are about.
PAPER = ("ce", "ls", "fl", "mse")
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(make).parameters) for name, make in LOSSES.items()
}

__all__ = [
    "HYPERPARAMETERS", "LOSSES", "PAPER", "AdditiveMargin", "CrammerSinger", "CrossEntropy", "Custom",
    "Exponential", "Focal", "Frozen", "GeneralisedCrossEntropy", "LabelSmoothing", "LogitNorm", "Loss",
    "MeanAbsoluteError", "OneVersusAll", "Poly1", "RescaledMSE", "SquaredCrammerSinger",
    "SquaredWestonWatkins", "SymmetricCrossEntropy", "TaylorCrossEntropy", "Temperature", "Weighted",
    "additive_margin", "check", "crammer_singer", "cross_entropy", "custom", "exchanged", "exponential",
    "focal", "frozen", "generalised_cross_entropy", "get", "known_as", "label_smoothing", "log_odds",
    "logit_norm", "mean_absolute_error", "mse", "one_vs_all", "poly1", "squared_crammer_singer",
    "symmetric_cross_entropy", "taylor_cross_entropy", "temperature_cross_entropy", "weighted",
    "weights_of", "weston_watkins", "without_weights",
]  # fmt: skip


def get(loss: str | Loss | Callable[..., Any], **hyperparameters: Any) -> Loss:
    """A `Loss` from a name (with hyperparameters), a `Loss`, or a function `loss(z, k)`.

    Raises:
        ValueError: an unknown name (the nearest is suggested), a hyperparameter that the loss does not
            have, or one outside its range.
    """
    if isinstance(loss, str):
        words = {make.__name__: name for name, make in LOSSES.items()}
        name = _checks.choice("loss", loss, LOSSES, also=words)
        for given in hyperparameters:
            if given not in HYPERPARAMETERS[name]:
                has = ", ".join(HYPERPARAMETERS[name]) or "none"
                raise ValueError(f"{given}: expected a hyperparameter of loss {name!r} ({has}), got {given}")
        return LOSSES[name](**hyperparameters)
    if hyperparameters:
        raise ValueError(
            f"{next(iter(hyperparameters))}: hyperparameters go with a loss given by name, got loss={loss!r}"
        )
    return loss if isinstance(loss, Loss) else custom(loss)


def known_as(loss: Loss) -> str:
    """The name under which records keep a loss: a user's loss never has the name of one of the shelf."""
    loss = without_weights(loss)
    taken = loss.name in LOSSES and type(loss) is not type(LOSSES[loss.name]())
    return "custom" if taken else loss.name
