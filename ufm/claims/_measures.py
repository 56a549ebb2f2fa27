"""What the statements measure at a solution, and how far rounding and the solver's tolerance may move it."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import numpy as np
from jax import Array

from ufm import _compile, losses, theory
from ufm._problem import Params, Problem, Variables
from ufm._solution import Solution
from ufm.hessian.certificate import Certificate
from ufm.hessian.point import Analysis
from ufm.hessian.product import NotFinite
from ufm.theory import NoClosedForm, Optimum
from ufm.theory._blocks import groups_of
from ufm.theory.geometry import GroupGeometry, measured_geometry

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
        gradient = self.prob.unbound(sol.params, gradient)  # less what bounds hold back
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
        """The classes of each group of at least two classes with equally many samples and the same weight."""
        groups = groups_of(self.prob.counts, self.prob.class_weights)
        found = [np.flatnonzero(groups.of_class == g) for g in range(len(groups.sizes))]
        return [group for group in found if len(group) > 1]

    @functools.cached_property
    def apart(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each group: W and the class means H', less their means over the group; rows of classes."""
        means = np.asarray(self.prob.class_means(self.H)).T
        parts = [(self.W[group], means[group]) for group in self.groups]
        return [(w - w.mean(axis=0), h - h.mean(axis=0)) for w, h in parts]

    @functools.cached_property
    def gains(self) -> list[float] | None:
        """Of each group of `groups`: p_target - p_other at the optimum; None where it is not known."""
        loss, counts, weights = self.prob.loss, self.prob.counts, self.prob.class_weights
        plain = losses.without_weights(loss)
        scale = plain.merging(self.prob.bias) if loss.shift_invariant else None
        if scale is None:
            return None
        w = np.ones(self.prob.K) if weights is None else np.asarray(weights)
        x = self.prob.N * float(self.prob.lam)
        return [max(0.0, scale - x / (w[group[0]] * math.sqrt(counts[group[0]]))) for group in self.groups]

    @functools.cached_property
    def geometry(self) -> GroupGeometry:
        """Norms and angles of the groups."""
        return measured_geometry(self.prob, self.sol.effective)

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
        return min(self.grad_norm, tol_gradient(self)) / curvature

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


def ratio(error: Any, size: Any) -> float:
    """error / size; 1 where there is nothing to compare with (W = 0 is not a frame)."""
    return float(error / size) if size > 0 else 1.0


def stationary_W(f: Facts) -> float:
    return float(np.linalg.norm(f.gradient.W))


def stationary_H(f: Facts) -> float:
    return float(np.linalg.norm(f.gradient.H))


def stationary_b(f: Facts) -> float:
    return float(np.linalg.norm(f.gradient.b)) if f.prob.bias else 0.0


def singular_pairs(f: Facts) -> float:
    """G V = -lam U and U'G = -lam V' on the active directions of Z = W H = U S V'."""
    Q, R = np.linalg.qr(f.H.T)  # Z = W R' Q': the SVD of a K x d matrix serves
    U, S, Vt = np.linalg.svd(f.W @ R.T, full_matrices=False)
    active = 1e-9 * max(S.max(), 1e-300) < S
    U, V = U[:, active], Q @ Vt[active].T
    lam = float(f.prob.lam)
    residual = max(np.linalg.norm(f.G @ V + lam * U), np.linalg.norm(f.G.T @ U + lam * V))
    return float(residual / lam)


def balance(f: Facts) -> float:
    """lam_W W'W against lam_H H H', and so for each pair of adjacent factors of a chain."""
    deviations = []
    for (low, H), (high, W) in itertools.pairwise(f.chain):
        left = high * W.T @ W
        deviations.append(ratio(np.linalg.norm(left - low * H @ H.T), np.linalg.norm(left)))
    return max(deviations)


def objective(f: Facts) -> float:
    return abs(f.objective - f.best.objective)


def certificate(f: Facts) -> float:
    return float(f.certificate.gap)


def row_norms(f: Facts) -> float:
    norms = np.linalg.norm(f.W, axis=1)
    return ratio(np.ptp(norms), norms.mean())


def self_duality(f: Facts) -> float:
    n = f.prob.n
    assert n is not None
    expected = math.sqrt(f.lam_W / (f.lam_H * n)) * f.W.T
    worst = np.max(np.linalg.norm(f.rounds - expected, axis=1))
    return ratio(worst, np.linalg.norm(expected, axis=0).mean())


