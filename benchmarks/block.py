"""Compare the block's two costly operations with those of the paper and the public code.

1. Merging the convs into FC3: our in-place injection against convolving an identity matrix.
2. FC3 itself: one batched matrix product against a 1x1 conv with groups, forward and backward.

    python benchmarks/block.py
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from common import milliseconds, options, table, write
from torch import Tensor

from repmlp.deploy import time_interleaved
from repmlp.functional import add_conv_to_linear_, grouped_linear


@dataclass(frozen=True)
class Shape:
    """C = O channels, h = w pixels of a partition, g groups, K sizes of the convs."""

    C: int
    h: int
    g: int
    kernel_sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"C={self.C}, h=w={self.h}, g={self.g}, K={'-'.join(map(str, self.kernel_sizes))}"


SHAPES = (
    Shape(16, 8, 2, (1, 3, 5, 7)),
    Shape(64, 8, 2, (1, 3, 5, 7)),
    Shape(64, 7, 8, (1, 3, 5)),
    Shape(128, 7, 8, (1, 3, 5)),
    Shape(64, 10, 4, (1, 3, 5, 7)),
    Shape(128, 10, 8, (1, 3, 5, 7)),
)
ROWS = (16, 256, 2048)


def convolve_identity(kernel: Tensor, size: int, groups: int) -> Tensor:
    """The paper's way (v1, section 3.4): the FC kernel is what the conv makes of an identity matrix, group by group."""
    O, C_g, K, _ = kernel.shape
    D = C_g * size * size
    identity = torch.eye(D, dtype=kernel.dtype).repeat(1, groups).view(D, C_g * groups, size, size)
    fc = F.conv2d(identity, kernel, padding=K // 2, groups=groups)  # (D, O, h, w)
    return fc.view(D, groups, O // groups * size * size).permute(1, 2, 0)  # (g, O/g*h*w, D)


def injection(shape: Shape, rounds: int) -> dict[str, Any]:
    kernels = [torch.randn(shape.C, shape.C // shape.g, K, K) for K in shape.kernel_sizes]
    D = shape.C // shape.g * shape.h**2
    weight = torch.randn(shape.g, D, D)

    def identity_trick(fc3: Tensor) -> Tensor:
        for kernel in kernels:
            fc3 = fc3 + convolve_identity(kernel, shape.h, shape.g)
        return fc3

    def in_place(fc3: Tensor) -> Tensor:
        for kernel in kernels:
            add_conv_to_linear_(fc3, kernel, (shape.h, shape.h), shape.g)
        return fc3

    bit_identical = torch.equal(identity_trick(weight), in_place(weight.clone()))
    scratch = weight.clone()
    times = time_interleaved(
        {"identity trick": lambda: identity_trick(weight), "in place": lambda: in_place(scratch)}, rounds
    )
    ratio = times["identity trick"].median / times["in place"].median
    return {
        "shape": str(shape),
        "identity trick": milliseconds(times["identity trick"]),
        "in place": milliseconds(times["in place"]),
        "ratio": round(ratio, 1),
        "bit identical": bit_identical,
    }


def grouped_fc(shape: Shape, rows: int, backward: bool, rounds: int) -> dict[str, Any]:
    D = shape.C * shape.h**2
    x = torch.randn(rows, D, requires_grad=backward)
    weight = torch.randn(shape.g, D // shape.g, D // shape.g, requires_grad=backward)
    up = torch.randn(rows, D)

    def product() -> Tensor:
        return grouped_linear(x, weight)

    def conv() -> Tensor:
        return F.conv2d(x.view(rows, D, 1, 1), weight.view(D, D // shape.g, 1, 1), groups=shape.g).view(rows, D)

    def run(forward) -> None:
        y = forward()
        if backward:
            torch.autograd.grad(y, (x, weight), up)

    difference = ((product() - conv()).norm() / conv().norm()).item()
    times = time_interleaved({"conv": lambda: run(conv), "product": lambda: run(product)}, rounds, warmup=2)
    flops = 2 * rows * D * D / shape.g * (3 if backward else 1)
    return {
        "shape": f"C={shape.C}, h=w={shape.h}, g={shape.g}",
        "rows": rows,
        "pass": "forward + backward" if backward else "forward",
        "1x1 conv": milliseconds(times["conv"]),
        "batched product": milliseconds(times["product"]),
        "ratio": round(times["conv"].median / times["product"].median, 2),
        "conv GFLOP/s": round(flops / times["conv"].median / 1e9),
        "product GFLOP/s": round(flops / times["product"].median / 1e9),
        "relative difference": difference,
    }


def ceiling(rounds: int) -> float:
    """GFLOP/s of one large matrix product on this machine."""
    a, b = torch.randn(2048, 4096), torch.randn(4096, 4096)
    seconds = time_interleaved({"product": lambda: a @ b}, rounds)["product"].median
    return 2 * 2048 * 4096 * 4096 / seconds / 1e9


@torch.no_grad()
def main() -> None:
    rounds = options(__doc__, rounds=9).parse_args().rounds
    torch.manual_seed(0)
    merged = [injection(shape, rounds) for shape in SHAPES]
    peak = ceiling(rounds)
    with torch.enable_grad():
        fc3 = [
            grouped_fc(shape, rows, backward, rounds) for rows in ROWS for backward in (False, True) for shape in SHAPES
        ]
    text = "\n\n".join(
        [
            "Merging the convs into FC3 (ms, median of all calls):",
            table(
                ["shape", "identity trick", "in place", "ratio", "bit-identical"],
                [
                    [
                        r["shape"],
                        f"{r['identity trick']['median']:.2f}",
                        f"{r['in place']['median']:.2f}",
                        f"{r['ratio']:.1f}",
                        "yes" if r["bit identical"] else "no",
                    ]
                    for r in merged
                ],
            ),
            f"FC3 (ms, median; a large matrix product runs at {peak:.0f} GFLOP/s here):",
            table(
                ["rows", "pass", "shape", "1x1 conv", "batched product", "ratio", "conv GFLOP/s", "product GFLOP/s"],
                [
                    [
                        str(r["rows"]),
                        r["pass"],
                        r["shape"],
                        f"{r['1x1 conv']['median']:.2f}",
                        f"{r['batched product']['median']:.2f}",
                        f"{r['ratio']:.2f}",
                        str(r["conv GFLOP/s"]),
                        str(r["product GFLOP/s"]),
                    ]
                    for r in fc3
                ],
            ),
        ]
    )
    settings = {"dtype": "float32", "warmup": 2, "rounds": rounds, "large product GFLOP/s": round(peak)}
    write("block", settings, [*merged, *fc3], text)


if __name__ == "__main__":
    main()
