"""The record of lowest values: against an independent search, against itself, and made anew."""

from __future__ import annotations

import json

import pytest
from test_cli import run
from test_theory_few_dimensions import jet

from ufm import landscape, theory
from ufm.landscape import _best_known, best_known, recompute_best_known
from ufm.landscape._best_known import KEYS, Key

#: another program with other starts: 501 of them with a free bias, 150 without
FREE = {
    (4, 2): 0.196078226559464, (5, 2): 0.308543686679311, (5, 3): 0.243983696610344,
    (6, 2): 0.402001189694259, (6, 3): 0.310382631528247, (6, 4): 0.294861524229621,
    (7, 2): 0.514148218971716, (7, 3): 0.402655059767625, (7, 4): 0.361191173566230,
    (8, 2): 0.653153497954484, (8, 3): 0.490521014230566, (8, 4): 0.422302420049314,
}  # fmt: skip
NONE = {
    (5, 3): 0.245561858774, (6, 3): 0.310382631528, (7, 3): 0.405304188931, (8, 3): 0.490921214680,
    (6, 4): 0.296434882087, (7, 4): 0.361557329146, (8, 4): 0.422302420049,
}  # fmt: skip
#: of the same program: lower bounds to six digits
BOUNDS = {
    (4, 2): 0.182847, (5, 2): 0.243738, (5, 3): 0.233628, (6, 2): 0.302058, (6, 3): 0.293242,
    (6, 4): 0.286787, (7, 2): 0.359215, (7, 3): 0.351064, (7, 4): 0.345538, (8, 2): 0.415709,
    (8, 3): 0.407978, (8, 4): 0.402919,
}  # fmt: skip
#: other strict minima that the search must meet
OTHERS = {
    (5, 2): 0.318778795422434, (6, 2): 0.429174428707925, (6, 4): 0.298167720671680,
    (7, 4): 0.361294496302574, (8, 2): 0.656689956277671,
}  # fmt: skip


def test_the_record_is_that_of_another_search():
    record = best_known()
    assert [entry.key for entry in record] == list(KEYS)
    for (K, d), value in FREE.items():
        entry = record.at(K, d)
        assert abs(entry.objective - value) < 1e-14
        assert abs(entry.lower_bound - BOUNDS[K, d]) < 6e-7
        assert entry.lower_bound == record.at(K, d, bias=False).lower_bound
        assert entry.hits == entry.minima[0][1] > entry.starts / 2
    for (K, d), value in NONE.items():
        assert abs(record.at(K, d, bias=False).objective - value) < 1e-12
    for (K, d), value in OTHERS.items():
        assert min(abs(other - value) for other, hits in record.at(K, d).minima[1:] if hits) < 1e-13


def test_every_entry_has_its_value_at_its_point_and_is_critical():
    for entry in best_known():
        value, gradient = jet(entry.key.problem, entry.params)
        assert value == pytest.approx(entry.objective, abs=1e-14)
        assert gradient < 1e-9
        if entry.proved:
            best = theory.global_optimum(entry.key.problem).objective
            assert entry.objective == entry.lower_bound == pytest.approx(best, abs=1e-15)
        else:
            assert entry.lower_bound < entry.objective - 1e-3


@pytest.mark.parametrize(("K", "d", "bias"), [(5, 2, True), (8, 3, True), (7, 4, False), (8, 2, False)])
def test_entries_are_strict_minima(K, d, bias):
    entry = best_known().at(K, d, bias)
    found = landscape.inertia(entry.key.problem, entry.params)
    assert (found.neg, found.accidental) == (0, 0)


def test_without_a_bias_the_regular_polygon_is_the_lowest():
    for K in range(4, 9):
        assert best_known().at(K, 2, bias=False).structure == f"polygon {K}"
        assert (best_known().at(K, 2).structure == f"polygon {K}") == (K == 4)


def test_an_entry_made_anew_and_taken_up_again(tmp_path, monkeypatch):
    keys = [Key(5, 2, True), Key(3, 2, False)]
    first = recompute_best_known(keys=keys, starts=12, out=tmp_path)
    assert first[0].lower_bound == pytest.approx(best_known().at(5, 2).lower_bound, abs=1e-9)
    assert abs(first[0].objective - FREE[5, 2]) < 1e-13
    assert first[0].structure == "no code: 1 + 2 + 2 classes alike"
    assert (first[0].starts, first[1].starts, first[1].structure) == (12, 0, "simplex ETF")
    computed = []
    search = _best_known._searched
    monkeypatch.setattr(_best_known, "_searched", lambda *args: computed.append(args) or search(*args))
    again = recompute_best_known(keys=keys, starts=12, out=tmp_path)
    assert not computed
    assert again[0] == first[0]
    recompute_best_known(keys=keys, starts=13, out=tmp_path)
    assert computed == [(keys[0], 13)]


def test_the_table_on_the_command_line(tmp_path):
    shown = run("landscape", "--table", "--K", 8)
    assert shown.exit_code == 0
    assert "0.490521014230566" in shown.stdout
    assert "no code: 4 + 4 classes alike" in shown.stdout
    answer = run("landscape", "--table", "--K", 3, "--no-bias", "--recompute", "--out", tmp_path, "--json")
    assert answer.exit_code == 0
    assert len(json.loads(answer.stdout)["entries"]) == 3
    assert (tmp_path / "best_known.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--table", "--K", 9), "K, d: expected K in 3..8 and d in 2..4, got {'K': 9}"),
        (("--table", "--n", 2), "n: expected --table with --K, --d and --no-bias at most; drop --n"),
        (("--table", "--loss", "ls"), "loss: expected --table with"),
        (("--table", "--starts", 5), "starts: expected with --table --recompute"),
        (("--recompute",), "recompute: expected with --table only"),
    ],
)
def test_a_table_that_cannot_be(args, message):
    result = run("landscape", *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_keys_and_starts_that_cannot_be():
    with pytest.raises(ValueError, match="keys: expected"):
        recompute_best_known(keys=[(9, 2, True)])
    with pytest.raises(ValueError, match="starts: expected an integer >= 1"):
        recompute_best_known(starts=0)
    with pytest.raises(ValueError, match="K, d: expected K in"):
        best_known().at(4, 7)
