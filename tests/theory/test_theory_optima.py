"""The global optimum against decimals, dense autodiff, an interior-point solver and local searches."""

from __future__ import annotations

import itertools
from decimal import Decimal, localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from test_theory_contrastive import one_vs_all
from tolerances import close, eps

import ufm
from ufm import losses, theory
from ufm.losses._profile import margin_of
from ufm.theory._setting import setting
from ufm.theory.profiles import scalar_profile

LOSSES = [
    ("ce", {}),
    ("ls", {"alpha": 0.1}),
    ("fl", {"gamma": 3.0}),
    ("fl", {"gamma": 0.5}),
    ("mse", {"kappa": 1.0, "beta": 15.0}),
    ("mse", {"kappa": 5.0, "beta": 2.0}),
    ("mse", {"kappa": 0.3, "beta": 1.0}),
]
BIASES = [{"lam_b": 0.0}, {"lam_b": 0.02}, {"lam_b": 0.5}, {"bias": False}]
SIZES = [(3, 5, 2), (5, 7, 2)]  # (K, d, n)
SHARES = [0.2, 0.995, 1.004]  # of the threshold in c: two of three within one per cent
EDGES = list(
    zip([(3, 3, 2), (4, 3, 3), (2, 3, 2), (2, 1, 3)], BIASES[::-1], strict=True)
)  # d = K, K-1; K = 2


def problem(loss: Any, size: tuple[int, int, int], lam: float, **rest: Any) -> ufm.Problem:
    """lam = sqrt(lam_W lam_H), lam_W = 6 lam_H, labels in random order."""
    K, d, n = size
    labels = np.random.default_rng(7).permutation(np.tile(np.arange(K), n))
    hyperparameters = rest.pop("hyper", {})
    return ufm.Problem(losses.get(loss, **hyperparameters), labels, K, d, lam * 6**0.5, lam / 6**0.5, **rest)


def at_share(loss: Any, size: tuple[int, int, int], share: float, **rest: Any) -> ufm.Problem:
    """c = share times the threshold."""
    threshold = theory.threshold(problem(loss, size, 1.0, **rest))
    return problem(loss, size, share * threshold.C_tie / (size[0] - 1) / size[2] ** 0.5, **rest)


def instances() -> list[Any]:
    cases = []
    for (loss, hyper), bias, share in itertools.product(LOSSES, BIASES, SHARES):
        cases.append((loss, hyper, bias, SIZES[len(cases) % 2], share))
    for (loss, hyper), (size, bias), share in itertools.product(LOSSES, EDGES, (0.3, 1.1)):
        cases.append((loss, hyper, bias, size, share))
    return [pytest.param(*case, id="-".join(map(str, case))) for case in cases]


@jax.jit
def _value_and_gradient(prob: ufm.Problem, params: ufm.Params) -> Any:
    return jax.value_and_grad(prob)(params)


def value_and_gradient(prob: ufm.Problem, params: ufm.Params) -> Any:
    """Without a bias b stays at 0 and its slope is dropped, which saves a compilation."""
    value, gradient = _value_and_gradient(prob.replace(bias=True), params)
    return value, gradient if prob.bias else gradient[:2]


def known(prob: ufm.Problem) -> theory.Optimum | None:
    """The optimum, or None for a frame that does not fit into d."""
    try:
        return theory.global_optimum(prob)
    except theory.NoClosedForm:
        return None


# --- 1. a stationary point with the objective claimed -----------------------------------------------


@pytest.mark.parametrize(("loss", "hyper", "bias", "size", "share"), instances())
def test_the_minimiser_is_stationary_and_has_the_objective(loss, hyper, bias, size, share):
    prob = at_share(loss, size, share, hyper=hyper, **bias)
    best = known(prob)
    if best is None:
        assert loss == "mse"
        assert prob.d < prob.K
        return
    value, gradient = value_and_gradient(prob, best.params)
    scale = max(1.0, float(prob.loss.hyperparameters.get("beta", 1.0)))
    assert max(float(jnp.abs(g).max()) for g in gradient) < 2e-15 * scale**1.5
    close(value, best.objective, ulps=16)
    assert (best.regime == "trivial") == (share > 1)
    assert best.proved == "proved" or (loss == "fl" and prob.bias and theory.threshold(prob).C > 1)
    assert best.objective <= best.trivial
    assert best.lower_bound <= best.objective * (1 + 4 * eps())
    if best.proved == "proved":
        close(best.lower_bound, best.objective, ulps=4)
    W, H, _ = best.params
    close(prob.lam_W * W.T @ W, prob.lam_H * H @ H.T, ulps=64, scale=max(1.0, best.margin), name="balance")
    close(W @ H + best.params.b[:, None], best.logits[:, prob.labels], ulps=64, scale=max(1.0, scale))


