"""First and second derivatives of a loss in its logits, at a point of full class symmetry."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ufm.losses._base import Setting
from ufm.losses._closed import Curvature, NoClosedForm, along_margin
from ufm.theory.optima import Optimum
from ufm.theory.profiles import measure, profile_of


def _by_autodiff(s: Setting, opt: Optimum) -> Curvature:
    K, own = s.K, jnp.arange(s.K) == 0
    z = jnp.where(own, opt.margin, 0.0) + (opt.mean_eigenvalue - opt.margin) / K + opt.bias

    def second(x: Any, y: Any) -> float:
        slope = jax.grad(lambda z: s.loss(z, 0))
        return float(jax.jvp(slope, (z,), (jnp.asarray(x),))[1] @ jnp.asarray(y))

    gradient = np.asarray(jax.grad(lambda z: s.loss(z, 0))(z))
    e, f = np.eye(K)[0], (1 - np.eye(K)[0]) / math.sqrt(K - 1)
    block = np.array([[second(e, e), second(e, f)], [second(f, e), second(f, f)]])
    pair = (np.eye(K)[1] - np.eye(K)[-1]) / math.sqrt(2)
    rest = second(pair, pair) if K > 2 else 0.0
    return Curvature(float(gradient[0]), float(gradient[-1]), block, rest, measure(s.loss, K).shift_invariant)


def curvature(s: Setting, opt: Optimum) -> Curvature:
    """Derivatives of the loss at the logits of the optimum: as the loss states them, else by autodiff.

    Raises:
        NoClosedForm: one of them is not finite.
    """
    found = s.loss.curvature(s.K, opt.margin, opt.mean_eigenvalue, opt.bias)
    if found is None and s.loss.of_p:
        found = along_margin(profile_of(s.loss, s.K), opt.margin)
    found = found or _by_autodiff(s, opt)
    if not np.isfinite([found.u, found.v, found.rest, *found.block.ravel()]).all():
        raise NoClosedForm(
            f"loss: {s.loss!r} has no finite second derivative at the optimum ({opt.structure}, margin "
            f"{opt.margin:.6g}), so the Hessian has no spectrum there"
        )
    return found
