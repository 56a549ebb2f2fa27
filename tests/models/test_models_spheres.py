"""Unit vectors: the Riemannian solver, the optimum and the spectrum in closed form, spurious minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from tolerances import close

import ufm
from ufm import landscape, solvers, theory
from ufm._pytree import replace
from ufm._rays import rays_of
from ufm.claims import SPHERES, Facts
from ufm.models import Params, spheres

K, D = 3, 4
LABELS = np.array([2, 0, 1, 1, 2, 0])


def problem(loss="ce", labels=LABELS, d=D, scale=2.0, **options):
    features_only = options.pop("features_only", False)
    return ufm.Problem(
        loss, labels, int(max(labels)) + 1, d, model=spheres(scale, features_only=features_only), **options
    )


def on_circle(degrees):
    angle = np.deg2rad(np.asarray(degrees, float))
    return np.stack([np.cos(angle), np.sin(angle)])


def random_point(prob, seed=0):
    return ufm.init(prob, seed=seed)


# --- the problem ----------------------------------------------------------------------------------


def test_f_is_the_mean_loss_of_scaled_cosines_and_constant_along_rays():
    prob, rng = problem("ls"), np.random.default_rng(0)
    W, H = rng.normal(size=(K, D)), rng.normal(size=(D, 6))
    W1, H1 = W / np.linalg.norm(W, axis=1, keepdims=True), H / np.linalg.norm(H, axis=0)
    losses = [float(prob.loss(jnp.asarray(2.0 * W1 @ h), k)) for h, k in zip(H1.T, LABELS, strict=True)]
    for point in (Params(W, H, np.zeros(K)), Params(W1, H1, np.zeros(K))):
        close(prob(point), np.mean(losses), ulps=64)
    close(prob.model.effective(prob, Params(W, H, np.zeros(K))).W, 2.0 * W1)
    assert prob.replace(lam_W=7.0, lam_H=3.0)(Params(W, H, np.zeros(K))) == prob(Params(W, H, np.zeros(K)))
    assert prob.size == K * (D - 1) + 6 * (D - 1)


def test_a_start_is_on_the_spheres_and_uniform_there():
    point = random_point(problem())
    close(np.linalg.norm(point.W, axis=1), np.ones(K))
    close(np.linalg.norm(point.H, axis=0), np.ones(6))
    assert not np.any(point.b)


@pytest.mark.parametrize("features_only", [False, True])
def test_the_hessian_is_that_of_geodesics(features_only):
    """Along x cos t + v sin t the second derivative is the Riemannian Hessian's form, at any point."""
    prob = problem("ls", features_only=features_only, lam_W=0.03)
    point, rng = random_point(prob), np.random.default_rng(1)
    drawn = Params(rng.normal(size=(K, D)), rng.normal(size=(D, 6)), np.zeros(K))
    v = prob.model.tangent(point, drawn)
    moved = [1e-4 * t for t in (-2, -1, 0, 1, 2)]

    def along(t):
        speed_W, speed_H = np.linalg.norm(v.W, axis=1, keepdims=True), np.linalg.norm(v.H, axis=0)
        W = point.W * np.cos(t * speed_W) + v.W / speed_W * np.sin(t * speed_W)
        H = point.H * np.cos(t * speed_H) + v.H / speed_H * np.sin(t * speed_H)
        return float(prob(Params(point.W + t * v.W if features_only else W, H, np.zeros(K))))

    f = [along(t) for t in moved]
    second = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * 1e-8)
    image = landscape.hvp(prob, point, drawn)
    form = sum(float(np.vdot(x, y)) for x, y in zip(image, v, strict=True))
    np.testing.assert_allclose(form, second, rtol=1e-6)
    assert np.abs(np.sum(image.H * point.H, axis=0)).max() < 1e-15
    # the dense matrix is the same form in coordinates of the tangents
    basis = prob.model.tangents(point)[: prob.unknowns, : prob.size]
    flat = np.concatenate([np.ravel(v.W), np.ravel(v.H)])
    np.testing.assert_allclose(basis.T @ basis, np.eye(prob.size), atol=1e-15)
    coordinates = basis.T @ flat
    np.testing.assert_allclose(basis @ coordinates, flat, atol=1e-14)
    dense = landscape.dense(prob, point)
    np.testing.assert_allclose(coordinates @ dense @ coordinates, form, rtol=1e-12)


