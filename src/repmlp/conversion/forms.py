"""The form of a network as names that a config file can hold, and the way back from them, without tracing."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .contract import iter_training_forms
from .norm_folding import FOLDED, LAYERS, remove_norm_
from .reparameterization import reparameterize


def describe_form(model: nn.Module) -> dict[str, list[str]]:
    """What distinguishes a model from one that timm has just built: nothing (``{}``), or under each key some names.

    ``reparameterized`` are blocks that :func:`repmlp.reparameterize` converted, ``folded_norms`` batch norms that
    :func:`repmlp.fold_norms` folded into the layers before them. FCs that absorbed the convs of
    :func:`repmlp.inject_locality` are what timm builds.
    """
    modules = list(model.named_modules(remove_duplicate=False))
    converted: list[str] = []
    for name, module in modules:  # a block comes before the blocks in it
        is_converted = vars(module).get("deploy") is True and not hasattr(module, "locality_merged")
        if is_converted and not any(name.startswith(f"{outer}.") for outer in converted):
            converted.append(name)
    form = {"reparameterized": converted, "folded_norms": [name for name, m in modules if hasattr(m, FOLDED)]}
    return {key: names for key, names in form.items() if names}


def rebuild_form_(model: nn.Module, form: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Give a network that timm has just built the form that :func:`describe_form` described, in place.

    Blocks convert themselves once more, with weights of no meaning: load ``weights`` afterwards. A layer gets the bias
    that a folded norm left it if ``weights`` have one.

    Raises:
        AttributeError: if the model has no module of one of the names.
    """
    for name in form.get("reparameterized", ()):
        block = model.get_submodule(name)
        if name and any(iter_training_forms(block)):
            parent, _, attribute = name.rpartition(".")
            block = reparameterize(block, inplace=True)
            setattr(model.get_submodule(parent), attribute, block)
        block.deploy = True  # type: ignore[assignment]
    norms = [model.get_submodule(name) for name in form.get("folded_norms", ())]
    for norm in dict.fromkeys(norms):
        remove_norm_(model, norm)
    for name, layer in model.named_modules():
        if norms and isinstance(layer, LAYERS) and layer.bias is None and f"{name}.bias" in weights:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
