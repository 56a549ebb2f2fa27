"""Where the objective is lowest, how the Hessian bends, and which critical points there are.

At any point: `certificate` (how far from the global minimum), `hvp`, `eigenvalues`, `inertia`; where norms
are fixed, `multipliers`. At a critical point: `escape_direction`, `descend`. All of them: `critical_points`,
`find_critical_points`, `verify` (Theorem 2 over them), `phase_diagram`, `minority_diagram` (two groups of
classes), `low_rank_diagram` (layers), `minima_by_width`. In ball arithmetic: `prove_critical_point` and
others.
"""

from ufm.hessian.certificate import Bounds, Certificate, bounds, certificate
from ufm.hessian.inertia import Inertia, InertiaWarning, inertia
from ufm.hessian.multipliers import multipliers
from ufm.hessian.product import dense, hvp
from ufm.hessian.spectrum import Eigenvalues, eigenvalues
from ufm.landscape._best_known import BestKnown, best_known, recompute_best_known
from ufm.landscape._polish import Polished, polish
from ufm.landscape.critical import CriticalPoint, CriticalPoints, critical_points
from ufm.landscape.low_rank import LowRankDiagram, low_rank_diagram
from ufm.landscape.minority import COLLAPSES, MinorityDiagram, minority_diagram
from ufm.landscape.phases import PHASES, PhaseDiagram, phase_diagram
from ufm.landscape.reached import Reached, ReachedPoints, reached_points
from ufm.landscape.saddles import Descent, Escape, descend, escape_direction
from ufm.landscape.search import find_critical_points
from ufm.landscape.theorems import LandscapeReport, verify
from ufm.landscape.widths import MinimaByWidth, minima_by_width
from ufm.rigour.proofs import Proof, prove_below, prove_critical_point, prove_negative_curvature

__all__ = [
    "COLLAPSES",
    "PHASES",
    "BestKnown",
    "Bounds",
    "Certificate",
    "CriticalPoint",
    "CriticalPoints",
    "Descent",
    "Eigenvalues",
    "Escape",
    "Inertia",
    "InertiaWarning",
    "LandscapeReport",
    "LowRankDiagram",
    "MinimaByWidth",
    "MinorityDiagram",
    "PhaseDiagram",
    "Polished",
    "Proof",
    "Reached",
    "ReachedPoints",
    "best_known",
    "bounds",
    "certificate",
    "critical_points",
    "dense",
    "descend",
    "eigenvalues",
    "escape_direction",
    "find_critical_points",
    "hvp",
    "inertia",
    "low_rank_diagram",
    "minima_by_width",
    "minority_diagram",
    "multipliers",
    "phase_diagram",
    "polish",
    "prove_below",
    "prove_critical_point",
    "prove_negative_curvature",
    "reached_points",
    "recompute_best_known",
    "verify",
]
