"""From settings to the components of a run: timm's and accelerate's, chosen and put together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DynamoBackend, GradientAccumulationPlugin
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models import resolve_model_input_args
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from repmlp_settings import Train

from ..checkpoint import build_network
from ..data import ImageData
from ..layers import convert_sync_batchnorm
from ..locality import inject_locality
from .batches import image_size
from .state import State, fitting_state
from .weights import freeze_parameters, load_weights

#: Images (B, C, H, W) and labels (B) to images and the targets of the loss.
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: Called with a line of text for the user.
OnMessage = Callable[[str], None]
#: Devices on which PyTorch can update all parameters in one kernel.
FUSED = ("cpu", "cuda")


@dataclass(frozen=True)
class TrainComponents:
    """What a step of training needs.

    Attributes:
        settings: of the run.
        model: the network; ``ddp_model`` wraps it for training (DDP, torch.compile).
        ema: the moving average of its weights, or None.
        mix: images and labels of a batch to mixed images and what ``loss`` takes with their logits.
        steps: of the optimizer, in the whole run.
    """

    settings: Train
    accelerator: Accelerator
    model: nn.Module
    ddp_model: nn.Module
    ema: ModelEmaV3 | None
    mix: Mix
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    steps: int

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.ema.module if self.ema else self.model

    @property
    def statistics(self) -> list[Tensor]:
        """Running statistics, which differ between processes: those of the network and of its moving average."""
        networks = (self.model, self.ema.module) if self.ema else (self.model,)
        return [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]

    def state(self) -> State:
        """All that changes from step to step. Random generators are not in it: each draw is seeded by its position."""
        scaler, statistics = self.accelerator.scaler, None
        if self.accelerator.num_processes > 1 and self.statistics:
            own = torch.cat([buffer.double().flatten() for buffer in self.statistics])
            statistics = self.accelerator.gather(own[None])  # (processes, values)
        return {
            "statistics": statistics,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_statistics(self, statistics: Tensor) -> None:
        """Load this process's row of (processes, values), if there are as many processes as then."""
        if len(statistics) == self.accelerator.num_processes:
            own = statistics[self.accelerator.process_index].to(self.accelerator.device)
            rows = own.split([buffer.numel() for buffer in self.statistics])
            for buffer, values in zip(self.statistics, rows, strict=True):
                buffer.copy_(values.view_as(buffer))


def build_accelerator(settings: Train) -> Accelerator:
    """accelerate's view of device, precision and processes.

    Raises:
        ValueError: for a precision that the device does not have, or settings that accelerate fixed for this process in
            an earlier run.
    """
    if settings.precision == "fp16" and PartialState(cpu=settings.cpu).device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU, and this run is on a CPU: use bf16 or no")
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=settings.cpu,
        dynamo_backend="inductor" if settings.compile else None,
        gradient_accumulation_plugin=GradientAccumulationPlugin(settings.accumulation, sync_with_dataloader=False),
        log_with=settings.trackers or None,
        project_dir=settings.output,
    )
    if settings.compile and accelerator.state.dynamo_plugin.backend == DynamoBackend.NO:
        raise ValueError("compile is kept as in the first run of this process, which did not: start another process")
    return accelerator


def build_components(
    settings: Train,
    accelerator: Accelerator,
    model: nn.Module,
    classes: int,
    steps: int,
    state: State | None = None,
) -> TrainComponents:
    """Put together what trains ``model`` for ``steps`` steps of the optimizer.

    Args:
        state: the state to resume from.

    Raises:
        ValueError: if the warm-up leaves no steps, or the state does not fit the network.
    """
    if settings.sync_bn:
        model = convert_sync_batchnorm(model, accelerator.num_processes, accelerator.device)
    model = model.to(accelerator.device)
    ema = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
    # A resumed run keeps its kernel: load_state_dict alone would not tell the loss scaler of the other one.
    with fitting_state(settings.output):
        fused = bool(state["optimizer"]["param_groups"][0].get("fused")) if state else None
    optimizer = build_optimizer(settings, model, fused)
    warmup = round(settings.warmup_epochs * steps / settings.epochs)
    if warmup >= steps:
        raise ValueError(f"{steps} steps in all leave none after the warm-up: add epochs, or use smaller batches")
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        warmup_t=warmup,
        warmup_lr_init=settings.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    if state:
        with fitting_state(settings.output, (RuntimeError, ValueError)):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if ema:
                ema.module.load_state_dict(state["ema"])
            if accelerator.scaler:
                accelerator.scaler.load_state_dict(state["scaler"])
    ddp_model, optimizer = accelerator.prepare(model, optimizer)
    mix, loss = build_loss(settings, classes)
    components = TrainComponents(
        settings=settings,
        accelerator=accelerator,
        model=model,
        ddp_model=ddp_model,
        ema=ema,
        mix=mix,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        steps=steps,
    )
    if state and state.get("statistics") is not None:
        with fitting_state(settings.output, (RuntimeError, ValueError)):
            components.load_statistics(state["statistics"])
    return components


def build_model(
    settings: Train, data: ImageData, on_message: OnMessage = lambda text: None, resumed: bool = False
) -> nn.Module:
    """The network that ``settings`` name, with as many inputs and classes as the data has.

    Args:
        on_message: called with what was loaded of the weights to start from.
        resumed: leave those weights out, for a state that is loaded later.

    Raises:
        ValueError: for arguments that the network does not take, weights that do not fit it, or locality or blocks to
            train where there are none.
        FileNotFoundError: if the weights do not exist.
    """
    arguments = resolve_model_input_args(
        settings.model,
        {"img_size": image_size(settings), "in_chans": data.in_chans},
        num_classes=len(data.class_names),
        **settings.model_args,
    )
    model = build_network(arguments.pop("model_name"), **arguments)
    if settings.locality:
        inject_locality(model, settings.locality)
    if settings.weights is not None and not resumed:
        on_message(str(load_weights(model, settings.weights)))
    if settings.freeze != "none":
        freeze_parameters(model, "head" if settings.freeze == "all-but-head" else "blocks")
    if settings.grad_checkpointing:
        model.set_grad_checkpointing()
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
    if settings.layer_decay != 1:
        if not hasattr(model, "group_matcher"):
            raise ValueError(f"{settings.model} does not name its layers for timm: train it with layer_decay=1")
        arguments["layer_decay"] = settings.layer_decay
    return create_optimizer_v2(
        model, settings.opt, settings.lr, settings.weight_decay, momentum=settings.momentum, **arguments
    )


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
