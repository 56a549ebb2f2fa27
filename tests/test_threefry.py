"""The normal numbers that numpy draws are those of `jax.random`."""

import jax
import numpy as np
import pytest
from tolerances import eps

import ufm
from ufm import _threefry


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**40 + 7])
def test_keys_and_their_children_are_those_of_jax_bit_for_bit(seed):
    expected = jax.random.key_data(jax.random.split(jax.random.key(seed), 5))
    np.testing.assert_array_equal(_threefry.split(_threefry.key(seed), 5), expected)


@pytest.mark.parametrize("shape", [(1,), (7, 3), (64, 100)])
def test_normal_numbers_are_those_of_jax_up_to_the_rounding_of_the_quantile(shape):
    drawn = _threefry.normal(_threefry.key(3), shape)
    expected = np.asarray(jax.random.normal(jax.random.key(3), shape))
    # in the tails 1 - |u| has few digits, and JAX's erfinv loses those that it has
    rest = 2 * jax.scipy.stats.norm.cdf(-np.abs(expected))
    np.testing.assert_array_less(np.abs(drawn - expected), 100 * eps() * (1 + 1 / np.asarray(rest)))


def test_a_start_is_the_same_inside_a_program_and_outside():
    prob = ufm.Problem.balanced("ce", K=4, d=6, n=3)
    inside = jax.jit(lambda seed: ufm.init(prob, seed=seed, scale=0.3))(5)
    for one, two in zip(ufm.init(prob, seed=5, scale=0.3), inside, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-11, atol=0)


def test_a_small_start_compiles_nothing(compilations):
    prob = ufm.Problem.balanced("ce", K=5, d=7, n=2)
    compilations()
    ufm.init(prob, seed=11)
    assert compilations() == 0


def test_another_generator_of_jax_is_respected():
    prob = ufm.Problem.balanced("ce", K=4, d=6, n=3)
    with jax.default_prng_impl("rbg"):
        assert not _threefry.available()
        W = ufm.init(prob, seed=5).W
        expected = 0.1 * jax.random.normal(jax.random.split(jax.random.key(5), 2)[0], (4, 6))
    np.testing.assert_allclose(W, expected, rtol=1e-14)
    assert not np.allclose(W, ufm.init(prob, seed=5).W)
