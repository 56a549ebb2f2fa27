"""SHELF of losses: pure functions `loss(z, k)` of one logit vector z (K,) and its class k.

A loss is one function and the facts that theorems need about it. Everything else (batches, gradients,
Hessian-vector products, the scalar profile) follows by `vmap` and autodiff. Hyperparameters are leaves
of a pytree: sweeping them never compiles anew.

Losses of the target probability alone are written through the log-odds against the target,

    q = log sum_{j != k} exp(z_j) - z_k = log((1 - p_k) / p_k),

because every factor then has full relative accuracy from p_k -> 0 to p_k -> 1: p_k = sigmoid(-q),
1 - p_k = sigmoid(q), -log p_k = softplus(q).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._program import Program, contents, trace, unwrapped
from ufm._pytree import pytree_dataclass, replace, static

# --- primitives -----------------------------------------------------------------------------------


@jax.custom_jvp
def _sigmoid(q: Array) -> Array:
    """sigmoid with a derivative that does not cancel at large q (JAX's own is s (1 - s))."""
    return jax.lax.logistic(q)


_sigmoid.defjvps(lambda q_dot, s, q: q_dot * s * _sigmoid(-q))


@jax.custom_jvp
def _softplus(q: Array) -> Array:
    """log(1 + exp(q))."""
    return jnp.logaddexp(q, jnp.zeros((), q.dtype))


_softplus.defjvps(lambda q_dot, _, q: q_dot * _sigmoid(q))


def log_odds(z: Array, k: ArrayLike) -> Array:
    """log sum_{j != k} exp(z_j) - z_k = log((1 - p_k) / p_k), exact in relative terms at any scale."""
    others = jnp.arange(z.shape[0]) != k
    top = jax.lax.stop_gradient(jnp.max(jnp.where(others, z, -jnp.inf)))
    # the inner `where` keeps exp finite where its value is thrown away (NaN-safe gradients)
    mass = jnp.sum(jnp.where(others, jnp.exp(jnp.where(others, z - top, 0.0)), 0.0))
    own = jnp.sum(jnp.where(others, 0.0, z))  # a masked sum: a gather per sample is slower on a CPU
    return jnp.log(mass) + (top - own)


def _negative_entropy(p: Array) -> Array:
    """sum_j p_j log p_j, the conjugate of log sum exp; rounding below zero counts as zero."""
    return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))


def _relative_entropy(p: Array, z: Array) -> Array:
    """sum_j p_j log(p_j / q_j) with q = softmax(z), a sum of terms >= 0 that does not cancel at p = q."""
    log_q = jax.nn.log_softmax(z)
    q = jnp.exp(log_q)
    delta = log_q - jnp.log(jnp.where(p > 0, p, 1.0))
    near = jnp.clip(delta, -1.0, 1.0)
    terms = jnp.where(jnp.abs(delta) < 1.0, p * (jnp.expm1(near) - near), q - p - p * delta)
    return jnp.sum(jnp.where(p > 0, jnp.maximum(terms, 0.0), q))


# --- the shelf's one abstract level ---------------------------------------------------------------


