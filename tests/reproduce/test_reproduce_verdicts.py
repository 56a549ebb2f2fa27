"""A verdict follows from numbers alone: a closed form off by a millionth makes its row fail."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest

from ufm import Problem, theory
from ufm.reproduce import (
    STATEMENTS,
    Finding,
    Instance,
    Job,
    Outcome,
    _corollary_2,
    _depth,
    _features,
    _few,
    _focal_loss,
    _focal_window,
    _lemmas,
    _limits,
    _nuclear_norm,
    _runner,
    _scalar_problem,
    _theorem_1,
    _theorem_2,
    _unequal,
    statements,
)
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import Record, compared
from ufm.reproduce._theorem_2 import Case
from ufm.reproduce._witness import Shape
from ufm.theory import covering


def measured(*jobs: Job, row: str = "figure-9") -> Finding:
    """The row's finding from these jobs alone."""
    (statement,) = statements.chosen((row,))
    return Finding(statement, tuple(_runner.measure(statement, job) for job in jobs))


def replaced(record, field: str, value):
    """The record, a named tuple or a frozen dataclass, with another value of a field."""
    if dataclasses.is_dataclass(record):
        return dataclasses.replace(record, **{field: value})
    return record._replace(**{field: value})


def scaled(function, field: str, factor: float = 1 + 1e-6):
    """`function` whose result has one field a millionth off."""

    def wrong(*args, **kwargs):
        found = function(*args, **kwargs)
        value = getattr(found, field)
        moved = (lambda a: value(a) * factor) if callable(value) else value * factor
        return replaced(found, field, moved)

    return wrong


def in_turn(*measures):
    """The outcomes of several measurements, as one."""

    def measure() -> Outcome:
        return Outcome(tuple(instance for each in measures for instance in each().instances))

    return measure


