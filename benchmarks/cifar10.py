"""Weight decay on CIFAR-10, chosen on held-out training images, and what it gives on test images with few to train on.

    python benchmarks/cifar10.py split DATA HELD_OUT     # hard links: of each class, 500 training images become val
    python benchmarks/cifar10.py search HELD_OUT RUNS    # the pure MLP and row B at each weight decay
    python benchmarks/cifar10.py test DATA RUNS          # each at the weight decay chosen for it, B also at the other
    python benchmarks/cifar10.py curve DATA RUNS         # each at the weight decay chosen for it, fewer and more images
    python benchmarks/cifar10.py full DATA RUNS          # the same and the paper's other rows on all images, 20 epochs

DATA is a folder data set (DATA/train/CLASS/*.jpg and DATA/val), whose test images ``search`` does not read. It,
``test``, ``curve`` and ``full`` train what is missing, resume what was interrupted, and write results/cifar10_search
and so on; ``--table`` only writes, from the runs that are finished. Results of runs that are not in RUNS are kept as
results/ has them, since those may have been trained on another machine. The curve shares the runs of the test, and
draws docs/images/cifar10_curve.png; ``full`` draws cifar10_energy.png, if RUNS has both networks of seed 0.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from common import HERE, mean_and_spread, options, table, write
from locality import seconds_an_epoch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from repmlp import load_model
from repmlp.ablation import ROWS
from repmlp.plot import plot_energy
from repmlp.plot.ablation import COLORS
from repmlp.plot.saving import save_figure, style_axes

TITLES = {row.name: row.title for row in ROWS}
PAPER = {row.name: row.paper for row in ROWS}
DECAYS = ("1e-4", "5e-4", "2e-3")
CHOSEN = (("pure-mlp", "2e-3"), ("no-local", "5e-4"))
#: Trained on all images only, at the pure MLP's weight decay; none was chosen for them.
OTHERS = tuple((row, "2e-3") for row in ("no-global", "conv9-for-fc3", "conv9", "wide-convnet"))
IMAGES = 5000
ALL_IMAGES = 50000
#: How long, and the runs: row, weight decay, number of training images, seed.
STUDIES: dict[str, tuple[dict[str, int], list[tuple[str, str, int, int]]]] = {
    "search": ({"steps": 600}, [(row, decay, IMAGES, 0) for row, _ in CHOSEN for decay in DECAYS]),
    "test": ({"steps": 1500}, [(*run, IMAGES, seed) for seed in (0, 1) for run in (*CHOSEN, ("no-local", "2e-3"))]),
    "curve": ({"steps": 1500}, [(*run, n, seed) for seed in (0, 1) for n in (1000, IMAGES, 20000) for run in CHOSEN]),
    "full": (
        {"epochs": 20},
        [(*run, ALL_IMAGES, seed) for seed in (0, 1, 2) for run in CHOSEN]
        + [(*run, ALL_IMAGES, seed) for run in OTHERS for seed in (0, 1)],
    ),
}
PRECISIONS = {"full": "bf16"}  # the others, smaller, in float32
FOLDERS = {"search": "search", "test": "test", "curve": "test", "full": "full"}
IMAGES_OF_DOCS = Path(__file__).parents[1] / "docs" / "images"
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


def train(study: str, data: Path, runs: Path) -> None:
    length, rows = STUDIES[study]
    for row, decay, images, seed in rows:
        recipe = runs / f"{FOLDERS[study]}-{decay}.yaml"
        runs.mkdir(parents=True, exist_ok=True)
        settings = {**RECIPE, "data": f"folder:{data}", "weight_decay": float(decay)}
        settings["precision"] = PRECISIONS.get(study, "no")
        recipe.write_text(yaml.safe_dump(settings))
        flags: dict[str, object] = {"rows": row, "seeds": seed, **length}
        flags |= {} if images == ALL_IMAGES else {"images": images}
        command = ["ablate", recipe, recipe.with_suffix(""), *(f"--{name}={value}" for name, value in flags.items())]
        subprocess.run([sys.executable, "-m", "repmlp_cli", *map(str, command)], check=True)


def results(study: str, runs: Path) -> list[dict[str, Any]]:
    """What each finished run gave: accuracy of its last epoch in both forms, the training loss of that epoch, its time.

    For runs that are not in ``runs``, what results/ already says.
    """
    found, recorded = [], results_of_before(study)
    for row, decay, images, seed in STUDIES[study][1]:
        result: dict[str, Any] = {"row": row, "weight_decay": float(decay), "images": images, "seed": seed}
        file = converted_file(study, runs, row, decay, images, seed)
        if not file.exists():
            found += [before for before in recorded if result.items() <= before.items()]
            continue
        converted = json.loads(file.read_text())  # both forms in float32; test.json may be in bf16
        result["accuracy"] = converted["correct"]["training form"] / converted["images"]
        result["deploy_accuracy"] = converted["correct"]["deploy form"] / converted["images"]
        result["train_loss"] = train_loss(file.parent)
        machine = converted["machine"]
        if machine.get("device", "cpu") == "cpu":
            result["seconds_an_epoch"] = round(seconds_an_epoch(file.parent), 1)
        else:  # its seconds are not those of a CPU, nor of a GPU alone: several runs shared it
            result["device"] = machine["device"]
        found.append({**result, "cpu": machine["cpu"]})
    return found


def results_of_before(study: str) -> list[dict[str, Any]]:
    """The results that results/ already has, if the settings are the same; each with its CPU."""
    file = HERE / "results" / f"cifar10_{study}.json"
    if not file.exists():
        return []
    written = json.loads(file.read_text())
    if any(written["about"].get(key, value) != value for key, value in settings_of(study).items()):
        return []
    return [{"cpu": written["about"]["cpu"], **result} for result in written["results"]]


def settings_of(study: str) -> dict[str, Any]:
    settings: dict[str, Any] = {**STUDIES[study][0], "precision": PRECISIONS.get(study, "float32")}
    return settings | ({"held out": f"{HELD_OUT} training images of each class"} if study == "search" else {})


def run_folder(study: str, runs: Path, row: str, decay: str, images: int, seed: int) -> Path:
    folder = runs / f"{FOLDERS[study]}-{decay}"
    return (folder if images == ALL_IMAGES else folder / f"images-{images}") / row / f"seed-{seed}"


def converted_file(study: str, runs: Path, *run: Any) -> Path:
    """What the last step of a run writes."""
    return run_folder(study, runs, *run) / "converted.json"


def by_row(found: list[dict[str, Any]]) -> str:
    """A table of means and standard deviations over the seeds, and of the differences to the pure MLP, seed by seed."""
    groups: dict[tuple[int, str, float], list[dict[str, Any]]] = {}
    for result in found:
        groups.setdefault((result["images"], result["row"], result["weight_decay"]), []).append(result)
    pure = {(r["images"], r["seed"]): r["accuracy"] for r in found if r["row"] == "pure-mlp"}
    cells = []
    for (images, row, decay), own in groups.items():
        others = [r for r in own if row != "pure-mlp" and (images, r["seed"]) in pure]
        points = [100 * (r["accuracy"] - pure[images, r["seed"]]) for r in others]
        seconds = [r["seconds_an_epoch"] for r in own if "seconds_an_epoch" in r]
        cells.append(
            [
                f"{images:,}",
                TITLES[row],
                f"{decay:g}",
                f"{len(own)}",
                mean_and_spread([100 * r["accuracy"] for r in own]),
                mean_and_spread(points) if points else "",
                PAPER[row],
                mean_and_spread([r["train_loss"] for r in own]),
                f"{statistics.median(seconds):.0f}" if seconds else "",
            ]
        )
    header = ["images", "row", "weight decay", "n", "test accuracy, %", "points to pure MLP", "paper", "training loss"]
    return table([*header, "s/epoch"], cells)


def draw_curve(found: list[dict[str, Any]]) -> None:
    """Each row's accuracy against the number of images, a line through the means."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in dict(CHOSEN):
        scores: dict[int, list[float]] = {}
        for result in found:
            if result["row"] == row:
                scores.setdefault(result["images"], []).append(100 * result["accuracy"])
        numbers = sorted(scores)
        axes.plot(numbers, [statistics.mean(scores[n]) for n in numbers], color=COLORS[row], label=TITLES[row])
        for n in numbers:
            axes.plot([n] * len(scores[n]), scores[n], "o", color=COLORS[row], markersize=5, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{n:,}" for n in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="training images", ylabel="top-1 accuracy on the test images, %")
    axes.set_title(f"{STUDIES['curve'][0]['steps']:,} steps each; a point for each run", fontsize=9)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, IMAGES_OF_DOCS / "cifar10_curve.png")


