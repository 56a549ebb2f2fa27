"""Equation (7) against a loop over samples, its symmetries, and what a problem refuses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import Traced, close, eps

import ufm
from ufm import Params, Problem, _derivatives, landscape, losses

K, D = 4, 6
COUNTS = (3, 2, 5, 2)
BIAS = {"free": (True, 0.0), "penalised": (True, 0.03), "absent": (False, 0.0)}


def problem(loss: Any = "ce", regime: str = "penalised", seed: int = 0, **changes: Any) -> Problem:
    """Imbalanced, shuffled, with unequal penalties: nothing cancels by accident."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(K), COUNTS))
    bias, lam_b = BIAS[regime]
    given = {"K": K, "d": D, "lam_W": 0.02, "lam_H": 0.007, "lam_b": lam_b, "bias": bias} | changes
    return Problem(loss, labels, **given)


def point(prob: Problem, seed: int = 1, scale: float = 1.0) -> Params:
    rng = np.random.default_rng(seed)
    W, H = rng.normal(size=(prob.K, prob.d)), rng.normal(size=(prob.d, prob.N))
    return Params(*(jnp.asarray(scale * x) for x in (W, H, prob.bias * rng.normal(size=prob.K))))


every_loss = pytest.mark.parametrize("name", losses.PAPER)
every_regime = pytest.mark.parametrize("regime", BIAS)


# --- the objective ------------------------------------------------------------------------------------


def one_sample(loss: losses.Loss, z: np.ndarray, k: int) -> np.longdouble:
    """Equations (3) to (6), as printed."""
    h = {name: np.longdouble(value) for name, value in loss.hyperparameters.items()}
    if loss.name == "mse":
        return h["kappa"] * (z[k] - h["beta"]) ** 2 + sum(z[j] ** 2 for j in range(len(z)) if j != k)
    p = np.exp(z) / np.exp(z).sum()
    if loss.name == "ce":
        return -np.log(p[k])
    if loss.name == "ls":
        target = np.full(len(z), h["alpha"] / len(z))
        target[k] += 1 - h["alpha"]
        return -(target * np.log(p)).sum()
    if loss.name == "fl":
        return -((1 - p[k]) ** h["gamma"]) * np.log(p[k])
    raise NotImplementedError(f"write down the paper's formula of {loss.name!r} here")


def by_loops(prob: Problem, params: Params) -> np.longdouble:
    """Equation (7), one sample and one entry at a time, in long doubles."""
    W, H, b = (np.asarray(x, dtype=np.longdouble) for x in params)
    total = np.longdouble(0)
    for j in range(prob.N):
        z = np.array([sum(W[k, i] * H[i, j] for i in range(prob.d)) + b[k] for k in range(prob.K)])
        total += one_sample(prob.loss, z, int(prob.labels[j])) / prob.N
    for weight, array in ((prob.lam_W, W), (prob.lam_H, H), (prob.lam_b, b)):
        total += np.longdouble(weight) / 2 * sum(x**2 for x in array.ravel())
    return total


@pytest.mark.float32
@every_loss
@every_regime
def test_the_objective_is_equation_7(name: str, regime: str) -> None:
    prob = problem(name, regime)
    close(prob(point(prob)), by_loops(prob, point(prob)), ulps=32)


@pytest.mark.float32
def test_without_a_bias_b_is_not_read() -> None:
    prob = problem(regime="absent")
    W, H, _ = point(prob)
    close(prob(Params(W, H, jnp.arange(float(K)))), prob(Params(W, H, jnp.zeros(K))), ulps=0)


@every_loss
def test_the_gradient_matches_finite_differences(name: str) -> None:
    prob = problem(name)
    x = point(prob)
    slope = jax.grad(prob)(x)
    rng = np.random.default_rng(2)
    for _ in range(3):
        v = Params(*(jnp.asarray(rng.normal(size=leaf.shape)) for leaf in x))
        h = 1e-4
        values = {}
        for s in (-2, -1, 1, 2):
            moved = [a + s * h * b for a, b in zip(x, v, strict=True)]
            values[s] = float(by_loops(prob, Params(*moved)))
        along = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)
        found = sum(float(jnp.vdot(a, b)) for a, b in zip(slope, v, strict=True))
        # fourth-order differences in doubles: eps f/h, about 1e-11
        close(found, along, ulps=1e6, scale=abs(along) + values[1])


