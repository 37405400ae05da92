"""Quantization-aware training of what will be deployed: the equivalent FC3 kernel, not the branches.

M rows of the partition map, C/O channels in/out, h,w partition, g groups.

In int8 the deployed FC3 has the kernel Q(W) instead of W, W the merged kernel and Q the rounding.
With BN in eval mode the branches of a block compute ``W m + b`` of their partition map m, so

    Q(W) m + b = branches(m) + (Q(W) - W) m

and that is how it is computed here: the error that rounding will make is added to what the branches
give. It is a constant kernel, from ``equivalent_fc3()``. So the gradient of every branch's parameters
is that of W in the straight-through estimator, and the gradient of m is that of Q(W): exactly what
an FC with the kernel ``fake_quantize(W)`` would give, without a merge that keeps its graph.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..functional import fake_quantize, grouped_linear
from .perceptrons import PartitionPerceptron
from .repmlp import RepMLP
from .repmlp_v2 import RepMLPv2


def add_fake_quant_hooks(model: nn.Module, bits: int = 8) -> list[RemovableHandle]:
    """From now on all RepMLP blocks of ``model`` compute as if FC3, merged, had been rounded to integers.

    Symmetric, one scale per group and output of FC3 (:func:`~repmlp.functional.fake_quantize`). For
    training, freeze the batch norms (:func:`set_bn_eval`): the kernel is merged with their running
    statistics. Parameters and state dict stay what they are, and a block may be converted meanwhile.

    Args:
        model: a block, or a network with blocks in it.
        bits: of the integers.

    Returns:
        Handles, one a block: ``handle.remove()`` ends it.

    Raises:
        ValueError: if there is no RepMLP block in the model.
    """
    return [
        block.partition_perceptron.register_forward_hook(partial(_add_rounding_error, block, bits))
        for block in find_repmlp_blocks(model)
    ]


def find_repmlp_blocks(model: nn.Module) -> list[RepMLP | RepMLPv2]:
    """The blocks that have an FC3.

    Raises:
        ValueError: if there is none.
    """
    blocks = [module for module in model.modules() if isinstance(module, RepMLP | RepMLPv2)]
    if not blocks:
        raise ValueError(f"there is no RepMLP block in this {type(model).__name__}, so no FC3 to round")
    return blocks


def is_rounding_hook(hook: Any) -> bool:
    """Whether :func:`add_fake_quant_hooks` registered a hook. It stays right while its block is converted."""
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
    """Put all batch norms into eval mode: from now on they are the affine maps that a conversion folds.

    Their weights and biases still learn. ``model.train()`` undoes it.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
