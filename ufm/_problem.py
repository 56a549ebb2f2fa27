"""The problem: equation (7) as one record, its variables, and where a solver starts.

f(W, H, b) = (1/N) sum_j L(W h_j + b, y_j) + lam_W/2 |W|^2 + lam_H/2 |H|^2 + lam_b/2 |b|^2
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ufm import _checks, _compile, losses
from ufm._pytree import pytree_dataclass, replace, static
from ufm._sheet import finite


class Params(NamedTuple):
    """The variables of equation (7)."""

    W: Float[Array, "K d"]  # classifier, one row a class
    H: Float[Array, "d N"]  # free features, one column a sample
    b: Float[Array, " K"]  # bias; zeros where the problem has none


@pytree_dataclass
class Problem:
    """Equation (7): a loss, the samples' labels, the dimension of the features and three penalties.

    Args:
        loss: a name of `losses.LOSSES`, a `Loss`, or a function `loss(z, k)` of one logit vector.
        labels: (N,) integers in 0..K-1, any order, any counts, every class at least once.
        K: number of classes.  Default: 1 + the largest label.
        d: feature dimension.
        lam_W, lam_H: penalties > 0.  lam_b: penalty >= 0; 0 leaves the bias free.
        bias: False takes the bias out of the problem (b = 0).

    `prob(params)` is the objective: differentiable, and fit for jit and vmap. The loss's hyperparameters,
    labels and penalties are leaves of the pytree; K, d and bias are structure.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=3, d=4, n=2)
    >>> prob.N, prob.counts.tolist(), round(float(prob(prob.zeros())), 12)
    (6, [2, 2, 2], 1.098612288668)
    """

    loss: Any
    labels: Any
    K: Any = static(default=None)
    d: Any = static(default=None)
    lam_W: Any = 5e-3
    lam_H: Any = 5e-3
    lam_b: Any = 0.0
    bias: bool = static(default=True)

    def __post_init__(self) -> None:
        loss = losses.get(self.loss)
        labels = _check_labels(self.labels)
        K = int(labels.max()) + 1 if self.K is None else _checks.integer("K", self.K, least=2)
        if self.d is None:
            raise ValueError("d: expected an integer >= 1 (the feature dimension), got nothing")
        checked = {
            "loss": loss,
            "K": _checks.integer("K", K, least=2),
            "d": _checks.integer("d", self.d, least=1),
            "bias": _checks.boolean("bias", self.bias),
        }
        checked["labels"] = _check_classes(labels, K)
        checked |= check_penalties(self.lam_W, self.lam_H, self.lam_b, bool(self.bias))
        losses.check(loss, K)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def balanced(
        cls,
        loss: str | losses.Loss | Callable[..., Any] = "ce",
        *,
        K: int = 10,
        d: int = 64,
        n: int = 10,
        lam_W: ArrayLike = 5e-3,
        lam_H: ArrayLike = 5e-3,
        lam_b: ArrayLike = 0.0,
        bias: bool = True,
        **hyperparameters: Any,
    ) -> Problem:
        """n samples of each class in the paper's order H = [H_1 ... H_n]: labels 0..K-1 repeated n times."""
        K, n = _checks.integer("K", K, least=2), _checks.integer("n", n, least=1)
        return cls(
            loss=losses.get(loss, **hyperparameters),
            labels=np.tile(np.arange(K, dtype=np.int32), n),
            K=K,
            d=d,
            lam_W=lam_W,
            lam_H=lam_H,
            lam_b=lam_b,
            bias=bias,
        )

    def _flat(self) -> Problem:
        """With the loss as it is now: what is compiled must not outlive what a user's function reads."""
        loss = losses.frozen(self.loss, self.K)
        return self if loss is self.loss else replace(self, loss=loss)

    def __call__(self, params: Params) -> Float[Array, ""]:
        """The objective f(W, H, b) of equation (7)."""
        W, H, b = params
        loss = losses.frozen(self.loss, self.K)
        fit = jnp.mean(jax.vmap(loss)(self.logits(params).T, self.labels))
        penalty = self.lam_W * jnp.sum(W * W) + self.lam_H * jnp.sum(H * H)
        if self.bias:
            penalty += self.lam_b * jnp.sum(b * b)
        return jnp.asarray(fit + penalty / 2)

    def logits(self, params: Params) -> Float[Array, "K N"]:
        """W H + b 1^T."""
        W, H, b = params
        Z = H.T @ W.T  # rows of samples: the order in which every hot loop keeps them
        return (Z + b if self.bias else Z).T

    def logit_gradient(self, params: Params) -> Float[Array, "K N"]:
        """G, the gradient of the mean loss g in the logits: grad f = (G H' + lam_W W, W'G + lam_H H, ...)."""
        loss = losses.frozen(self.loss, self.K)
        return jax.vmap(jax.grad(loss))(self.logits(params).T, self.labels).T / self.N

    @property
    def N(self) -> int:
        """Number of samples."""
        return int(self.labels.shape[0])

    @property
    def counts(self) -> Int[np.ndarray, " K"]:
        """Samples of each class, n_k."""
        return np.bincount(np.asarray(self.labels), minlength=self.K)

    @property
    def n(self) -> int | None:
        """Samples per class, or None where the classes are not balanced."""
        counts = self.counts
        return int(counts[0]) if (counts == counts[0]).all() else None

    @property
    def lam(self) -> Any:
        """sqrt(lam_W lam_H), the weight of the nuclear norm of Z = W H."""
        return (self.lam_W * self.lam_H) ** 0.5

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.K * self.d + self.d * self.N + (self.K if self.bias else 0)

    def zeros(self) -> Params:
        """The origin W = 0, H = 0, b = 0, a critical point of every shift-invariant balanced problem."""
        return Params(jnp.zeros((self.K, self.d)), jnp.zeros((self.d, self.N)), jnp.zeros(self.K))

    def describe(self, without: Iterable[str] = ()) -> str:
        """The problem in a line, without the values of the given names."""
        text = repr(self).removeprefix("Problem(").removesuffix(")")
        for name in without:
            text = re.sub(rf"(, )?\b{name}=[^,)]*", "", text)
        return text.replace("()", "").replace("(, ", "(")

    def to_dict(self) -> dict[str, Any]:
        """The problem as JSON; `n` is null and `counts` are given where the classes are not balanced."""
        data: dict[str, Any] = {"loss": self.loss.name}
        if self.loss.name == "custom":
            data["function"] = repr(self.loss)
        data |= {name: finite(value) for name, value in self.loss.hyperparameters.items()}
        data |= {"K": self.K, "d": self.d, "N": self.N, "n": self.n}
        if self.n is None:
            data["counts"] = self.counts.tolist()
        penalties = {name: finite(getattr(self, name)) for name in ("lam_W", "lam_H", "lam_b")}
        return data | penalties | {"bias": self.bias}

    def replace(self, **changes: Any) -> Problem:
        """A copy with other penalties, loss or labels (leaves), or another K, d or bias."""
        return replace(self, **changes)

    def check_params(self, params: Any) -> Params:
        """`params` as `Params` of this problem's shapes in its precision.

        Any floating dtype of jax, numpy or torch is converted here, at the door: float64, or float32 where
        JAX's 64-bit mode is off. A solver that ran in the dtype of its start would round the penalties to
        it, minimise another function and report a gradient norm that is not the problem's.

        Raises:
            ValueError: a wrong shape, a dtype that is not floating, or a value that is not finite in that
                precision.
        """
        try:
            W, H, b = params
        except (TypeError, ValueError):
            raise ValueError(f"params: expected Params(W, H, b), got {type(params).__name__}") from None
        expected = {"W": (self.K, self.d), "H": (self.d, self.N), "b": (self.K,)}
        pairs = zip(expected.items(), (W, H, b), strict=True)
        return Params(*(_check_array(name, value, shape) for (name, shape), value in pairs))

    def __repr__(self) -> str:
        if isinstance(self.labels, jax.core.Tracer):
            n = f"N={self.N}"
        else:
            counts = self.counts
            n = f"n={counts[0]}" if (counts == counts[0]).all() else f"n_k={counts.min()}..{counts.max()}"
        penalties = f"lam_W={_short(self.lam_W)}, lam_H={_short(self.lam_H)}"
        bias = f"lam_b={_short(self.lam_b)}" if self.bias else "no bias"
        return f"Problem({self.loss!r}, K={self.K}, d={self.d}, {n}, {penalties}, {bias})"


