"""Do convs in parallel with token-mixing FCs help on natural images? ResMLP and gMLP on 5,000 images of CIFAR-10.

    python benchmarks/cifar10_locality.py search HELD_OUT RUNS    # settings of each network, with convs and without
    python benchmarks/cifar10_locality.py test DATA RUNS          # each with the settings chosen for it, three seeds

DATA is a folder data set (DATA/train/CLASS/*.jpg and DATA/val); ``cifar10.py split`` makes HELD_OUT from it. Both
commands train what is missing, resume what was interrupted, and write results/cifar10_locality_search and
results/cifar10_locality, with each network whose runs are all finished; ``--network`` trains one network only.
Results of networks that are not in RUNS are kept as results/ has them.
``test`` takes its settings from the result of ``search``: for each network, with convs and without, those of the
highest held-out accuracy. If they differ, the network without convs is also trained with the settings of the convs.
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
CONTROL = "as it is, with the settings of the convs"
WAYS: dict[str, list[list[int]]] = {PLAIN: [[]], CONVS: [[1, 3], [1, 3, 5, 7]]}
LEARNING_RATES, DECAYS = (2e-3, 5e-3, 1e-2, 2e-2), (0.05, 0.2)
NETWORKS: dict[str, dict[str, Any]] = {
    "ResMLP, 64 tokens": {"model": "resmlp_6_32"},
    "gMLP, 64 tokens": {"model": "gmlp_6_32"},
    "ResMLP, 256 tokens": {"model": "resmlp_6_32", "model_args": {"patch_size": 2}},  # four times as slow
}
SEARCHED = {"ResMLP, 256 tokens": "ResMLP, 64 tokens"}  # whose settings a network takes, if not its own
EPOCHS = {"search": 20, "test": 60}
RESULTS = {"search": "cifar10_locality_search", "test": "cifar10_locality"}
SEEDS = (0, 1, 2)
SHARED = {**RECIPE, "train_images": IMAGES, "opt": "adamw", "clip": 1.0}


def settings_of(what: str) -> dict[str, Any]:
    return {"images": IMAGES, "epochs": EPOCHS[what]}


def with_those_of_before(what: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With what results/ already says of the other networks, if the settings are the same; in the order of NETWORKS."""
    file = HERE / "results" / f"{RESULTS[what]}.json"
    written = json.loads(file.read_text()) if file.exists() else {"about": {}, "results": []}
    if settings_of(what).items() <= written["about"].items():
        new = {result["network"] for result in results}
        results = results + [result for result in written["results"] if result["network"] not in new]
    return sorted(results, key=lambda result: [*NETWORKS].index(result["network"]))


def finished(folder: Path) -> bool:
    return (folder / "test.json").is_file()


def train(folder: Path, settings: dict[str, Any]) -> None:
    """One `repmlp train`; nothing if the run is finished. A run of other settings is refused."""
    recipe, settings = folder.with_suffix(".yaml"), {**SHARED, **settings}
    if folder.exists() and yaml.safe_load(recipe.read_text()) != settings:
        raise SystemExit(f"{folder} was trained with other settings, see {recipe}: delete it")
    if finished(folder):
        return
    words = ["--resume", str(folder)]
    if not (folder / "state").is_dir():
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(yaml.safe_dump(settings))
        words = ["--config", str(recipe), *(["--overwrite"] if folder.exists() else []), str(folder)]
    subprocess.run([sys.executable, "-m", "repmlp_cli", "train", *words], check=True)


