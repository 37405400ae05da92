"""What a GPU changes: both forms of FC3, layouts, moments, precisions, `--compile`, and Light against ResNet-50.

    python benchmarks/gpu.py

Alternatives are timed in turn; the GPU is waited for before and after each call. First it checks, in float64 and in
TF32, that both forms of a block and both ways of a training step agree on the GPU, and that `verify` sees a difference.
"""

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common import milliseconds, options, table, write
from torch import nn
from training_step import ROWS

from repmlp import RepMLP, fold_norms, reparameterize, verify
from repmlp.deploy import time_interleaved
from repmlp.layers import GroupedLinear, perceptrons

#: dtype of autocast, and whether float32 products and convs may be rounded to 10 bits.
PRECISIONS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
#: rows, g, inputs and outputs of a group: the stages of the pure MLP and of Light at batch 128
FC3 = ((2048, 2, 512), (512, 2, 1024), (128, 2, 2048), (2048, 8, 392), (512, 8, 784))
BATCH = 128
Ways = Mapping[str, Callable[[], object]]


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    dtype, tf32 = PRECISIONS[name]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def timed(what: str, ways: Ways, rounds: int, **about: Any) -> list[dict[str, Any]]:
    """One result for each way, with its time as a share of the first one's."""

    def waiting(way: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            torch.cuda.synchronize()
            way()
            torch.cuda.synchronize()

        return call

    times = time_interleaved({name: waiting(way) for name, way in ways.items()}, rounds, warmup=3)
    first = next(iter(times.values())).median
    results = [
        {"table": what, **about, "way": name, **milliseconds(t), "ratio": round(t.median / first, 2)}
        for name, t in times.items()
    ]
    for result in results:
        print(*result.values(), flush=True)
    return results


def checks() -> list[str]:
    """Statements that hold on this GPU; AssertionError for one that does not."""
    torch.manual_seed(0)
    block: Any = randomized(RepMLP(16, 16, 32, 8, (1, 3, 5, 7), 2)).double().cuda()
    x = torch.randn(64, 16, 32, 32, dtype=torch.float64, device="cuda", requires_grad=True)
    inputs, ways = (x, *block.parameters()), {}
    for way in ("branches", "moments"):
        block.batch_statistics = way
        ways[way] = [y := block.train()(x), *torch.autograd.grad(y.square().sum(), inputs)]
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(ways["moments"], ways["branches"], strict=True))
    assert error < 1e-10, error
    lines = [f"Branches and moments: outputs and gradients differ by {error:.0e} of their norm in float64."]
    with torch.no_grad():
        expected, merged = block.eval()(x), reparameterize(block)(x)
    error = ((merged - expected).norm() / expected.norm()).item()
    assert error < 1e-12, error
    lines.append(f"Both forms of a block differ by {error:.0e} in float64.")
    for name in ("float32", "TF32"):
        model = randomized(timm.create_model("repmlp_cifar")).cuda().eval()
        converted = reparameterize(model)
        wrong = copy.deepcopy(converted)
        block = next(m for m in wrong.modules() if isinstance(m, GroupedLinear))
        with torch.no_grad():
            block.weight[0, 0, 0] += 1e-3
        with precision(name):
            x = torch.randn(8, 3, 32, 32, device="cuda")
            equal, differs = verify(model, converted, x), verify(model, wrong, x)
        assert equal, (name, str(equal))
        assert not differs, (name, str(differs))
        lines.append(f"`verify` in {name}: accepts the deploy form, rejects it with one weight off by 1e-3.")
    return lines


def randomized(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            state = module.state_dict()
            for name in ("weight", "running_var"):
                nn.init.uniform_(state[name], 0.5, 1.5)
            for name in ("bias", "running_mean"):
                nn.init.normal_(state[name])
    return model


def fc3(rounds: int) -> list[dict[str, Any]]:
    """FC3 and its BN in training, forward and backward, ten times in a call: launching one takes as long as running."""
    results = []
    for name, (M, g, I) in itertools.product(("float32", "TF32", "bf16"), FC3):
        layer, norm = GroupedLinear(g * I, g * I, g, bias=False).cuda(), nn.BatchNorm1d(g * I).cuda()
        x = torch.randn(M, g * I, device="cuda", dtype=PRECISIONS[name][0], requires_grad=True)
        up, inputs = torch.randn_like(x), (x, layer.weight, norm.weight, norm.bias)

        def step(few_groups: bool, layer=layer, norm=norm, x=x, up=up, inputs=inputs, name=name) -> None:
            layer.few_groups = few_groups
            for _ in range(10):
                with precision(name):
                    y = norm(layer(x))
                torch.autograd.grad(y, inputs, up.to(y.dtype))

        ways: Ways = {"one batched product": lambda s=step: s(False), "a product per group": lambda s=step: s(True)}  # type: ignore[misc]
        results += timed("FC3 and BN, 10 steps", ways, rounds, precision=name, rows=M, g=g, I=I)
    return results


def training(network: str, name: str, arguments: dict[str, Any], size: int, ways: dict[str, dict[str, Any]]) -> Ways:
    """Whole steps of training, by the changes to what the package does on a GPU without being asked."""

    def one(
        groups: bool | None = None,
        statistics: str = "auto",
        inner_channels_last: bool = False,
        channels_last: bool = False,
        compile: bool = False,
        precision_name: str = name,
    ) -> Callable[[], None]:
        torch.manual_seed(0)
        model = timm.create_model(network, **arguments).cuda().train()
        for module in model.modules():
            if isinstance(module, GroupedLinear) and groups is not None:
                module.few_groups = groups
            if isinstance(module, RepMLP):
                module.batch_statistics = statistics
        x, labels = torch.randn(BATCH, 3, size, size, device="cuda"), torch.randint(10, (BATCH,), device="cuda")
        if channels_last:
            model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, fused=True)
        scaler = torch.amp.GradScaler(enabled=precision_name == "fp16")
        network_ = torch.compile(model) if compile else model

        def step() -> None:
            optimizer.zero_grad()
            with layouts(inner_channels_last):
                with precision(precision_name):
                    loss = F.cross_entropy(network_(x), labels)
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    return {way: one(**changes) for way, changes in ways.items()}


