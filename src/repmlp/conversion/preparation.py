"""What must hold before a conversion: a model that a copy stands for, plain parts, weights that are parameters."""

import copy
import inspect
from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, LayerScale, LayerScale2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from ..layers import GroupedLinear
from ..layers.plain import why_not_plain
from ..layers.quantization_aware import is_rounding_hook
from ..layers.sync_norm import SyncNorm
from .wrappers import WRAPPERS

#: Layers whose parameters say what they compute. Those that normalize and activate do with an activation of Identity.
PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    SyncNorm,
    FrozenBatchNorm2d,
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    SyncBatchNormAct,
    LayerScale,
    LayerScale2d,
    GroupedLinear,
)
NORMS_WITH_ACTIVATION = (BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct)  # and, between the two, a drop
#: Where a module keeps its tensors and children.
TABLES = ("_parameters", "_buffers", "_modules")
#: Packages whose modules without tensors of their own only combine others.
_PACKAGES = ("torch", "timm", "torchvision", "repmlp")


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model in eval mode; also of one with computed weights or kept results, which PyTorch refuses.

    The copy drops what its modules cached of their weights (LeViT's biases): they do so when they start to train.

    Raises:
        ValueError: if a copy would not compute with its own weights (:func:`ensure_copyable`).
    """
    ensure_copyable(model)
    kept = [value for module in model.modules() for value in tree_leaves(vars(module))]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    copy_of_model = copy.deepcopy(model, memo)
    copy_of_model.train()
    return in_eval_mode(copy_of_model)


def in_eval_mode(model: nn.Module) -> nn.Module:
    """The model itself, in eval mode: ``model.eval()`` returns None if a class overrides ``train`` and forgets to."""
    model.eval()
    return model


def ensure_copyable(model: nn.Module) -> None:
    """Raise ValueError if a copy would run the original, or a module is a wrapper: DDP, torch.compile, an average."""
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, WRAPPERS) or hasattr(module, "_orig_mod"):
            attribute = "module" if isinstance(module, WRAPPERS) else "_orig_mod"
            raise ValueError(f"{where} wraps a model: pass the model itself, its attribute {attribute}")
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(is_lazy(t) for t in tensors):
            raise ValueError(f"{where} has weights without a shape: call the model once, and pass it then")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{where} is compiled by TorchScript: pass the model that it was made from")
        if not has_own_forward(module):
            raise ValueError(
                f"{where} has had its forward replaced by a function that is not bound to it, so a copy would still "
                f"run the original: define a subclass with that forward instead"
            )


def has_own_forward(module: nn.Module) -> bool:
    """Whether the ``forward`` of a module is its class's or a method of its own that was assigned to it."""
    forward = vars(module).get("forward")
    return forward is None or (inspect.ismethod(forward) and forward.__self__ is module)


@torch.no_grad()
def make_permanent(module: nn.Module) -> None:
    """Turn weights that a module computes (weight norm, spectral norm, orthogonal, pruning) into plain parameters.

    The module is in eval mode; a computed weight is frozen if all that it is computed from is.
    """
    before = {id(parameter) for parameter in module.parameters()}
    trains = any(parameter.requires_grad for parameter in module.parameters())
    if parametrize.is_parametrized(module):
        # Not remove_parametrizations: it deletes the property of the class, which a deep copy shares with the original.
        parametrizations: Any = module.parametrizations
        values = {name: getattr(module, name).detach().clone() for name in parametrizations}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            # prune.remove would write into the parameter, which others may share.
            original = f"{hook._tensor_name}_orig"
            module._parameters[original] = nn.Parameter(module._parameters[original].detach())  # type: ignore[union-attr]
            prune.remove(module, hook._tensor_name)
    for parameter in module._parameters.values():
        if parameter is not None and id(parameter) not in before:
            parameter.requires_grad_(trains)


def why_not_mergeable(part: nn.Module, block: nn.Module) -> str | None:
    """Why a module of a block must not be merged, and what to do; None if its parameters say what it computes.

    Computed weights have been made permanent (:func:`make_permanent`).
    """
    if "forward" in vars(part):
        return "has a forward of its own, which a conversion does not know: delete it (del module.forward)"
    if part is block:
        return None
    has_tensors, package = bool(part._parameters or part._buffers), package_of(type(part))
    if not has_tensors and package not in (*_PACKAGES, package_of(type(block))):
        return f"is a {type(part).__name__}, which {type(block).__name__} is not built of: put the original layer back"
    of_the_block = not has_tensors or type(part).__module__ == type(block).__module__
    reason = why_not_plain(part, (*PLAIN, type(part)) if of_the_block else PLAIN, is_rounding_hook)
    if reason == "has a forward hook":
        return f"{reason}, which a merged layer cannot keep: remove it"
    if isinstance(part, NORMS_WITH_ACTIVATION) and not all(isinstance(child, nn.Identity) for child in part.children()):
        reason = "has an activation"
    return reason and f"{reason}: put the original layer back"


def why_not_removable(part: nn.Module, block: nn.Module) -> str | None:
    """Why a module of a block must not be removed or replaced by a conversion, and what to do; or None."""
    if part is block and (part._forward_hooks or part._forward_pre_hooks):
        return "has a forward hook, and is replaced by another layer: remove the hook"
    if isinstance(part, nn.modules.conv._ConvNd) and part.padding_mode != "zeros":
        return f"pads with {part.padding_mode!r}, which the merged layer would not: use padding_mode='zeros'"
    return None


def lost_hooks(part: nn.Module) -> str:
    """The kinds of backward and state-dict hooks of a module that is removed, for a warning; "" if it has none."""

    def is_torchs(hook: object) -> bool:  # of a computed weight, which is made permanent
        return getattr(hook, "hook", hook).__module__.startswith("torch.nn.utils")

    return ", ".join(
        key.strip("_").removesuffix("s").replace("_", " ")
        for key, hooks in vars(part).items()
        if key.endswith("_hooks") and "forward" not in key and not all(map(is_torchs, hooks.values()))
    )


def package_of(cls: type) -> str:
    """The top-level package of a class."""
    return cls.__module__.partition(".")[0]
