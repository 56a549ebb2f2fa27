"""The problem: equation (7) as one record, its variables, and where a solver starts.

f(W, H, b) = (1/N) sum_j L(W h_j + b, y_j) + lam_W/2 |W|^2 + lam_H/2 |H|^2 + lam_b/2 |b|^2
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ufm import _checks, _compile, _threefry, losses, models
from ufm._pytree import pytree_dataclass, replace, static
from ufm._sheet import finite
from ufm.losses import Loss
from ufm.models import Model
from ufm.models import Params as Params
from ufm.models import Variables as Variables  # the problem and its variables are imported together


@pytree_dataclass
class Problem:
    """Equation (7): a loss, the samples' labels, the dimension of the features, three penalties and a model.

        f = (1/N) sum_j samples_j L(z_j, label_j) + penalty/2

    with the logits z_j and the penalty of the model; by default Z = W H + b 1' and
    lam_W |W|^2 + lam_H sum_j samples_j |h_j|^2 + lam_b |b|^2.

    Args:
        loss: a name of `losses.LOSSES`, a `Loss`, or a function `loss(z, k)` of one logit vector.
        labels: (N,) integers in 0..K-1, any order, any counts, every class at least once.
        K: number of classes.  Default: 1 + the largest label.
        d: feature dimension.
        lam_W, lam_H: penalties > 0.  lam_b: penalty >= 0; 0 leaves the bias free.
        bias: False takes the bias out of the problem (b = 0).  Default: True, where the model has one.
        model: a name of `models.MODELS`, as "deep" or "deep:layers=2", or a `Model`.  Default: two free
            factors.
        samples: (columns,) how many samples each column of H stands for.  Default: one.  `means()` gives the
            problem of the class means, with one column for each class.
        class_weights: (K,) positive numbers w_k, by which the loss of each sample of class k is multiplied:
            (1/N) sum_j w_(label_j) L(z_j, label_j).  They are not normalised: ones change nothing, and
            w_k = N/(K n_k) gives all classes the same weight.  Default: none.

    `prob(params)` is the objective: differentiable, and fit for jit and vmap. The loss's hyperparameters,
    labels and penalties are leaves of the pytree; K, d and bias are structure.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=3, d=4, n=2)
    >>> prob.N, prob.counts.tolist(), round(float(prob(prob.zeros())), 12)
    (6, [2, 2, 2], 1.098612288668)
    """

    loss: Loss
    labels: Int[Array | np.ndarray, " N"]
    K: int = static()
    d: int = static()
    lam_W: Array | np.float64
    lam_H: Array | np.float64
    lam_b: Array | np.float64
    bias: bool = static()
    model: Model
    samples: Float[Array | np.ndarray, " N"] | None

    def __init__(
        self,
        loss: str | Loss | Callable[..., Any],
        labels: Any,
        K: int | None = None,
        d: int | None = None,
        lam_W: ArrayLike = 5e-3,
        lam_H: ArrayLike = 5e-3,
        lam_b: ArrayLike = 0.0,
        bias: bool | None = None,
        model: str | Model = "free",
        samples: Any = None,
        class_weights: Any = None,
    ) -> None:
        labels = _checks.labels(labels)
        K = int(labels.max()) + 1 if K is None else _checks.integer("K", K, least=2)
        if d is None:
            raise ValueError("d: expected an integer >= 1 (the feature dimension), got nothing")
        K, d = _checks.integer("K", K, least=2), _checks.integer("d", d, least=1)
        function, of_logits = losses.get(loss), models.get(model).fitted(K, d)
        bias = of_logits.has_bias(bias)
        checked: dict[str, Any] = {
            "loss": losses.weighted(function, class_weights, K),
            "K": K,
            "d": d,
            "bias": bias,
            "model": of_logits,
            "samples": _checks.samples(samples, len(labels)),
        }
        checked["labels"] = _checks.classes(labels, K)
        checked |= check_penalties(lam_W, lam_H, lam_b, bias)
        losses.check(losses.without_weights(function), K)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def balanced(
        cls,
        loss: str | Loss | Callable[..., Any] = "ce",
        *,
        K: int = 10,
        d: int = 64,
        n: int = 10,
        lam_W: ArrayLike = 5e-3,
        lam_H: ArrayLike = 5e-3,
        lam_b: ArrayLike = 0.0,
        bias: bool | None = None,
        model: str | Model = "free",
        class_weights: Any = None,
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
            model=model,
            class_weights=class_weights,
        )

    @classmethod
    def from_counts(
        cls,
        loss: str | losses.Loss | Callable[..., Any] = "ce",
        *,
        counts: ArrayLike,
        d: int = 64,
        lam_W: ArrayLike = 5e-3,
        lam_H: ArrayLike = 5e-3,
        lam_b: ArrayLike = 0.0,
        bias: bool | None = None,
        model: str | Model = "free",
        class_weights: Any = None,
        **hyperparameters: Any,
    ) -> Problem:
        """counts[k] samples of class k, with the labels in the order of the classes: 0 .. 0 1 .. 1 2 ..

        Args:
            counts: (K,) integers >= 1 in any order; K >= 2.  The rest as in `Problem`.

        Raises:
            ValueError: counts that are not integers, below 1, empty or no vector.

        >>> import ufm
        >>> ufm.Problem.from_counts("ce", counts=[2, 1, 3], d=4).labels.tolist()
        [0, 0, 1, 2, 2, 2]
        """
        each = _checks.counts(counts)
        return cls(
            loss=losses.get(loss, **hyperparameters),
            labels=np.repeat(np.arange(len(each), dtype=np.int32), each),
            K=len(each),
            d=d,
            lam_W=lam_W,
            lam_H=lam_H,
            lam_b=lam_b,
            bias=bias,
            model=model,
            class_weights=class_weights,
        )

    def _flat(self) -> Problem:
        """With the loss as it is now: what is compiled must not outlive what a user's function reads."""
        loss = losses.frozen(self.loss, self.K)
        return self if loss is self.loss else replace(self, loss=loss)

    def __call__(self, params: Variables) -> Float[Array, ""]:
        """The objective f."""
        return jnp.asarray(self.fit(self.logits(params)) + self.model.penalty(self, params) / 2)

    def fit(self, Z: Float[Array, "K N"]) -> Float[Array, ""]:
        """g, the mean loss of the logits Z."""
        each = losses.frozen(self.loss, self.K).columns(Z, self.labels)
        return jnp.mean(each) if self.samples is None else jnp.sum(self.samples * each) / self.N

    def logits(self, params: Variables) -> Float[Array, "K N"]:
        """Z, one column for each column of the features: W H + b 1' where both factors are free."""
        return self.model.logits(self, params)

    def logit_gradient(self, params: Variables) -> Float[Array, "K N"]:
        """G, the gradient of the mean loss g in the logits Z."""
        return jax.grad(self.fit)(self.logits(params))

    def gradients(self, params: Variables, G: Array | None = None) -> tuple[Variables, Variables]:
        """The gradients of the mean loss and of the penalty; grad f is their sum.

        Where both factors are free they are (G H', W'G, G 1) and (lam_W W, lam_H H, lam_b b).  `G` saves the
        evaluation of the loss where `logit_gradient` is known already.
        """
        _, pull_back = jax.vjp(lambda p: self.model.logits(self, p), params)
        (fit,) = pull_back(self.logit_gradient(params) if G is None else G)
        return fit, jax.grad(lambda p: self.model.penalty(self, p) / 2)(params)

    def gradient(self, params: Variables) -> Variables:
        """grad f, with the fields of `params`."""
        return jax.tree.map(jnp.add, *self.gradients(params))

    # --- variables with a bound -------------------------------------------------------------------------

    def unbound(self, params: Variables, gradient: Variables) -> Variables:
        """What of a gradient no bound holds back: zero where the conditions of a minimum hold."""
        return models.unbound(params, gradient, self.model.lower(self))

    def off_bounds(self, params: Variables) -> Variables | None:
        """Which variables are above their bound; None where the model has no bounds."""
        lower = self.model.lower(self)
        return None if lower is None else jax.tree.map(jnp.greater, params, lower)

    # --- samples that share their features -------------------------------------------------------------

    def merged(self, cell: ArrayLike, labels: ArrayLike) -> Problem:
        """The problem in which each cell of samples has one column of features.

        Its objective is f at the points where the features of each cell coincide.

        Args:
            cell: (columns,) the cell of each column.  labels: (cells,) the class of each cell.
        """
        weight = jnp.ones(self.columns) if self.samples is None else self.samples
        cells = np.shape(labels)[0]
        return self.replace(labels=labels, samples=jax.ops.segment_sum(weight, jnp.asarray(cell), cells))

    def expanded(self, params: Variables) -> tuple[Problem, Variables]:
        """The problem with one column for each sample, and the point with each column repeated."""
        if self.samples is None:
            return self, params
        times = np.asarray(self.samples).astype(np.int64)
        labels = np.repeat(np.asarray(self.labels), times)
        return self.replace(labels=labels, samples=None), params._replace(
            H=jnp.repeat(params.H, times, axis=1)
        )

    def means(self) -> Problem:
        """The problem of the class means: column k stands for all samples of class k."""
        return self.merged(self.labels, jnp.arange(self.K, dtype=jnp.int32))

    def class_means(self, H: Float[Array | np.ndarray, "d N"]) -> Float[Array, "d K"]:
        """The mean feature of each class, in its column."""
        # a product, because XLA's scatter on a CPU is a loop over the columns
        member = jax.nn.one_hot(self.labels, self.K, dtype=H.dtype)
        member = member if self.samples is None else jnp.asarray(self.samples)[:, None] * member
        return jnp.asarray(H @ member / jnp.sum(member, axis=0))

    @property
    def columns(self) -> int:
        """Number of columns of H."""
        return int(self.labels.shape[0])

    @property
    def N(self) -> Any:
        """Number of samples: an int, or a traced number where `samples` is traced."""
        if self.samples is None:
            return self.columns
        total = self.samples.sum()
        return total if isinstance(total, jax.core.Tracer) else int(total)

    @property
    def counts(self) -> Int[np.ndarray, " K"]:
        """Samples of each class, n_k."""
        weight = None if self.samples is None else np.asarray(self.samples)
        return np.bincount(np.asarray(self.labels), weight, minlength=self.K).astype(np.int64)

    @property
    def class_weights(self) -> Float[Array | np.ndarray, " K"] | None:
        """The factor of each class's loss, None: no factors."""
        return losses.weights_of(self.loss)

    @property
    def n(self) -> int | None:
        """Samples per class, or None where the counts differ or the classes have weights."""
        counts = self.counts
        equal = self.class_weights is None and (counts == counts[0]).all()
        return int(counts[0]) if equal else None

    @property
    def unequal(self) -> str:
        """Why `n` is None, in words; empty where it is not."""
        counts, weights = self.counts, self.class_weights
        if counts.min() < counts.max():
            return f"counts from {counts.min()} to {counts.max()}"
        return "" if weights is None else f"class weights from {np.min(weights):g} to {np.max(weights):g}"

    @property
    def lam(self) -> Any:
        """sqrt(lam_W lam_H), the weight of the nuclear norm of Z = W H."""
        return (self.lam_W * self.lam_H) ** 0.5

    # --- facts that fast paths ask for ------------------------------------------------------------------

    @property
    def full_rank(self) -> int:
        """The rank that an optimum of a convex loss may have: K - 1, or K if a common shift is not free."""
        return self.K - 1 if self.loss.shift_invariant else self.K

    @property
    def shift_is_free(self) -> bool:
        """Whether adding a constant to the bias changes nothing."""
        return bool(self.bias and self.loss.shift_invariant and float(self.lam_b) == 0)

    @property
    def collapses(self) -> bool:
        """Whether the features of a class coincide at every critical point.

        They do for losses that are convex in z: h -> L(W h + b, k) + lam_H/2 |h|^2 is strictly convex.
        """
        return bool(self.loss.convex and self.model.bilinear)

    @property
    def decomposes(self) -> bool:
        """Whether `hessian.structure` applies: free factors, and the same penalty for every column."""
        return bool(self.model.bilinear and self.model.isotropic and self.samples is None)

    def need_free_factors(self, what: str) -> None:
        """Refuse a model or a problem of class means for which `what` is not known.

        Raises:
            ValueError: the factors are not free, or a column stands for several samples.
        """
        if not self.model.bilinear:
            raise ValueError(
                f"model: {what} is known for two free factors, got model={self.model!r}; ufm.solve, "
                "ufm.landscape.eigenvalues and inertia take any model"
            )
        if self.samples is not None:
            raise ValueError(
                f"samples: {what} expects one column for each sample, got columns that stand for several; "
                "use prob.expanded(params)"
            )

    # --- variables --------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of unknowns, less one for each sphere that a part of them lies on."""
        return self.unknowns - self.model.codimension(self)

    @property
    def unknowns(self) -> int:
        """Number of entries of the variables."""
        sizes = {name: math.prod(shape) for name, shape in self.model.shapes(self).items()}
        return sum(sizes.values()) - (0 if self.bias else sizes["b"])

    def zeros(self) -> Variables:
        """The origin, a critical point of every shift-invariant balanced problem with two free factors."""
        return self.model.zeros(self)

    def describe(self, without: Iterable[str] = ()) -> str:
        """The problem in a line, without the values of the given names."""
        text = repr(self).removeprefix("Problem(").removesuffix(")")
        for name in without:
            text = re.sub(rf"(, )?\b{name}=[^,)]*", "", text)
        return text.replace("()", "").replace("(, ", "(")

    def to_dict(self) -> dict[str, Any]:
        """The problem as JSON; `n` is null and `counts` are given where the classes are not balanced."""
        data: dict[str, Any] = {"loss": losses.known_as(self.loss)}
        if data["loss"] == "custom":
            data["function"] = repr(self.loss)
        data |= {name: finite(value) for name, value in self.loss.hyperparameters.items()}
        data |= {"K": self.K, "d": self.d, "N": self.N, "n": self.n}
        if self.n is None:
            data["counts"] = self.counts.tolist()
        if self.class_weights is not None:
            data["class_weights"] = np.asarray(self.class_weights).tolist()
        penalties = {name: finite(getattr(self, name)) for name in ("lam_W", "lam_H", "lam_b")}
        model = {} if self.model.bilinear else {"model": self.model.name}
        return data | penalties | {"bias": self.bias} | model

    def replace(self, **changes: Any) -> Problem:
        """A copy with other penalties, loss, class weights or labels (leaves), or another K, d or bias."""
        if "class_weights" in changes:
            loss = losses.without_weights(changes.get("loss", self.loss))
            changes["loss"] = losses.weighted(loss, changes.pop("class_weights"), changes.get("K", self.K))
        return replace(self, **changes)

    def check_params(self, params: Any) -> Variables:
        """`params` as the model's variables, in this problem's shapes in its precision.

        Any floating dtype of jax, numpy or torch is converted here, at the door: float64, or float32 where
        JAX's 64-bit mode is off. A solver that ran in the dtype of its start would round the penalties to
        it, minimise another function and report a gradient norm that is not the problem's.

        Raises:
            ValueError: a wrong shape, a dtype that is not floating, or a value that is not finite in that
                precision.
        """
        shapes, kind = self.model.shapes(self), self.model.variables
        try:
            given = tuple(params)
        except TypeError:
            given = ()
        if len(given) != len(shapes):
            expected = f"{kind.__name__}({', '.join(shapes)})"
            raise ValueError(f"params: expected {expected}, got {type(params).__name__}")
        pairs = zip(shapes.items(), given, strict=True)
        return kind(*(_check_array(name, value, shape) for (name, shape), value in pairs))

    def __repr__(self) -> str:
        if isinstance(self.labels, jax.core.Tracer):
            n = f"N={self.N}"
        else:
            counts = self.counts
            n = f"n={counts[0]}" if (counts == counts[0]).all() else f"n_k={counts.min()}..{counts.max()}"
        penalties = f"lam_W={_short(self.lam_W)}, lam_H={_short(self.lam_H)}"
        bias = f"lam_b={_short(self.lam_b)}" if self.bias else "no bias"
        model = "" if self.model.bilinear else f", model={self.model!r}"
        return f"Problem({self.loss!r}, K={self.K}, d={self.d}, {n}, {penalties}, {bias}{model})"


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
            array = jax.device_put(array.astype(precision))  # compiles nothing; jnp.asarray would
    array = jnp.asarray(array, precision)
    if not isinstance(array, jax.core.Tracer) and not np.isfinite(np.asarray(array)).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity in the start as {precision}")
    return array


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


