"""Focal loss with a bias: where Theorem 1 is proved, where other minima begin, and which lie below."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar

import ufm
from ufm import losses, theory
from ufm.reproduce import _witness as witness
from ufm.reproduce._focal_loss import _collapsed, _focal, _tie
from ufm.reproduce._records import Instance, Job, Level, Outcome, Table, compared
from ufm.theory import covering
from ufm.theory.spurious import PartialState

# --- where neural collapse is certified -----------------------------------------------------------

GAMMAS = (
    0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2, 2.3, 2.382, 2.45, 2.6, 2.8, 3.0, 3.2, 3.5, 4.0, 4.5, 5.0,
    6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0,
)  # fmt: skip
_TIES = ((3.0, 18), (1.0, 24), (5.0, 22), (10.0, 30))


def certified(level: Level) -> Iterator[Job]:
    """K from 6 to 17 over a range of gamma; K = 20, just below a counterexample."""
    quick = level == "quick"
    for gamma in (1.0, 2.382, 3.0, 10.0) if quick else GAMMAS:
        yield Job(f"gamma{gamma:g}", partial(_certified, gamma, (10, 17) if quick else range(6, 18)), 0.2)
    yield Job("cost", partial(_cost, 5 if quick else 50), 0.1)
    yield Job("bound", partial(_bound, 12, 2_000 if quick else 20_000), 0.2)
    for gamma, K in ((3.0, 20),) if quick else ((3.0, 20), *_TIES):
        yield Job(f"up-to-gamma{gamma:g}-K{K}", partial(_up_to, gamma, K), 1.0)


def _certified(gamma: float, sizes: range | tuple[int, ...]) -> Outcome:
    instances, rows = [], []
    for K in sizes:
        found = theory.certified_range(gamma, K)
        _, slope, _, _ = witness.profile(losses.focal(gamma), K, np.zeros(1))
        C_thr = max(1.0, -float(slope[0]))
        reached = float(found.ends[-1]) if found.ends.size else 1.0
        config = {"gamma": gamma, "K": K, "intervals": int(found.ends.size), "smallest margin": found.margin}
        what = "the part of 1 <= C <= C_thr that is not certified (C_thr by autodiff)"
        instances.append(compared(what, config, abs(C_thr - reached), 1e-12))
        what = "an interval of the cover whose inequality does not hold (0: none)"
        instances.append(compared(what, config, float(not found.margin > 0 or not math.isinf(found.C)), 0.0))
        least = f"{found.margin:.2e}" if found.ends.size else "none needed"
        rows.append((f"{gamma:g}", f"{K}", f"{C_thr:.8f}", f"{found.ends.size}", least))
    header = ("gamma", "K", "C_thr (1 if below)", "intervals", "smallest margin of K f")
    return Outcome(tuple(instances), (Table("Certified for every C", header, tuple(rows)),))


def _cost(count: int) -> Outcome:
    """The least cost of a good class by a search over how its odds are shared."""
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(count):
        K = int(rng.integers(6, 30))
        bad, y = int(rng.integers(1, K - 2)), float(rng.uniform(0.05, 0.95))
        C, odds = float(rng.uniform(1.0, 1.4)), float(np.exp(rng.normal(2.0)))
        al, be, constant = (float(x) for x in covering.weights(C, K, np.array(bad), np.array(y)))
        closed = (al + be) * (math.log(K - 1) - math.log(odds)) + constant
        cost = partial(_shared, al, be, (K - bad - 1) / odds, bad / odds)
        found = float(minimize_scalar(cost, bracket=(-2.0, 2.0), tol=1e-10).fun)
        worst = max(worst, abs(closed - found) / (1 + abs(found)))
    what = "the least cost of a class in closed form against a search, relative"
    return Outcome((compared(what, {"random C, K, m, y": count}, worst, 1e-11, "ours"),))


def _shared(al: float, be: float, good: float, bad: float, x: float) -> float:
    """al A + be B where the good classes take the share 1/(1 + e^-x) of the odds, one unit of them."""
    return al * (math.log(good) + math.log1p(math.exp(-x))) + be * (math.log(bad) + math.log1p(math.exp(x)))


def _bound(K: int, count: int) -> Outcome:
    """The dual bound against f at random logits and biases, of which some are near neural collapse."""
    rng, loss, C = np.random.default_rng(1), losses.focal(3.0), 1.17
    least = math.inf
    for _ in range(count // 100):
        Z = rng.normal(size=(100, K, K)) * rng.choice([0.3, 2.0]) + rng.choice([0.0, 3.0]) * np.eye(K)
        z = Z + rng.normal(size=(100, K, 1))
        own = np.diagonal(z, axis1=1, axis2=2)
        top = z.max(axis=1)
        rest = np.log(np.exp(z - top[:, None]).sum(axis=1) - np.exp(own - top)) + top
        margins = own - rest + math.log(K - 1)
        loss_of = np.asarray(theory.scalar_profile(loss, K).value(margins))
        f = K * (loss_of.mean(axis=1) + C / (K - 1) * np.linalg.svd(Z, compute_uv=False).sum(axis=1))
        bad, y = np.array(rng.integers(1, K - 1)), np.array(rng.uniform(0.0, 1.0))
        al, be, constant = covering.weights(C, K, bad, y)
        cost = loss_of + np.where(np.arange(K) < bad, y * C * margins, (al + be) * margins + constant)
        least = min(least, float((f - cost.sum(axis=1)).min()))
    config = {"loss": repr(loss), "K": K, "C": C, "random Z, b": count}
    what = "the sum of the costs of the classes above K f"
    return Outcome((compared(what, config, max(0.0, -least), 1e-10, "ours"),))


def _up_to(gamma: float, K: int) -> Outcome:
    C, tie = theory.certified_range(gamma, K).C, _tie(gamma, K).C_tie
    config = {"gamma": gamma, "K": K, "certified up to": C, "C_tie": tie}
    return Outcome(
        (
            compared("neural collapse less the lowest f known at the end of the certified range", config,
                     _advantage(gamma, K, C), 1e-12),
            compared("no lower point is known at the tie, up to 0.2 % beyond it (0: there is one)", config,
                     float(_advantage(gamma, K, tie) < 1e-12 or not C < tie < 1.002 * C), 0.0, "ours"),
        )
    )  # fmt: skip


def _advantage(gamma: float, K: int, C: float) -> float:
    return _collapsed(gamma, K, C) - float(theory.global_optimum(_focal(gamma, K, C)).objective)


# --- where simplexes of K - 1 classes are spurious minima -----------------------------------------


def begin(level: Level) -> Iterator[Job]:
    """The state at which stability begins, and the fold at which the branch ends."""
    for K in (20, 50) if level == "quick" else (18, 19, 20, 22, 25, 30, 40, 50, 70, 100):
        yield Job(f"gamma3-K{K}", partial(_begin, 3.0, K), 0.5)


def _begin(gamma: float, K: int) -> Outcome:
    found = theory.spurious_range(losses.focal(gamma), K)
    C, ratio = found.C_start, found.C_start / found.C_thr
    config = {"gamma": gamma, "K": K, "d": K + 1, "n": 1, "lam_b": 0.0, "C": C}
    start, at_start = _simplex(gamma, K, C, found.margin, found.gap)
    fold, at_fold = _simplex(gamma, K, found.C_fold, found.fold_margin, found.fold_gap)
    near = (_focal(gamma, K, side * C) for side in (1 - 1e-5, 1 + 1e-5))
    (below,), (above,) = (theory.partial_states(prob, [K - 1]) for prob in near)
    excess = witness.objective(start, at_start) - _collapsed(gamma, K, C)
    folded = config | {"C": found.C_fold}
    pull = float(np.linalg.norm(witness.logit_gradient(start, at_start), 2)) / float(start.lam)
    instances = (
        compared("|grad f| where stability begins", config, _gradient(start, at_start), 1e-11),
        compared("|G| - lam there, by autodiff, relative", config, abs(pull - 1), 1e-9),
        compared("a minimum 0.001 % below, or none 0.001 % above (0: the reverse)", config,
                 float(not below.tension > 1 > above.tension), 0.0),
        compared("f less that of neural collapse in closed form against the point, relative", config,
                 abs(excess / found.excess - 1), 1e-7),
        compared("|grad f| at the fold", folded, _gradient(fold, at_fold), 1e-11),
        compared("curvature of f along the branch at the fold, over that across it", folded,
                 _flatness(gamma, K, found), 1e-2),
    )  # fmt: skip
    state = (f"{found.margin:.6f}", f"{found.gap:.6f}", f"{found.excess:.2e}", f"{found.C_fold:.8f}")
    row = (f"{K}", f"{C:.9f}", f"{ratio:.7f}", *state)
    header = ("K", "from C =", "/ C_thr", "alpha", "b_on - b_off", "f above neural collapse", "to C =")
    table = Table(f"Spurious minima of K - 1 classes, gamma = {gamma:g}, free bias", header, (row,))
    return Outcome(instances, (table,))


def _simplex(gamma: float, K: int, C: float, alpha: float, gap: float) -> tuple[ufm.Problem, ufm.Params]:
    """The problem, and the point with K - 1 classes in a simplex."""
    prob = _focal(gamma, K, C)
    Z = np.zeros((K, K))
    Z[:-1, :-1] = alpha * (np.eye(K - 1) - 1 / (K - 1))
    U, sigma, Vt = np.linalg.svd(Z)
    scale = (float(prob.lam_H) / float(prob.lam_W)) ** 0.25
    root = np.sqrt(np.where(sigma > 1e-12, sigma, 0.0))
    W, H = np.zeros((K, prob.d)), np.zeros((prob.d, K))
    W[:, :K], H[:K] = scale * U * root, root[:, None] * Vt / scale
    return prob, ufm.Params(*map(jnp.asarray, (W, H, np.append(np.full(K - 1, gap), 0.0))))


def _gradient(prob: ufm.Problem, params: ufm.Params) -> float:
    """The largest entry of the gradient, of which the part in the logits is by autodiff."""
    G = witness.logit_gradient(prob, params)
    W, H, _ = (np.asarray(x) for x in params)
    parts = (G @ H.T + float(prob.lam_W) * W, W.T @ G + float(prob.lam_H) * H, G.sum(axis=1))
    return max(float(np.abs(part).max()) for part in parts)


def _flatness(gamma: float, K: int, found: theory.SpuriousRange, step: float = 1e-3) -> float:
    """The smaller eigenvalue of the Hessian in (alpha, K gap) over the larger, by differences of f."""

    def f(i: int, j: int) -> float:
        alpha, gap = found.fold_margin + i * step, found.fold_gap + j * step / K
        return witness.objective(*_simplex(gamma, K, found.C_fold, alpha, gap))

    middle = f(0, 0)
    own = [f(*x) + f(*(-np.array(x))) - 2 * middle for x in ((1, 0), (0, 1))]
    mixed = (f(1, 1) + f(-1, -1) - f(1, -1) - f(-1, 1)) / 4
    values = np.linalg.eigvalsh([[own[0], mixed], [mixed, own[1]]])
    return float(abs(values[0] / values[1]))


# --- the states in the window where Theorem 1 fails -----------------------------------------------


def window(level: Level) -> Iterator[Job]:
    """Every size of the simplex in the window of K = 20."""
    yield Job("gamma3-K20", partial(_window, 3.0, 20, 1.20108, range(14, 20)), 1.0)
    if level == "full":
        yield Job("gamma3-K30", partial(_window, 3.0, 30, 1.195638, range(18, 30)), 2.0)


def _window(gamma: float, K: int, C: float, sizes: range) -> Outcome:
    prob, collapsed = _focal(gamma, K, C), _collapsed(gamma, K, C)
    states = theory.partial_states(prob, sizes)
    best = min(states, key=lambda state: state.objective)
    config: dict[str, object] = {"gamma": gamma, "K": K, "d": K + 1, "n": 1, "C": C, "lam_b": 0.0}
    instances = [instance for state in states for instance in _at_state(prob, state, config)]
    wrong = sum(state.pure != (state.tension <= 1) for state in states)
    what = "states that are a simplex alone although the contrast pulls with more than lam, or the reverse"
    instances.append(compared(what, config, float(wrong), 0.0))
    what = "the lowest state is no simplex alone, or not below neural collapse (0: it is both)"
    lower = best.pure and best.objective < collapsed
    instances.append(compared(what, config | {"lowest": best.on}, float(not lower), 0.0))
    rows = tuple(
        (f"{s.on}", f"{s.objective:.12f}", f"{s.objective - collapsed:+.3e}", f"{s.factors.rank}",
         f"{s.tension:.6f}", "simplex alone" if s.pure else "with a part of rank one")
        for s in reversed(states)
    )  # fmt: skip
    header = ("m", "f", "less neural collapse", "rank", "pull of the contrast / lam", "state")
    table = Table(f"K = {K}, gamma = {gamma:g}, C = {C:g}, free bias", header, rows)
    return Outcome(tuple(instances), (table,))


def _at_state(prob: ufm.Problem, state: PartialState, config: dict[str, object]) -> Iterator[Instance]:
    """f and the gradient at the point itself; the pull of the contrast by autodiff."""
    here = config | {"m": state.on}
    apart = abs(witness.objective(prob, state.params) - state.objective)
    yield compared("f in closed form against f(W, H, b)", here, apart, 1e-12)
    yield compared("|grad f|", here, _gradient(prob, state.params), 1e-11)
    if state.pure:
        G, off = witness.logit_gradient(prob, state.params), prob.K - state.on
        u = np.repeat([1 / state.on, -1 / off], [state.on, off]) / math.sqrt(1 / state.on + 1 / off)
        pull = abs(float(u @ G @ u)) / float(prob.lam)
        what = "pull of the contrast in closed form against autodiff, relative"
        yield compared(what, here, abs(pull / state.tension - 1), 1e-8)
