"""Does a local prior in training help? ResMLP and gMLP on Fashion-MNIST, with and without, same budget, same seeds.

Each run is one `repmlp train` with recipes/fashion_mnist_vision_mlp.yaml. Without --run the commands of the missing
runs are printed; with --run they are executed, resuming interrupted ones. Once all runs are finished, the table is
written. Arguments that are not listed here are passed to every `repmlp train`.

    python benchmarks/locality.py runs/locality --run --data_root data
"""

import csv
import json
import shlex
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from accelerate.utils import set_seed
from common import HERE, mean_and_spread, milliseconds, options, table, write

import repmlp
from repmlp.conversion import example_inputs
from repmlp.deploy import time_interleaved
from repmlp.plot import plot_token_mixing

RECIPE = HERE.parent / "recipes" / "fashion_mnist_vision_mlp.yaml"
NETWORKS = ("resmlp_6_32", "gmlp_6_32")
WAYS = {"plain": "[]", "locality": "1,3"}
#: Settings that are not the budget of a run.
MAY_DIFFER = {"output", "model", "locality", "seed", "data_root", "download", "state_every", "overwrite", "resume"}


def command(folder: Path, network: str, way: str, seed: int, others: list[str]) -> list[str]:
    """The command that starts or resumes this run."""
    if (folder / "state").is_dir():
        return ["repmlp", "train", "--resume", str(folder)]
    words = [
        "repmlp",
        "train",
        "--config",
        str(RECIPE),
        "--model",
        network,
        "--locality",
        WAYS[way],
        "--seed",
        str(seed),
    ]
    return [*words, *others, *(["--overwrite"] if folder.exists() else []), str(folder)]


def settings_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def budget(folders: list[Path]) -> dict[str, Any]:
    """The time and settings of training, shared by all runs; an error if the settings differ."""
    each = [settings_of(folder) for folder in folders]
    shared = {key: value for key, value in each[0].items() if all(other[key] == value for other in each)}
    if differ := each[0].keys() - shared.keys() - MAY_DIFFER:
        raise SystemExit(f"these runs were not made with the same settings: they differ in {', '.join(sorted(differ))}")
    return {key: shared[key] for key in ("data", "epochs", "batch_size", "opt", "lr", "weight_decay")}


def accuracies(folders: list[Path]) -> list[float]:
    """On the test images, in percent."""
    return [100 * json.loads((folder / "test.json").read_text())["accuracy"] for folder in folders]


def seconds_an_epoch(folder: Path) -> float:
    with (folder / "metrics.csv").open(newline="") as file:
        return statistics.median(float(row["seconds"]) for row in csv.DictReader(file))


@torch.no_grad()
def compare(network: str, folders: dict[str, list[Path]], batch: int, rounds: int) -> dict[str, Any]:
    """Accuracy of both ways, and the cost of both deploy forms, which are the same network."""
    deploy = {}
    for way, runs in folders.items():
        model = repmlp.load_model(runs[0])
        deploy[way] = model if way == "plain" else repmlp.reparameterize(model)
        if way == "locality" and not (report := repmlp.verify(model, deploy[way])):
            raise SystemExit(f"{runs[0]}: the merged network is not equal\n{report}")
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in deploy.values()]
    counts = [repmlp.complexity(model) for model in deploy.values()]
    if shapes[0] != shapes[1] or counts[0] != counts[1]:
        raise SystemExit(f"{network}: the deploy forms are not the same network: {counts[0]} and {counts[1]}")
    x = example_inputs(deploy["plain"], batch)
    times = time_interleaved({way: partial(model, x) for way, model in deploy.items()}, rounds)
    measured = {way: accuracies(runs) for way, runs in folders.items()}
    gains = [b - a for a, b in zip(measured["plain"], measured["locality"], strict=True)]
    return {
        "network": network,
        "accuracy": {way: [round(value, 2) for value in values] for way, values in measured.items()},
        "gain": [round(gain, 2) for gain in gains],
        "params": counts[0].params,
        "macs": counts[0].macs,
        "relative error of the merge": report.network.native.relative,
        "ms": {way: milliseconds(timing) for way, timing in times.items()},
        "seconds an epoch": {way: round(seconds_an_epoch(runs[0]), 1) for way, runs in folders.items()},
    }


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            result["network"],
            {"plain": "as it is", "locality": "convs beside its FCs, merged"}[way],
            mean_and_spread(result["accuracy"][way]),
            " / ".join(f"{value:.2f}" for value in result["accuracy"][way]),
            "" if way == "plain" else mean_and_spread(result["gain"]),
            f"{result['params']:,}",
            f"{result['macs']:,}",
            "{median:.2f} ({fastest:.2f} to {slowest:.2f})".format(**result["ms"][way]),
        ]
        for way in WAYS
    ]


def draw(folder: Path, image: Path) -> None:
    """The picture of docs/locality.md, from a run with locality: its seed gives the weights that it started from."""
    settings, trained = settings_of(folder), repmlp.load_model(folder)
    set_seed(settings["seed"])
    initial = timm.create_model(settings["model"], in_chans=trained.in_chans, num_classes=trained.num_classes)
    image.parent.mkdir(parents=True, exist_ok=True)
    print(f"wrote {plot_token_mixing(initial, trained, image)}")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("runs", type=Path, help="folder of the run folders")
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128, help="images a call when the deploy forms are timed")
    parser.add_argument("--rounds", type=int, default=50, help="counted calls of each deploy form, in turn")
    parser.add_argument("--picture", type=Path, help="draw a row of the first network's FCs into this file")
    args, others = parser.parse_known_args()
    seeds = range(args.seeds)
    folders = {n: {way: [args.runs / f"{n}-{way}-{seed}" for seed in seeds] for way in WAYS} for n in NETWORKS}
    missing = [
        command(folders[network][way][seed], network, way, seed, others)
        for seed in seeds
        for network in NETWORKS
        for way in WAYS
        if not (folders[network][way][seed] / "test.json").is_file()
    ]
    for words in missing:
        print(shlex.join(words), flush=True)
        if args.run and (status := subprocess.run([sys.executable, "-m", "repmlp_cli", *words[1:]]).returncode):
            raise SystemExit(status)  # it has said why; the same command of this script goes on from there
    if missing and not args.run:
        raise SystemExit(f"{len(missing)} runs are missing: run these commands, or this script with --run")
    settings = budget([folder for ways in folders.values() for runs in ways.values() for folder in runs])
    results = [compare(network, runs, args.batch, args.rounds) for network, runs in folders.items()]
    header = ["network", "trained", "test accuracy, %", "by seed", "gain, paired", "parameters", "MACs", "ms per batch"]
    text = (
        f"Test accuracy on {settings['data']}, mean and standard deviation over {args.seeds} seeds, also of the gains. "
        f"Both are deployed as the same network; ms: median (range) of {args.batch} images, of both in turn.\n\n"
        f"{table(header, [row for result in results for row in rows_of(result)])}"
    )
    write("locality", {**settings, "warmup": 3, "rounds": args.rounds}, results, text)
    if args.picture:
        draw(folders[NETWORKS[0]]["locality"][0], args.picture)


if __name__ == "__main__":
    main()
