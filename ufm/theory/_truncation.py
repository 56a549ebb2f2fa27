"""Squared error with kappa = 1 in any dimension: the largest soft-thresholded singular values are kept.

The mean loss is |M - T|_F^2/N for M = Zbar D^(1/2), D = diag(n_k), and the target T = beta D^(1/2) without a
bias. A free bias is best at b = (beta - Zbar) pi, which leaves T = beta D^(1/2) (I - s s'), s_k = sqrt(pi_k),
and M s = 0. By von Neumann's trace inequality M shares the singular vectors of T, each singular value by
itself: (m - sigma)^2/N + lam m is lowest at m = sigma - N lam/2, which gains (sigma - N lam/2)^2/N against
m = 0. A rank of at most d allows the d largest.

Source: docs/theory.md, section 5.5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.losses._base import Setting
from ufm.theory._frames import Factors


class Truncated(NamedTuple):
    """The minimiser and its value."""

    value: float
    trivial: float  # at Z = 0
    factors: Factors
    b: Float[np.ndarray, " K"]
    gains: int  # singular values above N lam/2: the rank of the optimum where d allows it


def applies(s: Setting) -> bool:
    """Whether the optimum is known for every d."""
    kappa, _ = s.loss.squares() or (0.0, 0.0)
    return kappa == 1 and not (s.bias and s.lam_b > 0)


def minimum(s: Setting, counts: Int[np.ndarray, " K"]) -> Truncated:
    """The global minimum among the points of rank at most d, for any counts."""
    _, beta = s.loss.squares() or (0.0, 0.0)
    lam, share = math.sqrt(s.c_squared / s.n), counts / s.N
    complement = np.eye(s.K) - np.sqrt(np.outer(share, share)) if s.bias else np.eye(s.K)
    U, sigma, Vt = np.linalg.svd(beta * np.sqrt(counts)[:, None] * complement)
    gains = int((sigma > s.N * lam / 2).sum())
    r = min(gains, s.d)
    kept, rest = sigma[:r], sigma[r:]
    stretch = np.sqrt(s.N / s.K / counts)
    factors = Factors(U[:, :r], (kept - s.N * lam / 2) / math.sqrt(s.N / s.K), Vt[:r].T, stretch)
    Zbar = (factors.U * factors.sigma) @ factors.V.T * stretch
    b = beta * share - Zbar @ share if s.bias else np.zeros(s.K)
    value = float(np.sum(lam * kept - s.N * lam**2 / 4) + np.sum(rest**2) / s.N)
    return Truncated(value, float(np.sum(sigma**2)) / s.N, factors, b, gains)