@contextlib.contextmanager
def layouts(inner_channels_last: bool) -> Iterator[None]:
    """Let the Local Perceptron train in channels_last on the GPU too."""
    kept = perceptrons.to_channels_last, perceptrons.to_contiguous
    change = perceptrons._ChangeLayout.apply
    if inner_channels_last:
        perceptrons.to_channels_last = lambda x, training: change(x, torch.channels_last, torch.contiguous_format)
        perceptrons.to_contiguous = lambda y, training: change(y, torch.contiguous_format, torch.channels_last)
    try:
        yield
    finally:
        perceptrons.to_channels_last, perceptrons.to_contiguous = kept


WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "FC3 batched": {"groups": False},
    "Local Perceptron in channels_last": {"inner_channels_last": True},
    "moments": {"statistics": "moments"},
    "channels_last": {"channels_last": True},
}


def training_steps(rounds: int) -> list[dict[str, Any]]:
    results = []
    for name in ("float32", "TF32", "bf16"):
        for row, arguments in ROWS.items():
            ways = training("repmlp_cifar", name, arguments, 32, WAYS)
            results += timed("training step", ways, rounds, network=row, precision=name)
        ways = training("repmlp_resnet50_light", name, {}, 224, WAYS)
        results += timed("training step", ways, max(3, rounds // 4), network="Light (g=8)", precision=name)
        torch.cuda.empty_cache()
    across: dict[str, dict[str, Any]] = {name: {"precision_name": name} for name in PRECISIONS}
    for network, size in (("repmlp_cifar", 32), ("repmlp_resnet50_light", 224), ("resnet50", 224)):
        ways = training(network, "float32", {}, size, across)
        results += timed("training step by precision", ways, max(3, rounds // 4), network=network)
    return results


@torch.no_grad()
def inference(rounds: int) -> list[dict[str, Any]]:
    """Light against ResNet-50 with folded BNs: each call launched as usual, and replayed as one CUDA graph."""
    torch.manual_seed(0)
    light, resnet = timm.create_model("repmlp_resnet50_light").eval(), timm.create_model("resnet50").eval()
    networks = {"ResNet-50": fold_norms(resnet), "Light, training form": light, "Light": reparameterize(light)}
    results = []
    for name, batch in itertools.product(PRECISIONS, (1, 16, 128)):
        dtype = PRECISIONS[name][0]
        x = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        eager, graphs = {}, {}
        with precision("TF32" if name == "TF32" else "float32"):
            for key, network in networks.items():
                model = copy.deepcopy(network).to("cuda", dtype).to(memory_format=torch.channels_last)
                eager[key] = lambda model=model: model(x)  # noqa: B023  (called within the loop)
                graphs[key] = as_graph(eager[key])
            about = {"precision": name, "batch": batch}
            results += timed("inference, launched one by one", eager, rounds, **about)
            results += timed("inference, one CUDA graph", graphs, rounds, **about)
    return results


def as_graph(call: Callable[[], object]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compiled(rounds: int) -> list[dict[str, Any]]:
    results = []
    for network, size in (("repmlp_cifar", 32), ("repmlp_resnet50_light", 224)):
        changes = {"as it is": {}, "compiled": {"compile": True}}
        ways = training(network, "bf16", {}, size, changes)
        start = time.perf_counter()
        ways["compiled"]()
        seconds = round(time.perf_counter() - start)
        results += timed("training step, torch.compile", ways, rounds, network=network, seconds_to_compile=seconds)
    return results


SECTIONS = {"fc3": fc3, "training": training_steps, "inference": inference, "compiled": compiled}


def main() -> None:
    parser = options(__doc__, rounds=15)
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=[*SECTIONS], help="what to time")
    args = parser.parse_args()
    lines = checks()
    print("\n".join(lines), flush=True)
    results: list[dict[str, Any]] = []
    for section in args.sections:
        results += SECTIONS[section](args.rounds)
        keep(lines, results, args.rounds)  # after each section: a GPU may be lent for a short time only


def keep(lines: list[str], results: list[dict[str, Any]], rounds: int) -> None:
    by_table: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        by_table.setdefault(result["table"], []).append(result)
    tables = []
    for what, own in by_table.items():
        keys = [key for key in own[0] if key not in ("table", "fastest", "slowest")]
        cells = [[str(result[key]) for key in keys] for result in own]
        tables.append(f"{what}:\n\n{table(['ms' if key == 'median' else key for key in keys], cells)}")
    settings = {"device": torch.cuda.get_device_name(), "training batch": BATCH, "rounds": rounds}
    write("gpu", settings, results, "\n\n".join(["\n".join(f"- {line}" for line in lines), *tables]))


if __name__ == "__main__":
    main()
