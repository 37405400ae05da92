"""What makes the training step of the CIFAR-10 network fast: changes added one by one, with the limit of arithmetic.

The pure MLP and row B of the ablation, forward, backward and SGD, batch 128. One of the changes is a setting of the
process, so each alternative has processes of its own, in turn:

    OMP_NUM_THREADS=1 python benchmarks/training_step.py
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --precision bf16
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common import add_precision, autocast, dtype_of, options, suffix, table, write
from ladder import ceilings

from repmlp import RepMLP
from repmlp.counting import complexity
from repmlp.layers import GroupedLinear, perceptrons
from repmlp_cli.train import keep_freed_memory

ROWS: dict[str, dict[str, Any]] = {"pure MLP": {}, "B: no Local Perceptron": {"kernel_sizes": ()}}
STEPS = (
    "FC3 as one batched product, convs in NCHW, one SGD kernel for each parameter",
    "one product for each group of FC3: BN gets contiguous rows",
    "Local Perceptron in channels_last, values and gradients",
    "SGD as one kernel",
    "freed memory is kept for the next step",
    "moments where `auto` chooses them",
)
BATCH = 128


def one_step(row: str, changes: int, precision: str) -> Callable[[], None]:
    """A training step with the first of the changes."""
    torch.manual_seed(0)
    model = timm.create_model("repmlp_cifar", **ROWS[row]).train()
    for module in model.modules():
        if isinstance(module, GroupedLinear) and changes < 1:
            module.few_groups = False
        if isinstance(module, RepMLP) and changes < 5:
            module.batch_statistics = "branches"
    if changes < 2:
        perceptrons.to_channels_last = lambda x, training: x
        perceptrons.to_contiguous = lambda y, training: y
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, fused=changes >= 3)
    if changes >= 4:
        keep_freed_memory()
    x, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], repeats: int) -> list[float]:
    step()  # warm-up
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def in_new_process(row: str, changes: int, precision: str, repeats: int) -> list[float]:
    code = (
        f"import sys; sys.path.insert(0, {sys.path[0]!r}); import training_step as t; "
        f"print(*t.seconds(t.one_step({row!r}, {changes}, {precision!r}), {repeats}))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(value) for value in child.stdout.split()]


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--repeats", type=int, default=3, help="counted steps of each process")
    add_precision(parser)
    arguments = parser.parse_args()
    times: dict[tuple[str, int], list[float]] = {(row, n): [] for row in ROWS for n in range(len(STEPS))}
    for _ in range(arguments.rounds):
        for row, changes in times:
            times[row, changes] += in_new_process(row, changes, arguments.precision, arguments.repeats)
    limits = ceilings(arguments.rounds, dtype_of(arguments.precision))
    results: list[dict[str, Any]] = []
    for row, model_args in ROWS.items():
        first = statistics.median(times[row, 0])
        for changes, name in enumerate(STEPS):
            median = statistics.median(of_this := times[row, changes])
            spread = {"fastest": round(min(of_this) * 1e3), "slowest": round(max(of_this) * 1e3)}
            ratio = round(median / first, 2)
            results.append({"row": row, "step": name, "median": round(median * 1e3), "ratio": ratio, **spread})
        macs = complexity(timm.create_model("repmlp_cifar", **model_args)).macs
        bound = 3 * 2 * macs * BATCH / limits["product GFLOP/s"] / 1e6  # forward, and two products backward
        ratio = round(bound / first / 1e3, 2)
        name = "bound: multiply-adds of all branches at the rate of a matrix product"
        results.append({"row": row, "step": name, "median": round(bound), "ratio": ratio})
    cells = [[r["row"], r["step"], str(r["median"]), f"{r['ratio']:.2f}"] for r in results]
    settings = {
        "precision": arguments.precision,
        "batch": BATCH,
        "rounds": arguments.rounds,
        "repeats": arguments.repeats,
    }
    text = table(["row", "each change on top of those before", "ms a step", "of the first"], cells)
    write(f"training_step{suffix(arguments.precision)}", {**settings, **limits}, results, text)


if __name__ == "__main__":
    main()
