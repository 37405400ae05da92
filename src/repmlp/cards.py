"""Model cards: the README.md beside weights, with the header that the Hugging Face Hub reads.

A card repeats no path of the machine. What others may have chosen (names of classes, files and data sets) is escaped.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from timm.models import get_model_input_config
from torch import nn

from repmlp_settings import Train

from .conversion import EquivalenceReport
from .conversion.forms import describe_form
from .conversion.report import HEADER
from .counting import batch_norms, complexity
from .files import README, atomic_file, is_sealed, seal
from .locality import injected_locality
from .messages import markdown_table
from .model_config import label_names_of
from .training import read_settings
from .training.config import changed_settings
from .training.records import read_test

TRAINING, DEPLOY = "training form", "deploy form"
#: Settings that mean something on one machine only.
LEFT_OUT = ("output", "data_root", "resume", "overwrite")


@dataclass(frozen=True)
class Origin:
    """What is known of the training of some weights.

    Attributes:
        settings: of the run.
        test: what its test.json holds.
        header: of the card beside the weights; its license and data sets hold for what is made from them, too.
    """

    settings: Train | None = None
    test: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What a card describes.

    Attributes:
        model: the timm model that was written.
        forms: the network in each form that is known, ``model`` among them, under the name of the form.
        report: of the comparison of the forms.
        origin: of the weights.
    """

    model: Any
    forms: Mapping[str, nn.Module]
    report: EquivalenceReport | None = None
    origin: Origin = field(default_factory=Origin)


def find_origin(folder: str | Path) -> Origin:
    """The origin of a run folder, of ``model/`` or ``deploy/`` in one, or of any other model folder."""
    folder = Path(folder)
    run = folder.parent if folder.name in ("model", "deploy") else folder
    settings, test, header = None, {}, {}
    with suppress(ValueError, TypeError, KeyError, OSError):
        settings = read_settings(run / "config.yaml")
        values = read_test(run / "test.json", "accuracy", "images")
        test = {"accuracy": float(values["accuracy"]), "images": int(values["images"])}
    with suppress(ValueError, TypeError, IndexError, RecursionError, OSError, yaml.YAMLError):
        place = folder / "model" if (folder / "model").is_dir() else folder
        header = dict(yaml.safe_load((place / README).read_text(encoding="utf-8").split("---\n")[1]))
    return Origin(settings, test, header)


def model_card(subject: Subject) -> str:
    """The card of a model folder."""
    usage = _usage(subject, "repmlp", 'repmlp.load_model(".")', "the folder that holds this file")
    if _timm_can_build(subject.model):
        usage += (
            '\n\nOr with timm, after `import repmlp`: `timm.create_model("local-dir:.", pretrained=True)`, and from '
            'the Hub `timm.create_model("hf-hub:USER/NAME", pretrained=True)`.'
        )
    return "\n\n".join([*_front(subject), "## Use", usage, *_facts(subject)]) + "\n"


def file_card(subject: Subject, file: Path, facts: str, card: str = "", others: Iterable[str] = ()) -> str:
    """The card of a folder with exported files: a section for each, then the network.

    Args:
        subject: the network of the file.
        file: that was written.
        facts: about the file, in Markdown.
        card: of the folder so far. The sections of ``others`` are kept.
        others: names of files.
    """
    load = f"repmlp.deploy.load_exported({file.name!r})"
    usage = _usage(subject, "repmlp.deploy", load, "in the folder that holds this file")
    title = f"## {escape(file.name)}\n"
    kept = tuple({"## Use\n", *(f"## {escape(name)}\n" for name in others)} - {title})
    sections = [part.strip() for part in re.split(r"^(?=## )", card, flags=re.MULTILINE) if part.startswith(kept)]
    return "\n\n".join([*_front(subject), *sections, f"{title}\n{facts}", usage, *_facts(subject)]) + "\n"


def write_card(folder: str | Path, text: str) -> bool:
    """Write README.md into a folder unless a user wrote or changed the one there; returns whether it was written."""
    file = Path(folder) / README
    if os.path.lexists(file) and not is_sealed(file):
        return False
    with atomic_file(file) as partial:
        partial.write_text(seal(text), encoding="utf-8", newline="\n")
    return True


