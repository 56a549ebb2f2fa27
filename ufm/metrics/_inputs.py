"""What users give, checked and made jax arrays. Values are read where they are concrete, never under jit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from ufm import _checks
from ufm.metrics.conventions import CONVENTIONS, Convention


def widest(*arrays: Array) -> Any:
    """The dtype to compute in: float64 where one is, float32 otherwise, half precisions included."""
    return jnp.dtype("float64" if any(X.dtype == "float64" for X in arrays) else "float32")


def eps(X: Array) -> float:
    """What one rounding of X's values is relative to."""
    return float(np.finfo(X.dtype).eps)


def array(name: str, value: Any, *axes: str | int) -> Array:
    """A floating jax array of >= 32 bits; an axis is a size to match or a name that any size > 0 fits."""
    X = _checks.array_like(name, value)
    fits = X.ndim == len(axes) and all(
        n == a if isinstance(a, int) else n > 0 for n, a in zip(X.shape, axes, strict=True)
    )
    if not fits:
        shape = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
        raise ValueError(f"{name}: expected shape ({shape}), got {X.shape}")
    if not jnp.issubdtype(X.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a floating dtype, got {X.dtype}; convert it first")
    X = jax.device_put(X) if isinstance(X, np.ndarray) else jnp.asarray(X)  # device_put compiles nothing
    return X if X.dtype == widest(X) else X.astype(widest(X))


#: entries up to which numpy reads an array
SMALL = 1_000_000


@jax.jit
def _all_finite(X: Float[Array, "*shape"], mask: Bool[Array, " N"] | None) -> Bool[Array, ""]:
    return jnp.isfinite(jnp.max(jnp.abs(X if mask is None else jnp.where(mask[:, None], X, 0))))


def _check_finite(name: str, X: Array, mask: Array | None = None) -> None:
    if any(isinstance(x, jax.core.Tracer) for x in (X, mask)):
        return
    if X.size <= SMALL and np.isfinite(np.asarray(X)).all():  # numpy has nothing to compile
        return
    if bool(_all_finite(X, mask)):
        return
    bad = ~np.isfinite(np.asarray(X))
    index = np.argwhere(bad if mask is None else bad & np.asarray(mask)[:, None])[0]
    at = ", ".join(map(str, index))
    raise ValueError(f"{name}: expected finite values, got {X[tuple(index)]} at [{at}]")


def features(value: Any) -> Float[Array, "N d"]:
    """features (N, d)."""
    X = array("features", value, "N", "d")
    _check_finite("features", X)
    return X


def batch(value: Any, mask: Any, d: int) -> tuple[Float[Array, "N d"], Bool[Array, " N"] | None]:
    """features (N, d) and mask (N,) of a stream's batch."""
    X = array("features", value, "N", d)
    if mask is not None:
        mask = _checks.array_like("mask", mask)
        if mask.shape != X.shape[:1] or mask.dtype != bool:
            raise ValueError(f"mask: expected booleans of shape {X.shape[:1]}, got {mask.dtype} {mask.shape}")
        mask = jnp.asarray(mask)
    _check_finite("features", X, mask)
    return X, mask


def classifier(
    W: Any, b: Any, d: int, K: int | None = None
) -> tuple[Float[Array, "K d"], Float[Array, " K"]]:
    """W (K, d) and b (K,), zero where None."""
    W = array("W", W, K or "K >= 2", d)
    if W.shape[0] < 2:
        raise ValueError(f"W: expected shape (K >= 2, {d}), got {W.shape}")
    b = jnp.zeros(W.shape[0], W.dtype) if b is None else array("b", b, W.shape[0])
    _check_finite("W", W)
    _check_finite("b", b)
    return W, b


def labels(value: Any, N: int, K: int, mask: Array | None = None) -> Int[Array, " N"]:
    """labels (N,) in 0..K-1 where the mask is True."""
    y = _checks.array_like("labels", value)
    if y.shape != (N,):
        raise ValueError(f"labels: expected shape ({N},), one a row of features, got {y.shape}")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"labels: expected integers, got dtype {y.dtype}")
    if not any(isinstance(x, jax.core.Tracer) for x in (y, mask)):
        seen = np.asarray(y) if mask is None else np.asarray(y)[np.asarray(mask)]
        wrong = seen[(seen < 0) | (seen >= K)]
        if wrong.size:
            raise ValueError(f"labels: expected classes in 0..{K - 1} (K={K}), got {wrong[0]}")
    return jnp.asarray(y).astype(jnp.int32)


def convention(name: Any) -> Convention:
    """A row of `CONVENTIONS` by name."""
    return CONVENTIONS[_checks.choice("convention", name, CONVENTIONS)]


def dtype(value: Any) -> Any:
    """float32 or float64; None is JAX's own float."""
    own = str(jnp.result_type(float))
    name = own if value is None else getattr(value, "__name__", str(value))
    name = _checks.choice("dtype", name, ("float32", "float64"))
    if (own, name) == ("float32", "float64"):
        raise ValueError("dtype: expected float32 while JAX's 64-bit mode is off, got float64")
    return jnp.dtype(name)
