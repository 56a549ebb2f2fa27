"""The spectra's peers at the same point of the same problem.

A peer is a function (prob, params, which) -> a function of a tolerance that returns the eigenvalue at that
end; None where it cannot find that end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

import ufm
from benchmarks.peers import torch_threads
from ufm.hessian.product import product

End = Callable[[float], float]


def ours_as_operator(prob: ufm.Problem, params: ufm.Params) -> LinearOperator:
    """Our jitted product on flat vectors, for scipy."""
    _, unravel = ravel_pytree(params)

    @jax.jit
    def flat(prob: ufm.Problem, params: ufm.Params, x: jax.Array) -> jax.Array:
        return ravel_pytree(product(prob, params)(unravel(x)))[0]

    flat(prob, params, np.zeros(prob.size)).block_until_ready()
    return LinearOperator(
        (prob.size, prob.size), matvec=lambda x: np.asarray(flat(prob, params, x.ravel())), dtype=float
    )


def _network(params: ufm.Params) -> Any:
    """Logits W H + b of the samples asked for: equation (7) as a network whose features are parameters."""
    import torch

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            W, H, b = (torch.tensor(np.asarray(x)) for x in params)
            self.W, self.F, self.b = (torch.nn.Parameter(x.contiguous()) for x in (W, H.T, b))

        def forward(self, index: Any) -> Any:
            return self.F[index] @ self.W.T + self.b

    return Features()


def _data(prob: ufm.Problem) -> tuple[Any, Any]:
    import torch

    torch_threads(prob)
    return torch.arange(prob.N), torch.tensor(np.asarray(prob.labels), dtype=torch.int64)


def curvlinops_operator(prob: ufm.Problem, params: ufm.Params) -> LinearOperator:
    """curvlinops' Hessian of the mean cross-entropy, the penalties added on the diagonal."""
    import torch
    from curvlinops import HessianLinearOperator

    network = _network(params)
    variables = list(network.parameters())
    operator = HessianLinearOperator(
        network, torch.nn.CrossEntropyLoss(), variables, [_data(prob)], check_deterministic=False
    )
    inner = operator.to_scipy(dtype=np.float64)
    sizes = [p.numel() for p in variables]
    shift = np.repeat([float(prob.lam_W), float(prob.lam_H), 0.0], sizes)
    return LinearOperator(
        inner.shape, matvec=lambda x: inner.matvec(x.ravel()) + shift * x.ravel(), dtype=np.float64
    )


def _eigsh(make: Callable[[ufm.Problem, ufm.Params], LinearOperator]) -> Callable[..., End]:
    def peer(prob: ufm.Problem, params: ufm.Params, which: str) -> End:
        operator = make(prob, params)
        start = np.random.default_rng(0).normal(size=prob.size)
        how = {"k": 1, "which": "SA" if which == "smallest" else "LA", "maxiter": 20_000, "v0": start}

        def end(tol: float) -> float:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return float(eigsh(operator, return_eigenvectors=False, tol=tol, **how)[0])
            except ArpackNoConvergence:
                return float("nan")

        return end

    return peer


def pyhessian(prob: ufm.Problem, params: ufm.Params, which: str) -> End | None:
    """PyHessian's power iteration: the eigenvalue of largest modulus, and no other."""
    import torch
    from pyhessian import hessian

    if which != "largest":
        return None
    network, labels = _network(params), _data(prob)
    lam_W, lam_H = float(prob.lam_W), float(prob.lam_H)

    def loss(logits: Any, target: Any) -> Any:
        penalty = lam_W / 2 * (network.W**2).sum() + lam_H / 2 * (network.F**2).sum()
        return torch.nn.functional.cross_entropy(logits, target) + penalty

    def end(tol: float) -> float:
        torch.manual_seed(0)
        computer = hessian(network, loss, data=labels, cuda=False)
        return float(computer.eigenvalues(maxIter=1000, tol=tol, top_n=1)[0][0])

    return end


PEERS: dict[str, Callable[[ufm.Problem, ufm.Params, str], End | None]] = {
    "scipy eigsh, our product": _eigsh(ours_as_operator),
    "curvlinops + eigsh": _eigsh(curvlinops_operator),
    "PyHessian": pyhessian,
}
