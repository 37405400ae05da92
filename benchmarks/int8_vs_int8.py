"""The Light network against ResNet-50 in each precision, both on their best engine: float32, bf16 and int8.

int8 is compared with int8 and bf16 with bf16. Both networks run their deploy form (ResNet-50 with its BNs folded) on
every engine that supports the precision; int8 is static. A second table shows what int8 does to the Light network:
float32, int8 weights only, and static int8.

Weights are random: latency does not depend on them. Run it on an otherwise idle machine:

    python benchmarks/int8_vs_int8.py --threads 1
    python benchmarks/int8_vs_int8.py --threads 1 --precisions float32 int8    # on a CPU without bf16 instructions
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from common import milliseconds, options, table, write

import repmlp
from repmlp.deploy import export, load_exported, quantize, time_interleaved
from repmlp.deploy.benchmarking import TOLERANCES, Measurement, bench
from repmlp.deploy.engines import QUANTIZERS

NETWORKS = ("repmlp_resnet50_light", "resnet50")
ENGINES = ("pytorch", "channels_last", "onnxruntime", "openvino")
BATCHES = (1, 16)


def save(name: str, folder: Path, **model_args: Any) -> str:
    """A network with random weights, none of its residual branches being zero, as a model folder."""
    torch.manual_seed(0)
    return str(repmlp.save_model(timm.create_model(name, zero_init_last=False, **model_args), folder / name))


def best(measurements: list[Measurement], name: str, precision: str, batch: int) -> Measurement:
    rows = [m for m in measurements if (Path(m.model).name, m.precision, m.batch) == (name, precision, batch)]
    return min(rows, key=lambda m: m.seconds.median)


def against_resnet(measurements: list[Measurement], precisions: list[str]) -> Iterator[list[str]]:
    """Rows of the first table: each precision and batch, the fastest engine of both networks."""
    for precision in precisions:
        for batch in BATCHES:
            ours, theirs = (best(measurements, name, precision, batch) for name in NETWORKS)
            cells = [f"{m.seconds.median * 1e3:.1f} ({m.engine})" for m in (ours, theirs)]
            yield [precision, str(batch), *cells, f"{theirs.seconds.median / ours.seconds.median:.2f}x"]


@torch.no_grad()
def methods(model: str, threads: int, rounds: int, scratch: Path) -> Iterator[dict[str, Any]]:
    """Latency of float32, int8 weights and static int8 of one network, on both engines, in one run."""
    deploy = repmlp.reparameterize(repmlp.load_model(model))
    images = torch.randn(16, *timm.models.get_model_input_config(deploy)["input_size"])
    test = [(images, deploy(images).argmax(1))]
    files = {}
    for engine in ("onnxruntime", "openvino"):
        suffix = QUANTIZERS[engine].suffix
        files[engine, "float32"] = export(deploy, scratch / f"{engine}{suffix}").file
        for method in ("weights", "static"):
            file = scratch / f"{engine}-{method}{suffix}"
            quantize(deploy, file, test, images, engine=engine, method=method, max_drop=100)
            files[engine, method] = file
    runs = {" ".join(way): load_exported(file, threads) for way, file in files.items()}
    sizes = {" ".join(way): file.with_suffix(".bin") if way[0] == "openvino" else file for way, file in files.items()}
    for batch in BATCHES:
        times = time_interleaved({way: partial(run, images[:batch]) for way, run in runs.items()}, rounds, warmup=3)
        for way, timing in times.items():
            yield {"batch": batch, "way": way, "MB": sizes[way].stat().st_size / 1e6, **milliseconds(timing)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each alternative, in turn")
    parser.add_argument("--precisions", nargs="+", choices=[*TOLERANCES], default=[*TOLERANCES])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        names = [save(name, scratch) for name in NETWORKS]
        measurements = bench(
            names, ENGINES, BATCHES, tuple(args.precisions), threads=args.threads, rounds=args.rounds, report=print
        )
        light = list(methods(names[0], args.threads, args.rounds, scratch))
    every = [
        [Path(m.model).name, m.engine, m.precision, str(m.batch), f"{m.seconds.median * 1e3:.1f}", f"{m.error:.1e}"]
        for m in measurements
    ]
    of_light = [[r["way"], str(r["batch"]), str(r["median"]), f"{r['MB']:.1f}"] for r in light]
    tables = [
        table(
            ["precision", "batch", *(f"{n}, ms" for n in NETWORKS), "speed"],
            [*against_resnet(measurements, args.precisions)],
        ),
        table(["Light", "batch", "ms", "MB"], of_light),
        table(["network", "engine", "precision", "batch", "ms", "error"], every),
    ]
    results = [*({**m.to_dict(), "model": Path(m.model).name} for m in measurements), *light]
    write("int8_vs_int8", {"warmup": 3, "rounds": args.rounds}, results, "\n\n".join(tables))


if __name__ == "__main__":
    main()
