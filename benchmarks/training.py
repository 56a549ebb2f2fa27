"""Compares the deep training step with PyTorch's by `benchmarks.deep_step`, and computes its floor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import deep_step
from benchmarks.machine import ROOT, Row, absent, floor

SIDES = ("torch channels_last", "torch channels_last kept", "ufm", "ufm, 4 devices")


def rows(quick: bool) -> Iterator[Row]:
    """Interleaved rounds; every implementation runs in a separate process."""
    how: dict[str, Any] = {"batch": 8, "rounds": 1, "steps": 1} if quick else {
        "batch": 128, "rounds": 7, "steps": 2
    }  # fmt: skip
    for name in ("wrn18",) if quick else ("wrn18", "wrn50"):
        try:
            least = cost(name, how["batch"])
        except ImportError as error:
            yield {"net": name, "side": SIDES[0]} | absent(error)
            continue
        for row in deep_step.compare(name, sides=SIDES, environment={}, **how):
            seconds = how["batch"] / row["images/s"]
            far = floor(seconds, *least, "float32") if row["side"].startswith("ufm") else {}
            yield {"batch": how["batch"]} | row | {"seconds": seconds} | far


def cost(name: str, batch: int) -> tuple[float, float, float]:
    """Operations and bytes of the convolutions and the last layer, each three products.

    Forward, gradient of the input, gradient of the weights: two of input, output and weights are read and the
    third is written. Normalisation, activations and the optimiser are counted as free.
    """
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    import torch_nets

    operations, numbers = 0, 0

    def count(layer: Any, inputs: Any, output: Any) -> None:
        nonlocal operations, numbers
        # every output is a sum over one filter's (a row's) numbers
        operations += 3 * 2 * output.numel() * layer.weight[0].numel()
        numbers += 3 * (inputs[0].numel() + output.numel() + layer.weight.numel())

    module = torch_nets.NETS[name](deep_step.WIDTH, deep_step.CLASSES, (32, 32, 3)).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    x, _ = deep_step.images(batch)
    with torch.no_grad():
        module(torch_nets.images(x))
    # what the forward pass keeps for the backward pass is in use at a time
    return operations, 4 * numbers, 4 * numbers / 3
