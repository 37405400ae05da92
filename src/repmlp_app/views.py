"""What the page shows, as rows, sentences and pictures that the library computes. Imports nothing of the web server.

Forms are a model's training form and deploy form by their titles, or its only form. Changes are tensors of the deploy
form, by name, that one visitor has changed; the models themselves are shared and stay as they are.

g groups, C/O channels in/out, h,w partition.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageOps
from timm.data import resolve_data_config
from torch import Tensor, nn

from repmlp.conversion import deviation, example_inputs, iter_reparameterizable
from repmlp.conversion.preparation import copied
from repmlp.data import ImageData, eval_transform
from repmlp.deploy import time_interleaved
from repmlp.functional import conv_to_linear
from repmlp.layers.partitioned import FC3Block
from repmlp.model_config import label_names_of
from repmlp.plot import plot_curves
from repmlp.plot.energy import energy_within
from repmlp.plot.fc3 import weights_around
from repmlp.training.records import read_rows

Forms = Mapping[str, Any]
Changes = Mapping[str, Tensor]
Rows = list[list[str]]

#: Pixels on the longer side of a picture of few pixels, at least.
PICTURE = 224


def with_changes(model: Any, changes: Changes) -> Any:
    """A copy of a model with the changed tensors; without changes the model itself."""
    if not changes:
        return model
    model = copied(model)
    model.load_state_dict(changes, strict=False)
    return model


def with_broken_deploy_form(forms: Forms, changes: Changes) -> dict[str, Any]:
    """The forms, the last of them with the changes."""
    last = list(forms)[-1]
    return {**forms, last: with_changes(forms[last], changes)}


@torch.inference_mode()
def predict(forms: Forms, image: Image.Image, top: int = 5) -> tuple[Rows, str]:
    """The most probable labels of an image in each form, and a sentence on how far the logits differ.

    Returns:
        Rows of a rank and a cell per form, the last row with milliseconds; and the sentence.
    """
    model = next(iter(forms.values()))
    parameter = next(model.parameters())
    x = eval_transform(resolve_data_config(model=model))(image)[None].to(parameter)  # (1, C, H, W)
    logits = {form: network(x) for form, network in forms.items()}
    times = time_interleaved({form: partial(network, x) for form, network in forms.items()}, rounds=3, warmup=0)
    names = label_names_of(model) or [str(i) for i in range(model.num_classes)]
    best = [own[0].float().softmax(0).topk(min(top, model.num_classes)) for own in logits.values()]
    cells = [[f"{names[c]}  {p:.1%}" for p, c in zip(*map(Tensor.tolist, own), strict=True)] for own in best]
    rows = [[str(rank), *row] for rank, row in enumerate(zip(*cells, strict=True), 1)]
    rows.append(["ms", *(f"{time.median * 1e3:.1f}" for time in times.values())])
    if len(forms) == 1:
        return rows, "The model has one form only: there is nothing to compare."
    a, b = logits.values()
    error = deviation(a, b)
    same = "the same class" if a.argmax() == b.argmax() else "DIFFERENT classes"
    return rows, (
        f"Both forms predict {same}. Largest difference of a logit: {error.maximum:.1e}, "
        f"relative to all logits: {error.relative:.1e}."
    )


def is_gray(model: Any) -> bool:
    """Whether a model takes images of one channel."""
    return resolve_data_config(model=model)["input_size"][0] == 1


def drawn_image(model: Any, drawing: Image.Image | None) -> Image.Image:
    """A drawing in black on white, with bright ink on a dark ground where the training images are like that.

    Raises:
        ValueError: for an empty drawing.
    """
    gray = drawing and drawing.convert("L")
    if gray is None or gray.getextrema() == (255, 255):
        raise ValueError("the drawing is empty: draw something first")
    return ImageOps.invert(gray) if resolve_data_config(model=model)["mean"][0] < 0.5 else gray


def enlarged(image: Image.Image) -> Image.Image:
    """An image of few pixels with each of them as a square; a larger one as it is."""
    factor = max(1, PICTURE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def images_to_compare(model: nn.Module, count: int, data: ImageData | None) -> Tensor:
    """The first test images of a data set, prepared for the model (N, C, H, W); random ones without a data set."""
    if data is None:
        return example_inputs(model, count)
    transform = eval_transform(resolve_data_config(model=model))
    return torch.stack([transform(data.test[i][0]) for i in range(min(count, len(data.test)))])


def block_names(forms: Forms) -> list[str]:
    """The blocks of a model that still have parameters in deploy form."""
    training, deploy = next(iter(forms.values())), list(forms.values())[-1]
    names = [name for name, _ in iter_reparameterizable(training)]
    return [name for name in names if next(deploy.get_submodule(name).parameters(), None) is not None]


def break_weight(deploy: nn.Module, block: str, changes: Changes) -> tuple[dict[str, Tensor], str]:
    """Change one random weight of a block's largest tensor, by more than the largest weight in it.

    Returns:
        The changes with this one added, and a sentence that says what was changed.
    """
    own = {f"{block}.{name}".removeprefix("."): p for name, p in deploy.get_submodule(block).named_parameters()}
    name = max(own, key=lambda name: own[name].numel())
    tensor = changes.get(name, own[name]).detach().clone()
    index = tuple(random.randrange(n) for n in tensor.shape)
    before = float(tensor[index])
    tensor[index] += 1 + tensor.abs().max()
    place = ", ".join(map(str, index))
    return {**changes, name: tensor}, f"Changed {name}[{place}] from {before:.4g} to {float(tensor[index]):.4g}."


def fc3_blocks(forms: Forms) -> dict[str, FC3Block]:
    """The blocks with an FC3 in the first form, by name."""
    model = next(iter(forms.values()))
    return {name: block for name, block in model.named_modules() if isinstance(block, FC3Block)}


@torch.no_grad()
def fc3_kernels(block: FC3Block) -> dict[str, Tensor]:
    """FC3 alone, the convs as an FC, and both merged (g, O/g*h*w, C/g*h*w); without convs the merged kernel only."""
    merged, _ = block.equivalent_fc3()
    if block.local_perceptron is None:
        return {"merged kernel": merged}
    alone, _ = block.partition_perceptron.equivalent_fc3()
    kernel, _ = block.local_perceptron.equivalent_conv()
    convs = conv_to_linear(kernel, block.partition_size, block.partition_perceptron.groups)
    return {"FC3 alone": alone, "convs as an FC": convs, "merged kernel": merged}


def channels_of(kernels: Mapping[str, Tensor], block: FC3Block) -> tuple[int, int, int]:
    """The groups, and the output and input channels of each: g, O/g, C/g."""
    (h, w), (g, rows, columns) = block.partition_size, next(iter(kernels.values())).shape
    return g, rows // (h * w), columns // (h * w)


def chosen_channels(
    kernel: Tensor, block: FC3Block, group: int | None, output: int | None, input: int | None
) -> Tensor:
    """The part of a kernel that belongs to a group, and to an output and an input channel in it; None for all."""
    h, w = block.partition_size
    steps = (1, h * w, h * w)
    parts = [
        slice(None) if i is None else slice(i * n, (i + 1) * n)
        for i, n in zip((group, output, input), steps, strict=True)
    ]
    return kernel[tuple(parts)]


def fc3_pictures(
    kernels: Mapping[str, Tensor], block: FC3Block, pixel: tuple[int, int]
) -> tuple[dict[str, Image.Image], Rows, str]:
    """How strongly an output pixel weighs the input pixels, for each kernel, on one color scale.

    Returns:
        The pictures; rows of a distance and, per kernel, the share of energy within it; and a sentence on the scale.
    """
    size, (y, x) = block.partition_size, pixel
    maps = {title: weights_around(kernel, block, pixel).double() for title, kernel in kernels.items()}  # (h, w)
    top = max(float(values.max()) for values in maps.values())
    pictures = {}
    for title, values in maps.items():
        colors = colormaps["magma"]((values / (top or 1)).cpu().numpy())[..., :3]  # (h, w, 3)
        pictures[title] = picture = enlarged(Image.fromarray((colors * 255).astype(np.uint8)))
        side = picture.width // size[1]
        corner = (x * side, y * side, (x + 1) * side - 1, (y + 1) * side - 1)
        ImageDraw.Draw(picture).rectangle(corner, outline="cyan", width=max(1, side // 12))
    shares = [energy_within(kernel, size).tolist() for kernel in kernels.values()]
    rows = [
        [str(distance), *(f"{share:.1%}" for share in row)] for distance, row in enumerate(zip(*shares, strict=True))
    ]
    return pictures, rows, f"Mean |weight| of output pixel ({y}, {x}); black is 0, the brightest color {top:.3g}."


def pixel_at(position: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """The pixel (y, x) of a partition (h, w) at a position (x, y) in its picture."""
    side = max(1, PICTURE // max(size))
    return min(position[1] // side, size[0] - 1), min(position[0] // side, size[1] - 1)


def curves(run: Path) -> tuple[Image.Image | None, str]:
    """The curves of a run, which may be training, and a sentence on how far it is."""
    metrics = run / "metrics.csv"
    epochs = len(read_rows(metrics))
    if epochs < 1:
        return None, "No epoch is finished yet."
    with TemporaryDirectory() as folder, Image.open(plot_curves(metrics, Path(folder) / "curves.png")) as image:
        image.load()
    state = "The run is finished" if (run / "test.json").is_file() else "The run is not finished"
    return image, f"{state}. Epochs so far: {epochs}."