def draw_energy(runs: Path) -> None:
    """How local FC3 of each row is."""
    files = {row: converted_file("full", runs, row, decay, ALL_IMAGES, 0) for row, decay in CHOSEN}
    if all(file.exists() for file in files.values()):
        models = {row: load_model(file.parent) for row, file in files.items()}
        plot_energy(models, IMAGES_OF_DOCS / "cifar10_energy.png", TITLES)


def train_loss(run: Path) -> float:
    """Of the last epoch."""
    with (run / "metrics.csv").open(newline="") as file:
        return float([*csv.DictReader(file)][-1]["train_loss"])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=["split", *STUDIES])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    if args.what == "split":
        split(args.data, args.output)
        return
    if not args.table:
        train(args.what, args.data.absolute(), args.output)
    found = results(args.what, args.output)
    if not any(converted_file(args.what, args.output, *run).exists() for run in STUDIES[args.what][1]):
        parser.error(f"{args.output} holds no finished run of {args.what}; train some first, without --table")
    cells = [
        [
            TITLES[r["row"]],
            f"{r['weight_decay']:g}",
            f"{r['images']:,}",
            f"{r['seed']}",
            f"{r['accuracy']:.2%}",
            f"{r['deploy_accuracy']:.2%}",
            f"{r['train_loss']:.3f}",
            r.get("device", r["cpu"]),
        ]
        for r in found
    ]
    which = "held-out" if args.what == "search" else "test"
    header = ["row", "weight decay", "images", "seed", f"{which} accuracy", "deploy form", "training loss", "machine"]
    tables = [table(header, cells)] if args.what == "search" else [by_row(found), table(header, cells)]
    write(f"cifar10_{args.what}", settings_of(args.what), found, "\n\n".join(tables))
    if args.what == "curve":
        draw_curve(found)
    if args.what == "full":
        draw_energy(args.output)


if __name__ == "__main__":
    main()
