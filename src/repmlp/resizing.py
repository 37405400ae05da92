"""The same network for another input size (RepMLP v1, section 4.4)."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from timm.models import get_model_args
from torch import nn

from .conversion import deploy_arguments


@dataclass(frozen=True)
class Resized:
    """What :func:`resize` made.

    Attributes:
        model: the network for the new size, in the form and mode of the old one.
        inherited: names of the tensors that it took over.
        fresh: names of the tensors that start afresh: of FC1 and FC2 where the number of partitions changed.
        dropped: names of the old network's tensors that have no place in the new one.
    """

    model: nn.Module
    inherited: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.inherited)} tensors inherited, {len(self.fresh)} fresh, {len(self.dropped)} dropped"]
        lines += [f"fresh: {name}" for name in self.fresh] + [f"dropped: {name}" for name in self.dropped]
        return "\n".join(lines)


@torch.no_grad()
def resize(model: Any, img_size: int | tuple[int, int], **changes: Any) -> Resized:
    """Build a network anew for another image size and give it the old one's weights.

    An FC has a fixed size, but only the Global Perceptrons depend on the size of the feature map: FC1
    and FC2 have ``C*P`` features. Where P changes they start afresh, as in the paper; all else, FC3
    included, is inherited. Train the result before you use it if anything is fresh.

    Args:
        model: made by ``timm.create_model``, of this package.
        img_size: the new size, (H, W) or one number.
        changes: other arguments of the network to change with it, for example ``global_reduction``.

    Raises:
        ValueError: if the model does not come from timm's registry, or something other than FC1 and FC2
            would have to change its shape.
    """
    if not hasattr(model, "pretrained_cfg"):
        raise ValueError(
            f"{type(model).__name__} was not made by timm.create_model: build it for the new size yourself"
        )
    old = model.state_dict()
    arguments = {**get_model_args(model), "img_size": to_2tuple(img_size), **deploy_arguments(model), **changes}
    parameter = next(model.parameters())
    new = timm.create_model(model.pretrained_cfg["architecture"], **arguments)
    new = new.to(parameter.device, parameter.dtype).train(model.training)
    inherited, fresh = [], []
    for name, tensor in new.state_dict().items():
        if name in old and old[name].shape == tensor.shape:
            tensor.copy_(old[name])
            inherited.append(name)
        elif ".global_perceptron." in name:
            fresh.append(name)
        else:
            was = list(old[name].shape) if name in old else "nothing"
            raise ValueError(
                f"{name} would change from {was} to {list(tensor.shape)}: "
                f"only the image size and the Global Perceptrons may differ, got {changes}"
            )
    dropped = tuple(name for name in old if name not in new.state_dict())
    return Resized(new, tuple(inherited), tuple(fresh), dropped)
