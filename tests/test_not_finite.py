"""Where the Hessian is NaN or infinite: one line, or a status, never an exception of linear algebra."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import landscape, theory


def kinked(z, k):
    """Finite with its gradient; its second derivative is infinite where logits equal their mean."""
    return -jax.nn.log_softmax(z)[k] + jnp.sum(jnp.abs(z - jnp.mean(z)) ** 1.5)


def pointed(z, k):
    """Without a gradient where z = 0: there JAX gives NaN."""
    return -jax.nn.log_softmax(z)[k] + jnp.linalg.norm(z)


SIZES = {"K": 4, "d": 5, "n": 2, "lam_W": 0.01, "lam_H": 0.02}


def problem(loss):
    return ufm.Problem.balanced(ufm.losses.custom(loss) if callable(loss) else loss, **SIZES)


def places():
    """A problem and a point of it without a finite Hessian."""
    for loss in (kinked, pointed):
        prob = problem(loss)
        yield pytest.param(prob, prob.zeros(), id=f"{loss.__name__} at 0")
    for loss in ("ce", "mse"):
        prob = problem(loss)
        yield pytest.param(prob, jax.tree.map(lambda x: 1e160 * x, ufm.init(prob)), id=f"{loss}, overflow")


AT = pytest.mark.parametrize(("prob", "params"), list(places()))
READERS = {
    "smallest": lambda prob, params: landscape.eigenvalues(prob, params),
    "largest": lambda prob, params: landscape.eigenvalues(prob, params, 2, "largest"),
    "all": lambda prob, params: landscape.eigenvalues(prob, params, which="all"),
    "exact": lambda prob, params: landscape.eigenvalues(prob, params, method="exact"),
    "lanczos": lambda prob, params: landscape.eigenvalues(prob, params, method="lanczos"),
    "inertia": landscape.inertia,
    "escape": landscape.escape_direction,
    "descend": landscape.descend,
}


@AT
@pytest.mark.parametrize("name", READERS)
def test_what_reads_the_hessian_names_the_point(name, prob, params):
    with pytest.raises(ValueError, match=r"^params: expected a (critical )?point.*; ") as caught:
        READERS[name](prob, params)
    message = str(caught.value)
    assert not isinstance(caught.value, np.linalg.LinAlgError)
    assert len(message.splitlines()) == 1
    assert repr(prob.loss) in message


def test_the_sample_is_named():
    prob = ufm.Problem(ufm.losses.custom(kinked), [2, 0, 3, 1, 3], d=5, lam_W=0.01, lam_H=0.02)
    params = ufm.init(prob, scale=1.0)
    at_zero = params._replace(H=params.H.at[:, 2].set(0.0))
    assert np.isfinite(landscape.eigenvalues(prob, params).values).all()
    with pytest.raises(ValueError, match="at sample 2 of class 3"):
        landscape.inertia(prob, at_zero)


@AT
def test_polishing_gives_a_status(prob, params):
    found = landscape.polish(prob, params)
    assert not found.converged
    assert "not finite" in found.message


@AT
def test_a_certificate_gives_a_bound_or_none(prob, params):
    found = landscape.certificate(prob, params)
    assert found.verdict == "not certified"
    assert found.gap >= 0
    assert "overflow" in found.why or "has no finite" in found.why
    assert "nan >" not in repr(found)


@pytest.mark.parametrize("loss", [kinked, pointed])
def test_critical_points_leave_out_what_has_no_hessian(loss):
    points = landscape.critical_points(problem(loss))
    assert "origin" not in [point.family for point in points]
    assert "not finite" in dict(points.missing)["origin"]
    assert all(math.isfinite(point.smallest) for point in points)


def test_the_spectrum_of_theory_is_refused():
    heavy = ufm.Problem.balanced(ufm.losses.custom(kinked), **(SIZES | {"lam_W": 3.0, "lam_H": 3.0}))
    assert theory.global_optimum(heavy).regime == "trivial"
    with pytest.raises(theory.NoClosedForm, match="no finite second derivative at the optimum"):
        theory.hessian_spectrum(heavy)


def test_no_claim_holds_by_a_curvature_that_is_none():
    heavy = ufm.Problem.balanced(ufm.losses.custom(kinked), **(SIZES | {"lam_W": 3.0, "lam_H": 3.0}))
    report = ufm.verify(ufm.solve(heavy, heavy.zeros()))
    assert report["second_order"].verdict == "fails"
