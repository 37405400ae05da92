"""FC3 of the Light network with few rows: ways to compute the same product, and the limit of each.

python benchmarks/orders.py
python benchmarks/orders.py --dtype bfloat16     # on a CPU with bf16 instructions
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import milliseconds, options, table, write
from torch import Tensor

from repmlp.deploy import time_interleaved

# rows, channels, g: the last stages of the Light network at batch 1 and more, h = w = 7
SHAPES = ((1, 128, 8), (4, 128, 4), (4, 128, 8), (16, 64, 4), (16, 64, 8), (64, 128, 4), (256, 64, 4))
LAYERS = 8  # as many weights, one after the other, so that none of them is in a cache


def ways(x: Tensor, weights: list[Tensor]) -> dict[str, Callable[[], list[Tensor]]]:
    """The same products, ordered and split differently; weights are (g, Q, I)."""
    M, (g, _, I) = x.shape[0], weights[0].shape
    rows = x.view(M, g, I)
    transposed = [weight.transpose(1, 2).contiguous() for weight in weights]
    single = [[group.contiguous() for group in weight] for weight in weights]
    linear = torch.ops.mkldnn._linear_pointwise  # oneDNN's own product: private, without gradients

    def per_group(product: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        parts = [part.contiguous() for part in rows.unbind(1)]
        return [torch.cat([product(p, w) for p, w in zip(parts, layer, strict=True)], 1) for layer in single]

    return {
        "weight @ x^T": lambda: [torch.bmm(w, rows.permute(1, 2, 0)).permute(2, 0, 1).reshape(M, -1) for w in weights],
        "x @ weight^T": lambda: [
            torch.bmm(rows.transpose(0, 1), w.transpose(1, 2)).transpose(0, 1).reshape(M, -1) for w in weights
        ],
        "x @ weight^T, stored transposed": lambda: [
            torch.bmm(rows.transpose(0, 1), w).transpose(0, 1).reshape(M, -1) for w in transposed
        ],
        "a linear per group": lambda: per_group(F.linear),
        "oneDNN's linear per group": lambda: per_group(lambda p, w: linear(p, w, None, "none", [], "")),
        "a 1x1 conv per group": lambda: per_group(
            lambda p, w: F.conv2d(p[:, :, None, None], w[:, :, None, None]).flatten(1)
        ),
    }


@torch.no_grad()
def main() -> None:
    parser = options(__doc__, rounds=9)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    rounds, dtype = args.rounds, getattr(torch, args.dtype)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[args.dtype]
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    for M, C, g in SHAPES:
        I = C // g * 49
        weights = [torch.randn(g, I, I, dtype=dtype) for _ in range(LAYERS)]
        alternatives = ways(torch.randn(M, g * I, dtype=dtype), weights)
        first = [way()[0] for way in alternatives.values()]
        assert all((y - first[0]).norm() < tolerance * first[0].norm() for y in first)
        for name, timing in time_interleaved(alternatives, rounds, warmup=2).items():
            numbers = LAYERS * g * I * I
            results.append(
                {
                    "rows": M,
                    "C": C,
                    "g": g,
                    "way": name,
                    **milliseconds(timing),
                    "weights GB/s": round(dtype.itemsize * numbers / timing.median / 1e9),
                    "GFLOP/s": round(2 * M * numbers / timing.median / 1e9),
                }
            )
    keys = ["rows", "C", "g", "way", "median", "weights GB/s", "GFLOP/s"]
    text = table([*keys[:4], f"ms, {LAYERS} layers", *keys[5:]], [[str(r[key]) for key in keys] for r in results])
    name = "orders" if dtype == torch.float32 else f"orders_{args.dtype}"
    write(name, {"dtype": args.dtype, "warmup": 2, "rounds": rounds}, results, text)


if __name__ == "__main__":
    main()
