"""The stage problem -> Solution: one loop for every solver, recorded or not, and its sweeps.

The loop runs in a *view* of the problem, which changes only the coordinates: features are rows
f_j = sqrt(samples_j) Q'h_j / stretch, and W is stretch W Q.

`balance` chooses the stretch so that both blocks carry the penalty sqrt(lam_W lam_H): L-BFGS then needs a
fifth of the steps, Newton half. `rotate` keeps min(d, K) feature dimensions. Feature components orthogonal to
the rows of W incur only the penalty, so they vanish at the optimum, and gradients and Hessians leave the row
space of W invariant; in coordinates of that space a step costs K/d of what it costs in R^d, for any loss.
`reduced` solves the problem of the class means. A model that is not bilinear runs in its own variables.
"""

from __future__ import annotations

import enum
import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ufm import _checks, _compile, _second_order, losses, metrics, solvers
from ufm._figure import plot
from ufm._problem import Params, Problem, Variables, init
from ufm._progress import Progress
from ufm._pytree import pytree_dataclass, static
from ufm._second_order import Evidence
from ufm._sheet import Printed, Sheet, digits, finite
from ufm.solvers import Point, Solver, dot, noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ufm.hessian.certificate import Certificate

#: rows that a recorded trajectory holds at most; longer ones are recorded every so many steps
HISTORY_ROWS = 10_000
#: strict saddles that one solve leaves at most; each is lower than the one before
MAX_ESCAPES = 100
#: a start with larger logits is scaled down: exp(-100) leaves nothing of a gradient or a curvature
SATURATED = 100.0


class Status(enum.IntEnum):
    """Why a solver stopped."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    STALLED = solvers.STALLED
    NON_FINITE = 4
    NOT_EXPANDABLE = 5
    STRICT_SADDLE = 6

    @property
    def message(self) -> str:
        """Cause and remedy."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "the gradient norm is within tol",
    Status.MAX_STEPS: "max_steps was reached; raise it, start from this solution, or try solver='newton'",
    Status.STALLED: "no step improves: the gradient is at its rounding floor; loosen tol (or, in "
    "float32, use float64)",
    Status.NON_FINITE: "the objective or gradient is not finite; the last finite point is kept: try a "
    "smaller scale of the start, or check the loss at large logits",
    Status.NOT_EXPANDABLE: "the class-mean solution, expanded, is no critical point of the full problem; "
    "solve with reduced=False",
    Status.STRICT_SADDLE: "the gradient is within tol, but the Hessian has a negative eigenvalue: this is a "
    "strict saddle and no minimum; solve with escape=True and more max_steps",
}


class History(NamedTuple):
    """A trajectory, one row every `stride` steps (rows: T)."""

    step: Int[Array, "*sweep T"]
    objective: Float[Array, "*sweep T"]
    grad_norm: Float[Array, "*sweep T"]  # of (W, H, b) in the problem's own coordinates
    nc1: Float[Array, "*sweep T"]
    nc2: Float[Array, "*sweep T"]
    nc3: Float[Array, "*sweep T"]


class _View(NamedTuple):
    """Coordinates y in which a solver runs; see the module's docstring."""

    problem: Problem  # with fewer feature dimensions and other penalties; its variables are `params(y)`
    root: Array | None  # (columns,) square root of the samples of each column, None: ones
    stretch: Array | None  # W = y_W Q' / stretch and F = stretch y_F Q', None: y is the model's own variables
    Q: Array | None  # (d, K) orthonormal, None: the identity

    def params(self, y: Any) -> Variables:
        """The variables of `problem`."""
        if self.stretch is None:
            return y
        W, F, b = y
        F = F if self.root is None else F / self.root[:, None]
        return Params(W, F.T, jnp.zeros(len(W), W.dtype) if b is None else b)

    def objective(self, y: Any) -> Array:
        return self.problem(self.params(y))

    def grad_norm(self, g: Any) -> Array:
        """|grad f| in the variables of the problem as it was given, from the gradient in y."""
        if self.stretch is None:
            return jnp.sqrt(dot(g, g))
        W, F, b = g
        square = self.stretch**2 * jnp.sum(W * W) + jnp.sum(F * F) / self.stretch**2
        return jnp.sqrt(square if b is None else square + jnp.sum(b * b))


