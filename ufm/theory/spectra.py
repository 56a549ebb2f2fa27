"""The whole Hessian spectrum at the symmetric optimum: every eigenvalue with its multiplicity.

At Zbar = a (I - 11^T/K) + m 11^T/K the Hessian commutes with the permutations of the classes, with those of
the samples of a class, and with rotations of the unused feature directions. Schur's lemma leaves one small
block for each irreducible representation ("sector"): trivial (dimension 1), standard (K-1), antisymmetric
((K-1)(K-2)/2) and symmetric (K(K-3)/2); the dimension is the multiplicity of the block's eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._closed import Curvature, NoClosedForm
from ufm.models import Model
from ufm.theory import _sectors
from ufm.theory._curvature import curvature
from ufm.theory._setting import setting
from ufm.theory.optima import Optimum, collapsed_optimum


class Spectrum(NamedTuple):
    """Eigenvalues in ascending order; equal ones of different sectors stay apart."""

    values: np.ndarray  # (m,)
    multiplicities: np.ndarray  # (m,)
    sectors: tuple[str, ...]  # (m,)
    at: Literal["neural collapse", "origin"]
    margin: float

    def expand(self) -> np.ndarray:
        """One flat ascending array with prob.size entries."""
        return np.repeat(self.values, self.multiplicities)

    @property
    def nullity(self) -> int:
        """How many eigenvalues are exactly zero: rotations of the features, and a free common bias."""
        return int(self.multiplicities[self.values == 0].sum())

    @property
    def smallest_positive(self) -> float:
        """The curvature of the flattest direction that is not a symmetry."""
        return float(self.values[self.values > 0].min())

    @property
    def condition_number(self) -> float:
        """Largest over smallest positive eigenvalue: the condition number modulo the symmetries."""
        return float(self.values.max()) / self.smallest_positive

    def linear_rate(self, step: float | None = None) -> float:
        """The factor by which gradient descent shrinks |grad f| a step near the optimum: max |1 - step mu|.

        Over the positive eigenvalues mu: along the symmetries' zeros f is constant.  Default: the best step,
        2/(mu_min + mu_max), whose rate is (kappa - 1)/(kappa + 1) with kappa the condition number.  Above 1
        gradient descent leaves the optimum.

        Raises:
            ValueError: a step that is not positive.

        Source: Polyak 1964; the spectrum from `hessian_spectrum`.

        >>> import ufm
        >>> spectrum = hessian_spectrum(ufm.Problem.balanced("ce", K=4, d=6, n=2, lam_W=0.02, lam_H=0.01))
        >>> round(spectrum.condition_number, 6), round(spectrum.linear_rate(), 6)
        (18.561618, 0.897759)
        """
        low, high = self.smallest_positive, float(self.values.max())
        step = 2 / (low + high) if step is None else float(_checks.real("step", step, above=0.0))
        return max(abs(1 - step * low), abs(1 - step * high))


@in_float64
def hessian_spectrum(prob: Problem) -> Spectrum:
    """The Hessian spectrum of f in (W, H, b) at the neural-collapse optimum, or at the origin if that is it.

    Shift-invariant losses, with B1 = K l''(a)/(K-1), B2 the other curvature in z (cross-entropy and focal: c,
    label smoothing: c + alpha/K), rho_i = a B_i/(K c), A = lam_W + lam_H, lam^2 = lam_W lam_H and
    mu+-(r) = (A (1+r) +- sqrt(A^2 (1+r)^2 - 16 r lam^2))/2:

        unused features, r = K-1    0, A: (d-r)(K-1) each;  lam_W: d-r;  lam_H: (d-r)(N-K+1)
        within the classes          lam_H (1+rho2): (n-1) K (K-2);  lam_H (1+rho1): (n-1) K
        antisymmetric               0, A (1+rho2)
        symmetric                   mu+-(rho2)
        trivial                     mu+-(rho1), lam_b
        standard                    lam_W and the eigenvalues of one 4 x 4 block

    Other losses (MSE; convex ones that feel a common shift): the same sectors, with blocks of up to 5 x 5
    (trivial) and 7 x 7 (standard). Where partial collapse lies below, the spectrum is still that of neural
    collapse. At the origin: A/2 +- sqrt((lam_W-lam_H)^2/4 + sigma_i^2), d times each, sigma_i the singular
    values of the gradient in Z.

    Other models: docs/theory.md, section 6.

    Returns: a `Spectrum`; its multiplicities add up to prob.size.

    Raises:
        NoClosedForm: as `global_optimum`; and a loss whose optimum is a frame of rank one.
        ValueError: a batch of problems.

    Source: docs/theory.md, section 4.7; Zhou et al. 2022, Theorem 2, has the sign of the smallest eigenvalue.
    """
    if type(prob.model) in OF_MODELS:
        return OF_MODELS[type(prob.model)](prob)
    s = setting(prob)
    opt = collapsed_optimum(s)
    curve = curvature(s, opt)
    if opt.rank == 0:
        return assembled(opt, _origin(s, curve))
    if opt.margin == 0:
        raise NoClosedForm(
            f"loss: the optimum of {s.loss!r} is a frame of rank one, whose spectrum is not here"
        )
    blocks = _closed_blocks if curve.shift_invariant else _frame_blocks
    return assembled(opt, _unused(s, opt, curve) + _within(s, opt, curve) + blocks(s, opt, curve))


Part = tuple[str, float, int]  # sector, eigenvalue, multiplicity
#: Spectra of models other than two free factors, by type. The module of each model adds itself.
OF_MODELS: dict[type[Model], Callable[[Problem], Spectrum]] = {}


def assembled(opt: Optimum, parts: list[Part]) -> Spectrum:
    """The spectrum of these parts, in ascending order."""
    parts = sorted((p for p in parts if p[2] > 0), key=lambda p: p[1])
    return Spectrum(
        np.array([p[1] for p in parts]),
        np.array([p[2] for p in parts]),
        tuple(p[0] for p in parts),
        "neural collapse" if opt.rank else "origin",
        opt.margin,
    )


def _coupled(product: float, total: float) -> tuple[float, float]:
    """The roots of x^2 - total x + product, the small one without cancellation."""
    large = (total + math.sqrt(max(total**2 - 4 * product, 0.0))) / 2
    return product / large, large


def _outer(s: Setting, sigma: float) -> tuple[float, float]:
    """(dW, dH) = (u x^T, x v^T) with W x = 0 and G v = sigma u: A/2 +- sqrt((lam_W-lam_H)^2/4 + sigma^2)."""
    return _coupled(s.lam_W * s.lam_H - sigma**2, s.lam_W + s.lam_H)


def _mu(s: Setting, rho: float) -> tuple[float, float]:
    """mu-(rho) and mu+(rho)."""
    return _coupled(4 * rho * s.lam_W * s.lam_H, (s.lam_W + s.lam_H) * (1 + rho))


# --- the sectors ----------------------------------------------------------------------------------


def _origin(s: Setting, curve: Curvature) -> list[Part]:
    """W = H = 0: features and bias decouple; the bias sees the mean of the loss's Hessians over k."""
    K, d, n = s.K, s.d, s.n
    split = _outer(s, (curve.u - curve.v) / K / math.sqrt(n))
    common = _outer(s, curve.mean_gradient(K) / math.sqrt(n))
    parts = [("features, classes", x, d * (K - 1)) for x in split]
    parts += [("features, mean", x, d) for x in common]
    parts.append(("features, within the classes", s.lam_H, d * (s.N - K)))
    if s.bias:
        on_ones = curve.on_ones(K)
        trace = float(np.trace(curve.block)) + (K - 2) * curve.rest
        parts.append(("bias, classes", (trace - on_ones) / (K - 1) + s.lam_b, K - 1))
        parts.append(("bias, mean", on_ones + s.lam_b, 1))
    return parts


