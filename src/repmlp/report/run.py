"""The report of a run: both forms, curves, proof, FC3, mistakes, settings, machine."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from repmlp_settings import Train

from ..ablation.jobs import DEPLOY, TRAINING, machine_with
from ..checkpoint import load_model
from ..conversion import EquivalenceReport, example_inputs, needs_reparameterize, reparameterize, verify
from ..conversion.report import HEADER
from ..counting import complexity
from ..data import ImageData, load_data, match_labels
from ..data.images import EncodedImages, LabeledImages
from ..layers import RepMLP
from ..model_config import label_names_of
from ..plot import plot_curves, plot_energy, plot_fc3
from ..training import build_test_loader, read_settings
from ..training.records import read_rows, read_test
from . import document
from .document import Gallery, Picture, Section, Table
from .predictions import Predictions, predict

#: Classes of the largest confusion matrix; with more, the most frequent confusions are listed.
MOST_CLASSES, MOST_PAIRS = 25, 20
THUMBNAIL = 160  # pixels


def write_run_report(
    run: str | Path,
    file: str | Path | None = None,
    data: str | None = None,
    data_root: str | Path | None = None,
    proof: EquivalenceReport | bool = True,
    mistakes: int = 24,
    overwrite: bool = False,
) -> Path:
    """Write the report of a run as one HTML file, and return its path.

    The test images are classified once more, by both forms, in the dtype of the weights. What cannot be
    made, for example because the data set is elsewhere, is left out, and the report says so.

    Args:
        run: run folder.
        file: to write; by default report.html in the run folder, where it replaces an earlier report.
        data, data_root: where the data set is now, if it has moved.
        proof: the comparison of both forms by :func:`repmlp.verify`; True makes it here, False leaves it out.
        mistakes: number of wrongly classified images to show, the highest loss first.
        overwrite: replace any other existing file.

    Raises:
        FileNotFoundError: if ``run`` is not a run folder, or has no weights yet.
        FileExistsError: if the file exists, ``overwrite`` is False, and it is not an earlier report of this run.
        ValueError: if the settings or the weights of the run are damaged, or ``mistakes`` is negative.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"there is no config.yaml in {folder}: name a run folder, as training writes it")
    if mistakes < 0:
        raise ValueError(f"mistakes={mistakes} is not a number of images: use 0 or more")
    file = Path(file) if file else folder / document.NAME
    document.ensure_can_write_report(file, folder, overwrite)
    settings = read_settings(folder / "config.yaml")
    model = load_model(folder)
    device = torch.device("cuda" if torch.cuda.is_available() and not settings.cpu else "cpu")
    forms, missing = both_forms(model.to(device))
    images, predictions = None, None
    if not (folder / "test.json").is_file():
        missing.append("Test images: the run is not finished.")
    else:
        root = settings.data_root if data_root is None else str(data_root)
        try:
            images = open_data(replace(settings, data=data or settings.data, data_root=root), model)
            loader = build_test_loader(model, images, settings.batch_size, settings.workers)
            predictions = predict(list(forms.values()), loader, device)
        except (OSError, ImportError, ValueError) as error:
            missing.append(f"Test images: {error}. Once they can be read, repmlp report adds them.")
    if proof is True and DEPLOY in forms:
        inputs = example_inputs(model)
        if predictions:
            inputs = torch.cat([predictions.images.to(inputs), inputs])
        proof = verify(model, forms[DEPLOY], inputs)
    elif proof is False and DEPLOY in forms:
        missing.append(f"Proof that both forms are equal, block by block: repmlp report {folder} adds it.")
    rows = read_rows(folder / "metrics.csv")
    sections = [
        forms_section(forms, predictions),
        *([curves_section(folder)] if rows else []),
        *([proof_section(proof)] if isinstance(proof, EquivalenceReport) else []),
        *fc3_sections(model),
    ]
    if predictions and images:
        sections += [
            confusion_section(predictions, images.class_names),
            mistakes_section(predictions, images.test, images.class_names, mistakes),
        ]
    about = {**machine_with(device), **{name: version(name) for name in ("repmlp", "timm")}}
    sections += [
        document.settings_section(settings),
        document.machine_section(about, "The machine that made this report"),
        *([Section("Not in this report", missing)] if missing else []),
    ]
    lead = summary(folder, settings, rows)
    document.write_page(file, document.render(f"{settings.model} on {settings.data}", lead, sections))
    return file


def both_forms(model: nn.Module) -> tuple[dict[str, nn.Module], list[str]]:
    """The model, with its deploy form if it has one; and why not, if it cannot be converted."""
    if not needs_reparameterize(model):
        return {"as trained": model}, []
    try:
        return {TRAINING: model, DEPLOY: reparameterize(model)}, []
    except ValueError as error:
        return {TRAINING: model}, [f"Deploy form: {error}."]


def open_data(settings: Train, model: nn.Module) -> ImageData:
    """The data set of a run, with the classes in the order of the model."""
    data = load_data(settings.data, settings.data_root, bad_images=settings.bad_images, in_memory="no")
    return match_labels(data, label_names_of(model))