def _first_point(view: _View, y: Any) -> Point:
    """The start; with logits above `SATURATED` it is shrunk along its ray, if that lowers the objective.

    Where every softmax is saturated, gradients and Hessians say nothing of the loss: Newton's step leads to
    the origin, and a trust region that follows a piecewise linear loss takes hundreds of steps.
    """
    if not view.problem.model.bilinear:
        return solvers.evaluate(view.objective, y)
    largest = jnp.max(jnp.abs(view.problem.logits(view.params(y))))
    t = jnp.sqrt(SATURATED / jnp.maximum(largest, SATURATED))

    def attempt(state: tuple[Array, Point]) -> tuple[Array, Point]:
        i, best = state
        r = jnp.where(i == 0, 1.0, t).astype(t.dtype)
        W, F, b = y
        at = solvers.evaluate(view.objective, (r * W, r * F, None if b is None else r**2 * b))
        better = (i == 0) | (at.f < best.f)
        return i + 1, jax.tree.map(lambda new, old: jnp.where(better, new, old), at, best)

    # a loop, so that the objective is compiled once for both attempts
    tries = jnp.where(largest > SATURATED, 2, 1)
    nothing = (jnp.asarray(0), Point(y, jnp.zeros_like(t), y))
    return jax.lax.while_loop(lambda state: state[0] < tries, attempt, nothing)[1]


def _view(prob: Problem, params: Variables, solver: Solver, reduced: bool) -> tuple[_View, Any]:
    """The view of a problem and the start in it."""
    if not prob.model.bilinear:
        return _View(prob, None, None, None), params
    base, H = (prob.means(), prob.class_means(params.H)) if reduced else (prob, params.H)
    dtype = params.W.dtype
    lam_W, lam_H, lam_b = (jnp.asarray(x, dtype) for x in (prob.lam_W, prob.lam_H, prob.lam_b))
    stretch = (lam_W / lam_H) ** 0.25 if solver.balance else jnp.ones((), dtype)
    root = None if base.samples is None else jnp.sqrt(base.samples).astype(dtype)
    W, F, b = params.W * stretch, H.T / stretch, params.b if prob.bias else None
    F = F if root is None else root[:, None] * F
    Q = None
    if prob.model.isotropic and (solver.rotate or reduced) and prob.d > prob.K:
        Q = _row_space(W, prob.class_means(params.H).T)
        W, F = W @ Q, F @ Q
    penalties = {"lam_W": lam_W / stretch**2, "lam_H": lam_H * stretch**2, "lam_b": lam_b}
    problem = base.replace(d=W.shape[1], **penalties)
    return _View(problem, root, stretch, Q), (W, F, b)


def _row_space(W: Array, means: Array) -> Array:
    """(d, K): an orthonormal basis of the rows of W, (K, d).

    If they are linearly dependent, it is completed with the class means of the features, (K, d), so that a
    start with W = 0 keeps the directions in which W will grow.
    """
    U = jnp.linalg.eigh(W @ W.T)[1]
    across = U.T @ W  # singular values times right singular vectors
    square = jnp.sum(across**2, axis=1)  # eigh's own eigenvalues are rounded at eps times the largest
    largest = jnp.max(square)
    active = square > (8 * len(W) * np.finfo(W.dtype).eps) ** 2 * largest
    rows = jnp.where(active, 1 / jnp.where(active, square, 1.0), 0.0)
    missing = (U * ~active) @ (U.T @ means)  # only the combinations of classes that W lacks
    missing -= ((missing @ across.T) * rows) @ across  # orthogonal to the rows of W
    size = jnp.sqrt(jnp.sum(missing**2))
    scale = jnp.sqrt(jnp.where(largest > 0, largest, 1.0)) / jnp.where(size > 0, size, 1.0)
    return jnp.linalg.qr((W + scale * missing).T)[0]


