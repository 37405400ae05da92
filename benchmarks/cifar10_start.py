"""Is it the branches, or only the start? Row B on CIFAR-10, from a start in which the Local Perceptron is merged.

A fresh pure MLP is merged with the batch statistics of 1,024 training images, so that row B starts as the same
function (its logits on those images are compared). Each row of FC3's weights gets the norm that it has in a fresh row
B, which the BN after it undoes; so a step turns it as far as in row B. Then row B trains as in ``cifar10.py test``, at
the weight decay chosen for it.

    python benchmarks/cifar10_start.py DATA RUNS    # two seeds; writes results/cifar10_start

Results of seeds that are not trained (``--seeds 1``) are kept as results/ has them.
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
from common import HERE, options, table, write
from torch import Tensor, nn

import repmlp
from repmlp.data import eval_transform, load_data
from repmlp.deploy.environment import machine

DECAY = "5e-4"  # chosen for row B by the search
CALIBRATION = 1024
STEPS = STUDIES["test"][0]["steps"]


def network(seed: int, **model_args: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("repmlp_cifar", **model_args).double().train()


@torch.no_grad()
def merged_start(images: Tensor, seed: int) -> nn.Module:
    """Row B that in training mode maps ``images`` (B, 3, 32, 32) as a fresh pure MLP does."""
    pure, start = network(seed), network(seed, kernel_sizes=[])
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


def calibration_images(data: Path, seed: int) -> Tensor:
    """Training images (B, 3, 32, 32), prepared as for the network."""
    loaded = load_data(f"folder:{data.absolute()}")
    config = timm.data.resolve_model_data_config(network(seed)) | {"mean": loaded.mean, "std": loaded.std}
    transform = eval_transform(config)
    chosen = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    return torch.stack([transform(loaded.train[i][0]) for i in chosen.tolist()]).double()


def train(data: Path, runs: Path, seed: int) -> Path:
    """The run folder; nothing is trained if it is finished."""
    run, start = runs / f"start-run-{seed}", runs / f"start-{seed}"
    if not start.exists():
        repmlp.save_model(merged_start(calibration_images(data, seed), seed), start)
    if not (run / "test.json").exists():
        epochs = -(-STEPS // (IMAGES // RECIPE["batch_size"]))
        recipe = {**RECIPE, "data": f"folder:{data.absolute()}", "train_images": IMAGES, "epochs": epochs}
        recipe |= {"model_args": {"kernel_sizes": []}, "weight_decay": float(DECAY), "seed": seed}
        file = runs / f"start-{seed}.yaml"
        file.write_text(yaml.safe_dump({**recipe, "weights": str(start.absolute())}))
        goes_on = ["--resume"] if (run / "config.yaml").exists() else ["--config", str(file)]
        subprocess.run([sys.executable, "-m", "repmlp_cli", "train", str(run), *goes_on], check=True)
    return run


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    file = HERE / "results" / "cifar10_start.json"
    found = {result["seed"]: result for result in json.loads(file.read_text())["results"]} if file.exists() else {}
    for seed in args.seeds:
        run = train(args.data, args.runs, seed)
        accuracy = json.loads((run / "test.json").read_text())["accuracy"]
        found[seed] = {"seed": seed, "accuracy": accuracy, "train_loss": train_loss(run), "cpu": machine()["cpu"]}
    results = [found[seed] for seed in sorted(found)]
    cells = [[f"{r['seed']}", f"{r['accuracy']:.2%}", f"{r['train_loss']:.3f}", r["cpu"]] for r in results]
    settings = {"images": IMAGES, "steps": STEPS, "weight decay": DECAY, "calibrated on": CALIBRATION}
    write("cifar10_start", settings, results, table(["seed", "test accuracy", "training loss", "cpu"], cells))


if __name__ == "__main__":
    main()
