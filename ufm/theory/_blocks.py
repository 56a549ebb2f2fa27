"""Unequal class counts: convex losses with class symmetry in the block form, O(G^2) numbers for G groups.

Classes with equally many samples and the same weight form a group: group g has K_g classes of n_g samples and
the weight w_g (1 without class weights), N_g = K_g n_g. The average over the permutations inside the groups
loses nothing, so that the logits of a sample of group g are

    target  Theta_gg + alpha_g (1 - 1/K_g) + b_g,   other classes of g  Theta_gg - alpha_g/K_g + b_g,
    classes of group h  Theta_hg + b_h,

and with lam = sqrt(lam_W lam_H), the mean part T_hg = sqrt(K_h N_g) Theta_hg and the spread
t_g = sqrt(n_g) alpha_g inside each group

    f = sum_g w_g N_g/N L_g + lam (sum_g (K_g - 1) |t_g| + ||T||_*) + lam_b/2 sum_g K_g b_g^2.

With T = A B and t = u v the norms become squares, lam/2 (|A|^2 + |B|^2 + sum_g (K_g - 1) (u_g^2 + v_g^2));
for factors of full width every local minimum is global (Theorem 2), so that Newton steps find it: with a
dense Hessian for few groups, by conjugate gradients for many.

Source: docs/theory.md, section 1.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator

from ufm import _compile, losses
from ufm.losses import Loss
from ufm.losses._base import Setting
from ufm.losses._closed import Block, Groups, NoClosedForm
from ufm.theory.profiles import is_symmetric


def groups_of(counts: Int[np.ndarray, " K"], weights: ArrayLike | None = None) -> Groups:
    """The groups of any class counts and weights, in any order."""
    factor = np.ones(len(counts)) if weights is None else np.asarray(weights, float)
    pairs, place, sizes = np.unique([-counts, -factor], axis=1, return_inverse=True, return_counts=True)
    return Groups(-pairs[0].astype(int), sizes, place.ravel(), -pairs[1])


class Program(NamedTuple):
    """A block program as leaves, so that new counts and penalties of equal shape compile nothing."""

    loss: Loss
    slot: Any  # (G, K) where the logits of each group's sample stand among its G + 1 different ones
    owner: Any  # (G,) a class of each group
    samples: Any  # (G,) N_g
    share: Any  # (G,) w_g N_g/N
    sizes: Any  # (G,) K_g
    counts: Any  # (G,) n_g
    lam: Any
    lam_b: Any


def program(s: Setting, groups: Groups) -> Program:
    """The program of a problem whose classes form these groups.

    Raises:
        NoClosedForm: the loss has no class symmetry, is not convex or not smooth.
    """
    loss = losses.without_weights(s.loss)
    why_not = _why_not(loss, s.K)
    if why_not:
        unequal = "unequal counts" if loss is s.loss else "class weights"
        raise NoClosedForm(f"loss: with {unequal} {why_not}; solvers and certificate take any loss")
    G, of_class = len(groups.counts), groups.of_class
    owner = np.array([int(np.argmax(of_class == g)) for g in range(G)])
    slot = np.tile(of_class, (G, 1))
    slot[np.arange(G), owner] = G
    share = groups.weights * groups.samples / s.N
    leaves = (groups.samples, share, groups.sizes, groups.counts, math.sqrt(s.c_squared / s.n), s.lam_b)
    return Program(loss, slot, owner, *(np.asarray(x, float) for x in leaves))


def _why_not(loss: Loss, K: int) -> str:
    if not is_symmetric(loss, K):
        return f"the optimum is known for losses with class symmetry, and {loss!r} treats classes differently"
    if not loss.convex:
        return f"the optimum is known for convex losses, and {loss!r} is not declared convex"
    return "" if loss.smooth else f"Newton's method needs a smooth loss, and {loss!r} is not smooth"


def logits(p: Program, x: Block) -> Float[Array, "G slots"]:
    """Row g: the logits of a sample of group g for the other classes of each group, and for its own class."""
    G = p.sizes.shape[0]
    alpha = x.t / jnp.sqrt(p.counts)
    others = x.T.T / jnp.sqrt(jnp.outer(p.samples, p.sizes)) + x.b - jnp.diag(alpha / p.sizes)
    return jnp.column_stack([others, jnp.diagonal(others) + alpha]).reshape(G, G + 1)


def fit(p: Program, x: Block) -> Array:
    """The mean loss and the penalty of the bias, the part of f that is differentiable in T, t and b."""
    z = jnp.take_along_axis(logits(p, x), jnp.asarray(p.slot), axis=1)
    each = jax.vmap(p.loss)(z, jnp.asarray(p.owner))
    return jnp.vdot(p.share, each) + p.lam_b / 2 * jnp.vdot(p.sizes, x.b**2)


def from_zero(p: Program, bias: bool) -> Block:
    """The best point with T = 0 and t = 0."""
    G = p.sizes.shape[0]
    nothing = Block(np.zeros((G, G)), np.zeros(G), np.zeros(G))
    return solve(p, Parts(mean=False, spread=False)) if bias else nothing


def minimiser(p: Program, s: Setting, groups: Groups) -> tuple[Block, Block, bool]:
    """The minimiser, the best point with T = 0 and t = 0, and whether the minimiser is a closed form.

    The two are the same where no slope at the second exceeds lam.

    Raises:
        NoClosedForm: Newton's method finds no minimiser, so the infimum appears not to be attained.
    """
    zero = from_zero(p, s.bias)
    trivial = slopes(p, zero).largest <= float(p.lam)
    known = None if trivial else p.loss.block_optimum(s, groups)
    x = zero if trivial else known or solve(p, Parts(bias=s.bias), zero.b)
    if s.loss.shift_invariant and s.bias and s.lam_b == 0:
        x, zero = (y._replace(b=y.b - np.average(y.b, weights=p.sizes)) for y in (x, zero))
    return x, zero, known is not None


def norms(p: Program, x: Block) -> float:
    """sum_g (K_g - 1) |t_g| + ||T||_*."""
    spread = float(np.sum((p.sizes - 1) * np.abs(x.t)))
    return spread + float(np.linalg.svd(np.asarray(x.T), compute_uv=False).sum())


def _from_factors(p: Program, y: Array) -> tuple[Block, Array]:
    """The block of y = (A, B, u, v, b), and the squares that stand for its norms."""
    G = p.sizes.shape[0]
    A, B, (u, v, b) = y[: G * G], y[G * G : 2 * G * G], y[2 * G * G :].reshape(3, G)
    squares = jnp.vdot(A, A) + jnp.vdot(B, B) + jnp.vdot(p.sizes - 1, u**2 + v**2)
    return Block(A.reshape(G, G) @ B.reshape(G, G), u * v, b), squares


def _factored(p: Program, y: Array) -> Array:
    x, squares = _from_factors(p, y)
    return fit(p, x) + p.lam / 2 * squares


def _both(p: Program, y: Array) -> tuple[Array, Array, Array]:
    value, gradient = jax.value_and_grad(_factored, argnums=1)(p, y)
    return value, gradient, jax.hessian(_factored, argnums=1)(p, y)


_derivatives = _compile.jit(_both, options=_compile.INSTANT)
_slope = _compile.jit(jax.value_and_grad(_factored, argnums=1), options=_compile.INSTANT)
_product = _compile.jit(
    lambda p, y, v: jax.jvp(lambda x: jax.grad(_factored, argnums=1)(p, x), (y,), (v,))[1],
    options=_compile.INSTANT,
)
#: unknowns up to which the Hessian is a matrix: six groups
_DENSE = 100
_fit = _compile.jit(fit, options=_compile.INSTANT)
_slopes = _compile.jit(jax.grad(fit, argnums=1), options=_compile.INSTANT)


class Parts(NamedTuple):
    """Which parts of a block may leave zero."""

    mean: bool = True
    spread: Any = True  # or (G,)
    bias: bool = True


def solve(p: Program, parts: Parts, b: Any = 0.0) -> Block:
    """The minimiser, by `newton`; `b` is where the bias starts.

    Raises:
        NoClosedForm: the steps do not arrive at a point whose gradient is zero up to rounding.
    """
    G = p.sizes.shape[0]
    free = np.concatenate(
        [np.full(2 * G * G, parts.mean), np.tile((p.sizes > 1) & parts.spread, 2), np.full(G, parts.bias)]
    )
    y = np.where(free, _start(p, b), 0.0)

    def at(x: np.ndarray) -> Derivatives:
        there = y.copy()
        there[free] = x
        return _at(p, there, free)

    y[free] = newton(at, y[free], f"the block program of {p.loss!r}")
    x, _ = _from_factors(p, jnp.asarray(y))
    return Block(*(np.asarray(part) for part in x))


#: the value, the gradient and the Hessian at a point, as a matrix or an operator
Derivatives: TypeAlias = tuple[float, np.ndarray, Any]


def newton(at: Callable[[np.ndarray], Derivatives], y: np.ndarray, what: str) -> np.ndarray:
    """A minimum to rounding, by Newton steps along the eigenvectors with |curvature| in place of curvature.

    Where the Hessian is an operator the steps are those of conjugate gradients.

    Raises:
        NoClosedForm: the steps do not arrive at a point whose gradient is zero up to rounding.
    """
    value, gradient, hessian = at(y)
    radius = 1.0
    for _ in range(500):
        size = float(np.linalg.norm(gradient))
        if size <= 1e-15 * (1 + abs(value)):
            break
        step = _step(gradient, hessian, radius)
        there = at(y + step)
        promised = -float(gradient @ step + step @ (hessian @ step) / 2)
        noise = 1e-14 * (1 + abs(value))
        better = there[0] < value if promised > noise else float(np.linalg.norm(there[1])) < size / 2
        if better and all(np.isfinite(part).all() for part in there[:2]):
            radius = max(radius, 2 * float(np.linalg.norm(step)))
            y, (value, gradient, hessian) = y + step, there
        elif promised <= noise:
            break
        else:
            radius = float(np.linalg.norm(step)) / 4
    # f is quartic at a threshold, where its rounding hides gradients below the power 3/4 of it
    if not float(np.linalg.norm(gradient)) <= 1e-7 * (1 + abs(value)):
        raise NoClosedForm(
            f"loss: {what} stops at |gradient| = {np.linalg.norm(gradient):.1e}; its infimum may not be "
            "attained (try lam_b > 0); solvers and certificate take it"
        )
    return y


def _start(p: Program, b: Any) -> Float[np.ndarray, " unknowns"]:
    """The best of some multiples a of Zbar = a I, or a (I - 11^T/K) where a common shift changes nothing.

    Generic factors are added, so that it is no saddle.
    """
    G, root = len(p.sizes), np.sqrt(p.counts)
    shift = np.sqrt(np.outer(p.sizes, p.samples)) / p.sizes.sum() if p.loss.shift_invariant else 0.0
    ray = Block(np.diag(root) - shift, np.where(p.sizes > 1, root, 0.0), np.zeros(G))
    values = np.asarray(_along(p, ray, b + np.zeros(G), _MULTIPLES)) + p.lam * norms(p, ray) * _MULTIPLES
    a = float(_MULTIPLES[np.argmin(values)])
    U, sigma, Vt = np.linalg.svd(a * ray.T)
    generic = 0.1 * np.random.default_rng(0).normal(size=(2, G, G)) * np.sqrt(sigma.max() / G)
    A, B = generic[0] + U * np.sqrt(sigma), generic[1] + np.sqrt(sigma)[:, None] * Vt
    return np.concatenate([A.ravel(), B.ravel(), np.tile(np.sqrt(a * root), 2), b + np.zeros(G)])


#: margins to start from
_MULTIPLES = np.geomspace(2.0**-6, 2.0**6, 13)


def _values_along(p: Program, ray: Block, b: Array, a: Array) -> Array:
    return jax.vmap(lambda a: fit(p, Block(a * ray.T, a * ray.t, b)))(a)


_along = _compile.jit(_values_along, options=_compile.INSTANT)


def _at(p: Program, y: np.ndarray, free: np.ndarray) -> Derivatives:
    """f, its gradient and its Hessian in the free unknowns, as a matrix or an operator."""
    if len(y) <= _DENSE:
        value, gradient, hessian = map(np.asarray, _derivatives(p, y))
        return float(value), gradient[free], hessian[np.ix_(free, free)]
    value, gradient = map(np.asarray, _slope(p, y))

    def product(v: np.ndarray) -> np.ndarray:
        direction = np.zeros(len(y))
        direction[free] = np.ravel(v)
        return np.asarray(_product(p, y, direction))[free]

    size = int(free.sum())
    return float(value), gradient[free], LinearOperator((size, size), matvec=product, dtype=np.float64)


def _conjugate_step(gradient: np.ndarray, hessian: Any, radius: float) -> np.ndarray:
    """The minimiser of the quadratic model within the radius, by conjugate gradients (Steihaug 1983)."""
    size = float(np.linalg.norm(gradient))
    step, residual = np.zeros_like(gradient), gradient.copy()
    direction, square = -residual, size**2
    for _ in range(len(gradient)):
        bent = hessian @ direction
        curvature = float(direction @ bent)
        most = _to_boundary(step, direction, radius)
        if not square < curvature * most:
            return step + most * direction
        along = square / curvature
        step, residual = step + along * direction, residual + along * bent
        new = float(residual @ residual)
        if new**0.5 <= min(0.1, size**0.5) * size:
            break
        direction, square = new / square * direction - residual, new
    return step


def _to_boundary(step: np.ndarray, direction: np.ndarray, radius: float) -> float:
    """The t > 0 at which |step + t direction| is the radius."""
    a, b = float(direction @ direction), float(step @ direction)
    c = float(step @ step) - radius**2
    return -c / (b + math.sqrt(b * b - a * c)) if a > 0 else math.inf


def _step(gradient: np.ndarray, hessian: Any, radius: float) -> np.ndarray:
    """-|H|^-1 gradient without the directions in which f does not change, no longer than the radius."""
    if isinstance(hessian, LinearOperator):
        return _conjugate_step(gradient, hessian, radius)
    curvature, vectors = eigh(hessian, driver="evd", check_finite=False)  # numpy's waits for busy threads
    size = np.abs(curvature)
    flat = size <= 1e-13 * size.max(initial=1e-300)
    along = np.where(flat, 0.0, -(vectors.T @ gradient) / np.where(flat, 1.0, size))
    step = vectors @ along
    return np.asarray(step * min(1.0, radius / max(float(np.linalg.norm(step)), 1e-300)))


def objective(p: Program, x: Block) -> float:
    """f."""
    return float(_fit(p, x)) + float(p.lam) * norms(p, x)


class Slopes(NamedTuple):
    """The dual norms of the gradient of the mean loss; at the minimum none is above lam."""

    mean: float  # the largest singular value of the gradient in T
    spread: Float[np.ndarray, " G"]  # -gradient in t_g over K_g - 1; nan for groups of one class

    @property
    def largest(self) -> float:
        """Of all parts."""
        return float(np.nanmax(np.append(np.abs(self.spread), self.mean)))


def slopes(p: Program, x: Block) -> Slopes:
    """At x."""
    g = _slopes(p, Block(*(np.asarray(part, float) for part in x)))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.where(p.sizes > 1, -np.asarray(g.t) / (p.sizes - 1), np.nan)
    return Slopes(float(np.linalg.norm(np.asarray(g.T), 2)), spread)