def summary(folder: Path, settings: Train, rows: Sequence[Mapping[str, float]]) -> str:
    """One or two sentences about the training and its result."""
    minutes = sum(row["seconds"] for row in rows) / 60
    text = f"{len(rows)} of {settings.epochs} epochs of training, {minutes:.1f} minutes."
    if not (folder / "test.json").is_file():
        return text
    test = read_test(folder / "test.json", "correct", "images")
    precision = {"no": "", "bf16": ", in bf16", "fp16": ", in fp16"}[settings.precision]
    which = "best" if settings.val_fraction else "last"
    epoch = f"The weights of epoch {test['epoch']}, the {which} one, classified" if "epoch" in test else "It classified"
    return f"{text} {epoch} {test['correct']} of {test['images']} test images correctly when training ended{precision}."


def forms_section(forms: Mapping[str, nn.Module], predictions: Predictions | None) -> Section:
    """Accuracy, loss, parameters and MACs of each form."""
    header, columns = ["", *forms], []
    counts = [complexity(form) for form in forms.values()]
    if predictions:
        columns = [
            ["test accuracy", *(f"{score.accuracy:.2%}" for score in predictions.scores)],
            ["correct images", *(f"{score.correct:,} of {score.images:,}" for score in predictions.scores)],
            ["loss", *(f"{score.loss:.4f}" for score in predictions.scores)],
        ]
    columns += [
        ["parameters", *(f"{count.params:,}" for count in counts)],
        ["multiply-adds per image", *(f"{count.macs:,}" for count in counts)],
    ]
    blocks: list[str | Table] = [Table("The same weights, before and after the merge", header, columns)]
    if len(forms) == 1:
        blocks = [Table("The network", header, columns)]
    elif predictions:
        images = predictions.scores[0].images
        blocks.append(f"Both forms predict the same class for {predictions.agree:,} of {images:,} test images.")
    return Section("Both forms" if len(forms) > 1 else "Network", blocks)


def curves_section(folder: Path) -> Section:
    png = document.draw(partial(plot_curves, folder / "metrics.csv"))
    alt = "Two plots over the epochs: cross-entropy loss, and top-1 accuracy, of training and validation images"
    return Section("Training", [Picture(png, alt)])


def proof_section(report: EquivalenceReport) -> Section:
    caption = f"Deviations in {report.dtype}, and with the same weights in float64"
    return Section(
        "Are both forms equal?",
        [
            f"{'Yes' if report else 'No'}: {report.verdict()}.",
            Table(caption, HEADER, list(report.rows())),
            "Each block runs on random inputs, the whole network on images. Times rounding: the deviation of the worst "
            "channel in float64, divided by the deviation that rounding the weights once causes in it.",
        ],
    )


def fc3_sections(model: nn.Module) -> list[Section]:
    """The weights of FC3 before and after the merge; none for a network without convs to merge into an FC3."""
    blocks = [module for module in model.modules() if isinstance(module, RepMLP)]
    if not any(block.local_perceptron is not None for block in blocks):
        return []
    weights = Picture(
        document.draw(partial(plot_fc3, model)),
        "Maps of the mean absolute weight of each input pixel for one output pixel, before and after the merge",
        "FC3 of the first and the last block with convs. The cyan square is the output pixel.",
    )
    energy = Picture(
        document.draw(partial(plot_energy, {"this network": model})),
        "The share of FC3's energy within each distance of the output pixel, before and after the merge",
        "How local FC3 is: the share of its squared weights within each distance of the output pixel.",
    )
    return [Section("FC3, before and after the merge", [weights, energy])]


def confusion_section(predictions: Predictions, names: Sequence[str]) -> Section:
    """The confusion matrix, or its largest entries off the diagonal if there are many classes."""
    counts = predictions.confusion(len(names))
    if len(names) <= MOST_CLASSES:
        shades = (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
        rows = [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
        caption = "Number of test images: a row per true class, a column per predicted class"
        return Section("Confusion matrix", [Table(caption, ["true \\ predicted", *names], rows, shades=shades)])
    errors = counts.fill_diagonal_(0).flatten()
    pairs = [i for i in errors.argsort(descending=True, stable=True)[:MOST_PAIRS].tolist() if errors[i]]
    rows = [[names[i // len(names)], names[i % len(names)], str(int(errors[i]))] for i in pairs]
    caption = f"The most frequent confusions among {len(names):,} classes"
    return Section("Confusions", [Table(caption, ["true class", "predicted class", "test images"], rows)])


def mistakes_section(predictions: Predictions, images: LabeledImages, names: Sequence[str], most: int) -> Section:
    """The wrongly classified test images with the highest loss."""
    wrong = predictions.scores[0].images - predictions.scores[0].correct
    worst = predictions.worst(most)
    if not wrong:
        return Section("Worst mistakes", ["No test image is classified wrongly."])
    pictures = []
    for i in worst:
        true, predicted = names[int(predictions.labels[i])], names[int(predictions.predicted[i])]
        where = f"\n{'/'.join(Path(images.name(i)).parts[-2:])}" if isinstance(images, EncodedImages) else ""
        text = f"{true}, taken for {predicted}\n{predictions.confidence[i]:.0%} sure, loss {predictions.losses[i]:.2f}"
        pictures.append(Picture(thumbnail(images[i][0]), f"test image {i}, of class {true}", text + where))
    shown = f"{len(worst)} of {wrong:,}" if len(worst) < wrong else f"All {wrong:,}"
    text = f"{shown} wrongly classified test images, the highest loss first: look here for wrong labels."
    return Section("Worst mistakes", [text, Gallery(pictures)])


def thumbnail(image: Image.Image) -> bytes:
    """A PNG of at most THUMBNAIL pixels a side."""
    small = image.copy() if image.mode == "L" else image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()