MERGING = partial(_unequal._merging, (9, 2, 9, 2, 2), None, 0.0, "paper")
FRAMES = partial(_unequal._frames, (5, 3, 8), 3.0, 2.0, 0.995)
GIVEN = in_turn(*(partial(_unequal._given, (1, 7, 2), 2.0, 0.01, bias) for bias in (False, True)))
VANISHING = partial(_limits._vanishing, (6, 6, 1, 1), True)
DEEP = partial(_depth._below, 4, 2, 0.2)
DEEP_SQUARES = partial(_depth._squares, 3, 2, 0.4)
LOW_RANK = partial(_depth._linear_squares, 3, 3, 0.3)
HALF = partial(_features._half, (40, 1, 1, 1), 0.02)
PENALISED = partial(_few._penalised, 6, 0.01)
UNIT = partial(_features._unit, 3, 3, 1.0, 2)
figure_9, figure_10 = _scalar_problem._figure_9, _scalar_problem._figure_10
#: row, a job of it, and the closed form that is put a millionth off
CLOSED_FORMS = {
    "phi": ("figure-9", partial(figure_9, "ls", 10), "scalar_profile", "value"),
    "phi of mse": ("figure-9", partial(figure_9, "mse", 10), "scalar_profile", "value"),
    "slope of phi": ("figure-9", partial(figure_9, "fl", 10), "scalar_profile", "slope"),
    "margin": (
        "figure-10",
        partial(figure_10, "fl", 10, (0.3,)),
        "global_optimum",
        "margin",
    ),
    "value": (
        "figure-10",
        partial(figure_10, "ce", 10, (0.3,)),
        "global_optimum",
        "objective",
    ),
    "p_min": ("region", partial(_corollary_2._region, 3.0), "convexity_region", "p_min"),
    "tie": ("tie", partial(_focal_loss._two_minima, 3.0, 50), "threshold", "a_tie"),
    "threshold": ("tie", partial(_focal_loss._two_minima, 3.0, 50), "threshold", "C_tie"),
    "partial": ("partial-collapse", partial(_focal_loss._partial, 3.0, 20), "global_optimum", "objective"),
    "spectrum": (
        "spectrum",
        partial(_theorem_2._spectrum, _theorem_2.Case("ls", Shape(3, 4, 2), lam_b=0.02)),
        "hessian_spectrum",
        "values",
    ),
    "theorem 1": (
        "theorem-1",
        partial(_theorem_1._theorem_1, "ce", Shape(3, 4, 2), True, 0.01, (0.2,), (0,)),
        "global_optimum",
        "objective",
    ),
    "global minima": (
        "global-minima",
        partial(_theorem_2._global_minima, _theorem_2.Case("ce", Shape(3, 4, 2), lam_b=0.02)),
        "global_optimum",
        "objective",
    ),
    "start": ("spurious-begin", partial(_focal_window._begin, 3.0, 20), "spurious_range", "C_start"),
    "start's margin": ("spurious-begin", partial(_focal_window._begin, 3.0, 20), "spurious_range", "margin"),
    "excess": ("spurious-begin", partial(_focal_window._begin, 3.0, 20), "spurious_range", "excess"),
    "fold": ("spurious-begin", partial(_focal_window._begin, 3.0, 20), "spurious_range", "C_fold"),
    "merging": ("merging", MERGING, "threshold", "x_merge"),
    "f of two groups": ("merging", MERGING, "global_optimum", "objective"),
    "R_0": ("minority-collapse", partial(_limits._ratio, 2, 2, 1.0), "collapse_ratio", "ratio"),
    "offsets": ("seli", VANISHING, "vanishing_penalties", "offsets"),
    "limit": ("seli", VANISHING, "vanishing_penalties", "direction"),
    "frames": ("orthogonal-frames", FRAMES, "global_optimum", "objective"),
    "given": ("given-etf", GIVEN, "global_optimum", "objective"),
    "margin of a given classifier": ("given-etf", GIVEN, "global_optimum", "margin"),
    "tie of layers": ("deep-cross-entropy", DEEP, "threshold", "C_tie"),
    "square": ("deep-cross-entropy", DEEP, "global_optimum", "objective"),
    "deep squares": ("deep-squares", DEEP_SQUARES, "global_optimum", "objective"),
    "margin of deep squares": ("deep-squares", DEEP_SQUARES, "global_optimum", "margin"),
    "low rank": ("low-rank", LOW_RANK, "global_optimum", "objective"),
    "orthogonal frame": ("nonnegative", HALF, "orthogonal_frame", "objective"),
    "polygon": ("softmax-codes", partial(_few._polygon, 5, 4.0), "global_optimum", "objective"),
    "pentagon and point": ("softmax-codes", PENALISED, "code_optimum", "objective"),
    "unit vectors": ("unit-vectors", UNIT, "global_optimum", "objective"),
    "lemma 8": ("lemma-8", partial(_nuclear_norm._intermediate, 3, 0.05), "global_optimum", "objective"),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_closed_form_off_by_a_millionth_fails(name, monkeypatch):
    row, measure, function, field = CLOSED_FORMS[name]
    _focal_loss._tie.cache_clear()
    right = measured(Job("it", measure), row=row)
    assert not right.errors
    assert not right.failing("ours")
    assert right.verdict == right.statement.known
    _focal_loss._tie.cache_clear()
    monkeypatch.setattr(theory, function, scaled(getattr(theory, function), field))
    wrong = measured(Job("it", measure), row=row)
    _focal_loss._tie.cache_clear()
    assert not wrong.errors
    assert wrong.verdict == "fails"
    assert not wrong.consistent
    assert wrong.counterexample is not None


def test_a_penalty_of_the_nuclear_norm_off_by_a_millionth_fails(monkeypatch):
    job = Job("it", partial(_nuclear_norm._nuclear_norm, 4, 6, 8, 50))
    assert measured(job, row="nuclear-norm").consistent
    right = Problem.lam.fget
    monkeypatch.setattr(Problem, "lam", property(lambda self: right(self) * (1 + 1e-6)))
    wrong = measured(job, row="nuclear-norm")
    assert not wrong.errors
    assert wrong.verdict == "fails"


def factor(function):
    """`function` whose result is a millionth off."""
    return lambda *args: function(*args) * (1 + 1e-6)


def argument(number: int):
    """A change of a function, one of whose arguments becomes a millionth larger."""

    def change(function):
        def wrong(*args):
            changed = [x * (1 + 1e-6 * (i == number)) for i, x in enumerate(args)]
            return function(*changed)

        return wrong

    return change


def last(function):
    """`function` whose last result is a millionth off."""
    return lambda *args: (*function(*args)[:-1], function(*args)[-1] * (1 + 1e-6))


def uncentred(function):
    """The centring of Lemma 4 with a millionth more of the mean."""
    return lambda p: function(p) - 1e-6 * p


def first_of_each(field: str):
    """A change of a function of records: this field is a millionth off."""

    def change(function):
        def wrong(*args):
            return tuple(x._replace(**{field: getattr(x, field) * (1 + 1e-6)}) for x in function(*args))

        return wrong

    return change


WINDOW = partial(_focal_window._window, 3.0, 20, 1.20108, range(17, 20))
LEMMA_6 = partial(_lemmas._lemma_6, Case("ce", Shape(3, 4, 2), lam_b=0.02))
LEMMA_9 = partial(_lemmas._lemma_9, "ce", Shape(3, 4, 2))
NONNEGATIVE = partial(_features._orthogonal, (7, 2, 4), 0.995)
#: row, a job of it, where the formula lives, and how it is put a millionth off
FORMULAS = {
    "lemma 1": ("lemma-1", partial(_lemmas._lemma_1, 1000), _lemmas, "young", argument(2)),
    "lemma 2": ("lemma-2", partial(_lemmas._lemma_2, 4, 6, 20), _lemmas, "mean_square", factor),
    "lemma 3": ("lemma-3", partial(_lemmas._distinct, 5, 5), _lemmas, "loewner", argument(2)),
    "lemma 4": (
        "lemma-4",
        partial(_lemmas._lemma_4, 3, 10),
        _lemmas,
        "centred",
        lambda f: lambda p: f(p) - 1e-6 * p,
    ),
    "lemma 6": ("lemma-6", LEMMA_6, witness, "logit_gradient", factor),
    "lemma 9": (
        "lemma-9",
        partial(_lemmas._lemma_9, "ce", Shape(3, 4, 2)),
        _lemmas,
        "conditions",
        argument(2),
    ),
    "cost": ("certified", partial(_focal_window._cost, 3), covering, "weights", last),
    "missing": ("nonnegative", NONNEGATIVE, _features, "missing", factor),
    "rotations": ("degeneracy", partial(_depth._degeneracy, 4, 2, 0.2), _depth, "rotations", factor),
    "f of a state": ("window", WINDOW, theory, "partial_states", first_of_each("objective")),
    "pull": ("window", WINDOW, theory, "partial_states", first_of_each("tension")),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_off_by_a_millionth_fails(name, monkeypatch):
    row, measure, module, function, change = FORMULAS[name]
    right = measured(Job("it", measure), row=row)
    assert not right.errors
    assert not right.failing("ours")
    before = len(right.failing("paper"))
    monkeypatch.setattr(module, function, change(getattr(module, function)))
    wrong = measured(Job("it", measure), row=row)
    assert not wrong.errors
    assert len(wrong.failing("ours")) + len(wrong.failing("paper")) > before


def an_instance(deviation: float, about: str = "paper", tolerance: float = 1e-9) -> Instance:
    return compared("a deviation", {"K": 3}, deviation, tolerance, about)


FAILS = STATEMENTS[0]._replace(correction="", known="fails")


def a_finding(*instances: Instance, correction: str = "", error: str = "", missing: int = 0) -> Finding:
    row = STATEMENTS[0]._replace(correction=correction)
    return Finding(row, (Record(row.id, "job", 0.1, Outcome(instances), error),), missing)


def test_verdicts_follow_from_the_instances_alone():
    good, bad = an_instance(0.0), an_instance(1e-6)
    wrong, right = an_instance(1e-6, "ours"), an_instance(0.0, "ours")
    nan = an_instance(float("nan"), "ours")
    assert a_finding(good, right).verdict == "holds"
    assert a_finding(bad, right).verdict == "fails"
    assert a_finding(bad, right, correction="so").verdict == "holds with a correction"
    assert a_finding(bad, wrong, correction="so").verdict == "fails"
    assert a_finding(good, wrong, correction="so").verdict == "fails"
    assert a_finding(good, nan).verdict == "fails"
    assert a_finding(good, error="Traceback").verdict == "error"
    assert a_finding(bad, error="Traceback").verdict == "fails"
    assert a_finding().verdict == "error"
    undecided = STATEMENTS[0]._replace(correction="", undecided="no proof is known", known="open")
    assert a_finding(good, right)._replace(statement=undecided).verdict == "open"
    assert a_finding(good, right)._replace(statement=undecided).consistent
    assert a_finding(bad, right)._replace(statement=undecided).verdict == "fails"
    assert a_finding(error="Traceback")._replace(statement=undecided).verdict == "error"
    assert a_finding(good, right, missing=1).verdict == "unfinished"
    assert a_finding(bad, right, missing=1).verdict == "fails"
    assert a_finding(bad, right, correction="so", missing=1).verdict == "unfinished"
    assert a_finding(good, wrong, correction="so", missing=1).verdict == "fails"
    assert not a_finding(bad, right, missing=1)._replace(statement=FAILS).consistent
    assert a_finding(bad, an_instance(1e-3)).counterexample.deviation == 1e-3
    assert a_finding(bad, wrong).counterexample.about == "ours"
    assert a_finding(good, an_instance(5e-10), bad).worst.deviation == 5e-10
    assert not a_finding(bad, wrong, correction="so").consistent
    assert a_finding(bad, right, correction="so").consistent