def _short(value: Any) -> str:
    traced = isinstance(value, jax.core.Tracer)
    return f"{float(value):g}" if np.ndim(value) == 0 and not traced else f"array{np.shape(value)}"


def _check_array(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """An array of that shape in the precision of problems."""
    array = _checks.array_like(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a floating dtype, got {array.dtype}; convert it with float()")
    precision = jnp.result_type(float)
    if isinstance(array, np.ndarray):  # JAX knows neither foreign byte orders nor extended precision
        with np.errstate(over="ignore"):  # reported below, with the name of the argument
            array = array.astype(precision)
    array = jnp.asarray(array, precision)
    if not isinstance(array, jax.core.Tracer) and not np.isfinite(np.asarray(array)).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity in the start as {precision}")
    return array


def _check_labels(labels: Any) -> np.ndarray:
    labels = _checks.unmasked("labels", labels)
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"labels: expected a vector (N,) of integers, got {labels!r}") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"labels: expected a vector (N,) with N >= 1, got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got dtype {array.dtype}")
    return array


def _check_classes(labels: np.ndarray, K: int) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= K:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"labels: expected classes in 0..{K - 1} (K={K}), got {wrong}")
    present = np.unique(labels)  # not a count per class: K may be absurd
    if present.size < K:
        empty = int(np.argmax(np.append(present, -1) != np.arange(present.size + 1)))
        raise ValueError(
            f"labels: expected every class 0..{K - 1} at least once, got none of class {empty}; "
            "lower K or renumber the classes"
        )
    return labels.astype(np.int32)


