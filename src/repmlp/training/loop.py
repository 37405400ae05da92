"""Training, top to bottom: accelerate for devices, precision and processes, timm for optimizer, schedule and EMA."""

import json
import math
import os
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from threading import Event
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import distribute_bn

from repmlp_settings import EXPORTED, Train

from ..checkpoint import MODEL_FILES, check_architecture, load_model, write_model_folder
from ..files import atomic_file, atomic_folder, atomic_write, claim, ensure_can_write
from ..layers import add_fake_quant_hooks, find_repmlp_blocks, set_bn_eval
from .batches import OnCheck, RunData, build_run_data, count_images, load_run_data
from .checks import check_classes, check_settings
from .config import absolute_paths, stored_settings, write_settings
from .evaluation import evaluate, gather_over_processes, sum_over_processes
from .records import Epoch, Progress, Run, Step, append_row, keep_rows
from .resuming import check_data, check_environment, data_fingerprint, environment
from .setup import OnMessage, TrainComponents, build_accelerator, build_components, build_model
from .state import Stopped, fitting_state, read_state, remove_state, stop_signals, write_state
from .step import train_step
from .weights import match_weights, set_frozen_eval

OnStep = Callable[[Step], None]
OnEpoch = Callable[[Epoch], None]
#: Files that this package writes into a run folder; a folder with any other file is not overwritten.
RUN_FILES = (
    *("config.yaml", "metrics.csv", "curves.png", "report.html", "test.json", "state/", "state/state.pt"),  # training
    *(f"{folder}/{name}" for folder in ("model", "deploy") for name in MODEL_FILES),
    *("converted.json", "fc3.png"),  # the ablation, the demo
    *(f"repmlp/{folder}events.out.tfevents.*" for folder in ("", "[0-9]*/")),  # tensorboard
    *("repmlp/[0-9]*/hparams.yml", "official.pth", "official-training.pth"),
    *(f"{name}{suffix}" for name in ("deploy", "int8") for suffix in EXPORTED),
    *("*.check.npz", "*.check.py"),
)
#: Steps between checks of the other processes' stop flags; each check makes a GPU wait.
STOP_EVERY = 10


def train(
    settings: Train,
    on_step: OnStep = lambda step: None,
    on_epoch: OnEpoch = lambda epoch: None,
    on_check: OnCheck = lambda checked, images: None,
    on_message: OnMessage = lambda text: None,
    given: Collection[str] = (),
) -> Run:
    """Train a network as ``settings`` say, and keep its best weights.

    The run folder gets config.yaml (all settings) at the start, a row of metrics.csv and the best model so far in
    model/ after each epoch, and test.json at the end. Best is the highest accuracy on the images held out from
    training; the test images are evaluated once, after training. Until then, state/ holds everything needed to resume
    bit for bit with ``resume=True``.

    With ``qat`` the last epochs are quantization-aware training, as the authors advise: the merged FC3 is rounded as
    int8 will round it (:func:`repmlp.layers.add_fake_quant_hooks`) and batch norms are frozen, as in the deployed
    network. In these epochs the rounded network classifies the held-out images, and the best of these epochs is kept.
    The weights that are written, and tested, are not rounded.

    Under torchrun each process takes its shard of each batch; only rank 0 writes and reports.

    Args:
        settings: the network, the data set, and how to train.
        on_step, on_epoch: called after each step and epoch with its results.
        on_check: called while images are checked or decoded, with how many are done and how many there are.
        on_message: called with lines of text for the user, for example which weights were loaded.
        given: names of settings that a resumed run must have as they are here, also if that is the default.

    Raises:
        ValueError: for an unknown network or data set, settings that do not fit together, or a run that cannot be
            resumed: it is finished, damaged, or its data has changed.
        FileExistsError: if the run folder exists and ``overwrite`` is False, or it holds other files too.
        BlockingIOError: if another process is training in this folder.
        FloatingPointError: if the loss or a weight is no longer finite.
        OSError: if the disk is full, or the folder cannot be written to.
        Stopped: after Ctrl-C or SIGTERM, once the state has been written.
    """
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        on_message = lambda text: None  # noqa: E731
    with claim(settings.output) if first else nullcontext():
        return _train(settings, on_step, on_epoch, on_check, on_message, given)


