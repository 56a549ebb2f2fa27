"""The global minimum of equation (7) in closed form, with a minimiser and how far the claim is proved.

The reduction, in which n enters through c = sqrt(n lam_W lam_H) only: for every loss and d >= K

    min f = min over (Zbar, b) of (1/K) sum_k L(Zbar e_k + b, k) + c ||Zbar||_* + lam_b/2 |b|^2,

because lam_W/2 |W|^2 + lam_H/2 |H_i|^2 summed over the n copies is at least c ||Z_i||_*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq

from ufm._precision import in_float64
from ufm._problem import Problem, Variables
from ufm._sheet import printed
from ufm.losses._base import Setting
from ufm.losses._closed import THEOREM_1, Block, Groups, NoClosedForm, Proof, SymmetricPoint
from ufm.losses._profile import ScalarProfile
from ufm.models import Model
from ufm.theory import _blocks, _codes, _convex, _frames, _partial, _rank_bound, _truncation, focal
from ufm.theory._setting import any_counts, need_free_factors, need_rank, setting
from ufm.theory.profiles import facts_of, is_of_p, profile_of
from ufm.theory.thresholds import first_order_margins

Regime = Literal["non-trivial", "partial", "trivial"]


@printed
class Optimum(NamedTuple):
    """The global minimum and a point that attains it."""

    objective: float
    margin: float  # a: the target logit above the others (partial: in the group; unequal counts: at least)
    regime: Regime  # trivial: the features carry no class
    structure: str  # the geometry in words
    proved: Proof
    theorem: str  # what is used
    remark: str  # where the statement departs from the paper; empty where it does not
    mean_eigenvalue: float  # m: Zbar = a (I - 11^T/K) + m 11^T/K; 0: simplex ETF; nan: unequal counts
    bias: float  # the mean of b
    b: np.ndarray  # (K,)
    trivial: float  # the objective at the best point with Z = 0
    lower_bound: float  # no parameters go below, at any d (for a user's loss: by the declared infimum)
    factors: _frames.Factors  # Zbar = U diag(sigma) V^T diag(stretch)
    setting: Setting
    point: Variables = None  # a minimiser in the variables of another model than two free factors

    @property
    def params(self) -> Variables:
        """A minimiser, lam_W W^T W = lam_H H H^T, with the columns of H in the order of the labels."""
        if self.point is not None:
            return self.point
        return _frames.minimiser(self.setting, self.factors, self.b)

    def to_dict(self) -> dict[str, Any]:
        """The optimum as JSON, without its arrays."""
        names = ("objective", "margin", "regime", "structure", "proved", "theorem")
        return {name: getattr(self, name) for name in names} | {"why": self.remark}

    @property
    def rank(self) -> int:
        """Rank of W and H."""
        return self.factors.rank

    @property
    def logits(self) -> np.ndarray:
        """Zbar + b 1^T (K, K): column k holds the logits of every sample of class k."""
        U, sigma, V, stretch = self.factors
        return np.asarray((U * sigma) @ V.T * stretch + self.b[:, None])


#: Optima of models other than two free factors, by type, so that a user's own model is never mistaken
#: for another. The module of each model adds itself.
OF_MODELS: dict[type[Model], Callable[[Problem], Optimum]] = {}
#: Lower bounds of models that are known where the optimum is not.
BOUNDS_OF_MODELS: dict[type[Model], Callable[[Problem], float]] = {}


@in_float64
def global_optimum(prob: Problem) -> Optimum:
    """The global minimum of f(W, H, b), equation (7), in closed form.

    With p = e^a/(e^a + K - 1), C = (K-1) c and H the Shannon entropy:
    cross-entropy, c < 1/K:  a = log(1/c - (K-1)),  f = H(1-(K-1)c, c, .., c).
    label smoothing, c < (1-alpha)/K:  the same with s = c + alpha/K in place of c.
    focal: S(p) = (1-p)^g ((1-p) - g p log p) = C on p >= p_infl(g), against the value at the origin.
    MSE: simplex ETF only where the bias absorbs the mean (`mean_eigenvalue` = 0); without a bias an
    orthogonal frame, a = m = beta - cK/(2 kappa); with lam_b > 0 small c gives rank K in between.
    Any shift-invariant loss: min over a >= 0 of l(a) + C a, `theory.scalar_profile`.
    Unequal counts n_k or class weights w_k: min over (Zbar, b) of sum_k w_k n_k/N L(Zbar e_k + b, k)
    + lam ||Zbar diag(sqrt n_k)||_* + lam_b/2 |b|^2 for convex smooth losses with class symmetry, lam =
    sqrt(lam_W lam_H): a program in O(G^2) numbers for G different (n_k, w_k), solved to rounding by Newton's
    method.
    MSE with kappa = 1 and no bias or a free one, any counts: for d below the rank of the optimum the d
    largest of the singular values, each less N lam/2.

    Departures from the paper, which `remark` and `proved` state: Definition 1 asks for t* < 0, which holds
    below the threshold only; for focal loss with a bias and C > 1, Theorem 1 is false in a window of c for K
    >= 18 ("upper bound": the lowest point known, partial collapse). Outside, a certificate proves it up to
    just below the window, for K <= 17 at each C ("proved"); above the window it is open ("numerical").

    Returns: an `Optimum`; W (K, d), H (d, N), b (K,) in `.params`.

    Other models: docs/theory.md, section 6.

    Raises:
        NoClosedForm: d smaller than the rank of the optimum, with what is known there; a user's loss without
            class symmetry, without the averaging property, or neither shift-invariant nor convex; with
            unequal counts, a loss that is not convex or not smooth.
        ValueError: a batch of problems.

    Source: Zhou et al. 2022, Theorem 1 and Appendix C; docs/theory.md, sections 1.5 and 2.1, which proves it
    without Lemma 8: ||Z||_* >= (1/K) sum_k |sum_j (z_jk - z_kk)|, so f >= (1/K) sum_k phi(t_k) + c |t_k|. For
    unequal counts: docs/theory.md, section 1.7.
    """
    if type(prob.model) in OF_MODELS:
        return OF_MODELS[type(prob.model)](prob)
    need_free_factors(prob)
    if prob.d < prob.K - prob.bias and _truncation.applies(any_counts(prob)):
        return _truncated_optimum(any_counts(prob), prob.counts)
    if prob.n is None:
        return _unequal_optimum(any_counts(prob), _blocks.groups_of(prob.counts, prob.class_weights))
    best = _certified(collapsed_optimum(setting(prob)))
    partial = None if best.proved == "proved" else _partial_optimum(best)
    return partial or best


@in_float64
def lower_bound(prob: Problem) -> float:
    """A value that f never goes below: that of `global_optimum`, or a bound that needs less than it.

    Raises:
        NoClosedForm: as `global_optimum`; for unit vectors, cross-entropy and label smoothing not for the
            sake of d.

    Source: docs/theory.md, sections 5.4, 6.2 and 6.3.
    """
    known = BOUNDS_OF_MODELS.get(type(prob.model))
    if prob.model.bilinear and prob.n and prob.d < prob.K - 1 and prob.loss.smoothing() is not None:
        known = _rank_bound.rank_lower_bound
    return global_optimum(prob).lower_bound if known is None else known(prob)


def _certified(best: Optimum) -> Optimum:
    """Proved where the certificate for focal loss with a bias closes."""
    if best.proved == "proved" or not focal.certified(best.setting):
        return best
    return best._replace(
        proved="proved",
        theorem="a dual bound over the sets of classes, evaluated in float64 (docs/theory.md, section 2.6)",
        remark="" if best.margin else NOT_BELOW,
        lower_bound=best.objective,
    )


def collapsed_optimum(s: Setting) -> Optimum:
    """The lowest point with full class symmetry: neural collapse (a frame for MSE) or the origin.

    Raises:
        NoClosedForm: no row of `FORMS` applies; the message joins their reasons.
    """
    reasons = []
    for form in FORMS:
        why_not = form.why_not(s)
        if not why_not:
            return framed(s, form.optimum(s))
        reasons.append(why_not)
    raise NoClosedForm(f"loss: {'; '.join(dict.fromkeys(reasons))}")


NOT_BELOW = "at this c the minimiser is zero: the paper's t* < 0 (Definition 1) reads t* <= 0"


def framed(s: Setting, point: SymmetricPoint) -> Optimum:
    """The record of Zbar = a (I - 11^T/K) + m 11^T/K, b = b0 1.

    Raises:
        NoClosedForm: d is smaller than its rank.
    """
    a, m = point.a, point.m
    factors, structure = _frames.symmetric(s.K, a, m), frame_name(s.K, a, m)
    if s.d < factors.rank and s.loss.smoothing() is not None:
        raise NoClosedForm(_few_dimensions(s))
    need_rank(s, factors.rank, structure)
    return Optimum(
        objective=point.objective,
        margin=a,
        regime="non-trivial" if a != 0 else "trivial",
        structure=structure,
        proved=point.proved,
        theorem=point.theorem,
        remark=point.remark or ("" if a != 0 else NOT_BELOW),
        mean_eigenvalue=m,
        bias=point.b0,
        b=np.full(s.K, point.b0),
        trivial=point.trivial,
        lower_bound=point.objective if point.lower_bound is None else point.lower_bound,
        factors=factors,
        setting=s,
    )


def _few_dimensions(s: Setting) -> str:
    """What is known where the simplex ETF does not fit."""
    bound, found = _rank_bound.of_rank(s.K, s.d, _rank_bound.slope(s)), _codes.lowest(s)
    best = f"{_codes.named(found[0].codes)} has f = {found[0].value:.12g}" if found else "no code is known"
    return (
        f"d: the simplex ETF has rank {s.K - 1} and needs d >= {s.K - 1}, got d={s.d} with K={s.K}; below "
        "that no optimum is proved and spurious minima are known. No point is below "
        f"{bound:.12g} (theory.rank_lower_bound), {best} (theory.lowest_code), and landscape.certificate "
        "bounds f - f* at any point"
    )


def frame_name(K: int, a: float, m: float) -> str:
    if a == 0:
        return "zero" if m == 0 else "rank one, the same logits for every class"
    if m == 0:
        return "simplex ETF"
    if a == m:
        return "orthogonal frame"
    cosine = (abs(m) - abs(a)) / ((K - 1) * abs(a) + abs(m))
    return f"equiangular frame of rank {K}, cosine {cosine:.6g} between class means"


def _partial_optimum(best: Optimum) -> Optimum | None:
    """A point of partial collapse below `best`, if the sub-ETF family has one."""
    s, hint = best.setting, best.margin
    if not s.bias or not is_of_p(s.loss, s.K):
        return None
    if hint == 0:
        jump = first_order_margins(s.loss, s.K)
        hint = 1.0 if jump is None else jump[1]
    found = _partial.best_partial(profile_of(s.loss, s.K), s, hint)
    if found is None or found.value >= best.objective * (1 - 1e-14):
        return None
    factors = _frames.partial(s.K, found.on, found.alpha, found.v)
    structure = f"simplex ETF of {found.on} classes, the other {s.K - found.on} at the origin"
    need_rank(s, factors.rank, structure)
    endless = "" if np.ptp(found.b) < 30 else "; the bias grows without bound, no minimiser exists"
    return best._replace(
        objective=found.value,
        margin=found.alpha,
        regime="partial",
        structure=structure,
        proved="upper bound",
        theorem="sub-ETF family, minimised over its size, margin and bias",
        remark="Theorem 1 of Zhou et al. 2022 is false here: this point lies below neural collapse and the "
        f"origin; its other classes are told apart by the bias alone{endless}",
        b=found.b,
        factors=factors,
    )


def _truncated_optimum(s: Setting, counts: np.ndarray) -> Optimum:
    """Squared error with kappa = 1 in d dimensions, fewer than the directions that could be on."""
    best = _truncation.minimum(s, counts)
    rank = best.factors.rank
    optimum = Optimum(
        objective=best.value,
        margin=0.0,
        regime="non-trivial" if rank else "trivial",
        structure=f"the {rank} largest of {best.gains} singular values" if rank else "zero",
        proved="proved",
        theorem="von Neumann's trace inequality: each singular value by itself",
        remark="no simplex ETF: it needs more dimensions" if rank < best.gains else "",
        mean_eigenvalue=np.nan,
        bias=float(best.b.mean()),
        b=best.b,
        trivial=best.trivial,
        lower_bound=best.value,
        factors=best.factors,
        setting=s,
    )
    return optimum._replace(margin=least_margin(optimum.logits))


def least_margin(logits: np.ndarray) -> float:
    """The target logit above the others, in the class where this is least."""
    others = logits - np.diag(np.full(len(logits), np.inf))
    return float((np.diag(logits) - others.max(axis=0)).min())


# --- unequal counts -------------------------------------------------------------------------------


def _unequal_optimum(s: Setting, groups: Groups) -> Optimum:
    """The minimiser of the block program of `theory._blocks`.

    Raises:
        NoClosedForm: the loss has no class symmetry, is not convex or not smooth; d is smaller than the rank.
    """
    program = _blocks.program(s, groups)
    x, zero, closed = _blocks.minimiser(program, s, groups)
    b, value = x.b[groups.of_class], _blocks.objective(program, x)
    trivial = not np.any(x.T) and not np.any(x.t)
    factors = _frames.blocks(groups.of_class, groups.counts[groups.of_class].astype(float), x.T, x.t)
    structure = "zero" if trivial else _block_name(groups, factors, x)
    need_rank(s, factors.rank, structure)
    optimum = Optimum(
        objective=value,
        margin=0.0,
        regime="trivial" if trivial else "non-trivial",
        structure=structure,
        proved="proved",
        theorem="averaging over the permutations inside the groups of classes (loss declared convex)"
        + (", in closed form" if closed else ""),
        remark="the classes are not balanced: no simplex ETF",
        mean_eigenvalue=np.nan,
        bias=float(b.mean()),
        b=b,
        trivial=_blocks.objective(program, zero),
        lower_bound=value,
        factors=factors,
        setting=s,
    )
    return optimum._replace(margin=least_margin(optimum.logits))


def _block_name(groups: Groups, factors: _frames.Factors, x: Block) -> str:
    """In few words: "rank 4, simplex ETFs of 3 + 2 classes, 1 group merged"."""
    least = 1e-11 * factors.sigma.max() * np.sqrt(groups.samples.sum() / groups.sizes.sum())
    several = groups.sizes > 1
    apart = groups.sizes[several & (np.abs(x.t) > least)]
    merged = int(several.sum()) - len(apart)
    parts = [f"rank {factors.rank}"]
    if len(apart):
        parts.append(f"simplex ETF{'s' * (len(apart) > 1)} of {' + '.join(map(str, apart))} classes")
    if merged:
        parts.append(f"{merged} group{'s' * (merged > 1)} merged")
    return ", ".join(parts)


# --- the forms, asked in turn ---------------------------------------------------------------------


class Form(NamedTuple):
    """A way to the lowest point with full class symmetry, where `why_not` gives no reason against it."""

    name: str
    why_not: Callable[[Setting], str]
    optimum: Callable[[Setting], SymmetricPoint]
    source: str


def _not_stated(s: Setting) -> str:
    return "" if s.loss.optimum(s) is not None else f"{s.loss!r} states no optimum in closed form"


def _stated(s: Setting) -> SymmetricPoint:
    point = s.loss.optimum(s)
    assert point is not None
    return point


def _not_symmetric(s: Setting) -> str:
    facts = facts_of(s.loss, s.K)
    if facts.symmetric:
        return ""
    return (
        f"{s.loss!r} treats classes differently (relative change {facts.symmetry:.2g} under a permutation of "
        "logits and label), so the optimum has no reason to be symmetric"
    )


def _not_scalar(s: Setting) -> str:
    facts = facts_of(s.loss, s.K)
    if _not_symmetric(s):
        return _not_symmetric(s)
    if not facts.shift_invariant:
        return "it feels a common shift of the logits"
    if not facts.averages:
        return (
            f"averaging the non-target logits raises {s.loss!r} (by {facts.averaging:.2g}): it lacks the "
            "contrastive property; see theory.contrastive_property"
        )
    return ""


def not_convex(s: Setting) -> str:
    if _not_symmetric(s) or s.loss.convex:
        return _not_symmetric(s)
    facts, remedy = facts_of(s.loss, s.K), "if it is convex, declare losses.custom(f, convex=True)"
    if facts.shift_invariant:
        return f"it is not declared convex; {remedy}"
    shift = f"a common shift changes it by {facts.shift:.2g}"
    return f"{s.loss!r} is neither shift-invariant ({shift}) nor declared convex; {remedy}"


def _convex_frame(s: Setting) -> SymmetricPoint:
    return averaged(s, _convex.optimum(s), "a simplex ETF")


def averaged(s: Setting, point: _convex.Point, frame: str) -> SymmetricPoint:
    """The minimum over logits that no permutation of the classes changes, whose frame need not be `frame`."""
    a, m, b0, objective = point
    return SymmetricPoint(
        a,
        objective,
        _convex.trivial_value(s),
        m=m,
        b0=b0,
        theorem="averaging over the permutations of the classes (loss declared convex)",
        remark=f"not a function of logit differences: the frame need not be {frame}",
    )


def _scalar(s: Setting) -> SymmetricPoint:
    """min over a >= 0 of l(a) + C a."""
    profile = profile_of(s.loss, s.K)
    trivial = float(profile.value(0.0))
    a = scalar_minimum(profile, s.C, s.loss.infimum)
    value = float(profile.value(a)) + s.C * a
    if s.loss.convex and s.loss.shift_invariant:
        return SymmetricPoint(a, value, trivial, theorem=f"{THEOREM_1} (loss declared convex)")
    why = "the contrastive property was tested at random logits only, see theory.contrastive_property"
    bound = float(s.loss.infimum)
    return SymmetricPoint(a, value, trivial, proved="numerical", remark=why, lower_bound=bound)


def scalar_minimum(profile: ScalarProfile, C: float, infimum: float) -> float:
    """argmin over a >= 0 of l(a) + C a: every sign change of l' + C on a grid, up to where C a alone exceeds
    l(0) - infimum, then the lowest of these and the origin.

    Raises:
        NoClosedForm: l + C a still falls at the end of the grid.
    """
    reach = max((float(profile.value(0.0)) - infimum) / C, 1.0)
    return lowest(lambda a: profile.value(a) + C * a, lambda a: profile.slope(a) + C, reach)


def lowest(value: Callable[[Any], Any], slope: Callable[[Any], Any], reach: float) -> float:
    """argmin over 0 <= a <= reach of a function of arrays that rises at `reach`, from its slope on a grid.

    Raises:
        NoClosedForm: it still falls at the end of the grid.
    """
    grid = np.append(0.0, np.geomspace(1e-9, 1.0, 4000) * reach)
    rises = np.asarray(slope(grid)) >= 0
    if not rises[-1]:
        raise NoClosedForm("loss: l(a) + C a still falls where the declared infimum says it cannot; check it")

    minima = [0.0] if rises[0] else []
    for cell in np.flatnonzero(~rises[:-1] & rises[1:]).tolist():
        minima.append(
            float(
                brentq(
                    lambda a: float(slope(a)),
                    float(grid[cell]),
                    float(grid[cell + 1]),
                    xtol=1e-18,
                    rtol=1e-15,
                    maxiter=500,
                )
            )
        )
    values = np.asarray(value(np.array(minima)))
    return minima[int(np.argmin(values))]


#: Asked in this order; a new closed form is a new row.
FORMS = (
    Form("stated by the loss", _not_stated, _stated, "Zhou et al. 2022, Theorem 1, and the loss's own file"),
    Form("scalar problem", _not_scalar, _scalar, "Zhou et al. 2022, equation (10)"),
    Form("frame of a convex loss", not_convex, _convex_frame, "docs/theory.md, section 2.1"),
)
