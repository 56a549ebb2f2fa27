"""Deep networks: the experiments of the paper in JAX, tied to the theory."""

from ufm.deep import augment, datasets, figures, layers, nets, presets
from ufm.deep._bridge import Comparison
from ufm.deep._many import train_many
from ufm.deep._resume import load
from ufm.deep._run import Best, History, Run, Status
from ufm.deep._standing import SweepStatus
from ufm.deep._sweep import SweepPlan, plan_sweep, sweep_status, train_sweep
from ufm.deep._train import train

__all__ = [
    "Best",
    "Comparison",
    "History",
    "Run",
    "Status",
    "SweepPlan",
    "SweepStatus",
    "augment",
    "datasets",
    "figures",
    "layers",
    "load",
    "nets",
    "plan_sweep",
    "presets",
    "sweep_status",
    "train",
    "train_many",
    "train_sweep",
]
