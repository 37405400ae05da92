"""Latency of the Light network in int8 against float32, on every engine that supports them, at 224 px.

The weights are random (latency does not depend on them); `repmlp quantize` measures the loss of accuracy on trained
networks.

    python benchmarks/int8.py
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from common import milliseconds, options, table, write

import repmlp
from repmlp.deploy import export, load_exported, quantize, time_interleaved
from repmlp.deploy.engines import QUANTIZERS


@torch.no_grad()
def main() -> None:
    parser = options(__doc__, rounds=15)
    parser.add_argument("--network", default="repmlp_resnet50_light")
    args = parser.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    deploy = repmlp.reparameterize(timm.create_model(args.network))
    images = torch.randn(16, 3, 224, 224)
    test = [(images, deploy(images).argmax(1))]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {
            "onnxruntime float32": export(deploy, folder / "net.onnx").file,
            "openvino float32": export(deploy, folder / "net.xml").file,
        }
        for engine, method in (("onnxruntime", "static"), ("onnxruntime", "dynamic"), ("torch", "dynamic")):
            file = folder / f"{engine}-{method}{QUANTIZERS[engine].suffix}"
            quantize(deploy, file, test, images, engine=engine, method=method, max_drop=100)
            files[f"{engine} int8 {method}"] = file
        runs = {"torch float32": deploy, **{name: load_exported(file, threads) for name, file in files.items()}}
        sizes = {name: round(file.stat().st_size / 1e6, 1) for name, file in files.items()}
        for batch in (1, 16):
            x = images[:batch]
            times = time_interleaved({name: partial(run, x) for name, run in runs.items()}, args.rounds, warmup=2)
            for name, timing in times.items():
                results.append({"batch": batch, "engine": name, **milliseconds(timing), "MB": sizes.get(name)})
    rows = []
    for result in results:
        first = min(r["median"] for r in results if r["batch"] == result["batch"] and "float32" in r["engine"])
        rows.append([str(result[key]) for key in ("batch", "engine", "median")] + [f"{first / result['median']:.2f}x"])
    text = table(["batch", "engine", "ms", "speed against the fastest float32"], rows)
    write("int8", {"network": args.network, "warmup": 2, "rounds": args.rounds}, results, text)


if __name__ == "__main__":
    main()