def _unused(s: Setting, opt: Optimum, curve: Curvature) -> list[Part]:
    """Feature directions outside the row space of W, d - r of them."""
    r, free = opt.rank, s.d - opt.rank
    parts = [("unused features", x, free * r) for x in (0.0, s.lam_W + s.lam_H)]
    if r < s.K:
        sigma = curve.mean_gradient(s.K) / math.sqrt(s.n)
        parts += [("unused features, mean", x, free) for x in _outer(s, sigma)]
    return [*parts, ("unused features, within the classes", s.lam_H, free * (s.N - s.K))]


def _within(s: Setting, opt: Optimum, curve: Curvature) -> list[Part]:
    """Samples of a class against each other: lam_H + eigenvalues of W^T Hess W/N in the row space of W."""
    K, scale = s.K, s.lam_H / (s.K * s.c)
    name, copies = "within the classes", (int(s.n) - 1) * K
    a, m = abs(opt.margin), abs(opt.mean_eigenvalue)
    parts = [(name, s.lam_H + scale * a * curve.rest, copies * (K - 2))]
    if opt.rank < K:
        return [*parts, (name, s.lam_H + scale * a * curve.margin(K), copies)]
    one = np.array([1.0, math.sqrt(K - 1)]) / math.sqrt(K)
    root = math.sqrt(a) * np.eye(2) + (math.sqrt(m) - math.sqrt(a)) * np.outer(one, one)
    values = np.linalg.eigvalsh(root @ curve.block @ root)
    return parts + [(name, s.lam_H + scale * float(x), copies) for x in values]