class Loss:
    """What a loss has: `loss(z, k)`, a name, and the facts that the theorems use.

    Attributes:
        name: the short name ("ce").
        title: the name in words.
        convex: convex in z for every hyperparameter allowed, so that Theorem 2, the reduction to class
            means and the dual certificate apply.
        shift_invariant: loss(z + s 1, k) = loss(z, k).
        infimum: a lower bound of the loss over all z.

    A convex loss may carry its conjugate (`conjugate`, `fenchel_young`, `targets`); with it the dual
    certificate closes quadratically, without it linearly, from `infimum`.
    """

    name: str
    title: str
    convex: bool = False
    shift_invariant: bool = False
    infimum: float = 0.0

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        """loss of the logits z (K,) for class k: a scalar."""
        raise NotImplementedError

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """Whether the Hessian in z is known to be positive semidefinite at z (K,): a scalar, True or False.

        A loss that is convex only in a part of its domain overrides it, which spares the solver an
        eigenvalue of the whole Hessian; False means "not known".
        """
        return jnp.asarray(self.convex)

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        """L*(u, k) = sup_z <u, z> - L(z, k) of a slope u (K,) inside its domain: a scalar."""
        raise NotImplementedError

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        """L(z, k) + L*(u, k) - <u, z> >= 0, zero exactly where u is the gradient at z.

        A loss overrides it with a form that has no cancellation: certificates then resolve gaps far below
        the rounding of the objective.
        """
        return jnp.maximum(self(z, k) + self.conjugate(u, k) - jnp.dot(u, z), 0.0)

    def targets(self, K: int) -> Array | None:
        """T (K, K) where the domain of L*(., k) is {u : u + T_k in the simplex}, None where it is R^K."""
        return None

    @property
    def has_conjugate(self) -> bool:
        """Whether the loss carries its conjugate."""
        return type(self).conjugate is not Loss.conjugate

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Names and values of the leaves."""
        return {name: getattr(self, name) for name in HYPERPARAMETERS.get(self.name, ())}

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={_plain(v)}" for k, v in self.hyperparameters.items())
        return f"{self.title}({values})" if values else self.title


def _plain(value: Any) -> Any:
    return f"{float(value):g}" if np.ndim(value) == 0 and not isinstance(value, jax.core.Tracer) else value


@pytree_dataclass
class CrossEntropy(Loss):
    """L = -log p_k = softplus(q).  Convex, shift-invariant.  Paper, equation (3)."""

    name = "ce"
    title = "cross-entropy"
    convex = True
    shift_invariant = True

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return _softplus(log_odds(z, k))

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        return _negative_entropy(u + jax.nn.one_hot(k, u.shape[0], dtype=u.dtype))

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        return _relative_entropy(u + jax.nn.one_hot(k, u.shape[0], dtype=u.dtype), z)

    def targets(self, K: int) -> Array:
        return jnp.eye(K)


@pytree_dataclass
class LabelSmoothing(Loss):
    """L = -(1 - alpha) log p_k - (alpha/K) sum_j log p_j.  Convex, shift-invariant.  Paper, equation (4).

    Written as cross-entropy plus alpha (z_k - mean z), which never adds large numbers of opposite sign.
    """

    alpha: Any = 0.1  # the paper's value (Section 4)

    name = "ls"
    title = "label smoothing"
    convex = True
    shift_invariant = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _checks.real("alpha", self.alpha, least=0.0, below=1.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        own = jnp.sum(jnp.where(jnp.arange(z.shape[0]) == k, z, 0.0))
        return _softplus(log_odds(z, k)) + jnp.asarray(self.alpha, z.dtype) * (own - jnp.mean(z))

    def _target(self, k: ArrayLike, K: int, dtype: Any) -> Array:
        alpha = jnp.asarray(self.alpha, dtype)
        return (1 - alpha) * jax.nn.one_hot(k, K, dtype=dtype) + alpha / K

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        return _negative_entropy(u + self._target(k, u.shape[0], u.dtype))

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        return _relative_entropy(u + self._target(k, u.shape[0], u.dtype), z)

    def targets(self, K: int) -> Array:
        return self._target(jnp.arange(K), K, jnp.result_type(float))


@pytree_dataclass
class Focal(Loss):
    """L = -(1 - p_k)^gamma log p_k = sigmoid(q)^gamma softplus(q).  Shift-invariant.  Paper, equation (5).

    Not convex in z for gamma > 0: convex exactly where p_k >= p_infl(gamma) (`theory.convexity_region`).
    """

    gamma: Any = 3.0  # the paper's value (Section 4)

    name = "fl"
    title = "focal loss"
    convex = False
    shift_invariant = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", _checks.real("gamma", self.gamma, least=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        q = log_odds(z, k)
        # sigmoid(q)^gamma through its logarithm: smooth for gamma < 1 too, where p -> (1 - p)^gamma is not
        return jnp.exp(-jnp.asarray(self.gamma, z.dtype) * _softplus(-q)) * _softplus(q)

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """With s = sigmoid(q) and t = softplus(q), as a function of q the loss has the second derivative

            s^gamma (1 - s) [gamma t (gamma (1 - s) - s) + (2 gamma + 1) s],

        and q is convex in z, the loss increasing in q: it is convex in z where the bracket is >= 0.
        """
        gamma, q = jnp.asarray(self.gamma, z.dtype), log_odds(z, k)
        s, t = _sigmoid(q), _softplus(q)
        return gamma * t * (gamma * _sigmoid(-q) - s) + (2 * gamma + 1) * s >= 0


@pytree_dataclass
class RescaledMSE(Loss):
    """L = kappa (z_k - beta)^2 + sum_{j != k} z_j^2.  Convex, not shift-invariant.  Paper, equation (6)."""

    kappa: Any = 1.0  # the paper's values (Section 4)
    beta: Any = 15.0

    name = "mse"
    title = "rescaled MSE"
    convex = True
    shift_invariant = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kappa", _checks.real("kappa", self.kappa, above=0.0))
        object.__setattr__(self, "beta", _checks.real("beta", self.beta, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        kappa, beta = jnp.asarray(self.kappa, z.dtype), jnp.asarray(self.beta, z.dtype)
        own = jnp.arange(z.shape[0]) == k
        return jnp.sum(jnp.where(own, kappa * (z - beta) ** 2, z**2))

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        kappa, beta = jnp.asarray(self.kappa, u.dtype), jnp.asarray(self.beta, u.dtype)
        own = jnp.arange(u.shape[0]) == k
        return jnp.sum(jnp.where(own, u * beta + u**2 / (4 * kappa), u**2 / 4))

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        kappa, beta = jnp.asarray(self.kappa, u.dtype), jnp.asarray(self.beta, u.dtype)
        own = jnp.arange(u.shape[0]) == k
        return jnp.sum(jnp.where(own, kappa * (z - beta - u / (2 * kappa)) ** 2, (z - u / 2) ** 2))


@pytree_dataclass
class Custom(Loss):
    """A user's function `function(z, k)` with what the user declares about it.

    `convex`, `shift_invariant` and `infimum` are promises: the certificate and the class-mean reduction
    rest on them and cannot check them. `theory.contrastive_property` tests them numerically.

    The function may read globals, attributes and arrays, and they may change: every call of this package
    traces it again, in about 2 ms, and compiles only what it has not compiled before. Numbers that Python
    computes are part of the compiled program; arrays are inputs of it. Where the function calls a jitted
    function, or a loop or branch whose body is defined outside of it, a trace takes about 10 ms, and JAX
    keeps some 60 kB of each until `jax.clear_caches()`. What you put into `jax.jit` yourself is yours:
    `jax.jit(prob)` keeps the loss of its first call, `jax.jit(lambda prob, params: prob(params))` does not.
    """

    function: Callable[[Array, Any], Array] = static()
    convex: bool = static(default=False)
    shift_invariant: bool = static(default=False)
    infimum: float = static(default=0.0)

    name = "custom"
    title = "custom loss"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"loss: expected a function loss(z, k), got {self.function!r}")
        object.__setattr__(self, "infimum", float(_checks.real("infimum", self.infimum)))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return self.function(z, k)

    def __repr__(self) -> str:
        return f"custom loss {getattr(self.function, '__name__', self.function)!s}"


# --- constructors and the registry ----------------------------------------------------------------


def cross_entropy() -> CrossEntropy:
    """Cross-entropy.

    >>> import ufm, jax.numpy as jnp
    >>> print(round(float(ufm.losses.cross_entropy()(jnp.zeros(3), 0)), 12))  # log 3
    1.098612288668
    """
    return CrossEntropy()


def label_smoothing(alpha: Any = 0.1) -> LabelSmoothing:
    """Cross-entropy with smoothed targets; `alpha` in [0, 1)."""
    return LabelSmoothing(alpha)


def focal(gamma: Any = 3.0) -> Focal:
    """Focal loss; `gamma` >= 0, zero being cross-entropy."""
    return Focal(gamma)


def mse(kappa: Any = 1.0, beta: Any = 15.0) -> RescaledMSE:
    """Rescaled mean squared error with target `beta` > 0 and target weight `kappa` > 0."""
    return RescaledMSE(kappa, beta)


def custom(
    function: Callable[[Array, Any], Array],
    *,
    convex: bool = False,
    shift_invariant: bool = False,
    infimum: float = 0.0,
) -> Custom:
    """Any function `loss(z, k)` with declared facts (see `Custom`); undeclared means not relied on."""
    return Custom(function, convex, shift_invariant, infimum)


#: The shelf: tests, the command line and the README iterate it.
LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": cross_entropy,
    "ls": label_smoothing,
    "fl": focal,
    "mse": mse,
}
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(make).parameters) for name, make in LOSSES.items()
}
#: these compute what their leaves say and nothing else; a class that inherits from one need not
_PURE = (CrossEntropy, LabelSmoothing, Focal, RescaledMSE)


def get(loss: str | Loss | Callable[..., Any], **hyperparameters: Any) -> Loss:
    """A `Loss` from a name (with hyperparameters), a `Loss`, or a function `loss(z, k)`.

    Raises:
        ValueError: an unknown name (the nearest is suggested), a hyperparameter that the loss does not
            have, or one outside its range.
    """
    if isinstance(loss, str):
        words = {make.__name__: name for name, make in LOSSES.items()}
        name = _checks.choice("loss", loss, LOSSES, also=words)
        for given in hyperparameters:
            if given not in HYPERPARAMETERS[name]:
                has = ", ".join(HYPERPARAMETERS[name]) or "none"
                raise ValueError(f"{given}: expected a hyperparameter of loss {name!r} ({has}), got {given}")
        return LOSSES[name](**hyperparameters)
    if hyperparameters:
        raise ValueError(
            f"{next(iter(hyperparameters))}: hyperparameters go with a loss given by name, got loss={loss!r}"
        )
    return loss if isinstance(loss, Loss) else custom(loss)


# --- a user's loss ---------------------------------------------------------------------------------


class _Source:
    """The loss that was frozen: equal to any other, because the program says all that is computed."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source)

    def __hash__(self) -> int:
        return 0


