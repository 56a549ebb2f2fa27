"""With UFM_ENABLE_X64=0: theory and landscape find what they find in 64 bits, and JAX stays in 32."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ufm
from ufm import landscape, theory

HERE = str(Path(__file__).parent)


def skewed(z, k):
    """Convex, of the user's own: cross-entropy at logits of another size."""
    import jax

    return -jax.nn.log_softmax(0.7 * z)[k]


def problems():
    sizes = {"K": 4, "d": 5, "n": 2, "lam_W": 4e-3, "lam_H": 9e-3}
    yield "fl, d < K", ufm.Problem.balanced("fl", **(sizes | {"d": 3}))
    yield "mse, no bias", ufm.Problem.balanced("mse", **sizes, bias=False, kappa=2.0)
    yield "custom", ufm.Problem.balanced(ufm.losses.custom(skewed, convex=True), **(sizes | {"K": 3}))
    yield "unequal", ufm.Problem("ls", [0, 2, 1, 1, 0, 2, 2, 1, 1], d=4, lam_W=4e-3, lam_H=9e-3)


NAMES = [name for name, _ in problems()]


def points_of(prob):
    points = landscape.critical_points(prob)
    rows = [[p.family, p.index, p.zeros, p.accidental, p.rank, p.kind] for p in points]
    values = [[p.objective, p.smallest] for p in points]
    return {"rows": rows, "missing": sorted(name for name, _ in points.missing), "values": values}


def at_origin(prob):
    """What is measured at one point, the best one without features."""
    points = landscape.critical_points(prob, families="origin")
    params, escape = points[0].params, landscape.escape_direction(prob, points[0].params)
    found = landscape.inertia(prob, params)
    values = landscape.eigenvalues(prob, params, which="all")
    return {
        "inertia": [*found, found.symmetry, found.accidental],
        "multiplicities": values.multiplicities.tolist(),
        "values": [*values.values.tolist(), escape.curvature, escape.proof_curvature],
        "verdict": landscape.certificate(prob, params).verdict,
    }


def of_theory(prob):
    optimum, threshold = theory.global_optimum(prob), theory.threshold(prob)
    profile = theory.scalar_profile(prob.loss, prob.K)
    spectrum = theory.hessian_spectrum(prob)
    property_ = theory.contrastive_property(prob.loss, prob.K)
    return {
        "words": [optimum.structure, optimum.proved, threshold.kind, property_.holds, property_.reason],
        "values": [optimum.objective, optimum.margin, threshold.C_thr, threshold.C_tie, threshold.C_spin]
        + [float(f(1.5)) for f in (profile.value, profile.slope, profile.curvature)]
        + [theory.convexity_region(prob.loss, prob.K).p_min, *map(float, spectrum.values)],
    }


def searched():
    """Few starts, and where they end."""
    prob = ufm.Problem.balanced("ce", K=3, d=3, n=2, lam_W=0.01, lam_H=0.02)
    found = landscape.find_critical_points(prob, starts=32, seed=2)
    diagram = landscape.phase_diagram("ce", K=4, C=np.array([0.3, 0.9]), starts=2)
    road = landscape.descend(prob, prob.zeros())
    return {
        "points": [[p.family, p.index, p.kind, int(p.hits > 0)] for p in found],
        "phase": diagram.phase.tolist(),
        "ends": diagram.ends.tolist(),
        "indices": road.indices,
        "verdict": road.certificate.verdict,
        "passed": landscape.verify(prob).passed,
    }


def everything():
    found = {"searched": searched()}
    for name, prob in problems():
        found[name] = {"points": points_of(prob), "origin": at_origin(prob)}
        if prob.n is not None:
            found[name]["theory"] = of_theory(prob)
    return found


def around():
    """What a user in 32 bits does with the results."""
    import jax.numpy as jnp

    prob = ufm.Problem.balanced("ce", K=3, d=3, n=2, lam_W=0.01, lam_H=0.02)
    point = landscape.critical_points(prob)[0]
    sol = ufm.solve(prob, point.params, tol=1e-5)
    rough = ufm.solve(prob, tol=1e-5)
    polished = landscape.polish(prob, rough.params)
    return {
        "dtypes": [str(x.dtype) for x in (jnp.zeros(1), prob(point.params), sol.W, point.params.W)],
        "converged": [sol.converged, rough.converged, polished.converged],
        "gaps": [float(prob(point.params)) - float(point.objective), polished.grad_norm],
        "proved": [rough.certificate.verdict, landscape.certificate(prob, polished.params).verdict],
        "inertia": list(landscape.inertia(prob, polished.params)),
        "passed": ufm.verify(rough).passed,
    }


@pytest.fixture(scope="module")
def narrow():
    """All of it in a process of 32 bits, where warnings are errors."""
    code = "import json, test_float32 as t; print(json.dumps(t.everything() | {'around': t.around()}))"
    path = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env=os.environ | {"UFM_ENABLE_X64": "0", "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def same(one, two):
    """Words and counts equal; numbers as far as two orders of the same roundings may differ."""
    assert {k: v for k, v in one.items() if k != "values"} == {k: v for k, v in two.items() if k != "values"}
    a, b = np.array(one.get("values", [])), np.array(two.get("values", []))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)  # float32 would be off by 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_the_critical_points_are_those_of_64_bits(name, narrow):
    prob = dict(problems())[name]
    same(points_of(prob), narrow[name]["points"])
    same(at_origin(prob), narrow[name]["origin"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "unequal"])
def test_the_theory_is_that_of_64_bits(name, narrow):
    same(of_theory(dict(problems())[name]), narrow[name]["theory"])


def test_searches_and_diagrams_are_those_of_64_bits(narrow):
    assert json.loads(json.dumps(searched())) == narrow["searched"]


def test_the_process_stays_in_32_bits(narrow):
    around = narrow["around"]
    assert around["dtypes"] == ["float32", "float32", "float32", "float64"]
    assert around["converged"] == [True, True, True]
    assert abs(around["gaps"][0]) < 1e-6
    assert around["gaps"][1] < 1e-12
    assert around["proved"] == ["global minimum", "global minimum"]
    assert around["inertia"][0] == 0
    assert around["passed"]


def test_marked_tests_hold_in_32_bits():
    """Those of which neither the statement nor the data need float64; their tolerances follow the dtype."""
    files = [
        str(path) for path in Path(HERE).rglob("test_*.py") if "@pytest.mark.float32\n" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "float32", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, env=os.environ | {"UFM_ENABLE_X64": "0"}, capture_output=True, text=True, check=False,
        cwd=Path(HERE).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_what_a_result_has_besides_its_fields_survives():
    from ufm import _precision

    class Pair(tuple):
        pass

    kept, array = Pair((1, 2)), np.ones(2, np.float32)
    found = _precision._exchanged({"kept": kept, "array": array}, _precision._is_narrow, np.float64)
    assert found["kept"] is kept
    assert found["array"].dtype == np.float64
