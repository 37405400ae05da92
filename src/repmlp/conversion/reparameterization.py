"""Training form to deploy form, for any model."""

import copy
from collections.abc import Iterator

from timm.utils import reparameterize_model
from torch import nn

_CONVERTERS = ("reparameterize", "fuse", "switch_to_deploy")  # the names that timm looks for


def convertible_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules of a model that have a training and a deploy form, with their names.

    The model itself is one of them, under the name "", if it is a block.
    """
    if any(callable(getattr(model, name, None)) for name in _CONVERTERS):
        yield prefix, model
        return
    for name, child in model.named_children():
        yield from convertible_modules(child, f"{prefix}.{name}" if prefix else name)


def is_reparameterized(model: nn.Module) -> bool:
    """Whether every module that has a deploy form is in it (and there is one, or was: an FC that took up its convs)."""
    modules = [module for _, module in convertible_modules(model)]
    return all(_in_deploy_form(module) for module in modules) and (bool(modules) or _was_converted(model))


def _was_converted(model: nn.Module) -> bool:
    """Whether a module became a plain one: what :func:`repmlp.inject_locality` put beside it is merged."""
    return any(getattr(module, "deploy", False) is True for module in model.modules())


def _in_deploy_form(module: nn.Module) -> bool:
    if not hasattr(module, "deploy"):  # timm's own (MobileOne, RepVGG, ...) have no such flag: what they merge is BN
        return not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    return all(getattr(m, "deploy", True) for m in module.modules())


def reparameterize(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Convert every convertible module of a model to deploy form (RepMLP v1, section 3.4).

    Outputs stay what they were in eval mode: :func:`repmlp.verify` measures how exactly. Modules of
    timm that know how to convert themselves are converted too. A model in deploy form stays as it is.

    Args:
        model: any module; a single block as well as a whole network.
        inplace: change ``model`` itself; otherwise a copy is converted and ``model`` is untouched.

    Returns:
        The model in deploy form and in eval mode.

    Raises:
        ValueError: if nothing in the model can be converted.
    """
    if next(convertible_modules(model), None) is None and not is_reparameterized(model):
        raise ValueError(
            f"nothing to convert: no module of this {type(model).__name__} has a deploy form (repmlp.RepMLP, the "
            f"networks of repmlp, and what repmlp.inject_locality was called on have)"
        )
    # timm converts children only: make the root a child. Some of its blocks convert in eval mode only, and some are
    # replaced by new modules, which start in training mode.
    holder = nn.Sequential(model if inplace else copy.deepcopy(model)).eval()
    reparameterize_model(holder, inplace=True)
    return holder[0].eval()
