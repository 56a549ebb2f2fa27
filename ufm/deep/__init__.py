"""Deep networks: the experiments of the paper in JAX, tied to the theory."""

from ufm.deep import augment, datasets, layers, nets, presets
from ufm.deep._many import train_many
from ufm.deep._resume import load
from ufm.deep._run import Best, History, Run, Status
from ufm.deep._train import train

__all__ = [
    "Best",
    "History",
    "Run",
    "Status",
    "augment",
    "datasets",
    "layers",
    "load",
    "nets",
    "presets",
    "train",
    "train_many",
]
