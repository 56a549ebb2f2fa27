"""Definition 1 decided for nineteen losses, each verdict with its counterexample checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from ufm import losses, theory
from ufm.theory import contrastive


class Case(NamedTuple):
    function: Any
    failures: str  # tests that fail, at K = 5
    tie: tuple[float, float] | None = None  # margin and C of a tie with the origin


def _log_p(z, k):
    return z[k] - jax.nn.logsumexp(z)


def _of_log_p(h: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda z, k: h(_log_p(z, k))


def additive_margin(z, k):
    return -_log_p(jnp.where(jnp.arange(z.shape[0]) == k, z - 1.0, z), k)


def logit_norm(z, k):
    return -_log_p(z / jnp.linalg.norm(z), k)


def one_vs_all(z, k):
    return jnp.sum(jax.nn.softplus(jnp.where(jnp.arange(z.shape[0]) == k, -z, z)))


def exponential(z, k):
    return jnp.sum(jnp.exp(z - z[k]))


def _hinges(z, k):
    return jnp.where(jnp.arange(z.shape[0]) == k, 0.0, jnp.maximum(0.0, 1.0 + z - z[k]))


#: h(p) of the target probability, and S(p) = -h'(p) p (1-p) by hand where a test needs it.
USER_LOSSES = {
    "generalised ce": Case(
        _of_log_p(lambda s: (1 - jnp.exp(0.7 * s)) / 0.7), "T5 T6", (1.5175834, 0.30068149)
    ),
    "symmetric ce": Case(
        _of_log_p(lambda s: -0.1 * s + 4 * (1 - jnp.exp(s))), "T5 T6", (1.9655790, 0.95649535)
    ),
    "poly-1, 1": Case(_of_log_p(lambda s: -s + 1 - jnp.exp(s)), ""),
    "poly-1, 2": Case(_of_log_p(lambda s: -s + 2 * (1 - jnp.exp(s))), "T5 T6", (0.4205137, 1.12367673)),
    "taylor-2": Case(
        _of_log_p(lambda s: (1 - jnp.exp(s)) + (1 - jnp.exp(s)) ** 2 / 2), "T5 T6", (1.5919456, 0.35838925)
    ),
    "mean absolute error": Case(_of_log_p(lambda s: 2 * (1 - jnp.exp(s))), "T5 T6", (2.0490970, 0.44887058)),
    "additive margin": Case(additive_margin, ""),
    "temperature": Case(lambda z, k: -_log_p(z / 0.5, k), ""),
    "logit norm": Case(logit_norm, "T1 T3 T4 T6"),
    "one-vs-all": Case(one_vs_all, "T1"),
    "exponential": Case(exponential, ""),
    "squared hinge, summed": Case(lambda z, k: jnp.sum(_hinges(z, k) ** 2), "T4"),
    "squared hinge, maximal": Case(lambda z, k: jnp.max(_hinges(z, k)) ** 2, "T4"),
    "hinge, maximal": Case(lambda z, k: jnp.max(_hinges(z, k)), "T4 T5"),
}
USER_LOSSES = {
    name: case._replace(function=losses.custom(case.function)) for name, case in USER_LOSSES.items()
}
CASES = {
    "ce": Case("ce", ""),
    "ls": Case("ls", ""),
    "fl": Case("fl", ""),
    "mse": Case("mse", "T1"),
    "mse, 5 and 2": Case(losses.mse(5.0, 2.0), "T1"),
} | USER_LOSSES
K = 5


@pytest.fixture(scope="module")
def decided() -> dict[str, theory.ContrastiveProperty]:
    return {name: theory.contrastive_property(case.function, K) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name, decided):
    case, found = CASES[name], decided[name]
    assert " ".join(t.name for t in found.tests if not t.passed) == case.failures
    assert found.holds == (not set(case.failures.split()) - {"T6"})
    assert found.holds_with_bias == (not case.failures)
    assert (found.counterexample is None) == found.holds
    assert all(t.failure in found.reason for t in found.tests if not t.passed)
    if case.tie is not None:
        (tie,) = found.ties
        np.testing.assert_allclose([tie.low, tie.high, tie.C], [0.0, *case.tie], rtol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_phi_is_the_loss_at_equal_non_targets_and_a_lower_bound(name, decided):
    """phi(t) <= L(z, k), t = sum_{j != k} (z_j - z_k); equality at (t, -t/(K-1), ..) where L has no shift."""
    loss, found = losses.get(CASES[name].function), decided[name]
    rng = np.random.default_rng(3)
    z, k = 2 * rng.normal(size=(200, K)), rng.integers(K, size=200)
    t = z.sum(1) - K * z[np.arange(200), k]
    values = np.asarray(jax.jit(jax.vmap(loss))(jnp.asarray(z), jnp.asarray(k)))
    if "T3" not in CASES[name].failures:
        assert (found.phi(t) <= values + 1e-9 * (1 + np.abs(values))).all()
    a = np.array([0.7, 3.0])
    at = [float(loss(x * jnp.eye(K)[0], 0)) for x in a]
    if "T1" in CASES[name].failures:
        assert (found.phi(-(K - 1) * a) <= np.array(at) + 1e-12).all()
    else:
        np.testing.assert_allclose(found.phi(-(K - 1) * a), at, rtol=1e-12)
    assert np.ndim(found.phi(-1.0)) == 0


def test_a_shift_that_the_loss_feels_is_minimised_out(decided):
    """MSE: phi(t) = mu (beta + t/(K-1))^2, 1/mu = 1/kappa + 1/(K-1).  One-vs-all: against another search."""
    t, mu = np.linspace(-30.0, 30.0, 7), 5.0 * 4 / 9
    np.testing.assert_allclose(decided["mse, 5 and 2"].phi(t), mu * (2.0 + t / 4) ** 2, rtol=1e-14)
    for a in (-3.0, 0.0, 7.0):
        found = minimize_scalar(lambda s, a=a: np.logaddexp(0, -a - s) + (K - 1) * np.logaddexp(0, s))
        np.testing.assert_allclose(decided["one-vs-all"].phi(-(K - 1) * a), found.fun, rtol=1e-9)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "T3" in c.failures or "T4" in c.failures])
def test_counterexamples_to_averaging(name, decided):
    found = decided[name]
    example = found.counterexample
    loss = losses.get(CASES[name].function)
    if example.test == "T1":
        assert (
            abs(loss(jnp.asarray(example.z), example.k) - loss(jnp.asarray(example.z + 1), example.k)) > 1e-3
        )
        return
    z, k = example.z, example.k
    averaged = np.full(K, (z.sum() - z[k]) / (K - 1))
    averaged[k] = z[k]
    assert np.ptp(np.delete(z, k)) > 1e-2
    assert abs(float(loss(jnp.asarray(z), k)) - float(loss(jnp.asarray(averaged), k))) < 1e-9


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.tie])
def test_both_ends_of_a_tie_are_minimisers(name, decided):
    found = decided[name]
    (tie,) = found.ties
    a = np.linspace(0.0, 20.0, 4001)
    cost = found.phi(-(K - 1) * a) + tie.C * a
    ends = found.phi(-(K - 1) * np.array([tie.low, tie.high])) + tie.C * np.array([tie.low, tie.high])
    np.testing.assert_allclose(ends, ends[0], rtol=1e-13)
    assert cost.min() >= ends[0] - 1e-12


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