def escape(text: str, most: int = 60) -> str:
    """Untrusted text as plain Markdown on one line, without markup, HTML, links and invisible characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text if len(text) <= most else f"{text[:most]}..."
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _timm_can_build(model: Any) -> bool:
    """Whether timm alone builds a network in this form: one of ours, or any as timm makes it."""
    form = describe_form(model)
    ours = type(model).__module__.startswith("repmlp.")
    return not injected_locality(model) and "folded_norms" not in form and (ours or not form)


def _front(subject: Subject) -> list[str]:
    """The header and the first lines."""
    model, origin = subject.model, subject.origin
    name, size = model.pretrained_cfg.get("architecture"), get_model_input_config(model)["input_size"]
    data, public = _data_name(origin.settings.data) if origin.settings else ("", False)
    task = "image-classification" if model.num_classes else "image-feature-extraction"
    header: dict[str, Any] = {"library_name": "timm", "pipeline_tag": task, "tags": [task, "timm", "repmlp"]}
    header |= {key: origin.header[key] for key in ("license", "datasets") if key in origin.header}
    if public:
        header["datasets"] = [data]
    if origin.test and data:
        result = {
            "task": {"type": task},
            "dataset": {"name": data, "type": data},
            "metrics": [{"type": "accuracy", "value": round(origin.test["accuracy"], 6)}],
        }
        header |= {"metrics": ["accuracy"], "model-index": [{"name": name, "results": [result]}]}
    labels = label_names_of(model) or []
    more = f", and {len(labels) - 20} more" if len(labels) > 20 else ""
    about = f"`{name}` for {'x'.join(map(str, size))} images"
    about += f" and {model.num_classes} classes" if model.num_classes else ", without a classifier"
    about += f", trained on the data set {escape(data)}." if data else "."
    listed = f" The classes: {', '.join(map(escape, labels[:20]))}{more}." if labels else ""
    dumped = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10**6)
    return [f"---\n{dumped}---", f"# {name}", f"{about}{listed}"]


def _usage(subject: Subject, package: str, load: str, comment: str) -> str:
    output = ".softmax(1)" if subject.model.num_classes else ""
    return f"""\
```python
import {package}, timm
from repmlp.data import eval_transform, open_image
model = {load}  # {comment}
transform = eval_transform(timm.data.resolve_data_config(model=model))
print(model(transform(open_image("image.png"))[None]){output})
```"""


def _facts(subject: Subject) -> list[str]:
    """Figures, proof and settings."""
    forms, report, origin = subject.forms, subject.report, subject.origin
    rows = [["parameters", *(f"{sum(p.numel() for p in form.parameters()):,}" for form in forms.values())]]
    with suppress(RuntimeError, NotImplementedError, TypeError):  # one that cannot run on the meta device
        rows.append(["multiply-adds per image", *(f"{complexity(form).macs:,}" for form in forms.values())])
    rows.append(["batch norms", *(str(sum(batch_norms(form).values())) for form in forms.values())])
    parts = ["## Figures", markdown_table(["", *forms], rows)]
    if origin.test:
        form = ", in training form" if {TRAINING, DEPLOY} & forms.keys() else ""
        top1 = f"{origin.test['accuracy']:.2%} of {origin.test['images']}"
        parts.append(f"Top-1 on the test images, at the end of training{form}: {top1}.")
    if report is not None:
        verdict = f"`repmlp.verify`: {report.verdict().rstrip('.')}."
        parts += ["## Are both forms equal?", verdict, markdown_table(HEADER, report.rows())]
    if origin.settings:
        settings = yaml.safe_dump(_settings(origin.settings), sort_keys=False, allow_unicode=True)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))
        parts += ["## Training", f"{fence}yaml\n{settings}{fence}"]
    return [*parts, f"Made by repmlp {version('repmlp')}, PyTorch {version('torch')} and timm {version('timm')}."]


def _settings(settings: Train) -> dict[str, Any]:
    """The settings that are not the default, without paths."""
    first = {"model": settings.model, "data": _data_name(settings.data)[0]}
    weights = {"weights": Path(settings.weights).name} if settings.weights else {}
    values = first | changed_settings(settings) | first | weights
    return {name: value for name, value in values.items() if name not in LEFT_OUT}


def _data_name(data: str) -> tuple[str, bool]:
    """A data set's name without its path, and whether others can have it under this name."""
    kind, name = re.fullmatch(r"(folder:|wds/|hfds/|torch/|)(.*)", data, re.DOTALL).groups()  # type: ignore[union-attr]
    if kind in ("folder:", "wds/") or os.path.isabs(name):
        return Path(name).name, False
    return name, bool(kind)