def _params(prob: Problem, view: _View, y: Any, reduced: bool) -> Variables:
    """The variables of the problem as it was given."""
    params = view.params(y)
    if view.stretch is None:
        return params
    W, H, b = params
    W, H = W / view.stretch, H * view.stretch
    if view.Q is not None:
        W, H = W @ view.Q.T, view.Q @ H
    return Params(W, H[:, prob.labels] if reduced else H, b)


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
    view, y = _view(prob, params, solver, reduced)
    patience = getattr(solver, "patience", solver.max_steps)

    def record(history: History | None, at: Point, steps: Array, norm: Array) -> History | None:
        if history is None:
            return None
        return _written(history, _params(prob, view, at.y, reduced), prob, steps, at.f, norm, options)

    if run is None:
        at = _first_point(view, y)
        norm, steps = view.grad_norm(at.g), jnp.asarray(before.steps)
        empty = jnp.full(options.rows, jnp.nan, at.f.dtype)
        history = before.history
        if options.rows:  # the first row is the start as it was given, not as the view has it
            f, g = jax.value_and_grad(prob)(params)
            if history is None:
                history = History(jnp.zeros(options.rows, steps.dtype), *[empty] * 5)
            history = _written(history, params, prob, steps, f, jnp.sqrt(dot(g, g)), options)
        far = jnp.asarray(False)
        status = _judged(at, norm, jnp.asarray(0), far, steps >= last, tol, solver)
        best, idle = (at.f, norm), jnp.asarray(0)
        run = _Run(at, solver.init(view.objective, at), steps, status, norm, far, best, idle, history)

    def step(run: _Run) -> _Run:
        at, memory, flag = solver.step(view.objective, run.at, run.memory)
        norm, steps, within = view.grad_norm(at.g), run.steps + 1, run.grad_norm <= tol
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


def _outcome(prob: Problem, view: _View, run: _Run, tol: Array, reduced: bool) -> Outcome:
    params, status = _params(prob, view, run.at.y, reduced), run.status
    objective, norm = run.at.f, run.grad_norm
    problem, at = view.problem, view.params(run.at.y)
    if reduced:  # the answer counts only if it is one of the full problem
        problem = problem.replace(labels=prob.labels, samples=prob.samples)
        at = at._replace(H=at.H[:, prob.labels])
        full = solvers.evaluate(problem, at)
        g = full.g
        objective, norm = full.f, view.grad_norm((g.W, g.H, g.b if prob.bias else None))
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
    return Evidence(G @ G.T, convex & prob.model.bilinear)


compiled_run = _compile.jit(_run, static_argnames=("options",))


def run_once(
    prob: Problem, params: Variables, tol: Array, last: Array, solver: Solver, reduced: bool
) -> Outcome:
    """A whole run without a record: the sweep's traced body."""
    return _run(prob, params, None, Before(), tol, last, last, Options(solver, reduced, 0, 1))[0]


# --- records --------------------------------------------------------------------------------------


