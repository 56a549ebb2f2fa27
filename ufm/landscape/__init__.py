"""Where the objective is lowest, how the Hessian bends, and how far a point is from the optimum."""

from ufm.landscape._inertia import Inertia, InertiaWarning, inertia
from ufm.landscape.certificates import Bounds, Certificate, bounds, certificate
from ufm.landscape.hessian import dense, hvp
from ufm.landscape.saddles import Descent, Escape, descend, escape_direction
from ufm.landscape.spectrum import Eigenvalues, eigenvalues

__all__ = [
    "Bounds",
    "Certificate",
    "Descent",
    "Eigenvalues",
    "Escape",
    "Inertia",
    "InertiaWarning",
    "bounds",
    "certificate",
    "dense",
    "descend",
    "eigenvalues",
    "escape_direction",
    "hvp",
    "inertia",
]
