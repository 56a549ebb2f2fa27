"""The Fenchel dual of the nuclear-norm problem: lower bounds of equation (7) for convex losses.

With g the mean loss, (7) is at least min_{Z, b} g(Z + b 1') + lam |Z|_* + lam_b/2 |b|^2, and that at least

    D(Y) = -g*(Y) - |Y 1|^2 / (2 lam_b)   for every Y (K, N) with |Y|_op <= lam = sqrt(lam_W lam_H)

(lam_b = 0: for every such Y with Y 1 = 0; no bias: the last term is absent). The dual point is made from
the gradient G of g at the given point. Averaging its columns within each class only improves D (g* is
convex, an average contracts the operator norm and keeps Y 1), so that all of it is K x K.

    Cert A  Y = theta G, theta = min(1, lam/|G|_op): the gap falls like |grad f|.
    Cert B  singular values of G at or above (1 - tol) lam are set to lam: it falls like |grad f|^2.

The gap f - D is summed from terms that are >= 0 each and vanish at the optimum, never as a difference:

    (1/N) sum_j [L(x_j, y_j) + L*(u_j, y_j) - <u_j, x_j>],  u_j = N Y e_j           (Fenchel-Young)
  + 1/2 |sqrt(lam_W) W + Y H'/sqrt(lam_W)|^2 + 1/2 [lam_H |H|^2 - |Y H'|^2/lam_W]   (|Y|_op <= lam)
  + 1/(2 lam_b) |lam_b b + Y 1|^2

In code a dual point is U (K, K): row k is N times the column of Y that the samples of class k share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import losses
from ufm._problem import Params, Problem

# Cert B's thresholds: the active singular values of G lie within O(|grad f|) of lam and the others do not.
# Any threshold between the two groups will do, so the steps may be coarse; the best one is taken.
_TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 0.0)


class Point(NamedTuple):
    """The given point, evaluated; samples are rows."""

    W: Float[Array, "K d"]
    features: Float[Array, "N d"]  # H'
    b: Float[Array, " K"]  # zeros where the problem has no bias
    logits: Float[Array, "N K"]
    value: Float[Array, " N"]  # the loss of each sample
    slope: Float[Array, "N K"]  # its gradient, N G'
    member: Float[Array, "N K"]  # one-hot labels
    counts: Float[Array, " K"]
    objective: Float[Array, ""]


def evaluate(prob: Problem, params: Params) -> Point:
    """Logits, losses and their gradients, sample by sample, and the objective."""
    W, features = params.W, params.H.T
    b = params.b if prob.bias else jnp.zeros_like(params.b)
    logits = features @ W.T + b
    value, slope = jax.vmap(jax.value_and_grad(prob.loss))(logits, prob.labels)
    member = jax.nn.one_hot(prob.labels, prob.K, dtype=logits.dtype)
    penalty = prob.lam_W * jnp.vdot(W, W) + prob.lam_H * jnp.vdot(features, features)
    penalty += prob.lam_b * jnp.vdot(b, b)
    objective = jnp.mean(value) + penalty / 2
    return Point(W, features, b, logits, value, slope, member, jnp.sum(member, axis=0), objective)


# --- the dual of convex losses --------------------------------------------------------------------


def gaps(prob: Problem, point: Point) -> tuple[Array, Array]:
    """The gaps f - D of the best dual point found and of Cert A alone."""
    if not prob.loss.has_conjugate:
        return _gaps_without_conjugate(prob, point)
    best, linear = dual_point(prob, point)
    return gap_at(prob, point, best), linear


def dual_point(prob: Problem, point: Point) -> tuple[Array, Array]:
    """The best feasible U found (K, K), and the gap of Cert A alone."""
    targets = prob.loss.targets(prob.K)
    starts = dual_starts(prob, point)
    if prob.model.constrained:
        return _scaled_alone(prob, point, starts)
    scaled, clipped = jax.vmap(lambda V: _certs(prob, point, V, targets))(starts)
    candidates = jnp.concatenate([scaled, clipped.reshape(-1, prob.K, prob.K)])
    scores = jax.vmap(lambda V: _dual_value(prob, point, V))(candidates)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    linear = jnp.maximum(point.objective - jnp.max(scores[: scaled.shape[0]]), 0.0)
    best = candidates[jnp.argmax(scores)]
    return _feasible_scale(prob, point, best) * best, linear


def dual_starts(prob: Problem, point: Point) -> Float[Array, "starts K K"]:
    """The gradient at the point, and with a bias also its neighbour with Y 1 = -lam_b b."""
    U = point.member.T @ point.slope / point.counts[:, None]
    if not prob.bias:
        return U[None]
    return jnp.stack([U, _stationary(prob, point, U, prob.loss.targets(prob.K))])


def _scaled_alone(prob: Problem, point: Point, starts: Array) -> tuple[Array, Array]:
    """Cert A alone, where H >= 0: |Y h| <= lam |h| for h >= 0 leaves no singular values to clip."""
    scaled = jax.vmap(lambda V: _feasible_scale(prob, point, V) * V)(starts)
    scores = jax.vmap(lambda V: _dual_value(prob, point, V))(scaled)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return scaled[jnp.argmax(scores)], jnp.maximum(point.objective - jnp.max(scores), 0.0)


def gap_at(prob: Problem, point: Point, U: Float[Array, "K K"]) -> Array:
    """f - D of a feasible U, of a loss that carries its conjugate."""
    fit = jax.vmap(lambda z, k: prob.loss.fenchel_young(z, U[k], k))(point.logits, prob.labels)
    return jnp.mean(fit) + _penalty_gap(prob, point, U)


def _weighted(prob: Problem, point: Point, U: Array) -> Array:
    """M = diag(sqrt(n_k)) U / N: it has the singular values of Y."""
    return jnp.sqrt(point.counts)[:, None] * U / prob.N


def _stationary(prob: Problem, point: Point, U: Array, targets: Array | None) -> Array:
    """U moved so that Y 1 = -lam_b b, as at a stationary bias, and inside the conjugate's domain.

    On the simplex the columns P_k = U_k + T_k move towards their mean's wanted value rho, which is the
    gradient of the bias-only optimum and interior: P_k <- rho + s (P_k - mean P) with the largest s <= 1.
    With class weights P_k has the sum w_k, and its part of rho is w_k over the mean weight.
    """
    mean, wanted = point.counts @ U / prob.N, -prob.lam_b * point.b
    if targets is None:
        return U - (mean - wanted)
    wanted -= jnp.mean(wanted)
    rho = point.counts @ targets / prob.N + wanted
    part = _parts(prob, point)
    shifted = U - part * (mean - wanted)
    still = part * rho - targets
    s = _reach(jnp.broadcast_to(part * rho, U.shape), shifted - still)
    moved = s * shifted + (1 - s) * still  # in terms of U: its small entries keep their digits
    return jnp.where(jnp.all(rho >= 0), moved, U)


def _parts(prob: Problem, point: Point) -> ArrayLike:
    """(K, 1): the weight of each class over the mean weight of a sample; 1 without class weights."""
    weights = losses.weights_of(prob.loss)
    if weights is None:
        return 1.0
    w = jnp.asarray(weights, point.counts.dtype)
    return (w * prob.N / (point.counts @ w))[:, None]


def _reach(inside: Array, step: Array) -> Array:
    """Largest s in [0, 1] that keeps inside + s step >= 0."""
    ratio = jnp.where(step < 0, inside / jnp.where(step < 0, -step, 1.0), 1.0)
    return jnp.clip(jnp.min(ratio), 0.0, 1.0)


def _certs(
    prob: Problem,
    point: Point,
    U: Array,
    targets: Array | None,
    tolerances: tuple[float, ...] = _TOLERANCES,
) -> tuple[Array, Array]:
    """Cert A (K, K) and Cert B for each threshold (tolerances, K, K)."""
    M = _weighted(prob, point, U)
    squares, vectors = jnp.linalg.eigh(M @ M.T)
    s = jnp.sqrt(jnp.maximum(squares, 0.0))
    inverse = prob.lam / jnp.where(s > 0, s, 1.0)
    scaled = jnp.minimum(1.0, jnp.where(s[-1] > 0, inverse[-1], 1.0)) * U

    def clip(tol: Array) -> Array:
        change = jnp.where((s > 0) & (s > prob.lam * (1 - tol)), inverse - 1, 0.0)
        moved = vectors @ (change[:, None] * (vectors.T @ M))
        clipped = U + moved * (prob.N / jnp.sqrt(point.counts))[:, None]
        if targets is None:
            return clipped
        return scaled + _reach(scaled + targets, clipped - scaled) * (clipped - scaled)

    return scaled, jax.vmap(clip)(jnp.asarray(tolerances, U.dtype))


def _feasible_scale(prob: Problem, point: Point, U: Array) -> Array:
    """theta = min(1, lam/|Y|), with the `dual_norm` measured on U itself whatever made it."""
    top = dual_norm(prob, point, U)
    return jnp.where(top > prob.lam, prob.lam / jnp.where(top > 0, top, 1.0), 1.0)


def dual_norm(prob: Problem, point: Point, U: Array) -> Array:
    """|Y|_op, or where H >= 0 an upper bound of max |Y h| over h >= 0, |h| = 1.

    That maximum is at most the root of lambda_max(Y'Y + E) for every E >= 0: E = 0, and the E that cancels
    the negative entries, which is exact where all entries off the diagonal are.
    """
    M = _weighted(prob, point, U)
    gram = M @ M.T
    top = jnp.linalg.eigvalsh(gram)[-1]
    if prob.model.constrained:
        top = jnp.minimum(top, jnp.linalg.eigvalsh(jnp.maximum(gram, 0.0))[-1])
    return jnp.sqrt(top)


def _dual_value(prob: Problem, point: Point, U: Array) -> Array:
    """D(Y) = -(1/N) sum_k n_k L*(U_k, k) - |Y 1|^2 / (2 lam_b)."""
    conjugate = jax.vmap(prob.loss.conjugate)(U, jnp.arange(prob.K))
    value = -jnp.sum(point.counts * conjugate) / prob.N
    if not prob.bias:
        return value
    rest = _bias_residual(prob, point, U)
    return value + jnp.sum(point.b * rest - prob.lam_b * point.b**2 / 2) - _per_lam_b(prob, rest)


def _penalty_gap(prob: Problem, point: Point, U: Array, blur: ArrayLike = 0.0) -> Array:
    """The part of f - D that the penalties make: three terms >= 0 (see the module)."""
    F = point.member.T @ point.features / point.counts[:, None]  # class means of the features
    within = point.features - F[prob.labels]
    F = jnp.sqrt(point.counts)[:, None] * F
    A = _weighted(prob, point, U).T @ F  # Y H' (K, d)
    match = prob.lam_W * point.W + A
    slack = prob.lam_H * jnp.vdot(F, F) - jnp.vdot(A, A) / prob.lam_W  # >= 0 up to its rounding
    gap = jnp.vdot(match, match) / prob.lam_W + prob.lam_H * jnp.vdot(within, within)
    gap = (gap + jnp.maximum(slack, 0.0)) / 2
    return gap + (_per_lam_b(prob, _bias_residual(prob, point, U, blur)) if prob.bias else 0.0)


def _bias_residual(prob: Problem, point: Point, U: Array, blur: ArrayLike = 0.0) -> Array:
    """lam_b b + Y 1, zero where it is rounding: a dual point that close has it exactly zero."""
    rest = prob.lam_b * point.b + point.counts @ U / prob.N
    noise = 4 * prob.K * float(np.finfo(U.dtype).eps)
    size = point.counts @ jnp.abs(U) / prob.N + prob.lam_b * jnp.abs(point.b) + blur
    return jnp.where(jnp.abs(rest) > noise * size, rest, 0.0)


def _per_lam_b(prob: Problem, rest: Array) -> Array:
    """|rest|^2 / (2 lam_b); for lam_b = 0 infinite unless rest = 0."""
    lam_b = jnp.asarray(prob.lam_b, rest.dtype)
    finite = rest / jnp.where(lam_b > 0, lam_b, 1.0) * rest / 2
    return jnp.sum(jnp.where(rest == 0, 0.0, jnp.where(lam_b > 0, finite, jnp.inf)))


# --- a classifier that is given ---------------------------------------------------------------------


def gap_of_features(prob: Problem, params: Params) -> Array:
    """f - D of the problem in (H, b) alone, W given, for a convex loss: of order |grad f|^2.

        D(Y) = -g*(Y) - |W'Y|^2/(2 lam_H) - |Y 1|^2/(2 lam_b)      (lam_b = 0: for Y 1 = 0)

    Where H >= 0 the positive part of -W'Y takes the place of W'Y. At Y = G the gap is
    |grad_H f|^2/(2 lam_H) + |grad_b f|^2/(2 lam_b), which is strong convexity. It is infinite where lam_b = 0
    and the bias is not stationary to rounding; there a loss that carries its conjugate gives a Y that obeys
    Y 1 = 0, and the smaller of the two gaps is taken.
    """
    point = evaluate(prob, params)
    U = point.member.T @ point.slope / point.counts[:, None]
    gap = _feature_gap(prob, point, point.slope, U)
    if not (prob.bias and prob.loss.has_conjugate):
        return gap
    V = _stationary(prob, point, U, prob.loss.targets(prob.K))
    fit = jax.vmap(lambda z, k: prob.loss.fenchel_young(z, V[k], k))(point.logits, prob.labels)
    moved = jnp.mean(fit) + _feature_gap(prob, point, V[prob.labels], V)
    return jnp.where(moved < gap, moved, gap)  # also where `moved` is not a number


def _feature_gap(prob: Problem, point: Point, rows: Array, U: Array) -> Array:
    """The part of f - D that the penalties make, at N Y' = `rows` (N, K) with the class means U (K, K)."""
    pull = -rows @ point.W / prob.N
    reached = pull if prob.model.lower(prob) is None else jnp.maximum(pull, 0.0)  # features >= 0: lam_H h
    match = prob.lam_H * point.features - reached
    gap = jnp.vdot(match, match) / (2 * prob.lam_H) + jnp.vdot(reached - pull, point.features)
    return gap + (_per_lam_b(prob, _bias_residual(prob, point, U)) if prob.bias else 0.0)


# --- convex losses that do not carry their conjugate ----------------------------------------------
# All that is known of L* is L*(grad L(x)) = <grad L(x), x> - L(x), so a dual point is the gradient at some
# logits x_k of each class. Scaled by theta it obeys L*(theta u) <= theta L*(u) - (1 - theta) L_min.


def _gaps_without_conjugate(prob: Problem, point: Point) -> tuple[Array, Array]:
    """The gaps of Cert A and Cert B together and of Cert A alone, from gradients and loss.infimum.

    The class means of the logits move by a common shift until Y 1 = -lam_b b' (the best bias for them), and
    for Cert B on to where the gradient is the clipped one: the gradient map is inverted by Newton steps.
    """
    classes, share = jnp.arange(prob.K), point.counts / prob.N
    value, slope = jax.vmap(prob.loss), jax.vmap(jax.grad(prob.loss))
    bend = jax.vmap(jax.hessian(prob.loss))
    means = point.member.T @ point.logits / point.counts[:, None]
    centre = means
    if prob.bias:
        centre += _root(
            lambda s: share @ slope(means + s, classes) + prob.lam_b * (point.b + s), jnp.zeros_like(point.b)
        )

    def at_slope(x: Array, k: Array, u: Array) -> Array:
        return _root(lambda z: jax.grad(prob.loss)(z, k) - u, x)

    def gap(x: Array) -> Array:
        U = slope(x, classes)
        theta = _feasible_scale(prob, point, U)
        bregman = jnp.mean(point.value) - share @ (value(x, classes) + jnp.sum(U * (means - x), axis=1))
        fit = (1 - theta) * (jnp.mean(point.value) - prob.loss.infimum) + theta * jnp.maximum(bregman, 0.0)
        # what rounding of the logits does to the gradient, which may be large where the gradient is not
        blur = jnp.einsum("k,kij,kj->i", share, jnp.abs(bend(x, classes)), jnp.abs(x))
        total = fit + _penalty_gap(prob, point, theta * U, blur)
        return jnp.where(jnp.isnan(total), jnp.inf, total)

    _, clipped = _certs(prob, point, slope(centre, classes), None, _TOLERANCES[::2])
    matched = jax.vmap(lambda U: jax.vmap(at_slope)(centre, classes, U))(clipped)
    gaps = jax.vmap(gap)(jnp.concatenate([centre[None], matched]))
    return jnp.min(gaps), gaps[0]


class _Step(NamedTuple):
    """State of `_root`."""

    x: Float[Array, " K"]
    residual: Float[Array, " K"]
    damping: Float[Array, ""]
    count: Any


def _root(gradient: Callable[[Array], Array], start: Array) -> Array:
    """A zero of the gradient of a convex function to rounding, by damped Newton steps that shrink it.

    Where there is none the least residual found: whoever calls it measures what came out.
    """
    eps, eye = float(np.finfo(start.dtype).eps), jnp.eye(start.shape[0], dtype=start.dtype)

    def unfinished(state: _Step) -> Array:
        return jnp.any(state.residual != 0) & (state.damping < 1e3) & (state.count < 100)

    def step(state: _Step) -> _Step:
        hessian = jax.jacfwd(gradient)(state.x)
        ridge = (state.damping + eps) * jnp.trace(hessian) / start.shape[0]
        x = state.x - jnp.linalg.solve(hessian + ridge * eye, state.residual)
        residual = gradient(x)
        better = jnp.linalg.norm(residual) < jnp.linalg.norm(state.residual)
        return _Step(
            jnp.where(better, x, state.x),
            jnp.where(better, residual, state.residual),
            jnp.where(better, state.damping / 100, jnp.maximum(state.damping, 1e-8) * 100),
            state.count + 1,
        )

    first = _Step(start, gradient(start), jnp.asarray(1e-4, start.dtype), jnp.asarray(0))
    return jax.lax.while_loop(unfinished, step, first).x
