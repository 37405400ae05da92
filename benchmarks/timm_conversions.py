"""Every timm architecture with a training form, converted by timm, converted here, and folded: what changes?

python benchmarks/timm_conversions.py                  # all, about an hour on one CPU core
python benchmarks/timm_conversions.py --smallest 1     # the smallest of each family

Writes benchmarks/results/timm_conversions.csv row by row as they are measured; existing rows are not measured again.
Batch norms first get random statistics and affine maps. Errors are the norm of the difference over the norm of the
output, on one random image. Columns that timm's benchmarks also have use the same names.
"""

import argparse
import copy
import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from timm.utils import reparameterize_model
from torch import Tensor, nn

import repmlp
from repmlp.conversion.norm_folding import fold_pairs_, foldable_norms

RESULTS = Path(__file__).parent / "results" / "timm_conversions.csv"
#: Files of timm whose networks may have blocks with a training form.
FAMILIES = (
    "byobnet",
    "efficientvim",
    "efficientvit_msra",
    "fastvit",
    "ghostnet",
    "iformer",
    "lcnetv2",
    "levit",
    "nextvit",
    "repghost",
    "repvit",
    "shvit",
    "tiny_vit",
)
COLUMNS = {
    "model": "architecture in timm",
    "family": "file of timm",
    "img_size": "input size",
    "param_count": "millions of parameters, training form",
    "param_count_converted": "after conversion and folding",
    "gmacs": "billions of multiply-adds for an image, training form",
    "gmacs_converted": "after conversion and folding",
    "norms": "batch norms, training form",
    "norms_timm": "after timm's reparameterize_model",
    "norms_converted": "after repmlp.reparameterize",
    "norms_folded": "after repmlp.fold_norms too",
    "error_float64": "of repmlp, converted and folded, float64 model",
    "error_float32": "the same, float32 model",
    "timm_error_float64": "of timm's reparameterize_model, or the error that it or the converted model raises",
    "timm_error_float32": "the same, float32 model",
    "timm_dtypes": "dtypes of the weights after timm converted a float64 model",
    "timm_twice": "timm's function on its own result: same, changed or the error",
    "twice": "repmlp.reparameterize on its own result: same or changed",
}


def architectures() -> dict[str, list[str]]:
    """Names of the networks with a training form by family, the smallest first. They are built without memory."""
    found: dict[str, list[str]] = {}
    for family in FAMILIES:
        sizes = {}
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                model = timm.create_model(name)
            if next(repmlp.conversion.iter_reparameterizable(model), None):
                sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        found[family] = sorted(sizes, key=sizes.__getitem__)
    return found


def randomize_norms(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for name, scale, shift in (("running_mean", 1, -0.5), ("running_var", 2, 0.1), ("weight", 1, 0.5)):
                tensor: Any = getattr(norm, name)
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * scale + shift)
            norm.bias.data.copy_(torch.rand(norm.bias.shape, generator=generator) - 0.5)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum("BatchNorm" in type(module).__name__ for module in model.modules())


def outputs(value: Any) -> Iterator[Tensor]:
    """The tensors of an output, which may be a tuple."""
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from outputs(item)


def error(reference: Any, other: Any) -> str:
    pairs = zip(outputs(reference), outputs(other), strict=True)
    return f"{max(((a - b).double().norm() / a.double().norm()).item() for a, b in pairs):.1e}"


def same(a: nn.Module, b: nn.Module) -> str:
    ours, theirs = a.state_dict(), b.state_dict()
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    return "same" if equal else "changed"


def attempt(function: Any) -> Any:
    """What a function of timm returns, or the name of what it raises."""
    try:
        return function()
    except Exception as failure:
        return type(failure).__name__


@torch.no_grad()
def measure(name: str, family: str) -> dict[str, Any]:
    model = randomize_norms(timm.create_model(name))
    wide = copy.deepcopy(model).double()
    size = get_model_input_config(model)["input_size"]
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    y, wide_y = model(x), wide(x.double())
    converted, wide_converted = repmlp.reparameterize(model), repmlp.reparameterize(wide)
    row = {
        "model": name,
        "family": family,
        "img_size": size[-1],
        "norms": norms(model),
        "norms_converted": norms(converted),
        "twice": same(repmlp.reparameterize(converted), converted),
    }
    pairs = foldable_norms(converted)
    for folded in (converted, wide_converted):
        fold_pairs_(folded, pairs)
    before, after = repmlp.complexity(model), repmlp.complexity(converted)
    theirs = attempt(lambda: reparameterize_model(model))
    wide_theirs = attempt(lambda: reparameterize_model(wide))
    row |= {
        "param_count": round(before.params / 1e6, 2),
        "param_count_converted": round(after.params / 1e6, 2),
        "gmacs": round(before.macs / 1e9, 3),
        "gmacs_converted": round(after.macs / 1e9, 3),
        "norms_folded": norms(converted),
        "error_float64": error(wide_y, wide_converted(x.double())),
        "error_float32": error(y, converted(x)),
        "timm_error_float32": attempt(lambda: error(y, theirs(x))) if isinstance(theirs, nn.Module) else theirs,
        "timm_error_float64": wide_theirs,
    }
    if isinstance(wide_theirs, nn.Module):
        dtypes = Counter(str(p.dtype).removeprefix("torch.") for p in wide_theirs.parameters())
        twice = attempt(lambda: same(reparameterize_model(wide_theirs), wide_theirs))
        row |= {
            "norms_timm": norms(wide_theirs),
            "timm_dtypes": " ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common()),
            "timm_twice": twice,
            "timm_error_float64": attempt(lambda: error(wide_y, wide_theirs(x.double()))),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", type=int, help="measure only so many of each family; by default all")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = list(csv.DictReader(arguments.output.open())) if arguments.output.exists() else []
    done = {row["model"] for row in rows}
    for family, names in architectures().items():
        for name in names[: arguments.smallest]:
            if name in done:
                continue
            rows.append(measure(name, family))
            print(rows[-1], flush=True)
            with arguments.output.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(sorted(rows, key=lambda row: (row["family"], float(row["param_count"]))))


if __name__ == "__main__":
    main()
