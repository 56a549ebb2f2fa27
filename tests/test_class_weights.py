"""Class weights: the objective, its derivatives and certificate, the optimum and the thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

import ufm
from ufm import landscape, losses, theory

#: K = 5; neither counts nor weights are sorted, and two classes share both
COUNTS = np.array([2, 6, 3, 2, 6])
WEIGHTS = np.array([1.5, 0.7, 1.2, 1.5, 0.4])
LOSSES = (("ce", {}), ("ls", {"alpha": 0.2}), ("mse", {"kappa": 2.0, "beta": 1.5}), ("ova", {}))
REGIMES = ({"lam_b": 0.0}, {"lam_b": 0.05}, {"bias": False})


def problem(loss="ce", weights=WEIGHTS, counts=COUNTS, x=None, **options) -> ufm.Problem:
    """Labels in random order; N sqrt(lam_W lam_H) = x."""
    labels = np.random.default_rng(4).permutation(np.repeat(np.arange(len(counts)), counts))
    scale = (0.3 if x is None else x) / len(labels)
    hyper = {name: options.pop(name) for name in ("alpha", "kappa", "beta", "gamma") if name in options}
    options = {"lam_W": 2 * scale, "lam_H": scale / 2, "d": len(counts) + 1} | options
    return ufm.Problem(losses.get(loss, **hyper), labels, class_weights=weights, **options)


def test_the_objective_weighs_each_sample():
    prob = problem("mse", kappa=2.0)
    params = ufm.init(prob, seed=1, scale=1.0)
    Z, labels = np.asarray(prob.logits(params)), np.asarray(prob.labels)
    target = Z[labels, np.arange(prob.N)]
    each = (Z**2).sum(axis=0) - target**2 + 2 * (target - 15) ** 2
    penalty = prob.lam_W * np.sum(params.W**2) + prob.lam_H * np.sum(params.H**2)
    close(prob(params), np.mean(WEIGHTS[labels] * each) + penalty / 2)
    close(prob.replace(class_weights=np.ones(5))(params), prob.replace(class_weights=None)(params))
    G, expected = prob.logit_gradient(params), prob.replace(class_weights=None).logit_gradient(params)
    close(G, WEIGHTS[labels] * np.asarray(expected))
    means = prob.means()
    shared = params._replace(H=jnp.asarray(params.H)[:, :5])
    close(means(shared), prob(shared._replace(H=shared.H[:, labels])), ulps=64)


def test_records_name_the_weights():
    prob = problem()
    assert prob.to_dict()["class_weights"] == WEIGHTS.tolist()
    assert prob.to_dict()["loss"] == "ce"
    assert (prob.n, prob.unequal) == (None, "counts from 2 to 6")
    equal = ufm.Problem.balanced("ls", K=3, d=4, n=2, class_weights=[1, 2, 3], alpha=0.2)
    assert (equal.n, equal.unequal) == (None, "class weights from 1 to 3")
    assert "label smoothing(alpha=0.2) with class weights 1..3" in repr(equal)
    assert ufm.Problem.from_counts(counts=[1, 2], class_weights=[1, 2.5]).class_weights.tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], r"class_weights: expected \(K,\) = \(5,\) numbers > 0, got shape \(2,\)"),
        ([1, 0, 1, 1, 1], "got 0 for class 1"),
        ([1, 1, 1, -2.5, 1], r"got -2\.5 for class 3"),
        ([1, 1, np.nan, 1, 1], "got nan for class 2"),
        ([1, 1, np.inf, 1, 1], "got inf for class 2"),
        (["a"] * 5, "expected real numbers"),
        (np.ones((5, 1)), r"got shape \(5, 1\)"),
    ],
)
def test_weights_that_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        problem(weights=weights)
    with pytest.raises(ValueError, match=message):
        problem().replace(class_weights=weights)


def test_weights_of_weighted_losses_are_refused():
    with pytest.raises(ValueError, match="expected a loss without weights"):
        ufm.Problem(problem().loss, COUNTS * 0 + np.arange(5), d=3, class_weights=WEIGHTS)


@pytest.mark.parametrize(
    ("loss", "hyper", "regime"), [(*loss, REGIMES[i % 3]) for i, loss in enumerate(LOSSES)], ids=str
)
def test_the_optimum(loss, hyper, regime):
    """The dual bound closes at theory's point and at the solver's, and both have one objective."""
    for x in (0.3, 2.1, 2.13):  # 1.5 sqrt(2) is a threshold of CE
        prob = problem(loss, x=x, **hyper, **regime)
        best = theory.global_optimum(prob)
        close(prob(best.params), best.objective, ulps=64)
        assert landscape.certificate(prob, best.params).gap < 1e-13
    sol = ufm.solve(prob, ufm.init(prob, seed=3), reduced=True)
    assert abs(float(sol.objective) - best.objective) < 1e-12
    assert landscape.certificate(prob, sol.params).is_global


def test_the_certificate_bounds_where_the_point_is_not_optimal():
    """f - f* <= gap at random points near the optimum, with a gap that falls with the distance."""
    for loss, hyper in LOSSES[1:3]:
        prob = problem(loss, **hyper)
        best = theory.global_optimum(prob)
        for size in (1e-2, 1e-4):
            away = ufm.init(prob, seed=2, scale=size)
            point = jax.tree.map(jnp.add, best.params, away)
            gap = landscape.certificate(prob, point).gap
            above = float(prob(point)) - best.objective
            assert above <= gap + 1e-14
            assert gap < 1e4 * size**2


@pytest.mark.parametrize("lam_b", [0.0, 0.05])
def test_no_dual_bound_exceeds_the_optimum(lam_b):
    """Biases far from stationary, where the dual point is moved along the simplexes of sum w_k."""
    prob = problem("ls", lam_b=lam_b)
    best, rng = theory.global_optimum(prob), np.random.default_rng(0)
    for _ in range(20):
        point = best.params._replace(b=best.params.b + 2 * rng.normal(size=5))
        assert landscape.certificate(prob, point).lower_bound <= best.objective + 1e-14


def test_the_hessian():
    """The exact split of the spectrum and the inertia against the dense matrix."""
    prob = problem("ls", counts=np.array([1, 3, 2]), weights=WEIGHTS[:3], x=1.2)
    point = theory.global_optimum(prob).params
    dense = np.linalg.eigvalsh(_dense(prob, point))
    close(landscape.eigenvalues(prob, point, which="all").expand(), dense, ulps=2**14)
    near = 1e-9 * dense.max()
    expected = (int((dense < -near).sum()), int((np.abs(dense) <= near).sum()))
    assert tuple(landscape.inertia(prob, point))[:2] == expected


def _dense(prob, params) -> np.ndarray:
    flat, back = jax.flatten_util.ravel_pytree(params)
    return np.asarray(jax.hessian(lambda x: prob(back(x)))(flat))


def test_the_closed_form_of_two_groups():
    """Equal counts of unequal weight, and unequal counts: every phase, next to thresholds, by the dual."""
    for counts, weights in (([4] * 5, [2, 1, 2, 1, 1]), ([2, 7, 2, 7, 7], [1.5, 0.4, 1.5, 0.4, 0.4])):
        prob = problem("ls", weights=weights, counts=np.array(counts))
        found = theory.threshold(prob)
        for x in (0.6, *(0.995 * found.x_merge), 1.005 * found.x_merge.min(), 0.995 * found.x_means):
            near = problem("ls", weights=weights, counts=np.array(counts), x=x)
            best = theory.global_optimum(near)
            assert best.theorem.endswith("in closed form") == (x < found.x_means)
            assert landscape.certificate(near, best.params).gap < 1e-13


def test_weights_that_are_all_equal_rescale_the_problem():
    """w L with lam is w times L with lam/w."""
    prob = problem(weights=np.full(5, 3.0))
    other = problem(weights=None, lam_W=prob.lam_W / 3, lam_H=prob.lam_H / 3)
    close(theory.global_optimum(prob).objective, 3 * theory.global_optimum(other).objective, ulps=64)
    close(theory.threshold(prob).x_zero, 3 * theory.threshold(other).x_zero, ulps=256)


def features(prob) -> np.ndarray:
    return np.asarray(prob.class_means(theory.global_optimum(prob).params.H))


def spread(h, group) -> float:
    return float(np.ptp(h[:, group], axis=1).max())


def test_inverse_frequencies_let_the_majority_collapse_first():
    """w_k = N/(K n_k): merged at x = N/(K sqrt n), so that large counts merge at small penalties."""
    counts = np.array([8, 2, 8, 2, 8])
    weights = counts.sum() / (5 * counts)
    found = theory.threshold(problem(weights=weights, counts=counts))
    close(found.x_merge, counts.sum() / 5 / np.sqrt([8, 2]))
    majority, minority = [0, 2, 4], [1, 3]
    for share, apart in ((0.99, True), (1.01, False)):
        h = features(problem(weights=weights, counts=counts, x=share * found.x_merge[0]))
        assert (spread(h, majority) > 1e-3) == apart
        assert spread(h, minority) > 1e-3


def test_weights_with_the_roots_of_the_counts_give_all_classes_one_threshold():
    counts = np.array([9, 2, 9, 2, 5, 5])
    weights = counts.sum() / 6 / np.sqrt(counts)
    found = theory.threshold(problem("ls", weights=weights, counts=counts, alpha=0.3))
    close(found.x_merge, np.full(3, 0.7 * counts.sum() / 6))
    for share in (0.99, 1.01):
        h = features(problem("ls", weights=weights, counts=counts, alpha=0.3, x=share * found.x_merge[0]))
        for group in ([0, 2], [1, 3], [4, 5]):
            assert (spread(h, group) > 1e-3) == (share < 1)


def test_new_weights_compile_nothing(monkeypatch):
    traced, plain = [], losses.LabelSmoothing.__call__
    monkeypatch.setattr(
        losses.LabelSmoothing, "__call__", lambda *args: (traced.append(args), plain(*args))[1]
    )

    def both(factor: float) -> None:
        counts, weights = np.append(COUNTS, 9), factor * np.append(WEIGHTS, 1.0)  # a K of its own
        prob = problem("ls", weights=weights, counts=counts, alpha=0.25)
        theory.global_optimum(prob)
        ufm.solve(prob, reduced=True)

    both(1.0)
    assert traced
    traced.clear()
    both(1.1)
    assert not traced


def test_verify_measures_what_weights_leave():
    report = ufm.verify(ufm.solve(problem(x=1.9)))
    assert report.passed
    verdicts = {claim.name: claim.verdict for claim in report.claims}
    held = ("objective", "certificate", "within_class", "sample_mean", "group_etf", "group_duality")
    assert [verdicts[name] for name in held] == ["holds"] * 6
    assert verdicts["etf"] == "not applicable"


def test_a_user_s_function_takes_weights():
    def mine(z, k):
        return jax.nn.logsumexp(z) - z[k]

    loss = losses.custom(mine, convex=True, shift_invariant=True)
    sol = ufm.solve(problem(loss), reduced=True)
    assert abs(float(sol.objective) - theory.global_optimum(problem()).objective) < 1e-12
    assert landscape.certificate(problem(loss), sol.params).gap < 1e-8


def test_hyperparameters_of_a_weighted_loss_are_swept():
    loss = losses.exchanged(problem("ls").loss, alpha=0.3)
    assert loss.hyperparameters == {"alpha": 0.3}
    assert losses.weights_of(loss) is losses.weights_of(losses.exchanged(loss, alpha=0.2))
    z = jnp.linspace(-1.0, 2.0, 5)
    close(loss(z, 3), 1.5 * losses.label_smoothing(0.3)(z, 3))


def test_focal_loss_is_refused_with_what_works():
    with pytest.raises(
        theory.NoClosedForm, match=r"class weights .* convex losses.* solvers and certificate"
    ):
        theory.global_optimum(problem("fl"))
    assert ufm.solve(problem("fl")).converged


def test_theorems_about_equal_classes_refuse_weights():
    prob = ufm.Problem.balanced("ce", K=4, d=6, n=3, class_weights=[1, 2, 1, 1])
    with pytest.raises(theory.NoClosedForm, match="no weights, got class weights from 1 to 2"):
        theory.hessian_spectrum(prob)
    deep = prob.replace(model=ufm.models.deep(layers=2).fitted(4, 6))
    with pytest.raises(theory.NoClosedForm, match="no weights"):
        theory.global_optimum(deep)
    with pytest.raises(theory.NoClosedForm, match="two free factors, got model=fixed"):
        theory.threshold(prob.replace(model=ufm.models.fixed().fitted(4, 6)))
    assert theory.threshold(prob).weights.tolist() == [2.0, 1.0]


def test_new_weights_and_new_counts_of_as_many_samples_compile_nothing(compilations):
    def solved(counts, weights):
        return ufm.solve(ufm.Problem.from_counts("ce", counts=counts, d=4, class_weights=weights))

    solved([3, 2, 1], [1.0, 2.0, 3.0])
    compilations()
    assert solved([1, 4, 1], [2.0, 0.5, 1.0]).converged
    assert compilations() == 0