@pytest.mark.parametrize("samples", [False, True])
@every_regime
def test_written_derivatives_are_those_of_the_objective(regime: str, samples: bool) -> None:
    prob = problem("fl", regime)
    if samples:
        prob = prob.replace(samples=np.arange(1.0, prob.columns + 1))
    at, along = (jax.tree.map(jnp.asarray, point(problem("fl", regime), seed)) for seed in (1, 2))
    for found, expected in (
        (_derivatives.value_and_gradient(prob, at), jax.value_and_grad(prob)(at)),
        (_derivatives.curvature(prob, at)(along), jax.jvp(jax.grad(prob), (at,), (along,))[1]),
    ):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            close(a, b, ulps=100, scale=1.0 + np.abs(b).max())


def test_labels_may_come_in_any_order_and_count() -> None:
    prob = problem()
    assert prob.counts.tolist() == list(COUNTS)
    assert prob.N == 12
    assert prob.n is None
    assert prob.size == K * D + D * prob.N + K
    assert problem(regime="absent").size == K * D + D * prob.N
    close(prob.lam, np.sqrt(0.02 * 0.007))
    assert Problem("ce", [2, 0, 1, 1], d=3).K == 3


def test_from_counts_takes_the_classes_in_order() -> None:
    prob = Problem.from_counts("ls", counts=[2, 4, 1], d=5, lam_W=0.1, lam_H=0.2, lam_b=0.3, alpha=0.25)
    assert prob.labels.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert (prob.counts.tolist(), prob.N, prob.K, prob.d) == ([2, 4, 1], 7, 3, 5)
    assert (prob.lam_W, prob.lam_H, prob.lam_b) == (0.1, 0.2, 0.3)
    assert prob.loss.hyperparameters == {"alpha": 0.25}
    assert not Problem.from_counts("mse", counts=np.array([3, 3]), bias=False).bias


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 0, 2], r"^counts: expected integers >= 1, got 0 of class 1; leave the class out"),
        ([3, 2, -1], "^counts: expected integers >= 1, got -1 of class 2"),
        ([3.0, 2.0], "^counts: expected integers, got dtype float64"),
        ([True, True], "^counts: expected integers, got dtype bool"),
        ([], r"^counts: expected a vector \(K,\) with K >= 2, got shape \(0,\)"),
        (7, r"^counts: expected a vector \(K,\) with K >= 2, got shape \(\)"),
        ([4], r"^counts: expected a vector \(K,\) with K >= 2, got shape \(1,\)"),
        ([[1, 2], [3]], r"^counts: expected a vector \(K,\) of integers >= 1"),
    ],
)
def test_wrong_counts_are_refused(counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem.from_counts("ce", counts=counts, d=4)


def test_balanced_uses_the_papers_order() -> None:
    prob = Problem.balanced("ls", K=3, d=4, n=2, lam_W=0.1, lam_H=0.2, lam_b=0.3, alpha=0.25)
    assert prob.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (prob.n, prob.N, prob.K, prob.d) == (2, 6, 3, 4)
    assert (prob.lam_W, prob.lam_H, prob.lam_b) == (0.1, 0.2, 0.3)
    assert prob.loss.hyperparameters == {"alpha": 0.25}
    assert "label smoothing(alpha=0.25)" in repr(prob)
    assert "n=2" in repr(prob)
    assert "no bias" in repr(problem(regime="absent"))
    assert "n_k=2..5" in repr(problem())


@pytest.mark.float32
@every_loss
def test_the_origin_is_critical_for_balanced_shift_invariant_losses(name: str) -> None:
    prob = Problem.balanced(name, K=3, d=4, n=2, lam_W=0.1, lam_H=0.2)
    slope = jax.grad(prob)(prob.zeros())
    assert not jnp.any(slope.W)
    assert not jnp.any(slope.H)
    if prob.loss.shift_invariant:
        close(slope.b, np.zeros(3), ulps=4, scale=1.0)


# --- symmetries ---------------------------------------------------------------------------------------


@pytest.mark.float32
@every_loss
@every_regime
def test_symmetries(name: str, regime: str) -> None:
    prob, rng = problem(name, regime), np.random.default_rng(3)
    W, H, b = point(prob)
    f = float(prob(Params(W, H, b)))
    Q = jnp.asarray(np.linalg.qr(rng.normal(size=(D, D)))[0])
    close(prob(Params(W @ Q.T, Q @ H, b)), f, ulps=64, name="rotation of the features")
    order = rng.permutation(prob.N)
    close(prob.replace(labels=prob.labels[order])(Params(W, H[:, order], b)), f, name="order of the samples")
    order = rng.permutation(K)
    renamed = prob.replace(labels=np.argsort(order).astype(np.int32)[prob.labels])
    close(renamed(Params(W[order], H, b[order])), f, name="names of the classes")
    if prob.bias and prob.lam_b == 0 and prob.loss.shift_invariant:
        close(prob(Params(W, H, b + 3.0)), f, ulps=64, name="shift of the bias")


@pytest.mark.float32
def test_a_shift_of_a_penalised_bias_changes_the_objective() -> None:
    prob = problem()
    W, H, b = point(prob)
    assert abs(prob(Params(W, H, b + 3.0)) - prob(Params(W, H, b))) > 1e-2


# --- jit, vmap, pytrees -------------------------------------------------------------------------------


@every_loss
def test_a_sweep_compiles_once(name: str) -> None:
    f = Traced(lambda prob, params: prob(params))
    x = point(problem(name))
    values = []
    for lam_W, lam_H, lam_b in ((0.1, 0.2, 0.3), (1e-3, 2e-3, 0.0), (5.0, 0.5, 1e-9)):
        prob = problem(name, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b)
        values.append((float(f(prob, x)), float(by_loops(prob, x))))
    for h, value in prob.loss.hyperparameters.items():
        prob = problem(losses.get(name, **{h: value * 0.5}))
        values.append((float(f(prob, x)), float(by_loops(prob, x))))
    prob = problem(name, seed=9)  # other labels
    values.append((float(f(prob, x)), float(by_loops(prob, x))))
    assert f.count == 1
    for found, expected in values:
        close(found, expected, ulps=32)


@pytest.mark.float32
def test_vmap_over_penalties_and_starts() -> None:
    prob = problem()
    grid = np.array([1e-3, 0.2, 4.0])
    x = point(prob)
    found = jax.jit(jax.vmap(lambda lam: prob.replace(lam_W=lam)(x)))(grid)
    close(found, [prob.replace(lam_W=lam)(x) for lam in grid])
    built = jax.vmap(lambda lam: Problem("ce", prob.labels, d=D, lam_W=lam, lam_H=0.007, lam_b=0.03)(x))(grid)
    close(built, found)
    starts = jax.vmap(lambda seed: ufm.init(prob, seed=seed))(jnp.arange(3))
    close(jax.vmap(prob)(starts), [prob(ufm.init(prob, seed=s)) for s in range(3)])


def test_a_problem_with_a_users_loss_may_be_built_while_jax_traces() -> None:
    x = point(problem())

    @jax.jit
    def value(lam: Any) -> Any:
        return problem(lambda z, k: -jax.nn.log_softmax(z)[k], lam_W=lam)(x)

    close(value(0.4), problem(lam_W=0.4)(x))


@pytest.mark.float32
def test_round_trip_through_a_pytree() -> None:
    prob = problem("ls")
    leaves, structure = jax.tree.flatten(prob)
    again = jax.tree.unflatten(structure, leaves)
    assert repr(again) == repr(prob)
    assert (again.K, again.d, again.bias) == (prob.K, prob.d, prob.bias)
    close(again(point(prob)), prob(point(prob)), ulps=0)
    assert structure == jax.tree.structure(problem("ls", lam_W=9.0, seed=4))
    assert structure != jax.tree.structure(problem("ls", "absent"))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(prob)]
    assert names == [".loss.alpha", ".labels", ".lam_W", ".lam_H", ".lam_b"]
    jax.tree.map(lambda _: None, prob)  # placeholders in leaves are not validated


