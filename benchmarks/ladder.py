"""What makes the deployed Light network fast: changes added one by one, timed in one run, with the limit of each.

python benchmarks/ladder.py
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from common import milliseconds, options, table, write
from networks import with_conv_fc3
from torch import Tensor, nn

import repmlp
from repmlp.counting import complexity
from repmlp.deploy import time_interleaved


def reference() -> nn.Module:
    """ResNet-50 with every BN folded."""
    return repmlp.fold_norms(timm.create_model("resnet50"))


def ceilings(rounds: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """GFLOP/s of a large matrix product and GB/s of reading memory, on this machine."""
    a, b, big = torch.randn(2048, 4096, dtype=dtype), torch.randn(4096, 4096, dtype=dtype), torch.randn(2**26)
    times = time_interleaved({"product": lambda: a @ b, "sum": lambda: big.sum()}, rounds)
    return {
        "product GFLOP/s": round(2 * 2048 * 4096**2 / times["product"].median / 1e9, 1),
        "read GB/s": round(big.numel() * 4 / times["sum"].median / 1e9, 1),
    }


def convs_alone(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Every conv of a network on inputs of its own size, and nothing else: what the rest costs is the difference."""
    calls: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda m, args, y: calls.append((m, args[0].clone(memory_format=torch.preserve_format)))
        )
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(x)
    for handle in handles:
        handle.remove()

    def run() -> None:
        for module, argument in calls:
            module(argument)

    return run


@torch.no_grad()
def main() -> None:
    rounds = options(__doc__, rounds=9).parse_args().rounds
    torch.manual_seed(0)
    training = timm.create_model("repmlp_resnet50_light_g4").eval()
    deploy = repmlp.reparameterize(training)
    last = copy.deepcopy(deploy).to(memory_format=torch.channels_last)
    resnet = reference()
    resnet_last = copy.deepcopy(resnet).to(memory_format=torch.channels_last)
    limits = ceilings(rounds)
    results: list[dict[str, Any]] = []
    for batch in (1, 16):
        x = torch.randn(batch, 3, 224, 224)
        y = x.contiguous(memory_format=torch.channels_last)
        steps: dict[str, Callable[[], object]] = {
            "training form": partial(training, x),
            "deploy form, FC3 as a 1x1 conv with groups": partial(with_conv_fc3(deploy), x),
            "deploy form": partial(deploy, x),
            "deploy form, channels_last": partial(last, y),
            "of that, the convs": convs_alone(last, y),
            "deploy form, torch.compile": partial(torch.compile(copy.deepcopy(deploy), dynamic=False), x),
            "ResNet-50, BNs folded": partial(resnet, x),
            "ResNet-50, BNs folded, channels_last": partial(resnet_last, y),
        }
        times = time_interleaved(steps, rounds, warmup=2)
        results += [{"batch": batch, "step": name, **milliseconds(t)} for name, t in times.items()]
        count = complexity(deploy)
        results.append(
            {
                "batch": batch,
                "step": "bound: arithmetic",
                "median": 2 * count.macs * batch / limits["product GFLOP/s"] / 1e6,
            }
        )
        results.append(
            {
                "batch": batch,
                "step": "bound: reading the weights",
                "median": 4 * count.params / limits["read GB/s"] / 1e6,
            }
        )
    rows = [[str(r["batch"]), r["step"], f"{r['median']:.1f}"] for r in results]
    text = table(["batch", "repmlp_resnet50_light_g4, 224 px", "ms"], rows)
    write("ladder", {"dtype": "float32", "warmup": 2, "rounds": rounds, **limits}, results, text)


if __name__ == "__main__":
    main()
