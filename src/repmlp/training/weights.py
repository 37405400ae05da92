"""Fine-tuning: weights to start from, parameters that stay as they are."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import get_model_args, get_model_input_config
from torch import Tensor, nn

from repmlp_settings import Train

from .. import official
from ..checkpoint import CONFIG, WEIGHTS, load_model
from ..conversion import is_reparameterized
from ..conversion.forms import describe_form
from ..data import ImageData, match_labels
from ..layers import RepMLP, RepMLPv2
from ..layers.token_mixing import TokenMixing
from ..messages import shorten
from ..model_config import label_names_of
from ..models import RepMLPResNet
from ..models.repmlp_resnet import checkpoint_filter_fn
from ..official.checkpoint import build_for, is_deploy, read_checkpoint
from .state import State

#: The first conv of the authors' v1 and v2 networks, by which their weights are recognized.
OFFICIAL_STEMS = ("stage0.0.conv.weight", "conv_embedding.conv.weight")
#: FC1 and FC2: their shapes depend on the image size; re-initialized for another one, as in :func:`repmlp.resize`.
SIZE_DEPENDENT = ".global_perceptron."


@dataclass(frozen=True)
class LoadedWeights:
    """What :func:`load_weights` did, by names of tensors.

    Attributes:
        copied: loaded into the model.
        initialized: of the model, not in the file or of another shape there: they keep their initial values.
        unused: of the file, without a counterpart in the model.
    """

    source: Path
    copied: tuple[str, ...]
    initialized: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"weights of {self.source}: {len(self.copied)} tensors loaded"
        for what, names in (("re-initialized", self.initialized), ("of the file unused", self.unused)):
            if names:
                text += f"; {len(names)} {what} ({shorten(names)})"
        return text


@torch.no_grad()
def load_weights(model: nn.Module, path: str | Path) -> LoadedWeights:
    """Load weights into a model in training form, as far as they fit.

    A classifier for other classes is re-initialized, and so are FC1 and FC2 if the number of partitions differs, which
    depends on the image size. All else that is in both has to have the same shape.

    Args:
        model: made by timm.
        path: a model folder or run folder; or a .safetensors or .pth file of this package, of timm or of the
            authors, which is read without executing anything.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the file is damaged, or its weights are in deploy form or those of another network.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights {path}: give a model folder, or a .safetensors or .pth file")
    folder = _folder_of(path)
    weights = _read_folder(folder) if folder.is_dir() else _read_file(path, model)
    if isinstance(model, RepMLPResNet):
        weights = checkpoint_filter_fn(weights, model)
    own = model.state_dict()
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    copied, wrong = [], []
    for name, tensor in weights.items():
        if name in own and own[name].shape == tensor.shape:
            copied.append(name)
        elif name in own and name.rpartition(".")[0] not in heads and SIZE_DEPENDENT not in name:
            wrong.append(f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}")
    if wrong or not any(own[name].is_floating_point() for name in copied):
        reason = shorten(wrong) if wrong else f"no name in common, the first is {next(iter(weights), 'none')}"
        advice = f"; {_how_they_fit(folder, model)}" if folder.is_dir() else ""
        raise ValueError(f"the weights in {path} are not those of this {type(model).__name__}: {reason}{advice}")
    model.load_state_dict({**own, **{name: weights[name] for name in copied}})
    return LoadedWeights(
        path,
        tuple(copied),
        tuple(name for name in own if name not in copied),
        tuple(name for name in weights if name not in own),
    )


def _folder_of(path: Path) -> Path:
    """The model folder that a path means: a folder, or the file of weights in one; other files as they are."""
    return path.parent if path.name == WEIGHTS and (path.parent / CONFIG).is_file() else path


def _read_folder(path: Path) -> Mapping[str, Tensor]:
    model = load_model(path)
    if is_reparameterized(model) or describe_form(model):  # blocks, or norms that are folded
        raise _deploy_form(path)
    return model.state_dict()


