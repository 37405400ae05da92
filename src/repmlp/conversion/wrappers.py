"""Take a network out of what training puts around it."""

from typing import Any

from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

#: Modules that hold the network in their attribute ``module``.
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel, ModelEmaV2, ModelEmaV3)


def unwrap_model(model: Any) -> Any:
    """The network inside DDP, DataParallel, ``torch.compile`` and averages of weights (AveragedModel, ModelEma)."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # torch.compile's
        else:
            return model


def timm_model(model: Any) -> Any:
    """The network inside any wrapper, if ``timm.create_model`` made it.

    Raises:
        ValueError: if something else did.
    """
    model = unwrap_model(model)
    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "num_classes"):
        raise ValueError(
            f"{type(model).__name__} was not made by timm.create_model, so nothing says how to build it again: "
            f"pass the network that timm.create_model returned, not a part, a tracing or a feature extractor of it"
        )
    return model
