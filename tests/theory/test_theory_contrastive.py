"""Definition 1 decided for every loss of the shelf, each against its own definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from tolerances import close

from ufm import losses, theory
from ufm.theory import contrastive

K = 5


def exponential(z: Any, k: Any) -> Any:
    return losses.exponential()(z, k)


def one_vs_all(z: Any, k: Any) -> Any:
    return losses.one_vs_all()(z, k)


#: The same functions as losses of the shelf, and the losses themselves, which state more.
SAME: dict[str, losses.Loss] = {
    "generalised ce": losses.get("gce"),
    "symmetric ce": losses.get("sce"),
    "poly-1, 1": losses.get("poly1"),
    "poly-1, 2": losses.get("poly1", epsilon=2.0),
    "taylor-2": losses.get("taylor"),
    "mean absolute error": losses.get("mae"),
}
USER_LOSSES: dict[str, Any] = {
    name: losses.custom(lambda z, k, loss=loss: loss(z, k)) for name, loss in SAME.items()
}

# --- witnesses: each loss as its paper defines it, in numbers of many digits ---------------------------

Witness = Callable[[list[Any], int], Any]


def _softmax(z: list[Any]) -> list[Any]:
    powers = [mp.exp(v) for v in z]
    return [v / mp.fsum(powers) for v in powers]


def _entropy(z: list[Any], k: int, target: dict[int, Any] | None = None) -> Any:
    """Cross-entropy of softmax(z) with e_k, or with the given targets."""
    p = _softmax(z)
    return -mp.fsum(share * mp.log(p[j]) for j, share in (target or {k: 1}).items())


def _taylor(z: list[Any], k: int, terms: int) -> Any:
    """-log p = sum_i (1 - p)^i / i, cut."""
    return mp.fsum((1 - _softmax(z)[k]) ** i / i for i in range(1, terms + 1))


def _reverse(z: list[Any], k: int, log_0: int) -> Any:
    """Cross-entropy with labels and predictions exchanged."""
    return -mp.fsum(p * (0 if j == k else log_0) for j, p in enumerate(_softmax(z)))


def _sigmoid(v: Any) -> Any:
    return 1 / (1 + mp.exp(-v))


def _margins(z: list[Any], k: int) -> list[Any]:
    return [z[k] - v for j, v in enumerate(z) if j != k]


def _hinges(z: list[Any], k: int) -> list[Any]:
    return [max(1 - m, mp.mpf(0)) for m in _margins(z, k)]


OTHERS: dict[str, Witness] = {
    "gce": lambda z, k: (1 - _softmax(z)[k] ** mp.mpf("0.7")) / mp.mpf("0.7"),
    "sce": lambda z, k: _entropy(z, k) / 10 + _reverse(z, k, -4),
    "poly1": lambda z, k: _entropy(z, k) + _taylor(z, k, 1),
    "poly1, epsilon=2": lambda z, k: _entropy(z, k) + 2 * _taylor(z, k, 1),
    "taylor": lambda z, k: _taylor(z, k, 2),
    "mae": lambda z, k: mp.fsum(abs((j == k) - p) for j, p in enumerate(_softmax(z))),
    "margin": lambda z, k: _entropy([v - (j == k) for j, v in enumerate(z)], k),
    "temperature": lambda z, k: _entropy([2 * v for v in z], k),
    "logitnorm": lambda z, k: _entropy([v / mp.norm(z) for v in z], k),
    "ova": lambda z, k: -mp.fsum(mp.log(_sigmoid(v if j == k else -v)) for j, v in enumerate(z)),
    "exponential": lambda z, k: mp.fsum(mp.exp(-m) for m in _margins(z, k)),
    "ww": lambda z, k: mp.fsum(h**2 for h in _hinges(z, k)),
    "cs2": lambda z, k: max(_hinges(z, k)) ** 2,
    "cs": lambda z, k: max(_hinges(z, k)),
}
ALPHA, KAPPA, BETA = mp.mpf(0.1), 1, 15  # the shelf's defaults, the double that 0.1 is


def _smoothed(z: list[Any], k: int) -> Any:
    return _entropy(z, k, {j: (1 - ALPHA) * (j == k) + ALPHA / len(z) for j in range(len(z))})


SHELF: dict[str, tuple[Witness, str]] = {  # and the tests that it fails at K = 5
    "ce": (_entropy, ""),
    "ls": (_smoothed, ""),
    "fl": (lambda z, k: (1 - _softmax(z)[k]) ** 3 * _entropy(z, k), ""),
    "mse": (lambda z, k: mp.fsum(KAPPA * (v - BETA) ** 2 if j == k else v**2 for j, v in enumerate(z)), "T1"),
}
LOSSES = {name: losses.get(name) for name in losses.LOSSES} | {"poly1, epsilon=2": losses.poly1(2.0)}
WITNESS: dict[str, Witness] = {name: witness for name, (witness, _) in SHELF.items()} | OTHERS
FAILURES = {name: list(loss.fails) for name, loss in LOSSES.items()}
ROUGH = [name for name, loss in LOSSES.items() if not loss.smooth]
every_loss = pytest.mark.parametrize("name", LOSSES)


def exact(name: str, z: Any, k: int) -> Any:
    """The definition at logits z, to 40 digits."""
    with mp.workdps(40):
        return +WITNESS[name]([mp.mpf(float(v)) for v in z], int(k))


def slope(name: str, z: Any, k: int) -> np.ndarray:
    """Central differences of the definition, with 20 digits to spare."""
    with mp.workdps(60):
        h, at = mp.mpf("1e-20"), [mp.mpf(float(v)) for v in z]
        ends = ([*at[:j], at[j] + s * h, *at[j + 1 :]] for j in range(len(at)) for s in (1, -1))
        values = [WITNESS[name](end, int(k)) for end in ends]
        return np.array(
            [float((up - down) / (2 * h)) for up, down in zip(values[::2], values[1::2], strict=True)]
        )


def points(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and classes; in a third of them the target is far ahead or far behind."""
    rng = np.random.default_rng(3)
    z, k = 2 * rng.normal(size=(count, K)), rng.integers(K, size=count)
    z[np.arange(count), k] += np.resize([0, 0, 0, 0, 8, -8], count)
    return z, k


