"""The rows of the ablation (RepMLP v1, section 4.1, Fig. 3, Table 1): what each changes of the pure MLP."""

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
        name: in paths and on the command line.
        title: in the table.
        changes: arguments of the network that differ from the pure MLP's.
        width: how many times as many channels.
        paper: what the paper prints, in points of top-1 accuracy on CIFAR-10 against its pure MLP (91.11%).
    """

    name: str
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    width: int = 1
    paper: str = ""

    def settings(self, recipe: Train, folder: Path, seed: int) -> Train:
        """The recipe with this row's network, for one seed; to be written to ``folder``."""
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
#: Row A is the pure MLP before the conversion: the same training, so it has no run of its own.
NOT_CONVERTED = Row("pure-mlp", "A: not converted", paper="same")


def choose_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """Rows by their names, in the table's order; all if no name is given.

    Raises:
        ValueError: for an unknown name.
    """
    known = [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown row {', '.join(unknown)}: the rows are {', '.join(known)}")
    return tuple(row for row in ROWS if not names or row.name in names)


def check_recipe(recipe: Train) -> None:
    """Raise a ValueError if a recipe is of another network, or sets what the rows differ in or cannot share."""
    if recipe.model != MODEL:
        raise ValueError(
            f"the rows of an ablation are variants of {MODEL}, this recipe is for {recipe.model}: use one for {MODEL}"
        )
    if set_by_rows := [name for name in ("block", "global_perceptron", "deploy") if name in recipe.model_args]:
        raise ValueError(
            f"model_args.{set_by_rows[0]} is what the rows of the ablation set: leave it out of the recipe"
        )
    if list(recipe.model_args.get("kernel_sizes", [0])) == []:
        raise ValueError("the recipe has no kernel_sizes: then row B, no Local Perceptron, would be the pure MLP again")
    if not_shared := [name for name in ("weights", "locality", "qat") if getattr(recipe, name)]:
        raise ValueError(f"{not_shared[0]} is not possible with every row of the ablation: leave it out of the recipe")
