"""What `solve` records first, and the coordinates that it solves in, at starts of deficient rank."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

import ufm
from ufm._layers import row_space

K, D = 4, 9
SHUFFLED = np.random.default_rng(5).permutation(np.tile(np.arange(K), 3))


def thin(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """W (K, D) with rows for two classes only, and class sums (K, D) in general position."""
    rng = np.random.default_rng(2)
    has = np.array([[1.0], [0.0], [1.0], [0.0]])
    return scale * has * rng.normal(size=(K, D)), rng.normal(size=(K, D))


def lacking(W: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The sums of the classes without a row, orthogonal to the rows that there are."""
    rows = np.linalg.svd(W)[2][:2]
    own = sums[[1, 3]]
    return own - own @ rows.T @ rows


# --- the row space --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_coordinates_hold_the_rows_of_W_and_the_sums_that_it_lacks(scale: float) -> None:
    """W is kept whatever its size beside the features; the gradient in W of the classes it lacks fits in."""
    W, sums = thin(scale)
    Q = np.asarray(row_space(jnp.asarray(W), jnp.asarray(sums), jnp))
    close(Q.T @ Q, np.eye(K))
    close(W @ Q @ Q.T, W, ulps=64)
    wanted = lacking(W, sums)
    close(wanted @ Q @ Q.T, wanted, ulps=256)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_depend_on_each_other_up_to_rounding_leave_room_for_what_W_lacks(seed: int) -> None:
    """The eigenvalues of W W' that should be zero are rounding of the largest: a cut below it missed them."""
    rng = np.random.default_rng(seed)
    W, sums = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 12)), rng.normal(size=(6, 12))
    Q = np.asarray(row_space(jnp.asarray(W), jnp.asarray(sums), jnp))
    U, _, V = np.linalg.svd(W)
    own = U[:, 2:].T @ sums
    wanted = own - own @ V[:2].T @ V[:2]
    close(wanted @ Q @ Q.T, wanted, ulps=4096)
    close(W @ Q @ Q.T, W, ulps=256)


def test_small_singular_values_are_kept_to_rounding() -> None:
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.normal(size=(size, 6)))[0] for size in (6, 12))
    W = U @ np.diag([1, 0.5, 1e-10, 1e-11, 1e-12, 0]) @ V.T
    Q = np.asarray(row_space(jnp.asarray(W), jnp.asarray(rng.normal(size=(6, 12))), jnp))
    assert np.abs(W - W @ Q @ Q.T).max() < 1e-15


def test_without_a_classifier_the_coordinates_are_those_of_the_features() -> None:
    sums = thin()[1]
    Q = np.asarray(row_space(jnp.zeros((K, D)), jnp.asarray(sums), jnp))
    close(sums @ Q @ Q.T, sums, ulps=64)


# --- the history's first row ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduced", [False, True])
def test_the_first_row_is_the_start_as_it_was_given(reduced: bool) -> None:
    """Not as the solver sees it: its coordinates drop what W has no row for, the reduction the scatter."""
    prob = ufm.Problem("ce", SHUFFLED, K, D, lam_W=4e-3, lam_H=1e-3)
    H = np.random.default_rng(4).normal(size=(D, prob.N))
    start = ufm.Params(jnp.asarray(thin()[0]), jnp.asarray(H), jnp.zeros(K))
    history = ufm.solve(prob, start, record=True, reduced=reduced).history
    expected = ufm.metrics.neural_collapse(H.T, SHUFFLED, start.W, start.b)
    assert history.step.tolist() == list(range(len(history.step)))
    close(history.objective[0], prob(start), ulps=8)
    norm = np.hypot.reduce([np.linalg.norm(g) for g in jax.grad(prob)(start)])
    assert history.grad_norm[0] == pytest.approx(norm, rel=1e-12)
    close(
        [history.nc1[0], history.nc2[0], history.nc3[0]], [expected.nc1, expected.nc2, expected.nc3], ulps=256
    )
    assert history.nc1[0] > 0.1  # nothing has collapsed yet
    assert np.isfinite(history.objective).all()
