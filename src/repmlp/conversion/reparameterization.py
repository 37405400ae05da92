"""Training form to deploy form, for any model."""

import copy

import torch
from torch import nn

from .contract import converter, is_reparameterized, iter_reparameterizable


def reparameterize(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Convert every block of a model to deploy form (RepMLP v1, section 3.4).

    The outputs stay what they were in eval mode: :func:`repmlp.verify` measures how exactly. Blocks of timm that can
    convert themselves are converted too. A model in deploy form stays as it is.

    Args:
        model: any module; a single block as well as a whole network.
        inplace: change ``model`` itself; otherwise a copy is converted and ``model`` is untouched.

    Returns:
        The model in deploy form and in eval mode.

    Raises:
        ValueError: if nothing in the model can be converted.
    """
    if next(iter_reparameterizable(model), None) is None and not is_reparameterized(model):
        raise ValueError(
            f"nothing to convert: no module of this {type(model).__name__} has a deploy form (repmlp.RepMLP, the "
            f"networks of repmlp, and what repmlp.inject_locality was called on have)"
        )
    holder = nn.Sequential(model if inplace else copy.deepcopy(model)).eval()
    for _, block in list(iter_reparameterizable(holder)):
        new = convert_block(block)
        new.deploy = True  # type: ignore[assignment]
        _replace(holder, block, new)
    return holder[0].eval()


def convert_block(block: nn.Module) -> nn.Module:
    """Call the converters of a block and of all modules in it; returns what takes the block's place, maybe itself."""
    with torch.no_grad():
        name = converter(block)
        result = getattr(block, name)() if name else None
        new = result if name == "fuse" and isinstance(result, nn.Module) else block
        for child in dict.fromkeys(new.children()):
            _replace(new, child, convert_block(child))
    return new


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another one's place, under all its names."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
