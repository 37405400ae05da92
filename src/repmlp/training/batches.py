"""From settings and a data set to batches, prepared as the network takes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from accelerate import Accelerator
from timm.data import resolve_data_config
from timm.data.random_erasing import RandomErasing
from timm.models import get_model_input_config
from torch import nn
from torch.utils.data import DataLoader

from repmlp_settings import Train

from ..data import (
    Batches,
    ImageBatches,
    ImageData,
    ProcessShard,
    TensorBatches,
    Transformed,
    eval_transform,
    fits_in_memory,
    load_data,
    load_tensor,
    match_labels,
    train_transform,
)
from ..data.images import LabeledImages
from ..data.sets import Chosen
from ..data.transforms import DataConfig
from ..model_config import label_names_of

#: The images of each class are counted for at most this many classes.
MAX_COUNTED = 10
#: Images checked so far, and of all.
OnCheck = Callable[[int, int], None]


def image_size(settings: Train) -> tuple[int, int] | None:
    """(H, W) of the images for the network, or None for its own size.

    Raises:
        ValueError: unless ``img_size`` is one or two positive numbers.
    """
    if settings.img_size is None:
        return None
    sides = settings.img_size if isinstance(settings.img_size, list) else [settings.img_size]
    if len(sides) not in (1, 2) or any(side < 1 for side in sides):
        raise ValueError(f"img_size {settings.img_size} is not a size: use one number, or height and width")
    return sides[0], sides[-1]


def data_config_of(settings: Train, model: nn.Module, data: ImageData) -> DataConfig:
    """How images are prepared for the network, in timm's terms; it is written into the model folder.

    Raises:
        ValueError: for ``fit`` by padding where images have no size of their own, or a larger one.
    """
    config = {**resolve_data_config(model=model), "mean": data.mean, "std": data.std}
    size = image_size(settings) or get_model_input_config(model)["input_size"][1:]
    config["input_size"] = (data.in_chans, *size)
    if settings.fit == "pad":
        square = data.image_size is not None and data.image_size[0] == data.image_size[1] and size[0] == size[1]
        if not square or data.image_size is None or data.image_size[0] > size[0]:
            raise ValueError(
                f"fit pad is for square images that are smaller than the network's {size[0]}x{size[1]}; "
                f"those of {settings.data} are {data.image_size or 'of any size'}: use fit resize"
            )
        # timm resizes to floor(size / crop_pct), which is the image's own size, and CenterCrop pads that with zeros.
        config |= {"crop_pct": size[0] / (data.image_size[0] + 0.01), "crop_mode": "center"}
    return config


@dataclass(frozen=True)
class RunData:
    """The images of a run.

    Attributes:
        config: how they are prepared, in timm's terms.
        train, val, test: batches of those to train on (augmented, shuffled), held out from them, and to test on;
            ``val`` is None if none are held out.
        steps: batches in an epoch; what does not fill a batch is left out in this epoch.
    """

    data: ImageData
    config: DataConfig
    train: Batches
    val: Batches | None
    test: Batches
    steps: int


def load_run_data(settings: Train, accelerator: Accelerator, on_check: OnCheck) -> ImageData:
    """Open the data set of a run; the first process downloads it and looks through it, before the others."""
    with accelerator.main_process_first():
        return load_data(
            settings.data, settings.data_root, settings.download, settings.bad_images, on_check, settings.in_memory
        )


def build_run_data(settings: Train, data: ImageData, model: nn.Module, accelerator: Accelerator) -> RunData:
    """Split the images of a run, and batch them as ``model`` takes them.

    Raises:
        ValueError: if settings and images do not fit together.
    """
    config = data_config_of(settings, model, data)
    train, val, test = build_batches(settings, data, config, accelerator)
    return RunData(data, config, train, val, test, len(train) // settings.accumulation)


def split_train(settings: Train, data: ImageData) -> tuple[Sequence[int], Chosen | None]:
    """The images to train on, and those to validate on: see :meth:`ImageData.train_and_val`."""
    return data.train_and_val(settings.val_fraction, settings.seed, settings.val_draw, settings.train_images)


def count_images(settings: Train, data: ImageData) -> str:
    """How many images of each class a run trains on, validates on and tests on, and whether they fill a batch."""
    to_train, validation = split_train(settings, data)
    lines = [_count_by_class("training", data.train.labels[to_train], data.class_names)]
    if len(to_train) < settings.batch_size:
        lines.append(f"batch_size {settings.batch_size} is more than that: each epoch is one step with all of them")
    if validation:
        images, indices = validation
        lines.append(_count_by_class("validation", images.labels[indices], data.class_names))
    else:
        lines.append("no validation images")
    return "\n".join([*lines, _count_by_class("test", data.test.labels, data.class_names)])


def _count_by_class(split: str, labels: np.ndarray, names: Sequence[str]) -> str:
    """``90 test images: cat (60), dog (30)``; of more than MAX_COUNTED classes only the smallest and the largest."""
    counts = np.bincount(labels, minlength=len(names))  # (classes)
    shown = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)]
    images, least, most = f"{len(labels):,} {split} images", counts.argmin(), counts.argmax()
    if len(names) <= MAX_COUNTED:
        return f"{images}: {', '.join(shown)}"
    if counts[least] == counts[most]:
        return f"{images} of {len(names)} classes: {counts[least]:,} of each"
    return f"{images} of {len(names)} classes: fewest of {shown[least]}, most of {shown[most]}"


def build_batches(
    settings: Train, data: ImageData, data_config: DataConfig, accelerator: Accelerator
) -> tuple[Batches, Batches | None, Batches]:
    """Batches of images to train on (augmented, shuffled), to validate on (None for no validation), and to test on.

    Small images stay in the accelerator's memory as one tensor, unless each of them wants an
    augmentation of its own.

    Raises:
        ValueError: for a batch size that cannot be divided as it has to be, or a padding larger than the images.
    """
    shard = ProcessShard(accelerator.process_index, accelerator.num_processes)
    to_train, validation = split_train(settings, data)
    if not len(to_train) or (settings.val_fraction and not (validation and len(validation[1]))):
        raise ValueError(
            f"val_fraction {settings.val_fraction} of {len(data.train)} images leaves none to "
            f"{'validate on' if len(to_train) else 'train on'} (each class keeps one to train on): use another, or 0 "
            f"for no validation"
        )
    batch_size = min(settings.batch_size, len(to_train))
    parts = shard.world * settings.accumulation
    if batch_size % parts:
        raise ValueError(
            f"a batch of {batch_size} images cannot be divided by {shard.world} processes times "
            f"{settings.accumulation} micro-batches: use a batch_size that is a multiple of {parts}, no larger than "
            f"the {len(to_train)} images to train on"
        )
    shorter = min(data_config["input_size"][1:])
    if settings.augment == "pad-crop" and settings.crop_padding > shorter:
        raise ValueError(f"crop_padding is {settings.crop_padding}, but has to be at most {shorter}, the image size")
    if (settings.mixup or settings.cutmix) and batch_size // parts % 2:
        raise ValueError(
            f"mixup and cutmix mix pairs of images, and a process computes {batch_size // parts} at a time: "
            f"use a batch_size that is a multiple of {2 * parts}"
        )
    images = sum(len(split) for split in (data.train, data.val, data.test) if split)
    fits = settings.in_memory == "yes" or fits_in_memory(images, data_config)
    as_tensor = data.image_size is not None and settings.in_memory != "no" and fits
    if as_tensor and settings.augment != "resized-crop" and not settings.auto_augment:
        erase = RandomErasing(settings.random_erasing, device="cpu") if settings.random_erasing else None
        crop = settings.augment == "pad-crop"

        def batches_of(images: LabeledImages, indices: Sequence[int], train: bool = False) -> Batches:
            pixels, labels = load_tensor(images, data_config, indices)
            return TensorBatches(
                pixels.to(accelerator.device),
                labels.to(accelerator.device),
                batch_size=batch_size // settings.accumulation,
                data_config=data_config,
                shard=shard,
                train=train,
                seed=settings.seed,
                padding=settings.crop_padding if crop else 0,
                hflip=settings.hflip if crop else 0.0,
                erase=erase,
            )
    else:
        augmented = train_transform(
            data_config,
            settings.augment,
            settings.crop_padding,
            settings.hflip,
            settings.auto_augment,
            settings.random_erasing,
        )

        def batches_of(images: LabeledImages, indices: Sequence[int], train: bool = False) -> Batches:
            return ImageBatches(
                images,
                indices,
                augmented if train else eval_transform(data_config),
                batch_size // settings.accumulation,
                shard,
                train,
                settings.seed,
                settings.workers,
                pin_memory=accelerator.device.type == "cuda",
            )

    val = batches_of(*validation) if validation else None
    return batches_of(data.train, to_train, True), val, batches_of(data.test, range(len(data.test)))


def build_test_loader(
    model: nn.Module,
    data: ImageData,
    batch_size: int,
    workers: int = 0,
    labels: Literal["by-name", "by-index"] = "by-name",
) -> DataLoader:
    """The test images, prepared as ``model`` needs them, with its class indices; see :func:`repmlp.data.match_labels`.

    Raises:
        ValueError: if the data has other classes, or another number of channels, than the model.
    """
    config = resolve_data_config(model=model)
    wanted, got = (cast(Any, model).num_classes, config["input_size"][0]), (len(data.class_names), data.in_chans)
    if wanted != got:
        raise ValueError(
            f"the model has {wanted[0]} classes and {wanted[1]} channels, the data {got[0]} and {got[1]}: "
            f"evaluate on the data that the model was trained for"
        )
    data = match_labels(data, label_names_of(model), labels)
    return DataLoader(Transformed(data.test, eval_transform(config)), batch_size, num_workers=workers)
