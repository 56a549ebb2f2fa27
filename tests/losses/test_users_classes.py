"""A user's own class of losses: never mistaken for another, checked and swept like a function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_users_losses import SHAPE, TRUE, Leafy, ce, tiny
from tolerances import close

import ufm
from ufm import deep, landscape, losses, theory

# --- never mistaken for a loss of the shelf -----------------------------------------------------------


class CalledMSE(losses.Loss):
    """Cross-entropy that calls itself MSE and declares nothing."""

    name = "mse"
    title = "rescaled MSE"
    kappa, beta, gamma = 1.0, 15.0, 3.0

    def __call__(self, z, k):
        return ce(z, k)


def test_a_name_gives_no_closed_form():
    prob = ufm.Problem.balanced(CalledMSE(), **SHAPE)
    truth = ufm.Problem.balanced("ce", **SHAPE)
    best = theory.global_optimum(prob)
    close(best.objective, theory.global_optimum(truth).objective)
    assert best.proved == "numerical"
    assert theory.threshold(prob).c_thr == pytest.approx(1 / 4, rel=1e-12)
    close(theory.scalar_profile(prob.loss, 4).value(2.0), theory.scalar_profile("ce", 4).value(2.0))
    close(theory.hessian_spectrum(prob).expand(), theory.hessian_spectrum(truth).expand(), ulps=256)
    points = landscape.critical_points(prob)
    assert not any(point.family == "truncated" for point in points)  # the family of MSE
    with pytest.raises(ValueError, match=r"^loss: expected one of ce, ls, fl, mse"):
        landscape.prove_critical_point(prob, best.params)


def test_a_record_does_not_keep_a_users_loss_under_the_name_of_another():
    sol = ufm.solve_ufm(CalledMSE(), **SHAPE)
    assert sol.problem.to_dict()["loss"] == "custom"
    how = {"net": "mlp", "width": 0.125, "batch": 16, "epochs": 1}
    for preset in ("paper", "paper-code"):
        ours = deep.train(tiny(), loss=CalledMSE(), preset=preset, **how)
        fresh = deep.train(tiny(), loss=ce, preset=preset, **how)
        assert ours.config.loss != "mse"
        close(ours.history.step_loss, fresh.history.step_loss)  # the mean over classes is MSE's alone


class Heir(losses.Focal):
    """Focal loss of cooler logits: none of focal loss's closed forms is about it."""

    def __call__(self, z, k):
        return super().__call__(z / 2.0, k)


class Deliberate(losses.CrossEntropy):
    """Cross-entropy computed otherwise, which states again what still holds."""

    convex = shift_invariant = True
    conjugate = losses.CrossEntropy.conjugate
    profile = losses.CrossEntropy.profile
    optimum = losses.CrossEntropy.optimum

    def __call__(self, z, k):
        return ce(z, k)


def mixed_in():
    class Function:
        def __call__(self, z, k):
            return ce(z / 2.0, k)

    class Mixed(Function, losses.CrossEntropy):
        pass

    return Mixed()


def test_a_pure_loss_of_one_vector_is_computed_sample_by_sample():
    """It would take a matrix of logits without a complaint, and normalise over the samples."""

    class OfOneVector(losses.Loss, pure=True):
        def __call__(self, z, k):
            return -jnp.sum(jax.nn.log_softmax(z) * jax.nn.one_hot(k, len(z), dtype=z.dtype))

    jax.tree_util.register_pytree_node(OfOneVector, lambda loss: ((), None), lambda *_: OfOneVector())
    own, ce = (ufm.Problem.balanced(loss, **SHAPE) for loss in (OfOneVector(), "ce"))
    start = ufm.init(own, scale=1.0)
    close(own(start), ce(start))


