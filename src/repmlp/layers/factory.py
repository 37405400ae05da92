"""The arguments ``device`` and ``dtype``, as timm and PyTorch pass them down to the layers that a module is made of."""

from typing import TypedDict

import torch
from torch.types import Device


class FactoryArgs(TypedDict):
    """``dd: FactoryArgs = {"device": device, "dtype": dtype}``, to be passed on as ``**dd``."""

    device: Device
    dtype: torch.dtype | None