@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
@pytest.mark.parametrize("bias", BIASES)
def test_n_and_the_ratio_of_the_penalties_enter_through_c_only(loss, hyper, bias):
    prob = at_share(loss, (4, 6, 3), 0.6, hyper=hyper, **bias)
    other = problem(loss, (4, 9, 12), float(prob.lam) / 2, hyper=hyper, **bias).replace(
        lam_W=prob.lam_W / 40, lam_H=prob.lam_H * 10
    )
    close(theory.global_optimum(other).objective, theory.global_optimum(prob).objective, ulps=8)


# --- 2. closed forms, in decimals -------------------------------------------------------------------


def _exact_c(prob: ufm.Problem) -> Decimal:
    return (prob.n * Decimal(float(prob.lam_W)) * Decimal(float(prob.lam_H))).sqrt()


@pytest.mark.parametrize("share", [1e-6, 0.5, 1 - 1e-4, 1 - 1e-9, 1 - 1e-13])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("K", [3, 10, 1000])
def test_cross_entropy_and_label_smoothing_keep_relative_accuracy_up_to_the_threshold(K, alpha, share):
    prob = ufm.Problem.balanced("ls", K=K, d=K, n=2, lam_W=3e-2, alpha=alpha)
    prob = prob.replace(lam_H=(share * (1 - alpha) / K) ** 2 / 2 / prob.lam_W)
    best = theory.global_optimum(prob)
    with localcontext() as context:
        context.prec = 60
        off = _exact_c(prob) + Decimal(alpha) / K
        own = 1 - (K - 1) * off
        close(best.margin, (own / off).ln(), ulps=4, name="margin")
        close(best.objective, -own * own.ln() - (K - 1) * off * off.ln(), ulps=8, name="objective")
    if alpha == 0:
        ce = theory.global_optimum(prob.replace(loss=losses.cross_entropy()))
        close([ce.margin, ce.objective], [best.margin, best.objective], ulps=2)


@pytest.mark.parametrize("share", [1e-6, 0.5, 1 - 1e-9, 1 - 1e-13])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("kappa", "beta"), [(1.0, 15.0), (5.0, 2.0), (0.3, 1.0)])
def test_mse_keeps_relative_accuracy_up_to_the_threshold(kappa, beta, bias, share):
    K = 4
    prob = at_share("mse", (K, 6, 3), share, hyper={"kappa": kappa, "beta": beta}, **bias)
    best = theory.global_optimum(prob)
    with localcontext() as context:
        context.prec = 60
        a, m, b0 = _mse_by_phases(prob, _exact_c(prob))
        own, other = ((K - 1) * a + m) / K + b0, (m - a) / K + b0
        fit = Decimal(kappa) * (own - Decimal(beta)) ** 2 + (K - 1) * other**2
        cost = _exact_c(prob) * ((K - 1) * a + m) + Decimal(float(prob.lam_b)) * K * b0**2 / 2
        for name, got, expected in (
            ("a", best.margin, a), ("m", best.mean_eigenvalue, m), ("b0", best.bias, b0),
            ("f", best.objective, fit + cost),
        ):  # fmt: skip
            close(got, expected, ulps=8, name=name)


