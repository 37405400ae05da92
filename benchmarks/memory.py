"""Peak memory of converting, verifying, exporting and quantizing a network with random weights, each in a process.

python benchmarks/memory.py
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from common import table, write

import repmlp

#: Commands, in a folder in which t is the training form. Each makes what the later ones need.
STEPS = {
    "load": "info t",
    "convert": "convert t d",
    "verify": "verify t d --images=8",
    "export onnx": "export d x.onnx",
    "quantize weights": "quantize d i.onnx --method=weights",
}


def peak_memory(words: list[str], folder: Path) -> tuple[int, float]:
    """Run a command; returns the largest resident set of its process in bytes, and its CPU time in seconds."""
    command = [sys.executable, "-m", "repmlp_cli", *words]
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(words)} ends with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime  # Linux counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="repmlpnet_l256")
    args = parser.parse_args()
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = timm.create_model(args.network)
        weights = repmlp.save_model(model, Path(folder) / "t") / "model.safetensors"
        size = weights.stat().st_size
        del model
        for step, words in STEPS.items():
            peak, seconds = peak_memory(words.split(), Path(folder))
            results.append({"step": step, "command": f"repmlp {words}", "peak_bytes": peak, "cpu_seconds": seconds})
            print(results[-1], flush=True)
    rows = [[row["step"], f"{row['peak_bytes'] / 2**30:.2f}", f"{row['peak_bytes'] / size:.1f}"] for row in results]
    text = table(["command", "peak GiB", "times the weights"], rows)
    write("memory", {"network": args.network, "weights MB": round(size / 1e6, 1)}, results, text)


if __name__ == "__main__":
    main()
