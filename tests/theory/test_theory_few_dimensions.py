"""Fewer dimensions than the simplex ETF: the bound that knows the rank, codes, and truncated squares."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from scipy.special import logsumexp
from tolerances import close

import ufm
from ufm import landscape, theory
from ufm.theory import _codes, _rank_bound

REGIMES = {"free": (True, 0.0), "penalised": (True, 0.03), "absent": (False, 0.0)}


def problem(K, d, regime="free", loss="ce", n=2, c=0.01, **hyper) -> ufm.Problem:
    """sqrt(n lam_W lam_H) = c with lam_W = 3 lam_H, and labels in random order."""
    bias, lam_b = REGIMES[regime]
    lam = c / np.sqrt(n)
    penalties = {"lam_W": lam * np.sqrt(3), "lam_H": lam / np.sqrt(3), "lam_b": lam_b, "bias": bias}
    prob = ufm.Problem.balanced(loss, K=K, d=d, n=n, **penalties, **hyper)
    return prob.replace(labels=np.random.default_rng(1).permutation(prob.labels))


def jet(prob, params):
    """f and |grad f| in numpy: cross-entropy, label smoothing, or squared error with kappa = 1."""
    W, H, b = map(np.asarray, params)
    K, N, target = prob.K, prob.N, np.eye(prob.K)[:, prob.labels]
    Z = W @ H + b[:, None]
    if prob.loss.name == "mse":
        G = 2 * (Z - prob.loss.beta * target)
        loss = np.sum(G**2) / 4
    else:
        alpha = float(getattr(prob.loss, "alpha", 0.0))
        target = (1 - alpha) * target + alpha / K
        loss = np.sum(logsumexp(Z, axis=0)) - np.sum(target * Z)
        G = np.exp(Z - logsumexp(Z, axis=0)) - target
    penalties = ((prob.lam_W, W), (prob.lam_H, H), (prob.lam_b, b))
    value = loss / N + sum(float(lam) * np.sum(x**2) for lam, x in penalties) / 2
    parts = [G @ H.T / N + prob.lam_W * W, W.T @ G / N + prob.lam_H * H]
    parts += [G.sum(axis=1) / N + prob.lam_b * b] if prob.bias else []
    return value, float(np.sqrt(sum(np.sum(part**2) for part in parts)))


# --- the bound ------------------------------------------------------------------------------------


def program(K, d, u, state):
    """The objective at one class in the state (tau_B, r_B) and K - 1 in (tau_A, 0), and its constraint."""
    tau_A, tau_B, r = state
    T, ratio = (K - 1) * tau_A + tau_B, K / (K - 1)

    def psi(tau, r):
        entries = np.full(K, -tau / (K - 1) + r / np.sqrt((K - 1) * (K - 2)))
        entries[0], entries[1] = tau, -tau / (K - 1) - r * np.sqrt((K - 2) / (K - 1))
        return logsumexp(entries) - entries[0]

    value = ((K - 1) * psi(tau_A, 0.0) + psi(tau_B, r)) / K + u * T
    return value, ratio * ((K - 1) * tau_A**2 + tau_B**2) + r**2 - T**2 / d


# the fourth is within 1 % of the threshold u = 1/K
@pytest.mark.parametrize(("K", "d", "u"), [(4, 2, 0.01), (7, 4, 1e-3), (5, 1, 0.08), (5, 3, 0.1985)])
def test_the_bound_is_the_minimum_of_its_program(K, d, u):
    """A solver of nonlinear programs, where one class differs from the others."""
    found = []
    top = np.log(1 / u - (K - 1)) * (K - 1) / K
    for tau_B, r in ((1.0, 1.0), (1.3, 1.7), (1.1, 2.5)):
        constraint = {"type": "ineq", "fun": lambda x: program(K, d, u, x)[1]}
        start = top * np.array([0.97, tau_B, r])
        options = {"ftol": 1e-15, "maxiter": 500}
        ended = scipy.optimize.minimize(
            lambda x: program(K, d, u, x)[0], start, constraints=[constraint], method="SLSQP", options=options
        )
        found.append(ended.fun if constraint["fun"](ended.x) > -1e-9 else np.inf)
    assert abs(_rank_bound.of_rank(K, d, u) - min(found)) < 1e-8


@pytest.mark.parametrize("scale", [1e-3, 0.1, 0.5])
def test_no_point_of_the_program_is_below_the_bound(scale):
    """Random states of K classes, some near the minimum, with deviations that fulfil the constraint."""
    K, d, u, rng = 5, 2, 0.03, np.random.default_rng(3)
    tau = 2.1 * (1 + scale * rng.normal(size=(4000, K)))
    r = np.abs(rng.normal(size=(4000, K))) ** rng.integers(0, 9, size=(4000, 1))
    tau[:, 0] += rng.random(4000)
    r[:, 1:] *= scale
    T = tau.sum(axis=1)
    missing = T**2 / d - np.sum(tau**2, axis=1) * K / (K - 1)
    r *= np.sqrt(np.maximum(missing, 0.0) / np.sum(r**2, axis=1))[:, None]
    value, bound = _rank_bound._psi(K, tau, r).mean(axis=1) + u * T, _rank_bound.of_rank(K, d, u)
    assert np.mean(missing > 0) > 0.9
    assert bound < value.min() < bound + 0.05


def test_psi_is_the_least_cross_entropy_of_a_column():
    """Random columns of sum zero with the same target and deviation lie above; one of them has the value."""
    K, rng = 6, np.random.default_rng(0)
    for tau, r in ((2.0, 0.3), (4.0, 5.0), (-1.0, 2.0)):
        spread = rng.normal(size=(5000, K - 1))
        spread[:5] = np.eye(5) * -1.0
        spread -= spread.mean(axis=1, keepdims=True)
        spread *= r / np.linalg.norm(spread, axis=1, keepdims=True)
        z = np.column_stack([np.full(5000, tau), spread - tau / (K - 1)])
        loss = logsumexp(z, axis=1) - tau
        psi = float(_rank_bound._psi(K, np.array(tau), np.array(r)))
        close(loss[:5], np.full(5, psi), ulps=64, scale=1 + abs(psi))
        assert loss.min() >= psi - 1e-14


@pytest.mark.parametrize(
    ("loss", "hyper", "regime"),
    [("ce", {}, "free"), ("ls", {"alpha": 0.1}, "penalised"), ("ce", {}, "absent")],
)
def test_solutions_lie_above_the_bound_and_the_certificate_says_so(loss, hyper, regime):
    prob = problem(5, 2, regime, loss, **hyper)
    bound, wide = theory.rank_lower_bound(prob), theory.global_optimum(prob.replace(d=4)).objective
    sol = ufm.solve(prob, ufm.init(prob, seed=2))
    assert wide + 1e-3 < bound < float(sol.objective)
    certificate = landscape.certificate(prob, sol.params)
    assert certificate.lower_bound == pytest.approx(bound, rel=1e-13)
    assert certificate.method == "lower bound at rank <= 2"
    assert not certificate.is_global
    with pytest.raises(theory.NoClosedForm, match=f"No point is below {bound:.12g}"):
        theory.global_optimum(prob)


def test_the_bound_near_and_beyond_the_threshold():
    """The origin is optimal from u = 1/K on, whatever d; just below, all bounds meet it."""
    assert _rank_bound.of_rank(5, 2, 0.2) == np.log(5)
    assert 0 <= np.log(5) - _rank_bound.of_rank(5, 2, 0.2 * (1 - 1e-5)) < 1e-9
    at_origin = problem(5, 2, c=0.201)
    assert theory.global_optimum(at_origin).structure == "zero"
    assert landscape.certificate(at_origin, at_origin.zeros()).is_global


# --- codes ----------------------------------------------------------------------------------------

#: regimes in turn
STRUCTURES = [
    (7, 3, "pentagon + pair"),
    (6, 2, "pentagon + point"),
    (8, 4, "simplex 3 + polygon 4 + point"),
    (6, 3, "octahedron"),
    (12, 3, "icosahedron"),
]


@pytest.mark.parametrize(
    ("K", "d", "structure", "regime"),
    [(*row, regime) for row, regime in zip(STRUCTURES, [*REGIMES, *REGIMES], strict=False)],
)
def test_codes_are_critical_points_with_the_value_of_their_formula(K, d, structure, regime):
    prob = problem(K, d, regime, "ls", alpha=0.05)
    point = theory.code_optimum(prob, structure)
    value, gradient = jet(prob, point.params)
    close(value, point.objective, ulps=64)
    assert gradient < 1e-14
    assert point.rank == d
    W, H, _ = map(np.asarray, point.params)
    close(prob.lam_W * W.T @ W, prob.lam_H * H @ H.T, ulps=128, scale=np.abs(W).max() ** 2)
    close(point.logits[:, prob.labels], W @ H + point.b[:, None], ulps=256, scale=10.0)
    assert point.lower_bound < point.objective < point.trivial


def test_codes_against_closed_forms():
    """The square, f = 2 H(2c); cross-polytopes, min over a of log(1 + e^-2a + (2d - 2) e^-a) + 2d c a."""
    for c in (0.02, 0.2475):
        entropy = -2 * (2 * c * np.log(2 * c) + (1 - 2 * c) * np.log(1 - 2 * c))
        square = theory.code_optimum(problem(4, 2, c=c), "square")
        close(square.objective, entropy, ulps=64, scale=1.0)
    assert theory.code_optimum(problem(4, 2, c=0.2501), "square").regime == "trivial"
    d, c = 4, 0.013

    def f(a):
        return np.log(1 + np.exp(-2 * a) + (2 * d - 2) * np.exp(-a)) + 2 * d * c * a

    expected = scipy.optimize.minimize_scalar(
        f, bounds=(0.0, 20.0), method="bounded", options={"xatol": 1e-9}
    )
    found = theory.code_optimum(problem(8, 4, c=c), "cross-polytope 8")
    close(found.objective, expected.fun, ulps=64, scale=1.0)


#: at c = 0.01, computed by an independent program
VALUES = {
    (5, 2, "pentagon"): 0.310232757847869,
    (6, 2, "hexagon"): 0.450666531473450,
    (12, 3, "icosahedron"): 0.874538557910648,
    (5, 2, "square + point"): 0.318778795422434,
    (6, 4, "simplex 3 + simplex 3"): 0.298167720671680,
    (6, 4, "simplex 4 + simplex 2"): 0.294861524229621,
}


@pytest.mark.parametrize(("K", "d", "structure"), VALUES)
def test_codes_against_another_program(K, d, structure):
    found = theory.code_optimum(problem(K, d), structure)
    assert abs(found.objective - VALUES[K, d, structure]) < 1e-13


def index(prob, structure):
    return int(landscape.inertia(prob, theory.code_optimum(prob, structure).params).neg)


# within 0.1 % of c = 0.0238820 and 0.0418524, where the regular polygon changes; without a bias it does not
@pytest.mark.parametrize(
    ("K", "c", "regime", "expected"),
    [
        (5, 0.0238820 * 0.999, "free", 2),
        (5, 0.0238820 * 1.001, "free", 0),
        (6, 0.0418524 * 0.999, "free", 1),
        (6, 0.0418524 * 1.001, "free", 0),
        (7, 0.01, "free", 4),
        (6, 0.01, "absent", 0),
        (7, 0.01, "absent", 0),
    ],
)
def test_where_the_regular_polygon_is_a_saddle(K, c, regime, expected):
    assert index(problem(K, 2, regime, n=1, c=c), f"polygon {K}") == expected


def test_unequal_blocks_are_lower_and_equal_ones_a_minimum_too():
    prob = problem(6, 4, n=1)
    assert index(prob, "simplex 3 + simplex 3") == index(prob, "simplex 4 + simplex 2") == 0
    assert theory.lowest_code(prob).structure == "simplex 4 + simplex 2"


def test_the_order_of_two_structures_flips_with_c():
    """K = 7, d = 4: triangle + square against a class at the apex of six others, at c = 0.01 and 0.001."""
    apex = landscape.best_known().at(7, 4, bias=False).params
    differences = []
    for c in (0.01, 0.001):
        prob = ufm.Problem.balanced("ce", K=7, d=4, n=1, lam_W=c, lam_H=c)
        code = theory.code_optimum(prob, "simplex 3 + square")
        sol = ufm.solve(prob, apex)
        assert sol.converged
        differences.append(float(sol.objective) - code.objective)
    close(differences, [0.361294496302574 - 0.361191173566230, 0.052117673440 - 0.052247291227], scale=1e4)


def test_codes_are_a_family_of_critical_points():
    prob = problem(6, 4, "absent", n=1)
    points = landscape.critical_points(prob, families=["codes"])
    names = [point.family for point in points]
    assert names[:2] == ["codes simplex 4 + simplex 2", "codes simplex 3 + simplex 3"]
    assert [point.kind for point in points[:2]] == ["local minimum"] * 2
    wide = landscape.critical_points(prob.replace(d=5), families=["codes"])
    assert dict(wide.missing)["codes"].startswith("d = 5 holds the simplex ETF")
    squares = landscape.critical_points(problem(6, 4, loss="mse"), families=["codes"])
    assert dict(squares.missing)["codes"].startswith("solved for cross-entropy and label smoothing")


def test_every_arrangement_fits_and_comes_once():
    for K, d in ((9, 4), (12, 3), (13, 5)):
        found = list(_codes.arrangements(K, d))
        assert len({tuple(sorted(map(str, codes))) for codes in found}) == len(found) > 1
        for codes in found:
            assert sum(code.size for code in codes) == K
            assert sum(code.dimension for code in codes) == d
            assert _codes.parse(_codes.named(codes)) == codes
            for code in codes:  # a tight frame of unit vectors, all alike
                X = code.vectors
                assert X.shape == (code.size, code.dimension)
                if code.dimension:
                    close(X.T @ X, np.eye(code.dimension) * code.size / code.dimension, ulps=64)
                    values, counts = code.inner_products
                    rows = np.sort(X @ X.T, axis=1)
                    close(rows, np.tile(np.sort(np.repeat(values, counts.astype(int))), (code.size, 1)))


@pytest.mark.parametrize(
    ("structure", "error", "message"),
    [
        (
            "simplx 3 + pair",
            ValueError,
            "structure: expected one of .*, got 'simplx'; did you mean 'simplex'",
        ),
        ("simplex 3 + ", ValueError, "structure: expected blocks such as"),
        ("simplex + pair", ValueError, "structure: expected at least 2 classes in a simplex, got 'simplex'"),
        ("cross-polytope 5", ValueError, "at least 4 classes, an even number in a cross-polytope"),
        ("icosahedron 5", ValueError, "expected 12 classes in a icosahedron"),
        ("simplex 3 + pair", ValueError, "blocks with K=6 classes together, got 5"),
        ("simplex 5 + point", theory.NoClosedForm, "needs d >= 4, got d=2; raise d or take fewer blocks"),
    ],
)
def test_structures_that_cannot_be(structure, error, message):
    with pytest.raises(error, match=message):
        theory.code_optimum(problem(6, 2), structure)


def test_what_is_not_known_says_so():
    for ask in (theory.rank_lower_bound, theory.lowest_code):
        with pytest.raises(theory.NoClosedForm, match=r"^loss: .* cross-entropy and label smoothing"):
            ask(problem(6, 2, loss="fl"))
        with pytest.raises(theory.NoClosedForm, match=r"^labels"):
            ask(ufm.Problem.from_counts("ce", counts=[3, 1, 2, 2], d=2))
        with pytest.raises(theory.NoClosedForm, match=r"^model"):
            ask(ufm.Problem.balanced("ce", K=4, d=3, model=ufm.models.fixed()))
    with pytest.raises(theory.NoClosedForm, match=r"^d: expected d < K - 1 = 5, got d=5"):
        theory.rank_lower_bound(problem(6, 5))
    with pytest.raises(theory.NoClosedForm, match=r"^d: no arrangement of K=6 classes"):
        theory.lowest_code(problem(6, 7))


# --- squared error --------------------------------------------------------------------------------

COUNTS = {"equal": [3, 3, 3, 3, 3], "unequal": [2, 7, 3, 7, 4]}


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("regime", ["free", "absent"])
@pytest.mark.parametrize("lam", [0.02, 0.34])  # at the second some directions vanish
def test_squared_error_keeps_the_largest_directions(counts, regime, lam):
    """Against solutions of the full problem, and against every choice of the directions that are kept."""
    bias, d, beta = regime == "free", 3, 1.7
    labels = np.random.default_rng(6).permutation(np.repeat(np.arange(5), COUNTS[counts]))
    loss = ufm.losses.mse(kappa=1.0, beta=beta)
    prob = ufm.Problem(loss, labels, d=d, lam_W=lam * 2, lam_H=lam / 2, bias=bias)
    best = theory.global_optimum(prob)
    value, gradient = jet(prob, best.params)
    close(value, best.objective, ulps=64)
    assert gradient < 1e-13
    assert best.proved == "proved"
    values = [float(ufm.solve(prob, ufm.init(prob, seed=seed)).objective) for seed in range(2)]
    assert min(values) == pytest.approx(best.objective, abs=1e-13)
    assert landscape.certificate(prob, best.params).is_global
    assert theory.rank_lower_bound(prob) == best.objective


def test_squared_error_beyond_what_is_known():
    for loss, penalties in ((ufm.losses.mse(kappa=2.0), {}), (ufm.losses.mse(kappa=1.0), {"lam_b": 0.1})):
        prob = ufm.Problem.balanced(loss, K=5, d=2, n=2, lam_W=0.01, lam_H=0.02, **penalties)
        with pytest.raises(theory.NoClosedForm, match=r"^d: .* needs d >= "):
            theory.global_optimum(prob)
