"""SHELF of critical points that are known analytically: each family solves a few scalar equations.

Let a group permute the classes, and turn the features by a representation of it. Equation (7) is invariant
under such a motion if the classes are balanced and the loss treats them alike, so a point that is critical
among those which the group leaves alone is critical (principle of symmetric criticality). With M groups of m
classes *on*, K - M m classes *off*, E the groups' indicators and c = sqrt(n lam_W lam_H), what is left is

    Zbar = a (E E' - 11'/M on the classes on) + u v',    b, u, v constant on the classes on and off,
    F = on/K L(z_on) + off/K L(z_off) + c m (M-1) a + c/2 (K-sums of u^2 and v^2) + lam_b/2 |b|^2.

A family is a row of `FAMILIES`: a name, why it does not apply (or ""), and its members, which
`critical_points` polishes and classifies.

Source: docs/theory.md, section 4.5; symmetric criticality: Palais 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _compile
from ufm._problem import Params, Problem
from ufm.losses._base import Setting
from ufm.models._fixed import helmert
from ufm.theory import NoClosedForm, _codes, global_optimum
from ufm.theory._frames import Factors, minimiser
from ufm.theory._setting import setting
from ufm.theory.profiles import is_symmetric


class Family(NamedTuple):
    """A row of the shelf."""

    name: str
    reason: Callable[[Problem], str]  # why no member exists here; "" where one may
    members: Callable[[Problem], Iterator[tuple[str, Params]]]  # (what tells it from the others, a point)


def _symmetric(prob: Problem) -> str:
    """Why the classes are not interchangeable."""
    try:
        setting(prob)
    except NoClosedForm as error:
        return str(error)
    if not is_symmetric(prob.loss, prob.K):
        return f"loss: {prob.loss!r} treats classes differently"
    return ""


# --- the scalar system ----------------------------------------------------------------------------


class Layout(NamedTuple):
    """M groups of m classes on; the other K - M m are off."""

    K: int
    M: int
    m: int

    @property
    def on(self) -> int:
        """Classes on."""
        return self.M * self.m

    @property
    def off(self) -> int:
        """Classes off."""
        return self.K - self.on

    def indicators(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) of the group of class 0, and of the classes on."""
        k = np.arange(self.K)
        return (k < self.m).astype(float), (k < self.on).astype(float)


#: the unknowns, in their order
UNKNOWNS = ("a", "u_on", "u_off", "v_on", "v_off", "b_on", "b_off")


class _System(NamedTuple):
    """What is compiled once and swept."""

    loss: Any
    group: Any  # (K,)
    on: Any  # (K,)
    c: Any
    lam_b: Any
    M: Any
    m: Any


def _objective(system: _System, x: Array) -> Array:
    """F of the module's docstring; x (7,)."""
    a, u_on, u_off, v_on, v_off, b_on, b_off = x
    on, off = system.on, 1 - system.on
    u, b = u_on * on + u_off * off, b_on * on + b_off * off
    z_on = a * (system.group - on / system.M) + u * v_on + b
    z_off = u * v_off + b
    K, count = len(on), system.M * system.m
    fit = count * system.loss(z_on, 0) + (K - count) * system.loss(z_off, K - 1)
    size = count * (u_on**2 + v_on**2) + (K - count) * (u_off**2 + v_off**2)
    spread = count * b_on**2 + (K - count) * b_off**2
    nuclear = system.m * (system.M - 1) * a + size / 2
    return jnp.asarray(fit / K + system.c * nuclear + system.lam_b / 2 * spread)


@partial(_compile.jit, options=_compile.USUAL)
def _derivatives(system: _System, x: Array) -> tuple[Array, Array]:
    def each(y: Array) -> tuple[Array, Array]:
        return jax.grad(_objective, 1)(system, y), jax.hessian(_objective, 1)(system, y)

    return jax.vmap(each)(x)


