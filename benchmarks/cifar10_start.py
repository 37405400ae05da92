"""Is it the branches, or only the start? Row B on CIFAR-10, from a start in which the Local Perceptron is merged.

A fresh pure MLP is merged with the batch statistics of 1,024 training images, so that row B starts as the same
function (its logits on those images are compared). Each row of FC3's weights gets the norm that it has in a fresh row
B, which the BN after it undoes; so a step turns it as far as in row B. Then row B trains as in ``cifar10.py test``, at
the weight decay chosen for it.

    python benchmarks/cifar10_start.py DATA RUNS    # writes results/cifar10_start
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from cifar10 import IMAGES, RECIPE, STUDIES, train_loss
from common import options, table, write
from torch import Tensor, nn

import repmlp
from repmlp.data import eval_transform, load_data

SEED, DECAY = 0, "5e-4"  # chosen for row B by the search
CALIBRATION = 1024


def network(**model_args: Any) -> nn.Module:
    torch.manual_seed(SEED)
    return timm.create_model("repmlp_cifar", **model_args).double().train()


@torch.no_grad()
def merged_start(images: Tensor) -> nn.Module:
    """Row B that in training mode maps ``images`` (B, 3, 32, 32) as a fresh pure MLP does."""
    pure, start = network(), network(kernel_sizes=[])
    for module in pure.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.register_forward_pre_hook(measure)
    expected = pure(images)
    fresh = {name: p.clone() for name, p in start.named_parameters() if name.endswith("fc3.weight")}
    start.load_state_dict(pure.state_dict(), strict=False)
    hooks = []
    for name, block in start.named_modules():
        if not isinstance(block, repmlp.RepMLP):
            continue
        teacher: Any = pure.get_submodule(name)
        weight, bias = teacher.partition_perceptron.equivalent_fc3(teacher.local_perceptron)
        norms = fresh[f"{name}.partition_perceptron.fc3.weight"].norm(dim=2, keepdim=True)
        scale = norms / weight.norm(dim=2, keepdim=True)  # (g, O/g*h*w, 1)
        perceptron: Any = block.partition_perceptron
        perceptron.fc3.weight.copy_(weight * scale)
        hooks.append(perceptron.fc3.register_forward_hook(fit_norm(perceptron.bn, scale.flatten(), bias)))
    actual = start(images)
    for hook in hooks:
        hook.remove()
    error = ((actual - expected).norm() / expected.norm()).item()
    print(f"logits of the start and of a fresh pure MLP: relative error {error:.1e}")
    if not error < 1e-6:
        raise SystemExit("the start is another function than the pure MLP's")
    return start.float()


def measure(bn: Any, args: tuple[Tensor]) -> None:
    """A hook on a BN: its running statistics become those that it standardizes this batch with."""
    pixels = [d for d in range(args[0].ndim) if d != 1]
    bn.momentum = 0.0
    bn.running_mean.copy_(args[0].mean(pixels))
    bn.running_var.copy_(args[0].var(pixels, correction=0))


def fit_norm(bn: nn.BatchNorm1d, scale: Tensor, bias: Tensor) -> Callable[..., None]:
    """A hook on FC3: set the BN after it so that it undoes ``scale`` and its own standardization, and adds ``bias``."""

    def fit(fc3: nn.Module, args: tuple[Tensor], y: Tensor) -> None:  # y (M, O*h*w)
        bn.weight.copy_((y.var(0, correction=0) + bn.eps).sqrt() / scale)
        bn.bias.copy_(y.mean(0) / scale + bias)

    return fit


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    run, start = args.runs / "start-run", args.runs / "start"
    command = [sys.executable, "-m", "repmlp_cli"]
    if not start.exists():
        trained = repmlp.load_model(args.runs / f"test-{DECAY}" / f"images-{IMAGES}" / "no-local" / f"seed-{SEED}")
        train_images = load_data(f"folder:{args.data.absolute()}").train
        chosen = torch.randperm(len(train_images), generator=torch.Generator().manual_seed(SEED))[:CALIBRATION]
        transform = eval_transform(timm.data.resolve_model_data_config(trained))
        images = torch.stack([transform(train_images[i][0]) for i in chosen.tolist()]).double()
        repmlp.save_model(merged_start(images), start)
    if not (run / "test.json").exists():
        steps = STUDIES["test"][0]["steps"]
        epochs = -(-steps // (IMAGES // RECIPE["batch_size"]))
        recipe = {**RECIPE, "data": f"folder:{args.data.absolute()}", "train_images": IMAGES, "epochs": epochs}
        recipe |= {"model_args": {"kernel_sizes": []}, "weight_decay": float(DECAY), "seed": SEED}
        (args.runs / "start.yaml").write_text(yaml.safe_dump({**recipe, "weights": str(start.absolute())}))
        goes_on = ["--resume"] if (run / "config.yaml").exists() else ["--config", str(args.runs / "start.yaml")]
        subprocess.run([*command, "train", str(run), *goes_on], check=True)
    accuracy = json.loads((run / "test.json").read_text())["accuracy"]
    found = {"weight_decay": float(DECAY), "accuracy": accuracy, "train_loss": train_loss(run)}
    cells = [["B from the merge of a fresh pure MLP", DECAY, f"{accuracy:.2%}", f"{found['train_loss']:.3f}"]]
    settings = {"images": IMAGES, "steps": STUDIES["test"][0]["steps"], "seed": SEED, "calibrated on": CALIBRATION}
    header = ["row", "weight decay", "test accuracy", "training loss"]
    write("cifar10_start", settings, [found], table(header, cells))


if __name__ == "__main__":
    main()
