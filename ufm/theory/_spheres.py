"""The optimum of unit vectors for equal counts: logits scale <w_k, h_j>.

With A_j the mean of the target logit less the others and hbar_k the class means, averaging the other logits
and Jensen's inequality give, for a convex profile l that falls,

    f >= l(mean A),   mean A = (s/(K-1)) <P W, Hbar'> <= (s/(K-1)) |P W| |Hbar| <= s K/(K-1),

with equality for the simplex ETF and h_j = w_k, whatever n. Only attaining it needs d >= K - 1. Where W is
free, |P W| <= |W| is paid for by its penalty.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ufm import _checks
from ufm._problem import Params, Problem
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm, Proof
from ufm.losses._profile import ScalarProfile
from ufm.models import Spheres
from ufm.models._fixed import simplex
from ufm.theory import _frames
from ufm.theory._curvature import curvature
from ufm.theory._setting import any_counts
from ufm.theory.focal import p_unit
from ufm.theory.optima import BOUNDS_OF_MODELS, OF_MODELS, Optimum, lowest
from ufm.theory.profiles import facts_of, falls_to, profile_of
from ufm.theory.spectra import OF_MODELS as SPECTRA_OF_MODELS
from ufm.theory.spectra import Part, Spectrum, assembled

CONVEX = "averaging the other logits, Jensen's inequality and Cauchy's"


def optimum(prob: Problem) -> Optimum:
    """The global minimum and its minimiser.

    Raises:
        NoClosedForm: unequal counts; a loss that tells classes apart, feels a common shift or lacks the
            averaging property; 3 <= d < K - 1; a loss with its minimum at a finite margin, which unit vectors
            exceed, for d = K - 1.

    Source: docs/theory.md, section 6.3.
    """
    s, model = _balanced(prob), prob.model
    assert isinstance(model, Spheres)
    profile = averaged_profile(s)
    if model.features_only:
        return _free_rows(s, float(model.scale), profile)
    reach, scale = _reach(s.K, float(model.scale)), float(model.scale)
    a = falls_to(profile, reach)
    if s.d < s.K - 1:
        return _polygon(s, scale, profile, a)
    if a < reach and s.d < s.K:
        raise NoClosedForm(
            f"d: unit vectors reach the margin {reach:.6g}, and {s.loss!r} is lowest at {a:.6g}; features "
            f"that tilt away need d >= K = {s.K}, got d={s.d}; ufm.solve and the certificate take any d"
        )
    cosine = a / reach
    W = math.sqrt(s.K / (s.K - 1)) * simplex(s.K, s.d)
    means = cosine * W.T
    if cosine < 1:
        means[-1] = math.sqrt(1 - cosine**2)
    tilted = f", features at {math.degrees(math.acos(cosine)):.4g} degrees from it" if cosine < 1 else ""
    return of_margin(s, profile, a, "simplex ETF" + tilted, _point(s, W, means))


def bound(prob: Problem) -> float:
    """l(s K/(K-1)), or the least value of l if that lies below: no unit vectors reach less, for every d.

    Raises:
        NoClosedForm: as `optimum`, but not for the sake of d.

    Source: docs/theory.md, section 6.3.
    """
    s, model = _balanced(prob), prob.model
    assert isinstance(model, Spheres)
    profile = averaged_profile(s)
    if model.features_only:
        a = _free_margin(s, float(model.scale), profile)
        value, weight = float(profile.value(a)), _weight(s, float(model.scale))
        value += weight * a**2 / 2
    else:
        a = falls_to(profile, _reach(s.K, float(model.scale)))
        value = float(profile.value(a))
    return value if _proved(s, a) == "proved" else float(s.loss.infimum)


def _reach(K: int, scale: float) -> float:
    """The margin of the simplex ETF."""
    return scale * K / (K - 1)


def _balanced(prob: Problem) -> Setting:
    if prob.n is None:
        raise NoClosedForm(
            "labels, class_weights: on spheres the optimum is known for equal counts and no weights, got "
            f"counts from {prob.counts.min()} to {prob.counts.max()}; ufm.solve takes any"
        )
    return any_counts(prob)


def averaged_profile(s: Setting) -> ScalarProfile:
    """l, where averaging the other logits does not raise the loss.

    Raises:
        NoClosedForm: it may.
    """
    facts = facts_of(s.loss, s.K)
    if not (facts.symmetric and facts.shift_invariant and facts.averages):
        raise NoClosedForm(
            f"loss: {s.loss!r} tells classes apart, feels a common shift of the logits or lacks the "
            "averaging property (theory.contrastive_property); ufm.solve takes any loss"
        )
    return profile_of(s.loss, s.K)


def _proved(s: Setting, a: float) -> Proof:
    """Whether l equals its convex hull at a: a convex loss, or focal loss with p >= p_unit."""
    if s.loss.convex:
        return "proved"
    p = 1 / (1 + (s.K - 1) * math.exp(-a))
    focal = s.loss.has_lower_bound and p >= p_unit(float(s.loss.hyperparameters["gamma"]))
    return "proved" if focal else "numerical"


def of_margin(
    s: Setting, profile: ScalarProfile, a: float, structure: str, point: Any, value: float | None = None
) -> Optimum:
    """The record of a simplex ETF with the margin a, of value l(a) where nothing is penalised."""
    proved, value = _proved(s, a), float(profile.value(a)) if value is None else value
    return Optimum(
        objective=value,
        margin=a,
        regime="non-trivial",
        structure=structure,
        proved=proved,
        theorem=CONVEX,
        remark="" if proved == "proved" else "l is not known to lie on its convex hull at this margin",
        mean_eigenvalue=0.0,
        bias=0.0,
        b=np.zeros(s.K),
        trivial=float(profile.value(0.0)),
        lower_bound=value if proved == "proved" else float(s.loss.infimum),
        factors=_frames.symmetric(s.K, a, 0.0),
        setting=s,
        point=point,
    )


def _point(s: Setting, W: np.ndarray, means: np.ndarray) -> Params:
    return Params(jnp.asarray(W), jnp.asarray(means[:, s.labels]), jnp.zeros(s.K))


def _polygon(s: Setting, scale: float, profile: ScalarProfile, a: float) -> Optimum:
    """d = 2 < K - 1: the regular polygon with h_j = w_k, the lowest point known."""
    if s.d > 2:
        raise NoClosedForm(
            f"d: expected d >= K - 1 = {s.K - 1}, or d = 2, where a polygon is the best point known, got "
            f"d={s.d}; ufm.solve finds points and ufm.landscape.certificate bounds them"
        )
    angle = 2 * np.pi * np.arange(s.K) / s.K
    W = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    value = float(s.loss(jnp.asarray(scale * W @ W[0]), 0))
    best = of_margin(s, profile, a, "regular polygon", _point(s, W, W.T))
    U, sigma, Vt = np.linalg.svd(scale * W @ W.T)
    return best._replace(
        objective=value,
        margin=scale * (1 - math.cos(2 * math.pi / s.K)),
        proved="upper bound",
        theorem="the lowest structure known",
        remark=f"no unit vectors reach less than {best.lower_bound:.15g}",
        factors=_frames.Factors(U[:, :2], sigma[:2], Vt[:2].T),
    )


# --- rows that are free ---------------------------------------------------------------------------


def _weight(s: Setting, scale: float) -> float:
    """theta of lam_W |W|^2/2 = theta a^2/2: a = s sqrt(K) |W|/(K-1)."""
    return s.lam_W * (s.K - 1) ** 2 / (scale**2 * s.K)


def _free_margin(s: Setting, scale: float, profile: ScalarProfile) -> float:
    """argmin of l(a) + theta a^2/2."""
    theta = _weight(s, scale)
    reach = max(math.sqrt(2 * (float(profile.value(0.0)) - float(s.loss.infimum)) / theta), 1.0)
    return lowest(
        lambda a: profile.value(a) + theta * a**2 / 2, lambda a: profile.slope(a) + theta * a, reach
    )


def _free_rows(s: Setting, scale: float, profile: ScalarProfile) -> Optimum:
    """Features alone on the sphere: w_k = r h_k with the best r."""
    a = _free_margin(s, scale, profile)
    if s.d < s.K - 1:
        raise NoClosedForm(f"d: expected d >= K - 1 = {s.K - 1} for the simplex ETF, got d={s.d}")
    unit = math.sqrt(s.K / (s.K - 1)) * simplex(s.K, s.d)
    value = float(profile.value(a)) + _weight(s, scale) * a**2 / 2
    W = a * (s.K - 1) / (scale * s.K) * unit
    return of_margin(s, profile, a, "simplex ETF", _point(s, W, unit.T), value)


# --- the spectrum ---------------------------------------------------------------------------------


def spectrum(prob: Problem) -> Spectrum:
    """The whole spectrum of the Riemannian Hessian at the simplex ETF with h_j = w_k.

    With q = -l'(a)/(K-1), B1 and B2 the curvatures of the loss along the margin and among the other classes,
    t = s^2 B2/(K-1) and o = d-K+1, the class means enter by blocks [[x, y], [y, z]], of which y is divided by
    sqrt(n) and z by n:

        unused directions            x = z = s q,     y = -s q      o (K-1)
        their means                  s q and s q/n                  o each
        symmetric                    x = z = s q + t, y = t - s q   K(K-3)/2
        antisymmetric                x = z = s q + t, y = -x        (K-1)(K-2)/2
        standard                     z = s q + t,     y = (t - s q)/(K-1),
                                     x = s q + t/(K-1) + s^2 (B1-B2) (K-2)/(K-1)^3     K-1
        within the classes           (s q + t)/n and s q/n          K(n-1)(K-2) and K(n-1) o

    Raises:
        NoClosedForm: as `optimum`; d < K - 1; rows that are free; features that tilt away.

    Source: docs/theory.md, section 6.3.
    """
    best = optimum(prob)
    s, model = best.setting, prob.model
    assert isinstance(model, Spheres)
    scale = float(model.scale)
    if model.features_only or best.structure != "simplex ETF":
        raise NoClosedForm(
            "model: the spectrum is known where rows and features are unit vectors and the optimum is the "
            f"simplex ETF with h = w, got {model!r} with the optimum {best.structure}"
        )
    curve = curvature(s, best)
    q, rest = -curve.u / (s.K - 1), curve.rest if s.K > 2 else 0.0
    return assembled(best, _parts(s, scale, scale * q, scale**2 * rest / (s.K - 1), curve.margin(s.K) - rest))


def _parts(s: Setting, scale: float, sq: float, t: float, excess: float) -> list[Part]:
    """The rows of `spectrum`; excess = B1 - B2."""
    K, n, o = s.K, int(s.n), s.d - s.K + 1
    mixed = (t - sq) / (K - 1)
    head = sq + t / (K - 1) + scale**2 * excess * (K - 2) / (K - 1) ** 3
    inside = K > 2  # for two classes the tangents lie in the unused directions
    blocks = (
        ("unused", sq, -sq, sq, o * (K - 1)),
        ("symmetric", sq + t, t - sq, sq + t, K * (K - 3) // 2 * inside),
        ("antisymmetric", sq + t, -sq - t, sq + t, (K - 1) * (K - 2) // 2),
        ("standard", head, mixed, sq + t, (K - 1) * inside),
    )
    parts: list[Part] = [("unused, mean", sq, o), ("unused, mean", sq / n, o)]
    for name, x, y, z, times in blocks:
        parts += [(name, value, times) for value in _pair(x, y, z, n)]
    return [
        *parts,
        ("within the classes", (sq + t) / n, K * (n - 1) * (K - 2)),
        ("within the classes, unused", sq / n, K * (n - 1) * o),
    ]


def _pair(x: float, y: float, z: float, n: int) -> tuple[float, float]:
    """The eigenvalues of [[x, y/sqrt(n)], [y/sqrt(n), z/n]], the smaller one without cancellation."""
    trace, determinant = x + z / n, (x * z - y**2) / n
    large = (trace + math.hypot(x - z / n, 2 * y / math.sqrt(n))) / 2
    return determinant / large, large


# --- a neighbour ----------------------------------------------------------------------------------


def supervised_contrastive(K: int, n: int, scale: float) -> float:
    """The least supervised contrastive loss of n >= 2 unit vectors a class, over the full batch:

        (1/N) sum_i (1/(n-1)) sum_{j of the class of i} -log(e^{s <z_i, z_j>} / sum_{l != i} e^{s <z_i, z_l>})

    It is log(n - 1 + n (K-1) exp(-s K/(K-1))), at the simplex ETF with all vectors of a class equal, which
    needs d >= K - 1.

    Raises:
        ValueError: K < 2, n < 2, a scale <= 0.

    Source: docs/theory.md, section 6.3; Khosla et al. 2020, equation (2), for the loss.

    >>> import ufm
    >>> round(ufm.theory.supervised_contrastive(K=3, n=2, scale=1.0), 12)
    0.637909612792
    """
    K, n = _checks.integer("K", K, least=2), _checks.integer("n", n, least=2)
    s = float(_checks.real("scale", scale, above=0.0))
    return math.log(n - 1 + n * (K - 1) * math.exp(-s * K / (K - 1)))


OF_MODELS[Spheres] = optimum
BOUNDS_OF_MODELS[Spheres] = bound
SPECTRA_OF_MODELS[Spheres] = spectrum