def test_a_problem_prints_while_jax_traces() -> None:
    shown: list[str] = []
    jax.jit(lambda prob: shown.append(repr(prob)))(problem("ls"))
    assert "N=12" in shown[0]


def test_replace_refuses_unknown_fields() -> None:
    with pytest.raises(TypeError, match="no field lam_w"):
        problem().replace(lam_w=1.0)


# --- starts -------------------------------------------------------------------------------------------


@pytest.mark.float32
def test_init_is_reproducible_and_scaled(compilations: Any) -> None:
    prob = Problem.balanced("ce", K=20, d=30, n=20)
    first, again, other = (ufm.init(prob, seed=s) for s in (7, 7, 8))
    for a, b in zip(first, again, strict=True):
        close(a, b, ulps=0)
    assert not np.allclose(first.W, other.W)
    assert not np.allclose(first.W.ravel(), first.H.ravel()[:600])
    assert not np.any(first.b)
    assert [x.shape for x in first] == [(20, 30), (30, 400), (20,)]
    compilations()
    wide = ufm.init(prob, seed=7, scale=2.5)
    assert compilations() == 0  # seed and scale are leaves
    for W in (wide.W, wide.H):
        assert float(jnp.std(W)) == pytest.approx(2.5, rel=0.1)  # 600 numbers: 3 standard errors
        assert abs(float(jnp.mean(W))) < 0.3
    unit = ufm.init(prob, seed=7, scale=1.0)
    close(wide.H, 2.5 * unit.H, ulps=2)