def search_runs(network: str, runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Run folders of the search, and how each is to be trained."""
    found = []
    for way in WAYS:
        for kernels, lr, decay in itertools.product(WAYS[way], LEARNING_RATES, DECAYS):
            name = f"{NETWORKS[network]['model']}-{''.join(map(str, kernels)) or 'plain'}-{lr:g}-{decay:g}"
            settings = {"locality": kernels, "lr": lr, "weight_decay": decay}
            found.append((runs / "search" / name.replace(".", "_"), settings))
    return found


def search(networks: list[str], data: Path, runs: Path) -> None:
    searched = [network for network in NETWORKS if network not in SEARCHED]
    for network in (network for network in networks if network in searched):
        for folder, settings in search_runs(network, runs):
            train(folder, {"data": f"folder:{data}", "epochs": EPOCHS["search"], **NETWORKS[network], **settings})
    results = []
    for network in searched:
        own = search_runs(network, runs)
        if all(finished(folder) for folder, _ in own):
            results += [{"network": network, **how, "accuracy": accuracies([folder])[0]} for folder, how in own]
    results = with_those_of_before("search", results)
    cells = [
        [r["network"], kernels_of(r), f"{r['lr']:g}", f"{r['weight_decay']:g}", f"{r['accuracy']:.2f}"] for r in results
    ]
    header = ["network", "convs", "learning rate", "weight decay", "held-out accuracy, %"]
    write(RESULTS["search"], settings_of("search"), results, table(header, cells))


def ways_of(network: str) -> list[str]:
    """How a network is trained for the test."""
    optimizers = [{**chosen(network, way), "locality": []} for way in WAYS]
    return [*WAYS] if optimizers[0] == optimizers[1] else [*WAYS, CONTROL]


def chosen(network: str, way: str) -> dict[str, Any]:
    """The settings of the search with the highest held-out accuracy."""
    if way == CONTROL:
        return {**chosen(network, CONVS), "locality": []}
    file = HERE / "results" / f"{RESULTS['search']}.json"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: run the search first")
    results = json.loads(file.read_text())["results"]
    own = [r for r in results if r["network"] == SEARCHED.get(network, network) and r["locality"] in WAYS[way]]
    if not own:
        raise SystemExit(f"{file} has no settings for {network}: finish its search first")
    best = max(own, key=lambda result: result["accuracy"])
    return {name: best[name] for name in ("locality", "lr", "weight_decay")}


def test(networks: list[str], data: Path, runs: Path) -> None:
    folders = {
        (network, way): [
            runs / "test" / f"{network}-{way}-{seed}".replace(", ", "-").replace(" ", "_") for seed in SEEDS
        ]
        for network in NETWORKS
        for way in ways_of(network)
    }
    for (network, way), seed in itertools.product(folders, SEEDS):
        if network in networks:
            settings = {**NETWORKS[network], **chosen(network, way), "seed": seed}
            train(folders[network, way][seed], {"data": f"folder:{data}", "epochs": EPOCHS["test"], **settings})
    results = []
    for (network, way), own in folders.items():
        if not all(finished(folder) for w in ways_of(network) for folder in folders[network, w]):
            continue
        scores, plain = accuracies(own), accuracies(folders[network, PLAIN])
        result = {"network": network, "way": way, **chosen(network, way), "accuracy": scores}
        result["deploy_accuracy"] = scores if way != CONVS else [deploy_accuracy(folder, data) for folder in own]
        result["train_loss"] = [train_loss(folder) for folder in own]
        result["gain"] = [a - b for a, b in zip(scores, plain, strict=True)]
        results.append(result)
    results = with_those_of_before("test", results)
    cells = [
        [
            r["network"],
            kernels_of(r),
            f"{r['lr']:g}, {r['weight_decay']:g}",
            mean_and_spread(r["accuracy"]),
            " / ".join(f"{score:.2f}" for score in r["accuracy"]),
            " / ".join(f"{score:.2f}" for score in r["deploy_accuracy"]),
            mean_and_spread(r["gain"]) if r["way"] != PLAIN else "",
            mean_and_spread(r["train_loss"]),
        ]
        for r in results
    ]
    header = ["network", "convs", "learning rate, weight decay", "test accuracy, %", "by seed", "deploy form", "gain"]
    write(RESULTS["test"], settings_of("test"), results, table([*header, "training loss"], cells))


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
    parser.add_argument("--network", choices=NETWORKS, help="train this one only")
    args = parser.parse_args()
    networks = [args.network] if args.network else [*NETWORKS]
    {"search": search, "test": test}[args.what](networks, args.data.absolute(), args.runs)


if __name__ == "__main__":
    main()
