"""From settings to the parts of a run: timm's and accelerate's, chosen, named and put together."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models import resolve_model_input_args
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from repmlp_settings import Train

from ..checkpoint import load_model
from ..data import Batches, ImageData, load_data
from ..layers import convert_sync_batchnorm
from ..locality import inject_locality
from .batches import build_batches, data_config_of

#: Images (B, C, H, W) and labels (B) to images and what the loss wants of their labels.
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: Devices on which PyTorch can update all parameters in one kernel.
FUSED = ("cpu", "cuda")
#: Images looked through so far, and of all.
OnCheck = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """All that takes part in a run.

    Attributes:
        data, data_config: the data set, and how its images are prepared, in timm's terms.
        train, val, test: batches; ``val`` is None if nothing is held out.
        model: the network; ``network`` is what is called to train it (DDP's, torch.compile's).
        ema: the average of its weights, or None.
        steps: of the optimizer, in the whole run.
    """

    data: ImageData
    data_config: dict[str, Any]
    train: Batches
    val: Batches | None
    test: Batches
    model: nn.Module
    network: nn.Module
    ema: ModelEmaV3 | None
    mix: Mix
    loss: nn.Module
    optimizer: Any
    schedule: CosineLRScheduler
    scaler: Any
    steps: int

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts, and that is kept."""
        return self.ema.module if self.ema else self.model

    def state(self) -> dict[str, Any]:
        """All that changes from step to step. There is no random state: what is drawn follows from the place."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }


def build_parts(settings: Train, accelerator: Accelerator, state: dict[str, Any] | None, on_check: OnCheck) -> Parts:
    """Put a run together, in the state that it was written in if there is one.

    Raises:
        ValueError, FileNotFoundError: for settings that do not fit together, or data that is not there.
    """
    if settings.epochs < 1:
        raise ValueError(f"there is nothing to train in {settings.epochs} epochs: use 1 or more")
    with accelerator.main_process_first():  # it downloads, and checks images; the others find what it found
        data = load_data(
            settings.data, settings.data_root, settings.download, settings.bad_images, on_check, settings.in_memory
        )
    model: Any = build_model(settings, data)
    data_config = data_config_of(settings, model, data)
    train, val, test = build_batches(settings, data, data_config, accelerator)
    steps = settings.epochs * len(train) // settings.accumulation

    if settings.sync_bn:
        model = convert_sync_batchnorm(model, accelerator.num_processes, accelerator.device)
    model = model.to(accelerator.device)
    ema = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
    # A resumed run keeps its kernel: load_state_dict alone would not tell the loss scaler of the other one.
    fused = bool(state["optimizer"]["param_groups"][0].get("fused")) if state else None
    optimizer = build_optimizer(settings, model, fused)
    warmup = round(settings.warmup_epochs * steps / settings.epochs)
    if not 0 <= warmup < steps:
        raise ValueError(
            f"warmup_epochs {settings.warmup_epochs} leave none of the {settings.epochs} epochs to train in "
            f"after them: use fewer, or more epochs"
        )
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        warmup_t=warmup,
        warmup_lr_init=settings.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.module.load_state_dict(state["ema"])
    network, optimizer = accelerator.prepare(model, optimizer)
    if state and accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    mix, loss = build_loss(settings, len(data.class_names))
    return Parts(
        data=data,
        data_config=data_config,
        train=train,
        val=val,
        test=test,
        model=model,
        network=network,
        ema=ema,
        mix=mix,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        scaler=accelerator.scaler,
        steps=steps,
    )


def build_model(settings: Train, data: ImageData) -> nn.Module:
    """The network that ``settings`` name, with as many inputs and classes as the data has.

    Raises:
        ValueError: for arguments that the network does not take, weights that do not fit it, or locality where
            there is no place for it.
    """
    arguments = resolve_model_input_args(
        settings.model,
        {"img_size": settings.img_size, "in_chans": data.in_chans},
        num_classes=len(data.class_names),
        **settings.model_args,
    )
    try:
        model = timm.create_model(**arguments)
    except TypeError as error:  # an argument that the network does not have
        raise ValueError(f"{settings.model} does not take these arguments: {error}") from error
    if settings.weights is not None:
        load_weights(model, Path(settings.weights))
    if settings.locality:
        inject_locality(model, settings.locality)
    if settings.grad_checkpointing:
        cast(Any, model).set_grad_checkpointing()
    return model.to(memory_format=torch.channels_last) if settings.channels_last else model


def build_optimizer(settings: Train, model: nn.Module, fused: bool | None = None) -> torch.optim.Optimizer:
    """Create timm's optimizer for a model that is on its device, without weight decay on biases and norms.

    Args:
        fused: run PyTorch's SGD as one kernel for all parameters, which differs from its loop by rounding;
            by default where PyTorch can.
    """
    arguments: dict[str, Any] = {}
    if get_optimizer_class(settings.opt.rpartition("_")[2], bind_defaults=False) is torch.optim.SGD:
        arguments["fused"] = next(model.parameters()).device.type in FUSED if fused is None else fused
    return create_optimizer_v2(
        model, settings.opt, settings.lr, settings.weight_decay, momentum=settings.momentum, **arguments
    )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load all weights of a model folder or .safetensors file; a classifier for other classes starts afresh.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the weights are of another network.
    """
    if not path.exists():
        raise FileNotFoundError(f"there are no weights {path}: give a model folder or a .safetensors file")
    weights = load_model(path).state_dict() if path.is_dir() else load_file(path)
    own = model.state_dict()
    classifier = cast(Any, model).pretrained_cfg.get("classifier") or ""
    names = [classifier] if isinstance(classifier, str) else list(classifier)
    for key in [key for key in weights if key.rpartition(".")[0] in names]:
        if key in own and own[key].shape != weights[key].shape:
            weights[key] = own[key]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} are not those of this {type(model).__name__}: {error}") from error


def build_loss(settings: Train, classes: int) -> tuple[Mix, nn.Module]:
    """What mixes a batch of images and labels, or leaves it, and the loss of logits and what that gave."""
    if settings.mixup or settings.cutmix:
        mix = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            label_smoothing=settings.label_smoothing,
            num_classes=classes,
        )
        return mix, SoftTargetCrossEntropy()
    return (lambda x, labels: (x, labels)), nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
