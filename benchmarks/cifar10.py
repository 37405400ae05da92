"""Weight decay on CIFAR-10, chosen on held-out training images, for the pure MLP and for row B of the ablation.

    python benchmarks/cifar10.py split DATA HELD_OUT     # hard links: of each class, 500 training images become val
    python benchmarks/cifar10.py search HELD_OUT RUNS    # trains what is missing; interrupted runs are resumed

DATA is a folder data set (DATA/train/CLASS/*.jpg). The test images are not read. ``search`` writes
benchmarks/results/cifar10.md and .json; ``--table`` only does that, from the runs that are finished.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from common import options, table, write

DECAYS = ("1e-4", "5e-4", "2e-3")
ROWS = {"pure-mlp": "Pure MLP", "no-local": "B: no Local Perceptron"}
IMAGES, STEPS, SEED = 5000, 600, 0
HELD_OUT = 500  # images of each class
RECIPE: dict[str, Any] = {
    "model": "repmlp_cifar",
    "augment": "pad-crop",
    "crop_padding": 4,
    "hflip": 0.5,
    "val_fraction": 0.0,
    "batch_size": 128,
    "opt": "sgd",
    "lr": 0.2,
    "momentum": 0.9,
    "warmup_epochs": 1,
    "cpu": True,
}


def split(source: Path, target: Path) -> None:
    for label in sorted((source / "train").iterdir()):
        files = sorted(label.iterdir())
        for name, part in (("train", files[:-HELD_OUT]), ("val", files[-HELD_OUT:])):
            folder = target / name / label.name
            folder.mkdir(parents=True)
            for file in part:
                os.link(file, folder / file.name)


def train(data: Path, runs: Path) -> None:
    for row in ROWS:
        for decay in DECAYS:
            recipe = runs / f"wd{decay}.yaml"
            runs.mkdir(parents=True, exist_ok=True)
            recipe.write_text(yaml.safe_dump({**RECIPE, "data": f"folder:{data}", "weight_decay": float(decay)}))
            command = ["ablate", recipe, runs / f"search-{decay}", "--rows", row, "--images", IMAGES, "--steps", STEPS]
            subprocess.run([sys.executable, "-m", "repmlp_cli", *map(str, command), "--seeds", str(SEED)], check=True)


def results(runs: Path) -> list[dict[str, Any]]:
    """What each finished run gave: held-out accuracy of its last epoch, and the training loss of that epoch."""
    found = []
    for row in ROWS:
        for decay in DECAYS:
            run = runs / f"search-{decay}" / f"images-{IMAGES}" / row / f"seed-{SEED}"
            if not (run / "test.json").exists():
                continue
            accuracy = json.loads((run / "test.json").read_text())["accuracy"]
            with (run / "metrics.csv").open(newline="") as file:
                loss = float([*csv.DictReader(file)][-1]["train_loss"])
            found.append({"row": row, "weight_decay": float(decay), "accuracy": accuracy, "train_loss": loss})
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=["split", "search"])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    if args.what == "split":
        split(args.data, args.output)
        return
    if not args.table:
        train(args.data.absolute(), args.output)
    found = results(args.output)
    cells = [
        [ROWS[r["row"]], f"{r['weight_decay']:g}", f"{r['accuracy']:.2%}", f"{r['train_loss']:.3f}"] for r in found
    ]
    settings = {"images": IMAGES, "steps": STEPS, "seed": SEED, "held out": f"{HELD_OUT} training images of each class"}
    write("cifar10", settings, found, table(["row", "weight decay", "held-out accuracy", "training loss"], cells))


if __name__ == "__main__":
    main()