# --- the solver -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
def test_the_minimum_is_that_of_another_solver_in_angles(solver):
    """d = 2, K = 4: scipy minimises over angles."""
    labels = np.array([3, 0, 1, 2, 1])
    prob = problem(labels=labels, d=2, scale=3.0)

    def f(angles):
        t, u = angles[:4], angles[4:]
        Z = 3.0 * np.cos(t[:, None] - u)
        return float(np.mean(np.log(np.exp(Z - Z[labels, np.arange(5)]).sum(axis=0))))

    best = min(
        (minimize(f, np.random.default_rng(i).uniform(0, 7, 9), method="BFGS", tol=1e-9) for i in range(4)),
        key=lambda x: x.fun,
    )
    found = min(float(ufm.solve(prob, random_point(prob, i), solver=solver).objective) for i in range(4))
    np.testing.assert_allclose(found, best.fun, rtol=1e-10)


def test_the_residual_is_the_riemannian_gradient():
    prob = problem()
    sol = ufm.solve(prob, random_point(prob, 3), max_steps=2, record=True)
    point = sol.params
    close(np.linalg.norm(point.H, axis=0), np.ones(6))
    linear = prob.logit_gradient(point)
    on_W, on_H = 2.0 * np.asarray(linear @ point.H.T), 2.0 * np.asarray(point.W.T @ linear)
    on_W -= np.sum(on_W * point.W, axis=1, keepdims=True) * point.W
    on_H -= np.sum(on_H * point.H, axis=0) * point.H
    np.testing.assert_allclose(
        sol.grad_norm, np.hypot(np.linalg.norm(on_W), np.linalg.norm(on_H)), rtol=1e-10
    )
    start = random_point(prob, 3)
    np.testing.assert_allclose(sol.history.objective[0], prob(start), rtol=1e-14)


@pytest.mark.parametrize("model", [spheres(2.0), ufm.models.norm_constrained(E_W=2.0, E_H=0.5)], ids=repr)
def test_a_solver_runs_in_the_row_space_of_W_with_the_same_objective_and_gradient(model):
    prob = ufm.Problem("ls", LABELS, K, 7, model=model)
    start = random_point(prob, 2)
    view, y = rays_of(prob, start, solvers.get("newton"))
    point = view.expanded(prob, y, reduced=False)
    assert view.problem.d == K + (1 if "scale" in repr(model) else 0)
    np.testing.assert_allclose(prob(point), prob(start), rtol=1e-14)
    assert not prob.model.feasible(prob, point)[1]
    gradient = np.concatenate([np.ravel(x) for x in prob.gradient(point)])
    residual = view.residual(y, jax.grad(view.objective)(y))
    np.testing.assert_allclose(residual, np.linalg.norm(gradient), rtol=1e-12)
    plain, z = rays_of(prob, start, solvers.Newton(rotate=False, balance=False))
    assert (plain.problem.d, z) == (7, start)


def test_an_infeasible_start_is_projected_and_the_solution_says_so():
    prob = problem()
    start = random_point(prob, 5)
    far = start._replace(W=3.0 * start.W)
    plain, moved = ufm.solve(prob, start), ufm.solve(prob, far)
    assert (plain.projected, moved.projected) == (False, True)
    np.testing.assert_allclose(moved.params.W, plain.params.W, atol=1e-12)
    assert "nearest feasible point" in repr(moved)
    assert "nearest feasible point" not in repr(plain)
    assert moved.to_dict()["projected"]


def test_a_new_scale_compiles_nothing(compilations):
    ufm.solve(problem(scale=1.5))
    compilations()
    ufm.solve(problem(scale=2.5))
    assert compilations() == 0


