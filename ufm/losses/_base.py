"""What a loss is: a function of one logit vector, facts about it, and closed forms where they are known."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ufm.losses._closed import BallLoss, Block, ConvexityRegion, Curvature, Groups, SymmetricPoint, ToBall
from ufm.losses._profile import ScalarProfile

#: members that say nothing about the function, or follow from others
DERIVED = ("pure", "by_column", "columns", "has_conjugate", "has_lower_bound", "hyperparameters")
TIED = ("T5", "T6")  # two margins tie, and the convex hull of phi lies below phi between them


class Loss:
    """What a loss has: `loss(z, k)`, facts about it, and what is known about it in closed form.

    A subclass defines `__call__` and what it knows of the rest; every other member has a default that means
    "not known", and the package then computes by autodiff and measures at random logits. Hyperparameters are
    the leaves of a pytree: sweeping them compiles nothing.

    Whatever is declared is about the function that was declared with it. A subclass with a `__call__` of its
    own therefore inherits no fact and no closed form; it states again those that still hold
    (`profile = losses.Focal.profile`). Closed forms never go by `name`.

    Attributes:
        name: the short name ("ce").
        title: the name in words.
        formula: the loss in LaTeX, p the target probability and z_k the target logit.
        source: paper that defines it.
        remark: where it departs from that paper.
        convex: convex in z for every hyperparameter allowed, so that Theorem 2, the reduction to class
            means and the dual certificate apply.
        shift_invariant: loss(z + s 1, k) = loss(z, k).
        symmetric: permuting logits and label alike changes nothing. None: not declared, so measured.
        of_p: a decreasing function of the target probability p_k alone. None: not declared, so measured.
        smooth: twice differentiable in z everywhere.
        sums_classes: a sum of one term for each class, which code of the paper averages over the classes.
        infimum: a lower bound of the loss over all z.
    """

    name: str = "custom"
    title: str = "custom loss"
    formula: str = ""
    source: str = ""
    remark: str = ""
    convex: bool = False
    shift_invariant: bool = False
    symmetric: bool | None = None
    of_p: bool | None = None
    smooth: bool = True
    sums_classes: bool = False
    infimum: float = 0.0

    def __init_subclass__(cls, *, pure: bool = False, by_column: bool = False, **kwargs: Any) -> None:
        """What a class says of its own `__call__`.

        `pure`: it computes what the leaves say and reads nothing else that may change. `by_column`: it also
        takes logits (K, N) with classes (N,), one sample a column, and returns the losses (N,), which is
        faster than sample by sample. A subclass is neither because its parent is. What a parent with
        another `__call__` states is reset.
        """
        super().__init_subclass__(**kwargs)
        cls.pure, cls.by_column = pure, by_column
        for name, default in stated().items():
            owner = next(parent for parent in cls.__mro__ if name in vars(parent))
            if issubclass(owner, Loss) and owner.__call__ is not cls.__call__ and owner is not cls:
                setattr(cls, name, default)
        if cls.title == Loss.title:
            cls.title = f"{Loss.title} {cls.__name__}"

    pure: bool = False
    by_column: bool = False

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        """loss of the logits z (K,) for class k: a scalar."""
        raise NotImplementedError

    def columns(self, Z: Array, k: Array | np.ndarray) -> Array:
        """The losses (N,) of samples of classes k (N,) whose logits are the columns of Z (K, N)."""
        return self(Z, k) if type(self).by_column else jax.vmap(self, in_axes=(1, 0))(Z, k)

    # --- its convex conjugate, with which the dual certificate closes quadratically, else linearly ---

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

    # --- where it is convex ------------------------------------------------------------------------

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """Whether the Hessian in z is known to be positive semidefinite at z (K,): a scalar, True or False.

        A loss that is convex only in a part of its domain overrides it, which spares the solver an
        eigenvalue of the whole Hessian; False means "not known".
        """
        return jnp.asarray(self.convex)

    def region(self) -> ConvexityRegion | None:
        """From which target probability on it is convex in z, of a loss that is a function of p_k alone."""
        return None

    # --- closed forms at points that all permutations of the classes leave alone; None: not known ---

    def profile(self, K: int) -> ScalarProfile | None:
        """l(a) = min over s of loss(a e_k + s 1, k), with two derivatives."""
        return None

    def optimum(self, setting: Setting) -> SymmetricPoint | None:
        """The global minimum of equation (7), or the lowest point with full class symmetry."""
        return None

    def branch(self, setting: Setting) -> float | None:
        """The margin of neural collapse where it is a critical point, whether or not it is optimal."""
        return None

    def threshold(self, setting: Setting) -> tuple[float, float | None] | None:
        """c at which the optimum reaches zero in a transition of second order, and c at which its rank falls
        from K to K-1 (None: its rank never is K)."""
        return None

    def merging(self, bias: bool) -> float | None:
        """s for which the classes with n samples and the weight w each coincide at the optimum exactly where
        N lam >= s w sqrt(n), lam = sqrt(lam_W lam_H), whatever the counts of the other classes."""
        return None

    def parting(self, setting: Setting, groups: Groups) -> float | None:
        """N lam at which the means of the groups leave zero."""
        return None

    def block_optimum(self, setting: Setting, groups: Groups) -> Block | None:
        """The global minimum where the class counts differ and W, H are not zero."""
        return None

    def curvature(self, K: int, a: float, m: float, b0: float) -> Curvature | None:
        """Derivatives in z at the logits of a (I - 11^T/K) + m 11^T/K + b0 11^T."""
        return None

    def lower_bound(self, setting: Setting) -> float:
        """A proved lower bound of equation (7) for a loss that is not convex, at any d and n."""
        raise NotImplementedError

    @property
    def has_lower_bound(self) -> bool:
        """Whether the loss states a proved lower bound."""
        return type(self).lower_bound is not Loss.lower_bound

    def in_balls(self, ball: ToBall) -> BallLoss | None:
        """The loss in ball arithmetic; `ball` makes a ball of an exact number."""
        return None

    def typical_margin(self) -> float:
        """A margin beyond which searches for critical points need not start."""
        return 30.0

    def squares(self) -> tuple[float, float] | None:
        """(kappa, beta) where the loss is kappa (z_k - beta)^2 + sum_{j != k} z_j^2."""
        return None

    def smoothing(self) -> float | None:
        """alpha where the loss is -log p_k + alpha (z_k - mean z)."""
        return None

    @property
    def fails(self) -> tuple[str, ...]:
        """The tests of `theory.contrastive_property` that it is known to fail with K = 5 classes."""
        region = self.region()
        return TIED if region is not None and 5 * region.p_min > 1 else ()

    # --- its leaves --------------------------------------------------------------------------------

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Names and values of the leaves of a loss that is a dataclass."""
        if not dataclasses.is_dataclass(self):
            return {}
        leaves = jax.tree_util.tree_flatten_with_path(self)[0]
        found = {getattr(path[0], "name", None): leaf for path, leaf in leaves if len(path) == 1}
        return {f.name: found[f.name] for f in dataclasses.fields(self) if f.name in found}

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={_plain(v)}" for k, v in self.hyperparameters.items())
        return f"{self.title}({values})" if values else self.title


