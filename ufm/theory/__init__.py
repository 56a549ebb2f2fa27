"""SHELF of theorems: closed forms, thresholds, spectra and decision procedures, each with its source."""

from ufm.losses._closed import ConvexityRegion, NoClosedForm
from ufm.losses._profile import ScalarProfile
from ufm.theory import _deep, _fixed  # noqa: F401  (they add the optima of their models)
from ufm.theory._rank_bound import rank_lower_bound
from ufm.theory.codes import code_optimum, lowest_code
from ufm.theory.contrastive import ContrastiveProperty, contrastive_property
from ufm.theory.convexity import convexity_region
from ufm.theory.focal import focal_lower_bound, p_infl, p_unit
from ufm.theory.imbalance import GroupThresholds
from ufm.theory.optima import Optimum, global_optimum
from ufm.theory.profiles import scalar_profile
from ufm.theory.spectra import Spectrum, hessian_spectrum
from ufm.theory.thresholds import Threshold, threshold

__all__ = [
    "ContrastiveProperty",
    "ConvexityRegion",
    "GroupThresholds",
    "NoClosedForm",
    "Optimum",
    "ScalarProfile",
    "Spectrum",
    "Threshold",
    "code_optimum",
    "contrastive_property",
    "convexity_region",
    "focal_lower_bound",
    "global_optimum",
    "hessian_spectrum",
    "lowest_code",
    "p_infl",
    "p_unit",
    "rank_lower_bound",
    "scalar_profile",
    "threshold",
]
