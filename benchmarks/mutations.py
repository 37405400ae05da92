"""Is every error found, and every exact conversion accepted? Converted networks with and without random errors.

One number, row or norm of a converted model is changed at random: by 5% of the spread of its tensor or more, and by
more than the roundings that `verify` allows a number. `repmlp.verify` must reject the result with its defaults. If it
accepts one, random images of several scales are tried: if not a single bit of the outputs changes, no input reveals the
change. Exact conversions of randomized models must all be accepted; the table shows how far they are from the limit.

    python benchmarks/mutations.py --networks 300 --small 1700 --exact 500

Writes benchmarks/results/mutations.csv row by row, and continues where it was stopped; mutations.md sums it up.
"""

import copy
import csv
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common import HERE, options, table
from timm.models.byobnet import MobileOneBlock, RepVggBlock
from timm.models.fastvit import ReparamLargeKernelConv, RepMixer
from timm.models.resnet import BasicBlock, Bottleneck
from timm.utils import reparameterize_model
from torch import Tensor, nn

import repmlp
from repmlp.conversion.rounding import LIMIT
from repmlp.deploy.environment import machine
from repmlp.layers import ConvNorm, RepMLPv2

Model = tuple[nn.Module, Callable[[nn.Module], nn.Module], Any]  # training form, conversion, inputs
#: Smallest change, as a share of the tensor's standard deviation.
LEAST = 0.05
IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))  # for timm's networks
KINDS = ("sign", "zero the largest", "swap rows", "add a tenth", "drop a tap")
COLUMNS = {
    "part": "exact, networks or small",
    "number": "of the network, or seed of the block",
    "model": "its kind",
    "change": "what was changed; the dtype of an exact conversion",
    "where": "name of the tensor or norm",
    "outcome": "accepted or rejected; a change that is accepted is invisible or missed",
    "ratio": "of the first difference, or the largest of an exact conversion",
    "named": "the tensor or module that the report names",
}


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Weights and batch norms as far from fresh ones as training could move them; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
                assert m.running_var is not None
                m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=generator))
                m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) * 2 + 0.1)
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator))
                m.bias.copy_(torch.randn(m.bias.shape, generator=generator))
    return model.eval()