def check_penalties(lam_W: Any, lam_H: Any, lam_b: Any, bias: bool) -> dict[str, Any]:
    why = "without it the infimum is not attained: scale W up and H down (or the reverse) at no cost"
    checked = {
        "lam_W": _checks.real("lam_W", lam_W, above=0.0, why=why),
        "lam_H": _checks.real("lam_H", lam_H, above=0.0, why=why),
        "lam_b": _checks.real("lam_b", lam_b, least=0.0),
    }
    if not bias and not isinstance(lam_b, jax.core.Tracer) and checked["lam_b"] != 0:
        raise ValueError(f"lam_b: expected 0 where bias=False, got {lam_b!r}; drop lam_b or set bias=True")
    return checked


def _normal(seed: Any, scale: Any, *, K: int, d: int, N: int) -> Params:
    key_W, key_H = jax.random.split(jax.random.key(seed))
    return Params(
        scale * jax.random.normal(key_W, (K, d)), scale * jax.random.normal(key_H, (d, N)), jnp.zeros(K)
    )


_SHAPE = ("K", "d", "N")
#: compiled once for each shape; seed and scale are leaves
_normal_quick = _compile.jit(_normal, static_argnames=_SHAPE, options=_compile.INSTANT)
_normal_large = _compile.jit(_normal, static_argnames=_SHAPE)
#: up to this many entries a start takes milliseconds even where its program is not optimised
_SMALL_START = 100_000


def init(prob: Problem, *, seed: ArrayLike = 0, scale: ArrayLike = 0.1) -> Params:
    """A Gaussian start: W and H with independent N(0, scale^2) entries, b = 0.

    From scale 0.1 Newton takes half the steps that it takes from scale 1 (K=10, d=64, n=10 and 100, both
    with lam = 0.2/(K sqrt n) and with the penalties 5e-3 and 1e-5; six seeds).
    """
    if not isinstance(seed, jax.core.Tracer):
        _checks.seed("seed", seed)
    scale = _checks.real("scale", scale, above=0.0)
    shape = {"K": prob.K, "d": prob.d, "N": prob.N}
    if isinstance(seed, jax.core.Tracer) or isinstance(scale, jax.core.Tracer):
        return _normal(seed, scale, **shape)  # part of a program that somebody else compiles
    draw = _normal_quick if prob.size <= _SMALL_START else _normal_large
    with jax.ensure_compile_time_eval():  # a start may be drawn inside a function that JAX traces
        return cast(Params, draw(seed, scale, **shape))
