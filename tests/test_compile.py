"""Options of XLA: programs that run a few times are compiled quickly, within a block without optimisation."""

from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import pytest
import xla_flags

from ufm import _compile


def optimised(monkeypatch, options=_compile.QUICK):
    """A function compiled by `_compile.jit`, and the options of each of its compilations."""
    given, jit = [], _compile.jax.jit

    def spy(function, *, compiler_options, **rest):
        given.append(compiler_options)
        return jit(function, compiler_options=compiler_options, **rest)

    monkeypatch.setattr(_compile.jax, "jit", spy)
    return _compile.jit(lambda x: 2 * x, options=options), given


def known(options):
    """What this version of XLA has of these options; newer ones lack some."""
    _compile.jit(lambda x: 3 * x, options=options)(jnp.arange(2.0))
    return {name: value for name, value in options.items() if name not in _compile._REFUSED}


def test_a_block_compiles_without_optimisation_and_leaves_other_programs_alone(monkeypatch):
    expected = [known(_compile.QUICK), known(_compile.INSTANT)]
    double, given = optimised(monkeypatch)
    for _ in range(2):
        assert double(jnp.arange(3.0)).tolist() == [0, 2, 4]
        with _compile.instantly(), ThreadPoolExecutor(1) as pool:  # sweeps compile in threads
            assert pool.submit(double, jnp.arange(3.0)).result().tolist() == [0, 2, 4]
    assert given == expected


def test_an_option_that_xla_does_not_have_is_left_out(monkeypatch):
    monkeypatch.setattr(_compile, "_REFUSED", set())
    double, given = optimised(monkeypatch, {"xla_of_another_age": True} | dict(_compile.QUICK))
    assert double(jnp.arange(2.0)).tolist() == [0, 2]
    first, last = given[0], given[-1]
    assert first.keys() > last.keys()
    assert last == known(_compile.QUICK)


@pytest.mark.parametrize(
    ("version", "has"), [("0.10.2", True), ("0.11.0", True), ("0.11.1", False), ("0.12.0.1", False)]
)
def test_the_tests_ask_xla_for_flags_that_it_has(version, has, monkeypatch):
    monkeypatch.setattr(xla_flags.importlib.metadata, "version", lambda name: version)
    assert ("--xla_cpu_use_fusion_emitters=false" in xla_flags.flags(0)) == has