def _train(
    settings: Train,
    on_step: OnStep,
    on_epoch: OnEpoch,
    on_check: OnCheck,
    on_message: OnMessage,
    given: Collection[str],
) -> Run:
    folder, resumed = Path(settings.output), settings.resume
    if resumed:
        settings = stored_settings(settings, given)
    else:
        check_architecture(settings.model)
        ensure_can_write(folder, RUN_FILES, settings.overwrite)
        settings = absolute_paths(settings)
    check_settings(settings)
    first_qat_epoch = first_epoch_of_qat(settings)
    accelerator = build_accelerator(settings)
    set_seed(settings.seed)  # of the weights; from the first batch on, every draw is seeded by its position
    state = read_state(folder) if resumed else None
    try:
        images = load_run_data(settings, accelerator, on_check)
    except FileNotFoundError as error:
        if not resumed:
            raise
        raise FileNotFoundError(f"{error}. If the data of the run has moved, pass data=... or data_root=...") from error
    check_classes(images)
    with fitting_state(folder):
        images = match_weights(images, settings, state)
    extras = {"data": data_fingerprint(images), "environment": environment(accelerator.num_processes)}
    progress = Progress()
    if state:
        with fitting_state(folder):
            check_data(state.get("data"), extras["data"])
            check_environment(state.get("environment"), extras["environment"])
        with fitting_state(folder, (ValueError,)):
            progress = Progress.from_state(state, accelerator.process_index, accelerator.num_processes)
    model = build_model(settings, images, on_message, resumed=bool(state))
    data = build_run_data(settings, images, model, accelerator)
    on_message(count_images(settings, images))
    components = build_components(
        settings, accelerator, model, len(images.class_names), settings.epochs * data.steps, state
    )
    if settings.qat:
        find_repmlp_blocks(components.model)  # raises now rather than in the last epochs

    if accelerator.is_main_process:
        if resumed:  # its data may have moved
            with atomic_file(folder / "config.yaml") as new_file:
                write_settings(new_file, settings)
        else:
            with atomic_folder(folder, RUN_FILES) as new:
                write_settings(new / "config.yaml", settings)
        keep_rows(folder / "metrics.csv", progress.epoch - 1)
    if settings.trackers:
        accelerator.init_trackers("repmlp", {key: str(value) for key, value in asdict(settings).items()})

    def write(progress: Progress) -> None:
        _check_finite(folder, components, progress)
        totals = [progress.totals.images, float(progress.totals.loss), int(progress.totals.correct)]
        entries = progress.to_state(gather_over_processes(accelerator, totals))
        state = {**entries, **extras, **components.state()}
        if accelerator.is_main_process:
            write_state(folder, state)

    simulated = False
    with stop_signals() as stop:
        for epoch in range(progress.epoch, settings.epochs + 1):
            components.ddp_model.train()
            if epoch >= first_qat_epoch:
                if not simulated:
                    simulated = True
                    for network in {components.model, components.evaluated}:
                        add_fake_quant_hooks(network)
                if epoch == first_qat_epoch:
                    progress.best = -math.inf  # earlier epochs were not trained for int8
                set_bn_eval(components.model)
            set_frozen_eval(components.model)
            started = time.perf_counter() - progress.seconds
            _train_epoch(settings, data, components, progress, started, stop, write, on_step)
            progress = _finish_epoch(folder, data, components, progress, started, on_epoch)
            write(progress)

    accelerator.wait_for_everyone()
    best_model = load_model(folder / "model").to(accelerator.device)
    run = Run(folder, progress.kept, evaluate(best_model, data.test.iter_epoch(), accelerator))
    if not math.isfinite(run.test.loss):  # nothing was held out to see it earlier
        _stop_diverged(folder, components, run.epoch, f"the loss of the test images became {run.test.loss}")
    if accelerator.is_main_process:
        values = {"epoch": run.epoch, **asdict(run.test), "accuracy": run.test.accuracy}
        atomic_write(folder / "test.json", json.dumps(values))
        remove_state(folder)
    for tracker in accelerator.trackers:
        tracker.finish()
    return run