@pytree_dataclass
class Frozen(Loss):
    """A user's loss as it is at one moment, for K logits: what compiled programs and caches hold of it.

    The user's function may read what changes later (`ufm._program`). Its arrays are leaves here, so that new
    values in them compile nothing.
    """

    leaves: Any  # hyperparameters of a user's own class of losses
    constants: Any  # arrays that the function closes over
    program: Program = static()
    tree: Any = static()  # of the leaves; None: there are none
    source: _Source = static()
    name: str = static()
    title: str = static()
    convex: bool = static()
    shift_invariant: bool = static()
    infimum: float = static()
    K: int = static()

    @property
    def given(self) -> Loss:
        """The loss that was frozen, with the leaves that are here."""
        return self.source.loss if self.tree is None else self.tree.unflatten(self.leaves)

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        arguments = (*self.leaves, z, k)
        if not self.program.fits(*arguments):  # such as hyperparameters that were a batch when it was frozen
            return self.given(z, k)
        return self.program(self.constants, *arguments).astype(z.dtype)

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        return self.given.conjugate(u, k)

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        return self.given.fenchel_young(z, u, k)

    def targets(self, K: int) -> Array | None:
        return self.given.targets(K)

    @property
    def has_conjugate(self) -> bool:
        return self.given.has_conjugate

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return self.given.hyperparameters

    def _contents(self) -> tuple[Any, ...]:
        arrays = tuple(contents([*self.leaves, *self.constants]))
        return self.program, self.tree, self.title, self.convex, self.shift_invariant, self.infimum, arrays

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self._contents() == other._contents()

    def __hash__(self) -> int:
        return hash(self._contents())

    def __repr__(self) -> str:
        return repr(self.given)