@pytree_dataclass
class Solution(Printed):
    """Where a solver stopped, why, and the problem it stands for.  Prints and plots itself."""

    problem: Problem
    params: Variables  # of the problem's model
    objective: Any  # f
    grad_norm: Any  # |grad f|, Euclidean over (W, H, b)
    code: Any  # the `Status` as a number
    steps: Any
    tol: Any
    history: History | None
    solver: Solver = static()
    reduced: bool = static()

    @property
    def effective(self) -> Params:
        """Classifier, features and bias; where both factors are free these are the variables themselves."""
        return self.problem.model.effective(self.problem, self.params)

    @property
    def W(self) -> Float[Array, "K d"]:
        """Classifier, one row a class."""
        return self.effective.W

    @property
    def H(self) -> Float[Array, "d N"]:
        """Features, one column a sample."""
        return self.effective.H

    @property
    def b(self) -> Float[Array, " K"]:
        """Bias."""
        return self.effective.b

    @property
    def status(self) -> Status:
        """Why the solver stopped; `status.message` has cause and remedy."""
        return Status(int(self.code))

    @property
    def converged(self) -> bool:
        """The gradient norm is within `tol`."""
        return self.status is Status.CONVERGED

    @functools.cached_property
    def metrics(self) -> metrics.NeuralCollapse:
        """NC1-NC4 of the solution, as the paper defines them."""
        return metrics.of_params(self.effective, self.problem.labels)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """A rigorous upper bound on f - f* here (`landscape.certificate`)."""
        from ufm.hessian.certificate import certificate

        return certificate(self.problem, self.params)

    def sheet(self, certificate: Certificate | None = None) -> Sheet:
        """Problem, objective, gradient norm, status with its remedy, NC1-NC3, and a certificate if given."""
        if not self._is_concrete():
            return Sheet("Solution of a batch of problems, or inside a JAX transformation", (), [], [])
        name, nc = self.status.name.lower().replace("_", " "), self.metrics
        rows = [
            ("problem", self.problem.describe()),
            ("objective", digits(self.objective)),
            ("|grad f|", f"{float(self.grad_norm):.1e}  (tol {float(self.tol):.0e})"),
            ("status", name if self.converged else f"{name}: {self.status.message}"),
            ("steps", f"{int(self.steps)} of {self.solver.name}" + ", reduced to class means" * self.reduced),
            ("NC1 NC2 NC3", "  ".join(f"{float(x):.1e}" for x in (nc.nc1, nc.nc2, nc.nc3))),
            ("certificate", "sol.certificate bounds f - f*" if certificate is None else certificate.brief()),
        ]
        return Sheet("Solution", (), rows, [])

    def _is_concrete(self) -> bool:
        leaves = (self.code, self.objective, self.problem.lam_W)
        return all(np.ndim(x) == 0 and not isinstance(x, jax.core.Tracer) for x in leaves)

    def to_dict(self) -> dict[str, Any]:
        """The solution as JSON, without its arrays; `why` gives the reason of each null."""
        nc = self.metrics
        numbers = {"objective": self.objective, "grad_norm": self.grad_norm}
        measured = {"nc1": nc.nc1, "nc2": nc.nc2, "nc3": nc.nc3, "nc4": nc.nc4}
        data: dict[str, Any] = {name: finite(value) for name, value in numbers.items()}
        data |= {
            "tol": float(self.tol),
            "converged": self.converged,
            "status": self.status.name.lower(),
            "message": self.status.message,
            "steps": int(self.steps),
            "solver": self.solver.name,
            "reduced": self.reduced,
        }
        data |= {name: finite(value) for name, value in measured.items()}
        why = {n: _why_null(n, x) for n, x in (numbers | measured).items() if data[n] is None}
        return data | ({"why": why} if why else {})

    def plot(self) -> Figure:
        """A matplotlib figure: Gram matrices of W and H, singular values, and the trajectory if recorded."""
        return plot(self)


def _why_null(name: str, value: Any) -> str:
    if name == "nc1" and float(value) == math.inf:
        return "infinite: the class means are all equal up to rounding"
    return f"not finite: {float(value)}"


