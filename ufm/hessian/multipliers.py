"""Lagrange multipliers: which penalties would hold a point of fixed norms in place."""

from __future__ import annotations

import jax
import numpy as np

from ufm._precision import in_float64
from ufm._problem import Problem, Variables


@in_float64
def multipliers(prob: Problem, params: Variables) -> Variables:
    """The multipliers of fixed norms: -<grad_x g, x>/|x|^2, with the gradient of the mean loss in free x.

    With these penalties of the parts of the variables a critical point is one of the penalised problem, too.
    `models.norm_constrained`: numbers for W and H, lam_W and lam_H, zero for a bound that is not active;
    `models.spheres`: one for each row (K, 1) and column (1, N); `models.fixed`: one for each column.

    Returns: the named tuple of the model's variables, None where a variable is free.

    Raises:
        ValueError: a model without fixed norms; params of a wrong shape.

    Source: docs/theory.md, section 6.5.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=4, d=6, n=3, model=ufm.models.norm_constrained(E_W=2.0, E_H=1.0))
    >>> round(float(multipliers(prob, ufm.solve(prob).params).W), 10)
    0.0737304824
    """
    if not prob.model.curved:
        raise ValueError(
            f"model: expected one with fixed norms (spheres, norm_constrained, fixed on a sphere), got "
            f"model={prob.model!r}; its penalties are given"
        )
    params = prob.check_params(params)
    found = prob.model.multipliers(prob, params, prob.logit_gradient(params))
    return jax.tree.map(np.asarray, found)
