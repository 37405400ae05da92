"""Quantization-aware training of the kernel that will be deployed: the equivalent FC3, not the branches.

M rows of the partition map, C/O channels in/out, h,w partition, g groups.

In int8, the deployed FC3 has the kernel Q(W) instead of the merged kernel W; Q rounds. With BN in eval
mode, the branches of a block compute ``W m + b`` of their partition map m, so

    Q(W) m + b = branches(m) + (Q(W) - W) m

This file computes the right-hand side: it adds the rounding error, with a constant kernel from
``equivalent_fc3()``, to the output of the branches. The parameters of the branches then get the
straight-through gradient of W, and m gets the gradient of Q(W): the same as from an FC with the kernel
``fake_quantize(W)``, but without a merge that keeps its graph.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..functional import fake_quantize, grouped_linear
from .perceptrons import PartitionPerceptron
from .repmlp import RepMLP
from .repmlp_v2 import RepMLPv2


def add_fake_quant_hooks(model: nn.Module, bits: int = 8) -> list[RemovableHandle]:
    """Add forward hooks that make all RepMLP blocks compute as if the merged FC3 were rounded to integers.

    Symmetric, one scale per group and output of FC3 (:func:`~repmlp.functional.fake_quantize`). For
    training, call :func:`set_bn_eval` first: the kernel is merged with BN's running statistics.
    Parameters and state dict do not change, and blocks may be converted while hooked.

    Args:
        model: a block, or a network that contains blocks.
        bits: of the integers.

    Returns:
        One handle per block; ``handle.remove()`` removes its hook.

    Raises:
        ValueError: if the model has no RepMLP block.
    """
    return [
        block.partition_perceptron.register_forward_hook(partial(_add_rounding_error, block, bits))
        for block in find_repmlp_blocks(model)
    ]


def find_repmlp_blocks(model: nn.Module) -> list[RepMLP | RepMLPv2]:
    """The blocks with an FC3.

    Raises:
        ValueError: if there is none.
    """
    blocks = [module for module in model.modules() if isinstance(module, RepMLP | RepMLPv2)]
    if not blocks:
        raise ValueError(f"this {type(model).__name__} has no RepMLP block, so there is no FC3 to round")
    return blocks


def is_rounding_hook(hook: object) -> bool:
    """Whether :func:`add_fake_quant_hooks` registered a hook. It stays correct while its block is converted."""
    return isinstance(hook, partial) and hook.func is _add_rounding_error


def _add_rounding_error(
    block: RepMLP | RepMLPv2, bits: int, module: PartitionPerceptron, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    with torch.no_grad():
        weight, _ = block.equivalent_fc3()
        error = fake_quantize(weight, bits) - weight  # (g, O/g*h*w, C/g*h*w)
    (m,) = inputs  # (M, C, h, w)
    return output + grouped_linear(m.flatten(1), error).view_as(output)  # (M, O, h, w)


def set_bn_eval(model: nn.Module) -> None:
    """Put all batch norms into eval mode, so that they compute the affine maps that a conversion merges.

    Their weights and biases are still trained. ``model.train()`` undoes it.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