def round_means(f: Facts) -> float:
    means = np.linalg.norm(f.rounds.mean(axis=2), axis=1)
    return ratio(np.max(means), np.linalg.norm(f.H, axis=0).mean())


def within_class(f: Facts) -> float:
    means = np.asarray(f.prob.class_means(f.H))
    spread = np.linalg.norm(f.H - means[:, np.asarray(f.prob.labels)], axis=0).max()
    return ratio(spread, np.linalg.norm(f.H, axis=0).mean())


def sample_mean(f: Facts) -> float:
    mean = np.asarray(f.prob.class_means(f.H)) @ f.prob.counts / f.prob.N
    return ratio(np.linalg.norm(mean), np.linalg.norm(f.H, axis=0).mean())


def group_etf(f: Facts) -> float:
    worst, Z = 0.0, f.best.logits
    for group, (w, _) in zip(f.groups, f.apart, strict=True):
        i, j = group[:2]
        size = math.sqrt(f.prob.counts[i] * f.lam_H / f.lam_W) * (Z[i, i] - Z[j, i])
        expected = size * (np.eye(len(group)) - 1 / len(group))
        worst = max(worst, float(np.linalg.norm(w @ w.T - expected)))
    return ratio(worst, np.linalg.norm(f.W @ f.W.T))


def group_duality(f: Facts) -> float:
    scales = [math.sqrt(f.prob.counts[group[0]] * f.lam_H / f.lam_W) for group in f.groups]
    errors = [np.linalg.norm(w - s * h, axis=1).max() for s, (w, h) in zip(scales, f.apart, strict=True)]
    return ratio(max(errors), f.row_norm)


def groups_orthogonal(f: Facts) -> float:
    pairs = itertools.combinations([w for w, _ in f.apart], 2)
    return ratio(max(np.linalg.norm(v @ w.T) for v, w in pairs), np.linalg.norm(f.W @ f.W.T))


def group_gain(f: Facts) -> float:
    Z = f.W @ np.asarray(f.prob.class_means(f.H)) + f.b[:, None]
    p = np.exp(Z - Z.max(axis=0))
    p /= p.sum(axis=0)
    assert f.gains is not None
    worst = 0.0
    for group, gain in zip(f.groups, f.gains, strict=True):
        inside = p[np.ix_(group, group)]
        apart = np.diag(inside) - inside
        worst = max(worst, float(np.abs(apart - gain)[~np.eye(len(group), dtype=bool)].max()))
    return worst


def group_geometry(f: Facts) -> float:
    best, worst = f.best.params, 0.0
    means = [np.asarray(f.prob.class_means(np.asarray(H))).T for H in (f.H, best.H)]
    for ours, theirs in ((f.W, np.asarray(best.W)), means):
        gram, expected = ours @ ours.T, theirs @ theirs.T
        worst = max(worst, ratio(np.linalg.norm(gram - expected), np.linalg.norm(expected)))
    return worst


def bias_constant(f: Facts) -> float:
    return float(np.ptp(f.b)) / max(1.0, f.best.margin)


def bias_zero(f: Facts) -> float:
    return float(np.abs(f.b).max()) / max(1.0, f.best.margin)


def etf(f: Facts) -> float:
    K = f.prob.K
    gram = f.W @ f.W.T
    size = np.linalg.norm(gram)
    return ratio(np.linalg.norm(gram - size * (np.eye(K) - 1 / K) / math.sqrt(K - 1)), size)


def class_logits(f: Facts) -> float:
    """Logits of every sample against theory's; a common shift is left out where it is free."""
    Z = f.W @ f.H + f.b[:, None]
    expected = f.best.logits[:, np.asarray(f.prob.labels)]
    error = Z - expected
    if f.prob.loss.shift_invariant:
        error = error - error.mean(axis=0)
    return ratio(np.abs(error).max(), np.abs(expected).max())


def frame(f: Facts) -> float:
    """W W' = sqrt(n lam_H/lam_W) (|a| (I - 11'/K) + |m| 11'/K), MSE's frame."""
    K, n = f.prob.K, f.prob.n
    assert n is not None
    J = np.full((K, K), 1 / K)
    form = abs(f.best.margin) * (np.eye(K) - J) + abs(f.best.mean_eigenvalue) * J
    expected = math.sqrt(n * f.lam_H / f.lam_W) * form
    return ratio(np.linalg.norm(f.W @ f.W.T - expected), np.linalg.norm(expected))


