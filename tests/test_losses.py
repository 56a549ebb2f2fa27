"""The shelf of losses against the paper's formulas in 300-digit arithmetic, and against their axioms."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import Traced, close, eps

from ufm import losses

K = 5

# --- the witness: equations (3) to (6) of the paper, written down once more, in decimals --------------


def _shares(z: list[Decimal]) -> list[Decimal]:
    weights = [v.exp() for v in z]
    return [w / sum(weights) for w in weights]


def _ce(z: list[Decimal], k: int) -> Decimal:
    return -_shares(z)[k].ln()


def _ls(z: list[Decimal], k: int, alpha: Decimal) -> Decimal:
    p = _shares(z)
    return -(1 - alpha) * p[k].ln() - alpha / len(z) * sum(v.ln() for v in p)


def _fl(z: list[Decimal], k: int, gamma: Decimal) -> Decimal:
    p = _shares(z)
    others = sum((v for j, v in enumerate(p) if j != k), Decimal(0))
    return -(others**gamma) * p[k].ln()


def _mse(z: list[Decimal], k: int, kappa: Decimal, beta: Decimal) -> Decimal:
    return kappa * (z[k] - beta) ** 2 + sum(v**2 for j, v in enumerate(z) if j != k)


PAPER: dict[str, Callable[..., Decimal]] = {"ce": _ce, "ls": _ls, "fl": _fl, "mse": _mse}
VALUES = {
    "alpha": (0.0, 0.1, 0.9),
    "gamma": (0.0, 0.3, 1.0, 3.0),
    "kappa": (0.5, 5.0),
    "beta": (0.7, 15.0),
}


def witness(loss: losses.Loss, z: np.ndarray, k: int, shift: dict[int, Decimal] | None = None) -> Decimal:
    """The paper's formula at z (exact doubles), with a decimal shift of some coordinates."""
    logits = [Decimal(float(v)) for v in z]
    for i, h in (shift or {}).items():
        logits[i] += h
    return PAPER[loss.name](logits, k, *(Decimal(float(v)) for v in loss.hyperparameters.values()))


