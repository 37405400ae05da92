"""Fold batch norms into the conv or linear layer before them, wherever the graph of a model allows it."""

import copy
import warnings
from collections import Counter
from itertools import chain
from typing import Any

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.ops.misc import FrozenBatchNorm2d

from ..layers.conv_norm import ensure_can_fold, fold_norm_
from .converters import storage_of, tensors_of
from .equivalence import example_inputs
from .preparation import NORMS_WITH_ACTIVATION, copied, ensure_copyable, in_eval_mode

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
FOLDED = "folded_norm"  # an attribute of what replaces a folded norm
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d)
_ATEN = {getattr(torch.ops.aten, name) for name in ("conv1d", "conv2d", "conv3d", "linear")}


def fold_norms(model: nn.Module, inputs: object = None, inplace: bool = False) -> nn.Module:
    """Fold each batch norm of a model into the conv or linear layer before it, where that changes nothing.

    In eval mode a BN is an affine map per channel. It is folded if it is the only reader of its layer's output, and
    the weights of both are plain parameters that are used once. Weights that a layer computes (timm's StdConv2d),
    shared weights and layers that are called twice stay as they are, and so does a BN or layer with a hook or a
    ``forward`` of its own. Convert blocks with branches first: see :func:`repmlp.reparameterize`.

    Only the graph of ``forward`` is read, for inputs of these shapes: pass ``inputs`` of the usual size if ``forward``
    treats sizes differently. The result is of the same class and has all its methods; an ``nn.Identity``
    takes the place of each BN, or its activation if it has one (timm's ``BatchNormAct2d``). The arithmetic is float64,
    rounded once. A model with nothing to fold comes back as an equal copy.

    Args:
        model: any module that :func:`torch.export.export` or torch.fx can trace.
        inputs: a tensor, or a tuple of arguments, that ``model`` accepts; by default images of the size that a timm
            model or a block specifies. Only shapes and dtypes count.
        inplace: change ``model`` itself; otherwise a copy is changed and ``model`` is untouched.

    Returns:
        The model with its norms folded, in eval mode.

    Raises:
        ValueError: if no ``inputs`` are given and ``model`` specifies no size, if its graph cannot be read, or if a
            copy of it would not compute with its own weights (:func:`repmlp.reparameterize` refuses the same).
    """
    folded = foldable_norms(model, inputs)
    if not inplace:
        model = copied(model)
    fold_pairs_(model, folded)
    return in_eval_mode(model)


def foldable_norms(model: nn.Module, inputs: object = None) -> dict[str, str]:
    """The norms that :func:`fold_norms` folds, each with the layer that absorbs it: ``{"bn1": "conv1"}``."""
    ensure_copyable(model)
    if inputs is None:
        inputs = example_inputs(model, batch_size=2)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    inputs = tuple(x.to("meta") if isinstance(x, Tensor) else x for x in inputs)
    ghost = in_eval_mode(meta_copy(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about caches that forward fills: those of the ghost
        try:
            pairs = _pairs_by_export(ghost, inputs)
        except Exception as export_error:  # torch.export raises errors of many kinds
            try:
                pairs = _pairs_by_fx(ghost)
            except Exception as fx_error:
                raise ValueError(
                    f"cannot read the graph of {type(model).__name__}, so no norm was folded. torch.export: "
                    f"{_first_line(export_error)} torch.fx: {_first_line(fx_error)}"
                ) from export_error
    holders = Counter(storage_of(tensor) for module in model.modules() for tensor in tensors_of(module))
    modules = dict(model.named_modules())
    shown = _shown_layers(ghost, inputs, [layer for layer, _ in pairs])
    return {
        norm: layer
        for layer, norm in pairs
        if _is_own(modules[layer], holders) and not _is_hooked(modules[norm]) and layer not in shown
    }


def fold_pairs_(model: nn.Module, pairs: dict[str, str]) -> None:
    """Fold norms into layers, both by name, in place.

    Raises:
        ValueError: if the dtype of a layer cannot hold the result; nothing is changed then.
    """
    for norm_name, layer_name in pairs.items():
        try:
            ensure_can_fold(model.get_submodule(layer_name), model.get_submodule(norm_name))
        except ValueError as error:
            raise ValueError(f"cannot fold {norm_name} into {layer_name}: {error}") from None
    for norm_name, layer_name in pairs.items():
        norm, layer = model.get_submodule(norm_name), model.get_submodule(layer_name)
        fold_norm_(layer, norm)
        remove_norm_(model, norm)


def remove_norm_(model: nn.Module, norm: nn.Module) -> None:
    """Put what is left of a norm without its affine map in its place, under each name that it has.

    Raises:
        ValueError: if it is not a norm that can be folded.
    """
    rest = _without_affine(norm)
    if rest is None:
        raise ValueError(f"a {type(norm).__name__} is not a batch norm that can be folded")
    setattr(rest, FOLDED, True)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is norm:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, rest)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy without memory: its parameters and buffers are on the meta device."""
    tensors = (t for m in model.modules() for t in tree_leaves(vars(m)))
    memo: dict[int, Any] = {}
    for tensor in tensors:
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
        elif isinstance(tensor, Tensor):
            memo[id(tensor)] = tensor.detach().to("meta")
    return copy.deepcopy(model, memo)


def _pairs_by_export(ghost: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Layer and norm of each pair in the graph that :func:`torch.export.export` records.

    Layers without a bias get one in the ghost, so the graph also shows whether a layer would use it.
    """
    for module in ghost.modules():
        if isinstance(module, LAYERS) and module._parameters.get("weight") is not None and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_empty(module.weight.shape[0]))
    program = torch.export.export(ghost, inputs, strict=False)
    signature = program.graph_signature
    first_names = {module: name for name, module in ghost.named_modules()}
    names = {}  # of each parameter and buffer, under the first name that its module has
    for node_name, name in chain(signature.inputs_to_parameters.items(), signature.inputs_to_buffers.items()):
        module_name, _, tensor_name = name.rpartition(".")
        names[node_name] = f"{first_names[ghost.get_submodule(module_name)]}.{tensor_name}"
    nodes = program.graph.nodes
    uses = {names[node.name]: len(node.users) for node in nodes if node.name in names}
    modules = dict(ghost.named_modules())
    pairs = []
    for node in nodes:
        if getattr(node.target, "overloadpacket", None) not in _ATEN or len(node.users) != 1:
            continue
        weight, bias = (names.get(getattr(arg, "name", ""), "") for arg in (*node.args, None)[1:3])
        layer = weight.removesuffix(".weight")
        (reader,) = node.users
        path = [name for name, _ in reader.meta.get("nn_module_stack", {}).values()]
        norm = next((name for name in reversed(path) if _without_affine(modules.get(name)) is not None), "")
        if (
            (weight, bias) == (f"{layer}.weight", f"{layer}.bias")
            and uses[weight] == uses[bias] == uses.get(f"{norm}.running_mean") == 1
            and all(uses.get(f"{norm}.{key}", 1) == 1 for key in ("running_var", "weight", "bias"))
            and node.meta["val"].dim() == modules[layer].weight.dim()  # channels are axis 1, as the norm takes them
        ):
            pairs.append((layer, norm))
    return pairs