def _roots(prob: Problem, layout: Layout, starts: np.ndarray, free: str) -> np.ndarray:
    """Zeros of grad F in the unknowns whose first letter is in `free`, from starts (S, 7); distinct ones.

    Newton with H/(H^2 + mu^2), drawn to maxima and saddles of F as well; mu falls while |grad F| does.
    """
    s = setting(prob)
    group, on = layout.indicators()
    system = _System(prob.loss, group, on, s.c, s.lam_b, float(layout.M), float(layout.m))
    keep = np.array([name[0] in free and not (name[0] == "b" and not s.bias) for name in UNKNOWNS])
    x, mu = np.where(keep, starts, 0.0), np.full(len(starts), 1e-2)
    g, H = _at(system, x, keep)
    for _ in range(STEPS):
        values, Q = np.linalg.eigh(H)
        damping = (mu * np.abs(values).max(axis=1))[:, None]
        seen = np.einsum("sij,si->sj", Q, g)
        step = np.einsum("sij,sj->si", Q, values / (values**2 + damping**2 + 1e-300) * seen)
        trial = np.where(keep, x - np.clip(step, -5.0 * REACH, 5.0 * REACH), 0.0)
        new_g, new_H = _at(system, trial, keep)
        with np.errstate(invalid="ignore"):
            better = np.linalg.norm(new_g, axis=1) < np.linalg.norm(g, axis=1)
        x, g = np.where(better[:, None], trial, x), np.where(better[:, None], new_g, g)
        H = np.where(better[:, None, None], new_H, H)
        mu = np.clip(np.where(better, mu / 10, mu * 10), 1e-13, 1e3)
        if not better.any() and (mu >= 1.0).all():
            break
    size = np.abs(H).max(axis=(1, 2)) * (1 + np.abs(x).max(axis=1))
    solved = np.linalg.norm(g, axis=1) <= 1e-11 * size
    return x[solved & (np.abs(x).max(axis=1) < 1e4)]


STEPS = 100
REACH = 20.0
PADDED = 96  # rows: nearly every family of every problem then runs the same program


