"""Training, top to bottom: accelerate for devices, precision and processes, timm for optimizer, schedule and EMA."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Event

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from timm.utils import distribute_bn

from repmlp_settings import Train

from ..checkpoint import check_architecture, check_free, load_model, remove, save_model
from ..layers import add_fake_quant_hooks, find_repmlp_blocks, set_bn_eval
from .evaluation import evaluate, sum_over_processes
from .records import Epoch, Progress, Run, Step, append_row, keep_rows
from .setup import OnCheck, Parts, build_parts
from .state import STATE, Stopped, read_state, stop_signals, stored_settings, write_state

OnStep = Callable[[Step], None]
OnEpoch = Callable[[Epoch], None]


def train(
    settings: Train,
    on_step: OnStep = lambda step: None,
    on_epoch: OnEpoch = lambda epoch: None,
    on_check: OnCheck = lambda checked, images: None,
) -> Run:
    """Train a network as ``settings`` say, and keep its best weights.

    The run folder gets config.yaml (all settings) at the start, a row of metrics.csv and the best
    model so far in model/ with every epoch, and test.json at the end. Best is the highest accuracy on
    the images held out from training; the test images are looked at once, after training. While it
    runs, state/ holds all that it takes to go on bit for bit: with ``resume`` it does.

    With ``qat`` the last epochs are quantization-aware training, as the authors advise it: FC3 as merged
    is rounded as int8 will round it (:func:`repmlp.layers.add_fake_quant_hooks`) and batch norms are frozen, so
    that what is trained is what will be deployed. Of these epochs, held-out images see the rounded
    network, and the best is kept. The weights that are written, and tested, are not rounded.

    Started by torchrun, each process takes its part of each batch; the first one writes and reports.

    Args:
        settings: what to train on what, and how.
        on_step, on_epoch: called with the progress.
        on_check: called with it too, while images are looked through for those to skip: done so far, and all.

    Raises:
        ValueError: for an unknown network or data set, or settings that do not fit together.
        FileExistsError: if the run folder exists already and ``overwrite`` is off.
        FloatingPointError: if the loss is no longer a finite number.
        OSError: if the disk is full, or the folder cannot be written to.
        Stopped: after Ctrl-C or SIGTERM, once the state is written.
    """
    folder, resumed = Path(settings.output), settings.resume
    if resumed:
        settings = stored_settings(settings)
    else:
        check_architecture(settings.model)
        check_free(folder, "config.yaml", settings.overwrite)
    first_qat_epoch = first_epoch_of_qat(settings)
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=settings.cpu,
        dynamo_backend="inductor" if settings.compile else None,
        gradient_accumulation_plugin=GradientAccumulationPlugin(settings.accumulation, sync_with_dataloader=False),
        log_with=settings.trackers or None,
        project_dir=folder,
    )
    set_seed(settings.seed)  # of the weights; from the first batch on, every draw is seeded by its place
    state = read_state(folder) if resumed else None
    progress = Progress(**state["progress"]) if state else Progress()
    parts = build_parts(settings, accelerator, state, on_check)
    if settings.qat:
        find_repmlp_blocks(parts.model)  # an error now, not in the last epochs

    if accelerator.is_main_process:
        if not resumed:
            remove(folder)
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(yaml.safe_dump(asdict(settings), sort_keys=False))
        keep_rows(folder / "metrics.csv", progress.epoch - 1)
    if settings.trackers:
        accelerator.init_trackers("repmlp", {key: str(value) for key, value in asdict(settings).items()})

    simulated = False
    with stop_signals() as stop:
        for epoch in range(progress.epoch, settings.epochs + 1):
            parts.network.train()
            if epoch >= first_qat_epoch:
                if not simulated:
                    simulated = True
                    for part in {parts.model, parts.evaluated}:
                        add_fake_quant_hooks(part)
                if epoch == first_qat_epoch:
                    progress.best = -math.inf  # what was best before was not trained for int8
                set_bn_eval(parts.model)
            started = time.perf_counter() - progress.seconds
            _train_epoch(settings, parts, accelerator, progress, started, stop, on_step)
            progress = _finish_epoch(folder, parts, accelerator, progress, started, on_epoch)

    accelerator.wait_for_everyone()
    best_model = load_model(folder / "model").to(accelerator.device)
    run = Run(folder, progress.kept, evaluate(best_model, parts.test.epoch(), accelerator))
    if accelerator.is_main_process:
        values = {"epoch": run.epoch, **asdict(run.test), "accuracy": run.test.accuracy}
        (folder / "test.json").write_text(json.dumps(values))
        remove((folder / STATE).parent)
    for tracker in accelerator.trackers:
        tracker.finish()
    return run


def _train_epoch(
    settings: Train,
    parts: Parts,
    accelerator: Accelerator,
    progress: Progress,
    started: float,
    stop: Event,
    on_step: OnStep,
) -> None:
    """The steps of an epoch, from the batch on that ``progress`` has reached."""
    folder, epoch, network, optimizer = Path(settings.output), progress.epoch, parts.network, parts.optimizer
    for x, labels in parts.train.epoch(epoch, progress.batch):
        x, labels = x.to(accelerator.device), labels.to(accelerator.device)  # (B, C, H, W), (B)
        if settings.channels_last:
            x = x.to(memory_format=torch.channels_last)
        with accelerator.accumulate(network):
            x, target = parts.mix(x, labels)
            logits = network(x)  # (B, classes)
            loss = parts.loss(logits, target)
            accelerator.backward(loss)
            if settings.clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
        progress.batch += 1
        progress.seen += len(labels)
        progress.loss_sum += loss.item() * len(labels)
        progress.correct += int((logits.argmax(1) == labels).sum())
        if progress.batch % settings.accumulation:
            continue
        step = ((epoch - 1) * len(parts.train) + progress.batch) // settings.accumulation
        parts.schedule.step_update(step)
        if parts.ema:
            parts.ema.update(parts.model, step)
        if accelerator.is_main_process:
            seen = progress.seen
            on_step(Step(epoch, step, parts.steps, progress.loss_sum / seen, progress.correct / seen))
        stopping = _any(accelerator, stop.is_set())
        if stopping or (settings.state_every and step % settings.state_every == 0):
            progress.seconds = time.perf_counter() - started
            _write(folder, parts, accelerator, progress)
        if stopping:
            raise Stopped(
                f"stopped in epoch {epoch}, step {step} of {parts.steps}; go on with: repmlp train --resume {folder}"
            )


def _finish_epoch(
    folder: Path,
    parts: Parts,
    accelerator: Accelerator,
    progress: Progress,
    started: float,
    on_epoch: OnEpoch,
) -> Progress:
    """Evaluate, keep the network if it is the best one so far, write the row and the state; what comes next."""
    _check_finite(folder, parts, accelerator, progress)
    if accelerator.num_processes > 1:
        distribute_bn(parts.model, accelerator.num_processes, reduce=True)
    loss_sum, correct, seen = sum_over_processes(accelerator, progress.loss_sum, progress.correct, progress.seen)
    val = evaluate(parts.evaluated, parts.val.epoch(), accelerator) if parts.val else None
    row = Epoch(
        epoch=progress.epoch,
        lr=parts.optimizer.param_groups[0]["lr"],
        train_loss=loss_sum / seen,
        train_accuracy=correct / seen,
        val_loss=val.loss if val else math.nan,
        val_accuracy=val.accuracy if val else math.nan,
        seconds=time.perf_counter() - started,
    )
    best, kept = progress.best, progress.kept
    better = val is None or val.accuracy >= best  # with equal accuracy the later epoch: it has been trained for longer
    if better:
        best, kept = val.accuracy if val else best, row.epoch
    if accelerator.is_main_process:
        if better:
            save_model(parts.evaluated, folder / "model", parts.data.class_names, parts.data_config, overwrite=True)
        append_row(folder / "metrics.csv", row)
        on_epoch(row)
    accelerator.log({key: value for key, value in asdict(row).items() if key != "epoch"}, step=row.epoch)
    following = Progress(row.epoch + 1, best=best, kept=kept)
    _write(folder, parts, accelerator, following)
    return following


def _write(folder: Path, parts: Parts, accelerator: Accelerator, progress: Progress) -> None:
    _check_finite(folder, parts, accelerator, progress)
    if accelerator.is_main_process:
        write_state(folder, {"progress": asdict(progress), **parts.state()})


def _check_finite(folder: Path, parts: Parts, accelerator: Accelerator, progress: Progress) -> None:
    """Stop all processes if the loss of one, or a weight, is no number: such a state is not to be written."""
    weights = all(bool(torch.isfinite(parameter).all()) for parameter in parts.model.parameters())
    if _any(accelerator, not (math.isfinite(progress.loss_sum) and weights)):
        loss = f"the loss became {progress.loss_sum}"
        what = "the weights are no longer finite numbers" if math.isfinite(progress.loss_sum) else loss
        raise FloatingPointError(
            f"{what} in epoch {progress.epoch}: lower --lr "
            f"({parts.optimizer.defaults['lr']}) or add --warmup_epochs; the best model so far is kept in "
            f"{folder / 'model'}, and the last good state beside it"
        )


def _any(accelerator: Accelerator, here: bool) -> bool:
    """Whether it is so in any process; all of them get the same answer."""
    return sum_over_processes(accelerator, here)[0] > 0


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
