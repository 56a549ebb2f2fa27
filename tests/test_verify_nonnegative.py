"""Claims about features that are not negative hold at solutions, and each fails where it is broken."""

import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm._pytree import replace

OWN = (
    "kkt_W",
    "kkt_H",
    "kkt_b",
    "neuron_balance",
    "collapse",
    "class_logits",
    "orthogonal_means",
    "centred_etf",
    "centred_duality",
)


@pytest.fixture(scope="module")
def solution():
    prob = ufm.Problem.balanced("ce", K=4, d=7, n=3, lam_W=0.02, lam_H=0.01, model="nonnegative")
    return ufm.solve(prob)


def test_all_hold_at_the_optimum(solution):
    report = ufm.verify(solution)
    assert report.passed, report
    assert {report[name].verdict for name in (*OWN, "objective", "certificate", "second_order")} == {"holds"}


def stretched(params):
    """f is the same up to rounding, but a neuron is out of balance."""
    i = int(np.argmax(np.linalg.norm(params.H, axis=1)))
    return params._replace(W=params.W.at[:, i].multiply(1.001), H=params.H.at[i].divide(1.001))


def off_the_bound(params):
    """A feature that should be zero is not: its gradient is positive."""
    i, j = np.argwhere(np.asarray(params.H) == 0)[3]
    return params._replace(H=params.H.at[i, j].set(1e-3))


BREAKS = {
    "neuron_balance": stretched,
    "kkt_H": off_the_bound,
    "collapse": off_the_bound,
    "orthogonal_means": off_the_bound,
    "centred_etf": off_the_bound,
    "kkt_W": lambda p: p._replace(W=p.W * 1.001),
    "kkt_b": lambda p: p._replace(b=p.b + jnp.array([0.01, 0.0, 0.0, 0.0])),
    "class_logits": lambda p: p._replace(W=p.W * 1.001),
    "centred_duality": lambda p: p._replace(W=p.W + 1e-3 * jnp.eye(4, 7)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_fails_where_it_is_broken(solution, name):
    report = ufm.verify(replace(solution, params=BREAKS[name](solution.params)))
    assert report[name].verdict == "fails"


def test_unequal_counts_and_what_does_not_apply():
    prob = ufm.Problem.from_counts(
        "ls", counts=[3, 1, 5, 3], d=7, lam_W=0.02, lam_H=0.01, bias=False, model="nonnegative"
    )
    report = ufm.verify(ufm.solve(prob))
    assert report.passed, report
    assert report["orthogonal_means"].verdict == report["class_logits"].verdict == "holds"
    assert report["centred_etf"].verdict == report["kkt_b"].verdict == "not applicable"
