"""The stage problem -> Solution: one loop for every solver, recorded or not, and its sweeps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _checks, _compile, _second_order, losses, metrics, solvers
from ufm._problem import Problem, Variables, init
from ufm._progress import Progress
from ufm._second_order import Evidence
from ufm._solution import History, Solution, Status
from ufm._view import AnyView, basis, expanded, first_point, view_of
from ufm.models import Model
from ufm.solvers import Point, Solver, dot, noise

#: rows that a recorded trajectory holds at most; longer ones are recorded at a stride
HISTORY_ROWS = 10_000
#: strict saddles that one solve leaves at most; each is lower than the one before
MAX_ESCAPES = 100


# --- the only loop --------------------------------------------------------------------------------


class _Run(NamedTuple):
    """The loop's state: can be handed back in to go on."""

    at: Point
    memory: Any
    steps: Array
    status: Array
    grad_norm: Array
    within: Array  # the gradient norm was within tol a step ago
    best: tuple[Array, Array]  # the lowest objective and gradient norm so far
    idle: Array  # steps since either fell by more than rounding
    history: History | None


class Outcome(NamedTuple):
    """What a run reports to the host."""

    params: Variables
    objective: Array
    grad_norm: Array
    status: Array
    steps: Array
    history: History | None
    evidence: Evidence  # of the second-order conditions


class Before(NamedTuple):
    """What earlier runs of the same solve leave to one that starts from a new point."""

    steps: Array | int = 0
    history: History | None = None
    basis: Array | None = None  # of the view, if it is known


class Options(NamedTuple):
    """What is compiled in."""

    solver: Solver
    reduced: bool
    rows: int  # of the history; 0: none
    stride: int


def _run(
    prob: Problem,
    params: Variables,
    run: _Run | None,
    before: Before,
    tol: Array,
    limit: Array,
    last: Array,
    options: Options,
) -> tuple[Outcome, _Run]:
    """From a start, or on from `run`, until converged or `limit` steps; `last` is the user's max_steps."""
    solver, reduced = options.solver, options.reduced
    view, y = view_of(prob, params, solver, reduced, before.basis)
    patience = getattr(solver, "patience", solver.max_steps)

    def record(history: History | None, at: Point, steps: Array, norm: Array) -> History | None:
        if history is None:
            return None
        return _written(history, expanded(prob, view, at.y, reduced), prob, steps, at.f, norm, options)

    if run is None:
        at = first_point(view, y)
        norm, steps = view.residual(at.y, at.g), jnp.asarray(before.steps)
        empty = jnp.full(options.rows, jnp.nan, at.f.dtype)
        history = before.history
        if options.rows:  # the first row is the start as it was given, not as the view has it
            f, g = jax.value_and_grad(prob)(params)
            if history is None:
                history = History(jnp.zeros(options.rows, steps.dtype), *[empty] * 5)
            g = prob.unbound(params, g)
            history = _written(history, params, prob, steps, f, jnp.sqrt(dot(g, g)), options)
        far = jnp.asarray(False)
        status = _judged(at, norm, jnp.asarray(0), far, steps >= last, tol, solver)
        best, idle = (at.f, norm), jnp.asarray(0)
        run = _Run(at, solver.init(view.objective, at), steps, status, norm, far, best, idle, history)

    def step(run: _Run) -> _Run:
        at, memory, flag = solver.step(view.objective, run.at, run.memory)
        norm, steps, within = view.residual(at.y, at.g), run.steps + 1, run.grad_norm <= tol
        if solver.polish:
            worse = within & ~(norm <= run.grad_norm)
            at = jax.tree.map(lambda old, new: jnp.where(worse, old, new), run.at, at)
            norm = jnp.where(worse, run.grad_norm, norm)
        history = record(run.history, at, steps, norm)
        best, progress = _progress(run.best, at.f, norm)
        idle = jnp.where(progress, 0, run.idle + 1)
        flag = jnp.where(idle >= patience, Status.STALLED, flag)
        status = _judged(at, norm, flag, within, steps >= last, tol, solver)
        return _Run(at, memory, steps, status, norm, within, best, idle, history)

    def going(run: _Run) -> Array:
        return (run.status == Status.RUNNING) & (run.steps < limit)

    run = jax.lax.while_loop(going, step, run)
    return _outcome(prob, view, run, tol, reduced), run