def _at(system: _System, x: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (S, 7) and Hessian (S, 7, 7) with the frozen unknowns cut out; padded to a few sizes."""
    rows = PADDED
    while rows < len(x):
        rows *= 4
    padded = np.zeros((rows, len(UNKNOWNS)))
    padded[: len(x)] = x
    g, H = (np.asarray(y)[: len(x)] for y in _derivatives(system, padded))
    g, H = g * keep, H * keep[:, None] * keep
    bad = ~np.isfinite(g).all(axis=1) | ~np.isfinite(H).all(axis=(1, 2))
    return np.where(bad[:, None], np.inf, g), np.where(bad[:, None, None], 0.0, H)


def _class_means(layout: Layout, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zbar (K, K) and b (K,) of a solution."""
    a, u_on, u_off, v_on, v_off, b_on, b_off = x
    _, on = layout.indicators()
    group = np.where(on > 0, np.arange(layout.K) // layout.m, -1)
    frame = a * ((group[:, None] == group) - 1 / layout.M) * on[:, None] * on
    outer = np.outer(np.where(on > 0, u_on, u_off), np.where(on > 0, v_on, v_off))
    return frame + outer, np.where(on > 0, b_on, b_off)


def _distinct(layout: Layout, solutions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Solutions with different logits, as (Zbar, b)."""
    seen: list[np.ndarray] = []
    for x in solutions:
        Zbar, b = _class_means(layout, x)
        logits = Zbar + (b - b.mean())[:, None]
        if all(np.abs(logits - other).max() > 1e-6 * (1 + np.abs(other).max()) for other in seen):
            seen.append(logits)
            yield Zbar, b


def _factored(prob: Problem, Zbar: np.ndarray, b: np.ndarray) -> Params | None:
    """A balanced factorisation, or None where d is too small."""
    U, sigma, Vt = np.linalg.svd(Zbar)
    r = int((sigma > 1e-12 * sigma[0]).sum()) if sigma[0] > 0 else 0
    if r > prob.d:
        return None
    return minimiser(setting(prob), Factors(U[:, :r], sigma[:r], Vt[:r].T), b)


# --- the families ---------------------------------------------------------------------------------


def _always(prob: Problem) -> str:
    return ""


def _origin(prob: Problem) -> Iterator[tuple[str, Params]]:
    """W = H = 0 and the bias that is best there; every problem has it, whatever its counts."""
    zeros = prob.zeros()
    start = np.log(prob.counts / prob.N) if prob.loss.shift_invariant and prob.bias else np.zeros(prob.K)
    yield "", zeros._replace(b=jnp.asarray(start - start.mean()))


def _no_optimum(prob: Problem) -> str:
    try:
        global_optimum(prob)
    except NoClosedForm as error:
        return str(error)
    return ""


def _optimum(prob: Problem) -> Iterator[tuple[str, Params]]:
    best = global_optimum(prob)
    yield best.structure, best.params


def _margins(s: Setting, layout: Layout) -> np.ndarray:
    """Margins to start from, up to where the penalty alone exceeds what the loss can give."""
    unit = np.zeros(layout.K)
    at_zero = float(s.loss(jnp.asarray(unit), 0))
    reach = max(at_zero - s.loss.infimum, 1e-3) / (s.c * layout.m * max(layout.M - 1, 1))
    return np.geomspace(1e-2, min(reach, s.loss.typical_margin()), 6 if s.loss.convex else 24)


def _frames_of(prob: Problem, layout: Layout) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Simplex frames of M groups, on their own: every stationary margin and bias."""
    s = setting(prob)
    a = np.repeat(_margins(s, layout), 3)
    gap = a * np.tile([0.0, 1 / layout.on, 0.7], len(a) // 3)
    starts = np.zeros((len(a), len(UNKNOWNS)))
    starts[:, 0], starts[:, 5], starts[:, 6] = a, gap * layout.off / s.K, -gap * layout.on / s.K
    found = _roots(prob, layout, starts, "ab")
    yield from _distinct(layout, found[found[:, 0] > 1e-8])


def _layouts(prob: Problem, *, grouped: bool, partial: bool) -> Iterator[Layout]:
    """All layouts of at least two groups whose frame fits into d."""
    K = prob.K
    for m in range(2, K // 2 + 1) if grouped else (1,):
        for M in range(2, K // m + 1):
            if (M * m < K) == partial and prob.d >= M - 1:
                yield Layout(K, M, m)


def _no_layout(*, grouped: bool, partial: bool) -> Callable[[Problem], str]:
    def reason(prob: Problem) -> str:
        if next(_layouts(prob, grouped=grouped, partial=partial), None) is None:
            return f"K={prob.K} classes have no such arrangement in d={prob.d} dimensions"
        return _symmetric(prob)

    return reason


def _frames(*, grouped: bool, partial: bool) -> Callable[[Problem], Iterator[tuple[str, Params]]]:
    def members(prob: Problem) -> Iterator[tuple[str, Params]]:
        for layout in _layouts(prob, grouped=grouped, partial=partial):
            shape = (f"{layout.M}x{layout.m}" if grouped else f"m={layout.M}") if grouped or partial else ""
            found = sorted(_frames_of(prob, layout), key=lambda point: -np.max(np.abs(point[0])))
            for Zbar, b in found:
                margin = f"a={np.ptp(Zbar[: layout.on, 0]):.6g}" if len(found) > 1 else ""
                params = _factored(prob, Zbar, b)
                if params is not None:
                    yield " ".join(filter(None, (shape, margin))), params

    return members


def _pairs(prob: Problem) -> Iterator[tuple[str, Params]]:
    """Rank one: m classes against K - m others (equal halves are the grouped frame 2 x K/2)."""
    s = setting(prob)
    for m in range(1, (s.K + 1) // 2 if s.loss.shift_invariant else s.K // 2 + 1):
        layout = Layout(s.K, 1, m)
        t = np.sqrt(np.geomspace(1e-2, 30.0, 6 if s.loss.convex else 16) / s.K)
        starts = []
        for v_on, v_off in ((1.0, -1.0), (1.0, 0.0), (0.0, -1.0), (1.0, 1.0)):
            for size in t:
                balance = (layout.off / layout.on) ** 0.5
                starts.append([0.0, size * balance, -size / balance, size * v_on, size * v_off, 0.1, 0.0])
                starts.append([0.0, size, size, size * v_on, size * v_off, -0.1, 0.0])
        for Zbar, b in _distinct(layout, _roots(prob, layout, np.array(starts), "uvb")):
            params = _factored(prob, Zbar, b) if np.abs(Zbar).max() > 1e-6 else None
            if params is not None:
                yield f"{m}|{s.K - m}", params


def _with_rank_one(prob: Problem) -> Iterator[tuple[str, Params]]:
    """A simplex of m classes and a rank-one part between them and the rest (none: m = K, the mean's own)."""
    for m in range(2, prob.K + (not prob.loss.shift_invariant)):
        for params in rank_one_beside(prob, m):
            yield f"m={m}", params


def rank_one_beside(prob: Problem, m: int) -> Iterator[Params]:
    """From every simplex of m classes, with a little of the rank-one part in eight directions."""
    s, layout = setting(prob), Layout(prob.K, m, 1)
    angles = np.linspace(0.0, np.pi, 9)[:-1]
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    balance = (max(layout.off, 1) / layout.on) ** 0.5
    between = [[balance, -1 / balance]] + [[1.0, 1.0]] * (not s.loss.shift_invariant)
    starts = []
    for Zbar, b in _frames_of(prob, layout):
        a = float(np.ptp(Zbar[: layout.on, 0]))
        for size in np.sqrt(np.array([0.01, 0.1, 1.0]) * a / s.K):
            pairs = ((size * np.array(u), size * v) for u in between for v in directions)
            starts += [[a, *u, *v, b[0], b[-1]] for u, v in pairs]
    if not starts:
        return
    found = _roots(prob, layout, np.array(starts), "auvb")
    apart = np.abs(found[:, 1:3]).max(axis=1) * np.abs(found[:, 3:5]).max(axis=1)
    for Zbar, b in _distinct(layout, found[(found[:, 0] > 1e-8) & (apart > 1e-7)]):
        params = _factored(prob, Zbar, b)
        if params is not None:
            yield params


def _isotropic_target(prob: Problem) -> float | None:
    """beta where the loss is |z - beta e_k|^2, whose critical points are all known."""
    kappa, beta = prob.loss.squares() or (0.0, 0.0)
    return beta if kappa == 1.0 else None


def _not_quadratic(prob: Problem) -> str:
    if _isotropic_target(prob) is None:
        return f"its spectrum is known for rescaled MSE with kappa = 1, not for {prob.loss!r}"
    return _symmetric(prob)


def _truncated(prob: Problem) -> Iterator[tuple[str, Params]]:
    """Zbar = t P_r (+ m 11'/K): the first singular directions only; t = beta - cK/2.

    Without a bias P_r is any projector of rank r < K; with one, any orthogonal to 1, and the mean's own
    direction is on (m = beta - cK/2 - K b0, b0 = c/lam_b) or left to the bias (b0 = 2 beta/(K (2 + lam_b))).
    """
    s, beta = setting(prob), _isotropic_target(prob)
    assert beta is not None  # `_not_quadratic` was asked
    K = s.K
    top = beta - s.c * K / 2
    if top <= 0:
        return
    basis = helmert(K) if s.bias else np.eye(K)
    for r in range(1, min(basis.shape[1] + 1, s.d + 1)):
        b0 = 2 * beta / (K * (2 + s.lam_b)) if s.bias else 0.0
        yield f"r={r}", minimiser(s, Factors(basis[:, :r], np.full(r, top), basis[:, :r]), np.full(K, b0))
    if not s.bias or s.lam_b == 0:
        return
    b0 = s.c / s.lam_b
    mean = top - K * b0
    for r in range(K) if mean > 0 else ():
        U = np.column_stack([basis[:, :r], np.full(K, K**-0.5)])
        if r + 1 <= s.d:
            sigma = np.append(np.full(r, top), mean)
            yield f"r={r} and the mean", minimiser(s, Factors(U, sigma, U), np.full(K, b0))


def _no_code(prob: Problem) -> str:
    if prob.loss.smoothing() is None:
        return f"solved for cross-entropy and label smoothing, not for {prob.loss!r}"
    if prob.d >= prob.K - 1:
        return f"d = {prob.d} holds the simplex ETF; theory.code_optimum gives them by name"
    return _symmetric(prob)


def _orthogonal_codes(prob: Problem) -> Iterator[tuple[str, Params]]:
    """The lowest arrangements that fill d dimensions."""
    s = setting(prob)
    for found in _codes.lowest(s, MOST):
        yield _codes.named(found.codes), minimiser(s, found.factors, found.bias)


MOST = 12


def _frame_family(name: str, *, grouped: bool, partial: bool) -> Family:
    reason, members = _no_layout(grouped=grouped, partial=partial), _frames(grouped=grouped, partial=partial)
    return Family(name, reason, members)


#: The shelf, in the order in which a point that belongs to several families gets its name.
FAMILIES: tuple[Family, ...] = (
    Family("origin", _always, _origin),
    _frame_family("neural collapse", grouped=False, partial=False),
    Family("truncated", _not_quadratic, _truncated),
    _frame_family("sub-ETF", grouped=False, partial=True),
    _frame_family("grouped ETF", grouped=True, partial=False),
    _frame_family("grouped sub-ETF", grouped=True, partial=True),
    Family("codes", _no_code, _orthogonal_codes),
    Family("two groups", _symmetric, _pairs),
    Family("ETF + rank one", _symmetric, _with_rank_one),
    Family("optimum", _no_optimum, _optimum),
)
NAMES: tuple[str, ...] = tuple(family.name for family in FAMILIES)