def _mse_by_phases(prob: ufm.Problem, c: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """The table of phases as derived by hand, in decimals: a, m, b0."""
    K, lam_b = prob.K, Decimal(float(prob.lam_b))
    kappa, beta = Decimal(float(prob.loss.kappa)), Decimal(float(prob.loss.beta))
    if not prob.bias:
        a = beta - c * K / (2 * kappa)
        return a, a, Decimal(0)
    if lam_b == 0:
        a = beta - c * (kappa + K - 1) / (2 * kappa)
        return a, Decimal(0), a / K + c / 2
    if c < (beta / K) / (1 / (2 * kappa) + 1 / lam_b):
        a = beta - c * K / (2 * kappa)
        return a, a - K * c / lam_b, c / lam_b
    A1 = Decimal(K - 1) / (2 * K) + 1 / (2 * kappa * K)
    t = (c / lam_b + c / (2 * kappa) - beta / K) / (A1 + 1 / lam_b)
    return beta - c * K / (2 * kappa) + t * (1 - kappa) / (2 * kappa), Decimal(0), (c - t) / lam_b


@pytest.mark.parametrize("share", [1e-4, 0.5, 0.999])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0, 10.0])
@pytest.mark.parametrize("K", [2, 3, 10, 100])
def test_focal_margin_solves_its_equation_in_decimals(K, gamma, share):
    prob = at_share("fl", (K, K, 2), share, hyper={"gamma": gamma}, bias=False)
    best = theory.global_optimum(prob)
    with localcontext() as context:
        context.prec = 50

        def slope(a: Decimal) -> Decimal:  # S(p) - C at margin a
            rest = (K - 1) / (a.exp() + K - 1)
            p, g = 1 - rest, Decimal(gamma)
            return (g * rest.ln()).exp() * (rest - g * p * p.ln()) - (K - 1) * _exact_c(prob)

        a = Decimal(best.margin)
        step = Decimal(2) ** -40 * (1 + a)
        root = a + slope(a) * 2 * step / (slope(a - step) - slope(a + step))
        curvature = scalar_profile(prob.loss, K).curvature(best.margin)
        # S(a) - C is known to a rounding of C, which the slope of S turns into an error of a
        close(best.margin, root, ulps=8, scale=1 + best.margin + (K - 1) * float(_exact_c(prob)) / curvature)
        rest = (K - 1) / (root.exp() + K - 1)
        value = -((Decimal(gamma) * rest.ln()).exp()) * (1 - rest).ln() + (K - 1) * _exact_c(prob) * root
        close(best.objective, value, ulps=16)


# --- 3. an interior-point solver ----------------------------------------------------------------------


def _convex_program(prob: ufm.Problem) -> float:
    """min over Z, b of g(Z + b 1^T) + sqrt(lam_W lam_H) |Z|_* + lam_b/2 |b|^2."""
    cp = pytest.importorskip("cvxpy")
    K, N = prob.K, prob.N
    Z, b = cp.Variable((K, N)), cp.Variable((K, 1)) if prob.bias else np.zeros((K, 1))
    logits = Z + b @ np.ones((1, N))
    onehot = np.eye(K)[:, prob.labels]
    if prob.loss.name == "mse":
        kappa, beta = float(prob.loss.kappa), float(prob.loss.beta)
        weight = np.where(onehot > 0, kappa**0.5, 1.0)
        fit = cp.sum_squares(cp.multiply(weight, logits - beta * onehot))
    else:
        alpha = float(prob.loss.hyperparameters.get("alpha", 0.0))
        target = (1 - alpha) * onehot + alpha / K
        fit = cp.sum(cp.log_sum_exp(logits, axis=0)) - cp.sum(cp.multiply(target, logits))
    cost = fit / N + float(prob.lam) * cp.normNuc(Z)
    if prob.bias:
        cost += float(prob.lam_b) / 2 * cp.sum_squares(b)
    return float(cp.Problem(cp.Minimize(cost)).solve(solver="CLARABEL"))


@pytest.mark.parametrize("share", [0.3, 0.99])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(
    ("loss", "hyper"), [("ce", {}), ("ls", {}), ("mse", {"beta": 2.0}), ("mse", {"kappa": 4.0, "beta": 1.0})]
)
def test_a_convex_solver_finds_the_same_value(loss, hyper, bias, share):
    prob = at_share(loss, (3, 4, 2), share, hyper=hyper, **bias)
    best = theory.global_optimum(prob).objective
    assert abs(_convex_program(prob) - best) < 3e-7 * (1 + best)  # its own accuracy


# --- 4. local searches ----------------------------------------------------------------------------------


@jax.jit
def _flat(prob: ufm.Problem, x: Any) -> Any:
    unravel = ravel_pytree(prob.zeros())[1]
    return jax.value_and_grad(lambda x: prob(unravel(x)))(x)


