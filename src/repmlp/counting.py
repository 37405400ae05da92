"""Parameters and multiply-adds of a model, counted as in the papers."""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from .conversion.equivalence import example_inputs
from .conversion.norm_folding import meta_copy
from .conversion.preparation import in_eval_mode
from .conversion.probing import dtype_of


@dataclass(frozen=True)
class Complexity:
    """Parameters, and multiply-adds (``macs``, FLOPs in the papers) of convs and matrix products for one image."""

    params: int
    macs: int

    def __str__(self) -> str:
        return f"{self.params / 1e6:.2f}M params, {self.macs / 1e6:.1f}M MACs"


@torch.no_grad()
def complexity(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Complexity:
    """Count parameters and multiply-adds on a meta-device copy: computes nothing and leaves ``model`` as it is.

    Args:
        model: any module.
        input_size: (C, H, W); by default that of the model's pretrained_cfg.

    Raises:
        ValueError: if TorchScript compiled the model or a part of it, or a lazy layer has no weights yet.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) is compiled by TorchScript, which hides its "
                f"operations: pass the model that it was made from"
            )
        if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) has weights without a shape: call the model once"
            )
    ghost = in_eval_mode(meta_copy(model))
    x = example_inputs(model, batch_size=1) if input_size is None else torch.empty(1, *input_size)
    with FlopCounterMode(display=False) as counter:
        ghost(x.to("meta", dtype_of(model)))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(params, macs=counter.get_total_flops() // 2)


def batch_norms(model: nn.Module) -> dict[str, int]:
    """Number of batch norms by name, with numbers replaced by stars: ``{"stages.*.*.norm": 12}``."""
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Counter(re.sub(r"\b\d+\b", "*", name) for name in norms)


def layer_kinds(model: nn.Module) -> dict[str, int]:
    """Number of layers with parameters, by class: ``{"Conv2d": 7, "Linear": 9, ...}``."""
    layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    return Counter(type(layer).__name__ for layer in layers)
