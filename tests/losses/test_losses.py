"""The shelf of losses against the paper's formulas in 300-digit arithmetic, and against their axioms."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from loss_witnesses import (
    FORMULAS,
    VALUES,
    K,
    cases,
    conjugate_of,
    convex_at,
    curve_of,
    derivatives,
    every_loss,
    every_name,
    fenchel_young_of,
    logits,
    magnified,
    slope_of,
    value_of,
    witness,
)
from tolerances import Traced, close, eps

import ufm
from ufm import losses
from ufm._cli import main
from ufm.deep._plan import plan_run
from ufm.rigour import balls
from ufm.theory import profiles

# --- values and derivatives ---------------------------------------------------------------------------


def test_every_loss_of_the_shelf_has_a_witness() -> None:
    assert set(FORMULAS) == set(losses.LOSSES) > set(losses.PAPER)
    assert {name: tuple(VALUES.get(name, ())) for name in losses.LOSSES} == losses.HYPERPARAMETERS


@pytest.mark.float32
@every_loss
def test_values_and_derivatives_match_the_paper(loss: losses.Loss) -> None:
    alpha = float(loss.hyperparameters["alpha"]) if loss.name == "ls" else 0.0
    for z, k in logits():
        value, slope, curve = (f(loss, z, k) for f in (value_of, slope_of, curve_of))
        exact, exact_slope, exact_curve = derivatives(loss, z, k)
        size = magnified(loss, z)
        # alpha (z_k - mean z) and alpha (e_k - 1/K) are the only terms that may cancel against others
        close(value, exact, scale=abs(exact) * size + alpha * np.abs(z).max(), name="value")
        close(slope, exact_slope, scale=np.abs(exact_slope).max() * size + alpha, name="gradient")
        close(curve, exact_curve, ulps=64, scale=np.abs(exact_curve).max() * size, name="Hessian")


@every_loss
def test_samples_may_be_columns(loss: losses.Loss) -> None:
    """The losses of a matrix of logits, their gradients, and the product with their Hessians."""
    Z, k = np.stack([z for z, _ in logits()], axis=1), np.array([k for _, k in logits()])
    V = np.random.default_rng(0).normal(size=Z.shape)

    def together(Z: Any) -> Any:
        return jnp.sum(loss.columns(Z, k))

    def alone(z: Any, k: Any, v: Any) -> Any:
        return loss(z, k), *jax.jvp(lambda z: jax.grad(loss)(z, k), (z,), (v,))

    found = jax.jit(lambda Z, V: (loss.columns(Z, k), *jax.jvp(jax.grad(together), (Z,), (V,))))(Z, V)
    for name, a, b in zip(
        ("value", "gradient", "product"), found, jax.vmap(alone, (1, 0, 1), -1)(Z, k, V), strict=True
    ):
        size = np.maximum(np.abs(b).max(axis=0), 1.0) * max(1.0, float(np.abs(Z).max()))
        close(a, b, ulps=64, scale=np.broadcast_to(size, np.shape(b)), name=name)


@pytest.mark.parametrize("margin", [-100.0, -30.0, 30.0, 100.0])
@pytest.mark.parametrize("loss", [c for c in cases() if c.id == "ce-" or c.id.startswith("fl")])
def test_relative_accuracy_where_p_goes_to_0_and_1(loss: losses.Loss, margin: float) -> None:
    z = np.array([0.3, -0.8, 0.0, 0.5, -0.2])
    z[2] += margin
    value, slope, curve = (f(loss, z, 2) for f in (value_of, slope_of, curve_of))
    exact, exact_slope, exact_curve = derivatives(loss, z, 2)
    assert 0 < abs(exact) < np.inf
    size = magnified(loss, z)
    close(value, exact, scale=abs(exact) * size)
    close(slope, exact_slope, scale=np.abs(exact_slope) * size)  # each entry has relative accuracy
    close(curve[2, 2], exact_curve[2, 2], ulps=64, scale=abs(exact_curve[2, 2]) * size)
    close(curve, exact_curve, ulps=64, scale=np.abs(exact_curve).max() * size)


@pytest.mark.float32
@every_loss
def test_finite_at_huge_logits(loss: losses.Loss) -> None:
    for signs in itertools.product((-1e4, 0.0, 1e4), repeat=3):
        for k in (0, 4):
            z = np.array([*signs, -1e4, signs[2]])  # also a class far above or below all others
            if abs(witness(loss, z, k)) > 1e200:  # the exponential loss: larger than any float64
                continue
            for part in (value_of, slope_of, curve_of):
                assert np.isfinite(part(loss, z, k)).all(), (z, k)


@every_loss
def test_float32_stays_float32(loss: losses.Loss) -> None:
    for z, k in logits(4):
        narrow = jnp.asarray(z, jnp.float32)
        value, slope = value_of(loss, narrow, k), slope_of(loss, narrow, k)
        assert value.dtype == slope.dtype == jnp.float32
        wide = float(loss(narrow.astype(jnp.float64), k))
        size = abs(wide) * magnified(loss, z) + np.abs(z).max()
        close(value, np.float32(wide), ulps=4, scale=size)


# --- axioms -------------------------------------------------------------------------------------------


@pytest.mark.float32
@pytest.mark.parametrize("make", [lambda: losses.focal(0.0), lambda: losses.label_smoothing(0.0)])
def test_the_neutral_hyperparameter_gives_cross_entropy(make: Callable[[], losses.Loss]) -> None:
    loss, ce = make(), losses.cross_entropy()
    for z, k in logits():
        close(value_of(loss, z, k), value_of(ce, z, k), ulps=2)
        close(slope_of(loss, z, k), slope_of(ce, z, k), ulps=4)
        close(curve_of(loss, z, k), curve_of(ce, z, k), ulps=16)


@pytest.mark.float32
@every_loss
def test_shift_invariance_is_declared_truly(loss: losses.Loss) -> None:
    for z, k in logits():
        moved, still = value_of(loss, z + 7.0, k), value_of(loss, z, k)
        if loss.shift_invariant:
            close(moved, still, scale=abs(still) * magnified(loss, z + 7.0) + np.abs(z).max() + 7)
        else:
            assert abs(moved - still) > 1e-3


@every_loss
def test_convexity_is_declared_truly(loss: losses.Loss) -> None:
    lowest = []
    for z, k in logits(60):
        values = np.linalg.eigvalsh(curve_of(loss, z, k))
        largest = np.abs(values).max()
        if loss.convex:  # diag p - pp' is a difference of terms as large as the gradient
            assert values[0] >= -64 * eps() * (largest + np.abs(slope_of(loss, z, k)).max())
        elif largest > 0:
            lowest.append(values[0] / largest)
    if loss.convex:
        return
    if (region := loss.region()) is None or region.p_min > 0:  # p_min = 0: convex for these hyperparameters
        assert min(lowest) < -1e-3


@pytest.mark.float32
@every_loss
def test_infimum_is_declared_truly(loss: losses.Loss) -> None:
    for z, k in logits(60):
        assert float(value_of(loss, z, k)) >= loss.infimum


@every_loss
def test_permuting_the_classes_changes_nothing(loss: losses.Loss) -> None:
    rng = np.random.default_rng(1)
    for z, k in logits():
        order = rng.permutation(K)
        moved, still = value_of(loss, z[order], int(np.flatnonzero(order == k)[0])), value_of(loss, z, k)
        close(moved, still, scale=abs(still) * magnified(loss, z))


@pytest.mark.float32
@every_loss
def test_facts_are_declared_truly(loss: losses.Loss) -> None:
    """With some hyperparameters more may be true than is declared for all of them: alpha = 0."""
    found, default = profiles.measure(loss, K), losses.get(loss.name)
    for fact in ("shift_invariant", "symmetric", "of_p"):
        assert getattr(found, fact) or not getattr(loss, fact), fact
        assert getattr(profiles.measure(default, K), fact) == getattr(default, fact), fact


def that_state(member: Callable[[losses.Loss], Any]) -> Any:
    """The losses that know it."""
    return pytest.mark.parametrize("loss", [c for c in cases() if member(c.values[0]) is not None])


@pytest.mark.float32
@that_state(lambda loss: loss.region())
def test_the_region_of_convexity_is_exact(loss: losses.Loss) -> None:
    """The smallest eigenvalue changes its sign at p_min, and `convex_at` says so."""
    region, others = loss.region(), np.array([0.3, -0.8, 0.5, -0.2])
    for p in (region.p_min * 0.99, region.p_min * 1.01 + 1e-3, 0.9):
        if p < 1e-12:  # convex everywhere, or below what float64 tells from it
            continue
        z = np.append(np.log(p / (1 - p)) + np.log(np.exp(others).sum()), others)
        smallest = np.linalg.eigvalsh(curve_of(loss, z, 0) + np.ones((K, K)))[0]  # lifts the shift's zero
        assert (smallest >= 0) == (p >= region.p_min) == bool(convex_at(loss, z, 0)), p


@pytest.mark.float32
@that_state(lambda loss: loss.profile(K) if loss.shift_invariant else None)
def test_the_profile_is_that_of_the_loss(loss: losses.Loss) -> None:
    """MSE, which feels a shift, has a test of its own in `test_theory_contrastive`."""
    closed, direct, a = loss.profile(K), profiles.by_autodiff(loss, K), np.linspace(-3.0, 6.0, 19)
    for part in ("value", "slope", "curvature"):
        expected = getattr(direct, part)(a)
        close(getattr(closed, part)(a), expected, ulps=64, scale=1 + np.abs(expected), name=part)


@that_state(lambda loss: loss.in_balls(balls.ball))
def test_the_loss_in_balls_is_the_loss(loss: losses.Loss) -> None:
    found = loss.in_balls(balls.ball)
    for z, k in logits(6, scale=2.0):
        value, slope, curve = (np.asarray(f(loss, z, k)) for f in (value_of, slope_of, curve_of))
        point, size = balls.vector(z.tolist()), magnified(loss, z)
        close(float(found.value(point, k)), value, ulps=64, scale=(1 + abs(value)) * size)
        enclosed = [float(x) for x in found.gradient(point, k)]
        close(enclosed, slope, ulps=64, scale=(1 + np.abs(slope).max()) * size)
        rows = [[float(x) for x in row] for row in found.hessian(point, k)]
        close(rows, curve, ulps=256, scale=(1 + np.abs(curve).max()) * size)


# --- conjugates ---------------------------------------------------------------------------------------

conjugates = pytest.mark.parametrize("loss", [c for c in cases() if c.values[0].has_conjugate])  # type: ignore[union-attr]


@conjugates
def test_fenchel_young_holds_with_equality_at_the_gradient_only(loss: losses.Loss) -> None:
    points = logits()
    for (z, k), (other, _) in itertools.product(points, points):
        u = np.asarray(slope_of(loss, z, k))
        size = 1 + abs(float(value_of(loss, other, k))) + np.abs(u) @ (np.abs(other) + np.abs(z))
        by_definition = float(value_of(loss, other, k)) + float(conjugate_of(loss, u, k)) - u @ other
        found = float(fenchel_young_of(loss, other, u, k))
        close(found, by_definition, ulps=64, scale=size)
        if other is z:
            close(found, 0.0, ulps=1, scale=size)
        else:
            assert found > 0


@conjugates
def test_fenchel_young_does_not_cancel_near_the_gradient(loss: losses.Loss) -> None:
    """L(x) - L(z) - <grad L(z), x - z> of order 1e-18 keeps digits that the difference has lost."""
    z, k = np.array([0.3, -0.8, 1.1, 0.5, -0.2]), 2
    x = z + 1e-9 * np.array([1.0, -2.0, 0.5, 0.7, 1.3])
    step = (x - z).astype(np.longdouble)
    exact = step @ np.asarray(derivatives(loss, z, k)[2]).astype(np.longdouble) @ step / 2
    found = float(fenchel_young_of(loss, x, slope_of(loss, z, k), k))
    assert found == pytest.approx(
        float(exact), rel=1e-5, abs=0
    )  # the gradient is known to 1e-16, the step is 1e-9


@conjugates
def test_gradients_lie_in_the_domain_that_targets_describe(loss: losses.Loss) -> None:
    targets = loss.targets(K)
    for z, k in logits():
        if targets is not None:
            shares = np.asarray(slope_of(loss, z, k) + targets[k])
            assert (shares >= -eps()).all()
            close(shares.sum(), 1.0)


# --- hyperparameters ----------------------------------------------------------------------------------


@every_name
def test_hyperparameters_are_leaves(name: str) -> None:
    names = losses.HYPERPARAMETERS[name]
    f = Traced(lambda loss, z, k: jax.value_and_grad(loss)(z, k))
    z = np.linspace(-1.0, 1.0, K)
    swept = [
        losses.get(name, **dict(zip(names, v, strict=True)))
        for v in itertools.product(*(VALUES[name][h] for h in names))
    ]
    values = [float(f(loss, z, 1)[0]) for loss in swept]
    assert f.count == 1
    assert len(set(values)) == len(values)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *swept)
    if names:
        close(jax.vmap(lambda loss: loss(z, 1))(stacked), values)


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("gce", {"q": 0.5}),
        ("poly1", {"epsilon": 3.0}),
        ("taylor", {"terms": 5}),
        ("ww", {"margin": 0.7}),
    ],
)
def test_theory_compiles_nothing_for_new_hyperparameters(
    name: str, new: dict[str, float], compilations: Callable[[], int]
) -> None:
    """Of losses that state no optimum, once both kinds of transition have been seen."""

    def threshold(given: dict[str, float]) -> float:
        prob = ufm.Problem.balanced(name, **given, K=5, d=6, n=2)
        ufm.theory.global_optimum(prob)
        ufm.theory.contrastive_property(prob.loss, 5)
        return ufm.theory.threshold(prob).c_thr

    ends = [threshold({h: v[place] for h, v in VALUES[name].items()}) for place in (0, -1)]
    compilations()
    assert threshold(new) not in ends
    assert compilations() == 0


@every_name
def test_a_loss_survives_flattening(name: str) -> None:
    loss = losses.get(name)
    again = jax.tree.map(lambda x: x, loss)
    assert type(again) is type(loss)
    assert repr(again) == repr(loss)
    assert again.hyperparameters == loss.hyperparameters


# --- by name, everywhere ------------------------------------------------------------------------------

#: one hyperparameter of each that has any, off its default
GIVEN = {name: {h: values[-1] for h, values in VALUES.get(name, {}).items()} for name in losses.LOSSES}


@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name not in losses.PAPER])
def test_the_command_line_solves_every_name(name: str) -> None:
    options = [f"--{h}={value}" for h, value in GIVEN[name].items()]
    size = ["--K=4", "--d=5", "--n=1", "--lam=0.01", "--scale=1", "--max-steps=3", "--json"]
    told = CliRunner().invoke(main, ["sweep", f"--loss={name}", *options, *size])
    assert told.exit_code in (0, 1), told.output
    record = json.loads(told.stdout)
    assert record["problem"] | {"loss": name, **GIVEN[name]} == record["problem"]
    prob = ufm.Problem.balanced(name, **GIVEN[name], K=4, d=5, n=1, lam_W=0.01, lam_H=0.01)
    objective = record["records"][0]["objective"]
    assert objective < float(prob(ufm.init(prob, seed=0, scale=1.0)))


def test_a_name_and_its_hyperparameter_are_enough_for_solve_ufm() -> None:
    """The optimum of the same function, by theory."""
    sol = ufm.solve_ufm(loss="gce", q=0.7, K=4, d=6, n=2, lam_W=2e-3, lam_H=1e-3, bias=False)
    best = ufm.theory.global_optimum(sol.problem)
    close(sol.objective, best.objective, ulps=64)
    assert best.regime == "non-trivial"


@every_name
def test_a_name_trains(name: str) -> None:
    plan = plan_run("digits", net="mlp", width=0.25, loss=name, preset="small", hyperparameters=GIVEN[name])
    assert plan.loss.name == name
    assert plan.config.loss == name
    assert plan.config.hyperparameters == {h: float(v) for h, v in GIVEN[name].items()}


# --- a user's loss ------------------------------------------------------------------------------------


def _poly(z: jax.Array, k: Any) -> jax.Array:
    log_p = jax.nn.log_softmax(z)[k]
    return -log_p + 1 - jnp.exp(log_p)


def test_a_function_is_a_loss() -> None:
    loss = losses.get(_poly)
    losses.check(loss, K)
    z = np.linspace(-1.0, 1.0, K)
    close(loss(z, 1), _poly(z, 1))
    assert (loss.convex, loss.shift_invariant, loss.has_conjugate) == (False, False, False)
    assert "_poly" in repr(loss)
    declared = losses.custom(_poly, shift_invariant=True, infimum=0.0)
    assert declared.shift_invariant
    assert losses.get(declared) is declared


def test_a_function_may_be_checked_while_jax_traces() -> None:
    @jax.jit
    def value(temperature: Any) -> Any:
        loss = losses.get(lambda z, k: _poly(z / temperature, k))
        losses.check(loss, K)
        return loss(jnp.linspace(-1.0, 1.0, K), 1)

    close(value(2.0), _poly(jnp.linspace(-0.5, 0.5, K), 1))
    with pytest.raises(ValueError, match=r"^loss: expected a finite value"):
        jax.jit(lambda: losses.check(losses.get(lambda z, k: z[k] * jnp.nan), K))()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z, k: z, r"^loss: expected a real scalar.*shape \(5,\)"),
        (lambda z, k: None, "^loss: expected a real scalar"),
        (lambda z, k: k, "^loss: expected a real scalar"),
        (lambda z, k: jnp.sum(z) * jnp.nan, "^loss: expected a finite value"),
        (lambda z, k: jnp.sqrt(jnp.sum(z) - jnp.sum(z)), "^loss: expected a finite gradient"),
        (lambda z, k: jnp.abs(z[2]) ** 1.5, "^loss: expected a finite Hessian"),
        (lambda z, k: float(z[0]), "^loss: .*failed when traced by JAX"),
        (lambda z, k: np.log(np.asarray(z))[k], "^loss: .*failed when traced by JAX"),
        (lambda z: z[0], "^loss: .*failed when traced by JAX"),
        (
            lambda z, k: jax.lax.while_loop(lambda s: s < 1, lambda s: s + 1, z[k]),
            "^loss: .*not differentiable",
        ),
    ],
)
def test_a_function_that_is_no_loss_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.check(losses.get(function), K)


# --- misuse -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ls", {"alpha": 1.0}, r"^alpha: expected .* >= 0 and < 1, got 1.0"),
        ("ls", {"alpha": -0.1}, "^alpha: "),
        ("ls", {"alpha": np.nan}, "^alpha: "),
        ("ls", {"alpha": "0.1"}, "^alpha: "),
        ("ls", {"alpha": np.array([0.1, 0.2])}, "^alpha: "),
        ("fl", {"gamma": -1e-9}, "^gamma: "),
        ("fl", {"gamma": np.nan}, "^gamma: "),
        ("fl", {"gamma": np.inf}, "^gamma: "),
        ("mse", {"kappa": 0.0}, "^kappa: "),
        ("mse", {"kappa": np.nan}, "^kappa: "),
        ("mse", {"beta": -1.0}, "^beta: "),
        ("mse", {"beta": None}, "^beta: "),
        ("mse", {"beta": 1j}, "^beta: "),
        ("gce", {"q": 0.0}, "^q: "),
        ("sce", {"alpha": 0.0}, "^alpha: "),
        ("sce", {"beta": -1.0}, "^beta: "),
        ("poly1", {"epsilon": -1.1}, "^epsilon: "),
        ("taylor", {"terms": 0}, "^terms: "),
        ("taylor", {"terms": 2.5}, "^terms: expected a whole number from 1 to 10, got 2.5"),
        ("taylor", {"terms": 11}, "^terms: "),
        ("margin", {"margin": np.nan}, "^margin: "),
        ("temperature", {"temperature": 0.0}, "^temperature: "),
        ("logitnorm", {"temperature": -1.0}, "^temperature: "),
        ("ww", {"margin": 0.0}, "^margin: "),
        ("cs2", {"margin": -1.0}, "^margin: "),
        ("cs", {"margin": np.inf}, "^margin: "),
        ("exponentail", {}, "^loss: .*did you mean 'exponential'"),
        ("generalised CE", {}, "^loss: .*did you mean 'gce'"),
        ("ce", {"alpha": 0.1}, "^alpha: expected a hyperparameter of loss 'ce' \\(none\\)"),
        ("fl", {"alpha": 0.1}, "^alpha: expected a hyperparameter of loss 'fl' \\(gamma\\)"),
        ("focal", {}, "^loss: expected one of .*did you mean 'fl'"),
        ("cross-entropy", {}, "^loss: .*did you mean 'ce'"),
        ("label_smoothing", {}, "^loss: .*did you mean 'ls'"),
        ("MSE", {}, "^loss: .*did you mean 'mse'"),
        (None, {}, "^loss: expected a function"),
        (_poly, {"gamma": 1.0}, "^gamma: hyperparameters go with a loss given by name"),
    ],
)
def test_misuse_names_the_argument(name: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.get(name, **given)


def test_the_infimum_must_be_a_number() -> None:
    with pytest.raises(ValueError, match=r"^infimum: "):
        losses.custom(_poly, infimum=np.nan)