# --- the optimum ----------------------------------------------------------------------------------

# name, K, d, n, scale, hyperparameters; label smoothing's profile is lowest at a0 = log(3/.1 - 2) = 3.332,
# which unit vectors reach at scale 2.2214
OPTIMA = [
    ("ce", 3, 4, 2, 2.0, {}),
    ("ce", 3, 2, 2, 0.7, {}),
    ("ls", 3, 4, 2, 2.21, {}),
    ("ls", 3, 4, 2, 2.23, {}),
    ("ls", 3, 4, 2, 3.0, {}),
    ("fl", 3, 4, 2, 3.0, {"gamma": 2.0}),
]


@pytest.mark.parametrize(("loss", "K", "d", "n", "scale", "options"), OPTIMA)
def test_the_optimum_is_the_solvers_and_certified(loss, K, d, n, scale, options):
    prob = ufm.Problem.balanced(loss, K=K, d=d, n=n, model=spheres(scale), **options)
    best, sol = theory.global_optimum(prob), ufm.solve(prob, ufm.init(prob, seed=1))
    assert sol.converged
    assert best.proved == "proved"
    np.testing.assert_allclose(sol.objective, best.objective, rtol=0, atol=1e-13)
    np.testing.assert_allclose(prob(best.params), best.objective, rtol=0, atol=1e-14)
    logits = np.asarray(prob.logits(best.params))
    own = logits[prob.labels, np.arange(prob.N)]
    others = np.where(np.arange(K)[:, None] == prob.labels, -np.inf, logits)
    np.testing.assert_allclose(own - others.max(axis=0), best.margin, atol=1e-13 * scale)
    assert sol.certificate.is_global


def test_cross_entropy_and_label_smoothing_in_numbers():
    at = {
        (name, s): theory.global_optimum(problem(name, scale=s)) for name in ("ce", "ls") for s in (2.0, 3.0)
    }
    np.testing.assert_allclose(at["ce", 2.0].objective, np.log1p(2 * np.exp(-3.0)), rtol=1e-14)
    a0 = np.log(3 / 0.1 - 2)
    np.testing.assert_allclose(at["ls", 3.0].margin, a0, rtol=1e-12)
    np.testing.assert_allclose(at["ls", 2.0].margin, 3.0, rtol=1e-15)
    # neural collapse is worse by 0.031
    aligned = problem("ls", scale=3.0)
    worse = float(aligned(theory.global_optimum(problem("ce", scale=3.0)).params)) - at["ls", 3.0].objective
    np.testing.assert_allclose(worse, 0.031, atol=5e-4)


def test_features_alone_on_the_sphere():
    """W = r unit rows: min over r of l(s r K/(K-1)) + lam_W K r^2/2."""
    prob = problem(features_only=True, lam_W=0.03)
    best, sol = theory.global_optimum(prob), ufm.solve(prob)
    r = minimize(lambda r: np.log1p(2 * np.exp(-3.0 * r[0])) + 0.045 * r[0] ** 2, [1.0], tol=1e-12)
    np.testing.assert_allclose([best.objective, sol.objective], r.fun, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(sol.params.W, axis=1), r.x[0], rtol=1e-5)
    assert sol.certificate.is_global


def test_the_bound_is_valid_where_the_simplex_does_not_fit():
    prob = ufm.Problem.balanced("ce", K=5, d=3, n=1, model=spheres(2.0))
    with pytest.raises(theory.NoClosedForm, match=r"d: expected d >= K - 1 = 4, or d = 2"):
        theory.global_optimum(prob)
    bound, sol = theory.lower_bound(prob), ufm.solve(prob)
    np.testing.assert_allclose(bound, np.log1p(4 * np.exp(-2.5)), rtol=1e-14)
    assert bound < sol.objective
    np.testing.assert_allclose(sol.certificate.lower_bound, bound, rtol=1e-12)
    assert sol.certificate.verdict == "not certified"