def train(model: nn.Module, images: Tensor, steps: int = 20) -> nn.Module:
    """A few steps on images with random labels: weights and statistics that belong together."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        x = torch.randn(32, *images.shape[1:], generator=generator)
        labels = torch.randint(0, 10, (len(x),), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval()


# Models


def networks() -> dict[str, Callable[[], Model]]:
    """Small networks of this package, trained and randomized, and of timm, randomized."""
    ours: dict[str, tuple[str, dict[str, Any]]] = {
        "v1": ("repmlp_cifar", {"img_size": 32, "channels": (4, 8), "partition_size": 8, "kernel_sizes": (1, 3)}),
        "v1, ResNet": (
            "repmlp_resnet50",
            {
                "layers": (1, 2, 2, 1),
                "channels": (8, 16, 32, 64),
                "channel_reduction": 2,
                "img_size": 32,
                "partition_size": 2,
                "kernel_sizes": (1,),
            },
        ),
        "v2": (
            "repmlpnet_t224",
            {
                "channels": (8, 16, 32, 32),
                "depths": (1, 1, 1, 1),
                "share_sets": (1, 4, 8, 16),
                "img_size": 32,
                "partition_sizes": (4, 2, 1, 1),
                "kernel_sizes": (1,),
            },
        ),
        "ResMLP with locality": ("resmlp_6_32", {"num_blocks": 2, "embed_dim": 32}),
    }
    thin: dict[str, dict[str, Any]] = {
        "test_resnet": {},
        "test_efficientnet": {},
        "test_byobnet": {},
        "repvit_m0_9": {"embed_dim": (16, 24, 32, 32), "depth": (1, 1, 1, 1)},
        "levit_128s": {"img_size": 64, "embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)},
    }
    return {
        **{f"{n}, trained": partial(build_ours, *about, trained=True) for n, about in ours.items()},
        **{f"{n}, randomized": partial(build_ours, *about, trained=False) for n, about in ours.items()},
        **{f"{n}, randomized": partial(build_timm, n, arguments) for n, arguments in thin.items()},
    }


def build_ours(architecture: str, arguments: dict[str, Any], trained: bool) -> Model:
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=10, **arguments)
    if architecture.startswith("resmlp"):
        repmlp.inject_locality(model)
    return (train(model, x) if trained else randomize(model, 0)), convert, x


def build_timm(architecture: str, arguments: dict[str, Any]) -> Model:
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=10, **arguments)
    return randomize(model, 0), convert_and_fold, IMAGES


def small(seed: int) -> tuple[str, Model]:
    """A block of a random kind and size."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    g = draw.choice((1, 2))
    C, O = g * draw.randint(1, 4), g * draw.randint(1, 4)
    h, w = draw.choice((2, 3, 4)), draw.choice((2, 3, 4))
    kernels = draw.sample([1, (1, min(3, w - (w + 1) % 2)), *([3] if min(h, w) >= 3 else [])], draw.randint(0, 2))
    H, W = h * draw.randint(1, 2), w * draw.randint(1, 2)
    c = 2 * draw.randint(2, 5)
    kinds: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
        "RepMLP": lambda: (repmlp.RepMLP(C, O, (H, W), (h, w), _unique(kernels), g), (C, H, W)),
        "RepMLPv2": lambda: (RepMLPv2(4 * g, (h, w), _unique(kernels), share_sets=g), (4 * g, H, W)),
        "ConvNorm, act, ConvNorm": lambda: (
            nn.Sequential(ConvNorm(C, O, 3), nn.GELU(), ConvNorm(O, C, 1)),
            (C, 5, 6),
        ),
        "FC over tokens": lambda: (
            repmlp.inject_locality(nn.Sequential(nn.Linear(H * W, H * W)), (1,), "0", (H, W)),
            (c, H * W),
        ),
        "timm RepVggBlock": lambda: (RepVggBlock(c, c, 3), (c, 6, 6)),
        "timm MobileOneBlock": lambda: (MobileOneBlock(c, c, 3, num_conv_branches=2), (c, 6, 6)),
        "timm RepMixer": lambda: (RepMixer(c, 3), (c, 6, 6)),
        "timm ReparamLargeKernelConv": lambda: (ReparamLargeKernelConv(c, c, 5, 1, c, small_kernel=3), (c, 6, 6)),
        "timm BasicBlock, folded": lambda: (nn.Sequential(BasicBlock(c, c)), (c, 6, 6)),
        "timm Bottleneck, folded": lambda: (nn.Sequential(Bottleneck(4 * c, c)), (4 * c, 4, 4)),
    }
    kind = draw.choice(list(kinds))
    model, size = kinds[kind]()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, *size, generator=generator)
    how = (lambda m: repmlp.fold_norms(m, x)) if "folded" in kind else convert
    return kind, (randomize(model, seed), how, x)


def _unique(kernels: list) -> list:
    return list({k if isinstance(k, tuple) else (k, k): k for k in kernels}.values())


def convert(model: nn.Module) -> nn.Module:
    return repmlp.reparameterize(model)


def convert_natively(model: nn.Module) -> nn.Module:
    """With timm's own function, which merges in the dtype of the weights."""
    (converted,) = reparameterize_model(nn.Sequential(model)).children()
    return converted


def convert_and_fold(model: nn.Module) -> nn.Module:
    forms = repmlp.conversion.iter_reparameterizable(model)
    return repmlp.fold_norms(repmlp.reparameterize(model) if any(True for _ in forms) else model, IMAGES)


# Changes


