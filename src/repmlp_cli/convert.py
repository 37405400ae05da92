"""`repmlp convert`"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repmlp import complexity, fold_norms, is_reparameterized, load_model, official, reparameterize, save_model, verify
from repmlp.checkpoint import claim_model_folder, model_folder
from repmlp.conversion import EquivalenceReport, needs_reparameterize
from repmlp.conversion.forms import describe_form
from repmlp.counting import batch_norms
from repmlp.files import atomic_file, claim_to_write
from repmlp.training.config import read_settings
from repmlp.training.records import read_rows
from repmlp_settings import Convert

from .card import describe_folder, name_forms
from .console import print_report, say
from .verify import inputs_for


def run(settings: Convert) -> int:
    if settings.fold and settings.to != "timm":
        raise ValueError(f"--to {settings.to} writes the authors' layers, which have batch norms: leave out --fold")
    name = "deploy" if settings.to == "timm" else f"{settings.to}.pth"
    output = Path(settings.output or beside(settings.model, name))
    if settings.to != "timm" and output.suffix not in (".pth", ".pt"):
        raise ValueError(f"{output} does not end as files of the authors' weights do: end it in .pth")
    if settings.to == "timm" and os.path.realpath(output) == os.path.realpath(model_folder(settings.model)):
        raise ValueError(
            f"{output} holds the training form, which cannot be made again from the deploy form: "
            f"choose another folder for the deploy form"
        )
    with (claim_model_folder if settings.to == "timm" else claim_to_write)(output, overwrite=settings.overwrite):
        return convert(settings, output)


def convert(settings: Convert, output: Path) -> int:
    model = load_trained(settings.model)
    is_deployed = is_reparameterized(model)
    if is_deployed and settings.to == "official-training":
        raise ValueError(
            f"{settings.model} is in deploy form and cannot be converted back to training form: pass --to official"
        )
    if settings.to != "timm":
        official.entries(model)  # before the conversion: raises for a model that the authors' code does not have
    if settings.to == ("official" if is_deployed else "official-training"):
        return write_official(model, output)
    if is_deployed and not settings.fold:
        say(f"{settings.model} is in deploy form already: nothing to convert, nothing written")
        return 0
    deploy = reparameterize(model) if needs_reparameterize(model) or not settings.fold else model
    if settings.fold:
        found = sum(batch_norms(deploy).values())
        deploy = fold_norms(deploy)
        left = sum(batch_norms(deploy).values())
        say(f"{found - left} of {found} batch norms folded into the layers before them")
        if describe_form(deploy) == describe_form(model):
            say(f"{settings.model} has nothing to convert or fold: nothing written")
            return 0
    report = verify(model, deploy, inputs_for(settings.model, model), settings.tolerance)
    print_report(report)
    if not report:
        say(("the forms differ: nothing written", "red"))
        return 1
    say(f"{complexity(model)}  ->  {complexity(deploy)}")
    if settings.to == "official":
        return write_official(deploy, output)
    save_model(deploy, output, overwrite=settings.overwrite)
    describe_folder(output, settings.model, name_forms(model, deploy), report)
    say(f"wrote {output}")
    return 0


def how_to_check(file: Path) -> str:
    """What to do with the files that an export leaves next to its own."""
    others = [*([file.with_suffix(".bin").name] if file.suffix == ".xml" else []), f"{file.name}.check.npz"]
    check = f"{file.name}.check.py"
    return f"to check it on another machine: copy {', '.join([file.name, *others])} and {check}, and run python {check}"


def load_trained(path: str) -> Any:
    """The model of a run folder or model folder; says so if training has not finished."""
    model, run = load_model(path), Path(path)
    config, metrics = run / "config.yaml", run / "metrics.csv"
    if config.is_file() and metrics.is_file() and not (run / "test.json").exists():
        done = f"{len(read_rows(metrics))} of {read_settings(config).epochs} epochs"
        say((f"the run is not finished ({done}): these are its weights so far", "yellow"))
    return model


def converted(model: nn.Module) -> tuple[nn.Module, EquivalenceReport | None] | None:
    """A model in deploy form for a command that needs it, and the report that is printed in one line.

    The report is None if there was nothing to convert. If the forms differ, prints where and returns None.
    """
    if not needs_reparameterize(model):
        return model, None
    deploy = reparameterize(model)
    report = verify(model, deploy)
    if not report:
        print_report(report)
        say(("the forms differ: nothing written", "red"))
        return None
    say(f"converted first: relative error {report.network.native.relative:.1e}, {report.verdict()}")
    return deploy, report


def write_official(model: nn.Module, file: Path) -> int:
    """Write the weights with the authors' names, as their code loads them; the file is complete or not written."""
    weights = {name: tensor.contiguous() for name, tensor in official.state_dict(model).items()}
    with atomic_file(file) as path:
        torch.save(weights, path)
    say(f"wrote {file}: {len(weights)} tensors under the authors' names")
    return 0


def beside(model: str, name: str) -> Path:
    """A path in a run folder, or next to a model folder."""
    folder = Path(model)
    return (folder if (folder / "model").is_dir() else folder.parent) / name