def _progress(best: tuple[Array, Array], f: Array, norm: Array) -> tuple[tuple[Array, Array], Array]:
    """The best objective and gradient norm so far, and whether one of them fell by more than rounding."""
    lowest, smallest = best
    falls, shrinks = f < lowest - noise(lowest), norm < 0.99 * smallest
    best = jnp.where(falls, f, lowest), jnp.where(shrinks, norm, smallest)
    return best, falls | shrinks


def _judged(
    at: Point, norm: Array, flag: Array, within: Array, over: Array, tol: Array, solver: Solver
) -> Array:
    """The status after a step; `within`: |grad f| was within tol before it; `over`: it was the last."""
    status = jnp.where(over, Status.MAX_STEPS, Status.RUNNING)
    status = jnp.where(flag > 0, flag, status)
    # a solver that is quadratic takes one step more: it costs little and takes the answer to rounding
    settled = (not solver.polish) | within | (norm <= 1e-3 * tol) | (status != Status.RUNNING)
    status = jnp.where((norm <= tol) & settled, Status.CONVERGED, status)
    return jnp.where(jnp.isfinite(at.f) & jnp.isfinite(norm), status, Status.NON_FINITE)


def _written(
    history: History, at: Variables, prob: Problem, steps: Array, f: Array, norm: Array, options: Options
) -> History:
    """The trajectory with a row more, if one is due."""
    nc = metrics.of_params(prob.model.effective(prob, at), prob.labels)
    row = History(steps, f, norm, nc.nc1, nc.nc2, nc.nc3)
    # steps in between fall on the row past the end and are dropped
    i = jnp.where(steps % options.stride == 0, steps // options.stride, options.rows)
    return History(*(h.at[i].set(x, mode="drop") for h, x in zip(history, row, strict=True)))


def _outcome(prob: Problem, view: AnyView, run: _Run, tol: Array, reduced: bool) -> Outcome:
    params, status = expanded(prob, view, run.at.y, reduced), run.status
    objective, norm = run.at.f, run.grad_norm
    problem, at = view.problem, view.params(run.at.y)
    if reduced:  # the answer counts only if it is one of the full problem
        problem = problem.replace(labels=prob.labels, samples=prob.samples)
        at = at._replace(H=at.H[:, prob.labels])
        full = solvers.evaluate(problem, at)
        split = problem.model.two_factors
        y, g = ((x.W, x.H, x.b if prob.bias else None) if split else x for x in (at, full.g))
        objective, norm = full.f, view.residual(y, g)
        floor = 100 * np.finfo(norm.dtype).eps * jnp.sqrt(dot(params, params))
        failed = (status == Status.CONVERGED) & (norm > 2 * tol + floor)
        status = jnp.where(failed, Status.NOT_EXPANDABLE, status)
    return Outcome(params, objective, norm, status, run.steps, run.history, _evidence(problem, at))


def _evidence(prob: Problem, params: Variables) -> Evidence:
    """The measurements of the second-order conditions."""
    G = prob.logit_gradient(params)
    if prob.samples is not None:  # by sample instead of by column: G G' is the sum over all samples
        G = G / jnp.sqrt(prob.samples)
    convex = jnp.all(jax.vmap(prob.loss.convex_at)(prob.logits(params).T, prob.labels))
    model = prob.model
    gram = jnp.zeros((prob.K, prob.K), G.dtype) if model.convex else G @ G.T  # no curvature of a product
    return Evidence(gram, convex & (model.bilinear or model.convex))


compiled_run = _compile.jit(_run, static_argnames=("options",))
#: the same without optimisation: compiled in half the time, and two to four times slower to run
_instant_run = _compile.jit(_run, static_argnames=("options",), options=_compile.INSTANT)
#: the same with all of XLA's optimisation: compiled in twice the time, and a quarter faster at K=10, n=100
_thorough_run = _compile.jit(_run, static_argnames=("options",), options=_compile.THOROUGH)
#: numbers of logits at which that is worth it: fewer are bound by overhead, more by products of matrices
THOROUGH = range(2_000, 60_000)
#: seconds that a program without optimisation may lose before the optimised one is compiled: 45 solves of
#: K=10, n=10, ten of n=100.  What would lose them within 20 steps is optimised at once: K=10, n=1000.
WORTH_OPTIMISING = 0.1
#: seconds lost so far, by what is compiled
_lost: defaultdict[Hashable, float] = defaultdict(float)


def run_once(
    prob: Problem, params: Variables, basis: Any, tol: Array, last: Array, solver: Solver, reduced: bool
) -> Outcome:
    """A whole run without a record: the sweep's traced body."""
    before = Before(basis=basis)
    return _run(prob, params, None, before, tol, last, last, Options(solver, reduced, 0, 1))[0]


# --- the verbs ------------------------------------------------------------------------------------


def method_of(prob: Problem, solver: str | Solver) -> Solver:
    """The solver for a problem: one that keeps to the bounds of the variables where there are any.

    Raises:
        ValueError: an unknown solver, or one that leaves the bounds.
    """
    return solvers.get(solver) if prob.model.lower(prob) is None else solvers.for_bounds(solver)


def solve(
    prob: Problem,
    params: Any = None,
    *,
    solver: str | Solver = "newton",
    tol: float = 1e-10,
    max_steps: int | None = None,
    record: bool = False,
    reduced: bool = False,
    escape: bool = True,
    progress: bool | None = None,
) -> Solution:
    """Minimise f(W, H, b) of equation (7) from a start to a second-order point with |grad f| <= tol.

    Where the gradient is small the solver looks for negative curvature, leaves a strict saddle along it and
    goes on. A start whose logits exceed `_view.SATURATED` is first scaled down along its ray.

    Args:
        prob: the problem.
        params: the start, `Params(W, H, b)`; default `init(prob)`.  One that violates the model's
            constraints is exchanged for the nearest point that does not, and the solution says so.
        solver: a name of `solvers.SOLVERS` or a solver object.  Where variables have bounds, "newton" is a
            projected Newton method, and no other name is allowed.
        tol: bound on the Euclidean norm of the gradient in (W, H, b).  Newton, once within it, takes one
            step more, which being quadratic leaves little but rounding.
        max_steps: the solver's own default where None.
        record: keep the trajectory of objective, gradient norm and NC1-NC3 in `.history`.
        reduced: solve for the class means in min(d, K) dimensions, weighted by the counts, and expand.
            Exact where the loss is convex in z: f is then strictly convex in each h_j, so that all samples
            of a class coincide at every critical point.  The answer is checked on the full problem.
        escape: leave strict saddles. With False the solver stops at one, with the status STRICT_SADDLE.
        progress: True shows a bar, False none; None shows one after two seconds in a terminal or notebook.

    The labels' order, penalties, hyperparameters, start, `tol` and `max_steps` (unless recorded) compile
    nothing new. Failure is a `status` of the result, with the last finite iterate kept.

    Raises:
        ValueError: an unknown solver, a start of wrong shape, dtype or with NaN, tol or max_steps out of
            range, or `reduced` for a loss that is not convex.
    """
    method = method_of(prob, solver)
    tol = float(_checks.real("tol", tol, above=0.0))
    max_steps = method.max_steps if max_steps is None else _checks.integer("max_steps", max_steps, least=1)
    check_reduced(prob, reduced)
    params = init(prob) if params is None else prob.check_params(params)
    params, projected = prob.model.feasible(prob, params)
    if not prob.bias and np.any(np.asarray(params.b)):
        raise ValueError("b: expected zeros where bias=False, got a nonzero start; drop it or set bias=True")
    stride = -(-max_steps // HISTORY_ROWS)
    rows = max_steps // stride + 1 if record else 0
    options = Options(method, reduced, rows, stride)

    with Progress(f"{method.name}", max_steps, progress) as bar:
        outcome = _minimised(prob, params, Before(), tol, max_steps, options, bar)
        outcome = to_second_order(prob, outcome, tol, max_steps, options, escape, bar)
    return _solution(prob, outcome, tol, options, projected)


def to_second_order(
    prob: Problem, outcome: Outcome, tol: float, last: int, options: Options, escape: bool, bar: Progress
) -> Outcome:
    """Leave strict saddles, each lower than the one before, until none is left, or say that one is."""
    for _ in range(MAX_ESCAPES):
        below = _way_down(prob, outcome)
        if below is None:
            return outcome
        if not escape or int(outcome.steps) >= last:
            break
        bar.update(int(outcome.steps), "leaving a strict saddle")
        outcome = _minimised(prob, below, Before(outcome.steps, outcome.history), tol, last, options, bar)
    saddle = outcome.status == Status.CONVERGED
    return outcome._replace(status=jnp.where(saddle, Status.STRICT_SADDLE, outcome.status))


def _way_down(prob: Problem, outcome: Outcome) -> Variables | None:
    """A point below, where the solver has stopped at a strict saddle."""
    if int(outcome.status) not in (Status.CONVERGED, Status.STALLED):
        return None
    if not _second_order.may_be_saddle(outcome.evidence, prob.lam, outcome.grad_norm):
        return None
    return _second_order.way_down(prob, outcome.params, outcome.grad_norm)


def _minimised(
    prob: Problem, params: Variables, before: Before, tol: float, last: int, options: Options, bar: Progress
) -> Outcome:
    """One run of the compiled loop, in chunks between which the host looks and shows progress."""
    run: _Run | None = None
    done, chunk = int(before.steps), _first_chunk(prob, options)
    if jax.default_backend() == "cpu":
        before = before._replace(basis=basis(prob, params, options.solver, options.reduced))
    while True:
        began = time.perf_counter()
        program, limit = _program(prob, options), min(done + chunk, last)
        outcome, run = program(prob, params, run, before, tol, limit, last, options)
        if program is _instant_run:
            _lost[_compiled_for(prob, options)] += (int(outcome.steps) - done) * _loss_per_step(prob, options)
        if limit == last or int(outcome.status) != Status.RUNNING:
            return outcome
        done = limit
        bar.update(done, f"|grad| {float(outcome.grad_norm):.1e} (to {tol:.0e})")
        # about half a second between looks, whatever a step costs
        seconds = time.perf_counter() - began
        chunk = max(1, int(chunk * min(8.0, 0.5 / max(seconds, 1e-3))))


def _solution(prob: Problem, outcome: Outcome, tol: float, options: Options, projected: bool) -> Solution:
    history = outcome.history
    return Solution(
        problem=prob,
        params=outcome.params,
        objective=outcome.objective,
        grad_norm=outcome.grad_norm,
        code=outcome.status,
        steps=outcome.steps,
        tol=tol,
        history=None if history is None else _trim(history, int(outcome.steps), options.stride),
        solver=options.solver,
        reduced=options.reduced,
        projected=projected,
    )


def _products(options: Options) -> int:
    """Products with the Hessian, or evaluations of the gradient, that a step takes."""
    return 20 if isinstance(options.solver, solvers.Newton) else 2


def _first_chunk(prob: Problem, options: Options) -> int:
    """Steps before the host first looks: some seconds of work at 1e10 operations per second."""
    columns = prob.K if options.reduced else prob.columns
    width = min(prob.d, prob.K) if options.reduced or options.solver.rotate else prob.d
    cost = _products(options) * 12 * prob.K * width * columns / 1e10
    return max(1, min(options.solver.max_steps, int(2.0 / cost)))


def _logits(prob: Problem, options: Options) -> int:
    """How many logits the loop has."""
    return prob.K * (prob.K if options.reduced else prob.columns)


def _loss_per_step(prob: Problem, options: Options) -> float:
    """Seconds that a step takes longer without optimisation: 4 ns for every logit of every product, and more.

    Fitted to cross-entropy at K=10, d=64: 0.25, 0.8 and 7 ms at n=10, 100 and 1000.
    """
    return 2e-4 + 4e-9 * _products(options) * _logits(prob, options)


def _compiled_for(prob: Problem, options: Options) -> Hashable:
    """What identifies a compiled program, to the extent that the choice between the two needs."""
    return type(prob.loss), type(prob.model), prob.K, prob.d, prob.columns, prob.bias, options


def _program(prob: Problem, options: Options) -> Callable[..., Any]:
    """The compiled loop to run next: with optimisation where that pays.

    A first answer is mostly compilation, so a small problem starts without. A program that has lost enough
    time by that is compiled again.
    """
    room = WORTH_OPTIMISING - _lost[_compiled_for(prob, options)]
    small = 20 * _loss_per_step(prob, options) <= WORTH_OPTIMISING
    instant = small and room > 0 and jax.default_backend() == "cpu"
    return _instant_run if instant else optimised(prob, options)


def optimised(prob: Problem, options: Options) -> Callable[..., Any]:
    """The compiled loop for a problem that is solved often."""
    return _thorough_run if _logits(prob, options) in THOROUGH else compiled_run


def _trim(history: History, steps: int, stride: int) -> History:
    return History(*(h[: steps // stride + 1] for h in map(np.asarray, history)))  # type: ignore[arg-type]


def check_reduced(prob: Problem, reduced: bool) -> None:
    if not reduced:
        return
    if not (prob.model.two_factors or prob.model.layered):
        raise ValueError(f"reduced: expected free factors, got model={prob.model!r}; use reduced=False")
    if not prob.loss.convex:
        raise ValueError(
            f"reduced: expected a loss that is convex in z, got {prob.loss!r}; without convexity the "
            "features of a class need not coincide at a critical point: solve with reduced=False"
            + (", or declare convex=True in losses.custom" if isinstance(prob.loss, losses.Custom) else "")
        )


def solve_ufm(
    loss: str | losses.Loss | Callable[..., Any] = "ce",
    *,
    K: int | None = None,
    d: int = 64,
    n: int | None = None,
    labels: Any = None,
    lam_W: float = 5e-3,
    lam_H: float = 5e-3,
    lam_b: float = 0.0,
    bias: bool | None = None,
    model: str | Model = "free",
    class_weights: Any = None,
    seed: int = 0,
    scale: float = 0.1,
    solver: str | Solver = "newton",
    tol: float = 1e-10,
    max_steps: int | None = None,
    record: bool = False,
    reduced: bool = False,
    progress: bool | None = None,
    **hyperparameters: Any,
) -> Solution:
    """Solve the unconstrained feature model of equation (7): problem, start and solver in one call.

    `n` samples (default 10) for each of `K` classes (default 10), or any `labels`; `class_weights` (K,)
    multiply the losses of the classes; `alpha`, `gamma`, `kappa`, `beta` go to the loss. See `Problem`,
    `init` and `solve` for the rest.

    >>> import ufm
    >>> sol = ufm.solve_ufm(loss="ls", K=4, d=6, n=3, alpha=0.2)
    >>> sol.converged, bool(sol.grad_norm <= 1e-10)
    (True, True)
    """
    loss = losses.get(loss, **hyperparameters)
    rest: dict[str, Any] = {"lam_W": lam_W, "lam_H": lam_H, "lam_b": lam_b, "bias": bias, "model": model}
    rest["class_weights"] = class_weights
    if labels is None:
        K, n = 10 if K is None else K, 10 if n is None else n
        prob = Problem.balanced(loss, K=K, d=d, n=n, **rest)
    elif n is not None:
        raise ValueError(f"n: expected either n or labels, got both (n={n!r}); labels fix the counts")
    else:
        prob = Problem(loss, labels, K, d, **rest)
    start = init(prob, seed=seed, scale=scale)
    options: dict[str, Any] = {"max_steps": max_steps, "record": record, "reduced": reduced}
    return solve(prob, start, solver=solver, tol=tol, progress=progress, **options)
