"""ufm: the unconstrained feature model of neural collapse, solved, certified and measured.

    f(W, H, b) = (1/N) sum_j L(W h_j + b, y_j) + lam_W/2 |W|^2 + lam_H/2 |H|^2 + lam_b/2 |b|^2

Notation, everywhere the same:

    K, n, N     classes, samples per class (counts n_k), samples
    d           feature dimension
    W (K, d)    classifier, one row a class
    H (d, N)    features, one column a sample, column j of class labels[j]
    b (K,)      bias
    Z (K, N)    logits W H + b 1';  G (K, N) the gradient of the mean loss in Z
    lam         sqrt(lam_W lam_H);  c = sqrt(n) lam;  C = (K - 1) c
    a           margin: at neural collapse Z = a (I - 11'/K) for the class means

Importing ufm switches JAX to 64 bits unless UFM_ENABLE_X64=0, and turns JAX's compilation cache on unless
UFM_CACHE=0 or one is set already.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import jax as _jax

from ufm import _cache, _environment

if _environment.switch("UFM_ENABLE_X64", True):
    _jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]

from ufm import losses, metrics, solvers
from ufm._problem import Params, Problem, init
from ufm._solution import History, Solution, Status
from ufm._solve import solve, solve_ufm
from ufm._sweep import Sweep, solve_sweep
from ufm._version import __version__ as __version__

if _TYPE_CHECKING:
    from ufm import deep, landscape, theory
    from ufm._claim import Claim
    from ufm._verify import Report, verify

_cache.keep_compiled_programs()

__all__ = [
    "Claim",
    "History",
    "Params",
    "Problem",
    "Report",
    "Solution",
    "Status",
    "Sweep",
    "deep",
    "init",
    "landscape",
    "losses",
    "metrics",
    "solve",
    "solve_sweep",
    "solve_ufm",
    "solvers",
    "theory",
    "verify",
]

#: loaded when first asked for: they bring in scipy, which would add a third to the time of `import ufm`
_LAZY = {
    "deep": "ufm.deep",
    "landscape": "ufm.landscape",
    "theory": "ufm.theory",
    "Claim": "ufm._claim",
    "Report": "ufm._verify",
    "verify": "ufm._verify",
}


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ufm' has no attribute {name!r}")
    module = _importlib.import_module(_LAZY[name])
    return module if module.__name__ == f"ufm.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
