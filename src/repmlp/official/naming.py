"""The authors' names and shapes for the tensors of a RepMLP block. Pure mappings.

An entry links one tensor of the authors' state dict to one of ours. Both hold the same numbers in the same row-major
order, so a reshape converts one to the other.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from ..layers import GlobalPerceptron, RepMLP, RepMLPv2


class Entry(NamedTuple):
    """``official`` is the authors' name, ``shape`` their shape, ``ours`` our name of one tensor."""

    official: str
    ours: str
    shape: tuple[int, ...]


def module_entries(module: nn.Module, official: str, ours: str) -> Iterator[Entry]:
    """Entries of a layer or a conv-BN, whose tensors have the same names in both codes."""
    for name, tensor in module.state_dict().items():
        yield Entry(f"{official}.{name}", f"{ours}.{name}", tuple(tensor.shape))


def block_entries(block: RepMLP, official: str = "", ours: str = "") -> Iterator[Entry]:
    """Entries of a v1 block in its current form; ``official`` and ``ours`` are prefixes.

    Raises:
        ValueError: if a kernel is not square: the authors' names cannot express it.
    """
    official, ours = official and f"{official}.", ours and f"{ours}."
    part = block.global_perceptron
    if isinstance(part, GlobalPerceptron):
        yield from module_entries(part.fc1, f"{official}fc1_fc2.fc1", f"{ours}global_perceptron.fc1")
        yield from module_entries(part.fc2, f"{official}fc1_fc2.fc2", f"{ours}global_perceptron.fc2")
        yield from module_entries(part.bn, f"{official}avg.bn", f"{ours}global_perceptron.bn")
    yield from _partition_entries(block, official, ours)


def block_v2_entries(block: RepMLPv2, official: str = "", ours: str = "") -> Iterator[Entry]:
    """Entries of a v2 block, like :func:`block_entries`."""
    official, ours = official and f"{official}.", ours and f"{ours}."
    for name in ("fc1", "fc2"):
        fc = getattr(block.global_perceptron, name)
        for entry in module_entries(fc, f"{official}gp.{name}", f"{ours}global_perceptron.{name}"):
            as_conv = (*entry.shape, 1, 1) if entry.ours.endswith("weight") else entry.shape
            yield entry._replace(shape=as_conv)
    yield from _partition_entries(block, official, ours)


def _partition_entries(block: RepMLP | RepMLPv2, official: str, ours: str) -> Iterator[Entry]:
    """Entries of the Partition and the Local Perceptron, whose names v1 and v2 share."""
    fc3 = block.partition_perceptron.fc3
    g, Q, I = fc3.weight.shape
    yield Entry(f"{official}fc3.weight", f"{ours}partition_perceptron.fc3.weight", (g * Q, I, 1, 1))
    if fc3.bias is not None:
        yield Entry(f"{official}fc3.bias", f"{ours}partition_perceptron.fc3.bias", (g * Q,))
    yield from module_entries(block.partition_perceptron.bn, f"{official}fc3_bn", f"{ours}partition_perceptron.bn")
    if block.local_perceptron is not None:
        branch: Any
        for key, branch in block.local_perceptron.branches.items():
            kh, kw = branch.conv.kernel_size
            if kh != kw:
                raise ValueError(f"the authors' code has no name for a {kh}x{kw} kernel: square kernels only")
            yield from module_entries(branch, f"{official}repconv{kh}", f"{ours}local_perceptron.branches.{key}")