def _how_they_fit(path: Path, model: nn.Module) -> str:
    source = load_model(path)
    channels, wanted = (get_model_input_config(network)["input_size"][0] for network in (source, model))
    if channels != wanted:
        return f"they are for images of {channels} channels, and those of the data have {wanted}"
    of_data = ("num_classes", "in_chans", "img_size")
    arguments = {name: value for name, value in get_model_args(source).items() if name not in of_data}
    return f"set model to {_architecture(source)} and model_args to {arguments}, which they were trained with"


def _read_file(path: Path, model: nn.Module) -> Mapping[str, Tensor]:
    """The tensors in a file, under the names that they have in ``model``."""
    weights = read_checkpoint(path)
    if any(stem in weights for stem in OFFICIAL_STEMS):
        if is_deploy(weights):
            raise _deploy_form(path)
        return _from_official(weights, model)
    if weights.keys() == _deploy_keys(model) != model.state_dict().keys():
        raise _deploy_form(path)
    return weights


def _from_official(weights: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """The authors' weights under our names, without FC1 and FC2 if they are for another image size."""
    arguments = {name: value for name, value in get_model_args(model).items() if name != "num_classes"}
    source = build_for(_architecture(model), weights, **arguments)
    other_size = {
        entry.official: entry
        for entry in official.entries(source)
        if SIZE_DEPENDENT in entry.ours
        and entry.official in weights
        and tuple(weights[entry.official].shape) != entry.shape
    }
    official.load(source, {**weights, **{name: torch.zeros(entry.shape) for name, entry in other_size.items()}})
    unknown = {entry.ours for entry in other_size.values()}
    return {name: tensor for name, tensor in source.state_dict().items() if name not in unknown}


def _deploy_form(path: Path) -> ValueError:
    return ValueError(f"{path} is in deploy form, which cannot be trained: give the weights before conversion")


def _deploy_keys(model: nn.Module) -> set[str]:
    """Names of the tensors of ``model`` in deploy form; empty if its class has none."""
    if "deploy" not in inspect.signature(type(model)).parameters:
        return set()
    with torch.device("meta"):
        return set(timm.create_model(_architecture(model), deploy=True, **get_model_args(model)).state_dict())


def _architecture(model: Any) -> str:
    return model.pretrained_cfg["architecture"]


def match_weights(data: ImageData, settings: Train, state: State | None) -> ImageData:
    """The data set with the classes in the order of the weights to start from, or of the state to resume from.

    Raises:
        ValueError: if both have as many classes, of other names, and ``settings.labels`` is not "by-index".
    """
    names: Sequence[str] | None = None
    if state and "data" in state:
        names = state["data"].get("classes")
        if not names or set(names) != set(data.class_names):  # check_data says what differs
            return data
    elif settings.weights:
        path = _folder_of(Path(settings.weights))
        names = label_names_of(load_model(path)) if path.is_dir() else None
    return match_labels(data, names, settings.labels)


def freeze_parameters(model: nn.Module, trained: Literal["head", "blocks"]) -> None:
    """Train the classifier only, or the RepMLP blocks (or the FCs with a local prior) and the classifier.

    Raises:
        ValueError: if the model does not have them.
    """
    modules: list[Any] = [model.get_classifier()]  # type: ignore[operator]
    if trained == "blocks":
        blocks = [module for module in model.modules() if isinstance(module, RepMLP | RepMLPv2 | TokenMixing)]
        if not blocks:
            raise ValueError(f"there is no RepMLP block in this {type(model).__name__}: freeze all but its head")
        modules += blocks
    model.requires_grad_(False)
    for module in modules:
        for part in module if isinstance(module, tuple | list) else [module]:
            part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"this {type(model).__name__} has no classifier to train")


def set_frozen_eval(model: nn.Module) -> None:
    """Put modules whose parameters are all frozen into eval mode, so that their batch statistics stay too."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