@pytest.mark.float32
def test_check_params_accepts_what_is_array_like() -> None:
    prob = problem()
    W, H, b = (np.asarray(x) for x in point(prob))
    found = prob.check_params((W.tolist(), jnp.asarray(H), b))
    assert isinstance(found, Params)
    close(found.W, W, ulps=0)
    traced = jax.jit(lambda x: prob(prob.check_params(x)))(point(prob))
    close(traced, prob(point(prob)))


# --- misuse -------------------------------------------------------------------------------------------


NOT_ATTAINED = "the infimum is not attained"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"K": 1}, "^K: expected an integer >= 2, got 1"),
        ({"K": 2.0}, "^K: "),
        ({"d": 0}, "^d: expected an integer >= 1, got 0"),
        ({"d": None}, "^d: "),
        ({"d": True}, "^d: "),
        ({"lam_W": 0.0}, f"^lam_W: expected a finite number > 0, got 0.0; .*{NOT_ATTAINED}"),
        ({"lam_H": 0.0}, f"^lam_H: .*{NOT_ATTAINED}"),
        ({"lam_W": -1e-3}, "^lam_W: "),
        ({"lam_H": -1e-3}, "^lam_H: "),
        ({"lam_W": np.nan}, "^lam_W: "),
        ({"lam_H": np.inf}, "^lam_H: "),
        ({"lam_W": "5e-3"}, "^lam_W: "),
        ({"lam_W": np.array([0.1, 0.2])}, "^lam_W: "),
        ({"lam_b": -1e-9}, "^lam_b: expected a finite number >= 0"),
        ({"lam_b": np.nan}, "^lam_b: "),
        ({"lam_b": 0.1, "bias": False}, "^lam_b: expected 0 where bias=False, got 0.1"),
        ({"bias": "no"}, "^bias: expected True or False"),
        ({"loss": "focal"}, "^loss: .*did you mean 'fl'"),
        ({"loss": lambda z, k: z}, "^loss: expected a real scalar"),
    ],
)
def test_a_wrong_number_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problem(**changes)
    if "K" not in changes and changes.get("bias") != "no":
        with pytest.raises(ValueError, match=message):
            Problem.balanced(**({"K": 3, "d": 4, "n": 2} | changes))


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_n_must_be_a_positive_integer(n: Any) -> None:
    with pytest.raises(ValueError, match=r"^n: expected an integer"):
        Problem.balanced(K=3, d=4, n=n)


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ([0, 1, 2, 3], 3, r"^labels: expected classes in 0..2 \(K=3\), got 3"),
        ([0, 1, -1, 2], None, "^labels: expected classes in 0..2 .*got -1"),
        ([0, 1, 2**32 + 2], 3, "^labels: expected classes in 0..2 .*got 4294967298"),
        ([0, 1, 2**40], None, "^labels: .*got none of class 2"),
        ([0, 2, 2], 3, "^labels: .*got none of class 1; lower K or renumber"),
        ([0, 1, 1], 3, "^labels: .*got none of class 2"),
        ([1, 2, 2], None, "^labels: .*got none of class 0"),
        ([0.0, 1.0, 2.0], None, "^labels: expected integers, got dtype float64"),
        ([True, False], None, "^labels: expected integers, got dtype bool"),
        ([[0, 1], [2, 0]], None, r"^labels: expected a vector \(N,\) with N >= 1, got shape \(2, 2\)"),
        ([[0, 1], [2]], None, r"^labels: expected a vector \(N,\) of integers"),
        ([], None, "^labels: expected a vector"),
        ([0, 0, 0], None, "^K: expected an integer >= 2, got 1"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, given: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem("ce", labels, K=given, d=4)


def changed(**parts: Any) -> tuple[Any, ...]:
    return tuple(point(problem())._replace(**parts))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (changed(W=jnp.zeros((D, K))), r"^W: expected shape \(4, 6\), got \(6, 4\)"),
        (changed(H=jnp.zeros((12, D))), r"^H: expected shape \(6, 12\), got \(12, 6\)"),
        (changed(b=jnp.zeros((K, 1))), r"^b: expected shape \(4,\), got \(4, 1\)"),
        (changed(b=None), "^b: expected shape"),
        (changed(W=jnp.zeros((K, D), int)), "^W: expected a floating dtype, got int64"),
        (changed(H=np.zeros((D, 12), complex)), "^H: expected a floating dtype, got complex128"),
        (
            changed(W=jnp.full((K, D), jnp.nan)),
            "^W: expected finite values, got NaN or infinity in the start",
        ),
        (changed(b=jnp.full(K, jnp.inf)), "^b: expected finite values"),
        (changed()[:2], r"^params: expected Params\(W, H, b\), got tuple"),
        (None, r"^params: expected Params\(W, H, b\), got NoneType"),
    ],
)
def test_wrong_params_are_refused(params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problem().check_params(params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "^seed: "),
        ({"seed": 0.5}, "^seed: "),
        ({"seed": 2**63}, "^seed: expected an integer >= 0 and <= 9"),
        ({"scale": 0.0}, "^scale: "),
        ({"scale": np.nan}, "^scale: "),
    ],
)
def test_a_wrong_start_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ufm.init(problem(), **given)


