"""The networks of docs/protocol.md, section 1, in PyTorch, written independently of `ufm.deep`.

They are a witness in the tests and a peer in the benchmarks.

Layers, names and structure are PyTorch's own (`layer1.0.conv2`, ...); `load` and `read` translate between a
module and the nested dictionaries of `ufm.deep`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem without pooling, stages, global average, linear classifier with bias."""

    def __init__(
        self, stem: int, stages: list[list[nn.Module]], d: int, K: int, channels: int, stem_stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, stem, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layers = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.fc = nn.Linear(d, K)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of images (B, channels, height, width)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        for layer in self.layers:
            x = layer(x)
        features = x.mean(dim=(2, 3))
        return self.fc(features), features


class MLP(nn.Module):
    """Linear layers with ReLU; pixels in the order height, width, channels."""

    def __init__(self, sizes: list[int], K: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.fc = nn.Linear(sizes[-1], K)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.permute(0, 2, 3, 1).flatten(1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.fc(x), x


# --- the shelf: the same names as `ufm.deep.nets.NETS` --------------------------------------------


def wrn50(width: float, K: int, shape: tuple[int, int, int]) -> nn.Module:
    stages, inputs = [], 64
    for i, blocks in enumerate([3, 4, 6, 3]):
        inner, outputs = int(64 * 2**i * width), 256 * 2**i
        blocks_here = []
        for j in range(blocks):
            blocks_here.append(Bottleneck(inputs, inner, outputs, 2 if i > 0 and j == 0 else 1))
            inputs = outputs
        stages.append(blocks_here)
    return ResNet(64, stages, 2048, K, shape[2])


def _basic(
    stem: int,
    planes: list[int],
    blocks: int,
    strides: list[int],
    K: int,
    channels: int,
    stem_stride: int = 1,
) -> nn.Module:
    stages, inputs = [], stem
    for outputs, stride in zip(planes, strides, strict=True):
        blocks_here = []
        for j in range(blocks):
            blocks_here.append(BasicBlock(inputs, outputs, stride if j == 0 else 1))
            inputs = outputs
        stages.append(blocks_here)
    return ResNet(stem, stages, inputs, K, channels, stem_stride)


def wrn18(width: float, K: int, shape: tuple[int, int, int]) -> nn.Module:
    planes = [int(p * width) for p in (64, 128, 256, 512)]
    return _basic(planes[0], planes, 2, [1, 2, 2, 2], K, shape[2])


def small_resnet(width: float, K: int, shape: tuple[int, int, int]) -> nn.Module:
    planes = [int(p * width) for p in (16, 32, 64)]
    return _basic(planes[0], planes, 1, [2, 2, 2], K, shape[2])


def mini_resnet(width: float, K: int, shape: tuple[int, int, int]) -> nn.Module:
    planes = [int(p * width) for p in (48, 96)]
    return _basic(int(16 * width), planes, 1, [2, 2], K, shape[2], stem_stride=2)


def mlp(width: float, K: int, shape: tuple[int, int, int]) -> nn.Module:
    return MLP([int(np.prod(shape)), int(256 * width), int(256 * width)], K)


NETS: dict[str, Callable[[float, int, tuple[int, int, int]], nn.Module]] = {
    "wrn50": wrn50,
    "wrn18": wrn18,
    "small_resnet": small_resnet,
    "mini_resnet": mini_resnet,
    "mlp": mlp,
}


# --- translation ----------------------------------------------------------------------------------


def _conv_norms(module: ResNet) -> Iterator[tuple[tuple[str, ...], nn.Conv2d, nn.BatchNorm2d]]:
    """Path in `ufm.deep`, convolution, batch norm."""
    yield ("stem",), module.conv1, module.bn1
    for i, layer in enumerate(module.layers, 1):
        for j, block in enumerate(layer, 1):
            path = f"stage{i}", f"block{j}"
            for k in (1, 2, 3):
                if hasattr(block, f"conv{k}"):
                    yield (*path, f"conv{k}"), getattr(block, f"conv{k}"), getattr(block, f"bn{k}")
            if isinstance(block.downsample, nn.Sequential):
                yield (*path, "shortcut"), *block.downsample


def _tensors(module: nn.Module) -> Iterator[tuple[str, tuple[str, ...], Tensor]]:
    """params or state, path, tensor."""
    if isinstance(module, ResNet):
        for path, conv, bn in _conv_norms(module):
            yield "params", (*path, "kernel"), conv.weight
            yield "params", (*path, "scale"), bn.weight
            yield "params", (*path, "shift"), bn.bias
            yield "state", (*path, "mean"), bn.running_mean
            yield "state", (*path, "var"), bn.running_var
    else:
        for i, layer in enumerate(module.hidden, 1):
            yield "params", (f"linear{i}", "W"), layer.weight
            yield "params", (f"linear{i}", "b"), layer.bias
    yield "params", ("classifier", "W"), module.fc.weight
    yield "params", ("classifier", "b"), module.fc.bias


def load(module: nn.Module, params: dict[str, Any], state: dict[str, Any]) -> nn.Module:
    """Write the parameters and running statistics of `ufm.deep` into the module, in their dtype."""
    module.to(torch.float64 if np.asarray(params["classifier"]["W"]).dtype == np.float64 else torch.float32)
    with torch.no_grad():
        for kind, path, tensor in _tensors(module):
            value: Any = params if kind == "params" else state
            for name in path:
                value = value[name]
            array = np.array(value)
            tensor.copy_(torch.from_numpy(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array))
    return module


def read(
    module: nn.Module, of: Callable[[Tensor], Tensor] = lambda t: t
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters (or `of` each, such as its gradient) and running statistics as in `ufm.deep`."""
    trees: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for kind, path, tensor in _tensors(module):
        array = (of(tensor) if kind == "params" else tensor).detach().numpy()
        node = trees[kind]
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = array.transpose(2, 3, 1, 0).copy() if array.ndim == 4 else array.copy()
    return trees["params"], trees["state"]


def images(x: Any) -> Tensor:
    """(B, height, width, channels) as PyTorch's (B, channels, height, width)."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous()


def step(
    module: nn.Module, optimizer: torch.optim.SGD, x: Tensor, y: Tensor, clip: float = 2.0
) -> tuple[Tensor, Tensor]:
    """One step of docs/protocol.md, section 3.1: mean cross-entropy, clipping, decay, momentum."""
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(module(x)[0], y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
    optimizer.step()
    return loss.detach(), norm


def sgd(module: nn.Module, learning_rate: float = 0.1) -> torch.optim.SGD:
    """Momentum 0.9, decay 5e-4 on every parameter, added after clipping."""
    return torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
