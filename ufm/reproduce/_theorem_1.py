"""Theorem 1: every global minimiser is neural collapse."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import ufm
from ufm import losses
from ufm._solution import Solution
from ufm.figures import Curve
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import About, Instance, Job, Level, Outcome
from ufm.reproduce._witness import SHAPE, Point, Shape, shown

#: (bias, lam_b): the two cases of the theorem, and none
REGIMES = ((True, 0.0), (True, 0.01), (False, 0.0))
_SHARES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.98)
_SHAPES = (SHAPE, Shape(3, 5, 4), Shape(4, 3, 2), Shape(6, 6, 3), Shape(15, 20, 1))


def theorem_1(level: Level) -> Iterator[Job]:
    """A grid of losses, sizes, penalties, bias regimes and seeds; `verify` measures each solution."""
    shares, seeds = ((0.02, 0.1, 0.4, 0.9), (0, 1, 2)) if level == "quick" else (_SHARES, tuple(range(5)))
    for shape in _SHAPES[:1] if level == "quick" else _SHAPES:
        for name in losses.PAPER:
            for bias, lam_b in REGIMES:
                case = f"{name}-K{shape.K}-d{shape.d}-n{shape.n}-{_regime(bias, lam_b)}"
                yield Job(case, partial(_theorem_1, name, shape, bias, lam_b, shares, seeds), 2.0)


def _regime(bias: bool, lam_b: float) -> str:
    return ("penalised" if lam_b else "free") if bias else "none"


def _theorem_1(
    name: str, shape: Shape, bias: bool, lam_b: float, shares: tuple[float, ...], seeds: tuple[int, ...]
) -> Outcome:
    c_thr = witness.collapse_threshold(name, shape, lam_b=lam_b, bias=bias)
    points = [Point(share * c_thr, lam_b, seed) for share in shares for seed in seeds]
    about: About = "paper" if losses.get(name).shift_invariant else "ours"  # Theorem 1 is not about MSE
    instances: list[Instance] = []
    worst: dict[str, float] = {}
    for point, sol in zip(points, witness.solve(name, shape, points, bias=bias), strict=True):
        config = {"loss": shown(name), **shape._asdict(), "bias": _regime(bias, lam_b), **point._asdict()}
        each = _verified(sol, config, about)
        details = {claim: _short(instance.deviation) for claim, instance in each.items()}
        instances.append(max(each.values(), key=lambda i: i.excess)._replace(details=details))
        worst |= {claim: max(worst.get(claim, 0.0), i.excess) for claim, i in each.items()}
    ratios = [min(max(ratio, 1e-10), 1e10) for ratio in worst.values()]
    curves = (
        Curve("claims", shown(name), ratios, list(worst), "points"),
        Curve("claims", "its tolerance", [1.0], [0.0], "vertical"),
    )
    return Outcome(tuple(instances), curves=curves)


def _verified(sol: Solution, config: dict[str, object], about: About) -> dict[str, Instance]:
    """Every claim that applies, with the configuration at which it was measured."""
    return {
        claim.name: Instance(claim, config, about, {})
        for claim in ufm.verify(sol).claims
        if claim.verdict != "not applicable"
    }


def _short(value: float) -> float:
    return float(f"{value:.2e}")
