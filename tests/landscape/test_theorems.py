"""Theorem 2 and its corollaries over critical points: what holds, what fails, and with which point."""

from __future__ import annotations

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import landscape, losses, theory
from ufm._pytree import replace
from ufm.landscape import theorems
from ufm.landscape.critical import CriticalPoints
from ufm.landscape.theorems import STATEMENTS
from ufm.theory.convexity import ConvexityRegion

NAMES = [row.name for row in STATEMENTS]
FEW = ["origin", "neural collapse", "sub-ETF"]


@functools.cache
def points(loss: str) -> CriticalPoints:
    prob = ufm.Problem.balanced(loss, K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    return landscape.critical_points(prob, families=FEW)


@pytest.mark.parametrize("loss", losses.PAPER)
def test_every_statement_holds_or_does_not_apply(loss):
    report = landscape.verify(points(loss))
    assert report.passed
    assert [claim.name for claim in report.claims] == NAMES
    verdicts = {claim.name: claim.verdict for claim in report.claims}
    convex = losses.get(loss).convex
    for name in ("theorem_2", "corollary_1", "saddle_curvature"):
        assert verdicts[name] == ("holds" if convex else "not applicable")
    for name in ("corollary_2", "region", "paper_region"):
        assert verdicts[name] == ("not applicable" if convex else "holds")
    for name in ("critical", "no_spurious_minimum", "collapse_is_global", "proof_direction"):
        assert verdicts[name] == "holds"
    assert report.counterexamples == {}
    json.dumps(report.to_dict(), allow_nan=False)
    assert str(report).isascii()
    assert "passed" in report._repr_html_()


# --- each statement is seen to fail -------------------------------------------------------------------


def with_point(of: CriticalPoints, i: int, **changes: object) -> CriticalPoints:
    """The same points with one of them told differently."""
    rows = list(of.points)
    rows[i] = replace(rows[i], **changes)
    return replace(of, points=tuple(rows))


def dipped(z, k):
    """Cross-entropy with a bump: not convex."""
    return losses.cross_entropy()(z, k) + jnp.cos(z[k] - z[k - 1])


def region(p_min: float):
    return lambda loss, K: ConvexityRegion(p_min, 0.2, "proved", "")


def wrong_formula(prob, params):
    escape = landscape.escape_direction(prob, params)
    return escape._replace(proof_formula=escape.proof_formula * (1 + 1e-6))


saddle = 1  # the second lowest point
BROKEN = {
    "critical": lambda: with_point(points("ce"), saddle, grad_norm=1e-3),
    "theorem_2": lambda: with_point(points("ce"), saddle, index=0),
    "corollary_1": lambda: points("ce"),
    "corollary_2": lambda: with_point(points("fl"), saddle, index=0),
    "region": lambda: points("fl"),
    "paper_region": lambda: points("fl"),
    "no_spurious_minimum": lambda: with_point(points("fl"), saddle, index=0),
    "collapse_is_global": lambda: with_point(points("ce"), 0, objective=points("ce")[0].objective - 1e-9),
    "saddle_curvature": lambda: with_point(
        points("ce"), saddle, smallest=points("ce")[saddle].smallest * (1 + 1e-5)
    ),
    "proof_direction": lambda: points("ce"),
    "flat_directions": lambda: with_point(points("ce"), 0, accidental=1),
}
curvatures = theorems._curvatures
PATCHES = {
    "corollary_1": (theorems, "_curvatures", lambda loss, K: curvatures(losses.custom(dipped), K)),
    "region": (theory, "convexity_region", region(theory.convexity_region("fl", 4).p_min * 1.001)),
    "paper_region": (theory, "convexity_region", region(0.22)),
    "proof_direction": (theorems, "escape_direction", wrong_formula),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_false_number_fails_its_own_statement(name, monkeypatch):
    assert name in BROKEN
    if name in PATCHES:
        monkeypatch.setattr(*PATCHES[name])
    report = landscape.verify(BROKEN[name]())
    claim = report[name]
    assert claim.verdict == "fails"
    assert claim.value > claim.tolerance
    assert not report.passed


# --- where the theorems stop --------------------------------------------------------------------------


def test_a_spurious_minimum_at_small_d_is_kept_and_found_again():
    prob = ufm.Problem.balanced("ce", K=5, d=2, n=1, lam_W=0.01, lam_H=0.01)
    report = landscape.verify(landscape.find_critical_points(prob, starts=64, seed=3, known=False))
    assert report["theorem_2"].verdict == "not applicable"
    assert "d = 2 < 4" in report["theorem_2"].why
    assert report["no_spurious_minimum"].verdict == "fails"
    trap = report.counterexamples["no_spurious_minimum"]
    assert trap.objective == pytest.approx(0.318778795422, abs=1e-11)  # docs/theory.md, section 5.3
    assert trap.index == 0
    again = landscape.find_critical_points(prob, starts=64, seed=3, known=False)
    assert any(p.start == trap.start and p.objective == trap.objective for p in again)


def test_partial_collapse_refutes_theorem_1_for_focal_loss():
    """docs/theory.md, section 2.4: K = 20, gamma = 3, C = 1.20108, free bias."""
    c = 1.20108 / 19
    prob = ufm.Problem.balanced("fl", K=20, d=21, n=2, lam_W=c, lam_H=c / 2, gamma=3.0)
    known = landscape.critical_points(prob, families=["origin", "neural collapse", "optimum"])
    report = landscape.verify(known)
    assert report["collapse_is_global"].verdict == "fails"
    lower = report.counterexamples["collapse_is_global"]
    assert report["collapse_is_global"].value == pytest.approx(2.568462507026 - lower.objective, abs=1e-11)
    assert lower.objective < 2.568461934958  # m = 17 is not the lowest: docs/theory.md, section 2.4
    assert float(prob(lower.params)) == pytest.approx(lower.objective, abs=1e-14)
    assert report["no_spurious_minimum"].verdict == "fails"  # the origin, and neural collapse itself
    assert report["corollary_2"].verdict == "holds"  # inside the region there is one minimum
    kept = report.to_dict()["counterexamples"]["collapse_is_global"]
    assert kept["objective"] == lower.objective


def test_misuse():
    with pytest.raises(ValueError, match="points: expected CriticalPoints or a Problem, got int"):
        landscape.verify(3)
    with pytest.raises(ValueError, match="at least one critical point"):
        landscape.verify(points("ce")[:0])


def test_a_problem_stands_for_its_known_points():
    prob = ufm.Problem.balanced("mse", K=3, d=4, n=2, lam_W=0.01, lam_H=0.02, bias=False)
    report = landscape.verify(prob)
    assert report.passed
    assert np.isfinite([p.objective for p in report.points]).all()