def bias_value(f: Facts) -> float:
    return float(np.abs(f.b - f.best.b).max()) / max(1.0, abs(f.best.bias))


def zero(f: Facts) -> float:
    return max(float(np.abs(f.W).max()), float(np.abs(f.H).max()))


def negative_curvature(f: Facts) -> float:
    return max(0.0, -f.smallest_curvature)


def neither(f: Facts) -> float:
    """f - f* where the point is neither global nor has a way down; zero where it is one of them."""
    if f.certificate.is_global or f.smallest_curvature < -tol_curvature(f):
        return 0.0
    return max(0.0, f.objective - f.best.objective)


def outside_region(f: Facts) -> float:
    """How far the smallest target probability is below p_min."""
    Z = f.W @ f.H + f.b[:, None]
    labels = np.asarray(f.prob.labels)
    odds = Z - Z[labels, np.arange(len(labels))]
    p = 1 / np.exp(odds).sum(axis=0)
    return max(0.0, theory.convexity_region(f.prob.loss, f.prob.K).p_min - float(p.min()))


# --- how exact it must be -------------------------------------------------------------------------


def tol_gradient(f: Facts) -> float:
    """The gradient norm that was asked for, or its rounding floor."""
    return max(f.sol.tol, f.objective_accuracy / 10)


def tol_pairs(f: Facts) -> float:
    # dividing by the active singular values' roots turns a gradient into a residual of the pairs
    size = max(f.row_norm * min(1.0, (f.lam_W / f.lam_H) ** 0.25, (f.lam_H / f.lam_W) ** 0.25), 1e-300)
    excused = min(f.grad_norm, tol_gradient(f))
    return float(np.clip(10 * excused / (float(f.prob.lam) * size), f.structure_accuracy, COARSEST))


def tol_structure(f: Facts) -> float:
    return f.structure_tolerance


def tol_probabilities(f: Facts) -> float:
    # probabilities move by at most as much as logits, which the structure's tolerance is relative to
    return f.structure_tolerance * max(1.0, f.best.margin)


def tol_balance(f: Facts) -> float:
    """W'grad_W - grad_H H' = lam_W W'W - lam_H H H' exactly: the gradient bounds it without any theory."""
    excused, relative = min(f.grad_norm, tol_gradient(f)), []
    for (_, H), (high, W) in itertools.pairwise(f.chain):
        sizes = float(np.linalg.norm(W)) + float(np.linalg.norm(H))
        relative.append(sizes * excused / max(high * float(np.linalg.norm(W.T @ W)), 1e-300))
    return float(np.clip(max(relative), f.structure_accuracy, COARSEST))


def tol_objective(f: Facts) -> float:
    return f.objective_accuracy * (1 + abs(f.best.objective)) + min(f.distance * tol_gradient(f), 1e-9)


def tol_certificate(f: Facts) -> float:
    return max(float(f.certificate.tol), f.objective_accuracy) * (1 + abs(f.objective))


def tol_curvature(f: Facts) -> float:
    if f.prob.model.curved:  # |grad f| is what moving vectors of norm one by their error does to curvatures
        return 1e-9 * float(f.prob.model.stiffness(f.prob)) + 100 * min(f.grad_norm, tol_gradient(f))
    # moving a point moves eigenvalues by about as much
    return 1e-9 * (f.lam_W + f.lam_H) + 10 * f.distance


def no_tolerance(f: Facts) -> float:
    return 0.0


def tol_zero(f: Facts) -> float:
    return max(10 * f.distance, f.structure_accuracy)


def _relative_to_features(f: Facts, error: float) -> float:
    return float(np.clip(error / np.linalg.norm(f.H, axis=0).mean(), f.structure_accuracy, COARSEST))


def tol_within_class(f: Facts) -> float:
    """A column minimises a lam_H strongly convex function: |h - h'| <= |grad_h - grad_h'|/lam_H."""
    return _relative_to_features(f, 2 * min(f.grad_norm, tol_gradient(f)) / f.lam_H)


def tol_sample_mean(f: Facts) -> float:
    """lam_H H 1 = grad_H 1 - W'grad_b exactly, where the bias is free."""
    excused = min(f.grad_norm, tol_gradient(f))
    size = f.prob.N**0.5 + float(np.linalg.norm(f.W))
    return _relative_to_features(f, size * excused / (f.lam_H * f.prob.N))
