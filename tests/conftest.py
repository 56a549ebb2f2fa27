"""Shapes are checked, promotion is strict, warnings are errors: set before the package is imported."""

import os

os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "standard")
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

install_import_hook("ufm", "beartype.beartype")
