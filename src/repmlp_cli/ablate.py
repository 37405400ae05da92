"""`repmlp ablate`"""

import os
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from repmlp import load_model
from repmlp.ablation import (
    ImagesStudy,
    Job,
    Summary,
    check_images,
    choose_rows,
    measure_costs,
    plan_jobs,
    recipe_for_images,
    sole_writer,
    subset_folders,
    summarize,
)
from repmlp.messages import count
from repmlp.plot import plot_ablation, plot_curves, plot_energy, plot_images_study
from repmlp.report import write_ablation_report
from repmlp.training import Stopped
from repmlp_settings import Ablate, Train

from .console import say, table, training_progress
from .report import write_report
from .train import keep_freed_memory, resumable


def run(settings: Ablate) -> int:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("repmlp ablate runs without torchrun: start it several times, the processes share the runs")
    output = Path(settings.output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is not a folder: choose another name for the results")
    recipe, rows = read_recipe(settings), choose_rows(settings.rows)
    keep_freed_memory()
    if not settings.images:
        return ablate(settings, recipe, output, plan_jobs(recipe, output, rows, settings.seeds))[0]
    recipes = {n: recipe_for_images(recipe, n, settings.steps) for n in settings.images}
    folders = subset_folders(output, settings.images)
    # Everything is checked before the first run.
    jobs = {n: plan_jobs(recipes[n], folders[n], rows, settings.seeds) for n in folders}
    if not settings.table:
        check_images(recipes[max(recipes)])
    status, summaries = 0, {}
    for n, own in jobs.items():
        say("\n", (f"{n:,} training images", "bold"), f", {count(recipes[n].epochs, 'epoch')}")
        failed, summary = ablate(settings, recipes[n], folders[n], own)
        status = max(status, failed)
        if summary:
            summaries[n] = summary
    if summaries:
        study = ImagesStudy(summaries, settings.steps)
        with sole_writer(output):
            study.write(output)
            plot_images_study(study, output / "images.png")
        table("Accuracy against the number of training images", study.header, study.rows())
        say(f"wrote {output}/images.md, images.json and images.png")
    return status


def ablate(settings: Ablate, recipe: Train, output: Path, jobs: list[Job]) -> tuple[int, Summary | None]:
    """Plan, or train the remaining runs and build the table; returns the exit status, and the table if there is one."""
    if settings.plan:
        show_plan(jobs)
        return 0, None
    if settings.table and not any(job.state == "finished" for job in jobs):
        raise ValueError(f"no run in {output} is finished, so there is no table to make: train first, without --table")
    output.mkdir(parents=True, exist_ok=True)
    failed = [] if settings.table else train_all(jobs)
    with sole_writer(output):
        say("measuring the networks")
        summary = summarize(jobs, recipe, output)
        summary.write(output)
        plot_ablation(summary, output / "ablation.png")
        plot_energy(trained_networks(jobs), output / "energy.png", {job.row.name: job.row.title for job in jobs})
    show(summary)
    say(f"wrote {output}/ablation.md, ablation.json, ablation.png and, for networks with an FC3, energy.png")
    write_report(lambda: write_ablation_report(summary, output), f"repmlp ablate {settings.recipe} {output} --table")
    return (1 if failed else 0), summary


def read_recipe(settings: Ablate) -> Train:
    """The recipe file, with the settings of the command overriding its own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not contain settings of `repmlp train`.
    """
    path = Path(settings.recipe)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {path}: give a YAML file of settings of repmlp train")
    names = ("data", "data_root", "epochs", "batch_size")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    given |= {name: True for name in ("download", "cpu") if getattr(settings, name)}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Train)
    try:
        values = yaml.safe_load(path.read_text()) or {}
        return Train(**parser.parse_object({**values, "output": settings.output, **given}).as_dict())
    except (ArgumentError, yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path} does not hold settings of repmlp train: {error}") from error


def train_all(jobs: list[Job]) -> list[Job]:
    """Train every run that no process has finished or started; returns the jobs whose loss was not finite."""
    failed = []
    left = [job for job in jobs if job.state != "finished"]
    for number, job in enumerate(left, 1):
        state = job.state
        say(f"\nrun {number} of {len(left)}: ", (job.row.title, "bold"), f", seed {job.settings.seed}, {state_of(job)}")
        if state in ("running", "finished"):  # another process was faster
            continue
        try:
            with training_progress(job.settings.epochs) as progress:
                done = job.run(progress.on_step, progress.on_epoch, progress.on_check)
        except FloatingPointError as error:  # a row that diverges does not stop the others
            failed.append(job)
            say((str(error), "bold red"))
            continue
        except Stopped as stop:
            again = "or run this command again, which then also trains the remaining runs"
            raise Stopped(f"{resumable(stop, job.folder)}\n{again}") from stop
        if done:
            plot_curves(job.folder / "metrics.csv", job.folder / "curves.png")
    return failed


def trained_networks(jobs: list[Job]) -> dict[str, nn.Module]:
    """The network of each row's first finished seed, in training form."""
    folders = {job.row.name: job.folder for job in reversed(jobs) if job.state == "finished"}
    return {name: load_model(folder) for name, folder in folders.items()}


def show(summary: Summary) -> None:
    table(f"{summary.title}: {summary.caption}", summary.header, summary.rows())
    for remark in summary.remarks():
        say(remark)


def show_plan(jobs: list[Job]) -> None:
    """Print each row's runs and the time that the remaining ones take in one process."""
    say("timing a few steps of each row")
    costs = measure_costs(jobs)
    rows, seconds = [], 0.0
    for row in {job.row.name: job.row for job in jobs}.values():
        own = [job for job in jobs if job.row.name == row.name]
        cost = costs.get(row.name)
        left = sum(job.settings.epochs - job.epochs_done for job in own if job.state != "finished")
        macs, step, epoch, time_left = "", "", "", ""
        if cost:
            macs, step = f"{cost.complexity.macs / 1e6:.1f}", f"{cost.step.median * 1e3:.0f}"
            epoch, time_left = f"{cost.epoch_seconds:.1f}", duration(left * cost.epoch_seconds)
            seconds += left * cost.epoch_seconds
        rows.append([row.title, states(own), macs, step, epoch, str(left), time_left])
    batch = jobs[0].settings.batch_size
    header = ["", "seeds", "M MACs,\ntraining form", f"ms per\nstep of {batch}", "s/epoch", "epochs\nleft", "time left"]
    table("Remaining runs, estimated from a few steps of each row, in this process alone", header, rows)
    say((duration(seconds), "bold"), " in total, without reading images and building the table; nothing was written")


def state_of(job: Job) -> str:
    where = f" after {job.epochs_done} of {job.settings.epochs} epochs" if job.state == "interrupted" else ""
    return f"{job.state}{where}"


def states(jobs: list[Job]) -> str:
    """Seeds by the state of their runs: ``0, 1: finished; 2: new``."""
    seeds: dict[str, list[str]] = {}
    for job in jobs:
        seeds.setdefault(state_of(job), []).append(str(job.settings.seed))
    return "; ".join(f"{', '.join(own)}: {state}" for state, own in seeds.items())


def duration(seconds: float) -> str:
    """A time for people: ``2 h 05 min``, ``7 min`` or ``40 s``."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