def search(prob: ufm.Problem, starts: int) -> np.ndarray:
    """L-BFGS from Gaussian starts, once more from a perturbation (the origin is a saddle)."""
    rng, found = np.random.default_rng(5), []
    size = ravel_pytree(prob.zeros())[0].size
    options = {"maxiter": 100, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20}
    for _ in range(starts):
        x = rng.normal(size=size)
        for _ in range(2):
            out = minimize(lambda x: _flat(prob, x), x, jac=True, method="L-BFGS-B", options=options)
            x = out.x + 0.02 * rng.normal(size=size)
        found.append(out.fun)
    return np.array(found)


@pytest.mark.parametrize(("share", "bias"), [(0.4, 1), (0.99, 0), (0.99, 3), (1.01, 2)])
@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
def test_no_random_search_goes_lower(loss, hyper, share, bias):
    prob = at_share(loss, SIZES[0], share, hyper=hyper, **BIASES[bias])
    best = theory.global_optimum(prob).objective
    (found,) = search(prob, 1)
    assert found > best - 1e-12 * (1 + best)
    assert found < best + 1e-6 * (1 + best)


# --- 5. losses of the user ------------------------------------------------------------------------------

ONE_VS_ALL = losses.custom(one_vs_all, convex=True)


def _generic(loss: losses.Loss) -> losses.Loss:
    return losses.custom(lambda z, k: loss(z, k), convex=loss.convex, shift_invariant=loss.shift_invariant)


GENERIC = {(name, *hyper.values()): _generic(losses.get(name, **hyper)) for name, hyper in LOSSES}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("share", [0.3, 0.99])
@pytest.mark.parametrize(("loss", "hyper"), LOSSES[:3] + LOSSES[-2:])
def test_the_generic_reduction_agrees_with_the_closed_forms(loss, hyper, bias, share):
    prob = at_share(loss, (4, 6, 3), share, hyper=hyper, **bias)
    known_loss, same = prob.loss, GENERIC[loss, *hyper.values()]
    best, generic = theory.global_optimum(prob), theory.global_optimum(prob.replace(loss=same))
    close(generic.objective, best.objective, ulps=32)
    close(generic.margin, best.margin, ulps=2**14, scale=1 + best.margin)  # within 1 % of a threshold
    close(generic.mean_eigenvalue, best.mean_eigenvalue, ulps=2**10, scale=1 + best.margin)
    assert generic.proved == ("proved" if known_loss.convex else "numerical")
    assert generic.regime == best.regime


@pytest.mark.parametrize("bias", BIASES)
def test_one_vs_all_has_a_negative_mean_eigenvalue_at_weak_penalties(bias):
    """Convex, symmetric, not shift-invariant: W and the class means are opposite along 1."""
    for lam in (0.01, 0.1, 0.2):
        prob = problem(ONE_VS_ALL, (4, 5, 2), lam, **bias)
        best = theory.global_optimum(prob)
        value, gradient = value_and_gradient(prob, best.params)
        close(value, best.objective)
        assert max(float(jnp.abs(g).max()) for g in gradient) < 2e-15
        free = prob.bias and prob.lam_b == 0  # the bias then takes the mean of the logits
        if free or best.regime == "trivial":
            assert best.mean_eigenvalue == 0
        elif lam == 0.01:  # at stronger penalties it may be zero
            assert best.mean_eigenvalue < -4
        else:
            assert best.mean_eigenvalue <= 0
        (found,) = search(prob, 1)
        assert best.objective - 1e-12 < found < best.objective + 1e-7


def test_a_curious_loss_gets_its_own_message():
    def weighted(z, k):
        return losses.cross_entropy()(z, k) * (1.0 + k)

    def crooked(z, k):  # averaging raises it
        return jnp.sum(jnp.where(jnp.arange(z.shape[0]) == k, 0.0, jnp.tanh(z - z[k])))

    prob = problem("ce", (4, 6, 3), 0.01)
    for loss, message in (
        (weighted, "treats classes differently"),
        (crooked, "averaging the non-target logits raises"),
        (lambda z, k: jnp.sin(z[k]) + jnp.sum(z**2), "neither shift-invariant"),
    ):
        with pytest.raises(theory.NoClosedForm, match=message):
            theory.global_optimum(prob.replace(loss=losses.custom(loss)))
    with pytest.raises(theory.NoClosedForm, match="infimum is not attained"):
        theory.global_optimum(prob.replace(loss=losses.custom(lambda z, k: -z[k], convex=True)))