def _pairs(s: Setting, opt: Optimum, curve: Curvature) -> list[Part]:
    """Antisymmetric (rotations are its zero) and symmetric sectors: both factors move inside 1-perp."""
    K, rho = s.K, abs(opt.margin) * curve.rest / (s.K * s.c)
    antisymmetric = (0.0, (s.lam_W + s.lam_H) * (1 + rho))
    parts = [("antisymmetric", x, (K - 1) * (K - 2) // 2) for x in antisymmetric]
    return parts + [("symmetric", x, max(K * (K - 3) // 2, 0)) for x in _mu(s, rho)]


def _closed_blocks(s: Setting, opt: Optimum, curve: Curvature) -> list[Part]:
    """Shift-invariant losses: the mean of W's rows and a common bias decouple."""
    K = s.K
    rho = opt.margin * curve.margin(K) / (K * s.c)
    parts = _pairs(s, opt, curve) + [("trivial", x, 1) for x in _mu(s, rho)]
    parts.append(("standard", s.lam_W, K - 1))
    if s.bias:
        parts.append(("trivial", s.lam_b, 1))
    return parts + [("standard", float(x), K - 1) for x in np.linalg.eigvalsh(_standard(s, opt, curve))]


def _standard(s: Setting, opt: Optimum, curve: Curvature) -> np.ndarray:
    """The form in (x, y, z, beta), with nu^2 = (K-2)/K and tau, zeta linear:

    (B2/K) (tau^2 + K zeta^2) + (B1-B2)/(K-1) (nu tau + zeta)^2
    - 2 lam x y + lam_W x^2 + lam_H (y^2 + z^2) + lam_b beta^2.
    """
    K, n = s.K, s.n
    w = math.sqrt(math.sqrt(n * s.lam_H / s.lam_W) * opt.margin)
    tau = np.array([math.sqrt(s.lam_W / (s.lam_H * n)) * w, w / math.sqrt(n), 0.0, 0.0])
    zeta = np.array([0.0, 0.0, w / math.sqrt(s.N), 1.0])
    mixed = math.sqrt((K - 2) / K) * tau + zeta
    form = curve.rest / K * (np.outer(tau, tau) + K * np.outer(zeta, zeta))
    form += (curve.margin(K) - curve.rest) / (K - 1) * np.outer(mixed, mixed)
    form += np.diag([s.lam_W, s.lam_H, s.lam_H, s.lam_b])
    form[0, 1] = form[1, 0] = form[0, 1] - s.c / math.sqrt(n)
    keep = slice(2 if K == 2 else 0, 4 if s.bias else 3)
    return form[keep, keep]


def _frame_blocks(s: Setting, opt: Optimum, curve: Curvature) -> list[Part]:
    """Any frame a (I - 11^T/K) + m 11^T/K: blocks from equivariant vectors; with rank K one more rotation."""
    spectrum = _sectors.trivial(s, opt, curve), _sectors.standard(s, opt, curve)
    parts = _pairs(s, opt, curve) + [("trivial", float(x), 1) for x in spectrum[0]]
    if opt.rank == s.K:  # the rotations that tilt 1 are in the standard sector: exactly zero
        spectrum[1][np.argmin(np.abs(spectrum[1]))] = 0.0
    return parts + [("standard", float(x), s.K - 1) for x in spectrum[1]]