def test_a_subclass_with_another_function_inherits_nothing_that_is_stated_about_it():
    for heir in (Heir(), mixed_in()):
        assert not heir.has_conjugate
        assert not heir.convex
        assert not heir.shift_invariant
        assert not type(heir).pure
        assert not type(heir).by_column
        for member in ("profile", "region", "optimum", "threshold", "branch", "in_balls", "fails"):
            assert getattr(type(heir), member) is getattr(losses.Loss, member), member
        assert (heir.name, heir.title) == ("custom", f"custom loss {type(heir).__name__}")
    profile = theory.scalar_profile(Heir(), 4)
    close(profile.value(2.0), theory.scalar_profile("fl", 4).value(1.0))
    with pytest.raises(theory.NoClosedForm, match="neither declared convex nor a function of the target"):
        theory.convexity_region(Heir(), 4)
    best, truth = (theory.global_optimum(ufm.Problem.balanced(loss, **SHAPE)) for loss in (
        Heir(), lambda z, k: losses.focal()(z / 2.0, k)
    ))  # fmt: skip
    close(best.objective, truth.objective)


class Capped(losses.CrossEntropy):
    """Cross-entropy up to 0.5: no longer convex, and with strong penalties the origin is best."""

    def __call__(self, z, k):
        return jnp.minimum(super().__call__(z, k), 0.5)


def test_a_certificate_does_not_use_the_conjugate_of_another_function():
    """Guards against: a global minimum, certified with the convexity and conjugate of the parent class."""
    how = {**SHAPE, "lam_W": 0.05, "lam_H": 0.05}
    collapsed = theory.global_optimum(ufm.Problem.balanced("ce", **how)).params
    prob = ufm.Problem.balanced(Capped(), **how)
    assert float(prob(prob.zeros())) < float(prob(collapsed)) - 0.1
    assert landscape.certificate(prob, collapsed).gap > 0.1


def test_a_subclass_may_state_a_closed_form_again():
    prob = ufm.Problem.balanced(Deliberate(), **SHAPE)
    best, truth = theory.global_optimum(prob), theory.global_optimum(ufm.Problem.balanced("ce", **SHAPE))
    assert (best.objective, best.margin, best.proved) == (truth.objective, truth.margin, "proved")
    assert abs(ufm.solve(prob).certificate.gap) < 1e-12


def test_a_subclass_with_the_same_function_keeps_what_is_stated_and_is_checked():
    class Cooler(losses.Focal):
        pass

    prob = ufm.Problem.balanced(Cooler(2.0), **SHAPE)
    assert isinstance(losses.frozen(prob.loss, 4), losses.Frozen)
    assert (
        theory.global_optimum(prob).margin
        == theory.global_optimum(ufm.Problem.balanced("fl", gamma=2.0, **SHAPE)).margin
    )


# --- a user's class is checked and swept like a function ----------------------------------------------


def test_a_users_class_is_swept(compilations):
    prob = ufm.Problem.balanced(Leafy(1.0), **SHAPE)
    assert prob.loss.hyperparameters == {"t": 1.0}
    sweep = ufm.solve_sweep(prob, t=np.array([1.0, 4.0]), progress=False)
    np.testing.assert_allclose(sweep.objective[0], [TRUE[1.0], TRUE[4.0]], atol=5e-7)
    assert sweep[0, 1].problem.loss.t == 4.0
    compilations()
    ufm.solve_sweep(prob, t=np.array([2.0, 3.0]), progress=False)
    assert compilations() == 0
    with pytest.raises(ValueError, match=r"^axis: expected one of lam_W, lam_H, lam_b, t"):
        ufm.solve_sweep(prob, temperature=[1.0])


def test_a_penalty_is_swept_with_a_users_class_that_is_no_dataclass():
    sweep = ufm.solve_sweep(ufm.Problem.balanced(CalledMSE(), **SHAPE), lam_W=[5e-3, 1e-2], progress=False)
    assert float(sweep.objective[0, 0]) == pytest.approx(TRUE[1.0], abs=5e-7)
    assert sweep[0, 1].problem.lam_W == 1e-2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, z, k: z * self.t, "^loss: expected a real scalar"),
        (lambda self, z, k: jnp.nan * z[k] * self.t, "^loss: expected a finite value"),
        (lambda self, z, k: float(z[0]), "^loss: .*failed when traced by JAX"),
        (lambda self, z, k: z[k] if self.t > z[0] else z[0], "^loss: .*failed when traced by JAX"),
    ],
)
def test_a_users_class_that_is_no_loss_is_refused(function, message):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Broken(losses.Loss):
        t: float
        __call__ = function

    with pytest.raises(ValueError, match=message):
        ufm.Problem.balanced(Broken(1.0), **SHAPE)
