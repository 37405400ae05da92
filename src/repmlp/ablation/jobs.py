"""The training runs of an ablation as run folders: which are finished, and how processes share the others.

OUTPUT/no-local/seed-0/                 a run folder of `repmlp train`; it is finished once test.json exists
OUTPUT/no-local/seed-0/converted.json   correct test predictions of the deploy form, and the machine
OUTPUT/no-local/.repmlp-lock-seed-0     lock of the process that trains it; released however the process ends
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState

from repmlp_settings import Train

from ..checkpoint import load_model
from ..conversion import reparameterize
from ..conversion.float32 import full_float32
from ..data import load_data
from ..data.sets import PATHS
from ..deploy.environment import machine
from ..files import atomic_write, claim, is_claimed
from ..training import Epoch, Step, absolute_paths, build_test_loader, classify, read_settings, train
from ..training.checks import check_settings
from ..training.records import read_rows
from .rows import ROWS, Row, check_recipe

DEPLOY, TRAINING = "deploy form", "training form"
State = Literal["new", "interrupted", "running", "finished"]
#: Settings for where a run reads and writes; they do not affect what it computes.
NOT_COMPARED = {
    "output",
    "resume",
    "overwrite",
    "data_root",
    "download",
    "workers",
    "state_every",
    "trackers",
}


@dataclass(frozen=True)
class Job:
    """The training run of one row with one seed."""

    row: Row
    settings: Train

    @property
    def folder(self) -> Path:
        return Path(self.settings.output)

    @property
    def converted(self) -> Path:
        return self.folder / "converted.json"

    @property
    def name(self) -> str:
        return f"{self.row.name}/seed-{self.settings.seed}"

    @property
    def state(self) -> State:
        """Read from disk; writes nothing."""
        if self.converted.exists():
            return "finished"
        if is_claimed(self.folder):
            return "running"
        return "interrupted" if self._begun else "new"

    @property
    def epochs_done(self) -> int:
        return len(read_rows(self.folder / "metrics.csv"))

    def run(
        self,
        on_step: Callable[[Step], None] = lambda step: None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        on_check: Callable[[int, int], None] = lambda checked, images: None,
    ) -> bool:
        """Train, or resume an interrupted run, or skip a finished one; then test both forms.

        Returns:
            Whether the run is now finished; False if another process is training it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(claim(self.folder, wait=1))  # longer than reading `state` holds the lock
            except BlockingIOError:
                return False
            if not (self.folder / "test.json").exists():  # train writes it last
                train(self._resumed if self._begun else self.settings, on_step, on_epoch, on_check)
            if not self.converted.exists():
                self._test_both_forms()
            return True

    @property
    def _resumed(self) -> Train:
        """Settings that resume the run, whose data may have moved."""
        own = self.settings
        root = None if own.data.startswith(PATHS) else own.data_root
        return Train(output=str(self.folder), resume=True, data_root=root, download=own.download, workers=own.workers)

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from those in the run folder, by name: (then, now).

        Raises:
            ValueError: if its config.yaml cannot be read.
        """
        if not self._begun:
            return {}
        then, now = absolute_paths(read_settings(self.folder / "config.yaml")), absolute_paths(self.settings)
        pairs = {field.name: (getattr(then, field.name), getattr(now, field.name)) for field in fields(Train)}
        return {name: (a, b) for name, (a, b) in pairs.items() if a != b and name not in NOT_COMPARED}

    @property
    def _begun(self) -> bool:
        return (self.folder / "config.yaml").exists()

    @torch.inference_mode()
    def _test_both_forms(self) -> None:
        """Classify the test images with the kept weights, before and after conversion, both in their own dtype.

        That is float32 in full, even after mixed-precision training and on a GPU: rounding would differ between forms.
        """
        settings = self.settings
        device = device_of(settings)
        model = load_model(self.folder)
        data = load_data(
            settings.data, settings.data_root, bad_images=settings.bad_images, in_memory=settings.in_memory
        )
        images = build_test_loader(model, data, settings.batch_size, settings.workers)
        forms = {TRAINING: model.to(device), DEPLOY: reparameterize(model).to(device)}
        with full_float32():
            totals, _ = classify(list(forms.values()), images, device)
        correct = {form: own.correct for form, own in zip(forms, totals, strict=True)}
        values = {"images": totals[0].images, "correct": correct, "machine": machine_with(device)}
        atomic_write(self.converted, json.dumps(values))


def device_of(settings: Train) -> torch.device:
    """The device that :func:`repmlp.training.train` uses with these settings."""
    return PartialState(cpu=settings.cpu).device


def machine_with(device: torch.device) -> dict[str, Any]:
    """The machine, and the name of its accelerator if ``device`` is one."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {**machine(), "device": name}


def plan_jobs(recipe: Train, output: Path, rows: Sequence[Row], seeds: Sequence[int]) -> list[Job]:
    """One job per row and seed: all rows with the first seed, then all with the next.

    Raises:
        ValueError: if the recipe does not suit an ablation, no seed is given, or a run in the folder was trained
            with other settings. Settings that cannot work are refused as by :func:`repmlp.training.train`.
    """
    check_recipe(recipe)
    check_settings(recipe)
    if not seeds:
        raise ValueError("an ablation needs at least one seed, for example 0, 1 and 2")
    jobs = [job_of(recipe, output, row, seed) for seed in dict.fromkeys(seeds) for row in rows]
    for job in with_found(jobs, recipe, output):
        if differences := job.differences():
            changed = "; ".join(f"{name} was {then!r}, now {now!r}" for name, (then, now) in differences.items())
            raise ValueError(
                f"{job.folder} was trained with other settings: {changed}. Use the same settings again, or another "
                f"output folder: an ablation compares runs of one recipe"
            )
    return jobs


def job_of(recipe: Train, output: Path, row: Row, seed: int) -> Job:
    return Job(row, row.settings(recipe, output / row.name / f"seed-{seed}", seed))


def with_found(jobs: Sequence[Job], recipe: Train, output: Path) -> list[Job]:
    """These jobs plus those of all other runs in the folder, started by other processes, ordered by row."""
    wanted = {(job.row.name, job.settings.seed) for job in jobs}
    found = {
        (row.name, int(path.parent.name.removeprefix("seed-")))
        for row in ROWS
        for path in output.glob(f"{row.name}/seed-*/config.yaml")
        if path.parent.name.removeprefix("seed-").isdigit()
    }
    return [
        job_of(recipe, output, row, seed) for row in ROWS for name, seed in sorted(wanted | found) if name == row.name
    ]
