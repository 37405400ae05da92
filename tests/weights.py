"""Weights that anyone can rebuild: the formula behind the golden data (tests/golden/README.md)."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def uniform(name: str, n: int) -> np.ndarray:
    """``n`` numbers in [-1, 1) that depend on ``name`` only: splitmix64 of 1..n, seeded with crc32."""
    with np.errstate(over="ignore"):
        i = np.arange(1, n + 1, dtype=np.uint64)
        z = i * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(name.encode())) * np.uint64(0xD1342543DE82EF95)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 * 2 - 1


def golden_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the golden data was made with, by its official name."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    size = int(np.prod(shape))
    u = torch.from_numpy(uniform(name, size)).reshape(shape)
    if name.endswith("running_mean"):
        return 0.1 * u
    if name.endswith("running_var"):
        return 1 + 0.3 * u
    if len(shape) >= 2:
        return u * (6 / (size / shape[0])) ** 0.5
    return 1 + 0.2 * u if name.endswith("weight") else 0.1 * u


def golden_state_dict(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: golden_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BN statistics and an affine map as far from fresh as training could; returns it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats:
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=generator))
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) * 2 + 0.1)
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine:
            with torch.no_grad():
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator))
                m.bias.copy_(torch.randn(m.bias.shape, generator=generator))
    return module.eval()


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """As :func:`randomize`, and no weight left at zero or near it, as a fresh head or gate is; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            parameter.add_(0.3 * noise.to(parameter.dtype))
    return randomize(module, seed)
