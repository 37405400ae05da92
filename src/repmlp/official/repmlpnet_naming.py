"""The authors' names for the tensors of a RepMLPNet, and their deploy form.

The authors convert the blocks and leave every BN outside of them. Our deploy form folds every BN that can be folded;
in the authors' terms it is a network with an identity BN in the position of each folded one.
"""

import copy
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..conversion import reparameterize
from ..layers import ConvNorm
from ..models.repmlpnet import FFN, RepMLPNet
from .naming import Entry, block_v2_entries, module_entries


def repmlpnet_entries(model: RepMLPNet) -> Iterator[Entry]:
    """Entries of a RepMLPNet in training form, or with only its blocks converted; see :func:`unfolded`."""
    stage: Any
    for i, stage in enumerate(model.stages):
        embedding, _relu, *units = stage
        yield from module_entries(embedding, f"embeds.{i - 1}" if i else "conv_embedding", f"stages.{i}.0")
        for j, unit in enumerate(units):
            official, ours = f"stages.{i}.{j}", f"stages.{i}.{j + 2}"
            yield from module_entries(unit.norm, f"{official}.prebn1", f"{ours}.norm")
            yield from block_v2_entries(unit.block, f"{official}.repmlp_block", f"{ours}.block")
            yield from module_entries(unit.ffn.norm, f"{official}.prebn2", f"{ours}.ffn.norm")
            yield from module_entries(unit.ffn.fc1, f"{official}.ffn_block.ffn_fc1", f"{ours}.ffn.fc1")
            yield from module_entries(unit.ffn.fc2, f"{official}.ffn_block.ffn_fc2", f"{ours}.ffn.fc2")
    yield from module_entries(model.norm, "head_norm", "norm")
    yield from module_entries(model.head.fc, "head", "head.fc")


@torch.no_grad()
def unfolded(model: RepMLPNet) -> RepMLPNet:
    """A copy with a BN wherever one was folded, like the authors' deploy form; ``model`` itself if none was.

    Such a BN is the identity (apart from the conv's bias, which it absorbs), so the copy computes the same function as
    ``model``. Blocks keep their form.
    """
    if not any(_is_folded(module) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in filter(_is_folded, model.modules()):
        if isinstance(module, FFN):
            module.norm = _identity_norm(module.fc1.conv.in_channels, module.fc1.conv.weight)
        else:
            module.bn = _identity_norm(module.conv.out_channels, module.conv.weight)
            assert module.conv.bias is not None
            module.bn.bias.copy_(module.conv.bias)
            module.conv.bias = None
        module.deploy = False
    return model


def fold_like_(model: nn.Module, other: nn.Module) -> nn.Module:
    """Fold, in place, every BN of ``model`` that is folded in ``other``: the inverse of :func:`unfolded`."""
    for name, module in other.named_modules():
        if _is_folded(module):
            reparameterize(model.get_submodule(name), inplace=True)
    return model


def _is_folded(module: nn.Module) -> TypeGuard[ConvNorm | FFN]:
    return isinstance(module, ConvNorm | FFN) and module.deploy


def _identity_norm(channels: int, like: Tensor) -> nn.BatchNorm2d:
    """A BN whose variance and eps add up to one, hence the identity in eval mode."""
    norm = nn.BatchNorm2d(channels, device=like.device, dtype=like.dtype).eval()
    norm.running_var = torch.full((channels,), 1 - norm.eps, device=like.device, dtype=like.dtype)
    return norm
