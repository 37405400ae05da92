"""README.md beside the weights that a command wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from repmlp import load_model, reparameterize, verify
from repmlp.cards import DEPLOY, TRAINING, Subject, file_card, find_origin, model_card, write_card
from repmlp.conversion import EquivalenceReport, is_reparameterized, needs_reparameterize
from repmlp.files import README, claim

from .console import say


def name_forms(model: nn.Module, deploy: nn.Module | None = None) -> dict[str, nn.Module]:
    """A model, and its deploy form if there is one, by the names that cards show."""
    name = TRAINING if needs_reparameterize(model) else DEPLOY if is_reparameterized(model) else "as trained"
    return {name: model, **({DEPLOY: deploy} if deploy is not None and deploy is not model else {})}


def describe_run(folder: Path) -> EquivalenceReport | None:
    """Write the card of a finished run's model, with what its deploy form will be; returns how both forms compare."""
    model = load_model(folder)
    deploy, report = None, None
    if needs_reparameterize(model):
        try:
            deploy = reparameterize(model)
            report = verify(model, deploy)
        except ValueError as error:
            say(f"the model card does not describe the deploy form: {error}")
    write(folder / "model", model_card(Subject(model, name_forms(model, deploy), report, find_origin(folder))))
    return report


def describe_folder(
    folder: Path, source: str, forms: Mapping[str, nn.Module], report: EquivalenceReport | None
) -> None:
    """Write the card of a model folder that was made from ``source``; it holds the last of the forms."""
    write(folder, model_card(Subject([*forms.values()][-1], forms, report, find_origin(source))))


def describe_file(
    file: Path, source: str, facts: str, forms: Mapping[str, nn.Module], report: EquivalenceReport | None
) -> None:
    """Add an exported file, made from ``source``, to the card of its folder; it computes the last of the forms."""
    subject: Any = Subject([*forms.values()][-1], forms, report, find_origin(source))
    card = file.parent / README
    with claim(card, wait=60):
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        write(file.parent, file_card(subject, file, facts, text, [path.name for path in file.parent.iterdir()]))


def write(folder: Path, text: str) -> None:
    if not write_card(folder, text):
        say(f"kept {folder / README}, which is not from this command")
