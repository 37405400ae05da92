"""Compare whole networks with the public code: FC3 as a 1x1 conv with groups, conversion by convolving identities.

1. Inference: deploy form, training form, and the deploy form with FC3 as the authors ship it.
2. Conversion: reparameterize() against the identity trick, and the memory that each needs.
3. A training step of the CIFAR-10 network, FC3 as a batched product (and by moments) against a 1x1 conv.

    python benchmarks/networks.py
"""

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from block import convolve_identity
from common import milliseconds, options, table, write
from torch import Tensor, nn

import repmlp
from repmlp.deploy import time_interleaved
from repmlp.layers import GroupedLinear, RepMLP


class ConvFC3(nn.Module):
    """FC3 as in the public code: a 1x1 conv with groups on a 1x1 map."""

    def __init__(self, fc3: GroupedLinear) -> None:
        super().__init__()
        self.groups = fc3.groups
        self.weight = nn.Parameter(fc3.weight.detach().flatten(0, 1)[:, :, None, None].clone())
        self.bias = None if fc3.bias is None else nn.Parameter(fc3.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, None, None], self.weight, self.bias, groups=self.groups).flatten(1)


def with_conv_fc3(model: nn.Module) -> nn.Module:
    """A copy that computes FC3 as the public code does."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupedLinear):
                setattr(module, name, ConvFC3(child))
            if isinstance(child, RepMLP):
                child.batch_statistics = "branches"
    return model


def inference(name: str, batches: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    training = timm.create_model(name).eval()
    deploy = repmlp.reparameterize(training)
    forms = {"training form": training, "deploy form": deploy, "deploy form, conv FC3": with_conv_fc3(deploy)}
    results = []
    for batch in batches:
        x = torch.randn(batch, 3, 224, 224)
        outputs = [form(x) for form in forms.values()]
        assert all((y - outputs[0]).norm() < 1e-4 * outputs[0].norm() for y in outputs)
        times = time_interleaved({form: partial(m, x) for form, m in forms.items()}, rounds, warmup=2)
        results.append({"network": name, "batch": batch, **{form: milliseconds(t) for form, t in times.items()}})
    return results


def identity_conversion(model: nn.Module) -> None:
    """The merge of every block's convs as the paper does it, in float32: one convolved identity per kernel size."""
    for block in model.modules():
        if isinstance(block, RepMLP) and block.local_perceptron is not None:
            fc3: Tensor = block.partition_perceptron.fc3.weight.detach()
            branch: Any
            for branch in block.local_perceptron.branches.values():
                kernel, _ = branch.equivalent_conv()
                size, groups = block.partition_size[0], block.partition_perceptron.groups
                fc3 = fc3 + convolve_identity(kernel.to(fc3.dtype), size, groups)


def conversion(name: str, rounds: int) -> dict[str, Any]:
    model = timm.create_model(name).eval()
    copies = [copy.deepcopy(model) for _ in range(rounds + 1)]
    functions: dict[str, Callable[[], object]] = {
        "identity trick (merge of the convs only)": partial(identity_conversion, model),
        "reparameterize, whole network": lambda: repmlp.reparameterize(copies.pop(), inplace=True),
    }
    times = time_interleaved(functions, rounds, warmup=1)
    weights = sum(p.numel() * p.element_size() for p in repmlp.reparameterize(model).parameters())
    return {
        "network": name,
        **{key: milliseconds(t) for key, t in times.items()},
        "weights MiB": round(weights / 2**20),
        "extra memory of an in-place conversion MiB": extra_memory(name),
    }


def extra_memory(name: str) -> int:
    """How far the memory of a fresh process rises while it converts a network in place, at its peak, in MiB."""
    code = (
        f"import sys; sys.path.insert(0, {sys.path[0]!r}); import networks; print(networks.extra_memory_here({name!r}))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(child.stdout.split()[-1])


def extra_memory_here(name: str) -> int:
    model = timm.create_model(name).eval()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = peak()
    repmlp.reparameterize(model, inplace=True)
    return (peak() - before) // 1024


def peak() -> int:
    """Peak resident memory of this process in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def training_step(channels: tuple[int, ...], rounds: int, batch: int = 128) -> dict[str, Any]:
    auto = timm.create_model("repmlp_cifar", channels=channels).train()
    branches = copy.deepcopy(auto)
    for block in branches.modules():
        if isinstance(block, RepMLP):
            block.batch_statistics = "branches"
    models = {"1x1 conv FC3": with_conv_fc3(auto), "batched FC3": branches, "batched FC3, auto moments": auto}
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with torch.enable_grad():
            loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()

    steps = {n: partial(step, m, torch.optim.SGD(m.parameters(), 1e-3, 0.9)) for n, m in models.items()}
    times = time_interleaved(steps, rounds, warmup=1)
    return {"channels": channels, "batch": batch, **{name: milliseconds(t) for name, t in times.items()}}


def rows_of(results: list[dict[str, Any]], keys: list[str], first: str) -> list[list[str]]:
    """Labels as they are, timings as median ms with the ratio to the timing named ``first``."""
    rows = []
    for result in results:
        cells = []
        for key in keys:
            value = result[key]
            if isinstance(value, dict):
                ratio = value["median"] / result[first]["median"]
                cells.append(f"{value['median']:.0f}" + ("" if key == first else f" ({ratio:.2f}x)"))
            else:
                cells.append(str(value))
        rows.append(cells)
    return rows


@torch.no_grad()
def main() -> None:
    rounds = options(__doc__, rounds=9).parse_args().rounds
    torch.manual_seed(0)
    forms = [
        r
        for n, b in (("repmlp_resnet50_light_g4", (1, 16)), ("repmlpnet_b224", (1, 8)))
        for r in inference(n, b, rounds)
    ]
    converted = [conversion("repmlp_resnet50_light_g4", 3)]
    steps = [training_step(channels, rounds) for channels in ((16, 32, 64), (8, 16, 32))]
    tables = [
        ("Inference, ms per batch at 224 px, and as a multiple of the deploy form:", forms, "deploy form"),
        ("Conversion, ms:", converted, "reparameterize, whole network"),
        ("A training step of repmlp_cifar, ms, and as a multiple of the last:", steps, "batched FC3, auto moments"),
    ]
    text = "\n\n".join(
        f"{title}\n\n{table(list(results[0]), rows_of(results, list(results[0]), first))}"
        for title, results, first in tables
    )
    write("networks", {"dtype": "float32", "warmup": "1 to 2", "rounds": rounds}, [*forms, *converted, *steps], text)


if __name__ == "__main__":
    main()