def frozen(loss: Any, K: int, dtype: Any = None) -> Any:
    """`loss` as it is now, fit to be compiled for logits (K,); a loss of the shelf is that already.

    Raises:
        ValueError: it cannot be traced, or is no real scalar.
    """
    if isinstance(loss, Frozen) or type(loss) in _PURE or not isinstance(loss, Loss):
        return loss
    leaves, tree = jax.tree.flatten(loss)
    plain = not leaves or leaves[0] is loss  # a class of the user's that is no pytree has itself as leaf
    leaves, tree = ([], None) if plain else (leaves, tree)
    function = unwrapped(loss.function) if isinstance(loss, Custom) else loss

    def given(values: list[Any]) -> Any:
        return function if tree is None else tree.unflatten(values)

    def value(values: list[Any], z: Array, k: Array) -> Any:
        return _checked_scalar(loss, given(values)(z, k))

    def conjugates(values: list[Any], z: Array, k: Array) -> Any:
        return given(values).conjugate(z, k), given(values).fenchel_young(z, z, k), given(values).targets(K)

    z, k = np.zeros(K, dtype or jnp.result_type(float)), np.zeros((), jnp.result_type(int))
    try:
        program, constants = trace(value, leaves, z, k, also=[conjugates] if loss.has_conjugate else [])
    except _NoScalarError:
        raise
    except Exception as error:
        if leaves:  # perhaps a batch of hyperparameters, which `vmap` takes apart
            return loss
        raise ValueError(
            f"loss: {loss!r} failed when traced by JAX with logits of shape ({K},) and an integer class "
            f"({type(error).__name__}: {error}); write it with jax.numpy and no Python branches on values"
        ) from error
    return Frozen(
        leaves=leaves,
        constants=constants,
        program=program,
        tree=tree,
        source=_Source(loss),
        name="custom" if loss.name in LOSSES else loss.name,  # closed forms of the shelf go by the name
        title=loss.title,
        convex=loss.convex,
        shift_invariant=loss.shift_invariant,
        infimum=loss.infimum,
        K=K,
    )


