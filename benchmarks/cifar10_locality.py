"""Do convs in parallel with token-mixing FCs help on natural images? ResMLP and gMLP on 5,000 images of CIFAR-10.

    python benchmarks/cifar10_locality.py search HELD_OUT RUNS    # settings of each network, with convs and without
    python benchmarks/cifar10_locality.py test DATA RUNS          # each with the settings chosen for it, three seeds

DATA is a folder data set (DATA/train/CLASS/*.jpg and DATA/val); ``cifar10.py split`` makes HELD_OUT from it. Both
commands train what is missing, resume what was interrupted, and write results/cifar10_locality_search and
results/cifar10_locality. ``test`` takes its settings from the result of ``search``: for each network, with convs and
without, those of the highest held-out accuracy.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from cifar10 import IMAGES, RECIPE, train_loss
from common import HERE, mean_and_spread, options, table, write
from locality import accuracies

import repmlp
from repmlp.data import load_data
from repmlp.training import build_test_loader, evaluate

PLAIN, CONVS = "as it is", "convs in training, merged"
WAYS: dict[str, list[list[int]]] = {PLAIN: [[]], CONVS: [[1, 3], [1, 3, 5, 7]]}
LEARNING_RATES, DECAYS = (5e-3, 1e-2, 2e-2), (0.05, 0.2)
NETWORKS: dict[str, dict[str, Any]] = {
    "ResMLP, 64 tokens": {"model": "resmlp_6_32"},
    "gMLP, 64 tokens": {"model": "gmlp_6_32"},
    "ResMLP, 256 tokens": {"model": "resmlp_6_32", "model_args": {"patch_size": 2}},  # four times as slow
}
SEARCHED = {"ResMLP, 256 tokens": "ResMLP, 64 tokens"}  # whose settings a network takes, if not its own
EPOCHS = {"search": 20, "test": 60}
SEEDS = (0, 1, 2)
SHARED = {**RECIPE, "train_images": IMAGES, "opt": "adamw", "clip": 1.0}


def train(folder: Path, settings: dict[str, Any]) -> None:
    """One `repmlp train`; nothing if the run is finished."""
    if (folder / "test.json").is_file():
        return
    words = ["--resume", str(folder)]
    if not (folder / "state").is_dir():
        recipe = folder.with_suffix(".yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(yaml.safe_dump({**SHARED, **settings}))
        words = ["--config", str(recipe), *(["--overwrite"] if folder.exists() else []), str(folder)]
    subprocess.run([sys.executable, "-m", "repmlp_cli", "train", *words], check=True)


def search(data: Path, runs: Path) -> None:
    results: list[dict[str, Any]] = []
    for network, way in itertools.product([name for name in NETWORKS if name not in SEARCHED], WAYS):
        for kernels, lr, decay in itertools.product(WAYS[way], LEARNING_RATES, DECAYS):
            settings = {"locality": kernels, "lr": lr, "weight_decay": decay}
            name = f"{NETWORKS[network]['model']}-{''.join(map(str, kernels)) or 'plain'}-{lr:g}-{decay:g}"
            folder = runs / "search" / name.replace(".", "_")
            train(folder, {"data": f"folder:{data}", "epochs": EPOCHS["search"], **NETWORKS[network], **settings})
            accuracy = accuracies([folder])[0]
            results.append({"network": network, "way": way, **settings, "accuracy": accuracy})
    cells = [
        [r["network"], kernels_of(r), f"{r['lr']:g}", f"{r['weight_decay']:g}", f"{r['accuracy']:.2f}"] for r in results
    ]
    header = ["network", "convs", "learning rate", "weight decay", "held-out accuracy, %"]
    write("cifar10_locality_search", {"images": IMAGES, "epochs": EPOCHS["search"]}, results, table(header, cells))


def chosen(network: str, way: str) -> dict[str, Any]:
    """The settings of the search with the highest held-out accuracy."""
    file = HERE / "results" / "cifar10_locality_search.json"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: run the search first")
    results = json.loads(file.read_text())["results"]
    own = [r for r in results if r["network"] == SEARCHED.get(network, network) and r["way"] == way]
    best = max(own, key=lambda result: result["accuracy"])
    return {name: best[name] for name in ("locality", "lr", "weight_decay")}


def test(data: Path, runs: Path) -> None:
    folders = {
        (network, way): [
            runs / "test" / f"{network}-{way}-{seed}".replace(", ", "-").replace(" ", "_") for seed in SEEDS
        ]
        for network in NETWORKS
        for way in WAYS
    }
    for network, seed, way in itertools.product(NETWORKS, SEEDS, WAYS):
        settings = {**NETWORKS[network], **chosen(network, way), "seed": seed}
        train(folders[network, way][seed], {"data": f"folder:{data}", "epochs": EPOCHS["test"], **settings})
    results, cells = [], []
    for (network, way), own in folders.items():
        scores, plain = accuracies(own), accuracies(folders[network, PLAIN])
        result = {"network": network, "way": way, **chosen(network, way), "accuracy": scores}
        result["deploy_accuracy"] = scores if way == PLAIN else [deploy_accuracy(folder, data) for folder in own]
        result["train_loss"] = [train_loss(folder) for folder in own]
        result["gain"] = [a - b for a, b in zip(scores, plain, strict=True)]
        results.append(result)
        cells.append(
            [
                network,
                kernels_of(result),
                f"{result['lr']:g}, {result['weight_decay']:g}",
                mean_and_spread(scores),
                " / ".join(f"{score:.2f}" for score in scores),
                " / ".join(f"{score:.2f}" for score in result["deploy_accuracy"]),
                mean_and_spread(result["gain"]) if way != PLAIN else "",
                mean_and_spread(result["train_loss"]),
            ]
        )
    header = ["network", "convs", "learning rate, weight decay", "test accuracy, %", "by seed", "deploy form", "gain"]
    settings = {"images": IMAGES, "epochs": EPOCHS["test"]}
    write("cifar10_locality", settings, results, table([*header, "training loss"], cells))


def deploy_accuracy(folder: Path, data: Path) -> float:
    """On the test images, in percent."""
    model = repmlp.load_model(folder)
    loader = build_test_loader(model, load_data(f"folder:{data}"), batch_size=500)
    return 100 * evaluate(repmlp.reparameterize(model), loader, Accelerator(cpu=True)).accuracy


def kernels_of(result: dict[str, Any]) -> str:
    return ", ".join(f"{K}x{K}" for K in result["locality"]) or "none"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=["search", "test"])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    {"search": search, "test": test}[args.what](args.data.absolute(), args.runs)


if __name__ == "__main__":
    main()
