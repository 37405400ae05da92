"""The rows of the ablation (RepMLP v1, section 4.1, Fig. 3, Table 1) and how each differs from the pure MLP."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repmlp_settings import Train

from ..models.cifar import CifarNet

MODEL = "repmlp_cifar"
CHANNELS = inspect.signature(CifarNet).parameters["channels"].default


@dataclass(frozen=True)
class Row:
    """One network to train.

    Attributes:
        name: for paths and the command line.
        title: for the table.
        changes: arguments of the network that differ from the pure MLP's.
        width: multiplier of the number of channels.
        paper: the paper's figure, in points of top-1 accuracy on CIFAR-10 relative to its pure MLP (91.11%).
    """

    name: str
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    width: int = 1
    paper: str = ""

    def settings(self, recipe: Train, folder: Path, seed: int) -> Train:
        """The recipe with this row's network, for one seed, with ``folder`` as its output."""
        arguments = {**recipe.model_args, **self.changes}
        if self.width != 1:
            arguments["channels"] = [self.width * channels for channels in arguments.get("channels", CHANNELS)]
        return replace(recipe, output=str(folder), model_args=arguments, seed=seed, resume=False, overwrite=False)


PURE_MLP = Row("pure-mlp", "Pure MLP", paper="91.11%")
ROWS = (
    PURE_MLP,
    Row("no-local", "B: no Local Perceptron", {"kernel_sizes": []}, paper="-8.5"),
    Row("no-global", "C: no Global Perceptron", {"global_perceptron": False}, paper="lower"),
    Row("conv9-for-fc3", "D: 9x9 conv for FC3", {"block": "conv9_for_fc3"}, paper="-3.5"),
    Row("conv9", "E: 9x9 conv for RepMLP", {"block": "conv9"}, paper="below D"),
    Row("wide-convnet", "Wide ConvNet", {"block": "conv3"}, width=2, paper="+0.88"),
)
#: Row A is not a separate run; it is the pure MLP before conversion.
NOT_CONVERTED = Row("pure-mlp", "A: not converted", paper="same")


def choose_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """Rows with these names, in the table's order; all rows if no name is given.

    Raises:
        ValueError: for an unknown name.
    """
    known = [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown row {', '.join(unknown)}: the rows are {', '.join(known)}")
    return tuple(row for row in ROWS if not names or row.name in names)


def check_recipe(recipe: Train) -> None:
    """Raise ValueError if a recipe is for another network, or sets something that the rows vary or cannot share."""
    if recipe.model != MODEL:
        raise ValueError(
            f"the rows of an ablation are variants of {MODEL}, this recipe is for {recipe.model}: use one for {MODEL}"
        )
    if set_by_rows := [name for name in ("block", "global_perceptron", "deploy") if name in recipe.model_args]:
        raise ValueError(f"model_args.{set_by_rows[0]} is set by the rows of the ablation: remove it from the recipe")
    if recipe.model_args.get("kernel_sizes") in ([], ()):
        raise ValueError("the recipe sets no kernel_sizes: row B, no Local Perceptron, would equal the pure MLP")
    if not_shared := [name for name in ("weights", "locality", "qat") if getattr(recipe, name)]:
        raise ValueError(f"not every row of the ablation supports {not_shared[0]}: remove it from the recipe")
