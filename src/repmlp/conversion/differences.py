"""What differs between two models whose modules have the same names: weights, classes, attributes, hooks."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from timm.layers import DropBlock2d, DropPath, FrozenBatchNormAct2d, PatchDropout
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from .preparation import NORMS_WITH_ACTIVATION

NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
#: Settings of layers that do not count in eval mode, or that the shapes of weights and maps tell.
_NO_SETTINGS = {"inplace", "p", "momentum", "track_running_stats"} | {
    f"{way}_{what}" for way in ("in", "out", "num") for what in ("channels", "features")
}


@dataclass(frozen=True)
class Difference:
    """What differs in a module itself, not in its children.

    Attributes:
        tensors: names of tensors that differ or that one model lacks.
        structure: whether its class or its set of tensors differs, or a child with weights is in one model only.
        numbers: whether numbers differ that it keeps as attributes, such as a factor of its output.
    """

    tensors: tuple[str, ...]
    structure: bool
    numbers: bool = False

    @property
    def weights(self) -> bool:
        """Whether weights differ, so that a difference elsewhere may make up for it (a norm folded into a conv)."""
        return bool(self.tensors) or self.structure

    @property
    def may_explain(self) -> bool:
        """Whether what differs here may make up for other weights in a child."""
        return self.weights or self.numbers


def paired_modules(a: nn.Module, b: nn.Module, names: Mapping[str, str]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The modules of ``a`` that ``b`` has too, by their names in ``a``.

    Args:
        names: names in ``b`` of modules of ``a``, where they differ; their children follow.
    """
    theirs = dict(b.named_modules(remove_duplicate=False))
    modules = dict(a.named_modules(remove_duplicate=False))
    for name, other_name in names.items():
        if name not in modules or other_name not in theirs:
            missing = f"a has no module {name!r}" if name not in modules else f"b has no module {other_name!r}"
            raise ValueError(f"names maps {name!r} to {other_name!r}, but {missing}")
    pairs = {}
    for name, module in modules.items():
        other = theirs.get(translate(name, names))
        if other is not None:
            pairs[name] = (module, other)
    return pairs


def translate(name: str, names: Mapping[str, str]) -> str:
    """The name in ``b`` of a module of ``a``: the longest prefix in ``names`` counts."""
    for prefix in sorted(names, key=len, reverse=True):
        if name == prefix or name.startswith(f"{prefix}."):
            return names[prefix] + name[len(prefix) :]
    return name


def find_differences(pairs: Mapping[str, tuple[nn.Module, nn.Module]]) -> dict[str, Difference]:
    """What differs, by the name of the module; modules without a difference are left out."""
    found = {}
    paired = {id(module) for pair in pairs.values() for module in pair}
    for name, (a, b) in pairs.items():
        ours, theirs = own_tensors(a), own_tensors(b)
        missing = ours.keys() ^ theirs.keys()
        different = {key for key in ours.keys() & theirs.keys() if not same_weights(ours[key], theirs[key])}
        alone = [child for child in (*a.children(), *b.children()) if id(child) not in paired]
        parts = (part for child in alone for part in child.modules() if id(part) not in paired)
        structure = bool(missing) or any(own_tensors(part) for part in parts)
        # The code: class, attributes, hooks, children without weights.
        code = bool(alone) or type(a) is not type(b) or _settings(a) != _settings(b) or _hooks(a) != _hooks(b)
        numbers = _numbers(a) != _numbers(b) or not _same_plain_tensors(a, b)
        tensors = tuple(f"{name}.{key}".removeprefix(".") for key in sorted(missing | different))
        if tensors or structure or code or numbers:
            found[name] = Difference(tensors, structure, numbers)
    return found