class _NoScalarError(ValueError):
    """Raised while JAX traces, so that it can be told apart from what the function itself raises."""


def _checked_scalar(loss: Loss, out: Any) -> Any:
    """`out` if it is a real scalar."""
    dtype = getattr(out, "dtype", type(out))
    if getattr(out, "shape", ()) == () and dtype in (
        float,
        jnp.float32,
        jnp.float64,
        jnp.float16,
        jnp.bfloat16,
    ):
        return out
    got = f"shape {out.shape}, dtype {out.dtype}" if hasattr(out, "shape") else type(out).__name__
    raise _NoScalarError(f"loss: expected a real scalar for one logit vector, got {got} from {loss!r}")


def exchanged(loss: Loss, **hyperparameters: Any) -> Loss:
    """`loss` with other hyperparameters, unchecked."""
    if isinstance(loss, Frozen) and hyperparameters:
        return frozen(replace(loss.given, **hyperparameters), loss.K)
    return replace(loss, **hyperparameters)


@jax.jit
def _two_derivatives(loss: Loss, z: Array) -> tuple[Array, Array, Array]:
    def of_class_0(z: Array) -> Array:
        return loss(z, 0)

    return of_class_0(z), jax.grad(of_class_0)(z), jax.hessian(of_class_0)(z)


def check(loss: Loss, K: int) -> Loss:
    """`loss` as it is now (`frozen`), if it is a finite, differentiable scalar function of (z, k).

    Raises:
        ValueError: naming `loss`, what it returned and what is expected.
    """
    now: Loss = frozen(loss, K)
    if not isinstance(now, Frozen):
        return now
    z = np.linspace(-1.0, 1.0, K, dtype=jnp.result_type(float))  # not a tracer, wherever this is called
    try:
        with jax.ensure_compile_time_eval():  # a problem may be built inside a function that JAX traces
            value, slope, curve = _two_derivatives(now, z)
    except Exception as error:
        raise ValueError(
            f"loss: {loss!r} is not differentiable by JAX ({type(error).__name__}: {error})"
        ) from error
    for what, array in (("value", value), ("gradient", slope), ("Hessian", curve)):
        if not isinstance(array, jax.core.Tracer) and not np.isfinite(array).all():
            raise ValueError(
                f"loss: expected a finite {what} at logits linspace(-1, 1, {K}), got {array} from {loss!r}"
            )
    return now
