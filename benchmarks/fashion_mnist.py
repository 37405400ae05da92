"""The paper's pure MLP on Fashion-MNIST: results of a finished run of recipes/fashion_mnist_cpu.yaml, in both forms.

    repmlp train --config recipes/fashion_mnist_cpu.yaml --data_root data --download runs/fashion_mnist
    python benchmarks/fashion_mnist.py runs/fashion_mnist --data_root data

Counts correctly classified test images before and after conversion of the kept weights, in float32, and copies the
run's metrics.csv and curves.png next to the table.
"""

import csv
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from common import HERE, milliseconds, options, table, write

import repmlp
from repmlp.data import load_data
from repmlp.deploy import time_interleaved
from repmlp.training import build_test_loader


@torch.inference_mode()
def measure(run: Path, data_root: str | None, rounds: int) -> dict[str, Any]:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    model = repmlp.load_model(run)
    forms = {"training form": model, "deploy form": repmlp.reparameterize(model)}
    loader = build_test_loader(model, load_data(settings["data"], data_root), batch_size=128)
    correct, images, same = dict.fromkeys(forms, 0), 0, 0
    error = torch.zeros(())
    for x, labels in loader:
        logits = [network(x) for network in forms.values()]  # (N, classes)
        for form, own in zip(forms, logits, strict=True):
            correct[form] += int((own.argmax(1) == labels).sum())
        same += int((logits[0].argmax(1) == logits[1].argmax(1)).sum())
        error = torch.maximum(error, (logits[0] - logits[1]).abs().max() / logits[0].abs().max())
        images += len(labels)
    batch = next(iter(loader))[0]
    times = time_interleaved({form: partial(network, batch) for form, network in forms.items()}, rounds)
    with (run / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    return {
        "images": images,
        "same predictions": same,
        "largest relative error of a logit": error.item(),
        "epochs": len(epochs),
        "minutes of training": round(sum(float(row["seconds"]) for row in epochs) / 60, 1),
        "forms": {
            form: {
                "correct": correct[form],
                "params": repmlp.complexity(network).params,
                "macs": repmlp.complexity(network).macs,
                "ms": milliseconds(times[form]),
            }
            for form, network in forms.items()
        },
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data_root")
    parser.add_argument("--rounds", type=int, default=20, help="counted batches of each form, in turn")
    args = parser.parse_args()
    result = measure(args.run, args.data_root, args.rounds)
    rows = [
        [
            form,
            f"{own['correct'] / result['images']:.2%} ({own['correct']:,} of {result['images']:,})",
            f"{own['params']:,}",
            f"{own['macs']:,}",
            "{median:.1f} ({fastest:.1f} to {slowest:.1f})".format(**own["ms"]),
        ]
        for form, own in result["forms"].items()
    ]
    text = (
        f"{table(['', 'test accuracy', 'parameters', 'MACs per image', 'ms per batch of 128'], rows)}\n\n"
        f"{result['same predictions']:,} of {result['images']:,} predictions are the same; the largest error of a "
        f"logit is {result['largest relative error of a logit']:.1e} of the largest logit. "
        f"Trained for {result['epochs']} epochs in {result['minutes of training']} minutes. "
        "ms: median (range), both forms in turn.\n\n"
        "![Loss and accuracy over the epochs](fashion_mnist/curves.png)"
    )
    kept = HERE / "results" / "fashion_mnist"
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.csv", "curves.png"):
        shutil.copy(args.run / name, kept / name)
    settings = yaml.safe_load((args.run / "config.yaml").read_text())
    for where in ("output", "data_root"):  # of the machine, not of the run
        del settings[where]
    (kept / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    write("fashion_mnist", {"dtype": "float32", "warmup": 3, "rounds": args.rounds}, [result], text)


if __name__ == "__main__":
    main()