def what_differs(a: nn.Module, b: nn.Module) -> str:
    """The first thing in which a model and the network that timm builds of it compute differently in eval mode, or "".

    By names and shapes of weights, classes of modules and settings of PyTorch's layers; both may be on the meta device.
    """
    ours, theirs = (
        {key: tuple(t.shape) for key, t in m.state_dict().items() if not key.endswith("num_batches_tracked")}
        for m in (a, b)
    )
    if differing := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        name = differing[0]
        found = [f"of shape {list(s[name])}" if name in s else "missing" for s in (ours, theirs)]
        return f"{name} is {found[0]} in the model, but {found[1]} in the network that timm builds"
    parts = [dict(m.named_modules(remove_duplicate=False)) for m in (a, b)]
    for name in parts[0] | parts[1]:
        found = [_kind(part[name]) if name in part else _NOTHING for part in parts]
        if found[0] != found[1] and not {_NOTHING, _IDENTITY} >= set(found):
            return f"{name or 'the model'} is {found[0]} in the model, but {found[1]} in the network that timm builds"
        if found[0] == found[1]:
            settings = [_settings_in_eval(part[name]) for part in parts]
            for key in settings[0]:
                values = [own.get(key) for own in settings]
                if values[0] != values[1]:
                    return (
                        f"{key} of {name} is {values[0]} in the model, but {values[1]} in the network that timm builds"
                    )
    return ""


_NOTHING, _IDENTITY = "missing", "an Identity"


def _kind(module: nn.Module) -> str:
    """The class of a module; synchronized and frozen norms are batch norms, dropouts do nothing in eval mode."""
    if isinstance(module, NORMS):
        activates = isinstance(module, NORMS_WITH_ACTIVATION) and not isinstance(module.act, nn.Identity)
        return "a batch norm with an activation" if activates else "a batch norm"
    if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd | DropPath | DropBlock2d | PatchDropout):
        return _IDENTITY
    return type(module).__name__


def _settings_in_eval(module: nn.Module) -> dict[str, object]:
    """What a layer of PyTorch, or timm's variant of one, computes with in eval mode besides its weights."""
    if isinstance(module, NORMS):
        return {"eps": module.eps}
    bases = [base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.") and base is not nn.Module]
    if _kind(module) == _IDENTITY or not bases or not type(module).__module__.startswith(("torch.nn.", "timm.layers.")):
        return {}
    names = {
        *getattr(module, "__constants__", ()),
        *(("num_heads",) if isinstance(module, nn.MultiheadAttention) else ()),
    }
    return {name: getattr(module, name, None) for name in sorted(names - _NO_SETTINGS)}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module itself."""
    return {
        name: tensor
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and name != "num_batches_tracked"
    }


def same_weights(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to one rounding of the coarser of their dtypes."""
    if a.shape != b.shape or a.dtype.is_floating_point != b.dtype.is_floating_point:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b.to(a.device))
    dtype = max(a.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    a, b = a.detach().to(dtype), b.detach().to(a.device, dtype)
    if torch.equal(a, b):
        return True
    return bool((a.double() - b.double()).abs().le(torch.finfo(dtype).eps * a.double().abs()).all())


def is_leaf(module: nn.Module) -> bool:
    """Whether all weights of a module are its own: a conv, or a norm with an activation in it."""
    return not any(_has_tensors(child) for child in module.children())


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))


def _settings(module: nn.Module) -> dict[str, object]:
    """Attributes that are plain values or functions: stride, padding, eps, number of heads, activation, ..."""
    return {
        key: [value.__qualname__, getattr(value, "__code__", None)] if inspect.isroutine(value) else value
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and (_is_plain(value) or inspect.isroutine(value))
    }


def _numbers(module: nn.Module) -> dict[str, object]:
    """Numbers that are attributes, private ones too, also in lists, dicts and arrays."""
    leaves = {key: tree_leaves(value) for key, value in vars(module).items() if key not in ("_parameters", "_modules")}
    found = {
        key: [v.tolist() if isinstance(v, np.ndarray | np.generic) else v for v in values if _is_number(v)]
        for key, values in leaves.items()
    }
    return {key: values for key, values in found.items() if values}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | complex | np.ndarray | np.generic) and not isinstance(value, bool)


def _same_plain_tensors(a: nn.Module, b: nn.Module) -> bool:
    """Whether tensors that are plain attributes of both modules are equal."""
    ours, theirs = ({k: v for k, v in vars(m).items() if isinstance(v, Tensor)} for m in (a, b))
    return all(same_weights(ours[key], theirs[key]) for key in ours.keys() & theirs.keys())


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _hooks(module: nn.Module) -> list[str]:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks]