def stated() -> dict[str, Any]:
    """What a loss states about its function, each member with the default that means "not known"."""
    return {
        name: default
        for name, default in vars(Loss).items()
        if not name.startswith("_") and name not in DERIVED
    }


def _plain(value: Any) -> Any:
    return f"{float(value):g}" if np.ndim(value) == 0 and not isinstance(value, jax.core.Tracer) else value


class Setting(NamedTuple):
    """A problem as plain numbers."""

    loss: Loss
    labels: np.ndarray  # (N,)
    K: int
    d: int
    n: int | Fraction  # samples per class; their mean where the counts differ
    lam_W: float
    lam_H: float
    lam_b: float
    bias: bool
    c_squared: Fraction  # n lam_W lam_H, exact

    @property
    def c(self) -> float:
        """sqrt(n lam_W lam_H), from the exact product."""
        return math.sqrt(self.c_squared)

    @property
    def C(self) -> float:
        """(K - 1) c, the weight of the margin in the scalar problem."""
        return (self.K - 1) * self.c

    @property
    def N(self) -> int:
        """Number of samples."""
        return int(self.n * self.K)

    def below(self, threshold: Fraction) -> float:
        """threshold - c in full relative accuracy, however close the two are.

        From (threshold^2 - c^2) / (threshold + c): the difference of squares is rational, hence exact.
        """
        if threshold <= 0:
            return float(threshold) - self.c
        return float(threshold**2 - self.c_squared) / (float(threshold) + self.c)
