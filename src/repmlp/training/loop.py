"""Training, top to bottom: accelerate for devices and precision, timm for optimizer, schedule and transforms."""

import csv
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import resolve_data_config
from timm.models import resolve_model_input_args
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from repmlp_settings import Train

from ..checkpoint import check_architecture, check_free, load_model, remove, save_model
from ..data import ImageData, Transformed, eval_transform, hold_out, load_data, train_transform
from ..layers import freeze_norms, repmlp_blocks, simulate_int8
from .evaluate import Evaluation, evaluate


@dataclass(frozen=True)
class Step:
    """Where a run is: training loss and accuracy are running means of the epoch so far."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """One row of metrics.csv. Accuracies are in [0, 1]; the val columns are NaN if nothing is held out."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the epoch whose weights it keeps, and their accuracy on the test images."""

    folder: Path
    epoch: int
    test: Evaluation


def train(
    settings: Train,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Run:
    """Train a network as ``settings`` say, and keep its best weights.

    The run folder gets config.yaml (all settings) at the start, a row of metrics.csv and the best
    model so far in model/ with every epoch, and test.json at the end. Best is the highest accuracy on
    the images held out from training; the test images are looked at once, after training.

    With ``qat`` the last epochs are quantization-aware training, as the authors advise it: FC3 as merged
    is rounded as int8 will round it (:func:`repmlp.layers.simulate_int8`) and batch norms are frozen, so
    that what is trained is what will be deployed. Of these epochs, held-out images see the rounded
    network, and the best is kept. The weights that are written, and tested, are not rounded.

    Args:
        settings: what to train on what, and how.
        on_step, on_epoch: called with the progress.

    Raises:
        ValueError: for an unknown network or data set, or settings that do not fit together.
        FileExistsError: if the run folder exists already and ``overwrite`` is off.
        FloatingPointError: if the loss is no longer a finite number.
    """
    folder = Path(settings.output)
    check_architecture(settings.model)
    check_free(folder, "config.yaml", settings.overwrite)
    first_qat_epoch = first_epoch_of_qat(settings)
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=settings.cpu)
    set_seed(settings.seed)

    data = load_data(settings.data, settings.data_root, settings.download)
    model = build_model(settings, data)
    if settings.qat:
        repmlp_blocks(model)  # an error now, not in the last epochs
    data_config = {**resolve_data_config(model=model), "mean": data.mean, "std": data.std}
    if settings.img_size is not None:
        data_config["input_size"] = (data.in_chans, settings.img_size, settings.img_size)
    train_loader, val_loader, test_loader = accelerator.prepare(*build_loaders(settings, data, data_config))

    loss_function = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    optimizer = create_optimizer_v2(
        model, settings.opt, settings.lr, settings.weight_decay, momentum=settings.momentum
    )  # no weight decay on biases and norms
    steps = settings.epochs * len(train_loader)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=steps,
        warmup_t=settings.warmup_epochs * len(train_loader),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    model, optimizer = accelerator.prepare(model, optimizer)

    remove(folder)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(settings), sort_keys=False))
    step, best, kept = 0, -math.inf, 0
    for epoch in range(1, settings.epochs + 1):
        started, seen, loss_sum, correct = time.perf_counter(), 0, 0.0, 0
        model.train()
        if epoch == first_qat_epoch:
            simulate_int8(accelerator.unwrap_model(model))
            best = -math.inf  # what was best before was not trained for int8
        if epoch >= first_qat_epoch:
            freeze_norms(model)
        for x, labels in train_loader:
            logits = model(x)  # (N, classes)
            loss = loss_function(logits, labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            schedule.step_update(step)
            seen += len(labels)
            loss_sum += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            on_step(Step(epoch, step, steps, loss_sum / seen, correct / seen))
        if not math.isfinite(loss_sum):
            raise FloatingPointError(
                f"the loss became {loss_sum} in epoch {epoch}: lower --lr ({settings.lr}) or add --warmup_epochs; "
                f"the best model so far is kept in {folder / 'model'}"
            )
        val = evaluate(model, val_loader, accelerator) if len(val_loader) else None
        row = Epoch(
            epoch=epoch,
            lr=optimizer.param_groups[0]["lr"],
            train_loss=loss_sum / seen,
            train_accuracy=correct / seen,
            val_loss=val.loss if val else math.nan,
            val_accuracy=val.accuracy if val else math.nan,
            seconds=time.perf_counter() - started,
        )
        _append(folder / "metrics.csv", row)
        if val is None or val.accuracy >= best:  # with equal accuracy the later epoch: it has been trained for longer
            best, kept = val.accuracy if val else best, epoch
            unwrapped = accelerator.unwrap_model(model)
            save_model(unwrapped, folder / "model", data.class_names, data_config, overwrite=True)
        on_epoch(row)

    best_model = accelerator.prepare_model(load_model(folder / "model"), evaluation_mode=True)
    run = Run(folder, kept, evaluate(best_model, test_loader, accelerator))
    (folder / "test.json").write_text(json.dumps({"epoch": kept, **asdict(run.test), "accuracy": run.test.accuracy}))
    return run


def build_model(settings: Train, data: ImageData) -> nn.Module:
    """The network that ``settings`` name, with as many inputs and classes as the data has."""
    arguments = resolve_model_input_args(
        settings.model,
        {"img_size": settings.img_size, "in_chans": data.in_chans},
        num_classes=len(data.class_names),
        **settings.model_args,
    )
    try:
        return timm.create_model(**arguments)
    except TypeError as error:  # an argument that the network does not have
        raise ValueError(f"{settings.model} does not take these arguments: {error}") from error


def first_epoch_of_qat(settings: Train) -> float:
    """From which epoch on FC3 is trained as int8 will round it; infinity for never.

    Raises:
        ValueError: if ``qat_fraction`` is not a part of the epochs.
    """
    if not settings.qat:
        return math.inf
    if not 0 < settings.qat_fraction <= 1:
        raise ValueError(f"qat_fraction {settings.qat_fraction} is no part of the epochs: use one in (0, 1]")
    return settings.epochs + 1 - max(1, round(settings.qat_fraction * settings.epochs))


def build_loaders(settings: Train, data: ImageData, data_config: dict) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Loaders of the images to train on (augmented, shuffled), held out from them, and to test on."""
    augmented = train_transform(data_config, settings.augment, settings.crop_padding, settings.hflip)
    plain = eval_transform(data_config)
    to_train, held_out = hold_out(data.train, settings.val_fraction, settings.seed)

    def loader(dataset: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            settings.batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(to_train) >= settings.batch_size,  # BN wants batches of one size
            num_workers=settings.workers,
        )

    return (
        loader(Transformed(data.train, augmented, to_train), shuffle=True),
        loader(Transformed(data.train, plain, held_out)),
        loader(Transformed(data.test, plain)),
    )


def _append(path: Path, row: Epoch) -> None:
    values = asdict(row)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, values)
        if new:
            writer.writeheader()
        writer.writerow(values)


def build_test_loader(model: nn.Module, data: ImageData, batch_size: int, workers: int = 0) -> DataLoader:
    """The test images, prepared as ``model`` states that it wants them.

    Raises:
        ValueError: if the data has another number of classes or channels than the model.
    """
    config = resolve_data_config(model=model)
    wanted, got = (model.num_classes, config["input_size"][0]), (len(data.class_names), data.in_chans)
    if wanted != got:
        raise ValueError(
            f"the model has {wanted[0]} classes and {wanted[1]} channels, the data {got[0]} and {got[1]}: "
            f"evaluate on the data that the model was trained for"
        )
    return DataLoader(Transformed(data.test, eval_transform(config)), batch_size, num_workers=workers)
