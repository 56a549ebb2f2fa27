"""SHELF of losses from the literature, each one function `loss(z, k)`, to try the contrastive property on.

`fails` names the tests of `theory.contrastive_property` that a loss fails at K = 5; empty where Theorem 1
holds for it with any bias. Adding a loss is adding a row.

>>> import ufm
>>> from ufm import catalogue
>>> ufm.theory.contrastive_property(catalogue.get("temperature CE").loss, 5).holds_with_bias
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ufm import _checks
from ufm.losses import Loss, custom


class Entry(NamedTuple):
    """A row of the shelf."""

    name: str
    formula: str  # LaTeX, p the target probability, z_k the target logit
    loss: Loss
    fails: tuple[str, ...]  # tests of Definition 1 that it fails at K = 5
    smooth: bool  # its scalar profile has two derivatives everywhere
    source: str
    remark: str  # values of its constants, and where the row departs from the source


def _log_p(z: Array, k: Any) -> Array:
    return jax.nn.log_softmax(z)[k]


def _own(z: Array, k: Any) -> Array:
    return jnp.arange(z.shape[0]) == k


def of_log_p(h: Callable[[Array], Array]) -> Callable[[Array, Any], Array]:
    """The loss h(log p_k)."""
    return lambda z, k: h(_log_p(z, k))


def additive_margin(z: Array, k: Any) -> Array:
    """Cross-entropy of logits whose target is lowered by one."""
    return -_log_p(jnp.where(_own(z, k), z - 1.0, z), k)


def temperature(z: Array, k: Any) -> Array:
    """Cross-entropy at temperature 1/2."""
    return -_log_p(z / 0.5, k)


def logit_norm(z: Array, k: Any) -> Array:
    """Cross-entropy of normalised logits."""
    return -_log_p(z / jnp.linalg.norm(z), k)


def one_vs_all(z: Array, k: Any) -> Array:
    """A logistic loss for each class."""
    return jnp.sum(jax.nn.softplus(jnp.where(_own(z, k), -z, z)))


def exponential(z: Array, k: Any) -> Array:
    """The exponential loss of all margins."""
    return jnp.sum(jnp.where(_own(z, k), 0.0, jnp.exp(z - z[k])))


def _hinges(z: Array, k: Any) -> Array:
    return jnp.where(_own(z, k), 0.0, jnp.maximum(0.0, 1.0 + z - z[k]))


def summed_hinge(z: Array, k: Any) -> Array:
    """Weston and Watkins' hinges, squared."""
    return jnp.sum(_hinges(z, k) ** 2)


def maximal_hinge(z: Array, k: Any) -> Array:
    """Crammer and Singer's hinge."""
    return jnp.max(_hinges(z, k))


def _entry(
    name: str,
    formula: str,
    function: Callable[[Array, Any], Array],
    fails: str = "",
    smooth: bool = True,
    *,
    source: str,
    remark: str = "",
) -> Entry:
    return Entry(name, formula, custom(function), tuple(fails.split()), smooth, source, remark)


_TIED = "T5 T6"  # two margins tie, and the convex hull of phi lies below phi between them

#: The shelf.
CATALOGUE: tuple[Entry, ...] = (
    _entry("generalised CE", r"(1 - p^q)/q, q = 0.7", of_log_p(lambda s: (1 - jnp.exp(0.7 * s)) / 0.7),
           _TIED, source="Zhang and Sabuncu, NeurIPS 2018", remark="q = 0.7 as there"),
    _entry("symmetric CE", r"-0.1 \log p + 4 (1 - p)", of_log_p(lambda s: -0.1 * s + 4 * (1 - jnp.exp(s))),
           _TIED, source="Wang, Ma, Chen, Luo, Yi and Bailey, ICCV 2019",
           remark="alpha CE + beta reverse CE with alpha = 0.1, beta = 1 and log 0 read as A = -4"),
    _entry("Poly-1 eps=1", r"-\log p + (1 - p)", of_log_p(lambda s: -s + 1 - jnp.exp(s)),
           source="Leng et al., ICLR 2022"),
    _entry("Poly-1 eps=2", r"-\log p + 2 (1 - p)", of_log_p(lambda s: -s + 2 * (1 - jnp.exp(s))),
           _TIED, source="Leng et al., ICLR 2022"),
    _entry("Taylor CE", r"(1 - p) + (1 - p)^2/2",
           of_log_p(lambda s: (1 - jnp.exp(s)) + (1 - jnp.exp(s)) ** 2 / 2), _TIED,
           source="Feng et al., IJCAI 2020", remark="the first t = 2 terms of -log p = sum_i (1 - p)^i/i"),
    _entry("MAE", r"2 (1 - p)", of_log_p(lambda s: 2 * (1 - jnp.exp(s))), _TIED,
           source="Ghosh, Kumar and Sastry, AAAI 2017", remark="the 1-norm of e_k - softmax(z)"),
    _entry("additive margin", r"-\log p(z - e_k)", additive_margin,
           source="Wang, Cheng, Liu and Liu, IEEE Signal Processing Letters 2018",
           remark="margin 1 on the logits themselves; there on cosines, which are then scaled"),
    _entry("temperature CE", r"-\log p(2 z)", temperature, source="Hinton, Vinyals and Dean 2015",
           remark="temperature 1/2 in training and in use"),
    _entry("logit-norm CE", r"-\log p(z/\|z\|)", logit_norm, "T1 T3 T4 T6", source="Wei et al., ICML 2022",
           remark="temperature 1; there a hyperparameter, far below 1"),
    _entry("one-vs-all", r"\log(1+e^{-z_k}) + \sum_{j \ne k} \log(1+e^{z_j})", one_vs_all, "T1",
           source="Zhang, JMLR 5, 2004",
           remark="the one-versus-all form with the logistic loss; of networks also: binary cross-entropy"),
    _entry("exponential", r"\sum_{j \ne k} e^{z_j - z_k}", exponential,
           source="Mukherjee and Schapire, JMLR 14, 2013"),
    _entry("squared WW hinge", r"\sum_{j \ne k} \max(0, 1 + z_j - z_k)^2", summed_hinge, "T4", False,
           source="Weston and Watkins, ESANN 1999", remark="squared, margin 1; there plain, margin 2"),
    _entry("squared CS hinge", r"\max_{j \ne k} \max(0, 1 + z_j - z_k)^2",
           lambda z, k: maximal_hinge(z, k) ** 2, "T4", False,
           source="Lee and Lin, Neural Computation 25, 2013", remark="Crammer and Singer's, squared"),
    _entry("CS hinge", r"\max_{j \ne k} \max(0, 1 + z_j - z_k)", maximal_hinge, "T4 T5", False,
           source="Crammer and Singer, JMLR 2, 2001"),
)  # fmt: skip


def get(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: an unknown name; the nearest is suggested.
    """
    found = {entry.name: entry for entry in CATALOGUE}
    return found[_checks.choice("name", name, found)]
