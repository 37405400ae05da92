"""Settings that cannot work, or would silently do nothing, are refused before anything is read or written."""

from collections.abc import Callable

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from timm.optim import get_optimizer_info
from torch.optim import SGD

from repmlp_settings import Train, check_numbers

from ..data import ImageData

_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda x: x >= 0, "0 or more")
_FRACTION: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x < 1, "at least 0 and less than 1")
_PROBABILITY: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x <= 1, "between 0 and 1")
_SHARE: tuple[Callable[[float], bool], str] = (lambda x: 0 < x <= 1, "more than 0 and at most 1")

#: What the other numbers have to be, and in words.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("lr", "warmup_lr", "weight_decay", "warmup_epochs", "clip", "mixup", "cutmix"), _NOT_NEGATIVE),
    **dict.fromkeys(("val_fraction", "momentum", "label_smoothing", "ema"), _FRACTION),
    **dict.fromkeys(("hflip", "random_erasing"), _PROBABILITY),
    **dict.fromkeys(("qat_fraction", "layer_decay"), _SHARE),
}


def check_settings(settings: Train) -> None:
    """Check what can be checked without data, network and device.

    Raises:
        ValueError: naming the setting, what it is, and what it has to be.
        ImportError: for a tracker that is not installed.
    """
    check_numbers(settings)
    for name, (holds, wanted) in RANGES.items():
        value = getattr(settings, name)
        if not holds(value):
            raise ValueError(f"{name} is {value}, but has to be {wanted}")
    if settings.warmup_epochs >= settings.epochs:
        raise ValueError(
            f"warmup_epochs={settings.warmup_epochs} leaves none of the {settings.epochs} epochs for training: "
            f"reduce warm-up or add epochs"
        )
    try:
        optimizer = get_optimizer_info(settings.opt.lower().rpartition("_")[2])
    except ValueError as error:
        raise ValueError(f"unknown optimizer {settings.opt!r}: timm.optim.list_optimizers() lists them") from error
    if optimizer.opt_class is SGD and (optimizer.defaults or {}).get("nesterov") and not settings.momentum:
        raise ValueError(
            f"momentum is 0, but opt={settings.opt} is SGD with Nesterov momentum: use more, or opt=momentum, which "
            f"also works without"
        )
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in settings.trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"unknown tracker {tracker!r}: accelerate has {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if tracker not in installed:
            raise ImportError(f"the tracker {tracker} is not installed: install it, or train without it")


def check_classes(data: ImageData) -> None:
    """Raise ValueError unless there is something to tell apart."""
    if len(data.class_names) < 2:
        raise ValueError(
            f"the data has a single class, {', '.join(data.class_names)}: a classifier needs images of two or more"
        )
