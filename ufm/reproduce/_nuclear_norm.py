"""The nuclear norm in the proof of Theorem 1: where it comes from, Lemma 8's bound, and what replaces it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from scipy.optimize import minimize

import ufm
from ufm import losses, theory
from ufm.figures import Curve
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import Job, Level, Outcome, Table, compared
from ufm.reproduce._witness import Shape

_CASES = ((3, 0.05), (4, 0.05), (10, 0.01))


def lemma_8(level: Level) -> Iterator[Job]:
    """For cross-entropy, the paper's intermediate bound against the value that it has to reach."""
    for K, c in _CASES if level == "quick" else (*_CASES, (5, 0.05), (6, 0.02), (20, 0.005)):
        yield Job(f"intermediate-K{K}-c{c:g}", partial(_intermediate, K, c), 1.0)
    for K in (3, 10) if level == "quick" else (2, 3, 5, 10, 30):
        yield Job(f"dual-K{K}", partial(_dual, K, 2_000 if level == "quick" else 20_000), 0.5)
    yield Job("curve-K3", partial(_curve, 3, 9 if level == "quick" else 17), 1.0)


def _value(x: np.ndarray, K: int, c: float) -> tuple[float, np.ndarray]:
    """(1/K) sum_k CE(z_k, k) + c |Z|_F^2 / sigma_max(Z), and its gradient."""
    Z = x.reshape(K, K)
    top = Z.max(axis=0)
    mass = np.exp(Z - top)
    fit = float((np.log(mass.sum(axis=0)) + top - np.diag(Z)).mean())
    U, sigma, Vt = np.linalg.svd(Z)
    size = float((Z * Z).sum())
    slope = (mass / mass.sum(axis=0) - np.eye(K)) / K
    slope += c * (2 * Z / sigma[0] - size / sigma[0] ** 2 * np.outer(U[:, 0], Vt[0]))
    return fit + c * size / sigma[0], slope.ravel()


