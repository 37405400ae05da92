"""Networks in what training and deployment put around them."""

from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel

WRAPPERS = {
    "compile": torch.compile,
    "DataParallel": torch.nn.DataParallel,
    "DDP": torch.nn.parallel.DistributedDataParallel,
    "AveragedModel": AveragedModel,
    "ModelEmaV3": ModelEmaV3,
    "both": lambda model: torch.compile(torch.nn.DataParallel(model)),
}


@contextmanager
def wrapped(wrapper, model):
    """The model in a wrapper, in a process group of one process, without which there is no DDP."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield WRAPPERS[wrapper](model)
    finally:
        torch.distributed.destroy_process_group()
