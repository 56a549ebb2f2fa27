"""The tests check the shapes that the package's annotations name."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import ufm

PACKAGE = Path(__file__).parents[1] / "ufm"


def test_a_wrong_shape_is_noticed():
    problem = ufm.Problem.balanced(K=3, d=3, n=2)
    assert problem.fit(jnp.zeros((3, 6))).shape == ()
    with pytest.raises(TypeCheckError, match="K N"):
        problem.fit(jnp.zeros(6))


def test_every_module_that_speaks_of_shapes_is_checked():
    speak = [path for path in PACKAGE.rglob("*.py") if re.search(r"\b(Float|Int|Bool)\[", path.read_text())]
    assert len(speak) > 40
    assert [path for path in speak if "from jaxtyping import" not in path.read_text()] == []
