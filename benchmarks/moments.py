"""A training step of a block: batch statistics from the branches' outputs, or from the moments of their input.

Forward and backward of blocks of the papers' networks by batch size, and the choice of ``batch_statistics="auto"``:
CHANNELS, OVERHEAD and BF16 in src/repmlp/layers/moments.py are fitted to these tables.

    python benchmarks/moments.py
    python benchmarks/moments.py --precision bf16
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common import add_precision, autocast, dtype_of, milliseconds, options, suffix, table, write

from repmlp import RepMLP
from repmlp.deploy import time_interleaved
from repmlp.layers.moments import prefer_moments


@dataclass(frozen=True)
class Shape:
    """C = O channels, H = W pixels of the feature map, h = w of a partition, g groups, K sizes of the convs."""

    C: int
    H: int
    h: int
    g: int
    kernel_sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"C={self.C}, {self.H} px, h=w={self.h}, g={self.g}, K={'-'.join(map(str, self.kernel_sizes))}"


SHAPES = (
    Shape(8, 32, 8, 2, (1, 3, 5, 7)),  # the pure MLP, half as wide
    Shape(16, 32, 8, 2, (1, 3, 5, 7)),  # the pure MLP
    Shape(16, 16, 8, 2, (1, 3, 5, 7)),
    Shape(32, 16, 8, 2, (1, 3, 5, 7)),
    Shape(32, 8, 8, 2, (1, 3, 5, 7)),
    Shape(32, 56, 7, 8, (1, 3, 5)),  # RepMLP-ResNet
    Shape(64, 28, 7, 8, (1, 3, 5)),
    Shape(64, 14, 7, 8, (1, 3, 5)),
    Shape(64, 24, 6, 4, (1, 3, 5)),  # the face network
)
BATCHES = (32, 128, 512)


def training_step(shape: Shape, batch: int, rounds: int, precision: str) -> dict[str, Any]:
    C, H, h, g = shape.C, shape.H, shape.h, shape.g
    block = RepMLP(C, C, H, h, shape.kernel_sizes, g, global_perceptron=False)  # the same both ways: left out
    dtype = dtype_of(precision)  # the previous layer's output has this dtype
    x, up = torch.randn(batch, C, H, H, dtype=dtype, requires_grad=True), torch.randn(batch, C, H, H, dtype=dtype)
    inputs = (x, *block.parameters())

    def step(batch_statistics: str) -> torch.Tensor:
        block.batch_statistics = batch_statistics
        with autocast(precision):
            y = block(x)
        torch.autograd.grad(y, inputs, up)
        return y.detach()

    expected = step("branches")
    difference = ((step("moments") - expected).norm() / expected.norm()).item()
    times = time_interleaved({way: partial(step, way) for way in ("branches", "moments")}, rounds, warmup=1)
    rows, features = batch * (H // h) ** 2, C // g * h * h
    pays = prefer_moments(rows, features, features, (h, h), [(K, K) for K in shape.kernel_sizes], dtype)
    return {
        "shape": str(shape),
        "batch": batch,
        "M": rows,
        "I": features,
        "branches": milliseconds(times["branches"]),
        "moments": milliseconds(times["moments"]),
        "ratio": round(times["branches"].median / times["moments"].median, 2),
        "auto": "moments" if pays else "branches",
        "relative difference": difference,
    }


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="images a step")
    add_precision(parser)
    args = parser.parse_args()
    torch.manual_seed(0)
    results = [training_step(shape, batch, args.rounds, args.precision) for shape in SHAPES for batch in args.batches]
    ways = ("branches", "moments")
    # What "auto" loses: its time over the better one's.
    losses = [r[r["auto"]]["median"] / min(r[way]["median"] for way in ways) for r in results]
    header = ["shape", "batch", "M", "I", "branches", "moments", "ratio", "auto", "right"]
    cells = [
        [
            *(str(r[key]) for key in ("shape", "batch", "M", "I")),
            *(f"{r[way]['median']:.1f}" for way in ways),
            f"{r['ratio']:.2f}",
            r["auto"],
            "yes" if loss == 1 else f"{loss:.2f} slower",
        ]
        for r, loss in zip(results, losses, strict=True)
    ]
    text = (
        "Forward and backward of a block in training (ms, median; ratio: branches over moments):\n\n"
        f"{table(header, cells)}\n\n"
        f"`auto` takes at most {max(losses):.2f} times as long as the better way, "
        f"{sum(losses) / len(losses):.2f} on average."
    )
    write(
        f"moments{suffix(args.precision)}",
        {"precision": args.precision, "warmup": 1, "rounds": args.rounds},
        results,
        text,
    )


if __name__ == "__main__":
    main()
