"""The optimum for a given simplex ETF, W W' = omega^2 (I - 11'/K).

Without a bias each sample has a problem of its own. Among the features with given logits W h, the shortest
has |h| = |W h|/omega, and averaging over the permutations that keep the sample's class leaves the logits
a (e_k - 1/K), h = (a/omega^2) w_k, so that for any counts

    f* = min over a >= 0 of l(a) + theta a^2/2,    theta = N lam_H (K - 1)/(K omega^2).

Features that are not negative pay more: for W = omega (I - 11'/K), averaging leaves h = (a/omega) e_k, so
that theta becomes N lam_H/omega^2. On a sphere |h| = r, the same averaging leaves min l(a) over a <= r omega
sqrt(K/(K-1)), and h = r w_k/|w_k|.

l' < 0 at a = 0: there is no threshold beyond which the features vanish. With equal counts a convex loss has
an optimal bias that is the same for all classes, and one that is shift-invariant then needs none. A loss
that is not convex needs only that averaging the other logits does not raise it.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from scipy.linalg import null_space

from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.losses._profile import ScalarProfile
from ufm.models._fixed import Features, Fixed
from ufm.theory import _frames, _given
from ufm.theory._setting import any_counts
from ufm.theory.optima import OF_MODELS, Optimum, least_margin, lowest
from ufm.theory.profiles import by_autodiff, facts_of, falls_to, profile_of


def optimum(prob: Problem) -> Optimum:
    """The global minimum and its minimiser: a closed form, or Newton's method for a convex smooth loss.

    Raises:
        NoClosedForm: for a loss that is not convex and smooth, or features that are not free: W is not a
            simplex ETF; a bias with unequal counts or with a loss that is not convex and shift-invariant; a
            loss that tells classes apart, or, where it is not convex, the logits of other classes.

    Source: docs/theory.md, section 6.1.
    """
    try:
        return _of_simplex(prob)
    except NoClosedForm:
        if prob.model.constrained or not (prob.loss.convex and prob.loss.smooth):
            raise
    return _of_any(prob)


def _of_any(prob: Problem) -> Optimum:
    """Whatever W: the minimum of a convex function, to rounding."""
    assert isinstance(prob.model, Fixed)
    s, W = any_counts(prob), np.asarray(prob.model.classifier, np.float64)
    best = _given.minimum(s, prob.counts, W)
    Z = W @ best.means
    U, sigma, Vt = np.linalg.svd(Z)
    r = int((sigma > 1e-12 * sigma[0]).sum()) if sigma[0] > 0 else 0
    optimum = Optimum(
        objective=best.value,
        margin=0.0,
        regime="non-trivial" if r else "trivial",
        structure="features of a given classifier",
        proved="proved",
        theorem="f is convex in the features and the bias; solved to rounding by Newton's method",
        remark="",
        mean_eigenvalue=np.nan,
        bias=float(best.b.mean()),
        b=best.b,
        trivial=best.trivial,
        lower_bound=best.value,
        factors=_frames.Factors(U[:, :r], sigma[:r], Vt[:r].T),
        setting=s,
        point=Features(jnp.asarray(best.means[:, s.labels]), jnp.asarray(best.b)),
    )
    return optimum._replace(margin=least_margin(optimum.logits))


def _of_simplex(prob: Problem) -> Optimum:
    assert isinstance(prob.model, Fixed)
    s, W = any_counts(prob), np.asarray(prob.model.classifier, np.float64)
    square, rows = _scale_of_simplex(W), W
    if prob.model.features == "nonnegative":  # h_k = (a/omega) e_k is 1/sqrt(1 - 1/K) times as long
        square, rows = square * (1 - 1 / s.K), _own_columns(W, square) * square**0.5 * (1 - 1 / s.K)
    _need_decoupled(s, prob.n is not None)
    profile = _profile(s)
    if prob.model.curved:
        return _on_sphere(s, prob.model, profile, square)
    theta = s.lam_H * s.N * (s.K - 1) / (s.K * square)
    trivial = float(profile.value(0.0))
    reach = max(math.sqrt(2 * (trivial - float(s.loss.infimum)) / theta), 1.0)
    a = lowest(lambda a: profile.value(a) + theta * a**2 / 2, lambda a: profile.slope(a) + theta * a, reach)
    value = float(profile.value(a)) + theta * a**2 / 2
    means, structure = (a / square) * rows.T, ALONG if rows is W else "a neuron of its own for each class"
    return _record(s, a, value, trivial, structure, means)


ALONG = "features along the rows of the given simplex ETF"


def _on_sphere(s: Setting, model: Fixed, profile: ScalarProfile, square: float) -> Optimum:
    """|h| = r: min of l(a) over a <= r omega sqrt(K/(K-1)), which h = r w_k/|w_k| reaches."""
    W, radius = np.asarray(model.classifier, np.float64), float(model.radius)
    reach = radius * math.sqrt(square * s.K / (s.K - 1))
    a = falls_to(profile, reach)
    means, structure = (a / square) * W.T, ALONG
    if a < reach:
        unused = null_space(W)
        if unused.shape[1] == 0:
            raise NoClosedForm(
                f"d: the radius reaches the margin {reach:.6g}, and {s.loss!r} is lowest at {a:.6g}; "
                f"features that tilt away need d >= K = {s.K}, got d={s.d}; ufm.solve takes any d"
            )
        means = means + radius * math.sqrt(1 - (a / reach) ** 2) * unused[:, :1]
        structure = "features tilted away from the rows of the given simplex ETF"
    return _record(s, a, float(profile.value(a)), float(profile.value(0.0)), structure, means)


def _record(s: Setting, a: float, value: float, trivial: float, structure: str, means: np.ndarray) -> Optimum:
    sure = s.loss.convex or s.loss.of_p
    return Optimum(
        objective=value,
        margin=a,
        regime="non-trivial" if a else "trivial",
        structure=structure,
        proved="proved" if sure else "numerical",
        theorem="each sample by itself, and averaging over the other classes",
        remark="" if sure else "that averaging the other logits does not raise the loss was tested at random",
        mean_eigenvalue=0.0,
        bias=0.0,
        b=np.zeros(s.K),
        trivial=trivial,
        lower_bound=value if sure else float(s.loss.infimum),
        factors=_frames.symmetric(s.K, a, 0.0),
        setting=s,
        point=Features(jnp.asarray(means[:, s.labels]), jnp.zeros(s.K)),
    )


def _scale_of_simplex(W: np.ndarray) -> float:
    """omega^2 of W W' = omega^2 (I - 11'/K)."""
    K = len(W)
    gram = W @ W.T
    square = float(np.trace(gram)) / (K - 1)
    error = np.abs(gram - square * (np.eye(K) - 1 / K)).max()
    if not (square > 0 and error <= 16 * K * np.finfo(np.float64).eps * square):
        raise NoClosedForm(
            f"W: the optimum is known for a simplex ETF, W W' = s^2 (I - 11'/K), got a W that is off by "
            f"{error:.1e}; ufm.solve finds the optimum and ufm.landscape.certificate proves it"
        )
    return square


def _own_columns(W: np.ndarray, square: float) -> np.ndarray:
    """(K, d): row k has its 1 in the column of W that is omega (e_k - 1/K).

    Raises:
        NoClosedForm: some class has no such column.
    """
    K = len(W)
    wanted = square**0.5 * (np.eye(K) - 1 / K)
    error = np.abs(W[:, None, :] - wanted[:, :, None]).max(axis=0)  # (K, d) of class and column
    own = error.argmin(axis=1)
    worst = float(error.min(axis=1).max())
    if worst > 16 * K * np.finfo(np.float64).eps * square**0.5:
        raise NoClosedForm(
            f"W: with features that are not negative the optimum is known for W = s (I - 11'/K), got columns "
            f"that are off by {worst:.1e}; ufm.solve finds the optimum"
        )
    return np.eye(W.shape[1])[own]


def _need_decoupled(s: Setting, balanced: bool) -> None:
    """Refuse a bias that couples the samples."""
    if not s.bias or (balanced and s.loss.convex and s.loss.shift_invariant):
        return
    if not balanced:
        why = "equal counts, because a bias couples the classes"
    else:
        why = f"a convex and shift-invariant loss, got {s.loss!r}"
    raise NoClosedForm(
        f"bias: with a given classifier and a bias the optimum is known for {why}; use bias=False, or "
        "ufm.solve with ufm.landscape.certificate"
    )


def _profile(s: Setting) -> ScalarProfile:
    """l(a), the loss at the logits a (e_k - 1/K)."""
    facts = facts_of(s.loss, s.K)
    if not facts.symmetric or not (s.loss.convex or (facts.shift_invariant and facts.averages)):
        raise NoClosedForm(
            f"loss: expected one that treats the classes alike and is convex, or that averaging the other "
            f"logits does not raise, got {s.loss!r}"
        )
    invariant = facts.shift_invariant
    profile = profile_of(s.loss, s.K) if invariant else by_autodiff(s.loss, s.K, centred=True)
    if float(profile.slope(0.0)) > 0:
        raise NoClosedForm(f"loss: {s.loss!r} falls with the target logit, against the given W")
    return profile


OF_MODELS[Fixed] = optimum