def mutate(model: nn.Module, deploy: nn.Module, how: Callable, draw: random.Random) -> tuple[nn.Module, str, str]:
    """The converted model with one random change: what it is, and where."""
    if draw.random() < 0.15:
        norms = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms:
            name = draw.choice(norms)
            without: Any = copy.deepcopy(model)
            norm = without.get_submodule(name)
            with torch.no_grad():
                norm.weight.copy_(torch.sqrt(torch.ones_like(norm.weight) + norm.eps))
                norm.bias.zero_(), norm.running_mean.zero_(), norm.running_var.fill_(1)
            return how(without), "norm not folded", name
    changed = copy.deepcopy(deploy)
    names = [n for n, t in changed.state_dict().items() if t.is_floating_point() and t.numel() > 1]
    while True:
        name, kind = (
            draw.choice(names),
            draw.choice(KINDS),
        )
        tensor = changed.state_dict()[name]  # shares memory with the model
        flat, spread = tensor.view(-1), tensor.std().item()
        before = tensor.clone()
        if kind == "swap rows" and len(tensor) > 1:
            i, j = draw.sample(range(len(tensor)), 2)
            tensor[[i, j]] = before[[j, i]]
        elif kind == "drop a tap" and tensor.dim() == 4 and tensor[0, 0].numel() > 1:
            tensor[:, :, draw.randrange(tensor.shape[2]), draw.randrange(tensor.shape[3])][
                draw.randrange(len(tensor))
            ] = 0
        elif kind not in ("swap rows", "drop a tap"):
            i = int(flat.abs().argmax()) if kind == "zero the largest" else draw.randrange(len(flat))
            flat[i] = {"sign": -flat[i], "zero the largest": 0.0, "add a tenth": flat[i] + 0.1 * spread}[kind]
        change = (tensor - before).abs()
        rounding = LIMIT * torch.finfo(tensor.dtype).eps * torch.maximum(tensor.abs(), before.abs())
        if change.max() >= LEAST * spread > 0 and (change > rounding).any():
            return changed, kind, name
        tensor.copy_(before)


@torch.no_grad()
def is_visible(deploy: nn.Module, changed: nn.Module, x: Tensor) -> bool:
    """Whether any of 512 random images of several scales gives another output, in float64, by a single bit."""
    a, b = copy.deepcopy(deploy).double(), copy.deepcopy(changed).double()
    generator = torch.Generator().manual_seed(1)
    for i in range(64):
        images = torch.randn(8, *x.shape[1:], generator=generator, dtype=torch.float64) * 4.0 ** (i % 5 - 2)
        if not torch.equal(a(images), b(images)):
            return True
    return False


def run_mutations(name: str, model: Model, count: int, seed: int) -> list[dict[str, Any]]:
    """Change the converted model ``count`` times, and see what ``verify`` says of each change."""
    reference, how, x = model
    deploy = how(reference)
    assert repmlp.verify(reference, deploy, x), f"{name}: an exact conversion is rejected"
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        changed, change, where = mutate(reference, deploy, how, draw)
        first = repmlp.verify(reference, changed, x).first_difference
        row = {"model": name, "change": change, "where": where}
        if first is None:
            row["outcome"] = "missed" if is_visible(deploy, changed, x) else "invisible"
        else:
            row |= {"outcome": "rejected", "ratio": f"{first.ratio:.3g}", "named": first.tensor or first.name}
        rows.append(row)
    return rows