def test_the_polygon_is_the_lowest_known_in_the_plane():
    prob = ufm.Problem.balanced("ce", K=5, d=2, n=1, model=spheres(3.0))
    best = theory.global_optimum(prob)
    value = np.log(np.exp(3.0 * (np.cos(2 * np.pi * np.arange(5) / 5) - 1)).sum())
    np.testing.assert_allclose(best.objective, value, rtol=1e-14)
    assert (best.proved, best.structure) == ("upper bound", "regular polygon")
    found = min(float(ufm.solve(prob, random_point(prob, i)).objective) for i in range(3))
    np.testing.assert_allclose(found, value, rtol=1e-12)


# --- the landscape --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "K", "d", "n", "scale"),
    [("ce", 3, 4, 2, 2.0), ("ls", 4, 5, 3, 2.0), ("ce", 2, 3, 2, 1.0), ("fl", 4, 3, 2, 4.0)],
)
def test_the_spectrum_at_the_optimum(loss, K, d, n, scale):
    prob = ufm.Problem.balanced(loss, K=K, d=d, n=n, model=spheres(scale))
    spectrum, point = theory.hessian_spectrum(prob), theory.global_optimum(prob).params
    found = np.linalg.eigvalsh(landscape.dense(prob, point))
    close(spectrum.expand(), found, ulps=100)
    assert spectrum.nullity == (K - 1) * (K - 2) // 2 + (d - K + 1) * (K - 1)
    inertia = landscape.inertia(prob, point)
    assert (inertia.neg, inertia.zero, inertia.symmetry) == (0, spectrum.nullity, spectrum.nullity)
    assert inertia.pos == prob.size - spectrum.nullity


def test_where_all_vectors_are_equal_there_is_a_strict_saddle():
    """Eigenvalues +-s/(K sqrt n), (d-1)(K-1) of each, the rest zero."""
    prob, u = problem(), np.array([0.1, -0.5, 0.7, 0.5])
    point = Params(np.tile(u, (K, 1)), np.tile(u[:, None], 6), np.zeros(K))
    point = prob.model.nearest(prob, point)
    expected = 2.0 / (3 * np.sqrt(2)) * np.repeat([-1.0, 0.0, 1.0], [6, prob.size - 12, 6])
    close(np.linalg.eigvalsh(landscape.dense(prob, point)), expected, ulps=100)
    inertia = landscape.inertia(prob, point)
    assert (inertia.neg, inertia.pos, inertia.symmetry) == (6, 6, D - 1)
    np.testing.assert_allclose(landscape.eigenvalues(prob, point, 1, method="lanczos").values, expected[0])
    assert ufm.solve(prob, point, escape=False).status.name == "STRICT_SADDLE"
    left = ufm.solve(prob, point)
    assert left.certificate.is_global


def test_in_the_plane_three_classes_have_a_strict_spurious_minimum():
    """K = 3, d = 2, scale 10: not every second-order point is global at d = K - 1."""
    prob = problem(labels=np.arange(3), d=2, scale=10.0)
    start = Params(on_circle([0, 358.4, 51.8]).T, on_circle([230.1, 269.5, 115.5]), np.zeros(3))
    sol = ufm.solve(prob, start, tol=1e-12)
    inertia = landscape.inertia(prob, sol.params)
    assert (inertia.neg, inertia.zero, inertia.symmetry) == (0, 1, 1)
    np.testing.assert_allclose(sol.objective - theory.global_optimum(prob).objective, 0.461133, atol=5e-7)
    values = landscape.eigenvalues(prob, sol.params, which="all").values
    np.testing.assert_allclose(values[1], 1.007e-3, rtol=1e-3)
    assert sol.certificate.verdict == "not certified"


# --- claims ---------------------------------------------------------------------------------------

CLAIMS = (
    "fixed_norms",
    "riemannian_gradient",
    "features_coincide",
    "rows_simplex",
    "features_along_rows",
    "sphere_logits",
    "riemannian_spectrum",
)