def test_every_loss_has_a_witness() -> None:
    assert set(SHELF) == set(losses.PAPER)
    assert set(WITNESS) == set(LOSSES)
    assert all(FAILURES[name] == fails.split() for name, (_, fails) in SHELF.items())
    assert all(loss.source[-4:].isdigit() and loss.formula for loss in LOSSES.values())


@every_loss
def test_the_loss_is_the_one_defined(name: str) -> None:
    """Value and gradient; random logits keep off the kinks of hinges."""
    z, k = points(18)
    both = jax.jit(jax.vmap(jax.value_and_grad(LOSSES[name])))(jnp.asarray(z), jnp.asarray(k))
    for i, (value, gradient) in enumerate(zip(*both, strict=True)):
        expected, expected_slope = float(exact(name, z[i], k[i])), slope(name, z[i], k[i])
        # 1 - p of a log-softmax has the rounding of the logits, and exp(-margin) a multiple of it
        size = (1 + np.abs(z[i]).max()) * max(1.0, abs(expected))
        close(value, expected, ulps=16, scale=size, name="value")
        close(
            gradient,
            expected_slope,
            ulps=32,
            scale=size * max(1.0, np.abs(expected_slope).max()),
            name="slope",
        )


# --- verdicts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decided() -> dict[str, theory.ContrastiveProperty]:
    return {name: theory.contrastive_property(loss, K) for name, loss in LOSSES.items()}


def tie_of(name: str) -> tuple[float, float] | None:
    """Margin and C of a tie with the origin: the steepest chord of l from 0, if steeper than l at 0.

    For profiles with one inflection, as those here have. Without a tie the chords flatten from a = 0 on.
    """

    def chord(a: float) -> float:
        at = [float(a)] + [0.0] * (K - 1)
        return float((exact(name, [0.0] * K, 0) - exact(name, at, 0)) / a)

    grid = np.geomspace(1e-3, 30.0, 60)
    best = int(np.argmax([chord(a) for a in grid]))
    if best == 0:
        return None
    found = minimize_scalar(
        lambda a: -chord(a),
        bounds=(grid[best - 1], grid[best + 1]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x), -float(found.fun)


@every_loss
def test_verdict(name, decided):
    failures, found = FAILURES[name], decided[name]
    assert [t.name for t in found.tests if not t.passed] == failures
    assert found.holds == (not set(failures) - {"T6"})
    assert found.holds_with_bias == (not failures)
    assert (found.counterexample is None) == found.holds
    assert all(t.failure in found.reason for t in found.tests if not t.passed)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if "T1" not in FAILURES[name] and name not in ROUGH]
)
def test_ties_are_where_a_chord_from_the_origin_touches(name, decided):
    expected, found = tie_of(name), decided[name].ties
    assert (expected is not None) == bool(found) == ("T5" in FAILURES[name])
    if expected is not None:
        (tie,) = found
        np.testing.assert_allclose([tie.low, tie.high], [0.0, expected[0]], rtol=1e-6)
        np.testing.assert_allclose(tie.C, expected[1], rtol=1e-13)  # flat in the margin


@every_loss
def test_phi_is_the_loss_at_equal_non_targets_and_a_lower_bound(name, decided):
    """phi(t) <= L(z, k), t = sum_{j != k} (z_j - z_k); equality at (t, -t/(K-1), ..) where L has no shift."""
    found = decided[name]
    z, k = points(60)
    t = z.sum(1) - K * z[np.arange(len(k)), k]
    values = np.array([float(exact(name, row, label)) for row, label in zip(z, k, strict=True)])
    if "T3" not in FAILURES[name]:
        assert (found.phi(t) <= values + 1e-9 * (1 + np.abs(values))).all()
    a = np.array([0.7, 3.0])
    at = np.array([float(exact(name, x * np.eye(K)[0], 0)) for x in a])
    if "T1" in FAILURES[name]:
        assert (found.phi(-(K - 1) * a) <= at + 1e-12).all()
    else:
        np.testing.assert_allclose(found.phi(-(K - 1) * a), at, rtol=1e-12, atol=1e-15)
    assert np.ndim(found.phi(-1.0)) == 0