# --- the verbs ------------------------------------------------------------------------------------


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
    goes on. A start whose logits exceed `SATURATED` is first scaled down along its ray.

    Args:
        prob: the problem.
        params: the start, `Params(W, H, b)`; default `init(prob)`.
        solver: a name of `solvers.SOLVERS` or a solver object.
        tol: bound on the Euclidean norm of the gradient in (W, H, b).  Newton, once within it, takes one
            step more, which being quadratic leaves little but rounding.
        max_steps: the solver's own default where None.
        record: keep the trajectory of objective, gradient norm and NC1-NC3 in `.history`.
        reduced: solve for the class means in min(d, K) dimensions, weighted by the counts, and expand.
            Exact where the loss is convex in z: f is then strictly convex in each h_j, so that all samples
            of a class coincide at every critical point.  The answer is checked on the full problem.
        escape: leave strict saddles. With False the solver stops at one, with the status STRICT_SADDLE.
        progress: True shows a bar, False none, None one after two seconds where somebody looks.

    The labels' order, penalties, hyperparameters, start, `tol` and `max_steps` (unless recorded) compile
    nothing anew. Failure is a `status` of the result, with the last finite iterate kept.

    Raises:
        ValueError: an unknown solver, a start of wrong shape, dtype or with NaN, tol or max_steps out of
            range, or `reduced` for a loss that is not convex.
    """
    method = solvers.get(solver)
    tol = float(_checks.real("tol", tol, above=0.0))
    max_steps = method.max_steps if max_steps is None else _checks.integer("max_steps", max_steps, least=1)
    check_reduced(prob, reduced)
    params = init(prob) if params is None else prob.check_params(params)
    if not prob.bias and np.any(np.asarray(params.b)):
        raise ValueError("b: expected zeros where bias=False, got a nonzero start; drop it or set bias=True")
    stride = -(-max_steps // HISTORY_ROWS)
    rows = max_steps // stride + 1 if record else 0
    options = Options(method, reduced, rows, stride)

    with Progress(f"{method.name}", max_steps, progress) as bar:
        outcome = _minimised(prob, params, Before(), tol, max_steps, options, bar)
        outcome = to_second_order(prob, outcome, tol, max_steps, options, escape, bar)
    return _solution(prob, outcome, tol, options)


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
    chunk = _first_chunk(prob, options.solver, options.reduced)
    done = int(before.steps)
    while True:
        began = time.perf_counter()
        limit = min(done + chunk, last)
        outcome, run = compiled_run(prob, params, run, before, tol, limit, last, options)
        if limit == last or int(outcome.status) != Status.RUNNING:
            return outcome
        done = limit
        bar.update(done, f"|grad| {float(outcome.grad_norm):.1e} (to {tol:.0e})")
        # about half a second between looks, whatever a step costs
        seconds = time.perf_counter() - began
        chunk = max(1, int(chunk * min(8.0, 0.5 / max(seconds, 1e-3))))


def _solution(prob: Problem, outcome: Outcome, tol: float, options: Options) -> Solution:
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
    )


def _first_chunk(prob: Problem, method: Solver, reduced: bool) -> int:
    """Steps before the host first looks: some seconds of work at 1e10 operations per second."""
    columns = prob.K if reduced else prob.N
    products = 20 if isinstance(method, solvers.Newton) else 2
    width = min(prob.d, prob.K) if reduced or method.rotate else prob.d
    cost = products * 12 * prob.K * width * columns / 1e10
    return max(1, min(method.max_steps, int(2.0 / cost)))


def _trim(history: History, steps: int, stride: int) -> History:
    return History(*(h[: steps // stride + 1] for h in map(np.asarray, history)))  # type: ignore[arg-type]


def check_reduced(prob: Problem, reduced: bool) -> None:
    if not reduced:
        return
    if not prob.model.bilinear:
        raise ValueError(f"reduced: expected two free factors, got model={prob.model!r}; use reduced=False")
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
    bias: bool = True,
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

    `n` samples (default 10) for each of `K` classes (default 10), or any `labels`; `alpha`, `gamma`,
    `kappa`, `beta` go to the loss. See `Problem`, `init` and `solve` for the rest.

    >>> import ufm
    >>> sol = ufm.solve_ufm(loss="ls", K=4, d=6, n=3, alpha=0.2)
    >>> sol.converged, bool(sol.grad_norm <= 1e-10)
    (True, True)
    """
    loss = losses.get(loss, **hyperparameters)
    penalties: dict[str, Any] = {"lam_W": lam_W, "lam_H": lam_H, "lam_b": lam_b, "bias": bias}
    if labels is None:
        K, n = 10 if K is None else K, 10 if n is None else n
        prob = Problem.balanced(loss, K=K, d=d, n=n, **penalties)
    elif n is not None:
        raise ValueError(f"n: expected either n or labels, got both (n={n!r}); labels fix the counts")
    else:
        prob = Problem(loss, labels, K, d, **penalties)
    start = init(prob, seed=seed, scale=scale)
    options: dict[str, Any] = {"max_steps": max_steps, "record": record, "reduced": reduced}
    return solve(prob, start, solver=solver, tol=tol, progress=progress, **options)