# --- 6. a bound below everything ------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 3.0])
@pytest.mark.parametrize(("K", "bias"), [(18, BIASES[1]), *((4, bias) for bias in BIASES)])
def test_nothing_goes_below_the_focal_bound(gamma, K, bias):
    for share in (0.3, 1.01, 3.0, 0.9):
        prob = at_share("fl", (K, 3, 2), share, hyper={"gamma": gamma}, **bias)
        bound = theory.focal_lower_bound(prob)
        wide = prob.replace(d=K)
        best = theory.global_optimum(wide)
        assert bound <= best.objective * (1 + 1e-14)
        assert best.lower_bound == theory.focal_lower_bound(wide)
        for scale in (0.01, 0.3, 1.0, 5.0):
            assert float(value_and_gradient(prob, ufm.init(prob, seed=K, scale=scale))[0]) >= bound
    (found,) = search(prob, 1)
    assert found >= bound * (1 - 1e-14)


def test_the_bound_is_the_hull_of_the_profile():
    """min over a of l**(a) + C |a| on a fine grid, in the strip where hull and profile differ."""
    K, gamma = 40, 3.0
    profile = scalar_profile(losses.focal(gamma), K)
    a = np.linspace(-60.0, 60.0, 200_001)
    unit = margin_of(theory.p_unit(gamma), K)
    hull = np.where(a < unit, profile.value(unit) + unit - a, profile.value(a))
    assert (hull <= profile.value(a) + 1e-12).all()
    for C in (0.5, 0.99, 1.02, 1.15):
        prob = problem("fl", (K, K, 1), C / (K - 1), hyper={"gamma": gamma})
        bound = float(prob.loss.lower_bound(setting(prob)))
        assert abs((hull + C * np.abs(a)).min() - bound) < 1e-7
        assert bound <= theory.focal_lower_bound(prob) == theory.global_optimum(prob).objective  # certified


# --- 7. refusals ----------------------------------------------------------------------------------------


def test_every_refusal_names_the_assumption():
    prob = problem("ce", (4, 6, 3), 0.01)
    with pytest.raises(theory.NoClosedForm, match="equally many samples"):
        theory.hessian_spectrum(ufm.Problem("ce", [0, 0, 1, 2], 3, 5))
    for wrong, message in (
        (prob.replace(d=2), "rank 3 and needs d >= 3"),
        (prob.replace(d=3, loss=losses.mse(), lam_b=0.02), "needs d >= 4"),
        (prob.replace(d=3, loss=losses.mse(kappa=2.0), bias=False), "orthogonal frame has rank 4"),
    ):
        for ask in (theory.global_optimum, theory.hessian_spectrum):
            with pytest.raises(theory.NoClosedForm, match=message):
                ask(wrong)
    with pytest.raises(ValueError, match="expected one number"):
        theory.global_optimum(prob.replace(lam_W=np.array([1e-2, 1e-3])))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda lam: theory.global_optimum(prob.replace(lam_W=lam)).objective)(0.1)
    with pytest.raises(ValueError, match="focal loss"):
        theory.focal_lower_bound(prob)


@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
def test_the_trivial_optimum_needs_no_dimension(loss, hyper):
    best = theory.global_optimum(problem(loss, (5, 1, 2), 200.0, hyper=hyper))
    assert (best.regime, best.rank, best.margin) == ("trivial", 0, 0.0)
    assert best.objective == best.trivial


def test_every_loss_of_the_paper_states_its_optimum_and_threshold():
    for name in losses.PAPER:
        loss, s = losses.get(name), setting(problem(name, (4, 5, 2), 1.0))
        assert loss.optimum(s) is not None
        assert loss.profile(4) is not None
        assert loss.threshold(s) is not None or loss.region() is not None  # focal: from its inflection


@pytest.mark.parametrize(("loss", "hyper"), LOSSES)
def test_closed_forms_compile_nothing(loss, hyper, compilations):
    prob = problem(loss, (5, 7, 2), 0.01, hyper=hyper)
    compilations()
    theory.global_optimum(prob)
    assert compilations() == 0
