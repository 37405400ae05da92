"""Estimate how long an ablation takes from a few training steps, whose results are discarded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from repmlp_settings import Train

from ..counting import Complexity, complexity
from ..data import ImageData, count_batches, load_data
from ..deploy import Timing, time_interleaved
from ..training.batches import data_config_of, split_train
from ..training.setup import build_accelerator, build_components, build_model
from ..training.step import train_step
from .jobs import Job


@dataclass(frozen=True)
class Cost:
    """The cost of an epoch of a row: its training steps and the evaluation on the validation images.

    Attributes:
        complexity: of the network in training form.
        step, look: seconds per batch in training and in evaluation.
        steps, looks: number of these batches per epoch.
    """

    complexity: Complexity
    step: Timing
    look: Timing
    steps: int
    looks: int

    @property
    def epoch_seconds(self) -> float:
        return self.steps * self.step.median + self.looks * self.look.median


def measure_costs(jobs: Sequence[Job], rounds: int = 5, warmup: int = 2) -> dict[str, Cost]:
    """The cost of an epoch of each row with training left to do, by the row's name.

    Batches are random numbers of the right shape, as many as the data gives; reading and augmenting images is not
    included. The rows are timed alternately.

    Args:
        jobs: of the ablation.
        rounds, warmup: steps of each row that count, and steps before them that do not.
    """
    first: dict[str, Train] = {}
    for job in jobs:
        if job.state != "finished":
            first.setdefault(job.row.name, job.settings)
    if not first:
        return {}
    settings = next(iter(first.values()))
    data = load_data(
        settings.data, settings.data_root, settings.download, settings.bad_images, in_memory=settings.in_memory
    )
    to_train, validation = split_train(settings, data)
    batch_size = min(settings.batch_size, len(to_train))
    steps = count_batches(len(to_train), batch_size, train=True)
    looks = count_batches(len(validation[1]) if validation else 0, batch_size, train=False)

    accelerator = build_accelerator(settings)
    functions: dict[str, Callable[[], object]] = {}
    counts = {}
    for name, own in first.items():
        counts[name], step, look = _step_and_look(own, data, batch_size, steps, accelerator)
        functions |= {f"{name} step": step, f"{name} look": look}
    times = time_interleaved(functions, rounds, warmup)
    return {name: Cost(counts[name], times[f"{name} step"], times[f"{name} look"], steps, looks) for name in first}


def _step_and_look(
    settings: Train, data: ImageData, batch_size: int, steps: int, accelerator: Accelerator
) -> tuple[Complexity, Callable[[], object], Callable[[], Tensor]]:
    """The size of a network, its training step, and its evaluation of a batch; an epoch has ``steps`` steps."""
    model: Any = build_model(settings, data)
    config = data_config_of(settings, model, data)
    count = complexity(model, config["input_size"])
    components = build_components(settings, accelerator, model, len(data.class_names), settings.epochs * steps)
    x = torch.randn(batch_size, *config["input_size"], device=accelerator.device)
    labels = torch.randint(len(data.class_names), (batch_size,), device=accelerator.device)

    def step() -> object:
        components.ddp_model.train()
        images = x.clone()  # mixup works in place
        micro_batches = zip(images.chunk(settings.accumulation), labels.chunk(settings.accumulation), strict=True)
        return train_step(components, micro_batches, step=1).read()

    @torch.no_grad()
    def look() -> Tensor:
        components.ddp_model.eval()
        return components.ddp_model(x).cpu()

    return count, step, look