def _pairs_by_fx(ghost: nn.Module) -> list[tuple[str, str]]:
    """The same in the graph of torch.fx with timm's leaf modules, for convs only: it has no shapes."""
    tracer = NodePathTracer(autowrap_functions=get_notrace_functions(), leaf_modules=get_notrace_modules())
    tracer.proxy_buffer_attributes = True  # to see who reads a norm's statistics
    graph = tracer.trace(ghost)
    modules = dict(ghost.named_modules())
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")
    uses += Counter(node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr")
    pairs = []
    for node in graph.nodes:
        reader = next(iter(node.users), node)
        if (
            node.op == reader.op == "call_module"
            and len(node.users) == uses[node.target] == uses[reader.target] == 1
            and type(modules[node.target]) in (nn.Conv2d, nn.Conv3d)
            and not isinstance(modules[reader.target], nn.BatchNorm1d)
            and _without_affine(modules[reader.target]) is not None
        ):
            pairs.append((node.target, reader.target))
    return pairs


def _shown_layers(ghost: nn.Module, inputs: tuple[Any, ...], layers: list[str]) -> set[str]:
    """Layers whose own output, before the norm, is one of the intermediate maps, as that of GhostNet's stem is."""
    forward_intermediates: Any = getattr(ghost, "forward_intermediates", None)
    if forward_intermediates is None:
        return set()
    outputs: dict[str, Tensor] = {}
    for name in layers:  # the hooks go with the ghost
        ghost.get_submodule(name).register_forward_hook(lambda _m, _args, out, name=name: outputs.update({name: out}))
    try:
        maps = forward_intermediates(*inputs)
    except Exception:  # not a method to call with the inputs of forward
        return set()
    storages = {storage_of(t) for t in tree_leaves(maps) if isinstance(t, Tensor)}
    return {name for name, output in outputs.items() if storage_of(output) in storages}


def _without_affine(norm: Any) -> nn.Module | None:
    """What is left of a norm of a known class once its affine map is gone; None if it cannot go."""
    if type(norm) in _NORMS and norm.running_mean is not None:
        return nn.Identity()
    if type(norm) in NORMS_WITH_ACTIVATION and norm.running_mean is not None:
        rest = [module for module in (norm.drop, norm.act) if not isinstance(module, nn.Identity)]
        return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()
    return None


def _is_hooked(module: nn.Module) -> bool:
    """Whether a module carries a hook of any kind, or a ``forward`` that is not its class's."""
    hooked = any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))
    return hooked or "forward" in vars(module)


def _is_own(layer: nn.Module, holders: Counter[int]) -> bool:
    """Whether a layer has no hooks, and shares its weights with no other module, not even as views."""
    return not _is_hooked(layer) and all(holders[storage_of(tensor)] == 1 for tensor in tensors_of(layer))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
