"""SHELF of theorems: closed forms, thresholds, spectra and decision procedures, each with its source."""

from ufm.losses._closed import ConvexityRegion, NoClosedForm
from ufm.losses._profile import ScalarProfile
from ufm.theory import _deep, _fixed  # noqa: F401  (they add the optima of their models)
from ufm.theory._nonnegative import OrthogonalFrame, VanishingThresholds, orthogonal_frame
from ufm.theory._norms import EquivalentPenalties, equivalent_penalties
from ufm.theory._rank_bound import rank_lower_bound
from ufm.theory._spheres import supervised_contrastive
from ufm.theory.codes import code_optimum, lowest_code
from ufm.theory.contrastive import ContrastiveProperty, contrastive_property
from ufm.theory.convexity import convexity_region
from ufm.theory.covering import CertifiedRange, certified_range
from ufm.theory.depth import DepthThreshold, SmallPenalties, schatten_penalty, small_penalties
from ufm.theory.focal import focal_lower_bound, p_infl, p_unit
from ufm.theory.geometry import GroupGeometry, group_geometry, measured_geometry
from ufm.theory.imbalance import GroupThresholds
from ufm.theory.layer_peeled import CollapseRatio, collapse_ratio
from ufm.theory.optima import Optimum, global_optimum, lower_bound
from ufm.theory.profiles import scalar_profile
from ufm.theory.seli import VanishingPenalties, vanishing_penalties
from ufm.theory.spectra import Spectrum, hessian_spectrum
from ufm.theory.spurious import PartialState, SpuriousRange, partial_states, spurious_range
from ufm.theory.thresholds import Threshold, threshold

__all__ = [
    "CertifiedRange",
    "CollapseRatio",
    "ContrastiveProperty",
    "ConvexityRegion",
    "DepthThreshold",
    "EquivalentPenalties",
    "GroupGeometry",
    "GroupThresholds",
    "NoClosedForm",
    "Optimum",
    "OrthogonalFrame",
    "PartialState",
    "ScalarProfile",
    "SmallPenalties",
    "Spectrum",
    "SpuriousRange",
    "Threshold",
    "VanishingPenalties",
    "VanishingThresholds",
    "certified_range",
    "code_optimum",
    "collapse_ratio",
    "contrastive_property",
    "convexity_region",
    "equivalent_penalties",
    "focal_lower_bound",
    "global_optimum",
    "group_geometry",
    "hessian_spectrum",
    "lower_bound",
    "lowest_code",
    "measured_geometry",
    "orthogonal_frame",
    "p_infl",
    "p_unit",
    "partial_states",
    "rank_lower_bound",
    "scalar_profile",
    "schatten_penalty",
    "small_penalties",
    "spurious_range",
    "supervised_contrastive",
    "threshold",
    "vanishing_penalties",
]
