"""The dual over features that are not negative: lower bounds that close at the lowest of some starts."""

import jax
import numpy as np
import pytest

import ufm
from ufm import landscape

CASES = {
    "ce, equal": ("ce", [2, 2, 2, 2], {}),
    "ce, a class beyond half": ("ce", [9, 1, 1, 1], {}),
    "mse, penalised bias": ("mse", [3, 1, 2, 2], {"lam_b": 0.02}),
    "ls, no bias": ("ls", [3, 1, 2, 2], {"bias": False}),
}


def problem(name):
    loss, counts, options = CASES[name]
    return ufm.Problem.from_counts(
        loss, counts=counts, d=6, lam_W=0.03, lam_H=0.02, model="nonnegative", **options
    )


def lowest(prob, starts=4, tol=1e-10):
    """The lowest of some solutions from class means."""
    sols = ufm.solve_sweep(prob, seeds=range(starts), reduced=True, escape=False, tol=tol)
    return sols[int(np.argmin(np.asarray(sols.objective)))]


@pytest.mark.parametrize("name", CASES)
def test_the_dual_closes_at_the_minimum_and_bounds_f_elsewhere(name):
    prob = problem(name)
    sol = lowest(prob)
    cert = landscape.certificate(prob, sol.params)
    assert cert.is_global, cert
    assert "h >= 0" in cert.method
    assert cert.lower_bound <= float(sol.objective) + cert.rounding
    start = ufm.init(prob, seed=0, scale=0.3)
    for t in (0.3, 0.03):  # on the way to a random point
        there = jax.tree.map(lambda x, y, t=t: (1 - t) * x + t * y, sol.params, start)
        for factor in (1.0, 0.8):  # features too short: |G h| > lam |h|
            at = there._replace(H=factor * there.H)
            above = float(prob(at)) - float(sol.objective)
            assert landscape.certificate(prob, at).gap >= above - 1e-12


def test_supports_close_what_the_eigenvalue_bound_leaves_open():
    """A free bias and a class beyond half of the samples: other pairs have positive inner products."""
    prob = problem("ce, a class beyond half")
    sol = lowest(prob, tol=1e-13)  # the gap of the certificate is a few times the residual
    simple = float(jax.jit(landscape.bounds)(prob, sol.params).gap)
    cert = landscape.certificate(prob, sol.params)
    assert cert.gap <= min(simple, 1e-12)
    assert "max |G h|" in repr(cert)


def test_a_spurious_minimum_is_not_certified_and_its_gap_is_known():
    prob = ufm.Problem.balanced("ce", K=3, d=3, n=2, lam_W=0.01, lam_H=0.01, model="nonnegative")
    best = ufm.theory.global_optimum(prob).objective
    sols = [ufm.solve(prob, ufm.init(prob, seed=seed)) for seed in range(6)]
    above = [sol for sol in sols if float(sol.objective) > best + 1e-6]
    assert above
    cert = above[0].certificate
    assert cert.verdict == "not certified"
    np.testing.assert_allclose(cert.gap, float(above[0].objective) - best, rtol=1e-9)
    assert landscape.inertia(prob, above[0].params).neg == 0