def test_a_shift_that_the_loss_feels_is_minimised_out(decided):
    """MSE: phi(t) = mu (beta + t/(K-1))^2, 1/mu = 1/kappa + 1/(K-1).  One-vs-all: against another search."""
    t, mu = np.linspace(-30.0, 30.0, 7), 5.0 * 4 / 9
    found = theory.contrastive_property(losses.mse(5.0, 2.0), K)
    assert [check.name for check in found.tests if not check.passed] == ["T1"]
    np.testing.assert_allclose(found.phi(t), mu * (2.0 + t / 4) ** 2, rtol=1e-14)
    for a in (-3.0, 0.0, 7.0):
        found = minimize_scalar(lambda s, a=a: np.logaddexp(0, -a - s) + (K - 1) * np.logaddexp(0, s))
        np.testing.assert_allclose(decided["ova"].phi(-(K - 1) * a), found.fun, rtol=1e-9)


@pytest.mark.parametrize(
    "name", [n for n, failures in FAILURES.items() if {"T1", "T3", "T4"} & set(failures)]
)
def test_counterexamples_hold_for_the_definition(name, decided):
    example = decided[name].counterexample
    assert example.test == FAILURES[name][0]
    z, k = example.z, example.k
    if example.test == "T1":
        assert abs(exact(name, z, k) - exact(name, z + 1, k)) > 1e-3
        return
    averaged = np.full(K, (z.sum() - z[k]) / (K - 1))
    averaged[k] = z[k]
    assert np.ptp(np.delete(z, k)) > 1e-2
    assert abs(exact(name, z, k) - exact(name, averaged, k)) < 1e-9


@pytest.mark.parametrize(
    "name", [n for n, failures in FAILURES.items() if "T5" in failures and n not in ROUGH]
)
def test_both_ends_of_a_tie_are_minimisers(name, decided):
    found = decided[name]
    (tie,) = found.ties
    a = np.linspace(0.0, 20.0, 4001)
    cost = found.phi(-(K - 1) * a) + tie.C * a
    ends = found.phi(-(K - 1) * np.array([tie.low, tie.high])) + tie.C * np.array([tie.low, tie.high])
    np.testing.assert_allclose(ends, ends[0], rtol=1e-13)
    assert cost.min() >= ends[0] - 1e-12


def _log_p(z, k):
    return z[k] - jax.nn.logsumexp(z)


def test_without_class_symmetry():
    found = theory.contrastive_property(lambda z, k: -_log_p(z, k) * (1.0 + k), 4)
    assert [t.name for t in found.tests if not t.passed] == ["T2"]
    assert "not treated alike" in found.reason


def _margin(z, k):
    return z[k] - (jnp.sum(z) - z[k]) / (z.shape[0] - 1)


@pytest.mark.parametrize(
    ("loss", "failure"),
    [(lambda z, k: -_margin(z, k), "no minimiser"), (lambda z, k: (_margin(z, k) + 2.0) ** 2, "t* > 0")],
)
def test_other_ways_to_fail(loss, failure):
    found = theory.contrastive_property(loss, 4)
    assert [t.name for t in found.tests if not t.passed][:2] == ["T4", "T5"]
    assert failure in found.reason


def test_descent_finds_a_violation_that_no_sample_shows():
    """Averaging raises it only where the non-targets are spread by more than sqrt(60)."""

    def far(z, k):
        own = jnp.arange(z.shape[0]) == k
        mean = (jnp.sum(z) - jnp.sum(jnp.where(own, z, 0.0))) / (z.shape[0] - 1)
        spread = jnp.sum(jnp.where(own, 0.0, z - mean) ** 2)
        return -_log_p(z, k) + spread - spread**2 / 60

    loss = losses.custom(far)
    samples = contrastive._samples(4)
    assert jax.vmap(lambda z, k: contrastive._gap(loss, z, k)[0])(*samples).min() > 0
    found = theory.contrastive_property(loss, 4)
    assert [t.name for t in found.tests if not t.passed] == ["T3"]
    z, k = jnp.asarray(found.counterexample.z), found.counterexample.k
    averaged = jnp.where(jnp.arange(4) == k, z[k], (z.sum() - z[k]) / 3)
    assert loss(z, k) < loss(averaged, k)


@pytest.mark.parametrize(("gamma", "classes", "holds"), [(3.0, 17, True), (3.0, 18, False)])
def test_focal_loss_ties_from_eighteen_classes_on(gamma, classes, holds):
    found = theory.contrastive_property(losses.focal(gamma), classes)
    assert found.holds == holds
    assert bool(found.ties) == (not holds)


def test_two_classes_have_nothing_to_average():
    assert theory.contrastive_property("ce", 2).holds_with_bias