def least_intermediate(K: int, c: float, starts: int = 12) -> tuple[float, np.ndarray]:
    """The lowest value of the intermediate bound that L-BFGS finds, and where."""
    rng = np.random.default_rng(K)
    best, at = np.inf, np.zeros((K, K))
    for i in range(starts):
        x = rng.normal(size=K * K) * (0.5, 2.0, 5.0)[i % 3]
        found = minimize(_value, x, args=(K, c), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
        if found.fun < best:
            best, at = float(found.fun), found.x.reshape(K, K)
    return best, at


def _claimed(K: int, c: float) -> float:
    return float(theory.global_optimum(witness.problem("ce", Shape(K, K, 1), c, bias=False)).objective)


def _intermediate(K: int, c: float) -> Outcome:
    best, Z = least_intermediate(K, c)
    claimed = _claimed(K, c)
    sigma = np.linalg.svd(Z, compute_uv=False)
    config = {"loss": "ce", "K": K, "c": c, "rank of Z": int((sigma > 1e-6 * sigma[0]).sum())}
    again, _ = _value(Z.ravel(), K, c)
    _, scalar = witness.lowest(losses.cross_entropy(), K, (K - 1) * c)
    instances = (
        compared("claimed value less the minimum of the intermediate bound", config, claimed - best, 1e-9,
                 "paper", {"claimed": claimed, "minimum": best, "Z e_1": Z[:, 0].round(6).tolist()}),
        compared("claimed value against min over a of l(a) + (K-1) c a", config, abs(claimed - scalar),
                 1e-12, "ours"),
        compared("the bound evaluated again at that Z", config, abs(again - best), 1e-12, "ours"),
    )  # fmt: skip
    row = (f"{K}", f"{c:g}", f"{best:.6f}", f"{claimed:.6f}", f"{claimed - best:.6f}")
    header = ("K", "c", "minimum of the intermediate bound", "claimed", "short by")
    return Outcome(instances, (Table("Cross-entropy", header, (row,)),))


def _dual(K: int, count: int) -> Outcome:
    """|Z|_* >= (1/K) sum_k |t_k| at random Z, with equality at a (I - 11'/K)."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(count, K, K)) + 3.0 * rng.normal(size=(count, 1, 1)) * np.eye(K)
    nuclear = np.linalg.svd(Z, compute_uv=False).sum(axis=1)
    own = np.diagonal(Z, axis1=1, axis2=2)
    t = Z.sum(axis=1) - K * own
    short = float(np.max(np.abs(t).sum(axis=1) / K / nuclear - 1, initial=0.0))
    frame = 2.5 * (np.eye(K) - 1 / K)
    on_frame = frame.sum(axis=0) - K * np.diag(frame)
    equal = np.linalg.svd(frame, compute_uv=False).sum() - np.abs(on_frame).sum() / K
    config = {"K": K, "random Z": count}
    return Outcome(
        (
            compared("|Z|_* >= (1/K) sum_k |t_k|: relative violation", config, short, 1e-13, "ours"),
            compared("with equality at a (I - 11'/K)", {"K": K}, abs(float(equal)), 1e-13 * K, "ours"),
        )
    )


# --- the penalties as a nuclear norm --------------------------------------------------------------

#: K, d, N; lam_W != lam_H, and d = K too
_SIZES = ((3, 3, 7), (4, 6, 8), (6, 9, 11))
_LAM_W, _LAM_H = 0.02, 0.005


def nuclear_norm(level: Level) -> Iterator[Job]:
    """The least penalty of W and H with W H = Z: by the formula, by a search, and of random factors."""
    for K, d, N in _SIZES if level == "quick" else (*_SIZES, (10, 12, 30), (15, 15, 15)):
        yield Job(f"K{K}-d{d}-N{N}", partial(_nuclear_norm, K, d, N, 200 if level == "quick" else 2_000), 0.3)


def _penalty(W: np.ndarray, H: np.ndarray) -> float:
    return float(_LAM_W * (W * W).sum() + _LAM_H * (H * H).sum()) / 2


def _nuclear_norm(K: int, d: int, N: int, count: int) -> Outcome:
    rng = np.random.default_rng(K)
    Z = rng.normal(size=(K, N))
    U, sigma, Vt = np.linalg.svd(Z, full_matrices=False)
    prob = ufm.Problem(losses.cross_entropy(), np.arange(N) % K, K=K, d=d, lam_W=_LAM_W, lam_H=_LAM_H)
    claimed = float(prob.lam) * float(sigma.sum())
    frame = np.linalg.qr(rng.normal(size=(d, sigma.size)))[0].T
    W = (_LAM_H / _LAM_W) ** 0.25 * (U * np.sqrt(sigma)) @ frame
    H = (_LAM_W / _LAM_H) ** 0.25 * frame.T @ (np.sqrt(sigma)[:, None] * Vt)
    config = {"K": K, "d": d, "N": N, "lam_W": _LAM_W, "lam_H": _LAM_H, "rank of Z": int(sigma.size)}
    lowest = min(_random_penalty(Z, U, d, rng) for _ in range(count))
    rest = float(np.abs(W @ H - Z).max())
    instances = (
        compared("least penalty found by L-BFGS against the nuclear norm, relative", config,
                 abs(_least_penalty(Z, rng) / claimed - 1), 1e-9),
        compared("penalty of the balanced W, H against the nuclear norm, relative", config,
                 abs(_penalty(W, H) / claimed - 1), 1e-12),
        compared("W H = Z there", config, rest, 1e-12),
        compared("penalties of random W, H with W H = Z below the nuclear norm, relative",
                 config | {"random W": count}, max(0.0, 1 - lowest / claimed), 1e-12),
    )  # fmt: skip
    return Outcome(instances)


def _random_penalty(Z: np.ndarray, U: np.ndarray, d: int, rng: np.random.Generator) -> float:
    """The penalty of random W and H with W H = Z, scaled so that both terms are equal."""
    W = U @ rng.normal(size=(U.shape[1], d))
    inverse = np.linalg.pinv(W)
    H = inverse @ Z
    H += 0.1 * (np.eye(d) - inverse @ W) @ rng.normal(size=H.shape)
    scale = np.sqrt(_LAM_H / _LAM_W * (H * H).sum() / (W * W).sum()) ** 0.5
    return _penalty(scale * W, H / scale)


def _least_penalty(Z: np.ndarray, rng: np.random.Generator) -> float:
    """min over square W of the penalty of W and H = W^-1 Z, computed without singular values."""
    K = Z.shape[0]

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        W = x.reshape(K, K)
        H = np.linalg.solve(W, Z)
        slope = _LAM_W * W - _LAM_H * np.linalg.solve(W.T, H @ H.T)
        return _penalty(W, H), slope.ravel()

    start = (np.eye(K) + 0.1 * rng.normal(size=(K, K))).ravel()
    found = minimize(value, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    return float(found.fun)


def _curve(K: int, count: int) -> Outcome:
    c = np.linspace(0.01, 0.3, count)
    claimed = [_claimed(K, float(x)) for x in c]
    found = [least_intermediate(K, float(x), 4)[0] for x in c]
    return Outcome(
        (),
        curves=(
            Curve("bound", "claimed: neural collapse", c.tolist(), claimed),
            Curve("bound", "minimum of the intermediate bound", c.tolist(), found, "points"),
        ),
    )