def test_verify_measures_the_statements_about_unit_vectors():
    report = ufm.verify(ufm.solve(problem(), tol=1e-12))
    assert report.passed
    assert [report[name].verdict for name in CLAIMS] == ["holds"] * 7
    for name in ("objective", "certificate", "second_order"):
        assert report[name].verdict == "holds"
    assert report["multipliers"].verdict == "not applicable"
    # flat: the gradient norm ends near 1e-12 at its rounding floor
    tilted = ufm.verify(ufm.solve(problem("ls", scale=3.0), tol=1e-11))
    assert tilted.passed
    assert tilted["features_along_rows"].verdict == "not applicable"


@pytest.mark.parametrize("name", CLAIMS)
def test_each_of_them_fails_beside_the_optimum(name):
    prob = problem()
    sol = ufm.solve(prob, tol=1e-12)
    W, H, b = (np.array(x) for x in sol.params)
    if name == "fixed_norms":
        W[0] *= 1 + 1e-6
    else:
        W[0], H[:, 1] = W[0] + 1e-6 * W[1], H[:, 1] + 1e-6 * W[2]
        H[:, 1] /= np.linalg.norm(H[:, 1])
        W[0] /= np.linalg.norm(W[0])
    moved = replace(sol, params=Params(*map(jnp.asarray, (W, H, b))))
    row = next(row for row in SPHERES if row.name == name)
    assert row.claim(Facts(moved)).verdict == "fails"


def test_where_the_landscape_is_too_flat_for_the_gradient_the_structure_is_not_judged():
    report = ufm.verify(ufm.solve(problem(scale=16.0)))
    assert report.passed
    assert "solve with a smaller tol" in report["rows_simplex"].why


# --- a contrastive loss ---------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "n", "s"), [(3, 2, 1.0), (4, 3, 2.5)])
def test_the_least_supervised_contrastive_loss(K, n, s):
    labels = np.tile(np.arange(K), n)

    def f(z):
        z = z.reshape(K * n, K)
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        logits = jnp.where(jnp.eye(K * n, dtype=bool), -jnp.inf, s * z @ z.T)
        log_p = logits - jax.scipy.special.logsumexp(logits, axis=1, keepdims=True)
        positive = (labels[:, None] == labels) & ~np.eye(K * n, dtype=bool)
        return -jnp.sum(jnp.where(positive, log_p, 0.0)) / (K * n * (n - 1))

    least, g = theory.supervised_contrastive(K, n, s), jax.jit(jax.value_and_grad(f))
    starts = np.random.default_rng(0).normal(size=(2, K * n * K))
    found = [minimize(lambda z: [np.asarray(x) for x in g(z)], z, jac=True, tol=1e-11).fun for z in starts]
    np.testing.assert_allclose(min(found), least, rtol=1e-9)
    assert min(found) >= least * (1 - 1e-13)


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: spheres(0.0), "scale: expected a finite number > 0, got 0.0"),
        (lambda: problem(scale=-1.0), "scale: expected a finite number > 0, got -1.0"),
        (lambda: problem(bias=True), "bias: expected False with model=spheres.*got True"),
        (lambda: problem(d=1), "d: expected d >= 2 .* got d=1"),
        (
            lambda: ufm.solve(problem(), Params(jnp.zeros((K, D)), jnp.ones((D, 6)), jnp.zeros(K))),
            "W: expected vectors that are not zero",
        ),
        (lambda: theory.global_optimum(problem(labels=np.array([0, 0, 1, 2]))), "labels.*: .* equal counts"),
        (lambda: theory.global_optimum(problem("mse")), "loss: .* feels a common shift"),
        (lambda: theory.global_optimum(problem("ls", d=2, scale=3.0)), "d: .* need d >= K = 3, got d=2"),
        (lambda: theory.hessian_spectrum(problem("ls", scale=3.0)), "model: the spectrum is known"),
        (lambda: theory.supervised_contrastive(3, 1, 1.0), "n: expected an integer >= 2"),
    ],
)
def test_what_does_not_fit_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
