"""The exact decomposition of the Hessian at a point: what decouples, and the small blocks that are left.

Samples of one class whose features coincide form a *cluster*; the rows of W and the columns of H span r
*active* feature directions. Then, with no approximation,

    unused directions   x orthogonal to all of them: dW = u x', dH = x v' see [[lam_W I, G], [G', lam_H I]],
                        d - r copies, eigenvalues A/2 +- sqrt((lam_W - lam_H)^2/4 + sigma_i(G)^2) and lam_H;
    fluctuations        sum_j dh_j = 0 inside a cluster of m samples: lam_H I + W'A W, m - 1 copies;
    core                what is left: dW (K r), one sqrt(m)-weighted motion a cluster (M r), db (K).

Source: docs/theory.md, section 4.2. The split of a cluster is ours: dh_j has equal couplings to all other
variables for all samples j of a cluster, so only the sum of the dh_j is coupled to them.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _compile
from ufm._problem import Params, Problem
from ufm.hessian.product import NotFinite

#: features closer than this, relative to the largest, coincide; directions smaller than this are unused.
#: Polished solutions coincide to 1e-13; the eigenvalues move by about as much as the features do.
COINCIDE = 1e-10


@dataclasses.dataclass(frozen=True)
class Structure:
    """A point of equation (7) in its active directions Q, one representative a cluster."""

    prob: Problem
    Q: np.ndarray  # (d, r) orthonormal
    W: np.ndarray  # (K, r)
    h: np.ndarray  # (M, r) the features of each cluster
    sizes: np.ndarray  # (M,) samples of each cluster
    cluster: np.ndarray  # (N,) of each sample
    G: np.ndarray  # (M, K) gradient of the mean loss in the logits of one sample
    A: np.ndarray  # (M, K, K) its Hessian
    moved: float  # how far the point was moved to make it so

    @property
    def r(self) -> int:
        """Active directions."""
        return int(self.Q.shape[1])

    @property
    def M(self) -> int:
        """Clusters."""
        return len(self.sizes)

    @property
    def finite(self) -> bool:
        """No derivative of the loss is NaN or infinite here."""
        return bool(np.isfinite(self.G).all() and np.isfinite(self.A).all())

    @property
    def unused(self) -> int:
        """d - r."""
        return int(self.prob.d - self.r)

    @property
    def lam_W(self) -> float:
        return float(self.prob.lam_W)

    @property
    def lam_H(self) -> float:
        return float(self.prob.lam_H)

    @property
    def core_size(self) -> int:
        """Dimension of the core."""
        return self.prob.K * self.r + self.M * self.r + (self.prob.K if self.prob.bias else 0)

    @functools.cached_property
    def top(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The SVD of G = U diag(sigma) V': (K, K), (K,) descending, (K, M); a sample has v_m/sqrt(m)."""
        U, sigma, Vt = np.linalg.svd((np.sqrt(self.sizes)[:, None] * self.G).T, full_matrices=False)
        return U, sigma, Vt

    @property
    def sigma(self) -> np.ndarray:
        """(K,) descending: the singular values of G (K x N)."""
        return self.top[1]

    @functools.cached_property
    def on_W(self) -> tuple[np.ndarray, np.ndarray]:
        """sum_j A_j (x) (h_j, 1)(h_j, 1)' as (K, r+1, K, r+1): the loss's part of the (W, b) block, and
        the features with the 1 appended, (M, r+1)."""
        K, one = self.prob.K, np.ones((self.M, 1))
        h = np.concatenate([self.h, one], axis=1)
        outer = (h[:, :, None] * h[:, None, :]).reshape(self.M, -1)
        curve = (self.sizes[:, None, None] * self.A).reshape(self.M, -1)
        block = (curve.T @ outer).reshape(K, K, self.r + 1, self.r + 1)
        return block.transpose(0, 2, 1, 3), h

    def head(self) -> np.ndarray:
        """The (W, b) block, (K r + K) square with the bias's coordinates last (K r without a bias)."""
        K, r = self.prob.K, self.r
        block, _ = self.on_W
        W = slice(0, r)
        on_W = block[:, W, :, W].reshape(K * r, K * r) + self.lam_W * np.eye(K * r)
        if not self.prob.bias:
            return on_W
        across = block[:, W, :, r].reshape(K * r, K)
        on_b = block[:, r, :, r] + float(self.prob.lam_b) * np.eye(K)
        return np.block([[on_W, across], [across.T, on_b]])

    def couplings(self) -> np.ndarray:
        """(M, r, K r + K): what a cluster's motion sees of (dW, db), A_j dZ_j pulled back and dW' g."""
        K, r, M = self.prob.K, self.r, self.M
        pulled = np.einsum("mkl,kp->mpl", self.A, self.W, optimize=True)  # W'A
        on_W = pulled[:, :, :, None] * self.h[:, None, None, :]
        index = np.arange(r)
        on_W[:, index, :, index] += self.G[None]
        root = np.sqrt(self.sizes)[:, None, None]
        on_W = root * on_W.reshape(M, r, K * r)
        return np.concatenate([on_W, root * pulled], axis=2) if self.prob.bias else on_W

    @functools.cached_property
    def fluctuations(self) -> np.ndarray:
        """(M, r, r): lam_H I + W'A W, the block of one sample's motion."""
        pulled = np.einsum("mkl,kp->mpl", self.A, self.W, optimize=True)
        return pulled @ self.W + self.lam_H * np.eye(self.r)

    def core(self) -> np.ndarray:
        """The dense core: (W, b) first, then the clusters."""
        head, r, M = self.head(), self.r, self.M
        full = np.zeros((self.core_size, self.core_size))
        m = len(head)
        full[:m, :m] = head
        across = self.couplings().reshape(M * r, m)
        full[m:, :m], full[:m, m:] = across, across.T
        body = full[m:, m:].reshape(M, r, M, r)
        index = np.arange(M)
        body[index, :, index, :] = self.fluctuations
        return full

    def params_of(self, x_W: np.ndarray, y: np.ndarray, db: np.ndarray | None) -> Params:
        """The direction (dW (K, r), cluster motions (M, r), db) of the core, in the problem's own shapes."""
        dh = (y / np.sqrt(self.sizes)[:, None])[self.cluster]
        db = np.zeros(self.prob.K) if db is None else db
        return as_params(x_W @ self.Q.T, (dh @ self.Q.T).T, db)

    def unused_direction(self) -> np.ndarray:
        """(d,) a unit vector orthogonal to the active directions, near the axis that sticks out most."""
        outside = np.eye(self.prob.d) - self.Q @ self.Q.T
        x = outside[:, int(np.argmax(np.diag(outside)))]
        x = x - self.Q @ (self.Q.T @ x)
        return np.asarray(x / np.linalg.norm(x))

    def outer(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of one unused direction and how often each occurs in all of them."""
        low, high = split(self.sigma, self.lam_W, self.lam_H)
        values = np.concatenate([low, high, [self.lam_H]])
        times = np.full(len(values), self.unused)
        times[-1] *= self.prob.N - self.prob.K
        return values, times

    def inner_fluctuations(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of the samples of a cluster against each other, and their multiplicities."""
        several = self.sizes > 1
        values = np.linalg.eigvalsh(self.fluctuations[several])
        return values.ravel(), np.repeat(self.sizes[several] - 1, self.r)


def split(sigma: np.ndarray, lam_W: float, lam_H: float) -> tuple[np.ndarray, np.ndarray]:
    """A/2 -+ sqrt((lam_W - lam_H)^2/4 + sigma^2): the roots of x^2 - A x + lam_W lam_H - sigma^2."""
    high = (lam_W + lam_H) / 2 + np.hypot((lam_W - lam_H) / 2, sigma)
    return (lam_W * lam_H - sigma**2) / high, high  # the small root without cancellation


def as_params(W: np.ndarray, H: np.ndarray, b: np.ndarray) -> Params:
    """numpy's arrays as JAX's."""
    return Params(jnp.asarray(W), jnp.asarray(H), jnp.asarray(b))


@functools.partial(_compile.jit, options=_compile.USUAL)
def _derivatives(prob: Problem, Z: Array, labels: Array) -> tuple[Array, Array]:
    """Gradient (M, K) and Hessian (M, K, K) of one sample's loss over N at logits Z (M, K)."""
    scaled = 1 / prob.N
    G = jax.vmap(jax.grad(prob.loss))(Z, labels)
    A = jax.vmap(jax.hessian(prob.loss))(Z, labels)
    return scaled * G, scaled * A


def structure(prob: Problem, params: Params) -> Structure:
    """The clusters and the active directions of a point with a finite Hessian.

    Raises:
        NotFinite: its Hessian is not finite.
    """
    at = decompose(prob, params)
    if not at.finite:
        m = int(np.argmin(np.isfinite(at.A).all(axis=(1, 2)) & np.isfinite(at.G).all(axis=1)))
        j = int(np.argmax(at.cluster == m))
        raise NotFinite(
            f"params: expected a point where the Hessian is finite, got a derivative of {prob.loss!r} that "
            f"is NaN or infinite, at sample {j} of class {int(np.asarray(prob.labels)[j])}; take a point "
            "where the loss is twice differentiable and the logits do not overflow, or mend the loss there"
        )
    return at


def decompose(prob: Problem, params: Params, coincide: float = COINCIDE) -> Structure:
    """Find the clusters and the active directions of a point, whether or not its Hessian is finite."""
    W, F, b = (np.asarray(x, np.float64) for x in (params.W, np.asarray(params.H).T, params.b))
    labels = np.asarray(prob.labels)
    # both blocks in the units in which a critical point has them equal and Z = 1 is of size 1
    ratio = (float(prob.lam_W) / float(prob.lam_H)) ** 0.25
    largest = max(float(np.abs(F).max()), ratio / prob.N**0.25)
    order, starts = _clusters(F, labels, coincide * largest)
    sizes = np.diff(starts, append=prob.N)
    cluster = np.empty(prob.N, dtype=np.int64)
    cluster[order] = np.repeat(np.arange(len(sizes)), sizes)
    means = np.add.reduceat(F[order], starts, axis=0) / sizes[:, None]
    spread = np.linalg.norm(F - means[cluster]) if len(sizes) < prob.N else 0.0
    rows = np.concatenate([ratio * W, np.sqrt(sizes)[:, None] * means / ratio])
    _, s, Vt = np.linalg.svd(rows, full_matrices=False)
    r = int((s > coincide * max(s[0], 1.0)).sum())
    left_out = np.linalg.norm(s[r:]) * max(ratio, 1 / ratio)
    Q = Vt[:r].T
    W, h = W @ Q, means @ Q
    with np.errstate(over="ignore", invalid="ignore"):  # said by `structure`
        Z = h @ W.T + (b if prob.bias else 0.0)
    G, A = _derivatives(prob, jnp.asarray(Z), jnp.asarray(labels[order[starts]]))
    moved = float(np.hypot(spread, left_out))
    return Structure(prob, Q, W, h, sizes, cluster, np.asarray(G), np.asarray(A), moved)


def _clusters(F: np.ndarray, labels: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
    """An order of the samples in which every cluster is contiguous, and where each begins.

    Samples are sorted by class and by one random projection: those that coincide are neighbours. A run of
    neighbours counts only if all of it lies within `near` of its first member; else its samples stay alone.
    """
    along = F @ (np.random.default_rng(0).normal(size=F.shape[1]) / F.shape[1] ** 0.5)
    order = np.lexsort((along, labels))
    new = (np.diff(labels[order]) != 0) | (np.diff(along[order]) > near)
    run = np.concatenate([[0], np.cumsum(new)])
    first = np.flatnonzero(np.concatenate([[True], new]))
    far = np.abs(F[order] - F[order[first[run]]]).max(axis=1) > near
    broken = np.bincount(run, far) > 0
    starts = np.flatnonzero(np.concatenate([[True], new | broken[run[1:]]]))
    return order, starts
