"""ufm: the unconstrained feature model, solved, certified and measured."""

import os as _os

import jax as _jax

if _os.environ.get("UFM_ENABLE_X64", "1") != "0":
    _jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]

from ufm import losses
from ufm._problem import Params, Problem, init

__all__ = ["Params", "Problem", "init", "losses"]
