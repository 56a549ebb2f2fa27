"""SHELF of statements that `verify` measures at a solution: Theorems 1 and 2 (Zhou et al. 2022).

A statement is one row of `STATEMENTS`, or of `UNEQUAL` where it is about unequal class counts: what is
measured, how far rounding and the solver's tolerance may move it, and what it assumes. Adding one is adding a
row.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import numpy as np
from jax import Array

from ufm import _compile, theory
from ufm._claim import Statement
from ufm._problem import Params, Problem, Variables
from ufm._solution import Solution
from ufm.hessian.certificate import Certificate
from ufm.hessian.point import Analysis
from ufm.hessian.product import NotFinite
from ufm.theory import NoClosedForm, Optimum

#: structure known worse than this proves nothing
COARSEST = 1e-3

# --- what is measured -----------------------------------------------------------------------------


class Facts:
    """A solution as numpy arrays, and what theory says of its problem."""

    def __init__(self, sol: Solution) -> None:
        self.sol = sol
        self.prob: Problem = sol.problem
        self.W, self.H, self.b = (np.asarray(x) for x in sol.effective)
        # measured here again: nothing that the solver says of itself is taken on trust
        objective, G, gradient = _derivatives(self.prob, sol.params)
        self.objective, self.G = float(objective), np.asarray(G)
        self.gradient: Variables = jax.tree.map(np.asarray, gradient)
        self.lam_W, self.lam_H, self.lam_b = (
            float(x) for x in (self.prob.lam_W, self.prob.lam_H, self.prob.lam_b)
        )
        self.point = Analysis(self.prob, sol.params)
        self.optimum: Optimum | None = None
        self.no_optimum = ""
        try:
            self.optimum = theory.global_optimum(self.prob)
        except NoClosedForm as reason:
            self.no_optimum = str(reason)

    @functools.cached_property
    def objective_accuracy(self) -> float:
        """Relative accuracy asked of objectives: 1e-12 in float64, 5e-4 in float32."""
        return 4096 * float(np.finfo(self.W.dtype).eps)

    @functools.cached_property
    def structure_accuracy(self) -> float:
        """Relative accuracy asked of structure, where the conditioning allows it: 1.5e-8 in float64."""
        return float(np.finfo(self.W.dtype).eps) ** 0.5

    @property
    def certificate(self) -> Certificate:
        """The bound on f - f* at the solution."""
        return self.sol.certificate

    @property
    def best(self) -> Optimum:
        """The optimum, where a statement requires it."""
        assert self.optimum is not None
        return self.optimum

    @functools.cached_property
    def chain(self) -> list[tuple[float, np.ndarray]]:
        """The free factors from H on, each with its penalty; empty where the model has no such product."""
        chain = self.prob.model.chain(self.prob, self.sol.params)
        return [(float(lam), np.asarray(factor)) for lam, factor in chain]

    @functools.cached_property
    def grad_norm(self) -> float:
        """|grad f|."""
        return math.hypot(*(float(np.linalg.norm(part)) for part in self.gradient))

    @functools.cached_property
    def rounds(self) -> np.ndarray:
        """H as (n, d, K): the i-th sample of each class, the paper's H_i."""
        order = np.argsort(np.asarray(self.prob.labels), kind="stable")
        K, n = self.prob.K, self.prob.n
        assert n is not None
        return self.H[:, order].reshape(-1, K, n).transpose(2, 0, 1)

    @functools.cached_property
    def groups(self) -> list[np.ndarray]:
        """The classes of each group of at least two classes with equally many samples."""
        counts = self.prob.counts
        found = [np.flatnonzero(counts == n) for n in np.unique(counts)]
        return [group for group in found if len(group) > 1]

    @functools.cached_property
    def apart(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each group: W and the class means H', less their means over the group; rows of classes."""
        means = np.asarray(self.prob.class_means(self.H)).T
        parts = [(self.W[group], means[group]) for group in self.groups]
        return [(w - w.mean(axis=0), h - h.mean(axis=0)) for w, h in parts]

    @functools.cached_property
    def row_norm(self) -> float:
        """Mean norm of the rows of W."""
        return float(np.linalg.norm(self.W, axis=1).mean())

    @functools.cached_property
    def distance(self) -> float:
        """How far the nearest minimiser may be: |grad f|, up to what the solver's tolerance allows, over
        the smallest positive curvature there.
        """
        try:
            curvature = theory.hessian_spectrum(self.prob).smallest_positive
        except NoClosedForm:  # the flattest of the known spectra are some hundredths of the penalties
            curvature = 1e-2 * min(self.lam_W, self.lam_H)
        return min(self.grad_norm, _tol_gradient(self)) / curvature

    @functools.cached_property
    def smallest_curvature(self) -> float:
        """The smallest eigenvalue of the Hessian; of a convex loss with unused features, through G alone.

        Minus infinity where the Hessian is not finite: nothing shows then that it has no negative eigenvalue.
        """
        rank = np.linalg.matrix_rank(self.W, tol=1e-6 * max(self.row_norm, 1e-3))
        if self.prob.collapses and rank < self.prob.d and self.row_norm > 1e-6:
            curvature = float(self.certificate.curvature)
            return curvature if math.isfinite(curvature) else -math.inf
        try:
            return self.point.smallest
        except NotFinite:
            return -math.inf

    @functools.cached_property
    def structure_tolerance(self) -> float:
        """Relative, from the conditioning: near a threshold the structure is as flat as its size is small."""
        return float(
            np.clip(10 * self.distance / max(self.row_norm, 1e-300), self.structure_accuracy, COARSEST)
        )


@functools.partial(_compile.jit, options=_compile.INSTANT)
def _derivatives(prob: Problem, params: Params) -> tuple[Array, Array, Params]:
    """f, the gradient G (K, N) of the mean loss in the logits, and grad f."""
    G = prob.logit_gradient(params)
    return prob(params), G, jax.tree.map(jax.numpy.add, *prob.gradients(params, G))


def _ratio(error: Any, size: Any) -> float:
    """error / size; 1 where there is nothing to compare with (W = 0 is not a frame)."""
    return float(error / size) if size > 0 else 1.0


def _stationary_W(f: Facts) -> float:
    return float(np.linalg.norm(f.gradient.W))


def _stationary_H(f: Facts) -> float:
    return float(np.linalg.norm(f.gradient.H))


def _stationary_b(f: Facts) -> float:
    return float(np.linalg.norm(f.gradient.b)) if f.prob.bias else 0.0


def _singular_pairs(f: Facts) -> float:
    """G V = -lam U and U'G = -lam V' on the active directions of Z = W H = U S V'."""
    Q, R = np.linalg.qr(f.H.T)  # Z = W R' Q': the SVD of a K x d matrix serves
    U, S, Vt = np.linalg.svd(f.W @ R.T, full_matrices=False)
    active = 1e-9 * max(S.max(), 1e-300) < S
    U, V = U[:, active], Q @ Vt[active].T
    lam = float(f.prob.lam)
    residual = max(np.linalg.norm(f.G @ V + lam * U), np.linalg.norm(f.G.T @ U + lam * V))
    return float(residual / lam)


def _balance(f: Facts) -> float:
    """lam_W W'W against lam_H H H', and so for each pair of adjacent factors of a chain."""
    deviations = []
    for (low, H), (high, W) in itertools.pairwise(f.chain):
        left = high * W.T @ W
        deviations.append(_ratio(np.linalg.norm(left - low * H @ H.T), np.linalg.norm(left)))
    return max(deviations)


def _objective(f: Facts) -> float:
    return abs(f.objective - f.best.objective)


def _certificate(f: Facts) -> float:
    return float(f.certificate.gap)


def _row_norms(f: Facts) -> float:
    norms = np.linalg.norm(f.W, axis=1)
    return _ratio(np.ptp(norms), norms.mean())


def _self_duality(f: Facts) -> float:
    n = f.prob.n
    assert n is not None
    expected = math.sqrt(f.lam_W / (f.lam_H * n)) * f.W.T
    worst = np.max(np.linalg.norm(f.rounds - expected, axis=1))
    return _ratio(worst, np.linalg.norm(expected, axis=0).mean())


def _round_means(f: Facts) -> float:
    means = np.linalg.norm(f.rounds.mean(axis=2), axis=1)
    return _ratio(np.max(means), np.linalg.norm(f.H, axis=0).mean())


def _within_class(f: Facts) -> float:
    means = np.asarray(f.prob.class_means(f.H))
    spread = np.linalg.norm(f.H - means[:, np.asarray(f.prob.labels)], axis=0).max()
    return _ratio(spread, np.linalg.norm(f.H, axis=0).mean())


def _sample_mean(f: Facts) -> float:
    mean = f.prob.class_means(f.H) @ f.prob.counts / f.prob.N
    return _ratio(np.linalg.norm(mean), np.linalg.norm(f.H, axis=0).mean())


def _group_etf(f: Facts) -> float:
    worst, Z = 0.0, f.best.logits
    for group, (w, _) in zip(f.groups, f.apart, strict=True):
        i, j = group[:2]
        size = math.sqrt(f.prob.counts[i] * f.lam_H / f.lam_W) * (Z[i, i] - Z[j, i])
        expected = size * (np.eye(len(group)) - 1 / len(group))
        worst = max(worst, float(np.linalg.norm(w @ w.T - expected)))
    return _ratio(worst, np.linalg.norm(f.W @ f.W.T))


def _group_duality(f: Facts) -> float:
    scales = [math.sqrt(f.prob.counts[group[0]] * f.lam_H / f.lam_W) for group in f.groups]
    errors = [np.linalg.norm(w - s * h, axis=1).max() for s, (w, h) in zip(scales, f.apart, strict=True)]
    return _ratio(max(errors), f.row_norm)


def _groups_orthogonal(f: Facts) -> float:
    pairs = itertools.combinations([w for w, _ in f.apart], 2)
    return _ratio(max(np.linalg.norm(v @ w.T) for v, w in pairs), np.linalg.norm(f.W @ f.W.T))


def _bias_constant(f: Facts) -> float:
    return float(np.ptp(f.b)) / max(1.0, f.best.margin)


def _bias_zero(f: Facts) -> float:
    return float(np.abs(f.b).max()) / max(1.0, f.best.margin)


def _etf(f: Facts) -> float:
    K = f.prob.K
    gram = f.W @ f.W.T
    size = np.linalg.norm(gram)
    return _ratio(np.linalg.norm(gram - size * (np.eye(K) - 1 / K) / math.sqrt(K - 1)), size)


def _class_logits(f: Facts) -> float:
    """Logits of every sample against theory's; a common shift is left out where it is free."""
    Z = f.W @ f.H + f.b[:, None]
    expected = f.best.logits[:, np.asarray(f.prob.labels)]
    error = Z - expected
    if f.prob.loss.shift_invariant:
        error = error - error.mean(axis=0)
    return _ratio(np.abs(error).max(), np.abs(expected).max())


def _frame(f: Facts) -> float:
    """W W' = sqrt(n lam_H/lam_W) (|a| (I - 11'/K) + |m| 11'/K), MSE's frame."""
    K, n = f.prob.K, f.prob.n
    assert n is not None
    J = np.full((K, K), 1 / K)
    form = abs(f.best.margin) * (np.eye(K) - J) + abs(f.best.mean_eigenvalue) * J
    expected = math.sqrt(n * f.lam_H / f.lam_W) * form
    return _ratio(np.linalg.norm(f.W @ f.W.T - expected), np.linalg.norm(expected))


def _bias_value(f: Facts) -> float:
    return float(np.abs(f.b - f.best.b).max()) / max(1.0, abs(f.best.bias))


def _zero(f: Facts) -> float:
    return max(float(np.abs(f.W).max()), float(np.abs(f.H).max()))


def _negative_curvature(f: Facts) -> float:
    return max(0.0, -f.smallest_curvature)


def _neither(f: Facts) -> float:
    """f - f* where the point is neither global nor has a way down; zero where it is one of them."""
    if f.certificate.is_global or f.smallest_curvature < -_tol_curvature(f):
        return 0.0
    return max(0.0, f.objective - f.best.objective)


def _outside_region(f: Facts) -> float:
    """How far the smallest target probability is below p_min."""
    Z = f.W @ f.H + f.b[:, None]
    labels = np.asarray(f.prob.labels)
    odds = Z - Z[labels, np.arange(len(labels))]
    p = 1 / np.exp(odds).sum(axis=0)
    return max(0.0, theory.convexity_region(f.prob.loss, f.prob.K).p_min - float(p.min()))


# --- how exact it must be -------------------------------------------------------------------------


def _tol_gradient(f: Facts) -> float:
    """The gradient norm that was asked for, or its rounding floor."""
    return max(f.sol.tol, f.objective_accuracy / 10)


def _tol_pairs(f: Facts) -> float:
    # dividing by the active singular values' roots turns a gradient into a residual of the pairs
    size = max(f.row_norm * min(1.0, (f.lam_W / f.lam_H) ** 0.25, (f.lam_H / f.lam_W) ** 0.25), 1e-300)
    excused = min(f.grad_norm, _tol_gradient(f))
    return float(np.clip(10 * excused / (float(f.prob.lam) * size), f.structure_accuracy, COARSEST))


def _tol_structure(f: Facts) -> float:
    return f.structure_tolerance


def _tol_balance(f: Facts) -> float:
    """W'grad_W - grad_H H' = lam_W W'W - lam_H H H' exactly: the gradient bounds it without any theory."""
    excused, relative = min(f.grad_norm, _tol_gradient(f)), []
    for (_, H), (high, W) in itertools.pairwise(f.chain):
        sizes = float(np.linalg.norm(W)) + float(np.linalg.norm(H))
        relative.append(sizes * excused / max(high * float(np.linalg.norm(W.T @ W)), 1e-300))
    return float(np.clip(max(relative), f.structure_accuracy, COARSEST))


def tol_objective(f: Facts) -> float:
    return f.objective_accuracy * (1 + abs(f.best.objective)) + min(f.distance * _tol_gradient(f), 1e-9)


def _tol_certificate(f: Facts) -> float:
    return max(float(f.certificate.tol), f.objective_accuracy) * (1 + abs(f.objective))


def _tol_curvature(f: Facts) -> float:
    # moving a point moves eigenvalues by about as much
    return 1e-9 * (f.lam_W + f.lam_H) + 10 * f.distance


def _no_tolerance(f: Facts) -> float:
    return 0.0


def _tol_zero(f: Facts) -> float:
    return max(10 * f.distance, f.structure_accuracy)


def _relative_to_features(f: Facts, error: float) -> float:
    return float(np.clip(error / np.linalg.norm(f.H, axis=0).mean(), f.structure_accuracy, COARSEST))


def _tol_within_class(f: Facts) -> float:
    """A column minimises a lam_H strongly convex function: |h - h'| <= |grad_h - grad_h'|/lam_H."""
    return _relative_to_features(f, 2 * min(f.grad_norm, _tol_gradient(f)) / f.lam_H)


def _tol_sample_mean(f: Facts) -> float:
    """lam_H H 1 = grad_H 1 - W'grad_b exactly, where the bias is free."""
    excused = min(f.grad_norm, _tol_gradient(f))
    size = f.prob.N**0.5 + float(np.linalg.norm(f.W))
    return _relative_to_features(f, size * excused / (f.lam_H * f.prob.N))


# --- what it assumes: each returns the reason why not, or "" --------------------------------------


def _free(f: Facts) -> str:
    return "" if f.prob.model.bilinear else f"about two free factors, not the model {f.prob.model!r}"


def _own_features(f: Facts) -> str:
    """Features and bias are variables, penalised as in equation (7)."""
    return "" if f.chain or f.prob.model.convex else f"not about the model {f.prob.model!r}"


def _own_bias_term(f: Facts) -> str:
    return _own_features(f) or ("" if f.prob.bias else "the problem has no bias")


def _active(f: Facts) -> str:
    return _free(f) or _not_zero(f)


def _chained(f: Facts) -> str:
    return _not_zero(f) if f.chain else f"about a product of free factors, not the model {f.prob.model!r}"


def _not_zero(f: Facts) -> str:
    noise = 1e-6 + 100 * f.distance
    return "" if f.row_norm > noise else "Z = W H is zero up to the solver's tolerance: no active direction"


def _has_bias(f: Facts) -> str:
    return _free(f) or ("" if f.prob.bias else "the problem has no bias")


def _has_optimum(f: Facts) -> str:
    best = f.optimum
    if best is None or f.prob.model.bilinear or best.proved != "upper bound":
        return f.no_optimum
    return f"f* is only known to be at most {best.objective:.15g}: {best.structure}"


def _dual_bound(f: Facts) -> str:
    cert = f.certificate
    if cert.is_global:
        return ""
    if not (f.prob.model.bilinear or f.prob.model.convex):
        return str(cert.why)
    if not f.prob.loss.convex:
        return f"not a convex loss, and {cert.why}"
    rank = f.prob.full_rank
    return f"d = {f.prob.d} < {rank}: {cert.why}" if f.prob.d < rank else ""


def _balanced(f: Facts) -> str:
    if f.prob.n is not None:
        return ""
    low, high = f.prob.counts.min(), f.prob.counts.max()
    return f"Theorem 1 assumes equally many samples in every class, got {low} to {high}"


def _theorem(f: Facts) -> str:
    """The assumptions of Theorem 1's structure."""
    return _free(f) or _balanced(f) or _structured(f)


def _structured(f: Facts) -> str:
    """Why the structure of the optimum is not known, or is zero."""
    if _free(f):
        return _free(f)
    if f.optimum is None:
        return f.no_optimum
    if f.prob.d < f.prob.K:
        return f"Theorem 1 assumes d >= K, got d={f.prob.d} < K={f.prob.K}"
    if f.optimum.regime == "trivial":
        return (
            f"over-regularised: c = sqrt(n lam_W lam_H) = {f.optimum.setting.c:.6g} is past the threshold, "
            "the global optimum is W = 0, H = 0"
        )
    return ""


def _collapses(f: Facts) -> str:
    """NC1 holds at every critical point of a convex loss, whatever counts and d."""
    if not f.prob.collapses and not _free(f):
        return f"{f.prob.loss!r} is not declared convex: features of a class may differ at a critical point"
    return _active(f) or _critical(f)


def _free_bias(f: Facts) -> str:
    if _has_bias(f):
        return _has_bias(f)
    if f.lam_b != 0:
        return f"the bias is penalised, lam_b = {f.lam_b:g}: sum_k n_k h_k = (lam_b/lam_H) W'b then"
    return _active(f) or _critical(f)


def _has_groups(f: Facts) -> str:
    why = _structured(f)
    return why or ("" if f.groups else "no two classes have equally many samples: each is a group of its own")


def _has_two_groups(f: Facts) -> str:
    why = _has_groups(f)
    return why or ("" if len(f.groups) > 1 else "only one group has several classes")


def _etf_theorem(f: Facts) -> str:
    why = _theorem(f)
    if why or f.best.mean_eigenvalue == 0:
        return why
    return (
        f"the optimum of this loss is no ETF: {f.best.structure}; a loss that is not a function of logit "
        "differences has it only where the bias takes up the mean"
    )


def _bias_zero_theorem(f: Facts) -> str:
    why = _has_bias(f) or _theorem(f)
    if why:
        return why
    if f.best.bias != 0:
        return f"the optimal bias of this loss is b = {f.best.bias:.6g}, not 0 (measured in its own row)"
    if f.lam_b == 0:
        return (
            "lam_b = 0: the loss does not see a common shift of b, a flat direction of f; "
            f"here b = {f.b.mean():.6g} 1"
        )
    return ""


def _own_structure(f: Facts) -> str:
    why = _theorem(f)
    return why or ("" if not f.prob.loss.shift_invariant else "the ETF statements above are this loss's own")


def _own_bias(f: Facts) -> str:
    return _has_bias(f) or _own_structure(f)


def _critical(f: Facts) -> str:
    if f.grad_norm <= 10 * _tol_gradient(f):
        return ""
    return f"no critical point: |grad f| = {f.grad_norm:.1e}"


def _theorem_2(f: Facts) -> str:
    if _free(f):
        return _free(f)
    full = f.prob.full_rank
    if f.prob.d < full:
        return f"d = {f.prob.d} < {full}: spurious minima may exist"
    return f.no_optimum or _critical(f)


def _region(f: Facts) -> str:
    region = f.prob.loss.region()
    if region is None or region.paper is None:
        return "about focal loss"
    if _free(f):
        return _free(f)
    if f.optimum is not None and f.optimum.regime == "trivial":
        return "past the threshold p_k = 1/K"
    return _critical(f)


def _trivial(f: Facts) -> str:
    if _free(f):
        return _free(f)
    if f.optimum is None:
        return f.no_optimum
    return "" if f.optimum.regime == "trivial" else "the penalties are below the threshold"


# --- the table ------------------------------------------------------------------------------------


def _lower_bound(f: Facts) -> str:
    return str(f.certificate.method)


def _optimum(f: Facts) -> str:
    return f"f* = {f.best.objective:.15g}: {f.best.structure} ({f.best.theorem}; {f.best.proved})"


def _uncertified(f: Facts, tolerance: float) -> str:
    return str(f.certificate.why) if f.sol.converged else _failure(f, tolerance)


def _failure(f: Facts, tolerance: float) -> str:
    """What is known of the reason why a statement fails."""
    if not f.sol.converged:
        return f"the solver did not converge: {f.sol.status.message}"
    best = f.optimum
    if best is not None and f.objective > best.objective + tol_objective(f):
        return (
            f"f = {f.objective:.15g} is {f.objective - best.objective:.3e} above {best.structure} "
            f"({best.proved}), which theory.global_optimum(prob).params attains"
        )
    if best is not None and f.objective < best.objective - tol_objective(f):
        below = best.objective - f.objective
        return f"f is {below:.3e} below theory's optimum: a counterexample; please report it"
    if best is not None and best.regime == "partial":
        return f"Theorem 1 is false here: the lowest point known is {best.structure} ({best.proved})"
    return f"the deviation exceeds {tolerance:.1e}"


_Statement = functools.partial(Statement[Facts], failure=_failure)

#: Theorem 1 of Zhou et al. 2022 (with its Lemmas 5 and 7), statement by statement.
STATEMENTS = (
    _Statement("stationary_W", "G H' + lam_W W = 0", _stationary_W, _tol_gradient, _free),
    _Statement("stationary_H", "W' G + lam_H H = 0", _stationary_H, _tol_gradient, _own_features),
    _Statement("stationary_b", "G 1 + lam_b b = 0", _stationary_b, _tol_gradient, _own_bias_term),
    _Statement(
        "singular_pairs",
        "G V = -lam U and U' G = -lam V' where Z = U S V'",
        _singular_pairs,
        _tol_pairs,
        _active,
    ),
    _Statement(
        "balance", "adjacent factors: lam_W W'W = lam_H H H' (Lemma 5)", _balance, _tol_balance, _chained
    ),
    _Statement(
        "objective", "f equals the global minimum f*", _objective, tol_objective, _has_optimum, _optimum
    ),
    _Statement(
        "certificate",
        "nothing lower exists: f - f* <= gap",
        _certificate,
        _tol_certificate,
        _dual_bound,
        _lower_bound,
        failure=_uncertified,
    ),
    _Statement("row_norms", "|w^1| = ... = |w^K|", _row_norms, _tol_structure, _etf_theorem),
    _Statement(
        "self_duality",
        "h_{k,i} = sqrt(lam_W/(lam_H n)) w^k for all k, i",
        _self_duality,
        _tol_structure,
        _etf_theorem,
    ),
    _Statement(
        "zero_mean", "the columns of each H_i have mean zero", _round_means, _tol_structure, _etf_theorem
    ),
    _Statement("etf", "W W' is a simplex ETF", _etf, _tol_structure, _etf_theorem),
    _Statement("logits", "W H + b 1' is the optimum's", _class_logits, _tol_structure, _structured),
    _Statement(
        "bias_constant", "b = b 1", _bias_constant, _tol_structure, lambda f: _has_bias(f) or _theorem(f)
    ),
    _Statement("bias_zero", "b = 0 where lam_b > 0", _bias_zero, _tol_structure, _bias_zero_theorem),
    _Statement(
        "own_frame",
        "W W' = sqrt(n lam_H/lam_W) (|a| (I - 11'/K) + |m| 11'/K)",
        _frame,
        _tol_structure,
        _own_structure,
    ),
    _Statement("own_bias", "b = b0 1 with theory's b0", _bias_value, _tol_structure, _own_bias),
    _Statement("trivial", "W = 0 and H = 0 past the threshold", _zero, _tol_zero, _trivial),
    # Theorem 2 and Corollary 2 at one point; `ufm.landscape.theorems` measures them over many
    _Statement(
        "second_order",
        "the Hessian has no negative eigenvalue",
        _negative_curvature,
        _tol_curvature,
        _critical,
    ),
    _Statement(
        "theorem_2", "a global minimum or a strict saddle (else f - f*)", _neither, tol_objective, _theorem_2
    ),
    _Statement(
        "corollary_2", "p_k >= p_min, where focal loss is convex", _outside_region, _no_tolerance, _region
    ),
)

#: What unequal class counts leave of it (docs/theory.md, section 1.7); measured there beside the others.
UNEQUAL = (
    _Statement(
        "within_class",
        "the features of a class coincide (NC1), at every critical point",
        _within_class,
        _tol_within_class,
        _collapses,
    ),
    _Statement(
        "sample_mean",
        "sum_k n_k h_k = 0 where the bias is free",
        _sample_mean,
        _tol_sample_mean,
        _free_bias,
    ),
    _Statement(
        "group_etf",
        "classes of equal count n: W less its mean over them is a simplex ETF, "
        "W W' = sqrt(n lam_H/lam_W) alpha (I - 11'/K_g)",
        _group_etf,
        _tol_structure,
        _has_groups,
    ),
    _Statement(
        "group_duality",
        "classes of equal count n, less their mean: w^k = sqrt(n lam_H/lam_W) h_k",
        _group_duality,
        _tol_structure,
        _has_groups,
    ),
    _Statement(
        "groups_orthogonal",
        "the ETFs of two groups are orthogonal",
        _groups_orthogonal,
        _tol_structure,
        _has_two_groups,
    ),
)


def statements(prob: Problem) -> tuple[Statement[Facts], ...]:
    """The rows that are measured at a solution of a problem."""
    return STATEMENTS if prob.n is not None else (*STATEMENTS, *UNEQUAL)
