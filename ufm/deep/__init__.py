"""Deep networks: the experiments of the paper in JAX, connected to the theory."""

from ufm.deep import augment, datasets, figures, layers, mini, nets, presets
from ufm.deep._history import Best, History, Status
from ufm.deep._last_layer import Comparison
from ufm.deep._replicas import train_many
from ufm.deep._resume import load
from ufm.deep._sweep import SweepPlan, plan_sweep, sweep_status, train_sweep
from ufm.deep._sweep_status import SweepStatus
from ufm.deep._train import train
from ufm.deep._trained_run import Run

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
    "mini",
    "nets",
    "plan_sweep",
    "presets",
    "sweep_status",
    "train",
    "train_many",
    "train_sweep",
]