def derivatives(loss: losses.Loss, z: np.ndarray, k: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Value, gradient and Hessian; the differences of 300-digit numbers are exact to double precision."""
    with localcontext() as context:
        context.prec = 300  # 1e-174 at the extreme margins below, 1e-60 for a second difference, 20 digits
        h, n = Decimal("1e-30"), len(z)
        value = witness(loss, z, k)
        up = [witness(loss, z, k, {i: h}) for i in range(n)]
        down = [witness(loss, z, k, {i: -h}) for i in range(n)]
        slope = np.array([float((u - d) / (2 * h)) for u, d in zip(up, down, strict=True)])
        curve = np.empty((n, n))
        for i in range(n):
            curve[i, i] = float((up[i] - 2 * value + down[i]) / h**2)
            for j in range(i):
                both = [witness(loss, z, k, {i: s * h, j: t * h}) for s in (1, -1) for t in (1, -1)]
                curve[i, j] = curve[j, i] = float((both[0] - both[1] - both[2] + both[3]) / (4 * h**2))
        return np.longdouble(str(value)), slope, curve


def cases() -> list[Any]:
    """Every loss of the shelf with every combination of its hyperparameters' values."""
    found = []
    for name, names in losses.HYPERPARAMETERS.items():
        for values in itertools.product(*(VALUES[h] for h in names)):
            loss = losses.get(name, **dict(zip(names, values, strict=True)))
            found.append(pytest.param(loss, id=f"{name}-" + "-".join(f"{v:g}" for v in values)))
    return found


# one compilation a member of the shelf: hyperparameters are leaves
value_of = jax.jit(lambda loss, z, k: loss(z, k))
slope_of = jax.jit(lambda loss, z, k: jax.grad(loss)(z, k))
curve_of = jax.jit(lambda loss, z, k: jax.hessian(loss)(z, k))
conjugate_of = jax.jit(lambda loss, u, k: loss.conjugate(u, k))
fenchel_young_of = jax.jit(lambda loss, z, u, k: loss.fenchel_young(z, u, k))

every_loss = pytest.mark.parametrize("loss", cases())
every_name = pytest.mark.parametrize("name", losses.LOSSES)


def logits(count: int = 6, scale: float = 3.0) -> list[tuple[np.ndarray, int]]:
    """Random logits with random classes; a third of them have p_k near 0 or 1."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        z, k = scale * rng.normal(size=K), int(rng.integers(K))
        z[k] += (0, 0, 0, 0, 25, -25)[i % 6]
        found.append((z, k))
    return found


def magnified(loss: losses.Loss, z: np.ndarray) -> float:
    """Relative error of exp(-(1 + gamma) q) per rounding of q: what no formula in doubles can avoid."""
    return 1 + (1 + float(loss.hyperparameters.get("gamma", 0.0))) * float(np.abs(z).max())


# --- values and derivatives ---------------------------------------------------------------------------


def test_every_loss_of_the_shelf_has_a_witness() -> None:
    assert set(PAPER) == set(losses.LOSSES)
    assert {h for names in losses.HYPERPARAMETERS.values() for h in names} <= set(VALUES)


@every_loss
def test_values_and_derivatives_match_the_paper(loss: losses.Loss) -> None:
    alpha = float(loss.hyperparameters.get("alpha", 0.0))
    for z, k in logits():
        value, slope, curve = (f(loss, z, k) for f in (value_of, slope_of, curve_of))
        exact, exact_slope, exact_curve = derivatives(loss, z, k)
        size = magnified(loss, z)
        # alpha (z_k - mean z) and alpha (e_k - 1/K) are the only terms that may cancel against others
        close(value, exact, scale=abs(exact) * size + alpha * np.abs(z).max(), name="value")
        close(slope, exact_slope, scale=np.abs(exact_slope).max() * size + alpha, name="gradient")
        close(curve, exact_curve, ulps=64, scale=np.abs(exact_curve).max() * size, name="Hessian")


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


@every_loss
def test_finite_at_huge_logits(loss: losses.Loss) -> None:
    for signs in itertools.product((-1e4, 0.0, 1e4), repeat=3):
        for k in (0, 4):
            z = np.array([*signs, -1e4, signs[2]])  # also a class far above or below all others
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


@pytest.mark.parametrize("make", [lambda: losses.focal(0.0), lambda: losses.label_smoothing(0.0)])
def test_the_neutral_hyperparameter_gives_cross_entropy(make: Callable[[], losses.Loss]) -> None:
    loss, ce = make(), losses.cross_entropy()
    for z, k in logits():
        close(value_of(loss, z, k), value_of(ce, z, k), ulps=2)
        close(slope_of(loss, z, k), slope_of(ce, z, k), ulps=4)
        close(curve_of(loss, z, k), curve_of(ce, z, k), ulps=16)


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
        lowest.append(values[0] / np.abs(values).max())
    if loss.convex:
        assert min(lowest) >= -64 * eps()
    elif float(loss.hyperparameters.get("gamma", 1.0)) > 0:  # gamma = 0 is cross-entropy
        assert min(lowest) < -1e-3


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
        for v in itertools.product(*(VALUES[h] for h in names))
    ]
    values = [float(f(loss, z, 1)[0]) for loss in swept]
    assert f.count == 1
    assert len(set(values)) == len(values)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *swept)
    if names:
        close(jax.vmap(lambda loss: loss(z, 1))(stacked), values)


@every_name
def test_a_loss_survives_flattening(name: str) -> None:
    loss = losses.get(name)
    again = jax.tree.map(lambda x: x, loss)
    assert type(again) is type(loss)
    assert repr(again) == repr(loss)
    assert again.hyperparameters == loss.hyperparameters


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