def test_the_tolerances_can_fail() -> None:
    close(1.0, 1.0 + 4 * eps())
    with pytest.raises(AssertionError, match="error"):
        close(1.0, 1.0 + 64 * eps())
    with pytest.raises(AssertionError, match="shape"):
        close(np.ones(2), 1.0)
    with pytest.raises(AssertionError, match="not finite"):
        close(np.nan, 1.0)


# --- starts of any floating dtype ---------------------------------------------------------------------------


def _torch(x, **options):
    import torch

    return torch.tensor(np.asarray(x), **options)


KINDS = {
    "float32": lambda x: np.asarray(x, np.float32),
    "float16": lambda x: np.asarray(x, np.float16),
    "bfloat16": lambda x: jnp.asarray(x, jnp.bfloat16),
    "long double": lambda x: np.asarray(x, np.longdouble),
    "big-endian": lambda x: np.asarray(x, ">f8"),
    "big-endian float32": lambda x: np.asarray(x, ">f4"),
    "list": lambda x: np.asarray(x).tolist(),
    "not contiguous": lambda x: np.repeat(np.asarray(x), 2, axis=0)[::2],
    "torch": _torch,
    "torch with gradient": lambda x: _torch(x, requires_grad=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True], ids=["all", "W alone"])
def test_a_start_of_any_floating_dtype_is_the_problem_in_its_precision(kind, mixed):
    """float32 starts failed inside the compiled loop; W alone in float32 rounded the penalties to float32:
    objective .14902322958755 instead of .14902323154557, with a gradient norm of another function."""
    prob = Problem.balanced("ce", K=4, d=5, n=3)
    narrow = KINDS[kind]
    start = ufm.init(prob)
    start = Params(narrow(start.W), *(start[1:] if mixed else map(narrow, start[1:])))
    for solver in ("newton", "lbfgs"):
        sol = ufm.solve(prob, start, solver=solver)
        assert {str(x.dtype) for x in sol.params} == {"float64"}
        assert float(sol.objective) == pytest.approx(0.14902323154557, abs=1e-13)
        assert abs(float(_gradient_norm(prob, sol.params)) - float(sol.grad_norm)) <= 1e-12
    for found in (landscape.eigenvalues(prob, start), landscape.eigenvalues(prob, start, method="lanczos")):
        assert np.isfinite(found.values).all()
    origin = Params(*(narrow(np.zeros(np.shape(x))) for x in start))
    assert landscape.descend(prob, origin).certificate.is_global
    assert landscape.inertia(prob, origin).neg > 0


def _gradient_norm(prob, params):
    return jnp.sqrt(sum(jnp.sum(g * g) for g in jax.grad(prob)(params)))


def test_a_batch_of_directions_may_be_float32():
    prob = Problem.balanced("ce", K=4, d=5, n=3)
    at, rng = ufm.init(prob), np.random.default_rng(0)
    directions = Params(*(rng.normal(size=(2, *x.shape)).astype(np.float32) for x in at))
    images = landscape.hvp(prob, at, directions)
    assert images.W.dtype == np.float64
    one = landscape.hvp(prob, at, jax.tree.map(lambda x: x[1], directions))
    np.testing.assert_allclose(images.H[1], one.H, rtol=1e-12, atol=1e-14)


@pytest.mark.float32
def test_a_start_that_is_too_large_for_the_precision_is_named():
    prob = Problem.balanced("ce", K=4, d=5, n=3)
    huge = prob.zeros()._replace(W=np.full((4, 5), np.longdouble("1e4000")))
    if np.isfinite(huge.W).all():  # long double is wider than double here
        with pytest.raises(ValueError, match="W: expected finite values"):
            ufm.solve(prob, huge)