def _train_epoch(
    settings: Train,
    data: RunData,
    components: TrainComponents,
    progress: Progress,
    started: float,
    stop: Event,
    write: Callable[[Progress], None],
    on_step: OnStep,
) -> None:
    """The steps of an epoch, starting where ``progress`` is."""
    accelerator, before = components.accelerator, (progress.epoch - 1) * data.steps
    micro_batches = data.train.iter_epoch(progress.epoch, progress.batch)
    for step in range(before + progress.batch // settings.accumulation + 1, before + data.steps + 1):
        progress.totals += train_step(components, islice(micro_batches, settings.accumulation), step)
        progress.batch += settings.accumulation
        if accelerator.is_main_process:
            on_step(Step(progress.epoch, step, components.steps, progress.totals))
        stopping = _stopping(accelerator, stop, step)
        if stopping or (settings.state_every and step % settings.state_every == 0):
            progress.seconds = time.perf_counter() - started
            write(progress)
        if stopping:
            accelerator.wait_for_everyone()  # until the first process has written the state
            raise Stopped(
                f"stopped in epoch {progress.epoch}, step {step} of {components.steps}; "
                f"to finish the run, train again with resume=True"
            )


def _finish_epoch(
    folder: Path,
    data: RunData,
    components: TrainComponents,
    progress: Progress,
    started: float,
    on_epoch: OnEpoch,
) -> Progress:
    """Evaluate, keep the network if it is the best so far and write the row; returns the progress of the next epoch."""
    accelerator = components.accelerator
    _check_finite(folder, components, progress)
    if accelerator.num_processes > 1:
        for network in dict.fromkeys((components.model, components.evaluated)):  # in one order in all processes
            distribute_bn(network, accelerator.num_processes, reduce=True)
    trained = progress.totals.over_processes(accelerator).mean()
    val = evaluate(components.evaluated, data.val.iter_epoch(), accelerator) if data.val else None
    if val and not math.isfinite(val.loss):  # finite weights that are so large that the logits are not
        _stop_diverged(folder, components, progress.epoch, f"the loss of the validation images became {val.loss}")
    row = Epoch(
        epoch=progress.epoch,
        lr=max(group["lr"] for group in components.optimizer.param_groups),  # before layer_decay
        train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        val_loss=val.loss if val else math.nan,
        val_accuracy=val.accuracy if val else math.nan,
        seconds=time.perf_counter() - started,
    )
    best, kept = progress.best, progress.kept
    better = val is None or val.accuracy >= best  # of two equal ones the later, which was trained for longer
    if better:
        best, kept = val.accuracy if val else best, row.epoch
    if accelerator.is_main_process:
        if better:
            write_model_folder(components.evaluated, folder / "model", data.data.class_names, data.config)
        append_row(folder / "metrics.csv", row)
        on_epoch(row)
    accelerator.log({key: value for key, value in asdict(row).items() if key != "epoch"}, step=row.epoch)
    return Progress(row.epoch + 1, best=best, kept=kept)


def _check_finite(folder: Path, components: TrainComponents, progress: Progress) -> None:
    """Stop all processes if the loss of one, or a weight, is not finite, before such a state is written."""
    loss = float(progress.totals.loss)
    weights = all(bool(torch.isfinite(parameter).all()) for parameter in components.model.parameters())
    (bad,) = sum_over_processes(components.accelerator, not (math.isfinite(loss) and weights))
    if bad:
        what = "the weights are no longer finite" if math.isfinite(loss) else f"the loss became {loss}"
        _stop_diverged(folder, components, progress.epoch, what)


def _stop_diverged(folder: Path, components: TrainComponents, epoch: int, what: str) -> NoReturn:
    model = folder / "model"
    kept = f"; the best model so far is kept in {model}, and the last good state next to it" if model.exists() else ""
    advice = f"lower lr ({components.optimizer.defaults['lr']}) or add warmup_epochs"
    raise FloatingPointError(f"{what} in epoch {epoch}: {advice}{kept}")


def _stopping(accelerator: Accelerator, stop: Event, step: int) -> bool:
    """Whether a signal reached any process; several processes ask each other every STOP_EVERY steps."""
    if accelerator.num_processes == 1:
        return stop.is_set()
    if stop.is_set():
        accelerator.set_trigger()
    return step % STOP_EVERY == 0 and accelerator.check_trigger()


def first_epoch_of_qat(settings: Train) -> float:
    """The first epoch in which FC3 is trained as int8 will round it; infinity for never."""
    if not settings.qat:
        return math.inf
    return settings.epochs + 1 - max(1, round(settings.qat_fraction * settings.epochs))
