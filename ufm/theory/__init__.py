"""SHELF of theorems: closed forms, thresholds, spectra and decision procedures, each with its source."""

from ufm.losses._closed import ConvexityRegion, NoClosedForm
from ufm.losses._profile import ScalarProfile
from ufm.theory import _deep, _fixed  # noqa: F401  (they add the optima of their models)
from ufm.theory.contrastive import ContrastiveProperty, contrastive_property
from ufm.theory.convexity import convexity_region
from ufm.theory.focal import focal_lower_bound, p_infl, p_unit
from ufm.theory.imbalance import GroupThresholds
from ufm.theory.layer_peeled import CollapseRatio, collapse_ratio
from ufm.theory.optima import Optimum, global_optimum
from ufm.theory.profiles import scalar_profile
from ufm.theory.seli import VanishingPenalties, vanishing_penalties
from ufm.theory.spectra import Spectrum, hessian_spectrum
from ufm.theory.thresholds import Threshold, threshold

__all__ = [
    "CollapseRatio",
    "ContrastiveProperty",
    "ConvexityRegion",
    "GroupThresholds",
    "NoClosedForm",
    "Optimum",
    "ScalarProfile",
    "Spectrum",
    "Threshold",
    "VanishingPenalties",
    "collapse_ratio",
    "contrastive_property",
    "convexity_region",
    "focal_lower_bound",
    "global_optimum",
    "hessian_spectrum",
    "p_infl",
    "p_unit",
    "scalar_profile",
    "threshold",
    "vanishing_penalties",
]