def run_exact(number: int) -> list[dict[str, Any]]:
    """One exact conversion of a randomized block, or network in each 25th case; the dtypes take turns."""
    dtype = (torch.float64, torch.float32, torch.bfloat16, torch.float16)[number % 4]
    if number % 25 == 0:
        builders = networks()
        kind = list(builders)[(number // 25) % len(builders)]
        model, how, x = builders[kind]()
        model, dtype = randomize(model, number), dtype if dtype == torch.float64 else torch.float32
    else:
        kind, (model, how, x) = small(1_000_000 + number)
    model, x = model.to(dtype), x.to(dtype)
    native = kind.startswith("timm") and "folded" not in kind and number % 8 < 4
    report = repmlp.verify(model, convert_natively(model) if native else how(model), x)
    ratio = max(row.ratio for row in (*report.blocks, report.network))
    arithmetic = f"{str(dtype)[6:]}, merged in {'that dtype by timm' if native else 'float64'}"
    outcome = "accepted" if report else "rejected"
    return [{"model": kind, "change": arithmetic, "outcome": outcome, "ratio": f"{ratio:.3g}"}]


def summary(rows: list[Mapping[str, Any]]) -> str:
    parts = []
    for part in ("networks", "small"):
        outcomes: dict[str, Counter] = defaultdict(Counter)
        for row in rows:
            if row["part"] == part:
                outcomes[row["model"]][row["outcome"]] += 1
        outcomes["all"] = sum(outcomes.values(), Counter())
        columns = ("rejected", "invisible", "missed")
        lines = [[name, *(str(counts[column]) for column in columns)] for name, counts in sorted(outcomes.items())]
        parts.append(table([f"changes in {part}" if part == "networks" else "changes in blocks", *columns], lines))
    changes = [row for row in rows if row["part"] != "exact"]
    kinds = Counter(row["change"] for row in changes)
    parts.append(table(["change", "number"], [[kind, str(number)] for kind, number in sorted(kinds.items())]))
    ratios = sorted(float(row["ratio"]) for row in changes if row["outcome"] == "rejected")
    if ratios:
        parts.append(
            f"Smallest ratio of a rejected change: {ratios[0]:.3g}; median {ratios[len(ratios) // 2]:.3g}; "
            f"the limit is {LIMIT:g}."
        )
    exact = [row for row in rows if row["part"] == "exact"]
    lines = []
    for dtype in (*sorted({row["change"] for row in exact}), "all"):
        of_dtype = [row for row in exact if dtype in (row["change"], "all")]
        ratios = sorted(float(row["ratio"]) for row in of_dtype)
        accepted = sum(row["outcome"] == "accepted" for row in of_dtype)
        at = [ratios[len(ratios) // 2], ratios[int(len(ratios) * 0.99)], ratios[-1]] if ratios else []
        lines.append([dtype, str(len(ratios)), str(accepted), *(f"{ratio:.3g}" for ratio in at)])
    parts.append(table(["exact conversions in", "number", "accepted", "median", "99%", "largest ratio"], lines))
    return "\n\n".join(parts)


def tasks(exact: int, in_networks: int, in_blocks: int) -> Iterator[tuple[str, int, Callable[[], list]]]:
    """All there is to run: the part, the number, and a function that returns rows."""
    for number in range(exact):
        yield "exact", number, partial(run_exact, number)
    builders = networks()
    for number, (name, build) in enumerate(builders.items()):
        count = in_networks // len(builders) + (number < in_networks % len(builders))
        yield "networks", number, partial(run_network, name, build, count, number)
    for number in range(-(-in_blocks // 4)):
        yield "small", number, partial(run_block, min(4, in_blocks - 4 * number), number)


def run_network(name: str, build: Callable[[], Model], count: int, seed: int) -> list[dict[str, Any]]:
    return run_mutations(name, build(), count, seed)


def run_block(count: int, seed: int) -> list[dict[str, Any]]:
    return run_mutations(*small(seed), count, seed)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--networks", type=int, default=300, help="changes in networks")
    parser.add_argument("--small", type=int, default=1700, help="changes in single blocks")
    parser.add_argument("--exact", type=int, default=500, help="exact conversions")
    parser.add_argument("--name", default="mutations", help="of the files in results/")
    args = parser.parse_args()
    file = HERE / "results" / f"{args.name}.csv"
    rows: list[Mapping[str, Any]] = list(csv.DictReader(file.open())) if file.exists() else []
    done = {(row["part"], int(row["number"])) for row in rows}
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for part, number, run in tasks(args.exact, args.networks, args.small):
            if (part, number) not in done:
                new = [{"part": part, "number": number, **row} for row in run()]
                writer.writerows(new)
                stream.flush()
                rows += new
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    text = f"Made by `python benchmarks/{args.name}.py`: {about}.\n\n{summary(rows)}\n"
    file.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