class _Sizes(NamedTuple):
    """What the start of a model reads of a problem. It is hashable: one program serves all of one shape."""

    K: int
    d: int
    columns: int
    samples: None = None


def _normal(model: Model, seed: Any, scale: Any, *, sizes: Any, random: ModuleType = jax.random) -> Variables:
    return model.normal(sizes, seed, scale, random)


#: compiled once for each shape; seed and scale are leaves
_normal_compiled = _compile.jit(_normal, static_argnames=("sizes",))
#: up to this many entries numpy draws a start in some milliseconds, where a program takes longer to compile
_SMALL_START = 20_000


def init(prob: Problem, *, seed: ArrayLike = 0, scale: ArrayLike = 0.1) -> Variables:
    """A Gaussian start: W and H with independent N(0, scale^2) entries, b = 0.

    From scale 0.1 Newton takes half the steps that it takes from scale 1 (K=10, d=64, n=10 and 100, both
    with lam = 0.2/(K sqrt n) and with the penalties 5e-3 and 1e-5; six seeds).
    """
    if not isinstance(seed, jax.core.Tracer):
        _checks.seed("seed", seed)
    scale, sizes = _checks.real("scale", scale, above=0.0), _Sizes(prob.K, prob.d, prob.columns)
    if isinstance(seed, jax.core.Tracer) or isinstance(scale, jax.core.Tracer):
        return _normal(prob.model, seed, scale, sizes=sizes)  # part of a program that the caller compiles
    with jax.ensure_compile_time_eval():  # a start may be drawn inside a function that JAX traces
        if prob.size <= _SMALL_START and _threefry.available():
            seed = operator.index(np.asarray(seed).item())
            drawn = _normal(prob.model, seed, scale, sizes=sizes, random=_threefry)
            return jax.device_put(drawn)  # compiles nothing; jnp.asarray would
        return _normal_compiled(prob.model, seed, scale, sizes=sizes)
