"""Corollary 2: the region in which focal loss is convex in the logits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ufm import _compile, losses, theory
from ufm.figures import Curve
from ufm.losses import Loss
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import Job, Level, Outcome, compared
from ufm.reproduce._theorem_2 import cases, claims
from ufm.reproduce._witness import Shape, shown

_GAMMAS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)


def corollary_2(level: Level) -> Iterator[Job]:
    """Critical points of focal loss inside the region, and whether the optimum lies in the paper's region."""
    for case in cases(level, "fl"):
        yield Job(case.name, partial(claims, case, ("critical", "corollary_2", "paper_region")), 6.0)
    for c in (0.02, 0.11) if level == "quick" else (0.005, 0.02, 0.05, 0.09, 0.1, 0.11, 0.12):
        yield Job(f"optimum-c{c:g}", partial(_optimum_region, c), 0.1)


def _optimum_region(c: float) -> Outcome:
    prob = witness.problem("fl", Shape(10, 12, 1), c)
    best = theory.global_optimum(prob)
    p = float(np.exp(best.margin) / (np.exp(best.margin) + prob.K - 1))
    least = theory.convexity_region("fl", prob.K).p_min
    config = {"loss": shown("fl"), "K": prob.K, "c": c, "p at the optimum": p, "p_min": least}
    return Outcome(
        (
            compared("how far the global minimiser lies outside p >= 0.21", config, max(0.0, 0.21 - p), 0.0),
            compared("and outside p >= p_min(gamma)", config, max(0.0, least - p), 0.0, "ours"),
        )
    )


def region(level: Level) -> Iterator[Job]:
    """p_min(gamma), against derivatives of the loss."""
    for gamma in (1.0, 3.0, 10.0) if level == "quick" else _GAMMAS:
        yield Job(f"gamma{gamma:g}", partial(_region, gamma), 0.5)
    yield Job("curve", _region_curve, 0.2)


def _region(gamma: float) -> Outcome:
    loss = losses.focal(gamma)
    p = theory.convexity_region(loss, 10).p_min
    a = np.log(p) - np.log1p(-p) + np.log(9)
    _, _, bend, third = (float(x[0]) for x in witness.profile(loss, 10, [a]))
    config = {"loss": "fl", "gamma": gamma, "p_min": p, "paper": 0.21}
    signs = _wrong_signs(loss, p)
    return Outcome(
        (
            compared("p_min <= 0.21: the paper's region suffices", config, max(0.0, p - 0.21), 0.0,
                     "paper", {"0.21 / p_min": 0.21 / p}),
            compared("relative error of p_min by autodiff: (1-p) l''/l'''", config,
                     abs((1 - p) * bend / third), 1e-10, "ours"),
            compared("Hessians in z, p_k within 0.1 % of p_min, with a smallest eigenvalue of the wrong sign",
                     config, float(signs), 0.0, "ours"),
        )
    )  # fmt: skip


@partial(_compile.jit, options=_compile.INSTANT)
def _smallest(loss: Loss, z: jax.Array) -> jax.Array:
    return jax.vmap(lambda z: jnp.linalg.eigvalsh(jax.hessian(lambda x: loss(x, 0))(z)))(z)


def _wrong_signs(loss: Loss, p: float) -> int:
    """Random logits of 6 classes whose target probability is 0.1 % above, then below, p_min."""
    rng, wrong = np.random.default_rng(0), 0
    for factor, positive in ((1.001, True), (0.999, False)):
        z = rng.normal(size=(64, 6))
        q = p * factor
        z[:, 0] = np.log(np.exp(z[:, 1:]).sum(axis=1)) + np.log(q / (1 - q))
        values = np.asarray(_smallest(loss, jnp.asarray(z)))
        # the common shift of the logits is an exact zero: rounding gives it either sign
        negative = values[:, 0] < -1e-9 * np.abs(values).max(axis=1)
        wrong += int((negative if positive else ~negative).sum())
    return wrong


def _region_curve() -> Outcome:
    gamma = np.geomspace(0.2, 20.0, 60)
    p = [float(theory.p_infl(g)) for g in gamma]
    curves = (
        Curve("region", "p_min(gamma), exact", gamma.tolist(), p),
        Curve("region", "0.21, the paper", [float(gamma[0]), float(gamma[-1])], [0.21, 0.21]),
        Curve("region", "0.2032, its proof", [float(gamma[0]), float(gamma[-1])], [0.20318787] * 2),
    )
    return Outcome((), curves=curves)
